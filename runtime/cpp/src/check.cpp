#include "check.h"

#include <algorithm>
#include <string>

namespace dsgc::detail {
namespace {

std::int64_t bytes_of(const Manifest& manifest, const View& view,
                      const std::vector<std::int64_t>& known) {
  return volume(manifest.sizes, view.shape, known) * static_cast<std::int64_t>(size_of(view.dtype));
}

/// Every tensor of the program against the bytes that are there of every buffer and constant.
void check_views(const Manifest& manifest, const Weights& weights,
                 const std::vector<std::int64_t>& sizes, const std::vector<std::int64_t>& given) {
  std::vector<std::int64_t> known = given;
  auto fits = [&](const View& view) {
    std::int64_t needed = bytes_of(manifest, view, known);
    std::int64_t there =
        view.is_constant ? weights.constants[view.storage].bytes : sizes[view.storage];
    if (needed <= there) return;
    const std::string& name =
        view.is_constant ? manifest.constants[view.storage] : std::to_string(view.storage);
    throw DamagedArtifact("a tensor of " + std::to_string(needed) + " bytes lies beyond the " +
                          std::to_string(there) + " of '" + name + "'");
  };
  for (const Step& step : manifest.program) {
    each_view(step, fits);
    if (const auto* read = std::get_if<Read>(&step)) {
      known[read->name] = manifest.sizes.evaluate(read->most, given);
    }
  }
}

/// Inputs and outputs have buffers of their own, which they fill.
void check_ports(const Manifest& manifest, const std::vector<std::int64_t>& sizes,
                 const std::vector<std::int64_t>& given) {
  std::vector<bool> taken(sizes.size(), false);
  for (const auto* ports : {&manifest.inputs, &manifest.outputs}) {
    for (const Port& port : *ports) {
      std::uint32_t storage = port.view.storage;
      if (taken[storage] || bytes_of(manifest, port.view, given) != sizes[storage]) {
        throw DamagedArtifact("the buffer of '" + port.name +
                              (taken[storage] ? "' is another's" : "' is not of its size"));
      }
      taken[storage] = true;
    }
  }
}

}  // namespace

void check_program(const Manifest& manifest, const Weights& weights) {
  if (manifest.inputs.empty() || manifest.outputs.empty()) {
    throw DamagedArtifact("it has no inputs or no outputs");
  }
  buffer_sizes(manifest, weights, std::max<std::int64_t>(1, manifest.example));
}

std::vector<std::int64_t> buffer_sizes(const Manifest& manifest, const Weights& weights,
                                       std::int64_t batch) {
  std::vector<std::int64_t> given(manifest.sizes.names(), -1);
  given[Sizes::kBatch] = batch;
  std::vector<std::int64_t> sizes;
  for (const Buffer& buffer : manifest.buffers) {
    sizes.push_back(manifest.sizes.evaluate(buffer.bytes, given));
  }
  check_views(manifest, weights, sizes, given);
  check_ports(manifest, sizes, given);
  return sizes;
}

}  // namespace dsgc::detail
