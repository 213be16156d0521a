// Opens an artifact and checks all of it before any of its native code is loaded.
#ifndef DSGC_ARCHIVE_H_
#define DSGC_ARCHIVE_H_

#include <string>

#include "manifest.h"
#include "weights.h"

namespace dsgc::detail {

/// The checked parts of an artifact.
struct Archive {
  Manifest manifest;
  std::string graph;
  std::string kernels;
  Weights weights;
};

/// Reads and checks an artifact; nothing of it is run.
///
/// Throws DamagedArtifact, NewerFormat or WrongMachine; std::system_error if it cannot be read.
Archive open_archive(const std::string& path);

}  // namespace dsgc::detail

#endif  // DSGC_ARCHIVE_H_
