// Which candidates are unmasked in this step. Hundreds of numbers per row: one thread.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "ops/policy.h"

namespace dultra {
namespace cpu {

namespace {

// Decisions of one row, for the likelihood and its gradient.
//
// Selecting nothing becomes selecting the most probable candidate `top`, so {top} alone is what comes out of two draws,
// with probability prod_{j != top} (1 - p_j) (p_top + 1 - p_top): p_top drops out, forced or not, and the probabilities
// of all outcomes sum to 1.
class Decisions {
 public:
  Decisions(const LikelihoodArgs& args, int b)
      : a_(args),
        policy_{args.planner_temperature, args.probability_scale, args.reference_likelihood},
        begin_(args.offsets[b]),
        end_(args.offsets[b + 1]) {
    int32_t top = -1;
    float most = 0;
    int64_t selected = 0;
    for (int32_t i = begin_; i < end_; ++i) {
      if (!open(i)) continue;
      const float p = policy_.probability(a_.planner_logit[i]);
      if (top < 0 || p > most) {
        top = i;
        most = p;
      }
      selected += a_.selected[i];
    }
    only_top_ = a_.forced[b] || (selected == 1 && a_.selected[top]);
  }

  void forward() const {
    for (int32_t i = begin_; i < end_; ++i) {
      const float logit = a_.planner_logit[i];
      double value = 0;
      if (open(i))
        value = a_.selected[i] ? double(a_.token_log_prob[i]) + (counts() ? policy_.log_selected(logit) : 0)
                               : policy_.log_masked(logit);
      a_.log_likelihood[i] = float(value);
    }
  }

  void backward(const LikelihoodGradArgs& grad) const {
    for (int32_t i = begin_; i < end_; ++i) {
      const float logit = a_.planner_logit[i];
      const bool selected = open(i) && a_.selected[i];
      double slope = 0;
      if (selected && counts()) slope = policy_.dlog_selected(logit);
      if (open(i) && !selected) slope = policy_.dlog_masked(logit);
      grad.dplanner_logit[i] = float(grad.dlog_likelihood[i] * slope);
      grad.dtoken_log_prob[i] = selected ? grad.dlog_likelihood[i] : 0.0f;
    }
  }

 private:
  bool open(int32_t i) const { return !a_.forbidden || !a_.forbidden[i]; }
  // Whether log p of what was selected is part of the likelihood.
  bool counts() const { return !only_top_ || a_.reference_likelihood; }

  const LikelihoodArgs& a_;
  const Policy policy_;
  const int32_t begin_, end_;
  bool only_top_;
};

// One row's candidates, as indices into the arrays of UnmaskArgs.
class Row {
 public:
  Row(const UnmaskArgs& args, int b) : a_(args), row_(b), begin_(args.offsets[b]), end_(args.offsets[b + 1]) {
    for (int32_t i = begin_; i < end_; ++i) {
      a_.selected[i] = 0;
      a_.probability[i] = 0;
      a_.log_likelihood[i] = 0;
      if (!a_.forbidden || !a_.forbidden[i]) open_.push_back(i);
    }
    a_.forced[row_] = 0;
  }

  void select() {
    switch (a_.rule) {
      case UnmaskRule::kPlannerBernoulli:
      case UnmaskRule::kPlannerTopK:
      case UnmaskRule::kPlannerRound:
      case UnmaskRule::kPlannerThreshold: planner(); break;
      case UnmaskRule::kThreshold:
        sort_descending([&](int32_t i) { return confidence(i); });
        take_while([&](size_t rank) {
          return (!a_.count || int64_t(rank) < a_.count[row_]) && confidence(open_[rank]) >= a_.threshold;
        });
        break;
      case UnmaskRule::kFactor: factor(); break;
      case UnmaskRule::kEntropy:
        sort_descending([&](int32_t i) { return -entropy(i); });
        take_while([&](size_t rank) { return entropy(open_[rank]) <= a_.threshold; });
        break;
      case UnmaskRule::kEntropySum: {
        sort_descending([&](int32_t i) { return -entropy(i); });
        double before = 0;  // sum over those already taken: all but the largest of the set that the next one makes
        take_while([&](size_t rank) {
          const double with = before + entropy(open_[rank]);
          const bool pass = a_.sum_with_last ? with < a_.threshold : before <= a_.threshold;
          before = with;
          return pass;
        });
        break;
      }
      case UnmaskRule::kFixed:
        if (a_.selection_temperature > 0) {
          // The largest of log-probabilities with Gumbel noise: a draw without replacement.
          std::vector<double> keys;
          for (int32_t i = begin_; i < end_; ++i)
            keys.push_back(
                rng::add_rn(rng::div_rn(score(i), double(a_.selection_temperature)), rng::gumbel(uniform(i, 2))));
          sort_descending([&](int32_t i) { return keys[size_t(i - begin_)]; });
        } else {
          sort_descending([&](int32_t i) { return score(i); });
        }
        take_while([&](size_t rank) { return int64_t(rank) < a_.count[row_]; });
        break;
      case UnmaskRule::kDynamic:
        sort_descending([&](int32_t i) { return confidence(i); });
        take_while(
            [&](size_t rank) { return int64_t(rank) < a_.count[row_] || confidence(open_[rank]) > a_.threshold; });
        break;
      case UnmaskRule::kRandom:
        sort_descending([&](int32_t i) { return -uniform(i, 1); });
        take_while([&](size_t rank) { return int64_t(rank) < a_.count[row_]; });
        break;
      case UnmaskRule::kLeftToRight: take_while([&](size_t rank) { return int64_t(rank) < a_.count[row_]; }); break;
      case UnmaskRule::kCoin: {
        int64_t taken = 0;
        for (int32_t i : open_) {
          a_.selected[i] = uniform(i, 0) < a_.chance[row_];
          taken += a_.selected[i];
        }
        if (taken == 0 && !open_.empty()) force(open_[0]);
        break;
      }
    }
  }

