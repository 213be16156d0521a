// SHA-256 (FIPS 180-4). Our own, because a library for it would have to be there for every
// architecture that this one is compiled for.
#ifndef DSGC_SHA256_H_
#define DSGC_SHA256_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace dsgc::detail {

class Sha256 {
 public:
  void update(const void* data, std::size_t bytes);

  /// The digest of all that was given, in hexadecimal; nothing may be given afterwards.
  std::string hex();

 private:
  void block(const unsigned char* data);

  std::array<std::uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> waiting_ = {};
  std::uint64_t bytes_ = 0;
};

}  // namespace dsgc::detail

#endif  // DSGC_SHA256_H_
