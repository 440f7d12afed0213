// Denoising steps that are recorded and repeated, against the same steps done one operation after the other; and
// Exchanges by themselves. On the CPU backend nothing is recorded: there the tests say that an exchange changes
// nothing.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <thread>

#include "harness.h"
#include "model/trainer.h"
#include "model_fixture.h"
#ifdef DULTRA_EMULATOR
#include <cuda_runtime.h>

#include "backends/cuda/cuda_exchange.h"
#include "emulator/emulator.h"
#endif

namespace dultra {
namespace test {
namespace {

#if defined(DULTRA_EMULATOR) || defined(DULTRA_GPU)
constexpr bool kRecords = true;
#else
constexpr bool kRecords = false;
#endif

Exchange::Counts counts_of(const Model& model) { return model.borrow_scratch()->exchange->counts(); }

// A model on a backend that waits for every operation, and so records nothing.
std::shared_ptr<Model> load_direct(const RandomCheckpoint& checkpoint, const LoadOptions& options = {}) {
  const Checkpoint file({checkpoint.file->path()}, checkpoint.tensors);
  return std::make_shared<Model>(checkpoint.config, make_backend(1, "", options.compute), file, options, nullptr);
}

// Which positions of a row a step with a cache computes.
enum class Shape { kPlain, kWhole, kPrefix, kDual };

struct Case {
  UnmaskRule rule = UnmaskRule::kPlannerBernoulli;
  Shape shape = Shape::kPlain;
  PlannerCache planner = PlannerCache::kNone;
  bool by_entropy = false, wants_planner = false;
  float temperature = 0.8f;
  int prompt = 0;  // given ids in front of every row
};

SessionRequest request_of(const Case& c) {
  SessionRequest request;
  request.seed = 11;
  request.temperature = c.temperature;
  request.rule = c.rule;
  request.by_entropy = c.by_entropy;
  request.planner = c.wants_planner;
  request.threshold = is_planner_rule(c.rule) || c.rule == UnmaskRule::kThreshold ? 0.3
                      : c.rule == UnmaskRule::kEntropySum                         ? 6
                                                                                  : 3.2;
  request.factor = 0.9;
  return request;
}

// A generation in blocks of 8 positions, row by row as a decoding loop does it: rows end at different times.
class Generation {
 public:
  Generation(const std::shared_ptr<const Model>& model, const Case& c, uint64_t seed) : case_(c) {
    Random random(seed);
    for (int r = 0; r < 3; ++r) {
      const int length = c.prompt + 10 + 9 * r + random.below(3), given = c.prompt + 1 + random.below(4);
      for (int i = 0; i < length; ++i) ids_.push_back(i < given ? random.below(49) : 49);
      offsets_.push_back(int32_t(ids_.size()));
      block_.push_back(0);
      fresh_.push_back(true);
    }
    KvCacheOptions options;
    options.planner = c.planner;
    std::shared_ptr<KvCache> cache;
    if (c.shape != Shape::kPlain) cache = make_cache(model, offsets_, options);
    session_ = std::make_unique<Session>(model, ids_, offsets_, cache);
  }

  // False when all rows are done.
  bool step(std::vector<StepResult>* results) {
    SessionRequest request = request_of(case_);
    const bool cached = case_.shape != Shape::kPlain;
    if (cached) request.query_offsets.push_back(0);
    for (int r = 0; r < 3; ++r) {
      const int32_t* row = &ids_[size_t(offsets_[size_t(r)])];
      const int32_t length = offsets_[size_t(r) + 1] - offsets_[size_t(r)];
      const auto end = [&] { return std::min(length, 8 * (block_[size_t(r)] + 1)); };
      while (block_[size_t(r)] * 8 < length && std::find(row + 8 * block_[size_t(r)], row + end(), 49) == row + end()) {
        ++block_[size_t(r)];
        fresh_[size_t(r)] = true;
      }
      if (8 * block_[size_t(r)] >= length) continue;
      request.rows.push_back(r);
      request.window_ends.push_back(end());
      request.row_keys.push_back(uint32_t(10 + r));
      request.steps.push_back(step_);
      if (is_counted_rule(case_.rule)) request.counts.push_back(1 + r);
      if (!cached) continue;
      const bool whole = fresh_[size_t(r)] || case_.shape == Shape::kWhole;
      for (int32_t p = whole ? 0 : 8 * block_[size_t(r)]; p < (whole || case_.shape == Shape::kPrefix ? length : end());
           ++p)
        request.queries.push_back(p);
      request.query_offsets.push_back(int32_t(request.queries.size()));
      fresh_[size_t(r)] = false;
    }
    if (request.rows.empty()) return false;
    ++step_;
    const StepResult result = session_->step(request);
    for (size_t r = 0; r < request.rows.size(); ++r) {
      for (int32_t i = result.offsets[r]; i < result.offsets[r + 1]; ++i) {
        if (result.selected[size_t(i)])
          ids_[size_t(offsets_[size_t(request.rows[r])] + result.positions[size_t(i)])] = result.tokens[size_t(i)];
      }
    }
    results->push_back(result);
    return true;
  }

  const std::vector<int32_t>& ids() const { return ids_; }

 private:
  const Case case_;
  std::vector<int32_t> ids_, offsets_{0}, block_;
  std::vector<bool> fresh_;
  std::unique_ptr<Session> session_;
  uint32_t step_ = 0;
};

bool equal(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), a.size());
}

bool equal(const StepResult& a, const StepResult& b) {
  return a.offsets == b.offsets && a.positions == b.positions && a.tokens == b.tokens &&
         equal(a.log_probs, b.log_probs) && equal(a.confidences, b.confidences) && equal(a.entropies, b.entropies) &&
         equal(a.planner_logits, b.planner_logits) && equal(a.probabilities, b.probabilities) &&
         equal(a.log_likelihoods, b.log_likelihoods) && a.selected == b.selected && a.forced == b.forced &&
         equal(a.timesteps, b.timesteps) && a.non_finite == b.non_finite;
}

std::vector<StepResult> generate(const std::shared_ptr<const Model>& model, const Case& c, uint64_t seed) {
  Generation generation(model, c, seed);
  std::vector<StepResult> results;
  while (results.size() < 200 && generation.step(&results)) {
  }
  return results;
}

void check_equal(const std::vector<StepResult>& a, const std::vector<StepResult>& b, const std::string& where) {
  CHECK(a.size() == b.size() && a.size() > 2, where, " steps ", a.size(), " for ", b.size());
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) CHECK(equal(a[i], b[i]), where, " step ", i);
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (UnmaskRule rule : {UnmaskRule::kPlannerBernoulli, UnmaskRule::kPlannerTopK, UnmaskRule::kPlannerRound,
                          UnmaskRule::kPlannerThreshold, UnmaskRule::kThreshold, UnmaskRule::kFactor,
                          UnmaskRule::kEntropy, UnmaskRule::kEntropySum, UnmaskRule::kFixed, UnmaskRule::kDynamic,
                          UnmaskRule::kRandom, UnmaskRule::kLeftToRight}) {
    Case c;
    c.rule = rule;
    if (rule == UnmaskRule::kFactor) c.temperature = 0;
    cases.push_back(c);
  }
  Case by_entropy;
  by_entropy.rule = UnmaskRule::kFixed;
  by_entropy.by_entropy = by_entropy.wants_planner = true;
  cases.push_back(by_entropy);
  // A list in the loop itself draws a false warning from GCC 12 for arm64.
  static constexpr Shape kShapes[] = {Shape::kWhole, Shape::kPrefix, Shape::kDual};
  for (Shape shape : kShapes)
    for (PlannerCache planner : {PlannerCache::kNone, PlannerCache::kBlocks, PlannerCache::kHidden}) {
      Case c;
      c.rule = planner == PlannerCache::kNone ? UnmaskRule::kFixed : UnmaskRule::kPlannerTopK;
      c.shape = shape;
      c.planner = planner;
      cases.push_back(c);
    }
  return cases;
}

