// Fixed point of gradients: integers add up to the same sum in any order.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "ops/host_device.h"

namespace dultra {

// The unit is 2^-50. Half of it is an error of 4e-16 per addend, below the rounding of fp32 for all gradients of more
// than 1e-8, AdamW's eps. It is a constant because a scale that followed the gradients would have to be known before
// the first micro-batch.
constexpr double kFixedPerUnit = 0x1p50;
// 2^62 units: what a sum may reach.
constexpr float kMostFixed = 4096;

// The bits of |x|, in the order of the magnitudes; those of NaN are the highest.
DULTRA_HD uint32_t magnitude_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits & 0x7fffffffu;
}

DULTRA_HD int64_t add_units(int64_t a, int64_t b) { return int64_t(uint64_t(a) + uint64_t(b)); }

// sum + x, rounded to units (ties to even). A number beyond kMostFixed is left out; the sum wraps around where it is
// above twice that.
DULTRA_HD int64_t add_to_fixed(int64_t sum, float x) {
  if (!(fabsf(x) <= kMostFixed)) return sum;
  return add_units(sum, llrint(double(x) * kFixedPerUnit));
}

DULTRA_HD float fixed_to_f32(int64_t units) { return float(double(units) / kFixedPerUnit); }

}  // namespace dultra
