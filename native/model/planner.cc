#include "model/planner.h"

#include <algorithm>
#include <cmath>

#include "model/parameters.h"

namespace dultra {

namespace {

// Features of one timestep: cosines, then sines.
void write_sinusoid(float* to, float timestep) {
  for (int64_t k = 0; k < kTimeFeatures / 2; ++k) {
    const float frequency = std::exp(-std::log(10000.0f) * float(k) / float(kTimeFeatures / 2));
    to[k] = std::cos(timestep * frequency);
    to[kTimeFeatures / 2 + k] = std::sin(timestep * frequency);
  }
}

}  // namespace

PlannerInputs planner_inputs(const ModelConfig& config, const std::vector<float>& timestep, const uint8_t* candidate,
                             const Packing& packing, const RowSubset& subset) {
  if (!config.planner.use_adaln) return {};
  const int64_t b = packing.batch();
  std::vector<float> features(size_t(b * kTimeFeatures));
  std::vector<int32_t> time, mask, groups(size_t(packing.tokens())), subset_groups;
  for (int64_t i = 0; i < b; ++i) {
    write_sinusoid(features.data() + i * kTimeFeatures, timestep[size_t(i)]);
    time.insert(time.end(), 2, int32_t(i));
    mask.insert(mask.end(), {0, 1});
    for (int32_t r = packing.offsets[size_t(i)]; r < packing.offsets[size_t(i) + 1]; ++r)
      groups[size_t(r)] = int32_t(2 * i) + (candidate[r] ? 1 : 0);
  }
  for (int32_t r : subset.rows) subset_groups.push_back(groups[size_t(r)]);
  return {std::move(features), std::move(time), std::move(mask), std::move(groups), std::move(subset_groups)};
}

namespace {

// One forward pass: where its activations go, and the condition of AdaLN.
class PlannerPass {
 public:
  PlannerPass(const ForwardContext& context, const PlannerWeights& weights, PlannerTape* tape)
      : context_(context), weights_(weights), keeps_(tape != nullptr), tape_(tape ? *tape : scratch_) {}

  PlannerTape& tape() { return tape_; }
  float* floats(Slot slot, int64_t count) {
    return keeps_ ? context_.tape_memory->take(count) : context_.workspace.get(slot, count);
  }

  // Only two conditions occur per sequence (candidate or not), so the modulations are 2B rows, not N.
  void condition(const PlannerInputs& inputs, int64_t b) {
    Backend& backend = context_.backend;
    PlannerTape& t = tape_;
    const int64_t c = context_.config.hidden;
    t.features = floats(kTime, b * kTimeFeatures);
    t.time_sum = floats(kTimeSum, b * c);
    float* time_hidden = floats(kTimeHidden, b * c);
    t.time_twice = floats(kTimeTwice, 2 * b * c);
    backend.upload(t.features, inputs.features.data(), inputs.features.size() * 4);
    linear_forward(context_, weights_.time_in, t.time_sum, t.features, b);
    backend.copy(time_hidden, t.time_sum, b * c);
    backend.silu_forward(time_hidden, b * c);
    t.time_index = indices(inputs.time_index);
    t.mask_index = indices(inputs.mask_index);
    backend.gather_rows(t.time_twice, time_hidden, t.time_index, 2 * b, c);
    t.condition = floats(kCondition, 2 * b * c);
    backend.gather_rows(t.condition, weights_.mask_embedding.as(), t.mask_index, 2 * b, c);
    linear_forward(context_, weights_.time_out, t.condition, t.time_twice, 2 * b, true);
    const auto modulation = [&](Slot slot, const Linear& linear) {
      float* out = floats(slot, 2 * b * c);
      linear_forward(context_, linear, out, t.condition, 2 * b);
      return out;
    };
    t.mul1 = modulation(kMul1, weights_.scale1);
    t.add1 = modulation(kAdd1, weights_.shift1);
    t.mul2 = modulation(kMul2, weights_.scale2);
    t.add2 = modulation(kAdd2, weights_.shift2);
    t.groups = indices(inputs.groups);
    t.subset_groups = indices(inputs.subset_groups);
  }

