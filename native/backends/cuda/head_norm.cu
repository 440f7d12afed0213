// RMS norm of every head of queries and keys. A warp has a head, and a lane every 32nd number of it.
#include "backends/cuda/arg_transfer.h"
#include "backends/cuda/launchers.h"

namespace dultra {
namespace cuda {

namespace {

constexpr int kHeadNumbers = 16;     // of a head in a lane's registers: 512 numbers a head
constexpr int kHeadWarps = 4;        // per block
constexpr int64_t kPieceHeads = 64;  // whose weight's gradient one warp sums

// The heads of all rows, in order.
struct Heads {
  Array x;
  int64_t stride, count;
  int heads, head_dim;
  float eps;

  __device__ __forceinline__ int64_t first(int64_t head) const {
    return head / heads * stride + head % heads * head_dim;
  }
  // body(v, j): number j is the lane's v-th.
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) const {
    DULTRA_UNROLL
    for (int v = 0; v < kHeadNumbers; ++v)
      if (v * kWarp + lane_index() < head_dim) body(v, v * kWarp + lane_index());
  }
};

__global__ void __launch_bounds__(kHeadWarps* kWarp)
    head_norm_forward_kernel(Heads rows, Array kept, const float* weight) {
  const int64_t head = int64_t(blockIdx.x) * kHeadWarps + warp_index();
  if (head >= rows.count) return;
  const ConstArray x = rows.x;
  const int64_t first = rows.first(head);
  float numbers[kHeadNumbers], squares = 0;
  rows.each([&](int v, int j) {
    numbers[v] = x[first + j];
    squares = fmaf(numbers[v], numbers[v], squares);
  });
  const float scale = 1.0f / sqrtf(warp_sum(squares) / float(rows.head_dim) + rows.eps);
  rows.each([&](int v, int j) {
    if (kept.data) put(kept, head * rows.head_dim + j, numbers[v]);
    put(rows.x, first + j, numbers[v] * scale * weight[j]);
  });
}

// partial (pieces, D): sums of the weight's gradient; null: not wanted.
__global__ void __launch_bounds__(kHeadWarps* kWarp, 2)
    head_norm_backward_kernel(Heads rows, float* partial, ConstArray kept, const float* weight) {
  const int64_t piece = int64_t(blockIdx.x) * kHeadWarps + warp_index(), begin = piece * kPieceHeads;
  if (begin >= rows.count) return;
  const int64_t end = begin + kPieceHeads < rows.count ? begin + kPieceHeads : rows.count;
  const ConstArray dout = rows.x;
  float of_weight[kHeadNumbers]{};
  for (int64_t head = begin; head < end; ++head) {
    const int64_t first = rows.first(head);
    float x[kHeadNumbers], squares = 0, dot = 0;
    rows.each([&](int v, int j) {
      x[v] = kept[head * rows.head_dim + j];
      squares = fmaf(x[v], x[v], squares);
      dot = fmaf(dout[first + j] * weight[j], x[v], dot);
    });
    const float scale = 1.0f / sqrtf(warp_sum(squares) / float(rows.head_dim) + rows.eps);
    dot = warp_sum(dot) * scale / float(rows.head_dim);
    rows.each([&](int v, int j) {
      // Loaded once more (from the cache): kept, the upstream gradient would take more registers than there are.
      const float normed = x[v] * scale, upstream = dout[first + j];
      of_weight[v] = fmaf(upstream, normed, of_weight[v]);
      put(rows.x, first + j, fmaf(upstream, weight[j], -(normed * dot)) * scale);
    });
  }
  if (partial) rows.each([&](int v, int j) { partial[piece * rows.head_dim + j] = of_weight[v]; });
}

}  // namespace

void CudaBackend::do_head_norm_forward(Array x, int64_t stride, Array kept, const float* weight, int64_t m, int heads,
                                       int head_dim, float eps) {
  ArgTransfer transfer(*this);
  if (m == 0) return;
  const Heads rows{x, stride, m * heads, heads, head_dim, eps};
  launch("head_norm_forward", stream_, head_norm_forward_kernel, dim3(unsigned(ceil_div(rows.count, kHeadWarps))),
         kHeadWarps * kWarp, 0, rows, kept, weight);
  transfer.finish();
}

void CudaBackend::do_head_norm_backward(Array dx, int64_t stride, float* dweight, ConstArray kept, const float* weight,
                                        int64_t m, int heads, int head_dim, float eps) {
  ArgTransfer transfer(*this);
  if (m == 0) return;
  const Heads rows{dx, stride, m * heads, heads, head_dim, eps};
  const int64_t pieces = ceil_div(rows.count, kPieceHeads);
  float* partial = dweight ? static_cast<float*>(scratch(size_t(pieces * head_dim) * sizeof(float))) : nullptr;
  launch("head_norm_backward", stream_, head_norm_backward_kernel, dim3(unsigned(ceil_div(pieces, kHeadWarps))),
         kHeadWarps * kWarp, 0, rows, partial, kept, weight);
  if (dweight) add_pieces("head_norm_backward", dweight, partial, pieces, head_dim, stream_);
  transfer.finish();
}

}  // namespace cuda
}  // namespace dultra
