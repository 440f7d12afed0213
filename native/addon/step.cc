// model.step(request, cancelToken?): NativeStepRequest in, a buffer out.
#include <algorithm>
#include <cstring>
#include <limits>

#include "addon/args.h"
#include "addon/job.h"
#include "addon/objects.h"

namespace dultra {
namespace addon {

namespace {

// Arrays end to end: making a typed array of each costs a small model's step more than all of the copying.
class Bytes {
 public:
  template <class T>
  void add(const std::vector<T>& values) {
    const size_t at = bytes_.size();
    bytes_.resize(at + values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(bytes_.data() + at, values.data(), values.size() * sizeof(T));
  }
  Napi::Value to_buffer(Napi::Env env) const {
    Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(env, bytes_.size());
    if (!bytes_.empty()) std::memcpy(buffer.Data(), bytes_.data(), bytes_.size());
    return buffer;
  }

 private:
  std::vector<uint8_t> bytes_;
};

// lib/native/step-result.ts reads both.
Bytes whole_result(const StepResult& result) {
  Bytes bytes;
  bytes.add(result.offsets);
  bytes.add(result.timesteps);
  bytes.add(result.non_finite);
  bytes.add(result.positions);
  bytes.add(result.tokens);
  bytes.add(result.log_probs);
  bytes.add(result.confidences);
  bytes.add(result.entropies);
  bytes.add(result.planner_logits);
  bytes.add(result.probabilities);
  bytes.add(result.log_likelihoods);
  bytes.add(result.margins);
  bytes.add(result.scores);
  bytes.add(result.selected);
  bytes.add(result.forced);
  return bytes;
}

template <class T>
std::vector<T> selected_of(const StepResult& result, const std::vector<T>& values) {
  std::vector<T> out;
  for (size_t i = 0; i < values.size(); ++i)
    if (result.selected[i]) out.push_back(values[i]);
  return out;
}

Bytes selected_result(const StepResult& result, bool has_likelihoods) {
  std::vector<int32_t> offsets{0};
  for (size_t r = 0; r + 1 < result.offsets.size(); ++r)
    offsets.push_back(offsets.back() + int32_t(std::count(result.selected.begin() + result.offsets[r],
                                                          result.selected.begin() + result.offsets[r + 1], 1)));
  Bytes bytes;
  bytes.add(offsets);
  bytes.add(result.non_finite);
  bytes.add(selected_of(result, result.positions));
  bytes.add(selected_of(result, result.tokens));
  bytes.add(selected_of(result, result.log_probs));
  bytes.add(selected_of(result, result.confidences));
  bytes.add(selected_of(result, result.probabilities));
  if (has_likelihoods) {
    bytes.add(result.offsets);
    bytes.add(result.log_likelihoods);
  }
  bytes.add(result.scores);
  return bytes;
}

StepRule read_rule(const Napi::Object& object) {
  const Napi::Env env = object.Env();
  StepRule rule;
  rule.temperature = float(get_number(object, "temperature", rule.temperature));
  rule.top_k = int32_t(get_integer(object, "topK", 1, std::numeric_limits<int32_t>::max(), 0));
  rule.top_p = get_number(object, "topP", rule.top_p);
  rule.top_p_first = get_bool(object, "topPFirst", rule.top_p_first);
  if (!absent(object.Get("scores"))) rule.scores = get_scores(env, get_string(object, "scores"));
  rule.tempered_log_prob = get_bool(object, "temperedLogProb", rule.tempered_log_prob);
  rule.exclude_mask = get_bool(object, "excludeMask", rule.exclude_mask);
  rule.planner = get_bool(object, "planner", rule.planner);
  const std::string name = get_string(object, "rule");
  rule.select = name != "none";
  rule.scored = get_bool(object, "scored", rule.scored);
  if (rule.select) rule.rule = get_rule(env, name);
  rule.planner_temperature = float(get_number(object, "plannerTemperature", rule.planner_temperature));
  rule.probability_scale = float(get_number(object, "probabilityScale", rule.probability_scale));
  rule.threshold = get_number(object, "threshold", rule.threshold);
  rule.factor = get_number(object, "factor", rule.factor);
  rule.factor_last_pair = get_bool(object, "factorLastPair", rule.factor_last_pair);
  rule.by_entropy = get_bool(object, "byEntropy", rule.by_entropy);
  rule.by_margin = get_bool(object, "byMargin", rule.by_margin);
  rule.sum_with_last = get_bool(object, "sumWithLast", rule.sum_with_last);
  rule.selection_temperature = float(get_number(object, "selectionTemperature", rule.selection_temperature));
  rule.may_rest = get_bool(object, "mayRest", rule.may_rest);
  rule.reference_likelihood = get_bool(object, "referenceLikelihood", rule.reference_likelihood);
  return rule;
}

}  // namespace

Napi::Value ModelObject::step(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Napi::Object object = to_object(info[0], "request");
  auto request = std::make_shared<StepRequest>();
  request->ids = get_array<int32_t>(object, "ids");
  request->offsets = get_array<int32_t>(object, "offsets");
  request->window_ends = get_array<int32_t>(object, "windowEnds");
  if (const Napi::Value list = object.Get("candidates"); !absent(list)) {
    request->candidate_offsets = get_array<int32_t>(to_object(list, "candidates"), "offsets");
    request->candidates = get_array<int32_t>(to_object(list, "candidates"), "positions");
  }
  if (const Napi::Value value = object.Get("cached"); !absent(value)) {
    const Napi::Object cached = to_object(value, "cached");
    request->cache = CacheObject::cache_of(cached.Get("cache"));
    if (!request->cache) type_error(env, "cached.cache", "a KvCache");
    request->cache_begins = get_array<int32_t>(cached, "begins");
    request->fresh = get_optional_array<uint8_t>(cached, "fresh");
    request->query_offsets = get_array<int32_t>(cached, "offsets");
    request->queries = get_array<int32_t>(cached, "positions");
  }
  request->first_blocks = get_optional_array<int32_t>(object, "firstBlocks");
  request->seeds = get_array<uint64_t>(object, "seeds");
  request->row_keys = get_array<uint32_t>(object, "rowKeys");
  request->steps = get_array<uint32_t>(object, "steps");
  if (!object.Get("rules").IsArray()) type_error(env, "rules", "an array");
  const Napi::Array rules = object.Get("rules").As<Napi::Array>();
  for (uint32_t g = 0; g < rules.Length(); ++g) {
    const Napi::HandleScope scope(env);
    request->rules.push_back(read_rule(to_object(rules.Get(g), "rules")));
  }
  request->rule_offsets = get_optional_array<int32_t>(object, "ruleOffsets");
  request->counts = get_optional_array<int32_t>(object, "counts");
  request->chances = get_optional_array<double>(object, "chances");
  if (const Napi::Value list = object.Get("scores"); !absent(list)) {
    request->score_offsets = get_array<int32_t>(to_object(list, "scores"), "offsets");
    request->score_tokens = get_array<int32_t>(to_object(list, "scores"), "tokens");
  }
  if (const Napi::Value allowed = object.Get("allowed"); !absent(allowed)) {
    request->allowed = get_array<int32_t>(to_object(allowed, "allowed"), "index");
    request->allowed_sets = get_array<uint32_t>(to_object(allowed, "allowed"), "sets");
  }
  request->shift_inside = get_bool(object, "shiftInside", request->shift_inside);
  if (const Napi::Value uniforms = object.Get("uniforms"); !absent(uniforms)) {
    request->token_uniforms = get_optional_array<double>(to_object(uniforms, "uniforms"), "token");
    request->position_uniforms = get_optional_array<double>(to_object(uniforms, "uniforms"), "position");
  }
  const bool selected_only = get_bool(object, "selectedOnly", false);
  const bool has_likelihoods = std::any_of(request->rules.begin(), request->rules.end(), [](const StepRule& rule) {
    return rule.select && is_planner_rule(rule.rule);
  });
  return Job<Bytes>::start(
      env,
      [held = model(env), request, selected_only, has_likelihoods, flag = CancelToken::flag_of(info[1])] {
        const StepResult result = run_step(*held, *request, flag.get());
        return selected_only ? selected_result(result, has_likelihoods) : whole_result(result);
      },
      [](Napi::Env job_env, Bytes& bytes) -> Napi::Value { return bytes.to_buffer(job_env); });
}

}  // namespace addon
}  // namespace dultra
