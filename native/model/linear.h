// A weight matrix with its bias, forward and backward: the one place that knows stacking, biases, adapters and which
// numbers train.
#pragma once
#include <memory>

#include "model/context.h"

namespace dultra {

// y = x W^T + b. Several checkpoint tensors may be stacked along the rows of W (keys and values, gate and up).
struct Linear {
  std::unique_ptr<Matrix> matrix;  // (N, K)
  Buffer bias;                     // (N), or empty

  int64_t outputs() const { return matrix->rows(); }
  int64_t inputs() const { return matrix->cols(); }
};

// y (M, N) = x (M, K) W^T + b, added to what y holds with `accumulate`. Rows of y are `y_stride` numbers apart (0: N).
void linear_forward(const ForwardContext& context, const Linear& linear, Array y, ConstArray x, int64_t m,
                    bool accumulate = false, int64_t y_stride = 0);

// dx (M, K) = dy (M, N) W, added to what dx holds with `accumulate`; dx null: not wanted. Adds to the gradients of what
// trains of W and b, and of their adapters. Rows of dy are `dy_stride` numbers apart (0: N).
void linear_backward(const BackwardContext& context, const Linear& linear, Array dx, ConstArray dy, ConstArray x,
                     int64_t m, bool accumulate = false, int64_t dy_stride = 0);

}  // namespace dultra
