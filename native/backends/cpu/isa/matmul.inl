// Micro-kernels of the matrix product, written once over the vectors of isa/vector.h.
//
// Every sum is one chain over ascending k: s = fma(a[k], b[k], s) from s = 0 (for kLayoutBF16Pairs, one vdpbf16ps per
// pair), then
// + bias, then + what `out` held. The chain does not depend on the tile's shape or on how k is cut into blocks (a sum
// parked in memory between blocks is not rounded), so a row's result does not depend on the rows beside it.
#include "backends/cpu/isa/vector.h"
#include "backends/cpu/matmul_kernels.h"
#include "ops/blocks.inl"

#if defined(DULTRA_ISA_AVX2) || defined(DULTRA_ISA_AVX512) || defined(DULTRA_ISA_AVX512_BF16)
#include <immintrin.h>
#elif defined(DULTRA_ISA_NEON)
#include <arm_neon.h>
#endif

namespace {

using dultra::cpu::MatmulKernels;
using dultra::cpu::MatmulTile;

// Tile sizes: accumulators, one step of the panel and one broadcast must fit in the registers.
#if defined(DULTRA_ISA_AVX512) || defined(DULTRA_ISA_AVX512_BF16)
constexpr int kRegisters = 32, kPanelVectors = 2, kTileRows = 12;
#elif defined(DULTRA_ISA_NEON)
constexpr int kRegisters = 32, kPanelVectors = 4, kTileRows = 6;
#else
constexpr int kRegisters = 16, kPanelVectors = 2, kTileRows = 6;
#endif
constexpr int kPanel = kPanelVectors * kVF;
static_assert(kTileRows <= dultra::cpu::kMaxTileRows, "");

// GCC keeps an array of vectors in registers only if every loop over it is unrolled.
#ifdef __clang__
#define DULTRA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define DULTRA_UNROLL _Pragma("GCC unroll 32")
#endif

struct WeightsF32 {
  static constexpr int kStep = kPanel * 4;  // bytes
  static inline __attribute__((always_inline)) void load(const char* p, VF* b) {
    DULTRA_UNROLL
    for (int v = 0; v < kPanelVectors; ++v) memcpy(&b[v], p + v * sizeof(VF), sizeof(VF));
  }
};

struct WeightsBF16 {
  static constexpr int kStep = kPanel * 2;
  static inline __attribute__((always_inline)) void load(const char* p, VF* b) {
    DULTRA_UNROLL
    for (int v = 0; v < kPanelVectors; v += 2) {
      VI both;
      memcpy(&both, p + v / 2 * sizeof both, sizeof both);
      const VI low = both << 16, high = both & int32_t(0xffff0000u);
      memcpy(&b[v], &low, sizeof low);
      memcpy(&b[v + 1], &high, sizeof high);
    }
  }
};

struct WeightsF16 {
  static constexpr int kStep = kPanel * 2;
  static inline __attribute__((always_inline)) VF widen(const char* p) {
#if defined(DULTRA_ISA_AVX512) || defined(DULTRA_ISA_AVX512_BF16)
    // The form without a mask draws a false warning from GCC 12's header.
    return (VF)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p));
#elif defined(DULTRA_ISA_AVX2)
    return (VF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(DULTRA_ISA_NEON)
    return (VF)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t*)p)));
#else
    // Moves exponent and mantissa into place and scales by 2^112: exact, subnormals included; infinities and NaN then
    // get the largest exponent.
    typedef uint16_t VH __attribute__((vector_size(kVF * 2)));
    VH half;
    memcpy(&half, p, sizeof half);
    const VI bits = __builtin_convertvector(half, VI);
    VI magnitude = (bits & 0x7fff) << 13;
    VF value;
    memcpy(&value, &magnitude, sizeof value);
    value *= 0x1p112f;
    memcpy(&magnitude, &value, sizeof value);
    magnitude |= ((bits & 0x7c00) == 0x7c00) & 0x7f800000;
    magnitude |= (bits & 0x8000) << 16;
    memcpy(&value, &magnitude, sizeof value);
    return value;
