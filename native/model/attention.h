// Multi-head attention of a block: projections, rotary embedding, the key-value cache; forward and backward.
#pragma once
#include "model/linear.h"
#include "model/packing.h"

namespace dultra {

struct AttentionWeights {
  Linear q;               // (H D, C)
  Linear kv;              // (2 Hk D, C): keys, then values
  Linear out;             // (C, H D)
  Buffer q_norm, k_norm;  // (D), of every head; empty without ModelConfig::qk_norm
};

// Activations that backward reads.
struct AttentionTape {
  Array kv;                  // (N, 2 Hk D), keys after the rotary embedding
  Array q;                   // (M, H D), after the rotary embedding
  Array plain_k, plain_q;    // (N, Hk D), (M, H D) before their norms, where there are any
  Array out;                 // (M, H D), before the output projection
  float* log_sum = nullptr;  // (M, H)
};

// h (M, C) += output projection of attention. `normed` (N, C) gives keys and values, `normed_queries` (M, C) queries.
// `layer` is the block's layer in the context's cache, if it has one.
void attention_forward(const ForwardContext& context, const AttentionWeights& weights, const BlockTokens& tokens,
                       size_t layer, ConstArray normed, ConstArray normed_queries, float* h, AttentionTape* tape);

// From dh (M, C): dnormed (N, C), overwritten, takes the gradient of `normed`, and with a subset `dnormed_queries`
// (M, C) that of `normed_queries`; without one, where the two are the same array, dnormed takes both.
void attention_backward(const BackwardContext& context, const AttentionWeights& weights, const BlockTokens& tokens,
                        size_t layer, ConstArray normed, ConstArray normed_queries, const AttentionTape& tape,
                        float* dnormed, float* dnormed_queries, const float* dh);

}  // namespace dultra
