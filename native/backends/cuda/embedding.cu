// Rows of a table: the embedding, gathering rows, and adding rows back.
#include "backends/cuda/kernels.h"

namespace dultra {
namespace cuda {

namespace {

// A thread has two columns, or the last of an odd number.
__global__ void __launch_bounds__(kElementThreads) gather_rows_kernel(Array out, ConstArray table, const int32_t* index, int64_t c) {
  const int64_t row = blockIdx.x, from = int64_t(index[row]) * c, j = int64_t(column_index()) * 2;
  if (j + 1 < c) {
    const Pair pair = get_pair(table, from + j);
    put_pair(out, row * c + j, pair.low, pair.high);
  } else if (j < c) {
    put(out, row * c + j, table[from + j]);
  }
}

__global__ void __launch_bounds__(kElementThreads) store_rows_kernel(Array to, ConstArray from, const int32_t* index, int64_t c) {
  const int64_t row = blockIdx.x, target = int64_t(index[row]) * c, j = int64_t(column_index()) * 2;
  if (j + 1 < c) {
    const Pair pair = get_pair(from, row * c + j);
    put_pair(to, target + j, pair.low, pair.high);
  } else if (j < c) {
    put(to, target + j, from[row * c + j]);
  }
}

// Several rows may go to the same place, so a thread owns a column and adds the rows in their order.
__global__ void __launch_bounds__(kElementThreads) scatter_add_rows_kernel(float* x, const float* from, const int32_t* index, int64_t m, int64_t c) {
  const int64_t j = global_index();
  if (j >= c) return;
  for (int64_t i = 0; i < m; ++i) x[int64_t(index[i]) * c + j] += from[i * c + j];
}

}  // namespace

void gather_rows(Array out, ConstArray table, const int32_t* index, int64_t m, int64_t c, cudaStream_t stream) {
  if (m * c > 0) launch("gather_rows", stream, gather_rows_kernel, row_grid(m, ceil_div(c, 2)), kElementThreads, 0, out, table, index, c);
}

void store_rows(Array to, ConstArray from, const int32_t* index, int64_t m, int64_t c, cudaStream_t stream) {
  if (m * c > 0) launch("store_rows", stream, store_rows_kernel, row_grid(m, ceil_div(c, 2)), kElementThreads, 0, to, from, index, c);
}

void scatter_add_rows(float* x, const float* from, const int32_t* index, int64_t m, int64_t c, cudaStream_t stream) {
  if (m * c > 0) launch("scatter_add_rows", stream, scatter_add_rows_kernel, element_grid(c), kElementThreads, 0, x, from, index, m, c);
}

}  // namespace cuda
}  // namespace dultra
