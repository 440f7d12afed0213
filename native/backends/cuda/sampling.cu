// Token sampling: one read of the logits gives the drawn token (argmax of logit + T * Gumbel noise, exactly the one
// that a scan in double over all tokens finds), its log-probability and confidence, the largest probability and the
// entropy.
//
//   slices  : block (row, slice) keeps kSlice logits in registers: maximum, sums of exponentials, best noisy token
//   combine : one warp per row combines the slices
//
// Two double logarithms per token would cost far more than reading the logits. With u a token's uniform and m the
// largest logit, the best noisy token has the smallest (-log u) e^((m - x) / T), and 1 - u <= -log u. So a race in
// fp32, on the high words of the uniforms, computes a lower bound for every token and an upper bound for the smallest;
// the few tokens whose lower bound does not exceed it (about one per slice) get the double logarithms, which decide.
// Margins cover every rounding, so the race never drops a winner.
#include "backends/cuda/arg_transfer.h"
#include "backends/cuda/vectors.h"
#include "ops/token_filter.h"

namespace dultra {
namespace cuda {

namespace {

constexpr int kThreads = 128, kPerThread = 32, kSlice = kThreads * kPerThread, kWarps = kThreads / kWarp;
constexpr int kSums = 3;
constexpr int kGradientThreads = 1024, kGradientPerThread = 8;
constexpr int kFilterThreads = 512;
constexpr float kLeastTemperature = 1e-4f;

struct Best {
  double score;  // logit + T * noise; -inf: no token
  int32_t token;
  float logit;
};
__device__ __forceinline__ Best no_token() { return {-INFINITY, 2147483647, -INFINITY}; }
// The higher score; of equal scores the lower token. Branch-free, so that a warp does not diverge.
__device__ __forceinline__ Best better(const Best& a, const Best& b) {
  const bool first = bool(int(a.score > b.score) | (int(a.score == b.score) & int(a.token < b.token)));
  return {first ? a.score : b.score, first ? a.token : b.token, first ? a.logit : b.logit};
}
__device__ __forceinline__ Best warp_best(Best best) {
  for (int mask = 16; mask; mask >>= 1)
    best =
        better(best, Best{shuffle_xor(best.score, mask), shuffle_xor(best.token, mask), shuffle_xor(best.logit, mask)});
  return best;
}

struct alignas(16) Slice {
  double sum, weighted, tempered;  // of e^(x - max), (x - max) e^(x - max), e^((x - max) / T)
  Best best;
  float max;
};

// Shared memory of a block.
struct Scratch {
  Best best[kWarps];
  double sums[kSums];
  float parts[kSums][kThreads];
  float max[kWarps], most[kWarps];
};

// A block's share of a row: kCount numbers for each of kBlock threads.
template <int kBlock, int kCount>
struct Share {
  static constexpr int kNumbers = kBlock * kCount;

  // Offset of a thread's number i in the share: groups of four adjacent numbers, one group per block-wide stride.
  static __device__ __forceinline__ constexpr int stride(int i) { return i / 4 * 4 * kBlock + i % 4; }
  static __device__ __forceinline__ int place(int i) { return 4 * int(threadIdx.x) + stride(i); }
  // Offset of `token` in the share that begins with token `first`; -1: outside the share.
  static __device__ __forceinline__ int within(int32_t token, int64_t first) {
    return token >= first && token - first < kNumbers ? int(token - first) : -1;
  }
  // Whether the share is complete and 16-byte aligned. Otherwise the same threads move it number by number.
  static __device__ __forceinline__ bool whole(const float* x, int64_t count) {
    return count >= kNumbers && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  }
  // Loads the first `count` numbers of x; -inf beyond them.
  static __device__ __forceinline__ void load(float (&v)[kCount], const float* x, int64_t count) {
    if (whole(x, count)) {
      DULTRA_UNROLL
      for (int i = 0; i < kCount; i += 4) {
        const Vector<float, 4> four = load_vector<4, true>(x + place(i), 4);
        DULTRA_UNROLL
        for (int j = 0; j < 4; ++j) v[i + j] = four[j];
      }
    } else {
      DULTRA_UNROLL
      for (int i = 0; i < kCount; ++i) v[i] = place(i) < count ? x[place(i)] : -INFINITY;
    }
  }
  static __device__ __forceinline__ void store(float* x, int64_t count, const float (&v)[kCount]) {
    if (whole(x, count)) {
      DULTRA_UNROLL
      for (int i = 0; i < kCount; i += 4) {
        const float four[4] = {v[i], v[i + 1], v[i + 2], v[i + 3]};
        store_vector<true>(x + place(i), rounded_to<float>(four), 4);
      }
    } else {
      DULTRA_UNROLL
      for (int i = 0; i < kCount; ++i)
        if (place(i) < count) x[place(i)] = v[i];
    }
  }
};
using SliceShare = Share<kThreads, kPerThread>;

__device__ __forceinline__ double noisy(float x, double temperature, double noise) {
  return rng::add_rn(x, rng::mul_rn(temperature, noise));
}

// The race of a slice's tokens. Times are negated, so that the largest wins, as with logits.
struct Race {
  float max, inverse;  // 1 / T

