// The threads that share one row of a norm: a warp for narrow rows (four rows to a block), a block for wide ones. Which numbers of a row a
// thread sums up depends on the row's width alone.
#pragma once
#include "backends/cuda/device.h"

namespace dultra {
namespace cuda {

constexpr int kWideRow = 1024;     // columns from which a row has a block to itself
constexpr int kWideThreads = 256;  // of such a block
constexpr int kNarrowRows = 4;     // rows of a block of warps

template <int kThreads>
struct RowGroup {
  static constexpr int kRows = kThreads == kWarp ? kNarrowRows : 1;
  static constexpr int kBlock = kThreads * kRows;
  static constexpr size_t kShared = sizeof(float) * kThreads / kWarp;

  float* scratch;
  int64_t c;

  __device__ __forceinline__ int64_t row() const { return int64_t(blockIdx.x) * kRows + (kRows > 1 ? warp_index() : 0); }
  __device__ __forceinline__ int thread() const { return int(threadIdx.x) % kThreads; }
  // Sum over the row of term(j).
  template <class Term>
  __device__ __forceinline__ float sum(const Term& term) const {
    float value = 0;
    for (int64_t j = thread(); j < c; j += kThreads) value += term(j);
    return block_sum<kThreads>(value, scratch);
  }
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) const {
    for (int64_t j = thread(); j < c; j += kThreads) body(j);
  }
};

// Two sums over a block's kThreads threads, the same on all of them, with one barrier: scratch, kPairScratch numbers, is read until the block has
// passed the barrier of the next call, which takes the other half. turn: of the call, 0, 1, 0, 1 ...
template <int kThreads>
constexpr int kPairScratch = 2 * 2 * (kThreads / kWarp);
template <int kThreads>
__device__ __forceinline__ void block_sums(float* a, float* b, float* scratch, int turn) {
  constexpr int kWarps = kThreads / kWarp;
  *a = warp_sum(*a);
  *b = warp_sum(*b);
  if (kWarps == 1) return;
  scratch += turn * 2 * kWarps;
  if (lane_index() == 0) {
    scratch[warp_index()] = *a;
    scratch[kWarps + warp_index()] = *b;
  }
  block_sync();
  *a = scratch[0];
  *b = scratch[kWarps];
  DULTRA_UNROLL
  for (int w = 1; w < kWarps; ++w) *a += scratch[w], *b += scratch[kWarps + w];
}

// Mean and 1 / sqrt(variance + eps) of a row.
struct RowMoments {
  float mean, scale;
};
template <int kThreads>
__device__ __forceinline__ RowMoments row_moments(const RowGroup<kThreads>& group, const float* x, float eps) {
  const float mean = group.sum([&](int64_t j) { return x[j]; }) / float(group.c);
  const float squares = group.sum([&](int64_t j) { return (x[j] - mean) * (x[j] - mean); });
  return {mean, 1.0f / sqrtf(squares / float(group.c) + eps)};
}

// Launches kernel<32> or kernel<256> for m rows of c columns. Rows beyond m are left by whole warps or blocks.
#define DULTRA_LAUNCH_ROWS(name, stream, kernel, m, c, ...)                                                                                          \
  do {                                                                                                                                               \
    if ((m) == 0) break;                                                                                                                             \
    if ((c) < kWideRow)                                                                                                                              \
      launch(name, stream, kernel<kWarp>, dim3(unsigned(ceil_div(m, kNarrowRows))), RowGroup<kWarp>::kBlock, RowGroup<kWarp>::kShared, __VA_ARGS__); \
    else                                                                                                                                             \
      launch(name, stream, kernel<kWideThreads>, dim3(unsigned(m)), RowGroup<kWideThreads>::kBlock, RowGroup<kWideThreads>::kShared, __VA_ARGS__);   \
  } while (0)

}  // namespace cuda
}  // namespace dultra
