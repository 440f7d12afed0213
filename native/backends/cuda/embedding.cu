// Rows of a table: the embedding, gathering rows, and adding rows back.
#include "backends/cuda/kernels.h"

namespace dultra {
namespace cuda {

namespace {

__global__ void __launch_bounds__(kElementThreads)
    embedding_forward_kernel(float* out, const void* table, DType dtype, const int32_t* ids, int64_t m, int64_t c) {
  const int64_t i = global_index();
  if (i >= m * c) return;
  out[i] = load_as_f32(table, dtype, size_t(int64_t(ids[i / c]) * c + i % c));
}

__global__ void __launch_bounds__(kElementThreads)
    store_rows_kernel(void* to, DType dtype, const float* from, const int32_t* index, int64_t m, int64_t c) {
  const int64_t i = global_index();
  if (i >= m * c) return;
  const int64_t at = int64_t(index[i / c]) * c + i % c;
  if (dtype == DType::kF32)
    static_cast<float*>(to)[at] = from[i];
  else
    static_cast<uint16_t*>(to)[at] = f32_to_bf16(from[i]);
}

// Several rows may go to the same place, so a thread owns a column and adds the rows in their order.
__global__ void __launch_bounds__(kElementThreads) scatter_add_rows_kernel(float* x, const float* from, const int32_t* index, int64_t m, int64_t c) {
  const int64_t j = global_index();
  if (j >= c) return;
  for (int64_t i = 0; i < m; ++i) x[int64_t(index[i]) * c + j] += from[i * c + j];
}

}  // namespace

void embedding_forward(float* out, const void* table, DType dtype, const int32_t* ids, int64_t m, int64_t c, cudaStream_t stream) {
  if (m * c > 0) launch("embedding_forward", stream, embedding_forward_kernel, element_grid(m * c), kElementThreads, 0, out, table, dtype, ids, m, c);
}

void store_rows(void* to, DType dtype, const float* from, const int32_t* index, int64_t m, int64_t c, cudaStream_t stream) {
  if (m * c > 0) launch("store_rows", stream, store_rows_kernel, element_grid(m * c), kElementThreads, 0, to, dtype, from, index, m, c);
}

void scatter_add_rows(float* x, const float* from, const int32_t* index, int64_t m, int64_t c, cudaStream_t stream) {
  if (m * c > 0) launch("scatter_add_rows", stream, scatter_add_rows_kernel, element_grid(c), kElementThreads, 0, x, from, index, m, c);
}

}  // namespace cuda
}  // namespace dultra
