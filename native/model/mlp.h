// The MLP of a block (MlpKind::kSwiGlu): down(silu(gate(x)) * up(x)), forward and backward.
#pragma once
#include "model/linear.h"

namespace dultra {

constexpr int64_t kMlpRows = 1024;  // rows computed at a time without a tape, to bound the (rows, 2F) scratch

struct MlpWeights {
  Linear gate_up;  // (2F, C): gate (ff_proj), then up (up_proj)
  Linear down;     // (C, F)
};

// Activations that backward reads.
struct MlpTape {
  Array gate_up, product;  // (M, 2F), (M, F)
};

// out (M, C) += MLP of normed (M, C).
void mlp_forward(const ForwardContext& context, const MlpWeights& weights, float* out, ConstArray normed, int64_t m,
                 MlpTape* tape);

// dnormed (M, C), overwritten, from dout (M, C).
void mlp_backward(const BackwardContext& context, const MlpWeights& weights, float* dnormed, const float* dout,
                  ConstArray normed, int64_t m, const MlpTape& tape);

}  // namespace dultra