  // Replaces each of a thread's logits by the lower bound of its time, negated: -(1 - u) e^((max - x) / T).
  // Returns a time r: if r > -1, the winner takes at most r / (1 + r). For if 1 - u <= v, then log u >= -v / (1 - v);
  // times e = e^((max - x) / T) >= 1 that is at least r / (1 + r) with r = -v e.
  __device__ __forceinline__ float run(float (&x)[kPerThread], const rng::Coordinates& at, int64_t first) const {
    const float scale = inverse * kLog2E;
    const uint32_t pair = uint32_t(first >> 1) + 2 * threadIdx.x;  // two adjacent tokens share random bits
    float most = -INFINITY;
    DULTRA_UNROLL
    for (int i = 0; i < kPerThread; i += 2) {
      const rng::Words words = rng::philox4x32_10(
          rng::Words{{pair + uint32_t(SliceShare::stride(i) / 2), at.position, at.row, at.step}}, at.seed);
      DULTRA_UNROLL
      for (int j = 0; j < 2; ++j) {
        // 1 - u is between y - 1 and that plus 2^-23.
        const uint32_t bits = 0x3fffffffu ^ (words.w[2 * j] >> 9);  // mutant: [2 * j] -> [2 - 2 * j] (sampling_equals)
        float y;
        memcpy(&y, &bits, 4);
        const float e = fast_exp2((max - x[i + j]) * scale);
        x[i + j] = fmaf(-y, e, e);  // NaN if e is infinite: such a token cannot win
        most = fmaxf(most, fmaf(-1.1920928955078125e-7f, e, x[i + j]));
      }
    }
    return most;
  }
  // The least value after `run` of a token that may win. most: the largest value that `run` returned.
  __device__ __forceinline__ float bar(float most) const {
    // The relative error of times is below 2^-14.
    constexpr float kMargin = 1.001f;  // mutant: 1.001f -> 0.99f (sampling_decides)
    // Rounding moves two scores towards each other by at most 2^-50 (|score| + 80 T); here in units of T.
    const float slack = 8.8817841970012523e-16f * (fabsf(max) * inverse + 80.0f), r = most * kMargin;
    return r > -1 ? r / (1 + r) * fast_exp2(slack * kLog2E) * kMargin : -INFINITY;
  }
};

// Eight blocks per multiprocessor: all slices of 32 rows of 126464 logits are resident at once on an H100.
__global__ void __launch_bounds__(kThreads, 8)
    sample_slices_kernel(SampleArgs a, float inverse_temperature, Slice* slices) {
  DULTRA_SHARED(shared);
  Scratch& scratch = *reinterpret_cast<Scratch*>(shared);
  const int64_t row = blockIdx.x, first = int64_t(blockIdx.y) * kSlice;
  const bool is_noisy = a.temperature >= kLeastTemperature, draws = is_noisy && !a.given,
             tempered = is_noisy && a.tempered_log_prob;
  const bool races = draws && !a.uniforms;
  const float* x = a.logits + row * a.vocab + first;
  const int count = a.vocab - first < kSlice ? int(a.vocab - first) : kSlice;
  const int excluded = SliceShare::within(a.excluded_token, first);

  float v[kPerThread];
  SliceShare::load(v, x, count);
  rng::Coordinates at{};
  if (races) at = a.at[row];  // after the loads of the logits are issued
  if (excluded >= 0) {
    DULTRA_UNROLL
    for (int i = 0; i < kPerThread; ++i)
      if (SliceShare::place(i) == excluded) v[i] = -INFINITY;
  }

  float max = -INFINITY;
  DULTRA_UNROLL
  for (int i = 0; i < kPerThread; ++i) max = fmaxf(max, v[i]);
  max = warp_max(max);
  if (lane_index() == 0) scratch.max[warp_index()] = max;
  block_sync();  // all warps' maxima are written
  DULTRA_UNROLL
  for (int w = 0; w < kWarps; ++w) max = fmaxf(max, scratch.max[w]);

  const float base = max == -INFINITY ? 0.0f : max;
  float sum = 0, weighted = 0, tempered_sum = 0;
  DULTRA_UNROLL
  for (int i = 0; i < kPerThread; ++i) {
    const float d = v[i] - base, e = fast_exp2(d * kLog2E);  // NaN for NaN and for +inf: the row is not finite
    sum += e;
    weighted = fmaf(fmaxf(d, -100.0f), e, weighted);
    if (tempered) tempered_sum += fast_exp2(d * inverse_temperature * kLog2E);
  }
  scratch.parts[0][threadIdx.x] = sum;
  scratch.parts[1][threadIdx.x] = weighted;
  scratch.parts[2][threadIdx.x] = tempered_sum;

  // Tokens that may be the best have at least `bar`: a logit at T = 0; with recorded uniforms every token passes.
  float bar = a.uniforms ? -INFINITY : max;
  if (races) {
    const Race race{base, inverse_temperature};
    float most = warp_max(race.run(v, at, first));
    if (lane_index() == 0) scratch.most[warp_index()] = most;
    block_sync();  // all warps' bounds and all threads' partial sums are written
    DULTRA_UNROLL
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, scratch.most[w]);
    bar = race.bar(most);
  } else {
    block_sync();  // all threads' partial sums are written
  }
  if (max == -INFINITY) bar = INFINITY;  // no tokens
  float most = v[0];
  DULTRA_UNROLL
  for (int i = 1; i < kPerThread; ++i) most = fmaxf(most, v[i]);
  uint32_t passed = 0;
  if (most >= bar) {
    DULTRA_UNROLL
    for (int i = 0; i < kPerThread; ++i) passed |= uint32_t(v[i] >= bar) << i;
  }
  // The double logarithms: a loop that is not unrolled, over the few tokens that passed.
  Best best = no_token();
  for (; passed; passed &= passed - 1) {
    const int i = SliceShare::place(lowest_bit(passed));
    if (i >= count || i == excluded || !(x[i] > -INFINITY)) continue;
    const int32_t token = int32_t(first) + i;
    double score = x[i];
    if (draws) {
      const double noise =
          a.uniforms ? rng::gumbel(a.uniforms[row * a.vocab + token]) : rng::token_gumbel(at, uint32_t(token));
      score = noisy(x[i], a.temperature, noise);
    }
    best = better(best, Best{score, token, x[i]});
  }
  if (warp_any(best.logit > -INFINITY)) best = warp_best(best);
  if (lane_index() == 0) scratch.best[warp_index()] = best;
  if (warp_index() < kSums) {
    double part = 0;
    DULTRA_UNROLL
    for (int t = 0; t < kThreads; t += kWarp) part += double(scratch.parts[warp_index()][t + lane_index()]);
    part = warp_sum(part);
    if (lane_index() == 0) scratch.sums[warp_index()] = part;
  }
  block_sync();  // the sums and all warps' best are written
  if (threadIdx.x != 0) return;
  DULTRA_UNROLL
  for (int w = 1; w < kWarps; ++w) best = better(best, scratch.best[w]);
  slices[row * gridDim.y + blockIdx.y] = Slice{scratch.sums[0], scratch.sums[1], scratch.sums[2], best, max};
}

// Rescales a slice's sums to `max`, which is at least its own maximum.
__device__ __forceinline__ void rescale(Slice& slice, float max, float inverse_temperature) {
  const float below = slice.max == -INFINITY ? 0.0f : slice.max - max;  // without a token the sums are zero
  const double scale = fast_exp2(below * kLog2E);
  slice.weighted = (slice.weighted + slice.sum * double(fmaxf(below, -100.0f))) * scale;
  slice.sum *= scale;
  slice.tempered *= double(fast_exp2(below * inverse_temperature * kLog2E));
  slice.max = max;
}

__global__ void __launch_bounds__(kWarp)
    sample_combine_kernel(SampleArgs a, float inverse_temperature, const Slice* slices, int count) {
  const int64_t row = blockIdx.x;
  const Slice* slice = slices + row * count;
  const bool is_noisy = a.temperature >= kLeastTemperature, tempered = is_noisy && a.tempered_log_prob;
  Slice all{0, 0, 0, no_token(), -INFINITY};
  bool finite = true;
  for (int s = lane_index(); s < count; s += kWarp) {
    Slice mine = slice[s];
    finite = finite && std::isfinite(mine.sum);
    all.best = better(all.best, mine.best);
    const float max = fmaxf(all.max, mine.max);
    rescale(all, max, inverse_temperature);
    rescale(mine, max, inverse_temperature);
    all.sum += mine.sum;
    all.weighted += mine.weighted;
    all.tempered += mine.tempered;
  }
  const float max = warp_max(all.max);
  rescale(all, max, inverse_temperature);
  const double sum = warp_sum(all.sum), weighted = warp_sum(all.weighted), tempered_sum = warp_sum(all.tempered);
  Best best = warp_best(all.best);
  finite = !warp_any(!finite) && std::isfinite(max);
  if (lane_index() != 0) return;
  a.finite[row] = finite;
  if (!finite) {
    a.token[row] = 0;
    a.log_prob[row] = a.confidence[row] = a.entropy[row] = NAN;
    if (a.max_prob) a.max_prob[row] = NAN;
    return;
  }
  if (a.given) {
    const int32_t token = a.given[row];
    best =
        Best{0, token,
             token == a.excluded_token || token < 0 || token >= a.vocab ? -INFINITY : a.logits[row * a.vocab + token]};
  }
  const double below = double(best.logit) - max, log_sum = log(sum), share = 1.0 / sum;
  a.token[row] = best.token;
  a.log_prob[row] = float(tempered ? below / a.temperature - log(tempered_sum) : below - log_sum);
  a.confidence[row] = float(exp(below) * share);
  if (a.max_prob) a.max_prob[row] = float(share);
  a.entropy[row] = float(log_sum - weighted * share);
}

// One row of logits, read by a block. Bounds are found bit by bit: each bit takes one pass over the row, whose integer
// sums do not depend on how the threads share it.
class FilteredRow {
 public:
  __device__ __forceinline__ FilteredRow(const SampleArgs& args, uint64_t* scratch)
      : a_(args), x_(args.logits + int64_t(blockIdx.x) * args.vocab), scratch_(scratch) {}

