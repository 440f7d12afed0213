#include "addon/args.h"
#include "addon/job.h"
#include "addon/objects.h"

namespace dultra {
namespace addon {

void CancelToken::init(Napi::Env env, AddonData* data) {
  data->cancel_token = Napi::Persistent(DefineClass(
      env, "CancelToken",
      {InstanceMethod<&CancelToken::cancel>("cancel"), InstanceMethod<&CancelToken::progress>("progress")}));
}

std::shared_ptr<CancelToken::State> CancelToken::state_of(const Napi::Value& value) {
  if (absent(value)) return nullptr;
  const auto* data = value.Env().GetInstanceData<AddonData>();
  if (!value.IsObject() || !value.As<Napi::Object>().InstanceOf(data->cancel_token.Value()))
    type_error(value.Env(), "cancelToken", "a CancelToken");
  return Unwrap(value.As<Napi::Object>())->state_;
}

std::shared_ptr<std::atomic<bool>> CancelToken::flag_of(const Napi::Value& value) {
  auto state = state_of(value);
  return state ? std::shared_ptr<std::atomic<bool>>(state, &state->cancelled) : nullptr;
}

void CancelToken::cancel(const Napi::CallbackInfo&) { state_->cancelled.store(true, std::memory_order_relaxed); }

Napi::Value CancelToken::progress(const Napi::CallbackInfo& info) {
  Napi::Object out = Napi::Object::New(info.Env());
  out.Set("loadedBytes", double(state_->progress.loaded.load()));
  out.Set("totalBytes", double(state_->progress.total.load()));
  return out;
}

void SessionObject::init(Napi::Env env, AddonData* data) {
  data->session = Napi::Persistent(DefineClass(
      env, "Session",
      {InstanceMethod<&SessionObject::step>("step"), InstanceMethod<&SessionObject::write>("write"),
       InstanceMethod<&SessionObject::cancel>("cancel"), InstanceMethod<&SessionObject::dispose>("dispose")}));
}

Napi::Value SessionObject::wrap(Napi::Env env, std::shared_ptr<Session> session) {
  auto* data = env.GetInstanceData<AddonData>();
  Napi::Object object = data->session.New({});
  auto& sessions = data->sessions;
  for (size_t i = sessions.size(); i-- > 0;)
    if (sessions[i].expired()) sessions.erase(sessions.begin() + long(i));
  sessions.push_back(session);
  Unwrap(object)->session_ = std::move(session);
  return object;
}

std::shared_ptr<Session> SessionObject::session(Napi::Env env) const {
  if (!session_) throw make_error(env, ErrorCode::kDisposed, "this session has been disposed");
  return session_;
}

Napi::Value SessionObject::step(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Napi::Object object = to_object(info[0], "request");
  auto request = std::make_shared<StepRequest>();
  request->rows = get_array<int32_t>(object, "rows");
  request->window_ends = get_array<int32_t>(object, "windowEnds");
  if (const Napi::Value list = object.Get("candidates"); !absent(list)) {
    request->candidate_offsets = get_array<int32_t>(to_object(list, "candidates"), "offsets");
    request->candidates = get_array<int32_t>(to_object(list, "candidates"), "positions");
  }
  if (const Napi::Value list = object.Get("queries"); !absent(list)) {
    request->query_offsets = get_array<int32_t>(to_object(list, "queries"), "offsets");
    request->queries = get_array<int32_t>(to_object(list, "queries"), "positions");
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
      env, [session = session(env), request] { return session->step(*request); },
      [](Napi::Env job_env, StepResult& result) -> Napi::Value {
        Napi::Object out = Napi::Object::New(job_env);
        out.Set("offsets", to_array(job_env, result.offsets));
        out.Set("positions", to_array(job_env, result.positions));
        out.Set("tokens", to_array(job_env, result.tokens));
        out.Set("logProbs", to_array(job_env, result.log_probs));
        out.Set("confidences", to_array(job_env, result.confidences));
        out.Set("entropies", to_array(job_env, result.entropies));
        out.Set("plannerLogits",
                result.planner_logits.empty() ? job_env.Null() : to_array(job_env, result.planner_logits));
        out.Set("probabilities", to_array(job_env, result.probabilities));
        out.Set("logLikelihoods", to_array(job_env, result.log_likelihoods));
        out.Set("selected", to_array(job_env, result.selected));
        out.Set("forced", to_array(job_env, result.forced));
        out.Set("timesteps", to_array(job_env, result.timesteps));
        return out;
      });
}

void SessionObject::write(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsNumber()) type_error(env, "row", "a number");
  const auto positions = to_vector<int32_t>(info[1], "positions"), tokens = to_vector<int32_t>(info[2], "tokens");
  guarded(env, [&] { session(env)->write(info[0].As<Napi::Number>().Int32Value(), positions, tokens); });
}

void SessionObject::cancel(const Napi::CallbackInfo&) {
  if (session_) session_->cancel();
}

void SessionObject::dispose(const Napi::CallbackInfo&) { session_.reset(); }

}  // namespace addon
}  // namespace dultra
