#include "model/optimizer.h"

#include <algorithm>
#include <cmath>

namespace dultra {

double gradient_norm(Backend& backend, const Parameters& parameters) {
  double sum = 0;
  for (const auto& p : parameters.all()) sum += backend.sum_squares(parameters.gradient(*p), p->n);
  return std::sqrt(sum);
}

namespace {

// Parameters that one AdamW operation updates: neighbours in every arena, with one learning rate. Where masters are
// split, or moments rounded by streams of their own, it is one parameter.
struct Run {
  size_t begin, end;
  int64_t n;
};

std::vector<Run> runs_of(const Parameters& parameters) {
  const auto& all = parameters.all();
  std::vector<Run> runs;
  for (size_t i = 0; i < all.size(); ++i) {
    const Parameter& p = *all[i];
    if (!runs.empty() && parameters.moments() == DType::kF32) {
      Run& run = runs.back();
      const Parameter& first = *all[run.begin];
      if (p.model_rows.empty() && first.model_rows.empty() && p.planner == first.planner &&
          p.offset - first.offset == p.master_offset - first.master_offset) {
        run.end = i + 1;
        run.n = p.offset - first.offset + p.n;
        continue;
      }
    }
    runs.push_back({i, i + 1, p.n});
  }
  return runs;
}

}  // namespace

void update_parameters(Backend& backend, const Parameters& parameters, const OptimizerStep& options, double norm,
                       int64_t step, uint64_t seed) {
  AdamWArgs args{};
  args.step = step;
  args.beta1 = options.beta1;
  args.beta2 = options.beta2;
  args.eps = options.eps;
  args.weight_decay = options.weight_decay;
  // As torch.nn.utils.clip_grad_norm_.
  args.gradient_scale = options.max_grad_norm > 0 ? std::min(1.0, options.max_grad_norm / (norm + 1e-6)) : 1.0;
  args.moments = parameters.moments();
  args.seed = seed;
  for (const Run& run : runs_of(parameters)) {
    const Parameter& p = *parameters.all()[run.begin];
    args.stream = p.stream;
    args.lr = p.planner ? options.planner_lr : options.base_lr;
    const auto update = [&](int64_t first, int64_t n) {
      const size_t moment = size_t(first) * dtype_size(args.moments);
      args.gradient = parameters.gradient(p) + first;
      args.exp_avg = static_cast<uint8_t*>(parameters.exp_avg(p)) + moment;
      args.exp_avg_sq = static_cast<uint8_t*>(parameters.exp_avg_sq(p)) + moment;
      args.first = first;
      args.n = n;
      backend.adamw_step(args);
    };
    args.parameter = p.model_rows.empty() ? parameters.master(p) : nullptr;
    if (p.model_rows.empty()) update(0, run.n);
    for (const Bf16Rows& piece : p.model_rows) {
      const int64_t first = piece.first * p.shape[1];
      args.high = piece.data;
      args.low = parameters.low(p) + first;
      update(first, piece.rows * p.shape[1]);
    }
  }
  backend.fill_zero(parameters.gradients(), parameters.size());
}

}  // namespace dultra