  template <class Body>
  __device__ __forceinline__ void each(const Body& body) const {
    DULTRA_NO_UNROLL
    for (int32_t token = int32_t(threadIdx.x); token < int32_t(a_.vocab); token += kFilterThreads)
      if (token != a_.excluded_token && x_[token] > -INFINITY) body(token, x_[token]);
  }
  // Sum over all tokens of what `body` gives, on every thread.
  template <class Body>
  __device__ __forceinline__ uint64_t sum(const Body& body) const {
    uint64_t mine = 0;
    each([&](int32_t token, float x) { mine += body(token, x); });
    return block_sum<kFilterThreads>(mine, scratch_);
  }
  __device__ __forceinline__ float largest() const {
    float mine = -INFINITY;
    each([&](int32_t, float x) { mine = fmaxf(mine, x); });
    return block_max<kFilterThreads>(mine, reinterpret_cast<float*>(scratch_));
  }

  __device__ token_filter::Cut cut(const token_filter::Weights& weights) const {
    token_filter::Cut cut = token_filter::keep_all();
    if (a_.top_k > 0) {
      uint32_t kth = 0;  // the largest key that top_k tokens have at least; 0: there are fewer tokens
      DULTRA_NO_UNROLL
      for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
        const uint32_t key = kth | bit;
        if (sum([&](int32_t, float x) { return uint64_t(token_filter::key_of(x) >= key); }) >= uint64_t(a_.top_k))
          kth = key;
      }
      if (kth > cut.key) cut.key = kth;
    }
    if (!(a_.top_p < 1)) return cut;
    const uint32_t least = a_.top_p_first ? 0 : cut.key;
    const uint64_t total =
        sum([&](int32_t, float x) { return token_filter::key_of(x) >= least ? weights.weight(x) : 0; });
    const uint64_t allowed = token_filter::allowance(a_.top_p, total);
    // The least key above which at most that sums up; `above`: the sum above key | (2 bit - 1).
    uint32_t key = 0;
    uint64_t above = 0;
    DULTRA_NO_UNROLL
    for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
      const uint32_t low = key | (bit - 1), high = low | bit;
      const uint64_t part = sum([&](int32_t, float x) {
        const uint32_t mine = token_filter::key_of(x);
        return mine > low && mine <= high ? weights.weight(x) : 0;
      });
      if (above + part > allowed)
        key |= bit;
      else
        above += part;
    }
    if (key < cut.key) return cut;
    cut.key = key;
    const auto equals = [&](float x) { return token_filter::key_of(x) == key; };
    const uint64_t equal = sum([&](int32_t, float x) { return uint64_t(equals(x)); });
    const uint64_t weight = sum([&](int32_t, float x) { return equals(x) ? weights.weight(x) : 0; });
    const uint64_t kept = token_filter::kept_of_equal(allowed, above, equal == 0 ? 0 : weight / equal);
    if (kept >= equal) return cut;
    // The largest id before which fewer than `kept` of them are.
    int32_t last = 0;
    DULTRA_NO_UNROLL
    for (int32_t bit = 1 << 30; bit; bit >>= 1) {
      const int32_t id = last | bit;
      if (sum([&](int32_t token, float x) { return uint64_t(token < id && equals(x)); }) < kept) last = id;
    }
    cut.last = last;
    return cut;
  }

