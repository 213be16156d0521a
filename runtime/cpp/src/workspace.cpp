#include "workspace.h"

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "aligned.h"

namespace dsgc::detail {
namespace {

constexpr int kSpares = 8;

struct Spare {
  void* piece = nullptr;
  std::uint64_t bytes = 0;
};

char* header_of(void* piece) { return static_cast<char*>(piece) - kAlignment; }

/// The pieces of a thread that wait. The line before each piece holds its size.
class Spares {
 public:
  ~Spares() {
    for (const Spare& spare : spares_) {
      if (spare.piece != nullptr) std::free(header_of(spare.piece));
    }
  }

  void* take(std::uint64_t bytes) {
    for (Spare& spare : spares_) {
      if (spare.piece == nullptr || spare.bytes < bytes) continue;
      if (spare.bytes - bytes > bytes + kAlignment) continue;  // it would be wasted
      void* found = spare.piece;
      spare.piece = nullptr;
      return found;
    }
    if (bytes >= std::uint64_t{1} << 62) return nullptr;
    std::uint64_t rounded = aligned(bytes);
    void* header = std::aligned_alloc(kAlignment, rounded + kAlignment);
    if (header == nullptr) return nullptr;
    std::memcpy(header, &rounded, sizeof rounded);
    return static_cast<char*>(header) + kAlignment;
  }

  void give(void* piece) {
    Spare* place = nullptr;
    for (Spare& spare : spares_) {
      if (spare.piece == nullptr) place = &spare;
    }
    if (place == nullptr) {
      oldest_ = (oldest_ + 1) % kSpares;
      place = &spares_[oldest_];
      std::free(header_of(place->piece));
    }
    place->piece = piece;
    std::memcpy(&place->bytes, header_of(piece), sizeof place->bytes);
  }

 private:
  Spare spares_[kSpares];
  int oldest_ = 0;
};

thread_local Spares spares;

}  // namespace

void* take_workspace(int, int, std::uint64_t bytes, int, int) noexcept {
  return spares.take(bytes);
}

int give_workspace(int, int, void* piece) noexcept {
  if (piece != nullptr) spares.give(piece);
  return 0;
}

}  // namespace dsgc::detail
