// A transformer block: attention and MLP with their norms and residuals, forward and backward. The base model and the
// planner head are made of it.
#pragma once
#include "model/attention.h"
#include "model/experts.h"

namespace dultra {

struct BlockWeights {
  Buffer attn_norm, mlp_norm;  // (C)
  AttentionWeights attention;
  MlpWeights mlp;  // empty where there are experts
  ExpertsWeights experts;
};

// Activations that backward reads. With ForwardContext::inputs_only, x alone.
struct BlockTape {
  float* x = nullptr;    // (N, C), kept by the caller
  Array normed;          // (N, C)
  Array normed_queries;  // (M, C), with a subset
  float* h = nullptr;    // (M, C): x after attention
  Array normed_h;        // (M, C)
  AttentionTape attention;
  MlpTape mlp;
  ExpertsTape experts;
};

// out (M, C): the block's output. Without a subset, M = N and out may be x itself, but not with a tape: x must then
// live until backward.
void block_forward(const ForwardContext& context, const BlockWeights& weights, const BlockTokens& tokens, size_t layer,
                   float* out, float* x, BlockTape* tape);

// Bytes of a tape of n tokens, of scratch of a forward pass without a tape, and of scratch of a backward pass; an
// activation that products read takes `activation` bytes.
size_t block_tape_bytes(const ModelConfig& config, int64_t n, size_t activation);
size_t block_forward_bytes(const ModelConfig& config, int64_t n, size_t activation);
size_t block_backward_bytes(const ModelConfig& config, int64_t n, size_t activation);

// dx (N, C) from dout (M, C), which is overwritten; the two may be one array where there is no subset.
void block_backward(const BackwardContext& context, const BlockWeights& weights, const BlockTokens& tokens,
                    size_t layer, float* dx, float* dout, const BlockTape& tape);

}  // namespace dultra
