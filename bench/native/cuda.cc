// Microbenchmarks of the CUDA backend on a device: attention, products, sampling, and a denoising step of LLaDA-8B's shape composed of the
// backend's operations. The step's 32 layers share one layer's random weights (436 MB in bf16, more than any second-level cache holds), so its
// reads are those of a model that has 32. One JSON line per measurement: median and spread of the time of a call in microseconds.
//   dultra_bench_cuda [device]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backends/open_backend.h"

namespace {

using dultra::Backend;
using dultra::Compute;
using dultra::DType;
using Clock = std::chrono::steady_clock;

std::vector<float> uniforms(size_t n, float scale) {
  uint64_t state = n;
  std::vector<float> out(n);
  for (float& x : out) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    x = (float(state >> 40) * 0x1p-24f - 0.5f) * scale;
  }
  return out;
}

struct Bench {
  Backend& backend;
  std::vector<void*> held;

  ~Bench() {
    for (void* pointer : held) backend.release(pointer);
  }
  float* array(size_t n, float scale = 1) {
    auto* pointer = static_cast<float*>(backend.allocate(n * sizeof(float)));
    held.push_back(pointer);
    const std::vector<float> values = uniforms(n, scale);
    backend.upload(pointer, values.data(), n * sizeof(float));
    return pointer;
  }
  std::unique_ptr<dultra::Matrix> matrix(int64_t rows, int64_t cols) {
    std::vector<uint16_t> values(size_t(rows * cols));
    const std::vector<float> some = uniforms(size_t(1) << 20, 0.04f);
    for (size_t i = 0; i < values.size(); ++i) values[i] = dultra::f32_to_bf16(some[i % some.size()]);
    return backend.make_matrix({{values.data(), DType::kBF16, rows}}, cols, DType::kBF16, Compute::kBF16);
  }
  // `work` is the floating-point operations of a call, `bytes` what it has to read and write.
  void time(const std::string& name, double work, double bytes, const std::function<void()>& call) {
    float wait;
    const float* anything = static_cast<const float*>(held.front());
    for (int i = 0; i < 3; ++i) call();
    backend.download(&wait, anything, sizeof wait);
    std::vector<double> times;
    for (int i = 0; i < 30; ++i) {
      const auto start = Clock::now();
      call();
      backend.download(&wait, anything, sizeof wait);
      times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    }
    std::sort(times.begin(), times.end());
    std::printf("{\"name\":\"%s\",\"us\":%.1f,\"us_p10\":%.1f,\"us_p90\":%.1f,\"tflops\":%.1f,\"gb_per_s\":%.0f}\n", name.c_str(), times[15],
                times[3], times[27], work / times[15] * 1e-6, bytes / times[15] * 1e-3);
    std::fflush(stdout);
  }
};

dultra::AttentionArgs attention(const float* q, const float* kv, float* out, const std::vector<int32_t>& q_offsets,
                                const std::vector<int32_t>& k_offsets, int heads, int kv_heads, int d) {
  dultra::AttentionArgs a{};
  a.q = q;
  a.k = kv;
  a.v = kv + kv_heads * d;
  a.out = out;
  a.q_stride = a.out_stride = int64_t(heads) * d;
  a.kv_stride = 2 * int64_t(kv_heads) * d;
  a.heads = heads;
  a.kv_heads = kv_heads;
  a.head_dim = d;
  a.scale = 1 / std::sqrt(float(d));
  a.batch = int(q_offsets.size()) - 1;
  a.q_offsets = q_offsets.data();
  a.k_offsets = k_offsets.data();
  a.mask = dultra::MaskKind::kBidirectional;
  return a;
}

