// Products of quantised weights and of activations that are rounded to 8 bits, included by matmul.inl.
//
// Sums of 32 (or 16) products of codes are exact integers. Every output is then one chain over ascending groups:
// s = fma(sum of codes, weight's scale * activation's scale, s), and where the weights have a minimum m
// s = fma(m, activation's scale * sum of activation's codes, s).
//
// Where the set multiplies unsigned by signed bytes (vpdpbusd), the weights are the unsigned side: their codes plus
// 128, and a sum starts at -128 times the activations' sum.

#if defined(DULTRA_ISA_AVX512_BF16)
// Every processor with AVX-512 BF16 has VNNI.
#define DULTRA_INT8_VNNI
constexpr int8_t kCodeFlip = -128;
#else
constexpr int8_t kCodeFlip = 0;
#endif

#if DULTRA_VF_WIDTH == 16
constexpr int kInt8Rows = 6;
#elif defined(DULTRA_ISA_NEON)
constexpr int kInt8Rows = 3;
#else
constexpr int kInt8Rows = 3;
#endif

// s (int32 lanes) += the four products of bytes in each lane: w codes of weights, a four activations in every lane.
static inline __attribute__((always_inline)) VI dot_bytes(VI s, VI w, VI a) {
#if defined(DULTRA_INT8_VNNI)
  asm("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(w), "v"(a));
  return s;
#elif DULTRA_VF_WIDTH == 16
  // |w| a with the sign of w: no pair of products leaves 16 bits, since |a| <= 127.
  const __m512i x = (__m512i)a, y = (__m512i)w;
  const __mmask64 negative = _mm512_movepi8_mask(y);
  const __m512i magnitude = _mm512_maskz_abs_epi8(~__mmask64(0), y);
  const __m512i turned = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
  const __m512i pairs = _mm512_maskz_maddubs_epi16(~__mmask32(0), magnitude, turned);
  return s + (VI)_mm512_maskz_madd_epi16(0xffff, pairs, _mm512_set1_epi16(1));
#elif DULTRA_VF_WIDTH == 8
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), _mm256_sign_epi8((__m256i)a, (__m256i)w));
  return s + (VI)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(DULTRA_ISA_NEON)
  const int8x16_t x = vreinterpretq_s8_s32((int32x4_t)w), y = vreinterpretq_s8_s32((int32x4_t)a);
  const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y)), high = vmull_high_s8(x, y);
  // Pairs of 16-bit products are summed in 32 bits: -128 * 127 * 2 fits 16 bits, its double does not.
  return s + (VI)vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
#else
  VI out = s;
  for (int i = 0; i < kVF; ++i)
    for (int b = 0; b < 32; b += 8) out[i] += int32_t(int8_t(w[i] >> b)) * int32_t(int8_t(a[i] >> b));
  return out;
#endif
}

