// Inner loops over one row: norms, rotary embedding, gates. Sums run over kVF * 4 lanes in a fixed order that depends
// on the row length alone.
#pragma once
#include "backends/cpu/isa/attention.inl"
#include "backends/cpu/isa/sampling.inl"
#include "backends/cpu/isa/vector.h"
#include "backends/cpu/row_kernels.h"

namespace {

// Sum over i < c of term(vector of lanes i ..). `term(i, n)` returns kVF lanes; n < kVF asks for zeros beyond the first
// n.
template <class Term>
static inline float sum_over(int64_t c, Term term) {
  VF sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * kVF <= c; i += 4 * kVF)
    for (int u = 0; u < 4; ++u) sum[u] += term(i + u * kVF, kVF);
  for (int u = 0; i < c; i += kVF, ++u) sum[u & 3] += term(i, c - i < kVF ? int(c - i) : kVF);
  return vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}
// map(i, n, ...) for every vector of a row.
template <class Map>
static inline void for_vectors(int64_t c, Map map) {
  int64_t i = 0;
  for (; i + kVF <= c; i += kVF) map(i, kVF);
  if (i < c) map(i, int(c - i));
}
static inline VF load_n(const float* p, int n) { return n == kVF ? vf_load(p) : vf_load_part(p, n, 0.0f); }
static inline void store_n(float* p, VF v, int n) {
  if (n == kVF)
    vf_store(p, v);
  else
    vf_store_part(p, v, n);
}

static void rmsnorm_row(float* out, const float* x, const float* weight, int64_t c, float eps) {
  const float squares = sum_over(c, [=](int64_t i, int n) {
    const VF v = load_n(x + i, n);
    return v * v;
  });
  const float scale = 1.0f / __builtin_sqrtf(squares / float(c) + eps);
  for_vectors(c, [=](int64_t i, int n) { store_n(out + i, load_n(x + i, n) * scale * load_n(weight + i, n), n); });
}

static void row_moments(const float* x, int64_t c, float eps, float* mean, float* scale) {
  const float m = sum_over(c, [=](int64_t i, int n) { return load_n(x + i, n); }) / float(c);
  const float squares = sum_over(c, [=](int64_t i, int n) {
    const VF d = (n == kVF ? vf_load(x + i) : vf_load_part(x + i, n, m)) - m;
    return d * d;
  });
  *mean = m;
  *scale = 1.0f / __builtin_sqrtf(squares / float(c) + eps);
}

static void layernorm_row(float* out, const float* x, const float* mul, const float* add, int64_t c, float eps) {
  float mean, scale;
  row_moments(x, c, eps, &mean, &scale);
  for_vectors(c, [=](int64_t i, int n) {
    const VF normed = (load_n(x + i, n) - mean) * scale;
    store_n(out + i, vf_fma(normed, load_n(mul + i, n), load_n(add + i, n)), n);
  });
}

static float planner_score_row(const float* x, const float* mul, const float* add, const float* weight, int64_t c,
                               float eps) {
  float mean, scale;
  row_moments(x, c, eps, &mean, &scale);
  return sum_over(c, [=](int64_t i, int n) {
    const VF normed = (load_n(x + i, n) - mean) * scale;
    return vf_fma(normed, load_n(mul + i, n), load_n(add + i, n)) * load_n(weight + i, n);
  });
}

static void rope_row(float* x, const float* cosine, const float* sine, float direction, int heads, int head_dim,
                     int dim) {
  const int half = dim / 2;
  for (int h = 0; h < heads; ++h, x += head_dim) {
    float* low = x;
    float* high = x + half;
    for_vectors(half, [=](int64_t j, int n) {
      const VF a = load_n(low + j, n), b = load_n(high + j, n), c = load_n(cosine + j, n),
               s = load_n(sine + j, n) * direction;
      store_n(low + j, vf_fma(a, c, -(b * s)), n);
      store_n(high + j, vf_fma(b, c, a * s), n);
    });
  }
}

static inline VF silu(VF x) { return x / (vf_exp(-x) + 1.0f); }

static void swiglu_row(float* out, const float* gate, const float* up, int64_t n) {
  for_vectors(
      n, [=](int64_t i, int count) { store_n(out + i, silu(load_n(gate + i, count)) * load_n(up + i, count), count); });
}

static void silu_row(float* x, int64_t n) {
  for_vectors(n, [=](int64_t i, int count) { store_n(x + i, silu(load_n(x + i, count)), count); });
}

