#include "model/tensors.h"

#include <algorithm>
#include <utility>

namespace dultra {

int64_t TensorSpec::elements() const {
  int64_t n = 1;
  for (int64_t size : shape) n *= size;
  return n;
}

namespace {

class Table {
 public:
  std::vector<TensorSpec> specs;
  bool planner = false;  // what follows belongs to the planner head
  int layer = -1;        // and to this block
  int expert = -1;       // and to this expert of it

  void add(const std::string& module, TensorRole role, std::vector<int64_t> shape, bool bias = false) {
    specs.push_back({module + (bias ? ".bias" : ".weight"), std::move(shape), role, bias, planner, layer, expert});
  }

  void block(const std::string& prefix, const ModelConfig& config) {
    const int64_t c = config.hidden, q = config.q_width(), kv = config.kv_width();
    const bool has_experts = !planner && config.has_experts(layer);
    // Of the MLP that every token takes.
    const int64_t f = has_experts ? config.experts.shared_hidden : config.mlp_hidden;
    add(prefix + "q_proj", TensorRole::kQ, {q, c});
    add(prefix + "k_proj", TensorRole::kK, {kv, c});
    add(prefix + "v_proj", TensorRole::kV, {kv, c});
    add(prefix + "attn_out", TensorRole::kAttnOut, {c, q});
    if (f > 0) {
      add(prefix + "ff_proj", TensorRole::kGate, {f, c});
      add(prefix + "up_proj", TensorRole::kUp, {f, c});
      add(prefix + "ff_out", TensorRole::kDown, {c, f});
    }
    if (has_experts) experts(prefix, config);
    add(prefix + "attn_norm", TensorRole::kAttnNorm, {c});
    add(prefix + "ff_norm", TensorRole::kMlpNorm, {c});
    if (config.qk_norm) {
      add(prefix + "q_norm", TensorRole::kQNorm, {config.head_dim});
      add(prefix + "k_norm", TensorRole::kKNorm, {config.head_dim});
    }
    if (config.qkv_bias) {
      add(prefix + "q_proj", TensorRole::kQ, {q}, true);
      add(prefix + "k_proj", TensorRole::kK, {kv}, true);
      add(prefix + "v_proj", TensorRole::kV, {kv}, true);
    }
    if (config.attn_out_bias) add(prefix + "attn_out", TensorRole::kAttnOut, {c}, true);
    if (config.mlp_bias && f > 0) {
      add(prefix + "ff_proj", TensorRole::kGate, {f}, true);
      add(prefix + "up_proj", TensorRole::kUp, {f}, true);
      add(prefix + "ff_out", TensorRole::kDown, {c}, true);
    }
  }

  void experts(const std::string& prefix, const ModelConfig& config) {
    const int64_t c = config.hidden, e = config.experts.count, f = config.experts.hidden;
    add(prefix + "router", TensorRole::kRouter, {e, c});
    if (config.experts.bias != ExpertBias::kNone) add(prefix + "router", TensorRole::kRouterBias, {e}, true);
    for (expert = 0; expert < e; ++expert) {
      const std::string own = prefix + "experts." + std::to_string(expert) + ".";
      add(own + "ff_proj", TensorRole::kExpertGate, {f, c});
      add(own + "up_proj", TensorRole::kExpertUp, {f, c});
      add(own + "ff_out", TensorRole::kExpertDown, {c, f});
    }
    expert = -1;
  }

  void planner_head(const ModelConfig& config) {
    const int64_t c = config.hidden;
    planner = true;
    for (layer = 0; layer < config.planner.layers; ++layer) block("mask_head." + std::to_string(layer) + ".", config);
    layer = -1;
    if (config.planner.use_adaln) {
      add("time_embedding.mlp.0", TensorRole::kTimeIn, {c, kTimeFeatures});
      add("time_embedding.mlp.0", TensorRole::kTimeIn, {c}, true);
      add("time_embedding.mlp.2", TensorRole::kTimeOut, {c, c});
      add("time_embedding.mlp.2", TensorRole::kTimeOut, {c}, true);
      if (config.planner.use_mask_embeddings) add("mask_embedding", TensorRole::kMaskEmbedding, {2, c});
      for (const auto& [module, role] : {std::pair<const char*, TensorRole>{"norm_out_1", TensorRole::kModulation1},
                                         {"norm_out_2", TensorRole::kModulation2}}) {
        add(std::string(module) + ".modulation", role, {2 * c, c});
        add(std::string(module) + ".modulation", role, {2 * c}, true);
      }
    } else {
      add("norm_out_2", TensorRole::kPlannerNorm, {c});
      add("norm_out_2", TensorRole::kPlannerNorm, {c}, true);
    }
    add("mask_linear", TensorRole::kPlannerLinear, {1, c});
    add("mask_linear", TensorRole::kPlannerLinear, {1}, true);
  }
};

}  // namespace

int64_t idle_parameters(const ModelConfig& config) {
  const ExpertsConfig& experts = config.experts;
  const auto layers = std::count(experts.layers.begin(), experts.layers.end(), true);
  return int64_t(layers) * (experts.count - experts.per_token) * 3 * experts.hidden * config.hidden;
}

std::vector<TensorSpec> tensor_table(const ModelConfig& config) {
  const std::string base = "model.transformer.";
  const int64_t c = config.hidden, v = config.embedding_size;
  Table table;
  table.add(base + "wte", TensorRole::kEmbedding, {v, c});
  for (table.layer = 0; table.layer < config.layers; ++table.layer)
    table.block(base + "blocks." + std::to_string(table.layer) + ".", config);
  table.layer = -1;
  table.add(base + "ln_f", TensorRole::kFinalNorm, {c});
  if (!config.weight_tying) {
    table.add(base + "ff_out", TensorRole::kHead, {v, c});
    if (config.head_bias) table.add(base + "ff_out", TensorRole::kHead, {v}, true);
  }
  if (config.planner.present) table.planner_head(config);
  return std::move(table.specs);
}

}  // namespace dultra
