#include "model/score.h"

#include <algorithm>
#include <cmath>

namespace dultra {

struct Scorer::Tape {
  explicit Tape(ScoreRequest from) : request(std::move(from)) {}

  ScoreRequest request;
  std::optional<Pass> pass;
  RowSubset scored;                   // where the output head reads the states of those candidates that it scores
  std::vector<int32_t> scored_index;  // of each of those, its place among the M
  bool narrowed = false;              // the base's last block ran on `scored` alone
  BaseTape base;
  PlannerTape planner;
  float* hidden = nullptr;                       // (N, C), unless narrowed
  Array scored_hidden;                           // (scored, C)
  float* logits = nullptr;                       // (scored, V) where one chunk holds them, else null
  std::vector<float> planner_logits, log_probs;  // (M)
  size_t next_slot = 0;                          // first free slot of the tape's workspace

  BlockTokens base_tokens() const { return {pass->packing, narrowed ? &scored : nullptr}; }
  size_t candidates() const { return request.positions.size(); }
  LikelihoodArgs likelihood_args() const {  // all but the outputs
    LikelihoodArgs args{};
    args.batch = pass->packing.batch();
    args.offsets = pass->candidates.offsets.data();
    args.planner_logit = planner_logits.data();
    args.token_log_prob = log_probs.data();
    args.selected = request.selected.data();
    args.forced = request.forced.data();
    args.planner_temperature = request.planner_temperature;
    args.probability_scale = request.probability_scale;
    args.reference_likelihood = request.reference_likelihood;
    return args;
  }
};

Scorer::Scorer(const Model& model, const Parameters& parameters, const ScoreOptions& options)
    : model_(model),
      backend_(model.backend()),
      parameters_(parameters),
      options_(options),
      tape_workspace_(backend_),
      workspace_(backend_),
      gradient_workspace_(backend_) {}

Scorer::~Scorer() = default;

namespace {

void check(const ScoreRequest& request, const ModelConfig& config) {
  check_ids(request.ids, config.embedding_size);
  check_offsets(request.offsets, request.ids.size(), config.max_sequence_length);
  const size_t batch = request.offsets.size() - 1, m = request.positions.size();
  check_argument(request.candidate_offsets.size() == batch + 1 && request.candidate_offsets.front() == 0 &&
                     size_t(request.candidate_offsets.back()) == m &&
                     std::is_sorted(request.candidate_offsets.begin(), request.candidate_offsets.end()),
                 "candidateOffsets: expected one entry per row and one more, ascending from 0 to the number of "
                 "positions");
  check_argument(request.hidden.empty() || request.hidden.size() == request.ids.size() * size_t(config.hidden),
                 "hidden: expected (ids, dModel) numbers");
  if (request.log_probs || request.policy) {
    check_argument(request.tokens.size() == m, "tokens: expected one per candidate");
    check_ids(request.tokens, config.embedding_size);
  }
  check_argument(!request.policy || request.planner, "policy: needs planner");
  check_argument(request.entropy_temperature == 0 ||
                     (request.entropy_temperature >= 1e-4f && std::isfinite(request.entropy_temperature)),
                 "entropyTemperature: expected 0 or at least 1e-4, got " + std::to_string(request.entropy_temperature));
  if (request.planner) {
    if (!config.planner.present) throw Error(ErrorCode::kNoPlanner, "this checkpoint has no planner head");
    check_argument(request.timestep.size() == batch, "planner.timestep: expected one number per row");
    check_argument(request.mask_index.size() == request.ids.size(), "planner.maskIndex: expected one entry per id");
  }
  if (request.policy)
    check_argument(request.selected.size() == m && request.forced.size() == batch,
                   "policy: expected selected for each candidate and forced for each row");
  check_first_blocks(request.first_blocks, batch, config.block_length);
  if (!request.cache) return;
  check_argument(request.first_blocks.empty(), "firstBlocks: expected none with a cache, which has its own");
  check_argument(request.cache->options().dtype == DType::kF32, "cache: expected one of fp32, which gradients need");
  check_argument(request.hidden.empty(), "hidden: expected none with a cache");
  check_argument(request.rows.size() == batch, "rows: expected one row of the cache per row");
}

// Finds the candidates among the tokens of the pass, and those of them that the output head runs on.
void list_candidates(const ScoreRequest& request, Pass& pass, RowSubset* scored, std::vector<int32_t>* scored_index) {
  const std::vector<int32_t>& computed = pass.packing.positions.values();
  pass.candidates.offsets = request.candidate_offsets;
  scored->offsets.push_back(0);
  for (size_t b = 0; b + 1 < request.offsets.size(); ++b) {
    const int32_t begin = request.candidate_offsets[b], end = request.candidate_offsets[b + 1];
    for (int32_t i = begin; i < end; ++i) {
      const int32_t position = request.positions[size_t(i)];
      const auto own = computed.begin() + request.offsets[b], own_end = computed.begin() + request.offsets[b + 1];
      const auto found = std::lower_bound(own, own_end, position);
      check_argument(
          found != own_end && *found == position && (i == begin || position > request.positions[size_t(i) - 1]),
          "positions: expected ascending positions that row " + std::to_string(b) + " computes, got " +
              std::to_string(position));
      const int32_t row = int32_t(found - computed.begin());
      pass.candidates.rows.push_back(row);
      pass.candidates.positions.push_back(position);
      if (!request.scores_all() && !(request.policy && request.selected[size_t(i)])) continue;
      scored->rows.push_back(row);
      scored->positions.push_back(position);
      scored_index->push_back(i);
    }
    scored->offsets.push_back(int32_t(scored->rows.size()));
  }
}

ScoreResult empty_result(const ScoreRequest& request, int64_t vocab) {
  const size_t m = request.positions.size();
  ScoreResult result;
  if (request.log_probs || request.policy) result.log_probs.assign(m, 0.0f);
  if (request.planner) result.planner_logits.assign(m, 0.0f);
  if (request.policy) result.log_likelihoods.assign(m, 0.0f);
  if (request.confidences) {
    result.argmax.assign(m, 0);
    result.confidences.assign(m, 0.0f);
  }
  if (request.entropies()) result.entropies.assign(m, 0.0f);
  if (request.logits) result.logits.assign(m * size_t(vocab), 0.0f);
  return result;
}

}  // namespace

ScoreResult Scorer::score(ScoreRequest from, const std::atomic<bool>* cancel) {
  const ModelConfig& config = model_.config();
  tape_.reset();
  auto tape = std::make_unique<Tape>(std::move(from));
  const ScoreRequest& request = tape->request;
  check(request, config);
  CacheUse cache_use(request.cache.get());
  if (request.cache)
    tape->pass.emplace(model_, *request.cache, request.cache->ranges(request.rows), request.offsets,
                       request.query_positions, request.planner);
  else
    tape->pass.emplace(request.offsets, request.first_blocks);
  Pass& pass = *tape->pass;
  list_candidates(request, pass, &tape->scored, &tape->scored_index);
  if (config.shift_logits) tape->scored = tape->scored.shifted_left(pass.packing);
  ScoreResult result = empty_result(request, config.embedding_size);
  if (tape->candidates() == 0 && !request.cache) {
    if (request.keep) tape_ = std::move(tape);
    return result;
  }

  // What is kept must survive until `backward`; the rest is scratch.
  TapeMemory memory(tape_workspace_);
  ForwardContext context = pass.context(model_, workspace_, cancel);
  context.tape_memory = &memory;
  context.inputs_only = options_.checkpointing;
  const int64_t n = pass.packing.tokens(), c = config.hidden, s = tape->scored.size();
  const bool given_hidden = !request.hidden.empty();
  tape->narrowed = !request.planner && !given_hidden;
  cache_use.begin(pass.cache);
  tape->scored_hidden = memory.activations(s * c);
  if (!tape->narrowed) tape->hidden = memory.take(n * c);
  if (given_hidden)
    backend_.upload(tape->hidden, request.hidden.data(), request.hidden.size() * 4);
  else
    hidden_forward(context, model_.weights(), tape->base_tokens(), request.ids.data(),
                   tape->narrowed ? tape->scored_hidden : Array(tape->hidden),
                   request.keep && options_.base_trains ? &tape->base : nullptr);
  if (!tape->narrowed) backend_.gather_rows(tape->scored_hidden, tape->hidden, tape->scored.rows.data(), s, c);

  score_tokens(*tape, context, memory, result);
  if (request.planner) score_planner(*tape, context, memory, result);
  tape->planner_logits = result.planner_logits;
  tape->log_probs = result.log_probs;
  if (request.policy) {
    LikelihoodArgs likelihood = tape->likelihood_args();
    likelihood.log_likelihood = result.log_likelihoods.data();
    backend_.likelihood_forward(likelihood);
  }
  tape->next_slot = memory.next();
  cache_use.done(pass.cache);
  if (request.keep) tape_ = std::move(tape);
  return result;
}

void Scorer::score_tokens(Tape& tape, const ForwardContext& context, TapeMemory& memory, ScoreResult& result) {
  const ScoreRequest& request = tape.request;
  const int64_t v = context.config.embedding_size, s = tape.scored.size(), rows = std::min(s, head_rows(v));
  float* memory_of_logits = memory.take(rows * v);
  if (rows == s) tape.logits = memory_of_logits;
  const size_t count_all = size_t(rows);
  std::vector<int32_t> token(count_all), given(count_all);
  std::vector<float> log_prob(count_all), confidence(count_all), entropy(count_all);
  std::vector<uint8_t> finite(count_all, 1);
  for_head_chunks(context, model_.weights(), tape.scored_hidden, s, memory_of_logits,
                  [&](int64_t first, int64_t count, float* logits) {
                    const int32_t* place = tape.scored_index.data() + first;  // of each row of the chunk among the M
                    if (request.logits)
                      for (int64_t r = 0; r < count; ++r)
                        backend_.download(&result.logits[size_t(place[r]) * size_t(v)], logits + r * v, size_t(v) * 4);
                    SampleArgs sample{};
                    sample.logits = logits;
                    sample.rows = count;
                    sample.vocab = v;
                    sample.excluded_token = request.excluded_token;
                    sample.token = token.data();
                    sample.log_prob = log_prob.data();
                    sample.confidence = confidence.data();
                    sample.entropy = entropy.data();
                    sample.finite = finite.data();
                    const auto run = [&](const SampleArgs& args) {
                      backend_.sample_forward(args);
                      if (std::find(finite.begin(), finite.begin() + count, uint8_t(0)) != finite.begin() + count)
                        throw Error(ErrorCode::kNonFinite, "the model produced a NaN or infinite logit");
                    };
                    if (request.confidences) {
                      run(sample);
                      for (int64_t r = 0; r < count; ++r) {
                        result.argmax[size_t(place[r])] = token[size_t(r)];
                        result.confidences[size_t(place[r])] = confidence[size_t(r)];
                      }
                    }
                    if (request.entropies()) {
                      SampleArgs tempered = sample;
                      tempered.temperature = request.entropy_temperature;
                      tempered.scores = SampleScores::kTempered;
                      std::fill_n(given.begin(), count, 0);  // which token is scored makes no difference
                      tempered.given = given.data();
                      run(tempered);
                      for (int64_t r = 0; r < count; ++r) result.entropies[size_t(place[r])] = entropy[size_t(r)];
                    }
                    if (request.log_probs || request.policy) {
                      for (int64_t r = 0; r < count; ++r) given[size_t(r)] = request.tokens[size_t(place[r])];
                      sample.given = given.data();
                      sample.temperature = request.temperature;
                      sample.tempered_log_prob = request.temperature > 0;
                      run(sample);
                      for (int64_t r = 0; r < count; ++r) result.log_probs[size_t(place[r])] = log_prob[size_t(r)];
                    }
                  });
}

void Scorer::score_planner(Tape& tape, const ForwardContext& context, TapeMemory& memory, ScoreResult& result) {
  const size_t m = tape.candidates();
  Pass& pass = *tape.pass;
  float* logit = memory.take(int64_t(m));
  pass.prepare_planner(context.config, tape.request.timestep, tape.request.mask_index.data());
  float* states = pass.full_rows() ? memory.take(pass.state_tokens() * context.config.hidden) : nullptr;
  pass.planner_logits(context, model_.weights(), logit, tape.hidden, states,
                      tape.request.keep ? &tape.planner : nullptr);
  backend_.download(result.planner_logits.data(), logit, m * 4);
  for (float z : result.planner_logits)
    if (!std::isfinite(z)) throw Error(ErrorCode::kNonFinite, "the planner produced a NaN or infinite logit");
}

// ---- backward -----------------------------------------------------------------------------------

void Scorer::tokens_backward(const BackwardContext& context, const BackwardRequest& request,
                             const std::vector<float>& dlog_prob, float* dhidden) {
  const Tape& tape = *tape_;
  const Weights& weights = model_.weights();
  const int64_t c = context.config().hidden, v = context.config().embedding_size, s = tape.scored.size();
  std::vector<int32_t> tokens(static_cast<size_t>(s));
  std::vector<float> upstream(static_cast<size_t>(s));
  std::vector<float> dentropy(request.dentropies.empty() ? 0 : size_t(s));
  for (size_t i = 0; i < size_t(s); ++i) {
    const size_t candidate = size_t(tape.scored_index[i]);
    if (!tape.request.tokens.empty()) tokens[i] = tape.request.tokens[candidate];
    if (!dlog_prob.empty()) upstream[i] = dlog_prob[candidate];
    if (!dentropy.empty()) dentropy[i] = request.dentropies[candidate];
  }
  const int64_t rows = std::min(s, head_rows(v));
  for (int64_t i = 0; i < s; i += rows) {
    const int64_t count = std::min(rows, s - i);
    const ConstArray hidden = tape.scored_hidden + i * c;
    bool accumulate = false;
    if (!dlog_prob.empty() || !dentropy.empty()) {
      float* logits = tape.logits;
      if (!logits) {
        logits = gradient_workspace_.get(kDLogits, rows * v);
        head_forward(context.forward, weights, logits, hidden, count);
      }
      const ScoreRequest& scored = tape.request;
      if (dentropy.empty())
        backend_.log_prob_backward(logits, tokens.data() + i, upstream.data() + i, count, v, scored.temperature,
                                   scored.excluded_token);
      else
        backend_.scores_backward(logits, tokens.data() + i, upstream.data() + i, dentropy.data() + i, count, v,
                                 scored.temperature, scored.entropy_temperature, scored.excluded_token);
      linear_backward(context, weights.head, dhidden + i * c, logits, hidden, count);
      accumulate = true;
    }
    if (!request.dlogits.empty()) {
      float* dlogits = gradient_workspace_.get(kDLogits, rows * v);
      for (int64_t r = 0; r < count; ++r)
        backend_.upload(dlogits + r * v, &request.dlogits[size_t(tape.scored_index[size_t(i + r)]) * size_t(v)],
                        size_t(v) * 4);
      linear_backward(context, weights.head, dhidden + i * c, dlogits, hidden, count, accumulate);
    }
  }
}

void Scorer::likelihood_backward(const BackwardRequest& request, std::vector<float>* dlog_prob,
                                 std::vector<float>* dplanner) {
  const size_t m = tape_->candidates();
  std::vector<float> dz(m), dtoken(m);
  LikelihoodGradArgs args{};
  args.forward = tape_->likelihood_args();
  args.dlog_likelihood = request.dlog_likelihoods.data();
  args.dplanner_logit = dz.data();
  args.dtoken_log_prob = dtoken.data();
  backend_.likelihood_backward(args);
  dlog_prob->resize(m);
  dplanner->resize(m);
  for (size_t i = 0; i < m; ++i) {
    (*dlog_prob)[i] += dtoken[i];
    (*dplanner)[i] += dz[i];
  }
}

namespace {

void check(const BackwardRequest& request, const ScoreRequest& scored, int64_t vocab) {
  const size_t m = scored.positions.size();
  const auto is_of = [m](const std::vector<float>& values, bool scores) {
    return values.empty() || (values.size() == m && scores);
  };
  check_argument(is_of(request.dlog_probs, scored.log_probs || scored.policy),
                 "dLogProbs: expected one number per candidate of a score with tokens");
  check_argument(is_of(request.dplanner_logits, scored.planner),
                 "dPlannerLogits: expected one number per candidate of a score with planner");
  check_argument(is_of(request.dlog_likelihoods, scored.policy),
                 "dLogLikelihoods: expected one number per candidate of a score with policy");
  check_argument(is_of(request.dentropies, scored.entropies()),
                 "dEntropies: expected one number per candidate of a score with entropyTemperature");
  check_argument(request.dlogits.empty() || (scored.logits && request.dlogits.size() == m * size_t(vocab)),
                 "dLogits: expected (candidates, embeddingSize) numbers of a score with logits");
}

}  // namespace

std::vector<float> Scorer::backward(const BackwardRequest& request, const std::atomic<bool>* cancel,
                                    const StageFinished& finished) {
  check_argument(tape_ != nullptr, "backward: expected a score with keep before it");
  const Tape& tape = *tape_;
  const Pass& pass = *tape.pass;
  const ModelConfig& config = model_.config();
  check(request, tape.request, config.embedding_size);
  std::vector<float> dlog_prob = request.dlog_probs, dplanner = request.dplanner_logits;
  if (!request.dlog_likelihoods.empty()) likelihood_backward(request, &dlog_prob, &dplanner);
  for (const std::vector<float>* values :
       std::initializer_list<const std::vector<float>*>{&dlog_prob, &dplanner, &request.dentropies, &request.dlogits})
    for (float x : *values)
      if (!std::isfinite(x)) throw Error(ErrorCode::kNonFinite, "backward: dL/d of an output is NaN or infinite");

  const int64_t c = config.hidden, n = pass.packing.tokens(), s = tape.scored.size();
  const bool given_hidden = !tape.request.hidden.empty(), to_hidden = given_hidden || options_.base_trains;
  const bool from_tokens =
      s > 0 && options_.base_trains && (!dlog_prob.empty() || !request.dentropies.empty() || !request.dlogits.empty());
  const bool from_planner = tape.candidates() > 0 && !dplanner.empty() && (options_.planner_trains || to_hidden);
  std::vector<float> dhidden_out(given_hidden ? size_t(n * c) : 0, 0.0f);
  if (!from_planner && !from_tokens) {
    tape_.reset();
    return dhidden_out;
  }

  ForwardContext forward = pass.context(model_, workspace_, cancel);
  const BackwardContext context{forward, gradient_workspace_, parameters_, tape_workspace_, tape.next_slot, &finished};
  float* dhidden = nullptr;
  if (tape.narrowed) {
    context.finish(kPlannerStage);
    dhidden = gradient_workspace_.get(kDHidden, s * c);
    tokens_backward(context, request, dlog_prob, dhidden);
  } else {
    if (to_hidden) {
      dhidden = gradient_workspace_.get(kDHidden, n * c);
      backend_.fill_zero(dhidden, n * c);
    }
    if (from_planner)
      pass.planner_backward(context, model_.weights(), dplanner, dhidden,
                            gradient_workspace_.get(kDStates, pass.state_tokens() * c), tape.planner,
                            options_.planner_trains);
    context.finish(kPlannerStage);
    if (from_tokens) {
      float* dscored = gradient_workspace_.get(kDCandidate, s * c);
      tokens_backward(context, request, dlog_prob, dscored);
      backend_.scatter_add_rows(dhidden, dscored, tape.scored.rows.data(), s, c);
    }
  }
  context.finish(kHeadStage);
  if (given_hidden)
    backend_.download(dhidden_out.data(), dhidden, dhidden_out.size() * 4);
  else if (options_.base_trains)
    hidden_backward(context, model_.weights(), tape.base_tokens(), tape.request.ids, dhidden, tape.base);
  tape_.reset();
  return dhidden_out;
}

}  // namespace dultra
