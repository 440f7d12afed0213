// A mixture of experts in place of a block's MLP: a router chooses some MLPs for each token, and their outputs are
// summed by its weights, beside an MLP that every token takes (the shared expert). Forward and backward.
#pragma once
#include "model/mlp.h"

namespace dultra {

struct ExpertsWeights {
  Linear router;   // (E, C) in fp32
  Buffer bias;     // (E), or empty
  Linear gate_up;  // (E 2F, C): gate and up of the first expert, of the second and so on
  Linear down;     // (E C, F)
  MlpWeights shared;

  explicit operator bool() const { return router.matrix != nullptr; }
};

// Activations that backward reads.
struct ExpertsTape {
  float* logits = nullptr;                                      // (M, E)
  int32_t* expert = nullptr;                                    // (M, k)
  float* weight = nullptr;                                      // (M, k)
  int32_t *row = nullptr, *offset = nullptr, *place = nullptr;  // as sort_by_expert gives them
  Array gate_up, product;                                       // (M k, 2F), (M k, F)
  MlpTape shared;
};

// out (M, C) += the mixture of normed (M, C).
void experts_forward(const ForwardContext& context, const ExpertsWeights& weights, size_t layer, float* out,
                     ConstArray normed, int64_t m, ExpertsTape* tape);

// dnormed (M, C), overwritten, from dout (M, C). The weights of experts and router do not train.
void experts_backward(const BackwardContext& context, const ExpertsWeights& weights, float* dnormed, const float* dout,
                      ConstArray normed, int64_t m, const ExpertsTape& tape);

// Bytes for each token: of a tape, of scratch of a forward pass without one, and of a backward pass.
size_t experts_tape_bytes(const ModelConfig& config, size_t activation);
size_t experts_forward_bytes(const ModelConfig& config, size_t activation);
size_t experts_backward_bytes(const ModelConfig& config, size_t activation);

}  // namespace dultra
