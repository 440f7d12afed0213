// The optimiser's operations.
#include "backends/cuda/kernels.h"

namespace dultra {
namespace cuda {

namespace {

constexpr int kSumThreads = 256;
constexpr int64_t kPiece = 8192;   // numbers of a block; the pieces of a sum depend on n alone
constexpr int64_t kPieces = 1024;  // most sums that the last block adds up; longer arrays have longer pieces

int64_t piece_of(int64_t n) {
  int64_t piece = kPiece;
  while (ceil_div(n, piece) > kPieces) piece *= 2;
  return piece;
}

__global__ void __launch_bounds__(kSumThreads) sum_squares_kernel(double* sums, const float* x, int64_t n, int64_t piece) {
  DULTRA_SHARED(shared);
  const int64_t first = int64_t(blockIdx.x) * piece, end = first + piece < n ? first + piece : n;
  double sum = 0;
  for (int64_t i = first + threadIdx.x; i < end; i += kSumThreads) sum += double(x[i]) * double(x[i]);
  sum = block_sum<kSumThreads>(sum, reinterpret_cast<double*>(shared));
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kSumThreads) sum_kernel(double* result, const double* sums, int64_t n) {
  DULTRA_SHARED(shared);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kSumThreads) sum += sums[i];
  sum = block_sum<kSumThreads>(sum, reinterpret_cast<double*>(shared));
  if (threadIdx.x == 0) *result = sum;
}

struct AdamWFactors {
  float scale, beta1, rest1, beta2, rest2, keep, step, correction, eps;
};

__global__ void __launch_bounds__(kElementThreads)
    adamw_kernel(float* parameter, const float* gradient, float* exp_avg, float* exp_avg_sq, int64_t n, AdamWFactors f) {
  const int64_t i = global_index();
  if (i >= n) return;
  const float g = gradient[i] * f.scale;
  const float m = fmaf(exp_avg[i], f.beta1, g * f.rest1), v = fmaf(exp_avg_sq[i], f.beta2, g * g * f.rest2);
  exp_avg[i] = m;
  exp_avg_sq[i] = v;
  const float update = m / (sqrtf(v) / f.correction + f.eps);
  parameter[i] = fmaf(update, -f.step, parameter[i] * f.keep);
}

}  // namespace

size_t sum_squares_scratch(int64_t n) { return size_t(ceil_div(n, piece_of(n))) * sizeof(double); }

void sum_squares(double* result, const float* x, int64_t n, void* scratch, cudaStream_t stream) {
  double* sums = static_cast<double*>(scratch);
  const int64_t piece = piece_of(n), pieces = ceil_div(n, piece);
  constexpr size_t kShared = sizeof(double) * kSumThreads / kWarp;
  if (pieces > 0) launch("sum_squares", stream, sum_squares_kernel, dim3(unsigned(pieces)), kSumThreads, kShared, sums, x, n, piece);
  launch("sum_squares", stream, sum_kernel, dim3(1), kSumThreads, kShared, result, static_cast<const double*>(sums), pieces);
}

void adamw_step(const AdamWArgs& a, cudaStream_t stream) {
  if (a.n == 0) return;
  AdamWFactors f;
  f.scale = float(a.gradient_scale);
  f.beta1 = float(a.beta1);
  f.rest1 = float(1 - a.beta1);
  f.beta2 = float(a.beta2);
  f.rest2 = float(1 - a.beta2);
  f.keep = float(1 - a.lr * a.weight_decay);
  f.step = float(a.lr / (1 - std::pow(a.beta1, double(a.step))));
  f.correction = float(std::sqrt(1 - std::pow(a.beta2, double(a.step))));
  f.eps = float(a.eps);
  launch("adamw_step", stream, adamw_kernel, element_grid(a.n), kElementThreads, 0, a.parameter, a.gradient, a.exp_avg, a.exp_avg_sq, a.n, f);
}

}  // namespace cuda
}  // namespace dultra