 private:
  const SampleArgs& a_;
  const float* const x_;
  uint64_t* const scratch_;
};

struct FilterScratch {
  uint64_t sums[kFilterThreads / kWarp];
  Best best[kFilterThreads / kWarp];
};

// cuts (M): which tokens of each row are kept. token (M; null: not wanted): drawn from them.
__global__ void __launch_bounds__(kFilterThreads)
    sample_filter_kernel(SampleArgs a, double temperature, token_filter::Cut* cuts, int32_t* token) {
  DULTRA_SHARED(shared);
  FilterScratch& scratch = *reinterpret_cast<FilterScratch*>(shared);
  const int64_t row = blockIdx.x;
  const FilteredRow filtered(a, scratch.sums);
  const token_filter::Weights weights(filtered.largest(), temperature, a.vocab);
  const token_filter::Cut cut = filtered.cut(weights);
  if (threadIdx.x == 0) cuts[row] = cut;
  if (!token) return;
  rng::Coordinates at{};
  if (!a.uniforms) at = a.at[row];
  Best best = no_token();
  filtered.each([&](int32_t id, float x) {
    if (!cut.keeps(x, id)) return;
    const double noise = a.uniforms ? rng::gumbel(a.uniforms[row * a.vocab + id]) : rng::token_gumbel(at, uint32_t(id));
    best = better(best, Best{noisy(x, a.temperature, noise), id, x});
  });
  best = warp_best(best);
  if (lane_index() == 0) scratch.best[warp_index()] = best;
  block_sync();  // all warps' best are written
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kFilterThreads / kWarp; ++w) best = better(best, scratch.best[w]);
  token[row] = best.logit > -INFINITY ? best.token : 0;
}

