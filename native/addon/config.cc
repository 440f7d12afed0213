// NativeModelConfig in; what follows from a config alone out: its tensors and what they take in memory.
#include "addon/args.h"
#include "addon/job.h"
#include "addon/objects.h"
#include "model/memory_plan.h"

namespace dultra {
namespace addon {

namespace {

bool optional_bool(const Napi::Object& object, const char* name) {
  return !absent(object.Get(name)) && get_bool(object, name);
}

MaskKind get_mask(const Napi::Object& object) {
  if (absent(object.Get("mask"))) return MaskKind::kBidirectional;
  const std::string mask = get_string(object, "mask");
  if (mask == "bidirectional") return MaskKind::kBidirectional;
  if (mask == "causal") return MaskKind::kCausal;
  if (mask == "block-causal") return MaskKind::kBlockCausal;
  type_error(object.Env(), "mask", "\"bidirectional\", \"causal\" or \"block-causal\", got \"" + mask + "\"");
}

MlpKind get_mlp(const Napi::Object& object) {
  const std::string kind = absent(object.Get("mlp")) ? "swiglu" : get_string(object, "mlp");
  if (kind != "swiglu") type_error(object.Env(), "mlp", "\"swiglu\", got \"" + kind + "\"");
  return MlpKind::kSwiGlu;
}

// `ropeScaling` null: none.
Rope get_rope(const Napi::Object& object, int head_dim) {
  Rope rope;
  rope.theta = float(get_number(object, "ropeTheta"));
  rope.dim = absent(object.Get("ropeDim")) ? head_dim : int(get_integer(object, "ropeDim", 0, head_dim));
  check_argument(rope.dim % 2 == 0, "config: ropeDim must be even");
  if (absent(object.Get("ropeScaling"))) return rope;
  const Napi::Object scaling = to_object(object.Get("ropeScaling"), "ropeScaling");
  const std::string type = get_string(scaling, "type");
  rope.factor = float(get_number(scaling, "factor"));
  check_argument(rope.factor > 0, "config: ropeScaling.factor must be above 0");
  if (type == "linear") {
    rope.scaling = RopeScaling::kLinear;
    return rope;
  }
  if (type != "llama3") type_error(object.Env(), "ropeScaling.type", "\"linear\" or \"llama3\", got \"" + type + "\"");
  rope.scaling = RopeScaling::kLlama3;
  rope.low_frequency = float(get_number(scaling, "lowFreqFactor"));
  rope.high_frequency = float(get_number(scaling, "highFreqFactor"));
  rope.original_positions = float(get_number(scaling, "originalMaxPositionEmbeddings"));
  check_argument(rope.low_frequency > 0 && rope.high_frequency > rope.low_frequency,
                 "config: ropeScaling.highFreqFactor must be above lowFreqFactor, and that above 0");
  return rope;
}

ExpertsConfig read_experts(const Napi::Object& object, int layers) {
  ExpertsConfig experts;
  experts.count = int(get_integer(object, "count", 2, kMostExperts));
  experts.per_token = int(get_integer(object, "perToken", 1, experts.count));
  experts.hidden = get_integer(object, "hiddenSize", 1, 1 << 24);
  experts.shared_hidden = get_integer(object, "sharedHiddenSize", 0, 1 << 24);
  const std::string scores = get_string(object, "scores");
  if (scores != "softmax" && scores != "sigmoid")
    type_error(object.Env(), "experts.scores", "\"softmax\" or \"sigmoid\", got \"" + scores + "\"");
  experts.sigmoid = scores == "sigmoid";
  experts.normalise = get_bool(object, "normalize");
  experts.scale = float(get_number(object, "scale"));
  if (!absent(object.Get("bias"))) {
    const std::string bias = get_string(object, "bias");
    if (bias != "choice" && bias != "weight")
      type_error(object.Env(), "experts.bias", "\"choice\", \"weight\" or null, got \"" + bias + "\"");
    experts.bias = bias == "choice" ? ExpertBias::kChoice : ExpertBias::kWeight;
  }
  experts.groups = int(get_integer(object, "groups", 1, experts.count));
  experts.groups_kept = int(get_integer(object, "groupsPerToken", 1, experts.groups));
  check_argument(experts.groups == 1 || (experts.count % experts.groups == 0 && experts.count / experts.groups >= 2),
                 "config: experts.groups must divide experts.count into groups of at least two");
  check_argument(experts.per_token <= experts.count / experts.groups * experts.groups_kept,
                 "config: experts.perToken must be at most the experts of groupsPerToken groups");
  const Napi::Value flags = object.Get("layers");
  if (!flags.IsArray()) type_error(object.Env(), "experts.layers", "an array of booleans");
  const auto list = flags.As<Napi::Array>();
  check_argument(int64_t(list.Length()) == layers, "config: experts.layers must have nLayers entries");
  for (uint32_t i = 0; i < list.Length(); ++i) experts.layers.push_back(list.Get(i).ToBoolean());
  return experts;
}

PlannerConfig read_planner(const Napi::Object& object) {
  PlannerConfig planner;
  planner.present = true;
  planner.layers = int(get_integer(object, "numLayers", 0, 1 << 10));
  planner.use_adaln = get_bool(object, "useAdaln");
  planner.use_mask_embeddings = get_bool(object, "useMaskEmbeddings");
  return planner;
}

}  // namespace

ModelConfig read_config(const Napi::Object& object) {
  constexpr int64_t kMax = int64_t(1) << 30;
  ModelConfig config;
  config.hidden = get_integer(object, "dModel", 2, 1 << 20);
  config.heads = int(get_integer(object, "nHeads", 1, 1 << 16));
  config.kv_heads = int(get_integer(object, "nKvHeads", 1, 1 << 16));
  config.layers = int(get_integer(object, "nLayers", 0, 1 << 16));
  config.mlp_hidden = get_integer(object, "mlpHiddenSize", 1, 1 << 24);
  config.embedding_size = get_integer(object, "embeddingSize", 1, kMax);
  config.max_sequence_length = get_integer(object, "maxSequenceLength", 1, kMax);
  config.rms_norm_eps = float(get_number(object, "rmsNormEps"));
  config.weight_tying = get_bool(object, "weightTying");
  config.qkv_bias = optional_bool(object, "qkvBias");
  config.attn_out_bias = optional_bool(object, "attnOutBias");
  config.mlp_bias = optional_bool(object, "mlpBias");
  config.head_bias = optional_bool(object, "headBias");
  config.mlp = get_mlp(object);
  if (const Napi::Value experts = object.Get("experts"); !absent(experts))
    config.experts = read_experts(to_object(experts, "experts"), config.layers);
  if (!absent(object.Get("clipQkv"))) {
    config.clip_qkv = float(get_number(object, "clipQkv"));
    check_argument(config.clip_qkv > 0, "config: clipQkv must be above 0");
  }
  config.qk_norm = optional_bool(object, "qkNorm");
  config.shift_logits = optional_bool(object, "shiftLogits");
  config.mask = get_mask(object);
  if (config.mask == MaskKind::kBlockCausal) config.block_length = int(get_integer(object, "blockLength", 1, 1 << 20));
  // A causal model has no mask token.
  const bool causal = config.mask == MaskKind::kCausal;
  config.mask_token = int32_t(get_integer(object, "maskTokenId", causal ? -1 : 0, config.embedding_size - 1));
  if (const Napi::Value planner = object.Get("planner"); !absent(planner))
    config.planner = read_planner(to_object(planner, "planner"));
  if (absent(object.Get("headDim"))) {
    check_argument(config.hidden % config.heads == 0, "config: dModel / nHeads must be an integer without headDim");
    config.head_dim = int(config.hidden / config.heads);
  } else {
    config.head_dim = int(get_integer(object, "headDim", 2, 1 << 16));
  }
  check_argument(config.head_dim % 2 == 0, "config: headDim must be even");
  config.rope = get_rope(object, config.head_dim);
  check_argument(config.heads % config.kv_heads == 0, "config: nHeads must be a multiple of nKvHeads");
  return config;
}

Napi::Value shape_to_js(Napi::Env env, const std::vector<int64_t>& shape) {
  auto out = Napi::Array::New(env, shape.size());
  for (uint32_t i = 0; i < shape.size(); ++i) out.Set(i, double(shape[i]));
  return out;
}

namespace {

Napi::Value tensors(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto table = guarded(env, [&] { return tensor_table(read_config(to_object(info[0], "config"))); });
  auto out = Napi::Array::New(env, table.size());
  for (uint32_t i = 0; i < table.size(); ++i) {
    const Napi::HandleScope scope(env);
    Napi::Object tensor = Napi::Object::New(env);
    tensor.Set("name", table[i].name);
    tensor.Set("shape", shape_to_js(env, table[i].shape));
    tensor.Set("group", table[i].planner ? "planner" : "base");
    out.Set(i, tensor);
  }
  return out;
}

MemoryRequest read_memory_request(const Napi::Object& object) {
  MemoryRequest request;
  request.config = read_config(to_object(object.Get("config"), "config"));
  for (const std::string& dtype : to_strings(object.Get("storage"), "storage")) {
    request.blocks.push_back(block_type(dtype));
    const bool is_plain = request.blocks.back() == BlockType::kNone;
    request.storage.push_back(is_plain ? get_dtype(object.Env(), dtype) : DType::kF32);
  }
  request.on_device = get_bool(object, "onDevice");
  request.compute = get_compute(object);
  request.trainer = read_trainer_options(to_object(object.Get("trainer"), "trainer"));
  request.ranks = int(get_integer(object, "ranks", 1, 1 << 20));
  request.tokens = get_integer(object, "tokens", 0, int64_t(1) << 30);
  return request;
}

Napi::Value memory_plan(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const MemoryPlan plan = guarded(env, [&] { return plan_memory(read_memory_request(to_object(info[0], "request"))); });
  Napi::Object out = Napi::Object::New(env);
  out.Set("parameters", double(plan.parameters));
  out.Set("active", double(plan.active));
  out.Set("trainable", double(plan.trainable));
  out.Set("weights", double(plan.weights));
  out.Set("masters", double(plan.masters));
  out.Set("gradients", double(plan.gradients));
  out.Set("moments", double(plan.moments));
  out.Set("fixedPoint", double(plan.sums.fixed));
  out.Set("underWay", double(plan.sums.exchange));
  out.Set("activations", double(plan.activations));
  out.Set("exchange", double(plan.exchange));
  out.Set("scratch", double(plan.scratch));
  return out;
}

Napi::Value cache_bytes(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[1].IsNumber()) type_error(env, "tokens", "a number");
  return guarded(env, [&] {
    const size_t bytes =
        KvCache::bytes_needed(read_config(to_object(info[0], "config")), info[1].As<Napi::Number>().Int64Value(),
                              read_cache_options(to_object(info[2], "options")));
    return Napi::Number::New(env, double(bytes));
  });
}

}  // namespace

void init_config(Napi::Env env, Napi::Object exports) {
  exports.Set("tensors", Napi::Function::New(env, tensors, "tensors"));
  exports.Set("planMemory", Napi::Function::New(env, memory_plan, "planMemory"));
  exports.Set("cacheBytes", Napi::Function::New(env, cache_bytes, "cacheBytes"));
}

}  // namespace addon
}  // namespace dultra
