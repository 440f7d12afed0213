#include "model/session.h"

#include <algorithm>
#include <cstring>
#include <optional>

namespace dultra {

namespace {

enum HeadSlot : size_t { kHidden, kCandidateHidden, kLogits, kPlannerLogits, kRowHidden, kMaxProbs };

// Few numbers of candidates, so that few recordings serve a generation: powers of two, and multiples of the last one.
constexpr int64_t kLeastCandidates = 8, kCandidatesApart = 64;
int64_t rounded_candidates(int64_t m) {
  int64_t unit = kLeastCandidates;
  while (unit < m && unit < kCandidatesApart) unit *= 2;
  return (m + unit - 1) / unit * unit;
}

int32_t longest(const std::vector<int32_t>& offsets) {
  int32_t most = 0;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) most = std::max(most, offsets[i + 1] - offsets[i]);
  return most;
}

int32_t sequences(const std::vector<int32_t>& offsets) {
  int32_t count = 0;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) count += offsets[i + 1] > offsets[i];
  return count;
}

template <class T>
std::vector<T> numbers(const T* from, size_t count) {
  return count ? std::vector<T>(from, from + count) : std::vector<T>();
}

}  // namespace

void check_cache(const KvCache& cache, const Model& model) {
  check_argument(cache.owner() == &model, "cache: expected one of this model");
}

std::shared_ptr<KvCache> make_cache(std::shared_ptr<const Model> model, std::vector<int32_t> offsets,
                                    const KvCacheOptions& options) {
  const ModelConfig& config = model->transformer().config();
  check_offsets(offsets, offsets.empty() ? 0 : size_t(offsets.back()), config.max_sequence_length);
  Backend& backend = model->backend();
  return std::make_shared<KvCache>(std::move(model), backend, config, std::move(offsets), options);
}

int64_t head_rows(int64_t vocab) { return std::max<int64_t>(16, (int64_t(64) << 20) / (vocab * 4)); }

void check_ids(const std::vector<int32_t>& ids, int64_t vocab) {
  for (size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= vocab)
      throw Error(ErrorCode::kInvalidArgument, "ids[" + std::to_string(i) + "]: expected 0 to " +
                                                   std::to_string(vocab - 1) + ", got " + std::to_string(ids[i]));
}

void check_offsets(const std::vector<int32_t>& offsets, size_t total, int64_t max_length) {
  check_argument(offsets.size() >= 2 && offsets.front() == 0 && size_t(offsets.back()) == total,
                 "offsets: expected 0 first and the number of ids last");
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const int64_t length = int64_t(offsets[i + 1]) - offsets[i];
    check_argument(length > 0 && length <= max_length, "row " + std::to_string(i) + ": expected 1 to " +
                                                           std::to_string(max_length) + " tokens, got " +
                                                           std::to_string(length));
  }
}

std::vector<int32_t> lengths_of(const std::vector<int32_t>& offsets) {
  std::vector<int32_t> lengths;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) lengths.push_back(offsets[i + 1] - offsets[i]);
  return lengths;
}

