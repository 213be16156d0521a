// Gives a shared object functions of ours before it is loaded.
//
// Kernels call a few functions of libtvm_ffi. If this library exported its own of these names, a
// process that holds both would have one take the other's place, by chance of the order in which
// they were loaded. So they are not exported: in the copy of kernels.so that is going to be loaded,
// the undefined symbols become local ones with absolute values, and the dynamic linker looks for
// them nowhere else.
#ifndef DSGC_SYMBOLS_H_
#define DSGC_SYMBOLS_H_

#include <string>
#include <utility>
#include <vector>

namespace dsgc::detail {

/// Functions by name.
using Functions = std::vector<std::pair<const char*, void*>>;

/// Defines those of `functions` that `library` does not have, in this copy of it.
///
/// Throws DamagedArtifact if it is no shared object for 64 bits, little-endian.
void define(std::string& library, const Functions& functions);

}  // namespace dsgc::detail

#endif  // DSGC_SYMBOLS_H_
