// Which tokens a draw may take (top-k, top-p), and the probabilities of those that are left. Probabilities are integers
// in fixed point, from correctly rounded operations alone: their sums do not depend on the order of summation, so every
// backend, launch shape and number of threads keeps the same tokens and gets the same numbers.
#pragma once
#include <cstdint>
#include <cstring>

#include "ops/rng.h"

namespace dultra {
namespace token_filter {

// Orders as logits do, and equal for equal logits. NaN is the least, and -infinity the least of all numbers.
DULTRA_HD uint32_t key_of(float logit) {
  if (!(logit == logit)) return 0;
  const float x = logit + 0.0f;  // one zero
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
constexpr uint32_t kLeastKey = 0x00800000u;  // of the least finite number

// Tokens that are kept: those above `key`, and of those at it the ones up to id `last`.
struct Cut {
  uint32_t key;
  int32_t last;
  DULTRA_HD bool keeps(float logit, int32_t token) const {
    const uint32_t mine = key_of(logit);
    return mine > key || (mine == key && token <= last);
  }
};
DULTRA_HD Cut keep_all() { return {kLeastKey, 2147483647}; }

// e^x for x <= 0, 0 below -44: within 1e-14, and the same bits everywhere.
DULTRA_HD double exp_exact(double x) {
  if (!(x > -44)) return 0;
  const int k = int(rng::add_rn(rng::mul_rn(x, 1.4426950408889634), -0.5));
  const double high = 0.69314718036912381649, low = 1.9082149292705877e-10;  // of log 2; k * high is exact
  const double r = rng::add_rn(rng::add_rn(x, -rng::mul_rn(double(k), high)), -rng::mul_rn(double(k), low));
  double p = 1.0 / 479001600;
  const double inverse[12] = {1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                              1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5,         1.0,        1.0};
  for (int i = 0; i < 12; ++i) p = rng::add_rn(rng::mul_rn(p, r), inverse[i]);
  const uint64_t bits = uint64_t(1023 + k) << 52;
  double scale;
  memcpy(&scale, &bits, 8);
  return rng::mul_rn(p, scale);
}

// Probabilities of a row's tokens at a temperature, before they are divided by their sum: those of the largest logit
// are `one`. Sums over a whole vocabulary stay below 2^63.
struct Weights {
  double max, temperature, one;

  DULTRA_HD Weights(float largest, double at, int64_t vocab) : max(largest), temperature(at), one(1) {
    int bits = 62;
    for (int64_t n = 1; n < vocab; n *= 2) --bits;
    const uint64_t words = uint64_t(1023 + (bits < 52 ? bits : 52)) << 52;
    memcpy(&one, &words, 8);
  }
  // How far a logit is below the largest, at the temperature: at most 0.
  DULTRA_HD double below(float logit) const { return rng::div_rn(rng::add_rn(double(logit), -max), temperature); }
  DULTRA_HD uint64_t weight(float logit) const { return uint64_t(rng::mul_rn(exp_exact(below(logit)), one)); }
  // Its part of the sum of -p log p.
  DULTRA_HD uint64_t surprise(float logit) const {
    const double d = below(logit), e = exp_exact(d);
    return e == 0 ? 0 : uint64_t(rng::mul_rn(rng::mul_rn(e, -d), one));
  }
};

// What sums up to it may be kept, top-p: a token stays while those before it do not exceed it.
DULTRA_HD uint64_t allowance(double top_p, uint64_t total) { return uint64_t(rng::mul_rn(top_p, double(total))); }

// Of the tokens that have the weight `each`, how many stay, where `before` is the sum of those above them.
DULTRA_HD uint64_t kept_of_equal(uint64_t allowed, uint64_t before, uint64_t each) {
  return each == 0 ? 0x7fffffffffffffffu : (allowed - before) / each + 1;
}

// What is known of a row's kept tokens.
struct Sums {
  uint64_t total, surprise, second;  // weights, their surprises, the second largest weight
};

struct Scores {
  float confidence, max_prob, entropy, margin;
};

// chosen: logit of the drawn token, or -infinity where it is not kept.
DULTRA_HD Scores scores_of(const Weights& weights, const Sums& sums, float chosen) {
  const double total = double(sums.total);
  Scores out;
  out.confidence = float(rng::div_rn(rng::mul_rn(exp_exact(weights.below(chosen)), weights.one), total));
  out.max_prob = float(rng::div_rn(weights.one, total));
  const double entropy =
      rng::add_rn(rng::log_exact(rng::div_rn(total, weights.one)), rng::div_rn(double(sums.surprise), total));
  out.entropy = float(entropy > 0 ? entropy : 0);
  out.margin = float(rng::div_rn(rng::add_rn(weights.one, -double(sums.second)), total));
  return out;
}

}  // namespace token_filter
}  // namespace dultra
