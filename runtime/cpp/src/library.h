// The native code of an artifact: its kernels by name, their threads and their errors.
#ifndef DSGC_LIBRARY_H_
#define DSGC_LIBRARY_H_

#include <mutex>
#include <optional>
#include <string>

#include "abi.h"

namespace dsgc::detail {

/// A loaded kernel library; from here on its code may run.
class Library {
 public:
  /// `code` is a shared object. Throws DamagedArtifact if it is none of dsgc, LibraryError if the
  /// system cannot load it, for example because libgomp is missing.
  explicit Library(std::string code);
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  /// Null if there is none of that name.
  abi::SafeCall kernel(const std::string& name) const;

  /// Registered by the library while it is loaded.
  void set(const std::string& name, void* value);

 private:
  friend class Running;

  void load(int descriptor);
  void* symbol(const char* name) const;

  int descriptor_ = -1;
  void* handle_ = nullptr;
  abi::ParallelLaunch launch_ = nullptr;
  void (*set_thread_count_)(int) = nullptr;
  int (*thread_count_)() = nullptr;
};

/// While it lives, the thread that made it may call kernels of a library, on `threads` threads;
/// nothing is what OpenMP is set to.
class Running {
 public:
  Running(const Library& library, std::optional<int> threads);
  ~Running();
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

  /// Throws KernelError with what the kernel said if it gives up; `kernel` and `layer` are its
  /// names.
  void call(abi::SafeCall function, const abi::Any* arguments, std::int32_t count,
            const std::string& kernel, const std::string& layer);

  /// An error of a kernel, from any of its threads; the first one counts.
  void fail(const char* kind, std::string message);

  /// Runs a parallel loop of a kernel, in whose tasks errors find their way to this call.
  int launch(abi::ParallelBody body, void* closure, int requested);

 private:
  const Library& library_;
  Running* outer_;
  std::optional<int> before_;
  std::mutex lock_;
  std::string error_;
};

}  // namespace dsgc::detail

#endif  // DSGC_LIBRARY_H_
