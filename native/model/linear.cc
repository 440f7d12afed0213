#include "model/linear.h"

#include <algorithm>

#include "model/parameters.h"

namespace dultra {

void linear_forward(const ForwardContext& context, const Linear& linear, Array y, ConstArray x, int64_t m,
                    bool accumulate, int64_t y_stride) {
  context.backend.linear_forward(y, y_stride ? y_stride : linear.outputs(), x, m, *linear.matrix, linear.bias.as(),
                                 accumulate);
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
  for (const LinearPart& part : context.parameters.parts(linear)) {
    const ConstArray dpart = dy + part.row;
    if (dx) input_gradient(context, linear, part, dx, dpart, dy_stride, m, accumulate);
    accumulate = true;
    if (part.weight)
      context.backend().linear_backward_weight(
          context.parameters.gradient(*part.weight) + part.weight_row * linear.inputs(), part.bias_gradient, dpart,
          dy_stride, x, m, part.rows, linear.inputs());
    if (part.adapter) adapter_gradient(context, *part.adapter, dpart, dy_stride, x, m);
  }
}

}  // namespace dultra
