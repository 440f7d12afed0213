// Which candidates are unmasked in this step, and the likelihood of such decisions. A block per row; candidates are
// ranked by counting those that come before them. Whatever depends on an order of summation is done by one thread, in
// the order of backends/cpu/unmask.cc.
#include "backends/cuda/arg_transfer.h"
#include "ops/policy.h"

namespace dultra {
namespace cuda {

namespace {

constexpr int kThreads = 256;
// Candidates whose keys and order fit into shared memory; more use scratch memory. Of all rows, as a launch must not
// depend on how they spread over the rows (Exchange::run).
constexpr int kSharedCandidates = 2048;

struct ScratchRow {
  double* key;
  int32_t* order;
};

// The block's candidates.
struct RowRange {
  int32_t begin, end;
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) const {
    for (int32_t i = begin + int32_t(threadIdx.x); i < end; i += kThreads) body(i);
  }
};

// Whether log p of what was selected is part of the likelihood; see Decisions in backends/cpu/unmask.cc. scratch: 8
// numbers.
__device__ bool selection_counts(const LikelihoodArgs& a, const Policy& policy, const RowRange& row, bool forced,
                                 uint64_t* scratch) {
  // The most probable open candidate, the first of equal ones: probabilities are not negative, so their bits order as
  // they do.
  uint64_t top = 0;
  int selected = 0;
  row.each([&](int32_t i) {
    if (a.forbidden && a.forbidden[i]) return;
    const float p = policy.probability(a.planner_logit[i]);
    uint32_t bits;
    memcpy(&bits, &p, 4);
    const uint64_t mine = uint64_t(bits) << 32 | uint32_t(~uint32_t(i));
    if (p >= 0 && mine > top) top = mine;
    selected += a.selected[i];
  });
  top = block_max<kThreads>(top, scratch);
  selected = block_sum<kThreads>(selected, reinterpret_cast<int*>(scratch));
  const bool only_top = forced || (selected == 1 && top != 0 && a.selected[~uint32_t(top)]);
  return !only_top || a.reference_likelihood;
}

__device__ void likelihood_row(const LikelihoodArgs& a, const RowRange& row, bool forced, uint64_t* scratch) {
  const Policy policy{a.planner_temperature, a.probability_scale, a.reference_likelihood};
  const bool counts = selection_counts(a, policy, row, forced, scratch);
  row.each([&](int32_t i) {
    const float logit = a.planner_logit[i];
    double value = 0;
    if (!a.forbidden || !a.forbidden[i])
      value = a.selected[i] ? double(a.token_log_prob[i]) + (counts ? policy.log_selected(logit) : 0)
                            : policy.log_masked(logit);
    a.log_likelihood[i] = float(value);
  });
}

__global__ void __launch_bounds__(kThreads, 2) likelihood_forward_kernel(LikelihoodArgs a) {
  DULTRA_SHARED(shared);
  likelihood_row(a, {a.offsets[blockIdx.x], a.offsets[blockIdx.x + 1]}, a.forced[blockIdx.x] != 0,
                 reinterpret_cast<uint64_t*>(shared));
}

__global__ void __launch_bounds__(kThreads, 2) likelihood_backward_kernel(LikelihoodGradArgs grad) {
  DULTRA_SHARED(shared);
  const LikelihoodArgs& a = grad.forward;
  const Policy policy{a.planner_temperature, a.probability_scale, a.reference_likelihood};
  const RowRange row{a.offsets[blockIdx.x], a.offsets[blockIdx.x + 1]};
  const bool counts = selection_counts(a, policy, row, a.forced[blockIdx.x] != 0, reinterpret_cast<uint64_t*>(shared));
  row.each([&](int32_t i) {
    const bool open = !a.forbidden || !a.forbidden[i], selected = open && a.selected[i];
    double slope = 0;
    if (selected && counts) slope = policy.dlog_selected(a.planner_logit[i]);
    if (open && !selected) slope = policy.dlog_masked(a.planner_logit[i]);
    grad.dplanner_logit[i] = float(grad.dlog_likelihood[i] * slope);
    grad.dtoken_log_prob[i] = selected ? grad.dlog_likelihood[i] : 0.0f;
  });
}

// How the candidates of a rule are ordered: by descending key, ties to the lower position. NaN ranks last and passes no
// test.
__device__ __forceinline__ double rank_key(const UnmaskArgs& a, int32_t i) {
  switch (a.rule) {
    case UnmaskRule::kPlannerBernoulli:
    case UnmaskRule::kPlannerTopK:
    case UnmaskRule::kPlannerRound:
    case UnmaskRule::kPlannerThreshold: return a.probability[i];
    case UnmaskRule::kThreshold:
    case UnmaskRule::kDynamic:
    case UnmaskRule::kFactor: return std::isnan(a.confidence[i]) ? -INFINITY : double(a.confidence[i]);
    case UnmaskRule::kFixed: {
      const double score = a.by_entropy ? -double(a.entropy[i]) : double(a.confidence[i]);
      const double key = std::isnan(score) ? -INFINITY : score;
      if (!(a.selection_temperature > 0)) return key;
      // The largest of log-probabilities with Gumbel noise: a draw without replacement.
      return rng::add_rn(rng::div_rn(key, double(a.selection_temperature)),
                         rng::gumbel(a.uniforms ? a.uniforms[i] : rng::position_uniform(a.at[i], 2)));
    }
    case UnmaskRule::kEntropy:
    case UnmaskRule::kEntropySum: return std::isnan(a.entropy[i]) ? -INFINITY : -double(a.entropy[i]);
    case UnmaskRule::kRandom: return -(a.uniforms ? a.uniforms[i] : rng::position_uniform(a.at[i], 1));
    case UnmaskRule::kLeftToRight:
    case UnmaskRule::kCoin: return 0;
  }
  return 0;
}

// How many of the `open` candidates in order are taken: one thread, `key(rank)` is the key of the rank-th. Bernoulli
// and threshold of the planner do not take by rank.
template <class Key>
__device__ int taken_by_rank(const UnmaskArgs& a, int row, int open, const Key& key, double expected) {
  int taken = 0;
  switch (a.rule) {
    case UnmaskRule::kPlannerBernoulli:
    case UnmaskRule::kPlannerThreshold:
    case UnmaskRule::kCoin: return 0;
    case UnmaskRule::kPlannerTopK:
    case UnmaskRule::kPlannerRound: return int(fmin(expected, double(open)));
    case UnmaskRule::kThreshold:
      while (taken < open && (!a.count || taken < a.count[row]) && key(taken) >= a.threshold) ++taken;
      return taken;
    case UnmaskRule::kFactor:
      while (taken < open && (taken == 0 || key(taken) >= 1 - a.factor / double(taken + 2))) ++taken;
      return taken + (a.factor_last_pair && taken + 1 == open ? 1 : 0);
    case UnmaskRule::kEntropy:
      while (taken < open && -key(taken) <= a.threshold) ++taken;
      return taken;
    case UnmaskRule::kEntropySum: {
      double before = 0;  // sum over those already taken: all but the largest of the set that the next one makes
      for (; taken < open; ++taken) {
        const double with = before - key(taken);
        if (a.sum_with_last ? !(with < a.threshold) : !(before <= a.threshold)) break;
        before = with;
      }
      return taken;
    }
    case UnmaskRule::kDynamic:
      while (taken < open && (taken < a.count[row] || key(taken) > a.threshold)) ++taken;
      return taken;
    case UnmaskRule::kFixed:
    case UnmaskRule::kRandom:
    case UnmaskRule::kLeftToRight: return a.count[row] < 0 ? 0 : a.count[row] < open ? a.count[row] : open;
  }
  return 0;
}

__global__ void __launch_bounds__(kThreads, 2) unmask_kernel(UnmaskArgs a, ScratchRow scratch, bool in_shared) {
  DULTRA_SHARED(shared);
  uint64_t* reduction = reinterpret_cast<uint64_t*>(shared);            // (8)
  int* decided = reinterpret_cast<int*>(reduction + kThreads / kWarp);  // taken, forced
  const int b = int(blockIdx.x);
  const RowRange row{a.offsets[b], a.offsets[b + 1]};
  const int n = row.end - row.begin;
  // Of candidate row.begin + i.
  double* key = scratch.key + row.begin;
  int32_t* order = scratch.order + row.begin;
  if (in_shared) {
    key = reinterpret_cast<double*>(decided + 2);
    order = reinterpret_cast<int32_t*>(key + n);
  }
  const bool planner = is_planner_rule(a.rule);
  const Policy policy{a.planner_temperature, a.probability_scale, a.reference_likelihood};
  const auto is_open = [&](int32_t i) { return !a.forbidden || !a.forbidden[i]; };

  int open = 0, drawn = 0;
  row.each([&](int32_t i) {
    a.probability[i] = planner ? policy.probability(a.planner_logit[i]) : 0.0f;
    a.log_likelihood[i] = 0;
    key[i - row.begin] = rank_key(a, i);
    bool select = false;
    if (is_open(i)) {
      ++open;
      const double p = a.probability[i];
      if (a.rule == UnmaskRule::kPlannerBernoulli)
        select = (a.uniforms ? a.uniforms[i] : rng::position_uniform(a.at[i], 0)) < p;
      if (a.rule == UnmaskRule::kPlannerThreshold) select = p > a.threshold;
      if (a.rule == UnmaskRule::kCoin)
        select = (a.uniforms ? a.uniforms[i] : rng::position_uniform(a.at[i], 0)) < a.chance[b];
    }
    a.selected[i] = select;
    drawn += select;
  });
  open = block_sum<kThreads>(open, reinterpret_cast<int*>(reduction));
  drawn = block_sum<kThreads>(drawn, reinterpret_cast<int*>(reduction));  // and all keys are written
  row.each([&](int32_t i) {
    if (!is_open(i)) return;
    const double mine = key[i - row.begin];
    int rank = 0;
    for (int32_t j = row.begin; j < row.end; ++j) {
      const double other = key[j - row.begin];
      rank += is_open(j) && (other > mine || (other == mine && j < i));
    }
    order[rank] = i;
  });
  block_sync();  // the order is complete
  if (threadIdx.x == 0) {
    double expected = a.rule == UnmaskRule::kPlannerRound ? 0.5 : 0;
    if (a.rule == UnmaskRule::kPlannerTopK || a.rule == UnmaskRule::kPlannerRound)
      for (int32_t i = row.begin; i < row.end; ++i)
        if (is_open(i)) expected += key[i - row.begin];
    decided[0] = taken_by_rank(
        a, b, open, [&](int rank) { return key[order[rank] - row.begin]; }, expected);
    decided[1] =
        !a.may_rest && open > 0 && decided[0] == 0 && drawn == 0;  // mutant: drawn == 0 -> drawn < 0 (unmask_selects)
    a.forced[b] = uint8_t(decided[1]);
  }
  block_sync();
  const int taken = decided[1] ? 1 : decided[0];
  const bool forced = decided[1] != 0;
  for (int rank = int(threadIdx.x); rank < taken; rank += kThreads) a.selected[order[rank]] = 1;
  if (!planner) return;
  block_sync();  // all selections are made
  LikelihoodArgs likelihood{};
  likelihood.planner_logit = a.planner_logit;
  likelihood.token_log_prob = a.token_log_prob;
  likelihood.forbidden = a.forbidden;
  likelihood.selected = a.selected;
  likelihood.planner_temperature = a.planner_temperature;
  likelihood.probability_scale = a.probability_scale;
  likelihood.reference_likelihood = a.reference_likelihood;
  likelihood.log_likelihood = a.log_likelihood;
  likelihood_row(likelihood, row, forced, reduction);
}

constexpr size_t kReductionBytes = sizeof(uint64_t) * kThreads / kWarp;

}  // namespace

void CudaBackend::do_unmask(const UnmaskArgs& args) {
  if (args.batch == 0) return;
  UnmaskArgs a = args;
  const int64_t b = a.batch, m = a.offsets[b];
  ArgTransfer transfer(
      *this, {in(a.offsets, b + 1), in(a.at, m), in(a.uniforms, m), in(a.planner_logit, m), in(a.confidence, m),
              in(a.entropy, m), in(a.token_log_prob, m), in(a.forbidden, m), in(a.count, b), in(a.chance, b),
              out(a.selected, m), out(a.forced, b), out(a.probability, m), out(a.log_likelihood, m)});
  const size_t row_bytes = size_t(m) * (sizeof(double) + sizeof(int32_t));
  double* key = static_cast<double*>(scratch(row_bytes));
  const bool in_shared = m <= kSharedCandidates;
  launch("unmask", stream_, unmask_kernel, dim3(unsigned(b)), kThreads,
         kReductionBytes + 2 * sizeof(int) + (in_shared ? row_bytes : 0), a,
         ScratchRow{key, reinterpret_cast<int32_t*>(key + m)}, in_shared);
  transfer.finish();
}

void CudaBackend::do_likelihood_forward(const LikelihoodArgs& args) {
  if (args.batch == 0) return;
  LikelihoodArgs a = args;
  const int64_t b = a.batch, m = a.offsets[b];
  ArgTransfer transfer(*this, {in(a.offsets, b + 1), in(a.planner_logit, m), in(a.token_log_prob, m),
                               in(a.forbidden, m), in(a.selected, m), in(a.forced, b), out(a.log_likelihood, m)});
  launch("likelihood_forward", stream_, likelihood_forward_kernel, dim3(unsigned(b)), kThreads, kReductionBytes, a);
  transfer.finish();
}

void CudaBackend::do_likelihood_backward(const LikelihoodGradArgs& args) {
  if (args.forward.batch == 0) return;
  LikelihoodGradArgs grad = args;
  LikelihoodArgs& a = grad.forward;
  const int64_t b = a.batch, m = a.offsets[b];
  ArgTransfer transfer(*this, {in(a.offsets, b + 1), in(a.planner_logit, m), in(a.token_log_prob, m),
                               in(a.forbidden, m), in(a.selected, m), in(a.forced, b), in(grad.dlog_likelihood, m),
                               out(grad.dplanner_logit, m), out(grad.dtoken_log_prob, m)});
  launch("likelihood_backward", stream_, likelihood_backward_kernel, dim3(unsigned(b)), kThreads, kReductionBytes,
         grad);
  transfer.finish();
}

}  // namespace cuda
}  // namespace dultra