std::string name_of(const Case& c) {
  return text("rule ", int(c.rule), " shape ", int(c.shape), " planner ", int(c.planner));
}

DULTRA_TEST(step_recorded_is_direct) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 51);
  const auto direct = load_direct(checkpoint);
  for (int schedule = 0; schedule < (kEmulated ? 2 : 1); ++schedule) {
    const auto model = checkpoint.load(schedule + 1);
    for (const Case& c : all_cases()) {
      if (schedule == 1 && c.rule != UnmaskRule::kPlannerTopK) continue;
      const std::vector<StepResult> expected = generate(direct, c, 1);
      // The third time repeats what the second recorded.
      for (int round = 0; round < 3; ++round) {
        const Exchange::Counts before = counts_of(*model);
        check_equal(generate(model, c, 1), expected, text(name_of(c), " round ", round));
        const Exchange::Counts after = counts_of(*model);
        const int64_t steps = int64_t(expected.size());
        CHECK(
            after.direct + after.recorded + after.repeated == before.direct + before.recorded + before.repeated + steps,
            name_of(c));
        if (kRecords && c.shape == Shape::kPlain && round == 2)
          CHECK(after.repeated == before.repeated + steps, name_of(c), after.repeated - before.repeated);
        if (!kRecords) CHECK(after.direct == before.direct + steps, name_of(c));
      }
    }
    CHECK(counts_of(*model).held <= 64, counts_of(*model).held);
  }
  CHECK(counts_of(*direct).recorded == 0 && counts_of(*direct).held == 0, "direct");
}

// A batch's rows are those of each row alone, recorded or not.
DULTRA_TEST(step_rows_are_independent, small, slow_with_threads) {
  const RandomCheckpoint checkpoint(small_config(), DType::kBF16, 52);
  const auto model = checkpoint.load(1), alone_model = checkpoint.load(2);
  Random random(1);
  std::vector<int32_t> ids, offsets;
  make_rows(random, checkpoint.config, 3, &ids, &offsets);
  for (int round = 0; round < 3; ++round) {
    Session together(model, ids, offsets);
    std::vector<std::unique_ptr<Session>> alone;
    for (size_t r = 0; r < 3; ++r)
      alone.push_back(std::make_unique<Session>(
          alone_model, std::vector<int32_t>(ids.begin() + offsets[r], ids.begin() + offsets[r + 1]),
          std::vector<int32_t>{0, offsets[r + 1] - offsets[r]}));
    for (uint32_t step = 0; step < 6; ++step) {
      const StepResult result = together.step(request_for(offsets, step));
      for (size_t r = 0; r < 3; ++r) {
        SessionRequest one = request_for({0, offsets[r + 1] - offsets[r]}, step);
        one.row_keys = {uint32_t(r)};
        const StepResult single = alone[r]->step(one);
        const size_t begin = size_t(result.offsets[r]), count = single.tokens.size();
        CHECK(size_t(result.offsets[r + 1]) == begin + count, "candidates of row ", r);
        CHECK(std::equal(single.tokens.begin(), single.tokens.end(), result.tokens.begin() + long(begin)),
              "tokens of row ", r, " step ", step);
        CHECK(std::equal(single.selected.begin(), single.selected.end(), result.selected.begin() + long(begin)),
              "selected of row ", r);
        CHECK(same_bits(single.planner_logits.data(), result.planner_logits.data() + begin, count),
              "planner logits of row ", r, " step ", step);
        CHECK(same_bits(single.log_likelihoods.data(), result.log_likelihoods.data() + begin, count),
              "log-likelihoods of row ", r);
      }
    }
  }
}

// Candidates with a set become what is in it, whatever the rule; rows without one keep their bits, also where the steps
// are recorded and repeated.
DULTRA_TEST(step_allowed_tokens, small, slow_with_threads) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 54);
  const auto model = checkpoint.load(2);
  const int32_t words = (model->config().embedding_size + 31) / 32;
  const std::vector<int32_t> ids{1, 2, 49, 49, 49, 3, 49, 49, 49, 4}, offsets{0, 5, 10};
  for (UnmaskRule rule : {UnmaskRule::kThreshold, UnmaskRule::kPlannerTopK, UnmaskRule::kLeftToRight})
    for (float temperature : {0.0f, 0.9f})
      for (int repeat = 0; repeat < 3; ++repeat) {
        Case c;
        c.rule = rule;
        c.temperature = temperature;
        SessionRequest request = request_of(c);
        request.rows = {0, 1};
        request.window_ends = {5, 5};
        request.row_keys = {1, 2};
        request.steps = {uint32_t(repeat), uint32_t(repeat)};
        if (is_counted_rule(rule)) request.counts = {3, 3};
        if (repeat == 2) request.top_k = 3;
        Session session(model, ids, offsets);
        const StepResult free = session.peek(request);
        request.allowed = {-1, -1, -1, 1, 0, 1};
        request.allowed_sets.assign(size_t(2 * words), 0);
        request.allowed_sets[0] = 1u << 7;
        request.allowed_sets[size_t(words)] = 1u << 20 | 1u << 21;
        const StepResult bound = session.peek(request);
        const std::string where = text("rule ", int(rule), " T ", temperature, " repeat ", repeat);
        CHECK(std::equal(free.tokens.begin(), free.tokens.begin() + 3, bound.tokens.begin()) &&
                  same_bits(free.confidences.data(), bound.confidences.data(), 3) &&
                  same_bits(free.log_probs.data(), bound.log_probs.data(), 3) &&
                  same_bits(free.log_likelihoods.data(), bound.log_likelihoods.data(), 3) &&
                  std::equal(free.selected.begin(), free.selected.begin() + 3, bound.selected.begin()),
              where, " the row without sets");
        CHECK(bound.tokens[4] == 7 && bound.confidences[4] == 1 && bound.log_probs[4] == 0, where);
        for (size_t i : {size_t(3), size_t(5)})
          CHECK((bound.tokens[i] == 20 || bound.tokens[i] == 21) && bound.confidences[i] >= 0.3f, where, " token ",
                bound.tokens[i]);
      }
  Session session(model, ids, offsets);
  SessionRequest request = request_of({});
  request.rows = {0, 1};
  request.window_ends = {5, 5};
  request.row_keys = {1, 2};
  request.steps = {0, 0};
  for (const auto& wrong : std::vector<std::vector<int32_t>>{{0}, {0, 0, 0, 0, 0, 1}, {0, 0, 0, 0, 0, -2}}) {
    request.allowed = wrong;
    request.allowed_sets.assign(size_t(words), 1);
    ErrorCode code = ErrorCode::kInternal;
    try {
      session.peek(request);
    } catch (const Error& error) {
      code = error.code();
    }
    CHECK(code == ErrorCode::kInvalidArgument, "allowed of ", wrong.size(), " ending in ", wrong.back());
  }
}