// Scores of what was drawn, among the tokens that are kept. cuts null: all.
__global__ void __launch_bounds__(kFilterThreads)
    sample_score_kernel(SampleArgs a, double temperature, const token_filter::Cut* cuts) {
  DULTRA_SHARED(shared);
  FilterScratch& scratch = *reinterpret_cast<FilterScratch*>(shared);
  const int64_t row = blockIdx.x;
  if (!a.finite[row]) {
    if (threadIdx.x == 0 && a.margin) a.margin[row] = NAN;
    return;
  }
  const FilteredRow filtered(a, scratch.sums);
  const token_filter::Weights weights(filtered.largest(), temperature, a.vocab);
  const token_filter::Cut cut = cuts ? cuts[row] : token_filter::keep_all();
  token_filter::Sums sums{};
  sums.total = filtered.sum([&](int32_t id, float x) { return cut.keeps(x, id) ? weights.weight(x) : 0; });
  sums.surprise = filtered.sum([&](int32_t id, float x) { return cut.keeps(x, id) ? weights.surprise(x) : 0; });
  // The second largest is the largest where the largest occurs twice.
  const uint64_t tops =
      filtered.sum([&](int32_t id, float x) { return uint64_t(cut.keeps(x, id) && x == weights.max); });
  float second = -INFINITY;
  filtered.each([&](int32_t id, float x) {
    if (cut.keeps(x, id) && (tops > 1 || x < weights.max)) second = fmaxf(second, x);
  });
  second = block_max<kFilterThreads>(second, reinterpret_cast<float*>(scratch.sums));
  sums.second = weights.weight(second);
  if (threadIdx.x != 0) return;
  const int32_t token = a.token[row];
  const float x = a.logits[row * a.vocab + token];
  const token_filter::Scores scores =
      token_filter::scores_of(weights, sums, token != a.excluded_token && cut.keeps(x, token) ? x : -INFINITY);
  if (a.margin) a.margin[row] = scores.margin;
  if (a.scores == SampleScores::kModel) return;
  a.confidence[row] = scores.confidence;
  a.entropy[row] = scores.entropy;
  if (a.max_prob) a.max_prob[row] = scores.max_prob;
}

