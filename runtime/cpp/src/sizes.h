// Sizes that depend on the batch: numbers, names, or [operator, left, right].
#ifndef DSGC_SIZES_H_
#define DSGC_SIZES_H_

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "json.h"

namespace dsgc::detail {

/// No size may be as large: absurd numbers are refused before they are used.
constexpr std::int64_t kLimit = std::int64_t{1} << 46;

/// A size of a `Sizes`.
struct Size {
  std::uint32_t node;
};

/// All sizes of a manifest, and the names in them; 0 is the batch.
class Sizes {
 public:
  static constexpr std::uint32_t kBatch = 0;

  Sizes() { name("batch"); }

  /// The number of a name, which is new or known.
  std::uint32_t name(const std::string& name);
  const std::string& name_of(std::uint32_t number) const { return names_[number]; }
  std::size_t names() const { return names_.size(); }

  /// A size out of a manifest; `only_batch` if no other name may occur. Throws DamagedArtifact.
  Size parse(const json::Value* given, bool only_batch, int depth = 0);

  /// Whether a size is a plain number, or the batch alone.
  bool is_number(Size size) const { return nodes_[size.node].kind == Kind::number; }
  bool is_batch(Size size) const;

  /// Whether a size depends on nothing but the batch.
  bool is_early(Size size) const { return nodes_[size.node].early; }

  /// The number that a size is. `known` has the value of every name, -1 if it has none yet. Throws
  /// DamagedArtifact if it has none, or if the number is beyond `kLimit`.
  std::int64_t evaluate(Size size, const std::vector<std::int64_t>& known) const;

 private:
  enum class Kind : std::uint8_t { number, name, sum, product, ceiling };
  struct Node {
    Kind kind;
    bool early;
    std::int64_t left;  // the number, the number of the name, or a node
    std::int64_t right;
  };

  Size add(Node node);

  std::vector<Node> nodes_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, std::uint32_t> by_name_;
};

/// Elements of a tensor. Throws DamagedArtifact if they are beyond all bounds.
std::int64_t volume(const Sizes& sizes, const std::vector<Size>& shape,
                    const std::vector<std::int64_t>& known);

}  // namespace dsgc::detail

#endif  // DSGC_SIZES_H_
