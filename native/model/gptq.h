// Weights as GPTQ files have them (AutoGPTQ): codes of 4 or 8 bits packed along the inputs of a matrix, and for every
// group of inputs an fp16 scale and a zero point per output: number (n, k) is scale (g, n) * (code (k, n) - zero (g,
// n)) with g = groups (k).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "ops/blocks.h"

namespace dultra {

struct GptqMatrix {
  int64_t rows, cols;     // outputs, and inputs, a multiple of the codes in a word
  int bits;               // 4 or 8
  int64_t groups;         // G
  int zero_offset;        // what stored zero points lack: 1, or 0
  const uint8_t* codes;   // (cols * bits / 32, rows) words of 32 bits, the first code lowest
  const uint8_t* zeros;   // (G, rows * bits / 32) likewise, along the outputs
  const uint8_t* scales;  // (G, rows) fp16
  const uint8_t* group;   // (cols) int32
};

// The matrix row-major in blocks, exactly, or in fp32 (kNone). kQ4_0 and kQ8_0 take symmetric codes alone (a zero point
// of 8, or 128), kQ5_0 any of 4 bits, and all three groups of 32 consecutive inputs. BAD_CHECKPOINT, with `where`
// before it, for what does not fit.
std::vector<uint8_t> unpack_gptq(const GptqMatrix& matrix, BlockType type, const std::string& where);

}  // namespace dultra
