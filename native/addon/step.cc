// model.step(request, cancelToken?): NativeStepRequest in, NativeStepResult out.
#include "addon/args.h"
#include "addon/job.h"
#include "addon/objects.h"

namespace dultra {
namespace addon {

namespace {

// Typed arrays in one ArrayBuffer: an ArrayBuffer for each costs a small model's step more than all of the copying.
class SharedBuffer {
 public:
  SharedBuffer(Napi::Env env, size_t bytes) : buffer_(Napi::ArrayBuffer::New(env, bytes)) {}

  // The next array. Those of wider numbers come first, so that each is aligned.
  template <class T>
  Napi::Value add(const std::vector<T>& values) {
    const size_t at = used_;
    used_ += values.size() * sizeof(T);
    if (used_ > buffer_.ByteLength())
      throw make_error(buffer_.Env(), ErrorCode::kInternal, "step: results are larger than their buffer");
    if (!values.empty()) std::memcpy(static_cast<uint8_t*>(buffer_.Data()) + at, values.data(), used_ - at);
    return Napi::TypedArrayOf<T>::New(buffer_.Env(), values.size(), buffer_, at);
  }

 private:
  Napi::ArrayBuffer buffer_;
  size_t used_ = 0;
};

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
    request->cache_rows = get_array<int32_t>(cached, "rows");
    request->query_offsets = get_array<int32_t>(cached, "offsets");
    request->queries = get_array<int32_t>(cached, "positions");
  }
  request->row_keys = get_array<uint32_t>(object, "rowKeys");
  request->steps = get_array<uint32_t>(object, "steps");
  request->seed = get_u64(object, "seed");
  request->temperature = float(get_number(object, "temperature", request->temperature));
  request->tempered_log_prob = get_bool(object, "temperedLogProb", request->tempered_log_prob);
  request->exclude_mask = get_bool(object, "excludeMask", request->exclude_mask);
  request->planner = get_bool(object, "planner", request->planner);
  const std::string rule = get_string(object, "rule");
  request->select = rule != "none";
  if (request->select) request->rule = get_rule(env, rule);
  request->planner_temperature = float(get_number(object, "plannerTemperature", request->planner_temperature));
  request->probability_scale = float(get_number(object, "probabilityScale", request->probability_scale));
  request->threshold = get_number(object, "threshold", request->threshold);
  request->factor = get_number(object, "factor", request->factor);
  request->factor_last_pair = get_bool(object, "factorLastPair", request->factor_last_pair);
  request->counts = get_optional_array<int32_t>(object, "counts");
  request->by_entropy = get_bool(object, "byEntropy", request->by_entropy);
  request->reference_likelihood = get_bool(object, "referenceLikelihood", request->reference_likelihood);
  if (const Napi::Value uniforms = object.Get("uniforms"); !absent(uniforms)) {
    request->token_uniforms = get_optional_array<double>(to_object(uniforms, "uniforms"), "token");
    request->position_uniforms = get_optional_array<double>(to_object(uniforms, "uniforms"), "position");
  }
  return Job<StepResult>::start(
      env,
      [held = model(env), request, flag = CancelToken::flag_of(info[1])] {
        return run_step(*held, *request, flag.get());
      },
      [](Napi::Env job_env, StepResult& result) -> Napi::Value {
        const size_t rows = result.forced.size(), m = result.tokens.size();
        SharedBuffer buffer(job_env, 4 * (2 * rows + 1 + 8 * m) + m + rows);
        Napi::Object out = Napi::Object::New(job_env);
        out.Set("offsets", buffer.add(result.offsets));
        out.Set("timesteps", buffer.add(result.timesteps));
        out.Set("positions", buffer.add(result.positions));
        out.Set("tokens", buffer.add(result.tokens));
        out.Set("logProbs", buffer.add(result.log_probs));
        out.Set("confidences", buffer.add(result.confidences));
        out.Set("entropies", buffer.add(result.entropies));
        out.Set("plannerLogits", result.planner_logits.empty() ? job_env.Null() : buffer.add(result.planner_logits));
        out.Set("probabilities", buffer.add(result.probabilities));
        out.Set("logLikelihoods", buffer.add(result.log_likelihoods));
        out.Set("selected", buffer.add(result.selected));
        out.Set("forced", buffer.add(result.forced));
        return out;
      });
}

}  // namespace addon
}  // namespace dultra
