// Benchmarks of a device: attention, products, what memory bounds, the sampler; a denoising step of LLaDA-8B's shape
// through Model and Session, the code that Node runs; and a training step of it through Trainer. One JSON line per
// measurement: the median and spread of a call's time in microseconds. bench/torch/gpu.py measures cases of the same
// names; scripts/gpu/report.cjs sets both side by side.
//   dultra_bench_cuda [--device cuda:0] [--only kernels|step|training] [--tiny]
// --tiny: shapes for any backend, the CPU's and the emulator's too; its times mean nothing.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backends/open_backend.h"
#include "model/trainer.h"
#include "test/session.h"

namespace {

using namespace dultra;
using Clock = std::chrono::steady_clock;

struct Shapes {
  int64_t hidden = 4096, mlp = 12288, vocab = 126464, prompt = 256, generated = 256, block = 32;
  int heads = 32, layers = 32, rollouts = 12, steps = 40;
  int32_t mask = 126336;
  std::vector<int64_t> gemm_rows{32, 128, 512, 6144};  // the first: a step on a cache; the last: a micro-batch
  // Attention at full occupancy: as many sequences as make `attention_tokens`.
  int64_t attention_tokens = 16384;
  int attention_heads = 16, attention_dim = 128;
  std::vector<int64_t> attention_lengths{512, 1024, 2048, 4096};
  int64_t rows = 16384;                    // of what memory bounds: 268 MB in fp32
  int64_t parameters = int64_t(64) << 20;  // of an optimiser step
  int64_t copied = int64_t(128) << 20;     // floats
  std::vector<int> training_layers{2, 6};  // of the models that a training step of `layers` is reckoned from
  double seconds = 1;                      // of one case
  static Shapes tiny() {
    Shapes s;
    s.hidden = 128, s.mlp = 96, s.vocab = 320, s.prompt = 6, s.generated = 8, s.block = 4;
    s.heads = 2, s.layers = 3, s.rollouts = 2, s.steps = 3;
    s.mask = 319;
    s.gemm_rows = {3, 14};
    s.attention_tokens = 64, s.attention_heads = 2, s.attention_dim = 64;
    s.attention_lengths = {16, 32};
    s.rows = 8, s.parameters = 1 << 10, s.copied = 1 << 10;
    s.training_layers = {1, 2};
    s.seconds = 0;
    return s;
  }
  int64_t length() const { return prompt + generated; }
};

std::vector<float> uniforms(size_t n, float scale) {
  uint64_t state = n;
  std::vector<float> out(n);
  for (float& x : out) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    x = (float(state >> 40) * 0x1p-24f - 0.5f) * scale;
  }
  return out;
}

struct Times {
  double median, p10, p90;  // microseconds
};
Times times_of(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  const auto at = [&](double share) { return times[std::min(times.size() - 1, size_t(share * double(times.size())))]; };
  return {at(0.5), at(0.1), at(0.9)};
}

// `work`: floating-point operations of a call; `bytes`: what it has to read and write; 0: no such figure. However slow,
// a rate is not rounded to 0: a report takes that for one that was not measured.
void report(const std::string& name, const Times& t, double work, double bytes, const std::string& note = "") {
  std::printf(
      "{\"case\":\"%s\",\"by\":\"dultra\",\"us\":%.2f,\"us_p10\":%.2f,\"us_p90\":%.2f,\"tflops\":%.4g,\"gb_per_s\":%."
      "4g,\"note\":\"%s\"}\n",
      name.c_str(), t.median, t.p10, t.p90, work / t.median * 1e-6, bytes / t.median * 1e-3, note.c_str());
  std::fflush(stdout);
}
void skipped(const std::string& name, const std::string& why) {
  std::string plain;
  for (char c : why.substr(0, 200)) plain += c == '"' || c == '\\' || static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  std::printf("{\"skipped\":\"%s\",\"by\":\"dultra\",\"why\":\"%s\"}\n", name.c_str(), plain.c_str());
  std::fflush(stdout);
}

// Calls until `seconds` have passed, at least three times; each call is measured by itself and must be complete when it
// returns.
Times measure(double seconds, const std::function<void()>& call) {
  call();
  call();
  std::vector<double> times;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    call();
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  } while (times.size() < 3 ||
           (times.size() < 200 && std::chrono::duration<double>(Clock::now() - begin).count() < seconds));
  return times_of(times);
}

