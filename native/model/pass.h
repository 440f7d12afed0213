// One forward pass: which tokens it computes, which keys they see, and which of them are candidates whose tokens or
// planner logits are wanted. Forward, denoising and causal steps, and scoring all make one.
#pragma once
#include <optional>
#include <vector>

#include "model/model.h"
#include "model/transformer.h"

namespace dultra {

// The rows of a pass in full, for a planner that reads the states of all their positions (PlannerCache::kHidden).
class FullRows {
 public:
  // `candidates`: among the positions that the pass computes.
  FullRows(const KvPass& pass, const RowSubset& candidates);
  // Stores the new states (F, C) in the cache and fills `states` (N, C) with those of all positions. Returns it.
  float* gather(Backend& backend, const float* new_states, float* states, int64_t c) const;

  Packing packing;                    // (N) every position of the rows
  RowSubset candidates;               // the same candidates, among all positions
  std::vector<uint8_t> is_candidate;  // (N)
  HostArray<int32_t> slots;           // (N) their places in the cache
  std::vector<int32_t> new_rows;      // (F) which of them the pass computes

 private:
  const KvPass& pass_;
};

class Pass {
 public:
  // Every position of sequences, offsets (B + 1); first_blocks as in Packing.
  explicit Pass(const std::vector<int32_t>& offsets, std::vector<int32_t> first_blocks = {});
  // Positions (N, in-row, ascending; offsets (R + 1)) of `rows` (R) of a cache that the caller has locked. Throws
  // INVALID_ARGUMENT for a cache of another model, or that lacks what the pass needs.
  Pass(const Model& model, KvCache& cache, const std::vector<KvRange>& rows, const std::vector<int32_t>& offsets,
       const std::vector<int32_t>& positions, bool planner);
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;

  Packing packing;              // (N) tokens that are computed
  RowSubset candidates;         // (M)
  std::optional<KvPass> cache;  // of a pass over a cache

  // (M) The rows from whose states the head scores the candidates: their own, or with ModelConfig::shift_logits those
  // of the positions before them; or `inside`, their own where the pass does not compute those. After `candidates` is
  // set and `find_reads` called.
  const RowSubset& reads() const { return shifted_ ? *shifted_ : candidates; }
  void find_reads(const ModelConfig& config, bool inside = false) {
    if (config.shift_logits) shifted_ = candidates.shifted_left(packing, inside);
  }

  // What the planner head sees: the pass's tokens, or with PlannerCache::kHidden its rows in full. After `candidates`
  // is set; is_candidate (N).
  void prepare_planner(const ModelConfig& config, const std::vector<float>& timestep, const uint8_t* is_candidate);
  BlockTokens planner_tokens() const;
  const FullRows* full_rows() const { return full_ ? &*full_ : nullptr; }

  // A context for this pass.
  ForwardContext context(const Model& model, Workspace& workspace, const std::atomic<bool>* cancel) const;
  // Planner logits (M) of the candidates. hidden (N, C); `states` has room for full rows' states (planner_tokens, C)
  // and is not used without them. After `prepare_planner`.
  void planner_logits(const ForwardContext& context, const Weights& weights, float* logit, const float* hidden,
                      float* states, PlannerTape* tape) const;
  // Likewise back: adds to dhidden (N, C; null: not wanted). `dstates` as `states`.
  void planner_backward(const BackwardContext& context, const Weights& weights, const std::vector<float>& dlogit,
                        float* dhidden, float* dstates, const PlannerTape& tape, bool trains) const;
  // Numbers of `states`: 0 without full rows.
  int64_t state_tokens() const { return full_ ? full_->packing.tokens() : 0; }

  // Puts the arrays that operations read in an exchange.
  void lay_out(ExchangeLayout& layout);

 private:
  std::optional<RowSubset> shifted_;
  std::optional<FullRows> full_;
  PlannerInputs planner_inputs_;
};

}  // namespace dultra
