// Panels of quantised weights straight out of their blocks, included by matmul.inl: blocks are read, transposed and
// unpacked in registers. The numbers and codes are those that ops/blocks.inl gives, in the layouts of matmul_kernels.h.

// Four vectors of words: lane l of vector d has word d of the 16 bytes at rows[l] + offset.
static inline __attribute__((always_inline)) void gather_words(VW* words, const uint8_t* const* rows, int64_t offset) {
  VF r[4];
  DULTRA_UNROLL
  for (int i = 0; i < 4; ++i) {
    // Each 128 bits from a row of its own, so that squares of four words are left to transpose.
    const auto row = [&](int part) { return rows[4 * part + i] + offset; };
#if DULTRA_VF_WIDTH == 16
    const auto bytes = [&](int part) { return _mm_loadu_si128((const __m128i*)row(part)); };
    __m512i v = _mm512_zextsi128_si512(bytes(0));
    v = _mm512_mask_broadcast_i32x4(v, 0x00f0, bytes(1));
    v = _mm512_mask_broadcast_i32x4(v, 0x0f00, bytes(2));
    r[i] = (VF)_mm512_mask_broadcast_i32x4(v, 0xf000, bytes(3));
#elif DULTRA_VF_WIDTH == 8
    const auto bytes = [&](int part) { return _mm_loadu_si128((const __m128i*)row(part)); };
    r[i] = (VF)_mm256_inserti128_si256(_mm256_zextsi128_si256(bytes(0)), bytes(1), 1);
#else
    memcpy(&r[i], row(0), sizeof r[i]);
#endif
  }
  swap_squares<1>(&r[0], &r[1], typename MakeLanes<kVF>::Type());
  swap_squares<1>(&r[2], &r[3], typename MakeLanes<kVF>::Type());
  swap_squares<2>(&r[0], &r[2], typename MakeLanes<kVF>::Type());
  swap_squares<2>(&r[1], &r[3], typename MakeLanes<kVF>::Type());
  memcpy(words, r, sizeof r);
}

static inline VW every_byte(uint8_t value) { return 0x0101010101010101u * value - VW{}; }

// Codes of a block for kVF rows, as bytes of eight vectors of words: signed ones, xored with `flip`.
struct PanelQ8_0 {
  static constexpr int kBytes = 34;
  static inline __attribute__((always_inline)) void codes(VW* to, const uint8_t* const* rows, int64_t at, VW flip) {
    gather_words(to, rows, at + 2);
    gather_words(to + 4, rows, at + 18);
    DULTRA_UNROLL
    for (int d = 0; d < 8; ++d) to[d] ^= flip;
  }
};
struct PanelQ4_0 {
  static constexpr int kBytes = 18;
  static inline __attribute__((always_inline)) void codes(VW* to, const uint8_t* const* rows, int64_t at, VW flip) {
    gather_words(to, rows, at + 2);
    // A nibble n is the code n - 8: n + 0x78 carries into no other byte, and differs from the code in its first bit.
    const VW half = every_byte(15), offset = every_byte(0x78), sign = every_byte(0x80) ^ flip;
    DULTRA_UNROLL
    for (int d = 0; d < 4; ++d) {
      to[d + 4] = (((to[d] >> 4) & half) + offset) ^ sign;
      to[d] = ((to[d] & half) + offset) ^ sign;
    }
  }
};

#if DULTRA_VF_WIDTH > 4 || defined(DULTRA_ISA_NEON)
#define DULTRA_BYTE_TABLES
struct PanelIQ4_NL {
  static constexpr int kBytes = 18;
  // Bytes of a vector as indices below 16 into the table.
  static inline __attribute__((always_inline)) VW look_up(const int8_t* table, VW index) {
#if DULTRA_VF_WIDTH == 16
    const __m512i all = _mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128((const __m128i*)table));
    return (VW)_mm512_maskz_shuffle_epi8(~__mmask64(0), all, (__m512i)index);
#elif DULTRA_VF_WIDTH == 8
    const __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    return (VW)_mm256_shuffle_epi8(all, (__m256i)index);
#else
    return (VW)vqtbl1q_s8(vld1q_s8(table), (uint8x16_t)index);
#endif
  }
  static inline __attribute__((always_inline)) void codes(VW* to, const uint8_t* const* rows, int64_t at, VW flip) {
    gather_words(to, rows, at + 2);
    const int8_t* table = blocks::iq4_nl_table();
    const VW half = every_byte(15);
    DULTRA_UNROLL
    for (int d = 0; d < 4; ++d) {
      to[d + 4] = look_up(table, (to[d] >> 4) & half) ^ flip;
      to[d] = look_up(table, to[d] & half) ^ flip;
    }
  }
};
#endif

