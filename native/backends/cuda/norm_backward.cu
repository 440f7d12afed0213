// Backward of the norms and of the planner's score: first the rows' own gradients, then the weights', each column summed over the rows in one
// order.
#include "backends/cuda/kernels.h"
#include "backends/cuda/row_group.h"

namespace dultra {
namespace cuda {

namespace {

// Rows that are summed up before the sums are: long sums round less this way, and pieces run side by side.
constexpr int64_t kPieceRows = 64;
constexpr int kColumnThreads = 128;

// ---- rows ------------------------------------------------------------------------------------------------------------------------------

template <int kThreads>
__global__ void __launch_bounds__(RowGroup<kThreads>::kBlock)
    rmsnorm_backward_kernel(float* dx, float* scales, const float* dout, const float* x, const float* weight, int64_t m, int64_t c, float eps) {
  DULTRA_SHARED(shared);
  const RowGroup<kThreads> group{reinterpret_cast<float*>(shared), c};
  const int64_t row = group.row();
  if (row >= m) return;
  dx += row * c;
  dout += row * c;
  x += row * c;
  const float scale = 1.0f / sqrtf(group.sum([&](int64_t j) { return x[j] * x[j]; }) / float(c) + eps);
  const float dot = group.sum([&](int64_t j) { return dout[j] * weight[j] * (x[j] * scale); }) / float(c);
  group.each([&](int64_t j) {
    const float slope = fmaf(dout[j], weight[j], -(x[j] * scale * dot));
    dx[j] = fmaf(slope, scale, dx[j]);
  });
  if (group.thread() == 0) scales[row] = scale;
}

// The input's part of a layer norm's backward. dout null: the score's, whose every row is dlogit weight.
template <int kThreads>
__global__ void __launch_bounds__(RowGroup<kThreads>::kBlock)
    layernorm_backward_kernel(float* dx, RowMoments* all_moments, const float* dout, const float* dlogit, const float* weight, const float* x,
                              const float* mul, const int32_t* groups, int64_t m, int64_t c, float eps) {
  DULTRA_SHARED(shared);
  const RowGroup<kThreads> group{reinterpret_cast<float*>(shared), c};
  const int64_t row = group.row();
  if (row >= m) return;
  dx += row * c;
  x += row * c;
  if (groups) mul += groups[row] * c;
  const RowMoments moments = row_moments(group, x, eps);
  const auto dnormed = [&](int64_t j) { return (dout ? dout[row * c + j] : weight[j] * dlogit[row]) * mul[j]; };
  const float sum = group.sum(dnormed) / float(c);
  const float dot = group.sum([&](int64_t j) { return dnormed(j) * ((x[j] - moments.mean) * moments.scale); }) / float(c);
  group.each([&](int64_t j) {
    const float d = (dnormed(j) - sum) - (x[j] - moments.mean) * moments.scale * dot;
    dx[j] = fmaf(d, moments.scale, dx[j]);
  });
  if (group.thread() == 0) all_moments[row] = moments;
}

// ---- columns ---------------------------------------------------------------------------------------------------------------------------

// partial (pieces, c): sums of term(row, column) over kPieceRows rows.
struct Plain {
  ConstArray x;
  int64_t stride;
  __device__ float operator()(int64_t i, int64_t j) const { return x[i * stride + j]; }
};
struct RmsWeight {
  const float *dout, *x, *scales;
  int64_t c;
  __device__ float operator()(int64_t i, int64_t j) const { return dout[i * c + j] * (x[i * c + j] * scales[i]); }
};
template <class Term>
__global__ void __launch_bounds__(kColumnThreads) column_pieces_kernel(float* partial, Term term, int64_t m, int64_t c) {
  const int64_t j = global_index(), piece = blockIdx.y;
  if (j >= c) return;
  const int64_t end = (piece + 1) * kPieceRows < m ? (piece + 1) * kPieceRows : m;
  float sum = 0;
  for (int64_t i = piece * kPieceRows; i < end; ++i) sum += term(i, j);
  partial[piece * c + j] = sum;
}
__global__ void __launch_bounds__(kColumnThreads) add_pieces_kernel(float* to, const float* partial, int64_t pieces, int64_t c) {
  const int64_t j = global_index();
  if (j >= c) return;
  float sum = to[j];
  for (int64_t piece = 0; piece < pieces; ++piece) sum += partial[piece * c + j];
  to[j] = sum;
}
template <class Term>
void add_columns(const char* name, float* to, const Term& term, int64_t m, int64_t c, float* partial, cudaStream_t stream) {
  if (m * c == 0) return;
  const int64_t pieces = ceil_div(m, kPieceRows);
  check_argument(pieces <= 65535, "rows: expected at most " + std::to_string(65535 * kPieceRows) + ", got " + std::to_string(m));
  launch(name, stream, column_pieces_kernel<Term>, dim3(unsigned(ceil_div(c, kColumnThreads)), unsigned(pieces)), kColumnThreads, 0, partial, term, m,
         c);
  launch(name, stream, add_pieces_kernel, dim3(unsigned(ceil_div(c, kColumnThreads))), kColumnThreads, 0, to, partial, pieces, c);
}

// A layer norm's weights come in groups, any number of them: a thread owns a column and walks down all rows.
__global__ void __launch_bounds__(kColumnThreads)
    layernorm_weights_kernel(float* dmul, float* dadd, float* dweight, const float* dout, const float* dlogit, const float* x,
                             const RowMoments* all_moments, const float* mul, const float* add, const int32_t* groups, const float* weight, int64_t m,
                             int64_t c) {
  const int64_t j = global_index();
  if (j >= c) return;
  for (int64_t i = 0; i < m; ++i) {
    const int64_t at = (groups ? groups[i] * c : 0) + j;
    const RowMoments moments = all_moments[i];
    const float normed = (x[i * c + j] - moments.mean) * moments.scale;
    const float d = dout ? dout[i * c + j] : weight[j] * dlogit[i];
    if (dmul) dmul[at] = fmaf(d, normed, dmul[at]);
    if (dadd) dadd[at] += d;
    if (dweight) dweight[j] = fmaf(dlogit[i], fmaf(normed, mul[at], add[at]), dweight[j]);
  }
}

// One thread: there are as many numbers as candidates.
__global__ void __launch_bounds__(kWarp) add_sum_kernel(float* to, const float* x, int64_t m) {
  if (threadIdx.x != 0) return;
  double sum = 0;
  for (int64_t i = 0; i < m; ++i) sum += double(x[i]);
  *to += float(sum);
}

}  // namespace

size_t norm_backward_scratch(int64_t m, int64_t c) { return size_t(m) * sizeof(RowMoments) + size_t(ceil_div(m, kPieceRows) * c) * sizeof(float); }

void rmsnorm_backward(float* dx, float* dweight, const float* dout, const float* x, const float* weight, int64_t m, int64_t c, float eps,
                      void* scratch, cudaStream_t stream) {
  float* scales = static_cast<float*>(scratch);
  DULTRA_LAUNCH_ROWS("rmsnorm_backward", stream, rmsnorm_backward_kernel, m, c, dx, scales, dout, x, weight, m, c, eps);
  if (dweight) add_columns("rmsnorm_backward", dweight, RmsWeight{dout, x, scales, c}, m, c, scales + m, stream);
}

void layernorm_backward(float* dx, float* dmul, float* dadd, const float* dout, const float* x, const float* mul, const int32_t* group, int64_t m,
                        int64_t c, float eps, void* scratch, cudaStream_t stream) {
  RowMoments* moments = static_cast<RowMoments*>(scratch);
  const float* none = nullptr;
  DULTRA_LAUNCH_ROWS("layernorm_backward", stream, layernorm_backward_kernel, m, c, dx, moments, dout, none, none, x, mul, group, m, c, eps);
  if ((dmul || dadd) && m > 0)
    launch("layernorm_backward", stream, layernorm_weights_kernel, dim3(unsigned(ceil_div(c, kColumnThreads))), kColumnThreads, 0, dmul, dadd,
           static_cast<float*>(nullptr), dout, none, x, static_cast<const RowMoments*>(moments), mul, none, group, none, m, c);
}

void planner_score_backward(float* dx, float* dmul, float* dadd, float* dweight, float* dbias, const float* dlogit, const float* x, const float* mul,
                            const float* add, const int32_t* group, const float* weight, int64_t m, int64_t c, float eps, void* scratch,
                            cudaStream_t stream) {
  RowMoments* moments = static_cast<RowMoments*>(scratch);
  const float* none = nullptr;
  DULTRA_LAUNCH_ROWS("planner_score_backward", stream, layernorm_backward_kernel, m, c, dx, moments, none, dlogit, weight, x, mul, group, m, c, eps);
  if (dbias && m > 0) launch("planner_score_backward", stream, add_sum_kernel, dim3(1), kWarp, 0, dbias, dlogit, m);
  if ((dmul || dadd || dweight) && m > 0)
    launch("planner_score_backward", stream, layernorm_weights_kernel, dim3(unsigned(ceil_div(c, kColumnThreads))), kColumnThreads, 0, dmul, dadd,
           dweight, none, dlogit, x, static_cast<const RowMoments*>(moments), mul, add, group, weight, m, c);
}

void add_column_sums(float* to, ConstArray x, int64_t stride, int64_t m, int64_t c, void* scratch, cudaStream_t stream) {
  add_columns("add_column_sums", to, Plain{x, stride}, m, c, static_cast<float*>(scratch), stream);
}

}  // namespace cuda
}  // namespace dultra
