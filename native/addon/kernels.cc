// The kernels by themselves, on typed arrays: each call opens a CPU backend for its duration.
#include <algorithm>
#include <cmath>

#include "addon/args.h"
#include "addon/job.h"
#include "addon/objects.h"
#include "backends/open_backend.h"

namespace dultra {
namespace addon {

namespace {

std::unique_ptr<Backend> open_cpu(int threads) { return open_backend("cpu", threads, "", Compute::kF32); }

int get_threads(const Napi::Object& object) { return int(get_integer(object, "threads", 1, 1024)); }

// offsets (B + 1) ascending from 0 to `total`.
void check_kernel_offsets(const std::vector<int32_t>& offsets, int64_t total, const char* name) {
  bool ok = !offsets.empty() && offsets.front() == 0 && offsets.back() == total;
  for (size_t i = 0; ok && i + 1 < offsets.size(); ++i) ok = offsets[i] <= offsets[i + 1];
  check_argument(ok, std::string(name) + ": expected ascending offsets from 0 to " + std::to_string(total));
}

void check_size(size_t actual, int64_t expected, const char* name) {
  check_argument(int64_t(actual) == expected, std::string(name) + ": expected " + std::to_string(expected) +
                                                  " elements, got " + std::to_string(actual));
}

Napi::Value masked_attention(const Napi::CallbackInfo& info) {
  struct Request {
    std::vector<float> q, k, v;
    std::vector<int32_t> q_offsets, k_offsets, q_positions, key_begin, key_end;
    AttentionArgs args{};
    int threads = 1;
  };
  const Napi::Env env = info.Env();
  const Napi::Object object = to_object(info[0], "request");
  auto request = std::make_shared<Request>();
  Request& r = *request;
  r.q = get_array<float>(object, "q");
  r.k = get_array<float>(object, "k");
  r.v = get_array<float>(object, "v");
  r.q_offsets = get_array<int32_t>(object, "qOffsets");
  r.k_offsets = get_array<int32_t>(object, "kOffsets");
  r.q_positions = get_optional_array<int32_t>(object, "qPositions");
  r.key_begin = get_optional_array<int32_t>(object, "keyBegin");
  r.key_end = get_optional_array<int32_t>(object, "keyEnd");
  r.args.heads = int(get_integer(object, "heads", 1, 1 << 16));
  r.args.kv_heads = int(get_integer(object, "kvHeads", 1, 1 << 16));
  r.args.head_dim = int(get_integer(object, "headDim", 1, 1 << 16));
  r.args.block = int(get_integer(object, "block", 1, 1 << 30));
  r.args.scale = float(get_number(object, "scale"));
  r.threads = get_threads(object);
  const std::string mask = get_string(object, "mask");
  if (mask == "bidirectional")
    r.args.mask = MaskKind::kBidirectional;
  else if (mask == "causal")
    r.args.mask = MaskKind::kCausal;
  else if (mask == "block-causal")
    r.args.mask = MaskKind::kBlockCausal;
  else
    type_error(env, "mask", "\"bidirectional\", \"causal\" or \"block-causal\", got \"" + mask + "\"");
  guarded(env, [&] {
    const int64_t q_width = int64_t(r.args.heads) * r.args.head_dim,
                  kv_width = int64_t(r.args.kv_heads) * r.args.head_dim;
    check_argument(int64_t(r.q.size()) % q_width == 0,
                   "q: expected a multiple of heads * headDim (" + std::to_string(q_width) + ") elements");
    check_argument(int64_t(r.k.size()) % kv_width == 0,
                   "k: expected a multiple of kvHeads * headDim (" + std::to_string(kv_width) + ") elements");
    check_size(r.v.size(), int64_t(r.k.size()), "v");
    const int64_t queries = int64_t(r.q.size()) / q_width, keys = int64_t(r.k.size()) / kv_width;
    check_kernel_offsets(r.q_offsets, queries, "qOffsets");
    check_kernel_offsets(r.k_offsets, keys, "kOffsets");
    check_size(r.k_offsets.size(), int64_t(r.q_offsets.size()), "kOffsets");
    const int64_t batch = int64_t(r.q_offsets.size()) - 1;
    if (!r.q_positions.empty()) check_size(r.q_positions.size(), queries, "qPositions");
    if (!r.key_begin.empty()) check_size(r.key_begin.size(), batch, "keyBegin");
    if (!r.key_end.empty()) check_size(r.key_end.size(), batch, "keyEnd");
    r.args.batch = int(batch);
    r.args.q_stride = r.args.out_stride = q_width;
    r.args.kv_stride = kv_width;
  });
  return Job<std::vector<float>>::start(
      env,
      [request] {
        Request& w = *request;
        std::vector<float> out(w.q.size());
        w.args.q = w.q.data();
        w.args.k = w.k.data();
        w.args.v = w.v.data();
        w.args.out = out.data();
        w.args.q_offsets = w.q_offsets.data();
        w.args.k_offsets = w.k_offsets.data();
        w.args.q_positions = w.q_positions.empty() ? nullptr : w.q_positions.data();
        w.args.key_begin = w.key_begin.empty() ? nullptr : w.key_begin.data();
        w.args.key_end = w.key_end.empty() ? nullptr : w.key_end.data();
        open_cpu(w.threads)->attention_forward(w.args);
        return out;
      },
      [](Napi::Env job_env, std::vector<float>& out) { return to_array(job_env, out); });
}

Napi::Value sample(const Napi::CallbackInfo& info) {
  struct Request {
    std::vector<float> logits;
    std::vector<rng::Coordinates> at;
    SampleArgs args{};
    int threads = 1;
  };
  struct Result {
    std::vector<int32_t> tokens;
    std::vector<float> log_probs, confidences, max_probs, entropies;
  };
  const Napi::Env env = info.Env();
  const Napi::Object object = to_object(info[0], "request");
  auto request = std::make_shared<Request>();
  Request& r = *request;
  r.logits = get_array<float>(object, "logits");
  r.args.vocab = get_integer(object, "vocabSize", 1, int64_t(1) << 31);
  r.args.temperature = float(get_number(object, "temperature"));
  r.args.tempered_log_prob = get_bool(object, "temperedLogProb");
  r.args.top_k = int32_t(get_integer(object, "topK", 0, std::numeric_limits<int32_t>::max()));
  r.args.top_p = get_number(object, "topP");
  r.args.scores = get_scores(env, get_string(object, "scores"));
  r.args.excluded_token = int32_t(get_integer(object, "excludedToken", -1, r.args.vocab - 1));
  r.threads = get_threads(object);
  const uint64_t seed = get_u64(object, "seed");
  const auto rows = get_array<uint32_t>(object, "rows"), steps = get_array<uint32_t>(object, "steps"),
             positions = get_array<uint32_t>(object, "positions");
  guarded(env, [&] {
    check_argument(int64_t(r.logits.size()) % r.args.vocab == 0,
                   "logits: expected a multiple of vocabSize (" + std::to_string(r.args.vocab) + ") elements");
    r.args.rows = int64_t(r.logits.size()) / r.args.vocab;
    check_size(rows.size(), r.args.rows, "rows");
    check_size(steps.size(), r.args.rows, "steps");
    check_size(positions.size(), r.args.rows, "positions");
    for (size_t i = 0; i < rows.size(); ++i) r.at.push_back({seed, rows[i], steps[i], positions[i]});
  });
  return Job<Result>::start(
      env,
      [request] {
        Request& w = *request;
        const size_t m = size_t(w.args.rows);
        Result out{std::vector<int32_t>(m), std::vector<float>(m), std::vector<float>(m), std::vector<float>(m),
                   std::vector<float>(m)};
        std::vector<uint8_t> finite(m);
        w.args.logits = w.logits.data();
        w.args.at = w.at.data();
        w.args.token = out.tokens.data();
        w.args.log_prob = out.log_probs.data();
        w.args.confidence = out.confidences.data();
        w.args.max_prob = out.max_probs.data();
        w.args.entropy = out.entropies.data();
        w.args.finite = finite.data();
        if (m > 0) open_cpu(w.threads)->sample_forward(w.args);
        for (size_t i = 0; i < m; ++i)
          if (!finite[i])
            throw Error(ErrorCode::kNonFinite, "logits: row " + std::to_string(i) + " holds NaN or +infinity");
        return out;
      },
      [](Napi::Env job_env, Result& result) -> Napi::Value {
        Napi::Object out = Napi::Object::New(job_env);
        out.Set("tokens", to_array(job_env, result.tokens));
        out.Set("logProbs", to_array(job_env, result.log_probs));
        out.Set("confidences", to_array(job_env, result.confidences));
        out.Set("maxProbs", to_array(job_env, result.max_probs));
        out.Set("entropies", to_array(job_env, result.entropies));
        return out;
      });
}

Napi::Value planner_score(const Napi::CallbackInfo& info) {
  struct Request {
    std::vector<float> hidden, mul, add, weight;
    std::vector<int32_t> condition;
    float bias = 0, eps = 0;
    int64_t c = 0;
    int threads = 1;
  };
  const Napi::Env env = info.Env();
  const Napi::Object object = to_object(info[0], "request");
  auto request = std::make_shared<Request>();
  Request& r = *request;
  r.hidden = get_array<float>(object, "hidden");
  r.mul = get_array<float>(object, "scale");
  r.add = get_array<float>(object, "shift");
  r.condition = get_array<int32_t>(object, "condition");
  r.weight = get_array<float>(object, "weight");
  r.bias = float(get_number(object, "bias"));
  r.eps = float(get_number(object, "eps"));
  r.threads = get_threads(object);
  guarded(env, [&] {
    r.c = int64_t(r.weight.size());
    check_argument(r.c > 0, "weight: expected at least one element");
    check_size(r.hidden.size(), int64_t(r.condition.size()) * r.c, "hidden");
    check_size(r.add.size(), int64_t(r.mul.size()), "shift");
    check_argument(int64_t(r.mul.size()) % r.c == 0,
                   "scale: expected a multiple of weight's length (" + std::to_string(r.c) + ") elements");
    const int64_t groups = int64_t(r.mul.size()) / r.c;
    for (size_t i = 0; i < r.condition.size(); ++i)
      check_argument(r.condition[i] >= 0 && r.condition[i] < groups,
                     "condition[" + std::to_string(i) + "]: expected 0 to " + std::to_string(groups - 1) + ", got " +
                         std::to_string(r.condition[i]));
    for (float& value : r.mul) value += 1.0f;  // AdaLN multiplies by 1 + scale
  });
  return Job<std::vector<float>>::start(
      env,
      [request] {
        const Request& w = *request;
        std::vector<float> logits(w.condition.size());
        if (!logits.empty())
          open_cpu(w.threads)->planner_score_forward(logits.data(), w.hidden.data(), w.mul.data(), w.add.data(),
                                                     w.condition.data(), w.weight.data(), w.bias,
                                                     int64_t(logits.size()), w.c, w.eps);
        return logits;
      },
      [](Napi::Env job_env, std::vector<float>& logits) { return to_array(job_env, logits); });
}

Napi::Value unmask(const Napi::CallbackInfo& info) {
  struct Request {
    std::vector<int32_t> offsets, counts;
    std::vector<float> planner_logits, confidences, entropies, token_log_probs;
    std::vector<rng::Coordinates> at;
    UnmaskArgs args{};
    int threads = 1;
  };
  struct Result {
    std::vector<uint8_t> selected, forced;
    std::vector<float> probabilities, log_likelihoods;
  };
  const Napi::Env env = info.Env();
  const Napi::Object object = to_object(info[0], "request");
  auto request = std::make_shared<Request>();
  Request& r = *request;
  const std::string rule_name = get_string(object, "rule");
  r.args.rule = get_rule(env, rule_name);
  r.offsets = get_array<int32_t>(object, "offsets");
  r.planner_logits = get_optional_array<float>(object, "plannerLogits");
  r.confidences = get_optional_array<float>(object, "confidences");
  r.entropies = get_optional_array<float>(object, "entropies");
  r.token_log_probs = get_optional_array<float>(object, "tokenLogProbs");
  r.args.planner_temperature = float(get_number(object, "plannerTemperature"));
  r.args.probability_scale = float(get_number(object, "probabilityScale"));
  r.args.threshold = get_number(object, "threshold");
  r.args.factor = get_number(object, "factor");
  r.args.factor_last_pair = get_bool(object, "factorLastPair");
  r.counts = get_optional_array<int32_t>(object, "counts");
  r.args.reference_likelihood = get_bool(object, "referenceLikelihood");
  r.threads = get_threads(object);
  const uint64_t seed = get_u64(object, "seed");
  const auto row_keys = get_array<uint32_t>(object, "rowKeys"), steps = get_array<uint32_t>(object, "steps"),
             positions = get_array<uint32_t>(object, "positions");
  guarded(env, [&] {
    const int64_t m = r.offsets.empty() ? 0 : r.offsets.back(), b = int64_t(r.offsets.size()) - 1;
    check_kernel_offsets(r.offsets, m, "offsets");
    check_size(row_keys.size(), b, "rowKeys");
    check_size(steps.size(), b, "steps");
    check_size(positions.size(), m, "positions");
    const auto need = [&](const std::vector<float>& values, const char* name, bool needed) {
      if (needed || !values.empty()) check_size(values.size(), m, name);
    };
    const UnmaskRule rule = r.args.rule;
    need(r.planner_logits, "plannerLogits", is_planner_rule(rule));
    if (r.token_log_probs.empty()) r.token_log_probs.assign(size_t(m), 0.0f);
    need(r.token_log_probs, "tokenLogProbs", false);
    need(r.confidences, "confidences",
         rule == UnmaskRule::kThreshold || rule == UnmaskRule::kFactor || rule == UnmaskRule::kFixed ||
             rule == UnmaskRule::kDynamic);
    need(r.entropies, "entropies", rule == UnmaskRule::kEntropy || rule == UnmaskRule::kEntropySum);
    if (is_counted_rule(rule) || !r.counts.empty()) check_size(r.counts.size(), b, "counts");
    check_argument(rule != UnmaskRule::kCoin, "rule: expected one that the kernel takes alone, got coin");
    for (int64_t row = 0; row < b; ++row)
      for (int32_t i = r.offsets[size_t(row)]; i < r.offsets[size_t(row) + 1]; ++i)
        r.at.push_back({seed, row_keys[size_t(row)], steps[size_t(row)], positions[size_t(i)]});
    r.args.batch = int(b);
  });
  return Job<Result>::start(
      env,
      [request] {
        Request& w = *request;
        const size_t m = size_t(w.offsets.back()), b = w.offsets.size() - 1;
        Result out{std::vector<uint8_t>(m), std::vector<uint8_t>(b), std::vector<float>(m), std::vector<float>(m)};
        const auto data = [](const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); };
        if (is_planner_rule(w.args.rule) &&
            std::any_of(w.planner_logits.begin(), w.planner_logits.end(), [](float x) { return std::isnan(x); }))
          throw Error(ErrorCode::kNonFinite, "a planner logit is NaN");
        w.args.offsets = w.offsets.data();
        w.args.at = w.at.data();
        w.args.planner_logit = data(w.planner_logits);
        w.args.confidence = data(w.confidences);
        w.args.entropy = data(w.entropies);
        w.args.token_log_prob = data(w.token_log_probs);
        w.args.count = w.counts.empty() ? nullptr : w.counts.data();
        w.args.selected = out.selected.data();
        w.args.forced = out.forced.data();
        w.args.probability = out.probabilities.data();
        w.args.log_likelihood = out.log_likelihoods.data();
        open_cpu(w.threads)->unmask(w.args);
        return out;
      },
      [](Napi::Env job_env, Result& result) -> Napi::Value {
        Napi::Object out = Napi::Object::New(job_env);
        out.Set("selected", to_array(job_env, result.selected));
        out.Set("forced", to_array(job_env, result.forced));
        out.Set("probabilities", to_array(job_env, result.probabilities));
        out.Set("logLikelihoods", to_array(job_env, result.log_likelihoods));
        return out;
      });
}

Napi::Value adamw(const Napi::CallbackInfo& info) {
  struct Request {
    std::vector<float> parameter, gradient, exp_avg, exp_avg_sq;
    AdamWArgs args{};
  };
  const Napi::Env env = info.Env();
  const Napi::Object object = to_object(info[0], "request");
  auto request = std::make_shared<Request>();
  Request& r = *request;
  r.parameter = get_array<float>(object, "parameter");
  r.gradient = get_array<float>(object, "gradient");
  r.exp_avg = get_array<float>(object, "expAvg");
  r.exp_avg_sq = get_array<float>(object, "expAvgSq");
  r.args.step = get_integer(object, "step", 1, int64_t(1) << 53);
  r.args.lr = get_number(object, "lr");
  r.args.beta1 = get_number(object, "beta1");
  r.args.beta2 = get_number(object, "beta2");
  r.args.eps = get_number(object, "eps");
  r.args.weight_decay = get_number(object, "weightDecay");
  r.args.gradient_scale = get_number(object, "gradientScale");
  guarded(env, [&] {
    r.args.n = int64_t(r.parameter.size());
    check_size(r.gradient.size(), r.args.n, "gradient");
    check_size(r.exp_avg.size(), r.args.n, "expAvg");
    check_size(r.exp_avg_sq.size(), r.args.n, "expAvgSq");
  });
  return Job<bool>::start(
      env,
      [request] {
        Request& w = *request;
        w.args.parameter = w.parameter.data();
        w.args.gradient = w.gradient.data();
        w.args.exp_avg = w.exp_avg.data();
        w.args.exp_avg_sq = w.exp_avg_sq.data();
        open_cpu(1)->adamw_step(w.args);
        return true;
      },
      [request](Napi::Env job_env, bool&) -> Napi::Value {
        Napi::Object out = Napi::Object::New(job_env);
        out.Set("parameter", to_array(job_env, request->parameter));
        out.Set("expAvg", to_array(job_env, request->exp_avg));
        out.Set("expAvgSq", to_array(job_env, request->exp_avg_sq));
        return out;
      });
}

// Rows of plain numbers or of blocks, quantised: { codes, scales }, or { blocks } where they stay together.
Napi::Value quantise_rows(const Napi::CallbackInfo& info) {
  struct Request {
    std::vector<uint8_t> bytes;
    DType dtype = DType::kF32;
    BlockType from = BlockType::kNone, to = BlockType::kNone;
    bool split = false;
    int64_t cols = 0, rows = 0;
  };
  struct Result {
    std::vector<uint8_t> blocks, codes, scales;
  };
  const Napi::Env env = info.Env();
  const Napi::Object object = to_object(info[0], "request");
  auto request = std::make_shared<Request>();
  Request& r = *request;
  r.bytes = get_array<uint8_t>(object, "bytes");
  const std::string dtype = get_string(object, "dtype");
  r.from = block_type(dtype);
  if (r.from == BlockType::kNone) r.dtype = get_dtype(env, dtype);
  r.to = block_type(get_string(object, "to"));
  r.split = get_bool(object, "split", false);
  r.cols = get_integer(object, "cols", 32, int64_t(1) << 40);
  guarded(env, [&] {
    check_argument(is_written(r.to), "to: expected Q8_0, Q4_0 or IQ4_NL");
    check_argument(r.cols % 32 == 0 && (r.from == BlockType::kNone || r.cols % block_layout(r.from).values == 0),
                   "cols: expected whole blocks, got " + std::to_string(r.cols));
    const int64_t row_bytes =
        r.from == BlockType::kNone ? r.cols * int64_t(dtype_size(r.dtype)) : block_row_bytes(r.from, r.cols);
    r.rows = int64_t(r.bytes.size()) / row_bytes;
    check_size(r.bytes.size(), r.rows * row_bytes, "bytes");
  });
  return Job<Result>::start(
      env,
      [request] {
        const Request& r = *request;
        Result out;
        const int64_t count = r.rows * r.cols / 32;
        out.blocks.resize(size_t(count * block_layout(r.to).bytes));
        std::vector<float> row(static_cast<size_t>(r.cols));
        for (int64_t i = 0; i < r.rows; ++i) {
          if (r.from == BlockType::kNone) {
            const uint8_t* from = r.bytes.data() + size_t(i * r.cols) * dtype_size(r.dtype);
            for (int64_t j = 0; j < r.cols; ++j) row[size_t(j)] = load_as_f32(from, r.dtype, size_t(j));
          } else {
            decode_blocks(row.data(), r.bytes.data() + i * block_row_bytes(r.from, r.cols), r.from,
                          r.cols / block_layout(r.from).values);
          }
          for (float value : row)
            if (!std::isfinite(value)) throw Error(ErrorCode::kNonFinite, "the tensor holds NaN or infinity");
          encode_blocks(out.blocks.data() + i * block_row_bytes(r.to, r.cols), row.data(), r.to, r.cols);
        }
        if (r.split) {
          out.codes.resize(out.blocks.size() - size_t(count) * 2);
          out.scales.resize(size_t(count) * 2);
          split_blocks(out.codes.data(), out.scales.data(), out.blocks.data(), r.to, count);
          out.blocks.clear();
        }
        return out;
      },
      [](Napi::Env job_env, Result& result) -> Napi::Value {
        Napi::Object out = Napi::Object::New(job_env);
        if (result.blocks.empty()) {
          out.Set("codes", to_array(job_env, result.codes));
          out.Set("scales", to_array(job_env, result.scales));
        } else {
          out.Set("blocks", to_array(job_env, result.blocks));
        }
        return out;
      });
}

}  // namespace

void init_kernels(Napi::Env env, Napi::Object exports) {
  exports.Set("maskedAttention", Napi::Function::New<&masked_attention>(env));
  exports.Set("sample", Napi::Function::New<&sample>(env));
  exports.Set("plannerScore", Napi::Function::New<&planner_score>(env));
  exports.Set("unmask", Napi::Function::New<&unmask>(env));
  exports.Set("quantiseRows", Napi::Function::New<&quantise_rows>(env));
  exports.Set("adamw", Napi::Function::New<&adamw>(env));
}

}  // namespace addon
}  // namespace dultra
