#include "ops/rng.h"

#include "harness.h"

namespace dultra {
namespace test {
namespace {

// Known answers of Random123 (kat_vectors, philox4x32 10).
DULTRA_TEST(rng_philox_known_answers) {
  struct Known {
    uint32_t counter[4], key[2], out[4];
  };
  const Known known[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const Known& k : known) {
    const rng::Words out = rng::philox4x32_10(rng::Words{{k.counter[0], k.counter[1], k.counter[2], k.counter[3]}},
                                              uint64_t(k.key[1]) << 32 | k.key[0]);
    for (int i = 0; i < 4; ++i) CHECK(out.w[i] == k.out[i], "word ", i, " is ", out.w[i]);
  }
}

DULTRA_TEST(rng_log_exact_matches_libm) {
  Random random(1);
  double worst = 0;
  for (int i = 0; i < 200000; ++i) {
    const double x = i % 2 ? random.uniform() : std::exp(random.normal() * 20);
    const double expected = std::log(x),
                 error = std::fabs(rng::log_exact(x) - expected) / std::max(std::fabs(expected), 1e-300);
    worst = std::max(worst, error);
  }
  CHECK(worst < 4.5e-16, worst);
  CHECK(rng::log_exact(1.0) == 0, rng::log_exact(1.0));
}

DULTRA_TEST(rng_uniforms_are_open_and_uniform) {
  CHECK(rng::uniform_from_words(0, 0) > 0, "");
  CHECK(rng::uniform_from_words(~0u, ~0u) < 1, "");
  CHECK(rng::gumbel(rng::uniform_from_words(~0u, ~0u)) < rng::kMaxGumbel, "");
  // Chi-square with 63 degrees of freedom: mean 63, standard deviation 11.2.
  const auto chi_square = [](auto draw) {
    const int n = 64000;
    int counts[64] = {};
    for (int i = 0; i < n; ++i) ++counts[std::min(63, int(draw(uint32_t(i)) * 64))];
    double sum = 0;
    for (int count : counts) sum += (count - n / 64.0) * (count - n / 64.0) / (n / 64.0);
    return sum;
  };
  const auto token = [](const rng::Coordinates& at, uint32_t v) {
    uint32_t high, low;
    rng::token_words(at, v, &high, &low);
    return rng::uniform_from_words(high, low);
  };
  const double by_token = chi_square([&](uint32_t i) { return token({7, 1, 2, 3}, i); });
  const double by_position = chi_square([&](uint32_t i) { return rng::position_uniform({7, 1, 2, i}, 0); });
  const double by_step = chi_square([&](uint32_t i) { return rng::position_uniform({7, 1, i, 2}, 0); });
  const double by_row = chi_square([&](uint32_t i) { return token({7, i, 1, 2}, 11); });
  const double by_seed = chi_square([&](uint32_t i) { return token({i, 1, 1, 2}, 11); });
  for (double value : {by_token, by_position, by_step, by_row, by_seed}) CHECK(value > 25 && value < 120, value);
}

DULTRA_TEST(rng_lanes_are_distinct) {
  const rng::Coordinates at{5, 1, 2, 3};
  CHECK(rng::position_uniform(at, 0) != rng::position_uniform(at, 1), "");
  uint32_t high[2], low[2];
  rng::token_words(at, 8, &high[0], &low[0]);
  rng::token_words(at, 9, &high[1], &low[1]);
  CHECK(high[0] != high[1] && low[0] != low[1], "");
}

}  // namespace
}  // namespace test
}  // namespace dultra