// A backend that multiplies in bf16, where the device can.
std::unique_ptr<Backend> open_bf16(const std::string& device) {
  auto backend = open_backend(device, 1, "", Compute::kF32);
  return backend->supports(Compute::kBF16) ? open_backend(device, 1, "", Compute::kBF16) : std::move(backend);
}

// Arrays and matrices of one backend, and operations measured on them.
class Kernels {
 public:
  Kernels(Backend& backend, const Shapes& shapes) : backend_(backend), shapes_(shapes), flag_(backend, 4) {}

  Buffer array(int64_t n, float scale = 1) {
    Buffer buffer(backend_, size_t(n) * 4);
    // Uploading some of it and copying that on is faster than making all of it here.
    const std::vector<float> some = uniforms(size_t(std::min<int64_t>(n, 1 << 22)), scale);
    for (int64_t i = 0; i < n; i += int64_t(some.size())) {
      const int64_t count = std::min(n - i, int64_t(some.size()));
      if (i == 0)
        backend_.upload(buffer.as<void>(), some.data(), size_t(count) * 4);
      else
        backend_.copy(buffer.as() + i, buffer.as(), count);
    }
    return buffer;
  }
  // In the type that a model's operands have on this backend. `n` is even.
  Array operand(int64_t n, float scale = 1) {
    const DType type = backend_.activation_dtype();
    if (type == DType::kF32) {
      held_.push_back(array(n, scale));
    } else {
      std::vector<uint16_t> some;
      for (float x : uniforms(size_t(std::min<int64_t>(n, 1 << 22)), scale)) some.push_back(f32_to_bf16(x));
      held_.emplace_back(backend_, size_t(n) * 2);
      float* words = held_.back().as();  // two numbers each
      const int64_t have = int64_t(some.size()) / 2;
      backend_.upload(words, some.data(), some.size() * 2);
      for (int64_t i = have; i < n / 2; i += have) backend_.copy(words + i, words, std::min(have, n / 2 - i));
    }
    return {held_.back().as<void>(), type};
  }
  std::unique_ptr<Matrix> matrix(int64_t rows, int64_t cols) {
    std::vector<uint16_t> values(size_t(rows * cols));
    const std::vector<float> some = uniforms(size_t(1) << 20, 0.04f);
    for (size_t i = 0; i < values.size(); ++i) values[i] = f32_to_bf16(some[i % some.size()]);
    return backend_.make_matrix({{values.data(), DType::kBF16, rows}}, cols, DType::kBF16);
  }
  // An operation is queued some times before the device is waited for, so that neither launching nor waiting counts
  // where it takes long enough.
  void time(const std::string& name, double work, double bytes, const std::function<void()>& call) {
    const auto queued = [&](int count) {
      for (int i = 0; i < count; ++i) call();
      float wait;
      backend_.download(&wait, flag_.as<void>(), sizeof wait);
    };
    const double once = measure(0, [&] { queued(1); }).median;
    const int count = shapes_.seconds > 0 ? int(std::max(1.0, std::min(50.0, 5000 / once))) : 1;
    Times t = measure(shapes_.seconds, [&] { queued(count); });
    report(name, {t.median / count, t.p10 / count, t.p90 / count}, work, bytes);
  }

  // The products of a layer: gate and up, queries or output, keys and values, down. `cold`: of the first number of rows
  // with weights from memory, as a step has them, which no cache holds; one matrix after the other.
  void products() {
    const int64_t h = shapes_.hidden;
    constexpr int64_t kColdBytes = int64_t(300) << 20;  // several times a cache
    const int64_t widest = 2 * std::max(h, shapes_.mlp);
    const Array x = operand(shapes_.gemm_rows.back() * std::max(h, shapes_.mlp)),
                out = operand(shapes_.gemm_rows.back() * widest);
    const double size = double(dtype_size(x.dtype));
    for (const auto& [n, k] : {std::pair{2 * shapes_.mlp, h}, {h, h}, {2 * h, h}, {h, shapes_.mlp}}) {
      std::vector<std::unique_ptr<Matrix>> w;
      for (int64_t bytes = 0; w.empty() || (shapes_.seconds > 0 && bytes < kColdBytes); bytes += 2 * n * k)
        w.push_back(matrix(n, k));
      const auto measured = [&, n = n, k = k](int64_t m, const char* what, const auto& call) {
        time("gemm M=" + std::to_string(m) + " N=" + std::to_string(n) + " K=" + std::to_string(k) + what,
             2.0 * double(m * n * k), 2.0 * double(n * k) + size * double(m * (n + k)), call);
      };
      for (int64_t m : shapes_.gemm_rows)
        measured(m, "", [&, n = n] { backend_.linear_forward(out, n, x, m, *w[0], nullptr, false); });
      size_t turn = 0;
      const int64_t few = shapes_.gemm_rows.front();
      measured(few, " cold",
               [&, n = n] { backend_.linear_forward(out, n, x, few, *w[turn++ % w.size()], nullptr, false); });
    }
  }