// Rows without candidates, the last one too: what fills up belongs to a row that has some.
DULTRA_TEST(step_rows_without_candidates, small, slow_with_threads) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 60);
  const auto direct = load_direct(checkpoint), model = checkpoint.load(1);
  const std::vector<int32_t> offsets = {0, 4, 30, 33, 36};
  std::vector<int32_t> ids(36, 7);
  for (int32_t i : {1, 6, 20, 27, 28, 29}) ids[size_t(i)] = 49;
  for (PlannerCache planner : {PlannerCache::kNone, PlannerCache::kBlocks, PlannerCache::kHidden}) {
    KvCacheOptions options;
    options.planner = planner;
    std::vector<std::unique_ptr<Session>> sessions;
    for (const auto& m : {direct, model})
      sessions.push_back(std::make_unique<Session>(
          m, ids, offsets, planner == PlannerCache::kNone ? nullptr : make_cache(m, offsets, options)));
    for (uint32_t step = 0; step < 6; ++step) {
      SessionRequest request = request_for(offsets, step);
      request.select = step > 3;
      request.planner = true;
      if (planner != PlannerCache::kNone) {
        request.query_offsets.push_back(0);
        for (size_t r = 0; r < 4; ++r) {
          for (int32_t p = 0; p < offsets[r + 1] - offsets[r]; ++p) request.queries.push_back(p);
          request.query_offsets.push_back(int32_t(request.queries.size()));
        }
      }
      const StepResult expected = sessions[0]->step(request), result = sessions[1]->step(request);
      CHECK(equal(result, expected) && result.offsets[4] == result.offsets[2], "planner ", int(planner), " step ",
            step);
    }
  }
}

// Rows whose candidates have tokens scored, beside rows that are denoised: log-probabilities are those of the model's
// logits, and the bits those of each row alone, recorded or not.
DULTRA_TEST(step_scores_tokens, small, slow_with_threads) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 62);
  const auto direct = load_direct(checkpoint), model = checkpoint.load(2);
  StepRule scored, denoised;
  scored.scored = true;
  scored.select = false;
  denoised.rule = UnmaskRule::kFixed;
  denoised.temperature = 0.7f;
  const std::vector<int32_t> lengths{9, 21, 13, 30};
  // Tokens of each of a row's candidates, which are the masks of rows 0, 1 and 3.
  const std::vector<std::vector<std::vector<int32_t>>> tokens{
      {{3}, {48, 0, 3}}, {{7, 7, 12}}, {}, {{1}, {2}, {0, 1, 2, 3, 4, 5, 6, 40}}};
  const auto request_of = [&](const std::vector<size_t>& rows) {
    StepRequest request;
    request.offsets = request.rule_offsets = request.candidate_offsets = request.score_offsets = {0};
    for (size_t i = 0; i < rows.size(); ++i) {
      const size_t r = rows[i];
      const int32_t masks = tokens[r].empty() ? 5 : int32_t(tokens[r].size());
      for (int32_t p = 0; p < lengths[r]; ++p) {
        const bool masked = p >= 3 && p < 3 + masks;
        request.ids.push_back(masked ? 49 : (7 * int32_t(r) + p) % 49);
        if (!masked) continue;
        request.candidates.push_back(p);
        if (!tokens[r].empty())
          for (int32_t token : tokens[r][size_t(p - 3)]) request.score_tokens.push_back(token);
        request.score_offsets.push_back(int32_t(request.score_tokens.size()));
      }
      request.offsets.push_back(int32_t(request.ids.size()));
      request.candidate_offsets.push_back(int32_t(request.candidates.size()));
      request.rules.push_back(tokens[r].empty() ? denoised : scored);
      request.rule_offsets.push_back(int32_t(i) + 1);
      request.window_ends.push_back(lengths[r]);
      request.seeds.push_back(5);
      request.row_keys.push_back(uint32_t(r));
      request.steps.push_back(0);
      request.counts.push_back(2);
    }
    // Nothing is scored.
    if (request.score_tokens.empty()) request.score_offsets.clear();
    return request;
  };
  for (const std::vector<size_t>& order : {std::vector<size_t>{0, 1, 2, 3}, {2, 3, 0, 1}, {3, 2, 1, 0}}) {
    const StepRequest all = request_of(order);
    const StepResult expected = run_step(*direct, all, nullptr);
    CHECK(expected.scores.size() == all.score_tokens.size() && !expected.scores.empty(), "scores");
    // The third time repeats what the second recorded.
    for (int round = 0; round < 3; ++round) {
      const StepResult result = run_step(*model, all, nullptr);
      CHECK(equal(result, expected) && equal(result.scores, expected.scores), "round ", round);
    }
    size_t at = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      const size_t r = order[i];
      const StepRequest own = request_of({r});
      const StepResult alone = run_step(*model, own, nullptr);
      CHECK(same_bits(alone.scores.data(), expected.scores.data() + at, alone.scores.size()), "row ", r, " alone");
      at += alone.scores.size();
      CHECK(std::equal(alone.tokens.begin(), alone.tokens.end(), expected.tokens.begin() + expected.offsets[i]), "row ",
            r);
      if (tokens[r].empty()) continue;
      ForwardRequest forward;
      forward.ids = own.ids;
      forward.offsets = own.offsets;
      forward.logits = true;
      const ForwardResult passed = run_forward(*direct, forward, nullptr);
      size_t place = 0;
      for (size_t c = 0; c < tokens[r].size(); ++c) {
        const float* x = passed.logits.data() + (c + 3) * size_t(checkpoint.config.embedding_size);
        double sum = 0;
        for (int64_t token = 0; token < checkpoint.config.embedding_size; ++token)
          if (token != 49) sum += std::exp(double(x[token]));
        for (int32_t token : tokens[r][c]) {
          const double log_prob = double(x[token]) - std::log(sum);
          CHECK(std::fabs(alone.scores[place] - log_prob) < 1e-5, "row ", r, " ", alone.scores[place], " for ",
                log_prob);
          ++place;
        }
      }
    }
  }
  const auto refused = [&](const std::function<void(StepRequest&)>& change) {
    StepRequest request = request_of({0, 2});
    change(request);
    return thrown([&] { run_step(*model, request, nullptr); }) == int(ErrorCode::kInvalidArgument);
  };
  CHECK(refused([](StepRequest& it) { it.score_tokens[0] = 49; }), "the mask");
  CHECK(refused([](StepRequest& it) { it.score_tokens[0] = -1; }), "no token");
  CHECK(refused([](StepRequest& it) { it.score_tokens.back() = 1 << 20; }), "no token");
  CHECK(refused([](StepRequest& it) { it.score_offsets[1] = 0; }), "a candidate without tokens");
  CHECK(refused([](StepRequest& it) { it.score_offsets.back() = 9; }), "too few tokens");
  CHECK(refused([](StepRequest& it) { it.rules[0].select = true; }), "a rule that selects");
  CHECK(refused([](StepRequest& it) { it.rules[0].scored = false; }), "tokens of a row that is not scored");
}

