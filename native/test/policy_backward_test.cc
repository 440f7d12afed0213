// Replay of decisions: tokens given instead of drawn, the likelihood of decisions that were made, and their gradients.
#include <limits>

#include "harness.h"

namespace dultra {
namespace test {
namespace {

struct Scores {
  Guarded<int32_t> token;
  Guarded<float> log_prob, confidence, max_prob, entropy;
  Guarded<uint8_t> finite;
  explicit Scores(size_t m)
      : token(m),
        log_prob(poisoned(m)),
        confidence(poisoned(m)),
        max_prob(poisoned(m)),
        entropy(poisoned(m)),
        finite(m) {}
  void attach(SampleArgs& a) {
    a.token = token.data();
    a.log_prob = log_prob.data();
    a.confidence = confidence.data();
    a.max_prob = max_prob.data();
    a.entropy = entropy.data();
    a.finite = finite.data();
  }
  bool intact() const {
    return token.guards_intact() && log_prob.guards_intact() && confidence.guards_intact() &&
           max_prob.guards_intact() && entropy.guards_intact() && finite.guards_intact();
  }
  bool same(const Scores& other) const {
    const size_t m = token.size();
    return std::memcmp(token.data(), other.token.data(), m * sizeof(int32_t)) == 0 &&
           same_bits(log_prob.data(), other.log_prob.data(), m) &&
           same_bits(confidence.data(), other.confidence.data(), m) &&
           same_bits(max_prob.data(), other.max_prob.data(), m) && same_bits(entropy.data(), other.entropy.data(), m) &&
           std::memcmp(finite.data(), other.finite.data(), m) == 0;
  }
};

SampleArgs sample_args(const std::vector<float>& logits, int64_t vocab, float temperature, bool tempered,
                       int32_t excluded) {
  SampleArgs a{};
  a.logits = logits.data();
  a.rows = int64_t(logits.size()) / vocab;
  a.vocab = vocab;
  a.temperature = temperature;
  a.tempered_log_prob = tempered;
  a.excluded_token = excluded;
  return a;
}

// Replay = rollout: a token that is given has the bits of one that is drawn.
DULTRA_TEST(sampling_given_tokens_equal_drawn_ones, small) {
  for (const std::string& isa : isas())
    for (int64_t vocab : {1, 2, 29, 129, 4097, 9000})
      for (float temperature : {0.0f, 5e-5f, 0.1f, 1.0f, 2.5f})
        for (bool tempered : {false, true}) {
          const size_t rows = vocab > 4000 ? 3 : 12;
          Random random(uint64_t(vocab) + uint64_t(temperature * 100));
          const std::vector<float> logits = normals(random, rows * size_t(vocab), 4);
          std::vector<rng::Coordinates> at;
          for (uint32_t i = 0; i < rows; ++i) at.push_back({7, i, 2, i});
          const auto backend_owner = make_backend(2, isa), other_owner = make_backend(5, isa);
          Backend &backend = *backend_owner, &other = *other_owner;
          SampleArgs a = sample_args(logits, vocab, temperature, tempered, vocab > 1 ? int32_t(vocab / 2) : -1);
          a.at = at.data();
          Scores drawn(rows), given(rows);
          drawn.attach(a);
          backend.sample_forward(a);
          given.attach(a);
          a.at = nullptr;
          a.given = drawn.token.data();
          other.sample_forward(a);
          CHECK(given.same(drawn) && given.intact(), isa, " V ", vocab, " T ", temperature, " tempered ", tempered);
        }
}

DULTRA_TEST(sampling_scores_any_given_token) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    const int64_t vocab = 40;
    Random random(3);
    const std::vector<float> logits = normals(random, size_t(vocab), 3);
    std::vector<float> rows;
    std::vector<int32_t> tokens;
    for (int32_t v = 0; v < vocab; ++v) {
      rows.insert(rows.end(), logits.begin(), logits.end());
      tokens.push_back(v);
    }
    SampleArgs a = sample_args(rows, vocab, 0, false, 11);
    Scores scores(tokens.size());
    scores.attach(a);
    a.given = tokens.data();
    backend.sample_forward(a);
    double sum = 0;
    for (size_t v = 0; v < tokens.size(); ++v) {
      CHECK(scores.token[v] == tokens[v] && scores.finite[v] == 1, isa, " token ", v);
      CHECK(std::fabs(std::exp(double(scores.log_prob[v])) - scores.confidence[v]) < 1e-6, isa, " token ", v);
      sum += scores.confidence[v];
    }
    CHECK(std::fabs(sum - 1) < 1e-6, isa, " sum ", sum);
    CHECK(scores.log_prob[11] == -INFINITY && scores.confidence[11] == 0, isa, " the excluded token ",
          scores.log_prob[11]);
    for (int32_t wrong : {-1, int32_t(vocab)}) {
      tokens[5] = wrong;
      ErrorCode code = ErrorCode::kInternal;
      try {
        backend.sample_forward(a);
      } catch (const Error& error) {
        code = error.code();
      }
      CHECK(code == ErrorCode::kInvalidArgument, isa, " token ", wrong);
    }
  });
}

