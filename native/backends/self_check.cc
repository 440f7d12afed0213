#include "backends/self_check.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/check.h"

namespace dultra {

namespace {

// Sizes that no tile divides, so that edges are part of the case.
constexpr int64_t kRows = 70, kWidth = 128, kOutputs = 200, kKeyWidth = 64, kVocab = 3001, kCandidates = 9;
// Rows of a batch that with two heads are more than a device has multiprocessors; keys that are more than a block
// takes.
constexpr int32_t kManyRows = 100, kManyKeys = 1061;

// Backend memory, released with its owner.
class Held {
 public:
  Held(Backend& backend, size_t bytes) : backend_(backend), data_(backend.allocate(bytes)) {}
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() { backend_.release(data_); }
  void* data() const { return data_; }

 private:
  Backend& backend_;
  void* data_;
};

// The arrays of one run. Numbers are multiples of 1/64 within (-1, 1): bf16 holds them exactly, so that both types
// start from the same.
class Run {
 public:
  explicit Run(Backend& backend) : backend_(backend), activation_(backend.activation_dtype()) {}

  std::vector<float> numbers(int64_t n) {
    std::vector<float> out(static_cast<size_t>(n));
    for (float& x : out) {
      state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
      x = float(int64_t(state_ >> 57) - 64) / 64;
    }
    return out;
  }
  // A copy in backend memory, as fp32 or as the type of activations.
  float* floats(const std::vector<float>& x) {
    auto* to = static_cast<float*>(take(x.size() * 4));
    backend_.upload(to, x.data(), x.size() * 4);
    return to;
  }
  Array activations(const std::vector<float>& x) { return filled(x, activation_); }
  Array filled(const std::vector<float>& x, DType type) {
    if (type == DType::kF32) return floats(x);
    std::vector<uint16_t> narrow;
    for (float value : x) narrow.push_back(f32_to_bf16(value));
    auto* to = static_cast<uint16_t*>(take(narrow.size() * 2));
    backend_.upload(to, narrow.data(), narrow.size() * 2);
    return to;
  }
  float* empty_floats(int64_t n) { return static_cast<float*>(take(size_t(n) * 4)); }
  Array empty_activations(int64_t n) { return {take(size_t(n) * dtype_size(activation_)), activation_}; }

  std::vector<float> read(ConstArray from, int64_t n) {
    std::vector<uint8_t> bytes(size_t(n) * dtype_size(from.dtype));
    backend_.download(bytes.data(), from.data, bytes.size());
    std::vector<float> out(static_cast<size_t>(n));
    for (size_t i = 0; i < out.size(); ++i) out[i] = load_as_f32(bytes.data(), from.dtype, i);
    return out;
  }

 private:
  void* take(size_t bytes) {
    held_.push_back(std::make_unique<Held>(backend_, bytes));
    return held_.back()->data();
  }