ForwardResult forward_all(const Model& model, const std::vector<int32_t>& ids, const std::vector<int32_t>& offsets,
                          bool logits, const std::vector<float>* timestep, const std::vector<uint8_t>* candidate,
                          const std::atomic<bool>* cancel, const CachedPositions* cached) {
  const Transformer& transformer = model.transformer();
  const ModelConfig& config = transformer.config();
  Backend& backend = model.backend();
  check_ids(ids, config.embedding_size);
  const std::shared_lock<WeightsMutex> weights(model.weights_mutex());
  std::unique_lock<std::mutex> in_use;
  std::optional<KvPass> pass;
  Packing packing;
  if (cached) {
    check_cache(cached->cache, model);
    check_argument(cached->positions.size() == ids.size(), "positions: expected one per id");
    check_argument(offsets.size() == size_t(cached->cache.rows()) + 1,
                   "offsets: expected one row per row of the cache");
    check_argument(
        !timestep || cached->cache.options().planner == PlannerCache::kBlocks,
        "planner: expected a cache made with planner \"cached\", which holds keys and values of the planner's blocks");
    in_use = std::unique_lock<std::mutex>(cached->cache.mutex());
    std::vector<int32_t> rows;
    for (int row = 0; row < cached->cache.rows(); ++row) rows.push_back(row);
    pass.emplace(cached->cache, rows, offsets, cached->positions, timestep != nullptr);
    packing.offsets = offsets;
    packing.positions = cached->positions;
  } else {
    check_offsets(offsets, ids.size(), config.max_sequence_length);
    packing = Packing::from_lengths(lengths_of(offsets));
  }
  const int64_t n = int64_t(ids.size()), c = config.hidden;
  const auto scratch = model.borrow_scratch();
  float* hidden = scratch->head.get(kHidden, n * c);
  CacheGuard guard(cached ? &cached->cache : nullptr);
  transformer.hidden_forward(hidden, ids.data(), packing, nullptr, scratch->layers, cancel, nullptr, nullptr, false,
                             pass ? &*pass : nullptr);
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
    transformer.planner_forward(scores, hidden, transformer.planner_inputs(*timestep, candidate->data(), packing, all),
                                packing, all, scratch->layers, cancel, nullptr, nullptr, false,
                                pass ? &*pass : nullptr);
    result.planner_logits = HostFloats(size_t(n));
    backend.download(result.planner_logits.data(), scores, size_t(n) * 4);
  }
  if (pass) pass->done();
  guard.keep();
  return result;
}

Session::Session(std::shared_ptr<const Model> model, std::vector<int32_t> ids, std::vector<int32_t> offsets,
                 std::shared_ptr<KvCache> cache)
    : model_(std::move(model)), ids_(std::move(ids)), offsets_(std::move(offsets)), cache_(std::move(cache)) {
  const ModelConfig& config = model_->transformer().config();
  check_ids(ids_, config.embedding_size);
  check_offsets(offsets_, ids_.size(), config.max_sequence_length);
  if (cache_) {
    check_cache(*cache_, *model_);
    check_argument(cache_->offsets() == offsets_, "cache: expected one of rows of the same lengths");
  }
  model_->count_session(1);
}

Session::~Session() { model_->count_session(-1); }

// One step: what its operations read and write. Until it is laid out in an Exchange all arrays are the host's own.
struct Session::Step {
  explicit Step(const StepRequest& what) : request(what) {}

  const StepRequest& request;
  bool planner = false;  // planner logits wanted
  StepResult result;

  // Arrays that the operations read. R rows take part, with N positions that are computed, and M candidates among them;
  // the subset's may be more, filled up from `result.offsets.back()` on.
  std::optional<KvPass> pass;
  std::optional<WholeRows> whole;  // what the planner sees, with PlannerCache::kHidden
  Packing packing;
  RowSubset subset;
  PlannerInputs planner_inputs;
  std::vector<uint8_t> is_candidate;  // (N)
  HostArray<rng::Coordinates> at;     // (M)
  HostArray<uint8_t> forbidden;       // (M) those that only fill up; empty if there are none
  HostArray<int32_t> counts;          // (R) or empty
  std::vector<int32_t> first_ids;     // (N)

  // Places in the exchange: ids that the step changes (N), and what it writes, (M) each but the last two (R).
  int32_t* ids = nullptr;
  int32_t* tokens = nullptr;
  float *log_probs = nullptr, *confidences = nullptr, *entropies = nullptr, *planner_logits = nullptr,
        *probabilities = nullptr, *log_likelihoods = nullptr;
  uint8_t *finite = nullptr, *selected = nullptr, *forced = nullptr;
  int32_t* remaining = nullptr;
  size_t ids_begin = 0, ids_end = 0, end = 0;  // in bytes: inputs and ids go, ids and results come back

  size_t rows() const { return request.rows.size(); }
  size_t candidates() const { return size_t(result.offsets.back()); }
  // Draws that a test recorded: they stay where they are, and nothing is repeated.
  bool is_replay() const { return !request.token_uniforms.empty() || !request.position_uniforms.empty(); }

