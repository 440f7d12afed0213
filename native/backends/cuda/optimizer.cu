// The optimiser's operations.
#include "backends/cuda/arg_transfer.h"
#include "backends/cuda/vectors.h"
#include "ops/adamw.h"
#include "ops/fixed_point.h"

namespace dultra {
namespace cuda {

namespace {

constexpr int kSumThreads = 256;
constexpr int64_t kPiece = 8192;   // numbers per block; how a sum is cut into pieces depends on n alone
constexpr int64_t kPieces = 1024;  // at most; the last block adds their sums. Longer arrays have longer pieces

int64_t piece_of(int64_t n) {
  int64_t piece = kPiece;
  while (ceil_div(n, piece) > kPieces) piece *= 2;
  return piece;
}

__global__ void __launch_bounds__(kSumThreads)
    sum_squares_kernel(double* sums, const float* x, int64_t n, int64_t piece) {
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
  bool usual;  // correction from 2^-27 to 1, eps at most 1
};

// Elements per thread: the four that share a block of random words.
constexpr int kGroup = 4;

// Rounds a moment to its stored type; kUsual: it is known to be finite.
template <bool kUsual>
__device__ __forceinline__ void put_moment(Vector<float, kGroup>* to, int e, float value, uint32_t) {
  to->word[e] = bits_of(value);
}
template <bool kUsual>
__device__ __forceinline__ void put_moment(Vector<uint16_t, kGroup>* to, int e, float value, uint32_t random) {
  to->set_half(e, kUsual ? finite_to_bf16_stochastic(value, random) : f32_to_bf16_stochastic(value, random));
}

// Whether |m| is in [2^-70, 2^60] and v in [2^-100, 2^40]: with usual factors, all operands of the update's divisions
// are then in the range of usual_quotient.
__device__ __forceinline__ bool usual_moments(float m, float v) {
  const auto power = [](int exponent) { return uint32_t(exponent + 127) << 23; };
  return bits_of(v) - power(-100) <= power(40) - power(-100) &&
         2 * bits_of(m) - 2 * power(-70) <= 2 * (power(60) - power(-70));
}

// Updates elements begin .. end of group `group`, which starts at `at`; kWhole: all four.
template <bool kWhole, bool kSplit, class Moment>
__device__ __forceinline__ void adamw_group(const AdamWArgs& a, const AdamWFactors& f, int64_t group, int64_t at,
                                            int64_t begin, int64_t end) {
  Moment *exp_avg = static_cast<Moment*>(a.exp_avg) + at, *exp_avg_sq = static_cast<Moment*>(a.exp_avg_sq) + at;
  uint16_t* low_halves = reinterpret_cast<uint16_t*>(a.low) + at;
  const auto load = [&](const auto* from) { return load_vector<kGroup, kWhole>(from, end, begin); };
  const auto store = [&](auto* to, const auto& vector) { store_vector<kWhole>(to, vector, end, begin); };
  const auto gradient = load(a.gradient + at);
  const auto m_held = load(exp_avg), v_held = load(exp_avg_sq);
  Vector<float, kGroup> p{};
  Vector<uint16_t, kGroup> high{}, low{};
  if (kSplit)
    high = load(a.high + at), low = load(low_halves);
  else
    p = load(a.parameter + at);
  rng::Words words{};
  if (sizeof(Moment) == 2) words = rng::moment_words(a.seed, a.stream, uint32_t(a.step), uint64_t(group));
  float m[kGroup], v[kGroup];
  bool usual = f.usual;
  DULTRA_UNROLL
  for (int e = 0; e < kGroup; ++e) {
    const float g = gradient[e] * f.scale;
    m[e] = fmaf(m_held[e], f.beta1, g * f.rest1);
    v[e] = fmaf(v_held[e], f.beta2, g * g * f.rest2);
    usual = usual && usual_moments(m[e], v[e]);
  }
  const auto finish = [&](auto usual_numbers) {
    constexpr bool kUsual = decltype(usual_numbers)::value;
    const float inverse = kUsual ? usual_inverse(f.correction) : 0.0f;
    Vector<Moment, kGroup> m_new{}, v_new{};
    Vector<uint16_t, kGroup> high_new{}, low_new{};
    DULTRA_UNROLL
    for (int e = 0; e < kGroup; ++e) {
      put_moment<kUsual>(&m_new, e, m[e], words.w[e] & 0xffffu);
      put_moment<kUsual>(&v_new, e, v[e], words.w[e] >> 16);  // mutant: >> 16 -> & 0xffffu (adamw_bf16)
      float update;
      if (kUsual) {
        const float below = usual_quotient(usual_sqrt(v[e]), f.correction, inverse) + f.eps;
        update = usual_quotient(m[e], below, usual_inverse(below));
      } else {
        update = m[e] / (sqrtf(v[e]) / f.correction + f.eps);
      }
      const float before = kSplit ? join_float(high.half(e), int16_t(low.half(e))) : p[e],
                  after = fmaf(update, -f.step, before * f.keep);
      if (kSplit) {
        const SplitFloat split = split_float(after);
        high_new.set_half(e, split.high);
        low_new.set_half(e, uint16_t(split.low));
      } else {
        p.word[e] = bits_of(after);
      }
    }
    store(exp_avg, m_new);
    store(exp_avg_sq, v_new);
    if (kSplit)
      store(a.high + at, high_new), store(low_halves, low_new);
    else
      store(a.parameter + at, p);
  };
  if (kWhole && usual)
    finish(std::true_type());
  else
    finish(std::false_type());
}

// aligned: every array is aligned to four of its numbers, and a.first is a multiple of four.
template <bool kSplit, class Moment>
__global__ void __launch_bounds__(kElementThreads) adamw_kernel(AdamWArgs a, AdamWFactors f, bool aligned) {
  const int64_t group = a.first / kGroup + global_index(),
                at = group * kGroup - a.first;  // of its first element; negative where that is before the range
  if (at >= a.n) return;
  const int64_t begin = at < 0 ? -at : 0, end = a.n - at < kGroup ? a.n - at : kGroup;
  if (aligned && end == kGroup)
    adamw_group<true, kSplit, Moment>(a, f, group, at, begin, end);
  else
    adamw_group<false, kSplit, Moment>(a, f, group, at, begin, end);
}

template <bool kSplit, class Moment>
void launch_adamw(const AdamWArgs& a, const AdamWFactors& f, cudaStream_t stream) {
  const auto aligned = [&](const auto* numbers) { return in_vectors<kGroup>(numbers, a.first); };
  const bool all = aligned(a.gradient) && aligned(static_cast<const Moment*>(a.exp_avg)) &&
                   aligned(static_cast<const Moment*>(a.exp_avg_sq)) &&
                   (kSplit ? aligned(a.high) && aligned(a.low) : aligned(a.parameter));
  const int64_t groups = ceil_div(a.first + a.n, kGroup) - a.first / kGroup;
  launch("adamw_step", stream, adamw_kernel<kSplit, Moment>, element_grid(groups), kElementThreads, 0, a, f, all);
}

__global__ void __launch_bounds__(kSumThreads)
    add_fixed_kernel(uint32_t* largest, int64_t* sum, const float* x, int64_t n, int64_t piece) {
  DULTRA_SHARED(shared);
  const int64_t first = int64_t(blockIdx.x) * piece, end = first + piece < n ? first + piece : n;
  uint32_t most = 0;
  for (int64_t i = first + threadIdx.x; i < end; i += kSumThreads) {
    const float value = x[i];
    const uint32_t bits = magnitude_bits(value);
    most = bits > most ? bits : most;
    sum[i] = add_to_fixed(sum[i], value);
  }
  most = block_max<kSumThreads>(most, reinterpret_cast<uint32_t*>(shared));
  if (threadIdx.x == 0) largest[blockIdx.x] = most;
}

__global__ void __launch_bounds__(kSumThreads) largest_kernel(float* largest, const uint32_t* of_blocks, int64_t n) {
  DULTRA_SHARED(shared);
  uint32_t most = magnitude_bits(*largest);
  for (int64_t i = threadIdx.x; i < n; i += kSumThreads) most = of_blocks[i] > most ? of_blocks[i] : most;
  most = block_max<kSumThreads>(most, reinterpret_cast<uint32_t*>(shared));
  if (threadIdx.x == 0) *largest = float_of(most);
}

__global__ void __launch_bounds__(kElementThreads) add_numbers_kernel(float* sum, const float* x, int64_t n) {
  const int64_t i = global_index();
  if (i < n) sum[i] += x[i];
}

__global__ void __launch_bounds__(kElementThreads) add_fixed_sums_kernel(int64_t* sum, const int64_t* x, int64_t n) {
  const int64_t i = global_index();
  if (i < n) sum[i] = add_units(sum[i], x[i]);
}

__global__ void __launch_bounds__(kElementThreads) read_fixed_kernel(float* x, const int64_t* sum, int64_t n) {
  const int64_t i = global_index();
  if (i < n) x[i] = fixed_to_f32(sum[i]);
}

}  // namespace

double CudaBackend::do_sum_squares(const float* x, int64_t n) {
  double result = 0, *total = &result;
  ArgTransfer transfer(*this, {out(total, 1)});
  const int64_t piece = piece_of(n), pieces = ceil_div(n, piece);
  constexpr size_t kShared = sizeof(double) * kSumThreads / kWarp;
  double* sums = static_cast<double*>(scratch(size_t(pieces) * sizeof(double)));
  if (pieces > 0)
    launch("sum_squares", stream_, sum_squares_kernel, dim3(unsigned(pieces)), kSumThreads, kShared, sums, x, n, piece);
  launch("sum_squares", stream_, sum_kernel, dim3(1), kSumThreads, kShared, total, static_cast<const double*>(sums),
         pieces);
  transfer.finish();
  return result;
}

void CudaBackend::do_add_numbers(float* sum, const float* x, int64_t n) {
  ArgTransfer transfer(*this);
  if (n > 0) launch("add_numbers", stream_, add_numbers_kernel, element_grid(n), kElementThreads, 0, sum, x, n);
  transfer.finish();
}

void CudaBackend::do_add_fixed(int64_t* sum, float* largest, const float* x, int64_t n) {
  ArgTransfer transfer(*this);
  if (n <= 0) return;
  const int64_t piece = piece_of(n), pieces = ceil_div(n, piece);
  constexpr size_t kShared = sizeof(uint32_t) * kSumThreads / kWarp;
  uint32_t* of_blocks = static_cast<uint32_t*>(scratch(size_t(pieces) * sizeof(uint32_t)));
  launch("add_fixed", stream_, add_fixed_kernel, dim3(unsigned(pieces)), kSumThreads, kShared, of_blocks, sum, x, n,
         piece);
  launch("add_fixed", stream_, largest_kernel, dim3(1), kSumThreads, kShared, largest,
         static_cast<const uint32_t*>(of_blocks), pieces);
  transfer.finish();
}

void CudaBackend::do_add_fixed_sums(int64_t* sum, const int64_t* x, int64_t n) {
  ArgTransfer transfer(*this);
  if (n > 0) launch("add_fixed_sums", stream_, add_fixed_sums_kernel, element_grid(n), kElementThreads, 0, sum, x, n);
  transfer.finish();
}

void CudaBackend::do_read_fixed(float* x, const int64_t* sum, int64_t n) {
  ArgTransfer transfer(*this);
  if (n > 0) launch("read_fixed", stream_, read_fixed_kernel, element_grid(n), kElementThreads, 0, x, sum, n);
  transfer.finish();
}

void CudaBackend::do_adamw_step(const AdamWArgs& a) {
  ArgTransfer transfer(*this);
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
  f.usual = f.correction >= 0x1p-27f && f.correction <= 1 && f.eps >= 0 && f.eps <= 1;
  if (a.moments == DType::kBF16)
    a.parameter ? launch_adamw<false, uint16_t>(a, f, stream_) : launch_adamw<true, uint16_t>(a, f, stream_);
  else
    a.parameter ? launch_adamw<false, float>(a, f, stream_) : launch_adamw<true, float>(a, f, stream_);
  transfer.finish();
}

}  // namespace cuda
}  // namespace dultra