// Rows with rules, seeds and ranges of a cache of their own: each gets the bits that it gets alone, wherever it lies.
DULTRA_TEST(step_rules_of_rows, small, slow_with_threads) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 61);
  const auto model = checkpoint.load(2);
  const auto rule_of = [](UnmaskRule kind, float temperature, double threshold) {
    StepRule rule;
    rule.rule = kind;
    rule.temperature = temperature;
    rule.threshold = threshold;
    rule.planner = true;
    return rule;
  };
  StepRule proposes = rule_of(UnmaskRule::kThreshold, 0.5f, 0);
  proposes.select = false;
  StepRule margins = rule_of(UnmaskRule::kFixed, 0, 0);
  margins.by_margin = true;
  margins.scores = SampleScores::kTempered;
  StepRule filtered = rule_of(UnmaskRule::kThreshold, 0.9f, 0.02);
  filtered.top_k = 3;
  const std::vector<StepRule> rules{rule_of(UnmaskRule::kPlannerBernoulli, 0.8f, 0), proposes, margins, filtered,
                                    rule_of(UnmaskRule::kDynamic, 1.3f, 0.05)};
  const std::vector<int32_t> lengths{9, 20, 12, 8, 17}, begins{3, 12, 40, 52, 60};
  for (bool cached : {false, true}) {
    KvCacheOptions options;
    options.planner = PlannerCache::kBlocks;
    const auto request_of = [&](const std::vector<size_t>& rows, const std::shared_ptr<KvCache>& cache,
                                const std::vector<int32_t>& at) {
      StepRequest request;
      request.offsets = request.rule_offsets = {0};
      if (cached) request.query_offsets = {0};
      for (size_t i = 0; i < rows.size(); ++i) {
        const size_t r = rows[i];
        for (int32_t p = 0; p < lengths[r]; ++p) {
          request.ids.push_back(p < 2 + int32_t(r) ? int32_t(7 * r) + p : 49);
          if (cached) request.queries.push_back(p);
        }
        request.offsets.push_back(int32_t(request.ids.size()));
        if (cached) request.query_offsets.push_back(int32_t(request.queries.size()));
        request.rules.push_back(rules[r]);
        request.rule_offsets.push_back(int32_t(i) + 1);
        request.window_ends.push_back(lengths[r]);
        request.seeds.push_back(1000 + r);
        request.row_keys.push_back(uint32_t(r));
        request.steps.push_back(uint32_t(3 * r));
        request.counts.push_back(2);
      }
      request.cache = cache;
      if (cached) {
        request.cache_begins = at;
        request.fresh.assign(rows.size(), 1);
      }
      return request;
    };
    const auto arena = cached ? make_cache(model, {0, 40, 80}, options) : nullptr;
    const StepResult together = run_step(*model, request_of({0, 1, 2, 3, 4}, arena, begins), nullptr);
    for (size_t r = 0; r < rules.size(); ++r) {
      const auto own = cached ? make_cache(model, {0, lengths[r]}, options) : nullptr;
      const StepResult alone = run_step(*model, request_of({r}, own, {0}), nullptr);
      const size_t from = size_t(together.offsets[r]), count = size_t(together.offsets[r + 1]) - from;
      const std::string where = text("row ", r, " cached ", cached);
      CHECK(count == alone.tokens.size() && count > 0, where);
      const auto same = [&](const auto& all, const auto& mine) {
        return mine.size() == count && std::memcmp(&all[from], mine.data(), count * sizeof(mine[0])) == 0;
      };
      CHECK(same(together.tokens, alone.tokens) && same(together.log_probs, alone.log_probs), where, " tokens");
      CHECK(same(together.confidences, alone.confidences) && same(together.entropies, alone.entropies), where);
      CHECK(same(together.selected, alone.selected), where, " selected");
      CHECK(same(together.probabilities, alone.probabilities), where, " probabilities");
      CHECK(same(together.log_likelihoods, alone.log_likelihoods), where, " likelihoods");
      CHECK(together.forced[r] == alone.forced[0] && together.timesteps[r] == alone.timesteps[0], where, " forced");
      if (rules[r].by_margin) CHECK(same(together.margins, alone.margins), where, " margins");
    }
    if (!cached) continue;
    // A range that another row had before.
    StepRequest next = request_of({2}, arena, {10});
    const StepResult again = run_step(*model, next, nullptr);
    CHECK(std::equal(again.tokens.begin(), again.tokens.end(), together.tokens.begin() + together.offsets[2]), "again");
    next.query_offsets = {0, 1};
    next.queries = {11};
    next.candidate_offsets = {0, 1};
    next.candidates = {11};
    CHECK(thrown([&] { run_step(*model, next, nullptr); }) == int(ErrorCode::kInvalidArgument),
          "what another row left");
    next.fresh.clear();
    CHECK(thrown([&] { run_step(*model, next, nullptr); }) == int(ErrorCode::kInvalidArgument), "was forgotten");
    for (const std::vector<int32_t>& at : {std::vector<int32_t>{70}, {-1}, {std::numeric_limits<int32_t>::max()}})
      CHECK(thrown([&] { run_step(*model, request_of({2}, arena, at), nullptr); }) == int(ErrorCode::kInvalidArgument),
            "outside the cache");
    CHECK(thrown([&] {
            run_step(*model, request_of({0, 1}, arena, {0, 5}), nullptr);
          }) == int(ErrorCode::kInvalidArgument),
          "ranges that overlap");
  }
  StepRequest wrong;
  wrong.ids = {1, 49};
  wrong.offsets = {0, 2};
  wrong.window_ends = {2};
  wrong.seeds = {0};
  wrong.row_keys = wrong.steps = {0};
  for (const std::vector<int32_t>& offsets : {std::vector<int32_t>{0}, {0, 2}, {0, 1, 0}, {1, 1}}) {
    wrong.rule_offsets = offsets;
    wrong.rules.resize(offsets.size() > 2 ? 2 : 1);
    CHECK(thrown([&] { run_step(*model, wrong, nullptr); }) == int(ErrorCode::kInvalidArgument), "rules of other rows");
  }
  wrong.rules.clear();
  wrong.rule_offsets.clear();
  CHECK(thrown([&] { run_step(*model, wrong, nullptr); }) == int(ErrorCode::kInvalidArgument), "no rules");
}

