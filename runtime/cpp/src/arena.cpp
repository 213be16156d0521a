#include "arena.h"

#include <algorithm>
#include <new>
#include <numeric>

#include "aligned.h"

namespace dsgc::detail {
namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 56;

struct Span {
  std::int64_t begin;
  std::int64_t end;
};

/// The beginning of the tightest gap that holds `bytes`; the end if none does.
std::int64_t gap(const std::vector<Span>& busy, std::int64_t bytes) {
  std::int64_t best = -1, tightest = 0, cursor = 0;
  for (const Span& span : busy) {
    std::int64_t room = span.begin - cursor;
    if (room >= bytes && (best < 0 || room < tightest)) {
      best = cursor;
      tightest = room;
    }
    cursor = std::max(cursor, span.end);
  }
  return best >= 0 ? best : cursor;
}

}  // namespace

std::pair<std::vector<std::int64_t>, std::int64_t> plan(const std::vector<Needed>& needed) {
  std::vector<std::size_t> order(needed.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&needed](std::size_t a, std::size_t b) {
    return needed[a].bytes > needed[b].bytes;
  });
  std::vector<std::int64_t> offsets(needed.size(), 0);
  std::vector<std::pair<Span, const Needed*>> placed;
  std::vector<Span> busy;
  std::int64_t total = 0;
  for (std::size_t number : order) {
    const Needed& own = needed[number];
    auto bytes = static_cast<std::int64_t>(aligned(static_cast<std::uint64_t>(own.bytes)));
    busy.clear();
    for (const auto& [span, other] : placed) {
      if (other->first <= own.last && own.first <= other->last) busy.push_back(span);
    }
    std::sort(busy.begin(), busy.end(), [](const Span& a, const Span& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    std::int64_t offset = gap(busy, bytes);
    if (offset > kMost) throw std::bad_alloc();
    offsets[number] = offset;
    placed.push_back({{offset, offset + bytes}, &own});
    total = std::max(total, offset + bytes);
  }
  return {std::move(offsets), total};
}

}  // namespace dsgc::detail
