#include <limits>

#include "addon/args.h"
#include "addon/job.h"
#include "addon/objects.h"

namespace dultra {
namespace addon {

void CacheObject::init(Napi::Env env, AddonData* data) {
  data->cache = Napi::Persistent(
      DefineClass(env, "KvCache",
                  {InstanceMethod<&CacheObject::bytes>("bytes"), InstanceMethod<&CacheObject::read>("read"),
                   InstanceMethod<&CacheObject::dispose>("dispose")}));
}

KvCacheOptions read_cache_options(const Napi::Object& object) {
  KvCacheOptions options;
  options.dtype = get_dtype(object.Env(), get_string(object, "dtype"));
  const std::string planner = get_string(object, "planner");
  if (planner != "none" && planner != "blocks" && planner != "hidden")
    type_error(object.Env(), "planner", "\"none\", \"blocks\" or \"hidden\"");
  options.planner = planner == "none"     ? PlannerCache::kNone
                    : planner == "blocks" ? PlannerCache::kBlocks
                                          : PlannerCache::kHidden;
  return options;
}

Napi::Value CacheObject::create(Napi::Env env, std::shared_ptr<Model> model, const Napi::Value& lengths,
                                const Napi::Value& value) {
  auto offsets = to_vector<int32_t>(lengths, "offsets");
  const Napi::Object object = to_object(value, "options");
  const KvCacheOptions options = read_cache_options(object);
  auto first_blocks = get_optional_array<int32_t>(object, "firstBlocks");
  return Job<std::shared_ptr<KvCache>>::start(
      env,
      [model = std::move(model), offsets = std::move(offsets), options, first_blocks = std::move(first_blocks)] {
        return std::make_shared<KvCache>(model, offsets, options, first_blocks);
      },
      [](Napi::Env job_env, std::shared_ptr<KvCache>& cache) -> Napi::Value {
        Napi::Object made = job_env.GetInstanceData<AddonData>()->cache.New({});
        CacheObject* self = Unwrap(made);
        self->reported_bytes_ = int64_t(cache->bytes());
        Napi::MemoryManagement::AdjustExternalMemory(job_env, self->reported_bytes_);
        self->cache_ = std::move(cache);
        return made;
      });
}

std::shared_ptr<KvCache> CacheObject::cache_of(const Napi::Value& value) {
  if (absent(value)) return nullptr;
  const Napi::Env env = value.Env();
  const auto* data = env.GetInstanceData<AddonData>();
  if (!value.IsObject() || !value.As<Napi::Object>().InstanceOf(data->cache.Value()))
    type_error(env, "cache", "a KvCache");
  return Unwrap(value.As<Napi::Object>())->cache(env);
}

CacheObject::~CacheObject() { release(Env()); }

void CacheObject::release(Napi::Env env) {
  if (!cache_) return;
  Napi::MemoryManagement::AdjustExternalMemory(env, -reported_bytes_);
  cache_.reset();
}

std::shared_ptr<KvCache> CacheObject::cache(Napi::Env env) const {
  if (!cache_) throw make_error(env, ErrorCode::kDisposed, "this cache has been disposed");
  return cache_;
}

Napi::Value CacheObject::bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), double(cache(info.Env())->bytes()));
}

Napi::Value CacheObject::read(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsNumber() || !info[1].IsNumber()) type_error(env, "layer, row", "numbers");
  const int64_t layer = info[0].As<Napi::Number>().Int64Value(), row = info[1].As<Napi::Number>().Int64Value();
  if (layer < 0 || row < 0 || row > std::numeric_limits<int32_t>::max())
    type_error(env, "layer, row", "no negative numbers");
  return Job<std::vector<float>>::start(
      env,
      [held = cache(env), layer, row] {
        const std::lock_guard<std::mutex> lock(held->mutex());
        return held->read(size_t(layer), int(row));
      },
      [](Napi::Env job_env, std::vector<float>& values) -> Napi::Value { return to_array(job_env, values); });
}

void CacheObject::dispose(const Napi::CallbackInfo& info) { release(info.Env()); }

}  // namespace addon
}  // namespace dultra