#endif
  }
  static inline __attribute__((always_inline)) void load(const char* p, VF* b) {
    DULTRA_UNROLL
    for (int v = 0; v < kPanelVectors; ++v) b[v] = widen(p + v * kVF * 2);
  }
};

struct WeightsBF16Pairs {
  static constexpr int kStep = kPanel * 4;
  static inline __attribute__((always_inline)) void load(const char* p, VF* b) { WeightsF32::load(p, b); }
};

template <class Weights>
static inline __attribute__((always_inline)) void multiply_add(VF* c, float a, VF b);

#define DULTRA_MULTIPLY_ADD(WEIGHTS)                                                        \
  template <>                                                                               \
  inline __attribute__((always_inline)) void multiply_add<WEIGHTS>(VF * c, float a, VF b) { \
    *c += a * b;                                                                            \
  }
DULTRA_MULTIPLY_ADD(WeightsF32)
DULTRA_MULTIPLY_ADD(WeightsBF16)
DULTRA_MULTIPLY_ADD(WeightsF16)
#undef DULTRA_MULTIPLY_ADD

#ifdef DULTRA_ISA_AVX512_BF16
// Written as asm because the intrinsic lets GCC fold the broadcast of `a` into every instruction, which is slower than
// one broadcast into a register.
template <>
inline __attribute__((always_inline)) void multiply_add<WeightsBF16Pairs>(VF* c, float a, VF b) {
  const VF pair = vf_set(a);
  asm("vdpbf16ps %2, %1, %0" : "+v"(*c) : "v"(pair), "v"(b));
}
#endif

// A tile's sums: those of the earlier blocks of k, or 0.
template <int ROWS, int PANELS>
static inline __attribute__((always_inline)) void begin_tile(const MatmulTile* tile, VF (*c)[PANELS * kPanelVectors]) {
  constexpr int kVectors = PANELS * kPanelVectors;
  if (tile->load_sums) {
    DULTRA_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const float* sums = tile->sums + v / kPanelVectors * tile->sums_stride + v % kPanelVectors * kVF;
      DULTRA_UNROLL
      for (int i = 0; i < ROWS; ++i) c[i][v] = vf_load(sums + i * kPanel);
    }
  } else {
    DULTRA_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      DULTRA_UNROLL
      for (int v = 0; v < kVectors; ++v) c[i][v] = VF{};
    }
  }
}

// To where a later block finds them, or with bias and what `out` held to `out`.
template <int ROWS, int PANELS>
static inline __attribute__((always_inline)) void finish_tile(const MatmulTile* tile, VF (*c)[PANELS * kPanelVectors]) {
  constexpr int kVectors = PANELS * kPanelVectors;
  if (tile->store_sums) {
    DULTRA_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      float* sums = tile->sums + v / kPanelVectors * tile->sums_stride + v % kPanelVectors * kVF;
      DULTRA_UNROLL
      for (int i = 0; i < ROWS; ++i) vf_store(sums + i * kPanel, c[i][v]);
    }
    return;
  }
  if (tile->columns == PANELS * kPanel) {
    if (tile->bias) {
      DULTRA_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const VF bias = vf_load(tile->bias + v * kVF);
        DULTRA_UNROLL
        for (int i = 0; i < ROWS; ++i) c[i][v] += bias;
      }
    }
    if (tile->add) {
      DULTRA_UNROLL
      for (int i = 0; i < ROWS; ++i) {
        DULTRA_UNROLL
        for (int v = 0; v < kVectors; ++v) c[i][v] += vf_load(tile->out + i * tile->out_stride + v * kVF);
      }
    }
    DULTRA_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      DULTRA_UNROLL
      for (int v = 0; v < kVectors; ++v) vf_store(tile->out + i * tile->out_stride + v * kVF, c[i][v]);
    }
    return;
  }
  float sums[ROWS][PANELS * kPanel];
  DULTRA_UNROLL
  for (int i = 0; i < ROWS; ++i) {
    DULTRA_UNROLL
    for (int v = 0; v < kVectors; ++v) vf_store(sums[i] + v * kVF, c[i][v]);
  }
  for (int i = 0; i < ROWS; ++i) {
    float* out = tile->out + i * tile->out_stride;
    for (int64_t j = 0; j < tile->columns; ++j) {
      float s = sums[i][j];
      if (tile->bias) s += tile->bias[j];
      if (tile->add) s += out[j];
      out[j] = s;
    }
  }
}

