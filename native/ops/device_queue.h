// The device of a backend, for libraries that work on its memory themselves (NCCL).
#pragma once
#include <cstdint>
#include <functional>
#include <string>

namespace dultra {

// Work beside the backend's operations.
class DeviceQueue {
 public:
  virtual ~DeviceQueue() = default;
  // 16 bytes that no other device has, here or on another machine.
  virtual std::string device_id() const = 0;
  // Calls add(queue) on this thread, with the device selected. queue: a cudaStream_t, whose work begins when all
  // operations so far are done, and what was added before. Returns the number of what has been added, from 1 on.
  virtual int64_t add(const std::function<void(void* queue)>& add) = 0;
  // Whether what has this number is done. Operations do not wait for it: the caller does. Throws where it has failed.
  virtual bool is_done(int64_t number) = 0;
};

}  // namespace dultra
