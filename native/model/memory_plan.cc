#include "model/memory_plan.h"

#include <algorithm>
#include <map>

#include "ops/expansion.h"

namespace dultra {

namespace {

bool is_matrix(const TensorSpec& spec) {
  return spec.shape.size() == 2 && spec.role != TensorRole::kMaskEmbedding && spec.role != TensorRole::kPlannerLinear;
}

// Whether an optimiser may train the model's own bf16 numbers (Weights::bf16_rows): a device's matrices are row-major,
// whatever its products compute in.
bool is_split(const MemoryRequest& request, const TensorSpec& spec, DType storage, BlockType blocks) {
  if (!is_matrix(spec) || storage != DType::kBF16 || blocks != BlockType::kNone) return false;
  if (spec.role == TensorRole::kEmbedding) return !request.config.weight_tying;
  return request.on_device;
}

// Weights::bytes. Vectors are fp32; a tied table is held once more as the output head.
size_t weight_bytes(const MemoryRequest& request, const TensorSpec& spec, DType storage, BlockType blocks) {
  if (!is_matrix(spec)) return size_t(spec.elements()) * 4;
  const bool twice = spec.role == TensorRole::kEmbedding && request.config.weight_tying;
  if (spec.role == TensorRole::kRouter) return size_t(spec.elements()) * 4;
  if (blocks == BlockType::kNone) return size_t(spec.elements()) * dtype_size(storage) * (twice ? 2 : 1);
  return size_t(spec.shape[0] * block_row_bytes(blocks, spec.shape[1])) * (twice ? 2 : 1);
}

// Of `elements`, what one of the ranks has that share them; the share of a whole arena, to which they add up, is
// rounded to blocks of a thousandth.
int64_t share_of(const MemoryRequest& request, int64_t elements) {
  return request.trainer.zero_stage > 0 ? (elements + request.ranks - 1) / request.ranks : elements;
}

void add_parameter(MemoryPlan& plan, const MemoryRequest& request, std::vector<BucketPart>& parts, Stages stages,
                   int64_t elements, size_t master_size, bool whole_master) {
  plan.trainable += elements;
  parts.push_back({aligned_numbers(elements), stages});
  plan.masters += size_t(whole_master ? elements : share_of(request, elements)) * master_size;
  plan.moments += size_t(share_of(request, elements)) * 2 * dtype_size(request.trainer.moments);
}

// Numbers that share_updates holds at once: of tensors that stand in one matrix.
int64_t exchanged_at_once(const std::vector<const TensorSpec*>& trained) {
  std::map<std::pair<int, int>, int64_t> together;  // by layer and matrix
  int64_t most = 0;
  for (const TensorSpec* spec : trained) {
    const bool is_qkv = spec->role == TensorRole::kQ || spec->role == TensorRole::kK || spec->role == TensorRole::kV,
               is_gate_up = spec->role == TensorRole::kGate || spec->role == TensorRole::kUp;
    int64_t elements = spec->elements();
    if (is_qkv || is_gate_up) elements = together[{spec->layer * 2 + (spec->planner ? 1 : 0), is_qkv}] += elements;
    most = std::max(most, elements);
  }
  return most;
}

// A and B as Lora adds them, their scaled copies, and the frozen weight, or over blocks what is computed beside these.
void add_adapter(MemoryPlan& plan, const MemoryRequest& request, std::vector<BucketPart>& parts, const TensorSpec& spec,
                 bool split, BlockType blocks) {
  const int64_t elements = request.trainer.lora.rank * (spec.shape[0] + spec.shape[1]);
  add_parameter(plan, request, parts, gradient_stages(request.config, spec), elements, 4, true);
  plan.masters += size_t(elements) * 4;
  plan.masters += blocks != BlockType::kNone ? size_t(elements) * 4 : size_t(spec.elements()) * (split ? 2 : 4);
}

// Gradients as backward passes write them, and, where they are split, those that a rank updates.
void add_gradients(MemoryPlan& plan, const MemoryRequest& request, const std::vector<BucketPart>& parts) {
  const TrainerOptions& trainer = request.trainer;
  std::vector<Bucket> buckets = make_buckets(parts);
  const int64_t own = share_of(request, plan.trainable);
  const Shard shard{0, request.ranks, trainer.zero_stage > 0, trainer.zero_stage > 1};
  plan.gradients = size_t(shard.splits_gradients ? share_memory(buckets) + own : plan.trainable) * 4;
  plan.sums = GradientSum::bytes(buckets, shard, plan.trainable, own, trainer.reduction);
}

}  // namespace

MemoryPlan plan_memory(const MemoryRequest& request) {
  const ModelConfig& config = request.config;
  const TrainerOptions& trainer = request.trainer;
  const std::vector<TensorSpec> table = tensor_table(config);
  check_argument(request.storage.size() == table.size(), "storage: expected one type for each tensor");
  check_argument(request.blocks.empty() || request.blocks.size() == table.size(),
                 "blocks: expected one type for each tensor, or none");
  const auto blocks_of = [&](size_t i) { return request.blocks.empty() ? BlockType::kNone : request.blocks[i]; };
  for (size_t i = 0; i < table.size(); ++i)
    if (const BlockType type = blocks_of(i); type != BlockType::kNone && is_matrix(table[i]))
      check_argument(table[i].shape[1] % block_layout(type).values == 0,
                     "blocks: expected rows of whole blocks, got " + table[i].name);
  check_trainable(config, trainer);
  const bool lora = trainer.lora.rank > 0, base_trains = !trainer.freeze_base || lora;
  MemoryPlan plan;
  std::vector<const TensorSpec*> exchanged;
  std::vector<BucketPart> parts, adapter_parts;
  int64_t expanded = 0;
  for (size_t i = 0; i < table.size(); ++i) {
    const TensorSpec& spec = table[i];
    const BlockType blocks = blocks_of(i);
    const bool split = is_split(request, spec, request.storage[i], blocks);
    plan.parameters += spec.elements();
    plan.weights += weight_bytes(request, spec, request.storage[i], blocks);
    if (blocks != BlockType::kNone) expanded = std::max(expanded, std::min(kExpandedNumbers, spec.elements()));
    if (spec.planner ? !trainer.freeze_planner : !trainer.freeze_base && !lora) {
      add_parameter(plan, request, parts, gradient_stages(config, spec), spec.elements(), split ? 2 : 4, false);
      if (!split) exchanged.push_back(&spec);
    }
    if (lora && is_adapter_target(spec.name, spec.planner, trainer.lora.targets))
      add_adapter(plan, request, adapter_parts, spec, split, blocks);
  }
  // In the arena's order.
  parts.insert(parts.end(), adapter_parts.begin(), adapter_parts.end());
  add_gradients(plan, request, parts);
  if (trainer.zero_stage > 0) plan.exchange = size_t(exchanged_at_once(exchanged)) * 4;
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
  if (request.on_device) plan.scratch += size_t(expanded) * activation;
  return plan;
}

}  // namespace dultra
