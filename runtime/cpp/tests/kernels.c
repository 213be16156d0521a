/* Kernels that look at what they are given and give up in every way, for the tests of the runtime. They are linked with the
 * OpenMP shim, as generated kernels are. */
#include <stddef.h>
#include <tvm/ffi/c_api.h>
#include <tvm/ffi/extra/c_env_api.h>

typedef int (*Body)(int task, void* group, void* closure);
/* Filled when the library is loaded, as in generated kernels. */
int (*__TVMBackendParallelLaunch)(Body body, void* closure, int requested) = NULL;

#define KERNEL(name) int __tvm_ffi_##name(void* handle, const TVMFFIAny* given, int32_t count, TVMFFIAny* result)
#define UNUSED (void)handle, (void)given, (void)count, (void)result

static int refuse(const char* why) {
  TVMFFIErrorSetRaisedFromCStr("ValueError", why);
  return -1;
}

/* output = input * factor + term, for [batch, 4] float32; everything about the arguments is looked at. */
KERNEL(affine) {
  (void)handle;
  if (count != 4 || result->type_index != kTVMFFINone) return refuse("the call");
  if (given[0].type_index != kTVMFFIDLTensorPtr || given[1].type_index != kTVMFFIDLTensorPtr) return refuse("the tensors");
  if (given[2].type_index != kTVMFFIFloat || given[3].type_index != kTVMFFIInt) return refuse("the numbers");
  for (int i = 0; i < 2; ++i) {
    const DLTensor* x = given[i].v_ptr;
    if (x->device.device_type != kDLCPU || x->device.device_id != 0 || x->byte_offset != 0) return refuse("the device");
    if (x->dtype.code != kDLFloat || x->dtype.bits != 32 || x->dtype.lanes != 1) return refuse("the dtype");
    if (x->ndim != 2 || x->shape[1] != 4 || x->strides[0] != 4 || x->strides[1] != 1) return refuse("the shape");
  }
  const DLTensor *input = given[0].v_ptr, *output = given[1].v_ptr;
  if (input->shape[0] != output->shape[0]) return refuse("the batch");
  for (int64_t i = 0; i < 4 * input->shape[0]; ++i)
    ((float*)output->data)[i] = ((const float*)input->data)[i] * (float)given[2].v_float64 + (float)given[3].v_int64;
  return 0;
}

/* The last number of a vector of int32 becomes the given one. */
KERNEL(count) {
  UNUSED;
  const DLTensor* vector = given[0].v_ptr;
  if (vector->dtype.code != kDLInt || vector->dtype.bits != 32) return refuse("the dtype");
  ((int32_t*)vector->data)[vector->shape[0] - 1] = (int32_t)given[1].v_int64;
  return 0;
}

/* The extent of a tensor is the given number. */
KERNEL(expect) {
  UNUSED;
  const DLTensor* vector = given[0].v_ptr;
  return vector->shape[0] == given[1].v_int64 ? 0 : refuse("the extent");
}

KERNEL(fail) {
  UNUSED;
  return refuse("on purpose");
}

KERNEL(fail_in_parts) {
  UNUSED;
  const char* parts[] = {"said ", NULL, "in parts"};
  TVMFFIErrorSetRaisedFromCStrParts("TypeError", parts, 3);
  return -1;
}

KERNEL(fail_in_silence) {
  UNUSED;
  return -1;
}

static int last_task_fails(int task, void* group, void* closure) {
  (void)closure;
  int tasks = ((struct { void* sync; int32_t count; }*)group)->count;
  return task == tasks - 1 ? refuse("in a task") : 0;
}

KERNEL(fail_in_a_task) {
  UNUSED;
  return __TVMBackendParallelLaunch(last_task_fails, NULL, 0);
}

KERNEL(call_another_library) {
  UNUSED;
  TVMFFIObjectHandle found = NULL;
  return TVMFFIEnvModLookupFromImports(NULL, "elsewhere", &found);
}

KERNEL(call_a_function) {
  UNUSED;
  TVMFFIAny nothing = {0};
  return TVMFFIFunctionCall(NULL, NULL, 0, &nothing);
}

static int made = 0;

static int make(void** handle) {
  *handle = &made;
  return ++made == 1 ? 0 : refuse("made twice");
}

static int make_nothing(void** handle) {
  *handle = NULL;
  return 0;
}

KERNEL(make_once) {
  UNUSED;
  static void* kept = NULL;
  if (TVMFFIHandleInitOnce(&kept, make) != 0 || TVMFFIHandleInitOnce(&kept, make) != 0) return -1;
  return kept == &made && made == 1 ? 0 : refuse("the handle");
}

KERNEL(make_nothing) {
  UNUSED;
  static void* kept = NULL;
  return TVMFFIHandleInitOnce(&kept, make_nothing);
}
