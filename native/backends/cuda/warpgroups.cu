// Whether wgmma multiplies the tiles of GroupProducts as mma.sync does those of WarpProducts: asked once of every
// device, before attention takes the one for the other. Whole numbers, so that every sum is exact and nothing less than
// equality will do.
#include <vector>

#include "backends/cuda/launchers.h"
#include "backends/cuda/tiles.h"

namespace dultra {
namespace cuda {

namespace {

constexpr int kRows = 128, kCols = 64, kDim = 128;

// A number of a tile: small whole ones, exact in bf16.
DULTRA_HD int number(int tile, int row, int column) {
  return (row * 7 + column * 3 + row * column % 11 + tile * 5) % 9 - 4;
}

template <class Products, int kWidth, int kHeight>
__device__ __forceinline__ void fill(uint16_t* tile, int which) {
  for (int i = int(threadIdx.x); i < kHeight * kWidth; i += kRows * 2) {
    const int row = i / kWidth, column = i % kWidth;
    tile[Products::template offset<kWidth, kHeight>(row, column / 8) + column % 8] =
        f32_to_bf16(float(number(which, row, column)));
  }
}

// out (kRows, kDim) = (a b^T), rounded to bf16, times b: both products that attention has. a is (kRows, kDim), b
// (kCols, kDim).
template <class Products>
__global__ void __launch_bounds__(kRows * 2) warpgroup_check_kernel(float* out) {
  if (!Products::kExists) return;
  DULTRA_SHARED(shared);
  uint16_t* a = reinterpret_cast<uint16_t*>(shared);
  uint16_t* b = a + kRows * kDim;
  fill<Products, kDim, kRows>(a, 0);
  fill<Products, kDim, kCols>(b, 1);
  Products::landed();
  block_sync();  // both tiles are complete
  const int warp = warp_index(), lane = lane_index();
  float s[kCols / 8][4], acc[kDim / 8][4] = {};
  Products::begin(s);
  Products::template rows<kDim, kRows, kCols>(s, a, warp, b);
  Products::commit();
  Products::template wait<0>(s);
  // Sums of up to 2048 take more bits than bf16 has: what is left of the division by nine is small again.
  for (int n = 0; n < kCols / 8; ++n)
    for (int e = 0; e < 4; ++e) s[n][e] = float(int(s[n][e]) % 9);
  uint32_t weights[kCols / 16][4];
  pack_weights<kCols>(weights, s);
  Products::begin(acc, weights);
  Products::template weights<kDim, kCols>(acc, weights, b);
  Products::commit();
  Products::template wait<0>(acc, weights);
  for (int d = 0; d < kDim / 8; ++d)
    for (int e = 0; e < 4; ++e)
      out[(warp * 16 + lane / 4 + 8 * (e >> 1)) * kDim + d * 8 + lane % 4 * 2 + (e & 1)] = acc[d][e];
}

}  // namespace

bool warpgroups_work(cudaStream_t stream) {
  constexpr size_t kNumbers = size_t(kRows) * kDim, kBytes = kNumbers * sizeof(float);
  struct Memory {
    float *device = nullptr, *host = nullptr;
    ~Memory() {
      cudaFree(device);
      cudaFreeHost(host);
    }
  } memory;
  check_cuda(cudaMalloc(reinterpret_cast<void**>(&memory.device), kBytes), "checking wgmma");
  check_cuda(cudaMallocHost(reinterpret_cast<void**>(&memory.host), kBytes), "checking wgmma");
  // NaN where nothing is written, as it is by a build without sm_90a.
  check_cuda(cudaMemsetAsync(memory.device, 0xff, kBytes, stream), "checking wgmma");
  launch("checking wgmma", stream, warpgroup_check_kernel<GroupProducts>, dim3(1), kRows * 2,
         sizeof(uint16_t) * (kRows + kCols) * kDim, memory.device);
  check_cuda(cudaMemcpyAsync(memory.host, memory.device, kBytes, cudaMemcpyDefault, stream), "checking wgmma");
  check_cuda(cudaStreamSynchronize(stream), "checking wgmma");
  // Every backend that opens pays for this, and on the emulator every test.
  std::vector<int> a(size_t(kRows) * kDim), b(size_t(kCols) * kDim);
  for (int d = 0; d < kDim; ++d) {
    for (int i = 0; i < kRows; ++i) a[size_t(i * kDim + d)] = number(0, i, d);
    for (int j = 0; j < kCols; ++j) b[size_t(j * kDim + d)] = number(1, j, d);
  }
  for (int i = 0; i < kRows; ++i) {
    int sums[kDim] = {};
    for (int j = 0; j < kCols; ++j) {
      int score = 0;
      for (int d = 0; d < kDim; ++d) score += a[size_t(i * kDim + d)] * b[size_t(j * kDim + d)];
      for (int d = 0; d < kDim; ++d) sums[d] += score % 9 * b[size_t(j * kDim + d)];
    }
    for (int d = 0; d < kDim; ++d)
      if (memory.host[i * kDim + d] != float(sums[d])) return false;
  }
  return true;
}

}  // namespace cuda
}  // namespace dultra
