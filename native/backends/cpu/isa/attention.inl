// Fused attention of one tile of queries: the scores of a tile are never all there, only kTileKeys rows of them. Vector lanes are
// queries and everything is kept transposed (lanes innermost), so that maximum, sum and scaling of the softmax are plain vector
// operations, no lane ever meets another, and a query's bits cannot depend on its neighbours. A key tile that a query does not see
// changes nothing for it: its maximum stays, the old sums are scaled by exactly 1, and zeros are added.
#pragma once
#include "backends/cpu/isa/vector.h"
#include "backends/cpu/row_kernels.h"

namespace {

constexpr int kTileKeys = 32;
#if DULTRA_VF_WIDTH == 16 || defined(__aarch64__)
constexpr int kAttentionRows = 8;  // keys (scores) or head dimensions (values) per register block, times two vectors of queries
#else
constexpr int kAttentionRows = 4;  // 16 registers only
#endif
constexpr int kGroupVectors = 2;  // vectors of queries in a register block
constexpr int kGroupQueries = kGroupVectors * kVF;
constexpr int kTileQueries = 64;  // share a copied key tile
constexpr int kTileGroups = kTileQueries / kGroupQueries;

static inline int attention_padded(int d) { return (d + kAttentionRows - 1) / kAttentionRows * kAttentionRows; }

// Scratch of one tile, in floats: keys and values (kTileKeys, D) each; per group q (D, queries), out (D, queries), maximum and sum
// (queries); scores (kTileKeys, queries). D padded to whole register blocks.
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
static inline void attention_step(const AttentionGroup& g, const float* k, const float* v, float* scores, int first, int keys, int d, int padded) {
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
      for (int j = 0; j < keys; ++j) vf_store(s + j * kGroupQueries, visible > first + j ? vf_load(s + j * kGroupQueries) : none);
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
    for (int i = 0; i < kGroupQueries; i += 4) {
      const float* q = t.q + (q0 + i) * t.q_stride;
      float* to = g.q + i;
      int j = 0;
      if (i + 4 <= count)
        for (; j + 4 <= d; j += 4) {
          V4 r[4];
          for (int e = 0; e < 4; ++e) r[e] = v4_load(q + e * t.q_stride + j) * scale;
          transpose4(r);
          for (int e = 0; e < 4; ++e) memcpy(to + (j + e) * kGroupQueries, &r[e], sizeof r[e]);
        }
      for (; j < d; ++j)
        for (int e = 0; e < 4; ++e) to[j * kGroupQueries + e] = i + e < count ? q[e * t.q_stride + j] * scale : 0.0f;
    }
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
      memcpy(keys + j * padded, t.k + (first + j) * t.kv_stride, size_t(d) * sizeof(float));
      memcpy(values + j * padded, t.v + (first + j) * t.kv_stride, size_t(d) * sizeof(float));
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
  for (int i = 0; i < t.queries; i += 4) {
    const AttentionGroup& g = groups[i / kGroupQueries];
    const int lane = i % kGroupQueries, rows = t.queries - i < 4 ? t.queries - i : 4;
    V4 inverse;
    for (int e = 0; e < 4; ++e) inverse[e] = g.sum[lane + e] == 0.0f ? 0.0f : 1.0f / g.sum[lane + e];
    float* out = t.out + i * t.out_stride;
    for (int j = 0; j < d; j += 4) {
      V4 r[4];  // rows up to `padded` are there
      // + 0 makes a zero positive, whichever sign hidden keys gave it.
      for (int e = 0; e < 4; ++e) r[e] = v4_load(g.out + (j + e) * kGroupQueries + lane) * inverse + 0.0f;
      transpose4(r);
      const size_t bytes = size_t(d - j < 4 ? d - j : 4) * sizeof(float);
      if (rows == 4 && bytes == sizeof(V4))
        for (int e = 0; e < 4; ++e) memcpy(out + e * t.out_stride + j, &r[e], sizeof(V4));
      else
        for (int e = 0; e < rows; ++e) memcpy(out + e * t.out_stride + j, &r[e], bytes);
    }
  }
}

}  // namespace
