// Inner loops over a row of logits.
#pragma once
#include "backends/cpu/isa/vector.h"
#include "backends/cpu/row_kernels.h"

namespace {

// Sums in fp32 over short runs, then in double: the worst rounding of a run of 16 additions is 1e-6 of it, the usual
// far less.
struct WideSum {
  double lane[kVF] = {};
  void add(VF v) {
    for (int i = 0; i < kVF; ++i) lane[i] += double(v[i]);
  }
  double total() const {
    double sum[kVF];
    for (int i = 0; i < kVF; ++i) sum[i] = lane[i];
    for (int w = kVF / 2; w > 0; w /= 2)
      for (int i = 0; i < w; ++i) sum[i] += sum[i + w];
    return sum[0];
  }
};
constexpr int kRun = 16;  // additions per lane and run

static void logit_sums(dultra::cpu::LogitSums* out, const float* x, int64_t n) {
  const float none = -__builtin_inff();
  VF top[4] = {vf_set(none), vf_set(none), vf_set(none), vf_set(none)};
  int64_t i = 0;
  for (; i + 4 * kVF <= n; i += 4 * kVF)
    for (int u = 0; u < 4; ++u) top[u] = vf_max(top[u], vf_load(x + i + u * kVF));
  for (; i + kVF <= n; i += kVF) top[0] = vf_max(top[0], vf_load(x + i));
  if (i < n) top[0] = vf_max(top[0], vf_load_part(x + i, int(n - i), none));
  const float max = vf_hmax(vf_max(vf_max(top[0], top[1]), vf_max(top[2], top[3])));
  out->max = max;
  out->sum = out->weighted = 0;
  if (max == none) {  // vf_max can lose a NaN; below, the sum cannot
    for (i = 0; i < n; ++i)
      if (x[i] != x[i]) out->sum = x[i];
    return;
  }
  WideSum sum, weighted;
  const VF least = vf_set(-100.0f);  // 0 * -inf would be NaN; e^-100 already counts as 0
  i = 0;
  while (i < n) {
    VF s[4] = {}, w[4] = {};
    const auto term = [&](VF v, int u) {
      const VF d = v - max, e = vf_exp_nonpositive(d);
      s[u] += e;
      w[u] = vf_fma(vf_max(least, d), e, w[u]);
    };
    int run = 0;
    for (; run < kRun && i + 4 * kVF <= n; ++run, i += 4 * kVF) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) term(vf_load(x + i + u * kVF), u);
    }
    if (run < kRun)
      for (int u = 0; i < n; ++u, i += kVF)
        term(n - i < kVF ? vf_load_part(x + i, int(n - i), none) : vf_load(x + i), u & 3);
    sum.add((s[0] + s[1]) + (s[2] + s[3]));
    weighted.add((w[0] + w[1]) + (w[2] + w[3]));
  }
  out->sum = sum.total();
  out->weighted = weighted.total();
}

static double tempered_sum(const float* x, int64_t n, float max, float scale) {
  WideSum sum;
  int64_t i = 0;
  while (i < n) {
    VF s[4] = {};
    int run = 0;
    for (; run < kRun && i + 4 * kVF <= n; ++run, i += 4 * kVF) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) s[u] += vf_exp_nonpositive((vf_load(x + i + u * kVF) - max) * scale);
    }
    if (run < kRun)
      for (; i < n; i += kVF)
        s[0] += vf_exp_nonpositive(
            ((n - i < kVF ? vf_load_part(x + i, int(n - i), -__builtin_inff()) : vf_load(x + i)) - max) * scale);
    sum.add((s[0] + s[1]) + (s[2] + s[3]));
  }
  return sum.total();
}

static void softmax_backward(float* x, int64_t n, float scale, float d) {
  const float none = -__builtin_inff();
  VF top = vf_set(none);
  int64_t i = 0;
  for (; i + kVF <= n; i += kVF) top = vf_max(top, vf_load(x + i));
  if (i < n) top = vf_max(top, vf_load_part(x + i, int(n - i), none));
  const float max = vf_hmax(top);
  if (max == none) {
    memset(x, 0, size_t(n) * sizeof(float));
    return;
  }
  WideSum sum;
  i = 0;
  while (i < n) {
    VF s[4] = {};
    const auto weight = [&](VF v) { return vf_exp_nonpositive((v - max) * scale); };
    int run = 0;
    for (; run < kRun && i + 4 * kVF <= n; ++run, i += 4 * kVF) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        const VF e = weight(vf_load(x + i + u * kVF));
        vf_store(x + i + u * kVF, e);
        s[u] += e;
      }
    }
    if (run < kRun) {
      for (; i + kVF <= n; i += kVF) {
        const VF e = weight(vf_load(x + i));
        vf_store(x + i, e);
        s[0] += e;
      }
      if (i < n) {
        const VF e = weight(vf_load_part(x + i, int(n - i), none));
        vf_store_part(x + i, e, int(n - i));
        s[1] += e;
        i = n;
      }
    }
    sum.add((s[0] + s[1]) + (s[2] + s[3]));
  }
  const float factor = float(-double(d) / sum.total());
  for (i = 0; i + kVF <= n; i += kVF) vf_store(x + i, vf_load(x + i) * factor);
  for (; i < n; ++i) x[i] *= factor;
}

