// Inner loops over one row, or one tile of attention, that differ by instruction set (isa/rows.inl, attention.inl,
// sampling.inl). A function's result for a row depends on that row alone.
#pragma once
#include <stdint.h>

namespace dultra {
namespace cpu {

// Queries of one head against keys of one sequence. Every query sees the keys [0, visible[i]).
struct AttentionTile {
  const float* q;  // (queries, D), q_stride floats apart
  const float* k;  // (keys, D), kv_stride apart
  const float* v;  // (keys, D), kv_stride apart
  float* out;      // (queries, D), out_stride apart
  float* log_sum;  // (queries), log_sum_stride apart: log of the sum of exp(scaled scores); or null
  int64_t log_sum_stride;
  int64_t q_stride, kv_stride, out_stride;
  int queries;  // at most attention_queries of the table
  int keys;     // the largest of visible
  int head_dim;
  float scale;
  const int32_t* visible;  // (queries) from 0 to keys
  float* scratch;          // attention_scratch(head_dim) floats, 64-byte aligned
  const uint16_t* k16;     // keys in bf16 in place of k, or null
  const uint16_t* v16;     // likewise
};

// The backward of one key/value head of one sequence: all queries of the heads that read it.
struct AttentionGradTask {
  const float* q;        // (queries, heads, D), q_stride floats apart
  const float* k;        // (keys, D), kv_stride apart
  const float* v;        // (keys, D), kv_stride apart
  const float* out;      // (queries, heads, D), out_stride apart
  const float* dout;     // likewise
  const float* log_sum;  // (queries, heads), log_sum_stride apart
  float* dq;             // (queries, heads, D), q_stride apart
  float* dk;             // (keys, D), kv_stride apart
  float* dv;             // (keys, D), kv_stride apart
  int64_t q_stride, kv_stride, out_stride, log_sum_stride;
  int heads, queries, keys, head_dim;
  float scale;
  const int32_t* visible;  // (queries) from 0 to keys
  float* scratch;          // attention_backward_scratch(head_dim, keys) floats, 64-byte aligned
};

// Sums over a piece of a row of logits, relative to its largest.
struct LogitSums {
  float max;        // -inf if all are -inf: then the sums are 0
  double sum;       // of e^(x - max); NaN if the piece holds NaN or +inf
  double weighted;  // of (x - max) e^(x - max)
};

// Which tokens could still win argmax(logit + T * Gumbel): token v can only if x_v > floor (no noise exceeds
// kMaxGumbel), and if the uniform u behind its noise has u >= exp(-w), w = e^((x_v - bar) / T), which 1 - u <= w must
// hold for.
struct GumbelFilter {
  float floor;  // at or below bar - T * kMaxGumbel
  float bar;    // at or below the best noisy logit so far
  float inverse_temperature;
  uint32_t position, row, step;  // Philox counter words 1, 2, 3
  uint32_t key[2];               // Philox key
};

// Mean and 1 / sqrt(variance + eps) of a row.
struct Moments {
  float mean, scale;
};

struct AdamWPiece {
  float *parameter, *exp_avg, *exp_avg_sq;
  const float* gradient;
  int64_t n;
  // p = keep p - step m / (sqrt(v) / correction + eps), m = beta1 m + rest1 g, v = beta2 v + rest2 g^2, g = gradient *
  // scale
  float scale, beta1, rest1, beta2, rest2, keep, step, correction, eps;
};

struct RowKernels {
  // out (C) = x (C) / sqrt(mean(x^2) + eps) * weight (C)
  void (*rmsnorm)(float* out, const float* x, const float* weight, int64_t c, float eps);
  // out (C) = (x - mean) / sqrt(var + eps) * mul + add
  void (*layernorm)(float* out, const float* x, const float* mul, const float* add, int64_t c, float eps);
  // sum over C of layernorm(x) * weight
  float (*planner_score)(const float* x, const float* mul, const float* add, const float* weight, int64_t c, float eps);
  // In place on x (heads, D): pairs (j, j + D/2) turned by the angle with cosine c[j] and sine direction * s[j], j <
  // D/2.
  // of heads `head_dim` apart the first `dim` numbers
  void (*rope)(float* x, const float* cosine, const float* sine, float direction, int heads, int head_dim, int dim);
  // out (N) = silu(gate) * up
  void (*swiglu)(float* out, const float* gate, const float* up, int64_t n);
  void (*silu)(float* x, int64_t n);

  // dx (C) += and dweight (C, may be null) += the gradients of rmsnorm
  void (*rmsnorm_backward)(float* dx, float* dweight, const float* dout, const float* x, const float* weight, int64_t c,
                           float eps);
  // dx (C) += the gradient of layernorm
  void (*layernorm_backward)(float* dx, Moments* moments, const float* dout, const float* x, const float* mul,
                             int64_t c, float eps);
  // dx (C) += the gradient of planner_score for a gradient `dlogit` of it
  void (*planner_score_backward)(float* dx, Moments* moments, float dlogit, const float* x, const float* mul,
                                 const float* weight, int64_t c, float eps);
  // One row's part of columns: dmul (n) += dout * normed, dadd (n) += dout; either may be null.
  void (*norm_weights_backward)(float* dmul, float* dadd, const float* dout, const float* x, const Moments* moments,
                                int64_t n);
  // Likewise for planner_score: dmul += dlogit weight normed, dadd += dlogit weight, dweight += dlogit (normed mul +
  // add); any may be null.
  void (*planner_weights_backward)(float* dmul, float* dadd, float* dweight, float dlogit, const float* x,
                                   const Moments* moments, const float* mul, const float* add, const float* weight,
                                   int64_t n);
  // dgate, dup (N) from dout (N); may be in place of gate and up
  void (*swiglu_backward)(float* dgate, float* dup, const float* dout, const float* gate, const float* up, int64_t n);
  void (*silu_backward)(float* dx, const float* dout, const float* x, int64_t n);

  // to (columns) += sums over x (rows, columns), rows `stride` floats apart
  void (*add_column_sums)(float* to, const float* x, int64_t stride, int64_t rows, int64_t columns);

  double (*sum_squares)(const float* x, int64_t n);
  void (*adamw)(const AdamWPiece* piece);

  int attention_queries;                       // most queries of one tile
  int64_t (*attention_scratch)(int head_dim);  // floats
  void (*attention)(const AttentionTile* tile);
  int64_t (*attention_backward_scratch)(int head_dim, int keys);  // floats
  void (*attention_backward)(const AttentionGradTask* task);

  void (*logit_sums)(LogitSums* out, const float* x, int64_t n);
  // sum of e^((x - max) * scale), scale > 0
  double (*tempered_sum)(const float* x, int64_t n, float max, float scale);
  // x (n) = -d softmax(x * scale). A row of nothing but -inf gives zeros.
  void (*softmax_backward)(float* x, int64_t n, float scale, float d);
  // dx (n) += d times the gradient of the entropy of softmax(x * scale). A row of nothing but -inf adds nothing.
  void (*entropy_backward)(float* dx, const float* x, int64_t n, float scale, float d);
  // Lowest i < n with x[i] == value; n if none.
  int64_t (*find_first)(const float* x, int64_t n, float value);
  // Writes the offsets i < n of the tokens first + i (first even) that the filter lets pass, ascending, and returns how
  // many.
  int (*gumbel_filter)(const GumbelFilter* filter, const float* x, uint32_t first, int n, int32_t* passed);
};

}  // namespace cpu
}  // namespace dultra