// A thread's part of a row's logits from `first` on; the excluded token's is -inf.
template <class Part>
__device__ __forceinline__ void load_logits(float (&v)[kGradientPerThread], const float* x, int64_t first,
                                            int64_t vocab, int32_t excluded_token) {
  Part::load(v, x + first, vocab - first);
  const int excluded = Part::within(excluded_token, first);
  if (excluded < 0) return;
  DULTRA_UNROLL
  for (int i = 0; i < kGradientPerThread; ++i)
    if (Part::place(i) == excluded) v[i] = -INFINITY;
}

// Reads a row twice: for its maximum and sum, then to replace the logits by the gradient.
__global__ void __launch_bounds__(kGradientThreads)
    log_prob_backward_kernel(float* logits, const int32_t* tokens, const float* dlog_prob, int64_t vocab,
                             float inverse_temperature, int32_t excluded_token) {
  using Part = Share<kGradientThreads, kGradientPerThread>;
  DULTRA_SHARED(shared);
  float* max_scratch = reinterpret_cast<float*>(shared);    // (32), first
  double* sum_scratch = reinterpret_cast<double*>(shared);  // (32), after the barrier inside block_sum
  const int64_t row = blockIdx.x;
  float* x = logits + row * vocab;
  const int32_t token = tokens[row];
  const float d = dlog_prob[row] * inverse_temperature, scale = inverse_temperature * kLog2E;
  float v[kGradientPerThread];
  if (d == 0 || token == excluded_token) {  // whatever the logits are; a log-prob of -inf has no slope
    DULTRA_UNROLL
    for (int i = 0; i < kGradientPerThread; ++i) v[i] = 0;
    for (int64_t first = 0; first < vocab; first += Part::kNumbers) Part::store(x + first, vocab - first, v);
    return;
  }
  const auto load = [&](int64_t first) { load_logits<Part>(v, x, first, vocab, excluded_token); };
  // A thread's sum is relative to the largest logit that it has read.
  float max = -INFINITY;
  double sum = 0;
  for (int64_t first = 0; first < vocab; first += Part::kNumbers) {
    load(first);
    float above = max;
    DULTRA_UNROLL
    for (int i = 0; i < kGradientPerThread; ++i) above = fmaxf(above, v[i]);
    if (above == -INFINITY) continue;
    if (above > max) sum *= double(fast_exp2((max - above) * scale));
    max = above;
    float part = 0;
    DULTRA_UNROLL
    for (int i = 0; i < kGradientPerThread; ++i) part += fast_exp2((v[i] - max) * scale);
    sum += double(part);
  }
  const float mine = max;
  max = block_max<kGradientThreads>(max, max_scratch);
  sum = block_sum<kGradientThreads>(mine == -INFINITY ? 0 : sum * double(fast_exp2((mine - max) * scale)), sum_scratch);
  const float factor = max == -INFINITY ? 0.0f : float(-double(d) / sum), base = max == -INFINITY ? 0.0f : max;
  for (int64_t first = 0; first < vocab; first += Part::kNumbers) {
    load(first);
    const int drawn = Part::within(token, first);
    DULTRA_UNROLL
    for (int i = 0; i < kGradientPerThread; ++i)
      v[i] = fast_exp2((v[i] - base) * scale) * factor + (Part::place(i) == drawn ? d : 0.0f);
    Part::store(x + first, vocab - first, v);
  }
}

// Fewer threads than the other gradients have: a row's two distributions need more registers.
constexpr int kScoreThreads = kGradientThreads / 2;

