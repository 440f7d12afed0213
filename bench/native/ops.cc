// Microbenchmarks of attention and of token sampling, the sampler beside a plain scan of the same rows. One JSON line per
// measurement: median and spread of the time of a call in microseconds.
//   dultra_bench_ops [threads] [isa]
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

using dultra::AttentionArgs;
using dultra::SampleArgs;
using Clock = std::chrono::steady_clock;

struct Timing {
  double median, low, high;  // microseconds; the middle 80 %
};

double microseconds(const std::function<void()>& call) {
  const auto start = Clock::now();
  call();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

Timing summary(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  const size_t n = times.size();
  return {times[n / 2], times[n / 10], times[n - 1 - n / 10]};
}

float pseudo_normal(uint64_t& state) {
  float sum = -6;
  for (int i = 0; i < 12; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    sum += float(state >> 40) * 0x1p-24f;
  }
  return sum;
}

std::vector<float> normals(size_t n, float scale) {
  uint64_t state = n;
  std::vector<float> out(n);
  for (float& x : out) x = pseudo_normal(state) * scale;
  return out;
}

void attention(dultra::Backend& backend, const std::string& common, int t, int heads, int d) {
  const int64_t width = int64_t(heads) * d;
  const std::vector<float> q = normals(size_t(t * width), 1), kv = normals(size_t(t * 2 * width), 1);
  std::vector<float> out(q.size());
  const int32_t offsets[2] = {0, t};
  AttentionArgs a{};
  a.q = q.data();
  a.k = kv.data();
  a.v = kv.data() + width;
  a.out = out.data();
  a.q_stride = a.out_stride = width;
  a.kv_stride = 2 * width;
  a.heads = a.kv_heads = heads;
  a.head_dim = d;
  a.scale = 1 / std::sqrt(float(d));
  a.batch = 1;
  a.q_offsets = a.k_offsets = offsets;
  a.mask = dultra::MaskKind::kBidirectional;
  std::vector<double> times;
  const auto end = Clock::now() + std::chrono::milliseconds(700);
  for (int i = 0; i < 5 || (Clock::now() < end && i < 2000); ++i) {
    const double time = microseconds([&] { backend.attention_forward(a); });
    if (i >= 2) times.push_back(time);
  }
  const Timing timing = summary(times);
  const double flop = 4.0 * t * t * double(width);
  std::printf("{\"op\":\"attention\",%s,\"T\":%d,\"H\":%d,\"D\":%d,\"us\":%.1f,\"us_p10\":%.1f,\"us_p90\":%.1f,\"gflops\":%.1f}\n", common.c_str(), t,
              heads, d, timing.median, timing.low, timing.high, flop / timing.median * 1e-3);
}

// The sampler written down plainly: a softmax with std::exp, and at T > 0 noise -log(-log u) for every token.
int32_t plain_scan(const float* x, int64_t vocab, float temperature, const dultra::rng::Coordinates& at, float* log_prob) {
  float top = x[0];
  for (int64_t v = 1; v < vocab; ++v) top = std::max(top, x[v]);
  float sum = 0;
  for (int64_t v = 0; v < vocab; ++v) sum += std::exp(x[v] - top);
  int32_t token = 0;
  double best = -INFINITY;
  for (int64_t v = 0; v < vocab; ++v) {
    double score = x[v];
    if (temperature > 0) {
      uint32_t high, low;
      dultra::rng::token_words(at, uint32_t(v), &high, &low);
      score += temperature * -std::log(-std::log(dultra::rng::uniform_from_words(high, low)));
    }
    if (score > best) {
      best = score;
      token = int32_t(v);
    }
  }
  *log_prob = x[token] - top - std::log(sum);
  return token;
}

void sampling(dultra::Backend& backend, const std::string& common, float temperature) {
  const int64_t vocab = 126464, rows = 32, plain_rows = 2;
  const std::vector<float> logits = normals(size_t(rows * vocab), 2.5f);
  std::vector<dultra::rng::Coordinates> at;
  for (uint32_t i = 0; i < rows; ++i) at.push_back({1, 0, 0, i});
  std::vector<int32_t> token(rows), plain_token(plain_rows);
  std::vector<float> log_prob(rows), confidence(rows), max_prob(rows), entropy(rows), plain_log_prob(plain_rows);
  std::vector<uint8_t> finite(rows);
  SampleArgs a{};
  a.logits = logits.data();
  a.rows = rows;
  a.vocab = vocab;
  a.temperature = temperature;
  a.excluded_token = -1;
  a.at = at.data();
  a.token = token.data();
  a.log_prob = log_prob.data();
  a.confidence = confidence.data();
  a.max_prob = max_prob.data();
  a.entropy = entropy.data();
  a.finite = finite.data();
  std::vector<double> ours, plain;  // per row, alternating
  for (int i = 0; i < 32; ++i) {
    const double mine = microseconds([&] { backend.sample_forward(a); }) / double(rows);
    const double other = microseconds([&] {
                           for (int64_t r = 0; r < plain_rows; ++r)
                             plain_token[size_t(r)] =
                                 plain_scan(&logits[size_t(r * vocab)], vocab, temperature, at[size_t(r)], &plain_log_prob[size_t(r)]);
                         }) /
                         double(plain_rows);
    if (i < 2) continue;
    ours.push_back(mine);
    plain.push_back(other);
  }
  bool agree = true;
  for (size_t r = 0; r < size_t(plain_rows); ++r) agree = agree && token[r] == plain_token[r] && std::fabs(log_prob[r] - plain_log_prob[r]) < 1e-3;
  const Timing mine = summary(ours), other = summary(plain);
  std::printf(
      "{\"op\":\"sample\",%s,\"V\":%lld,\"rows\":%lld,\"T\":%g,\"us_per_row\":%.1f,\"us_p10\":%.1f,\"us_p90\":%.1f,\"plain_us_per_row\":%.1f,"
      "\"plain_p10\":%.1f,\"plain_p90\":%.1f,\"speedup\":%.1f,\"tokens_agree\":%s}\n",
      common.c_str(), static_cast<long long>(vocab), static_cast<long long>(rows), double(temperature), mine.median, mine.low, mine.high,
      other.median, other.low, other.high, other.median / mine.median, agree ? "true" : "false");
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  dultra::cpu::CpuBackend backend(threads, argc > 2 ? argv[2] : "");
  const std::string common = "\"isa\":\"" + std::string(backend.isa()) + "\",\"threads\":" + std::to_string(threads);
  for (int heads : {4, 16})
    for (int t : {64, 256, 512}) attention(backend, common, t, heads, 64);
  attention(backend, common, 512, 8, 128);
  attention(backend, common, 512, 8, 32);
  for (float temperature : {0.0f, 0.1f, 1.0f}) sampling(backend, common, temperature);
  return 0;
}