// PANELS panels side by side share each broadcast of `a` and give few rows enough independent chains to hide the
// latency of FMA.
template <class Weights, int ROWS, int PANELS>
static void matmul_tile(const MatmulTile* tile) {
  constexpr int kVectors = PANELS * kPanelVectors;
  VF c[ROWS][kVectors];
  begin_tile<ROWS, PANELS>(tile, c);

  const float* a = static_cast<const float*>(tile->a);
  const int64_t prefetch = tile->prefetch;
  const char* b[PANELS];
  DULTRA_UNROLL
  for (int p = 0; p < PANELS; ++p) b[p] = static_cast<const char*>(tile->b) + p * tile->panel_stride;
  for (int64_t k = tile->steps; k > 0; --k) {
    VF w[kVectors];
    DULTRA_UNROLL
    for (int p = 0; p < PANELS; ++p) {
      Weights::load(b[p], w + p * kPanelVectors);
      DULTRA_UNROLL
      for (int line = 0; line < Weights::kStep; line += 64) __builtin_prefetch(b[p] + prefetch + line);
      b[p] += Weights::kStep;
    }
    DULTRA_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const float x = a[i];
      DULTRA_UNROLL
      for (int v = 0; v < kVectors; ++v) multiply_add<Weights>(&c[i][v], x, w[v]);
    }
    a += ROWS;
  }

  finish_tile<ROWS, PANELS>(tile, c);
}

#include "backends/cpu/isa/int8.inl"

// Panels of the wide tile of `rows` rows.
constexpr int wide_panels(int rows) {
  return (rows + 1) * kPanelVectors * 4 + 1 <= kRegisters   ? 4
         : (rows + 1) * kPanelVectors * 2 + 1 <= kRegisters ? 2
                                                            : 1;
}

// The lanes of `a` and `b` (numbered kVF + lane) that make up the two halves of a swap of off-diagonal squares of side
// S.
template <int... L>
struct Lanes {};
template <int N, int... L>
struct MakeLanes : MakeLanes<N - 1, N - 1, L...> {};
template <int... L>
struct MakeLanes<0, L...> {
  typedef Lanes<L...> Type;
};
template <int S, int... L>
static inline __attribute__((always_inline)) void swap_squares(VF* a, VF* b, Lanes<L...>) {
  const VF x = *a, y = *b;
#ifdef __clang__
  *a = __builtin_shufflevector(x, y, (L & S ? kVF + L - S : L)...);
  *b = __builtin_shufflevector(x, y, (L & S ? kVF + L : L + S)...);
#else
  *a = __builtin_shuffle(x, y, VI{(L & S ? kVF + L - S : L)...});
  *b = __builtin_shuffle(x, y, VI{(L & S ? kVF + L : L + S)...});
#endif
}

// Transposes kVF vectors of kVF floats by swapping ever larger off-diagonal squares.
template <int S>
static inline __attribute__((always_inline)) void transpose_squares(VF* r) {
  if constexpr (S < kVF) {
    DULTRA_UNROLL
    for (int i = 0; i < kVF; ++i) {
      if (!(i & S)) swap_squares<S>(&r[i], &r[i + S], typename MakeLanes<kVF>::Type());
    }
    transpose_squares<S * 2>(r);
  }
}