// Reads a row three times: for its maximum, for the sums of both distributions, and to replace the logits by the
// gradient. With t = (x - max) / T of the entropy's temperature, S the sum of e^t and W that of t e^t, the entropy's
// derivative is -q (t - W / S) / T.
__global__ void __launch_bounds__(kScoreThreads)
    scores_backward_kernel(float* logits, const int32_t* tokens, const float* dlog_prob, const float* dentropy,
                           int64_t vocab, float inverse_temperature, float inverse_entropy_temperature,
                           int32_t excluded_token) {
  using Part = Share<kScoreThreads, kGradientPerThread>;
  DULTRA_SHARED(shared);
  float* max_scratch = reinterpret_cast<float*>(shared);    // (32), first
  double* sum_scratch = reinterpret_cast<double*>(shared);  // (32), after the barrier inside block_sum
  const int64_t row = blockIdx.x;
  float* x = logits + row * vocab;
  const int32_t token = tokens[row];
  const float d = token == excluded_token ? 0.0f : dlog_prob[row] * inverse_temperature;
  const float d_entropy = dentropy[row] * inverse_entropy_temperature;
  float v[kGradientPerThread];
  if (d == 0 && d_entropy == 0) {  // whatever the logits are
    DULTRA_UNROLL
    for (int i = 0; i < kGradientPerThread; ++i) v[i] = 0;
    for (int64_t first = 0; first < vocab; first += Part::kNumbers) Part::store(x + first, vocab - first, v);
    return;
  }
  const auto load = [&](int64_t first) { load_logits<Part>(v, x, first, vocab, excluded_token); };
  float max = -INFINITY;
  for (int64_t first = 0; first < vocab; first += Part::kNumbers) {
    load(first);
    DULTRA_UNROLL
    for (int i = 0; i < kGradientPerThread; ++i) max = fmaxf(max, v[i]);
  }
  max = block_max<kScoreThreads>(max, max_scratch);
  const bool none = max == -INFINITY;
  const float base = none ? 0.0f : max, scale = inverse_temperature * kLog2E;
  // 0 * -inf would be NaN; e^-100 counts as 0.
  const auto below = [&](float logit) { return fmaxf(-100.0f, (logit - base) * inverse_entropy_temperature); };
  double sum = 0, entropy_sum = 0, weighted = 0;
  for (int64_t first = 0; first < vocab; first += Part::kNumbers) {
    load(first);
    float part = 0, entropy_part = 0, weighted_part = 0;
    DULTRA_UNROLL
    for (int i = 0; i < kGradientPerThread; ++i) {
      if (v[i] == -INFINITY) continue;
      const float t = below(v[i]), e = fast_exp2(t * kLog2E);
      part += fast_exp2((v[i] - base) * scale);
      entropy_part += e;
      weighted_part += t * e;
    }
    sum += double(part);
    entropy_sum += double(entropy_part);
    weighted += double(weighted_part);
  }
  sum = block_sum<kScoreThreads>(sum, sum_scratch);
  entropy_sum = block_sum<kScoreThreads>(entropy_sum, sum_scratch);
  weighted = block_sum<kScoreThreads>(weighted, sum_scratch);
  const float factor = none ? 0.0f : float(-double(d) / sum);
  const float entropy_factor = none ? 0.0f : float(-double(d_entropy) / entropy_sum);
  const float mean = none ? 0.0f : float(weighted / entropy_sum);
  for (int64_t first = 0; first < vocab; first += Part::kNumbers) {
    load(first);
    const int drawn = Part::within(token, first);
    DULTRA_UNROLL
    for (int i = 0; i < kGradientPerThread; ++i) {
      const float t = below(v[i]);
      const float of_entropy = v[i] == -INFINITY ? 0.0f : fast_exp2(t * kLog2E) * (t - mean) * entropy_factor;
      v[i] = fast_exp2((v[i] - base) * scale) * factor + (Part::place(i) == drawn ? d : 0.0f) + of_entropy;
    }
    Part::store(x + first, vocab - first, v);
  }
}

constexpr int kAllowThreads = 256;

__global__ void __launch_bounds__(kAllowThreads)
    allow_tokens_kernel(float* logits, const uint32_t* sets, const int32_t* index, int64_t vocab) {
  const int32_t set = index[blockIdx.x];
  if (set < 0) return;
  const int64_t v = int64_t(blockIdx.y) * kAllowThreads + threadIdx.x;
  if (v >= vocab) return;
  float* x = logits + int64_t(blockIdx.x) * vocab + v;
  // What is no number, or infinite, stays, and is reported.
  if (!(sets[set * ceil_div(vocab, 32) + v / 32] >> (v % 32) & 1) && *x < INFINITY) *x = -INFINITY;
}

float inverse_or_1(float temperature) { return temperature >= kLeastTemperature ? 1.0f / temperature : 1.0f; }
int64_t slices_of(int64_t vocab) { return ceil_div(vocab, kSlice); }

}  // namespace

