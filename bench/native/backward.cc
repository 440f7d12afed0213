// Microbenchmarks of what training adds, at the sizes of a small model: the two products of a linear layer's backward
// beside its forward, attention's backward beside its forward, and what follows each optimiser step. One JSON line per
// measurement; contenders alternate, times are in microseconds, lower deciles, because what else a machine does only
// adds to them.
//   dultra_bench_backward [threads] [isa]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "backends/cpu/cpu_backend.h"

namespace {

using Clock = std::chrono::steady_clock;

std::vector<float> normals(size_t n) {
  uint64_t state = n;
  std::vector<float> out(n);
  for (float& x : out) {
    x = -6;
    for (int i = 0; i < 12; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      x += float(state >> 40) * 0x1p-24f;
    }
  }
  return out;
}

// Lower deciles of the calls' times, one call of each in turn.
std::vector<double> deciles(const std::vector<std::function<void()>>& calls) {
  std::vector<std::vector<double>> times(calls.size());
  const auto end = Clock::now() + std::chrono::milliseconds(500);
  for (int i = 0; i < 8 || (Clock::now() < end && i < 2000); ++i)
    for (size_t c = 0; c < calls.size(); ++c) {
      const auto start = Clock::now();
      calls[c]();
      if (i >= 2) times[c].push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    }
  std::vector<double> out;
  for (std::vector<double>& of_call : times) {
    std::nth_element(of_call.begin(), of_call.begin() + std::ptrdiff_t(of_call.size() / 10), of_call.end());
    out.push_back(of_call[of_call.size() / 10]);
  }
  return out;
}

void linear(dultra::Backend& backend, const std::string& common, int64_t m, int64_t n, int64_t k) {
  const std::vector<float> x = normals(size_t(m * k)), w = normals(size_t(n * k)), dy = normals(size_t(m * n));
  std::vector<float> y(dy.size()), dx(x.size()), dw(w.size());
  const auto matrix = backend.make_matrix({{w.data(), dultra::DType::kF32, n}}, k, dultra::DType::kF32);
  const std::vector<double> us =
      deciles({[&] { backend.linear_forward(y.data(), n, x.data(), m, *matrix, nullptr, false); },
               [&] { backend.linear_backward_input(dx.data(), dy.data(), n, w.data(), m, n, k, false); },
               [&] { backend.linear_backward_input(dx.data(), dy.data(), n, *matrix, 0, n, m, false); },
               [&] { backend.linear_backward_weight(dw.data(), nullptr, dy.data(), n, x.data(), m, n, k); }});
  const double flop = 2.0 * double(m) * double(n) * double(k) * 1e-3;
  std::printf(
      "{\"op\":\"linear\",%s,\"M\":%d,\"N\":%d,\"K\":%d,\"forward_gflops\":%.1f,\"input_gflops\":%.1f,"
      "\"packed_input_gflops\":%.1f,\"weight_gflops\":%.1f,\"input_speed\":%.2f,\"packed_input_speed\":%.2f,"
      "\"weight_speed\":%.2f}\n",
      common.c_str(), int(m), int(n), int(k), flop / us[0], flop / us[1], flop / us[2], flop / us[3], us[0] / us[1],
      us[0] / us[2], us[0] / us[3]);
}

void attention(dultra::Backend& backend, const std::string& common, int batch, int t, int heads, int d) {
  const int64_t width = int64_t(heads) * d, m = int64_t(batch) * t;
  const std::vector<float> q = normals(size_t(m * width)), kv = normals(size_t(m * 2 * width)),
                           dout = normals(size_t(m * width));
  std::vector<float> out(q.size()), log_sum(size_t(m * heads)), dq(q.size()), dkv(kv.size());
  std::vector<int32_t> offsets;
  for (int b = 0; b <= batch; ++b) offsets.push_back(b * t);
  dultra::AttentionArgs a{};
  a.q = q.data();
  a.k = kv.data();
  a.v = kv.data() + width;
  a.out = out.data();
  a.log_sum = log_sum.data();
  a.q_stride = a.out_stride = width;
  a.kv_stride = 2 * width;
  a.heads = a.kv_heads = heads;
  a.head_dim = d;
  a.scale = 1 / std::sqrt(float(d));
  a.batch = batch;
  a.q_offsets = a.k_offsets = offsets.data();
  a.mask = dultra::MaskKind::kBidirectional;
  const dultra::AttentionGradArgs grad{a, dout.data(), dq.data(), dkv.data(), dkv.data() + width};
  const std::vector<double> us =
      deciles({[&] { backend.attention_forward(a); }, [&] { backend.attention_backward(grad); }});
  const double flop = 4.0 * double(m) * t * double(width) * 1e-3;
  std::printf(
      "{\"op\":\"attention\",%s,\"B\":%d,\"T\":%d,\"H\":%d,\"D\":%d,\"forward_us\":%.1f,\"backward_us\":%.1f,\"forward_"
      "gflops\":%.1f,"
      "\"backward_gflops\":%.1f,\"backward_time\":%.2f}\n",
      common.c_str(), batch, t, heads, d, us[0], us[1], flop / us[0], 2.5 * flop / us[1], us[1] / us[0]);
}

void rows(dultra::Backend& backend, const std::string& common, int64_t m, int64_t c) {
  const std::vector<float> x = normals(size_t(m * c)), weight = normals(size_t(c)), dout = normals(size_t(m * c)),
                           half = normals(size_t(m * c / 2));
  std::vector<float> out(x.size()), dx(x.size()), dweight(weight.size()), dadd(weight.size());
  const std::vector<double> us = deciles(
      {[&] { backend.rmsnorm_forward(out.data(), x.data(), weight.data(), m, c, 1e-5f); },
       [&] { backend.rmsnorm_backward(dx.data(), dweight.data(), dout.data(), x.data(), weight.data(), m, c, 1e-5f); },
       [&] {
         backend.layernorm_backward(dx.data(), dweight.data(), dadd.data(), dout.data(), x.data(), weight.data(),
                                    nullptr, m, c, 1e-4f);
       },
       [&] { backend.swiglu_forward(out.data(), x.data(), m, c / 2); },
       [&] { backend.swiglu_backward(out.data(), half.data(), x.data(), m, c / 2); }});
  std::printf(
      "{\"op\":\"rows\",%s,\"M\":%d,\"C\":%d,\"rmsnorm_us\":%.1f,\"rmsnorm_backward_us\":%.1f,\"layernorm_backward_"
      "us\":%.1f,"
      "\"swiglu_us\":%.1f,\"swiglu_backward_us\":%.1f}\n",
      common.c_str(), int(m), int(c), us[0], us[1], us[2], us[3], us[4]);
}

void log_prob(dultra::Backend& backend, const std::string& common, int64_t m, int64_t vocab) {
  const std::vector<float> logits = normals(size_t(m * vocab)), d = normals(size_t(m));
  std::vector<float> work(logits), log_prob(d.size()), confidence(d.size()), max_prob(d.size()), entropy(d.size());
  std::vector<int32_t> tokens(size_t(m), 3), token(tokens);
  std::vector<uint8_t> finite(static_cast<size_t>(m));
  dultra::SampleArgs a{};
  a.logits = logits.data();
  a.rows = m;
  a.vocab = vocab;
  a.excluded_token = -1;
  a.given = tokens.data();
  a.token = token.data();
  a.log_prob = log_prob.data();
  a.confidence = confidence.data();
  a.max_prob = max_prob.data();
  a.entropy = entropy.data();
  a.finite = finite.data();
  const std::vector<double> us =
      deciles({[&] { backend.sample_forward(a); }, [&] { std::copy(logits.begin(), logits.end(), work.begin()); },
               [&] {
                 std::copy(logits.begin(), logits.end(), work.begin());
                 backend.log_prob_backward(work.data(), tokens.data(), d.data(), m, vocab, 0, -1);
               }});
  std::printf("{\"op\":\"log_prob\",%s,\"M\":%d,\"V\":%d,\"forward_us\":%.1f,\"backward_us\":%.1f}\n", common.c_str(),
              int(m), int(vocab), us[0], us[2] - us[1]);
}

// After an optimiser step: `count` matrices of (n, k).
void step(dultra::Backend& backend, const std::string& common, int64_t n, int64_t k, int count) {
  const size_t size = size_t(n * k);
  std::vector<float> w = normals(size), m(size), v(size, 1.0f);
  const std::vector<float> g = normals(size);
  const auto matrix = backend.make_matrix({{w.data(), dultra::DType::kF32, n}}, k, dultra::DType::kF32);
  dultra::AdamWArgs adamw{};
  adamw.parameter = w.data();
  adamw.gradient = g.data();
  adamw.exp_avg = m.data();
  adamw.exp_avg_sq = v.data();
  adamw.n = int64_t(size);
  adamw.step = 5;
  adamw.lr = 1e-3;
  adamw.beta1 = 0.9;
  adamw.beta2 = 0.99;
  adamw.eps = 1e-8;
  adamw.weight_decay = 0.1;
  adamw.gradient_scale = 1;
  double sum = 0;
  const auto repeat = [count](const std::function<void()>& call) {
    return [count, call] {
      for (int i = 0; i < count; ++i) call();
    };
  };
  const std::vector<double> us = deciles({repeat([&] {
                                            backend.update_matrix(*matrix, {{w.data(), dultra::DType::kF32, n}});
                                          }),
                                          repeat([&] { backend.adamw_step(adamw); }),
                                          repeat([&] { sum += backend.sum_squares(g.data(), int64_t(size)); })});
  std::printf(
      "{\"op\":\"step\",%s,\"parameters\":%d,\"update_matrix_us\":%.1f,\"adamw_us\":%.1f,\"sum_squares_us\":%.1f}\n",
      common.c_str(), int(size) * count, us[0], us[1], us[2]);
  if (!(sum > 0)) std::abort();
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  dultra::cpu::CpuBackend backend(threads, argc > 2 ? argv[2] : "", dultra::Compute::kF32);
  const std::string common = "\"isa\":\"" + std::string(backend.isa()) + "\",\"threads\":" + std::to_string(threads);
  for (int64_t m : {500, 2000, 5000}) {
    linear(backend, common, m, 192, 64);
    linear(backend, common, m, 64, 192);
    linear(backend, common, m, 64, 64);
    linear(backend, common, m, 129, 64);
  }
  linear(backend, common, 2000, 768, 256);
  linear(backend, common, 2000, 256, 768);
  attention(backend, common, 40, 24, 4, 16);
  attention(backend, common, 20, 48, 4, 16);
  attention(backend, common, 10, 64, 4, 16);
  attention(backend, common, 2, 128, 4, 32);
  attention(backend, common, 1, 512, 1, 64);
  rows(backend, common, 2000, 64);
  rows(backend, common, 2000, 384);
  log_prob(backend, common, 500, 129);
  step(backend, common, 192, 64, 16);
  return 0;
}
