#include "model/step.h"

#include <algorithm>
#include <string>

#include "model/trace.h"

namespace dultra {

namespace {

enum HeadSlot : size_t { kHidden, kCandidateHidden, kLogits, kFullStates };

// Few numbers of candidates, so that few captured graphs serve a generation: powers of two, then multiples of 64.
constexpr int64_t kLeastCandidates = 8, kCandidatesApart = 64;
int64_t rounded_candidates(int64_t m) {
  int64_t unit = kLeastCandidates;
  while (unit < m && unit < kCandidatesApart) unit *= 2;
  return (m + unit - 1) / unit * unit;
}

int32_t longest(const std::vector<int32_t>& offsets) {
  int32_t most = 0;
  for (int32_t length : lengths_of(offsets)) most = std::max(most, length);
  return most;
}

template <class T>
std::vector<T> numbers(const T* from, size_t count) {
  return count ? std::vector<T>(from, from + count) : std::vector<T>();
}

std::vector<int32_t> offsets_of_lists(const std::vector<int32_t>& offsets, const std::vector<int32_t>& list,
                                      size_t rows, const char* name) {
  check_argument(offsets.size() == rows + 1 && offsets.front() == 0 && size_t(offsets.back()) == list.size() &&
                     std::is_sorted(offsets.begin(), offsets.end()),
                 std::string(name) +
                     ": expected ascending offsets from 0 to the number of positions, one more than "
                     "rows");
  return offsets;
}

// A step: the pass, what sampling and unmasking read beside it, and where its results go.
class Step {
 public:
  Step(const Model& model, const StepRequest& request, const std::atomic<bool>* cancel)
      : model_(model),
        config_(model.config()),
        request_(request),
        cancel_(cancel),
        wants_planner_(request.planner || (request.select && is_planner_rule(request.rule))) {
    check();
    list_candidates();
  }

  StepResult run() {
    if (candidates() == 0 && !request_.cache) {
      decide_nothing();
      return std::move(result_);
    }
    const auto scratch = model_.borrow_scratch();
    Exchange& exchange = *scratch->exchange;
    const bool captures = exchange.records() && !request_.is_replay() && !is_tracing();
    if (captures && candidates() > 0) pad();
    pass_->find_reads(config_, request_.shift_inside);
    if (wants_planner_) pass_->prepare_planner(config_, result_.timesteps, is_candidate_.data());
    ExchangeLayout needed;
    lay_out(needed);
    ExchangeLayout layout(exchange.reserve(needed.bytes()));
    lay_out(layout);

    cache_use_->begin();
    check_cancelled(cancel_);
    exchange.send(0, inputs_end_);
    const auto operations = [&] { enqueue(*scratch); };
    if (request_.is_replay() || is_tracing())
      operations();
    else
      exchange.run(operations);
    if (candidates() > 0) exchange.receive(results_begin_, end_);
    cache_use_->done(pass_->cache);
    take_results();
    return std::move(result_);
  }

 private:
  size_t candidates() const { return size_t(result_.offsets.back()); }

  void check() {
    const size_t rows = request_.rows();
    check_ids(request_.ids, config_.embedding_size);
    if (rows > 0)
      check_offsets(request_.offsets, request_.ids.size(), config_.max_sequence_length);
    else
      check_argument(request_.ids.empty(), "offsets: expected 0 first and the number of ids last");
    check_argument(
        request_.window_ends.size() == rows && request_.row_keys.size() == rows && request_.steps.size() == rows,
        "step: offsets, windowEnds, rowKeys and steps must be of as many rows");
    for (size_t r = 0; r < rows; ++r)
      check_argument(request_.window_ends[r] >= 0 && request_.window_ends[r] <= length(r),
                     "step: windowEnds must lie inside the row");
    if (!request_.candidate_offsets.empty())
      offsets_of_lists(request_.candidate_offsets, request_.candidates, rows, "candidates");
    if (request_.select && is_counted_rule(request_.rule))
      check_argument(request_.counts.size() == rows, "step: counts must have one entry per row");
    check_argument(request_.counts.empty() || request_.counts.size() == rows,
                   "step: counts must have one entry per row, or none");
    check_argument((request_.select && request_.rule == UnmaskRule::kCoin ? rows : 0) == request_.chances.size(),
                   "step: chances must have one entry per row with rule coin, and none without");
    if (wants_planner_ && !config_.planner.present)
      throw Error(ErrorCode::kNoPlanner, "this checkpoint has no planner head");
    cache_use_.emplace(request_.cache.get());
    if (!request_.cache) {
      // A request of no rows has no offsets to take.
      check_first_blocks(request_.first_blocks, rows, config_.block_length);
      pass_.emplace(rows > 0 ? request_.offsets : std::vector<int32_t>{0}, request_.first_blocks);
      return;
    }
    check_argument(request_.first_blocks.empty(), "firstBlocks: expected none with a cache, which has its own");
    pass_.emplace(model_, *request_.cache, request_.cache_rows, request_.query_offsets, request_.queries,
                  wants_planner_);
    check_argument(request_.cache_rows.size() == rows, "step: expected one row of the cache per row");
    for (size_t r = 0; r < rows; ++r)
      check_argument(request_.cache->length(request_.cache_rows[r]) == length(r),
                     "step: rows must have the lengths of their rows in the cache");
  }

