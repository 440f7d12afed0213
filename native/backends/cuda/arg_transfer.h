// The small arrays of one operation, on their way to the device and back.
#pragma once
#include <array>
#include <initializer_list>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/device.h"
#include "backends/cuda/profile.h"

namespace dultra {
namespace cuda {

// An array that an operation is given, in host or device memory. ArgTransfer replaces the pointer by a device address.
struct Argument {
  void* pointer;  // where the pointer is kept
  size_t bytes;   // of the array
  bool written;
};
template <class T>
Argument in(const T*& array, int64_t n) {
  return {&array, size_t(n) * sizeof(T), false};
}
template <class T>
Argument out(T*& array, int64_t n) {
  return {&array, size_t(n) * sizeof(T), true};
}

// One operation: holds the backend's lock and selects its device, copies arrays in plain host memory to the device and,
// in finish, results back. An array in device memory stays where it is, and one in an exchange becomes its device
// mirror. All sizes are known before the first copy, because the staging ring must not wrap within an operation.
class ArgTransfer {
 public:
  // operation: what an error calls the operation, by default the caller's name.
  explicit ArgTransfer(CudaBackend& backend, std::initializer_list<Argument> arguments = {},
                       const char* operation = __builtin_FUNCTION())
      : ArgTransfer(backend, arguments.begin(), arguments.size(), operation) {}
  template <size_t kCount>
  ArgTransfer(CudaBackend& backend, const std::array<Argument, kCount>& arguments,
              const char* operation = __builtin_FUNCTION())
      : ArgTransfer(backend, arguments.data(), kCount, operation) {}

  ~ArgTransfer();

  // Queues the way back of what the operation wrote to host arrays, and waits for it; without any it returns at once.
  void finish();

 private:
  ArgTransfer(CudaBackend& backend, const Argument* arguments, size_t count, const char* operation);

  CudaBackend& backend_;
  const std::lock_guard<std::recursive_mutex> lock_;
  const NvtxRange range_;
};

}  // namespace cuda
}  // namespace dultra
