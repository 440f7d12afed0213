// Codes, scales and minima of one block of each type (ops/blocks.h). Everything is local to the unit that includes this
// file, and free of the C++ library: units of an instruction set are among them.
#include <stdint.h>
#include <string.h>

namespace {
namespace blocks {

// A finite fp16 number: exponent and mantissa in place, scaled by 2^112 (exact, subnormals included).
static inline float half_at(const uint8_t* p) {
  const uint32_t value = uint32_t(p[0]) | uint32_t(p[1]) << 8;
  uint32_t bits = (value & 0x7fffu) << 13;
  float out;
  memcpy(&out, &bits, 4);
  out *= 0x1p112f;
  return value & 0x8000u ? -out : out;
}

// c: signed codes; scale, minimum: one per group.
static inline void q8_0(int8_t* c, float* scale, float*, const uint8_t* b) {
  scale[0] = half_at(b);
  memcpy(c, b + 2, 32);
}

static inline void q4_0(int8_t* c, float* scale, float*, const uint8_t* b) {
  scale[0] = half_at(b);
  for (int i = 0; i < 16; ++i) {
    c[i] = int8_t((b[2 + i] & 15) - 8);
    c[i + 16] = int8_t((b[2 + i] >> 4) - 8);
  }
}

static inline void q4_1(int8_t* c, float* scale, float* minimum, const uint8_t* b) {
  scale[0] = half_at(b);
  minimum[0] = half_at(b + 2);
  for (int i = 0; i < 16; ++i) {
    c[i] = int8_t(b[4 + i] & 15);
    c[i + 16] = int8_t(b[4 + i] >> 4);
  }
}

// Bit i of the word at p, as 0 or 16.
static inline int fifth_bit(const uint8_t* p, int i) { return (p[i / 8] >> (i % 8) & 1) << 4; }

static inline void q5_0(int8_t* c, float* scale, float*, const uint8_t* b) {
  scale[0] = half_at(b);
  for (int i = 0; i < 16; ++i) {
    c[i] = int8_t(((b[6 + i] & 15) | fifth_bit(b + 2, i)) - 16);
    c[i + 16] = int8_t(((b[6 + i] >> 4) | fifth_bit(b + 2, i + 16)) - 16);
  }
}

static inline void q5_1(int8_t* c, float* scale, float* minimum, const uint8_t* b) {
  scale[0] = half_at(b);
  minimum[0] = half_at(b + 2);
  for (int i = 0; i < 16; ++i) {
    c[i] = int8_t((b[8 + i] & 15) | fifth_bit(b + 4, i));
    c[i + 16] = int8_t((b[8 + i] >> 4) | fifth_bit(b + 4, i + 16));
  }
}

// What the codes of IQ4_NL stand for.
static inline const int8_t* iq4_nl_table() {
  static const int8_t kTable[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return kTable;
}

static inline void iq4_nl(int8_t* c, float* scale, float*, const uint8_t* b) {
  const int8_t* table = iq4_nl_table();
  scale[0] = half_at(b);
  for (int i = 0; i < 16; ++i) {
    c[i] = table[b[2 + i] & 15];
    c[i + 16] = table[b[2 + i] >> 4];
  }
}

static inline void q2_k(int8_t* c, float* scale, float* minimum, const uint8_t* b) {
  const float d = half_at(b + 80), m = half_at(b + 82);
  for (int g = 0; g < 16; ++g) {
    scale[g] = d * float(b[g] & 15);
    minimum[g] = -(m * float(b[g] >> 4));
  }
  const uint8_t* q = b + 16;
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < 4; ++k)
      for (int i = 0; i < 32; ++i) c[128 * h + 32 * k + i] = int8_t(q[32 * h + i] >> (2 * k) & 3);
}

static inline void q3_k(int8_t* c, float* scale, float*, const uint8_t* b) {
  const uint8_t *high = b, *q = b + 32, *s = b + 96;
  const float d = half_at(b + 108);
  for (int g = 0; g < 16; ++g) {
    const int low = g < 8 ? s[g] & 15 : s[g - 8] >> 4;
    scale[g] = d * float((low | (s[8 + g % 4] >> (2 * (g / 4)) & 3) << 4) - 32);
  }
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < 4; ++k)
      for (int i = 0; i < 32; ++i)
        c[128 * h + 32 * k + i] = int8_t((q[32 * h + i] >> (2 * k) & 3) - ((high[i] >> (4 * h + k) & 1) ? 0 : 4));
}

// Scales and minima of kQ4_K and kQ5_K: 6 bits each, of 8 groups in 12 bytes.
static inline void k_scales(float* scale, float* minimum, const uint8_t* b) {
  const float d = half_at(b), m = half_at(b + 2);
  const uint8_t* s = b + 4;
  for (int g = 0; g < 8; ++g) {
    const int sc = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
    const int mn = g < 4 ? s[g + 4] & 63 : s[g + 4] >> 4 | (s[g] >> 6) << 4;
    scale[g] = d * float(sc);
    minimum[g] = -(m * float(mn));
  }
}

static inline void q4_k(int8_t* c, float* scale, float* minimum, const uint8_t* b) {
  k_scales(scale, minimum, b);
  const uint8_t* q = b + 16;
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < 32; ++i) {
      c[64 * j + i] = int8_t(q[32 * j + i] & 15);
      c[64 * j + 32 + i] = int8_t(q[32 * j + i] >> 4);
    }
}

