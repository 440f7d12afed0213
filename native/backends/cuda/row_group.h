// The threads that share one row of a norm: a warp per narrow row (four rows per block), a block per wide row. Which
// numbers of a row a thread sums depends on the row's width alone.
#pragma once
#include "backends/cuda/vectors.h"

namespace dultra {
namespace cuda {

constexpr int kHeld = 4;           // vectors of a row in a thread's registers
constexpr int kNarrowRow = 512;    // columns up to which one warp processes a row: what fits its registers
constexpr int kNarrowRows = 4;     // rows per block of narrow rows
constexpr int kWideThreads = 256;  // per wide row

template <int kThreads>
struct RowGroup {
  static constexpr int kRows = kThreads == kWarp ? kNarrowRows : 1;
  static constexpr int kBlock = kThreads * kRows;
  static constexpr size_t kShared = sizeof(float) * kThreads / kWarp;

  __device__ __forceinline__ static int64_t row() {
    return int64_t(blockIdx.x) * kRows + (kRows > 1 ? warp_index() : 0);
  }
};

// A row of fp32. A thread owns vectors of four numbers, kThreads vectors apart: it caches the first kHeld in registers
// and reads the others again on every pass. kWhole: rows have a multiple of four columns and are 16-byte aligned.
template <int kThreads, bool kWhole>
class HeldRow {
 public:
  static constexpr int kN = kVectorOf<float>;
  using Numbers = Vector<float, kN>;

  __device__ __forceinline__ HeldRow(const float* x, int64_t c) : x_(x), c_(c) {
    DULTRA_UNROLL
    for (int v = 0; v < kHeld; ++v)
      if (column(v) < c) held_[v] = load(x, column(v));
  }
  // The vector at column j of any row of the same width; zeros beyond the last column.
  __device__ __forceinline__ Numbers load(const float* row, int64_t j) const {
    return load_vector<kN, kWhole>(row + j, c_ - j);
  }
  template <class T>
  __device__ __forceinline__ void store(T* row, int64_t j, const float (&values)[kN]) const {
    store_vector<kWhole>(row + j, rounded_to<T>(values), c_ - j);
  }
  // Whether number e of the vector at column j exists.
  __device__ __forceinline__ bool has(int64_t j, int e) const { return kWhole || j + e < c_; }
  // Calls body(column, numbers) for every vector of the thread.
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) const {
    DULTRA_UNROLL
    for (int v = 0; v < kHeld; ++v)
      if (column(v) < c_) body(column(v), held_[v]);
    DULTRA_NO_UNROLL
    for (int64_t j = column(kHeld); j < c_; j += kThreads * kN) body(j, load(x_, j));
  }

 private:
  __device__ __forceinline__ static int64_t column(int v) {
    return int64_t(v * kThreads + int(threadIdx.x) % kThreads) * kN;
  }

  const float* x_;
  int64_t c_;
  Numbers held_[kHeld];
};

// Two sums over a block's kThreads threads, with equal results on all threads and a single barrier. scratch has
// kPairScratch numbers: calls alternate between its halves (turn: 0, 1, 0, 1 ...), because a half is read until the
// barrier of the next call.
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
template <int kThreads, bool kWhole>
__device__ __forceinline__ RowMoments row_moments(const HeldRow<kThreads, kWhole>& row, int64_t c, float eps,
                                                  float* scratch) {
  using Row = HeldRow<kThreads, kWhole>;
  float sum = 0, squares = 0;
  row.each([&](int64_t, const typename Row::Numbers& x) {
    DULTRA_UNROLL
    for (int e = 0; e < Row::kN; ++e) sum += x[e];
  });
  const float mean = block_sum<kThreads>(sum, scratch) / float(c);
  row.each([&](int64_t j, const typename Row::Numbers& x) {
    DULTRA_UNROLL
    for (int e = 0; e < Row::kN; ++e)
      if (row.has(j, e)) squares = fmaf(x[e] - mean, x[e] - mean, squares);
  });
  return {mean, 1.0f / sqrtf(block_sum<kThreads>(squares, scratch) / float(c) + eps)};
}

// Calls launch_with(threads per row, as an integral_constant) for rows of c columns.
template <class Launch>
void by_width(int64_t c, const Launch& launch_with) {
  if (c <= kNarrowRow)
    launch_with(std::integral_constant<int, kWarp>());
  else
    launch_with(std::integral_constant<int, kWideThreads>());
}
// Whether these arrays, with rows of c numbers, can be moved in aligned vectors.
template <class... T>
bool rows_in_vectors(int64_t c, const T*... arrays) {
  return (in_vectors<kVectorOf<float>>(arrays, c) && ...);
}
// A grid for m rows; whole warps or blocks beyond row m exit.
template <int kThreads>
dim3 row_blocks(int64_t m) {
  return dim3(unsigned(ceil_div(m, RowGroup<kThreads>::kRows)));
}

}  // namespace cuda
}  // namespace dultra