// Sessions that take turns share recordings, also where each has a cache of its own.
DULTRA_TEST(step_two_sessions_take_turns, small) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 53);
  const auto direct = load_direct(checkpoint), model = checkpoint.load(1);
  for (Shape shape : {Shape::kPlain, Shape::kDual}) {
    Case c;
    c.shape = shape;
    c.planner = PlannerCache::kBlocks;
    const std::vector<StepResult> expected[] = {generate(direct, c, 3), generate(direct, c, 4)};
    for (int round = 0; round < 3; ++round) {
      Generation first(model, c, 3), second(model, c, 4);
      std::vector<StepResult> results[2];
      bool more[2] = {true, true};
      while (more[0] || more[1]) {
        if (more[0]) more[0] = first.step(&results[0]);
        if (more[1]) more[1] = second.step(&results[1]);
      }
      for (int i = 0; i < 2; ++i) check_equal(results[i], expected[i], text("session ", i, " round ", round));
    }
    if (kRecords) CHECK(counts_of(*model).repeated > int64_t(expected[0].size()), counts_of(*model).repeated);
  }
}

// What is passed by value and what moves: weights that are written between two steps are those of the next one.
DULTRA_TEST(step_after_weights_were_written, small, slow_with_threads) {
  for (DType dtype : {DType::kF32, DType::kF16}) {
    ModelConfig config = small_config();
    const RandomCheckpoint checkpoint(config, dtype, 54);
    const auto direct = load_direct(checkpoint), model = checkpoint.load(1);
    std::vector<StepResult> results[2];
    const std::shared_ptr<Model> models[] = {direct, model};
    for (int which = 0; which < 2; ++which) {
      Model& m = *models[which];
      Backend& backend = m.backend();
      std::vector<int32_t> ids(20, 49), offsets = {0, 20};
      ids[0] = 3;
      Session session(models[which], ids, offsets);
      for (uint32_t step = 0; step < 18; ++step) {
        SessionRequest request = request_for(offsets, step);
        request.select = step % 6 == 5;
        request.planner = true;
        request.rule = UnmaskRule::kFixed;
        request.counts = {1};
        results[which].push_back(session.step(request));
        if (step % 6 != 3) continue;
        // The planner's bias, a matrix, and the embedding table: one of halves becomes fp32, elsewhere in memory.
        std::vector<Buffer> held;
        m.weights().write([&](const std::string& name) -> const float* {
          if (name != "mask_linear.bias" && name != "model.transformer.wte.weight" &&
              name != "model.transformer.ff_out.weight")
            return nullptr;
          std::vector<float> values = m.weights().read(name);
          for (float& x : values) x = x * 0.7f + 0.1f;
          held.emplace_back(backend, values.size() * 4);
          backend.upload(held.back().as<void>(), values.data(), values.size() * 4);
          return held.back().as();
        });
      }
    }
    check_equal(results[1], results[0], text("dtype ", int(dtype)));
    if (kRecords) CHECK(counts_of(*model).recorded > 0 && counts_of(*model).repeated > 0, counts_of(*model).recorded);
    CHECK(!equal(results[0][3].planner_logits, results[0][4].planner_logits), "the weights changed nothing");
  }
}

// Scratch memory that moves ends the recordings that work on it.
DULTRA_TEST(step_after_scratch_memory_moved, small, slow_with_threads) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 55);
  const auto direct = load_direct(checkpoint), model = checkpoint.load(1);
  const Case c;
  const std::vector<StepResult> expected = generate(direct, c, 5);
  std::vector<int32_t> ids, offsets = {0};
  for (int row = 1; row <= 4; ++row) {
    for (int round = 0; round < 3; ++round)
      check_equal(generate(model, c, 5), expected, text("row ", row, " round ", round));
    const int64_t held = counts_of(*model).held;
    if (kRecords) CHECK(held > 0, held);
    // More rows every time.
    ids.insert(ids.end(), 64, 49);
    offsets.push_back(int32_t(ids.size()));
    run_forward(*model, ids, offsets, true);
    if (kRecords) CHECK(counts_of(*model).held == 0, counts_of(*model).held, " of ", held);
    Session session(model, ids, offsets);
    session.step(request_for(offsets, 0));
  }
}

// A model keeps as much scratch memory as passes ran at a time lately, and the pass that comes next gets the last one.
DULTRA_TEST(step_scratch_memory_is_borrowed) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 56);
  const auto model = checkpoint.load(1);
  // Only compared: the memory is returned with its owner.
  const auto last = [&] {
    const Model::Scratch* lent = nullptr;
    lent = model->borrow_scratch().get();
    return lent;
  };
  const Model::Scratch* first = last();
  CHECK(last() == first, "kept");
  const auto borrow_two = [&] {
    auto one = model->borrow_scratch(), two = model->borrow_scratch();
    return std::make_pair(one.get(), two.get());
  };
  const auto two = borrow_two(), again = borrow_two();
  CHECK(two.first != two.second && (two.first == first || two.second == first), "each its own");
  CHECK((again.first == two.first && again.second == two.second) ||
            (again.first == two.second && again.second == two.first),
        "two are kept");
  const Model::Scratch* kept = nullptr;
  for (int pass = 0; pass < 2 * Model::kRecentPasses; ++pass) kept = last();
  CHECK(last() == kept, "one is kept");
}

// Logits that are no numbers: the error says where, nothing is decided, and the next step is as if there had been none.
DULTRA_TEST(step_of_nan, small, slow_with_threads) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 57);
  const auto model = checkpoint.load(1), direct = load_direct(checkpoint);
  const std::vector<int32_t> ids = {1, 2, 49, 49, 49, 49}, offsets = {0, 6};
  const auto write = [&](const std::string& tensor, float factor) {
    Backend& backend = model->backend();
    std::vector<float> values = direct->weights().read(tensor);
    for (float& x : values) x *= factor;
    Buffer buffer(backend, values.size() * 4);
    backend.upload(buffer.as<void>(), values.data(), values.size() * 4);
    model->weights().write([&](const std::string& name) { return name == tensor ? buffer.as() : nullptr; });
  };
  Session session(model, ids, offsets), expected(direct, ids, offsets);
  const auto request = [&](uint32_t step) {
    SessionRequest out = request_for(offsets, step);
    out.planner = true;
    out.rule = UnmaskRule::kFixed;
    out.counts = {1};
    return out;
  };
  for (uint32_t step = 0; step < 4; ++step) {
    for (int repeat = 0; repeat < 3; ++repeat) {
      write("mask_linear.bias", NAN);
      const StepResult result = session.peek(request(step));
      CHECK(result.non_finite == std::vector<int32_t>{2 * result.positions[0] + 1}, "the planner");
    }
    write("mask_linear.bias", 1);
    write("model.transformer.ff_out.weight", INFINITY);
    const StepResult result = session.peek(request(step));
    CHECK(result.non_finite == std::vector<int32_t>{2 * result.positions[0]}, "the model");
    write("model.transformer.ff_out.weight", 1);
    CHECK(equal(session.step(request(step)), expected.step(request(step))), "step ", step);
  }
}

