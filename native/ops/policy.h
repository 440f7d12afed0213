// The planner's policy for one candidate, the same code on every backend.
#pragma once
#include <cmath>

#include "ops/host_device.h"

namespace dultra {

// log(1 / (1 + e^-z)) without overflow or cancellation.
DULTRA_HD double log_sigmoid(double z) { return fmin(z, 0.0) - log1p(exp(-fabs(z))); }

// The planner's policy for one candidate, from its logit.
struct Policy {
  float temperature, scale;
  bool as_reference;

  // NaN counts as -infinity: p = 0.
  DULTRA_HD float z(float logit) const { return std::isnan(logit) ? -INFINITY : logit / temperature; }
  // Rounded to fp32 at every operation, as the reference does: that makes p exactly 1 from z = 16.7 on and exactly 0
  // below -88.8, which decides floor(sum p) and the candidate that is forced. A scale above 1 may take it above 1: the
  // expected count and the order use it as it is (so the scale is a speed knob without a ceiling), a likelihood uses
  // min(1, p).
  DULTRA_HD float probability(float logit) const {
    const float sigmoid = 1.0f / (1.0f + float(exp(-double(z(logit)))));
    return scale * sigmoid;
  }
  DULTRA_HD double log_selected(float logit) const {
    if (as_reference) return log(fmin(1.0, double(probability(logit))));
    return fmin(0.0, log(double(scale)) + log_sigmoid(z(logit)));
  }
  DULTRA_HD double log_masked(float logit) const {
    if (as_reference) return log1p(-fmin(1.0, double(probability(logit))));
    if (scale == 1) return log_sigmoid(-double(z(logit)));
    return log1p(-fmin(1.0, scale * exp(log_sigmoid(z(logit)))));
  }

  // Derivatives by the logit. Where min(1, p) saturates they are 0; so they are where the value is -inf (the
  // reference's formula for large |z|, a scale of 0), which has none.
  DULTRA_HD double dlog_selected(float logit) const {
    const double value = log_selected(logit);
    if (value == 0 || std::isinf(value)) return 0;
    return exp(log_sigmoid(-double(z(logit)))) / temperature;
  }
  DULTRA_HD double dlog_masked(float logit) const {
    if (std::isinf(log_masked(logit))) return 0;
    const double sigmoid = exp(log_sigmoid(z(logit)));
    if (scale == 1) return -sigmoid / temperature;
    return -scale * sigmoid * exp(log_sigmoid(-double(z(logit)))) / (1 - scale * sigmoid) / temperature;
  }
};

}  // namespace dultra
