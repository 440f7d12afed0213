// The addon's entry: what lib/native/types.ts declares as NativeAddon.
#include <napi.h>

#include "addon/objects.h"
#include "backends/open_backend.h"

#ifndef DULTRA_VERSION
#error "DULTRA_VERSION is set by CMakeLists.txt from package.json"
#endif

namespace dultra {
namespace addon {

static Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto* data = new AddonData;
  CancelToken::init(env, data);
  CacheObject::init(env, data);
  TrainerObject::init(env, data);
  ModelObject::init(env, data);
  env.SetInstanceData(data);
  // A worker thread that is terminated waits for its native work: let that end soon.
  env.AddCleanupHook(
      [](AddonData* held) {
        for (const auto& weak : held->tokens)
          if (const auto token = weak.lock()) token->store(true);
      },
      data);
  exports.Set("version", DULTRA_VERSION);
  exports.Set("CancelToken", data->cancel_token.Value());
  exports.Set("cpuIsas", Napi::Function::New(env, [](const Napi::CallbackInfo& info) -> Napi::Value {
                const auto names = cpu_isas();
                auto array = Napi::Array::New(info.Env(), names.size());
                for (uint32_t i = 0; i < names.size(); ++i) array.Set(i, names[i]);
                return array;
              }));
  exports.Set("cudaDevices", Napi::Function::New(env, [](const Napi::CallbackInfo& info) -> Napi::Value {
                const CudaDevices found = cuda_devices();
                const size_t count = found.devices.size();
                auto names = Napi::Array::New(info.Env(), count), memory = Napi::Array::New(info.Env(), count);
                for (uint32_t i = 0; i < count; ++i) {
                  names.Set(i, found.devices[i].name);
                  memory.Set(i, double(found.devices[i].memory));
                }
                auto out = Napi::Object::New(info.Env());
                out.Set("names", names);
                out.Set("memory", memory);
                out.Set("built", found.built);
                out.Set("reason", found.reason);
                return out;
              }));
  exports.Set("loadModel", Napi::Function::New<&ModelObject::load>(env));
  init_config(env, exports);
  init_kernels(env, exports);
  init_distributed(env, exports);
  return exports;
}

}  // namespace addon
}  // namespace dultra

static Napi::Object dultra_init(Napi::Env env, Napi::Object exports) { return dultra::addon::init(env, exports); }

NODE_API_MODULE(dultra, dultra_init)
