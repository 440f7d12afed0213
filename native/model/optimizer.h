// AdamW over all parameters, with clipping by the global norm.
#pragma once
#include "model/parameters.h"

namespace dultra {

struct OptimizerStep {
  double base_lr = 0, planner_lr = 0, beta1 = 0.9, beta2 = 0.99, eps = 1e-8, weight_decay = 0;
  double max_grad_norm = 0;  // 0: no clipping
};

// L2 norm of all gradients. With `ranks` (null: this process's alone), each rank adds up those that it updates, and all
// ranks get the same bits, whatever their number.
double gradient_norm(Backend& backend, const Parameters& parameters, Communicator* ranks);

// Update number `step` (from 1) of every master, with gradients clipped to max_grad_norm given their `norm`; gradients
// are 0 afterwards. `seed` is that of the stochastic rounding of bf16 moments.
void update_parameters(Backend& backend, const Parameters& parameters, const OptimizerStep& options, double norm,
                       int64_t step, uint64_t seed);

}  // namespace dultra