static inline void q5_k(int8_t* c, float* scale, float* minimum, const uint8_t* b) {
  k_scales(scale, minimum, b);
  const uint8_t *h = b + 16, *q = b + 48;
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < 32; ++i) {
      c[64 * j + i] = int8_t((q[32 * j + i] & 15) | (h[i] >> (2 * j) & 1) << 4);
      c[64 * j + 32 + i] = int8_t(q[32 * j + i] >> 4 | (h[i] >> (2 * j + 1) & 1) << 4);
    }
}

static inline void q6_k(int8_t* c, float* scale, float*, const uint8_t* b) {
  const uint8_t *low = b, *high = b + 128;
  const float d = half_at(b + 208);
  for (int g = 0; g < 16; ++g) scale[g] = d * float(int8_t(b[192 + g]));
  for (int p = 0; p < 2; ++p)
    for (int k = 0; k < 4; ++k)
      for (int i = 0; i < 32; ++i) {
        const int byte = low[64 * p + 32 * (k % 2) + i];
        c[128 * p + 32 * k + i] =
            int8_t(((k < 2 ? byte & 15 : byte >> 4) | (high[32 * p + i] >> (2 * k) & 3) << 4) - 32);
      }
}

typedef void (*Codes)(int8_t* codes, float* scale, float* minimum, const uint8_t* block);

// Codes of `count` blocks one after the other, and their groups' scales and minima.
template <Codes CODES, int VALUES, int BYTES, int GROUP>
static void read_codes(int8_t* codes, float* scale, float* minimum, const uint8_t* from, int64_t count) {
  for (; count > 0; --count) {
    CODES(codes, scale, minimum, from);
    codes += VALUES;
    scale += VALUES / GROUP;
    minimum += VALUES / GROUP;
    from += BYTES;
  }
}

template <Codes CODES, int VALUES, int BYTES, int GROUP, bool MINIMUM>
static void decode(float* to, const uint8_t* from, int64_t count) {
  for (; count > 0; --count, from += BYTES) {
    int8_t codes[VALUES];
    float scale[VALUES / GROUP], minimum[VALUES / GROUP];
    CODES(codes, scale, minimum, from);
    for (int g = 0; g < VALUES / GROUP; ++g, to += GROUP) {
      const int8_t* c = codes + g * GROUP;
      const float s = scale[g];
      if (MINIMUM) {
        const float m = minimum[g];
        for (int i = 0; i < GROUP; ++i) to[i] = s * float(c[i]) + m;
      } else {
        for (int i = 0; i < GROUP; ++i) to[i] = s * float(c[i]);
      }
    }
  }
}

// BLOCKS(name in BlockType, function, values, bytes, group, has a minimum, offsets of fp16 numbers)
#define DULTRA_BLOCK_TYPES(BLOCKS)                 \
  BLOCKS(Q8_0, q8_0, 32, 34, 32, false, 0, -1)     \
  BLOCKS(Q4_0, q4_0, 32, 18, 32, false, 0, -1)     \
  BLOCKS(Q4_1, q4_1, 32, 20, 32, true, 0, 2)       \
  BLOCKS(Q5_0, q5_0, 32, 22, 32, false, 0, -1)     \
  BLOCKS(Q5_1, q5_1, 32, 24, 32, true, 0, 2)       \
  BLOCKS(IQ4_NL, iq4_nl, 32, 18, 32, false, 0, -1) \
  BLOCKS(Q2_K, q2_k, 256, 84, 16, true, 80, 82)    \
  BLOCKS(Q3_K, q3_k, 256, 110, 16, false, 108, -1) \
  BLOCKS(Q4_K, q4_k, 256, 144, 32, true, 0, 2)     \
  BLOCKS(Q5_K, q5_k, 256, 176, 32, true, 0, 2)     \
  BLOCKS(Q6_K, q6_k, 256, 210, 16, false, 208, -1)

}  // namespace blocks
}  // namespace
