// This library and libtvm_ffi in one process: each keeps its own errors.
//   dsgc_beside_ffi MODEL: a model of one input and one output whose kernel gives up
#include <tvm/ffi/c_api.h>

#include <cstdio>
#include <string>

#include "dsgc/runtime.h"

namespace {

int made_handles = 0;

int make_handle(void** result) {
  *result = &++made_handles;
  return 0;
}

int run(const std::string& path) {
  TVMFFIErrorSetRaisedFromCStr("KeyError", "raised before");
  dsgc::Model model(path, 1);
  dsgc::Tensor input(model.inputs()[0].dtype, {1, 4});
  try {
    model.run({input.view()});
    std::puts("the kernel did not give up");
  } catch (const dsgc::KernelError& error) {
    std::puts(error.what());
  }
  TVMFFIObjectHandle raised = nullptr;
  TVMFFIErrorMoveFromRaised(&raised);
  if (raised == nullptr) return std::puts("the error of tvm-ffi is lost"), 1;
  TVMFFIErrorCell* cell = TVMFFIErrorGetCellPtr(raised);
  std::puts(std::string(cell->kind.data, cell->kind.size).c_str());
  std::puts(std::string(cell->message.data, cell->message.size).c_str());
  TVMFFIObjectDecRef(raised);
  void* handle = nullptr;
  TVMFFIHandleInitOnce(&handle, make_handle);
  TVMFFIHandleInitOnce(&handle, make_handle);
  std::printf("%d\n", made_handles);
  return 0;
}

}  // namespace

int main(int, char** arguments) {
  try {
    return run(arguments[1]);
  } catch (const std::exception& error) {
    return std::puts(error.what()), 1;
  }
}
