// Which candidates are unmasked in this step. Hundreds of numbers per row: one thread.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "backends/cpu/cpu_backend.h"

namespace dultra {
namespace cpu {

namespace {

// log(1 / (1 + e^-z)) without overflow or cancellation.
double log_sigmoid(double z) { return std::min(z, 0.0) - std::log1p(std::exp(-std::fabs(z))); }

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

  void run() {
    switch (a_.rule) {
      case UnmaskRule::kPlannerBernoulli:
      case UnmaskRule::kPlannerTopK:
      case UnmaskRule::kPlannerRound:
      case UnmaskRule::kPlannerThreshold: planner(); break;
      case UnmaskRule::kThreshold:
        sort_descending([&](int32_t i) { return confidence(i); });
        take_while([&](size_t rank) { return confidence(open_[rank]) >= a_.threshold; });
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
          const bool pass = before <= a_.threshold;
          before += entropy(open_[rank]);
          return pass;
        });
        break;
      }
      case UnmaskRule::kFixed:
        sort_descending([&](int32_t i) { return confidence(i); });
        take_while([&](size_t rank) { return int64_t(rank) < a_.count[row_]; });
        break;
      case UnmaskRule::kRandom:
        sort_descending([&](int32_t i) { return -uniform(i, 1); });
        take_while([&](size_t rank) { return int64_t(rank) < a_.count[row_]; });
        break;
      case UnmaskRule::kLeftToRight: take_while([&](size_t rank) { return int64_t(rank) < a_.count[row_]; }); break;
    }
  }

 private:
  // NaN ranks last and passes no test.
  double confidence(int32_t i) const { return std::isnan(a_.confidence[i]) ? -kInfinity : double(a_.confidence[i]); }
  double entropy(int32_t i) const { return std::isnan(a_.entropy[i]) ? kInfinity : double(a_.entropy[i]); }
  double uniform(int32_t i, uint32_t lane) const { return a_.uniforms ? a_.uniforms[i] : rng::position_uniform(a_.at[i], lane); }

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
    a_.selected[i] = 1;
    a_.forced[row_] = 1;
  }

  void factor() {
    sort_descending([&](int32_t i) { return confidence(i); });
    const auto pass = [&](size_t rank) { return rank == 0 || confidence(open_[rank]) >= 1 - a_.factor / double(rank + 2); };
    size_t taken = 0;
    while (taken < open_.size() && pass(taken)) ++taken;
    if (a_.factor_last_pair && taken + 1 == open_.size()) ++taken;
    for (size_t rank = 0; rank < taken; ++rank) a_.selected[open_[rank]] = 1;
  }

  void planner() {
    for (int32_t i = begin_; i < end_; ++i) {
      if (std::isnan(a_.planner_logit[i])) throw Error(ErrorCode::kNonFinite, "a planner logit is NaN");
      a_.probability[i] = probability(i);
    }
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
      std::stable_sort(order.begin(), order.end(), [&](int32_t i, int32_t j) { return a_.probability[i] > a_.probability[j]; });
      for (int64_t rank = 0; rank < taken; ++rank) a_.selected[order[size_t(rank)]] = 1;
    }
    if (taken == 0) force(top);
    likelihood(top, taken);
  }

  // `taken`: how many were selected before any progress was forced; `top` is the one that is forced.
  //
  // Selecting nothing becomes selecting `top`, so {top} alone is what comes out of two draws, with probability
  // prod_{j != top} (1 - p_j) (p_top + 1 - p_top): p_top drops out, forced or not, and the probabilities of all outcomes sum to 1.
  void likelihood(int32_t top, int64_t taken) {
    const bool only_top = taken == 0 || (taken == 1 && a_.selected[top]);
    for (int32_t i : open_) {
      double value;
      if (a_.selected[i]) {
        value = double(a_.token_log_prob[i]);
        if (!only_top || a_.reference_likelihood) value += log_selected(i);
      } else {
        value = log_masked(i);
      }
      a_.log_likelihood[i] = float(value);
    }
  }

  float planner_z(int32_t i) const { return a_.planner_logit[i] / a_.planner_temperature; }
  // Rounded to fp32 at every operation, as the reference does: that makes p exactly 1 from z = 16.7 on and exactly 0 below -88.8,
  // which decides floor(sum p) and the candidate that is forced. A scale above 1 may take it above 1: the expected count and the order
  // use it as it is (so the scale is a speed knob without a ceiling), a likelihood uses min(1, p).
  float probability(int32_t i) const {
    const float sigmoid = 1.0f / (1.0f + float(std::exp(-double(planner_z(i)))));
    return a_.probability_scale * sigmoid;
  }
  double log_selected(int32_t i) const {
    if (a_.reference_likelihood) return std::log(std::min(1.0, double(a_.probability[i])));
    return std::min(0.0, std::log(double(a_.probability_scale)) + log_sigmoid(planner_z(i)));
  }
  double log_masked(int32_t i) const {
    if (a_.reference_likelihood) return std::log1p(-std::min(1.0, double(a_.probability[i])));
    if (a_.probability_scale == 1) return log_sigmoid(-double(planner_z(i)));
    return std::log1p(-std::min(1.0, a_.probability_scale * std::exp(log_sigmoid(planner_z(i)))));
  }

  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const UnmaskArgs& a_;
  const int row_;
  const int32_t begin_, end_;
  std::vector<int32_t> open_;  // candidates that may be selected
};

}  // namespace

void CpuBackend::unmask(const UnmaskArgs& a) {
  if (is_planner_rule(a.rule)) {
    check_argument(a.planner_temperature > 0, "planner_temperature: expected a positive number, got " + std::to_string(a.planner_temperature));
    check_argument(a.probability_scale >= 0 && std::isfinite(a.probability_scale),
                   "probability_scale: expected a finite number >= 0, got " + std::to_string(a.probability_scale));
  }
  for (int b = 0; b < a.batch; ++b) Row(a, b).run();
}

}  // namespace cpu
}  // namespace dultra
