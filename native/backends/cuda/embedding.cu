// Rows of a table: the embedding, gathering, storing and copying rows, and adding rows back.
#include "backends/cuda/arg_transfer.h"
#include "backends/cuda/launchers.h"
#include "backends/cuda/vectors.h"

namespace dultra {
namespace cuda {

namespace {

constexpr int kMovedVectors = 4;  // of a thread: what it has under way at a time

// Rows `stride` apart; index: which of them, null: one after the other.
template <class T>
struct Rows {
  T* numbers;
  int64_t stride;
  const int32_t* index;
  __device__ __forceinline__ T* at(int64_t i) const { return numbers + (index ? index[i] : i) * stride; }
};

template <class Out, int kN, class In>
__device__ __forceinline__ Vector<Out, kN> converted(const Vector<In, kN>& vector) {
  if constexpr (std::is_same_v<Out, In>) {
    return vector;
  } else {
    float values[kN];
    DULTRA_UNROLL
    for (int e = 0; e < kN; ++e) values[e] = vector[e];
    return rounded_to<Out>(values);
  }
}

template <bool kWhole, class Out, class In>
__device__ __forceinline__ void move_row(Out* to, const In* from, int64_t c) {
  constexpr int kN = kVectorOf<Out, In>;
  Vector<In, kN> vectors[kMovedVectors];
  DULTRA_UNROLL
  for (int v = 0; v < kMovedVectors; ++v) {
    const int64_t j = vector_start<kN, kMovedVectors>(blockIdx.y, v);
    if (j < c) vectors[v] = load_vector<kN, kWhole>(from + j, c - j);
  }
  DULTRA_UNROLL
  for (int v = 0; v < kMovedVectors; ++v) {
    const int64_t j = vector_start<kN, kMovedVectors>(blockIdx.y, v);
    if (j < c) store_vector<kWhole>(to + j, converted<Out>(vectors[v]), c - j);
  }
}
template <class Out, class In>
__global__ void __launch_bounds__(kElementThreads)
    move_rows_kernel(Rows<Out> to, Rows<const In> from, int64_t c, bool aligned) {
  if (aligned)
    move_row<true>(to.at(blockIdx.x), from.at(blockIdx.x), c);
  else
    move_row<false>(to.at(blockIdx.x), from.at(blockIdx.x), c);
}
template <class Out, class In>
void move_rows(const char* name, const Rows<Out>& to, const Rows<const In>& from, int64_t m, int64_t c,
               cudaStream_t stream) {
  constexpr int kN = kVectorOf<Out, In>;
  const bool aligned =
      c % kN == 0 && in_vectors<kN>(to.numbers, to.stride) && in_vectors<kN>(from.numbers, from.stride);
  if (m * c > 0)
    launch(name, stream, move_rows_kernel<Out, In>, row_pieces(m, c, kElementThreads * kMovedVectors * kN),
           kElementThreads, 0, to, from, c, aligned);
}

// Several rows may go to the same place, so a thread owns a column and adds the rows in their order.
__global__ void __launch_bounds__(kElementThreads)
    scatter_add_rows_kernel(float* x, const float* from, const int32_t* index, int64_t m, int64_t c) {
  const int64_t j = global_index();
  if (j >= c) return;
  for (int64_t i = 0; i < m; ++i) x[int64_t(index[i]) * c + j] += from[i * c + j];
}

// out (m, c) = table (., c)[index (m)]
void gather(Array out, ConstArray table, const int32_t* index, int64_t m, int64_t c, cudaStream_t stream) {
  typed(out, [&](auto* to) {
    using Out = number_of<decltype(to)>;
    const auto from_rows = [&](auto* from) {
      move_rows<Out, number_of<decltype(from)>>("gather_rows", {to, c, nullptr}, {from, c, index}, m, c, stream);
    };
    if (table.dtype == DType::kF16)
      from_rows(static_cast<const Half*>(table.data));
    else
      typed(table, from_rows);
  });
}

}  // namespace

void copy_rows(Array to, int64_t to_stride, ConstArray from, int64_t from_stride, int64_t m, int64_t width,
               cudaStream_t stream) {
  typed(to, [&](auto* copy) {
    typed(from, [&](auto* rows) {
      move_rows<number_of<decltype(copy)>, number_of<decltype(rows)>>("copy_rows", {copy, to_stride, nullptr},
                                                                      {rows, from_stride, nullptr}, m, width, stream);
    });
  });
}

void CudaBackend::do_embedding_forward(float* out, const void* table, DType dtype, const int32_t* ids, int64_t m,
                                       int64_t c) {
  ArgTransfer transfer(*this, {in(ids, m)});
  gather(out, {table, dtype}, ids, m, c, stream_);
  transfer.finish();
}

void CudaBackend::do_embedding_backward(float* dtable, const int32_t* ids, const float* dout, int64_t m, int64_t c) {
  do_scatter_add_rows(dtable, dout, ids, m, c);
}

void CudaBackend::do_gather_rows(Array out, ConstArray x, const int32_t* index, int64_t m, int64_t c) {
  const Argument gathered{&out.data, size_t(m * c) * dtype_size(out.dtype), true};
  ArgTransfer transfer(*this, {in(index, m), gathered});
  gather(out, x, index, m, c, stream_);
  transfer.finish();
}

void CudaBackend::do_store_rows(void* to, DType dtype, ConstArray from, const int32_t* index, int64_t m, int64_t c) {
  ArgTransfer transfer(*this, {in(index, m)});
  typed(Array(to, dtype), [&](auto* held) {
    typed(from, [&](auto* rows) {
      move_rows<number_of<decltype(held)>, number_of<decltype(rows)>>("store_rows", {held, c, index},
                                                                      {rows, c, nullptr}, m, c, stream_);
    });
  });
  transfer.finish();
}

void CudaBackend::do_scatter_add_rows(float* x, const float* from, const int32_t* index, int64_t m, int64_t c) {
  ArgTransfer transfer(*this, {in(index, m)});
  if (m * c > 0)
    launch("scatter_add_rows", stream_, scatter_add_rows_kernel, element_grid(c), kElementThreads, 0, x, from, index, m,
           c);
  transfer.finish();
}

}  // namespace cuda
}  // namespace dultra
