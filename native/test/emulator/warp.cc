// What the lanes of a block or of a warp do together: barriers, shuffles, fragments of matrices and their products.
#include <utility>

#include "emulator/faults.h"
#include "emulator/fiber.h"

namespace emulator {

namespace {

float from_bf16(uint32_t bits) {
  bits <<= 16;
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
  meet(block->warps[size_t(self().index / kWarp)], "warp barrier", true, [] {});
}

uint64_t shuffle_xor(uint64_t value, int mask) {
  struct In {
    uint64_t value;
    int mask;
  };
  if (broken("shuffle", __builtin_return_address(0))) mask ^= 4;  // a lane of another row of a tile
  return collective<uint64_t>("shuffle", In{value, mask}, [](const In(&in)[kWarp], uint64_t(&out)[kWarp]) {
    for (int l = 0; l < kWarp; ++l) out[l] = in[(l ^ in[l].mask) % kWarp].value;
  });
}

void ldmatrix_x4(const Row8& row, bool transposed, uint32_t (&fragment)[4]) {
  struct Out {
    uint32_t r[4];
  };
  const auto combine = [transposed](const Row8(&in)[kWarp], Out(&out)[kWarp]) {
    for (int l = 0; l < kWarp; ++l)
      for (int m = 0; m < 4; ++m) {
        uint32_t half[2];
        for (int k = 0; k < 2; ++k)
          half[k] =
              transposed ? in[m * 8 + (l % 4) * 2 + k].element[l / 4] : in[m * 8 + l / 4].element[(l % 4) * 2 + k];
        out[l].r[m] = half[0] | half[1] << 16;
      }
  };
  Out out = collective<Out>(transposed ? "ldmatrix.trans" : "ldmatrix", row, combine);
  if (broken("ldmatrix", __builtin_return_address(0))) std::swap(out.r[1], out.r[2]);
  for (int i = 0; i < 4; ++i) fragment[i] = out.r[i];
}

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct In {
    uint32_t a[4], b[2];
    float d[4];
  };
  struct Out {
    float d[4];
  };
  const In mine{{a[0], a[1], a[2], a[3]}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
  const Out out = collective<Out>("mma", mine, [](const In(&in)[kWarp], Out(&result)[kWarp]) {
    float rows[16][16], cols[8][16];
    for (int l = 0; l < kWarp; ++l) {
      const int group = l / 4, quad = l % 4;
      for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 2; ++k)
          rows[group + 8 * (i & 1)][2 * quad + k + 8 * (i >> 1)] =
              from_bf16(k ? in[l].a[i] >> 16 : in[l].a[i] & 0xffffu);
      for (int i = 0; i < 2; ++i)
        for (int k = 0; k < 2; ++k)
          cols[group][2 * quad + k + 8 * i] = from_bf16(k ? in[l].b[i] >> 16 : in[l].b[i] & 0xffffu);
    }
    for (int l = 0; l < kWarp; ++l)
      for (int i = 0; i < 4; ++i) {
        const float* row = rows[l / 4 + 8 * (i >> 1)];
        const float* col = cols[(l % 4) * 2 + (i & 1)];
        float sum = in[l].d[i];
        for (int k = 0; k < 16; ++k) sum += row[k] * col[k];
        result[l].d[i] = sum;
      }
  });
  for (int i = 0; i < 4; ++i) d[i] = out.d[i];
}

}  // namespace emulator
