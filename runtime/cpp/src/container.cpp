#include "container.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <system_error>
#include <vector>

#include "dsgc/runtime.h"
#include "json.h"

namespace dsgc::detail {
namespace {

constexpr std::uint64_t kComment = 64;  // a SHA-256 in hexadecimal
constexpr std::uint64_t kMostDirectory = 1 << 16;
constexpr std::uint32_t kSmall = 0xffffffff;  // the number is in an extra field, of 64 bits
constexpr std::uint16_t kZipVersion = 63;     // 6.3, the newest
constexpr std::uint16_t kEncrypted = 0x2041;  // bits of the flags: in one of three ways

[[noreturn]] void refuse(const std::string& why) {
  throw DamagedArtifact("not an artifact: " + why);
}

/// Little-endian numbers out of a record, in order. Nothing is read beyond its end.
class Record {
 public:
  explicit Record(std::string bytes) : bytes_(std::move(bytes)) {}

  std::uint64_t left() const { return bytes_.size() - at_; }
  std::uint16_t two() { return static_cast<std::uint16_t>(number(2)); }
  std::uint32_t four() { return static_cast<std::uint32_t>(number(4)); }
  std::uint64_t eight() { return number(8); }
  void skip(std::uint64_t bytes) { at_ += require(bytes); }
  std::string text(std::uint64_t bytes) {
    std::string found = bytes_.substr(at_, require(bytes));
    at_ += bytes;
    return found;
  }

 private:
  std::uint64_t require(std::uint64_t bytes) const {
    if (bytes > left()) refuse("its directory is cut off");
    return bytes;
  }

  std::uint64_t number(unsigned bytes) {
    std::uint64_t found = 0;
    require(bytes);
    for (unsigned i = 0; i < bytes; ++i) {
      found |= std::uint64_t{static_cast<unsigned char>(bytes_[at_ + i])} << (8 * i);
    }
    at_ += bytes;
    return found;
  }

  std::string bytes_;
  std::uint64_t at_ = 0;
};

struct Directory {
  std::uint64_t offset;
  std::uint64_t bytes;
  std::string comment;
};

/// The directory as the record of 64-bit numbers says, which ends at `end`.
Directory large_directory(const Input& file, std::uint64_t end, std::string comment) {
  if (end < 20 + 56) refuse("its directory is cut off");
  Record locator(file.text(end - 20, 20));
  locator.skip(8);
  std::uint64_t at = locator.eight();
  if (at != end - 20 - 56) refuse("its directory is not where it should be");
  Record record(file.text(at, 56));
  if (record.four() != 0x06064b50) refuse("its directory is not where it should be");
  record.skip(36);
  std::uint64_t bytes = record.eight(), offset = record.eight();
  if (offset > at || bytes != at - offset) refuse("its directory is not where it should be");
  return {offset, bytes, std::move(comment)};
}

Directory find_directory(const Input& file) {
  constexpr std::uint64_t kEnd = 22 + kComment;
  if (file.size() < kEnd) refuse("it is too short");
  std::uint64_t at = file.size() - kEnd;
  Record record(file.text(at, kEnd));
  if (record.four() != 0x06054b50) refuse("it does not end as one");
  record.skip(8);
  std::uint64_t bytes = record.four(), offset = record.four();
  if (record.two() != kComment) refuse("it does not end as one");
  std::string comment = record.text(kComment);
  if (at >= 20 && Record(file.text(at - 20, 4)).four() == 0x07064b50) {
    return large_directory(file, at, std::move(comment));
  }
  if (offset > at || bytes != at - offset) refuse("its directory is not where it should be");
  return {offset, bytes, std::move(comment)};
}

/// Takes the numbers that did not fit from the extra fields of a directory entry.
void enlarge(Record extra, std::uint64_t& whole, std::uint64_t& stored, std::uint64_t& offset) {
  while (extra.left() >= 4) {
    std::uint16_t kind = extra.two();
    Record field(extra.text(extra.two()));
    if (kind != 1) continue;
    for (std::uint64_t* number : {&whole, &stored, &offset}) {
      if (*number == kSmall) *number = field.eight();
    }
  }
}

/// Where a member's content begins, behind a header that says the same name again.
std::uint64_t content_of(const Input& file, const Directory& directory, std::uint64_t offset,
                         const std::string& name) {
  if (offset > directory.offset || directory.offset - offset < 30) refuse("a member is cut off");
  Record header(file.text(offset, 30));
  if (header.four() != 0x04034b50) refuse("a member does not begin where it should");
  header.skip(22);
  std::uint64_t named = header.two(), extra = header.two();
  std::uint64_t begin = offset + 30 + named + extra;
  if (begin > directory.offset) refuse("a member is cut off");
  if (file.text(offset + 30, named) != name) refuse("a member has two names");
  return begin;
}

}  // namespace

Input::Input(const std::string& path)
    : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  struct stat about{};
  if (descriptor_ < 0) throw std::system_error(errno, std::generic_category(), path);
  if (::fstat(descriptor_, &about) != 0 || S_ISDIR(about.st_mode)) {
    int error = S_ISDIR(about.st_mode) ? EISDIR : errno;
    ::close(descriptor_);
    throw std::system_error(error, std::generic_category(), path);
  }
  size_ = static_cast<std::uint64_t>(about.st_size);
}

