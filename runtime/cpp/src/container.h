// The zip file that an artifact is: its four members, found and bounds-checked. Our own reader,
// because a library for it would have to be there for every architecture that this one is compiled
// for, and because an artifact uses so little of zip: its members are stored as they are.
#ifndef DSGC_CONTAINER_H_
#define DSGC_CONTAINER_H_

#include <cstdint>
#include <string>
#include <unordered_map>

namespace dsgc::detail {

/// A file, open for reading.
class Input {
 public:
  /// Throws std::system_error if it cannot be opened.
  explicit Input(const std::string& path);
  ~Input();
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  std::uint64_t size() const { return size_; }

  /// Reads exactly these bytes. Throws DamagedArtifact if the file ends before, std::system_error
  /// if the system fails.
  void read(std::uint64_t offset, void* to, std::uint64_t bytes) const;

  /// The same as text.
  std::string text(std::uint64_t offset, std::uint64_t bytes) const;

 private:
  std::string path_;
  int descriptor_;
  std::uint64_t size_ = 0;
};

/// Where the content of a member lies in the file; all of it does.
struct Place {
  std::uint64_t offset;
  std::uint64_t bytes;
};

/// What a zip file holds.
struct Container {
  std::unordered_map<std::string, Place> members;
  std::string comment;
};

/// The members of an artifact: exactly those it must have, none compressed.
///
/// Throws DamagedArtifact if the file is anything else.
Container read_container(const Input& file);

}  // namespace dsgc::detail

#endif  // DSGC_CONTAINER_H_