  void attention() {
    const int heads = shapes_.attention_heads, d = shapes_.attention_dim;
    const int64_t tokens = shapes_.attention_tokens, width = int64_t(heads) * d;
    const Array q = operand(tokens * width, 4), kv = operand(tokens * 2 * width, 4), out = operand(tokens * width),
                dout = operand(tokens * width);
    const Array dq = operand(tokens * width), dkv = operand(tokens * 2 * width);
    const Buffer log_sum = array(tokens * heads);
    for (int64_t length : shapes_.attention_lengths) {
      std::vector<int32_t> offsets;
      for (int64_t i = 0; i <= tokens; i += length) offsets.push_back(int32_t(i));
      AttentionArgs a{};
      a.q = q;
      a.k = kv;
      a.v = kv + width;
      a.out = out;
      a.log_sum = log_sum.as();
      a.q_stride = a.out_stride = width;
      a.kv_stride = 2 * width;
      a.heads = a.kv_heads = heads;
      a.head_dim = d;
      a.scale = 1 / std::sqrt(float(d));
      a.batch = int(offsets.size()) - 1;
      a.q_offsets = a.k_offsets = offsets.data();
      a.mask = MaskKind::kBidirectional;
      const double work = 4.0 * double(tokens * length * width);
      time("attention forward T=" + std::to_string(length), work, 0, [&] { backend_.attention_forward(a); });
      AttentionGradArgs grad{};
      grad.forward = a;
      grad.dout = dout;
      grad.dq = dq;
      grad.dk = dkv;
      grad.dv = dkv + width;
      time("attention backward T=" + std::to_string(length), 2.5 * work, 0, [&] { backend_.attention_backward(grad); });
      // Cached decoding: a block's queries against all keys of one sequence.
      const std::vector<int32_t> queries{0, int32_t(shapes_.block)}, keys{0, int32_t(length)};
      a.batch = 1;
      a.q_offsets = queries.data();
      a.k_offsets = keys.data();
      time("attention of " + std::to_string(shapes_.block) + " queries T=" + std::to_string(length),
           4.0 * double(shapes_.block * length * width), 2 * double(dtype_size(kv.dtype)) * double(length * width),
           [&] { backend_.attention_forward(a); });
    }
  }

