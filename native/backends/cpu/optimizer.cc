// The optimiser's operations.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"

namespace dultra {
namespace cpu {

namespace {

constexpr int64_t kPiece = 8192;  // numbers of a task; the pieces of a sum do not depend on the number of threads

constexpr int64_t pieces(int64_t n) { return (n + kPiece - 1) / kPiece; }

}  // namespace

double CpuBackend::sum_squares(const float* x, int64_t n) {
  std::vector<double> sums(static_cast<size_t>(pieces(n)));
  parallel_ranges(pool_, pieces(n), kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sums[size_t(i)] = kernels_->rows.sum_squares(x + i * kPiece, std::min(kPiece, n - i * kPiece));
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

void CpuBackend::adamw_step(const AdamWArgs& a) {
  check_argument(a.step >= 1, "step: expected at least 1, got " + std::to_string(a.step));
  AdamWPiece whole{};
  whole.scale = float(a.gradient_scale);
  whole.beta1 = float(a.beta1);
  whole.rest1 = float(1 - a.beta1);
  whole.beta2 = float(a.beta2);
  whole.rest2 = float(1 - a.beta2);
  whole.keep = float(1 - a.lr * a.weight_decay);
  whole.step = float(a.lr / (1 - std::pow(a.beta1, double(a.step))));
  whole.correction = float(std::sqrt(1 - std::pow(a.beta2, double(a.step))));
  whole.eps = float(a.eps);
  parallel_ranges(pool_, pieces(a.n), 2 * kPiece, [&](int64_t begin, int64_t end) {
    begin *= kPiece;
    AdamWPiece piece = whole;
    piece.parameter = a.parameter + begin;
    piece.gradient = a.gradient + begin;
    piece.exp_avg = a.exp_avg + begin;
    piece.exp_avg_sq = a.exp_avg_sq + begin;
    piece.n = std::min(a.n, end * kPiece) - begin;
    kernels_->rows.adamw(&piece);
  });
}

void CpuBackend::fill_zero(float* x, int64_t n) {
  if (n > 0) std::memset(x, 0, size_t(n) * sizeof(float));
}

}  // namespace cpu
}  // namespace dultra
