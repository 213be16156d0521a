// A program with memory for one batch size: what one call at a time runs in.
#ifndef DSGC_SESSION_H_
#define DSGC_SESSION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "abi.h"
#include "aligned.h"
#include "library.h"
#include "manifest.h"
#include "weights.h"

namespace dsgc::detail {

/// The buffers of a program for batches of one size, and its calls made ready.
class Session {
 public:
  /// `kernels` has one for every instruction, null where a size is read. Throws DamagedArtifact if
  /// a tensor does not fit into its memory, std::bad_alloc if there is not enough.
  Session(const Manifest& manifest, const Weights& weights,
          const std::vector<abi::SafeCall>& kernels, std::int64_t batch);

  std::int64_t batch() const { return batch_; }

  /// Bytes of every buffer.
  const std::vector<std::int64_t>& sizes() const { return sizes_; }

  /// Runs the program on the memory of inputs and outputs, in the order of the manifest; `seconds`
  /// of every instruction are written if asked for.
  void run(Running& running, const std::vector<void*>& inputs, const std::vector<void*>& outputs,
           std::vector<double>* seconds);

 private:
  struct Bound {
    abi::Tensor tensor;
    std::int64_t shape[kMostDimensions];
    std::int64_t strides[kMostDimensions];
  };
  /// An argument that is only known in a call.
  struct Late {
    std::size_t argument;
    const Argument* given;
    Bound* bound;  // null for a number
  };
  struct Ready {
    abi::SafeCall kernel;
    std::vector<abi::Any> arguments;
    std::vector<Bound> tensors;
    std::vector<Late> late;
  };

  Ready ready(const Step& step, abi::SafeCall kernel);
  bool is_early(const View& view) const;
  void* memory_of(const View& view) const;
  void set(Bound& bound, const View& view) const;
  void read(const Read& step);

  const Manifest& manifest_;
  const Weights& weights_;
  std::int64_t batch_;
  std::vector<std::int64_t> sizes_;
  std::vector<std::int64_t> known_;  // the value of every name, -1 if it has none yet
  std::vector<bool> is_outside_;     // whether a buffer is an input's or output's
  std::vector<void*> places_;        // of every buffer
  Memory arena_{nullptr, &std::free};
  std::vector<Ready> steps_;
};

}  // namespace dsgc::detail

#endif  // DSGC_SESSION_H_