  // What is bound by memory, over 50 MB each, beside a plain copy.
  void bandwidth() {
    {
      const Buffer a = array(shapes_.copied), b = array(shapes_.copied);
      time("copy", 0, 8.0 * double(shapes_.copied), [&] { backend_.copy(a.as(), b.as(), shapes_.copied); });
      time("bandwidth: sum of squares", 0, 4.0 * double(shapes_.copied),
           [&] { backend_.sum_squares(a.as(), shapes_.copied); });
      time("bandwidth: silu", 0, 8.0 * double(shapes_.copied), [&] { backend_.silu_forward(a.as(), shapes_.copied); });
    }
    const int64_t m = shapes_.rows, c = shapes_.hidden, f = shapes_.mlp, few = std::max<int64_t>(1, m / 4);
    const double numbers = double(m * c), wide = double(few * f),
                 size = double(dtype_size(backend_.activation_dtype()));
    std::vector<int32_t> index;
    for (int64_t i = 0; i < m; ++i) index.push_back(int32_t(i));
    Buffer positions(backend_, size_t(m) * 4);
    backend_.upload(positions.as<void>(), index.data(), size_t(m) * 4);
    {
      const Buffer x = array(m * c), y = array(m * c), dx = array(m * c), weight = array(c), dweight = array(c);
      const Array narrow = operand(m * c);
      time("bandwidth: rmsnorm", 0, (4 + size) * numbers,
           [&] { backend_.rmsnorm_forward(narrow, x.as(), weight.as(), m, c, 1e-5f); });
      time("bandwidth: layernorm", 0, 8 * numbers,
           [&] { backend_.layernorm_forward(y.as(), x.as(), weight.as(), weight.as(), nullptr, m, c, 1e-4f); });
      time("bandwidth: rmsnorm backward", 0, 16 * numbers,
           [&] { backend_.rmsnorm_backward(dx.as(), dweight.as(), y.as(), x.as(), weight.as(), m, c, 1e-5f); });
      time("bandwidth: rope", 0, 2 * size * numbers, [&] {
        backend_.rope_forward(narrow, c, positions.as<int32_t>(), m, shapes_.heads, int(c / shapes_.heads),
                              Rope{500000, int(c / shapes_.heads)});
      });
      time("bandwidth: gather", 0, 8 * numbers,
           [&] { backend_.gather_rows(y.as(), x.as(), positions.as<int32_t>(), m, c); });
    }
    {
      const Array gate_up = operand(few * 2 * f), out = operand(few * f), dgate_up = operand(few * 2 * f);
      time("bandwidth: swiglu", 0, 3 * size * wide, [&] { backend_.swiglu_forward(out, gate_up, few, f); });
      time("bandwidth: swiglu backward", 0, 5 * size * wide,
           [&] { backend_.swiglu_backward(dgate_up, out, gate_up, few, f); });
    }
    const int64_t n = shapes_.parameters;
    const Buffer parameter = array(n, 0.04f), gradient = array(n, 1e-3f), m1 = array(n, 0), m2 = array(n, 0);
    AdamWArgs a{};
    a.parameter = parameter.as();
    a.gradient = gradient.as();
    a.exp_avg = m1.as<void>();
    a.exp_avg_sq = m2.as<void>();
    a.n = n;
    a.step = 1;
    a.lr = 1e-5;
    a.beta1 = 0.9;
    a.beta2 = 0.99;
    a.eps = 1e-8;
    a.gradient_scale = 1;
    time("bandwidth: adamw, fp32", 0, 28.0 * double(n), [&] { backend_.adamw_step(a); });
    // The same memory as halves.
    a.parameter = nullptr;
    a.high = parameter.as<uint16_t>();
    a.low = parameter.as<int16_t>() + n;
    a.moments = DType::kBF16;
    time("bandwidth: adamw, split master and bf16 moments", 0, 20.0 * double(n), [&] { backend_.adamw_step(a); });
  }

  void sampler() {
    constexpr int64_t kRows = 32;
    const int64_t v = shapes_.vocab;
    const Buffer logits = array(kRows * v, 10);
    std::vector<rng::Coordinates> at;
    for (uint32_t i = 0; i < kRows; ++i) at.push_back({7, 0, 3, i});
    const Buffer coordinates(backend_, at.size() * sizeof(rng::Coordinates)), outputs(backend_, 6 * 4 * kRows);
    backend_.upload(coordinates.as<void>(), at.data(), at.size() * sizeof(rng::Coordinates));
    SampleArgs a{};
    a.logits = logits.as();
    a.rows = kRows;
    a.vocab = v;
    a.excluded_token = shapes_.mask;
    a.at = coordinates.as<rng::Coordinates>();
    a.token = outputs.as<int32_t>();
    a.log_prob = outputs.as() + kRows;
    a.confidence = outputs.as() + 2 * kRows;
    a.max_prob = outputs.as() + 3 * kRows;
    a.entropy = outputs.as() + 4 * kRows;
    a.finite = outputs.as<uint8_t>() + 5 * 4 * kRows;
    for (const char* temperature : {"0", "0.1", "1"}) {
      a.temperature = std::strtof(temperature, nullptr);
      time("sampler, 32 rows, temperature " + std::string(temperature), 0, 4.0 * double(kRows * v),
           [&] { backend_.sample_forward(a); });
    }
  }

 private:
  Backend& backend_;
  const Shapes& shapes_;
  Buffer flag_;
  std::vector<Buffer> held_;
};

