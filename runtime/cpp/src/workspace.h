// Scratch memory of kernels.
#ifndef DSGC_WORKSPACE_H_
#define DSGC_WORKSPACE_H_

#include <cstdint>

namespace dsgc::detail {

/// Memory for a kernel at a multiple of 64 bytes, null if there is none. A few pieces of every
/// thread wait for their next use, because kernels ask for the same ones at every turn of a loop;
/// they go with the thread.
void* take_workspace(int device_type, int device, std::uint64_t bytes, int code, int bits) noexcept;

/// Takes back what `take_workspace` gave.
int give_workspace(int device_type, int device, void* piece) noexcept;

}  // namespace dsgc::detail

#endif  // DSGC_WORKSPACE_H_
