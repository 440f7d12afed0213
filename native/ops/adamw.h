// How AdamW's state is stored narrower than fp32: a master split into its weight and 16 low bits, moments rounded
// stochastically to bf16. Only integer operations, so every backend gets the same bits.
#pragma once
#include "ops/rng.h"
#include "ops/tensor.h"

namespace dultra {

// An fp32 number in two halves of 16 bits: `high` is a bf16 number, the nearest (ties away from 0), `low` what is
// missing to the fp32 number, counted in its last bits. With `high` rounded half up, low is in [-2^15, 2^15) for every
// number, so high and low give it back exactly. (Rounded half to even, both +2^15 and -2^15 would occur, and would be
// the same 16 bits.) A NaN stays a NaN, though not the same.
struct SplitFloat {
  uint16_t high;
  int16_t low;
};
DULTRA_HD SplitFloat split_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0u, 0};
  const uint32_t high = (bits + 0x8000u) >> 16;
  return {uint16_t(high), int16_t(uint16_t(bits - (high << 16)))};
}
DULTRA_HD float join_float(uint16_t high, int16_t low) {
  const uint32_t bits = (uint32_t(high) << 16) + uint32_t(int32_t(low));
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// fp32 -> bf16, up or down at random so that the mean is the fp32 number itself; `random` is uniform over 16 bits.
DULTRA_HD uint16_t finite_to_bf16_stochastic(float value, uint32_t random) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return uint16_t((bits + random) >> 16);
}
DULTRA_HD uint16_t f32_to_bf16_stochastic(float value, uint32_t random) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7f800000u) == 0x7f800000u) return f32_to_bf16(value);
  return finite_to_bf16_stochastic(value, random);
}

namespace rng {

// What rounds the moments of a parameter's elements 4 group .. 4 group + 3 at an optimiser step: word e is element e's,
// its low 16 bits the first moment's and the high ones the second's. The key is apart from those of all other draws.
DULTRA_HD Words moment_words(uint64_t seed, uint32_t parameter, uint32_t step, uint64_t group) {
  return philox4x32_10(Words{{uint32_t(group), uint32_t(group >> 32), parameter, step}}, seed ^ 0x6d6f6d656e747331ull);
}

}  // namespace rng
}  // namespace dultra
