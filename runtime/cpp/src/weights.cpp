#include "weights.h"

#include <algorithm>
#include <exception>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "json.h"
#include "sha256.h"

namespace dsgc::detail {
namespace {

constexpr std::uint64_t kMostHeader = 16 << 20;
constexpr std::uint64_t kPiece = 1 << 18;

struct Entry {
  std::string name;
  std::uint64_t begin;  // in the data behind the header
  std::uint64_t end;
};

[[noreturn]] void refuse(const std::string& why) {
  throw DamagedArtifact("its weights cannot be read: " + json::plain(why));
}

std::uint64_t item_bytes(const std::string& dtype, const std::string& name) {
  if (dtype == "F32" || dtype == "I32") return 4;
  if (dtype == "I64") return 8;
  if (dtype == "U8" || dtype == "I8") return 1;
  throw DamagedArtifact("the weights " + json::plain(name) + " are " + json::plain(dtype));
}

/// A list of numbers that are not negative.
std::vector<std::uint64_t> numbers(const json::Value* given, const std::string& name) {
  const auto* parts = given == nullptr ? nullptr : std::get_if<json::Array>(&given->content);
  if (parts == nullptr) refuse(name + " has no shape or place");
  std::vector<std::uint64_t> found;
  for (const json::Value& part : *parts) {
    const auto* number = std::get_if<std::int64_t>(&part.content);
    if (number == nullptr || *number < 0) refuse(name + " has no shape or place");
    found.push_back(static_cast<std::uint64_t>(*number));
  }
  return found;
}

Entry entry(const json::Member& member) {
  const json::Value* dtype = json::find(&member.value, "dtype");
  const auto* kind = dtype == nullptr ? nullptr : std::get_if<std::string>(&dtype->content);
  if (kind == nullptr) refuse(member.name + " has no dtype");
  std::uint64_t bytes = item_bytes(*kind, member.name);
  for (std::uint64_t extent : numbers(json::find(&member.value, "shape"), member.name)) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) refuse(member.name + " is too large");
  }
  auto offsets = numbers(json::find(&member.value, "data_offsets"), member.name);
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] - offsets[0] != bytes) {
    refuse(member.name + " has another size than its shape");
  }
  return {member.name, offsets[0], offsets[1]};
}

/// The tensors of a header, in the order of their data: one behind the other, until `bytes`.
std::vector<Entry> layout(const std::string& header, std::uint64_t bytes) {
  json::Value content = json::parse(header, "its weights' header");
  const auto* members = std::get_if<json::Object>(&content.content);
  if (members == nullptr) refuse("the header is no object");
  std::vector<Entry> found;
  std::unordered_set<std::string_view> names;
  for (const json::Member& member : *members) {
    if (!names.insert(member.name).second) refuse(member.name + " is there twice");
    if (member.name != "__metadata__") found.push_back(entry(member));
  }
  std::sort(found.begin(), found.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t end = 0;
  for (const Entry& one : found) {
    if (one.begin != end) refuse(one.name + " does not begin where the one before it ends");
    end = one.end;
  }
  if (end != bytes) refuse("there are " + std::to_string(bytes) + " bytes of data");
  return found;
}

/// A member read in order, and hashed on the way.
class Stream {
 public:
  Stream(const Input& file, Place place) : file_(file), place_(place) {}

  std::uint64_t left() const { return place_.bytes - at_; }

  void read(void* to, std::uint64_t bytes) {
    auto* next = static_cast<unsigned char*>(to);
    for (std::uint64_t piece; bytes > 0; bytes -= piece, next += piece) {
      piece = std::min(bytes, kPiece);
      file_.read(place_.offset + at_, next, piece);
      hash_.update(next, piece);
      at_ += piece;
    }
  }

  void skip(std::uint64_t bytes) {
    std::vector<unsigned char> rest(std::min(bytes, kPiece));
    for (std::uint64_t piece; bytes > 0; bytes -= piece) {
      piece = std::min(bytes, kPiece);
      read(rest.data(), piece);
    }
  }

  /// The hash of all of the member, of which the rest is read for that.
  std::string hash() {
    skip(left());
    return hash_.hex();
  }

 private:
  const Input& file_;
  Place place_;
  Sha256 hash_;
  std::uint64_t at_ = 0;
};

std::vector<Entry> read_layout(Stream& stream) {
  unsigned char length[8];
  if (stream.left() < sizeof length) refuse("they are too short");
  stream.read(length, sizeof length);
  std::uint64_t bytes = 0;
  for (int i = 7; i >= 0; --i) bytes = bytes << 8 | length[i];
  if (bytes > std::min(stream.left(), kMostHeader)) refuse("the header is too large");
  std::string header(bytes, '\0');
  stream.read(header.data(), bytes);
  return layout(header, stream.left());
}

/// Reads every tensor that the program uses to a place of its own. What it does not find has none.
void read_tensors(Stream& stream, const std::vector<Entry>& entries,
                  const std::vector<std::string>& names, Weights& made) {
  std::unordered_map<std::string_view, std::size_t> numbers;
  for (std::size_t i = 0; i < names.size(); ++i) numbers.emplace(names[i], i);
  std::uint64_t total = 0;
  for (const Entry& one : entries) {
    if (numbers.count(one.name) > 0) total += aligned(one.end - one.begin);
  }
  made.memory = allocate(total);
  made.constants.assign(names.size(), {nullptr, 0});
  auto* next = static_cast<char*>(made.memory.get());
  for (const Entry& one : entries) {
    std::uint64_t bytes = one.end - one.begin;
    auto number = numbers.find(one.name);
    if (number == numbers.end()) {
      stream.skip(bytes);
      continue;
    }
    Constant& constant = made.constants[number->second];
    constant = {next, static_cast<std::int64_t>(bytes)};
    stream.read(next, bytes);
    next += aligned(bytes);
  }
}

}  // namespace

Weights read_weights(const Input& file, Place place, const Manifest& manifest) {
  Weights made;
  Stream stream(file, place);
  std::exception_ptr wrong;  // that they have been altered comes before what is wrong in them
  try {
    read_tensors(stream, read_layout(stream), manifest.constants, made);
  } catch (const DamagedArtifact&) {
    wrong = std::current_exception();
  }
  auto about = manifest.files.find("weights.safetensors");
  if (about == manifest.files.end() || about->second.sha256 != stream.hash()) {
    throw DamagedArtifact("weights.safetensors has been altered");
  }
  if (wrong) std::rethrow_exception(wrong);
  std::string missing;
  for (std::size_t i = 0; i < manifest.constants.size(); ++i) {
    if (made.constants[i].data != nullptr) continue;
    missing += (missing.empty() ? "" : ", ") + json::plain(manifest.constants[i]);
  }
  if (!missing.empty()) throw DamagedArtifact("it has no weights " + missing.substr(0, 200));
  return made;
}

}  // namespace dsgc::detail
