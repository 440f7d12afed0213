#include "ops/blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/blocks.inl"
#include "ops/tensor.h"

namespace dultra {

namespace {

constexpr BlockLayout kLayouts[kBlockTypes] = {{"", 1, 4, 1, false, {-1, -1}},
#define BLOCKS(NAME, FUNCTION, VALUES, BYTES, GROUP, MINIMUM, FIRST, SECOND) \
  {#NAME, VALUES, BYTES, GROUP, MINIMUM, {FIRST, SECOND}},
                                               DULTRA_BLOCK_TYPES(BLOCKS)
#undef BLOCKS
};

constexpr int kGroup = 32;

float put_half(uint8_t* to, float value) {
  const uint16_t half = f32_to_f16(value);
  to[0] = uint8_t(half & 255);
  to[1] = uint8_t(half >> 8);
  return f16_to_f32(half);
}

// fp16's largest number: scales beyond it would become infinite.
constexpr float kLargestHalf = 65504.0f;

void encode_q8_0(uint8_t* to, const float* x) {
  float most = 0;
  for (int i = 0; i < kGroup; ++i) most = std::max(most, std::fabs(x[i]));
  const float d = put_half(to, std::min(most / 127.0f, kLargestHalf));
  for (int i = 0; i < kGroup; ++i) {
    const float code = d == 0 ? 0 : std::nearbyint(x[i] / d);
    to[2 + i] = uint8_t(int8_t(std::min(127.0f, std::max(-127.0f, code))));
  }
}

// The number with the largest magnitude has code -8 (of scale 1 / 8), or less where that costs the others less.
void encode_q4_0(uint8_t* to, const float* x) {
  float most = 0;
  for (int i = 0; i < kGroup; ++i)
    if (std::fabs(x[i]) > std::fabs(most)) most = x[i];
  float best = 0, least = -1;
  for (int step = 0; step <= 8; ++step) {
    uint8_t half[2];
    const float wanted = most / -(7.0f + 0.25f * float(step));
    const float d = put_half(half, std::min(kLargestHalf, std::max(-kLargestHalf, wanted)));
    const float inverse = d == 0 ? 0 : 1 / d;
    float error = 0;
    for (int i = 0; i < kGroup; ++i) {
      const float code = std::min(7.0f, std::max(-8.0f, std::nearbyint(x[i] * inverse)));
      const float off = x[i] - d * code;
      error += off * off;
    }
    if (least >= 0 && !(error < least)) continue;
    least = error;
    best = d;
  }
  best = put_half(to, best);
  const float inverse = best == 0 ? 0 : 1 / best;
  uint8_t code[kGroup];
  for (int i = 0; i < kGroup; ++i)
    code[i] = uint8_t(8 + int(std::min(7.0f, std::max(-8.0f, std::nearbyint(x[i] * inverse)))));
  for (int i = 0; i < kGroup / 2; ++i) to[2 + i] = uint8_t(code[i] | code[i + kGroup / 2] << 4);
}

// What the 16 codes of kIQ4_NL stand for.
float iq4_value(int code) { return float(blocks::iq4_nl_table()[code]); }

// The codes nearest to x / d; returns the squared error.
float fit_iq4_nl(uint8_t* code, const float* x, float d) {
  const float inverse = d == 0 ? 0 : 1 / d;
  float scaled[kGroup], above[kGroup] = {};
  for (int i = 0; i < kGroup; ++i) scaled[i] = x[i] * inverse;
  for (int j = 0; j + 1 < 16; ++j) {
    const float middle = 0.5f * (iq4_value(j) + iq4_value(j + 1));
    for (int i = 0; i < kGroup; ++i) above[i] += scaled[i] > middle ? 1.0f : 0.0f;
  }
  float error = 0;
  for (int i = 0; i < kGroup; ++i) {
    code[i] = uint8_t(above[i]);
    const float off = x[i] - d * iq4_value(code[i]);
    error += off * off;
  }
  return error;
}

// Scales that put the number with the largest magnitude near either end of the table, and the one that fits the best
// one's codes in the least squares.
void encode_iq4_nl(uint8_t* to, const float* x) {
  float most = 0, best = 0, least = -1;
  for (int i = 0; i < kGroup; ++i)
    if (std::fabs(x[i]) > std::fabs(most)) most = x[i];
  uint8_t code[kGroup];
  const auto consider = [&](float wanted) {
    uint8_t half[2];
    const float d = put_half(half, std::min(kLargestHalf, std::max(-kLargestHalf, wanted)));
    const float error = fit_iq4_nl(code, x, d);
    if (least >= 0 && !(error < least)) return;
    least = error;
    best = d;
  };
  for (int step = 0; step < 7; ++step) {
    consider(most / -(104.0f + 8.0f * float(step)));
    consider(most / (95.0f + 8.0f * float(step)));
  }
  fit_iq4_nl(code, x, best);
  float product = 0, square = 0;
  for (int i = 0; i < kGroup; ++i) {
    product += x[i] * iq4_value(code[i]);
    square += iq4_value(code[i]) * iq4_value(code[i]);
  }
  consider(product / square);
  fit_iq4_nl(code, x, put_half(to, best));
  for (int i = 0; i < kGroup / 2; ++i) to[2 + i] = uint8_t(code[i] | code[i + kGroup / 2] << 4);
}

}  // namespace

const BlockLayout& block_layout(BlockType type) { return kLayouts[int(type)]; }

BlockType block_type(const std::string& name) {
  for (int i = 1; i < kBlockTypes; ++i)
    if (name == kLayouts[i].name) return BlockType(i);
  return BlockType::kNone;
}

void decode_blocks(float* to, const uint8_t* from, BlockType type, int64_t count) {
  switch (type) {
#define BLOCKS(NAME, FUNCTION, VALUES, BYTES, GROUP, MINIMUM, FIRST, SECOND) \
  case BlockType::k##NAME: return blocks::decode<blocks::FUNCTION, VALUES, BYTES, GROUP, MINIMUM>(to, from, count);
    DULTRA_BLOCK_TYPES(BLOCKS)
#undef BLOCKS
    case BlockType::kNone: break;
  }
  throw Error(ErrorCode::kInternal, "decode_blocks: plain numbers have no blocks");
}

void encode_blocks(uint8_t* to, const float* from, BlockType type, int64_t count) {
  check_argument(is_written(type), "blocks: expected Q8_0, Q4_0 or IQ4_NL to write");
  check_argument(count % kGroup == 0, "blocks: expected a multiple of 32 numbers, got " + std::to_string(count));
  for (int64_t i = 0; i < count; i += kGroup, to += block_layout(type).bytes)
    (type == BlockType::kQ8_0 ? encode_q8_0 : type == BlockType::kQ4_0 ? encode_q4_0 : encode_iq4_nl)(to, from + i);
}

void split_blocks(uint8_t* codes, uint8_t* scales, const uint8_t* blocks, BlockType type, int64_t count) {
  const size_t width = size_t(block_layout(type).bytes) - 2;
  for (; count > 0; --count, codes += width, scales += 2, blocks += width + 2) {
    std::memcpy(scales, blocks, 2);
    std::memcpy(codes, blocks + 2, width);
  }
}

void join_blocks(uint8_t* blocks, const uint8_t* codes, const uint8_t* scales, BlockType type, int64_t count) {
  const size_t width = size_t(block_layout(type).bytes) - 2;
  for (; count > 0; --count, codes += width, scales += 2, blocks += width + 2) {
    std::memcpy(blocks, scales, 2);
    std::memcpy(blocks + 2, codes, width);
  }
}

int64_t first_bad_block(const uint8_t* from, BlockType type, int64_t count) {
  const BlockLayout& layout = block_layout(type);
  for (int64_t i = 0; i < count; ++i, from += layout.bytes)
    for (int at : layout.halves)
      if (at >= 0 && (from[at + 1] & 0x7c) == 0x7c) return i;
  return -1;
}

}  // namespace dultra