// A file of zeros, which takes no room on the disk, in place of a checkpoint; the weights are made on the device.
class ZeroFile {
 public:
  explicit ZeroFile(uint64_t bytes)
      : path_(std::filesystem::temp_directory_path() /
              ("dultra-bench-" + std::to_string(Clock::now().time_since_epoch().count()))) {
    std::ofstream(path_).flush();
    std::filesystem::resize_file(path_, bytes);
  }
  ~ZeroFile() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  ZeroFile(const ZeroFile&) = delete;
  ZeroFile& operator=(const ZeroFile&) = delete;
  std::string path() const { return path_.u8string(); }

 private:
  const std::filesystem::path path_;
};

ModelConfig config_of(const Shapes& s, int layers) {
  ModelConfig config;
  config.hidden = s.hidden;
  config.heads = config.kv_heads = s.heads;
  config.head_dim = int(s.hidden / s.heads);
  config.layers = layers;
  config.mlp_hidden = s.mlp;
  config.embedding_size = s.vocab;
  config.max_sequence_length = std::max<int64_t>(4096, s.length());
  config.rope = {500000, config.head_dim};
  config.rms_norm_eps = 1e-5f;
  config.mask_token = s.mask;
  config.planner.present = true;
  config.planner.layers = 1;
  return config;
}

std::vector<TensorRef> tensors_of(const ModelConfig& config) {
  std::vector<TensorRef> out;
  for (const TensorSpec& spec : tensor_table(config)) {
    TensorRef ref;
    ref.name = spec.name;
    ref.dtype = DType::kBF16;
    ref.shape = spec.shape;
    ref.end = 2 * uint64_t(spec.elements());
    out.push_back(ref);
  }
  return out;
}

int64_t numbers_of(const TensorRef& ref) { return int64_t(ref.end - ref.begin) / 2; }

// A model of random weights, uniform with the deviation 0.0115, norms 1.
std::shared_ptr<Model> random_model(const std::string& device, const ModelConfig& config) {
  const std::vector<TensorRef> tensors = tensors_of(config);
  uint64_t largest = 0;
  for (const TensorRef& ref : tensors) largest = std::max(largest, ref.end);
  const ZeroFile file(largest);
  auto model =
      std::make_shared<Model>(config, open_bf16(device), Checkpoint({file.path()}, tensors), WeightOptions(), nullptr);
  Weights& weights = model->weights();
  Backend& on = model->backend();
  std::vector<uint16_t> halves;
  for (float x : uniforms(size_t(1) << 22, 0.04f)) halves.push_back(f32_to_bf16(x));
  const Buffer random(on, halves.size() * 2);
  on.upload(random.as<void>(), halves.data(), halves.size() * 2);
  int64_t most = 0;
  for (const TensorRef& ref : tensors) {
    const std::vector<Bf16Rows> rows = weights.bf16_rows(ref.name);
    if (rows.empty()) most = std::max(most, numbers_of(ref));
    for (const Bf16Rows& piece : rows) {
      const int64_t words = piece.rows * ref.shape[1] / 2, have = int64_t(halves.size()) / 2;
      for (int64_t i = 0; i < words; i += have)
        on.copy(reinterpret_cast<float*>(piece.data) + i, random.as(), std::min(have, words - i));
    }
  }
  const std::vector<float> ones(static_cast<size_t>(most), 1.0f), small = uniforms(size_t(most), 0.04f);
  const Buffer norms(on, ones.size() * 4), others(on, small.size() * 4);
  on.upload(norms.as<void>(), ones.data(), ones.size() * 4);
  on.upload(others.as<void>(), small.data(), small.size() * 4);
  weights.write([&](const std::string& name) -> const float* {
    if (!weights.bf16_rows(name).empty()) return nullptr;
    const bool norm = name.find("_norm.weight") != std::string::npos || name.find("ln_f.weight") != std::string::npos;
    return norm ? norms.as() : others.as();
  });
  return model;
}

// `rows` sequences with a prompt, all else masks.
std::vector<int32_t> masked_rows(const Shapes& s, int rows, std::vector<int32_t>* offsets) {
  std::vector<int32_t> ids;
  *offsets = {0};
  for (int r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < s.length(); ++i)
      ids.push_back(i < s.prompt ? int32_t((i * 7919 + r) % (s.vocab - 2)) : s.mask);
    offsets->push_back(int32_t(ids.size()));
  }
  return ids;
}

