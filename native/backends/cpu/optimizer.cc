// The optimiser's operations.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "ops/adamw.h"
#include "ops/fixed_point.h"

namespace dultra {
namespace cpu {

namespace {

constexpr int64_t kPiece = 8192;  // numbers of a task; the pieces of a sum do not depend on the number of threads

constexpr int64_t kNarrow = 512;  // numbers that are widened at a time where the state is narrower than fp32

constexpr int64_t pieces(int64_t n) { return (n + kPiece - 1) / kPiece; }

// Numbers [begin, end) of a step whose state is narrower than fp32: widened, updated by the one inner loop, narrowed
// again.
void adamw_narrow(const RowKernels& kernels, const AdamWArgs& a, AdamWPiece piece, int64_t begin, int64_t end) {
  float parameter[kNarrow], exp_avg[kNarrow], exp_avg_sq[kNarrow];
  const bool narrow = a.moments == DType::kBF16;
  for (int64_t i = begin; i < end; i += kNarrow) {
    const int64_t n = std::min(kNarrow, end - i);
    if (!a.parameter)
      for (int64_t j = 0; j < n; ++j) parameter[j] = join_float(a.high[i + j], a.low[i + j]);
    auto* m = static_cast<uint16_t*>(a.exp_avg) + i;
    auto* v = static_cast<uint16_t*>(a.exp_avg_sq) + i;
    for (int64_t j = 0; narrow && j < n; ++j) {
      exp_avg[j] = bf16_to_f32(m[j]);
      exp_avg_sq[j] = bf16_to_f32(v[j]);
    }
    piece.parameter = a.parameter ? a.parameter + i : parameter;
    piece.gradient = a.gradient + i;
    piece.exp_avg = narrow ? exp_avg : static_cast<float*>(a.exp_avg) + i;
    piece.exp_avg_sq = narrow ? exp_avg_sq : static_cast<float*>(a.exp_avg_sq) + i;
    piece.n = n;
    kernels.adamw(&piece);
    if (!a.parameter)
      for (int64_t j = 0; j < n; ++j) {
        const SplitFloat split = split_float(parameter[j]);
        a.high[i + j] = split.high;
        a.low[i + j] = split.low;
      }
    rng::Words words{};
    for (int64_t j = 0; narrow && j < n; ++j) {
      const int64_t index = a.first + i + j;
      if (j == 0 || index % 4 == 0) words = rng::moment_words(a.seed, a.stream, uint32_t(a.step), uint64_t(index) / 4);
      m[j] = f32_to_bf16_stochastic(exp_avg[j], words.w[index % 4] & 0xffffu);
      v[j] = f32_to_bf16_stochastic(exp_avg_sq[j], words.w[index % 4] >> 16);
    }
  }
}

}  // namespace

double CpuBackend::do_sum_squares(const float* x, int64_t n) {
  std::vector<double> sums(static_cast<size_t>(pieces(n)));
  parallel_ranges(pool_, pieces(n), kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      sums[size_t(i)] = kernels_->rows.sum_squares(x + i * kPiece, std::min(kPiece, n - i * kPiece));
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

void CpuBackend::do_adamw_step(const AdamWArgs& a) {
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
    end = std::min(a.n, end * kPiece);
    if (!a.parameter || a.moments == DType::kBF16) return adamw_narrow(kernels_->rows, a, whole, begin, end);
    AdamWPiece piece = whole;
    piece.parameter = a.parameter + begin;
    piece.gradient = a.gradient + begin;
    piece.exp_avg = static_cast<float*>(a.exp_avg) + begin;
    piece.exp_avg_sq = static_cast<float*>(a.exp_avg_sq) + begin;
    piece.n = end - begin;
    kernels_->rows.adamw(&piece);
  });
}

void CpuBackend::do_add_numbers(float* sum, const float* x, int64_t n) {
  parallel_ranges(pool_, pieces(n), kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kPiece; i < std::min(n, end * kPiece); ++i) sum[i] += x[i];
  });
}

void CpuBackend::do_add_fixed(int64_t* sum, float* largest, const float* x, int64_t n) {
  std::vector<uint32_t> magnitudes(size_t(pieces(n)), 0);
  parallel_ranges(pool_, pieces(n), kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      uint32_t most = 0;
      for (int64_t i = piece * kPiece; i < std::min(n, (piece + 1) * kPiece); ++i) {
        most = std::max(most, magnitude_bits(x[i]));
        sum[i] = add_to_fixed(sum[i], x[i]);
      }
      magnitudes[size_t(piece)] = most;
    }
  });
  uint32_t most = magnitude_bits(*largest);
  for (uint32_t bits : magnitudes) most = std::max(most, bits);
  std::memcpy(largest, &most, 4);
}

void CpuBackend::do_add_fixed_sums(int64_t* sum, const int64_t* x, int64_t n) {
  parallel_ranges(pool_, pieces(n), kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kPiece; i < std::min(n, end * kPiece); ++i) sum[i] = add_units(sum[i], x[i]);
  });
}

void CpuBackend::do_read_fixed(float* x, const int64_t* sum, int64_t n) {
  parallel_ranges(pool_, pieces(n), kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kPiece; i < std::min(n, end * kPiece); ++i) x[i] = fixed_to_f32(sum[i]);
  });
}

}  // namespace cpu
}  // namespace dultra
