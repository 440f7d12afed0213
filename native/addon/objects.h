// The handles that JavaScript holds: Model, KvCache, Trainer, CancelToken.
#pragma once
#include <napi.h>

#include <atomic>
#include <memory>

#include "model/forward.h"
#include "model/step.h"
#include "model/trainer.h"

namespace dultra {
namespace addon {

// Constructors, kept per environment (main thread and every worker thread have their own).
struct AddonData {
  Napi::FunctionReference model, cache, trainer, cancel_token;
  // Cancelled when the environment goes away.
  std::vector<std::weak_ptr<std::atomic<bool>>> tokens;
};

// Cancels a job from JavaScript, and reads its progress, while it runs on another thread.
class CancelToken final : public Napi::ObjectWrap<CancelToken> {
 public:
  struct State {
    std::atomic<bool> cancelled{false};
    LoadProgress progress;
  };
  static void init(Napi::Env env, AddonData* data);
  explicit CancelToken(const Napi::CallbackInfo& info);
  // Of an optional argument, or null.
  static std::shared_ptr<State> state_of(const Napi::Value& value);
  static std::shared_ptr<std::atomic<bool>> flag_of(const Napi::Value& value);

 private:
  void cancel(const Napi::CallbackInfo& info);
  Napi::Value progress(const Napi::CallbackInfo& info);
  const std::shared_ptr<State> state_ = std::make_shared<State>();
};

class CacheObject final : public Napi::ObjectWrap<CacheObject> {
 public:
  static void init(Napi::Env env, AddonData* data);
  explicit CacheObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<CacheObject>(info) {}
  ~CacheObject() override;
  // A promise of a cache for rows of `model`; see NativeCacheOptions.
  static Napi::Value create(Napi::Env env, std::shared_ptr<Model> model, const Napi::Value& offsets,
                            const Napi::Value& options);
  // The cache of an optional argument, or null.
  static std::shared_ptr<KvCache> cache_of(const Napi::Value& value);

 private:
  Napi::Value bytes(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);
  std::shared_ptr<KvCache> cache(Napi::Env env) const;
  void release(Napi::Env env);
  std::shared_ptr<KvCache> cache_;
  int64_t reported_bytes_ = 0;  // told to the garbage collector
};

class ModelObject final : public Napi::ObjectWrap<ModelObject> {
 public:
  static void init(Napi::Env env, AddonData* data);
  explicit ModelObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ModelObject>(info) {}
  ~ModelObject() override;
  // loadModel(request, cancelToken?)
  static Napi::Value load(const Napi::CallbackInfo& info);

 private:
  Napi::Value info(const Napi::CallbackInfo& info);
  Napi::Value forward(const Napi::CallbackInfo& info);
  Napi::Value step(const Napi::CallbackInfo& info);
  Napi::Value share(const Napi::CallbackInfo& info);
  Napi::Value create_cache(const Napi::CallbackInfo& info);
  Napi::Value create_trainer(const Napi::CallbackInfo& info);
  Napi::Value weights(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);
  std::shared_ptr<Model> model(Napi::Env env) const;
  void release(Napi::Env env);
  std::shared_ptr<Model> model_;
  int threads_ = 0;
  int64_t reported_bytes_ = 0;  // told to the garbage collector
};

class TrainerObject final : public Napi::ObjectWrap<TrainerObject> {
 public:
  static void init(Napi::Env env, AddonData* data);
  explicit TrainerObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<TrainerObject>(info) {}
  ~TrainerObject() override;
  // A promise of a trainer of `model`; see NativeTrainerOptions.
  static Napi::Value create(Napi::Env env, std::shared_ptr<Model> model, const Napi::Value& options);

 private:
  Napi::Value parameters(const Napi::CallbackInfo& info);
  Napi::Value score(const Napi::CallbackInfo& info);
  Napi::Value backward(const Napi::CallbackInfo& info);
  Napi::Value join_backward(const Napi::CallbackInfo& info);
  Napi::Value connect(const Napi::CallbackInfo& info);
  Napi::Value zero_grad(const Napi::CallbackInfo& info);
  Napi::Value grad_norm(const Napi::CallbackInfo& info);
  Napi::Value step(const Napi::CallbackInfo& info);
  Napi::Value gradients(const Napi::CallbackInfo& info);
  Napi::Value state(const Napi::CallbackInfo& info);
  Napi::Value load_state(const Napi::CallbackInfo& info);
  Napi::Value set_adapters(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);
  std::shared_ptr<Trainer> trainer(Napi::Env env) const;
  void release(Napi::Env env);
  std::shared_ptr<Trainer> trainer_;
  int64_t reported_bytes_ = 0;  // told to the garbage collector
};

// The shapes and constants of NativeModelConfig. Throws Error INVALID_ARGUMENT, TypeError, RangeError.
ModelConfig read_config(const Napi::Object& object);
// A shape as an array of numbers.
Napi::Value shape_to_js(Napi::Env env, const std::vector<int64_t>& shape);
// An array of { name, shape, data }.
Napi::Value tensors_to_js(Napi::Env env, const std::vector<NamedTensor>& tensors);

// NativeTrainerOptions and NativeCacheOptions.
TrainerOptions read_trainer_options(const Napi::Object& object);
KvCacheOptions read_cache_options(const Napi::Object& object);

// What follows from a config alone: tensors, planMemory, cacheBytes.
void init_config(Napi::Env env, Napi::Object exports);

// What processes exchange: openMpi, startMpi, group, gatherBytes, barrier, finalizeMpi, abortMpi.
void init_distributed(Napi::Env env, Napi::Object exports);

// maskedAttention, sample, plannerScore, unmask, adamw.
void init_kernels(Napi::Env env, Napi::Object exports);

}  // namespace addon
}  // namespace dultra
