// RMS norm, layer norm with the per-group modulation of AdaLN, the planner's score.
#include "backends/cuda/kernels.h"
#include "backends/cuda/row_group.h"

namespace dultra {
namespace cuda {

namespace {

template <int kThreads>
__global__ void __launch_bounds__(RowGroup<kThreads>::kBlock)
    rmsnorm_forward_kernel(Array out, float* copied, const float* x, const int32_t* index, const float* weight, int64_t m, int64_t c, float eps) {
  DULTRA_SHARED(shared);
  const RowGroup<kThreads> group{reinterpret_cast<float*>(shared), c};
  const int64_t row = group.row();
  if (row >= m) return;
  x += (index ? index[row] : row) * c;
  const float scale = 1.0f / sqrtf(group.sum([&](int64_t j) { return x[j] * x[j]; }) / float(c) + eps);
  group.each([&](int64_t j) {
    const float value = x[j];
    if (copied) copied[row * c + j] = value;
    put(out, row * c + j, value * scale * weight[j]);
  });
}

template <int kThreads>
__global__ void __launch_bounds__(RowGroup<kThreads>::kBlock)
    layernorm_forward_kernel(float* out, const float* x, const float* mul, const float* add, const int32_t* groups, int64_t m, int64_t c, float eps) {
  DULTRA_SHARED(shared);
  const RowGroup<kThreads> group{reinterpret_cast<float*>(shared), c};
  const int64_t row = group.row();
  if (row >= m) return;
  const int64_t first = groups ? groups[row] * c : 0;
  x += row * c;
  out += row * c;
  mul += first;
  add += first;
  const RowMoments moments = row_moments(group, x, eps);
  group.each([&](int64_t j) { out[j] = fmaf((x[j] - moments.mean) * moments.scale, mul[j], add[j]); });
}

template <int kThreads>
__global__ void __launch_bounds__(RowGroup<kThreads>::kBlock)
    planner_score_forward_kernel(float* logit, const float* x, const float* mul, const float* add, const int32_t* groups, const float* weight,
                                 float bias, int64_t m, int64_t c, float eps) {
  DULTRA_SHARED(shared);
  const RowGroup<kThreads> group{reinterpret_cast<float*>(shared), c};
  const int64_t row = group.row();
  if (row >= m) return;
  const int64_t first = groups ? groups[row] * c : 0;
  x += row * c;
  mul += first;
  add += first;
  const RowMoments moments = row_moments(group, x, eps);
  const float score = group.sum([&](int64_t j) { return fmaf((x[j] - moments.mean) * moments.scale, mul[j], add[j]) * weight[j]; });
  if (group.thread() == 0) logit[row] = score + bias;
}

}  // namespace

void rmsnorm_forward(Array out, const float* x, const float* weight, int64_t m, int64_t c, float eps, cudaStream_t stream) {
  rmsnorm_copy_forward(out, nullptr, x, nullptr, weight, m, c, eps, stream);
}

void rmsnorm_copy_forward(Array out, float* copied, const float* x, const int32_t* index, const float* weight, int64_t m, int64_t c, float eps,
                          cudaStream_t stream) {
  DULTRA_LAUNCH_ROWS("rmsnorm_forward", stream, rmsnorm_forward_kernel, m, c, out, copied, x, index, weight, m, c, eps);
}

void layernorm_forward(float* out, const float* x, const float* mul, const float* add, const int32_t* group, int64_t m, int64_t c, float eps,
                       cudaStream_t stream) {
  DULTRA_LAUNCH_ROWS("layernorm_forward", stream, layernorm_forward_kernel, m, c, out, x, mul, add, group, m, c, eps);
}

void planner_score_forward(float* logit, const float* x, const float* mul, const float* add, const int32_t* group, const float* weight, float bias,
                           int64_t m, int64_t c, float eps, cudaStream_t stream) {
  DULTRA_LAUNCH_ROWS("planner_score_forward", stream, planner_score_forward_kernel, m, c, logit, x, mul, add, group, weight, bias, m, c, eps);
}

}  // namespace cuda
}  // namespace dultra
