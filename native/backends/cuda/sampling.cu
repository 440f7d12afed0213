// Token sampling: one read of the logits gives the drawn token (argmax of logit + T * Gumbel noise, exactly the one that a scan in double over
// all tokens finds), its log-probability and confidence, the largest probability and the entropy.
//
//   slices  : block (row, slice) keeps kSlice logits in registers: maximum, sums of exponentials, then the best noisy token
//   combine : a warp per row puts the slices together
//
// Noise for every token would cost more than reading the logits, so filters leave out tokens that cannot win (backends/cpu/sampling.cc says
// why they never drop a winner): no noise exceeds kMaxGumbel, and with `best` the best noisy logit so far a token wins only if its uniform u
// has 1 - u < e^((x - best) / T), a test in fp32 on the high word of the uniform. Some ten tokens of a row get the double logarithms.
#include "backends/cuda/kernels.h"

namespace dultra {
namespace cuda {

namespace {

constexpr int kThreads = 256, kPerThread = 16, kSlice = kThreads * kPerThread;
constexpr int kGradientThreads = 1024;
constexpr float kLeastTemperature = 1e-4f;

struct Best {
  double score;   // logit + T * noise
  int32_t token;  // -1: none
  float logit;
};
__device__ __forceinline__ bool better(const Best& a, const Best& b) {
  if (a.token < 0 || b.token < 0) return a.token >= 0;
  return a.score > b.score || (a.score == b.score && a.token < b.token);
}
__device__ __forceinline__ Best warp_best(Best best) {
  for (int mask = 16; mask; mask >>= 1) {
    const Best other{shuffle_xor(best.score, mask), shuffle_xor(best.token, mask), shuffle_xor(best.logit, mask)};
    if (better(other, best)) best = other;
  }
  return best;
}
__device__ __forceinline__ Best block_best(Best best, Best* scratch) {
  best = warp_best(best);
  block_sync();
  if (lane_index() == 0) scratch[warp_index()] = best;
  block_sync();
  best = scratch[0];
  for (int w = 1; w < kThreads / kWarp; ++w)
    if (better(scratch[w], best)) best = scratch[w];
  return best;
}

struct Slice {
  double sum, weighted, tempered;  // of e^(x - max), (x - max) e^(x - max), e^((x - max) / T)
  Best best;
  float max;
};

__device__ __forceinline__ float float_at_most(double value) {
  const float rounded = float(value);
  return double(rounded) > value ? nextafterf(rounded, -INFINITY) : rounded;
}
// Below every score that could tie with the best, whatever the rounding of scores.
__device__ __forceinline__ double lowest_winner(double score, double temperature) { return score - 0x1p-50 * (fabs(score) + 80 * temperature); }
__device__ __forceinline__ double noisy(float x, double temperature, double noise) { return rng::add_rn(x, rng::mul_rn(temperature, noise)); }

__global__ void __launch_bounds__(kThreads) sample_slices_kernel(SampleArgs a, Slice* slices) {
  DULTRA_SHARED(shared);
  Best* best_scratch = reinterpret_cast<Best*>(shared);                              // (8)
  double* sum_scratch = reinterpret_cast<double*>(best_scratch + kThreads / kWarp);  // (8)
  const int64_t row = blockIdx.x, slice = blockIdx.y;
  const bool is_noisy = a.temperature >= kLeastTemperature, draws = is_noisy && !a.given, tempered = is_noisy && a.tempered_log_prob;
  const double temperature = a.temperature;
  const float* x = a.logits + row * a.vocab;
  const int32_t first = int32_t(slice * kSlice) + int32_t(threadIdx.x);

  float v[kPerThread];
  Best top{-INFINITY, -1, -INFINITY};
  DULTRA_UNROLL
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t token = int64_t(first) + i * kThreads;
    v[i] = token < a.vocab && token != a.excluded_token ? x[token] : -INFINITY;
    const Best mine{v[i], int32_t(token), v[i]};
    if (v[i] > -INFINITY && better(mine, top)) top = mine;
  }
  top = block_best(top, best_scratch);