// Threads with sessions of their own, and one that computes something else meanwhile.
DULTRA_TEST(step_from_several_threads) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 58);
  const auto model = checkpoint.load(1), direct = load_direct(checkpoint);
  Case cached;
  cached.shape = Shape::kPrefix;
  cached.planner = PlannerCache::kBlocks;
  const Case cases[] = {Case(), cached, Case()};
  std::vector<StepResult> expected[3];
  for (int t = 0; t < 3; ++t) expected[t] = generate(direct, cases[t], uint64_t(6 + t));
  bool good[3] = {true, true, true};
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      for (int round = 0; round < 3; ++round) {
        Generation generation(model, cases[t], uint64_t(6 + t));
        std::vector<StepResult> results;
        while (generation.step(&results)) {
        }
        good[t] = good[t] && results.size() == expected[t].size() &&
                  std::equal(results.begin(), results.end(), expected[t].begin(),
                             [](const StepResult& a, const StepResult& b) { return equal(a, b); });
      }
    });
  std::thread other([&] {
    for (int32_t length = 1; !stop; length = length % 50 + 7)
      run_forward(*model, std::vector<int32_t>(size_t(length), 7), {0, length}, true);
  });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  other.join();
  for (int t = 0; t < 3; ++t) CHECK(good[t], "thread ", t);
}

#if defined(DULTRA_EMULATOR)
// A step in bf16 through cuBLASLt, with attention on tensor cores that splits long rows' keys: all of it is recorded
// too.
DULTRA_TEST(step_recorded_in_bf16) {
  emulator::set_cublaslt(true);
  ModelConfig config = small_config();
  config.hidden = 64;
  config.heads = 1;
  config.kv_heads = 1;
  config.head_dim = 64;
  config.mlp_hidden = 64;
  config.embedding_size = 56;
  config.layers = 1;
  config.max_sequence_length = 512;
  const RandomCheckpoint checkpoint(config, DType::kBF16, 59);
  LoadOptions options;
  options.compute = Compute::kBF16;
  const auto direct = load_direct(checkpoint, options), model = checkpoint.load(0, options);
  for (int prompt : {0, 140}) {
    Case c;
    c.prompt = prompt;
    c.rule = prompt ? UnmaskRule::kRandom : UnmaskRule::kPlannerBernoulli;
    const int64_t before = counts_of(*model).repeated;
    const std::vector<StepResult> expected = generate(direct, c, 2);
    for (int round = 0; round < 3; ++round)
      check_equal(generate(model, c, 2), expected, text("prompt ", prompt, " round ", round));
    CHECK(counts_of(*model).repeated >= before + int64_t(expected.size()), counts_of(*model).repeated);
  }
  emulator::set_cublaslt(false);
}
#endif

// ---- exchanges ----------------------------------------------------------------------------------

struct Shared {
  std::unique_ptr<Backend> backend = make_model_backend(1);
  std::unique_ptr<Exchange> exchange = backend->make_exchange();
  Buffer table{*backend, 64 * 4}, out{*backend, 64 * 4}, marks{*backend, 256 * 4};
  std::vector<int32_t> plain = std::vector<int32_t>(16, 3);
  int32_t* index = nullptr;
  float* result = nullptr;

  Shared() {
    std::vector<float> values(64);
    for (size_t i = 0; i < 64; ++i) values[i] = float(i);
    backend->upload(table.as<void>(), values.data(), 256);
    place(4096);
  }
  // The arrays' places, where there are `bytes` of memory.
  void place(size_t bytes) {
    ExchangeLayout layout(exchange->reserve(bytes));
    index = layout.room<int32_t>(16);
    result = layout.room<float>(64);
    std::fill_n(index, 16, 0);
    exchange->send(0, layout.bytes());
  }
  void gather(const int32_t* by) { backend->gather_rows(out.as(), table.as(), by, 16, 4); }
  // Gathers rows that begin with `first`; true if what was gathered are those rows. Runs of another `mark` launch
  // something else.
  bool gathers(int64_t mark, int32_t first) {
    for (int32_t i = 0; i < 16; ++i) index[i] = (first + i) % 16;
    exchange->send(0, 64);
    exchange->run([&] {
      backend->fill_zero(marks.as() + mark, 1);
      gather(index);
    });
    float rows[64];
    backend->download(rows, out.as<void>(), sizeof rows);
    bool good = true;
    for (int32_t i = 0; i < 64; ++i) good = good && rows[i] == float((first + i / 4) % 16 * 4 + i % 4);
    return good;
  }
};

DULTRA_TEST(exchange_repeats, small) {
  Shared shared;
  for (int32_t first = 0; first < 8; ++first) CHECK(shared.gathers(1, first), "first ", first);
  Exchange::Counts counts = shared.exchange->counts();
  if (kRecords)
    CHECK(counts.direct == 1 && counts.recorded == 1 && counts.repeated == 6 && counts.held == 1, counts.direct, " ",
          counts.recorded);
  else
    CHECK(counts.direct == 8 && counts.recorded == 0, counts.direct);
  // Many keys: those that were used least recently are forgotten.
  for (int round = 0; round < 3; ++round)
    for (int64_t key = 10; key < 110; ++key) CHECK(shared.gathers(key, int32_t(key)), "key ", key);
  for (int round = 0; round < 3; ++round)
    for (int64_t key = 10; key < 50; ++key) CHECK(shared.gathers(key, int32_t(key)), "key ", key);
  counts = shared.exchange->counts();
  CHECK(counts.held == (kRecords ? 40 : 0), counts.held);
  // More memory: it moves, and all recordings end.
  shared.place(1 << 20);
  CHECK(shared.exchange->counts().held == 0, shared.exchange->counts().held);
  for (int32_t first = 0; first < 4; ++first) CHECK(shared.gathers(20, first), "first ", first);
}

// While one session records, others wait for what they queued before.
DULTRA_TEST(exchange_of_several_threads, small) {
  Shared shared;
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int32_t t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      try {
        const std::unique_ptr<Exchange> exchange = shared.backend->make_exchange();
        Buffer out(*shared.backend, 64 * 4);
        auto* index = reinterpret_cast<int32_t*>(exchange->reserve(4096));
        for (int32_t i = 0; i < 600; ++i) {
          for (int32_t j = 0; j < 16; ++j) index[j] = (i + t + j) % 16;
          exchange->send(0, 64);
          exchange->run([&] {
            shared.backend->fill_zero(shared.marks.as() + 64 * t + i / 2 % 50, 1);
            shared.backend->gather_rows(out.as(), shared.table.as(), index, 16, 4);
            std::this_thread::yield();
          });
          exchange->receive(0, 64);
          float rows[64];
          shared.backend->download(rows, out.as<void>(), sizeof rows);
          for (int32_t j = 0; j < 64; ++j) wrong += rows[j] != float((i + t + j / 4) % 16 * 4 + j % 4);
          if (i % 100 == 99) exchange->forget();
        }
      } catch (const std::exception& error) {
        CHECK(false, "thread ", t, ": ", error.what());
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0, wrong);
}