  void lay_out(ExchangeLayout& to) {
    const auto put = [&to](auto&... arrays) { (to.put(arrays), ...); };
    put(packing.offsets, packing.positions, packing.cache_offsets, subset.offsets, subset.rows, subset.positions,
        subset.cache_offsets);
    put(planner_inputs.features, planner_inputs.time_index, planner_inputs.mask_index, planner_inputs.groups,
        planner_inputs.subset_groups);
    put(at, forbidden, counts);
    if (pass) put(pass->slots(), pass->key_offsets());
    if (whole)
      put(whole->packing.offsets, whole->packing.positions, whole->subset.offsets, whole->subset.rows,
          whole->subset.positions, whole->slots);
    ids_begin = to.bytes();
    ids = to.copy(first_ids);
    ids_end = to.bytes();
    const size_t m = size_t(subset.size());
    tokens = to.room<int32_t>(m);
    log_probs = to.room<float>(m);
    confidences = to.room<float>(m);
    entropies = to.room<float>(m);
    planner_logits = to.room<float>(planner ? m : 0);
    finite = to.room<uint8_t>(m);
    probabilities = to.room<float>(request.select ? m : 0);
    log_likelihoods = to.room<float>(request.select ? m : 0);
    selected = to.room<uint8_t>(request.select ? m : 0);
    forced = to.room<uint8_t>(request.select ? rows() : 0);
    remaining = to.room<int32_t>(request.select ? rows() : 0);
    end = to.bytes();
  }

  void take_results() {
    const size_t m = candidates();
    result.tokens = numbers(tokens, m);
    result.log_probs = numbers(log_probs, m);
    result.confidences = numbers(confidences, m);
    result.entropies = numbers(entropies, m);
    if (planner) result.planner_logits = numbers(planner_logits, m);
    for (size_t r = 0; r < rows(); ++r)
      for (int32_t i = result.offsets[r]; i < result.offsets[r + 1]; ++i)
        if (!finite[i])
          throw Error(ErrorCode::kNonFinite, "the model produced a NaN or infinite logit in row " +
                                                 std::to_string(request.rows[r]) + " at position " +
                                                 std::to_string(result.positions[size_t(i)]));
    for (size_t i = 0; i < result.planner_logits.size(); ++i)
      if (!(result.planner_logits[i] - result.planner_logits[i] == 0.0f))
        throw Error(ErrorCode::kNonFinite,
                    "the planner produced a NaN or infinite logit at position " + std::to_string(result.positions[i]));
    if (!request.select || m == 0) {
      decide_nothing();
      return;
    }
    result.probabilities = numbers(probabilities, m);
    result.log_likelihoods = numbers(log_likelihoods, m);
    result.selected = numbers(selected, m);
    result.forced = numbers(forced, rows());
    result.remaining = numbers(remaining, rows());
  }
  void decide_nothing() {
    result.probabilities.resize(candidates());
    result.log_likelihoods.resize(candidates());
    result.selected.resize(candidates());
    result.forced.resize(rows());
    for (size_t r = 0; r < rows(); ++r) result.remaining.push_back(result.offsets[r + 1] - result.offsets[r]);
  }
};

