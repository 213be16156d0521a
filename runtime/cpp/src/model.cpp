#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <set>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "aligned.h"
#include "archive.h"
#include "dsgc/runtime.h"
#include "library.h"
#include "session.h"

namespace dsgc {

using detail::Call;
using detail::Port;
using detail::Running;
using detail::Session;
using detail::Step;
using detail::View;

namespace {

constexpr std::size_t kKeptSessions = 8;

std::vector<PortInfo> infos(const detail::Manifest& manifest, const std::vector<Port>& ports) {
  std::vector<PortInfo> made;
  for (const Port& port : ports) {
    PortInfo info{port.name, port.view.dtype, {}};
    for (detail::Size extent : port.view.shape) {
      bool fixed = manifest.sizes.is_number(extent);
      if (fixed) {
        info.shape.push_back(manifest.sizes.evaluate(extent, {}));
      } else {
        info.shape.push_back(manifest.dynamic ? std::nullopt : std::optional(manifest.example));
      }
    }
    made.push_back(std::move(info));
  }
  return made;
}

template <class Extents, class Write>
std::string listed(const Extents& extents, Write write) {
  std::string made;
  for (const auto& extent : extents) made += (made.empty() ? "" : ", ") + write(extent);
  return "[" + made + "]";
}

void check(const TensorView& given, const PortInfo& port) {
  bool fits = given.dtype == port.dtype && given.shape.size() == port.shape.size();
  for (std::size_t i = 0; fits && i < given.shape.size(); ++i) {
    bool possible = given.shape[i] >= 0 && given.shape[i] < detail::kLimit;
    // Whether the artifact takes any batch is looked at later.
    fits = possible && (i == 0 || given.shape[i] == port.shape[i].value_or(given.shape[i]));
  }
  if (fits) return;
  auto wanted = [first = true](const std::optional<std::int64_t>& extent) mutable {
    return std::exchange(first, false) || !extent ? "batch" : std::to_string(*extent);
  };
  auto found = [](std::int64_t extent) { return std::to_string(extent); };
  throw InputError("input '" + port.name + "' must be " + name_of(port.dtype) + " " +
                   listed(port.shape, wanted) + ", not " + name_of(given.dtype) + " " +
                   listed(given.shape, found));
}

std::vector<LayerProfile> by_layer(const detail::Manifest& manifest,
                                   const std::vector<std::int64_t>& sizes,
                                   const std::vector<double>& seconds, double whole) {
  std::vector<LayerProfile> made;
  std::unordered_map<std::string, std::size_t> places;
  std::vector<std::set<std::uint32_t>> touched;
  for (std::size_t i = 0; i < manifest.program.size(); ++i) {
    const std::string& name = layer_of(manifest.program[i]);
    std::size_t place = places.emplace(name, made.size()).first->second;
    if (place == made.size()) {
      made.push_back({name, 0.0, 0.0, std::nullopt, 0});
      touched.emplace_back();
    }
    made[place].seconds += seconds[i];
    each_view(manifest.program[i], [&](const View& view) {
      if (!view.is_constant && touched[place].insert(view.storage).second) {
        made[place].bytes += sizes[view.storage];
      }
    });
  }
  for (const Layer& layer : manifest.layers) {
    auto place = places.find(layer.name);
    if (layer.sparse && place != places.end()) made[place->second].sparsity = layer.sparsity;
  }
  for (LayerProfile& one : made) one.share = whole > 0 ? one.seconds / whole : 0.0;
  return made;
}

}  // namespace

const char* name_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::float32: return "float32";
    case DType::int32: return "int32";
    case DType::int64: return "int64";
    case DType::uint8: return "uint8";
    case DType::int8: return "int8";
  }
  return "unknown";
}

std::size_t size_of(DType dtype) noexcept {
  if (dtype == DType::int64) return 8;
  return dtype == DType::uint8 || dtype == DType::int8 ? 1 : 4;
}

