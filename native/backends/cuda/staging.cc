#include "backends/cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "backends/cuda/device.h"

namespace dultra {
namespace cuda {

namespace {

constexpr size_t kLeastBytes = size_t(4) << 20;
constexpr size_t kRecent = 16;  // inputs that are looked for: positions and offsets come back in every layer

}  // namespace

Staging::~Staging() {
  cudaFreeHost(pinned_);
  cudaFree(device_);
}

void Staging::grow(size_t bytes) {
  check_cuda(cudaStreamSynchronize(stream_), "staging");
  recent_.clear();
  next_ = 0;
  if (bytes <= bytes_) return;
  cudaFreeHost(pinned_);
  cudaFree(device_);
  pinned_ = device_ = nullptr;
  bytes_ = 0;
  check_cuda(cudaMallocHost(reinterpret_cast<void**>(&pinned_), bytes), "staging");
  check_cuda(cudaMalloc(reinterpret_cast<void**>(&device_), bytes), "staging");
  bytes_ = bytes;
}

void Staging::begin(size_t bytes) {
  outputs_.clear();
  // From the start again: what is queued still reads what is there.
  if (next_ + bytes > bytes_) grow(std::max(kLeastBytes, 2 * bytes));
}

size_t Staging::take(size_t bytes) {
  const size_t offset = next_;
  next_ += rounded(bytes);
  check_argument(next_ <= bytes_, "staging: an operation announced too little");
  return offset;
}

const void* Staging::input(const void* host, size_t bytes) {
  for (const Piece& piece : recent_)
    if (piece.host == host && piece.bytes == bytes && std::memcmp(pinned_ + piece.offset, host, bytes) == 0)
      return device_ + piece.offset;
  const size_t offset = take(bytes);
  std::memcpy(pinned_ + offset, host, bytes);
  check_cuda(cudaMemcpyAsync(device_ + offset, pinned_ + offset, bytes, cudaMemcpyDefault, stream_), "staging");
  if (recent_.size() >= kRecent) recent_.erase(recent_.begin());
  recent_.push_back({const_cast<void*>(host), offset, bytes});
  return device_ + offset;
}

void* Staging::output(void* host, size_t bytes) {
  const size_t offset = take(bytes);
  outputs_.push_back({host, offset, bytes});
  return device_ + offset;
}

void Staging::finish() {
  if (outputs_.empty()) return;
  for (const Piece& piece : outputs_)
    check_cuda(cudaMemcpyAsync(pinned_ + piece.offset, device_ + piece.offset, piece.bytes, cudaMemcpyDefault, stream_),
               "staging");
  check_cuda(cudaStreamSynchronize(stream_), "staging");
  for (const Piece& piece : outputs_) std::memcpy(piece.host, pinned_ + piece.offset, piece.bytes);
  outputs_.clear();
}

}  // namespace cuda
}  // namespace dultra