  Backend& backend_;
  const DType activation_;
  uint64_t state_ = 1;
  std::vector<std::unique_ptr<Held>> held_;
};

struct Result {
  const char* operation;
  bool exact;  // a decision
  std::vector<float> values;
};

std::vector<Result> compute(Backend& backend) {
  std::vector<Result> results;
  const DType storage = backend.compute() == Compute::kBF16 ? DType::kBF16 : DType::kF32;
  Run run(backend);
  const auto keep = [&](const char* operation, ConstArray from, int64_t n) {
    results.push_back({operation, false, run.read(from, n)});
  };

  const std::vector<float> w = run.numbers(kOutputs * kWidth), bias = run.numbers(kOutputs),
                           x = run.numbers(kRows * kWidth);
  const auto matrix = backend.make_matrix({{w.data(), DType::kF32, kOutputs}}, kWidth, storage);
  float* y = run.empty_floats(kRows * kOutputs);
  backend.linear_forward(y, kOutputs, run.activations(x), kRows, *matrix, run.floats(bias), false);
  keep("linear_forward", y, kRows * kOutputs);

  const Array normed = run.empty_activations(kRows * kWidth);
  backend.rmsnorm_forward(normed, run.floats(x), run.floats(run.numbers(kWidth)), kRows, kWidth, 1e-5f);
  keep("rmsnorm_forward", normed, kRows * kWidth);

  std::vector<int32_t> positions(size_t(kRows), 0);
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = int32_t(3 * i);
  const Array q = run.activations(x);
  backend.rope_forward(q, kWidth, positions.data(), kRows, 2, kWidth / 2, Rope{10000, kWidth / 2});
  keep("rope_forward", q, kRows * kWidth);

  const Array gated = run.empty_activations(kRows * kWidth / 2);
  backend.swiglu_forward(gated, run.activations(x), kRows, kWidth / 2);
  keep("swiglu_forward", gated, kRows * kWidth / 2);

  // Of a model's two usual head dimensions: two rows of a batch, two query heads on one key head; so many rows of a
  // batch that a device takes its largest tiles; and a row with so many keys that it may split them.
  for (int head_dim : {64, 128}) {
    const auto attend = [&](const std::vector<int32_t>& queries, const std::vector<int32_t>& keys, MaskKind mask,
                            bool backward) {
      const int batch = int(queries.size());
      std::vector<int32_t> q_offsets{0}, k_offsets{0};
      for (int32_t n : queries) q_offsets.push_back(q_offsets.back() + n);
      for (int32_t n : keys) k_offsets.push_back(k_offsets.back() + n);
      std::vector<int32_t> at;
      for (size_t i = 0; i < queries.size(); ++i)
        for (int32_t j = 0; j < queries[i]; ++j) at.push_back(keys[i] - 1 - j);
      const int64_t q_width = 2 * head_dim, n = q_offsets.back() * q_width, kv = int64_t(k_offsets.back()) * head_dim;
      const std::vector<float> q_numbers = run.numbers(n), k_numbers = run.numbers(kv), v_numbers = run.numbers(kv);
      const Array attended = run.empty_activations(n);
      AttentionArgs args{};
      args.q = run.activations(q_numbers);
      args.k = run.activations(k_numbers);
      args.v = run.activations(v_numbers);
      args.out = attended;
      args.log_sum = run.empty_floats(q_offsets.back() * 2);
      args.q_stride = args.out_stride = q_width;
      args.kv_stride = head_dim;
      args.heads = 2;
      args.kv_heads = 1;
      args.head_dim = head_dim;
      args.scale = 0.125f;
      args.batch = batch;
      args.q_offsets = q_offsets.data();
      args.k_offsets = k_offsets.data();
      args.q_positions = at.data();
      args.mask = mask;
      args.block = 8;
      backend.attention_forward(args);
      keep("attention_forward", attended, n);
      keep("attention_forward", args.log_sum, q_offsets.back() * 2);
      if (!backward) return;
      const Array dq = run.empty_activations(n), dk = run.empty_activations(kv), dv = run.empty_activations(kv);
      // Of the same output, so that only this operation differs.
      args.out = run.activations(run.numbers(n));
      backend.attention_backward({args, run.activations(run.numbers(n)), dq, dk, dv});
      keep("attention_backward", dq, n);
      keep("attention_backward", dk, kv);
      keep("attention_backward", dv, kv);
    };
    attend({41, 29}, {41, 29}, MaskKind::kBidirectional, true);
    attend({70}, {70}, MaskKind::kBlockCausal, true);
    std::vector<int32_t> lengths(size_t(kManyRows), 1);
    lengths[0] = 130;
    attend(lengths, lengths, MaskKind::kBidirectional, false);
    attend({3}, {kManyKeys}, MaskKind::kCausal, false);
  }

  // What else training consists of. What is added to begins as numbers.
  const auto kept = [&](const char* operation, int64_t n, const std::function<void(float*)>& add) {
    float* const to = run.floats(run.numbers(n));
    add(to);
    keep(operation, to, n);
  };
  const std::vector<float> dy = run.numbers(kRows * kOutputs), dx = run.numbers(kRows * kWidth),
                           weight = run.numbers(kWidth);
  for (const bool accumulate : {false, true})
    kept("linear_backward_input", kRows * kWidth, [&](float* to) {
      backend.linear_backward_input(to, run.activations(dy), kOutputs, *matrix, 0, kOutputs, kRows, accumulate);
    });
  kept("linear_backward_weight", kOutputs * kWidth, [&](float* to) {
    backend.linear_backward_weight(to, run.floats(bias), run.activations(dy), kOutputs, run.activations(x), kRows,
                                   kOutputs, kWidth);
  });
  kept("linear_backward_weight", kOutputs, [&](float* to) {
    backend.linear_backward_weight(run.floats(w), to, run.activations(dy), kOutputs, run.activations(x), kRows,
                                   kOutputs, kWidth);
  });
  kept("rmsnorm_backward", kRows * kWidth, [&](float* to) {
    backend.rmsnorm_backward(to, nullptr, run.floats(dx), run.floats(x), run.floats(weight), kRows, kWidth, 1e-5f);
  });
  kept("rmsnorm_backward", kWidth, [&](float* to) {
    backend.rmsnorm_backward(run.floats(dx), to, run.floats(dx), run.floats(x), run.floats(weight), kRows, kWidth,
                             1e-5f);
  });
  std::vector<int32_t> groups(size_t(kRows), 0), ids(size_t(kRows), 0);
  for (size_t i = 0; i < groups.size(); ++i) groups[i] = int32_t(i * 3 / groups.size()), ids[i] = int32_t(i * i % 23);
  const std::vector<float> mul = run.numbers(3 * kWidth), add = run.numbers(3 * kWidth);
  kept("layernorm_forward", kRows * kWidth, [&](float* to) {
    backend.layernorm_forward(to, run.floats(x), run.floats(mul), run.floats(add), groups.data(), kRows, kWidth, 1e-5f);
  });
  kept("layernorm_backward", kRows * kWidth, [&](float* to) {
    backend.layernorm_backward(to, run.floats(mul), run.floats(add), run.floats(dx), run.floats(x), run.floats(mul),
                               groups.data(), kRows, kWidth, 1e-5f);
  });
  kept("layernorm_backward", 3 * kWidth, [&](float* to) {
    backend.layernorm_backward(run.floats(dx), to, run.floats(add), run.floats(dx), run.floats(x), run.floats(mul),
                               groups.data(), kRows, kWidth, 1e-5f);
  });
  const Array turned = run.activations(x);
  backend.rope_backward(turned, kWidth, positions.data(), kRows, 2, kWidth / 2, Rope{10000, kWidth / 2});
  keep("rope_backward", turned, kRows * kWidth);
  const Array dgate = run.empty_activations(kRows * kWidth);
  backend.swiglu_backward(dgate, run.activations(run.numbers(kRows * kWidth / 2)), run.activations(x), kRows,
                          kWidth / 2);
  keep("swiglu_backward", dgate, kRows * kWidth);
  kept("silu_backward", kRows * kWidth,
       [&](float* to) { backend.silu_backward(to, run.floats(dx), run.floats(x), kRows * kWidth); });
  kept("embedding_backward", 23 * kWidth,
       [&](float* to) { backend.embedding_backward(to, ids.data(), run.floats(dx), kRows, kWidth); });
  kept("scatter_add_rows", 23 * kWidth,
       [&](float* to) { backend.scatter_add_rows(to, run.floats(dx), ids.data(), kRows, kWidth); });
  kept("log_prob_backward", kCandidates * kVocab, [&](float* to) {
    backend.log_prob_backward(to, ids.data(), run.floats(run.numbers(kCandidates)), kCandidates, kVocab, 0.7f, 11);
  });
  results.push_back({"sum_squares", false, {float(backend.sum_squares(run.floats(x), kRows * kWidth))}});
  // Adam's step divides by small numbers: of both kinds of moments, whose rounding is a decision.
  for (DType moments : {DType::kF32, DType::kBF16}) {
    const int64_t n = kRows * kWidth;
    float* const parameter = run.floats(x);
    const Array first = run.filled(dx, moments), second = run.filled(std::vector<float>(size_t(n), 0.5f), moments);
    AdamWArgs adam{};
    adam.parameter = parameter;
    adam.gradient = run.floats(run.numbers(n));
    adam.exp_avg = first.data;
    adam.exp_avg_sq = second.data;
    adam.moments = moments;
    adam.seed = 7;
    adam.n = n;
    adam.step = 3;
    adam.lr = 0.01;
    adam.beta1 = 0.9;
    adam.beta2 = 0.99;
    adam.eps = 1e-8;
    adam.weight_decay = 0.1;
    adam.gradient_scale = 0.5;
    backend.adamw_step(adam);
    results.push_back({"adamw_step", false, run.read(parameter, n)});
    results.push_back({"adamw_step", true, run.read(first, n)});
    results.push_back({"adamw_step", true, run.read(second, n)});
  }

  // What is drawn and selected.
  std::vector<float> logits = run.numbers(kCandidates * kVocab);
  for (float& value : logits) value *= 8;
  std::vector<rng::Coordinates> at;
  for (uint32_t i = 0; i < kCandidates; ++i) at.push_back({7, i / 5, 3, i});
  const size_t m = size_t(kCandidates);
  std::vector<int32_t> token(m);
  std::vector<float> log_prob(m), confidence(m), max_prob(m), entropy(m);
  std::vector<uint8_t> finite(m);
  SampleArgs sample{};
  sample.logits = run.floats(logits);
  sample.rows = kCandidates;
  sample.vocab = kVocab;
  sample.temperature = 0.7f;
  sample.excluded_token = 11;
  sample.at = at.data();
  sample.token = token.data();
  sample.log_prob = log_prob.data();
  sample.confidence = confidence.data();
  sample.max_prob = max_prob.data();
  sample.entropy = entropy.data();
  sample.finite = finite.data();
  backend.sample_forward(sample);
  results.push_back({"sample_forward", true, std::vector<float>(token.begin(), token.end())});
  for (const auto* values : {&log_prob, &confidence, &max_prob, &entropy})
    results.push_back({"sample_forward", false, *values});

  const int32_t candidates[] = {0, 5, int32_t(kCandidates)};
  const std::vector<float> planner_logit = run.numbers(kCandidates);
  std::vector<uint8_t> selected(m), forced(2);
  std::vector<float> probability(m), log_likelihood(m);
  UnmaskArgs unmask{};
  unmask.rule = UnmaskRule::kPlannerTopK;
  unmask.batch = 2;
  unmask.offsets = candidates;
  unmask.at = at.data();
  unmask.planner_logit = planner_logit.data();
  unmask.token_log_prob = log_prob.data();
  unmask.planner_temperature = unmask.probability_scale = 1;
  unmask.selected = selected.data();
  unmask.forced = forced.data();
  unmask.probability = probability.data();
  unmask.log_likelihood = log_likelihood.data();
  backend.unmask(unmask);
  results.push_back({"unmask", true, std::vector<float>(selected.begin(), selected.end())});
  results.push_back({"unmask", false, probability});
  results.push_back({"unmask", false, log_likelihood});
  return results;
}

// Largest difference, beside the size of the numbers.
double difference_of(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0, size = 1;
  for (float x : b) size = std::max(size, std::fabs(double(x)));
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(double(a[i]) - b[i]);
    if (!(difference <= most)) most = std::isnan(difference) ? INFINITY : difference;
  }
  return most / size;
}

}  // namespace

void check_device(Backend& device, Backend& reference) {
  // Inputs are exact in bf16, so what the CPU computes from them in fp32 is right for both arithmetics.
  const std::vector<Result> expected = compute(reference), got = compute(device);
  // In bf16 every output is rounded once, and attention rounds its weights.
  const bool bf16 = device.compute() == Compute::kBF16;
  const double tolerance = bf16 ? 1e-2 : 1e-4;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = difference_of(got[i].values, expected[i].values);
    if (got[i].exact ? difference == 0 : difference <= tolerance) continue;
    throw Error(ErrorCode::kDeviceUnavailable, std::string(device.name()) + " (" + device.isa() +
                                                   ") computes something else than the CPU in " + got[i].operation +
                                                   (bf16 ? " (bf16)" : " (fp32)") + ": they differ by " +
                                                   std::to_string(difference) + "; please report this");
  }
}

}  // namespace dultra
