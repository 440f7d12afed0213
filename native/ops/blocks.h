// Quantised numbers as GGUF files hold them: a row is cut into blocks, a block holds a code of a few bits for each
// number and what scales them. A number is scale * code + minimum, with a scale (and in some types a minimum) per
// group.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace dultra {

// Types of blocks by their names in GGUF. kNone: plain numbers.
enum class BlockType : uint8_t { kNone, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kIQ4_NL, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K };
constexpr int kBlockTypes = 12;

// The longest block; the K dimension of every quantised matrix is cut at multiples of it.
constexpr int kMostBlockValues = 256;

struct BlockLayout {
  const char* name;
  int values, bytes;  // of a block
  int group;          // numbers that share a scale: 16 or 32
  bool has_minimum;
  int halves[2];  // where the fp16 numbers are in a block; -1: none
};

const BlockLayout& block_layout(BlockType type);
// kNone for a name that is none of them.
BlockType block_type(const std::string& name);

// Bytes of a row of `cols` numbers, which must be whole blocks.
inline int64_t block_row_bytes(BlockType type, int64_t cols) {
  const BlockLayout& layout = block_layout(type);
  return cols / layout.values * layout.bytes;
}

// to (count * values) = the numbers of `count` blocks. Exact: every step fits fp32, but for the last addition of types
// with a minimum, which rounds once.
void decode_blocks(float* to, const uint8_t* from, BlockType type, int64_t count);

// The types that encode_blocks writes: a block of 32 is a scale and then its codes.
inline bool is_written(BlockType type) {
  return type == BlockType::kQ8_0 || type == BlockType::kQ4_0 || type == BlockType::kIQ4_NL;
}

// Blocks of `count` consecutive numbers, a multiple of 32: kQ8_0 (largest magnitude is code 127), or of several scales
// of kQ4_0 or kIQ4_NL the one with the least squared error.
void encode_blocks(uint8_t* to, const float* from, BlockType type, int64_t count);

// The fp16 scales of blocks of a written type in one array and their codes in another, as our own files have them; and
// back.
void split_blocks(uint8_t* codes, uint8_t* scales, const uint8_t* blocks, BlockType type, int64_t count);
void join_blocks(uint8_t* blocks, const uint8_t* codes, const uint8_t* scales, BlockType type, int64_t count);

// Index of the first block whose fp16 numbers are not finite; -1: none.
int64_t first_bad_block(const uint8_t* from, BlockType type, int64_t count);

// Where a writer reordered the rows of a head so that the two halves of a rotated pair are neighbours (GGUF files of
// Llama and LLaDA): the row in the file that holds row `row` of the matrix. heads 0: rows are as they are.
inline int64_t stored_row(int64_t row, int64_t rows, int64_t heads) {
  if (heads == 0) return row;
  const int64_t size = rows / heads, half = size / 2, in_head = row % size;
  return row - in_head + 2 * (in_head % half) + in_head / half;
}

}  // namespace dultra
