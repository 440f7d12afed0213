#include "ops/check_args.h"

#include <cmath>
#include <limits>
#include <string>

namespace dultra {

namespace {

std::string text(int64_t value) { return std::to_string(value); }

void check_cached(DType dtype) {
  check_argument(dtype == DType::kF32 || dtype == DType::kBF16, "dtype: expected fp32 or bf16");
}

void check_sum(Array out, bool accumulate) {
  check_argument(!accumulate || out.dtype == DType::kF32,
                 "accumulate: expected an array of fp32, sums are not rounded");
}

void check_policy(float planner_temperature, float probability_scale) {
  check_argument(planner_temperature > 0,
                 "planner_temperature: expected a positive number, got " + std::to_string(planner_temperature));
  check_argument(probability_scale >= 0 && std::isfinite(probability_scale),
                 "probability_scale: expected a finite number >= 0, got " + std::to_string(probability_scale));
}

// Positions in device memory are the caller's responsibility.
void check_rope(const Backend& backend, const int32_t* positions, int64_t m, int head_dim, const Rope& rope) {
  check_argument(head_dim % 2 == 0, "head_dim: expected an even number, got " + text(head_dim));
  check_argument(
      rope.dim >= 0 && rope.dim % 2 == 0 && rope.dim <= head_dim,
      "rope.dim: expected an even number of at most head_dim (" + text(head_dim) + "), got " + text(rope.dim));
  if (!backend.host_may_read(positions)) return;
  for (int64_t i = 0; i < m; ++i)
    check_argument(positions[i] >= 0, "positions: expected no negative number, got " + text(positions[i]));
}

// What a warp's lanes keep of a head in registers.
constexpr int kMostHeadDim = 512;

void check_head_norm(ConstArray x, ConstArray kept, int heads, int head_dim) {
  check_argument(heads > 0, "heads: expected at least 1, got " + text(heads));
  check_argument(head_dim > 0 && head_dim <= kMostHeadDim,
                 "head_dim: expected 1 to " + text(kMostHeadDim) + " with a norm of heads, got " + text(head_dim));
  check_argument(!kept || kept.dtype == x.dtype, "kept: expected an array of the type of x");
}

int64_t rows_of(const std::vector<MatrixPart>& parts) {
  int64_t rows = 0;
  for (const MatrixPart& part : parts) {
    check_argument(part.rows >= 0, "rows: expected at least 0, got " + text(part.rows));
    rows += part.rows;
  }
  return rows;
}

}  // namespace

void check_rows(const Matrix& matrix, int64_t first, int64_t count) {
  check_argument(first >= 0 && count >= 0 && first + count <= matrix.rows(),
                 "rows: expected a part of " + text(matrix.rows()) + ", got " + text(count) + " from " + text(first));
}

void ArgumentChecks::make_matrix(const std::vector<MatrixPart>& parts, int64_t cols, DType storage) const {
  check_argument(cols > 0, "cols: expected at least 1, got " + text(cols));
  check_argument(backend.compute() == Compute::kF32 || storage != DType::kF16,
                 "storage: with products in bf16, expected weights in bf16 or fp32, got fp16");
  rows_of(parts);
}

void ArgumentChecks::make_block_matrix(const std::vector<BlockPart>& parts, int64_t cols, int experts, bool) const {
  check_argument(cols > 0, "cols: expected at least 1, got " + text(cols));
  check_argument(experts > 0 && !parts.empty() && parts.size() % size_t(experts) == 0,
                 "parts: expected as many of each of " + text(experts) + " experts");
  const size_t each = parts.size() / size_t(experts);
  for (size_t i = 0; i < parts.size(); ++i) {
    const BlockPart& part = parts[i];
    check_argument(part.type != BlockType::kNone && cols % block_layout(part.type).values == 0,
                   "cols: expected whole blocks, got " + text(cols) + " numbers");
    check_argument(part.rows > 0 && part.rows == parts[i % each].rows,
                   "parts: expected rows, as many of every expert, got " + text(part.rows));
    check_argument(part.heads == 0 || (part.heads > 0 && part.rows % (2 * part.heads) == 0),
                   "heads: expected an even number of rows of each, got " + text(part.rows));
  }
}

void ArgumentChecks::update_matrix(const Matrix& matrix, const std::vector<MatrixPart>& parts) const {
  check_argument(!matrix.quantised(), "matrix: expected one that can be written, got quantised weights");
  const int64_t rows = rows_of(parts);
  check_argument(rows == matrix.rows(), "parts: expected " + text(matrix.rows()) + " rows, got " + text(rows));
}

void ArgumentChecks::linear_forward(Array out, int64_t, ConstArray, int64_t, const Matrix&, const float*,
                                    bool accumulate) const {
  check_sum(out, accumulate);
}

void ArgumentChecks::linear_backward_input(Array dx, ConstArray, int64_t, ConstArray, int64_t, int64_t, int64_t,
                                           bool accumulate) const {
  check_sum(dx, accumulate);
}

void ArgumentChecks::linear_backward_input(Array dx, ConstArray, int64_t, const Matrix& w, int64_t first_row,
                                           int64_t rows, int64_t, bool accumulate) const {
  check_sum(dx, accumulate);
  check_rows(w, first_row, rows);
}

void ArgumentChecks::store_rows(void*, DType dtype, ConstArray, const int32_t*, int64_t, int64_t) const {
  check_cached(dtype);
}

void ArgumentChecks::head_norm_forward(Array x, int64_t, Array kept, const float*, int64_t, int heads, int head_dim,
                                       float) const {
  check_head_norm(x, kept, heads, head_dim);
}

void ArgumentChecks::head_norm_backward(Array, int64_t, float*, ConstArray kept, const float*, int64_t, int heads,
                                        int head_dim, float) const {
  check_head_norm(kept, kept, heads, head_dim);
}

void ArgumentChecks::rope_forward(Array, int64_t, const int32_t* positions, int64_t m, int, int head_dim,
                                  const Rope& rope) const {
  check_rope(backend, positions, m, head_dim, rope);
}

void ArgumentChecks::rope_store_forward(Array to, const int32_t*, Array, const int32_t* positions, int64_t m, int,
                                        int head_dim, const Rope& rope) const {
  check_cached(to.dtype);
  check_rope(backend, positions, m, head_dim, rope);
}

void ArgumentChecks::rope_backward(Array, int64_t, const int32_t* positions, int64_t m, int, int head_dim,
                                   const Rope& rope) const {
  check_rope(backend, positions, m, head_dim, rope);
}

void ArgumentChecks::make_expert_matrix(const std::vector<MatrixPart>& parts, int64_t cols, DType storage,
                                        int experts) const {
  make_matrix(parts, cols, storage);
  check_argument(experts > 0, "experts: expected at least 1, got " + text(experts));
  const int64_t rows = rows_of(parts);
  check_argument(rows % experts == 0,
                 "parts: expected as many rows of each of " + text(experts) + " experts, got " + text(rows));
}

void ArgumentChecks::route_forward(const RouteArgs& a) const {
  check_argument(a.experts > 0 && a.experts <= kMostExperts,
                 "experts: expected 1 to " + text(kMostExperts) + ", got " + text(a.experts));
  check_argument(a.groups > 0 && a.experts % a.groups == 0,
                 "groups: expected a divisor of experts (" + text(a.experts) + "), got " + text(a.groups));
  check_argument(a.groups == 1 || a.experts / a.groups >= 2, "groups: expected at least two experts a group, got " +
                                                                 text(a.groups) + " groups of " + text(a.experts) +
                                                                 " experts");
  check_argument(a.groups_kept > 0 && a.groups_kept <= a.groups,
                 "groups_kept: expected 1 to groups (" + text(a.groups) + "), got " + text(a.groups_kept));
  const int open = a.experts / a.groups * a.groups_kept;
  check_argument(a.per_row > 0 && a.per_row <= open,
                 "per_row: expected 1 to the experts of the groups kept (" + text(open) + "), got " + text(a.per_row));
  check_argument(std::isfinite(a.scale), "scale: expected a finite number");
}

void ArgumentChecks::route_backward(const RouteGradArgs& a) const { route_forward(a.forward); }

void ArgumentChecks::sort_by_expert(int32_t*, int32_t*, int32_t*, const int32_t*, int64_t m, int per_row,
                                    int experts) const {
  check_argument(experts > 0 && experts <= kMostExperts,
                 "experts: expected 1 to " + text(kMostExperts) + ", got " + text(experts));
  check_argument(per_row > 0 && m >= 0 && m <= std::numeric_limits<int32_t>::max() / per_row,
                 "m: expected at most 2^31 - 1 pairs of rows and experts");
}

void ArgumentChecks::experts_forward(Array, ConstArray, bool, const ExpertRows& rows, const Matrix& w) const {
  check_argument(rows.experts == w.experts(),
                 "w: expected matrices of " + text(rows.experts) + " experts, got " + text(w.experts()));
}

void ArgumentChecks::experts_backward_input(Array dx, ConstArray dy, bool sorted, const ExpertRows& rows,
                                            const Matrix& w) const {
  experts_forward(dx, dy, sorted, rows, w);
}

void ArgumentChecks::attention_forward(const AttentionArgs& a) const {
  check_argument(a.heads > 0 && a.kv_heads > 0 && a.heads % a.kv_heads == 0,
                 "heads: expected a multiple of kv_heads (" + text(a.kv_heads) + "), got " + text(a.heads));
  check_argument(a.head_dim > 0, "head_dim: expected a positive number, got " + text(a.head_dim));
  check_argument(a.mask != MaskKind::kBlockCausal || a.block > 0,
                 "block: expected a positive number, got " + text(a.block));
  check_argument(a.k.dtype == a.v.dtype, "v: expected values of the type of the keys");
}

void ArgumentChecks::attention_backward(const AttentionGradArgs& args) const {
  attention_forward(args.forward);
  check_argument(args.forward.log_sum != nullptr, "log_sum: expected what attention_forward wrote, got null");
}

void ArgumentChecks::sample_forward(const SampleArgs& a) const {
  check_argument(a.vocab > 0 && a.vocab <= std::numeric_limits<int32_t>::max(),
                 "vocab: expected 1 to 2^31 - 1, got " + text(a.vocab));
  check_argument(std::isfinite(a.temperature), "temperature: expected a finite number");
  check_argument(a.top_k >= 0, "top_k: expected at least 0, got " + text(a.top_k));
  check_argument(a.top_p > 0 && a.top_p <= 1, "top_p: expected above 0 and at most 1, got " + std::to_string(a.top_p));
  if (!a.given || !backend.host_may_read(a.given)) return;
  for (int64_t row = 0; row < a.rows; ++row)
    check_argument(a.given[row] >= 0 && a.given[row] < a.vocab,
                   "given: expected tokens below vocab (" + text(a.vocab) + "), got " + text(a.given[row]));
}

void ArgumentChecks::unmask(const UnmaskArgs& a) const {
  check_argument(
      a.selection_temperature >= 0 && std::isfinite(a.selection_temperature),
      "selection_temperature: expected a finite number >= 0, got " + std::to_string(a.selection_temperature));
  if (is_planner_rule(a.rule)) check_policy(a.planner_temperature, a.probability_scale);
}

void ArgumentChecks::likelihood_forward(const LikelihoodArgs& a) const {
  check_policy(a.planner_temperature, a.probability_scale);
}

void ArgumentChecks::likelihood_backward(const LikelihoodGradArgs& a) const {
  check_policy(a.forward.planner_temperature, a.forward.probability_scale);
}

void ArgumentChecks::adamw_step(const AdamWArgs& a) const {
  check_argument(a.step >= 1, "step: expected at least 1, got " + text(a.step));
  check_argument(a.moments == DType::kF32 || a.moments == DType::kBF16, "moments: expected fp32 or bf16");
}

}  // namespace dultra
