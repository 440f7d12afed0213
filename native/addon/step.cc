// model.step(request, cancelToken?): NativeStepRequest in, a buffer out.
#include <limits>

#include "addon/args.h"
#include "addon/job.h"
#include "addon/objects.h"

namespace dultra {
namespace addon {

namespace {

// Arrays end to end in one ArrayBuffer: making a typed array of each costs a small model's step more than all of the
// copying.
class SharedBuffer {
 public:
  SharedBuffer(Napi::Env env, size_t bytes) : buffer_(Napi::ArrayBuffer::New(env, bytes)) {}

  template <class T>
  void add(const std::vector<T>& values) {
    const size_t at = used_;
    used_ += values.size() * sizeof(T);
    if (used_ > buffer_.ByteLength()) fail("larger");
    if (!values.empty()) std::memcpy(static_cast<uint8_t*>(buffer_.Data()) + at, values.data(), used_ - at);
  }

  Napi::Value done() {
    if (used_ != buffer_.ByteLength()) fail("smaller");
    return buffer_;
  }

 private:
  [[noreturn]] void fail(const std::string& than) const {
    throw make_error(buffer_.Env(), ErrorCode::kInternal, "step: results are " + than + " than their buffer");
  }

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
  request->first_blocks = get_optional_array<int32_t>(object, "firstBlocks");
  request->row_keys = get_array<uint32_t>(object, "rowKeys");
  request->steps = get_array<uint32_t>(object, "steps");
  request->seed = get_u64(object, "seed");
  request->temperature = float(get_number(object, "temperature", request->temperature));
  request->top_k = int32_t(get_integer(object, "topK", 1, std::numeric_limits<int32_t>::max(), 0));
  request->top_p = get_number(object, "topP", request->top_p);
  request->top_p_first = get_bool(object, "topPFirst", request->top_p_first);
  if (!absent(object.Get("scores"))) request->scores = get_scores(env, get_string(object, "scores"));
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
  request->by_margin = get_bool(object, "byMargin", request->by_margin);
  request->sum_with_last = get_bool(object, "sumWithLast", request->sum_with_last);
  request->selection_temperature = float(get_number(object, "selectionTemperature", request->selection_temperature));
  request->chances = get_optional_array<double>(object, "chances");
  request->may_rest = get_bool(object, "mayRest", request->may_rest);
  request->shift_inside = get_bool(object, "shiftInside", request->shift_inside);
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
        // lib/native/step-result.ts reads it.
        const size_t rows = result.forced.size(), m = result.tokens.size(), planner = result.planner_logits.size(),
                     margins = result.margins.size();
        SharedBuffer buffer(job_env, 4 * (2 * rows + 1 + 7 * m + planner + margins) + m + rows);
        buffer.add(result.offsets);
        buffer.add(result.timesteps);
        buffer.add(result.positions);
        buffer.add(result.tokens);
        buffer.add(result.log_probs);
        buffer.add(result.confidences);
        buffer.add(result.entropies);
        buffer.add(result.planner_logits);
        buffer.add(result.probabilities);
        buffer.add(result.log_likelihoods);
        buffer.add(result.margins);
        buffer.add(result.selected);
        buffer.add(result.forced);
        return buffer.done();
      });
}

}  // namespace addon
}  // namespace dultra