DULTRA_TEST(exchange_layout, small) {
  std::vector<int32_t> numbers = {1, 2, 3};
  HostArray<int32_t> array(numbers), none;
  const auto lay_out = [&](ExchangeLayout& to) {
    to.put(array);
    to.put(none);
    double* room = to.room<double>(9);
    uint8_t* bytes = to.room<uint8_t>(1);
    CHECK((room == nullptr) == (bytes == nullptr) && reinterpret_cast<uintptr_t>(room) % 64 == 0, "alignment");
    return room;
  };
  ExchangeLayout counted;
  CHECK(lay_out(counted) == nullptr && array.data() == array.values().data() && none.data() == nullptr,
        "counting places nothing");
  Exchange exchange;
  uint8_t* memory = exchange.reserve(counted.bytes());
  CHECK(reinterpret_cast<uintptr_t>(memory) % Exchange::kAlignment == 0, "alignment");
  ExchangeLayout placed(memory);
  CHECK(lay_out(placed) != nullptr && placed.bytes() == counted.bytes() && counted.bytes() == 64 + 128 + 64,
        counted.bytes());
  CHECK(array.data() == reinterpret_cast<int32_t*>(memory) && none.data() == nullptr &&
            std::equal(numbers.begin(), numbers.end(), array.data()),
        "");
  array.push_back(4);
  CHECK(array.data() == array.values().data() && array.size() == 4, "a change ends the place");
  CHECK(exchange.reserve(10) == memory, "less memory stays where it is");
}

#if defined(DULTRA_EMULATOR) || defined(DULTRA_GPU)
// What cannot be captured is an error that names the operation; the capture ends, and the backend goes on.
DULTRA_TEST(exchange_refuses_what_it_cannot_capture, small) {
  Shared shared;
  Backend& backend = *shared.backend;
  std::vector<float> host(64);
  std::vector<float> large(size_t(1) << 18);
  Buffer room(backend, large.size() * 4), held;
  std::vector<Buffer> buffers;
  int32_t first = 0;
  struct Bad {
    const char* name;
    std::function<void()> operations;
  };
  int calls = 0;
  const std::vector<Bad> all = {
      {"gather_rows", [&] { shared.gather(shared.plain.data()); }},
      {"upload", [&] { backend.upload(shared.out.as<void>(), host.data(), 256); }},
      {"upload", [&] { backend.upload(room.as<void>(), large.data(), large.size() * 4); }},
      {"download", [&] { backend.download(host.data(), shared.out.as<void>(), 256); }},
      {"sum_squares", [&] { backend.sum_squares(shared.out.as(), 64); }},
      {"exchange", [&] { shared.exchange->receive(0, 64); }},
      {"exchange", [&] { shared.exchange->reserve(size_t(8) << 20); }},
  };
  for (const Bad& bad : all) {
    const auto run = [&] {
      shared.exchange->run([&] {
        ++calls;
        shared.gather(shared.index);
        bad.operations();
      });
    };
    std::string message;
    for (int repeat = 0; repeat < 3; ++repeat) {
      CHECK(thrown(run, &message) == int(ErrorCode::kInternal), bad.name);
      CHECK(message.find(bad.name) != std::string::npos && message.find("captured") != std::string::npos, message);
    }
    CHECK(shared.gathers(1, ++first), "after ", bad.name);
  }
  CHECK(calls == 3 * 7, calls);

  // A run may allocate before it launches what it always does, but not while it is captured.
  int walks = 0;
  const auto allocates = [&] {
    shared.exchange->run([&] {
      if (++walks == 1 || walks == 4) buffers.emplace_back(backend, 4096);
      shared.gather(shared.index);
    });
  };
  std::string refused;
  CHECK(thrown(allocates) == -1 && walks == 2, walks);
  CHECK(thrown(allocates, &refused) == int(ErrorCode::kInternal) && walks == 4, walks);
  CHECK(refused.find("allocate") != std::string::npos, refused);
  CHECK(thrown(allocates) == -1 && shared.gathers(1, 5), "after a capture that failed");

  // Whatever is thrown, and memory that is given back meanwhile.
  for (int repeat = 0; repeat < 3; ++repeat) {
    std::string message;
    const int code = thrown(
        [&] {
          shared.exchange->run([&] {
            held = Buffer();
            if (repeat > 0) throw Error(ErrorCode::kAborted, "enough");
            shared.gather(shared.index);
          });
        },
        &message);
    CHECK(code == (repeat > 0 ? int(ErrorCode::kAborted) : -1), message);
    held = Buffer(backend, 1 << 12);
    CHECK(shared.gathers(1, repeat), "after an error");
  }

  // Scratch memory of kernels that was enough when the key was run directly, but is elsewhere now: recorded again.
  Buffer logits(backend, size_t(4) * 9000 * 64);
  backend.fill_zero(logits.as(), 9000 * 64);
  const auto sample = [&](int64_t rows) {
    SampleArgs a{};
    a.logits = logits.as();
    a.rows = rows;
    a.vocab = 9000;
    a.excluded_token = -1;
    a.token = reinterpret_cast<int32_t*>(shared.result);
    a.log_prob = a.confidence = a.max_prob = a.entropy = room.as();
    a.finite = reinterpret_cast<uint8_t*>(room.as() + 1000);
    backend.sample_forward(a);
  };
  shared.place(4096);
  for (int64_t rows : {1, 2, 20, 64}) {
    for (int repeat = 0; repeat < 3; ++repeat) {
      for (int i = 0; i < 64; ++i) reinterpret_cast<int32_t*>(shared.result)[i] = -1;
      shared.exchange->send(0, 512);
      for (int64_t k : {int64_t(1), rows}) shared.exchange->run([&] { sample(k); });
      shared.exchange->receive(0, 512);
      bool good = true;
      for (int64_t row = 0; row < rows; ++row) good = good && reinterpret_cast<int32_t*>(shared.result)[row] == 0;
      CHECK(good, "rows ", rows, " repeat ", repeat);
    }
  }
}
#endif