template <int ROWS, int GROUPS, bool MINIMA>
static inline __attribute__((always_inline)) void int8_steps(const MatmulTile* tile, VF (*c)[kPanelVectors]) {
  constexpr int kDots = 8 / GROUPS;
  const char* a = static_cast<const char*>(tile->a);
  const char* b = static_cast<const char*>(tile->b);
  const float *scales = tile->scales, *minima = tile->minima;
  for (int64_t step = tile->steps; step > 0; --step) {
    const char* codes = a;
    const char* a_scales = a + 32 * ROWS;
    const char* a_sums = a_scales + 4 * ROWS;
    DULTRA_UNROLL
    for (int g = 0; g < GROUPS; ++g) {
      int32_t sum[ROWS];
      float a_scale[ROWS];
      DULTRA_UNROLL
      for (int i = 0; i < ROWS; ++i) {
        int32_t first, second;
        memcpy(&a_scale[i], a_scales + 4 * i, 4);
        memcpy(&first, a_sums + 4 * i, 4);
        memcpy(&second, a_sums + 4 * (ROWS + i), 4);
        sum[i] = GROUPS == 1 ? first + second : g == 0 ? first : second;
      }
      VI s[ROWS][kPanelVectors];
      DULTRA_UNROLL
      for (int i = 0; i < ROWS; ++i) {
        DULTRA_UNROLL
        for (int v = 0; v < kPanelVectors; ++v) s[i][v] = vi_set(int32_t(kCodeFlip) * sum[i]);
      }
      DULTRA_UNROLL
      for (int d = 0; d < kDots; ++d) {
        VI w[kPanelVectors];
        DULTRA_UNROLL
        for (int v = 0; v < kPanelVectors; ++v) memcpy(&w[v], b + v * sizeof(VI), sizeof(VI));
        b += sizeof w;
        DULTRA_UNROLL
        for (int i = 0; i < ROWS; ++i) {
          int32_t four;
          memcpy(&four, codes + 4 * i, 4);
          const VI x = vi_set(four);
          DULTRA_UNROLL
          for (int v = 0; v < kPanelVectors; ++v) s[i][v] = dot_bytes(s[i][v], w[v], x);
        }
        codes += 4 * ROWS;
      }
      DULTRA_UNROLL
      for (int v = 0; v < kPanelVectors; ++v) {
        const VF scale = vf_load(scales + v * kVF);
        DULTRA_UNROLL
        for (int i = 0; i < ROWS; ++i)
          c[i][v] = vf_fma(__builtin_convertvector(s[i][v], VF), scale * vf_set(a_scale[i]), c[i][v]);
        if (MINIMA) {
          const VF minimum = vf_load(minima + v * kVF);
          DULTRA_UNROLL
          for (int i = 0; i < ROWS; ++i) c[i][v] = vf_fma(minimum, vf_set(a_scale[i] * float(sum[i])), c[i][v]);
        }
      }
      scales += kPanel;
      if (MINIMA) minima += kPanel;
    }
    a += 4 * dultra::cpu::kInt8Floats * ROWS;
  }
}

template <int ROWS>
static void int8_tile(const MatmulTile* tile) {
  VF c[ROWS][kPanelVectors];
  begin_tile<ROWS, 1>(tile, c);
  if (tile->two_groups)
    tile->minima ? int8_steps<ROWS, 2, true>(tile, c) : int8_steps<ROWS, 2, false>(tile, c);
  else
    tile->minima ? int8_steps<ROWS, 1, true>(tile, c) : int8_steps<ROWS, 1, false>(tile, c);
  finish_tile<ROWS, 1>(tile, c);
}

static void pack_int8(void* to_bytes, const float* x, int64_t stride, int rows, int64_t k) {
  typedef int8_t VB __attribute__((vector_size(kVF)));
  char* to = static_cast<char*>(to_bytes);
  for (int64_t k0 = 0; k0 < k; k0 += dultra::cpu::kInt8Step, to += 4 * dultra::cpu::kInt8Floats * rows)
    for (int i = 0; i < rows; ++i) {
      const float* from = x + i * stride + k0;
      VF largest = VF{}, zeros = VF{};
      for (int j = 0; j < 32; j += kVF) {
        const VF v = vf_load(from + j);
        largest = vf_max(vf_from_bits(vf_bits(v) & 0x7fffffff), largest);
        zeros += v * 0.0f;
      }
      const float most = vf_hmax(largest);
      // A number that is not finite makes the output NaN, as in a product of plain numbers.
      const bool is_finite = vf_sum(zeros) == 0.0f;
      const float scale = is_finite ? most * (1.0f / 127.0f) : __builtin_nanf("");
      int32_t sums[2] = {0, 0};
      int8_t codes[32] = {};
      // What is that small has no reciprocal worth the name.
      if (is_finite && most > 1e-30f) {
        const VF inverse = vf_set(127.0f / most), round = vf_set(kRoundToInteger);
        for (int j = 0; j < 32; j += kVF) {
          const VI code = __builtin_convertvector(vf_fma(vf_load(from + j), inverse, round) - round, VI);
          const VB bytes = __builtin_convertvector(code, VB);
          memcpy(codes + j, &bytes, sizeof bytes);
        }
        for (int j = 0; j < 32; ++j) sums[j / 16] += codes[j];
      }
      for (int word = 0; word < 8; ++word) memcpy(to + (word * rows + i) * 4, codes + 4 * word, 4);
      memcpy(to + 32 * rows + 4 * i, &scale, 4);
      memcpy(to + 36 * rows + 4 * i, &sums[0], 4);
      memcpy(to + 40 * rows + 4 * i, &sums[1], 4);
    }
}
