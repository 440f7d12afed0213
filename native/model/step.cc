#include "model/step.h"

#include <algorithm>
#include <cmath>
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
        rule_offsets_(rule_offsets(request)),
        wants_planner_(
            any_rule([](const StepRule& rule) { return rule.planner || (rule.select && is_planner_rule(rule.rule)); })),
        wants_margins_(any_rule([](const StepRule& rule) { return rule.by_margin; })),
        selects_(any_rule([](const StepRule& rule) { return rule.select; })) {
    check();
    list_candidates();
    list_scores();
    result_.non_finite.assign(request.rows(), -1);
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

    cache_use_->begin(pass_->cache);
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

  static std::vector<int32_t> rule_offsets(const StepRequest& request) {
    const int32_t rows = int32_t(request.rows());
    if (request.rules.size() == 1 && request.rule_offsets.empty()) return {0, rows};
    const std::vector<int32_t>& offsets = request.rule_offsets;
    check_argument(!request.rules.empty() && offsets.size() == request.rules.size() + 1 && offsets.front() == 0 &&
                       offsets.back() == rows && std::is_sorted(offsets.begin(), offsets.end()),
                   "rules: expected ascending offsets from 0 to the number of rows, one more than rules");
    return offsets;
  }

  template <class Test>
  bool any_rule(const Test& test) const {
    return std::any_of(request_.rules.begin(), request_.rules.end(), test);
  }

  // Calls body(rule, first row, row behind the last) for every rule that has rows.
  template <class Body>
  void for_rules(const Body& body) const {
    for (size_t g = 0; g < request_.rules.size(); ++g)
      if (rule_offsets_[g] < rule_offsets_[g + 1]) body(request_.rules[g], rule_offsets_[g], rule_offsets_[g + 1]);
  }

  void check() {
    const size_t rows = request_.rows();
    check_ids(request_.ids, config_.embedding_size);
    if (rows > 0)
      check_offsets(request_.offsets, request_.ids.size(), config_.max_sequence_length);
    else
      check_argument(request_.ids.empty(), "offsets: expected 0 first and the number of ids last");
    check_argument(request_.window_ends.size() == rows && request_.seeds.size() == rows &&
                       request_.row_keys.size() == rows && request_.steps.size() == rows,
                   "step: offsets, windowEnds, seeds, rowKeys and steps must be of as many rows");
    for (size_t r = 0; r < rows; ++r)
      check_argument(request_.window_ends[r] >= 0 && request_.window_ends[r] <= length(r),
                     "step: windowEnds must lie inside the row");
    if (!request_.candidate_offsets.empty())
      offsets_of_lists(request_.candidate_offsets, request_.candidates, rows, "candidates");
    if (any_rule([](const StepRule& rule) { return rule.select && is_counted_rule(rule.rule); }))
      check_argument(request_.counts.size() == rows, "step: counts must have one entry per row");
    check_argument(request_.counts.empty() || request_.counts.size() == rows,
                   "step: counts must have one entry per row, or none");
    const bool draws_coins =
        any_rule([](const StepRule& rule) { return rule.select && rule.rule == UnmaskRule::kCoin; });
    check_argument((draws_coins ? rows : 0) == request_.chances.size(),
                   "step: chances must have one entry per row with rule coin, and none without");
    check_argument(!request_.is_replay() || request_.rules.size() == 1, "uniforms: expected one rule for all rows");
    check_argument(request_.fresh.empty() || request_.fresh.size() == rows,
                   "fresh: expected one entry per row, or none");
    if (wants_planner_ && !config_.planner.present)
      throw Error(ErrorCode::kNoPlanner, "this checkpoint has no planner head");
    cache_use_.emplace(request_.cache.get());
    check_first_blocks(request_.first_blocks, rows, config_.block_length);
    if (!request_.cache) {
      // A request of no rows has no offsets to take.
      pass_.emplace(rows > 0 ? request_.offsets : std::vector<int32_t>{0}, request_.first_blocks);
      return;
    }
    check_argument(request_.cache_begins.size() == rows, "step: expected one range of the cache per row");
    std::vector<KvRange> ranges;
    for (size_t r = 0; r < rows; ++r)
      ranges.push_back(
          {request_.cache_begins[r], length(r), request_.first_blocks.empty() ? 0 : request_.first_blocks[r]});
    request_.cache->check(ranges);
    for (size_t r = 0; r < request_.fresh.size(); ++r)
      if (request_.fresh[r]) request_.cache->forget(ranges[r]);
    pass_.emplace(model_, *request_.cache, ranges, request_.query_offsets, request_.queries, wants_planner_);
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
    at_.push_back({request_.seeds[r], request_.row_keys[r], request_.steps[r], uint32_t(drawn)});
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
    take_allowed(m);
    pass_->candidates.offsets = result_.offsets;
    pass_->candidates.rows = std::move(rows);
    pass_->candidates.positions = result_.positions;
    counts_ = request_.counts;
    chances_ = request_.chances;
  }

  // The tokens that are scored: of each candidate the probability of one token is computed, the same one whichever are
  // asked for, and the logits of it and of the others are taken, whose differences say the rest.
  void list_scores() {
    const std::vector<int32_t>&offsets = request_.score_offsets, &tokens = request_.score_tokens;
    const size_t m = candidates();
    if (any_rule([](const StepRule& rule) { return rule.scored; }))
      offsets_of_lists(offsets, tokens, m, "scores");
    else
      check_argument(offsets.empty() && tokens.empty(), "scores: expected none where no rule is scored");
    if (tokens.empty()) return;
    for_rules([&](const StepRule& rule, int32_t row, int32_t row_end) {
      check_argument(!rule.scored || (!rule.select && !(rule.temperature > 0) && rule.exclude_mask),
                     "rules: a scored one selects nothing, and draws no tokens");
      for (size_t i = size_t(result_.offsets[size_t(row)]); i < size_t(result_.offsets[size_t(row_end)]); ++i)
        check_argument((offsets[i + 1] > offsets[i]) == rule.scored,
                       "scores: expected tokens for each candidate of a scored row, and for no other");
    });
    const int32_t known = config_.mask_token == 0 ? 1 : 0;
    const int64_t rows = head_rows(config_.embedding_size);
    std::vector<int32_t> index;
    const auto add = [&](size_t i, int32_t token) {
      check_argument(token >= 0 && token < config_.embedding_size && token != config_.mask_token,
                     "scores: expected tokens of the vocabulary other than the mask");
      index.push_back(int32_t(int64_t(i) % rows * config_.embedding_size + token));
    };
    logit_offsets_ = {0};
    for (size_t i = 0; i < m; ++i) {
      if (offsets[i + 1] > offsets[i]) add(i, known);
      for (int32_t p = offsets[i]; p < offsets[i + 1]; ++p) add(i, tokens[size_t(p)]);
      logit_offsets_.push_back(int32_t(index.size()));
    }
    known_ = std::vector<int32_t>(m, known);
    logit_index_ = std::move(index);
  }
  // Logits that are taken of the candidates before i; with the last of them go those that fill up.
  int64_t logits_before(int64_t i) const {
    const int32_t count = i < int64_t(logit_offsets_.size()) ? logit_offsets_[size_t(i)] : logit_offsets_.back();
    return count == logit_offsets_.back() ? int64_t(logit_index_.size()) : count;
  }

  void take_allowed(size_t m) {
    if (request_.allowed.empty()) return;
    const size_t words = size_t(config_.embedding_size + 31) / 32;
    check_argument(request_.allowed.size() == m, "allowed: expected one entry per candidate, or none");
    check_argument(request_.allowed_sets.size() % words == 0,
                   "allowed: expected sets of ceil(embeddingSize / 32) words");
    const int32_t count = int32_t(request_.allowed_sets.size() / words);
    for (int32_t set : request_.allowed)
      check_argument(set >= -1 && set < count, "allowed: expected -1 or one of the sets, got " + std::to_string(set));
    allowed_ = request_.allowed;
    allowed_sets_ = request_.allowed_sets;
    // Few numbers of sets, so that few captured graphs serve a generation.
    size_t sets = 1;
    while (sets < size_t(count)) sets *= 2;
    allowed_sets_.change().resize(sets * words);
  }

  // Brings the number of candidates to one of few. What is added repeats the last candidate and decides nothing.
  void pad() {
    RowSubset& subset = pass_->candidates;
    const int64_t m = subset.size(), all = rounded_candidates(m);
    const auto repeat = [all](auto& values) { values.resize(size_t(all), values.back()); };
    repeat(subset.rows.change());
    repeat(subset.positions.change());
    repeat(at_.change());
    if (!logit_index_.empty()) {
      repeat(known_.change());
      logit_index_.change().resize(size_t(rounded_candidates(int64_t(logit_index_.size()))), logit_index_.back());
    }
    if (!allowed_.empty()) repeat(allowed_.change());
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
    to.put(known_);
    to.put(logit_index_);
    to.put(ids_in_);
    to.put(allowed_);
    to.put(allowed_sets_);
    inputs_end_ = results_begin_ = to.bytes();
    const size_t m = size_t(pass_->candidates.size()), decided = selects_ ? m : 0;
    tokens_ = to.room<int32_t>(m);
    log_probs_ = to.room<float>(m);
    confidences_ = to.room<float>(m);
    entropies_ = to.room<float>(m);
    margins_ = to.room<float>(wants_margins_ ? m : 0);
    planner_logits_ = to.room<float>(wants_planner_ ? m : 0);
    logits_ = to.room<float>(logit_index_.size());
    finite_ = to.room<uint8_t>(m);
    probabilities_ = to.room<float>(decided);
    log_likelihoods_ = to.room<float>(decided);
    selected_ = to.room<uint8_t>(decided);
    forced_ = to.room<uint8_t>(selects_ ? request_.rows() : 0);
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
    for_head_chunks(context, weights, candidate_hidden, m, logits, [&](int64_t first, int64_t count, float* chunk) {
      if (!allowed_.empty())
        context.backend.allow_tokens(chunk, allowed_sets_.data(),
                                     int64_t(allowed_sets_.size()) / ((config_.embedding_size + 31) / 32),
                                     allowed_.data() + first, count, config_.embedding_size);
      for_rules([&](const StepRule& rule, int32_t row, int32_t row_end) {
        const int64_t begin = std::max<int64_t>(first, pass_->candidates.offsets[size_t(row)]),
                      end = std::min<int64_t>(first + count, pass_->candidates.offsets[size_t(row_end)]);
        if (begin < end) sample(rule, begin, end - begin, chunk + (begin - first) * config_.embedding_size);
      });
      if (logit_index_.empty()) return;
      const int64_t from = logits_before(first), to = logits_before(first + count);
      if (from < to) context.backend.gather_rows(logits_ + from, chunk, logit_index_.data() + from, to - from, 1);
    });
    for_rules([&](const StepRule& rule, int32_t row, int32_t row_end) {
      if (rule.select) unmask(rule, row, row_end);
    });
  }

  void sample(const StepRule& rule, int64_t first, int64_t count, const float* logits) const {
    SampleArgs args{};
    args.logits = logits;
    args.rows = count;
    args.vocab = config_.embedding_size;
    args.temperature = rule.temperature;
    args.excluded_token = rule.exclude_mask ? config_.mask_token : -1;
    args.at = at_.data() + first;
    args.uniforms =
        request_.token_uniforms.empty() ? nullptr : request_.token_uniforms.data() + first * config_.embedding_size;
    args.given = rule.scored ? known_.data() + first : nullptr;
    args.tempered_log_prob = rule.tempered_log_prob;
    args.top_k = rule.top_k;
    args.top_p = rule.top_p;
    args.top_p_first = rule.top_p_first;
    args.scores = rule.scores;
    args.margin = rule.by_margin ? margins_ + first : nullptr;
    args.token = tokens_ + first;
    args.log_prob = log_probs_ + first;
    args.confidence = confidences_ + first;
    args.entropy = entropies_ + first;
    args.finite = finite_ + first;
    model_.backend().sample_forward(args);
  }

  void unmask(const StepRule& rule, int32_t row, int32_t row_end) const {
    UnmaskArgs args{};
    args.rule = rule.rule;
    args.batch = row_end - row;
    args.offsets = pass_->candidates.offsets.data() + row;
    args.at = at_.data();
    args.uniforms = request_.position_uniforms.empty() ? nullptr : request_.position_uniforms.data();
    args.planner_logit = planner_logits_;
    args.confidence = rule.by_margin ? margins_ : confidences_;
    args.entropy = entropies_;
    args.token_log_prob = log_probs_;
    args.forbidden = forbidden_.data();
    args.planner_temperature = rule.planner_temperature;
    args.probability_scale = rule.probability_scale;
    args.threshold = rule.threshold;
    args.factor = rule.factor;
    args.factor_last_pair = rule.factor_last_pair;
    args.by_entropy = rule.by_entropy;
    args.sum_with_last = rule.sum_with_last;
    args.selection_temperature = rule.selection_temperature;
    args.count = counts_.empty() ? nullptr : counts_.data() + row;
    args.chance = chances_.empty() ? nullptr : chances_.data() + row;
    args.may_rest = rule.may_rest;
    args.reference_likelihood = rule.reference_likelihood;
    args.selected = selected_;
    args.forced = forced_ + row;
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
    if (wants_margins_) result_.margins = numbers(margins_, m);
    if (wants_planner_) result_.planner_logits = numbers(planner_logits_, m);
    take_scores();
    find_non_finite();
    if (!selects_ || m == 0) return decide_nothing();
    result_.probabilities = numbers(probabilities_, m);
    result_.log_likelihoods = numbers(log_likelihoods_, m);
    result_.selected = numbers(selected_, m);
    result_.forced = numbers(forced_, request_.rows());
    // Nothing was written for rows whose rule only proposes tokens.
    for_rules([&](const StepRule& rule, int32_t row, int32_t row_end) {
      const auto clear = [&](auto& values, size_t from, size_t to) {
        std::fill(values.begin() + int64_t(from), values.begin() + int64_t(to), 0);
      };
      const size_t from = size_t(result_.offsets[size_t(row)]), to = size_t(result_.offsets[size_t(row_end)]);
      if (wants_margins_ && !rule.by_margin) clear(result_.margins, from, to);
      if (rule.select) return;
      clear(result_.probabilities, from, to);
      clear(result_.log_likelihoods, from, to);
      clear(result_.selected, from, to);
      clear(result_.forced, size_t(row), size_t(row_end));
    });
  }
  void take_scores() {
    const std::vector<int32_t>& offsets = request_.score_offsets;
    if (logit_index_.empty()) return;
    result_.scores.resize(request_.score_tokens.size());
    for (size_t i = 0; i < candidates(); ++i) {
      const float* logit = logits_ + logit_offsets_[i];
      // The logarithm of a probability is more exact than its rounded value, where the probability is no tiny number.
      const double log_prob = confidences_[i] > 1e-30f ? std::log(double(confidences_[i])) : double(log_probs_[i]);
      for (int32_t p = offsets[i]; p < offsets[i + 1]; ++p)
        result_.scores[size_t(p)] = float(double(logit[1 + p - offsets[i]]) - double(logit[0]) + log_prob);
    }
  }
  void find_non_finite() {
    for (size_t r = 0; r < request_.rows(); ++r)
      for (int32_t i = result_.offsets[r]; i < result_.offsets[r + 1] && result_.non_finite[r] < 0; ++i) {
        const float logit = wants_planner_ ? result_.planner_logits[size_t(i)] : 0.0f;
        if (!finite_[i])
          result_.non_finite[r] = 2 * result_.positions[size_t(i)];
        else if (!(logit - logit == 0.0f))
          result_.non_finite[r] = 2 * result_.positions[size_t(i)] + 1;
      }
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
  const std::vector<int32_t> rule_offsets_;  // (G + 1)
  const bool wants_planner_, wants_margins_, selects_;
  std::optional<CacheUse> cache_use_;
  std::optional<Pass> pass_;
  StepResult result_;

  // What the operations read beside the pass. Candidates may be padded, from `result_.offsets.back()` on.
  HostArray<int32_t> ids_in_;           // (N)
  std::vector<uint8_t> is_candidate_;   // (N)
  HostArray<rng::Coordinates> at_;      // (M)
  HostArray<uint8_t> forbidden_;        // (M) padding; empty if there is none
  HostArray<int32_t> counts_;           // (R) or empty
  HostArray<double> chances_;           // (R) or empty
  HostArray<int32_t> known_;            // (M) the token whose probability is computed; empty if none is scored
  HostArray<int32_t> logit_index_;      // numbers of a chunk's logits; padding repeats the last. Likewise
  std::vector<int32_t> logit_offsets_;  // (M + 1) of those of each candidate, without padding
  HostArray<int32_t> allowed_;          // (M) or empty
  HostArray<uint32_t> allowed_sets_;    // (sets, words of the vocabulary)

  // Where results go in the exchange: (M) each, forced (R).
  int32_t* tokens_ = nullptr;
  float *log_probs_ = nullptr, *confidences_ = nullptr, *entropies_ = nullptr, *margins_ = nullptr,
        *planner_logits_ = nullptr, *probabilities_ = nullptr, *log_likelihoods_ = nullptr, *logits_ = nullptr;
  uint8_t *finite_ = nullptr, *selected_ = nullptr, *forced_ = nullptr;
  size_t inputs_end_ = 0, results_begin_ = 0, end_ = 0;  // bytes of the exchange
};

}  // namespace

StepResult run_step(const Model& model, const StepRequest& request, const std::atomic<bool>* cancel) {
  const std::shared_lock<WeightsMutex> weights(model.weights_mutex());
  return Step(model, request, cancel).run();
}

}  // namespace dultra
