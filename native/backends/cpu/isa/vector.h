// Short vectors for the per-instruction-set translation units (isa_kernels.cc is compiled once per set, see
// CMakeLists.txt). Everything in isa/ is static and free of the C++ library: an inline template emitted here with
// AVX-512 code could be the copy the linker keeps for the whole program. These units are compiled with
// -ffp-contract=fast, so a * b + c is one FMA where the set has it; where the grouping decides bits (the same chain
// compiled in two places), vf_fma says it explicitly.
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(DULTRA_ISA_AVX512) || defined(DULTRA_ISA_AVX512_BF16)
#define DULTRA_VF_WIDTH 16
#include <immintrin.h>
#elif defined(DULTRA_ISA_AVX2)
#define DULTRA_VF_WIDTH 8
#include <immintrin.h>
#else  // NEON, and the baseline of any other machine
#define DULTRA_VF_WIDTH 4
#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#endif

namespace {

typedef float VF __attribute__((vector_size(DULTRA_VF_WIDTH * 4)));
typedef int32_t VI __attribute__((vector_size(DULTRA_VF_WIDTH * 4)));
typedef uint64_t VW __attribute__((vector_size(DULTRA_VF_WIDTH * 4)));
constexpr int kVF = DULTRA_VF_WIDTH;

static inline VF vf_load(const float* p) {
  VF v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline void vf_store(float* p, VF v) { memcpy(p, &v, sizeof v); }
static inline VF vf_set(float x) { return x - VF{}; }
static inline VI vi_set(int32_t x) { return x - VI{}; }
static inline VI vf_bits(VF v) {
  VI bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}
static inline VF vf_from_bits(VI bits) {
  VF v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

// Lanes for masks and tails: 0, 1, 2, ...
static inline VI vi_iota() {
#if DULTRA_VF_WIDTH == 16
  return VI{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif DULTRA_VF_WIDTH == 8
  return VI{0, 1, 2, 3, 4, 5, 6, 7};
#else
  return VI{0, 1, 2, 3};
#endif
}

// The first `n` < kVF floats of p, the rest `fill`.
static inline VF vf_load_part(const float* p, int n, float fill) {
#if DULTRA_VF_WIDTH == 16
  return (VF)_mm512_mask_loadu_ps((__m512)vf_set(fill), (__mmask16)((1u << n) - 1), p);
#else
  float lane[kVF];
  for (int i = 0; i < kVF; ++i) lane[i] = i < n ? p[i] : fill;
  return vf_load(lane);
#endif
}
static inline void vf_store_part(float* p, VF v, int n) {
#if DULTRA_VF_WIDTH == 16
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// a > b ? a : b in every lane: the second operand where either is NaN.
static inline VF vf_max(VF a, VF b) {
#if DULTRA_VF_WIDTH == 16
  return (VF)_mm512_max_ps((__m512)a, (__m512)b);
#elif DULTRA_VF_WIDTH == 8
  return (VF)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (VF)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}
static inline VF vf_min(VF a, VF b) {
#if DULTRA_VF_WIDTH == 16
  return (VF)_mm512_min_ps((__m512)a, (__m512)b);
#elif DULTRA_VF_WIDTH == 8
  return (VF)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (VF)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}

static inline VF vf_sqrt(VF v) {
#if DULTRA_VF_WIDTH == 16
  return (VF)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);  // the plain form draws a false warning from GCC 12
#elif DULTRA_VF_WIDTH == 8
  return (VF)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE2__)
  return (VF)_mm_sqrt_ps((__m128)v);
#elif defined(__aarch64__)
  return (VF)vsqrtq_f32((float32x4_t)v);
#else
  for (int i = 0; i < kVF; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// a * b + c with one rounding where the set has FMA, two where it does not; never regrouped by the compiler.
static inline VF vf_fma(VF a, VF b, VF c) {
#if DULTRA_VF_WIDTH == 16
  return (VF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif DULTRA_VF_WIDTH == 8
  return (VF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (VF)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// Fixed pairwise order.
static inline float vf_sum(VF v) {
  float lane[kVF];
  memcpy(lane, &v, sizeof v);
  for (int w = kVF / 2; w > 0; w /= 2)
    for (int i = 0; i < w; ++i) lane[i] += lane[i + w];
  return lane[0];
}
static inline float vf_hmax(VF v) {
  float lane[kVF];
  memcpy(lane, &v, sizeof v);
  for (int w = kVF / 2; w > 0; w /= 2)
    for (int i = 0; i < w; ++i) lane[i] = lane[i] > lane[i + w] ? lane[i] : lane[i + w];
  return lane[0];
}
// Bit i is the sign of lane i: turns a comparison's result into a bit mask.
static inline uint32_t vi_signs(VI v) {
#if DULTRA_VF_WIDTH == 16
  return _mm512_cmplt_epi32_mask((__m512i)v, _mm512_setzero_si512());
#elif DULTRA_VF_WIDTH == 8
  return uint32_t(_mm256_movemask_ps((__m256)v));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_ps((__m128)v));
#else
  uint32_t mask = 0;
  for (int i = 0; i < kVF; ++i) mask |= uint32_t(v[i] < 0) << i;
  return mask;
#endif
}
// 64-bit products of the low 32 bits of each 64-bit lane.
static inline VW vw_mul32(VW a, VW b) {
#if DULTRA_VF_WIDTH == 16
  return (VW)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);  // the plain form draws a false warning from GCC 12
#elif DULTRA_VF_WIDTH == 8
  return (VW)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (VW)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// Adding 1.5 * 2^23 rounds to an integer, which then sits in the low bits of the mantissa.
constexpr float kRoundToInteger = 12582912.0f;

// e^x = 2^n e^r with n = round(x / ln2): n, and the degree-6 polynomial of e^r, |r| <= ln2 / 2 (Cephes; relative error
// < 1e-7).
static inline VF vf_exp_reduced(VF x, VF* rounded) {
  const VF shifter = vf_set(kRoundToInteger);
  const VF t = vf_fma(x, vf_set(1.44269504f), shifter);
  const VF n = t - shifter;
  VF r = vf_fma(n, vf_set(-0.693359375f), x);
  r = vf_fma(n, vf_set(2.12194440e-4f), r);
  VF p = vf_set(1.9875691500e-4f);
  p = vf_fma(p, r, vf_set(1.3981999507e-3f));
  p = vf_fma(p, r, vf_set(8.3334519073e-3f));
  p = vf_fma(p, r, vf_set(4.1665795894e-2f));
  p = vf_fma(p, r, vf_set(1.6666665459e-1f));
  p = vf_fma(p, r, vf_set(5.0000001201e-1f));
  *rounded = t;
  return vf_fma(p, r * r, r + 1.0f);
}

// e^x, relative error < 2e-7: 0 below -87.3, inf above 88.7, NaN stays NaN.
static inline VF vf_exp(VF x) {
  const VF lo = vf_set(-87.33654f), hi = vf_set(88.72283f);
  VF t;
  const VF p = vf_exp_reduced(vf_min(vf_max(x, lo), hi), &t);
  // 2^n in two factors, so that n = 128 and n = -126 stay in range.
  const VI n = vf_bits(t) - vf_bits(vf_set(kRoundToInteger));
  const VI half = n >> 1;
  VF out = p * vf_from_bits((half + 127) << 23) * vf_from_bits((n - half + 127) << 23);
  out = x < lo ? VF{} : out;
  out = x > hi ? vf_set(__builtin_inff()) : out;
  return x != x ? x : out;
}

// e^x for x <= 0, relative error < 2e-7: 0 below -86, NaN stays NaN.
static inline VF vf_exp_nonpositive(VF x) {
  const VF lo = vf_set(-86.0f);
  VF t;
  const VF p = vf_exp_reduced(vf_max(lo, x), &t);  // NaN comes through: the second operand
  const VF out = vf_from_bits(vf_bits(p) + (vf_bits(t) << 23));
  return x < lo ? VF{} : out;
}

// 2^x for x <= 0, relative error < 2e-7: 0 below -125, NaN stays NaN.
static inline VF vf_exp2_nonpositive(VF x) {
  const VF lo = vf_set(-125.0f), shifter = vf_set(kRoundToInteger);
  const VF c = vf_max(lo, x);
  const VF t = c + shifter;
  const VF r = c - (t - shifter);
  VF p = vf_set(1.535336188319500e-4f);
  p = vf_fma(p, r, vf_set(1.339887440266574e-3f));
  p = vf_fma(p, r, vf_set(9.618437357674640e-3f));
  p = vf_fma(p, r, vf_set(5.550332471162809e-2f));
  p = vf_fma(p, r, vf_set(2.402264791363012e-1f));
  p = vf_fma(p, r, vf_set(6.931472028550421e-1f));
  p = vf_fma(p, r, vf_set(1.0f));
  const VF out = vf_from_bits(vf_bits(p) + (vf_bits(t) << 23));
  return x < lo ? VF{} : out;
}

}  // namespace