static void rmsnorm_backward_row(float* dx, float* dweight, const float* dout, const float* x, const float* weight,
                                 int64_t c, float eps) {
  const float squares = sum_over(c, [=](int64_t i, int n) {
    const VF v = load_n(x + i, n);
    return v * v;
  });
  const float scale = 1.0f / __builtin_sqrtf(squares / float(c) + eps);
  const float dot =
      sum_over(c, [=](int64_t i,
                      int n) { return load_n(dout + i, n) * load_n(weight + i, n) * (load_n(x + i, n) * scale); }) /
      float(c);
  for_vectors(c, [=](int64_t i, int n) {
    const VF normed = load_n(x + i, n) * scale, d = load_n(dout + i, n);
    const VF slope = vf_fma(d, load_n(weight + i, n), -(normed * dot));
    store_n(dx + i, vf_fma(slope, vf_set(scale), load_n(dx + i, n)), n);
    if (dweight) store_n(dweight + i, vf_fma(d, normed, load_n(dweight + i, n)), n);
  });
}

// The input's part of a layer norm's backward; dnormed(i, n) is dout * mul.
template <class Gradient>
static inline void layernorm_input_backward(float* dx, dultra::cpu::Moments* moments, const float* x, int64_t c,
                                            float eps, Gradient dnormed) {
  float mean, scale;
  row_moments(x, c, eps, &mean, &scale);
  *moments = {mean, scale};
  const float sum = sum_over(c, [=](int64_t i, int n) { return dnormed(i, n); }) / float(c);
  const float dot =
      sum_over(c, [=](int64_t i, int n) { return dnormed(i, n) * ((load_n(x + i, n) - mean) * scale); }) / float(c);
  for_vectors(c, [=](int64_t i, int n) {
    const VF d = (dnormed(i, n) - sum) - (load_n(x + i, n) - mean) * scale * dot;
    store_n(dx + i, vf_fma(d, vf_set(scale), load_n(dx + i, n)), n);
  });
}

static void layernorm_backward_row(float* dx, dultra::cpu::Moments* moments, const float* dout, const float* x,
                                   const float* mul, int64_t c, float eps) {
  layernorm_input_backward(dx, moments, x, c, eps,
                           [=](int64_t i, int n) { return load_n(dout + i, n) * load_n(mul + i, n); });
}

static void planner_score_backward_row(float* dx, dultra::cpu::Moments* moments, float dlogit, const float* x,
                                       const float* mul, const float* weight, int64_t c, float eps) {
  layernorm_input_backward(dx, moments, x, c, eps,
                           [=](int64_t i, int n) { return load_n(weight + i, n) * dlogit * load_n(mul + i, n); });
}

static void norm_weights_backward(float* dmul, float* dadd, const float* dout, const float* x,
                                  const dultra::cpu::Moments* moments, int64_t n) {
  const float mean = moments->mean, scale = moments->scale;
  for_vectors(n, [=](int64_t i, int count) {
    const VF d = load_n(dout + i, count);
    if (dmul) store_n(dmul + i, vf_fma(d, (load_n(x + i, count) - mean) * scale, load_n(dmul + i, count)), count);
    if (dadd) store_n(dadd + i, load_n(dadd + i, count) + d, count);
  });
}

static void planner_weights_backward(float* dmul, float* dadd, float* dweight, float dlogit, const float* x,
                                     const dultra::cpu::Moments* moments, const float* mul, const float* add,
                                     const float* weight, int64_t n) {
  const float mean = moments->mean, scale = moments->scale;
  for_vectors(n, [=](int64_t i, int count) {
    const VF normed = (load_n(x + i, count) - mean) * scale, d = load_n(weight + i, count) * dlogit;
    if (dmul) store_n(dmul + i, vf_fma(d, normed, load_n(dmul + i, count)), count);
    if (dadd) store_n(dadd + i, load_n(dadd + i, count) + d, count);
    const VF out = vf_fma(normed, load_n(mul + i, count), load_n(add + i, count));
    if (dweight) store_n(dweight + i, vf_fma(vf_set(dlogit), out, load_n(dweight + i, count)), count);
  });
}

// The slope of silu, and silu itself.
static inline VF silu_slope(VF x, VF* value) {
  const VF sigmoid = 1.0f / (vf_exp(-x) + 1.0f);
  *value = x * sigmoid;
  return sigmoid * (x * (1.0f - sigmoid) + 1.0f);
}

