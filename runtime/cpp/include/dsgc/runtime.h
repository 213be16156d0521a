// Loads and runs models that dsgc exported; needs this library and libgomp, nothing else.
//
//   dsgc::Model model("model.dsgc");
//   std::vector<float> images(8 * 3 * 32 * 32);
//   auto results = model.run({dsgc::TensorView::of(images.data(), {8, 3, 32, 32})});
//   const float* logits = results[0].as<float>();
#ifndef DSGC_RUNTIME_H_
#define DSGC_RUNTIME_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define DSGC_API __attribute__((visibility("default")))

namespace dsgc {

/// Anything that this library throws itself. Files that cannot be read are a std::system_error, and
/// too little memory is a std::bad_alloc.
class DSGC_API Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// An artifact cannot be used. Nothing of it was run.
class DSGC_API ArtifactError : public Error {
  using Error::Error;
};

/// A file is not an artifact, or not as it was written.
class DSGC_API DamagedArtifact : public ArtifactError {
  using ArtifactError::ArtifactError;
};

/// An artifact was written in a format that this runtime does not know.
class DSGC_API NewerFormat : public ArtifactError {
  using ArtifactError::ArtifactError;
};

/// An artifact was compiled for another processor.
class DSGC_API WrongMachine : public ArtifactError {
  using ArtifactError::ArtifactError;
};

/// The system cannot load the kernels, for example because libgomp is missing.
class DSGC_API LibraryError : public Error {
  using Error::Error;
};

/// An input does not have the shape or dtype that the model takes, or a tensor the asked-for dtype.
class DSGC_API InputError : public Error {
  using Error::Error;
};

/// A kernel gave up; says which, in which layer, and why.
class DSGC_API KernelError : public Error {
  using Error::Error;
};

enum class DType { float32, int32, int64, uint8, int8 };

/// "float32" and so on.
DSGC_API const char* name_of(DType dtype) noexcept;

/// Bytes of an element.
DSGC_API std::size_t size_of(DType dtype) noexcept;

/// The DType of a C++ type; only for float and the integers that DType names.
template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, float>) {
    return DType::float32;
  } else if constexpr (std::is_same_v<T, std::int32_t>) {
    return DType::int32;
  } else if constexpr (std::is_same_v<T, std::int64_t>) {
    return DType::int64;
  } else if constexpr (std::is_same_v<T, std::uint8_t>) {
    return DType::uint8;
  } else {
    static_assert(std::is_same_v<T, std::int8_t>, "no dtype of dsgc");
    return DType::int8;
  }
}

/// Numbers in row-major order in memory of somebody else's. `data` holds as many as `shape` says.
struct TensorView {
  DType dtype;
  std::vector<std::int64_t> shape;
  const void* data;

  template <class T>
  static TensorView of(const T* data, std::vector<std::int64_t> shape) {
    return {dtype_of<T>(), std::move(shape), data};
  }
};

/// Numbers in row-major order in memory of its own, which begins at a multiple of 64 bytes.
class DSGC_API Tensor {
 public:
  /// Its numbers are not set. Throws InputError if the shape is not possible.
  Tensor(DType dtype, std::vector<std::int64_t> shape);

  DType dtype() const noexcept { return dtype_; }
  const std::vector<std::int64_t>& shape() const noexcept { return shape_; }
  std::size_t bytes() const noexcept { return bytes_; }
  void* data() noexcept { return memory_.get(); }
  const void* data() const noexcept { return memory_.get(); }

  /// The numbers as `T`. Throws InputError if they are others.
  template <class T>
  T* as() {
    expect(dtype_of<T>());
    return static_cast<T*>(data());
  }
  template <class T>
  const T* as() const {
    expect(dtype_of<T>());
    return static_cast<const T*>(data());
  }

  /// For `Model::run`; valid as long as this tensor is.
  TensorView view() const { return {dtype_, shape_, data()}; }

 private:
  void expect(DType wanted) const;

  DType dtype_;
  std::vector<std::int64_t> shape_;
  std::size_t bytes_;
  std::unique_ptr<void, void (*)(void*)> memory_;
};

/// An input or output of a model; no number in the shape is a batch of any size.
struct PortInfo {
  std::string name;
  DType dtype;
  std::vector<std::optional<std::int64_t>> shape;
};

/// What the compiler made of a layer of the original model.
struct Layer {
  std::string name;
  bool sparse;
  std::string reason;
  double sparsity;             ///< the part of its neurons that is left out, 0 to 1
  std::int64_t multiply_adds;  ///< of the dense layer, for one sample
};

/// What a layer took in one call.
struct LayerProfile {
  std::string name;
  double seconds;                  ///< of all its kernels
  double share;                    ///< of the whole call, 0 to 1
  std::optional<double> sparsity;  ///< nothing for what selects nothing
  std::int64_t bytes;              ///< of the buffers that its kernels write and read
};

/// A loaded artifact. Any number of threads may call its const members at once: each call has
/// memory of its own.
class DSGC_API Model {
 public:
  /// Loads what `dsgc.export` wrote. It holds native code, which runs in this process: load only
  /// what you trust. Everything in it is checked before that code is loaded.
  ///
  /// `threads` is how many a call runs on; nothing is all that OpenMP gives.
  ///
  /// Throws DamagedArtifact, NewerFormat, WrongMachine, LibraryError; std::system_error if the file
  /// cannot be read; std::invalid_argument for an impossible number of threads.
  explicit Model(const std::string& path, std::optional<int> threads = std::nullopt);
  ~Model();
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;

  const std::vector<PortInfo>& inputs() const noexcept;
  const std::vector<PortInfo>& outputs() const noexcept;
  const std::vector<Layer>& layers() const noexcept;

  /// The lowered graph that the program was written from, to read.
  const std::string& graph() const noexcept;

  std::optional<int> threads() const noexcept;

  /// For calls from now on; nothing is all that OpenMP gives. Throws std::invalid_argument.
  void set_threads(std::optional<int> count);

  /// The outputs for one tensor an input, in the order of `outputs()`; any batch, also 0,
  /// unless the artifact was exported for one.
  ///
  /// Throws InputError if an input does not fit, KernelError if a kernel gives up, and
  /// DamagedArtifact if the program makes tensors that lie outside of their memory, or beyond all
  /// bounds, for a batch of this size.
  std::vector<Tensor> run(const std::vector<TensorView>& inputs) const;

  /// Runs the model twice and tells what every layer took the second time, in order. Throws the
  /// same as `run`.
  std::vector<LayerProfile> profile(const std::vector<TensorView>& inputs) const;

 private:
  struct Parts;
  class Turn;
  std::unique_ptr<Parts> parts_;
};

}  // namespace dsgc

#endif  // DSGC_RUNTIME_H_
