// Rows of a table: the embedding, gathering and storing rows, and adding rows back.
#include <algorithm>
#include <cstring>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"

namespace dultra {
namespace cpu {

void CpuBackend::do_embedding_forward(float* out, const void* table, DType dtype, const int32_t* ids, int64_t m,
                                      int64_t c) {
  parallel_ranges(pool_, m, c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = int64_t(ids[i]) * c;
      float* row = out + i * c;
      switch (dtype) {
        case DType::kF32: std::memcpy(row, static_cast<const float*>(table) + from, size_t(c) * sizeof(float)); break;
        case DType::kBF16:
          for (int64_t j = 0; j < c; ++j) row[j] = bf16_to_f32(static_cast<const uint16_t*>(table)[from + j]);
          break;
        case DType::kF16:
          for (int64_t j = 0; j < c; ++j) row[j] = f16_to_f32(static_cast<const uint16_t*>(table)[from + j]);
          break;
      }
    }
  });
}

void CpuBackend::do_gather_rows(Array out_array, ConstArray x_array, const int32_t* index, int64_t m, int64_t c) {
  float* out = out_array.f32();
  const float* x = x_array.f32();
  parallel_ranges(pool_, m, c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(out + i * c, x + (index ? int64_t(index[i]) : i) * c, size_t(c) * sizeof(float));
  });
}

void CpuBackend::do_store_rows(void* to, DType dtype, ConstArray from_array, const int32_t* index, int64_t m,
                               int64_t c) {
  const float* from = from_array.f32();
  parallel_ranges(pool_, m, c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = from + i * c;
      const int64_t at = int64_t(index[i]) * c;
      if (dtype == DType::kF32) {
        std::memcpy(static_cast<float*>(to) + at, row, size_t(c) * sizeof(float));
      } else {
        uint16_t* narrow = static_cast<uint16_t*>(to) + at;
        for (int64_t j = 0; j < c; ++j) narrow[j] = f32_to_bf16(row[j]);
      }
    }
  });
}

void CpuBackend::do_embedding_backward(float* dtable, const int32_t* ids, const float* dout, int64_t m, int64_t c) {
  do_scatter_add_rows(dtable, dout, ids, m, c);
}

void CpuBackend::do_scatter_add_rows(float* x, const float* from, const int32_t* index, int64_t m, int64_t c) {
  // Several rows may go to the same place, so threads divide the columns: every sum then keeps the order of the rows.
  parallel_ranges(pool_, (c + kColumns - 1) / kColumns, m * kColumns, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(c, end * kColumns);
    for (int64_t i = 0; i < m; ++i) {
      float* to = x + int64_t(index[i]) * c;
      for (int64_t j = begin * kColumns; j < last; ++j) to[j] += from[i * c + j];
    }
  });
}

}  // namespace cpu
}  // namespace dultra
