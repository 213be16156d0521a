#include "sha256.h"

#include <algorithm>
#include <cstring>

namespace dsgc::detail {
namespace {

constexpr std::uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t turn(std::uint32_t x, int bits) { return (x >> bits) | (x << (32 - bits)); }

}  // namespace

void Sha256::block(const unsigned char* data) {
  std::uint32_t w[64];
  for (int i = 0; i < 16; ++i) {
    const unsigned char* p = data + 4 * i;
    w[i] = std::uint32_t{p[0]} << 24 | std::uint32_t{p[1]} << 16 | std::uint32_t{p[2]} << 8 | p[3];
  }
  for (int i = 16; i < 64; ++i) {
    std::uint32_t a = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ (w[i - 15] >> 3);
    std::uint32_t b = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ (w[i - 2] >> 10);
    w[i] = w[i - 16] + a + w[i - 7] + b;
  }
  std::array<std::uint32_t, 8> s = state_;
  for (int i = 0; i < 64; ++i) {
    std::uint32_t chosen = (s[4] & s[5]) ^ (~s[4] & s[6]);
    std::uint32_t major = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
    std::uint32_t one = turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25);
    std::uint32_t zero = turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22);
    std::uint32_t added = s[7] + one + chosen + kRound[i] + w[i];
    std::copy_backward(s.begin(), s.end() - 1, s.end());
    s[4] += added;
    s[0] = added + zero + major;
  }
  for (int i = 0; i < 8; ++i) state_[i] += s[i];
}

void Sha256::update(const void* data, std::size_t bytes) {
  const auto* next = static_cast<const unsigned char*>(data);
  std::size_t held = bytes_ % 64;
  if (bytes == 0) return;
  bytes_ += bytes;
  if (held > 0) {
    std::size_t taken = std::min(bytes, 64 - held);
    std::memcpy(waiting_.data() + held, next, taken);
    next += taken;
    bytes -= taken;
    if (held + taken < 64) return;
    block(waiting_.data());
  }
  for (; bytes >= 64; next += 64, bytes -= 64) block(next);
  if (bytes > 0) std::memcpy(waiting_.data(), next, bytes);
}

std::string Sha256::hex() {
  std::uint64_t bits = bytes_ * 8;
  unsigned char end[72] = {0x80};
  std::size_t zeros = (119 - bytes_ % 64) % 64;  // up to 8 bytes before the end of a block
  for (int i = 0; i < 8; ++i) end[1 + zeros + i] = static_cast<unsigned char>(bits >> (56 - 8 * i));
  update(end, 1 + zeros + 8);
  std::string made;
  for (std::uint32_t word : state_) {
    for (int shift = 28; shift >= 0; shift -= 4) made += "0123456789abcdef"[(word >> shift) & 15];
  }
  return made;
}

}  // namespace dsgc::detail
