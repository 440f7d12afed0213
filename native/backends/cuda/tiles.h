// Tiles of bf16 numbers in shared memory and the products of their rows on tensor cores, as attention and the matrix
// products use them.
#pragma once
#include "backends/cuda/device.h"

namespace dultra {
namespace cuda {

// Offset, in numbers, of the 16-byte chunk `chunk` (eight numbers) of row `row` in a tile of kWidth numbers per row.
// Chunks are swizzled within a row, so that the eight rows that one phase of ldmatrix reads fall into different banks:
// by row % 8 for rows of a multiple of 128 bytes; by row / 2 % 4 for rows of an odd multiple of 64 bytes, of which
// every second one starts in the other half of the banks anyway.
template <int kWidth>
DULTRA_HD constexpr int tile_offset(int row, int chunk) {
  static_assert(kWidth % 32 == 0, "rows are multiples of 64 bytes");
  return row * kWidth + ((kWidth % 64 == 0 ? chunk ^ (row & 7) : chunk ^ ((row >> 1) & 3)) << 3);
}

// Copies rows first .. first + kRows of src (bf16, `stride` numbers apart) to a tile of `Products`; rows outside
// [begin, limit) become zeros.
template <class Products, int kWidth, int kRows, int kThreads>
__device__ __forceinline__ void load_tile(uint16_t* tile, const uint16_t* src, int64_t stride, int first, int begin,
                                          int limit) {
  constexpr int kChunks = kWidth / 8, kCopies = kRows * kChunks;
  if constexpr (kThreads % kChunks == 0 && kThreads / kChunks % 8 == 0 && kCopies % kThreads == 0) {
    // A thread keeps its column and its phase of the swizzle, so its addresses are a constant step apart.
    constexpr int kStep = kThreads / kChunks;
    const int row = int(threadIdx.x / kChunks), chunk = int(threadIdx.x % kChunks);
    const uint16_t* from = src + (first + row) * stride + chunk * 8;
    uint16_t* to = tile + Products::template offset<kWidth, kRows>(row, chunk);
    constexpr int kStride = Products::template offset<kWidth, kRows>(8, 0) / 8 * kStep;
    DULTRA_UNROLL
    for (int i = 0; i < kCopies / kThreads; ++i, from += kStep * stride) {
      const int at = first + row + i * kStep;
      async_copy_16(to + i * kStride, from, at >= begin && at < limit);
    }
  } else {
    DULTRA_UNROLL
    for (int i = int(threadIdx.x); i < kCopies; i += kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const bool valid = first + row >= begin && first + row < limit;
      async_copy_16(tile + Products::template offset<kWidth, kRows>(row, chunk),
                    src + (valid ? first + row : 0) * stride + chunk * 8, valid);
    }
  }
}

// Sixteen rows of weights, rounded to bf16, as the first operand of a product: accumulators and operands share a
// layout.
template <int kCols>
__device__ __forceinline__ void pack_weights(uint32_t (&packed)[kCols / 16][4], const float (&w)[kCols / 8][4]) {
  DULTRA_UNROLL
  for (int n = 0; n < kCols / 16; ++n) DULTRA_UNROLL
  for (int i = 0; i < 4; ++i) packed[n][i] = pack_bf16(w[2 * n + i / 2][i % 2 * 2], w[2 * n + i / 2][i % 2 * 2 + 1]);
}

// How kernels multiply tiles. A warp has 16 rows of a product: number e of acc[n] is row lane / 4 (from e = 2 on, the
// row 8 below) and column 8 n + 2 (lane % 4) + e % 2, as in mma.sync. Products are queued between begin(), which names
// the registers that they read and write, and commit(); the registers must not be used before wait() names them again
// and the group is complete.

// mma.sync, on every device: each warp by itself, synchronous.
struct WarpProducts {
  static constexpr bool kExists = true;
  static constexpr bool kQueued = false;  // a product is done when it is issued
  template <int kWidth, int kRows>
  static DULTRA_HD constexpr int offset(int row, int chunk) {
    return tile_offset<kWidth>(row, chunk);
  }
  // After async_wait, before the barrier that lets others read what this thread copied.
  static __device__ __forceinline__ void landed() {}
  template <class... Registers>
  static __device__ __forceinline__ void begin(Registers&...) {}
  static __device__ __forceinline__ void commit() {}
  template <int kPending, class... Registers>
  static __device__ __forceinline__ void wait(Registers&...) {}

