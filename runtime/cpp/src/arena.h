// Where the buffers of a program lie: one block of memory, used again as soon as possible.
#ifndef DSGC_ARENA_H_
#define DSGC_ARENA_H_

#include <cstdint>
#include <utility>
#include <vector>

namespace dsgc::detail {

struct Needed {
  std::int64_t bytes;
  std::int64_t first;  // the instructions between which it is needed
  std::int64_t last;
};

/// Offsets of buffers in an arena, and its size. Larger ones are placed first, each in the tightest
/// gap between those that live at the same time. Throws std::bad_alloc if the arena would be larger
/// than any memory.
std::pair<std::vector<std::int64_t>, std::int64_t> plan(const std::vector<Needed>& needed);

}  // namespace dsgc::detail

#endif  // DSGC_ARENA_H_