  int32_t length(size_t r) const { return request_.offsets[r + 1] - request_.offsets[r]; }

  // Whether the position is a candidate: one of those listed, whose next is at `*next`, or a mask before the window's
  // end.
  bool is_candidate(size_t r, int32_t position, int32_t id, const int32_t** next) const {
    if (request_.candidate_offsets.empty()) return id == config_.mask_token && position < request_.window_ends[r];
    const int32_t* end = request_.candidates.data() + request_.candidate_offsets[r + 1];
    if (*next == end || **next != position) return false;
    ++*next;
    return true;
  }

  // Adds position `position` of row r, number n of the pass, to the candidates.
  void add(size_t r, int32_t n, int32_t position, std::vector<int32_t>* rows) {
    rows->push_back(n);
    result_.positions.push_back(position);
    const int32_t drawn = config_.mask == MaskKind::kCausal ? position + 1 : position;
    at_.push_back({request_.seed, request_.row_keys[r], request_.steps[r], uint32_t(drawn)});
  }

  // The ids that the pass reads, and the candidates among its positions.
  void list_candidates() {
    const std::vector<int32_t>&offsets = pass_->packing.offsets.values(),
          &positions = pass_->packing.positions.values();
    std::vector<int32_t> rows;
    result_.offsets.push_back(0);
    for (size_t r = 0; r < request_.rows(); ++r) {
      const int32_t* ids = request_.ids.data() + request_.offsets[r];
      const int32_t* next = request_.candidates.data();
      if (!request_.candidate_offsets.empty()) next += request_.candidate_offsets[r];
      for (int32_t n = offsets[r]; n < offsets[r + 1]; ++n) {
        const int32_t position = positions[size_t(n)], id = ids[position];
        ids_in_.push_back(id);
        is_candidate_.push_back(is_candidate(r, position, id, &next));
        if (!is_candidate_.back()) continue;
        add(r, n, position, &rows);
      }
      // The position behind the last that is computed needs no state of its own where the one before it scores it.
      const int32_t behind = offsets[r + 1] > offsets[r] ? positions[size_t(offsets[r + 1]) - 1] + 1 : 0;
      if (config_.shift_logits && !request_.candidate_offsets.empty() && behind > 0 && behind < length(r) &&
          is_candidate(r, behind, ids[behind], &next))
        add(r, offsets[r + 1], behind, &rows);
      if (!request_.candidate_offsets.empty())
        check_argument(next == request_.candidates.data() + request_.candidate_offsets[r + 1],
                       "candidates: expected ascending positions that row " + std::to_string(r) + " computes" +
                           (config_.shift_logits ? ", and the one behind them" : ""));
      result_.offsets.push_back(int32_t(rows.size()));
      const auto masks = std::count(ids, ids + length(r), config_.mask_token);
      result_.timesteps.push_back(1.0f - float(masks) / float(length(r)));
    }
    const size_t m = rows.size();
    check_argument(request_.token_uniforms.empty() ||
                       request_.token_uniforms.size() == m * size_t(config_.embedding_size) ||
                       (m == 0 && !request_.cache),
                   "uniforms.token: expected candidates x embeddingSize numbers");
    check_argument(
        request_.position_uniforms.empty() || request_.position_uniforms.size() == m || (m == 0 && !request_.cache),
        "uniforms.position: expected one number per candidate");
    pass_->candidates.offsets = result_.offsets;
    pass_->candidates.rows = std::move(rows);
    pass_->candidates.positions = result_.positions;
    counts_ = request_.counts;
    chances_ = request_.chances;
  }

