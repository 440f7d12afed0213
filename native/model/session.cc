#include "model/session.h"

#include <algorithm>
#include <optional>

namespace dultra {

namespace {

enum HeadSlot : size_t { kHidden, kCandidateHidden, kLogits, kPlannerLogits, kRowHidden };

}  // namespace

void check_cache(const KvCache& cache, const Model& model) { check_argument(cache.owner() == &model, "cache: expected one of this model"); }

std::shared_ptr<KvCache> make_cache(std::shared_ptr<const Model> model, std::vector<int32_t> offsets, const KvCacheOptions& options) {
  const ModelConfig& config = model->transformer().config();
  check_offsets(offsets, offsets.empty() ? 0 : size_t(offsets.back()), config.max_sequence_length);
  Backend& backend = model->backend();
  return std::make_shared<KvCache>(std::move(model), backend, config, std::move(offsets), options);
}

int64_t head_rows(int64_t vocab) { return std::max<int64_t>(16, (int64_t(64) << 20) / (vocab * 4)); }

void check_ids(const std::vector<int32_t>& ids, int64_t vocab) {
  for (size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= vocab)
      throw Error(ErrorCode::kInvalidArgument,
                  "ids[" + std::to_string(i) + "]: expected 0 to " + std::to_string(vocab - 1) + ", got " + std::to_string(ids[i]));
}

void check_offsets(const std::vector<int32_t>& offsets, size_t total, int64_t max_length) {
  check_argument(offsets.size() >= 2 && offsets.front() == 0 && size_t(offsets.back()) == total,
                 "offsets: expected 0 first and the number of ids last");
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const int64_t length = int64_t(offsets[i + 1]) - offsets[i];
    check_argument(length > 0 && length <= max_length,
                   "row " + std::to_string(i) + ": expected 1 to " + std::to_string(max_length) + " tokens, got " + std::to_string(length));
  }
}

std::vector<int32_t> lengths_of(const std::vector<int32_t>& offsets) {
  std::vector<int32_t> lengths;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) lengths.push_back(offsets[i + 1] - offsets[i]);
  return lengths;
}

ForwardResult forward_all(const Model& model, const std::vector<int32_t>& ids, const std::vector<int32_t>& offsets, bool logits,
                          const std::vector<float>* timestep, const std::vector<uint8_t>* candidate, const std::atomic<bool>* cancel,
                          const CachedPositions* cached) {
  const Transformer& transformer = model.transformer();
  const ModelConfig& config = transformer.config();
  Backend& backend = model.backend();
  check_ids(ids, config.embedding_size);
  const std::shared_lock<std::shared_mutex> weights(model.weights_mutex());
  std::unique_lock<std::mutex> in_use;
  std::optional<KvPass> pass;
  Packing packing;
  if (cached) {
    check_cache(cached->cache, model);
    check_argument(cached->positions.size() == ids.size(), "positions: expected one per id");
    check_argument(offsets.size() == size_t(cached->cache.rows()) + 1, "offsets: expected one row per row of the cache");
    check_argument(!timestep || cached->cache.options().planner == PlannerCache::kBlocks,
                   "planner: expected a cache made with planner \"cached\", which holds keys and values of the planner's blocks");
    in_use = std::unique_lock<std::mutex>(cached->cache.mutex());
    std::vector<int32_t> rows;
    for (int row = 0; row < cached->cache.rows(); ++row) rows.push_back(row);
    pass.emplace(cached->cache, rows, offsets, cached->positions);
    packing.offsets = offsets;
    packing.positions = cached->positions;
  } else {
    check_offsets(offsets, ids.size(), config.max_sequence_length);
    packing = Packing::from_lengths(lengths_of(offsets));
  }
  const int64_t n = int64_t(ids.size()), c = config.hidden;
  auto scratch = model.take_scratch();
  float* hidden = scratch->head.get(kHidden, n * c);
  CacheGuard guard(cached ? &cached->cache : nullptr);
  transformer.hidden_forward(hidden, ids.data(), packing, nullptr, scratch->layers, cancel, nullptr, nullptr, false, pass ? &*pass : nullptr);
  ForwardResult result;
  result.hidden = HostFloats(size_t(n * c));
  backend.download(result.hidden.data(), hidden, result.hidden.size() * 4);
  if (logits) {
    const int64_t v = config.embedding_size, rows = std::min(n, head_rows(v));
    float* chunk = scratch->head.get(kLogits, rows * v);
    result.logits = HostFloats(size_t(n * v));
    for (int64_t i = 0; i < n; i += rows) {
      check_cancelled(cancel);
      const int64_t count = std::min(rows, n - i);
      transformer.head_forward(chunk, hidden + i * c, count);
      backend.download(result.logits.data() + i * v, chunk, size_t(count * v) * 4);
    }
  }
  if (timestep) {
    check_argument(timestep->size() == size_t(packing.batch()), "planner.timestep: expected one number per row");
    check_argument(candidate && candidate->size() == ids.size(), "planner.maskIndex: expected one entry per id");
    RowSubset all;
    all.offsets = packing.offsets;
    all.positions = packing.positions;
    for (int64_t i = 0; i < n; ++i) all.rows.push_back(int32_t(i));
    float* scores = scratch->head.get(kPlannerLogits, n);
    transformer.planner_forward(scores, hidden, *timestep, candidate->data(), packing, all, scratch->layers, cancel, nullptr, nullptr, false,
                                pass ? &*pass : nullptr);
    result.planner_logits = HostFloats(size_t(n));
    backend.download(result.planner_logits.data(), scores, size_t(n) * 4);
  }
  if (pass) pass->done();
  guard.keep();
  model.give_back(std::move(scratch));
  return result;
}