 private:
  // NaN ranks last and passes no test.
  double confidence(int32_t i) const { return std::isnan(a_.confidence[i]) ? -kInfinity : double(a_.confidence[i]); }
  double entropy(int32_t i) const { return std::isnan(a_.entropy[i]) ? kInfinity : double(a_.entropy[i]); }
  double score(int32_t i) const { return a_.by_entropy ? -entropy(i) : confidence(i); }
  double uniform(int32_t i, uint32_t lane) const {
    return a_.uniforms ? a_.uniforms[i] : rng::position_uniform(a_.at[i], lane);
  }

  template <class Key>
  void sort_descending(const Key& key) {
    std::stable_sort(open_.begin(), open_.end(), [&](int32_t i, int32_t j) { return key(i) > key(j); });
  }

  // Selects the first of open_ and those behind it as long as they pass.
  template <class Pass>
  void take_while(const Pass& pass) {
    size_t rank = 0;
    while (rank < open_.size() && pass(rank)) a_.selected[open_[rank++]] = 1;
    if (rank == 0 && !open_.empty()) force(open_[0]);
  }

  void force(int32_t i) {
    if (a_.may_rest) return;
    a_.selected[i] = 1;
    a_.forced[row_] = 1;
  }

  void factor() {
    sort_descending([&](int32_t i) { return confidence(i); });
    const auto pass = [&](size_t rank) {
      return rank == 0 || confidence(open_[rank]) >= 1 - a_.factor / double(rank + 2);
    };
    size_t taken = 0;
    while (taken < open_.size() && pass(taken)) ++taken;
    if (a_.factor_last_pair && taken + 1 == open_.size()) ++taken;
    for (size_t rank = 0; rank < taken; ++rank) a_.selected[open_[rank]] = 1;
  }

  void planner() {
    const Policy policy{a_.planner_temperature, a_.probability_scale, a_.reference_likelihood};
    for (int32_t i = begin_; i < end_; ++i) a_.probability[i] = policy.probability(a_.planner_logit[i]);
    if (open_.empty()) return;
    // The most probable: the first if all are 0.
    int32_t top = open_[0];
    for (int32_t i : open_)
      if (a_.probability[i] > a_.probability[top]) top = i;
    int64_t taken = 0;
    if (a_.rule == UnmaskRule::kPlannerBernoulli) {
      for (int32_t i : open_) {
        a_.selected[i] = uniform(i, 0) < double(a_.probability[i]);
        taken += a_.selected[i];
      }
    } else if (a_.rule == UnmaskRule::kPlannerThreshold) {
      for (int32_t i : open_) {
        a_.selected[i] = double(a_.probability[i]) > a_.threshold;
        taken += a_.selected[i];
      }
    } else {
      double sum = a_.rule == UnmaskRule::kPlannerRound ? 0.5 : 0;
      for (int32_t i : open_) sum += double(a_.probability[i]);
      taken = int64_t(std::min(sum, double(open_.size())));
      std::vector<int32_t> order(open_);
      std::stable_sort(order.begin(), order.end(),
                       [&](int32_t i, int32_t j) { return a_.probability[i] > a_.probability[j]; });
      for (int64_t rank = 0; rank < taken; ++rank) a_.selected[order[size_t(rank)]] = 1;
    }
    if (taken == 0) force(top);
    LikelihoodArgs likelihood{};
    likelihood.batch = a_.batch;
    likelihood.offsets = a_.offsets;
    likelihood.planner_logit = a_.planner_logit;
    likelihood.token_log_prob = a_.token_log_prob;
    likelihood.forbidden = a_.forbidden;
    likelihood.selected = a_.selected;
    likelihood.forced = a_.forced;
    likelihood.planner_temperature = a_.planner_temperature;
    likelihood.probability_scale = a_.probability_scale;
    likelihood.reference_likelihood = a_.reference_likelihood;
    likelihood.log_likelihood = a_.log_likelihood;
    Decisions(likelihood, row_).forward();
  }

  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const UnmaskArgs& a_;
  const int row_;
  const int32_t begin_, end_;
  std::vector<int32_t> open_;  // candidates that may be selected
};

}  // namespace

void CpuBackend::do_unmask(const UnmaskArgs& a) {
  for (int b = 0; b < a.batch; ++b) Row(a, b).select();
}

void CpuBackend::do_likelihood_forward(const LikelihoodArgs& a) {
  for (int b = 0; b < a.batch; ++b) Decisions(a, b).forward();
}

void CpuBackend::do_likelihood_backward(const LikelihoodGradArgs& a) {
  for (int b = 0; b < a.forward.batch; ++b) Decisions(a.forward, b).backward(a);
}

}  // namespace cpu
}  // namespace dultra