DULTRA_TEST(log_prob_backward_matches_differences, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    // The last two are more than what a kernel reads at a time, in rows that are aligned and that are not.
    for (int64_t vocab : {1, 2, 7, 16, 29, 129, 1000, 5000, 16388, 8193})
      for (float temperature : {0.0f, 5e-5f, 0.3f, 1.0f, 2.0f})
        for (int32_t excluded : {-1, int32_t(vocab / 2)}) {
          if (vocab == 1 && excluded == 0) continue;
          const size_t m = vocab > 500 ? 2 : 5;
          Random random(uint64_t(vocab) + uint64_t(temperature * 10));
          const std::vector<float> logits = normals(random, m * size_t(vocab), 3);
          std::vector<int32_t> tokens;
          while (tokens.size() < m) {
            const int32_t token = random.below(int(vocab));
            if (token != excluded) tokens.push_back(token);
          }
          std::vector<float> dlog_prob = normals(random, m);
          dlog_prob[1] = 0;
          Guarded<float> dlogits(logits.size());
          std::copy(logits.begin(), logits.end(), dlogits.data());
          backend.log_prob_backward(dlogits.data(), tokens.data(), dlog_prob.data(), int64_t(m), vocab, temperature,
                                    excluded);
          const double t = temperature < 1e-4f ? 1 : double(temperature);
          const auto loss = [&](const std::vector<double>& at) {
            double total = 0;
            for (size_t i = 0; i < m; ++i) {
              double sum = 0, top = -INFINITY;
              const double* x = &at[i * size_t(vocab)];
              for (int64_t v = 0; v < vocab; ++v)
                if (v != excluded) top = std::max(top, x[v]);
              for (int64_t v = 0; v < vocab; ++v)
                if (v != excluded) sum += std::exp((x[v] - top) / t);
              total += dlog_prob[i] * ((x[tokens[i]] - top) / t - std::log(sum));
            }
            return total;
          };
          const std::string where = text(isa, " V ", vocab, " T ", temperature, " excluded ", excluded);
          check_gradient(dlogits.data(), logits, loss, 60, 3e-6, where, 1e-7);
          CHECK(dlogits.guards_intact(), where);
          for (size_t i = 0; i < m; ++i)
            CHECK(excluded < 0 || dlogits[i * size_t(vocab) + size_t(excluded)] == 0, where,
                  " the excluded logit of row ", i);
          for (int64_t v = 0; v < vocab; ++v) CHECK(dlogits[size_t(vocab + v)] == 0, where, " a row without gradient");
          std::vector<float> alone(logits.end() - vocab, logits.end());
          backend.log_prob_backward(alone.data(), &tokens[m - 1], &dlog_prob[m - 1], 1, vocab, temperature, excluded);
          CHECK(same_bits(alone.data(), &dlogits[(m - 1) * size_t(vocab)], alone.size()), where, " one row by itself");
        }
    // The excluded token as the one that was drawn: its log-prob is -inf and has no slope.
    std::vector<float> three{1, 2, 3};
    const int32_t excluded = 1;
    const float one = 1;
    backend.log_prob_backward(three.data(), &excluded, &one, 1, 3, 1, excluded);
    for (float x : three) CHECK(x == 0, isa, " ", x);
    // Far apart logits, and some of -inf: no NaN.
    std::vector<float> logits{1e4f, -1e4f, -INFINITY, 3e38f, 0, 1e4f, -INFINITY, -3e38f};
    const int32_t tokens[2] = {1, 0};
    const float d[2] = {1, -1};
    backend.log_prob_backward(logits.data(), tokens, d, 2, 4, 0.1f, -1);
    for (float x : logits) CHECK(std::isfinite(x), isa, " ", x);
    CHECK(logits[2] == 0 && logits[6] == 0 && logits[3] == -10 && logits[1] == 10, isa, " ", logits[3]);
    // A logit that is alone above all, wherever it is.
    for (size_t top = 1; top < 128; ++top) {
      std::vector<float> far(128);
      std::vector<double> expected(128);
      far[top] = 1e4f;
      expected[top] = -1;
      expected[0] = 1;
      const int32_t first = 0;
      backend.log_prob_backward(far.data(), &first, &one, 1, 128, 1, -1);
      CHECK(worst_error(far.data(), expected.data(), 128, 1e-30, 0) <= 1, isa, " top ", top, " ", far[top], " ",
            far[0]);
    }
  });
}