static void swiglu_backward_row(float* dgate, float* dup, const float* dout, const float* gate, const float* up,
                                int64_t n) {
  for_vectors(n, [=](int64_t i, int count) {
    VF value;
    const VF d = load_n(dout + i, count), slope = silu_slope(load_n(gate + i, count), &value);
    store_n(dgate + i, d * load_n(up + i, count) * slope, count);
    store_n(dup + i, d * value, count);
  });
}

static void silu_backward_row(float* dx, const float* dout, const float* x, int64_t n) {
  for_vectors(n, [=](int64_t i, int count) {
    VF value;
    store_n(dx + i, load_n(dout + i, count) * silu_slope(load_n(x + i, count), &value), count);
  });
}

typedef double VD __attribute__((vector_size(DULTRA_VF_WIDTH * 8)));

static double sum_squares(const float* x, int64_t n) {
  VD sum[2] = {};
  int u = 0;
  for_vectors(n, [&](int64_t i, int count) {
    const VD wide = __builtin_convertvector(load_n(x + i, count), VD);
    sum[u ^= 1] += wide * wide;
  });
  double lane[kVF];
  const VD all = sum[0] + sum[1];
  memcpy(lane, &all, sizeof lane);
  for (int w = kVF / 2; w > 0; w /= 2)
    for (int i = 0; i < w; ++i) lane[i] += lane[i + w];
  return lane[0];
}

static void adamw(const dultra::cpu::AdamWPiece* piece) {
  const dultra::cpu::AdamWPiece a = *piece;
  for_vectors(a.n, [&](int64_t i, int n) {
    const VF g = load_n(a.gradient + i, n) * a.scale;
    const VF m = vf_fma(load_n(a.exp_avg + i, n), vf_set(a.beta1), g * a.rest1);
    const VF v = vf_fma(load_n(a.exp_avg_sq + i, n), vf_set(a.beta2), g * g * a.rest2);
    store_n(a.exp_avg + i, m, n);
    store_n(a.exp_avg_sq + i, v, n);
    const VF update = m / (vf_sqrt(v) / a.correction + a.eps);
    store_n(a.parameter + i, vf_fma(update, vf_set(-a.step), load_n(a.parameter + i, n) * a.keep), n);
  });
}

// Sums of short runs of rows, then of those: long sums round less this way.
static void add_column_sums(float* to, const float* x, int64_t stride, int64_t rows, int64_t columns) {
  constexpr int64_t kRunRows = 64;
  for_vectors(columns, [=](int64_t j, int n) {
    VF total = {};
    for (int64_t first = 0; first < rows; first += kRunRows) {
      const int64_t end = rows < first + kRunRows ? rows : first + kRunRows;
      VF sum[4] = {};
      int64_t i = first;
      for (; i + 4 <= end; i += 4)
        for (int u = 0; u < 4; ++u) sum[u] += load_n(x + (i + u) * stride + j, n);
      for (; i < end; ++i) sum[0] += load_n(x + i * stride + j, n);
      total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    store_n(to + j, load_n(to + j, n) + total, n);
  });
}

static dultra::cpu::RowKernels row_kernels() {
  dultra::cpu::RowKernels k;
  k.rmsnorm = rmsnorm_row;
  k.layernorm = layernorm_row;
  k.planner_score = planner_score_row;
  k.rope = rope_row;
  k.swiglu = swiglu_row;
  k.silu = silu_row;
  k.rmsnorm_backward = rmsnorm_backward_row;
  k.layernorm_backward = layernorm_backward_row;
  k.planner_score_backward = planner_score_backward_row;
  k.norm_weights_backward = norm_weights_backward;
  k.planner_weights_backward = planner_weights_backward;
  k.swiglu_backward = swiglu_backward_row;
  k.silu_backward = silu_backward_row;
  k.softmax_backward = softmax_backward;
  k.entropy_backward = entropy_backward;
  k.sum_squares = sum_squares;
  k.adamw = adamw;
  k.add_column_sums = add_column_sums;
  k.attention_queries = kTileQueries;
  k.attention_scratch = attention_scratch;
  k.attention = attention_tile;
  k.attention_backward_scratch = attention_backward_scratch;
  k.attention_backward = attention_backward;
  k.logit_sums = logit_sums;
  k.tempered_sum = tempered_sum;
  k.find_first = find_first;
  k.gumbel_filter = gumbel_filter;
  return k;
}

}  // namespace
