#include "model/linear.h"

#include <algorithm>

#include "model/parameters.h"

namespace dultra {

void linear_forward(const ForwardContext& context, const Linear& linear, Array y, ConstArray x, int64_t m,
                    bool accumulate, int64_t y_stride) {
  Backend& backend = context.backend;
  const int64_t n = linear.outputs();
  if (!y_stride) y_stride = n;
  if (linear.low_rank.empty())
    return backend.linear_forward(y, y_stride, x, m, *linear.matrix, linear.bias.as(), accumulate);
  // Where y is narrow, all is added up before it is rounded.
  const bool rounds = y.dtype != DType::kF32;
  const Array sum = rounds ? Array(context.workspace.get(kAdapted, m * n)) : y;
  const int64_t stride = rounds ? n : y_stride;
  backend.linear_forward(sum, stride, x, m, *linear.matrix, linear.bias.as(), accumulate);
  for (const auto& adapter : linear.low_rank) {
    float* low = context.workspace.get(kLowRankInput, m * adapter->rank());
    backend.linear_forward(low, adapter->rank(), x, m, *adapter->a, nullptr, false);
    backend.linear_forward(sum + adapter->row, stride, low, m, *adapter->b, nullptr, true);
  }
  if (!rounds) return;
  check_argument(y_stride == n, "linear: expected rows without gaps where they are rounded");
  backend.gather_rows(y, sum, nullptr, m, n);
}

namespace {

// dx (M, K) = dy (M, rows) w, w being the rows of the matrix that come from one tensor: what the optimiser updates
// where it trains and this process has all of it, else the matrix that forward multiplied with.
void input_gradient(const BackwardContext& context, const Linear& linear, const LinearPart& part, Array dx,
                    ConstArray dy, int64_t dy_stride, int64_t m, bool accumulate) {
  Backend& backend = context.backend();
  const int64_t k = linear.inputs();
  if (!part.weight || (part.weight->model_rows.empty() && context.parameters.shard().is_split))
    return backend.linear_backward_input(dx, dy, dy_stride, *linear.matrix, part.row, part.rows, m, accumulate);
  const Parameter& weight = *part.weight;
  if (weight.model_rows.empty())
    return backend.linear_backward_input(dx, dy, dy_stride, context.parameters.master(weight) + part.weight_row * k, m,
                                         part.rows, k, accumulate);
  for (const Bf16Rows& piece : weight.model_rows) {
    const int64_t begin = std::max(part.weight_row, piece.first),
                  end = std::min(part.weight_row + part.rows, piece.first + piece.rows);
    if (begin >= end) continue;
    backend.linear_backward_input(dx, dy + (begin - part.weight_row), dy_stride, piece.data + (begin - piece.first) * k,
                                  m, end - begin, k, accumulate);
    accumulate = true;
  }
}

// y += scale (x A^T) B^T: dB += scale dy^T (x A^T), dA += (scale dy B)^T x.
void adapter_gradient(const BackwardContext& context, const Adapter& adapter, ConstArray dy, int64_t dy_stride,
                      ConstArray x, int64_t m) {
  Backend& backend = context.backend();
  const Parameters& parameters = context.parameters;
  const int64_t n = adapter.outputs(), k = adapter.inputs(), r = adapter.rank();
  float* low = context.workspace.get(kLowRank, m * r);
  backend.linear_backward_input(low, x, k, adapter.a_scaled.as(), m, k, r, false);
  backend.linear_backward_weight(parameters.gradient(*adapter.b), nullptr, dy, dy_stride, low, m, n, r);
  backend.linear_backward_input(low, dy, dy_stride, adapter.b_scaled.as(), m, n, r, false);
  backend.linear_backward_weight(parameters.gradient(*adapter.a), nullptr, low, r, x, m, r, k);
}

}  // namespace

void linear_backward(const BackwardContext& context, const Linear& linear, Array dx, ConstArray dy, ConstArray x,
                     int64_t m, bool accumulate, int64_t dy_stride) {
  if (!dy_stride) dy_stride = linear.outputs();
  Backend& backend = context.backend();
  const int64_t k = linear.inputs();
  const bool rounds = dx && dx.dtype != DType::kF32 && !linear.low_rank.empty();
  const Array sum = rounds ? Array(context.workspace.get(kDAdapted, m * k)) : dx;
  for (const LinearPart& part : context.parameters.parts(linear)) {
    const ConstArray dpart = dy + part.row;
    if (dx) input_gradient(context, linear, part, sum, dpart, dy_stride, m, accumulate);
    accumulate = true;
    if (part.weight)
      backend.linear_backward_weight(context.parameters.gradient(*part.weight) + part.weight_row * k,
                                     part.bias_gradient, dpart, dy_stride, x, m, part.rows, k);
    if (part.adapter) adapter_gradient(context, *part.adapter, dpart, dy_stride, x, m);
  }
  if (!dx) return;
  for (const auto& adapter : linear.low_rank) {
    const int64_t r = adapter->rank();
    float* low = context.workspace.get(kLowRank, m * r);
    backend.linear_backward_input(low, dy + adapter->row, dy_stride, *adapter->b, 0, adapter->b->rows(), m, false);
    backend.linear_backward_input(sum, low, r, *adapter->a, 0, r, m, true);
  }
  if (rounds) backend.gather_rows(dx, sum, nullptr, m, k);
}

}  // namespace dultra