  // Brings the number of candidates to one of few. What is added repeats the last candidate and decides nothing.
  void pad() {
    RowSubset& subset = pass_->candidates;
    const int64_t m = subset.size(), all = rounded_candidates(m);
    const auto repeat = [all](auto& values) { values.resize(size_t(all), values.back()); };
    repeat(subset.rows.change());
    repeat(subset.positions.change());
    repeat(at_.change());
    // They belong to the row of the candidate that they repeat; rows behind it have none.
    for (int32_t& offset : subset.offsets.change())
      if (offset == m) offset = int32_t(all);
    subset.max_queries = int(rounded_candidates(longest(subset.offsets.values())));
    std::vector<uint8_t> forbidden(size_t(all), 1);
    std::fill_n(forbidden.begin(), m, uint8_t(0));
    forbidden_ = std::move(forbidden);
  }

  void lay_out(ExchangeLayout& to) {
    pass_->lay_out(to);
    to.put(at_);
    to.put(forbidden_);
    to.put(counts_);
    to.put(chances_);
    to.put(ids_in_);
    inputs_end_ = results_begin_ = to.bytes();
    const size_t m = size_t(pass_->candidates.size()), decided = request_.select ? m : 0;
    tokens_ = to.room<int32_t>(m);
    log_probs_ = to.room<float>(m);
    confidences_ = to.room<float>(m);
    entropies_ = to.room<float>(m);
    margins_ = to.room<float>(request_.by_margin ? m : 0);
    planner_logits_ = to.room<float>(wants_planner_ ? m : 0);
    finite_ = to.room<uint8_t>(m);
    probabilities_ = to.room<float>(decided);
    log_likelihoods_ = to.room<float>(decided);
    selected_ = to.room<uint8_t>(decided);
    forced_ = to.room<uint8_t>(request_.select ? request_.rows() : 0);
    end_ = to.bytes();
  }

  void enqueue(Model::Scratch& scratch) const {
    const ForwardContext context = pass_->context(model_, scratch.layers, cancel_);
    const Weights& weights = model_.weights();
    const int64_t c = config_.hidden, n = pass_->packing.tokens(), m = pass_->candidates.size();
    const Array candidate_hidden = scratch.head.activations(kCandidateHidden, m * c);
    if (wants_planner_) {
      // The planner reads the states of all tokens; without it the last block runs on the candidates alone.
      float* hidden = scratch.head.get(kHidden, n * c);
      hidden_forward(context, weights, {pass_->packing}, ids_in_.data(), hidden, nullptr);
      context.backend.gather_rows(candidate_hidden, hidden, pass_->reads().rows.data(), m, c);
      float* states = scratch.head.get(kFullStates, pass_->state_tokens() * c);
      pass_->planner_logits(context, weights, planner_logits_, hidden, states, nullptr);
    } else {
      hidden_forward(context, weights, {pass_->packing, &pass_->reads()}, ids_in_.data(), candidate_hidden, nullptr);
    }
    if (m == 0) return;
    float* logits = scratch.head.get(kLogits, std::min(m, head_rows(config_.embedding_size)) * config_.embedding_size);
    for_head_chunks(context, weights, candidate_hidden, m, logits,
                    [&](int64_t first, int64_t count, float* chunk) { sample(first, count, chunk); });
    if (request_.select) unmask();
  }

  void sample(int64_t first, int64_t count, const float* logits) const {
    SampleArgs args{};
    args.logits = logits;
    args.rows = count;
    args.vocab = config_.embedding_size;
    args.temperature = request_.temperature;
    args.excluded_token = request_.exclude_mask ? config_.mask_token : -1;
    args.at = at_.data() + first;
    args.uniforms =
        request_.token_uniforms.empty() ? nullptr : request_.token_uniforms.data() + first * config_.embedding_size;
    args.tempered_log_prob = request_.tempered_log_prob;
    args.top_k = request_.top_k;
    args.top_p = request_.top_p;
    args.top_p_first = request_.top_p_first;
    args.scores = request_.scores;
    args.margin = request_.by_margin ? margins_ + first : nullptr;
    args.token = tokens_ + first;
    args.log_prob = log_probs_ + first;
    args.confidence = confidences_ + first;
    args.entropy = entropies_ + first;
    args.finite = finite_ + first;
    model_.backend().sample_forward(args);
  }

