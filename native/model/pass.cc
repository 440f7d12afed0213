#include "model/pass.h"

namespace dultra {

FullRows::FullRows(const KvPass& pass, const RowSubset& of_pass) : pass_(pass) {
  std::vector<int32_t> lengths, first_blocks;
  auto next = pass.slots().begin();
  for (const KvRange& row : pass.rows()) {
    lengths.push_back(row.length);
    if (row.first_block > 0) first_blocks.push_back(row.first_block);
    for (int32_t i = 0; i < row.length; ++i) {
      slots.push_back(row.begin + i);
      if (next == pass.slots().end() || *next != slots.back()) continue;
      new_rows.push_back(int32_t(slots.size()) - 1);
      ++next;
    }
  }
  packing = Packing::from_lengths(lengths, std::move(first_blocks));
  is_candidate.resize(slots.size());
  candidates.offsets = of_pass.offsets.values();
  candidates.positions = of_pass.positions.values();
  candidates.max_queries = of_pass.max_queries;
  for (size_t r = 0; r < lengths.size(); ++r)
    for (int32_t i = of_pass.offsets[r]; i < of_pass.offsets[r + 1]; ++i) {
      // By its place in the pass: right for candidates that only pad, too.
      const int32_t at = new_rows[size_t(of_pass.rows[size_t(i)])];
      candidates.rows.push_back(at);
      is_candidate[size_t(at)] = 1;
    }
}

float* FullRows::gather(Backend& backend, const float* new_states, float* states, int64_t c) const {
  float* cached = pass_.cache().hidden();
  backend.store_rows(cached, DType::kF32, new_states, pass_.slots().data(), int64_t(pass_.slots().size()), c);
  backend.gather_rows(states, cached, slots.data(), packing.tokens(), c);
  return states;
}

Pass::Pass(const std::vector<int32_t>& offsets, std::vector<int32_t> first_blocks)
    : packing(Packing::from_lengths(lengths_of(offsets), std::move(first_blocks))) {}

Pass::Pass(const Model& model, KvCache& from, const std::vector<KvRange>& rows, const std::vector<int32_t>& offsets,
           const std::vector<int32_t>& positions, bool planner) {
  check_argument(&from.model() == &model, "cache: expected one of this model");
  check_argument(!planner || from.options().planner != PlannerCache::kNone,
                 "cache: the planner needs a cache that was made for it");
  cache.emplace(from, rows, offsets, positions, planner);
  packing.offsets = offsets;
  packing.positions = positions;
}

void Pass::prepare_planner(const ModelConfig& config, const std::vector<float>& timestep, const uint8_t* is_candidate) {
  if (cache && cache->cache().options().planner == PlannerCache::kHidden) {
    full_.emplace(*cache, candidates);
    is_candidate = full_->is_candidate.data();
  }
  const BlockTokens tokens = planner_tokens();
  planner_inputs_ = planner_inputs(config, timestep, is_candidate, tokens.packing, *tokens.subset);
}

BlockTokens Pass::planner_tokens() const {
  if (full_) return {full_->packing, &full_->candidates};
  return {packing, &candidates};
}

ForwardContext Pass::context(const Model& model, Workspace& workspace, const std::atomic<bool>* cancel) const {
  return {model.config(), model.backend(), workspace, cancel, nullptr, false, cache ? &*cache : nullptr};
}

namespace {

// Full rows are computed as if there were no cache.
ForwardContext without_cache(ForwardContext context) {
  context.cache = nullptr;
  return context;
}

}  // namespace

void Pass::planner_logits(const ForwardContext& context, const Weights& weights, float* logit, const float* hidden,
                          float* states, PlannerTape* tape) const {
  if (!full_) return planner_forward(context, weights.planner, planner_tokens(), planner_inputs_, logit, hidden, tape);
  full_->gather(context.backend, hidden, states, context.config.hidden);
  planner_forward(without_cache(context), weights.planner, planner_tokens(), planner_inputs_, logit, states, tape);
}

void Pass::planner_backward(const BackwardContext& context, const Weights& weights, const std::vector<float>& dlogit,
                            float* dhidden, float* dstates, const PlannerTape& tape, bool trains) const {
  if (!full_)
    return dultra::planner_backward(context, weights.planner, planner_tokens(), dlogit, dhidden, tape, trains);
  const ForwardContext forward = without_cache(context.forward);
  const BackwardContext full{forward, context.workspace, context.parameters, context.tape_workspace,
                             context.recompute_slot};
  const int64_t c = context.config().hidden;
  if (dhidden) context.backend().fill_zero(dstates, full_->packing.tokens() * c);
  dultra::planner_backward(full, weights.planner, planner_tokens(), dlogit, dhidden ? dstates : nullptr, tape, trains);
  // Cached states are constants, as cached keys and values are. dhidden is 0 so far.
  if (dhidden) context.backend().gather_rows(dhidden, dstates, full_->new_rows.data(), packing.tokens(), c);
}

void Pass::lay_out(ExchangeLayout& layout) {
  const auto put = [&layout](auto&... arrays) { (layout.put(arrays), ...); };
  if (cache) {
    packing.cache_offsets = cache->expand(packing.offsets.values());
    candidates.cache_offsets = cache->expand(candidates.offsets.values());
    if (shifted_) shifted_->cache_offsets = candidates.cache_offsets;
  }
  put(packing.offsets, packing.positions, packing.cache_offsets, packing.first_blocks, candidates.offsets,
      candidates.rows, candidates.positions, candidates.cache_offsets);
  if (shifted_) put(shifted_->offsets, shifted_->rows, shifted_->positions, shifted_->cache_offsets);
  put(planner_inputs_.features, planner_inputs_.time_index, planner_inputs_.mask_index, planner_inputs_.groups,
      planner_inputs_.subset_groups);
  if (cache) cache->lay_out(layout);
  if (full_)
    put(full_->packing.offsets, full_->packing.positions, full_->packing.first_blocks, full_->candidates.offsets,
        full_->candidates.rows, full_->candidates.positions, full_->slots);
}

}  // namespace dultra
