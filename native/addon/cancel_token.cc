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

CancelToken::CancelToken(const Napi::CallbackInfo& info) : Napi::ObjectWrap<CancelToken>(info) {
  auto& tokens = info.Env().GetInstanceData<AddonData>()->tokens;
  for (size_t i = tokens.size(); i-- > 0;)
    if (tokens[i].expired()) tokens.erase(tokens.begin() + long(i));
  tokens.emplace_back(std::shared_ptr<std::atomic<bool>>(state_, &state_->cancelled));
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

}  // namespace addon
}  // namespace dultra