DULTRA_TEST(scores_backward_matches_differences, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t vocab : {1, 2, 7, 29, 129, 1000, 8193})
      for (float temperature : {0.0f, 0.7f})
        for (float entropy_temperature : {0.5f, 1.0f, 3.0f})
          for (int32_t excluded : {-1, int32_t(vocab / 2)}) {
            if (vocab == 1 && excluded == 0) continue;
            const size_t m = vocab > 500 ? 4 : 5;
            Random random(uint64_t(vocab) + uint64_t(entropy_temperature * 10));
            const std::vector<float> logits = normals(random, m * size_t(vocab), 2);
            std::vector<int32_t> tokens;
            while (tokens.size() < m) {
              const int32_t token = random.below(int(vocab));
              if (token != excluded) tokens.push_back(token);
            }
            // Both gradients, one of them alone, none.
            std::vector<float> dlog_prob = normals(random, m), dentropy = normals(random, m);
            dlog_prob[1] = dlog_prob[3] = 0;
            dentropy[2] = dentropy[3] = 0;
            Guarded<float> dlogits(logits.size());
            std::copy(logits.begin(), logits.end(), dlogits.data());
            backend.scores_backward(dlogits.data(), tokens.data(), dlog_prob.data(), dentropy.data(), int64_t(m), vocab,
                                    temperature, entropy_temperature, excluded);
            const auto loss = [&](const std::vector<double>& at) {
              double total = 0;
              for (size_t i = 0; i < m; ++i) {
                const double* x = &at[i * size_t(vocab)];
                double top = -INFINITY;
                for (int64_t v = 0; v < vocab; ++v)
                  if (v != excluded) top = std::max(top, x[v]);
                const auto log_sum = [&](double t) {
                  double sum = 0;
                  for (int64_t v = 0; v < vocab; ++v)
                    if (v != excluded) sum += std::exp((x[v] - top) / t);
                  return std::log(sum);
                };
                const double t = temperature == 0 ? 1 : double(temperature), te = double(entropy_temperature);
                total += dlog_prob[i] * ((x[tokens[i]] - top) / t - log_sum(t));
                const double log_total = log_sum(te);
                for (int64_t v = 0; v < vocab; ++v) {
                  if (v == excluded) continue;
                  const double log_q = (x[v] - top) / te - log_total;
                  total -= dentropy[i] * std::exp(log_q) * log_q;
                }
              }
              return total;
            };
            const std::string where =
                text(isa, " V ", vocab, " T ", temperature, " entropy T ", entropy_temperature, " excluded ", excluded);
            check_gradient(dlogits.data(), logits, loss, 40, 5e-6, where, 1e-7);
            CHECK(dlogits.guards_intact(), where);
            for (size_t i = 0; i < m; ++i)
              CHECK(excluded < 0 || dlogits[i * size_t(vocab) + size_t(excluded)] == 0, where,
                    " the excluded logit of row ", i);
            for (int64_t v = 0; v < vocab; ++v)
              CHECK(dlogits[size_t(3 * vocab + v)] == 0, where, " a row without gradient");
            std::vector<float> alone(logits.begin(), logits.begin() + vocab);
            backend.scores_backward(alone.data(), tokens.data(), dlog_prob.data(), dentropy.data(), 1, vocab,
                                    temperature, entropy_temperature, excluded);
            CHECK(same_bits(alone.data(), dlogits.data(), alone.size()), where, " one row by itself");
          }
    // Far apart logits, and some of -inf: no NaN. Of a certain distribution the entropy has no slope.
    std::vector<float> logits{1e4f, -1e4f, -INFINITY, 3e38f, 0, 1e4f, -INFINITY, -3e38f};
    const int32_t tokens[2] = {1, 0};
    const float zero[2] = {0, 0}, d[2] = {1, -1};
    backend.scores_backward(logits.data(), tokens, zero, d, 2, 4, 1, 0.5f, -1);
    // A processor may keep products of denormal probabilities.
    for (float x : logits) CHECK(std::fabs(x) < std::numeric_limits<float>::min(), isa, " ", x);
    std::vector<float> nothing(4, -INFINITY);
    backend.scores_backward(nothing.data(), tokens, zero, d, 1, 4, 1, 0.5f, -1);
    for (float x : nothing) CHECK(x == 0, isa, " a row of -inf ", x);
  });
}