test::SessionRequest step_request(const Shapes& s, int rows, UnmaskRule rule) {
  test::SessionRequest request;
  for (int r = 0; r < rows; ++r) {
    request.rows.push_back(r);
    request.window_ends.push_back(int32_t(s.prompt + s.block));
    request.row_keys.push_back(uint32_t(r));
    request.steps.push_back(0);
  }
  request.seed = 7;
  request.temperature = 0.1f;
  request.rule = rule;
  request.threshold = 0.9;
  return request;
}

// A step of a session, after which what it wrote is masked again.
Times time_step(const Shapes& s, test::Session& session, const test::SessionRequest& request) {
  std::vector<double> times;
  const auto begin = Clock::now();
  for (int i = 0; i < 5 || (i < 100 && std::chrono::duration<double>(Clock::now() - begin).count() < 2 * s.seconds);
       ++i) {
    const auto start = Clock::now();
    const StepResult result = session.step(request);
    if (i >= 2) times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    for (size_t r = 0; r < request.rows.size(); ++r)
      for (int32_t c = result.offsets[r]; c < result.offsets[r + 1]; ++c)
        if (result.selected[size_t(c)]) session.write(request.rows[r], {result.positions[size_t(c)]}, {s.mask});
  }
  return times_of(times);
}

// Multiply-adds of a pass of `tokens` positions, each seeing `keys`, through `blocks` blocks, twice.
double pass_work(const Shapes& s, int blocks, double tokens, double keys) {
  return blocks * tokens *
         (2.0 * double(4 * s.hidden * s.hidden + 3 * s.hidden * s.mlp) + 4.0 * keys * double(s.hidden));
}

void denoising(const std::string& device, const Shapes& s) {
  const auto model = random_model(device, config_of(s, s.layers));
  std::vector<int32_t> offsets;
  const std::vector<int32_t> ids = masked_rows(s, 1, &offsets);
  const double weights =
      double(model->weights().bytes()) - 2.0 * double(s.vocab * s.hidden);  // all but the embedding table
  const double length = double(s.length()), head = 2.0 * double(s.block * s.vocab * s.hidden);
  {
    test::Session session(model, ids, offsets);
    report("denoising step", time_step(s, session, step_request(s, 1, UnmaskRule::kPlannerTopK)),
           pass_work(s, s.layers + 1, length, length) + head, weights, "with the planner, logits of the block");
    report("denoising step without a planner", time_step(s, session, step_request(s, 1, UnmaskRule::kThreshold)),
           pass_work(s, s.layers, length, length) + head, weights);
  }
  KvCacheOptions options;
  options.dtype = DType::kBF16;
  options.planner = PlannerCache::kBlocks;
  test::Session session(model, ids, offsets, test::make_cache(model, offsets, options));
  test::SessionRequest request = step_request(s, 1, UnmaskRule::kPlannerTopK);
  request.select = false;
  request.planner = true;  // its keys and values too
  for (int32_t i = 0; i < offsets.back(); ++i) request.queries.push_back(i);
  request.query_offsets = {0, offsets.back()};
  session.step(request);
  request.select = true;
  request.queries.clear();
  for (int64_t i = s.prompt; i < s.prompt + s.block; ++i) request.queries.push_back(int32_t(i));
  request.query_offsets = {0, int32_t(s.block)};
  report("denoising step on a cache", time_step(s, session, request),
         pass_work(s, s.layers + 1, double(s.block), length) + head, weights, "the block alone is computed");
}

// A micro-batch of a GRPO step: some positions of each row's block were unmasked.
ScoreRequest score_request(const Shapes& s) {
  ScoreRequest request;
  request.ids = masked_rows(s, s.rollouts, &request.offsets);
  request.candidate_offsets = {0};
  for (int r = 0; r < s.rollouts; ++r) {
    for (int64_t i = 0; i < s.block; ++i) {
      request.positions.push_back(int32_t(s.prompt + i));
      request.tokens.push_back(int32_t((i * 31 + r) % (s.vocab - 2)));
      request.selected.push_back(i % 5 == r % 5);
    }
    request.candidate_offsets.push_back(int32_t(request.positions.size()));
    request.timestep.push_back(0.5f);
    request.forced.push_back(0);
  }
  for (int32_t id : request.ids) request.mask_index.push_back(id == s.mask);
  request.log_probs = request.planner = request.policy = request.keep = true;
  request.excluded_token = s.mask;
  return request;
}

