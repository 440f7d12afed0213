// A mixture of experts beside an MLP of the width that a token takes: the choice, the experts' products, the sum of
// their outputs. One JSON line: lower deciles of both in microseconds, contenders alternating, the experts that some
// row took, and how much longer the mixture takes for each weight that is read.
//   dultra_bench_experts [threads] [isa]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "backends/cpu/cpu_backend.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kRows = 32, kHidden = 2048, kWidth = 1024;  // LLaDA-MoE-7B-A1B's layer, a block of 32 positions
constexpr int kExperts = 64, kTaken = 8;

std::vector<float> uniforms(size_t n, uint64_t state) {
  std::vector<float> out(n);
  for (float& x : out) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    x = float(state >> 40) * 0x1p-23f - 1.0f;
  }
  return out;
}

double microseconds(const std::function<void()>& call) {
  const auto start = Clock::now();
  call();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

double decile(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 10];
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  dultra::cpu::CpuBackend backend(threads, argc > 2 ? argv[2] : "", dultra::Compute::kF32);
  // Every expert has the same numbers in memory of its own: what they are does not change the time.
  const std::vector<float> x = uniforms(size_t(kRows * kHidden), 1), w = uniforms(size_t(2 * kWidth * kHidden), 2),
                           logits = uniforms(size_t(kRows * kExperts), 3);
  const dultra::MatrixPart gate_up_part{w.data(), dultra::DType::kF32, 2 * kWidth},
      down_part{w.data(), dultra::DType::kF32, kHidden};
  const auto gate_up = backend.make_expert_matrix(std::vector<dultra::MatrixPart>(kExperts, gate_up_part), kHidden,
                                                  dultra::DType::kBF16, kExperts);
  const auto down = backend.make_expert_matrix(std::vector<dultra::MatrixPart>(kExperts, down_part), kWidth,
                                               dultra::DType::kBF16, kExperts);
  const auto router = backend.make_matrix({{w.data(), dultra::DType::kF32, kExperts}}, kHidden, dultra::DType::kF32);
  const auto wide_gate_up =
      backend.make_matrix(std::vector<dultra::MatrixPart>(kTaken, gate_up_part), kHidden, dultra::DType::kBF16);
  std::vector<dultra::MatrixPart> wide_parts;
  const std::vector<float> wide = uniforms(size_t(kHidden * kTaken * kWidth), 4);
  wide_parts.push_back({wide.data(), dultra::DType::kF32, kHidden});
  const auto wide_down = backend.make_matrix(wide_parts, kTaken * kWidth, dultra::DType::kBF16);

  const int64_t pairs = kRows * kTaken;
  std::vector<int32_t> expert(static_cast<size_t>(pairs)), row(expert), place(expert), offset(kExperts + 1);
  std::vector<float> own_logits(logits), weight(static_cast<size_t>(pairs)), hidden(size_t(pairs * 2 * kWidth)),
      product(size_t(pairs * kWidth)), y(size_t(pairs * kHidden)), out(x.size());
  dultra::RouteArgs route{};
  route.logits = logits.data();
  route.m = kRows;
  route.experts = kExperts;
  route.per_row = kTaken;
  route.groups = route.groups_kept = 1;
  route.scale = 1;
  route.expert = expert.data();
  route.weight = weight.data();
  const auto mixture = [&] {
    backend.linear_forward(own_logits.data(), kExperts, x.data(), kRows, *router, nullptr, false);
    backend.route_forward(route);
    backend.sort_by_expert(row.data(), offset.data(), place.data(), expert.data(), kRows, kTaken, kExperts);
    const dultra::ExpertRows rows{row.data(), offset.data(), pairs, kExperts};
    backend.experts_forward(hidden.data(), x.data(), false, rows, *gate_up);
    backend.swiglu_forward(product.data(), hidden.data(), pairs, kWidth);
    backend.experts_forward(y.data(), product.data(), true, rows, *down);
    backend.combine_experts(out.data(), y.data(), place.data(), weight.data(), kRows, kTaken, kHidden);
  };
  const auto mlp = [&] {
    backend.linear_forward(hidden.data(), 2 * kTaken * kWidth, x.data(), kRows, *wide_gate_up, nullptr, false);
    backend.swiglu_forward(product.data(), hidden.data(), kRows, kTaken * kWidth);
    backend.linear_forward(out.data(), kHidden, product.data(), kRows, *wide_down, nullptr, true);
  };
  std::vector<double> of_mixture, of_mlp;
  const auto end = Clock::now() + std::chrono::seconds(4);
  for (int i = 0; i < 12 || Clock::now() < end; ++i) {
    of_mixture.push_back(microseconds(mixture));
    of_mlp.push_back(microseconds(mlp));
  }
  int read = 0;
  for (int e = 0; e < kExperts; ++e) read += offset[size_t(e) + 1] > offset[size_t(e)];
  const double us = decile(of_mixture), mlp_us = decile(of_mlp);
  std::printf(
      "{\"isa\":\"%s\",\"threads\":%d,\"rows\":%d,\"experts\":%d,\"taken\":%d,\"read\":%d,\"us\":%.0f,\"mlp_us\":%.0f,"
      "\"runs\":%zu,\"per_weight\":%.3f}\n",
      backend.isa(), threads, int(kRows), kExperts, kTaken, read, us, mlp_us, of_mixture.size(),
      us / mlp_us * kTaken / read);
}
