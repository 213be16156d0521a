// What this machine is, and whether an artifact is for it.
#ifndef DSGC_MACHINE_H_
#define DSGC_MACHINE_H_

#include "manifest.h"

namespace dsgc::detail {

/// Throws WrongMachine unless the artifact was compiled for this machine.
void check_machine(const Manifest& manifest);

}  // namespace dsgc::detail

#endif  // DSGC_MACHINE_H_