// With t = (x - max) * scale, S the sum of e^t and W that of t e^t: log q = t - log S, the entropy is log S - W / S,
// and its derivative -scale q (log q + entropy) = -scale q (t - W / S).
static void entropy_backward(float* dx, const float* x, int64_t n, float scale, float d) {
  const float none = -__builtin_inff();
  VF top = vf_set(none);
  int64_t i = 0;
  for (; i + kVF <= n; i += kVF) top = vf_max(top, vf_load(x + i));
  if (i < n) top = vf_max(top, vf_load_part(x + i, int(n - i), none));
  const float max = vf_hmax(top);
  if (max == none) return;
  const VF least = vf_set(-100.0f);  // 0 * -inf would be NaN; e^-100 already counts as 0
  const auto below = [&](VF v) { return vf_max(least, (v - max) * scale); };
  WideSum sum, weighted;
  i = 0;
  while (i < n) {
    VF s = {}, w = {};
    for (int run = 0; run < kRun && i < n; ++run, i += kVF) {
      const VF t = below(n - i < kVF ? vf_load_part(x + i, int(n - i), none) : vf_load(x + i));
      const VF e = vf_exp_nonpositive(t);
      s += e;
      w = vf_fma(t, e, w);
    }
    sum.add(s);
    weighted.add(w);
  }
  const double total = sum.total();
  const float mean = float(weighted.total() / total), factor = float(-double(d) * scale / total);
  const auto gradient = [&](VF v) {
    const VF t = below(v);
    return vf_exp_nonpositive(t) * (t - mean) * factor;
  };
  for (i = 0; i + kVF <= n; i += kVF) vf_store(dx + i, vf_load(dx + i) + gradient(vf_load(x + i)));
  if (i < n) {
    const int rest = int(n - i);
    vf_store_part(dx + i, vf_load_part(dx + i, rest, 0) + gradient(vf_load_part(x + i, rest, none)), rest);
  }
}

static int64_t find_first(const float* x, int64_t n, float value) {
  int64_t i = 0;
  for (; i + kVF <= n; i += kVF) {
    const uint32_t equal = vi_signs(vf_load(x + i) == value);
    if (equal) return i + __builtin_ctz(equal);
  }
  for (; i < n; ++i)
    if (x[i] == value) return i;
  return n;
}

static int gumbel_filter(const dultra::cpu::GumbelFilter* filter, const float* x, uint32_t first, int n,
                         int32_t* passed) {
  const dultra::cpu::GumbelFilter f = *filter;
  const VF floor = vf_set(f.floor), bar = vf_set(f.bar), inverse = vf_set(f.inverse_temperature);
  VW lanes;
  for (int i = 0; i < kVF / 2; ++i) lanes[i] = uint64_t(i);
  const VW zero = {}, multiplier0 = zero + 0xD2511F53u, multiplier1 = zero + 0xCD9E8D57u;
  int count = 0;
  for (int i = 0; i < n; i += kVF) {
    const VF v = n - i < kVF ? vf_load_part(x + i, n - i, -__builtin_inff()) : vf_load(x + i);
    uint32_t candidates = vi_signs(v > floor);
    if (!candidates) continue;
    // Philox4x32-10 of the counters of kVF tokens, one counter of two tokens in each 64-bit lane. High halves carry
    // rubbish: the multiplication does not look at them.
    VW c0 = lanes + uint64_t((first + uint32_t(i)) >> 1), c1 = zero + uint64_t(f.position), c2 = zero + uint64_t(f.row),
       c3 = zero + uint64_t(f.step);
    uint32_t k0 = f.key[0], k1 = f.key[1];
    for (int round = 0; round < 10; ++round) {
      const VW p0 = vw_mul32(c0, multiplier0), p1 = vw_mul32(c2, multiplier1);
      c0 = (p1 >> 32) ^ c1 ^ uint64_t(k0);
      c2 = (p0 >> 32) ^ c3 ^ uint64_t(k1);
      c1 = p1;
      c3 = p0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    // Word 0 belongs to the even token, word 2 to the odd one: the high 32 bits of their uniforms.
    const VW words = (c0 & 0xffffffffull) | (c2 << 32);
    VI high;
    memcpy(&high, &words, sizeof high);
    // 1 - u >= (2^32 - 1 - high) / 2^32. Dropping the lowest bit keeps it a lower bound; the factor covers the rounding
    // of w.
    const VI complement = (~high >> 1) & 0x7fffffff;
    const VF lower = __builtin_convertvector(complement, VF) * 4.656612873077393e-10f;
    const VF w = vf_exp_nonpositive(vf_min((v - bar) * inverse, VF{})) * 1.001f;
    candidates &= vi_signs(lower <= w);
    for (; candidates; candidates &= candidates - 1) passed[count++] = i + __builtin_ctz(candidates);
  }
  return count;
}

}  // namespace