DULTRA_TEST(log_prob_backward_does_not_depend_on_threads) {
  for (const std::string& isa : isas()) {
    const int64_t m = 40, vocab = 3001;
    Random random(8);
    const std::vector<float> logits = normals(random, size_t(m * vocab)), d = normals(random, size_t(m));
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < m; ++i) tokens.push_back(random.below(int(vocab)));
    std::vector<float> first;
    for (int threads : {1, 2, 3, 8}) {
      const auto backend_owner = make_backend(threads, isa);
      Backend& backend = *backend_owner;
      std::vector<float> out(logits);
      backend.log_prob_backward(out.data(), tokens.data(), d.data(), m, vocab, 0.7f, 5);
      if (threads == 1) first = out;
      CHECK(same_bits(out.data(), first.data(), out.size()), isa, " ", threads, " threads");
    }
  }
}

// Candidates with decisions that `unmask` made, or made up ones.
struct Step {
  std::vector<int32_t> offsets{0};
  std::vector<rng::Coordinates> at;
  std::vector<float> logit, token_log_prob, dlog_likelihood;
  std::vector<uint8_t> forbidden, selected, forced;

  Step(Random& random, const std::vector<int>& lengths, double spread, double bias) {
    for (size_t b = 0; b < lengths.size(); ++b) {
      for (int i = 0; i < lengths[b]; ++i) {
        at.push_back({random.bits(), uint32_t(b), 0, uint32_t(i)});
        logit.push_back(float(random.normal() * spread + bias));
        token_log_prob.push_back(float(-random.uniform()));
        dlog_likelihood.push_back(float(random.normal()));
        forbidden.push_back(random.below(5) == 0);
        selected.push_back(!forbidden.back() && random.below(3) == 0);
      }
      offsets.push_back(int32_t(at.size()));
      forced.push_back(0);
    }
  }
  LikelihoodArgs args(float* log_likelihood, bool with_forbidden) const {
    LikelihoodArgs a{};
    a.batch = int(offsets.size()) - 1;
    a.offsets = offsets.data();
    a.planner_logit = logit.data();
    a.token_log_prob = token_log_prob.data();
    a.forbidden = with_forbidden ? forbidden.data() : nullptr;
    a.selected = selected.data();
    a.forced = forced.data();
    a.planner_temperature = 1;
    a.probability_scale = 1;
    a.log_likelihood = log_likelihood;
    return a;
  }
};

