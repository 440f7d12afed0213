// Copies small arrays between host and device: a ring of pinned memory with a device mirror.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dultra {
namespace cuda {

class Staging {
 public:
  explicit Staging(cudaStream_t stream) : stream_(stream) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Begins an operation whose arrays take `bytes` in all, each rounded up to kAlignment: none of them is overwritten
  // before finish().
  void begin(size_t bytes);
  // A copy of `bytes` of host memory on the device, queued. An input that the ring still holds unchanged is not
  // copied again.
  const void* input(const void* host, size_t bytes);
  // Device memory whose contents finish() brings to `host`.
  void* output(void* host, size_t bytes);
  // Copies all outputs back and waits for them. Without outputs it returns at once.
  void finish();

  static constexpr size_t kAlignment = 256;
  static size_t rounded(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

 private:
  struct Piece {
    void* host;
    size_t offset, bytes;
  };
  size_t take(size_t bytes);
  void grow(size_t bytes);

  cudaStream_t stream_;
  uint8_t *pinned_ = nullptr, *device_ = nullptr;
  size_t bytes_ = 0, next_ = 0;
  std::vector<Piece> outputs_;
  std::vector<Piece> recent_;  // inputs that the ring still holds, latest last
};

}  // namespace cuda
}  // namespace dultra
