// Cache-line aligned memory for weights, activations and packing scratch.
#pragma once
#include <cstddef>
#include <utility>

namespace dultra {
namespace cpu {

// At least `bytes` bytes, 64-byte aligned (2 MiB aligned and marked for huge pages when large: streaming a weight
// matrix through 4 KiB pages is limited by TLB misses). Throws OUT_OF_MEMORY with the byte count. Never null.
void* aligned_allocate(size_t bytes);
void aligned_release(void* pointer);

// An owned block of it.
class AlignedBlock {
 public:
  AlignedBlock() = default;
  explicit AlignedBlock(size_t bytes) : data_(aligned_allocate(bytes)), bytes_(bytes) {}
  AlignedBlock(AlignedBlock&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  AlignedBlock& operator=(AlignedBlock&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~AlignedBlock() { aligned_release(data_); }

  // Grows to at least `bytes`; what it held is lost.
  void reserve(size_t bytes) {
    if (bytes <= bytes_) return;
    *this = AlignedBlock();
    *this = AlignedBlock(bytes);
  }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace cpu
}  // namespace dultra