// Decides by `unmask`, and gives its log-likelihoods.
std::vector<float> decide(Backend& backend, Step& step, const LikelihoodArgs& like, UnmaskRule rule) {
  const size_t m = step.at.size();
  std::vector<float> probability(m), log_likelihood(m);
  UnmaskArgs a{};
  a.rule = rule;
  a.batch = like.batch;
  a.offsets = like.offsets;
  a.at = step.at.data();
  a.planner_logit = like.planner_logit;
  a.token_log_prob = like.token_log_prob;
  a.forbidden = like.forbidden;
  a.planner_temperature = like.planner_temperature;
  a.probability_scale = like.probability_scale;
  a.reference_likelihood = like.reference_likelihood;
  a.selected = step.selected.data();
  a.forced = step.forced.data();
  a.probability = probability.data();
  a.log_likelihood = log_likelihood.data();
  backend.unmask(a);
  return log_likelihood;
}

DULTRA_TEST(likelihood_forward_equals_unmask) {
  const auto backend_owner = make_backend(2, "");
  Backend& backend = *backend_owner;
  int forced = 0;
  for (int round = 0; round < 400; ++round) {
    Random random{uint64_t(round)};
    Step step(random, {5, 0, 3, 1, 30}, round % 5 == 0 ? 30 : 2, round % 2 ? -3 : 0);
    Guarded<float> log_likelihood = poisoned(step.at.size());
    LikelihoodArgs a = step.args(log_likelihood.data(), random.below(2));
    a.planner_temperature = random.below(2) ? 1.0f : 0.4f;
    a.probability_scale = random.below(2) ? 1.0f : float(2 * random.uniform());
    a.reference_likelihood = random.below(2);
    const std::vector<float> expected =
        decide(backend, step, a, random.below(4) ? UnmaskRule::kPlannerBernoulli : UnmaskRule::kPlannerTopK);
    backend.likelihood_forward(a);
    CHECK(same_bits(log_likelihood.data(), expected.data(), expected.size()) && log_likelihood.guards_intact(),
          "round ", round);
    for (uint8_t flag : step.forced) forced += flag;
  }
  CHECK(forced > 100, forced);
}

double sigmoid(double z) { return z >= 0 ? 1 / (1 + std::exp(-z)) : std::exp(z) / (1 + std::exp(z)); }

// sum of dlog_likelihood times log-likelihood at other logits and token log-probs, with the decisions as they are.
// `only_top` (B): p of what was selected is not part of it.
double likelihood_loss(const Step& step, const LikelihoodArgs& a, const std::vector<uint8_t>& only_top,
                       const std::vector<double>& logit, const std::vector<double>& token_log_prob) {
  double loss = 0;
  for (int b = 0; b < a.batch; ++b)
    for (int32_t i = a.offsets[b]; i < a.offsets[b + 1]; ++i) {
      if (a.forbidden && a.forbidden[i]) continue;
      const double z = logit[size_t(i)] / double(a.planner_temperature),
                   p = std::min(1.0, a.probability_scale * sigmoid(z));
      const double log_rest = a.probability_scale == 1 ? std::log(sigmoid(-z)) : std::log1p(-p);
      if (!a.selected[i])
        loss += step.dlog_likelihood[size_t(i)] * log_rest;
      else
        loss += step.dlog_likelihood[size_t(i)] *
                (token_log_prob[size_t(i)] + (only_top[size_t(b)] && !a.reference_likelihood ? 0 : std::log(p)));
    }
  return loss;
}

