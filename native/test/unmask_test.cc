#include <algorithm>
#include <numeric>

#include "harness.h"

namespace dultra {
namespace test {
namespace {

constexpr UnmaskRule kAllRules[] = {UnmaskRule::kPlannerBernoulli,
                                    UnmaskRule::kPlannerTopK,
                                    UnmaskRule::kPlannerRound,
                                    UnmaskRule::kPlannerThreshold,
                                    UnmaskRule::kThreshold,
                                    UnmaskRule::kFactor,
                                    UnmaskRule::kEntropy,
                                    UnmaskRule::kEntropySum,
                                    UnmaskRule::kFixed,
                                    UnmaskRule::kDynamic,
                                    UnmaskRule::kRandom,
                                    UnmaskRule::kLeftToRight,
                                    UnmaskRule::kCoin};

// A batch of candidates and everything an UnmaskArgs points to.
struct Batch {
  std::vector<int32_t> offsets{0};
  std::vector<rng::Coordinates> at;
  std::vector<double> uniforms;
  std::vector<float> logit, confidence, entropy, token_log_prob;
  std::vector<uint8_t> forbidden;
  std::vector<int32_t> count;
  std::vector<double> chance;

  // Values on a coarse grid, so that there are ties.
  Batch(Random& random, const std::vector<int>& lengths, bool coarse, double spread) {
    for (size_t b = 0; b < lengths.size(); ++b) {
      for (int i = 0; i < lengths[b]; ++i) {
        const auto value = [&](double x) { return float(coarse ? std::round(x * 4) / 4 : x); };
        at.push_back({77, uint32_t(b), 3, uint32_t(i * 2)});
        uniforms.push_back(coarse ? (random.below(8) + 0.5) / 8 : random.uniform());
        logit.push_back(value(random.normal() * spread));
        confidence.push_back(value(random.uniform()));
        entropy.push_back(value(random.uniform() * 2));
        token_log_prob.push_back(float(-random.uniform()));
        forbidden.push_back(random.below(5) == 0);
      }
      offsets.push_back(int32_t(at.size()));
      count.push_back(random.below(5));
      chance.push_back(count.back() / 4.0);
    }
  }
  UnmaskArgs args(UnmaskRule rule) const {
    UnmaskArgs a{};
    a.rule = rule;
    a.batch = int(offsets.size()) - 1;
    a.offsets = offsets.data();
    a.at = at.data();
    a.planner_logit = logit.data();
    a.confidence = confidence.data();
    a.entropy = entropy.data();
    a.token_log_prob = token_log_prob.data();
    a.planner_temperature = 1;
    a.probability_scale = 1;
    a.threshold = 0.5;
    a.factor = 1;
    a.count = count.data();
    a.chance = chance.data();
    return a;
  }
};

struct Output {
  Guarded<uint8_t> selected, forced;
  Guarded<float> probability, log_likelihood;
  Output(size_t m, size_t b) : selected(m), forced(b), probability(poisoned(m)), log_likelihood(poisoned(m)) {}
};

Output run(Backend& backend, const Batch& batch, UnmaskArgs a) {
  Output out(batch.at.size(), size_t(a.batch));
  a.selected = out.selected.data();
  a.forced = out.forced.data();
  a.probability = out.probability.data();
  a.log_likelihood = out.log_likelihood.data();
  backend.unmask(a);
  CHECK(out.selected.guards_intact() && out.forced.guards_intact() && out.probability.guards_intact() &&
            out.log_likelihood.guards_intact(),
        "");
  return out;
}

double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

// What each rule selects of the candidates [begin, end), written down a second time and plainly.
struct Expected {
  std::vector<int32_t> selected;  // ascending
  bool forced = false;
};
Expected reference(const UnmaskArgs& a, int b, const float* probability) {
  std::vector<int32_t> open;
  for (int32_t i = a.offsets[b]; i < a.offsets[b + 1]; ++i)
    if (!a.forbidden || !a.forbidden[i]) open.push_back(i);
  Expected out;
  if (open.empty()) return out;
  const auto uniform = [&](int32_t i, uint32_t lane) {
    return a.uniforms ? a.uniforms[i] : rng::position_uniform(a.at[i], lane);
  };
  const auto score = [&](int32_t i) -> double {
    switch (a.rule) {
      case UnmaskRule::kPlannerBernoulli:
      case UnmaskRule::kPlannerTopK:
      case UnmaskRule::kPlannerRound:
      case UnmaskRule::kPlannerThreshold: return probability[i];
      case UnmaskRule::kEntropy:
      case UnmaskRule::kEntropySum: return -a.entropy[i];
      case UnmaskRule::kRandom: return -uniform(i, 1);
      case UnmaskRule::kLeftToRight:
      case UnmaskRule::kCoin: return -i;
      case UnmaskRule::kFixed: {
        const double plain = a.by_entropy ? -a.entropy[i] : a.confidence[i];
        if (a.selection_temperature == 0) return plain;
        return plain / double(a.selection_temperature) - std::log(-std::log(uniform(i, 2)));
      }
      default: return a.confidence[i];
    }
  };
  // rank[i]: how many candidates come before i.
  std::vector<int32_t> ranked(open.size());
  for (int32_t i : open) {
    size_t rank = 0;
    for (int32_t j : open) rank += score(j) > score(i) || (score(j) == score(i) && j < i);
    ranked[rank] = i;
  }
  double sum = 0;
  for (int32_t i : open) sum += probability[i];
  const int n = int(ranked.size());
  bool stopped = false;
  for (int r = 0; r < n; ++r) {
    const int32_t i = ranked[size_t(r)];
    bool take = false;
    switch (a.rule) {
      case UnmaskRule::kPlannerBernoulli: take = uniform(i, 0) < probability[i]; break;
      case UnmaskRule::kPlannerTopK: take = r < std::floor(sum); break;
      case UnmaskRule::kPlannerRound: take = r < std::floor(sum + 0.5); break;
      case UnmaskRule::kPlannerThreshold: take = probability[i] > a.threshold; break;
      case UnmaskRule::kThreshold: take = a.confidence[i] >= a.threshold && (!a.count || r < a.count[b]); break;
      case UnmaskRule::kCoin: take = uniform(i, 0) < a.chance[b]; break;
      case UnmaskRule::kEntropy: take = a.entropy[i] <= a.threshold; break;
      case UnmaskRule::kEntropySum: {
        // The set of this candidate and those before it.
        double total = 0, largest = 0;
        for (int q = 0; q <= r; ++q) {
          total += a.entropy[ranked[size_t(q)]];
          largest = std::max(largest, double(a.entropy[ranked[size_t(q)]]));
        }
        take = a.sum_with_last ? total < a.threshold : total - largest <= a.threshold;
        break;
      }
      case UnmaskRule::kFixed:
      case UnmaskRule::kRandom:
      case UnmaskRule::kLeftToRight: take = r < a.count[b]; break;
      case UnmaskRule::kDynamic: take = r < a.count[b] || a.confidence[i] > a.threshold; break;
      case UnmaskRule::kFactor:
        take = !stopped && (r == 0 || a.confidence[i] >= 1 - a.factor / (r + 2));
        if (!take && !stopped) {
          stopped = true;
          take = a.factor_last_pair && r == n - 1;
        }
    }
    if (take) out.selected.push_back(i);
  }
  if (out.selected.empty() && !a.may_rest) {
    out.selected.push_back(ranked[0]);
    out.forced = true;
  }
  std::sort(out.selected.begin(), out.selected.end());
  return out;
}

DULTRA_TEST(unmask_selects_as_specified) {
  const auto backend_owner = make_backend(1, "");
  Backend& backend = *backend_owner;
  int forced = 0, several = 0;
  for (int round = 0; round < 400; ++round) {
    Random random{uint64_t(round)};
    std::vector<int> lengths;
    for (int b = 0; b < 4; ++b) lengths.push_back(random.below(round % 10 == 0 ? 60 : 7));
    const Batch batch(random, lengths, round % 2, round % 3 == 0 ? 5 : 1.5);
    for (UnmaskRule rule : kAllRules) {
      UnmaskArgs a = batch.args(rule);
      a.threshold = random.uniform() * 1.2;
      a.factor = random.uniform() * 3;
      a.factor_last_pair = random.below(2);
      if (random.below(2)) a.forbidden = batch.forbidden.data();
      if (random.below(2)) a.uniforms = batch.uniforms.data();
      if (random.below(2)) a.probability_scale = float(random.uniform() * 2);
      if (random.below(2)) a.planner_temperature = 0.5f;
      if (random.below(2)) a.count = rule == UnmaskRule::kThreshold ? nullptr : a.count;
      a.by_entropy = random.below(2);
      a.sum_with_last = random.below(2);
      a.may_rest = random.below(4) == 0;
      // Equal uniforms and scores are ties, which the two ways to compute a logarithm may break.
      if (random.below(2) && !a.uniforms) a.selection_temperature = 0.5f;
      const Output out = run(backend, batch, a);
      for (int b = 0; b < a.batch; ++b) {
        const Expected expected = reference(a, b, out.probability.data());
        std::vector<int32_t> selected;
        for (int32_t i = a.offsets[b]; i < a.offsets[b + 1]; ++i)
          if (out.selected[size_t(i)]) selected.push_back(i);
        CHECK(selected == expected.selected && out.forced[size_t(b)] == expected.forced, "rule ", int(rule), " round ",
              round, " row ", b, " selected ", selected.size(), " for ", expected.selected.size());
        forced += expected.forced;
        several += expected.selected.size() > 1;
      }
      const bool planner = is_planner_rule(rule);
      for (size_t i = 0; i < batch.at.size(); ++i) {
        const double p = planner ? a.probability_scale * sigmoid(double(batch.logit[i]) / a.planner_temperature)
                                 : 0;  // may exceed 1
        CHECK(std::fabs(out.probability[i] - p) < 2e-7 * (1 + p), "rule ", int(rule), " p ", out.probability[i],
              " for ", p);
        if (!planner) CHECK(out.log_likelihood[i] == 0, "rule ", int(rule));
      }
    }
  }
  CHECK(forced > 500 && several > 500, forced, " ", several);
}

// The likelihood term by term, from the same selection.
DULTRA_TEST(unmask_likelihood_matches_double) {
  const auto backend_owner = make_backend(1, "");
  Backend& backend = *backend_owner;
  for (int round = 0; round < 300; ++round) {
    Random random{uint64_t(round + 1000)};
    const Batch batch(random, {5, 3, 1, 0, 4}, false, 3);
    for (UnmaskRule rule : {UnmaskRule::kPlannerBernoulli, UnmaskRule::kPlannerTopK, UnmaskRule::kPlannerRound,
                            UnmaskRule::kPlannerThreshold})
      for (bool as_reference : {false, true}) {
        UnmaskArgs a = batch.args(rule);
        a.reference_likelihood = as_reference;
        a.probability_scale = round % 3 == 0 ? 1.0f : float(random.uniform() * 1.5);
        a.planner_temperature = round % 2 ? 1.0f : 2.0f;
        if (random.below(2)) a.forbidden = batch.forbidden.data();
        const Output out = run(backend, batch, a);
        for (int b = 0; b < a.batch; ++b) {
          int taken = 0;
          int32_t top = -1, last = -1;
          for (int32_t i = a.offsets[b]; i < a.offsets[b + 1]; ++i) {
            if (out.selected[size_t(i)]) last = i, ++taken;
            if (!(a.forbidden && a.forbidden[i]) &&
                (top < 0 || out.probability[size_t(i)] > out.probability[size_t(top)]))
              top = i;
          }
          const bool only_top = taken == 1 && last == top;
          for (int32_t i = a.offsets[b]; i < a.offsets[b + 1]; ++i) {
            const double p = std::min(
                1.0, double(a.probability_scale) * sigmoid(double(batch.logit[size_t(i)]) / a.planner_temperature));
            double expected = 0;
            if (out.selected[size_t(i)])
              expected = batch.token_log_prob[size_t(i)] + (only_top && !as_reference ? 0 : std::log(p));
            else if (!(a.forbidden && a.forbidden[i]))
              expected = std::log1p(-p);
            const double value = out.log_likelihood[size_t(i)];
            // In reference mode p is rounded to fp32 first, which log(1 - p) magnifies as p nears 1.
            const double tolerance =
                1e-6 + 4e-7 * std::fabs(expected) +
                (as_reference || a.probability_scale != 1 ? 4e-7 / (1 - std::min(p, 1 - 1e-12)) : 0);
            CHECK(value == expected || std::fabs(value - expected) < tolerance, "rule ", int(rule), " reference ",
                  as_reference, " p ", p, " is ", value, " for ", expected);
          }
        }
      }
  }
}

// Bernoulli: the probabilities of everything that can come out, the forced selection included, sum to 1.
DULTRA_TEST(unmask_likelihood_is_a_distribution) {
  const auto backend_owner = make_backend(1, "");
  Backend& backend = *backend_owner;
  for (int round = 0; round < 60; ++round) {
    Random random{uint64_t(round + 5)};
    const int n = 1 + round % 5;
    Batch batch(random, {n}, round % 2, 2);
    std::fill(batch.token_log_prob.begin(), batch.token_log_prob.end(), 0.0f);
    UnmaskArgs a = batch.args(UnmaskRule::kPlannerBernoulli);
    a.probability_scale = round % 3 ? 1.0f : 0.7f;
    if (round % 4 == 0) a.forbidden = batch.forbidden.data();
    std::vector<bool> seen(size_t(1) << n, false);
    double total = 0;
    for (int wanted = 0; wanted < 1 << n; ++wanted) {
      for (int i = 0; i < n; ++i) batch.uniforms[size_t(i)] = wanted >> i & 1 ? 1e-12 : 1 - 1e-12;
      a.uniforms = batch.uniforms.data();
      const Output out = run(backend, batch, a);
      int selected = 0;
      double log_likelihood = 0;
      for (int i = 0; i < n; ++i) {
        selected |= out.selected[size_t(i)] << i;
        log_likelihood += out.log_likelihood[size_t(i)];
      }
      if (!seen[size_t(selected)]) total += std::exp(log_likelihood);
      seen[size_t(selected)] = true;
    }
    CHECK(std::fabs(total - 1) < 2e-6, "round ", round, " n ", n, " total ", total);
  }
}

DULTRA_TEST(unmask_probabilities_saturate) {
  const auto backend_owner = make_backend(1, "");
  Backend& backend = *backend_owner;
  Random random(1);
  Batch batch(random, {3, 2}, false, 1);
  batch.logit = {40, 30, 20, -200, -90};
  batch.token_log_prob.assign(5, -1.0f);
  UnmaskArgs a = batch.args(UnmaskRule::kPlannerTopK);
  Output out = run(backend, batch, a);
  // p = 1 three times in fp32: all are taken; p = 0 twice: the first is forced.
  CHECK(out.selected[0] && out.selected[1] && out.selected[2] && !out.forced[0], "");
  CHECK(out.selected[3] && !out.selected[4] && out.forced[1], "");
  CHECK(out.probability[3] == 0 && out.probability[0] == 1, out.probability[3], " ", out.probability[0]);
  CHECK(out.log_likelihood[3] == -1 && out.log_likelihood[4] <= 0 && out.log_likelihood[4] > -1e-38,
        out.log_likelihood[3], " ", out.log_likelihood[4]);
  for (size_t i = 0; i < 5; ++i) CHECK(std::isfinite(out.log_likelihood[i]), i);
  // As the reference does it, the forced position brings log p = -inf.
  a.reference_likelihood = true;
  out = run(backend, batch, a);
  CHECK(out.log_likelihood[3] == -INFINITY, out.log_likelihood[3]);
  // A candidate that stays masked although z is large: log(1 - p) = -z, not -inf.
  a = batch.args(UnmaskRule::kPlannerBernoulli);
  batch.logit = {40, 0, 0, 0, 0};
  batch.uniforms = {1 - 1e-12, 0.1, 0.1, 0.9, 0.1};
  batch.forbidden = {0, 0, 0, 0, 0};
  a.uniforms = batch.uniforms.data();
  a.planner_temperature = 2.5f;  // z = 16, the last before fp32 saturates
  out = run(backend, batch, a);
  CHECK(std::isfinite(out.log_likelihood[0]) && !out.selected[3] && out.selected[4], out.log_likelihood[0]);
}

// Limits that are met exactly: values that floating point holds, so that the comparisons' strictness shows.
DULTRA_TEST(unmask_new_rules_at_their_limits, small) {
  const auto backend_owner = make_backend(1, "");
  Backend& backend = *backend_owner;
  Random random(6);
  Batch batch(random, {4}, false, 1);
  const auto selected = [&](const UnmaskArgs& a) {
    const Output out = run(backend, batch, a);
    std::string text;
    for (size_t i = 0; i < 4; ++i) text += out.selected[i] ? '1' : '0';
    return text + (out.forced[0] ? "f" : "");
  };
  batch.entropy = {1.0f, 0.25f, 0.5f, 0.25f};
  UnmaskArgs a = batch.args(UnmaskRule::kEntropySum);
  for (const auto& [gamma, expected] :
       {std::pair<double, const char*>{0, "0100"}, {0.25, "0101"}, {0.49, "0101"}, {0.5, "0111"}, {1, "1111"}}) {
    a.threshold = gamma;
    CHECK(selected(a) == expected, "gamma ", gamma, " selects ", selected(a));
  }
  batch.entropy = {NAN, 0, 0, NAN};
  a.threshold = 1e9;
  CHECK(selected(a) == "1110", selected(a));  // an undefined entropy ends the sum behind it
  batch.logit = {0, 0, 0, 0};
  a = batch.args(UnmaskRule::kPlannerThreshold);
  a.threshold = 0.5;
  CHECK(selected(a) == "1000f", selected(a));
  a.threshold = 0.4999;
  CHECK(selected(a) == "1111", selected(a));
  a = batch.args(UnmaskRule::kPlannerRound);
  a.probability_scale = 0.25f;  // sum p = 0.5, rounded up
  CHECK(selected(a) == "1000", selected(a));
  a.probability_scale = 0.75f;  // 1.5
  CHECK(selected(a) == "1100", selected(a));
  a.rule = UnmaskRule::kPlannerTopK;
  CHECK(selected(a) == "1000", selected(a));
  a.rule = UnmaskRule::kPlannerRound;
  a.probability_scale = 1e30f;
  CHECK(selected(a) == "1111", selected(a));
}

DULTRA_TEST(unmask_forbidden_candidates_stay) {
  const auto backend_owner = make_backend(1, "");
  Backend& backend = *backend_owner;
  for (UnmaskRule rule : kAllRules) {
    Random random(2);
    Batch batch(random, {3, 2}, false, 1);
    batch.forbidden = {1, 0, 1, 1, 1};
    UnmaskArgs a = batch.args(rule);
    a.forbidden = batch.forbidden.data();
    const Output out = run(backend, batch, a);
    const uint8_t expected[5] = {0, 1, 0, 0, 0};
    CHECK(std::memcmp(out.selected.data(), expected, 5) == 0 && out.forced[1] == 0, "rule ", int(rule));
    for (size_t i : {size_t(0), size_t(2), size_t(3), size_t(4)}) CHECK(out.log_likelihood[i] == 0, "rule ", int(rule));
  }
}

DULTRA_TEST(unmask_refuses_bad_arguments) {
  const auto backend_owner = make_backend(1, "");
  Backend& backend = *backend_owner;
  Random random(3);
  Batch batch(random, {2}, false, 1);
  const auto code = [&](const UnmaskArgs& a) {
    try {
      run(backend, batch, a);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  UnmaskArgs a = batch.args(UnmaskRule::kPlannerBernoulli);
  a.planner_temperature = 0;
  CHECK(code(a) == ErrorCode::kInvalidArgument, "");
  a = batch.args(UnmaskRule::kPlannerTopK);
  a.probability_scale = -1;
  CHECK(code(a) == ErrorCode::kInvalidArgument, "");
}

// NaN among the logits is p = 0, as -infinity is; nothing else of the row changes. Among confidences and entropies it
// ranks last.
DULTRA_TEST(unmask_of_nan, small) {
  const auto backend_owner = make_backend(1, "");
  Backend& backend = *backend_owner;
  for (UnmaskRule rule : kAllRules)
    for (bool all : {false, true}) {
      Random random(8);
      Batch batch(random, {9, 40, 3}, false, 2);
      Batch infinite = batch;
      for (size_t i = 0; i < batch.at.size(); ++i)
        if (all || i % 3 == 1) {
          batch.logit[i] = batch.confidence[i] = batch.entropy[i] = NAN;
          infinite.logit[i] = infinite.confidence[i] = -INFINITY;
          infinite.entropy[i] = INFINITY;
        }
      UnmaskArgs a = batch.args(rule), b = infinite.args(rule);
      const Output out = run(backend, batch, a), expected = run(backend, infinite, b);
      CHECK(std::memcmp(out.selected.data(), expected.selected.data(), batch.at.size()) == 0, "rule ", int(rule),
            " all ", all);
      CHECK(std::memcmp(out.forced.data(), expected.forced.data(), 3) == 0, "rule ", int(rule), " all ", all);
      CHECK(same_bits(out.probability.data(), expected.probability.data(), batch.at.size()), "rule ", int(rule),
            " all ", all);
      CHECK(same_bits(out.log_likelihood.data(), expected.log_likelihood.data(), batch.at.size()), "rule ", int(rule),
            " all ", all);
      for (size_t i = 0; i < batch.at.size(); ++i)
        if (std::isnan(batch.logit[i])) CHECK(out.probability[i] == 0, "rule ", int(rule), " p ", out.probability[i]);
    }
}

// The lowest entropies in place of the highest confidences.
DULTRA_TEST(unmask_fixed_by_entropy) {
  const auto backend_owner = make_backend(1, "");
  Backend& backend = *backend_owner;
  for (int round = 0; round < 20; ++round) {
    Random random{uint64_t(round)};
    Batch batch(random, {7, 0, 30}, round % 2, 1);
    UnmaskArgs a = batch.args(UnmaskRule::kFixed);
    a.by_entropy = true;
    const Output out = run(backend, batch, a);
    for (size_t i = 0; i < batch.at.size(); ++i) batch.confidence[i] = -batch.entropy[i];
    a.by_entropy = false;
    const Output expected = run(backend, batch, a);
    CHECK(std::memcmp(out.selected.data(), expected.selected.data(), batch.at.size()) == 0, "round ", round);
  }
}

// Each candidate is chosen equally often by the random rule, and with probability p by the planner.
DULTRA_TEST(unmask_draws_are_fair) {
  const auto backend_owner = make_backend(1, "");
  Backend& backend = *backend_owner;
  const int n = 8, rounds = 8000;
  Random random(4);
  Batch batch(random, {n}, false, 1);
  batch.count[0] = 2;
  int by_random[n] = {}, by_planner[n] = {};
  std::vector<float> p;
  for (int round = 0; round < rounds; ++round) {
    for (int i = 0; i < n; ++i) batch.at[size_t(i)] = {9, 0, uint32_t(round), uint32_t(i)};
    Output out = run(backend, batch, batch.args(UnmaskRule::kRandom));
    for (int i = 0; i < n; ++i) by_random[i] += out.selected[size_t(i)];
    out = run(backend, batch, batch.args(UnmaskRule::kPlannerBernoulli));
    for (int i = 0; i < n; ++i) by_planner[i] += out.selected[size_t(i)] && !out.forced[0];
    p.assign(out.probability.data(), out.probability.data() + n);
  }
  for (int i = 0; i < n; ++i) {
    const auto off = [&](int count, double q) {
      return std::fabs(count - rounds * q) / std::sqrt(rounds * q * (1 - q));
    };
    CHECK(off(by_random[i], 0.25) < 4.5, "random ", i, " ", by_random[i]);
    CHECK(off(by_planner[i], p[size_t(i)]) < 4.5, "planner ", i, " ", by_planner[i], " p ", p[size_t(i)]);
  }
}

}  // namespace
}  // namespace test
}  // namespace dultra
