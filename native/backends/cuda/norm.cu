// RMS norm, layer norm with the per-group modulation of AdaLN, the planner's score. The weights' gradients are sums
// over the rows, each column's in one order.
#include "backends/cuda/arg_transfer.h"
#include "backends/cuda/launchers.h"
#include "backends/cuda/row_group.h"

namespace dultra {
namespace cuda {

namespace {

template <int kThreads, bool kWhole, class Out>
__device__ __forceinline__ void rmsnorm_row(Out* out, float* copied, const float* x, const float* weight, int64_t c,
                                            float eps, float* scratch) {
  using Row = HeldRow<kThreads, kWhole>;
  const Row row(x, c);
  float squares = 0;
  row.each([&](int64_t, const typename Row::Numbers& numbers) {
    DULTRA_UNROLL
    for (int e = 0; e < Row::kN; ++e) squares = fmaf(numbers[e], numbers[e], squares);
  });
  const float scale = 1.0f / sqrtf(block_sum<kThreads>(squares, scratch) / float(c) + eps);
  row.each([&](int64_t j, const typename Row::Numbers& numbers) {
    const typename Row::Numbers weights = row.load(weight, j);
    float same[Row::kN], values[Row::kN];
    DULTRA_UNROLL
    for (int e = 0; e < Row::kN; ++e) {
      same[e] = numbers[e];
      values[e] = same[e] * scale * weights[e];
    }
    if (copied) row.store(copied, j, same);
    row.store(out, j, values);
  });
}
template <int kThreads, class Out>
__global__ void __launch_bounds__(RowGroup<kThreads>::kBlock)
    rmsnorm_forward_kernel(Out* out, float* copied, const float* x, const int32_t* index, const float* weight,
                           int64_t m, int64_t c, float eps, bool aligned) {
  DULTRA_SHARED(shared);
  float* scratch = reinterpret_cast<float*>(shared);
  const int64_t row = RowGroup<kThreads>::row();
  if (row >= m) return;
  out += row * c;
  if (copied) copied += row * c;
  x += (index ? index[row] : row) * c;
  if (aligned)
    rmsnorm_row<kThreads, true>(out, copied, x, weight, c, eps, scratch);
  else
    rmsnorm_row<kThreads, false>(out, copied, x, weight, c, eps, scratch);
}

// What a layer norm makes of the vector at column j.
template <class Row>
__device__ __forceinline__ void modulated(float (&values)[Row::kN], const Row& row, int64_t j,
                                          const typename Row::Numbers& x, const RowMoments& moments, const float* mul,
                                          const float* add) {
  const typename Row::Numbers factors = row.load(mul, j), terms = row.load(add, j);
  DULTRA_UNROLL
  for (int e = 0; e < Row::kN; ++e) values[e] = fmaf((x[e] - moments.mean) * moments.scale, factors[e], terms[e]);
}

template <int kThreads, bool kWhole>
__device__ __forceinline__ void layernorm_row(float* out, const float* x, const float* mul, const float* add, int64_t c,
                                              float eps, float* scratch) {
  using Row = HeldRow<kThreads, kWhole>;
  const Row row(x, c);
  const RowMoments moments = row_moments(row, c, eps, scratch);
  row.each([&](int64_t j, const typename Row::Numbers& numbers) {
    float values[Row::kN];
    modulated(values, row, j, numbers, moments, mul, add);
    row.store(out, j, values);
  });
}
template <int kThreads>
__global__ void __launch_bounds__(RowGroup<kThreads>::kBlock)
    layernorm_forward_kernel(float* out, const float* x, const float* mul, const float* add, const int32_t* groups,
                             int64_t m, int64_t c, float eps, bool aligned) {
  DULTRA_SHARED(shared);
  float* scratch = reinterpret_cast<float*>(shared);
  const int64_t row = RowGroup<kThreads>::row();
  if (row >= m) return;
  const int64_t first = groups ? groups[row] * c : 0;
  if (aligned)
    layernorm_row<kThreads, true>(out + row * c, x + row * c, mul + first, add + first, c, eps, scratch);
  else
    layernorm_row<kThreads, false>(out + row * c, x + row * c, mul + first, add + first, c, eps, scratch);
}

template <int kThreads, bool kWhole>
__device__ __forceinline__ float score_of_row(const float* x, const float* mul, const float* add, const float* weight,
                                              int64_t c, float eps, float* scratch) {
  using Row = HeldRow<kThreads, kWhole>;
  const Row row(x, c);
  const RowMoments moments = row_moments(row, c, eps, scratch);
  float score = 0;
  row.each([&](int64_t j, const typename Row::Numbers& numbers) {
    const typename Row::Numbers weights = row.load(weight, j);
    float values[Row::kN];
    modulated(values, row, j, numbers, moments, mul, add);
    DULTRA_UNROLL
    for (int e = 0; e < Row::kN; ++e) score = fmaf(values[e], weights[e], score);
  });
  return block_sum<kThreads>(score, scratch);
}
template <int kThreads>
__global__ void __launch_bounds__(RowGroup<kThreads>::kBlock)
    planner_score_forward_kernel(float* logit, const float* x, const float* mul, const float* add,
                                 const int32_t* groups, const float* weight, float bias, int64_t m, int64_t c,
                                 float eps, bool aligned) {
  DULTRA_SHARED(shared);
  float* scratch = reinterpret_cast<float*>(shared);
  const int64_t row = RowGroup<kThreads>::row();
  if (row >= m) return;
  const int64_t first = groups ? groups[row] * c : 0;
  const float score =
      aligned ? score_of_row<kThreads, true>(x + row * c, mul + first, add + first, weight, c, eps, scratch)
              : score_of_row<kThreads, false>(x + row * c, mul + first, add + first, weight, c, eps, scratch);
  if (int(threadIdx.x) % kThreads == 0) logit[row] = score + bias;
}

// ---- backward, rows -----------------------------------------------------------------------------

// Rows that are summed up before the sums are: long sums round less this way, and pieces run side by side.
constexpr int64_t kPieceRows = 64;
constexpr int64_t kRmsPieceRows = 16;  // of an RMS norm, whose rows a block takes one after the other
constexpr int kColumnThreads = 128;

// A block has kRmsPieceRows rows, and a thread the same columns of all of them, four side by side: it reads a number
// once, keeps it in registers while the row's sums are made, and adds up the weights' gradient as it goes. What is
// wider than its kHeld vectors it reads again, and the weights, for which there are no registers.
template <int kThreads>
struct RmsRows {
  float *dx, *partial;  // partial (pieces, C): sums of dweight's terms; null: not wanted
  const float *dout, *x, *weight;
  int64_t m, c;
  float eps;