struct LoadF32 {
  static constexpr int kPerLane = 1;
  static inline __attribute__((always_inline)) VF load(const float* x) { return vf_load(x); }
  static inline __attribute__((always_inline)) VF load_part(const float* x, int n) { return vf_load_part(x, n, 0.0f); }
};

#ifdef DULTRA_ISA_AVX512_BF16
struct LoadBF16 {
  static constexpr int kPerLane = 2;
  static inline __attribute__((always_inline)) VF load(const float* x) {
    return (VF)_mm512_cvtne2ps_pbh((__m512)vf_load(x + kVF), (__m512)vf_load(x));
  }
  static inline __attribute__((always_inline)) VF load_part(const float* x, int n) {
    float padded[2 * kVF] = {};
    memcpy(padded, x, size_t(n) * 4);
    return load(padded);
  }
};
#endif

// to (ceil(k / kPerLane), ROWS): transposes blocks of kVF lanes. A step's last vector reaches into the next step, which
// is written after it.
template <class Load, int ROWS>
static void pack_rows(void* to_bytes, const float* x, int64_t stride, int64_t k) {
  constexpr int kGroups = (ROWS + kVF - 1) / kVF;
  float* to = static_cast<float*>(to_bytes);
  for (int64_t k0 = 0; k0 < k; k0 += kVF * Load::kPerLane) {
    const int64_t left = k - k0 < kVF * Load::kPerLane ? k - k0 : kVF * Load::kPerLane;
    VF r[kGroups][kVF];
    if (left == kVF * Load::kPerLane) {
      DULTRA_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        DULTRA_UNROLL
        for (int i = 0; i < kVF; ++i) r[g][i] = g * kVF + i < ROWS ? Load::load(x + (g * kVF + i) * stride + k0) : VF{};
      }
    } else {
      for (int g = 0; g < kGroups; ++g)
        for (int i = 0; i < kVF; ++i)
          r[g][i] = g * kVF + i < ROWS ? Load::load_part(x + (g * kVF + i) * stride + k0, int(left)) : VF{};
    }
    DULTRA_UNROLL
    for (int g = 0; g < kGroups; ++g) transpose_squares<1>(r[g]);
    if (left == kVF * Load::kPerLane) {
      DULTRA_UNROLL
      for (int l = 0; l < kVF; ++l) {
        DULTRA_UNROLL
        for (int g = 0; g < kGroups; ++g) vf_store(to + l * ROWS + g * kVF, r[g][l]);
      }
      to += kVF * ROWS;
    } else {
      for (int64_t l = 0; l < (left + Load::kPerLane - 1) / Load::kPerLane; ++l)
        for (int g = 0; g < kGroups; ++g) vf_store(to + l * ROWS + g * kVF, r[g][l]);
    }
  }
}
static_assert(sizeof(VF) <= dultra::cpu::kPackSlack, "");

template <class Load, int ROWS = 1>
static void pack(void* to, const float* x, int64_t stride, int rows, int64_t k) {
  if constexpr (ROWS < kTileRows) {
    if (rows > ROWS) return pack<Load, ROWS + 1>(to, x, stride, rows, k);
  }
  pack_rows<Load, ROWS>(to, x, stride, k);
}

template <int ROWS = 1>
static void pack_columns(float* to, const float* x, int64_t stride, int rows, int64_t k) {
  if constexpr (ROWS < kTileRows) {
    if (rows > ROWS) return pack_columns<ROWS + 1>(to, x, stride, rows, k);
  }
  for (; k > 0; --k, to += ROWS, x += stride) memcpy(to, x, ROWS * sizeof(float));
}

static void pack_panel(float* to, const float* w, int64_t stride, int columns, int64_t k) {
  if (columns == kPanel) {
    for (; k > 0; --k, to += kPanel, w += stride) memcpy(to, w, kPanel * sizeof(float));
    return;
  }
  for (; k > 0; --k, to += kPanel, w += stride)
    for (int j = 0; j < kPanel; ++j) to[j] = j < columns ? w[j] : 0.0f;
}