// (count, nr) scales of blocks that begin with one.
static void panel_scales(float* to, const uint8_t* const* rows, int64_t count, int64_t bytes) {
  // A piece at a time: a vector that is read right behind its halves would wait for them.
  constexpr int kPiece = 16;
  uint16_t halves[kPiece][kPanel];
  for (int64_t first = 0; first < count; first += kPiece) {
    const int64_t some = count - first < kPiece ? count - first : kPiece;
    for (int j = 0; j < kPanel; ++j) {
      const uint8_t* from = rows[j] + first * bytes;
      for (int64_t i = 0; i < some; ++i) memcpy(&halves[i][j], from + i * bytes, 2);
    }
    for (int64_t i = 0; i < some; ++i, to += kPanel)
      for (int v = 0; v < kPanelVectors; ++v)
        vf_store(to + v * kVF, WeightsF16::widen(reinterpret_cast<const char*>(halves[i] + v * kVF)));
  }
}

template <class Blocks>
static void panel_codes(void* to_bytes, float* scales, const uint8_t* const* rows, int64_t count) {
  panel_scales(scales, rows, count, Blocks::kBytes);
  const VW flip = every_byte(uint8_t(kCodeFlip));
  char* to = static_cast<char*>(to_bytes);
  for (int64_t block = 0; block < count; ++block, to += 32 * kPanel) {
    DULTRA_UNROLL
    for (int v = 0; v < kPanelVectors; ++v) {
      VW w[8];
      Blocks::codes(w, rows + v * kVF, block * Blocks::kBytes, flip);
      DULTRA_UNROLL
      for (int d = 0; d < 8; ++d) memcpy(to + (d * kPanelVectors + v) * sizeof(VW), &w[d], sizeof(VW));
    }
  }
}

// Number j of each word of codes.
static inline __attribute__((always_inline)) VF numbers_of(VW codes, int j, VF scale) {
  VI word;
  memcpy(&word, &codes, sizeof word);
  return scale * __builtin_convertvector((word << (24 - 8 * j)) >> 24, VF);
}

template <class Blocks, bool PAIRS>
static void panel_numbers(float* to, const uint8_t* const* rows, int64_t count) {
  constexpr int kPiece = 16;
  float scales[kPiece * kPanel];
  const uint8_t* from[kPanel];
  for (int j = 0; j < kPanel; ++j) from[j] = rows[j];
  for (int64_t block = 0; block < count; ++block) {
    if (block % kPiece == 0) {
      for (int j = 0; j < kPanel; ++j) from[j] = rows[j] + block * Blocks::kBytes;
      panel_scales(scales, from, count - block < kPiece ? count - block : kPiece, Blocks::kBytes);
    }
    DULTRA_UNROLL
    for (int v = 0; v < kPanelVectors; ++v) {
      VW w[8];
      Blocks::codes(w, rows + v * kVF, block * Blocks::kBytes, VW{});
      const VF scale = vf_load(scales + block % kPiece * kPanel + v * kVF);
      float* out = to + v * kVF;
      DULTRA_UNROLL
      for (int d = 0; d < 8; ++d) {
#ifdef DULTRA_ISA_AVX512_BF16
        if (PAIRS) {
          alignas(64) static const uint16_t kSideBySide[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                               21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                               11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
          const __m512i order = _mm512_load_si512(kSideBySide);
          DULTRA_UNROLL
          for (int j = 0; j < 4; j += 2) {
            const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)numbers_of(w[d], j + 1, scale),
                                                              (__m512)numbers_of(w[d], j, scale));
            const __m512i pairs = _mm512_maskz_permutexvar_epi16(~__mmask32(0), order, both);
            memcpy(out + (2 * d + j / 2) * kPanel, &pairs, sizeof pairs);
          }
          continue;
        }
#endif
        DULTRA_UNROLL
        for (int j = 0; j < 4; ++j) vf_store(out + (4 * d + j) * kPanel, numbers_of(w[d], j, scale));
      }
    }
    to += (PAIRS ? 16 : 32) * kPanel;
  }
}

template <class Blocks>
static void fill_panels(dultra::cpu::BlockKernels* kernels) {
  kernels->panel_codes = panel_codes<Blocks>;
  kernels->panel_f32 = panel_numbers<Blocks, false>;
#ifdef DULTRA_ISA_AVX512_BF16
  kernels->panel_pairs = panel_numbers<Blocks, true>;
#endif
}
