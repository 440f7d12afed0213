// What operations demand of their arguments, the same on every backend: Backend's public methods check before they call
// a backend. Everything here throws INVALID_ARGUMENT that names the argument, the value and what is expected.
#pragma once
#include "ops/backend.h"

namespace dultra {

// Rows [first, first + count) exist in the matrix.
void check_rows(const Matrix& matrix, int64_t first, int64_t count);

// A method for every DULTRA_CHECKED_OP of ops.inc, with the operation's name and parameters.
struct ArgumentChecks {
  const Backend& backend;

  void make_matrix(const std::vector<MatrixPart>& parts, int64_t cols, DType storage) const;
  void make_block_matrix(const std::vector<BlockPart>& parts, int64_t cols, int experts, bool int8) const;
  void update_matrix(const Matrix& matrix, const std::vector<MatrixPart>& parts) const;
  void linear_forward(Array out, int64_t out_stride, ConstArray x, int64_t m, const Matrix& w, const float* bias,
                      bool accumulate) const;
  void linear_backward_input(Array dx, ConstArray dy, int64_t dy_stride, ConstArray w, int64_t m, int64_t n, int64_t k,
                             bool accumulate) const;
  void linear_backward_input(Array dx, ConstArray dy, int64_t dy_stride, const Matrix& w, int64_t first_row,
                             int64_t rows, int64_t m, bool accumulate) const;
  void store_rows(void* to, DType dtype, ConstArray from, const int32_t* index, int64_t m, int64_t c) const;
  void head_norm_forward(Array x, int64_t stride, Array kept, const float* weight, int64_t m, int heads, int head_dim,
                         float eps) const;
  void head_norm_backward(Array dx, int64_t stride, float* dweight, ConstArray kept, const float* weight, int64_t m,
                          int heads, int head_dim, float eps) const;
  void rope_forward(Array x, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim,
                    const Rope& rope) const;
  void rope_store_forward(Array to, const int32_t* index, Array kv, const int32_t* positions, int64_t m, int kv_heads,
                          int head_dim, const Rope& rope) const;
  void rope_backward(Array dx, int64_t stride, const int32_t* positions, int64_t m, int heads, int head_dim,
                     const Rope& rope) const;
  void make_expert_matrix(const std::vector<MatrixPart>& parts, int64_t cols, DType storage, int experts) const;
  void route_forward(const RouteArgs& args) const;
  void route_backward(const RouteGradArgs& args) const;
  void sort_by_expert(int32_t* row, int32_t* offset, int32_t* place, const int32_t* expert, int64_t m, int per_row,
                      int experts) const;
  void experts_forward(Array out, ConstArray x, bool sorted, const ExpertRows& rows, const Matrix& w) const;
  void experts_backward_input(Array dx, ConstArray dy, bool sorted, const ExpertRows& rows, const Matrix& w) const;
  void attention_forward(const AttentionArgs& args) const;
  void attention_backward(const AttentionGradArgs& args) const;
  void sample_forward(const SampleArgs& args) const;
  void unmask(const UnmaskArgs& args) const;
  void likelihood_forward(const LikelihoodArgs& args) const;
  void likelihood_backward(const LikelihoodGradArgs& args) const;
  void adamw_step(const AdamWArgs& args) const;
};

}  // namespace dultra
