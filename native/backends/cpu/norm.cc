// RMS norm, layer norm (with the per-group modulation of AdaLN), the planner's score.
#include <cstring>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"

namespace dultra {
namespace cpu {

namespace {

// Many rows add to the gradient of one weight. Of an RMS norm, pieces of kPieceRows rows are summed first, and then
// those in their order. A layer norm's weights come in groups, any number of them, so there the rows' own gradients
// come first, and then threads divide the columns, every sum over ascending rows: row(i, j, n) adds what row i gives
// columns j .. j + n.
constexpr int64_t kPieceRows = 64;
constexpr int64_t kNormColumns = 64;

template <class Row>
void add_by_columns(ThreadPool& pool, int64_t m, int64_t c, const Row& row) {
  parallel_ranges(pool, (c + kNormColumns - 1) / kNormColumns, m * kNormColumns, [&](int64_t begin, int64_t end) {
    begin *= kNormColumns;
    const int64_t n = std::min(c, end * kNormColumns) - begin;
    for (int64_t i = 0; i < m; ++i) row(i, begin, n);
  });
}

}  // namespace

void CpuBackend::do_rmsnorm_forward(Array out_array, const float* x, const float* weight, int64_t m, int64_t c,
                                    float eps) {
  float* out = out_array.f32();
  parallel_ranges(pool_, m, c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels_->rows.rmsnorm(out + i * c, x + i * c, weight, c, eps);
  });
}

void CpuBackend::do_rmsnorm_copy_forward(Array out_array, float* copied, const float* x, const int32_t* index,
                                         const float* weight, int64_t m, int64_t c, float eps) {
  float* out = out_array.f32();
  parallel_ranges(pool_, m, 2 * c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(copied + i * c, x + (index ? index[i] : i) * c, size_t(c) * sizeof(float));
      kernels_->rows.rmsnorm(out + i * c, copied + i * c, weight, c, eps);
    }
  });
}

void CpuBackend::do_layernorm_forward(float* out, const float* x, const float* mul, const float* add,
                                      const int32_t* group, int64_t m, int64_t c, float eps) {
  parallel_ranges(pool_, m, c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = group ? group[i] : 0;
      kernels_->rows.layernorm(out + i * c, x + i * c, mul + g * c, add + g * c, c, eps);
    }
  });
}

void CpuBackend::do_planner_score_forward(float* logit, const float* x, const float* mul, const float* add,
                                          const int32_t* group, const float* weight, float bias, int64_t m, int64_t c,
                                          float eps) {
  parallel_ranges(pool_, m, c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = group ? group[i] : 0;
      logit[i] = kernels_->rows.planner_score(x + i * c, mul + g * c, add + g * c, weight, c, eps) + bias;
    }
  });
}

void CpuBackend::do_rmsnorm_backward(float* dx, float* dweight, const float* dout, const float* x, const float* weight,
                                     int64_t m, int64_t c, float eps) {
  const int64_t pieces = (m + kPieceRows - 1) / kPieceRows;
  std::vector<float> sums(dweight ? static_cast<size_t>(pieces * c) : 0);
  parallel_ranges(pool_, pieces, 4 * kPieceRows * c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kPieceRows; i < std::min(m, end * kPieceRows); ++i)
      kernels_->rows.rmsnorm_backward(dx + i * c, dweight ? sums.data() + i / kPieceRows * c : nullptr, dout + i * c,
                                      x + i * c, weight, c, eps);
  });
  if (dweight == nullptr) return;
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (int64_t j = 0; j < c; ++j) dweight[j] += sums[size_t(piece * c + j)];
}

void CpuBackend::do_layernorm_backward(float* dx, float* dmul, float* dadd, const float* dout, const float* x,
                                       const float* mul, const int32_t* group, int64_t m, int64_t c, float eps) {
  std::vector<Moments> moments(static_cast<size_t>(m));
  const auto first = [&](int64_t i) { return group ? group[i] * c : 0; };
  parallel_ranges(pool_, m, 2 * c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      kernels_->rows.layernorm_backward(dx + i * c, &moments[size_t(i)], dout + i * c, x + i * c, mul + first(i), c,
                                        eps);
  });
  if (dmul == nullptr && dadd == nullptr) return;
  add_by_columns(pool_, m, c, [&](int64_t i, int64_t j, int64_t n) {
    kernels_->rows.norm_weights_backward(dmul ? dmul + first(i) + j : nullptr, dadd ? dadd + first(i) + j : nullptr,
                                         dout + i * c + j, x + i * c + j, &moments[size_t(i)], n);
  });
}

void CpuBackend::do_planner_score_backward(float* dx, float* dmul, float* dadd, float* dweight, float* dbias,
                                           const float* dlogit, const float* x, const float* mul, const float* add,
                                           const int32_t* group, const float* weight, int64_t m, int64_t c, float eps) {
  std::vector<Moments> moments(static_cast<size_t>(m));
  const auto first = [&](int64_t i) { return group ? group[i] * c : 0; };
  parallel_ranges(pool_, m, 2 * c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      kernels_->rows.planner_score_backward(dx + i * c, &moments[size_t(i)], dlogit[i], x + i * c, mul + first(i),
                                            weight, c, eps);
  });
  if (dbias) {
    double sum = 0;
    for (int64_t i = 0; i < m; ++i) sum += double(dlogit[i]);
    *dbias += float(sum);
  }
  if (dmul == nullptr && dadd == nullptr && dweight == nullptr) return;
  add_by_columns(pool_, m, c, [&](int64_t i, int64_t j, int64_t n) {
    const int64_t g = first(i) + j;
    kernels_->rows.planner_weights_backward(dmul ? dmul + g : nullptr, dadd ? dadd + g : nullptr,
                                            dweight ? dweight + j : nullptr, dlogit[i], x + i * c + j,
                                            &moments[size_t(i)], mul + g, add + g, weight + j, n);
  });
}

}  // namespace cpu
}  // namespace dultra
