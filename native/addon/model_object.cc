#include <optional>

#include "addon/args.h"
#include "addon/job.h"
#include "addon/objects.h"
#include "backends/open_backend.h"

namespace dultra {
namespace addon {

namespace {

struct LoadRequest {
  ModelConfig config;
  std::vector<std::string> files;
  std::vector<TensorRef> tensors;
  std::string device, isa;
  int threads = 1;
  Compute compute = Compute::kF32;
  WeightOptions weights;
};

std::shared_ptr<LoadRequest> read_request(const Napi::Object& object) {
  const Napi::Env env = object.Env();
  auto request = std::make_shared<LoadRequest>();
  request->config = read_config(to_object(object.Get("config"), "config"));
  request->files = to_strings(object.Get("files"), "files");
  const Napi::Value tensors = object.Get("tensors");
  if (!tensors.IsArray()) type_error(env, "tensors", "an array");
  constexpr int64_t kMaxOffset = int64_t(1) << 53;
  for (uint32_t i = 0; i < tensors.As<Napi::Array>().Length(); ++i) {
    const Napi::HandleScope scope(env);
    const Napi::Object t = to_object(tensors.As<Napi::Array>().Get(i), "tensors");
    TensorRef ref;
    ref.name = get_string(t, "name");
    ref.file = int(get_integer(t, "file", 0, 1 << 20));
    const std::string dtype = get_string(t, "dtype");
    ref.blocks = block_type(dtype);
    if (ref.blocks == BlockType::kNone) ref.dtype = get_dtype(env, dtype);
    ref.heads = get_integer(t, "heads", 0, 1 << 20, 0);
    ref.begin = uint64_t(get_integer(t, "begin", 0, kMaxOffset));
    ref.end = uint64_t(get_integer(t, "end", 0, kMaxOffset));
    ref.scales_file = int(get_integer(t, "scalesFile", -1, 1 << 20, -1));
    ref.scales_begin = uint64_t(get_integer(t, "scalesBegin", 0, kMaxOffset, 0));
    ref.scales_end = uint64_t(get_integer(t, "scalesEnd", 0, kMaxOffset, 0));
    if (const Napi::Value value = t.Get("gptq"); !absent(value)) {
      const Napi::Object gptq = to_object(value, "gptq");
      const auto place = [&](const char* name) {
        const Napi::Object at = to_object(gptq.Get(name), name);
        return TensorRef::Gptq::Place{int(get_integer(at, "file", 0, 1 << 20)),
                                      uint64_t(get_integer(at, "begin", 0, kMaxOffset)),
                                      uint64_t(get_integer(at, "end", 0, kMaxOffset))};
      };
      ref.gptq.bits = int(get_integer(gptq, "bits", 4, 8));
      ref.gptq.groups = get_integer(gptq, "groups", 1, int64_t(1) << 31);
      ref.gptq.zero_offset = int(get_integer(gptq, "zeroOffset", 0, 1));
      ref.gptq.zeros = place("zeros");
      ref.gptq.scales = place("scales");
      ref.gptq.group = place("group");
    }
    ref.shape = to_shape(t.Get("shape"));
    request->tensors.push_back(std::move(ref));
  }
  request->device = get_string(object, "device");
  request->threads = int(get_integer(object, "threads", 1, 1024));
  request->isa = get_string(object, "isa");
  const std::string storage = get_string(object, "storage");
  request->weights.keep_storage = storage == "auto";
  if (!request->weights.keep_storage) request->weights.storage = get_dtype(env, storage);
  const std::string compute = get_string(object, "compute");
  request->weights.int8 = compute == "int8";
  request->compute = request->weights.int8 ? Compute::kF32 : get_compute(object);
  const std::string blocks = get_string(object, "blocks");
  request->weights.keep_blocks = blocks != "decode";
  if (blocks != "decode" && blocks != "keep") {
    request->weights.quantise = block_type(blocks);
    if (!is_written(request->weights.quantise))
      type_error(env, "blocks", "\"keep\", \"decode\", \"Q8_0\", \"Q4_0\" or \"IQ4_NL\", got \"" + blocks + "\"");
  }
  return request;
}

}  // namespace

void ModelObject::init(Napi::Env env, AddonData* data) {
  data->model = Napi::Persistent(DefineClass(
      env, "Model",
      {InstanceMethod<&ModelObject::info>("info"), InstanceMethod<&ModelObject::forward>("forward"),
       InstanceMethod<&ModelObject::step>("step"), InstanceMethod<&ModelObject::share>("share"),
       InstanceMethod<&ModelObject::create_cache>("createCache"),
       InstanceMethod<&ModelObject::create_trainer>("createTrainer"), InstanceMethod<&ModelObject::weights>("weights"),
       InstanceMethod<&ModelObject::dispose>("dispose")}));
}

Napi::Value ModelObject::load(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto request = guarded(env, [&] { return read_request(to_object(info[0], "request")); });
  const auto token = CancelToken::state_of(info[1]);
  return Job<std::shared_ptr<Model>>::start(
      env,
      [request, token]() -> std::shared_ptr<Model> {
        auto backend = open_backend(request->device, request->threads, request->isa, request->compute);
        const Checkpoint checkpoint(request->files, std::move(request->tensors));
        return std::make_shared<Model>(request->config, std::move(backend), checkpoint, request->weights,
                                       token ? &token->cancelled : nullptr, token ? &token->progress : nullptr);
      },
      [threads = request->threads](Napi::Env job_env, std::shared_ptr<Model>& model) -> Napi::Value {
        Napi::Object object = job_env.GetInstanceData<AddonData>()->model.New({});
        ModelObject* self = Unwrap(object);
        self->threads_ = threads;
        self->reported_bytes_ = int64_t(model->weights().bytes());
        Napi::MemoryManagement::AdjustExternalMemory(job_env, self->reported_bytes_);
        self->model_ = std::move(model);
        return object;
      });
}

ModelObject::~ModelObject() { release(Env()); }

void ModelObject::release(Napi::Env env) {
  if (!model_) return;
  Napi::MemoryManagement::AdjustExternalMemory(env, -reported_bytes_);
  model_.reset();
}

std::shared_ptr<Model> ModelObject::model(Napi::Env env) const {
  if (!model_) throw make_error(env, ErrorCode::kDisposed, "this model has been disposed");
  return model_;
}

Napi::Value ModelObject::info(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto held = model(env);
  const Weights& weights = held->weights();
  Napi::Object out = Napi::Object::New(env);
  out.Set("device", held->backend().name());
  out.Set("isa", held->backend().isa());
  out.Set("threads", threads_);
  out.Set("parameters", double(weights.parameters()));
  out.Set("activeParameters", double(weights.parameters() - idle_parameters(held->config())));
  out.Set("plannerParameters", double(weights.planner_parameters()));
  out.Set("weightBytes", double(weights.bytes()));
  return out;
}

Napi::Value ModelObject::forward(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Napi::Object object = to_object(info[0], "request");
  auto request = std::make_shared<ForwardRequest>();
  request->ids = get_array<int32_t>(object, "ids");
  request->offsets = get_array<int32_t>(object, "offsets");
  request->logits = get_bool(object, "logits", false);
  if (const Napi::Value planner = object.Get("planner"); !absent(planner)) {
    request->planner = true;
    request->timestep = get_array<float>(to_object(planner, "planner"), "timestep");
    request->mask_index = get_array<uint8_t>(to_object(planner, "planner"), "maskIndex");
  }
  request->cache = CacheObject::cache_of(object.Get("cache"));
  request->positions = get_optional_array<int32_t>(object, "positions");
  request->first_blocks = get_optional_array<int32_t>(object, "firstBlocks");
  return Job<ForwardResult>::start(
      env,
      [held = model(env), request, flag = CancelToken::flag_of(info[1])] {
        return run_forward(*held, *request, flag.get());
      },
      [](Napi::Env job_env, ForwardResult& result) -> Napi::Value {
        Napi::Object out = Napi::Object::New(job_env);
        out.Set("hidden", to_array(job_env, std::move(result.hidden)));
        out.Set("logits", result.logits.empty() ? job_env.Null() : to_array(job_env, std::move(result.logits)));
        out.Set("plannerLogits",
                result.planner_logits.empty() ? job_env.Null() : to_array(job_env, std::move(result.planner_logits)));
        return out;
      });
}

Napi::Value ModelObject::share(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto held = model(env);
  Napi::Object object = env.GetInstanceData<AddonData>()->model.New({});
  ModelObject* self = Unwrap(object);
  self->threads_ = threads_;
  self->model_ = std::move(held);
  return object;
}

Napi::Value ModelObject::create_cache(const Napi::CallbackInfo& info) {
  return CacheObject::create(info.Env(), model(info.Env()), info[0], info[1]);
}

Napi::Value ModelObject::create_trainer(const Napi::CallbackInfo& info) {
  return TrainerObject::create(info.Env(), model(info.Env()), info[0]);
}

Napi::Value ModelObject::weights(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::vector<std::string> names;
  const bool all = absent(info[0]);
  if (!all) names = to_strings(info[0], "names");
  return Job<std::vector<NamedTensor>>::start(
      env,
      [held = model(env), names = std::move(names), all] {
        const std::shared_lock<WeightsMutex> lock(held->weights_mutex());
        return held->weights().read_all(all ? nullptr : &names);
      },
      tensors_to_js);
}

void ModelObject::dispose(const Napi::CallbackInfo& info) { release(info.Env()); }

}  // namespace addon
}  // namespace dultra
