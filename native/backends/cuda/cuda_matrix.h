#pragma once
#include <vector>

#include "backends/cuda/cuda_backend.h"

namespace dultra {
namespace cuda {

// A weight matrix (rows, cols), row-major.
class CudaMatrix final : public Matrix {
 public:
  CudaMatrix(CudaBackend& backend, int64_t rows, int64_t cols, DType type, int experts)
      : Matrix(rows, cols, experts), storage(type), backend_(backend), data_(backend.allocate(bytes())) {}
  ~CudaMatrix() override { backend_.release(data_); }
  size_t bytes() const override { return size_t(rows() * cols()) * dtype_size(storage); }
  void unpack(float* to, int64_t first, int64_t count) const override {
    check_argument(first >= 0 && count >= 0 && first + count <= rows(), "unpack: expected rows of the matrix");
    const size_t n = size_t(count * cols()), size = dtype_size(storage);
    std::vector<uint8_t> stored(n * size);
    backend_.download(stored.data(), row(first), stored.size());
    for (size_t i = 0; i < n; ++i) to[i] = load_as_f32(stored.data(), storage, i);
  }
  uint16_t* bf16_rows() override { return storage == DType::kBF16 ? static_cast<uint16_t*>(data_) : nullptr; }
  void* row(int64_t first) const { return static_cast<uint8_t*>(data_) + size_t(first * cols()) * dtype_size(storage); }

  const DType storage;

 private:
  CudaBackend& backend_;
  void* data_;
};

// Rows in blocks, in the order of the matrix. Products read parts of it that are written out (blocks.cu).
class CudaBlockMatrix final : public Matrix {
 public:
  CudaBlockMatrix(CudaBackend& backend, const std::vector<BlockPart>& parts, int64_t cols);
  ~CudaBlockMatrix() override { backend_.release(data_); }
  size_t bytes() const override { return bytes_; }
  bool quantised() const override { return true; }
  void unpack(float* to, int64_t first, int64_t count) const override;
  // to (rows, count) = columns [column, column + count) of rows that `index` names, or of those from `row` on.
  void expand_rows(Array to, const int32_t* index, int64_t row, int64_t rows, int64_t column, int64_t count,
                   cudaStream_t stream) const;

 private:
  struct Part {
    BlockType type;
    int64_t first, rows, row_bytes;
    size_t offset;  // in data_
  };
  static int64_t rows_of(const std::vector<BlockPart>& parts) {
    int64_t rows = 0;
    for (const BlockPart& part : parts) rows += part.rows;
    return rows;
  }

  CudaBackend& backend_;
  std::vector<Part> parts_;
  size_t bytes_ = 0;
  uint8_t* data_ = nullptr;
};

}  // namespace cuda
}  // namespace dultra
