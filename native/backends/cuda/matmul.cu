// The built-in matrix products: on tensor cores (bf16 operands, fp32 sums), and in fp32. They keep everything working
// where cuBLASLt is not found, and are what runs without a GPU. Every element of the result is one chain over ascending
// k, so neither tiles nor neighbours change it.
//
// Tiles of the tensor-core product (rows of a x rows of b, threads), by the number of blocks: 128 x 128, 256 (64 FLOP
// per shared byte); 64 x 64, 128 where that gives the device too few blocks. Not timed on a GPU yet.
#include "backends/cuda/arg_transfer.h"
#include "backends/cuda/cuda_matrix.h"
#include "backends/cuda/launchers.h"
#include "backends/cuda/tiles.h"

namespace dultra {
namespace cuda {

namespace {

template <DType kType>
struct Storage;
template <>
struct Storage<DType::kF32> {
  using Type = float;
  static __device__ __forceinline__ float load(const float* p) { return *p; }
};
template <>
struct Storage<DType::kBF16> {
  using Type = uint16_t;
  static __device__ __forceinline__ float load(const uint16_t* p) { return bf16_to_f32(*p); }
};
template <>
struct Storage<DType::kF16> {
  using Type = uint16_t;
  static __device__ __forceinline__ float load(const uint16_t* p) { return f16_to_f32(*p); }
};

struct Product {
  MatmulOperand a, b;
  Array out;
  int64_t out_stride;
  const float* bias;
  int64_t m, n, k;
  bool accumulate;
};

// Products of rows with the matrices of their experts. The grid has as many tiles of rows as any spread of the pairs
// over the experts can need, so that a launch does not depend on the spread: the tiles of expert e begin at tile
// offset[e] / kRows + e.
struct ExpertProduct {
  Product product;        // of all pairs; b: the first expert's matrix
  const int32_t* index;   // (P) rows of a; null: those of the pairs
  const int32_t* offset;  // (E + 1)
  int experts;
  int64_t matrix_bytes;  // from an expert's matrix to the next
};
template <int kRows>
int64_t expert_tiles(const ExpertProduct& p) {
  return p.product.m / kRows + p.experts;
}
// The product of the tile's expert, and the tile's first row of it; false where the tile has none.
template <int kRows>
__device__ __forceinline__ bool expert_tile(Product& p, const int32_t*& index, int64_t& row, const ExpertProduct& all) {
  const int tile = int(blockIdx.x);
  int expert = 0;
  for (int high = all.experts - 1; expert < high;) {
    const int middle = (expert + high + 1) / 2;
    if (all.offset[middle] / kRows + middle <= tile)
      expert = middle;
    else
      high = middle - 1;
  }
  const int begin = all.offset[expert], rows = all.offset[expert + 1] - begin;
  row = int64_t(tile - begin / kRows - expert) * kRows;
  if (row >= rows) return false;
  p = all.product;
  p.m = rows;
  p.b.data = static_cast<const uint8_t*>(p.b.data) + expert * all.matrix_bytes;
  p.out = p.out + begin * p.out_stride;
  index = all.index ? all.index + begin : nullptr;
  if (!index) p.a.data = ConstArray(ConstArray(p.a.data, p.a.dtype) + begin * p.a.stride).data;
  return true;
}

// What an element becomes when the product is `value` there.
__device__ __forceinline__ float finished(const Product& p, int64_t at, int64_t column, float value) {
  if (p.bias) value += p.bias[column];
  return p.accumulate ? static_cast<const float*>(p.out.data)[at] + value : value;
}
// In this column and the next.
__device__ __forceinline__ void store_pair(const Product& p, int64_t row, int64_t column, float low, float high) {
  if (row >= p.m || column >= p.n) return;
  const int64_t at = row * p.out_stride + column;
  if (column + 1 < p.n)
    put_pair(p.out, at, finished(p, at, column, low), finished(p, at + 1, column + 1, high));
  else
    put(p.out, at, finished(p, at, column, low));
}
__device__ __forceinline__ void store_float(const Product& p, int64_t row, int64_t column, float value) {
  if (row >= p.m || column >= p.n) return;
  const int64_t at = row * p.out_stride + column;
  static_cast<float*>(p.out.data)[at] = finished(p, at, column, value);
}

// ---- tensor cores -------------------------------------------------------------------------------

constexpr int kDepth = 32;  // of k per stage

// One operand's tiles: kRows rows x kDepth of k as bf16. Its memory order decides that of the tile: (row, k) or, if
// transposed, (k, row). Global memory is read into registers while the tile before is multiplied.
template <DType kType, bool kTransposed, int kRows, int kThreads>
struct Stage {
  using Type = typename Storage<kType>::Type;
  static constexpr int kInner = kTransposed ? kRows : kDepth;  // contiguous numbers
  static constexpr int kChunks = kRows * kDepth / 8, kPerThread = kChunks / kThreads;
  static_assert(kChunks % kThreads == 0, "every thread has equally many chunks");
  static constexpr int kNumbers = kRows * kDepth;

