// Shapes and constants of one model, as the caller read them from config.json and checked them.
#pragma once
#include <cstdint>

namespace dultra {

struct PlannerConfig {
  bool present = false;
  int layers = 0;                   // mask_head blocks
  bool use_adaln = true;            // false: affine LayerNorm, no timestep
  bool use_mask_embeddings = true;  // the condition also depends on "is a candidate"
};

struct ModelConfig {
  int64_t hidden = 0;  // C
  int heads = 0;       // H
  int kv_heads = 0;    // Hk
  int layers = 0;
  int64_t mlp_hidden = 0;      // F
  int64_t embedding_size = 0;  // V: rows of the embedding table and of the output head
  int64_t max_sequence_length = 0;
  float rope_theta = 0;
  float rms_norm_eps = 0;
  bool weight_tying = false;
  bool qkv_bias = false;     // q_proj, k_proj and v_proj have biases
  bool linear_bias = false;  // attn_out, ff_proj, up_proj, ff_out and the output head have
  bool causal = false;       // a position sees itself and what stands before it: an autoregressive model
  int32_t mask_token = -1;
  PlannerConfig planner;

  int head_dim() const { return int(hidden / heads); }  // D
};

}  // namespace dultra
