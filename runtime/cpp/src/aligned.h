// Aligned memory, for tensors, constants and the arena.
#ifndef DSGC_ALIGNED_H_
#define DSGC_ALIGNED_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace dsgc::detail {

constexpr std::size_t kAlignment = 64;

using Memory = std::unique_ptr<void, void (*)(void*)>;

/// `bytes` rounded up to whole cache lines; they must be fewer than 2**62.
constexpr std::uint64_t aligned(std::uint64_t bytes) {
  return (bytes + kAlignment - 1) & ~static_cast<std::uint64_t>(kAlignment - 1);
}

/// Memory that is not set, at least one cache line. Throws std::bad_alloc.
inline Memory allocate(std::uint64_t bytes) {
  if (bytes >= std::uint64_t{1} << 62) throw std::bad_alloc();
  void* found = std::aligned_alloc(kAlignment, bytes == 0 ? kAlignment : aligned(bytes));
  if (found == nullptr) throw std::bad_alloc();
  return Memory(found, &std::free);
}

}  // namespace dsgc::detail

#endif  // DSGC_ALIGNED_H_