  Type held[kPerThread][8];

  // Rows first .., k from k0 on. Beyond `rows` and `depth` there are zeros. index: which rows these are; null: as they
  // come.
  __device__ __forceinline__ void read(const MatmulOperand& operand, int64_t first, int64_t rows, int64_t k0,
                                       int64_t depth, const int32_t* index = nullptr) {
    const Type* data = static_cast<const Type*>(operand.data);
    DULTRA_UNROLL
    for (int i = 0; i < kPerThread; ++i) {
      const int chunk = i * kThreads + int(threadIdx.x), outer = chunk / (kInner / 8), inner = chunk % (kInner / 8) * 8;
      const int64_t row = first + (kTransposed ? inner : outer), k = k0 + (kTransposed ? outer : inner);
      const int64_t left = kTransposed ? rows - row : depth - k;  // numbers of the chunk that exist
      const bool exists = (kTransposed ? k < depth : row < rows) && left > 0;
      const int64_t line = kTransposed ? k : index && exists ? index[row] : row;
      const Type* from = data + line * operand.stride + (kTransposed ? row : k);
      if (exists && left >= 8 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
        DULTRA_UNROLL
        for (int v = 0; v < int(sizeof(Type)) / 2; ++v) {
          struct alignas(16) Vector {
            uint32_t word[4];
          };
          const Vector vector = reinterpret_cast<const Vector*>(from)[v];
          memcpy(&held[i][v * 16 / int(sizeof(Type))], &vector, 16);
        }
      } else {
        DULTRA_UNROLL
        for (int j = 0; j < 8; ++j) held[i][j] = exists && j < left ? from[j] : Type(0);
      }
    }
  }
  __device__ __forceinline__ void write(uint16_t* tile) const {
    DULTRA_UNROLL
    for (int i = 0; i < kPerThread; ++i) {
      const int chunk = i * kThreads + int(threadIdx.x), outer = chunk / (kInner / 8), inner = chunk % (kInner / 8);
      uint32_t packed[4];
      DULTRA_UNROLL
      for (int j = 0; j < 4; ++j)
        packed[j] = kType == DType::kBF16
                        ? uint32_t(held[i][2 * j]) | uint32_t(held[i][2 * j + 1]) << 16
                        : pack_bf16(Storage<kType>::load(&held[i][2 * j]), Storage<kType>::load(&held[i][2 * j + 1]));
      memcpy(tile + tile_offset<kInner>(outer, inner), packed, 16);
    }
  }
  // Rows row .. row + 16, k .. k + 16 as the first operand of mma.sync.
  static __device__ __forceinline__ void fragment_a(uint32_t (&f)[4], const uint16_t* tile, int row, int k) {
    const int lane = lane_index();
    if (kTransposed)
      ldmatrix_x4_transposed(f, tile + tile_offset<kInner>(k + lane / 16 * 8 + lane % 8, row / 8 + lane / 8 % 2));
    else
      ldmatrix_x4(f, tile + tile_offset<kInner>(row + lane % 16, k / 8 + lane / 16));
  }
  // Likewise as the second operand of two of them: rows row .. row + 8 are f[0], f[1], the next eight f[2], f[3].
  static __device__ __forceinline__ void fragment_b(uint32_t (&f)[4], const uint16_t* tile, int row, int k) {
    const int lane = lane_index();
    if (kTransposed)
      ldmatrix_x4_transposed(f, tile + tile_offset<kInner>(k + lane % 16, row / 8 + lane / 16));
    else
      ldmatrix_x4(f, tile + tile_offset<kInner>(row + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
  }
};

// A block of kWarpsM x kWarpsN warps; every warp owns kM / kWarpsM x kN / kWarpsN of the result. index: rows of a;
// null: as they come.
template <DType kTypeA, bool kTransposedA, DType kTypeB, bool kTransposedB, int kM, int kN, int kWarpsM, int kWarpsN>
__device__ __forceinline__ void tensor_matmul_block(const Product& p, const int32_t* index, int64_t row0) {
  constexpr int kThreads = kWarp * kWarpsM * kWarpsN, kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
  using StageA = Stage<kTypeA, kTransposedA, kM, kThreads>;
  using StageB = Stage<kTypeB, kTransposedB, kN, kThreads>;
  DULTRA_SHARED(shared);
  uint16_t* a_tiles = reinterpret_cast<uint16_t*>(shared);  // (2, kM kDepth)
  uint16_t* b_tiles = a_tiles + 2 * StageA::kNumbers;       // (2, kN kDepth)
  const int64_t column0 = int64_t(blockIdx.y) * kN;
  const int warp_row = warp_index() / kWarpsN * kWarpM, warp_column = warp_index() % kWarpsN * kWarpN,
            lane = lane_index();

  StageA a;
  StageB b;
  float sums[kWarpM / 16][kWarpN / 8][4] = {};
  const int64_t steps = ceil_div(p.k, kDepth);
  a.read(p.a, row0, p.m, 0, p.k, index);
  b.read(p.b, column0, p.n, 0, p.k);
  a.write(a_tiles);
  b.write(b_tiles);
  block_sync();  // the first tiles are complete
  for (int64_t step = 0; step < steps; ++step) {
    const int stage = int(step % 2);
    const bool more = step + 1 < steps;
    if (more) {
      a.read(p.a, row0, p.m, (step + 1) * kDepth, p.k, index);
      b.read(p.b, column0, p.n, (step + 1) * kDepth, p.k);
    }
    const uint16_t* a_tile = a_tiles + stage * StageA::kNumbers;
    const uint16_t* b_tile = b_tiles + stage * StageB::kNumbers;
    DULTRA_UNROLL
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t fa[kWarpM / 16][4];
      DULTRA_UNROLL
      for (int i = 0; i < kWarpM / 16; ++i) StageA::fragment_a(fa[i], a_tile, warp_row + 16 * i, k);
      DULTRA_UNROLL
      for (int j = 0; j < kWarpN / 16; ++j) {
        uint32_t fb[4];
        StageB::fragment_b(fb, b_tile, warp_column + 16 * j, k);
        DULTRA_UNROLL
        for (int i = 0; i < kWarpM / 16; ++i) {
          mma_m16n8k16(sums[i][2 * j], fa[i], fb[0], fb[1]);
          mma_m16n8k16(sums[i][2 * j + 1], fa[i], fb[2], fb[3]);
        }
      }
    }
    // The other stage was last read before the barrier of the step before.
    if (more) {
      a.write(a_tiles + (stage ^ 1) * StageA::kNumbers);
      b.write(b_tiles + (stage ^ 1) * StageB::kNumbers);
    }
    block_sync();  // the next tiles are complete, and this stage is free
  }
  DULTRA_UNROLL
  for (int i = 0; i < kWarpM / 16; ++i) DULTRA_UNROLL
  for (int j = 0; j < kWarpN / 8; ++j) DULTRA_UNROLL
  for (int h = 0; h < 2; ++h)
    store_pair(p, row0 + warp_row + 16 * i + lane / 4 + h * 8, column0 + warp_column + 8 * j + lane % 4 * 2,
               sums[i][j][2 * h], sums[i][j][2 * h + 1]);
}

template <DType kTypeA, bool kTransposedA, DType kTypeB, bool kTransposedB, int kM, int kN, int kWarpsM, int kWarpsN>
__global__ void __launch_bounds__(kWarp* kWarpsM* kWarpsN) tensor_matmul_kernel(Product p) {
  tensor_matmul_block<kTypeA, kTransposedA, kTypeB, kTransposedB, kM, kN, kWarpsM, kWarpsN>(p, nullptr,
                                                                                            int64_t(blockIdx.x) * kM);
}

// Few rows of many matrices: 64 x 64 tiles by four warps.
constexpr int kExpertTile = 64;
template <DType kTypeA, DType kTypeB, bool kTransposedB>
__global__ void __launch_bounds__(4 * kWarp, 3) tensor_experts_kernel(ExpertProduct all) {
  Product p;
  const int32_t* index;
  int64_t row;
  if (expert_tile<kExpertTile>(p, index, row, all))
    tensor_matmul_block<kTypeA, false, kTypeB, kTransposedB, kExpertTile, kExpertTile, 2, 2>(p, index, row);
}
template <DType kTypeA, DType kTypeB, bool kTransposedB>
void launch_tensor_experts(const ExpertProduct& p, cudaStream_t stream) {
  const dim3 grid(unsigned(expert_tiles<kExpertTile>(p)), unsigned(ceil_div(p.product.n, kExpertTile)));
  check_argument(grid.y <= 65535, "experts: expected at most " + std::to_string(65535 * kExpertTile) +
                                      " columns, got " + std::to_string(p.product.n));
  launch("experts", stream, tensor_experts_kernel<kTypeA, kTypeB, kTransposedB>, grid, 4 * kWarp,
         sizeof(uint16_t) * 4 * kDepth * kExpertTile, p);
}
template <DType kTypeA>
void tensor_experts(const ExpertProduct& p, cudaStream_t stream) {
  if (p.product.b.transposed)
    launch_tensor_experts<kTypeA, DType::kBF16, true>(p, stream);
  else
    launch_tensor_experts<kTypeA, DType::kBF16, false>(p, stream);
}

template <DType kTypeA, bool kTransposedA, DType kTypeB, bool kTransposedB, int kM, int kN, int kWarpsM, int kWarpsN>
void launch_tensor(const Product& p, cudaStream_t stream) {
  const dim3 grid(unsigned(ceil_div(p.m, kM)), unsigned(ceil_div(p.n, kN)));
  check_argument(grid.y <= 65535,
                 "matmul: expected at most " + std::to_string(65535 * kN) + " columns, got " + std::to_string(p.n));
  launch("matmul", stream, tensor_matmul_kernel<kTypeA, kTransposedA, kTypeB, kTransposedB, kM, kN, kWarpsM, kWarpsN>,
         grid, kWarp * kWarpsM * kWarpsN, sizeof(uint16_t) * 2 * kDepth * (kM + kN), p);
}
template <DType kTypeA, bool kTransposedA, DType kTypeB, bool kTransposedB>
void tensor_matmul(const Product& p, int multiprocessors, cudaStream_t stream) {
  if (ceil_div(p.m, 128) * ceil_div(p.n, 128) < multiprocessors)
    launch_tensor<kTypeA, kTransposedA, kTypeB, kTransposedB, 64, 64, 2, 2>(p, stream);
  else
    launch_tensor<kTypeA, kTransposedA, kTypeB, kTransposedB, 128, 128, 2, 4>(p, stream);
}

// The products of a model: y = x w^T, dx = dy w, dw = dy^T x.
template <DType kTypeA>
void tensor_matmul_of(const Product& p, int multiprocessors, cudaStream_t stream) {
  const bool narrow = p.b.dtype == DType::kBF16;
  if (!p.a.transposed && !p.b.transposed && narrow)
    return tensor_matmul<kTypeA, false, DType::kBF16, false>(p, multiprocessors, stream);
  if (!p.a.transposed && p.b.transposed && narrow)
    return tensor_matmul<kTypeA, false, DType::kBF16, true>(p, multiprocessors, stream);
  if (!p.a.transposed && p.b.transposed && !narrow)
    return tensor_matmul<kTypeA, false, DType::kF32, true>(p, multiprocessors, stream);
  if (p.a.transposed && p.b.transposed && !narrow)
    return tensor_matmul<kTypeA, true, DType::kF32, true>(p, multiprocessors, stream);
  if (p.a.transposed && p.b.transposed && narrow)
    return tensor_matmul<kTypeA, true, DType::kBF16, true>(p, multiprocessors, stream);
  throw Error(ErrorCode::kInternal, "matmul: no tensor-core product of such operands");
}

// ---- fp32 ---------------------------------------------------------------------------------------

// 64 x 64 of the result by 256 threads; a thread owns 4 x 4 in steps of 16.
constexpr int kTile = 64, kSlab = 16, kFloatThreads = 256, kTilePitch = kTile + 1;

template <DType kType>
__device__ __forceinline__ void read_slab(float* tile, const MatmulOperand& operand, int64_t first, int64_t rows,
                                          int64_t k0, int64_t depth, const int32_t* lines = nullptr) {
  const auto* data = static_cast<const typename Storage<kType>::Type*>(operand.data);
  DULTRA_UNROLL
  for (int i = 0; i < kTile * kSlab / kFloatThreads; ++i) {
    const int index = i * kFloatThreads + int(threadIdx.x);
    const int r = operand.transposed ? index % kTile : index / kSlab,
              l = operand.transposed ? index / kTile : index % kSlab;
    const int64_t row = first + r, k = k0 + l;
    const bool exists = row < rows && k < depth;
    const int64_t line = operand.transposed ? k : lines && exists ? lines[row] : row;
    tile[l * kTilePitch + r] =
        exists ? Storage<kType>::load(data + line * operand.stride + (operand.transposed ? row : k)) : 0.0f;
  }
}

template <DType kTypeA, DType kTypeB>
__device__ __forceinline__ void float_matmul_block(const Product& p, const int32_t* index, int64_t row0) {
  DULTRA_SHARED(shared);
  float* a = reinterpret_cast<float*>(shared);  // (kSlab, kTilePitch)
  float* b = a + kSlab * kTilePitch;            // (kSlab, kTilePitch)
  const int64_t column0 = int64_t(blockIdx.y) * kTile;
  const int row = int(threadIdx.x) / 16, column = int(threadIdx.x) % 16;
  float sums[4][4] = {};
  for (int64_t k0 = 0; k0 < p.k; k0 += kSlab) {
    read_slab<kTypeA>(a, p.a, row0, p.m, k0, p.k, index);
    read_slab<kTypeB>(b, p.b, column0, p.n, k0, p.k);
    block_sync();  // the slabs are complete
    DULTRA_UNROLL
    for (int k = 0; k < kSlab; ++k) {
      float x[4], y[4];
      DULTRA_UNROLL
      for (int i = 0; i < 4; ++i) {
        x[i] = a[k * kTilePitch + row + 16 * i];
        y[i] = b[k * kTilePitch + column + 16 * i];
      }
      DULTRA_UNROLL
      for (int i = 0; i < 4; ++i) DULTRA_UNROLL
      for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
    }
    block_sync();  // the slabs are free
  }
  DULTRA_UNROLL
  for (int i = 0; i < 4; ++i) DULTRA_UNROLL
  for (int j = 0; j < 4; ++j) store_float(p, row0 + row + 16 * i, column0 + column + 16 * j, sums[i][j]);
}

template <DType kTypeA, DType kTypeB>
__global__ void __launch_bounds__(kFloatThreads) float_matmul_kernel(Product p) {
  float_matmul_block<kTypeA, kTypeB>(p, nullptr, int64_t(blockIdx.x) * kTile);
}
template <DType kTypeB>
__global__ void __launch_bounds__(kFloatThreads) float_experts_kernel(ExpertProduct all) {
  Product p;
  const int32_t* index;
  int64_t row;
  if (expert_tile<kTile>(p, index, row, all)) float_matmul_block<DType::kF32, kTypeB>(p, index, row);
}
template <DType kTypeB>
void float_experts(const ExpertProduct& p, cudaStream_t stream) {
  const dim3 grid(unsigned(expert_tiles<kTile>(p)), unsigned(ceil_div(p.product.n, kTile)));
  check_argument(grid.y <= 65535, "experts: expected at most " + std::to_string(65535 * kTile) + " columns, got " +
                                      std::to_string(p.product.n));
  launch("experts", stream, float_experts_kernel<kTypeB>, grid, kFloatThreads, sizeof(float) * 2 * kSlab * kTilePitch,
         p);
}

template <DType kTypeA, DType kTypeB>
void float_matmul(const Product& p, cudaStream_t stream) {
  const dim3 grid(unsigned(ceil_div(p.m, kTile)), unsigned(ceil_div(p.n, kTile)));
  check_argument(grid.y <= 65535,
                 "matmul: expected at most " + std::to_string(65535 * kTile) + " columns, got " + std::to_string(p.n));
  launch("matmul", stream, float_matmul_kernel<kTypeA, kTypeB>, grid, kFloatThreads,
         sizeof(float) * 2 * kSlab * kTilePitch, p);
}

// ---- conversion of weights ----------------------------------------------------------------------

__global__ void __launch_bounds__(kElementThreads)
    convert_kernel(void* to, DType to_type, const void* from, DType from_type, int64_t n) {
  const int64_t i = global_index();
  if (i >= n) return;
  const float value = load_as_f32(from, from_type, size_t(i));
  switch (to_type) {
    case DType::kF32: static_cast<float*>(to)[i] = value; break;
    case DType::kBF16: static_cast<uint16_t*>(to)[i] = f32_to_bf16(value); break;
    case DType::kF16: static_cast<uint16_t*>(to)[i] = f32_to_f16(value); break;
  }
}

// ---- launch -------------------------------------------------------------------------------------

// out (m, n), rows out_stride apart, = a (m, k) b (n, k)^T + bias (n, may be null), plus what out holds if
// `accumulate`. With Compute::kBF16 operands are rounded to bf16; without, out is fp32, and so is a unless b is. An
// element is one chain over ascending k whatever m and n are. out may be bf16 unless `accumulate`.
void matmul(Array out, int64_t out_stride, const MatmulOperand& a, const MatmulOperand& b, int64_t m, int64_t n,
            int64_t k, const float* bias, bool accumulate, Compute compute, int multiprocessors, cudaStream_t stream) {
  if (m == 0 || n == 0) return;
  const Product p{a, b, out, out_stride, bias, m, n, k, accumulate};
  if (compute == Compute::kF32) {
    const bool narrow = a.dtype == DType::kBF16 && b.dtype == DType::kF32;
    check_argument((a.dtype == DType::kF32 || narrow) && out.dtype == DType::kF32,
                   "array: expected fp32 numbers in a product in fp32");
    if (narrow) return float_matmul<DType::kBF16, DType::kF32>(p, stream);
    switch (b.dtype) {
      case DType::kF32: return float_matmul<DType::kF32, DType::kF32>(p, stream);
      case DType::kBF16: return float_matmul<DType::kF32, DType::kBF16>(p, stream);
      case DType::kF16: return float_matmul<DType::kF32, DType::kF16>(p, stream);
    }
  }
  if (a.dtype == DType::kBF16) return tensor_matmul_of<DType::kBF16>(p, multiprocessors, stream);
  tensor_matmul_of<DType::kF32>(p, multiprocessors, stream);
}

// out (P, n) = a (P, k) b (n, k)^T, b being the matrix of each pair's expert.
void multiply_experts(const ExpertProduct& p, Compute compute, cudaStream_t stream) {
  const auto& [a, b, out, out_stride, bias, m, n, k, accumulate] = p.product;
  if (m == 0 || n == 0) return;
  if (compute == Compute::kBF16)
    return a.dtype == DType::kBF16 ? tensor_experts<DType::kBF16>(p, stream) : tensor_experts<DType::kF32>(p, stream);
  check_argument(a.dtype == DType::kF32 && out.dtype == DType::kF32,
                 "array: expected fp32 numbers in a product in fp32");
  switch (b.dtype) {
    case DType::kF32: return float_experts<DType::kF32>(p, stream);
    case DType::kBF16: return float_experts<DType::kBF16>(p, stream);
    case DType::kF16: return float_experts<DType::kF16>(p, stream);
  }
}

// What a matrix is multiplied in.
Compute compute_of(const CudaMatrix& matrix, Compute usual) {
  return matrix.storage == DType::kF32 ? Compute::kF32 : usual;
}

}  // namespace

void convert(void* to, DType to_type, const void* from, DType from_type, int64_t n, cudaStream_t stream) {
  if (n > 0)
    launch("convert", stream, convert_kernel, element_grid(n), kElementThreads, 0, to, to_type, from, from_type, n);
}

// ---- operations ---------------------------------------------------------------------------------

void CudaBackend::multiply(Array out, int64_t out_stride, const MatmulOperand& a, const MatmulOperand& b, int64_t m,
                           int64_t n, int64_t k, const float* bias, bool accumulate, Compute compute) {
  if (m == 0 || n == 0) return;
  if (compute == Compute::kBF16 && lt_ && k > 0) {
    // Operands in bf16; what is not is packed, lines without gaps. A bias is of the result's type.
    const auto lines = [](const MatmulOperand& x, int64_t rows, int64_t depth) { return x.transposed ? depth : rows; };
    const auto width = [](const MatmulOperand& x, int64_t rows, int64_t depth) { return x.transposed ? rows : depth; };
    const auto bytes = [](const MatmulOperand& x, int64_t rows, int64_t depth) {
      return x.dtype == DType::kBF16 ? size_t(0) : Staging::rounded(size_t(rows * depth) * sizeof(uint16_t));
    };
    const size_t a_bytes = bytes(a, m, k);
    const size_t b_bytes = bytes(b, n, k);
    const bool narrow_bias = bias && out.dtype == DType::kBF16;
    auto* packed = static_cast<uint8_t*>(scratch(a_bytes + b_bytes + (narrow_bias ? size_t(n) * sizeof(uint16_t) : 0)));
    const auto pack = [&](const MatmulOperand& x, int64_t rows, void* to) -> CublasLt::Operand {
      if (x.dtype == DType::kBF16) return {x.data, x.stride, x.transposed};
      copy_rows(static_cast<uint16_t*>(to), width(x, rows, k), {x.data, x.dtype}, x.stride, lines(x, rows, k),
                width(x, rows, k), stream_);
      return {to, width(x, rows, k), x.transposed};
    };
    const void* lt_bias = bias;
    if (narrow_bias) {
      uint16_t* rounded = reinterpret_cast<uint16_t*>(packed + a_bytes + b_bytes);
      copy_rows(rounded, n, bias, n, 1, n, stream_);
      lt_bias = rounded;
    }
    if (lt_->multiply(out, out_stride, pack(a, m, packed), pack(b, n, packed + a_bytes), m, n, k, lt_bias, accumulate))
      return;
  }
  matmul(out, out_stride, a, b, m, n, k, bias, accumulate, compute, multiprocessors_, stream_);
}

void CudaBackend::do_linear_forward(Array out, int64_t out_stride, ConstArray x, int64_t m, const Matrix& w,
                                    const float* bias, bool accumulate) {
  ArgTransfer transfer(*this);
  if (w.quantised()) {
    multiply_blocks(out, out_stride, x, m, static_cast<const CudaBlockMatrix&>(w), bias, accumulate);
    return transfer.finish();
  }
  const auto& matrix = static_cast<const CudaMatrix&>(w);
  const int64_t k = w.cols();
  multiply(out, out_stride, {x.data, x.dtype, k, false}, {matrix.row(0), matrix.storage, k, false}, m, w.rows(), k,
           bias, accumulate, compute_of(matrix, compute()));
  transfer.finish();
}

void CudaBackend::do_linear_backward_input(Array dx, ConstArray dy, int64_t dy_stride, ConstArray w, int64_t m,
                                           int64_t n, int64_t k, bool accumulate) {
  ArgTransfer transfer(*this);
  multiply(dx, k, {dy.data, dy.dtype, dy_stride, false}, {w.data, w.dtype, k, true}, m, k, n, nullptr, accumulate,
           compute());
  transfer.finish();
}

void CudaBackend::do_linear_backward_input(Array dx, ConstArray dy, int64_t dy_stride, const Matrix& w,
                                           int64_t first_row, int64_t rows, int64_t m, bool accumulate) {
  ArgTransfer transfer(*this);
  if (w.quantised()) {
    multiply_blocks_back(dx, dy, dy_stride, m, static_cast<const CudaBlockMatrix&>(w), first_row, rows, accumulate);
    return transfer.finish();
  }
  const auto& matrix = static_cast<const CudaMatrix&>(w);
  const int64_t k = w.cols();
  multiply(dx, k, {dy.data, dy.dtype, dy_stride, false}, {matrix.row(first_row), matrix.storage, k, true}, m, k, rows,
           nullptr, accumulate, compute_of(matrix, compute()));
  transfer.finish();
}

void CudaBackend::do_experts_forward(Array out, ConstArray x, bool sorted, const ExpertRows& rows, const Matrix& w) {
  ArgTransfer transfer(*this);
  const auto& matrix = static_cast<const CudaMatrix&>(w);
  const int64_t n = w.expert_rows(), k = w.cols();
  const Product product{
      {x.data, x.dtype, k, false}, {matrix.row(0), matrix.storage, k, false}, out, n, nullptr, rows.pairs, n, k, false};
  multiply_experts(
      {product, sorted ? nullptr : rows.row, rows.offset, rows.experts, int64_t(matrix.bytes()) / rows.experts},
      compute_of(matrix, compute()), stream_);
  transfer.finish();
}

void CudaBackend::do_experts_backward_input(Array dx, ConstArray dy, bool sorted, const ExpertRows& rows,
                                            const Matrix& w) {
  ArgTransfer transfer(*this);
  const auto& matrix = static_cast<const CudaMatrix&>(w);
  const int64_t n = w.expert_rows(), k = w.cols();
  const Product product{
      {dy.data, dy.dtype, n, false}, {matrix.row(0), matrix.storage, k, true}, dx, k, nullptr, rows.pairs, k, n, false};
  multiply_experts(
      {product, sorted ? nullptr : rows.row, rows.offset, rows.experts, int64_t(matrix.bytes()) / rows.experts},
      compute_of(matrix, compute()), stream_);
  transfer.finish();
}

void CudaBackend::do_linear_backward_weight(float* dw, float* db, ConstArray dy, int64_t dy_stride, ConstArray x,
                                            int64_t m, int64_t n, int64_t k) {
  ArgTransfer transfer(*this);
  if (m == 0) return;
  multiply(dw, k, {dy.data, dy.dtype, dy_stride, true}, {x.data, x.dtype, k, true}, n, k, m, nullptr, true, compute());
  if (db) add_column_sums(db, dy, dy_stride, m, n, scratch(norm_scratch(m, n)), stream_);
  transfer.finish();
}

}  // namespace cuda
}  // namespace dultra
