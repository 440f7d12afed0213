// Tiles of bf16 numbers in shared memory and the products of their rows on tensor cores, as attention and the matrix products use them.
#pragma once
#include "backends/cuda/device.h"

namespace dultra {
namespace cuda {

// Where the 16-byte chunk `chunk` (eight numbers) of row `row` lies in a tile whose rows hold kWidth numbers, in numbers. Chunks are swapped
// within a row so that the eight rows that one phase of ldmatrix reads fall into different banks: rows of a multiple of 128 bytes swap by
// row % 8; rows of an odd multiple of 64 bytes reach the other half of the banks with every second row by themselves and swap by row / 2 % 4.
template <int kWidth>
DULTRA_HD int tile_offset(int row, int chunk) {
  static_assert(kWidth % 32 == 0, "rows are multiples of 64 bytes");
  return row * kWidth + ((kWidth % 64 == 0 ? chunk ^ (row & 7) : chunk ^ ((row >> 1) & 3)) << 3);
}

// Rows first .. first + kRows of src (bf16, `stride` numbers apart) to a tile, zeros from row `limit` on and before row `begin`.
template <int kWidth, int kRows, int kThreads>
__device__ __forceinline__ void load_tile(uint16_t* tile, const uint16_t* src, int64_t stride, int first, int begin, int limit) {
  constexpr int kChunks = kWidth / 8;
  DULTRA_UNROLL
  for (int i = int(threadIdx.x); i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool valid = first + row >= begin && first + row < limit;
    async_copy_16(tile + tile_offset<kWidth>(row, chunk), src + (valid ? first + row : 0) * stride + chunk * 8, valid);
  }
}

// acc (16, kCols) += rows row0 .. row0 + 16 of one tile times all kCols rows of another, over their kWidth numbers. acc[n] holds columns
// 8 n .. 8 n + 8 in the layout of mma.sync: numbers 0, 1 are row lane / 4, columns 2 (lane % 4) and the next; 2, 3 are eight rows below.
template <int kWidth, int kCols>
__device__ __forceinline__ void multiply_rows(float (&acc)[kCols / 8][4], const uint16_t* rows, int row0, const uint16_t* cols) {
  const int lane = lane_index();
  DULTRA_UNROLL
  for (int d = 0; d < kWidth / 16; ++d) {
    uint32_t a[4];
    ldmatrix_x4(a, rows + tile_offset<kWidth>(row0 + lane % 16, d * 2 + lane / 16));
    DULTRA_UNROLL
    for (int n = 0; n < kCols / 16; ++n) {
      uint32_t b[4];
      ldmatrix_x4(b, cols + tile_offset<kWidth>(n * 16 + lane / 16 * 8 + lane % 8, d * 2 + lane / 8 % 2));
      mma_m16n8k16(acc[2 * n], a, b[0], b[1]);
      mma_m16n8k16(acc[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// acc (16, kWidth) += w (16, kCols), in acc's layout and rounded to bf16, times a tile of kCols rows: the layout of sums is that of operands.
template <int kWidth, int kCols>
__device__ __forceinline__ void multiply_weights(float (&acc)[kWidth / 8][4], const float (&w)[kCols / 8][4], const uint16_t* cols) {
  const int lane = lane_index();
  DULTRA_UNROLL
  for (int n = 0; n < kCols / 16; ++n) {
    const uint32_t a[4] = {pack_bf16(w[2 * n][0], w[2 * n][1]), pack_bf16(w[2 * n][2], w[2 * n][3]), pack_bf16(w[2 * n + 1][0], w[2 * n + 1][1]),
                           pack_bf16(w[2 * n + 1][2], w[2 * n + 1][3])};
    DULTRA_UNROLL
    for (int d = 0; d < kWidth / 16; ++d) {
      uint32_t b[4];
      ldmatrix_x4_transposed(b, cols + tile_offset<kWidth>(n * 16 + lane % 16, d * 2 + lane / 16));
      mma_m16n8k16(acc[2 * d], a, b[0], b[1]);
      mma_m16n8k16(acc[2 * d + 1], a, b[2], b[3]);
    }
  }
}

}  // namespace cuda
}  // namespace dultra
