// Arrays in NumPy's .npy files, as far as models take and give them.
#ifndef DSGC_EXAMPLE_NPY_H_
#define DSGC_EXAMPLE_NPY_H_

#include <string>

#include "dsgc/runtime.h"

/// The array in a file. `wanted` says what a file that does not begin as .npy holds: numbers of its
/// dtype, as many whole samples as there are.
///
/// Throws dsgc::InputError if it is neither, std::system_error if it cannot be read.
dsgc::Tensor read_array(const std::string& path, const dsgc::PortInfo& wanted);

/// Writes a .npy file. Throws std::system_error.
void write_npy(const std::string& path, const dsgc::Tensor& array);

#endif  // DSGC_EXAMPLE_NPY_H_