 private:
  // A tape outlives the inputs.
  const int32_t* indices(const HostArray<int32_t>& values) {
    if (!keeps_) return values.data();
    int32_t* to = context_.tape_memory->take<int32_t>(int64_t(values.size()));
    context_.backend.upload(to, values.data(), values.size() * 4);
    return to;
  }

  const ForwardContext& context_;
  const PlannerWeights& weights_;
  const bool keeps_;
  PlannerTape scratch_;
  PlannerTape& tape_;
};

}  // namespace

void planner_forward(const ForwardContext& context, const PlannerWeights& weights, const BlockTokens& tokens,
                     const PlannerInputs& inputs, float* logit, const float* hidden, PlannerTape* kept) {
  const ModelConfig& config = context.config;
  Backend& backend = context.backend;
  const int64_t n = tokens.count(), m = tokens.queries(), c = config.hidden;
  // A pass without candidates still renews keys and values.
  if (m == 0 && (!context.cache || n == 0)) return;
  PlannerPass pass(context, weights, kept);
  PlannerTape& tape = pass.tape();
  tape.hidden = hidden;

  float* y = pass.floats(kPlannerState, n * c);
  if (config.planner.use_adaln) {
    pass.condition(inputs, tokens.packing.batch());
    backend.layernorm_forward(y, hidden, tape.mul1, tape.add1, tape.groups, n, c, kLayerNormEps);
  } else {
    backend.copy(y, hidden, n * c);
  }
  tape.blocks.assign(weights.blocks.size(), BlockTape{});
  for (size_t i = 0; i < weights.blocks.size(); ++i) {
    check_cancelled(context.cancel);
    const bool last = i + 1 == weights.blocks.size();
    float* out = last ? pass.floats(kPlannerOut, m * c) : kept ? context.tape_memory->take(n * c) : y;
    tape.blocks[i].x = y;
    block_forward(context, weights.blocks[i], {tokens.packing, last ? tokens.subset : nullptr},
                  size_t(config.layers) + i, out, y, kept && !context.inputs_only ? &tape.blocks[i] : nullptr);
    y = out;
  }
  if (weights.blocks.empty()) {
    float* out = pass.floats(kPlannerOut, m * c);
    backend.gather_rows(out, y, tokens.subset->rows.data(), m, c);
    y = out;
  }
  tape.out = y;
  const bool adaln = config.planner.use_adaln;
  backend.planner_score_forward(logit, y, adaln ? tape.mul2 : weights.norm_weight.as(),
                                adaln ? tape.add2 : weights.norm_bias.as(), tape.subset_groups,
                                weights.linear_weight.as(), weights.linear_bias, m, c, kLayerNormEps);
}

namespace {

// Gradients of the two modulations: of group 2b and 2b + 1 with AdaLN, else of the affine norm's weight and bias.
struct ModulationGradients {
  float *mul1 = nullptr, *add1 = nullptr, *mul2 = nullptr, *add2 = nullptr;
};

ModulationGradients modulation_gradients(const BackwardContext& context, const PlannerWeights& weights, int64_t b) {
  const ModelConfig& config = context.config();
  if (!config.planner.use_adaln)
    return {nullptr, nullptr, gradient_of(context.parameters, weights.norm_weight),
            gradient_of(context.parameters, weights.norm_bias)};
  const auto zeros = [&](GradientSlot slot) {
    float* to = context.workspace.get(slot, 2 * b * config.hidden);
    context.backend().fill_zero(to, 2 * b * config.hidden);
    return to;
  };
  return {zeros(kDMul1), zeros(kDAdd1), zeros(kDMul2), zeros(kDAdd2)};
}

// From the modulations back to the weights that made them.
void condition_backward(const BackwardContext& context, const PlannerWeights& weights, const PlannerTape& tape,
                        const ModulationGradients& d, int64_t b) {
  Backend& backend = context.backend();
  Workspace& workspace = context.workspace;
  const int64_t c = context.config().hidden;
  float* dcondition = workspace.get(kDCondition, 2 * b * c);
  linear_backward(context, weights.scale1, dcondition, d.mul1, tape.condition, 2 * b);
  linear_backward(context, weights.shift1, dcondition, d.add1, tape.condition, 2 * b, true);
  linear_backward(context, weights.scale2, dcondition, d.mul2, tape.condition, 2 * b, true);
  linear_backward(context, weights.shift2, dcondition, d.add2, tape.condition, 2 * b, true);
  if (float* dmask = gradient_of(context.parameters, weights.mask_embedding))
    backend.scatter_add_rows(dmask, dcondition, tape.mask_index, 2 * b, c);
  float* dtime_twice = workspace.get(kDTimeTwice, 2 * b * c);
  linear_backward(context, weights.time_out, dtime_twice, dcondition, tape.time_twice, 2 * b);
  float* dtime = workspace.get(kDTime, b * c);
  backend.fill_zero(dtime, b * c);
  backend.scatter_add_rows(dtime, dtime_twice, tape.time_index, 2 * b, c);
  backend.silu_backward(dtime, dtime, tape.time_sum, b * c);
  linear_backward(context, weights.time_in, nullptr, dtime, tape.features, b);
}

}  // namespace

void planner_backward(const BackwardContext& context, const PlannerWeights& weights, const BlockTokens& tokens,
                      const std::vector<float>& dlogit, float* dhidden, const PlannerTape& tape, bool trains) {
  const ModelConfig& config = context.config();
  Backend& backend = context.backend();
  const Parameters& parameters = context.parameters;
  Workspace& workspace = context.workspace;
  const bool adaln = config.planner.use_adaln;
  const int64_t n = tokens.count(), m = tokens.queries(), c = config.hidden, b = tokens.packing.batch();
  float* dscore = workspace.get(kDScore, m);
  backend.upload(dscore, dlogit.data(), dlogit.size() * 4);

  const ModulationGradients d = modulation_gradients(context, weights, b);
  float* dout = workspace.get(kDOut, std::max(n, m) * c);
  backend.fill_zero(dout, m * c);
  backend.planner_score_backward(dout, d.mul2, d.add2, gradient_of(parameters, weights.linear_weight),
                                 gradient_of(parameters, weights.linear_bias), dscore, tape.out,
                                 adaln ? tape.mul2 : weights.norm_weight.as(),
                                 adaln ? tape.add2 : weights.norm_bias.as(), adaln ? tape.subset_groups : nullptr,
                                 weights.linear_weight.as(), m, c, kLayerNormEps);
  float* dy = dout;
  if (weights.blocks.empty()) {
    dy = workspace.get(kDX, n * c);
    backend.fill_zero(dy, n * c);
    backend.scatter_add_rows(dy, dout, tokens.subset->rows.data(), m, c);
  }
  for (size_t i = weights.blocks.size(); i-- > 0;) {
    check_cancelled(context.forward.cancel);
    const bool last = i + 1 == weights.blocks.size();
    float* dx = last ? workspace.get(kDX, n * c) : dy;
    block_backward(context, weights.blocks[i], {tokens.packing, last ? tokens.subset : nullptr},
                   size_t(config.layers) + i, dx, dy, tape.blocks[i]);
    dy = dx;
  }
  if (!adaln) {
    // The blocks' input is `hidden` itself.
    if (dhidden) backend.scatter_add_rows(dhidden, dy, ascending(n).data(), n, c);
    return;
  }
  float* to = dhidden;
  if (!to) {
    to = workspace.get(kDNormed, n * c);
    backend.fill_zero(to, n * c);
  }
  backend.layernorm_backward(to, d.mul1, d.add1, dy, tape.hidden, tape.mul1, tape.groups, n, c, kLayerNormEps);
  if (trains) condition_backward(context, weights, tape, d, b);
}

}  // namespace dultra
