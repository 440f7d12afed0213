#include "model/forward.h"

#include <algorithm>
#include <memory>

namespace dultra {

namespace {

enum HeadSlot : size_t { kHidden, kLogits, kPlannerLogits };

std::unique_ptr<Pass> make_pass(const Model& model, const ForwardRequest& request) {
  if (!request.cache) {
    check_offsets(request.offsets, request.ids.size(), model.config().max_sequence_length);
    check_argument(request.positions.empty(), "positions: expected together with a cache");
    check_first_blocks(request.first_blocks, request.offsets.size() - 1, model.config().block_length);
    return std::make_unique<Pass>(request.offsets, request.first_blocks);
  }
  check_argument(request.first_blocks.empty(), "firstBlocks: expected none with a cache, which has its own");
  KvCache& cache = *request.cache;
  check_argument(request.positions.size() == request.ids.size(), "positions: expected one per id");
  check_argument(request.offsets.size() == size_t(cache.rows()) + 1, "offsets: expected one row per row of the cache");
  check_argument(!request.planner || cache.options().planner == PlannerCache::kBlocks,
                 "planner: expected a cache made with planner \"cached\", which holds keys and values of the planner's "
                 "blocks");
  return std::make_unique<Pass>(model, cache, cache.ranges(ascending(cache.rows())), request.offsets, request.positions,
                                request.planner);
}

HostFloats planner_logits(const ForwardContext& context, const Weights& weights, const ForwardRequest& request,
                          Pass& pass, const float* hidden, float* logit) {
  if (!context.config.planner.present) throw Error(ErrorCode::kNoPlanner, "this checkpoint has no planner head");
  check_argument(request.timestep.size() == size_t(pass.packing.batch()),
                 "planner.timestep: expected one number per row");
  check_argument(request.mask_index.size() == request.ids.size(), "planner.maskIndex: expected one entry per id");
  pass.candidates = RowSubset::all(pass.packing);
  pass.prepare_planner(context.config, request.timestep, request.mask_index.data());
  pass.planner_logits(context, weights, logit, hidden, nullptr, nullptr);
  HostFloats out(request.ids.size());
  context.backend.download(out.data(), logit, out.size() * 4);
  return out;
}

}  // namespace

ForwardResult run_forward(const Model& model, const ForwardRequest& request, const std::atomic<bool>* cancel) {
  const ModelConfig& config = model.config();
  Backend& backend = model.backend();
  check_ids(request.ids, config.embedding_size);
  const std::shared_lock<WeightsMutex> lock(model.weights_mutex());
  CacheUse cache_use(request.cache.get());
  const std::unique_ptr<Pass> pass = make_pass(model, request);
  const int64_t n = int64_t(request.ids.size()), c = config.hidden, v = config.embedding_size;
  const auto scratch = model.borrow_scratch();
  const ForwardContext context = pass->context(model, scratch->layers, cancel);

  float* hidden = scratch->head.get(kHidden, n * c);
  cache_use.begin(pass->cache);
  hidden_forward(context, model.weights(), {pass->packing}, request.ids.data(), hidden, nullptr);
  ForwardResult result;
  result.hidden = HostFloats(size_t(n * c));
  backend.download(result.hidden.data(), hidden, result.hidden.size() * 4);
  if (request.logits) {
    result.logits = HostFloats(size_t(n * v));
    for_head_chunks(context, model.weights(), hidden, n, scratch->head.get(kLogits, std::min(n, head_rows(v)) * v),
                    [&](int64_t first, int64_t count, float* logits) {
                      backend.download(result.logits.data() + first * v, logits, size_t(count * v) * 4);
                    });
  }
  if (request.planner)
    result.planner_logits =
        planner_logits(context, model.weights(), request, *pass, hidden, scratch->head.get(kPlannerLogits, n));
  cache_use.done(pass->cache);
  return result;
}

}  // namespace dultra