#if defined(DULTRA_EMULATOR) || defined(DULTRA_GPU)
// A graph serves the launches that it was captured of, and no others: every scalar and every address counts.
DULTRA_TEST(exchange_tells_launches_apart, small) {
  Shared shared;
  Backend& backend = *shared.backend;
  Buffer logit(backend, 8 * 4), other(backend, 8 * 4);
  const std::vector<float> logits{-3, -1, 0, 1, 2, 3, 4, 5}, reversed(logits.rbegin(), logits.rend());
  backend.upload(logit.as<void>(), logits.data(), 32);
  backend.upload(other.as<void>(), reversed.data(), 32);
  ExchangeLayout layout(shared.exchange->reserve(4096));
  auto* offsets = layout.room<int32_t>(2);
  auto* at = layout.room<rng::Coordinates>(8);
  auto* log_prob = layout.room<float>(8);
  auto *probability = layout.room<float>(8), *log_likelihood = layout.room<float>(8);
  auto *selected = layout.room<uint8_t>(8), *forced = layout.room<uint8_t>(1);
  UnmaskArgs base{};
  base.rule = UnmaskRule::kPlannerThreshold;
  base.batch = 1;
  base.offsets = offsets;
  base.at = at;
  base.planner_logit = logit.as();
  base.token_log_prob = log_prob;
  base.planner_temperature = base.probability_scale = 1;
  base.threshold = 0.9;
  base.selected = selected;
  base.forced = forced;
  base.probability = probability;
  base.log_likelihood = log_likelihood;
  // Padding that differs from call to call does not count.
  uint8_t noise = 0;
  const auto run = [&](const std::function<void(UnmaskArgs&)>& change) {
    offsets[0] = 0;
    offsets[1] = 8;
    for (uint32_t i = 0; i < 8; ++i) at[i] = {7, 0, 0, i}, log_prob[i] = -1;
    shared.exchange->send(0, layout.bytes());
    UnmaskArgs args;
    std::memset(static_cast<void*>(&args), ++noise, sizeof args);
    args = base;
    change(args);
    shared.exchange->run([&] { backend.unmask(args); });
    shared.exchange->receive(0, layout.bytes());
    std::vector<float> result(selected, selected + 8);
    result.insert(result.end(), probability, probability + 8);
    return result;
  };
  const std::vector<std::function<void(UnmaskArgs&)>> changes{
      [](UnmaskArgs&) {},
      [](UnmaskArgs& a) { a.threshold = 0.97; },
      [](UnmaskArgs& a) { a.probability_scale = 0.5f; },
      [](UnmaskArgs& a) { a.planner_temperature = 3; },
      [](UnmaskArgs& a) { a.rule = UnmaskRule::kPlannerTopK; },
      [&](UnmaskArgs& a) { a.planner_logit = other.as(); },
  };
  std::vector<std::vector<float>> expected;
  for (const auto& change : changes) expected.push_back(run(change));  // directly
  for (size_t i = 0; i < changes.size(); ++i)
    for (size_t j = 0; j < i; ++j) CHECK(expected[i] != expected[j], "changes ", i, " and ", j, " have one result");
  CHECK(shared.exchange->counts().direct == int64_t(changes.size()), shared.exchange->counts().direct);
  for (int round = 0; round < 3; ++round)
    for (size_t i = 0; i < changes.size(); ++i) CHECK(run(changes[i]) == expected[i], "change ", i, " round ", round);
  const Exchange::Counts counts = shared.exchange->counts();
  CHECK(counts.direct == 6 && counts.recorded == 6 && counts.repeated == 12 && counts.held == 6, counts.direct, " ",
        counts.recorded, " ", counts.repeated);
}
#endif

#ifdef DULTRA_EMULATOR
// A capture that fails costs the graph and nothing else: those operations are run directly from then on, others still
// become graphs.
DULTRA_TEST(exchange_goes_on_after_failed_captures, small) {
  using emulator::CaptureFailure;
  for (CaptureFailure failure : {CaptureFailure::kInvalidated, CaptureFailure::kInstantiate, CaptureFailure::kLaunch}) {
    Shared shared;
    CHECK(shared.gathers(1, 1) && shared.gathers(2, 2), int(failure));  // directly
    emulator::fail_next_capture(failure);
    for (int32_t first = 0; first < 4; ++first) CHECK(shared.gathers(1, first), int(failure), " first ", first);
    for (int32_t first = 0; first < 2; ++first) CHECK(shared.gathers(2, first), int(failure), " first ", first);
    const Exchange::Counts counts = shared.exchange->counts();
    const int64_t failed = static_cast<cuda::CudaExchange&>(*shared.exchange).failed();
    CHECK(failed == 1 && counts.direct == 6 && counts.recorded == 1 && counts.repeated == 1 && counts.held == 1,
          int(failure), ": ", failed, " ", counts.direct, " ", counts.recorded, " ", counts.repeated);
  }
}

// After an error of a kernel every call fails: that the device is lost is what is said, wherever it comes up.
DULTRA_TEST(exchange_reports_a_lost_device, small) {
  for (int error : {int(cudaErrorMisalignedAddress), int(cudaErrorIllegalAddress), int(cudaErrorLaunchFailure)}) {
    Shared shared;
    const float* values = shared.table.as();
    const std::vector<std::function<void()>> calls{
        [&] { shared.gathers(1, 1); },
        [&] { shared.backend->fill_zero(shared.out.as(), 64); },
        [&] { shared.backend->sum_squares(values, 64); },
        [&] { shared.backend->allocate(64); },
        [&] { shared.exchange->receive(0, 64); },
        [&] { shared.exchange->reserve(1 << 20); },
        [&] { make_model_backend(1); },
    };
    for (int32_t first = 0; first < 3; ++first) shared.gathers(1, first);  // the next launches a graph
    for (size_t i = 0; i < calls.size(); ++i) {
      emulator::break_device(error);
      std::string message;
      CHECK(thrown(calls[i], &message) == int(ErrorCode::kDeviceUnavailable), "error ", error, " call ", i, ": ",
            message);
      emulator::break_device(0);  // a process could not: here the next call's turn comes
    }
  }
}

// Without memory for a graph the operations run directly, and those that were held end to make room.
DULTRA_TEST(exchange_without_memory_for_graphs, small) {
  Shared shared;
  for (int32_t first = 0; first < 3; ++first) CHECK(shared.gathers(1, first), "first ", first);
  CHECK(shared.exchange->counts().held == 1, shared.exchange->counts().held);
  emulator::set_memory_limit(emulator::memory_in_use());
  for (int32_t first = 0; first < 4; ++first) CHECK(shared.gathers(2, first), "first ", first);
  CHECK(shared.exchange->counts().held == 0 && shared.exchange->counts().recorded == 1, shared.exchange->counts().held);
  emulator::set_memory_limit(size_t(1) << 40);
  for (int32_t first = 0; first < 2; ++first) CHECK(shared.gathers(2, first), "first ", first);
  CHECK(shared.exchange->counts().held == 1 && shared.exchange->counts().recorded == 2,
        shared.exchange->counts().recorded);
}

// Nothing stays behind, and what the runtime forbids while a stream is captured is forbidden here too.
DULTRA_TEST(exchange_leaves_nothing, small) {
  const size_t memory = emulator::memory_in_use(), graphs = emulator::graphs_in_use();
  {
    Shared shared;
    for (int32_t first = 0; first < 4; ++first) CHECK(shared.gathers(1, first), "first ", first);
    CHECK(emulator::graphs_in_use() == graphs + 1, emulator::graphs_in_use());
  }
  CHECK(emulator::memory_in_use() == memory, emulator::memory_in_use() - memory, " bytes stayed behind");
  CHECK(emulator::graphs_in_use() == graphs, emulator::graphs_in_use() - graphs, " graphs stayed behind");
}
#endif

}  // namespace
}  // namespace test
}  // namespace dultra