Input::~Input() { ::close(descriptor_); }

void Input::read(std::uint64_t offset, void* to, std::uint64_t bytes) const {
  if (offset > size_ || bytes > size_ - offset) refuse("it is cut off");
  auto* next = static_cast<char*>(to);
  while (bytes > 0) {
    ssize_t got = ::pread(descriptor_, next, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw std::system_error(errno, std::generic_category(), path_);
    if (got == 0) refuse("it is cut off");
    next += got;
    offset += static_cast<std::uint64_t>(got);
    bytes -= static_cast<std::uint64_t>(got);
  }
}

std::string Input::text(std::uint64_t offset, std::uint64_t bytes) const {
  if (offset > size_ || bytes > size_ - offset) refuse("it is cut off");
  std::string found(bytes, '\0');
  read(offset, found.data(), bytes);
  return found;
}

Container read_container(const Input& file) {
  static const std::vector<std::string> wanted = {"graph.txt", "kernels.so", "manifest.json",
                                                  "weights.safetensors"};
  Directory directory = find_directory(file);
  if (directory.bytes > kMostDirectory) refuse("its directory is too large");
  Record entries(file.text(directory.offset, directory.bytes));
  Container made{{}, directory.comment};
  std::vector<std::string> names;
  while (entries.left() > 0) {
    if (entries.four() != 0x02014b50) refuse("its directory has something else in it");
    entries.skip(2);
    if ((entries.two() & 0xff) > kZipVersion) refuse("it needs a newer version of zip");
    std::uint16_t flags = entries.two(), method = entries.two();
    entries.skip(8);
    std::uint64_t stored = entries.four(), whole = entries.four();
    std::uint16_t named = entries.two(), extra = entries.two(), comment = entries.two();
    entries.skip(8);
    std::uint64_t offset = entries.four();
    std::string name = entries.text(named);
    enlarge(Record(entries.text(extra)), whole, stored, offset);
    entries.skip(comment);
    names.push_back(name);
    if (std::find(wanted.begin(), wanted.end(), name) == wanted.end()) continue;
    if (method != 0 || whole != stored || (flags & kEncrypted) != 0) {
      throw DamagedArtifact(name + " is compressed or encrypted");
    }
    std::uint64_t begin = content_of(file, directory, offset, name);
    if (stored > directory.offset - begin) refuse("a member is cut off");
    made.members[name] = {begin, stored};
  }
  std::sort(names.begin(), names.end());
  if (names != wanted) {
    std::string listed;
    for (const std::string& name : names) listed += (listed.empty() ? "" : ", ") + name;
    throw DamagedArtifact("it holds [" + json::plain(listed.substr(0, 200)) +
                          "], not manifest.json, graph.txt, kernels.so, weights.safetensors");
  }
  return made;
}

}  // namespace dsgc::detail
