#include "session.h"

#include <chrono>
#include <cstring>

#include "arena.h"
#include "check.h"

namespace dsgc::detail {
namespace {

using Clock = std::chrono::steady_clock;

abi::DataType type_of(DType dtype) {
  std::uint8_t code = dtype == DType::float32 ? abi::kFloating
                      : dtype == DType::uint8 ? abi::kUnsigned
                                              : abi::kSigned;
  return {code, static_cast<std::uint8_t>(8 * size_of(dtype)), 1};
}

abi::Any whole(std::int64_t value) {
  abi::Any made{};
  made.type_index = abi::kInt;
  made.integer = value;
  return made;
}

}  // namespace

Session::Session(const Manifest& manifest, const Weights& weights,
                 const std::vector<abi::SafeCall>& kernels, std::int64_t batch)
    : manifest_(manifest),
      weights_(weights),
      batch_(batch),
      sizes_(buffer_sizes(manifest, weights, batch)),
      known_(manifest.sizes.names(), -1),
      is_outside_(manifest.buffers.size(), false),
      places_(manifest.buffers.size(), nullptr) {
  known_[Sizes::kBatch] = batch;
  for (const Port& port : manifest.inputs) is_outside_[port.view.storage] = true;
  for (const Port& port : manifest.outputs) is_outside_[port.view.storage] = true;
  std::vector<Needed> needed;
  for (std::size_t i = 0; i < sizes_.size(); ++i) {
    const Buffer& buffer = manifest.buffers[i];
    needed.push_back({is_outside_[i] ? 0 : sizes_[i], buffer.first, buffer.last});
  }
  auto [offsets, total] = plan(needed);
  arena_ = allocate(static_cast<std::uint64_t>(total));
  for (std::size_t i = 0; i < sizes_.size(); ++i) {
    if (!is_outside_[i]) places_[i] = static_cast<char*>(arena_.get()) + offsets[i];
  }
  steps_.reserve(manifest.program.size());
  for (std::size_t i = 0; i < manifest.program.size(); ++i) {
    steps_.push_back(ready(manifest.program[i], kernels[i]));
  }
}

Session::Ready Session::ready(const Step& step, abi::SafeCall kernel) {
  Ready made{kernel, {}, {}, {}};
  const auto* call = std::get_if<Call>(&step);
  if (call == nullptr) return made;
  std::size_t tensors = 0;
  each_view(step, [&tensors](const View&) { ++tensors; });
  made.tensors.reserve(tensors);  // they do not move any more
  for (const Argument& argument : call->arguments) {
    abi::Any value = whole(0);
    Bound* bound = nullptr;
    bool early = true;
    if (const auto* number = std::get_if<double>(&argument)) {
      value.type_index = abi::kFloat;
      value.number = *number;
    } else if (const auto* size = std::get_if<Size>(&argument)) {
      early = manifest_.sizes.is_early(*size);
      if (early) value = whole(manifest_.sizes.evaluate(*size, known_));
    } else {
      const View& view = std::get<View>(argument);
      bound = &made.tensors.emplace_back();
      value.type_index = abi::kTensor;
      value.pointer = &bound->tensor;
      early = is_early(view);
      if (early) set(*bound, view);
    }
    if (!early) made.late.push_back({made.arguments.size(), &argument, bound});
    made.arguments.push_back(value);
  }
  return made;
}

bool Session::is_early(const View& view) const {
  for (Size extent : view.shape) {
    if (!manifest_.sizes.is_early(extent)) return false;
  }
  return view.is_constant || !is_outside_[view.storage];
}

void* Session::memory_of(const View& view) const {
  return view.is_constant ? weights_.constants[view.storage].data : places_[view.storage];
}

void Session::set(Bound& bound, const View& view) const {
  auto dimensions = static_cast<std::int32_t>(view.shape.size());
  std::int64_t stride = 1;
  for (std::int32_t i = dimensions - 1; i >= 0; --i) {
    bound.shape[i] = manifest_.sizes.evaluate(view.shape[static_cast<std::size_t>(i)], known_);
    bound.strides[i] = stride;
    stride *= bound.shape[i];
  }
  bound.tensor = {memory_of(view), {abi::kCpu, 0}, dimensions, type_of(view.dtype),
                  bound.shape,     bound.strides,  0};
}

void Session::run(Running& running, const std::vector<void*>& inputs,
                  const std::vector<void*>& outputs, std::vector<double>* seconds) {
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    places_[manifest_.inputs[i].view.storage] = inputs[i];
  }
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    places_[manifest_.outputs[i].view.storage] = outputs[i];
  }
  if (seconds != nullptr) seconds->assign(steps_.size(), 0.0);
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    Clock::time_point begun = seconds != nullptr ? Clock::now() : Clock::time_point();
    const auto* call = std::get_if<Call>(&manifest_.program[i]);
    if (call == nullptr) {
      read(std::get<Read>(manifest_.program[i]));
      continue;
    }
    Ready& step = steps_[i];
    for (const Late& late : step.late) {
      if (late.bound != nullptr) {
        set(*late.bound, std::get<View>(*late.given));
      } else {
        step.arguments[late.argument].integer =
            manifest_.sizes.evaluate(std::get<Size>(*late.given), known_);
      }
    }
    running.call(step.kernel, step.arguments.data(),
                 static_cast<std::int32_t>(step.arguments.size()), call->kernel, call->layer);
    if (seconds != nullptr) {
      (*seconds)[i] = std::chrono::duration<double>(Clock::now() - begun).count();
    }
  }
}

void Session::read(const Read& step) {
  std::int64_t length = volume(manifest_.sizes, step.view.shape, known_);
  std::int64_t most = manifest_.sizes.evaluate(step.most, known_);
  std::int32_t count = -1;
  if (length > 0) {
    const auto* values = static_cast<const char*>(memory_of(step.view));
    std::memcpy(&count, values + (length - 1) * 4, sizeof count);
  }
  if (count < 0 || count > most) {
    throw DamagedArtifact("the program counted " + std::to_string(count) + " " +
                          manifest_.sizes.name_of(step.name));
  }
  known_[step.name] = count;
}

}  // namespace dsgc::detail
