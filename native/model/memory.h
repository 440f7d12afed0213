// Owning backend memory.
#pragma once
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "ops/backend.h"

namespace dultra {

// A block of backend memory, released with its owner. The backend must outlive it.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Backend& backend, size_t bytes) : backend_(&backend), data_(backend.allocate(bytes)), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Buffer() {
    if (data_) backend_->release(data_);
  }

  template <typename T = float>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Scratch memory: numbered slots that grow and are reused from pass to pass.
class Workspace {
 public:
  // `exchange` (may be null): its captured graphs work on this memory, and are dropped when a slot moves.
  explicit Workspace(Backend& backend, Exchange* exchange = nullptr) : backend_(backend), exchange_(exchange) {}

  // At least `count` elements in slot `slot`; contents are undefined. The pointer is valid until the slot is asked for
  // more.
  template <typename T = float>
  T* get(size_t slot, int64_t count) {
    const size_t bytes = size_t(count > 0 ? count : 1) * sizeof(T);
    if (slot >= slots_.size()) slots_.resize(slot + 1);
    if (slots_[slot].bytes() < bytes) {
      if (exchange_ && slots_[slot].bytes()) exchange_->forget();
      slots_[slot] = Buffer();  // the old block goes first
      slots_[slot] = Buffer(backend_, bytes);
    }
    return slots_[slot].as<T>();
  }
  // Likewise of the type that the backend stores activations in.
  Array activations(size_t slot, int64_t count) {
    const DType dtype = backend_.activation_dtype();
    return {get<uint16_t>(slot, count * int64_t(dtype_size(dtype) / sizeof(uint16_t))), dtype};
  }

 private:
  Backend& backend_;
  Exchange* const exchange_;
  std::vector<Buffer> slots_;
};

// Memory of a tape: every piece has a slot of its own, so that what backward reads survives until then.
class TapeMemory {
 public:
  explicit TapeMemory(Workspace& workspace, size_t first_slot = 0) : workspace_(workspace), next_(first_slot) {}
  template <typename T = float>
  T* take(int64_t count) {
    return workspace_.get<T>(next_++, count);
  }
  Array activations(int64_t count) { return workspace_.activations(next_++, count); }
  // The first slot that is free.
  size_t next() const { return next_; }

 private:
  Workspace& workspace_;
  size_t next_;
};

// Floats in host memory that are handed on without a copy. Unlike a vector's they are not zeroed first: contents are
// undefined.
class HostFloats {
 public:
  HostFloats() = default;
  explicit HostFloats(size_t size) : data_(new float[size]), size_(size) {}

  float* data() const { return data_.get(); }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  // The caller deletes them with delete[].
  float* release() {
    size_ = 0;
    return data_.release();
  }

 private:
  std::unique_ptr<float[]> data_;
  size_t size_ = 0;
};

}  // namespace dultra