void CudaBackend::do_allow_tokens(float* logits, const uint32_t* sets, int64_t count, const int32_t* index, int64_t m,
                                  int64_t vocab) {
  if (m == 0) return;
  ArgTransfer transfer(*this, {in(sets, count * ceil_div(vocab, 32)), in(index, m)});
  launch("allow_tokens", stream_, allow_tokens_kernel,
         dim3(unsigned(m), unsigned(ceil_div(vocab, int64_t(kAllowThreads)))), kAllowThreads, 0, logits, sets, index,
         vocab);
  transfer.finish();
}

void CudaBackend::do_sample_forward(const SampleArgs& args) {
  SampleArgs a = args;
  const int64_t m = a.rows, count = slices_of(a.vocab);
  if (m == 0) return;
  check_argument(count <= 65535, "vocab: expected at most " + std::to_string(65535 * int64_t(kSlice)) + ", got " +
                                     std::to_string(a.vocab));
  ArgTransfer transfer(
      *this, {in(a.at, m), in(a.uniforms, m * a.vocab), in(a.given, m), out(a.token, m), out(a.log_prob, m),
              out(a.confidence, m), out(a.max_prob, m), out(a.entropy, m), out(a.margin, m), out(a.finite, m)});
  const float inverse_temperature = inverse_or_1(a.temperature);
  const size_t slice_bytes = size_t(m * count) * sizeof(Slice), cut_bytes = size_t(m) * sizeof(token_filter::Cut);
  uint8_t* memory = static_cast<uint8_t*>(scratch(slice_bytes + (a.filters() ? cut_bytes + size_t(m) * 4 : 0)));
  Slice* slices = reinterpret_cast<Slice*>(memory);
  const bool is_noisy = a.temperature >= kLeastTemperature, draws = is_noisy && !a.given && a.filters(),
             filters_scores = a.filters() && a.scores == SampleScores::kFiltered;
  const double temperature = is_noisy ? double(a.temperature) : 1.0;
  SampleArgs whole = a;  // what is kept of a row does not concern its log-probabilities
  token_filter::Cut* cuts = reinterpret_cast<token_filter::Cut*>(memory + slice_bytes);
  if (draws || filters_scores) {
    int32_t* drawn = draws ? reinterpret_cast<int32_t*>(memory + slice_bytes + cut_bytes) : nullptr;
    launch("sample_forward", stream_, sample_filter_kernel, dim3(unsigned(m)), kFilterThreads, sizeof(FilterScratch), a,
           temperature, cuts, drawn);
    if (draws) whole.given = drawn;
  }
  launch("sample_forward", stream_, sample_slices_kernel, dim3(unsigned(m), unsigned(count)), kThreads, sizeof(Scratch),
         whole, inverse_temperature, slices);
  launch("sample_forward", stream_, sample_combine_kernel, dim3(unsigned(m)), kWarp, 0, whole, inverse_temperature,
         static_cast<const Slice*>(slices), int(count));
  if (a.scores != SampleScores::kModel || a.margin)
    launch("sample_forward", stream_, sample_score_kernel, dim3(unsigned(m)), kFilterThreads, sizeof(FilterScratch), a,
           a.scores == SampleScores::kModel ? 1.0 : temperature,
           filters_scores ? static_cast<const token_filter::Cut*>(cuts) : nullptr);
  transfer.finish();
}

void CudaBackend::do_log_prob_backward(float* logits, const int32_t* tokens, const float* dlog_prob, int64_t m,
                                       int64_t vocab, float temperature, int32_t excluded_token) {
  if (m == 0) return;
  ArgTransfer transfer(*this, {in(tokens, m), in(dlog_prob, m)});
  launch("log_prob_backward", stream_, log_prob_backward_kernel, dim3(unsigned(m)), kGradientThreads,
         sizeof(double) * kGradientThreads / kWarp, logits, tokens, dlog_prob, vocab, inverse_or_1(temperature),
         excluded_token);
  transfer.finish();
}

void CudaBackend::do_scores_backward(float* logits, const int32_t* tokens, const float* dlog_prob,
                                     const float* dentropy, int64_t m, int64_t vocab, float temperature,
                                     float entropy_temperature, int32_t excluded_token) {
  if (m == 0) return;
  ArgTransfer transfer(*this, {in(tokens, m), in(dlog_prob, m), in(dentropy, m)});
  launch("scores_backward", stream_, scores_backward_kernel, dim3(unsigned(m)), kScoreThreads,
         sizeof(double) * kScoreThreads / kWarp, logits, tokens, dlog_prob, dentropy, vocab, inverse_or_1(temperature),
         inverse_or_1(entropy_temperature), excluded_token);
  transfer.finish();
}

}  // namespace cuda
}  // namespace dultra