Tensor::Tensor(DType dtype, std::vector<std::int64_t> shape)
    : dtype_(dtype),
      shape_(std::move(shape)),
      bytes_(size_of(dtype)),
      memory_(nullptr, &std::free) {
  for (std::int64_t extent : shape_) {
    if (extent < 0 || __builtin_mul_overflow(bytes_, static_cast<std::size_t>(extent), &bytes_)) {
      throw InputError("no tensor can have an extent of " + std::to_string(extent) + " here");
    }
  }
  memory_ = detail::allocate(bytes_);
}

void Tensor::expect(DType wanted) const {
  if (dtype_ == wanted) return;
  throw InputError(std::string("the tensor is ") + name_of(dtype_) + ", not " + name_of(wanted));
}

struct Model::Parts {
  Parts(detail::Archive archive, std::optional<int> count)
      : manifest(std::move(archive.manifest)),
        graph(std::move(archive.graph)),
        weights(std::move(archive.weights)),
        inputs(infos(manifest, manifest.inputs)),
        outputs(infos(manifest, manifest.outputs)),
        library(std::move(archive.kernels)),
        threads(count.value_or(0)) {
    idle.reserve(kKeptSessions + 1);
    for (const Step& step : manifest.program) {
      const auto* call = std::get_if<Call>(&step);
      kernels.push_back(call == nullptr ? nullptr : library.kernel(call->kernel));
      if (call != nullptr && kernels.back() == nullptr) {
        throw DamagedArtifact("there is no kernel '" + call->kernel + "' in it");
      }
    }
  }

  std::unique_ptr<Session> take(std::int64_t batch) {
    {
      std::lock_guard<std::mutex> hold(lock);
      for (auto place = idle.begin(); place != idle.end(); ++place) {
        if ((*place)->batch() != batch) continue;
        std::unique_ptr<Session> found = std::move(*place);
        idle.erase(place);
        return found;
      }
    }
    return std::make_unique<Session>(manifest, weights, kernels, batch);
  }

  void give_back(std::unique_ptr<Session> session) noexcept {
    std::lock_guard<std::mutex> hold(lock);
    idle.push_back(std::move(session));
    if (idle.size() > kKeptSessions) idle.erase(idle.begin());
  }

  std::int64_t batch_of(const std::vector<TensorView>& given) const {
    if (given.size() != inputs.size()) {
      std::string names;
      for (const PortInfo& port : inputs) names += (names.empty() ? "" : ", ") + port.name;
      throw InputError("the model takes " + std::to_string(inputs.size()) + " inputs (" + names +
                       "), not " + std::to_string(given.size()));
    }
    for (std::size_t i = 0; i < given.size(); ++i) check(given[i], inputs[i]);
    std::int64_t batch = given[0].shape[0];
    for (std::size_t i = 0; i < given.size(); ++i) {
      if (given[i].shape[0] == batch) continue;
      throw InputError("input '" + inputs[i].name + "' has a batch of " +
                       std::to_string(given[i].shape[0]) + ", and '" + inputs[0].name +
                       "' one of " + std::to_string(batch));
    }
    if (!manifest.dynamic && batch != manifest.example) {
      throw InputError("the artifact was exported for batches of " +
                       std::to_string(manifest.example) + ", not " + std::to_string(batch) +
                       ": export it with dynamic_batch=True");
    }
    return batch;
  }

  std::optional<int> thread_count() const {
    int count = threads;
    return count == 0 ? std::nullopt : std::optional(count);
  }

  std::vector<Tensor> made_outputs(std::int64_t batch) const {
    std::vector<Tensor> made;
    for (const PortInfo& port : outputs) {
      std::vector<std::int64_t> shape;
      for (const auto& extent : port.shape) shape.push_back(extent.value_or(batch));
      made.emplace_back(port.dtype, std::move(shape));
    }
    return made;
  }

