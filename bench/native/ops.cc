// Microbenchmarks of attention and of token sampling, the sampler beside a plain scan of the same rows. One JSON line
// per measurement: median and spread of the time of a call in microseconds.
//   dultra_bench_ops [threads] [isa]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <stdexcept>
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

// {"shape":..., median and spread, "note":..., and what the plain version took, if there is one}
void report(const std::string& shape, const std::vector<double>& times, const std::string& note,
            const std::vector<double>& plain = {}) {
  const Timing timing = summary(times);
  std::printf("{\"shape\":\"%s\",\"us\":%.2f,\"us_p10\":%.2f,\"us_p90\":%.2f,\"runs\":%zu,\"note\":\"%s\"",
              shape.c_str(), timing.median, timing.low, timing.high, times.size(), note.c_str());
  if (!plain.empty()) std::printf(",\"plain_us\":%.2f", summary(plain).median);
  std::printf("}\n");
}

std::string fixed(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

// Times of `call`, warm.
std::vector<double> repeat(const std::function<void()>& call) {
  std::vector<double> times;
  const auto end = Clock::now() + std::chrono::milliseconds(700);
  for (int i = 0; i < 5 || (Clock::now() < end && i < 2000); ++i) {
    const double time = microseconds(call);
    if (i >= 2) times.push_back(time);
  }
  return times;
}

void attention(dultra::Backend& backend, int t, int heads, int d) {
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
  const std::vector<double> times = repeat([&] { backend.attention_forward(a); });
  const double flop = 4.0 * t * t * double(width);
  report("attention, T " + std::to_string(t) + ", " + std::to_string(heads) + " heads of " + std::to_string(d), times,
         fixed(flop / summary(times).median * 1e-3) + " GFLOP/s");
}

// The element-wise operations of a block on T 256, C 1024, 8 heads of 128, MLP 3072; GB/s of what is read and written.
void rows(dultra::Backend& backend) {
  const int64_t t = 256, c = 1024, f = 3072;
  std::vector<float> x = normals(size_t(t * 2 * f), 1), out(size_t(t * f)), weight = normals(size_t(c), 1);
  std::vector<int32_t> positions(static_cast<size_t>(t));
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = int32_t(i);
  const auto row = [&](const std::string& name, int64_t floats, const std::function<void()>& call) {
    const std::vector<double> times = repeat(call);
    report(name, times, fixed(4.0 * double(floats) / summary(times).median * 1e-3) + " GB/s");
  };
  row("RMS norm, 256 x 1024", 2 * t * c,
      [&] { backend.rmsnorm_forward(out.data(), x.data(), weight.data(), t, c, 1e-5f); });
  row("RoPE, 256 x 8 x 128", 2 * t * c, [&] {
    backend.rope_forward(x.data(), c, positions.data(), t, 8, 128, dultra::Rope{500000, 128});
  });
  row("SwiGLU, 256 x 3072", 3 * t * f, [&] { backend.swiglu_forward(out.data(), x.data(), t, f); });
}

// The sampler written down plainly: a softmax with std::exp, and at T > 0 noise -log(-log u) for every token.
int32_t plain_scan(const float* x, int64_t vocab, float temperature, const dultra::rng::Coordinates& at,
                   float* log_prob) {
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

void sampling(dultra::Backend& backend, float temperature) {
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
                             plain_token[size_t(r)] = plain_scan(&logits[size_t(r * vocab)], vocab, temperature,
                                                                 at[size_t(r)], &plain_log_prob[size_t(r)]);
                         }) /
                         double(plain_rows);
    if (i < 2) continue;
    ours.push_back(mine);
    plain.push_back(other);
  }
  bool agree = true;
  for (size_t r = 0; r < size_t(plain_rows); ++r)
    agree = agree && token[r] == plain_token[r] && std::fabs(log_prob[r] - plain_log_prob[r]) < 1e-3;
  if (!agree) throw std::runtime_error("the sampler and the plain scan draw different tokens");
  report("sampling a row of 126464 logits, temperature " + fixed(temperature), ours, "", plain);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  try {
    dultra::cpu::CpuBackend backend(threads, argc > 2 ? argv[2] : "", dultra::Compute::kF32);
    for (int t : {64, 256, 512}) attention(backend, t, 4, 64);
    for (int t : {64, 256, 512}) attention(backend, t, 8, 128);
    rows(backend);
    for (float temperature : {0.0f, 0.1f, 1.0f}) sampling(backend, temperature);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
