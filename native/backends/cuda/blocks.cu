// Matrices in blocks (ops/blocks.h): their numbers are written out a part at a time, in the type that products read.
#include <algorithm>
#include <cstring>

#include "backends/cuda/arg_transfer.h"
#include "backends/cuda/cuda_matrix.h"
#include "backends/cuda/vectors.h"

namespace dultra {
namespace cuda {

namespace {

// A finite fp16 number, as ops/blocks.inl reads it.
__device__ __forceinline__ float half_at(const uint8_t* p) { return f16_to_f32(uint16_t(p[0] | p[1] << 8)); }

// Number i of a block: the same operations on the same numbers as decode_blocks, so the same bits.
template <BlockType kType>
__device__ __forceinline__ float block_value(const uint8_t* b, int i) {
  const int half = i / 16, low = i % 16;  // of blocks of 32: byte `low` holds numbers low and low + 16
  const auto nibble = [&](const uint8_t* q) { return half ? q[low] >> 4 : q[low] & 15; };
  const auto fifth = [&](const uint8_t* h) { return (h[i / 8] >> (i % 8) & 1) << 4; };
  if constexpr (kType == BlockType::kQ8_0) return half_at(b) * float(int8_t(b[2 + i]));
  if constexpr (kType == BlockType::kQ4_0) return half_at(b) * float(nibble(b + 2) - 8);
  if constexpr (kType == BlockType::kQ4_1) return half_at(b) * float(nibble(b + 4)) + half_at(b + 2);
  if constexpr (kType == BlockType::kQ5_0) return half_at(b) * float((nibble(b + 6) | fifth(b + 2)) - 16);
  if constexpr (kType == BlockType::kQ5_1) return half_at(b) * float(nibble(b + 8) | fifth(b + 4)) + half_at(b + 2);
  if constexpr (kType == BlockType::kIQ4_NL) {
    // -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113, four bytes a word.
    constexpr uint32_t kTable[4] = {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u};
    const int code = nibble(b + 2);
    const uint32_t word = code < 8 ? (code < 4 ? kTable[0] : kTable[1]) : (code < 12 ? kTable[2] : kTable[3]);
    return half_at(b) * float(int8_t(word >> (8 * (code % 4))));
  }
  if constexpr (kType == BlockType::kQ2_K) {
    const int group = i / 16, code = b[16 + i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3;
    return half_at(b + 80) * float(b[group] & 15) * float(code) + -(half_at(b + 82) * float(b[group] >> 4));
  }
  if constexpr (kType == BlockType::kQ3_K) {
    const uint8_t *q = b + 32, *s = b + 96;
    const int group = i / 16, bits = group < 8 ? s[group] & 15 : s[group - 8] >> 4;
    const int scale = (bits | (s[8 + group % 4] >> (2 * (group / 4)) & 3) << 4) - 32;
    const int code = q[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3;
    return half_at(b + 108) * float(scale) * float(code - (b[i % 32] >> (i / 32) & 1 ? 0 : 4));
  }
  if constexpr (kType == BlockType::kQ4_K || kType == BlockType::kQ5_K) {
    const uint8_t* s = b + 4;
    const int g = i / 32;
    const int sc = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
    const int mn = g < 4 ? s[g + 4] & 63 : s[g + 4] >> 4 | (s[g] >> 6) << 4;
    const uint8_t* q = b + (kType == BlockType::kQ4_K ? 16 : 48) + g / 2 * 32;
    int code = g % 2 ? q[i % 32] >> 4 : q[i % 32] & 15;
    if (kType == BlockType::kQ5_K) code |= (b[16 + i % 32] >> g & 1) << 4;
    return half_at(b) * float(sc) * float(code) + -(half_at(b + 2) * float(mn));
  }
  if constexpr (kType == BlockType::kQ6_K) {
    const int p = i / 128, k = i / 32 % 4, byte = b[64 * p + 32 * (k % 2) + i % 32];
    const int code = ((k < 2 ? byte & 15 : byte >> 4) | (b[128 + 32 * p + i % 32] >> (2 * k) & 3) << 4) - 32;
    return half_at(b + 208) * float(int8_t(b[192 + i / 16])) * float(code);
  }
}

// Rows of blocks, of which those from `first` on are this part's `rows`.
struct BlockRows {
  const uint8_t* data;
  int64_t row_bytes, first, rows;
  int values, bytes;  // of a block
};

// to (., cols) = columns [column, column + cols) of rows of the matrix: of those that `index` names, or one after the
// other from `row` on. What is in another part stays as it is.
template <BlockType kType>
__global__ void __launch_bounds__(kElementThreads)
    expand_kernel(Array to, BlockRows part, const int32_t* index, int64_t row, int64_t column, int64_t cols) {
  const int64_t j = int64_t(blockIdx.y) * kElementThreads + threadIdx.x;
  if (j >= cols) return;
  const int64_t in_part = (index ? index[blockIdx.x] : row + blockIdx.x) - part.first;
  if (in_part < 0 || in_part >= part.rows) return;
  const int64_t at = column + j;
  const uint8_t* block = part.data + in_part * part.row_bytes + at / part.values * part.bytes;
  put(to, int64_t(blockIdx.x) * cols + j, block_value<kType>(block, int(at % part.values)));
}

void expand(Array to, BlockType type, const BlockRows& part, const int32_t* index, int64_t row, int64_t rows,
            int64_t column, int64_t cols, cudaStream_t stream) {
  const auto run = [&](auto kernel) {
    launch("expand", stream, kernel, row_pieces(rows, cols, kElementThreads), kElementThreads, 0, to, part, index, row,
           column, cols);
  };
  switch (type) {
    case BlockType::kQ8_0: return run(expand_kernel<BlockType::kQ8_0>);
    case BlockType::kQ4_0: return run(expand_kernel<BlockType::kQ4_0>);
    case BlockType::kQ4_1: return run(expand_kernel<BlockType::kQ4_1>);
    case BlockType::kQ5_0: return run(expand_kernel<BlockType::kQ5_0>);
    case BlockType::kQ5_1: return run(expand_kernel<BlockType::kQ5_1>);
    case BlockType::kIQ4_NL: return run(expand_kernel<BlockType::kIQ4_NL>);
    case BlockType::kQ2_K: return run(expand_kernel<BlockType::kQ2_K>);
    case BlockType::kQ3_K: return run(expand_kernel<BlockType::kQ3_K>);
    case BlockType::kQ4_K: return run(expand_kernel<BlockType::kQ4_K>);
    case BlockType::kQ5_K: return run(expand_kernel<BlockType::kQ5_K>);
    case BlockType::kQ6_K: return run(expand_kernel<BlockType::kQ6_K>);
    case BlockType::kNone: break;
  }
  throw Error(ErrorCode::kInternal, "expand: plain numbers have no blocks");
}

}  // namespace

CudaBlockMatrix::CudaBlockMatrix(CudaBackend& backend, const std::vector<BlockPart>& parts, int64_t cols)
    : Matrix(rows_of(parts), cols), backend_(backend) {
  int64_t row = 0;
  for (const BlockPart& part : parts) {
    parts_.push_back({part.type, row, part.rows, block_row_bytes(part.type, cols), bytes_});
    bytes_ += size_t(part.rows * parts_.back().row_bytes);
    row += part.rows;
  }
  data_ = static_cast<uint8_t*>(backend.allocate(bytes_));
  try {
    for (size_t i = 0; i < parts.size(); ++i) {
      uint8_t* to = data_ + parts_[i].offset;
      const BlockPart& part = parts[i];
      if (part.heads == 0) {
        backend.upload(to, part.data, size_t(part.rows * parts_[i].row_bytes));
        continue;
      }
      std::vector<uint8_t> ordered(size_t(part.rows * parts_[i].row_bytes));
      for (int64_t r = 0; r < part.rows; ++r)
        std::memcpy(&ordered[size_t(r * parts_[i].row_bytes)],
                    part.data + stored_row(r, part.rows, part.heads) * parts_[i].row_bytes,
                    size_t(parts_[i].row_bytes));
      backend.upload(to, ordered.data(), ordered.size());
    }
  } catch (...) {
    backend.release(data_);
    throw;
  }
}

void CudaBlockMatrix::unpack(float* to, int64_t first, int64_t count) const {
  check_argument(first >= 0 && count >= 0 && first + count <= rows(), "unpack: expected rows of the matrix");
  for (const Part& part : parts_) {
    const int64_t begin = std::max(first, part.first), end = std::min(first + count, part.first + part.rows);
    if (begin >= end) continue;
    std::vector<uint8_t> stored(size_t((end - begin) * part.row_bytes));
    backend_.download(stored.data(), data_ + part.offset + size_t((begin - part.first) * part.row_bytes),
                      stored.size());
    decode_blocks(to + (begin - first) * cols(), stored.data(), part.type,
                  (end - begin) * (cols() / block_layout(part.type).values));
  }
}

void CudaBlockMatrix::expand_rows(Array to, const int32_t* index, int64_t row, int64_t rows, int64_t column,
                                  int64_t count, cudaStream_t stream) const {
  if (rows <= 0) return;
  for (const Part& part : parts_) {
    if (!index && (row + rows <= part.first || row >= part.first + part.rows)) continue;
    const BlockLayout& layout = block_layout(part.type);
    expand(to, part.type, {data_ + part.offset, part.row_bytes, part.first, part.rows, layout.values, layout.bytes},
           index, row, rows, column, count, stream);
  }
}

std::unique_ptr<Matrix> CudaBackend::do_make_block_matrix(const std::vector<BlockPart>& parts, int64_t cols,
                                                          int experts, bool int8) {
  // The product with experts reads plain numbers alone.
  if (experts > 1 || int8) return nullptr;
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return std::make_unique<CudaBlockMatrix>(*this, parts, cols);
}

void CudaBackend::do_table_rows_forward(float* out, const Matrix& table, const int32_t* ids, int64_t m) {
  ArgTransfer transfer(*this, {in(ids, m)});
  static_cast<const CudaBlockMatrix&>(table).expand_rows(out, ids, 0, m, 0, table.cols(), stream_);
  transfer.finish();
}

void CudaBackend::multiply_blocks(Array out, int64_t out_stride, ConstArray x, int64_t m, const CudaBlockMatrix& w,
                                  const float* bias, bool accumulate) {
  if (m <= 0) return;
  const int64_t n = w.rows(), k = w.cols(), most = std::max<int64_t>(64, expanded_numbers_ / k / 64 * 64);
  const DType dtype = compute() == Compute::kBF16 ? DType::kBF16 : DType::kF32;
  const Array part(expanded(size_t(std::min(most, n) * k) * dtype_size(dtype)), dtype);
  for (int64_t row = 0; row < n; row += most) {
    const int64_t rows = std::min(most, n - row);
    w.expand_rows(part, nullptr, row, rows, 0, k, stream_);
    multiply(out + row, out_stride, {x.data, x.dtype, k, false}, {part.data, dtype, k, false}, m, rows, k,
             bias ? bias + row : nullptr, accumulate, compute());
  }
}

// Pieces are of columns: an element's chain over the rows stays whole.
void CudaBackend::multiply_blocks_back(Array dx, ConstArray dy, int64_t dy_stride, int64_t m, const CudaBlockMatrix& w,
                                       int64_t first_row, int64_t rows, bool accumulate) {
  if (m <= 0) return;
  const int64_t k = w.cols(),
                most = std::max<int64_t>(kMostBlockValues, expanded_numbers_ / std::max<int64_t>(1, rows) /
                                                               kMostBlockValues * kMostBlockValues);
  const DType dtype = compute() == Compute::kBF16 ? DType::kBF16 : DType::kF32;
  const Array part(expanded(size_t(rows * std::min(most, k)) * dtype_size(dtype)), dtype);
  for (int64_t column = 0; column < k; column += most) {
    const int64_t cols = std::min(most, k - column);
    w.expand_rows(part, nullptr, first_row, rows, column, cols, stream_);
    multiply(dx + column, k, {dy.data, dy.dtype, dy_stride, false}, {part.data, dtype, cols, true}, m, cols, rows,
             nullptr, accumulate, compute());
  }
}

}  // namespace cuda
}  // namespace dultra
