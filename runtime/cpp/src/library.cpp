#include "library.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

#include "dsgc/runtime.h"
#include "symbols.h"
#include "workspace.h"

namespace dsgc::detail {
namespace {

thread_local Running* running = nullptr;  // the call that this thread works for
thread_local Library* loading = nullptr;  // the library that this thread loads

// What kernels find under the names of libtvm_ffi; nothing may be thrown through them.

void set_error_parts(const char* kind, const char** parts, std::int32_t count) noexcept {
  if (running == nullptr) return;
  try {
    std::string message;
    for (std::int32_t i = 0; i < count; ++i) {
      if (parts[i] != nullptr) message += parts[i];
    }
    running->fail(kind, std::move(message));
  } catch (...) {  // no memory for the message: the kernel's return value tells that it failed
  }
}

void set_error(const char* kind, const char* message) noexcept {
  set_error_parts(kind, &message, 1);
}

int register_symbol(const char* name, void* value) noexcept {
  try {
    if (loading != nullptr) loading->set(name, value);
    return 0;
  } catch (...) {
    return -1;
  }
}

/// A library of kernels imports no other.
int look_up(void*, const char* name, void**) noexcept {
  const char* parts[] = {"a kernel calls the function ", name, ", which an artifact cannot hold"};
  set_error_parts("RuntimeError", parts, 3);
  return -1;
}

int call_function(void*, abi::Any*, std::int32_t, abi::Any*) noexcept {
  set_error("RuntimeError", "a kernel calls a function outside of its library");
  return -1;
}

int make_once(void** place, int (*make)(void** made)) noexcept {
  static std::mutex mutex;
  if (__atomic_load_n(place, __ATOMIC_ACQUIRE) != nullptr) return 0;
  try {
    std::lock_guard<std::mutex> hold(mutex);
    if (*place != nullptr) return 0;
    void* made = nullptr;
    if (int error = make(&made)) return error;
    if (made == nullptr) {
      set_error("RuntimeError", "a kernel made a handle of nothing");
      return -1;
    }
    __atomic_store_n(place, made, __ATOMIC_RELEASE);
    return 0;
  } catch (const std::system_error&) {
    return -1;
  }
}

int launch(abi::ParallelBody body, void* closure, int requested) noexcept {
  return running == nullptr ? -1 : running->launch(body, closure, requested);
}

template <class Function>
void* address(Function* function) {
  return reinterpret_cast<void*>(function);
}

/// Threads of OpenMP wait in its library for their next work, so it must never go, also if nothing
/// but the kernels needs it.
void keep_openmp(void* kernels) {
  Dl_info about{};
  void* found = ::dlsym(kernels, "omp_get_max_threads");
  if (found == nullptr || ::dladdr(found, &about) == 0 ||
      ::dlopen(about.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE) == nullptr) {
    throw LibraryError("the kernels run on no known OpenMP");
  }
}

/// A file in memory: a file system may refuse to run code from it, and this leaves nothing behind.
int file_in_memory(const std::string& code) {
  int descriptor = ::memfd_create("dsgc-kernels", MFD_CLOEXEC);
  for (std::size_t done = 0; descriptor >= 0 && done < code.size();) {
    ssize_t written = ::write(descriptor, code.data() + done, code.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      ::close(descriptor);
      descriptor = -1;
    } else {
      done += static_cast<std::size_t>(written);
    }
  }
  if (descriptor < 0) throw std::system_error(errno, std::generic_category(), "kernels.so");
  return descriptor;
}

}  // namespace

Library::Library(std::string code) {
  define(code, {{"TVMFFIErrorSetRaisedFromCStr", address(set_error)},
                {"TVMFFIErrorSetRaisedFromCStrParts", address(set_error_parts)},
                {"TVMFFIEnvModRegisterContextSymbol", address(register_symbol)},
                {"TVMFFIEnvModLookupFromImports", address(look_up)},
                {"TVMFFIFunctionCall", address(call_function)},
                {"TVMFFIHandleInitOnce", address(make_once)}});
  // It stays open: the dynamic linker knows libraries by their path, and another library at the
  // same number would be taken for this one.
  descriptor_ = file_in_memory(code);
  try {
    load(descriptor_);
  } catch (...) {
    if (handle_ != nullptr) ::dlclose(handle_);
    ::close(descriptor_);
    throw;
  }
}

void Library::load(int descriptor) {
  std::string path = "/proc/self/fd/" + std::to_string(descriptor);
  handle_ = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle_ == nullptr) {
    throw LibraryError(
        "the kernels cannot be loaded (OpenMP's library must be there, on Debian "
        "libgomp1): " +
        std::string(::dlerror()));
  }
  keep_openmp(handle_);
  auto* register_runtime = reinterpret_cast<void (*)()>(symbol("dsgc_register_runtime"));
  set_thread_count_ = reinterpret_cast<void (*)(int)>(symbol("dsgc_set_thread_count"));
  thread_count_ = reinterpret_cast<int (*)()>(symbol("dsgc_thread_count"));
  launch_ = reinterpret_cast<abi::ParallelLaunch>(symbol("TVMBackendParallelLaunch"));
  loading = this;
  register_runtime();
  set("__TVMBackendParallelLaunch", address(launch));
  set("__TVMBackendAllocWorkspace", address(take_workspace));
  set("__TVMBackendFreeWorkspace", address(give_workspace));
  loading = nullptr;
}

Library::~Library() {
  ::dlclose(handle_);
  ::close(descriptor_);
}

void* Library::symbol(const char* name) const {
  void* found = ::dlsym(handle_, name);
  if (found == nullptr) {
    throw DamagedArtifact("its kernels.so is not one of dsgc: it has no " + std::string(name));
  }
  return found;
}

abi::SafeCall Library::kernel(const std::string& name) const {
  return reinterpret_cast<abi::SafeCall>(::dlsym(handle_, ("__tvm_ffi_" + name).c_str()));
}

void Library::set(const std::string& name, void* value) {
  if (auto* place = static_cast<void**>(::dlsym(handle_, name.c_str()))) *place = value;
}

Running::Running(const Library& library, std::optional<int> threads)
    : library_(library), outer_(running) {
  running = this;
  if (threads) {
    before_ = library_.thread_count_();
    library_.set_thread_count_(*threads);
  }
}

Running::~Running() {
  if (before_) library_.set_thread_count_(*before_);
  running = outer_;
}

void Running::call(abi::SafeCall function, const abi::Any* arguments, std::int32_t count,
                   const std::string& kernel, const std::string& layer) {
  abi::Any result{};
  if (function(nullptr, arguments, count, &result) == 0) return;
  std::string why;
  {
    std::lock_guard<std::mutex> hold(lock_);
    why.swap(error_);
  }
  if (why.empty()) why = "it did not say why, perhaps there was no memory for its workspace";
  throw KernelError("the kernel " + kernel + " of layer '" + layer + "' gave up: " + why);
}

void Running::fail(const char* kind, std::string message) {
  std::lock_guard<std::mutex> hold(lock_);
  if (error_.empty()) error_ = std::string(kind) + ": " + message;
}

int Running::launch(abi::ParallelBody body, void* closure, int requested) {
  struct Loop {
    abi::ParallelBody body;
    void* closure;
    Running* call;
  } loop = {body, closure, this};
  auto task = [](int number, abi::ParallelGroup* group, void* given) {
    auto* own = static_cast<Loop*>(given);
    Running* before = running;
    running = own->call;
    int failed = own->body(number, group, own->closure);
    running = before;
    return failed;
  };
  return library_.launch_(task, &loop, requested);
}

}  // namespace dsgc::detail