DULTRA_TEST(likelihood_backward_matches_differences) {
  const auto backend_owner = make_backend(2, "");
  Backend& backend = *backend_owner;
  int forced = 0, top_alone = 0, saturated = 0;
  for (int round = 0; round < 600; ++round) {
    Random random{uint64_t(round)};
    Step step(random, {5, 0, 3, 1, 12, 2}, 2, round % 2 ? -3 : 0);
    const size_t m = step.at.size();
    std::vector<float> unused(m);
    LikelihoodArgs a = step.args(unused.data(), random.below(2));
    a.planner_temperature = random.below(2) ? 1.0f : 0.4f;
    a.probability_scale = round % 3 == 0 ? 1.0f : float(1.6 * random.uniform());
    a.reference_likelihood = random.below(2);
    decide(backend, step, a, UnmaskRule::kPlannerBernoulli);
    // With a scale above 1 a candidate with p >= 1 may not stay masked: its likelihood is 0.
    std::vector<uint8_t> only_top;
    bool near_edge = false;
    for (int b = 0; b < a.batch; ++b) {
      int32_t top = -1, count = 0;
      for (int32_t i = a.offsets[b]; i < a.offsets[b + 1]; ++i) {
        if (a.forbidden && a.forbidden[i]) continue;
        if (top < 0 || a.planner_logit[i] > a.planner_logit[top]) top = i;
        count += a.selected[i];
        const double p = a.probability_scale * sigmoid(double(a.planner_logit[i]) / a.planner_temperature);
        saturated += p > 1;
        near_edge =
            near_edge || std::fabs(p - 1) < 1e-3;  // differences would step over the edge, or log(1 - p) be too steep
      }
      only_top.push_back(a.forced[b] || (count == 1 && a.selected[top]));
      forced += a.forced[b];
      top_alone += only_top.back();
    }
    if (near_edge) continue;
    Guarded<float> dlogit = poisoned(m), dtoken = poisoned(m);
    LikelihoodGradArgs grad{a, step.dlog_likelihood.data(), dlogit.data(), dtoken.data()};
    grad.forward.log_likelihood = nullptr;
    grad.forward.token_log_prob = nullptr;
    backend.likelihood_backward(grad);
    CHECK(dlogit.guards_intact() && dtoken.guards_intact(), "");
    const std::vector<double> logit(step.logit.begin(), step.logit.end()),
        token(step.token_log_prob.begin(), step.token_log_prob.end());
    const std::string where =
        text("round ", round, " reference ", a.reference_likelihood, " scale ", a.probability_scale);
    check_gradient(
        dlogit.data(), step.logit, [&](const auto& at) { return likelihood_loss(step, a, only_top, at, token); },
        int(m), 1e-6, where + " logits");
    check_gradient(
        dtoken.data(), step.token_log_prob,
        [&](const auto& at) { return likelihood_loss(step, a, only_top, logit, at); }, int(m), 1e-6, where + " tokens");
  }
  CHECK(forced > 100 && top_alone > 200 && saturated > 50, forced, " ", top_alone, " ", saturated);
}