  const float max = top.token < 0 ? -INFINITY : top.logit, inverse = is_noisy ? float(1.0 / temperature) : 1.0f;
  float sum = 0, weighted = 0, tempered_sum = 0;
  DULTRA_UNROLL
  for (int i = 0; i < kPerThread; ++i) {
    if (v[i] == -INFINITY) continue;
    const float d = v[i] - max, e = fast_exp2(d * kLog2E);  // NaN for NaN and for +inf: the row is not finite
    sum += e;
    weighted = fmaf(fmaxf(d, -100.0f), e, weighted);
    if (tempered) tempered_sum += fast_exp2(d * inverse * kLog2E);
  }
  Slice result;
  result.max = max;
  result.sum = block_sum<kThreads>(double(sum), sum_scratch);
  result.weighted = block_sum<kThreads>(double(weighted), sum_scratch);
  result.tempered = tempered ? block_sum<kThreads>(double(tempered_sum), sum_scratch) : 0;

  // The double logarithms are in loops that are not unrolled, for the few tokens that get there.
  Best best = top;
  if (draws && a.uniforms) {
    best = Best{-INFINITY, -1, -INFINITY};
    for (int64_t token = first; token < a.vocab && token < (slice + 1) * kSlice; token += kThreads) {
      if (token == a.excluded_token || !(x[token] > -INFINITY)) continue;
      const Best mine{noisy(x[token], temperature, rng::gumbel(a.uniforms[row * a.vocab + token])), int32_t(token), x[token]};
      if (better(mine, best)) best = mine;
    }
    best = block_best(best, best_scratch);
  } else if (draws && top.token >= 0) {
    // The largest logit makes a good first bar.
    const rng::Coordinates at = a.at[row];
    best.score = noisy(top.logit, temperature, rng::token_gumbel(at, uint32_t(top.token)));
    const double lowest = lowest_winner(best.score, temperature);
    const float bar = float_at_most(lowest), floor = nextafterf(float_at_most(lowest - temperature * rng::kMaxGumbel), -INFINITY);
    uint32_t passed = 0;
    DULTRA_UNROLL
    for (int i = 0; i < kPerThread; ++i) {
      if (!(v[i] > floor)) continue;
      uint32_t high, low;
      rng::token_words(at, uint32_t(first + i * kThreads), &high, &low);
      // 1 - u >= (2^32 - 1 - high) / 2^32, and dropping the lowest bit keeps it a lower bound; the factor covers the rounding of w.
      const float lower = float(int32_t(~high >> 1)) * 4.656612873077393e-10f;
      const float w = fast_exp2(fminf((v[i] - bar) * inverse, 0.0f) * kLog2E) * 1.001f;
      passed |= uint32_t(lower <= w) << i;
    }
    for (; passed; passed &= passed - 1) {
      const int32_t token = first + lowest_bit(passed) * kThreads;
      const Best mine{noisy(x[token], temperature, rng::token_gumbel(at, uint32_t(token))), token, x[token]};
      if (better(mine, best)) best = mine;
    }
    best = block_best(best, best_scratch);
  }
  result.best = best;
  if (threadIdx.x == 0) slices[row * gridDim.y + slice] = result;
}

__global__ void __launch_bounds__(kWarp) sample_combine_kernel(SampleArgs a, const Slice* slices, int count) {
  const int64_t row = blockIdx.x;
  const Slice* slice = slices + row * count;
  const bool is_noisy = a.temperature >= kLeastTemperature, tempered = is_noisy && a.tempered_log_prob;
  float max = -INFINITY;
  for (int s = lane_index(); s < count; s += kWarp) max = fmaxf(max, slice[s].max);
  max = warp_max(max);
  double sum = 0, weighted = 0, tempered_sum = 0;
  Best best{-INFINITY, -1, -INFINITY};
  bool finite = true;
  for (int s = lane_index(); s < count; s += kWarp) {
    const Slice mine = slice[s];
    finite = finite && std::isfinite(mine.sum);
    if (better(mine.best, best)) best = mine.best;
    if (mine.max == -INFINITY) continue;
    const double below = double(mine.max) - max, scale = exp(below);
    sum += mine.sum * scale;
    weighted += (mine.weighted + mine.sum * below) * scale;
    if (tempered) tempered_sum += mine.tempered * exp(below / a.temperature);
  }
  sum = warp_sum(sum);
  weighted = warp_sum(weighted);
  tempered_sum = warp_sum(tempered_sum);
  best = warp_best(best);
  finite = warp_sum(finite ? 0 : 1) == 0 && std::isfinite(max);
  if (lane_index() != 0) return;
  a.finite[row] = finite;
  if (!finite) {
    a.token[row] = 0;
    a.log_prob[row] = a.confidence[row] = a.max_prob[row] = a.entropy[row] = NAN;
    return;
  }
  if (a.given) {
    const int32_t token = a.given[row];
    best = Best{0, token, token == a.excluded_token || token < 0 || token >= a.vocab ? -INFINITY : a.logits[row * a.vocab + token]};
  }
  const double below = double(best.logit) - max;
  a.token[row] = best.token;
  a.log_prob[row] = float(tempered ? below / a.temperature - log(tempered_sum) : below - log(sum));
  a.confidence[row] = float(exp(below) / sum);
  a.max_prob[row] = float(1.0 / sum);
  a.entropy[row] = float(log(sum) - weighted / sum);
}

__global__ void __launch_bounds__(kGradientThreads) log_prob_backward_kernel(float* logits, const int32_t* tokens, const float* dlog_prob,
                                                                             int64_t vocab, float inverse_temperature, int32_t excluded_token) {
  DULTRA_SHARED(shared);
  float* max_scratch = reinterpret_cast<float*>(shared);    // (32), and then
  double* sum_scratch = reinterpret_cast<double*>(shared);  // (32): the barrier inside block_sum separates the two
  const int64_t row = blockIdx.x;
  float* x = logits + row * vocab;
  const int32_t token = tokens[row];
  const float d = dlog_prob[row] * inverse_temperature;
  if (d == 0 || token == excluded_token) {  // whatever the logits are; a log-prob of -inf has no slope
    for (int64_t j = threadIdx.x; j < vocab; j += kGradientThreads) x[j] = 0;
    return;
  }
  const auto logit = [&](int64_t j) { return j == excluded_token ? -INFINITY : x[j]; };
  float max = -INFINITY;
  for (int64_t j = threadIdx.x; j < vocab; j += kGradientThreads) max = fmaxf(max, logit(j));
  max = block_max<kGradientThreads>(max, max_scratch);
  const auto weight = [&](int64_t j) { return max == -INFINITY ? 0.0f : fast_exp2((logit(j) - max) * inverse_temperature * kLog2E); };
  double sum = 0;
  for (int64_t j = threadIdx.x; j < vocab; j += kGradientThreads) sum += double(weight(j));
  sum = block_sum<kGradientThreads>(sum, sum_scratch);
  const float factor = max == -INFINITY ? 0.0f : float(-double(d) / sum);
  for (int64_t j = threadIdx.x; j < vocab; j += kGradientThreads) x[j] = weight(j) * factor + (j == token ? d : 0.0f);
}

int64_t slices_of(int64_t vocab) { return ceil_div(vocab, kSlice); }

}  // namespace

size_t sampling_scratch(int64_t rows, int64_t vocab) { return size_t(rows * slices_of(vocab)) * sizeof(Slice); }

void sample_forward(const SampleArgs& a, void* scratch, cudaStream_t stream) {
  if (a.rows == 0) return;
  Slice* slices = static_cast<Slice*>(scratch);
  const int64_t count = slices_of(a.vocab);
  check_argument(count <= 65535, "vocab: expected at most " + std::to_string(65535 * int64_t(kSlice)) + ", got " + std::to_string(a.vocab));
  const size_t shared = (sizeof(Best) + sizeof(double)) * kThreads / kWarp;
  launch("sample_forward", stream, sample_slices_kernel, dim3(unsigned(a.rows), unsigned(count)), kThreads, shared, a, slices);
  launch("sample_forward", stream, sample_combine_kernel, dim3(unsigned(a.rows)), kWarp, 0, a, static_cast<const Slice*>(slices), int(count));
}

void log_prob_backward(float* logits, const int32_t* tokens, const float* dlog_prob, int64_t m, int64_t vocab, float temperature,
                       int32_t excluded_token, cudaStream_t stream) {
  if (m == 0) return;
  const float inverse_temperature = temperature >= kLeastTemperature ? 1.0f / temperature : 1.0f;
  launch("log_prob_backward", stream, log_prob_backward_kernel, dim3(unsigned(m)), kGradientThreads, sizeof(double) * kGradientThreads / kWarp,
         logits, tokens, dlog_prob, vocab, inverse_temperature, excluded_token);
}

}  // namespace cuda
}  // namespace dultra
