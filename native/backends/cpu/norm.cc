// RMS norm, layer norm (with the per-group modulation of AdaLN), the planner's score.
#include <cmath>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"

namespace dultra {
namespace cpu {

void CpuBackend::rmsnorm_forward(float* out, const float* x, const float* weight, int64_t m, int64_t c, float eps) {
  parallel_ranges(pool_, m, c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels_->rows.rmsnorm(out + i * c, x + i * c, weight, c, eps);
  });
}

void CpuBackend::layernorm_forward(float* out, const float* x, const float* mul, const float* add, const int32_t* group, int64_t m, int64_t c,
                                   float eps) {
  parallel_ranges(pool_, m, c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = group ? group[i] : 0;
      kernels_->rows.layernorm(out + i * c, x + i * c, mul + g * c, add + g * c, c, eps);
    }
  });
}

void CpuBackend::planner_score_forward(float* logit, const float* x, const float* mul, const float* add, const int32_t* group, const float* weight,
                                       float bias, int64_t m, int64_t c, float eps) {
  parallel_ranges(pool_, m, c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = group ? group[i] : 0;
      logit[i] = kernels_->rows.planner_score(x + i * c, mul + g * c, add + g * c, weight, c, eps) + bias;
    }
  });
}

void CpuBackend::rmsnorm_backward(float* dx, float* dweight, const float* dout, const float* x, const float* weight, int64_t m, int64_t c,
                                  float eps) {
  for (int64_t i = 0; i < m; ++i, x += c, dx += c, dout += c) {
    double squares = 0, dot = 0;
    for (int64_t j = 0; j < c; ++j) {
      squares += double(x[j]) * x[j];
      dot += double(dout[j]) * weight[j] * x[j];
    }
    const double scale = 1 / std::sqrt(squares / double(c) + eps);
    dot *= scale * scale / double(c);
    for (int64_t j = 0; j < c; ++j) {
      dx[j] += float(scale * (double(dout[j]) * weight[j] - x[j] * dot));
      if (dweight) dweight[j] += float(dout[j] * x[j] * scale);
    }
  }
}

void CpuBackend::layernorm_backward(float* dx, float* dmul, float* dadd, const float* dout, const float* x, const float* mul, const int32_t* group,
                                    int64_t m, int64_t c, float eps) {
  for (int64_t i = 0; i < m; ++i, x += c, dx += c, dout += c) {
    const int64_t g = (group ? group[i] : 0) * c;
    double mean = 0, variance = 0, sum = 0, dot = 0;
    for (int64_t j = 0; j < c; ++j) mean += double(x[j]) / double(c);
    for (int64_t j = 0; j < c; ++j) variance += (x[j] - mean) * (x[j] - mean) / double(c);
    const double scale = 1 / std::sqrt(variance + eps);
    for (int64_t j = 0; j < c; ++j) {
      sum += double(dout[j]) * mul[g + j] / double(c);
      dot += double(dout[j]) * mul[g + j] * (x[j] - mean) * scale / double(c);
    }
    for (int64_t j = 0; j < c; ++j) {
      const double normed = (x[j] - mean) * scale;
      dx[j] += float(scale * (double(dout[j]) * mul[g + j] - sum - normed * dot));
      if (dmul) dmul[g + j] += float(dout[j] * normed);
      if (dadd) dadd[g + j] += dout[j];
    }
  }
}

void CpuBackend::planner_score_backward(float* dx, float* dmul, float* dadd, float* dweight, float* dbias, const float* dlogit, const float* x,
                                        const float* mul, const float* add, const int32_t* group, const float* weight, int64_t m, int64_t c,
                                        float eps) {
  std::vector<float> dout(static_cast<size_t>(c)), normed(static_cast<size_t>(c));
  for (int64_t i = 0; i < m; ++i) {
    const int64_t g = group ? group[i] : 0;
    for (int64_t j = 0; j < c; ++j) dout[size_t(j)] = dlogit[i] * weight[j];
    if (dweight) {
      kernels_->rows.layernorm(normed.data(), x + i * c, mul + g * c, add + g * c, c, eps);
      for (int64_t j = 0; j < c; ++j) dweight[j] += dlogit[i] * normed[size_t(j)];
    }
    if (dbias) *dbias += dlogit[i];
    layernorm_backward(dx + i * c, dmul ? dmul + g * c : nullptr, dadd ? dadd + g * c : nullptr, dout.data(), x + i * c, mul + g * c, nullptr, 1, c,
                       eps);
  }
}

}  // namespace cpu
}  // namespace dultra
