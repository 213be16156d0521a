// Whether a program stays within its memory: every tensor of every call, for one batch size.
#ifndef DSGC_CHECK_H_
#define DSGC_CHECK_H_

#include <cstdint>
#include <vector>

#include "manifest.h"
#include "weights.h"

namespace dsgc::detail {

/// Checks a program for the batch that it was exported with, before any of its code is loaded.
/// Throws DamagedArtifact if it has no inputs or outputs, or if a tensor does not fit.
void check_program(const Manifest& manifest, const Weights& weights);

/// Bytes of every buffer for batches of one size, every tensor being checked against them. Counts
/// that only a call knows are taken at their largest. Throws DamagedArtifact if one does not fit.
std::vector<std::int64_t> buffer_sizes(const Manifest& manifest, const Weights& weights,
                                       std::int64_t batch);

}  // namespace dsgc::detail

#endif  // DSGC_CHECK_H_