// A training step of `rollouts` x `steps`: every step's pass of all rollouts, once to decide and once forward and
// backward, then an update. It is measured at two depths, which gives what a layer and what all else takes, and
// reckoned for all layers.
void training(const std::string& device, const Shapes& s) {
  struct Part {
    double rollout, replay, update;
  };
  std::vector<Part> parts;
  for (int layers : s.training_layers) {
    const auto model = random_model(device, config_of(s, layers));
    Part part{};
    {
      std::vector<int32_t> offsets;
      const std::vector<int32_t> ids = masked_rows(s, s.rollouts, &offsets);
      test::Session session(model, ids, offsets);
      part.rollout = time_step(s, session, step_request(s, s.rollouts, UnmaskRule::kPlannerBernoulli)).median;
    }
    TrainerOptions options;
    options.moments = DType::kBF16;
    Trainer trainer(model, options);
    const ScoreRequest request = score_request(s);
    BackwardRequest upstream;
    upstream.dlog_likelihoods.assign(request.positions.size(), -0.01f);
    float wait;
    const auto synchronize = [&] {
      model->backend().download(&wait, model->weights().final_norm.as<void>(), sizeof wait);
    };
    part.replay = measure(2 * s.seconds, [&] {
                    trainer.score(request, nullptr);
                    trainer.backward(upstream, nullptr);
                    synchronize();
                  }).median;
    OptimizerStep update;
    update.base_lr = update.planner_lr = 1e-6;
    update.max_grad_norm = 1;
    part.update = measure(s.seconds, [&] {
                    trainer.step(update);
                    synchronize();
                  }).median;
    parts.push_back(part);
  }
  const double steps = s.steps, depth = s.layers;
  const auto at = [&](double Part::*what) {
    const double per_layer = (parts[1].*what - parts[0].*what) / (s.training_layers[1] - s.training_layers[0]);
    return parts[0].*what + per_layer * (depth - s.training_layers[0]);
  };
  const double rollout = at(&Part::rollout), replay = at(&Part::replay), update = at(&Part::update),
               all = steps * (rollout + replay) + update;
  const double tokens = double(s.rollouts) * double(s.length());
  char note[300];
  std::snprintf(note, sizeof note,
                "reckoned for %d layers from micro-batches of %d x %d tokens at %d and %d layers: rollout pass %.1f "
                "ms, forward and backward %.1f ms, "
                "%d times each, update %.1f ms",
                s.layers, s.rollouts, int(s.length()), s.training_layers[0], s.training_layers[1], rollout / 1e3,
                replay / 1e3, s.steps, update / 1e3);
  report("training step", {all, all, all}, steps * 4 * pass_work(s, s.layers + 1, tokens, double(s.length())), 0, note);
}

// What does not fit, or is not there, is said, and does not stop the rest.
bool attempt(const std::string& name, const std::function<void()>& body) {
  try {
    body();
    return true;
  } catch (const Error& error) {
    skipped(name, error.what());
    return error.code() == ErrorCode::kOutOfMemory;
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::string device = "cuda:0", only;
  Shapes shapes;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--tiny") {
      shapes = Shapes::tiny();
    } else if (argument == "--device" && i + 1 < argc) {
      device = argv[++i];
    } else if (argument == "--only" && i + 1 < argc) {
      only = argv[++i];
    } else {
      std::fprintf(stderr, "usage: dultra_bench_cuda [--device cuda:0] [--only kernels|step|training] [--tiny]\n");
      return 2;
    }
  }
  try {
    bool ok = true;
    const auto wanted = [&](const char* group) { return only.empty() || only == group; };
    {
      const auto backend = open_bf16(device);
      std::printf("{\"device\":\"%s\",\"isa\":\"%s\"}\n", backend->name(), backend->isa());
      std::fflush(stdout);
      Kernels kernels(*backend, shapes);
      if (wanted("kernels")) {
        ok &= attempt("gemm", [&] { kernels.products(); });
        ok &= attempt("attention", [&] { kernels.attention(); });
        ok &= attempt("bandwidth", [&] { kernels.bandwidth(); });
        ok &= attempt("sampler", [&] { kernels.sampler(); });
      }
    }
    if (wanted("step")) ok &= attempt("denoising step", [&] { denoising(device, shapes); });
    if (wanted("training")) ok &= attempt("training step", [&] { training(device, shapes); });
    return ok ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
