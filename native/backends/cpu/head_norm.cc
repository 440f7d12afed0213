// RMS norm of every head of queries and keys.
#include <cstring>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"

namespace dultra {
namespace cpu {

namespace {

// The weight's gradient: pieces of kPieceHeads heads are summed first, and then those in their order.
constexpr int64_t kPieceHeads = 64;

}  // namespace

void CpuBackend::do_head_norm_forward(Array x, int64_t stride, Array kept, const float* weight, int64_t m, int heads,
                                      int head_dim, float eps) {
  const int64_t width = int64_t(heads) * head_dim;
  float *rows = x.f32(), *before = kept ? kept.f32() : nullptr;
  parallel_ranges(pool_, m, width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = rows + i * stride;
      if (before) std::memcpy(before + i * width, row, size_t(width) * sizeof(float));
      for (int h = 0; h < heads; ++h, row += head_dim) kernels_->rows.rmsnorm(row, row, weight, head_dim, eps);
    }
  });
}

void CpuBackend::do_head_norm_backward(Array dx, int64_t stride, float* dweight, ConstArray kept, const float* weight,
                                       int64_t m, int heads, int head_dim, float eps) {
  const int64_t all = m * heads, pieces = (all + kPieceHeads - 1) / kPieceHeads;
  float* rows = dx.f32();
  const float* before = kept.f32();
  std::vector<float> sums(dweight ? size_t(pieces * head_dim) : 0);
  parallel_ranges(pool_, pieces, 4 * kPieceHeads * head_dim, [&](int64_t begin, int64_t end) {
    std::vector<float> dout(static_cast<size_t>(head_dim));
    for (int64_t i = begin * kPieceHeads; i < std::min(all, end * kPieceHeads); ++i) {
      float* head = rows + i / heads * stride + i % heads * head_dim;
      std::memcpy(dout.data(), head, dout.size() * sizeof(float));
      std::memset(head, 0, dout.size() * sizeof(float));  // the kernel adds
      kernels_->rows.rmsnorm_backward(head, dweight ? sums.data() + i / kPieceHeads * head_dim : nullptr, dout.data(),
                                      before + i * head_dim, weight, head_dim, eps);
    }
  });
  if (dweight == nullptr) return;
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (int j = 0; j < head_dim; ++j) dweight[j] += sums[size_t(piece * head_dim + j)];
}

}  // namespace cpu
}  // namespace dultra
