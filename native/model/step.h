// One denoising step, or one step of a causal model: proposes tokens for the candidates of some rows and decides which
// to unmask. Stateless: ids come with the request.
#pragma once
#include <memory>
#include <vector>

#include "model/pass.h"

namespace dultra {

// How tokens are drawn and chosen.
struct StepRule {
  float temperature = 0;
  int32_t top_k = 0;  // 0: all
  double top_p = 1;   // 1: all
  bool top_p_first = false;
  SampleScores scores = SampleScores::kModel;
  bool tempered_log_prob = false;
  bool exclude_mask = true;
  bool planner = false;  // planner logits are wanted
  bool select = true;    // false: only propose tokens
  bool scored = false;   // of rows that only have tokens scored, StepRequest::score_tokens; selects nothing
  UnmaskRule rule = UnmaskRule::kThreshold;
  float planner_temperature = 1, probability_scale = 1;
  double threshold = 0, factor = 0;
  bool factor_last_pair = false;
  bool by_entropy = false;  // kFixed takes the lowest entropies instead of the highest confidences
  bool by_margin = false;   // the rule reads margins in place of confidences
  bool sum_with_last = false;
  float selection_temperature = 0;
  bool may_rest = false;
  bool reference_likelihood = false;
};

struct StepRequest {
  std::vector<int32_t> ids, offsets;  // (N), (R + 1): the rows that take part, laid end to end
  // Rule g is that of rows rule_offsets[g] to rule_offsets[g + 1]; of no rules the only one is that of all rows.
  std::vector<StepRule> rules;
  std::vector<int32_t> rule_offsets;
  std::vector<int32_t> window_ends;  // (R) candidates are the masked positions before it
  // (R + 1), in-row positions, ascending: candidates in place of those; or empty
  std::vector<int32_t> candidate_offsets, candidates;
  // A cache, in which row r has the range of its length from cache_begins[r] on, (R) ascending: the step computes
  // `queries` alone, (R + 1) and in-row positions, ascending. Null: all positions are computed.
  std::shared_ptr<KvCache> cache;
  std::vector<int32_t> cache_begins, query_offsets, queries;
  std::vector<int32_t> first_blocks;  // (R) as in Packing, or empty
  std::vector<uint8_t> fresh;         // (R) 1: what the cache holds in the row's range is another's; or empty
  std::vector<uint64_t> seeds;        // (R) coordinates of each row's random numbers, these three
  std::vector<uint32_t> row_keys;     // (R)
  std::vector<uint32_t> steps;        // (R)
  std::vector<int32_t> counts;        // (R) counted rules, or empty
  std::vector<double> chances;        // (R) kCoin, or empty
  // (M + 1), (P): tokens whose log-probabilities are wanted, of each candidate of rows with StepRule::scored at least
  // one and of others none; or both empty
  std::vector<int32_t> score_offsets, score_tokens;
  // (M) Of every candidate: which of the sets says what it may become (Backend::allow_tokens), -1: any token; or empty.
  std::vector<int32_t> allowed;
  std::vector<uint32_t> allowed_sets;  // (sets, ceil(V / 32))
  // Of a model whose head is a position ahead: a candidate whose position before is not computed is scored from its
  // own, as the reference's cached decoders do, in place of an error.
  bool shift_inside = false;
  std::vector<double> token_uniforms, position_uniforms;  // (M, V), (M) recorded draws, or empty

  size_t rows() const { return offsets.empty() ? 0 : offsets.size() - 1; }
  // A pass that replays recorded draws: they stay where they are, so it is not captured.
  bool is_replay() const { return !token_uniforms.empty() || !position_uniforms.empty(); }
};

// Per candidate (M), packed by offsets over the R rows of the request.
struct StepResult {
  std::vector<int32_t> offsets, positions, tokens;
  std::vector<float> log_probs, confidences, entropies, margins, planner_logits, probabilities, log_likelihoods;
  std::vector<uint8_t> selected, forced;  // forced (R)
  // margins: empty unless by_margin
  std::vector<float> scores;     // (P) log-probabilities of `score_tokens`, untempered
  std::vector<float> timesteps;  // (R) 1 - masks / row length, before the step
  // (R) -1, or where the row has a NaN or infinite logit, so that nothing else of it means anything: 2 * position of
  // the first, + 1 where it is the planner's
  std::vector<int32_t> non_finite;
};

// A candidate of a masked model is the token at its position; of a causal model, where the position's state predicts
// it, the token that follows, and random numbers are drawn at that token's position.
//
// Rows do not depend on each other: each gets the bits that it gets alone, whatever the rules of the others are.
//
// Throws INVALID_ARGUMENT, NO_PLANNER, ABORTED when `cancel` (may be null) is set, OUT_OF_MEMORY. A cache loses the
// rows of the request where it throws.
StepResult run_step(const Model& model, const StepRequest& request, const std::atomic<bool>* cancel);

}  // namespace dultra
