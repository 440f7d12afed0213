// RMS norm, layer norm (with the per-group modulation of AdaLN), the planner's score.
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

}  // namespace cpu
}  // namespace dultra