void run(Backend& backend) {
  Bench bench{backend, {}};
  constexpr int64_t kHidden = 4096, kMlp = 12288, kVocab = 126464, kLength = 512, kLayers = 32;
  constexpr int kHeads = 32, kDim = 128;
  float* hidden = bench.array(kLength * kHidden);
  float* normed = bench.array(kLength * kHidden);
  float* q = bench.array(kLength * kHidden);
  float* kv = bench.array(kLength * 2 * kHidden);
  float* mixed = bench.array(kLength * kHidden);
  float* gate_up = bench.array(kLength * 2 * kMlp);
  float* mlp = bench.array(kLength * kMlp);
  float* logits = bench.array(size_t(32 * kVocab), 10);
  float* norm = bench.array(kHidden);
  const auto wq = bench.matrix(kHidden, kHidden), wkv = bench.matrix(2 * kHidden, kHidden), wo = bench.matrix(kHidden, kHidden);
  const auto wgate = bench.matrix(2 * kMlp, kHidden), wdown = bench.matrix(kHidden, kMlp), head = bench.matrix(kVocab, kHidden);

  for (int64_t m : {int64_t(32), int64_t(128), kLength}) {
    const double work = 2.0 * double(m) * double(2 * kMlp) * kHidden, bytes = 2.0 * 2 * kMlp * kHidden + 4.0 * double(m) * (kHidden + 2 * kMlp);
    bench.time("gemm M=" + std::to_string(m) + " N=24576 K=4096", work, bytes,
               [&] { backend.linear_forward(gate_up, 2 * kMlp, hidden, m, *wgate, nullptr, false); });
  }
  const std::vector<int32_t> row{0, int32_t(kLength)}, few{0, 32};
  bench.time("attention B=1 L=512 H=32 D=128", 4.0 * kLength * kLength * kHidden, 4.0 * 4 * kLength * kHidden,
             [&] { backend.attention_forward(attention(q, kv, mixed, row, row, kHeads, kHeads, kDim)); });
  bench.time("attention 32 queries, 512 keys", 4.0 * 32 * kLength * kHidden, 4.0 * 2 * kLength * kHidden,
             [&] { backend.attention_forward(attention(q, kv, mixed, few, row, kHeads, kHeads, kDim)); });
  bench.time("rmsnorm 512 x 4096", 0, 8.0 * kLength * kHidden, [&] { backend.rmsnorm_forward(normed, hidden, norm, kLength, kHidden, 1e-5f); });

  std::vector<dultra::rng::Coordinates> at;
  for (uint32_t i = 0; i < 32; ++i) at.push_back({7, 0, 3, i});
  std::vector<int32_t> token(32);
  std::vector<float> numbers(4 * 32);
  std::vector<uint8_t> finite(32);
  const auto sample = [&](float temperature) {
    dultra::SampleArgs a{};
    a.logits = logits;
    a.rows = 32;
    a.vocab = kVocab;
    a.temperature = temperature;
    a.excluded_token = 126336;
    a.at = at.data();
    a.token = token.data();
    a.log_prob = numbers.data();
    a.confidence = numbers.data() + 32;
    a.max_prob = numbers.data() + 64;
    a.entropy = numbers.data() + 96;
    a.finite = finite.data();
    backend.sample_forward(a);
  };
  for (float temperature : {0.0f, 0.1f, 1.0f})
    bench.time("sample 32 x 126464 T=" + std::to_string(temperature).substr(0, 3), 0, 4.0 * 32 * kVocab, [&] { sample(temperature); });

  std::vector<int32_t> positions;
  for (int32_t i = 0; i < kLength; ++i) positions.push_back(i);
  const double block = 2.0 * (4.0 * kHidden * kHidden + 3.0 * kHidden * kMlp), all = kLayers * (block * kLength + 4.0 * kLength * kLength * kHidden);
  bench.time("step of 8B shape, B=1 L=512, head on 32 rows", all + 2.0 * 32 * kVocab * kHidden, kLayers * block + 2.0 * kVocab * kHidden, [&] {
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      backend.rmsnorm_forward(normed, hidden, norm, kLength, kHidden, 1e-5f);
      backend.linear_forward(kv, 2 * kHidden, normed, kLength, *wkv, nullptr, false);
      backend.rope_forward(kv, 2 * kHidden, positions.data(), kLength, kHeads, kDim, 500000);
      backend.linear_forward(q, kHidden, normed, kLength, *wq, nullptr, false);
      backend.rope_forward(q, kHidden, positions.data(), kLength, kHeads, kDim, 500000);
      backend.attention_forward(attention(q, kv, mixed, row, row, kHeads, kHeads, kDim));
      backend.linear_forward(hidden, kHidden, mixed, kLength, *wo, nullptr, true);
      backend.rmsnorm_forward(normed, hidden, norm, kLength, kHidden, 1e-5f);
      backend.linear_forward(gate_up, 2 * kMlp, normed, kLength, *wgate, nullptr, false);
      backend.swiglu_forward(mlp, gate_up, kLength, kMlp);
      backend.linear_forward(hidden, kHidden, mlp, kLength, *wdown, nullptr, true);
    }
    backend.linear_forward(logits, kVocab, hidden, 32, *head, nullptr, false);
    sample(0.1f);
  });
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const auto backend = dultra::open_backend(argc > 1 ? argv[1] : "cuda:0", 1, "");
    std::printf("{\"device\":\"%s\",\"isa\":\"%s\"}\n", backend->name(), backend->isa());
    run(*backend);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
