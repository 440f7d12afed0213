// The optimiser's operations.
#include "backends/cuda/kernels.h"
#include "ops/adamw.h"

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

// What a thread owns: the four elements that share their random words.
constexpr int kGroup = 4;

template <class T>
struct alignas(kGroup * sizeof(T)) Group {
  T at[kGroup];
};
// Elements begin .. end of the group at `p`; with `whole` all four at once.
template <class T>
__device__ __forceinline__ Group<T> load_group(const T* p, bool whole, int begin, int end) {
  if (whole) return *reinterpret_cast<const Group<T>*>(p);
  Group<T> group;
  DULTRA_UNROLL
  for (int e = 0; e < kGroup; ++e) group.at[e] = e >= begin && e < end ? p[e] : T(0);
  return group;
}
template <class T>
__device__ __forceinline__ void store_group(T* p, const Group<T>& group, bool whole, int begin, int end) {
  if (whole) {
    *reinterpret_cast<Group<T>*>(p) = group;
    return;
  }
  DULTRA_UNROLL
  for (int e = 0; e < kGroup; ++e)
    if (e >= begin && e < end) p[e] = group.at[e];
}

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(uint16_t value) { return bf16_to_f32(value); }
__device__ __forceinline__ void narrow(float* to, float value, uint32_t) { *to = value; }
__device__ __forceinline__ void narrow(uint16_t* to, float value, uint32_t random) { *to = f32_to_bf16_stochastic(value, random); }

// aligned: every array begins where four of its numbers can be read at once, and so does a.first.
template <bool kSplit, class Moment>
__global__ void __launch_bounds__(kElementThreads) adamw_kernel(AdamWArgs a, AdamWFactors f, bool aligned) {
  const int64_t group = a.first / kGroup + global_index(), at = group * kGroup - a.first;  // of its first element; below 0 where it began before
  if (at >= a.n) return;
  const int begin = at < 0 ? int(-at) : 0, end = a.n - at < kGroup ? int(a.n - at) : kGroup;
  const bool whole = aligned && end == kGroup;
  Moment* exp_avg = static_cast<Moment*>(a.exp_avg) + at;
  Moment* exp_avg_sq = static_cast<Moment*>(a.exp_avg_sq) + at;
  const Group<float> gradient = load_group(a.gradient + at, whole, begin, end);
  Group<Moment> m_held = load_group(exp_avg, whole, begin, end), v_held = load_group(exp_avg_sq, whole, begin, end);
  Group<float> p;
  Group<uint16_t> high;
  Group<int16_t> low;
  if (kSplit) {
    high = load_group(a.high + at, whole, begin, end);
    low = load_group(a.low + at, whole, begin, end);
  } else {
    p = load_group(a.parameter + at, whole, begin, end);
  }
  rng::Words words{};
  if (sizeof(Moment) == 2) words = rng::moment_words(a.seed, a.stream, uint32_t(a.step), uint64_t(group));
  DULTRA_UNROLL
  for (int e = 0; e < kGroup; ++e) {
    const float g = gradient.at[e] * f.scale;
    const float m = fmaf(widen(m_held.at[e]), f.beta1, g * f.rest1), v = fmaf(widen(v_held.at[e]), f.beta2, g * g * f.rest2);
    narrow(&m_held.at[e], m, words.w[e] & 0xffffu);
    narrow(&v_held.at[e], v, words.w[e] >> 16);
    const float update = m / (sqrtf(v) / f.correction + f.eps);
    if (kSplit) {
      const SplitFloat split = split_float(fmaf(update, -f.step, join_float(high.at[e], low.at[e]) * f.keep));
      high.at[e] = split.high;
      low.at[e] = split.low;
    } else {
      p.at[e] = fmaf(update, -f.step, p.at[e] * f.keep);
    }
  }
  store_group(exp_avg, m_held, whole, begin, end);
  store_group(exp_avg_sq, v_held, whole, begin, end);
  if (kSplit) {
    store_group(a.high + at, high, whole, begin, end);
    store_group(a.low + at, low, whole, begin, end);
  } else {
    store_group(a.parameter + at, p, whole, begin, end);
  }
}

template <bool kSplit, class Moment>
void launch_adamw(const AdamWArgs& a, const AdamWFactors& f, cudaStream_t stream) {
  const auto aligned = [](const void* p, size_t size) { return reinterpret_cast<uintptr_t>(p) % (kGroup * size) == 0; };
  const bool all = a.first % kGroup == 0 && aligned(a.gradient, 4) && aligned(a.exp_avg, sizeof(Moment)) && aligned(a.exp_avg_sq, sizeof(Moment)) &&
                   (kSplit ? aligned(a.high, 2) && aligned(a.low, 2) : aligned(a.parameter, 4));
  const int64_t groups = ceil_div(a.first + a.n, kGroup) - a.first / kGroup;
  launch("adamw_step", stream, adamw_kernel<kSplit, Moment>, element_grid(groups), kElementThreads, 0, a, f, all);
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
  if (a.moments == DType::kBF16)
    a.parameter ? launch_adamw<false, uint16_t>(a, f, stream) : launch_adamw<true, uint16_t>(a, f, stream);
  else
    a.parameter ? launch_adamw<false, float>(a, f, stream) : launch_adamw<true, float>(a, f, stream);
}

}  // namespace cuda
}  // namespace dultra