// Whatever the logits, no NaN and nothing infinite; and the slopes that saturation leaves.
DULTRA_TEST(likelihood_backward_of_extreme_logits) {
  const auto backend_owner = make_backend(1, "");
  Backend& backend = *backend_owner;
  Random random(1);
  Step step(random, {8}, 1, 0);
  step.logit = {1e4f, -1e4f, 800, -800, 20, -100, 0.5f, -0.5f};
  step.dlog_likelihood.assign(8, 1);
  Guarded<float> log_likelihood = poisoned(8), dlogit = poisoned(8), dtoken = poisoned(8);
  LikelihoodArgs a = step.args(log_likelihood.data(), false);
  for (int decisions = 0; decisions < 256; ++decisions)
    for (float scale : {1.0f, 0.5f, 1.3f, 0.0f})
      for (float temperature : {1.0f, 0.1f, 7.0f})
        for (bool as_reference : {false, true}) {
          for (int i = 0; i < 8; ++i) step.selected[size_t(i)] = decisions >> i & 1;
          a.probability_scale = scale;
          a.planner_temperature = temperature;
          a.reference_likelihood = as_reference;
          backend.likelihood_forward(a);
          backend.likelihood_backward({a, step.dlog_likelihood.data(), dlogit.data(), dtoken.data()});
          for (size_t i = 0; i < 8; ++i) {
            const std::string where = text("decisions ", decisions, " scale ", scale, " temperature ", temperature,
                                           " reference ", as_reference, " at ", i);
            CHECK(std::isfinite(dlogit[i]) && std::fabs(dlogit[i]) <= 2e7f / temperature, where, " slope ", dlogit[i]);
            CHECK(!std::isnan(log_likelihood[i]), where);
            // -inf comes from the reference's formula, and where the decision is impossible: p = 0, or staying masked
            // at p >= 1.
            if (!as_reference && scale == 1) CHECK(std::isfinite(log_likelihood[i]), where, " ", log_likelihood[i]);
            if (std::isinf(log_likelihood[i])) CHECK(dlogit[i] == 0, where, " slope of -inf ", dlogit[i]);
            if (scale * sigmoid(double(step.logit[i]) / temperature) > 1.000001)
              CHECK(dlogit[i] == 0, where, " saturated slope ", dlogit[i]);
            CHECK(dtoken[i] == step.selected[i], where);
          }
        }
  // Ours keeps its slope where the reference's value is lost.
  a.probability_scale = a.planner_temperature = 1;
  a.reference_likelihood = false;
  std::fill(step.selected.begin(), step.selected.end(), 0);
  step.selected[1] = step.selected[3] = 1;
  backend.likelihood_backward({a, step.dlog_likelihood.data(), dlogit.data(), dtoken.data()});
  CHECK(dlogit[0] == -1 && dlogit[1] == 1 && dlogit[2] == -1 && dlogit[3] == 1 && dlogit[4] < -0.9999f, dlogit[0], " ",
        dlogit[1]);
}

DULTRA_TEST(likelihood_refuses_bad_arguments) {
  const auto backend_owner = make_backend(1, "");
  Backend& backend = *backend_owner;
  Random random(1);
  Step step(random, {3}, 1, 0);
  std::vector<float> log_likelihood(3);
  const auto code = [&](const LikelihoodArgs& a) {
    try {
      backend.likelihood_forward(a);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  LikelihoodArgs a = step.args(log_likelihood.data(), false);
  a.planner_temperature = 0;
  CHECK(code(a) == ErrorCode::kInvalidArgument, "");
  a = step.args(log_likelihood.data(), false);
  a.probability_scale = -1;
  CHECK(code(a) == ErrorCode::kInvalidArgument, "");
}

// A logit that is NaN gives the numbers of one that is -infinity: p = 0, and no slope.
DULTRA_TEST(likelihood_of_nan) {
  const auto backend_owner = make_backend(1, "");
  Backend& backend = *backend_owner;
  for (bool as_reference : {false, true})
    for (float scale : {1.0f, 0.6f}) {
      std::vector<float> results[2];
      for (int infinite = 0; infinite < 2; ++infinite) {
        Random random(2);
        Step step(random, {5, 40}, 1, 0);
        for (size_t i = 0; i < step.logit.size(); i += 4) step.logit[i] = infinite ? -INFINITY : NAN;
        std::vector<float>& all = results[infinite];
        const size_t m = step.logit.size();
        all.resize(3 * m);
        LikelihoodGradArgs grad{};
        grad.forward = step.args(all.data(), as_reference);
        grad.forward.probability_scale = scale;
        const std::vector<float> upstream(m, 0.5f);
        grad.dlog_likelihood = upstream.data();
        grad.dplanner_logit = all.data() + m;
        grad.dtoken_log_prob = all.data() + 2 * m;
        backend.likelihood_forward(grad.forward);
        backend.likelihood_backward(grad);
      }
      CHECK(same_bits(results[0].data(), results[1].data(), results[0].size()), "reference ", as_reference, " scale ",
            scale);
      for (float value : results[0]) CHECK(!std::isnan(value), "reference ", as_reference, " scale ", scale);
    }
}

}  // namespace
}  // namespace test
}  // namespace dultra
