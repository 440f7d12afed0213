// The optimiser's operations.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"

namespace dultra {
namespace cpu {

double CpuBackend::sum_squares(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double(x[i]) * x[i];
  return sum;
}

void CpuBackend::adamw_step(const AdamWArgs& a) {
  check_argument(a.step >= 1, "step: expected at least 1, got " + std::to_string(a.step));
  const double correction1 = 1 - std::pow(a.beta1, double(a.step)), correction2 = std::sqrt(1 - std::pow(a.beta2, double(a.step)));
  const float keep = float(1 - a.lr * a.weight_decay), step_size = float(a.lr / correction1), eps = float(a.eps);
  const float beta1 = float(a.beta1), beta2 = float(a.beta2), rest1 = float(1 - a.beta1), rest2 = float(1 - a.beta2);
  const float scale = float(a.gradient_scale), inverse2 = float(1 / correction2);
  for (int64_t i = 0; i < a.n; ++i) {
    const float g = a.gradient[i] * scale;
    const float m = a.exp_avg[i] = beta1 * a.exp_avg[i] + rest1 * g;
    const float v = a.exp_avg_sq[i] = beta2 * a.exp_avg_sq[i] + rest2 * g * g;
    a.parameter[i] = a.parameter[i] * keep - step_size * m / (std::sqrt(v) * inverse2 + eps);
  }
}

void CpuBackend::fill_zero(float* x, int64_t n) {
  if (n > 0) std::memset(x, 0, size_t(n) * sizeof(float));
}

}  // namespace cpu
}  // namespace dultra