static void transpose_panel(float* to, const float* const* rows, int64_t k) {
  for (int v = 0; v < kPanelVectors; ++v) {
    const float* const* row = rows + v * kVF;
    int64_t k0 = 0;
    for (; k0 + kVF <= k; k0 += kVF) {
      VF r[kVF];
      DULTRA_UNROLL
      for (int i = 0; i < kVF; ++i) r[i] = row[i] ? vf_load(row[i] + k0) : VF{};
      transpose_squares<1>(r);
      DULTRA_UNROLL
      for (int l = 0; l < kVF; ++l) vf_store(to + (k0 + l) * kPanel + v * kVF, r[l]);
    }
    for (; k0 < k; ++k0)
      for (int i = 0; i < kVF; ++i) to[k0 * kPanel + v * kVF + i] = row[i] ? row[i][k0] : 0.0f;
  }
}

#include "backends/cpu/isa/panels.inl"

template <class Weights, int ROWS = 1>
static void fill_tiles(MatmulKernels* kernels, dultra::cpu::WeightLayout layout) {
  kernels->wide[ROWS] = wide_panels(ROWS);
  kernels->one_panel[layout][ROWS] = matmul_tile<Weights, ROWS, 1>;
  kernels->wide_panels[layout][ROWS] = matmul_tile<Weights, ROWS, wide_panels(ROWS)>;
  if constexpr (ROWS < kTileRows) fill_tiles<Weights, ROWS + 1>(kernels, layout);
}

template <int ROWS = 1>
static void fill_int8_tiles(MatmulKernels* kernels) {
  kernels->one_panel[dultra::cpu::kLayoutInt8][ROWS] = int8_tile<ROWS>;
  if constexpr (ROWS < kInt8Rows) fill_int8_tiles<ROWS + 1>(kernels);
}

static MatmulKernels matmul_kernels() {
  MatmulKernels kernels = {};
  kernels.lanes = kVF;
  kernels.nr = kPanel;
  kernels.mr = kTileRows;
  kernels.pack_f32 = pack<LoadF32>;
  kernels.pack_columns = pack_columns;
  kernels.pack_panel = pack_panel;
  kernels.transpose_panel = transpose_panel;
  fill_tiles<WeightsF32>(&kernels, dultra::cpu::kLayoutF32);
  fill_tiles<WeightsBF16>(&kernels, dultra::cpu::kLayoutBF16);
  fill_tiles<WeightsF16>(&kernels, dultra::cpu::kLayoutF16);
  fill_int8_tiles(&kernels);
  kernels.int8_mr = kInt8Rows;
  kernels.pack_int8 = pack_int8;
  kernels.code_flip = kCodeFlip;
  int type = 1;  // in the order of BlockType
#define BLOCKS(NAME, FUNCTION, VALUES, BYTES, GROUP, MINIMUM, FIRST, SECOND)                 \
  kernels.blocks[type++] = {blocks::decode<blocks::FUNCTION, VALUES, BYTES, GROUP, MINIMUM>, \
                            blocks::read_codes<blocks::FUNCTION, VALUES, BYTES, GROUP>, nullptr, nullptr, nullptr};
  DULTRA_BLOCK_TYPES(BLOCKS)
#undef BLOCKS
  fill_panels<PanelQ8_0>(&kernels.blocks[1]);  // numbered as BlockType
  fill_panels<PanelQ4_0>(&kernels.blocks[2]);
#ifdef DULTRA_BYTE_TABLES
  fill_panels<PanelIQ4_NL>(&kernels.blocks[6]);
#endif
#ifdef DULTRA_ISA_AVX512_BF16
  kernels.bf16_products = true;
  kernels.pack_bf16 = pack<LoadBF16>;
  fill_tiles<WeightsBF16Pairs>(&kernels, dultra::cpu::kLayoutBF16Pairs);
#endif
  return kernels;
}

}  // namespace
