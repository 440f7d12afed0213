#include "backends/self_check.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "ops/check.h"

namespace dultra {

namespace {

// Sizes that no tile divides, so that edges are part of the case.
constexpr int64_t kRows = 70, kWidth = 128, kOutputs = 200, kKeyWidth = 64, kVocab = 3001, kCandidates = 9;

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
  Array activations(const std::vector<float>& x) {
    if (activation_ == DType::kF32) return floats(x);
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

  // Two rows of a batch, two query heads on one key head.
  const int32_t offsets[] = {0, 41, int32_t(kRows)};
  const Array attended = run.empty_activations(kRows * kWidth), k = run.activations(run.numbers(kRows * kKeyWidth)),
              v = run.activations(run.numbers(kRows * kKeyWidth));
  AttentionArgs attention{};
  attention.q = run.activations(x);
  attention.k = k;
  attention.v = v;
  attention.out = attended;
  attention.q_stride = attention.out_stride = kWidth;
  attention.kv_stride = kKeyWidth;
  attention.heads = 2;
  attention.kv_heads = 1;
  attention.head_dim = int(kKeyWidth);
  attention.scale = 0.125f;
  attention.batch = 2;
  attention.q_offsets = attention.k_offsets = offsets;
  attention.mask = MaskKind::kBidirectional;
  backend.attention_forward(attention);
  keep("attention_forward", attended, kRows * kWidth);

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