  // acc (16, kCols) = rows 16 warp .. 16 warp + 16 of a tile of kRows times all rows of one of kCols, over their kWidth
  // numbers
  template <int kWidth, int kRows, int kCols>
  static __device__ __forceinline__ void rows(float (&acc)[kCols / 8][4], const uint16_t* tile, int warp,
                                              const uint16_t* cols) {
    const int lane = lane_index();
    DULTRA_UNROLL
    for (int n = 0; n < kCols / 8; ++n) DULTRA_UNROLL
    for (int e = 0; e < 4; ++e) acc[n][e] = 0;
    DULTRA_UNROLL
    for (int d = 0; d < kWidth / 16; ++d) {
      uint32_t a[4];
      ldmatrix_x4(a, tile + tile_offset<kWidth>(warp * 16 + lane % 16, d * 2 + lane / 16));
      DULTRA_UNROLL
      for (int n = 0; n < kCols / 16; ++n) {
        uint32_t b[4];
        ldmatrix_x4(b, cols + tile_offset<kWidth>(n * 16 + lane / 16 * 8 + lane % 8, d * 2 + lane / 8 % 2));
        mma_m16n8k16(acc[2 * n], a, b[0], b[1]);
        mma_m16n8k16(acc[2 * n + 1], a, b[2], b[3]);
      }
    }
  }
  // acc (16, kWidth) += w (16, kCols), packed, times a tile of kCols rows
  template <int kWidth, int kCols>
  static __device__ __forceinline__ void weights(float (&acc)[kWidth / 8][4], const uint32_t (&w)[kCols / 16][4],
                                                 const uint16_t* tile) {
    const int lane = lane_index();
    DULTRA_UNROLL
    for (int n = 0; n < kCols / 16; ++n) DULTRA_UNROLL
    for (int d = 0; d < kWidth / 16; ++d) {
      uint32_t b[4];
      ldmatrix_x4_transposed(b, tile + tile_offset<kWidth>(n * 16 + lane % 16, d * 2 + lane / 16));
      mma_m16n8k16(acc[2 * d], w[n], b[0], b[1]);
      mma_m16n8k16(acc[2 * d + 1], w[n], b[2], b[3]);
    }
  }
};

// wgmma, on sm_90a: four warps together, with the second operand (and the first of `rows`) read from shared memory.
// Tiles are cut into panels of 64 numbers a row, eight rows of which are one pattern of the swizzle of 128 bytes: chunk
// c of row r lies at c ^ r % 8.
struct GroupProducts {
  static constexpr bool kExists = kHasWarpgroups;
  static constexpr bool kQueued = true;
  static constexpr int kPanel = 64;
  static constexpr uint32_t kEightRows = 8 * kPanel * sizeof(uint16_t);

  template <int kWidth, int kRows>
  static DULTRA_HD constexpr int offset(int row, int chunk) {
    static_assert(kWidth % kPanel == 0 && kRows % 8 == 0, "panels of whole patterns");
    return ((chunk >> 3) * kRows + row) * kPanel + (((chunk ^ row) & 7) << 3);
  }
  static __device__ __forceinline__ void landed() { fence_shared_for_wgmma(); }
  template <class... Registers>
  static __device__ __forceinline__ void begin(Registers&... registers) {
    (pin(registers), ...);
    wgmma_begin();
  }
  static __device__ __forceinline__ void commit() { wgmma_commit(); }
  template <int kPending, class... Registers>
  static __device__ __forceinline__ void wait(Registers&... registers) {
    wgmma_wait<kPending>();
    (pin(registers), ...);
  }

  // The wgmma matrix descriptor of a tile: its address, the bytes between panels (read only for a second operand whose
  // rows are the summed dimension) and between groups of eight rows, and the swizzle mode. Addresses are in units of 16
  // bytes, so an offset of `numbers` is an addition.
  static __device__ __forceinline__ uint64_t descriptor(const uint16_t* tile, uint32_t panel_bytes = 16) {
    return uint64_t((shared_address(tile) & 0x3ffff) >> 4) | uint64_t(panel_bytes >> 4) << 16 |
           uint64_t(kEightRows >> 4) << 32 | uint64_t(1) << 62;
  }
  static DULTRA_HD constexpr uint64_t further(int numbers) { return uint64_t(numbers) * sizeof(uint16_t) >> 4; }

  template <int kWidth, int kRows, int kCols>
  static __device__ __forceinline__ void rows(float (&acc)[kCols / 8][4], const uint16_t* tile, int warp,
                                              const uint16_t* cols) {
    const uint64_t a = descriptor(tile + warp / 4 * 64 * kPanel), b = descriptor(cols);
    DULTRA_UNROLL
    for (int d = 0; d < kWidth / 16; ++d)
      wgmma_rows<kCols>(acc, a + further(d / 4 * kRows * kPanel + d % 4 * 16),
                        b + further(d / 4 * kCols * kPanel + d % 4 * 16), d > 0);
  }
  template <int kWidth, int kCols>
  static __device__ __forceinline__ void weights(float (&acc)[kWidth / 8][4], const uint32_t (&w)[kCols / 16][4],
                                                 const uint16_t* tile) {
    const uint64_t b = descriptor(tile, kCols * kPanel * sizeof(uint16_t));
    DULTRA_UNROLL
    for (int n = 0; n < kCols / 16; ++n) wgmma_weights<kWidth>(acc, w[n], b + further(n * 16 * kPanel), true);
  }
};

}  // namespace cuda
}  // namespace dultra
