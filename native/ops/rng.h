// Random numbers as a pure function of (seed, row, step, position, token): Philox4x32-10, no state, so no draw depends
// on thread count, batch neighbours, launch shape or backend. Only correctly rounded double operations are used after
// the integer part, so that every backend gets the same bits. Host code that includes this is compiled with
// -ffp-contract=off.
#pragma once
#include <cstdint>
#include <cstring>
#ifndef __CUDACC__
#include <cmath>
#endif

#include "ops/host_device.h"

namespace dultra {
namespace rng {

#ifdef __CUDA_ARCH__
DULTRA_HD double mul_rn(double a, double b) { return __dmul_rn(a, b); }
DULTRA_HD double add_rn(double a, double b) { return __dadd_rn(a, b); }
DULTRA_HD double div_rn(double a, double b) { return __ddiv_rn(a, b); }
DULTRA_HD double fma_rn(double a, double b, double c) { return __fma_rn(a, b, c); }
// One instruction, where a product of 64-bit numbers gets a second for their (zero) high words.
DULTRA_HD void multiply(uint32_t a, uint32_t b, uint32_t* high, uint32_t* low) {
  *high = __umulhi(a, b);
  *low = a * b;
}
#else
DULTRA_HD double mul_rn(double a, double b) { return a * b; }
DULTRA_HD double add_rn(double a, double b) { return a + b; }
DULTRA_HD double div_rn(double a, double b) { return a / b; }
DULTRA_HD double fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
DULTRA_HD void multiply(uint32_t a, uint32_t b, uint32_t* high, uint32_t* low) {
  const uint64_t product = uint64_t(a) * b;
  *high = uint32_t(product >> 32);
  *low = uint32_t(product);
}
#endif

struct Words {
  uint32_t w[4];
};

// Philox4x32 with 10 rounds (Salmon et al. 2011); constants are the published ones.
DULTRA_HD Words philox4x32_10(Words counter, uint64_t key) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    uint32_t high0, low0, high1, low1;
    multiply(0xD2511F53u, counter.w[0], &high0, &low0);
    multiply(0xCD9E8D57u, counter.w[2], &high1, &low1);
    counter = Words{{high1 ^ counter.w[1] ^ k0, low1, high0 ^ counter.w[3] ^ k1, low0}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

// Where a draw belongs. `row` is the row's index in the caller's random stream, not its place in a batch; `step` counts
// the denoising steps that this row took part in; `position` is the index inside the row.
struct Coordinates {
  uint64_t seed;
  uint32_t row, step, position;
};

// 52-bit uniform in the open interval (0, 1).
DULTRA_HD double uniform_from_words(uint32_t high, uint32_t low) {
  return mul_rn(add_rn(double((uint64_t(high) << 20) | (low >> 12)), 0.5), 2.220446049250313e-16);
}

// The two words behind token `token`'s noise.
DULTRA_HD void token_words(const Coordinates& at, uint32_t token, uint32_t* high, uint32_t* low) {
  const Words r = philox4x32_10(Words{{token >> 1, at.position, at.row, at.step}}, at.seed);
  *high = r.w[(token & 1) * 2];
  *low = r.w[(token & 1) * 2 + 1];
}

// Uniform that decides whether `position` is unmasked (Bernoulli). The counter lane 2^31 | lane is disjoint from the
// token lanes (token / 2 < 2^31). Lane 0: Bernoulli unmasking; lane 1: the random order of the "random" sampler.
DULTRA_HD double position_uniform(const Coordinates& at, uint32_t lane) {
  const Words r = philox4x32_10(Words{{0x80000000u | lane, at.position, at.row, at.step}}, at.seed);
  return uniform_from_words(r.w[0], r.w[1]);
}

// Natural logarithm of a positive normal double from correctly rounded operations alone: x = 2^e m with m in [1/sqrt2,
// sqrt2], log m = 2 atanh(s), s = (m-1)/(m+1), odd series in s. Within 3.2e-16 (relative) of libm, and the same bits on
// every machine.
DULTRA_HD double log_exact(double x) {
  uint64_t bits;
  memcpy(&bits, &x, 8);
  int exponent = int(bits >> 52) - 1023;
  bits = (bits & 0xfffffffffffffull) | 0x3ff0000000000000ull;
  double m;
  memcpy(&m, &bits, 8);
  if (m > 1.4142135623730951) {
    m = mul_rn(m, 0.5);
    ++exponent;
  }
  const double s = div_rn(add_rn(m, -1.0), add_rn(m, 1.0)), z = mul_rn(s, s);
  double p = 2.0 / 23;
  for (int k = 21; k >= 3; k -= 2) p = fma_rn(p, z, 2.0 / k);
  return fma_rn(double(exponent), 0.69314718055994530942, fma_rn(mul_rn(s, z), p, mul_rn(2.0, s)));
}

// Standard Gumbel noise of a uniform in (0, 1).
DULTRA_HD double gumbel(double uniform) { return -log_exact(-log_exact(uniform)); }

DULTRA_HD double token_gumbel(const Coordinates& at, uint32_t token) {
  uint32_t high, low;
  token_words(at, token, &high, &low);
  return gumbel(uniform_from_words(high, low));
}

// No Gumbel draw from the uniforms above exceeds this: -log(-log(1 - 2^-53)) = 36.74.
constexpr double kMaxGumbel = 36.8;

}  // namespace rng
}  // namespace dultra