void Session::prepare(Step& step) const {
  const StepRequest& request = step.request;
  const ModelConfig& config = model_->transformer().config();
  const size_t r_count = request.rows.size();
  check_argument(
      request.window_ends.size() == r_count && request.row_keys.size() == r_count && request.steps.size() == r_count,
      "step: rows, windowEnds, rowKeys and steps must have equal lengths");
  const bool given = !request.candidate_offsets.empty();
  if (given)
    check_argument(request.candidate_offsets.size() == r_count + 1 && request.candidate_offsets.front() == 0 &&
                       size_t(request.candidate_offsets.back()) == request.candidates.size(),
                   "candidates: expected offsets from 0 to the number of positions, one more than rows");
  step.planner = request.planner || (request.select && is_planner_rule(request.rule));
  if (step.planner && !config.planner.present)
    throw Error(ErrorCode::kNoPlanner, "this checkpoint has no planner head");
  if (step.planner && cache_)
    check_argument(cache_->options().planner != PlannerCache::kNone,
                   "step: the planner needs a cache that was made for it");
  if (cache_) step.pass.emplace(*cache_, request.rows, request.query_offsets, request.queries, step.planner);
  const std::optional<KvPass>& pass = step.pass;
  if (request.select && is_counted_rule(request.rule))
    check_argument(request.counts.size() == r_count, "step: counts must have one entry per row");
  step.counts = request.counts;

  // The rows that take part, packed: all their positions, or those that a cache leaves to compute; and the candidates
  // among them.
  StepResult& result = step.result;
  std::vector<int32_t> offsets{0}, positions, subset_rows;
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
      check_argument(request.candidate_offsets[r] <= request.candidate_offsets[r + 1] &&
                         size_t(request.candidate_offsets[r + 1]) <= request.candidates.size(),
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
        subset_rows.push_back(int32_t(step.first_ids.size()));
        result.positions.push_back(i);
        at.push_back({request.seed, request.row_keys[r], request.steps[r], uint32_t(i)});
      }
      step.first_ids.push_back(id);
      step.is_candidate.push_back(is_candidate);
      positions.push_back(i);
    }
    check_argument(next == last, "candidates: expected ascending positions out of those that row " +
                                     std::to_string(row) + " computes");
    offsets.push_back(int32_t(step.first_ids.size()));
    result.offsets.push_back(int32_t(subset_rows.size()));
    result.timesteps.push_back(1.0f - float(masks) / float(length));
  }
  const size_t m = subset_rows.size();
  check_argument(request.token_uniforms.empty() || request.token_uniforms.size() == m * size_t(config.embedding_size) ||
                     (m == 0 && !pass),
                 "uniforms.token: expected candidates x embeddingSize numbers");
  check_argument(request.position_uniforms.empty() || request.position_uniforms.size() == m || (m == 0 && !pass),
                 "uniforms.position: expected one number per candidate");
  step.packing.offsets = std::move(offsets);
  step.packing.positions = std::move(positions);
  step.subset.offsets = result.offsets;
  step.subset.rows = std::move(subset_rows);
  step.subset.positions = result.positions;
  step.at = std::move(at);
}

void Session::fill_up(Step& step) {
  const int64_t m = step.subset.size(), all = rounded_candidates(m);
  RowSubset& subset = step.subset;
  const auto repeat = [all](auto& values) { values.resize(size_t(all), values.back()); };
  repeat(subset.rows.change());
  repeat(subset.positions.change());
  repeat(step.at.change());
  // They belong to the row of the candidate that they repeat; rows behind it have none.
  for (int32_t& offset : subset.offsets.change())
    if (offset == m) offset = int32_t(all);
  subset.most = int(rounded_candidates(longest(subset.offsets.values())));
  std::vector<uint8_t> forbidden(size_t(all), 1);
  std::fill_n(forbidden.begin(), m, uint8_t(0));
  step.forbidden = std::move(forbidden);
}

