// The constants of an artifact, out of a safetensors file.
#ifndef DSGC_WEIGHTS_H_
#define DSGC_WEIGHTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "aligned.h"
#include "container.h"
#include "manifest.h"

namespace dsgc::detail {

/// A constant in memory, at a multiple of 64 bytes.
struct Constant {
  void* data;
  std::int64_t bytes;
};

struct Weights {
  Memory memory{nullptr, &std::free};
  std::vector<Constant> constants;  // as `Manifest::constants`
};

/// Reads the weights once, into the place where they stay, and checks their hash.
///
/// Throws DamagedArtifact if they are not as they were written, or not what the program needs.
Weights read_weights(const Input& file, Place place, const Manifest& manifest);

}  // namespace dsgc::detail

#endif  // DSGC_WEIGHTS_H_
