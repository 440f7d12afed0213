// Shapes and constants of one model, as the caller read them from config.json and checked them.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/backend.h"

namespace dultra {

struct PlannerConfig {
  bool present = false;
  int layers = 0;                   // mask_head blocks
  bool use_adaln = true;            // false: affine LayerNorm, no timestep
  bool use_mask_embeddings = true;  // the condition also depends on "is a candidate"
};

// How a block's MLP is made.
enum class MlpKind : uint8_t {
  kSwiGlu,  // down(silu(gate(x)) * up(x))
};

// What the bias of a router does.
enum class ExpertBias : uint8_t {
  kNone,
  kChoice,  // counts in the choice of experts
  kWeight,  // and in the weights of those chosen
};

// Blocks whose MLP is a mixture of experts (ops/backend.h: RouteArgs).
struct ExpertsConfig {
  int count = 0;              // E; 0: no block has experts
  int per_token = 0;          // k
  int64_t hidden = 0;         // F of an expert
  int64_t shared_hidden = 0;  // F of the MLP that every token takes; 0: none
  bool sigmoid = false;
  bool normalise = false;
  float scale = 1;
  ExpertBias bias = ExpertBias::kNone;
  int groups = 1, groups_kept = 1;
  std::vector<bool> layers;  // blocks of the base model that have experts; the others an MLP
};

struct ModelConfig {
  int64_t hidden = 0;  // C
  int heads = 0;       // H
  int kv_heads = 0;    // Hk
  int head_dim = 0;    // D; H * D need not be C
  int layers = 0;
  int64_t mlp_hidden = 0;  // F of blocks without experts
  MlpKind mlp = MlpKind::kSwiGlu;
  int64_t embedding_size = 0;  // V: rows of the embedding table and of the output head
  int64_t max_sequence_length = 0;
  Rope rope;
  float rms_norm_eps = 0;
  bool weight_tying = false;
  bool qkv_bias = false;       // of q_proj, k_proj and v_proj
  bool attn_out_bias = false;  // of attn_out
  bool mlp_bias = false;       // of ff_proj, up_proj and ff_out
  bool head_bias = false;      // of an output head that is not tied
  // The head's numbers of position i are those of the token at i + 1, as in the autoregressive model that a diffusion
  // model was made of: the token at i is scored from the state of i - 1, the first one from its own.
  bool shift_logits = false;
  MaskKind mask = MaskKind::kBidirectional;
  int block_length = 0;  // of MaskKind::kBlockCausal
  ExpertsConfig experts;
  float clip_qkv = 0;    // queries, keys and values are clamped to it before the rotary embedding; 0: they are not
  bool qk_norm = false;  // RMS norm of each head of q and k, before the rotary embedding
  int32_t mask_token = -1;
  PlannerConfig planner;

  // Of the base model.
  bool has_experts(int layer) const { return experts.count > 0 && experts.layers[size_t(layer)]; }
  bool has_experts() const {
    return experts.count > 0 && std::find(experts.layers.begin(), experts.layers.end(), true) != experts.layers.end();
  }
  int64_t q_width() const { return int64_t(heads) * head_dim; }
  int64_t kv_width() const { return int64_t(kv_heads) * head_dim; }
};

}  // namespace dultra
