#include "model/experts.h"

#include <algorithm>

#include "model/trace.h"

namespace dultra {

namespace {

RouteArgs route_args(const ModelConfig& config, const ExpertsWeights& weights, const float* logits, int64_t m,
                     int32_t* expert, float* weight) {
  const ExpertsConfig& experts = config.experts;
  RouteArgs args{};
  args.logits = logits;
  args.m = m;
  args.experts = experts.count;
  args.per_row = experts.per_token;
  args.sigmoid = experts.sigmoid;
  args.bias = weights.bias.as();
  args.bias_in_weights = experts.bias == ExpertBias::kWeight;
  args.groups = experts.groups;
  args.groups_kept = experts.groups_kept;
  args.normalise = experts.normalise;
  args.scale = experts.scale;
  args.expert = expert;
  args.weight = weight;
  return args;
}

}  // namespace

void experts_forward(const ForwardContext& context, const ExpertsWeights& weights, size_t layer, float* out,
                     ConstArray normed, int64_t m, ExpertsTape* tape) {
  Backend& backend = context.backend;
  const int64_t c = context.config.hidden, f = weights.down.inputs();
  const int e = context.config.experts.count, k = context.config.experts.per_token;
  const int64_t rows = std::min(m, kMlpRows);
  // With a tape all rows are computed at once: what backward reads of them lies together.
  const int64_t step = tape ? m : rows;
  const auto take = [&](auto sample, Slot slot, int64_t count) {
    using T = decltype(sample);
    return tape ? context.tape_memory->take<T>(count) : context.workspace.get<T>(slot, count);
  };
  float* logits = take(float(), kRouterLogits, step * e);
  int32_t* expert = take(int32_t(), kExpert, step * k);
  float* weight = take(float(), kExpertWeight, step * k);
  int32_t* row = take(int32_t(), kExpertRow, step * k);
  int32_t* offset = take(int32_t(), kExpertOffset, e + 1);
  int32_t* place = take(int32_t(), kExpertPlace, step * k);
  const Array gate_up = context.activation(kGateUp, step * k * 2 * f, tape ? &tape->gate_up : nullptr);
  const Array product = context.activation(kMlp, step * k * f, tape ? &tape->product : nullptr);
  float* y = context.workspace.get(kExpertOut, step * k * c);
  if (tape) {
    tape->logits = logits;
    tape->expert = expert;
    tape->weight = weight;
    tape->row = row;
    tape->offset = offset;
    tape->place = place;
  }
  for (int64_t first = 0; first < m; first += step) {
    const int64_t count = std::min(step, m - first);
    const ConstArray x = normed + first * c;
    linear_forward(context, weights.router, logits, x, count);
    trace(context, "router_logits", layer, logits, count, e);
    backend.route_forward(route_args(context.config, weights, logits, count, expert, weight));
    trace(context, "expert_weights", layer, weight, count, k);
    backend.sort_by_expert(row, offset, place, expert, count, k, e);
    const ExpertRows sorted{row, offset, count * k, e};
    backend.experts_forward(gate_up, x, false, sorted, *weights.gate_up.matrix);
    backend.swiglu_forward(product, gate_up, count * k, f);
    backend.experts_forward(y, product, true, sorted, *weights.down.matrix);
    backend.combine_experts(out + first * c, y, place, weight, count, k, c);
  }
  if (weights.shared.down.matrix) mlp_forward(context, weights.shared, out, normed, m, tape ? &tape->shared : nullptr);
}

void experts_backward(const BackwardContext& context, const ExpertsWeights& weights, float* dnormed, const float* dout,
                      ConstArray normed, int64_t m, const ExpertsTape& tape) {
  Backend& backend = context.backend();
  Workspace& workspace = context.workspace;
  const int64_t c = context.config().hidden, f = weights.down.inputs();
  const int e = context.config().experts.count, k = context.config().experts.per_token;
  const ExpertRows sorted{tape.row, tape.offset, m * k, e};

  if (weights.shared.down.matrix)
    mlp_backward(context, weights.shared, dnormed, dout, normed, m, tape.shared);
  else
    backend.fill_zero(dnormed, m * c);

  float* dproduct = workspace.get(kDMlp, m * k * f);
  backend.experts_backward_input(dproduct, dout, false, sorted, *weights.down.matrix);
  float* dweight = workspace.get(kDExpertWeight, m * k);
  backend.expert_weights_backward(dweight, dproduct, tape.product, tape.place, tape.weight, m, k, f);
  const Array dgate_up = workspace.activations(kDGateUp, m * k * 2 * f);
  backend.swiglu_backward(dgate_up, dproduct, tape.gate_up, m * k, f);
  float* dx = workspace.get(kDExpertX, m * k * c);
  backend.experts_backward_input(dx, dgate_up, true, sorted, *weights.gate_up.matrix);
  backend.combine_experts(dnormed, dx, tape.place, nullptr, m, k, c);

  float* dlogits = workspace.get(kDRouterLogits, m * e);
  backend.route_backward(
      {route_args(context.config(), weights, tape.logits, m, tape.expert, tape.weight), dweight, dlogits});
  linear_backward(context, weights.router, dnormed, dlogits, normed, m, true);
}

// gate_up and product; logits, and what route and sort give.
size_t experts_tape_bytes(const ModelConfig& config, size_t activation) {
  const ExpertsConfig& experts = config.experts;
  const size_t k = size_t(experts.per_token), f = size_t(experts.hidden);
  return activation * (k * 3 * f + 3 * size_t(experts.shared_hidden)) + 4 * (size_t(experts.count) + 4 * k) +
         4 * k * size_t(config.hidden);
}

size_t experts_forward_bytes(const ModelConfig& config, size_t activation) {
  return experts_tape_bytes(config, activation);
}

size_t experts_backward_bytes(const ModelConfig& config, size_t activation) {
  const ExpertsConfig& experts = config.experts;
  const size_t k = size_t(experts.per_token), f = size_t(experts.hidden), shared = size_t(experts.shared_hidden);
  return 4 * (k * f + k * size_t(config.hidden) + size_t(experts.count) + k) +
         activation * std::max(k * 2 * f, 2 * shared);
}

}  // namespace dultra
