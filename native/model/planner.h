// The unmasking planner head of LLaDOU / dUltra: blocks on the base model's states, conditioned on the timestep and on
// which tokens are candidates (AdaLN), and a score per candidate; forward and backward.
#pragma once
#include <vector>

#include "model/block.h"

namespace dultra {

constexpr float kLayerNormEps = 1e-4f;  // of the planner's AdaLN and affine LayerNorm

struct PlannerWeights {
  std::vector<BlockWeights> blocks;
  // AdaLN: condition = time_mlp(t) + mask_embedding[candidate]. Each modulation is split into its scale and shift half,
  // and the scale's bias already holds the 1 of (1 + scale).
  Linear time_in, time_out;               // (C, 256), (C, C)
  Buffer mask_embedding;                  // (2, C); zeros if the checkpoint does not use it
  Linear scale1, shift1, scale2, shift2;  // (C, C)
  // use_adaln = false: affine LayerNorm instead.
  Buffer norm_weight, norm_bias;
  Buffer linear_weight;  // (C)
  float linear_bias = 0;
};

// What AdaLN reads beside the states; empty without it.
struct PlannerInputs {
  HostArray<float> features;         // (B, 256) sinusoids of the timesteps
  HostArray<int32_t> time_index;     // (2B) rows of the timestep's MLP
  HostArray<int32_t> mask_index;     // (2B) rows of mask_embedding
  HostArray<int32_t> groups;         // (N) condition of each token: 2b, or 2b + 1 for a candidate
  HostArray<int32_t> subset_groups;  // (M)
};

// timestep (B); candidate (N): 1 where the token is a mask inside the window.
PlannerInputs planner_inputs(const ModelConfig& config, const std::vector<float>& timestep, const uint8_t* candidate,
                             const Packing& packing, const RowSubset& subset);

// Activations that backward reads.
struct PlannerTape {
  std::vector<BlockTape> blocks;
  const float* hidden = nullptr;                      // (N, C): what the planner read
  float *features = nullptr, *time_sum = nullptr;     // (B, 256), (B, C) before SiLU
  float *time_twice = nullptr, *condition = nullptr;  // (2B, C): each timestep's row twice
  float *mul1 = nullptr, *add1 = nullptr;             // (2B, C) modulation before the blocks
  float *mul2 = nullptr, *add2 = nullptr;             // (2B, C) and behind them
  const int32_t *time_index = nullptr, *mask_index = nullptr;
  const int32_t *groups = nullptr, *subset_groups = nullptr;
  float* out = nullptr;  // (M, C): what the last norm reads
};

// Planner logits (M) of the subset's rows, from hidden (N, C). `tokens` has a subset; `inputs` are of the same tokens.
// The context's cache is one with PlannerCache::kBlocks.
void planner_forward(const ForwardContext& context, const PlannerWeights& weights, const BlockTokens& tokens,
                     const PlannerInputs& inputs, float* logit, const float* hidden, PlannerTape* tape);

// Adds to dhidden (N, C; null: not wanted) the gradient of `hidden` from dlogit (M, host memory). `trains`: whether
// the planner's own weights do.
void planner_backward(const BackwardContext& context, const PlannerWeights& weights, const BlockTokens& tokens,
                      const std::vector<float>& dlogit, float* dhidden, const PlannerTape& tape, bool trains);

}  // namespace dultra
