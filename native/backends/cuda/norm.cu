// RMS norm, layer norm with the per-group modulation of AdaLN, the planner's score.
#include "backends/cuda/kernels.h"
#include "backends/cuda/row_group.h"

namespace dultra {
namespace cuda {

namespace {

template <int kThreads, bool kWhole, class Out>
__device__ __forceinline__ void rmsnorm_row(Out* out, float* copied, const float* x, const float* weight, int64_t c,
                                            float eps, float* scratch) {
  using Row = HeldRow<kThreads, kWhole>;
  const Row row(x, c);
  float squares = 0;
  row.each([&](int64_t, const typename Row::Numbers& numbers) {
    DULTRA_UNROLL
    for (int e = 0; e < Row::kN; ++e) squares = fmaf(numbers[e], numbers[e], squares);
  });
  const float scale = 1.0f / sqrtf(block_sum<kThreads>(squares, scratch) / float(c) + eps);
  row.each([&](int64_t j, const typename Row::Numbers& numbers) {
    const typename Row::Numbers weights = row.load(weight, j);
    float same[Row::kN], values[Row::kN];
    DULTRA_UNROLL
    for (int e = 0; e < Row::kN; ++e) {
      same[e] = numbers[e];
      values[e] = same[e] * scale * weights[e];
    }
    if (copied) row.store(copied, j, same);
    row.store(out, j, values);
  });
}
template <int kThreads, class Out>
__global__ void __launch_bounds__(RowGroup<kThreads>::kBlock)
    rmsnorm_forward_kernel(Out* out, float* copied, const float* x, const int32_t* index, const float* weight,
                           int64_t m, int64_t c, float eps, bool aligned) {
  DULTRA_SHARED(shared);
  float* scratch = reinterpret_cast<float*>(shared);
  const int64_t row = RowGroup<kThreads>::row();
  if (row >= m) return;
  out += row * c;
  if (copied) copied += row * c;
  x += (index ? index[row] : row) * c;
  if (aligned)
    rmsnorm_row<kThreads, true>(out, copied, x, weight, c, eps, scratch);
  else
    rmsnorm_row<kThreads, false>(out, copied, x, weight, c, eps, scratch);
}

// What a layer norm makes of the vector at column j.
template <class Row>
__device__ __forceinline__ void modulated(float (&values)[Row::kN], const Row& row, int64_t j,
                                          const typename Row::Numbers& x, const RowMoments& moments, const float* mul,
                                          const float* add) {
  const typename Row::Numbers factors = row.load(mul, j), terms = row.load(add, j);
  DULTRA_UNROLL
  for (int e = 0; e < Row::kN; ++e) values[e] = fmaf((x[e] - moments.mean) * moments.scale, factors[e], terms[e]);
}

template <int kThreads, bool kWhole>
__device__ __forceinline__ void layernorm_row(float* out, const float* x, const float* mul, const float* add, int64_t c,
                                              float eps, float* scratch) {
  using Row = HeldRow<kThreads, kWhole>;
  const Row row(x, c);
  const RowMoments moments = row_moments(row, c, eps, scratch);
  row.each([&](int64_t j, const typename Row::Numbers& numbers) {
    float values[Row::kN];
    modulated(values, row, j, numbers, moments, mul, add);
    row.store(out, j, values);
  });
}
template <int kThreads>
__global__ void __launch_bounds__(RowGroup<kThreads>::kBlock)
    layernorm_forward_kernel(float* out, const float* x, const float* mul, const float* add, const int32_t* groups,
                             int64_t m, int64_t c, float eps, bool aligned) {
  DULTRA_SHARED(shared);
  float* scratch = reinterpret_cast<float*>(shared);
  const int64_t row = RowGroup<kThreads>::row();
  if (row >= m) return;
  const int64_t first = groups ? groups[row] * c : 0;
  if (aligned)
    layernorm_row<kThreads, true>(out + row * c, x + row * c, mul + first, add + first, c, eps, scratch);
  else
    layernorm_row<kThreads, false>(out + row * c, x + row * c, mul + first, add + first, c, eps, scratch);
}

template <int kThreads, bool kWhole>
__device__ __forceinline__ float score_of_row(const float* x, const float* mul, const float* add, const float* weight,
                                              int64_t c, float eps, float* scratch) {
  using Row = HeldRow<kThreads, kWhole>;
  const Row row(x, c);
  const RowMoments moments = row_moments(row, c, eps, scratch);
  float score = 0;
  row.each([&](int64_t j, const typename Row::Numbers& numbers) {
    const typename Row::Numbers weights = row.load(weight, j);
    float values[Row::kN];
    modulated(values, row, j, numbers, moments, mul, add);
    DULTRA_UNROLL
    for (int e = 0; e < Row::kN; ++e) score = fmaf(values[e], weights[e], score);
  });
  return block_sum<kThreads>(score, scratch);
}
template <int kThreads>
__global__ void __launch_bounds__(RowGroup<kThreads>::kBlock)
    planner_score_forward_kernel(float* logit, const float* x, const float* mul, const float* add,
                                 const int32_t* groups, const float* weight, float bias, int64_t m, int64_t c,
                                 float eps, bool aligned) {
  DULTRA_SHARED(shared);
  float* scratch = reinterpret_cast<float*>(shared);
  const int64_t row = RowGroup<kThreads>::row();
  if (row >= m) return;
  const int64_t first = groups ? groups[row] * c : 0;
  const float score =
      aligned ? score_of_row<kThreads, true>(x + row * c, mul + first, add + first, weight, c, eps, scratch)
              : score_of_row<kThreads, false>(x + row * c, mul + first, add + first, weight, c, eps, scratch);
  if (int(threadIdx.x) % kThreads == 0) logit[row] = score + bias;
}

}  // namespace

void rmsnorm_forward(Array out, const float* x, const float* weight, int64_t m, int64_t c, float eps,
                     cudaStream_t stream) {
  rmsnorm_copy_forward(out, nullptr, x, nullptr, weight, m, c, eps, stream);
}

void rmsnorm_copy_forward(Array out, float* copied, const float* x, const int32_t* index, const float* weight,
                          int64_t m, int64_t c, float eps, cudaStream_t stream) {
  if (m == 0) return;
  typed(out, [&](auto* to) {
    by_width(c, [&](auto threads) {
      constexpr int kThreads = decltype(threads)::value;
      launch("rmsnorm_forward", stream, rmsnorm_forward_kernel<kThreads, number_of<decltype(to)>>,
             row_blocks<kThreads>(m), RowGroup<kThreads>::kBlock, RowGroup<kThreads>::kShared, to, copied, x, index,
             weight, m, c, eps, rows_in_vectors(c, to, copied, x, weight));
    });
  });
}

void layernorm_forward(float* out, const float* x, const float* mul, const float* add, const int32_t* group, int64_t m,
                       int64_t c, float eps, cudaStream_t stream) {
  if (m == 0) return;
  by_width(c, [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value;
    launch("layernorm_forward", stream, layernorm_forward_kernel<kThreads>, row_blocks<kThreads>(m),
           RowGroup<kThreads>::kBlock, RowGroup<kThreads>::kShared, out, x, mul, add, group, m, c, eps,
           rows_in_vectors(c, out, x, mul, add));
  });
}

void planner_score_forward(float* logit, const float* x, const float* mul, const float* add, const int32_t* group,
                           const float* weight, float bias, int64_t m, int64_t c, float eps, cudaStream_t stream) {
  if (m == 0) return;
  by_width(c, [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value;
    launch("planner_score_forward", stream, planner_score_forward_kernel<kThreads>, row_blocks<kThreads>(m),
           RowGroup<kThreads>::kBlock, RowGroup<kThreads>::kShared, logit, x, mul, add, group, weight, bias, m, c, eps,
           rows_in_vectors(c, x, mul, add, weight));
  });
}

}  // namespace cuda
}  // namespace dultra
