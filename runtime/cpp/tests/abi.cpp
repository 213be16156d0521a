// abi.h says what tvm-ffi's own headers say: this file compiles, or they differ.
#include "abi.h"

#include <tvm/ffi/c_api.h>

#include <cstddef>
#include <type_traits>

namespace abi = dsgc::abi;

static_assert(int{abi::kNone} == int{kTVMFFINone});
static_assert(int{abi::kInt} == int{kTVMFFIInt});
static_assert(int{abi::kFloat} == int{kTVMFFIFloat});
static_assert(int{abi::kTensor} == int{kTVMFFIDLTensorPtr});
static_assert(int{abi::kSigned} == int{kDLInt});
static_assert(int{abi::kUnsigned} == int{kDLUInt});
static_assert(int{abi::kFloating} == int{kDLFloat});
static_assert(int{abi::kCpu} == int{kDLCPU});

// A member of both structs lies at the same place and is of the same size.
#define SAME(ours, own, theirs, other)                           \
  static_assert(offsetof(ours, own) == offsetof(theirs, other)); \
  static_assert(sizeof(ours::own) == sizeof(theirs::other))

SAME(abi::Device, type, DLDevice, device_type);
SAME(abi::Device, id, DLDevice, device_id);
static_assert(sizeof(abi::Device) == sizeof(DLDevice));

SAME(abi::DataType, code, DLDataType, code);
SAME(abi::DataType, bits, DLDataType, bits);
SAME(abi::DataType, lanes, DLDataType, lanes);
static_assert(sizeof(abi::DataType) == sizeof(DLDataType));

SAME(abi::Tensor, data, DLTensor, data);
SAME(abi::Tensor, device, DLTensor, device);
SAME(abi::Tensor, dimensions, DLTensor, ndim);
SAME(abi::Tensor, dtype, DLTensor, dtype);
SAME(abi::Tensor, shape, DLTensor, shape);
SAME(abi::Tensor, strides, DLTensor, strides);
SAME(abi::Tensor, byte_offset, DLTensor, byte_offset);
static_assert(sizeof(abi::Tensor) == sizeof(DLTensor));

SAME(abi::Any, type_index, TVMFFIAny, type_index);
SAME(abi::Any, padding, TVMFFIAny, zero_padding);
SAME(abi::Any, integer, TVMFFIAny, v_int64);
SAME(abi::Any, number, TVMFFIAny, v_float64);
SAME(abi::Any, pointer, TVMFFIAny, v_ptr);
static_assert(sizeof(abi::Any) == sizeof(TVMFFIAny));

// Functions are the same but for the names of their structs.
template <class Any, class Result>
using Safe = Result (*)(void*, const Any*, std::int32_t, Any*);
static_assert(std::is_same_v<abi::SafeCall, Safe<abi::Any, int>>);
static_assert(std::is_same_v<TVMFFISafeCallType, Safe<TVMFFIAny, int>>);
static_assert(
    std::is_same_v<decltype(&TVMFFIErrorSetRaisedFromCStr), void (*)(const char*, const char*)>);
static_assert(std::is_same_v<decltype(&TVMFFIErrorSetRaisedFromCStrParts),
                             void (*)(const char*, const char**, std::int32_t)>);
static_assert(std::is_same_v<decltype(&TVMFFIFunctionCall),
                             int (*)(void*, TVMFFIAny*, std::int32_t, TVMFFIAny*)>);
static_assert(std::is_same_v<decltype(&TVMFFIHandleInitOnce), int (*)(void**, int (*)(void**))>);
