#include "model/optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace dultra {

double gradient_norm(Backend& backend, const Parameters& parameters, Communicator* ranks) {
  const int64_t size = parameters.size(), block = parameters.block();
  const Range own = ranks ? parameters.range_of(parameters.shard().rank) : Range{0, size};
  std::vector<double> sums(size_t((size + block - 1) / block), 0.0);
  for (int64_t at = own.begin; at < own.end; at += block)
    sums[size_t(at / block)] = backend.sum_squares(parameters.reduced(at), std::min(block, size - at));
  if (ranks && parameters.shard().is_split) {
    // Each sum is of one rank, and 0 of all others: their bits add up to it.
    std::vector<int64_t> bits(sums.size());
    std::memcpy(bits.data(), sums.data(), sums.size() * sizeof(double));
    ranks->all_reduce_sum(bits.data(), int64_t(bits.size()));
    std::memcpy(sums.data(), bits.data(), sums.size() * sizeof(double));
  }
  double sum = 0;
  for (double s : sums) sum += s;
  return std::sqrt(sum);
}

namespace {

// Parameters that one AdamW operation updates: neighbours in every arena, with one learning rate. Where masters are
// the model's numbers and low bits beside them, or moments rounded by streams of their own, it is one parameter.
struct Run {
  size_t begin, end;
  int64_t n;
};

std::vector<Run> runs_of(const Parameters& parameters) {
  const auto& all = parameters.all();
  std::vector<Run> runs;
  // Of the first number that this process updates.
  const auto gradient = [](const Parameter& p) { return p.offset + p.own.begin; };
  const auto master = [](const Parameter& p) { return p.master_offset + p.own.begin - p.held.begin; };
  for (size_t i = 0; i < all.size(); ++i) {
    const Parameter& p = *all[i];
    if (p.own.size() <= 0) continue;
    if (!runs.empty() && parameters.moments() == DType::kF32) {
      Run& run = runs.back();
      const Parameter& first = *all[run.begin];
      if (p.model_rows.empty() && first.model_rows.empty() && p.planner == first.planner &&
          gradient(p) - gradient(first) == master(p) - master(first)) {
        run.end = i + 1;
        run.n = gradient(p) - gradient(first) + p.own.size();
        continue;
      }
    }
    runs.push_back({i, i + 1, p.own.size()});
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
      const size_t moment = size_t(first - p.own.begin) * dtype_size(args.moments);
      args.gradient = parameters.reduced(p.offset + first);
      args.exp_avg = static_cast<uint8_t*>(parameters.exp_avg(p)) + moment;
      args.exp_avg_sq = static_cast<uint8_t*>(parameters.exp_avg_sq(p)) + moment;
      args.first = first;
      args.n = n;
      backend.adamw_step(args);
    };
    args.parameter = p.model_rows.empty() ? parameters.master(p) + (p.own.begin - p.held.begin) : nullptr;
    if (p.model_rows.empty()) update(p.own.begin, run.n);
    for_rows(p, p.own, [&](uint16_t* data, const Range& range) {
      args.high = data;
      args.low = parameters.low(p) + (range.begin - p.held.begin);
      update(range.begin, range.size());
    });
  }
  parameters.clear_gradients();
}

}  // namespace dultra
