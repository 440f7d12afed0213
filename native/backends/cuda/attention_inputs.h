// How attention reads its arrays: on tensor cores as bf16 whose rows can be copied 16 bytes at a time, otherwise as
// fp32. What lies in memory in another way is copied to scratch memory first.
#pragma once
#include <algorithm>
#include <array>

#include "backends/cuda/arg_transfer.h"
#include "backends/cuda/launchers.h"

namespace dultra {
namespace cuda {

// Numbers of one call, as the host's offsets have them.
struct AttentionSizes {
  int64_t queries = 0, keys = 0;      // all rows of q and of k
  int max_queries = 0, max_keys = 0;  // of a sequence
  int sequences = 0;                  // those that have queries

  explicit AttentionSizes(const AttentionArgs& a) {
    if (a.batch == 0) return;
    queries = a.q_offsets[a.batch];
    keys = a.k_offsets[a.batch];
    for (int b = 0; b < a.batch; ++b) {
      max_queries = std::max(max_queries, a.q_offsets[b + 1] - a.q_offsets[b]);
      max_keys = std::max(max_keys, a.k_offsets[b + 1] - a.k_offsets[b]);
      sequences += a.q_offsets[b + 1] > a.q_offsets[b];
    }
    max_queries = std::max(max_queries, a.max_queries);
  }
};

// The arrays of a call that may lie in host memory.
inline std::array<Argument, 6> index_arrays(AttentionArgs& a, const AttentionSizes& sizes) {
  return {in(a.q_offsets, a.batch + 1), in(a.k_offsets, a.batch + 1), in(a.q_positions, sizes.queries),
          in(a.first_block, a.batch),   in(a.key_begin, a.batch),     in(a.key_end, a.batch)};
}

// What a launch can take.
inline void check_launch(const AttentionArgs& a, int most_dimension) {
  check_argument(a.head_dim <= most_dimension, "head_dim: expected at most " + std::to_string(most_dimension) +
                                                   " on CUDA, got " + std::to_string(a.head_dim));
  check_argument(a.batch <= 65535 && a.heads <= 65535, "attention: expected at most 65535 sequences and heads");
}

inline bool on_tensor_cores(const AttentionArgs& a, Compute compute) {
  return compute == Compute::kBF16 && (a.head_dim == 64 || a.head_dim == 96 || a.head_dim == 128);
}

// Cuts scratch memory into arrays. Without memory it only counts, and nothing is copied.
class Scratch {
 public:
  Scratch(void* memory, cudaStream_t stream) : memory_(static_cast<uint8_t*>(memory)), stream_(stream) {}
  size_t bytes() const { return bytes_; }

  template <class T>
  T* take(int64_t n) {
    constexpr int64_t kAlignment = 256;
    T* array = memory_ ? reinterpret_cast<T*>(memory_ + bytes_) : nullptr;
    bytes_ += size_t(ceil_div(n * int64_t(sizeof(T)), kAlignment) * kAlignment);
    return array;
  }
  // x (rows, width), `stride` numbers apart, as bf16 or as fp32; `stride` becomes that of what is returned.
  const uint16_t* tiles(ConstArray x, int64_t* stride, int64_t rows, int64_t width) {
    if (x.dtype == DType::kBF16 && *stride % 8 == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0)
      return static_cast<const uint16_t*>(x.data);
    return copied<uint16_t>(x, stride, rows, width);
  }
  const float* floats(ConstArray x, int64_t* stride, int64_t rows, int64_t width) {
    if (x.dtype == DType::kF32) return x.f32();
    return copied<float>(x, stride, rows, width);
  }

  template <class T>
  const T* copied(ConstArray x, int64_t* stride, int64_t rows, int64_t width) {
    T* copy = take<T>(rows * width);
    if (copy) copy_rows(copy, width, x, *stride, rows, width, stream_);
    *stride = width;
    return copy;
  }

 private:
  uint8_t* memory_;
  cudaStream_t stream_;
  size_t bytes_ = 0;
};

}  // namespace cuda
}  // namespace dultra
