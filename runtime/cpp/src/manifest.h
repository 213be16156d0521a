// The manifest of an artifact: read, and refused unless every part is what it should be.
#ifndef DSGC_MANIFEST_H_
#define DSGC_MANIFEST_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "dsgc/runtime.h"
#include "sizes.h"

namespace dsgc::detail {

/// The beginning of a buffer or of a constant as a contiguous tensor.
struct View {
  bool is_constant;
  std::uint32_t storage;  // a buffer, or one of `Manifest::constants`
  DType dtype;
  std::vector<Size> shape;  // at most kMostDimensions
};

constexpr std::size_t kMostDimensions = 8;

/// An input or output of the model; its first dimension is the batch.
struct Port {
  std::string name;
  View view;
};

/// Memory that is needed from the instruction `first` to the instruction `last`.
struct Buffer {
  Size bytes;
  std::int64_t first;
  std::int64_t last;
};

using Argument = std::variant<View, Size, double>;

/// A call of a kernel.
struct Call {
  std::string kernel;
  std::string layer;
  std::vector<Argument> arguments;
};

/// Takes the last number of a vector as the size `name`, at most `most`.
struct Read {
  std::uint32_t name;
  std::string layer;
  View view;
  Size most;
};

using Step = std::variant<Call, Read>;

struct File {
  std::string sha256;
  std::int64_t bytes;
};

struct Manifest {
  std::string target;
  std::string machine;
  std::vector<std::string> features;
  bool dynamic;
  std::int64_t example;
  std::vector<Port> inputs;
  std::vector<Port> outputs;
  std::vector<Buffer> buffers;
  std::vector<Step> program;
  std::vector<Layer> layers;
  std::unordered_map<std::string, File> files;
  std::vector<std::string> constants;  // names of those that the program uses
  Sizes sizes;
};

/// The manifest in a JSON text.
///
/// Throws NewerFormat if its format is not known, and DamagedArtifact if something in it is missing
/// or not possible.
Manifest read_manifest(std::string_view text);

/// The layer that an instruction belongs to.
const std::string& layer_of(const Step& step);

/// Calls `look` with every tensor that an instruction works on.
template <class Look>
void each_view(const Step& step, Look look) {
  if (const auto* read = std::get_if<Read>(&step)) return look(read->view);
  for (const Argument& argument : std::get<Call>(step).arguments) {
    if (const auto* view = std::get_if<View>(&argument)) look(*view);
  }
}

}  // namespace dsgc::detail

#endif  // DSGC_MANIFEST_H_
