// What a kernel and its caller share: tvm-ffi's C ABI, as far as kernels of an artifact use it.
// tests/abi.cpp holds these against tvm-ffi's own headers.
#ifndef DSGC_ABI_H_
#define DSGC_ABI_H_

#include <cstdint>

namespace dsgc::abi {

enum TypeIndex : std::int32_t { kNone = 0, kInt = 1, kFloat = 3, kTensor = 7 };
enum TypeCode : std::uint8_t { kSigned = 0, kUnsigned = 1, kFloating = 2 };
enum DeviceType : std::int32_t { kCpu = 1 };

struct Device {
  DeviceType type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t dimensions;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct Any {
  std::int32_t type_index;
  std::uint32_t padding;
  union {
    std::int64_t integer;
    double number;
    void* pointer;
  };
};

/// A kernel; 0 is success, and otherwise it has set an error.
using SafeCall = int (*)(void* handle, const Any* arguments, std::int32_t count, Any* result);

/// The body of a parallel loop, and who runs it.
struct ParallelGroup {
  void* sync_handle;
  std::int32_t tasks;
};
using ParallelBody = int (*)(int task, ParallelGroup* group, void* closure);
using ParallelLaunch = int (*)(ParallelBody body, void* closure, int requested);

}  // namespace dsgc::abi

#endif  // DSGC_ABI_H_