void Session::enqueue(Step& step, Model::Scratch& scratch) const {
  const StepRequest& request = step.request;
  const Transformer& transformer = model_->transformer();
  const ModelConfig& config = transformer.config();
  Backend& backend = model_->backend();
  const int64_t c = config.hidden, v = config.embedding_size, n = step.packing.tokens(), m = step.subset.size();
  const KvPass* pass = step.pass ? &*step.pass : nullptr;
  // With a planner all rows' states are needed (its keys and values); without, the last block runs on the candidates
  // alone.
  const Array candidate_hidden = scratch.head.operands(kCandidateHidden, m * c);
  if (step.planner) {
    float* hidden = scratch.head.get(kHidden, n * c);
    transformer.hidden_forward(hidden, step.ids, step.packing, nullptr, scratch.layers, &cancelled_, nullptr, nullptr,
                               false, pass);
    backend.gather_rows(candidate_hidden, hidden, step.subset.rows.data(), m, c);
    if (const auto& whole = step.whole) {
      float* states = whole->gather(backend, hidden, scratch.head.get(kRowHidden, whole->packing.tokens() * c), c);
      transformer.planner_forward(step.planner_logits, states, step.planner_inputs, whole->packing, whole->subset,
                                  scratch.layers, &cancelled_);
    } else {
      transformer.planner_forward(step.planner_logits, hidden, step.planner_inputs, step.packing, step.subset,
                                  scratch.layers, &cancelled_, nullptr, nullptr, false, pass);
    }
  } else {
    transformer.hidden_forward(candidate_hidden, step.ids, step.packing, &step.subset, scratch.layers, &cancelled_,
                               nullptr, nullptr, false, pass);
  }
  if (m == 0) return;

  const int64_t rows = std::min(m, head_rows(v));
  float* logits = scratch.head.get(kLogits, rows * v);
  float* max_probs = scratch.head.get(kMaxProbs, m);
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
    sample.at = step.at.data() + i;
    sample.uniforms = request.token_uniforms.empty() ? nullptr : request.token_uniforms.data() + i * v;
    sample.tempered_log_prob = request.tempered_log_prob;
    sample.token = step.tokens + i;
    sample.log_prob = step.log_probs + i;
    sample.confidence = step.confidences + i;
    sample.max_prob = max_probs + i;
    sample.entropy = step.entropies + i;
    sample.finite = step.finite + i;
    backend.sample_forward(sample);
  }
  if (!request.select) return;

  UnmaskArgs unmask{};
  unmask.rule = request.rule;
  unmask.batch = int(step.rows());
  unmask.offsets = step.subset.offsets.data();
  unmask.at = step.at.data();
  unmask.uniforms = request.position_uniforms.empty() ? nullptr : request.position_uniforms.data();
  unmask.planner_logit = step.planner_logits;
  unmask.confidence = step.confidences;
  unmask.entropy = step.entropies;
  unmask.token_log_prob = step.log_probs;
  unmask.forbidden = step.forbidden.data();
  unmask.planner_temperature = request.planner_temperature;
  unmask.probability_scale = request.probability_scale;
  unmask.threshold = request.threshold;
  unmask.factor = request.factor;
  unmask.factor_last_pair = request.factor_last_pair;
  unmask.by_entropy = request.by_entropy;
  unmask.count = step.counts.data();
  unmask.reference_likelihood = request.reference_likelihood;
  unmask.selected = step.selected;
  unmask.forced = step.forced;
  unmask.probability = step.probabilities;
  unmask.log_likelihood = step.log_likelihoods;
  unmask.token = step.tokens;
  unmask.place = step.subset.rows.data();
  unmask.ids = step.ids;
  unmask.remaining = step.remaining;
  backend.unmask(unmask);
}

// Everything that the operations are made of but the contents of the exchange. The layout follows from the numbers of
// rows, positions and candidates; a launch may depend on the longest sequence and on how many have queries, too.
std::vector<int64_t> Session::key_of(const Step& step) const {
  const StepRequest& request = step.request;
  std::vector<int64_t> key;
  const auto add = [&key](auto value) {
    int64_t bits = 0;
    static_assert(sizeof value <= sizeof bits, "a number");
    std::memcpy(&bits, &value, sizeof value);
    key.push_back(bits);
  };
  for (size_t count : {step.rows(), step.first_ids.size(), size_t(step.subset.size()), step.counts.size(),
                       step.ids_begin, step.ids_end, step.end})
    add(count);
  add(step.subset.most);
  for (const HostArray<int32_t>* offsets : {&step.packing.offsets, &step.subset.offsets})
    add(sequences(offsets->values()));
  add(longest(step.packing.offsets.values()));
  if (step.whole)
    for (int32_t size : {step.whole->packing.offsets.back(), longest(step.whole->packing.offsets.values())}) add(size);
  for (bool flag : {step.planner, request.select, request.exclude_mask, request.tempered_log_prob,
                    request.factor_last_pair, request.by_entropy, request.reference_likelihood})
    add(flag);
  add(request.rule);
  for (float scalar : {request.temperature, request.planner_temperature, request.probability_scale}) add(scalar);
  for (double scalar : {request.threshold, request.factor}) add(scalar);
  add(model_->transformer().times_written());
  if (cache_) {
    // A cache of the same shape at the same addresses is as good as the one before.
    add(cache_->options().planner);
    add(cache_->options().dtype);
    add(longest(cache_->offsets()));
    for (size_t i = 0; i < cache_->layer_count(); ++i) add(cache_->layer(i).data);
    add(cache_->hidden());
    for (int32_t offset : {cache_->rows(), cache_->offsets().back()}) add(offset);
  }
  return key;
}

