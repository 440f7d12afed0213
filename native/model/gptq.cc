#include "model/gptq.h"

#include <cstring>

#include "ops/check.h"
#include "ops/tensor.h"

namespace dultra {

namespace {

template <class T>
T load(const uint8_t* from, int64_t index) {
  T value;
  std::memcpy(&value, from + index * int64_t(sizeof value), sizeof value);
  return value;
}

[[noreturn]] void refuse(const std::string& where, const std::string& expected) {
  throw Error(ErrorCode::kBadCheckpoint, where + ": " + expected);
}

// Groups of all inputs, each one that there is; of blocks, one for every 32.
std::vector<int64_t> groups_of(const GptqMatrix& m, BlockType type, const std::string& where) {
  std::vector<int64_t> groups(static_cast<size_t>(m.cols));
  for (int64_t k = 0; k < m.cols; ++k) {
    const int64_t g = groups[size_t(k)] = load<int32_t>(m.group, k);
    if (g < 0 || g >= m.groups)
      refuse(where, "g_idx: expected groups 0 to " + std::to_string(m.groups - 1) + ", got " + std::to_string(g));
    if (type != BlockType::kNone && g != groups[size_t(k / 32 * 32)])
      refuse(where, "g_idx: expected one group for every 32 inputs with desc_act false, got " + std::to_string(g) +
                        " at input " + std::to_string(k));
  }
  return groups;
}

}  // namespace

std::vector<uint8_t> unpack_gptq(const GptqMatrix& m, BlockType type, const std::string& where) {
  const int per_word = 32 / m.bits, mask = (1 << m.bits) - 1, middle = 1 << (m.bits - 1);
  const bool in_blocks = type != BlockType::kNone, symmetric = type == BlockType::kQ4_0 || type == BlockType::kQ8_0;
  const std::vector<int64_t> groups = groups_of(m, type, where);
  const auto zero_at = [&](int64_t g, int64_t n) {
    const auto word = load<uint32_t>(m.zeros, g * (m.rows / per_word) + n / per_word);
    return int(word >> (n % per_word * m.bits) & uint32_t(mask)) + m.zero_offset;
  };
  for (int64_t g = 0; g < m.groups; ++g)
    for (int64_t n = 0; n < m.rows; ++n) {
      if ((load<uint16_t>(m.scales, g * m.rows + n) & 0x7c00) == 0x7c00)
        throw Error(ErrorCode::kNonFinite, where + ": scales hold NaN or infinity");
      if (symmetric && zero_at(g, n) != middle)
        refuse(where,
               "qzeros: expected " + std::to_string(middle) + " with sym true, got " + std::to_string(zero_at(g, n)));
    }
  const int64_t row_bytes = in_blocks ? block_row_bytes(type, m.cols) : m.cols * 4;
  std::vector<uint8_t> out(size_t(m.rows * row_bytes));
  const auto code_at = [&](int64_t k, int64_t n) {
    return int(load<uint32_t>(m.codes, k / per_word * m.rows + n) >> (k % per_word * m.bits) & uint32_t(mask));
  };
  if (!in_blocks) {
    for (int64_t k = 0; k < m.cols; ++k)
      for (int64_t n = 0; n < m.rows; ++n) {
        const int64_t g = groups[size_t(k)];
        const float value = f16_to_f32(load<uint16_t>(m.scales, g * m.rows + n)) * float(code_at(k, n) - zero_at(g, n));
        std::memcpy(&out[size_t(n * row_bytes + k * 4)], &value, 4);
      }
    return out;
  }
  const int64_t block_bytes = block_layout(type).bytes;
  for (int64_t k0 = 0; k0 < m.cols; k0 += 32)
    for (int64_t n = 0; n < m.rows; ++n) {
      const int64_t g = groups[size_t(k0)];
      const int shift = middle - zero_at(g, n);  // of the code, where the block's zero is in the middle
      uint8_t* block = &out[size_t(n * row_bytes + k0 / 32 * block_bytes)];
      std::memcpy(block, m.scales + (g * m.rows + n) * 2, 2);
      if (type == BlockType::kQ8_0) {
        for (int i = 0; i < 32; ++i) block[2 + i] = uint8_t(int8_t(code_at(k0 + i, n) - middle));
        continue;
      }
      // kQ5_0 counts from -16, so that any code of 4 bits fits whatever its zero point is.
      const bool five = type == BlockType::kQ5_0;
      uint32_t fifth = 0;
      uint8_t* nibbles = block + (five ? 6 : 2);
      for (int i = 0; i < 32; ++i) {
        const int code = code_at(k0 + i, n) + (five ? 8 + shift : 0);
        nibbles[i % 16] = uint8_t(nibbles[i % 16] | (code & 15) << (i < 16 ? 0 : 4));
        fifth |= uint32_t(code >> 4 & 1) << i;
      }
      if (five) std::memcpy(block + 2, &fifth, 4);
    }
  return out;
}

}  // namespace dultra
