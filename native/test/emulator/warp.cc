// What the lanes of a block or of a warp do together: barriers, shuffles, fragments of matrices and their products.
#include <utility>

#include "emulator/faults.h"
#include "emulator/fiber.h"

namespace emulator {

namespace {

// The low or the high half of two numbers.
float from_bf16(uint32_t both, size_t high) {
  const uint32_t bits = high ? both & 0xffff0000u : both << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

}  // namespace

void block_barrier() {
  if (broken("barrier", __builtin_return_address(0))) return;
  block->unfenced |= self().unfenced;
  meet(block->all, "block barrier", true, [] {});
}

void warp_barrier() {
  if (broken("warp_barrier", __builtin_return_address(0))) return;
  meet(block->warps[self().index / kWarp], "warp barrier", true, [] {});
}

uint64_t shuffle_xor(uint64_t value, int mask) {
  if (broken("shuffle", __builtin_return_address(0))) mask ^= 4;  // a lane of another row of a tile
  return exchange("shuffle", value)[(self().index ^ size_t(mask)) % kWarp];
}

void ldmatrix_x4(const Row8& row, bool transposed, uint32_t (&fragment)[4]) {
  const Row8* in = exchange(transposed ? "ldmatrix.trans" : "ldmatrix", row);
  const size_t group = self().index % kWarp / 4, quad = self().index % 4;
  for (size_t m = 0; m < 4; ++m) {
    uint32_t half[2];
    for (size_t k = 0; k < 2; ++k)
      half[k] = transposed ? in[m * 8 + quad * 2 + k].element[group] : in[m * 8 + group].element[quad * 2 + k];
    fragment[m] = half[0] | half[1] << 16;
  }
  if (broken("ldmatrix", __builtin_return_address(0))) std::swap(fragment[1], fragment[2]);
}

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct In {
    uint32_t a[4], b[2];
    float d[4];
  };
  struct Tile {
    float sum[16][8];
  };
  static_assert(sizeof(Tile) <= sizeof(Operands), "room for the sums");
  const size_t group = self().index % kWarp / 4, quad = self().index % 4;
  exchange("mma", In{{a[0], a[1], a[2], a[3]}, {b0, b1}, {d[0], d[1], d[2], d[3]}}, [](const In* in, void* out) {
    float rows[16][16], cols[16][8];
    auto& sums = (new (out) Tile)->sum;
    for (size_t l = 0; l < kWarp; ++l) {
      const size_t g = l / 4, q = l % 4;
      for (size_t k = 0; k < 2; ++k) {
        for (size_t i = 0; i < 4; ++i) rows[g + 8 * (i & 1)][2 * q + k + 8 * (i >> 1)] = from_bf16(in[l].a[i], k);
        for (size_t i = 0; i < 2; ++i) cols[2 * q + k + 8 * i][g] = from_bf16(in[l].b[i], k);
      }
      for (size_t i = 0; i < 4; ++i) sums[g + 8 * (i >> 1)][2 * q + (i & 1)] = in[l].d[i];
    }
    // Each sum in the order of k; eight of them side by side.
    for (size_t r = 0; r < 16; ++r)
      for (size_t k = 0; k < 16; ++k)
        for (size_t c = 0; c < 8; ++c) sums[r][c] += rows[r][k] * cols[k][c];
  });
  const auto& sums = reinterpret_cast<const Tile*>(block->warps[self().index / kWarp].out.bytes)->sum;
  for (size_t i = 0; i < 4; ++i) d[i] = sums[group + 8 * (i >> 1)][2 * quad + (i & 1)];
}

}  // namespace emulator