StepResult Session::step(const StepRequest& request) {
  std::lock_guard<std::mutex> lock(mutex_);
  const std::shared_lock<WeightsMutex> weights(model_->weights_mutex());
  std::unique_lock<std::mutex> in_use;
  if (cache_) in_use = std::unique_lock<std::mutex>(cache_->mutex());
  Step step(request);
  prepare(step);
  if (step.candidates() == 0 && !step.pass) {
    step.decide_nothing();
    return std::move(step.result);
  }
  const auto scratch = model_->borrow_scratch();
  Exchange& exchange = *scratch->exchange;
  const bool recorded = exchange.records() && !step.is_replay();
  if (recorded && step.candidates() > 0) fill_up(step);
  if (step.planner) {
    if (step.pass && cache_->options().planner == PlannerCache::kHidden) step.whole.emplace(*step.pass, step.subset);
    step.planner_inputs = model_->transformer().planner_inputs(
        step.result.timesteps, step.whole ? step.whole->is_candidate.data() : step.is_candidate.data(),
        step.whole ? step.whole->packing : step.packing, step.whole ? step.whole->subset : step.subset);
  }
  if (step.pass) {
    step.packing.cache_offsets = step.pass->spread(step.packing.offsets.values());
    step.subset.cache_offsets = step.pass->spread(step.subset.offsets.values());
  }
  ExchangeLayout needed;
  step.lay_out(needed);
  ExchangeLayout layout(exchange.reserve(needed.bytes()));
  step.lay_out(layout);

  CacheGuard guard(cache_.get());
  check_cancelled(&cancelled_);
  exchange.send(0, step.ids_end);
  const auto operations = [&] { enqueue(step, *scratch); };
  if (step.is_replay())
    operations();
  else
    exchange.run(recorded ? key_of(step) : std::vector<int64_t>(), operations);
  if (step.candidates() > 0) exchange.receive(step.ids_begin, step.end);
  if (step.pass) step.pass->done();
  guard.keep();
  step.take_results();
  if (!request.select) return std::move(step.result);
  for (size_t r = 0; r < step.rows(); ++r) {
    int32_t* ids = &ids_[size_t(offsets_[size_t(request.rows[r])])];
    for (int32_t i = step.result.offsets[r]; i < step.result.offsets[r + 1]; ++i)
      ids[step.result.positions[size_t(i)]] = step.ids[step.subset.rows[size_t(i)]];
  }
  return std::move(step.result);
}

void Session::write(int row, const std::vector<int32_t>& positions, const std::vector<int32_t>& tokens) {
  std::lock_guard<std::mutex> lock(mutex_);
  check_argument(row >= 0 && size_t(row) + 1 < offsets_.size(),
                 "row: expected an index of the session's rows, got " + std::to_string(row));
  check_argument(positions.size() == tokens.size(), "write: positions and tokens must have equal lengths");
  const int32_t begin = offsets_[size_t(row)], length = offsets_[size_t(row) + 1] - begin;
  for (int32_t p : positions)
    check_argument(p >= 0 && p < length,
                   "positions: expected 0 to " + std::to_string(length - 1) + ", got " + std::to_string(p));
  check_ids(tokens, model_->transformer().config().embedding_size);
  for (size_t i = 0; i < positions.size(); ++i) ids_[size_t(begin + positions[i])] = tokens[i];
}

}  // namespace dultra
