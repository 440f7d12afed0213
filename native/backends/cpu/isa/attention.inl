// Fused attention of one tile of queries: the scores of a tile are never all there, only kTileKeys rows of them. Vector
// lanes are queries and everything is kept transposed (lanes innermost), so that maximum, sum and scaling of the
// softmax are plain vector operations, no lane ever meets another, and a query's bits cannot depend on its neighbours.
// A key tile that a query does not see changes nothing for it: its maximum stays, the old sums are scaled by exactly 1,
// and zeros are added.
#pragma once
#include "backends/cpu/isa/vector.h"
#include "backends/cpu/row_kernels.h"

namespace {

constexpr int kTileKeys = 32;
#if DULTRA_VF_WIDTH == 16 || defined(__aarch64__)
constexpr int kAttentionRows =
    8;  // keys (scores) or head dimensions (values) per register block, times two vectors of queries
#else
constexpr int kAttentionRows = 4;  // 16 registers only
#endif
constexpr int kGroupVectors = 2;  // vectors of queries in a register block
constexpr int kGroupQueries = kGroupVectors * kVF;
constexpr int kTileQueries = 64;  // share a copied key tile
constexpr int kTileGroups = kTileQueries / kGroupQueries;

static inline int attention_padded(int d) { return (d + kAttentionRows - 1) / kAttentionRows * kAttentionRows; }

// Scratch of one tile, in floats: keys and values (kTileKeys, D) each; per group q (D, queries), out (D, queries),
// maximum and sum (queries); scores (kTileKeys, queries). D padded to whole register blocks.
static int64_t attention_scratch(int head_dim) {
  const int64_t d = attention_padded(head_dim);
  return 2 * kTileKeys * d + kTileGroups * (2 * d + 2) * kGroupQueries + kTileKeys * kGroupQueries;
}

typedef float V4 __attribute__((vector_size(16)));
#if defined(__clang__)
#define DULTRA_SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t VI4 __attribute__((vector_size(16)));
#define DULTRA_SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, (VI4{i, j, k, l}))
#endif

static inline V4 v4_load(const float* p) {
  V4 v;
  memcpy(&v, p, sizeof v);
  return v;
}

// r[i][j] becomes r[j][i].
static inline void transpose4(V4 r[4]) {
  const V4 a = DULTRA_SHUFFLE4(r[0], r[1], 0, 4, 1, 5), b = DULTRA_SHUFFLE4(r[2], r[3], 0, 4, 1, 5);
  const V4 c = DULTRA_SHUFFLE4(r[0], r[1], 2, 6, 3, 7), d = DULTRA_SHUFFLE4(r[2], r[3], 2, 6, 3, 7);
  r[0] = DULTRA_SHUFFLE4(a, b, 0, 1, 4, 5);
  r[1] = DULTRA_SHUFFLE4(a, b, 2, 3, 6, 7);
  r[2] = DULTRA_SHUFFLE4(c, d, 0, 1, 4, 5);
  r[3] = DULTRA_SHUFFLE4(c, d, 2, 3, 6, 7);
}

// to (D, kGroupQueries) = x (count, D) * scale transposed, x rows `stride` floats apart; zeros for the queries behind
// `count`.
static void load_transposed(float* to, const float* x, int64_t stride, int count, int d, float scale) {
  for (int i = 0; i < kGroupQueries; i += 4, x += 4 * stride, to += 4) {
    int j = 0;
    if (i + 4 <= count)
      for (; j + 4 <= d; j += 4) {
        V4 r[4];
        for (int e = 0; e < 4; ++e) r[e] = v4_load(x + e * stride + j) * scale;
        transpose4(r);
        for (int e = 0; e < 4; ++e) memcpy(to + (j + e) * kGroupQueries, &r[e], sizeof r[e]);
      }
    for (; j < d; ++j)
      for (int e = 0; e < 4; ++e) to[j * kGroupQueries + e] = i + e < count ? x[e * stride + j] * scale : 0.0f;
  }
}

// The way back: out (count, D) = x (D, kGroupQueries) transposed, query i times scale[i]. Reads x up to whole fours of
// D.
static void store_transposed(float* out, int64_t stride, const float* x, const float* scale, int count, int d) {
  for (int i = 0; i < count; i += 4, out += 4 * stride) {
    const int rows = count - i < 4 ? count - i : 4;
    const V4 factor = v4_load(scale + i);
    for (int j = 0; j < d; j += 4) {
      V4 r[4];
      // + 0 makes a zero positive, whichever sign hidden keys gave it.
      for (int e = 0; e < 4; ++e) r[e] = v4_load(x + (j + e) * kGroupQueries + i) * factor + 0.0f;
      transpose4(r);
      const size_t bytes = size_t(d - j < 4 ? d - j : 4) * sizeof(float);
      if (rows == 4 && bytes == sizeof(V4))
        for (int e = 0; e < 4; ++e) memcpy(out + e * stride + j, &r[e], sizeof(V4));
      else
        for (int e = 0; e < rows; ++e) memcpy(out + e * stride + j, &r[e], bytes);
    }
  }
}

struct AttentionGroup {
  float* q;        // (D, queries) times scale * log2(e)
  float* out;      // (D, queries)
  float* maximum;  // (queries) in units of log2
  float* sum;      // (queries)
  int32_t visible[kGroupQueries];
  int least, most;  // of visible
};

// One key tile (keys, D) [first, first + keys) for the first `kVectors` vectors of a group.
template <int kVectors>
static inline void attention_step(const AttentionGroup& g, const float* k, const float* v, float* scores, int first,
                                  int keys, int d, int padded) {
  for (int row = 0; row < keys; row += kAttentionRows) {
    VF acc[kAttentionRows][kVectors] = {};
    const float* kr = k + row * padded;
    for (int i = 0; i < d; ++i) {
      VF q[kVectors];
#pragma GCC unroll 2
      for (int u = 0; u < kVectors; ++u) q[u] = vf_load(g.q + i * kGroupQueries + u * kVF);
#pragma GCC unroll 8
      for (int r = 0; r < kAttentionRows; ++r) {
        const VF b = vf_set(kr[r * padded + i]);
#pragma GCC unroll 2
        for (int u = 0; u < kVectors; ++u) acc[r][u] = vf_fma(b, q[u], acc[r][u]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kAttentionRows; ++r)
#pragma GCC unroll 2
      for (int u = 0; u < kVectors; ++u) vf_store(scores + (row + r) * kGroupQueries + u * kVF, acc[r][u]);
  }
  VF alpha[kVectors];
  const VF none = vf_set(-__builtin_inff());
  for (int u = 0; u < kVectors; ++u) {
    float* s = scores + u * kVF;
    if (g.least < first + keys) {
      VI visible;
      memcpy(&visible, g.visible + u * kVF, sizeof visible);
      for (int j = 0; j < keys; ++j)
        vf_store(s + j * kGroupQueries, visible > first + j ? vf_load(s + j * kGroupQueries) : none);
    }
    const VF old = vf_load(g.maximum + u * kVF);
    VF even = old, odd = old;
    int j = 0;
    for (; j + 2 <= keys; j += 2) {
      even = vf_max(even, vf_load(s + j * kGroupQueries));
      odd = vf_max(odd, vf_load(s + (j + 1) * kGroupQueries));
    }
    if (j < keys) even = vf_max(even, vf_load(s + j * kGroupQueries));
    const VF maximum = vf_max(even, odd);
    vf_store(g.maximum + u * kVF, maximum);
    const VF from = maximum == none ? VF{} : maximum;  // no key seen yet: e^(-inf - 0) = 0 instead of NaN
    alpha[u] = vf_exp2_nonpositive(old - from);
    const auto weight = [&](int row) {
      const VF p = vf_exp2_nonpositive(vf_load(s + row * kGroupQueries) - from);
      vf_store(s + row * kGroupQueries, p);
      return p;
    };
    even = odd = VF{};
    for (j = 0; j + 2 <= keys; j += 2) {
      even += weight(j);
      odd += weight(j + 1);
    }
    if (j < keys) even += weight(j);
    vf_store(g.sum + u * kVF, vf_fma(vf_load(g.sum + u * kVF), alpha[u], even + odd));
  }
  for (int i = 0; i < d; i += kAttentionRows) {
    VF acc[kAttentionRows][kVectors];
    float* out = g.out + i * kGroupQueries;
#pragma GCC unroll 8
    for (int r = 0; r < kAttentionRows; ++r)
#pragma GCC unroll 2
      for (int u = 0; u < kVectors; ++u) acc[r][u] = vf_load(out + r * kGroupQueries + u * kVF) * alpha[u];
    for (int j = 0; j < keys; ++j) {
      VF p[kVectors];
#pragma GCC unroll 2
      for (int u = 0; u < kVectors; ++u) p[u] = vf_load(scores + j * kGroupQueries + u * kVF);
#pragma GCC unroll 8
      for (int r = 0; r < kAttentionRows; ++r) {
        const VF b = vf_set(v[j * padded + i + r]);
#pragma GCC unroll 2
        for (int u = 0; u < kVectors; ++u) acc[r][u] = vf_fma(b, p[u], acc[r][u]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kAttentionRows; ++r)
#pragma GCC unroll 2
      for (int u = 0; u < kVectors; ++u) vf_store(out + r * kGroupQueries + u * kVF, acc[r][u]);
  }
}

static void widen_bf16(float* to, const uint16_t* from, int n) {
  for (int i = 0; i < n; ++i) {
    const uint32_t bits = uint32_t(from[i]) << 16;
    memcpy(to + i, &bits, sizeof bits);
  }
}

static void attention_tile(const dultra::cpu::AttentionTile* tile) {
  const dultra::cpu::AttentionTile& t = *tile;
  const int d = t.head_dim, padded = attention_padded(d);
  float* keys = t.scratch;
  float* values = keys + kTileKeys * padded;
  float* scores = values + kTileKeys * padded;
  float* next = scores + kTileKeys * kGroupQueries;
  AttentionGroup groups[kTileGroups];
  int used = 0;
  for (int q0 = 0; q0 < t.queries; q0 += kGroupQueries, ++used) {
    AttentionGroup& g = groups[used];
    g.q = next;
    g.out = g.q + padded * kGroupQueries;
    g.maximum = g.out + padded * kGroupQueries;
    g.sum = g.maximum + kGroupQueries;
    next = g.sum + kGroupQueries;
    const int count = t.queries - q0 < kGroupQueries ? t.queries - q0 : kGroupQueries;
    const float scale = t.scale * 1.44269504088896340736f;
    g.least = t.keys;
    g.most = 0;
    load_transposed(g.q, t.q + q0 * t.q_stride, t.q_stride, count, d, scale);
    for (int i = 0; i < kGroupQueries; ++i) {
      g.visible[i] = i < count ? t.visible[q0 + i] : t.keys;
      if (i < count && g.visible[i] < g.least) g.least = g.visible[i];
      if (i < count && g.visible[i] > g.most) g.most = g.visible[i];
      g.maximum[i] = -__builtin_inff();
      g.sum[i] = 0.0f;
    }
    memset(g.out, 0, size_t(padded) * kGroupQueries * sizeof(float));
  }
  // Columns [D, padded) of the values meet rows of `out` that are never read back; zeros keep them finite.
  if (padded != d) memset(keys, 0, size_t(2 * kTileKeys * padded) * sizeof(float));
  for (int first = 0; first < t.keys; first += kTileKeys) {
    const int count = t.keys - first < kTileKeys ? t.keys - first : kTileKeys;
    for (int j = 0; j < count; ++j) {
      const int64_t at = (first + j) * t.kv_stride;
      if (t.k16) {
        widen_bf16(keys + j * padded, t.k16 + at, d);
        widen_bf16(values + j * padded, t.v16 + at, d);
      } else {
        memcpy(keys + j * padded, t.k + at, size_t(d) * sizeof(float));
        memcpy(values + j * padded, t.v + at, size_t(d) * sizeof(float));
      }
    }
    for (int j = count; j % kAttentionRows != 0; ++j) memset(keys + j * padded, 0, size_t(d) * sizeof(float));
    for (int i = 0; i < used; ++i) {
      const AttentionGroup& g = groups[i];
      if (g.most <= first) continue;
      if (t.queries - i * kGroupQueries <= kVF)
        attention_step<1>(g, keys, values, scores, first, count, d, padded);
      else
        attention_step<kGroupVectors>(g, keys, values, scores, first, count, d, padded);
    }
  }
  if (t.log_sum) {
    for (int i = 0; i < t.queries; ++i) {
      const AttentionGroup& g = groups[i / kGroupQueries];
      const double log2_sum = double(g.maximum[i % kGroupQueries]) + __builtin_log2(double(g.sum[i % kGroupQueries]));
      t.log_sum[i * t.log_sum_stride] = float(log2_sum * 0.69314718055994530942);
    }
  }
  for (int i = 0; i < used; ++i) {
    const AttentionGroup& g = groups[i];
    const int q0 = i * kGroupQueries, count = t.queries - q0 < kGroupQueries ? t.queries - q0 : kGroupQueries;
    for (int lane = 0; lane < kGroupQueries; ++lane) g.sum[lane] = g.sum[lane] == 0.0f ? 0.0f : 1.0f / g.sum[lane];
    store_transposed(t.out + q0 * t.out_stride, t.out_stride, g.out, g.sum, count, d);
  }
}

// Backward of one key/value head of one sequence, from the log-sums of the forward: P = exp(S - log_sum) is computed
// again, tile by tile,
//   dV = P^T dOut,  dS = P (dOut V^T - delta),  delta = rowsum(dOut * Out),  dQ = scale dS K,  dK = scale dS^T Q.
// Scores, P and dS have queries in the lanes, as in the forward; so has dQ. dK and dV have head dimensions in the
// lanes: a sum over queries then meets them in ascending order, one after the other.

constexpr int kGradPad = kVF > kAttentionRows ? kVF : kAttentionRows;
static inline int64_t grad_padded(int64_t d) { return (d + kGradPad - 1) / kGradPad * kGradPad; }
static inline int64_t keys_padded(int64_t keys) {
  return (keys + kAttentionRows - 1) / kAttentionRows * kAttentionRows;
}

// Floats: k, v, dk, dv (keys, D); q and dout (queries, D) and transposed, dq transposed; P and dS (kTileKeys, queries);
// three (queries).
static int64_t attention_backward_scratch(int head_dim, int keys) {
  const int64_t d = grad_padded(head_dim);
  return 4 * keys_padded(keys) * d + 5 * d * kGroupQueries + (2 * kTileKeys + 3) * kGroupQueries;
}

// acc (kAttentionRows, kVectors) += a (rows, n) b (n, lanes): element (r, i) of a lies at a[r * row + i * step].
template <int kVectors>
static inline __attribute__((always_inline)) void accumulate(VF acc[kAttentionRows][kVectors], const float* a,
                                                             int64_t row, int64_t step, const float* b,
                                                             int64_t b_stride, int n) {
  for (int i = 0; i < n; ++i, a += step, b += b_stride) {
    VF lanes[kVectors];
#pragma GCC unroll 2
    for (int u = 0; u < kVectors; ++u) lanes[u] = vf_load(b + u * kVF);
#pragma GCC unroll 8
    for (int r = 0; r < kAttentionRows; ++r) {
      const VF x = vf_set(a[r * row]);
#pragma GCC unroll 2
      for (int u = 0; u < kVectors; ++u) acc[r][u] = vf_fma(x, lanes[u], acc[r][u]);
    }
  }
}

// The same on sums in memory, (kAttentionRows, kVectors), rows `stride` floats apart.
template <int kVectors>
static inline __attribute__((always_inline)) void accumulate_to(float* to, int64_t stride, const float* a, int64_t row,
                                                                int64_t step, const float* b, int64_t b_stride, int n) {
  VF acc[kAttentionRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kAttentionRows; ++r)
#pragma GCC unroll 2
    for (int u = 0; u < kVectors; ++u) acc[r][u] = vf_load(to + r * stride + u * kVF);
  accumulate<kVectors>(acc, a, row, step, b, b_stride, n);
#pragma GCC unroll 8
  for (int r = 0; r < kAttentionRows; ++r)
#pragma GCC unroll 2
    for (int u = 0; u < kVectors; ++u) vf_store(to + r * stride + u * kVF, acc[r][u]);
}

struct AttentionGradGroup {
  float *q_lanes, *dout_lanes, *dq_lanes;  // (D, queries); q times scale * log2(e)
  float *q, *dout;                         // (queries, D)
  float *p, *ds;                           // (kTileKeys, queries)
  float *log_sum, *delta, *factor;         // (queries); log_sum in units of log2
  int32_t visible[kGroupQueries];
  int count, least, most;  // queries; of visible
};

// Keys [first, first + keys) for the first kVectors vectors of queries of a group; k, v, dk, dv point to the first of
// them.
template <int kVectors>
static inline void attention_backward_step(const AttentionGradGroup& g, const float* k, const float* v, float* dk,
                                           float* dv, int first, int keys, int d, int64_t padded) {
  for (int row = 0; row < keys; row += kAttentionRows) {
    VF s[kAttentionRows][kVectors] = {}, dp[kAttentionRows][kVectors] = {};
    accumulate<kVectors>(s, k + row * padded, padded, 1, g.q_lanes, kGroupQueries, d);
#pragma GCC unroll 2
    for (int u = 0; u < kVectors; ++u) {
      const VF log_sum = vf_load(g.log_sum + u * kVF);
#pragma GCC unroll 8
      for (int r = 0; r < kAttentionRows; ++r)
        s[r][u] = vf_exp2_nonpositive(s[r][u] - log_sum);  // above 0 by rounding at most
    }
    if (g.least < first + row + kAttentionRows) {
      for (int u = 0; u < kVectors; ++u) {
        VI visible;
        memcpy(&visible, g.visible + u * kVF, sizeof visible);
        for (int r = 0; r < kAttentionRows; ++r) s[r][u] = visible > first + row + r ? s[r][u] : VF{};
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kAttentionRows; ++r)
#pragma GCC unroll 2
      for (int u = 0; u < kVectors; ++u) vf_store(g.p + (row + r) * kGroupQueries + u * kVF, s[r][u]);
    accumulate<kVectors>(dp, v + row * padded, padded, 1, g.dout_lanes, kGroupQueries, d);
#pragma GCC unroll 2
    for (int u = 0; u < kVectors; ++u) {
      const VF delta = vf_load(g.delta + u * kVF);
#pragma GCC unroll 8
      for (int r = 0; r < kAttentionRows; ++r) {
        const int64_t at = (row + r) * kGroupQueries + u * kVF;
        vf_store(g.ds + at, vf_load(g.p + at) * (dp[r][u] - delta));
      }
    }
  }
  for (int i = 0; i < d; i += kAttentionRows)
    accumulate_to<kVectors>(g.dq_lanes + i * kGroupQueries, kGroupQueries, k + i, 1, padded, g.ds, kGroupQueries, keys);
  for (int row = 0; row < keys; row += kAttentionRows) {
    const float *p = g.p + row * kGroupQueries, *ds = g.ds + row * kGroupQueries;
    int64_t i = 0;
    for (; i + 2 * kVF <= padded; i += 2 * kVF) {
      accumulate_to<2>(dv + row * padded + i, padded, p, kGroupQueries, 1, g.dout + i, padded, g.count);
      accumulate_to<2>(dk + row * padded + i, padded, ds, kGroupQueries, 1, g.q + i, padded, g.count);
    }
    if (i < padded) {
      accumulate_to<1>(dv + row * padded + i, padded, p, kGroupQueries, 1, g.dout + i, padded, g.count);
      accumulate_to<1>(dk + row * padded + i, padded, ds, kGroupQueries, 1, g.q + i, padded, g.count);
    }
  }
}

static void copy_padded(float* to, int64_t padded, const float* x, int64_t stride, int64_t rows, int d) {
  for (int64_t i = 0; i < rows; ++i, to += padded, x += stride) {
    memcpy(to, x, size_t(d) * sizeof(float));
    if (padded != d) memset(to + d, 0, size_t(padded - d) * sizeof(float));
  }
}

static void attention_backward(const dultra::cpu::AttentionGradTask* task) {
  const dultra::cpu::AttentionGradTask& t = *task;
  const int d = t.head_dim;
  const int64_t padded = grad_padded(d), keys = keys_padded(t.keys), size = keys * padded,
                lanes = padded * kGroupQueries;
  float *k = t.scratch, *v = k + size, *dk = v + size, *dv = dk + size;
  AttentionGradGroup g;
  g.q_lanes = dv + size;
  g.dout_lanes = g.q_lanes + lanes;
  g.dq_lanes = g.dout_lanes + lanes;
  g.q = g.dq_lanes + lanes;
  g.dout = g.q + lanes;
  g.p = g.dout + lanes;
  g.ds = g.p + kTileKeys * kGroupQueries;
  g.log_sum = g.ds + kTileKeys * kGroupQueries;
  g.delta = g.log_sum + kGroupQueries;
  g.factor = g.delta + kGroupQueries;
  copy_padded(k, padded, t.k, t.kv_stride, t.keys, d);
  copy_padded(v, padded, t.v, t.kv_stride, t.keys, d);
  memset(k + t.keys * padded, 0, size_t(keys - t.keys) * size_t(padded) * sizeof(float));
  memset(v + t.keys * padded, 0, size_t(keys - t.keys) * size_t(padded) * sizeof(float));
  memset(dk, 0, size_t(2 * size) * sizeof(float));
  for (int i = 0; i < kGroupQueries; ++i) g.factor[i] = t.scale;
  const float log2e = 1.44269504088896340736f;
  for (int head = 0; head < t.heads; ++head) {
    for (int q0 = 0; q0 < t.queries; q0 += kGroupQueries) {
      const float* q = t.q + q0 * t.q_stride + head * d;
      const float* dout = t.dout + q0 * t.out_stride + head * d;
      g.count = t.queries - q0 < kGroupQueries ? t.queries - q0 : kGroupQueries;
      g.least = t.keys;
      g.most = 0;
      for (int i = 0; i < kGroupQueries; ++i) {
        g.visible[i] = i < g.count ? t.visible[q0 + i] : 0;
        g.log_sum[i] = i < g.count ? t.log_sum[(q0 + i) * t.log_sum_stride + head] * log2e : 0.0f;
        if (i < g.count && g.visible[i] < g.least) g.least = g.visible[i];
        if (g.visible[i] > g.most) g.most = g.visible[i];
      }
      load_transposed(g.q_lanes, q, t.q_stride, g.count, d, t.scale * log2e);
      load_transposed(g.dout_lanes, dout, t.out_stride, g.count, d, 1.0f);
      load_transposed(g.dq_lanes, t.out + q0 * t.out_stride + head * d, t.out_stride, g.count, d,
                      1.0f);  // out, for delta
      for (int u = 0; u < kGroupQueries; u += kVF) {
        VF delta = {};
        for (int i = 0; i < d; ++i)
          delta =
              vf_fma(vf_load(g.dout_lanes + i * kGroupQueries + u), vf_load(g.dq_lanes + i * kGroupQueries + u), delta);
        vf_store(g.delta + u, delta);
      }
      memset(g.dq_lanes, 0, size_t(lanes) * sizeof(float));
      copy_padded(g.q, padded, q, t.q_stride, g.count, d);
      copy_padded(g.dout, padded, dout, t.out_stride, g.count, d);
      for (int first = 0; first < g.most; first += kTileKeys) {
        const int count = int(keys) - first < kTileKeys ? int(keys) - first : kTileKeys;
        const int64_t at = first * padded;
        if (g.count <= kVF)
          attention_backward_step<1>(g, k + at, v + at, dk + at, dv + at, first, count, d, padded);
        else
          attention_backward_step<kGroupVectors>(g, k + at, v + at, dk + at, dv + at, first, count, d, padded);
      }
      store_transposed(t.dq + q0 * t.q_stride + head * d, t.q_stride, g.dq_lanes, g.factor, g.count, d);
    }
  }
  for (int j = 0; j < t.keys; ++j) {
    for (int i = 0; i < d; ++i) t.dk[j * t.kv_stride + i] = dk[j * padded + i] * t.scale;
    memcpy(t.dv + j * t.kv_stride, dv + j * padded, size_t(d) * sizeof(float));
  }
}

}  // namespace
