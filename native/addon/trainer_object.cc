#include "addon/args.h"
#include "addon/job.h"
#include "addon/objects.h"
#include "distributed/mpi.h"
#include "distributed/nccl.h"

namespace dultra {
namespace addon {

namespace {

std::vector<NamedTensor> read_tensors(const Napi::Value& value) {
  const Napi::Env env = value.Env();
  if (!value.IsArray()) type_error(env, "tensors", "an array");
  const auto array = value.As<Napi::Array>();
  std::vector<NamedTensor> out;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::HandleScope scope(env);
    const Napi::Object object = to_object(array.Get(i), "tensors");
    NamedTensor tensor;
    tensor.name = get_string(object, "name");
    tensor.data = get_array<float>(object, "data");
    tensor.shape = to_shape(object.Get("shape"));
    out.push_back(std::move(tensor));
  }
  return out;
}

// Empty results were not asked for.
template <typename T>
Napi::Value optional_array(Napi::Env env, bool wanted, const std::vector<T>& values) {
  return wanted ? to_array(env, values) : env.Null();
}

}  // namespace

Napi::Value tensors_to_js(Napi::Env env, const std::vector<NamedTensor>& tensors) {
  auto out = Napi::Array::New(env, tensors.size());
  for (uint32_t i = 0; i < tensors.size(); ++i) {
    const Napi::HandleScope scope(env);
    Napi::Object object = Napi::Object::New(env);
    object.Set("name", tensors[i].name);
    object.Set("shape", shape_to_js(env, tensors[i].shape));
    object.Set("data", to_array(env, tensors[i].data));
    out.Set(i, object);
  }
  return out;
}

void TrainerObject::init(Napi::Env env, AddonData* data) {
  data->trainer = Napi::Persistent(DefineClass(
      env, "Trainer",
      {InstanceMethod<&TrainerObject::parameters>("parameters"), InstanceMethod<&TrainerObject::score>("score"),
       InstanceMethod<&TrainerObject::backward>("backward"),
       InstanceMethod<&TrainerObject::join_backward>("joinBackward"),
       InstanceMethod<&TrainerObject::connect>("connect"), InstanceMethod<&TrainerObject::zero_grad>("zeroGrad"),
       InstanceMethod<&TrainerObject::grad_norm>("gradNorm"), InstanceMethod<&TrainerObject::step>("step"),
       InstanceMethod<&TrainerObject::gradients>("gradients"), InstanceMethod<&TrainerObject::state>("state"),
       InstanceMethod<&TrainerObject::load_state>("loadState"),
       InstanceMethod<&TrainerObject::set_adapters>("setAdapters"),
       InstanceMethod<&TrainerObject::dispose>("dispose")}));
}

TrainerOptions read_trainer_options(const Napi::Object& object) {
  const Napi::Env env = object.Env();
  TrainerOptions options;
  options.freeze_base = get_bool(object, "freezeBase");
  options.freeze_planner = get_bool(object, "freezePlanner");
  options.checkpointing = get_bool(object, "checkpointing");
  if (const Napi::Value lora = object.Get("lora"); !absent(lora)) {
    const Napi::Object l = to_object(lora, "lora");
    options.lora.rank = int(get_integer(l, "rank", 1, 1 << 16));
    options.lora.alpha = get_number(l, "alpha");
    options.lora.targets = to_strings(l.Get("targets"), "lora.targets");
  }
  const std::string moments = get_string(object, "moments");
  if (moments != "float32" && moments != "bfloat16") type_error(env, "moments", "\"float32\" or \"bfloat16\"");
  options.moments = moments == "bfloat16" ? DType::kBF16 : DType::kF32;
  const std::string reduction = get_string(object, "reduction");
  if (reduction != "sum" && reduction != "exact") type_error(env, "reduction", "\"sum\" or \"exact\"");
  options.reduction = reduction == "exact" ? Reduction::kExact : Reduction::kSum;
  options.zero_stage = int(get_integer(object, "zeroStage", 0, 2));
  options.seed = get_u64(object, "seed");
  return options;
}

Napi::Value TrainerObject::create(Napi::Env env, std::shared_ptr<Model> model, const Napi::Value& value) {
  const TrainerOptions options = read_trainer_options(to_object(value, "options"));
  return Job<std::shared_ptr<Trainer>>::start(
      env, [model = std::move(model), options] { return std::make_shared<Trainer>(model, options, world()); },
      [](Napi::Env job_env, std::shared_ptr<Trainer>& trainer) -> Napi::Value {
        Napi::Object made = job_env.GetInstanceData<AddonData>()->trainer.New({});
        TrainerObject* self = Unwrap(made);
        self->reported_bytes_ = int64_t(trainer->bytes());
        Napi::MemoryManagement::AdjustExternalMemory(job_env, self->reported_bytes_);
        self->trainer_ = std::move(trainer);
        return made;
      });
}

TrainerObject::~TrainerObject() { release(Env()); }

void TrainerObject::release(Napi::Env env) {
  if (!trainer_) return;
  Napi::MemoryManagement::AdjustExternalMemory(env, -reported_bytes_);
  trainer_.reset();
}

std::shared_ptr<Trainer> TrainerObject::trainer(Napi::Env env) const {
  if (!trainer_) throw make_error(env, ErrorCode::kDisposed, "this trainer has been disposed");
  return trainer_;
}

Napi::Value TrainerObject::parameters(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto held = trainer(env);
  const auto& list = held->parameters();
  auto out = Napi::Array::New(env, list.size());
  for (uint32_t i = 0; i < list.size(); ++i) {
    Napi::Object object = Napi::Object::New(env);
    object.Set("name", list[i]->name);
    object.Set("shape", shape_to_js(env, list[i]->shape));
    object.Set("group", list[i]->planner ? "planner" : "base");
    out.Set(i, object);
  }
  return out;
}

Napi::Value TrainerObject::score(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Napi::Object object = to_object(info[0], "request");
  auto request = std::make_shared<ScoreRequest>();
  request->ids = get_array<int32_t>(object, "ids");
  request->offsets = get_array<int32_t>(object, "offsets");
  request->hidden = get_optional_array<float>(object, "hidden");
  request->positions = get_array<int32_t>(object, "positions");
  request->candidate_offsets = get_optional_array<int32_t>(object, "candidateOffsets");
  // Candidates of a single row need no offsets.
  if (absent(object.Get("candidateOffsets"))) request->candidate_offsets = {0, int32_t(request->positions.size())};
  request->log_probs = !absent(object.Get("tokens"));
  request->tokens = get_optional_array<int32_t>(object, "tokens");
  request->temperature = float(get_number(object, "temperature", request->temperature));
  request->excluded_token =
      int32_t(get_integer(object, "excludedToken", -1, int64_t(1) << 30, request->excluded_token));
  request->confidences = get_bool(object, "confidences", false);
  request->logits = get_bool(object, "logits", false);
  request->entropy_temperature = float(get_number(object, "entropyTemperature", 0));
  if (const Napi::Value planner = object.Get("planner"); !absent(planner)) {
    request->planner = true;
    request->timestep = get_array<float>(to_object(planner, "planner"), "timestep");
    request->mask_index = get_array<uint8_t>(to_object(planner, "planner"), "maskIndex");
  }
  if (const Napi::Value value = object.Get("policy"); !absent(value)) {
    const Napi::Object policy = to_object(value, "policy");
    request->policy = true;
    request->selected = get_array<uint8_t>(policy, "selected");
    request->forced = get_array<uint8_t>(policy, "forced");
    request->planner_temperature = float(get_number(policy, "plannerTemperature", request->planner_temperature));
    request->probability_scale = float(get_number(policy, "probabilityScale", request->probability_scale));
    request->reference_likelihood = get_bool(policy, "referenceLikelihood", false);
  }
  if (const Napi::Value value = object.Get("cached"); !absent(value)) {
    const Napi::Object cached = to_object(value, "cached");
    request->cache = CacheObject::cache_of(cached.Get("cache"));
    if (!request->cache) type_error(env, "cached.cache", "a KvCache");
    request->rows = get_array<int32_t>(cached, "rows");
    request->query_positions = get_array<int32_t>(cached, "positions");
  }
  request->first_blocks = get_optional_array<int32_t>(object, "firstBlocks");
  request->keep = get_bool(object, "keep", false);
  struct Wanted {
    bool log_probs, planner, policy, confidences, entropies, logits;
  };
  const Wanted wanted{request->log_probs || request->policy,
                      request->planner,
                      request->policy,
                      request->confidences,
                      request->entropies(),
                      request->logits};
  return Job<ScoreResult>::start(
      env,
      [held = trainer(env), request, flag = CancelToken::flag_of(info[1])] {
        return held->score(std::move(*request), flag.get());
      },
      [wanted](Napi::Env job_env, ScoreResult& result) -> Napi::Value {
        Napi::Object out = Napi::Object::New(job_env);
        out.Set("logProbs", optional_array(job_env, wanted.log_probs, result.log_probs));
        out.Set("plannerLogits", optional_array(job_env, wanted.planner, result.planner_logits));
        out.Set("logLikelihoods", optional_array(job_env, wanted.policy, result.log_likelihoods));
        out.Set("argmax", optional_array(job_env, wanted.confidences, result.argmax));
        out.Set("confidences", optional_array(job_env, wanted.confidences, result.confidences));
        out.Set("entropies", optional_array(job_env, wanted.entropies, result.entropies));
        out.Set("logits", optional_array(job_env, wanted.logits, result.logits));
        return out;
      });
}

Napi::Value TrainerObject::backward(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Napi::Object object = to_object(info[0], "request");
  auto request = std::make_shared<BackwardRequest>();
  request->dlog_probs = get_optional_array<float>(object, "dLogProbs");
  request->dplanner_logits = get_optional_array<float>(object, "dPlannerLogits");
  request->dlog_likelihoods = get_optional_array<float>(object, "dLogLikelihoods");
  request->dentropies = get_optional_array<float>(object, "dEntropies");
  request->dlogits = get_optional_array<float>(object, "dLogits");
  request->last = get_bool(object, "last", false);
  return Job<std::vector<float>>::start(
      env,
      [held = trainer(env), request, flag = CancelToken::flag_of(info[1])] {
        return held->backward(*request, flag.get());
      },
      [](Napi::Env job_env, std::vector<float>& dhidden) -> Napi::Value {
        Napi::Object out = Napi::Object::New(job_env);
        out.Set("dHidden", optional_array(job_env, !dhidden.empty(), dhidden));
        return out;
      });
}

namespace {

// Work without a result.
struct Nothing {};
Napi::Value undefined(Napi::Env env, Nothing&) { return env.Undefined(); }

}  // namespace

Napi::Value TrainerObject::join_backward(const Napi::CallbackInfo& info) {
  const bool last = get_bool(to_object(info[0], "request"), "last", false);
  return Job<Nothing>::start(
      info.Env(),
      [held = trainer(info.Env()), last] {
        held->join_backward(last);
        return Nothing{};
      },
      undefined);
}

Napi::Value TrainerObject::connect(const Napi::CallbackInfo& info) {
  return Job<DeviceRanks>::start(
      info.Env(), [held = trainer(info.Env())] { return held->connect(connect_devices); },
      [](Napi::Env env, DeviceRanks& found) -> Napi::Value {
        Napi::Object out = Napi::Object::New(env);
        out.Set("version", found.version);
        out.Set("reason", found.reason);
        return out;
      });
}

Napi::Value TrainerObject::zero_grad(const Napi::CallbackInfo& info) {
  return Job<Nothing>::start(
      info.Env(),
      [held = trainer(info.Env())] {
        held->zero_grad();
        return Nothing{};
      },
      undefined);
}

Napi::Value TrainerObject::grad_norm(const Napi::CallbackInfo& info) {
  return Job<double>::start(
      info.Env(), [held = trainer(info.Env())] { return held->grad_norm(); },
      [](Napi::Env env, double& norm) -> Napi::Value { return Napi::Number::New(env, norm); });
}

Napi::Value TrainerObject::step(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Napi::Object object = to_object(info[0], "request");
  OptimizerStep request;
  request.base_lr = get_number(object, "baseLr");
  request.planner_lr = get_number(object, "plannerLr");
  request.beta1 = get_number(object, "beta1", request.beta1);
  request.beta2 = get_number(object, "beta2", request.beta2);
  request.eps = get_number(object, "eps", request.eps);
  request.weight_decay = get_number(object, "weightDecay", request.weight_decay);
  request.max_grad_norm = get_number(object, "maxGradNorm", request.max_grad_norm);
  using Result = std::pair<double, int64_t>;
  return Job<Result>::start(
      env,
      [held = trainer(env), request] {
        const double norm = held->step(request);
        return Result(norm, held->steps());
      },
      [](Napi::Env job_env, Result& result) -> Napi::Value {
        Napi::Object out = Napi::Object::New(job_env);
        out.Set("gradNorm", result.first);
        out.Set("step", double(result.second));
        return out;
      });
}

Napi::Value TrainerObject::gradients(const Napi::CallbackInfo& info) {
  return Job<std::vector<NamedTensor>>::start(
      info.Env(), [held = trainer(info.Env())] { return held->gradients(); }, tensors_to_js);
}

Napi::Value TrainerObject::state(const Napi::CallbackInfo& info) {
  using Result = std::pair<int64_t, std::vector<NamedTensor>>;
  return Job<Result>::start(
      info.Env(),
      [held = trainer(info.Env())] {
        auto tensors = held->state();
        return Result(held->steps(), std::move(tensors));
      },
      [](Napi::Env env, Result& result) -> Napi::Value {
        Napi::Object out = Napi::Object::New(env);
        out.Set("step", double(result.first));
        out.Set("tensors", tensors_to_js(env, result.second));
        return out;
      });
}

Napi::Value TrainerObject::load_state(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Napi::Object object = to_object(info[0], "state");
  const int64_t steps = get_integer(object, "step", 0, int64_t(1) << 53);
  auto tensors = std::make_shared<std::vector<NamedTensor>>(read_tensors(object.Get("tensors")));
  return Job<Nothing>::start(
      env,
      [held = trainer(env), steps, tensors] {
        held->load_state(steps, *tensors);
        return Nothing{};
      },
      undefined);
}

Napi::Value TrainerObject::set_adapters(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string mode = info[0].IsString() ? info[0].As<Napi::String>().Utf8Value() : "";
  if (mode != "on" && mode != "off") type_error(env, "mode", "\"on\" or \"off\"");
  return Job<Nothing>::start(
      env,
      [held = trainer(env), on = mode == "on"] {
        held->set_adapters(on);
        return Nothing{};
      },
      undefined);
}

void TrainerObject::dispose(const Napi::CallbackInfo& info) { release(info.Env()); }

}  // namespace addon
}  // namespace dultra
