// Inner loops over one row: norms, rotary embedding, gates. Sums run over kVF * 4 lanes in a fixed order that depends on the row
// length alone.
#pragma once
#include "backends/cpu/isa/attention.inl"
#include "backends/cpu/isa/sampling.inl"
#include "backends/cpu/isa/vector.h"
#include "backends/cpu/row_kernels.h"

namespace {

// Sum over i < c of term(vector of lanes i ..). `term(i, n)` returns kVF lanes; n < kVF asks for zeros beyond the first n.
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

static float planner_score_row(const float* x, const float* mul, const float* add, const float* weight, int64_t c, float eps) {
  float mean, scale;
  row_moments(x, c, eps, &mean, &scale);
  return sum_over(c, [=](int64_t i, int n) {
    const VF normed = (load_n(x + i, n) - mean) * scale;
    return vf_fma(normed, load_n(mul + i, n), load_n(add + i, n)) * load_n(weight + i, n);
  });
}

static void rope_row(float* x, const float* cosine, const float* sine, float direction, int heads, int head_dim) {
  const int half = head_dim / 2;
  for (int h = 0; h < heads; ++h, x += head_dim) {
    float* low = x;
    float* high = x + half;
    for_vectors(half, [=](int64_t j, int n) {
      const VF a = load_n(low + j, n), b = load_n(high + j, n), c = load_n(cosine + j, n), s = load_n(sine + j, n) * direction;
      store_n(low + j, vf_fma(a, c, -(b * s)), n);
      store_n(high + j, vf_fma(b, c, a * s), n);
    });
  }
}

static inline VF silu(VF x) { return x / (vf_exp(-x) + 1.0f); }

static void swiglu_row(float* out, const float* gate, const float* up, int64_t n) {
  for_vectors(n, [=](int64_t i, int count) { store_n(out + i, silu(load_n(gate + i, count)) * load_n(up + i, count), count); });
}

static void silu_row(float* x, int64_t n) {
  for_vectors(n, [=](int64_t i, int count) { store_n(x + i, silu(load_n(x + i, count)), count); });
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