  static constexpr int kN = kVectorOf<float>;
  using Numbers = Vector<float, kN>;
  struct Sums {
    float squares = 0, dot = 0;
    __device__ __forceinline__ void add(const Numbers& x, const Numbers& d, const Numbers& w) {
      DULTRA_UNROLL
      for (int e = 0; e < kN; ++e) squares = fmaf(x[e], x[e], squares), dot = fmaf(d[e] * w[e], x[e], dot);
    }
  };
  // 1 / the row's root mean square, and the mean of dout weight normed.
  struct Factors {
    float scale, dot;
  };
  __device__ __forceinline__ static Numbers gradient(const Numbers& old, const Numbers& x, const Numbers& d,
                                                     const Numbers& w, const Factors& f, float (&of_weight)[kN]) {
    float values[kN];
    DULTRA_UNROLL
    for (int e = 0; e < kN; ++e) {
      const float normed = x[e] * f.scale;
      values[e] = fmaf(fmaf(d[e], w[e], -(normed * f.dot)), f.scale, old[e]);
      of_weight[e] = fmaf(d[e], normed, of_weight[e]);
    }
    return rounded_to<float>(values);
  }

  template <bool kWhole>
  __device__ __forceinline__ void run(float* scratch) const {
    const int64_t piece = blockIdx.x, begin = piece * kRmsPieceRows,
                  end = begin + kRmsPieceRows < m ? begin + kRmsPieceRows : m;
    const auto load = [&](const float* from, int64_t j) { return load_vector<kN, kWhole>(from + j, c - j); };
    const auto column = [&](int v) { return int64_t(v * kThreads + int(threadIdx.x)) * kN; };
    float of_weight[kHeld][kN]{};
    for (int64_t row = begin; row < end; ++row) {
      const float *const row_x = x + row * c, *const row_d = dout + row * c;
      float* const row_dx = dx + row * c;
      Numbers held_x[kHeld]{}, held_d[kHeld]{}, held_dx[kHeld]{};
      DULTRA_UNROLL
      for (int v = 0; v < kHeld; ++v) {
        if (column(v) >= c) continue;
        held_x[v] = load(row_x, column(v));
        held_d[v] = load(row_d, column(v));
        held_dx[v] = load(row_dx, column(v));
      }
      Sums sums;
      DULTRA_UNROLL
      for (int v = 0; v < kHeld; ++v)
        if (column(v) < c) sums.add(held_x[v], held_d[v], load(weight, column(v)));
      DULTRA_NO_UNROLL
      for (int64_t j = column(kHeld); j < c; j += kThreads * kN)
        sums.add(load(row_x, j), load(row_d, j), load(weight, j));
      block_sums<kThreads>(&sums.squares, &sums.dot, scratch, int(row - begin) % 2);
      const float scale = 1.0f / sqrtf(sums.squares / float(c) + eps);
      const Factors factors{scale, sums.dot * scale / float(c)};
      DULTRA_UNROLL
      for (int v = 0; v < kHeld; ++v) {
        const int64_t j = column(v);
        if (j < c)
          store_vector<kWhole>(
              row_dx + j, gradient(held_dx[v], held_x[v], held_d[v], load(weight, j), factors, of_weight[v]), c - j);
      }
      DULTRA_NO_UNROLL
      for (int64_t j = column(kHeld); j < c; j += kThreads * kN) {
        float* const sum = partial + piece * c + j;
        float more[kN]{};
        if (partial && row > begin) {
          const Numbers before = load_vector<kN, kWhole>(sum, c - j);
          DULTRA_UNROLL
          for (int e = 0; e < kN; ++e) more[e] = before[e];
        }
        store_vector<kWhole>(row_dx + j,
                             gradient(load(row_dx, j), load(row_x, j), load(row_d, j), load(weight, j), factors, more),
                             c - j);
        if (partial) store_vector<kWhole>(sum, rounded_to<float>(more), c - j);
      }
    }
    if (!partial) return;
    DULTRA_UNROLL
    for (int v = 0; v < kHeld; ++v)
      if (column(v) < c)
        store_vector<kWhole>(partial + piece * c + column(v), rounded_to<float>(of_weight[v]), c - column(v));
  }
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads, kThreads == kWarp ? 8 : 2)
    rmsnorm_backward_kernel(RmsRows<kThreads> rows, bool aligned) {
  DULTRA_SHARED(shared);
  if (aligned)
    rows.template run<true>(reinterpret_cast<float*>(shared));
  else
    rows.template run<false>(reinterpret_cast<float*>(shared));
}

// The input's part of a layer norm's backward, from `factor` dout.
template <int kThreads, bool kWhole>
__device__ __forceinline__ RowMoments layernorm_row_backward(float* dx, const float* dout, float factor, const float* x,
                                                             const float* mul, int64_t c, float eps, float* scratch) {
  using Row = HeldRow<kThreads, kWhole>;
  using Numbers = typename Row::Numbers;
  const Row row(x, c);
  const RowMoments moments = row_moments(row, c, eps, scratch);
  const auto dnormed = [&](float(&d)[Row::kN], int64_t j) {
    const Numbers slopes = row.load(mul, j), numbers = row.load(dout, j);
    DULTRA_UNROLL
    for (int e = 0; e < Row::kN; ++e) d[e] = numbers[e] * factor * slopes[e];
  };
  float sum = 0, dot = 0;
  row.each([&](int64_t j, const Numbers& numbers) {
    float d[Row::kN];
    dnormed(d, j);
    DULTRA_UNROLL
    for (int e = 0; e < Row::kN; ++e) sum += d[e], dot = fmaf(d[e], (numbers[e] - moments.mean) * moments.scale, dot);
  });
  sum = block_sum<kThreads>(sum, scratch) / float(c);
  dot = block_sum<kThreads>(dot, scratch) / float(c);
  row.each([&](int64_t j, const Numbers& numbers) {
    const Numbers before = row.load(dx, j);
    float d[Row::kN];
    dnormed(d, j);
    DULTRA_UNROLL
    for (int e = 0; e < Row::kN; ++e)
      d[e] = fmaf((d[e] - sum) - (numbers[e] - moments.mean) * moments.scale * dot, moments.scale, before[e]);
    row.store(dx, j, d);
  });
  return moments;
}
// dout null: the score's, whose every row is dlogit weight.
template <int kThreads>
__global__ void __launch_bounds__(RowGroup<kThreads>::kBlock)
    layernorm_backward_kernel(float* dx, RowMoments* all_moments, const float* dout, const float* dlogit,
                              const float* weight, const float* x, const float* mul, const int32_t* groups, int64_t m,
                              int64_t c, float eps, bool aligned) {
  DULTRA_SHARED(shared);
  float* scratch = reinterpret_cast<float*>(shared);
  const int64_t row = RowGroup<kThreads>::row();
  if (row >= m) return;
  dx += row * c;
  x += row * c;
  if (groups) mul += groups[row] * c;
  const float* from = dout ? dout + row * c : weight;
  const float factor = dout ? 1.0f : dlogit[row];
  const RowMoments moments = aligned
                                 ? layernorm_row_backward<kThreads, true>(dx, from, factor, x, mul, c, eps, scratch)
                                 : layernorm_row_backward<kThreads, false>(dx, from, factor, x, mul, c, eps, scratch);
  if (int(threadIdx.x) % kThreads == 0) all_moments[row] = moments;
}
void launch_layernorm_backward(const char* name, float* dx, RowMoments* moments, const float* dout, const float* dlogit,
                               const float* weight, const float* x, const float* mul, const int32_t* group, int64_t m,
                               int64_t c, float eps, cudaStream_t stream) {
  if (m == 0) return;
  by_width(c, [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value;
    launch(name, stream, layernorm_backward_kernel<kThreads>, row_blocks<kThreads>(m), RowGroup<kThreads>::kBlock,
           RowGroup<kThreads>::kShared, dx, moments, dout, dlogit, weight, x, mul, group, m, c, eps,
           rows_in_vectors(c, dx, dout, weight, x, mul));
  });
}

// ---- backward, columns --------------------------------------------------------------------------

// partial (pieces, c): sums of term(row, column) over kPieceRows rows.
struct Plain {
  ConstArray x;
  int64_t stride;
  __device__ float operator()(int64_t i, int64_t j) const { return x[i * stride + j]; }
};
template <class Term>
__global__ void __launch_bounds__(kColumnThreads)
    column_pieces_kernel(float* partial, Term term, int64_t m, int64_t c) {
  const int64_t j = global_index(), piece = blockIdx.y;
  if (j >= c) return;
  const int64_t end = (piece + 1) * kPieceRows < m ? (piece + 1) * kPieceRows : m;
  float sum = 0;
  for (int64_t i = piece * kPieceRows; i < end; ++i) sum += term(i, j);
  partial[piece * c + j] = sum;
}
// A lane owns a column, and each warp of a block adds up a part of the pieces; then the warps' sums are added in their
// order.
constexpr int kAddWarps = 16;
__global__ void __launch_bounds__(kAddWarps* kWarp)
    add_pieces_kernel(float* to, const float* partial, int64_t pieces, int64_t c) {
  DULTRA_SHARED(shared);
  float* sums = reinterpret_cast<float*>(shared);
  const int64_t j = int64_t(blockIdx.x) * kWarp + lane_index(), share = ceil_div(pieces, kAddWarps),
                begin = warp_index() * share;
  const int64_t end = begin + share < pieces ? begin + share : pieces;
  float sum = 0;
  if (j < c)
    for (int64_t piece = begin; piece < end; ++piece) sum += partial[piece * c + j];
  sums[threadIdx.x] = sum;
  block_sync();
  if (warp_index() != 0 || j >= c) return;
  sum = to[j];
  for (int w = 0; w < kAddWarps; ++w) sum += sums[w * kWarp + lane_index()];
  to[j] = sum;
}
template <class Term>
void add_columns(const char* name, float* to, const Term& term, int64_t m, int64_t c, float* partial,
                 cudaStream_t stream) {
  if (m * c == 0) return;
  const int64_t pieces = ceil_div(m, kPieceRows);
  check_argument(pieces <= 65535,
                 "rows: expected at most " + std::to_string(65535 * kPieceRows) + ", got " + std::to_string(m));
  launch(name, stream, column_pieces_kernel<Term>, dim3(unsigned(ceil_div(c, kColumnThreads)), unsigned(pieces)),
         kColumnThreads, 0, partial, term, m, c);
  add_pieces(name, to, partial, pieces, c, stream);
}

// A layer norm's weights come in groups, any number of them: a thread owns a column and walks down all rows.
__global__ void __launch_bounds__(kColumnThreads)
    layernorm_weights_kernel(float* dmul, float* dadd, float* dweight, const float* dout, const float* dlogit,
                             const float* x, const RowMoments* all_moments, const float* mul, const float* add,
                             const int32_t* groups, const float* weight, int64_t m, int64_t c) {
  const int64_t j = global_index();
  if (j >= c) return;
  for (int64_t i = 0; i < m; ++i) {
    const int64_t at = (groups ? groups[i] * c : 0) + j;
    const RowMoments moments = all_moments[i];
    const float normed = (x[i * c + j] - moments.mean) * moments.scale;
    const float d = dout ? dout[i * c + j] : weight[j] * dlogit[i];
    if (dmul) dmul[at] = fmaf(d, normed, dmul[at]);
    if (dadd) dadd[at] += d;
    if (dweight) dweight[j] = fmaf(dlogit[i], fmaf(normed, mul[at], add[at]), dweight[j]);
  }
}

// One thread: there are as many numbers as candidates.
__global__ void __launch_bounds__(kWarp) add_sum_kernel(float* to, const float* x, int64_t m) {
  if (threadIdx.x != 0) return;
  double sum = 0;
  for (int64_t i = 0; i < m; ++i) sum += double(x[i]);
  *to += float(sum);
}

}  // namespace

void add_pieces(const char* name, float* to, const float* partial, int64_t pieces, int64_t c, cudaStream_t stream) {
  launch(name, stream, add_pieces_kernel, dim3(unsigned(ceil_div(c, kWarp))), kAddWarps * kWarp,
         kAddWarps * kWarp * sizeof(float), to, partial, pieces, c);
}

void CudaBackend::do_rmsnorm_forward(Array out, const float* x, const float* weight, int64_t m, int64_t c, float eps) {
  do_rmsnorm_copy_forward(out, nullptr, x, nullptr, weight, m, c, eps);
}

void CudaBackend::do_rmsnorm_copy_forward(Array out, float* copied, const float* x, const int32_t* index,
                                          const float* weight, int64_t m, int64_t c, float eps) {
  ArgTransfer transfer(*this, {in(index, m)});
  if (m == 0) return;
  typed(out, [&](auto* to) {
    by_width(c, [&](auto threads) {
      constexpr int kThreads = decltype(threads)::value;
      launch("rmsnorm_forward", stream_, rmsnorm_forward_kernel<kThreads, number_of<decltype(to)>>,
             row_blocks<kThreads>(m), RowGroup<kThreads>::kBlock, RowGroup<kThreads>::kShared, to, copied, x, index,
             weight, m, c, eps, rows_in_vectors(c, to, copied, x, weight));
    });
  });
  transfer.finish();
}

void CudaBackend::do_layernorm_forward(float* out, const float* x, const float* mul, const float* add,
                                       const int32_t* group, int64_t m, int64_t c, float eps) {
  ArgTransfer transfer(*this, {in(group, m)});
  if (m == 0) return;
  by_width(c, [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value;
    launch("layernorm_forward", stream_, layernorm_forward_kernel<kThreads>, row_blocks<kThreads>(m),
           RowGroup<kThreads>::kBlock, RowGroup<kThreads>::kShared, out, x, mul, add, group, m, c, eps,
           rows_in_vectors(c, out, x, mul, add));
  });
  transfer.finish();
}

void CudaBackend::do_planner_score_forward(float* logit, const float* x, const float* mul, const float* add,
                                           const int32_t* group, const float* weight, float bias, int64_t m, int64_t c,
                                           float eps) {
  ArgTransfer transfer(*this, {out(logit, m), in(group, m)});
  if (m == 0) return;
  by_width(c, [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value;
    launch("planner_score_forward", stream_, planner_score_forward_kernel<kThreads>, row_blocks<kThreads>(m),
           RowGroup<kThreads>::kBlock, RowGroup<kThreads>::kShared, logit, x, mul, add, group, weight, bias, m, c, eps,
           rows_in_vectors(c, x, mul, add, weight));
  });
  transfer.finish();
}

size_t norm_scratch(int64_t m, int64_t c) {
  return std::max(size_t(m) * sizeof(RowMoments), size_t(ceil_div(m, kRmsPieceRows) * c) * sizeof(float));
}

void CudaBackend::do_rmsnorm_backward(float* dx, float* dweight, const float* dout, const float* x, const float* weight,
                                      int64_t m, int64_t c, float eps) {
  ArgTransfer transfer(*this);
  if (m * c == 0) return;
  float* partial = dweight ? static_cast<float*>(scratch(norm_scratch(m, c))) : nullptr;
  by_width(c, [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value;
    launch("rmsnorm_backward", stream_, rmsnorm_backward_kernel<kThreads>, dim3(unsigned(ceil_div(m, kRmsPieceRows))),
           kThreads, kPairScratch<kThreads> * sizeof(float), RmsRows<kThreads>{dx, partial, dout, x, weight, m, c, eps},
           rows_in_vectors(c, dx, partial, dout, x, weight));
  });
  if (dweight) add_pieces("rmsnorm_backward", dweight, partial, ceil_div(m, kRmsPieceRows), c, stream_);
  transfer.finish();
}

void CudaBackend::do_layernorm_backward(float* dx, float* dmul, float* dadd, const float* dout, const float* x,
                                        const float* mul, const int32_t* group, int64_t m, int64_t c, float eps) {
  ArgTransfer transfer(*this, {in(group, m)});
  RowMoments* moments = static_cast<RowMoments*>(scratch(norm_scratch(m, c)));
  const float* none = nullptr;
  launch_layernorm_backward("layernorm_backward", dx, moments, dout, none, none, x, mul, group, m, c, eps, stream_);
  if ((dmul || dadd) && m > 0)
    launch("layernorm_backward", stream_, layernorm_weights_kernel, dim3(unsigned(ceil_div(c, kColumnThreads))),
           kColumnThreads, 0, dmul, dadd, static_cast<float*>(nullptr), dout, none, x,
           static_cast<const RowMoments*>(moments), mul, none, group, none, m, c);
  transfer.finish();
}

void CudaBackend::do_planner_score_backward(float* dx, float* dmul, float* dadd, float* dweight, float* dbias,
                                            const float* dlogit, const float* x, const float* mul, const float* add,
                                            const int32_t* group, const float* weight, int64_t m, int64_t c,
                                            float eps) {
  ArgTransfer transfer(*this, {in(group, m)});
  RowMoments* moments = static_cast<RowMoments*>(scratch(norm_scratch(m, c)));
  const float* none = nullptr;
  launch_layernorm_backward("planner_score_backward", dx, moments, none, dlogit, weight, x, mul, group, m, c, eps,
                            stream_);
  if (dbias && m > 0) launch("planner_score_backward", stream_, add_sum_kernel, dim3(1), kWarp, 0, dbias, dlogit, m);
  if ((dmul || dadd || dweight) && m > 0)
    launch("planner_score_backward", stream_, layernorm_weights_kernel, dim3(unsigned(ceil_div(c, kColumnThreads))),
           kColumnThreads, 0, dmul, dadd, dweight, none, dlogit, x, static_cast<const RowMoments*>(moments), mul, add,
           group, weight, m, c);
  transfer.finish();
}

void add_column_sums(float* to, ConstArray x, int64_t stride, int64_t m, int64_t c, void* scratch,
                     cudaStream_t stream) {
  add_columns("add_column_sums", to, Plain{x, stride}, m, c, static_cast<float*>(scratch), stream);
}

}  // namespace cuda
}  // namespace dultra
