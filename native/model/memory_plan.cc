#include "model/memory_plan.h"

#include <algorithm>

namespace dultra {

namespace {

bool is_matrix(const TensorSpec& spec) {
  return spec.shape.size() == 2 && spec.role != TensorRole::kMaskEmbedding && spec.role != TensorRole::kPlannerLinear;
}

// Whether an optimiser may train the model's own bf16 numbers (Weights::bf16_rows): a device's matrices are row-major,
// whatever its products compute in.
bool is_split(const MemoryRequest& request, const TensorSpec& spec, DType storage) {
  if (!is_matrix(spec) || storage != DType::kBF16) return false;
  if (spec.role == TensorRole::kEmbedding) return !request.config.weight_tying;
  return request.on_device;
}

// Weights::bytes. Vectors are fp32; a tied table is held once more as the output head.
size_t weight_bytes(const MemoryRequest& request, const TensorSpec& spec, DType storage) {
  if (!is_matrix(spec)) return size_t(spec.elements()) * 4;
  if (spec.role == TensorRole::kRouter) storage = DType::kF32;
  const bool twice = spec.role == TensorRole::kEmbedding && request.config.weight_tying;
  return size_t(spec.elements()) * dtype_size(storage) * (twice ? 2 : 1);
}

void add_parameter(MemoryPlan& plan, int64_t elements, size_t master_size, DType moments) {
  plan.trainable += elements;
  plan.masters += size_t(elements) * master_size;
  plan.gradients += size_t(elements) * 4;
  plan.moments += size_t(elements) * 2 * dtype_size(moments);
}

// A and B as Lora adds them, their scaled copies, and the frozen weight.
void add_adapter(MemoryPlan& plan, const MemoryRequest& request, const TensorSpec& spec, bool split) {
  const int64_t elements = request.trainer.lora.rank * (spec.shape[0] + spec.shape[1]);
  add_parameter(plan, elements, 4, request.trainer.moments);
  plan.masters += size_t(elements) * 4 + size_t(spec.elements()) * (split ? 2 : 4);
}

}  // namespace

MemoryPlan plan_memory(const MemoryRequest& request) {
  const ModelConfig& config = request.config;
  const TrainerOptions& trainer = request.trainer;
  const std::vector<TensorSpec> table = tensor_table(config);
  check_argument(request.storage.size() == table.size(), "storage: expected one type for each tensor");
  check_trainable(config, trainer);
  const bool lora = trainer.lora.rank > 0, base_trains = !trainer.freeze_base || lora;
  MemoryPlan plan;
  for (size_t i = 0; i < table.size(); ++i) {
    const TensorSpec& spec = table[i];
    const bool split = is_split(request, spec, request.storage[i]);
    plan.parameters += spec.elements();
    plan.weights += weight_bytes(request, spec, request.storage[i]);
    if (spec.planner ? !trainer.freeze_planner : !trainer.freeze_base && !lora)
      add_parameter(plan, spec.elements(), split ? 2 : 4, trainer.moments);
    if (lora && is_adapter_target(spec.name, spec.planner, trainer.lora.targets))
      add_adapter(plan, request, spec, split);
  }

  plan.active = plan.parameters - idle_parameters(config);

  const int64_t n = request.tokens, c = config.hidden, v = config.embedding_size;
  const size_t activation = request.on_device && request.compute == Compute::kBF16 ? 2 : 4;
  const int64_t layers = (base_trains ? config.layers : 0) +
                         (config.planner.present && !trainer.freeze_planner ? config.planner.layers : 0);
  const size_t block = block_tape_bytes(config, n, activation);
  plan.activations = trainer.checkpointing ? size_t(layers * n * c) * 4 + block : size_t(layers) * block;
  const int64_t logits = 3 * std::min(n, head_rows(v)) * v;
  plan.scratch = block_forward_bytes(config, n, activation) + block_backward_bytes(config, n, activation) +
                 size_t(2 * n * c + logits) * 4;
  return plan;
}

}  // namespace dultra