  void unmask() const {
    UnmaskArgs args{};
    args.rule = request_.rule;
    args.batch = int(request_.rows());
    args.offsets = pass_->candidates.offsets.data();
    args.at = at_.data();
    args.uniforms = request_.position_uniforms.empty() ? nullptr : request_.position_uniforms.data();
    args.planner_logit = planner_logits_;
    args.confidence = request_.by_margin ? margins_ : confidences_;
    args.entropy = entropies_;
    args.token_log_prob = log_probs_;
    args.forbidden = forbidden_.data();
    args.planner_temperature = request_.planner_temperature;
    args.probability_scale = request_.probability_scale;
    args.threshold = request_.threshold;
    args.factor = request_.factor;
    args.factor_last_pair = request_.factor_last_pair;
    args.by_entropy = request_.by_entropy;
    args.sum_with_last = request_.sum_with_last;
    args.selection_temperature = request_.selection_temperature;
    args.count = counts_.data();
    args.chance = chances_.data();
    args.may_rest = request_.may_rest;
    args.reference_likelihood = request_.reference_likelihood;
    args.selected = selected_;
    args.forced = forced_;
    args.probability = probabilities_;
    args.log_likelihood = log_likelihoods_;
    model_.backend().unmask(args);
  }

  void take_results() {
    const size_t m = candidates();
    result_.tokens = numbers(tokens_, m);
    result_.log_probs = numbers(log_probs_, m);
    result_.confidences = numbers(confidences_, m);
    result_.entropies = numbers(entropies_, m);
    if (request_.by_margin) result_.margins = numbers(margins_, m);
    if (wants_planner_) result_.planner_logits = numbers(planner_logits_, m);
    for (size_t r = 0; r < request_.rows(); ++r)
      for (int32_t i = result_.offsets[r]; i < result_.offsets[r + 1]; ++i)
        if (!finite_[i])
          throw Error(ErrorCode::kNonFinite, "the model produced a NaN or infinite logit in row " +
                                                 std::to_string(request_.row_keys[r]) + " at position " +
                                                 std::to_string(result_.positions[size_t(i)]));
    for (size_t i = 0; i < result_.planner_logits.size(); ++i)
      if (!(result_.planner_logits[i] - result_.planner_logits[i] == 0.0f))
        throw Error(ErrorCode::kNonFinite,
                    "the planner produced a NaN or infinite logit at position " + std::to_string(result_.positions[i]));
    if (!request_.select || m == 0) return decide_nothing();
    result_.probabilities = numbers(probabilities_, m);
    result_.log_likelihoods = numbers(log_likelihoods_, m);
    result_.selected = numbers(selected_, m);
    result_.forced = numbers(forced_, request_.rows());
  }
  void decide_nothing() {
    result_.probabilities.resize(candidates());
    result_.log_likelihoods.resize(candidates());
    result_.selected.resize(candidates());
    result_.forced.resize(request_.rows());
  }

  const Model& model_;
  const ModelConfig& config_;
  const StepRequest& request_;
  const std::atomic<bool>* const cancel_;
  const bool wants_planner_;
  std::optional<CacheUse> cache_use_;
  std::optional<Pass> pass_;
  StepResult result_;

  // What the operations read beside the pass. Candidates may be padded, from `result_.offsets.back()` on.
  HostArray<int32_t> ids_in_;          // (N)
  std::vector<uint8_t> is_candidate_;  // (N)
  HostArray<rng::Coordinates> at_;     // (M)
  HostArray<uint8_t> forbidden_;       // (M) padding; empty if there is none
  HostArray<int32_t> counts_;          // (R) or empty
  HostArray<double> chances_;          // (R) or empty

  // Where results go in the exchange: (M) each, forced (R).
  int32_t* tokens_ = nullptr;
  float *log_probs_ = nullptr, *confidences_ = nullptr, *entropies_ = nullptr, *margins_ = nullptr,
        *planner_logits_ = nullptr, *probabilities_ = nullptr, *log_likelihoods_ = nullptr;
  uint8_t *finite_ = nullptr, *selected_ = nullptr, *forced_ = nullptr;
  size_t inputs_end_ = 0, results_begin_ = 0, end_ = 0;  // bytes of the exchange
};

}  // namespace

StepResult run_step(const Model& model, const StepRequest& request, const std::atomic<bool>* cancel) {
  const std::shared_lock<WeightsMutex> weights(model.weights_mutex());
  return Step(model, request, cancel).run();
}

}  // namespace dultra
