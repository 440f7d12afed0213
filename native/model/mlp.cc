#include "model/mlp.h"

#include <algorithm>

namespace dultra {

void mlp_forward(const ForwardContext& context, const MlpWeights& weights, float* out, ConstArray normed, int64_t m,
                 MlpTape* tape) {
  const int64_t c = context.config.hidden, f = weights.down.inputs();
  const int64_t rows = std::min(m, kMlpRows), kept_rows = tape ? m : rows;
  Array gate_up = context.activation(kGateUp, kept_rows * 2 * f, tape ? &tape->gate_up : nullptr);
  Array product = context.activation(kMlp, kept_rows * f, tape ? &tape->product : nullptr);
  for (int64_t i = 0; i < m; i += rows) {
    const int64_t count = std::min(rows, m - i);
    linear_forward(context, weights.gate_up, gate_up, normed + i * c, count);
    context.backend.swiglu_forward(product, gate_up, count, f);
    linear_forward(context, weights.down, out + i * c, product, count, true);
    if (tape) {
      gate_up += count * 2 * f;
      product += count * f;
    }
  }
}

void mlp_backward(const BackwardContext& context, const MlpWeights& weights, float* dnormed, const float* dout,
                  ConstArray normed, int64_t m, const MlpTape& tape) {
  const int64_t f = weights.down.inputs();
  float* dproduct = context.workspace.get(kDMlp, m * f);
  linear_backward(context, weights.down, dproduct, dout, tape.product, m);
  const Array dgate_up = context.workspace.activations(kDGateUp, m * 2 * f);
  context.backend().swiglu_backward(dgate_up, dproduct, tape.gate_up, m, f);
  linear_backward(context, weights.gate_up, dnormed, dgate_up, normed, m);
}

}  // namespace dultra
