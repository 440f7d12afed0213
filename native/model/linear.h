// A weight matrix with its bias, forward and backward: the one place that knows stacking, biases, adapters and which
// numbers train.
#pragma once
#include <memory>
#include <vector>

#include "model/context.h"

namespace dultra {

// Rows of W that have b a added to them, an adapter with its scale: of a matrix that nothing can be written into.
struct LowRank {
  int64_t row = 0;            // of W where they begin
  std::unique_ptr<Matrix> a;  // (rank, K) fp32
  std::unique_ptr<Matrix> b;  // (rows, rank) fp32

  int64_t rank() const { return a->rows(); }
};

// y = x W^T + b. Several checkpoint tensors may be stacked along the rows of W (keys and values, gate and up).
struct Linear {
  std::unique_ptr<Matrix> matrix;  // (N, K)
  Buffer bias;                     // (N), or empty
  std::vector<std::shared_ptr<const LowRank>> low_rank;

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
