#include "sizes.h"

#include <algorithm>

#include "dsgc/runtime.h"

namespace dsgc::detail {
namespace {

constexpr int kDepth = 40;

[[noreturn]] void refuse(const json::Value* given) {
  throw DamagedArtifact((given == nullptr ? "nothing" : json::text(*given, 80)) + " is no size");
}

/// `found`, unless it is too large or more than its type holds.
std::int64_t bounded(std::int64_t found, bool overflow, const char* what) {
  if (overflow || found >= kLimit) {
    throw DamagedArtifact(std::string(what) + " is beyond all bounds");
  }
  return found;
}

std::int64_t product(std::int64_t a, std::int64_t b, const char* what) {
  std::int64_t found = 0;
  bool overflow = __builtin_mul_overflow(a, b, &found);
  return bounded(found, overflow, what);
}

}  // namespace

std::uint32_t Sizes::name(const std::string& name) {
  auto [place, is_new] = by_name_.emplace(name, static_cast<std::uint32_t>(names_.size()));
  if (is_new) names_.push_back(name);
  return place->second;
}

bool Sizes::is_batch(Size size) const {
  const Node& node = nodes_[size.node];
  return node.kind == Kind::name && node.left == kBatch;
}

Size Sizes::add(Node node) {
  nodes_.push_back(node);
  return Size{static_cast<std::uint32_t>(nodes_.size() - 1)};
}

Size Sizes::parse(const json::Value* given, bool only_batch, int depth) {
  if (given == nullptr) refuse(given);
  if (const auto* number = std::get_if<std::int64_t>(&given->content)) {
    if (*number >= 0 && *number < kLimit) return add({Kind::number, true, *number, 0});
  } else if (const auto* words = std::get_if<std::string>(&given->content)) {
    auto known = by_name_.find(*words);
    if (known != by_name_.end() && (known->second == kBatch || !only_batch)) {
      return add({Kind::name, known->second == kBatch, known->second, 0});
    }
  } else if (const auto* parts = std::get_if<json::Array>(&given->content)) {
    const auto* sign =
        parts->size() == 3 ? std::get_if<std::string>(&(*parts)[0].content) : nullptr;
    if (sign == nullptr || depth >= kDepth) refuse(given);
    Kind kind = *sign == "+"      ? Kind::sum
                : *sign == "*"    ? Kind::product
                : *sign == "ceil" ? Kind::ceiling
                                  : Kind::number;
    if (kind == Kind::number) refuse(given);
    std::uint32_t left = parse(&(*parts)[1], only_batch, depth + 1).node;
    std::uint32_t right = parse(&(*parts)[2], only_batch, depth + 1).node;
    const Node& divisor = nodes_[right];
    if (kind == Kind::ceiling && (divisor.kind != Kind::number || divisor.left == 0)) refuse(given);
    return add({kind, nodes_[left].early && nodes_[right].early, left, right});
  }
  refuse(given);
}

std::int64_t Sizes::evaluate(Size size, const std::vector<std::int64_t>& known) const {
  const Node& node = nodes_[size.node];
  if (node.kind == Kind::number) return node.left;
  if (node.kind == Kind::name) {
    std::int64_t value = known[static_cast<std::size_t>(node.left)];
    if (value < 0) {
      throw DamagedArtifact("'" + names_[static_cast<std::size_t>(node.left)] +
                            "' is used before it is known");
    }
    return value;
  }
  std::int64_t left = evaluate({static_cast<std::uint32_t>(node.left)}, known);
  std::int64_t right = evaluate({static_cast<std::uint32_t>(node.right)}, known);
  if (node.kind == Kind::ceiling) return left / right + (left % right != 0);
  if (node.kind == Kind::product) return product(left, right, "a size");
  std::int64_t sum = 0;
  bool overflow = __builtin_add_overflow(left, right, &sum);
  return bounded(sum, overflow, "a size");
}

std::int64_t volume(const Sizes& sizes, const std::vector<Size>& shape,
                    const std::vector<std::int64_t>& known) {
  std::int64_t total = 1, bound = 1;
  for (Size extent : shape) {
    std::int64_t size = sizes.evaluate(extent, known);
    // Also of a tensor that is empty: its strides are products of its other extents.
    bound = product(bound, std::max<std::int64_t>(1, size), "a tensor");
    total *= size;
  }
  return total;
}

}  // namespace dsgc::detail