  detail::Manifest manifest;
  std::string graph;
  detail::Weights weights;
  std::vector<PortInfo> inputs;
  std::vector<PortInfo> outputs;
  detail::Library library;
  std::vector<abi::SafeCall> kernels;  // as the program, null where it reads a size
  std::atomic<int> threads;            // 0 is all
  std::mutex lock;
  std::vector<std::unique_ptr<Session>> idle;
};

namespace {

std::optional<int> possible(std::optional<int> threads) {
  constexpr int kMost = 1024;  // what a process can start is not known, and to fail there ends it
  if (threads && (*threads < 1 || *threads > kMost)) {
    throw std::invalid_argument("threads must be a number from 1 to " + std::to_string(kMost) +
                                ", or nothing, not " + std::to_string(*threads));
  }
  return threads;
}

/// Where inputs lie: at their own place, or copied where that is not aligned.
class Given {
 public:
  explicit Given(const std::vector<TensorView>& inputs) {
    for (const TensorView& one : inputs) {
      if (one.data == nullptr) throw InputError("an input has no data");
      // Kernels do not write to inputs, but what they take is not const.
      void* data = const_cast<void*>(one.data);
      if (reinterpret_cast<std::uintptr_t>(data) % size_of(one.dtype) != 0) {
        Tensor copy(one.dtype, one.shape);
        std::memcpy(copy.data(), data, copy.bytes());
        data = copy.data();
        copies_.push_back(std::move(copy));
      }
      places.push_back(data);
    }
  }

  std::vector<void*> places;

 private:
  std::vector<Tensor> copies_;
};

}  // namespace

/// A session for one call, on the model's number of threads; it goes back when the call is over.
class Model::Turn {
 public:
  Turn(Parts& parts, std::int64_t batch)
      : parts_(parts), session_(parts.take(batch)), running_(parts.library, parts.thread_count()) {}
  ~Turn() { parts_.give_back(std::move(session_)); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  const Session& session() const { return *session_; }

  void run(const std::vector<void*>& inputs, std::vector<Tensor>& outputs,
           std::vector<double>* seconds = nullptr) {
    std::vector<void*> places;
    for (Tensor& output : outputs) places.push_back(output.data());
    session_->run(running_, inputs, places, seconds);
  }

 private:
  Parts& parts_;
  std::unique_ptr<Session> session_;
  Running running_;
};

Model::Model(const std::string& path, std::optional<int> threads) {
  possible(threads);
  parts_ = std::make_unique<Parts>(detail::open_archive(path), threads);
}

Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

const std::vector<PortInfo>& Model::inputs() const noexcept { return parts_->inputs; }
const std::vector<PortInfo>& Model::outputs() const noexcept { return parts_->outputs; }
const std::vector<Layer>& Model::layers() const noexcept { return parts_->manifest.layers; }
const std::string& Model::graph() const noexcept { return parts_->graph; }
std::optional<int> Model::threads() const noexcept { return parts_->thread_count(); }
void Model::set_threads(std::optional<int> count) { parts_->threads = possible(count).value_or(0); }

std::vector<Tensor> Model::run(const std::vector<TensorView>& inputs) const {
  std::int64_t batch = parts_->batch_of(inputs);
  std::vector<Tensor> outputs = parts_->made_outputs(batch);
  if (batch > 0) {
    Given given(inputs);
    Turn(*parts_, batch).run(given.places, outputs);
  }
  return outputs;
}

std::vector<LayerProfile> Model::profile(const std::vector<TensorView>& inputs) const {
  std::int64_t batch = parts_->batch_of(inputs);
  if (batch == 0) {
    throw InputError("an empty batch takes no time: profile a call with samples");
  }
  std::vector<Tensor> outputs = parts_->made_outputs(batch);
  Given given(inputs);
  Turn turn(*parts_, batch);
  turn.run(given.places, outputs);  // whatever happens only once has happened
  std::vector<double> seconds;
  auto begun = std::chrono::steady_clock::now();
  turn.run(given.places, outputs, &seconds);
  double whole = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  return by_layer(parts_->manifest, turn.session().sizes(), seconds, whole);
}

}  // namespace dsgc