Session::Session(std::shared_ptr<const Model> model, std::vector<int32_t> ids, std::vector<int32_t> offsets, std::shared_ptr<KvCache> cache)
    : model_(std::move(model)),
      ids_(std::move(ids)),
      offsets_(std::move(offsets)),
      cache_(std::move(cache)),
      workspace_(model_->backend()),
      head_workspace_(model_->backend()) {
  const ModelConfig& config = model_->transformer().config();
  check_ids(ids_, config.embedding_size);
  check_offsets(offsets_, ids_.size(), config.max_sequence_length);
  if (!cache_) return;
  check_cache(*cache_, *model_);
  check_argument(cache_->offsets() == offsets_, "cache: expected one of rows of the same lengths");
}

StepResult Session::step(const StepRequest& request) {
  std::lock_guard<std::mutex> lock(mutex_);
  const std::shared_lock<std::shared_mutex> weights(model_->weights_mutex());
  const Transformer& transformer = model_->transformer();
  const ModelConfig& config = transformer.config();
  Backend& backend = model_->backend();
  const int64_t c = config.hidden, v = config.embedding_size;
  const size_t r_count = request.rows.size();
  check_argument(request.window_ends.size() == r_count && request.row_keys.size() == r_count && request.steps.size() == r_count,
                 "step: rows, windowEnds, rowKeys and steps must have equal lengths");
  const bool given = !request.candidate_offsets.empty();
  if (given)
    check_argument(request.candidate_offsets.size() == r_count + 1 && request.candidate_offsets.front() == 0 &&
                       size_t(request.candidate_offsets.back()) == request.candidates.size(),
                   "candidates: expected offsets from 0 to the number of positions, one more than rows");
  std::unique_lock<std::mutex> in_use;
  std::optional<KvPass> pass;
  if (cache_) {
    in_use = std::unique_lock<std::mutex>(cache_->mutex());
    pass.emplace(*cache_, request.rows, request.query_offsets, request.queries);
  }
  const bool planner_rule = is_planner_rule(request.rule);
  const bool want_planner = request.planner || (request.select && planner_rule);
  if (want_planner && !config.planner.present) throw Error(ErrorCode::kNoPlanner, "this checkpoint has no planner head");
  if (request.select && is_counted_rule(request.rule)) check_argument(request.counts.size() == r_count, "step: counts must have one entry per row");

  // The rows that take part, packed: all their positions, or those that a cache leaves to compute; and the candidates among them.
  StepResult result;
  std::vector<int32_t> ids;
  std::vector<uint8_t> candidate;
  Packing packing;
  packing.offsets.push_back(0);
  RowSubset subset;
  std::vector<rng::Coordinates> at;
  result.offsets.push_back(0);
  for (size_t r = 0; r < r_count; ++r) {
    const int32_t row = request.rows[r];
    check_argument(row >= 0 && size_t(row) + 1 < offsets_.size() && (r == 0 || row > request.rows[r - 1]),
                   "step: rows must be ascending indices of the session's rows");
    const int32_t begin = offsets_[size_t(row)], length = offsets_[size_t(row) + 1] - begin;
    const int32_t end = request.window_ends[r];
    check_argument(end >= 0 && end <= length, "step: windowEnds must lie inside the row");
    const int32_t *next = nullptr, *last = nullptr;
    if (given) {
      check_argument(
          request.candidate_offsets[r] <= request.candidate_offsets[r + 1] && size_t(request.candidate_offsets[r + 1]) <= request.candidates.size(),
          "candidates: expected ascending offsets");
      next = request.candidates.data() + request.candidate_offsets[r];
      last = request.candidates.data() + request.candidate_offsets[r + 1];
    }
    int32_t masks = 0;
    for (int32_t i = 0; i < length; ++i) masks += ids_[size_t(begin + i)] == config.mask_token;
    const int32_t fresh = pass ? request.query_offsets[r + 1] - request.query_offsets[r] : length;
    for (int32_t f = 0; f < fresh; ++f) {
      const int32_t i = pass ? request.queries[size_t(request.query_offsets[r] + f)] : f;
      const int32_t id = ids_[size_t(begin + i)];
      const bool is_candidate = given ? next != last && *next == i : id == config.mask_token && i < end;
      if (given && is_candidate) ++next;
      if (is_candidate) {
        subset.rows.push_back(int32_t(ids.size()));
        subset.positions.push_back(i);
        at.push_back({request.seed, request.row_keys[r], request.steps[r], uint32_t(i)});
      }
      ids.push_back(id);
      candidate.push_back(is_candidate);
      packing.positions.push_back(i);
    }
    check_argument(next == last, "candidates: expected ascending positions out of those that row " + std::to_string(row) + " computes");
    packing.offsets.push_back(int32_t(ids.size()));
    result.offsets.push_back(int32_t(subset.rows.size()));
    result.timesteps.push_back(1.0f - float(masks) / float(length));
  }
  subset.offsets = result.offsets;
  result.positions = subset.positions;
  const int64_t n = int64_t(ids.size()), m = subset.size();
  const size_t count = size_t(m);
  result.tokens.resize(count);
  result.log_probs.resize(count);
  result.confidences.resize(count);
  result.entropies.resize(count);
  result.probabilities.resize(count);
  result.log_likelihoods.resize(count);
  result.selected.resize(count);
  result.forced.resize(r_count);
  if (m == 0 && !pass) return result;
  check_argument(request.token_uniforms.empty() || request.token_uniforms.size() == count * size_t(v),
                 "uniforms.token: expected candidates x embeddingSize numbers");
  check_argument(request.position_uniforms.empty() || request.position_uniforms.size() == count,
                 "uniforms.position: expected one number per candidate");

  // With a planner all rows' states are needed (its keys and values); without, the last block runs on the candidates alone.
  const KvPass* kv = pass ? &*pass : nullptr;
  CacheGuard guard(cache_.get());
  const Array candidate_hidden = head_workspace_.operands(kCandidateHidden, m * c);
  if (want_planner) {
    float* hidden = head_workspace_.get(kHidden, n * c);
    transformer.hidden_forward(hidden, ids.data(), packing, nullptr, workspace_, &cancelled_, nullptr, nullptr, false, kv);
    backend.gather_rows(candidate_hidden, hidden, subset.rows.data(), m, c);
    float* scores = head_workspace_.get(kPlannerLogits, m);
    check_argument(!pass || cache_->options().planner != PlannerCache::kNone, "step: the planner needs a cache that was made for it");
    if (pass && cache_->options().planner == PlannerCache::kHidden) {
      const WholeRows whole(*pass, subset);
      float* states = whole.gather(backend, hidden, head_workspace_.get(kRowHidden, whole.packing.tokens() * c), c);
      transformer.planner_forward(scores, states, result.timesteps, whole.is_candidate.data(), whole.packing, whole.subset, workspace_, &cancelled_);
    } else {
      transformer.planner_forward(scores, hidden, result.timesteps, candidate.data(), packing, subset, workspace_, &cancelled_, nullptr, nullptr,
                                  false, kv);
    }
    result.planner_logits.resize(count);
    backend.download(result.planner_logits.data(), scores, count * 4);
  } else {
    transformer.hidden_forward(candidate_hidden, ids.data(), packing, &subset, workspace_, &cancelled_, nullptr, nullptr, false, kv);
  }
  if (pass) pass->done();
  guard.keep();
  if (m == 0) return result;

  std::vector<float> max_probs(count);
  std::vector<uint8_t> finite(count);
  const int64_t rows = std::min(m, head_rows(v));
  float* logits = head_workspace_.get(kLogits, rows * v);
  for (int64_t i = 0; i < m; i += rows) {
    check_cancelled(&cancelled_);
    const int64_t part = std::min(rows, m - i);
    transformer.head_forward(logits, candidate_hidden + i * c, part);
    SampleArgs sample{};
    sample.logits = logits;
    sample.rows = part;
    sample.vocab = v;
    sample.temperature = request.temperature;
    sample.excluded_token = request.exclude_mask ? config.mask_token : -1;
    sample.at = at.data() + i;
    sample.uniforms = request.token_uniforms.empty() ? nullptr : request.token_uniforms.data() + i * v;
    sample.tempered_log_prob = request.tempered_log_prob;
    sample.token = result.tokens.data() + i;
    sample.log_prob = result.log_probs.data() + i;
    sample.confidence = result.confidences.data() + i;
    sample.max_prob = max_probs.data() + i;
    sample.entropy = result.entropies.data() + i;
    sample.finite = finite.data() + i;
    backend.sample_forward(sample);
  }
  for (size_t r = 0; r < r_count; ++r)
    for (int32_t i = result.offsets[r]; i < result.offsets[r + 1]; ++i)
      if (!finite[size_t(i)])
        throw Error(ErrorCode::kNonFinite, "the model produced a NaN or infinite logit in row " + std::to_string(request.rows[r]) + " at position " +
                                               std::to_string(result.positions[size_t(i)]));
  for (size_t i = 0; i < result.planner_logits.size(); ++i)
    if (!(result.planner_logits[i] - result.planner_logits[i] == 0.0f))
      throw Error(ErrorCode::kNonFinite, "the planner produced a NaN or infinite logit at position " + std::to_string(result.positions[i]));
  if (!request.select) return result;

  UnmaskArgs unmask{};
  unmask.rule = request.rule;
  unmask.batch = int(r_count);
  unmask.offsets = result.offsets.data();
  unmask.at = at.data();
  unmask.uniforms = request.position_uniforms.empty() ? nullptr : request.position_uniforms.data();
  unmask.planner_logit = planner_rule ? result.planner_logits.data() : nullptr;
  std::vector<float> certainty;
  if (request.by_entropy)
    for (float entropy : result.entropies) certainty.push_back(-entropy);
  unmask.confidence = request.by_entropy ? certainty.data() : result.confidences.data();
  unmask.entropy = result.entropies.data();
  unmask.token_log_prob = result.log_probs.data();
  unmask.planner_temperature = request.planner_temperature;
  unmask.probability_scale = request.probability_scale;
  unmask.threshold = request.threshold;
  unmask.factor = request.factor;
  unmask.factor_last_pair = request.factor_last_pair;
  unmask.count = request.counts.empty() ? nullptr : request.counts.data();
  unmask.reference_likelihood = request.reference_likelihood;
  unmask.selected = result.selected.data();
  unmask.forced = result.forced.data();
  unmask.probability = result.probabilities.data();
  unmask.log_likelihood = result.log_likelihoods.data();
  backend.unmask(unmask);
  for (size_t r = 0; r < r_count; ++r)
    for (int32_t i = result.offsets[r]; i < result.offsets[r + 1]; ++i)
      if (result.selected[size_t(i)]) ids_[size_t(offsets_[size_t(request.rows[r])] + result.positions[size_t(i)])] = result.tokens[size_t(i)];
  return result;
}

void Session::write(int row, const std::vector<int32_t>& positions, const std::vector<int32_t>& tokens) {
  std::lock_guard<std::mutex> lock(mutex_);
  check_argument(row >= 0 && size_t(row) + 1 < offsets_.size(), "row: expected an index of the session's rows, got " + std::to_string(row));
  check_argument(positions.size() == tokens.size(), "write: positions and tokens must have equal lengths");
  const int32_t begin = offsets_[size_t(row)], length = offsets_[size_t(row) + 1] - begin;
  for (int32_t p : positions)
    check_argument(p >= 0 && p < length, "positions: expected 0 to " + std::to_string(length - 1) + ", got " + std::to_string(p));
  check_ids(tokens, model_->transformer().config().embedding_size);
  for (size_t i = 0; i < positions.size(); ++i) ids_[size_t(begin + positions[i])] = tokens[i];
}

}  // namespace dultra
