#include <numeric>

#include "harness.h"

namespace dultra {
namespace test {
namespace {

struct Case {
  int heads, kv_heads, head_dim;
  MaskKind mask;
  int block;
  bool ranges;       // hide keys at both ends of every sequence, and let blocks begin with shorter ones
  double magnitude;  // of queries: large ones make the softmax sharp
  int extra_stride;
};

// Packed sequences with everything that AttentionArgs points to.
struct Problem {
  Case c;
  std::vector<int32_t> offsets, positions, first_block, key_begin, key_end;
  std::vector<float> q, kv;
  int64_t q_stride, kv_stride;

  Problem(const Case& shape, const std::vector<int>& lengths, uint64_t seed) : c(shape) {
    Random random(seed);
    offsets.push_back(0);
    for (int length : lengths) {
      for (int i = 0; i < length; ++i) positions.push_back(i);
      offsets.push_back(offsets.back() + length);
      first_block.push_back(c.block > 0 ? 1 + int32_t(offsets.size()) * 3 % c.block : 0);
      key_begin.push_back(length / 5);
      key_end.push_back(length - length / 7);
    }
    q_stride = c.heads * c.head_dim + c.extra_stride;
    kv_stride = 2 * c.kv_heads * c.head_dim + c.extra_stride;
    q = normals(random, size_t(offsets.back() * q_stride), c.magnitude);
    kv = normals(random, size_t(offsets.back() * kv_stride));
  }
  AttentionArgs args(float* out, int64_t out_stride) const {
    AttentionArgs a{};
    a.q = q.data();
    a.k = kv.data();
    a.v = kv.data() + c.kv_heads * c.head_dim;
    a.out = out;
    a.q_stride = q_stride;
    a.kv_stride = kv_stride;
    a.out_stride = out_stride;
    a.heads = c.heads;
    a.kv_heads = c.kv_heads;
    a.head_dim = c.head_dim;
    a.scale = 1 / std::sqrt(float(c.head_dim));
    a.batch = int(offsets.size()) - 1;
    a.q_offsets = a.k_offsets = offsets.data();
    a.mask = c.mask;
    a.block = c.block;
    if (c.ranges) {
      a.first_block = first_block.data();
      a.key_begin = key_begin.data();
      a.key_end = key_end.data();
    }
    return a;
  }
};

// (Mq, H, D) in double, straight from the definition.
std::vector<double> reference(const AttentionArgs& a) {
  const int queries = a.q_offsets[a.batch], d = a.head_dim;
  std::vector<double> out(size_t(queries) * size_t(a.heads * d), 0.0);
  for (int b = 0; b < a.batch; ++b) {
    const int keys = a.k_offsets[b + 1] - a.k_offsets[b];
    for (int i = a.q_offsets[b]; i < a.q_offsets[b + 1]; ++i) {
      const int position = a.q_positions ? a.q_positions[i] : i - a.q_offsets[b];
      for (int h = 0; h < a.heads; ++h) {
        const int g = h / (a.heads / a.kv_heads);
        std::vector<double> score(static_cast<size_t>(keys), -INFINITY);
        double top = -INFINITY, sum = 0;
        for (int j = 0; j < keys; ++j) {
          bool seen = (!a.key_begin || j >= a.key_begin[b]) && (!a.key_end || j < a.key_end[b]);
          if (a.mask == MaskKind::kCausal) seen = seen && j <= position;
          if (a.mask == MaskKind::kBlockCausal) {
            // As if the sequence began with what its first block lacks.
            const int lacking = a.first_block ? a.block - a.first_block[b] : 0;
            seen = seen && (j + lacking) / a.block <= (position + lacking) / a.block;
          }
          if (!seen) continue;
          double dot = 0;
          for (int e = 0; e < d; ++e)
            dot += double(a.q[i * a.q_stride + h * d + e]) * a.k[(a.k_offsets[b] + j) * a.kv_stride + g * d + e];
          score[size_t(j)] = dot * double(a.scale);
          top = std::max(top, score[size_t(j)]);
        }
        if (top == -INFINITY) continue;
        double* row = &out[size_t(i * a.heads + h) * size_t(d)];
        for (int j = 0; j < keys; ++j) {
          const double p = std::exp(score[size_t(j)] - top);
          sum += p;
          for (int e = 0; e < d; ++e) row[e] += p * a.v[(a.k_offsets[b] + j) * a.kv_stride + g * d + e];
        }
        for (int e = 0; e < d; ++e) row[e] /= sum;
      }
    }
  }
  return out;
}

std::vector<float> run(Backend& backend, AttentionArgs a, const std::string& where) {
  const int64_t rows = a.q_offsets[a.batch], width = a.heads * a.head_dim;
  Guarded<float> out = poisoned(size_t(rows * a.out_stride));
  a.out = out.data();
  backend.attention_forward(a);
  CHECK(out.guards_intact(), where);
  std::vector<float> packed;
  bool gaps = true;
  for (int64_t i = 0; i < rows; ++i) {
    packed.insert(packed.end(), out.data() + i * a.out_stride, out.data() + i * a.out_stride + width);
    for (int64_t j = width; j < a.out_stride; ++j) gaps = gaps && std::isnan(out[size_t(i * a.out_stride + j)]);
  }
  CHECK(gaps, where, " wrote between rows");
  return packed;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (int d : {8, 12, 16, 32, 64, 80, 128})
    for (MaskKind mask : {MaskKind::kBidirectional, MaskKind::kCausal, MaskKind::kBlockCausal})
      for (bool ranges : {false, true})
        all.push_back({4, d % 16 == 0 ? 2 : 4, d, mask, 7, ranges, d == 32 ? 12.0 : 1.0, d == 12 ? 5 : 0});
  all.push_back({6, 1, 16, MaskKind::kCausal, 0, false, 1, 3});
  all.push_back({1, 1, 5, MaskKind::kBidirectional, 0, false, 1, 0});
  return all;
}

// Those of a test that compares bits. Under the emulator each head dimension once, the masks and ranges in turn: a
// lane's parts of a head and what a query sees do not know of each other there, and attention_matches_double takes all.
std::vector<Case> cases_of_bits() { return one_view_each(cases(), 6, 2); }

std::string describe(const Case& c, const std::string& isa) {
  return text(isa, " heads ", c.heads, "/", c.kv_heads, " D ", c.head_dim, " mask ", int(c.mask), " ranges ", c.ranges,
              " ");
}

DULTRA_TEST(attention_matches_double) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (const Case& c : cases()) {
      const Problem problem(c, {1, 0, 33, 70, 16, 5}, 3);
      const AttentionArgs a = problem.args(nullptr, c.heads * c.head_dim + c.extra_stride);
      const std::vector<float> out = run(backend, a, describe(c, isa));
      const std::vector<double> expected = reference(a);
      const double error =
          worst_error(out.data(), expected.data(), expected.size(), 2e-6 * c.magnitude * c.magnitude, 2e-6);
      CHECK(error <= 1, describe(c, isa), "error ", error);
    }
  });
}

DULTRA_TEST(attention_long_rows) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    const Case c{2, 1, 32, MaskKind::kBidirectional, 0, false, 1, 0};
    const Problem problem(c, {517}, 4);
    const AttentionArgs a = problem.args(nullptr, 64);
    const std::vector<float> out = run(backend, a, isa);
    const std::vector<double> expected = reference(a);
    CHECK(worst_error(out.data(), expected.data(), expected.size(), 1e-6, 1e-6) <= 1, isa);
  });
}

DULTRA_TEST(attention_of_extreme_scores_is_finite) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    const Case c{2, 2, 16, MaskKind::kBidirectional, 0, false, 1000, 0};
    const Problem problem(c, {40}, 5);
    const AttentionArgs a = problem.args(nullptr, 32);
    const std::vector<float> out = run(backend, a, isa);
    const std::vector<double> expected = reference(a);
    // Scores in the thousands: fp32 holds them to about 1e-3.
    CHECK(worst_error(out.data(), expected.data(), expected.size(), 5e-3, 5e-3) <= 1, isa);
  });
}

// A query's bits do not depend on the batch, on the other queries, or on the number of threads.
DULTRA_TEST(attention_batch_equals_singles) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (const Case& c : cases_of_bits()) {
      const std::vector<int> lengths{40, 1, 130, 17};
      const Problem problem(c, lengths, 6);
      const int64_t width = c.heads * c.head_dim;
      const AttentionArgs a = problem.args(nullptr, width);
      const std::vector<float> together = run(backend, a, describe(c, isa));
      for (size_t b = 0; b < lengths.size(); ++b) {
        AttentionArgs one = a;
        const int32_t first = problem.offsets[b], offsets[2] = {0, lengths[b]};
        one.batch = 1;
        one.q_offsets = one.k_offsets = offsets;
        one.q += first * a.q_stride;
        one.k += first * a.kv_stride;
        one.v += first * a.kv_stride;
        if (a.first_block) one.first_block += b;
        if (a.key_begin) {
          one.key_begin += b;
          one.key_end += b;
        }
        const std::vector<float> alone = run(backend, one, describe(c, isa));
        CHECK(same_bits(alone.data(), together.data() + first * width, alone.size()), describe(c, isa), "sequence ", b);
      }
      for (int threads : {1, 3, 7}) {
        const auto other_owner = make_backend(threads, isa);
        Backend& other = *other_owner;
        CHECK(same_bits(run(other, a, isa).data(), together.data(), together.size()), describe(c, isa), threads,
              " threads");
      }
    }
  });
}

DULTRA_TEST(attention_query_subset_equals_all) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (const Case& c : cases_of_bits()) {
      const Problem problem(c, {90, 31, 64}, 7);
      const int64_t width = c.heads * c.head_dim;
      const AttentionArgs a = problem.args(nullptr, width);
      const std::vector<float> all = run(backend, a, describe(c, isa));
      for (int keep : {1, 5, 40}) {  // every keep-th query
        std::vector<float> q;
        std::vector<int32_t> rows, positions, offsets{0};
        for (int b = 0; b < a.batch; ++b) {
          for (int32_t i = a.q_offsets[b] + b; i < a.q_offsets[b + 1]; i += keep) {
            rows.push_back(i);
            positions.push_back(i - a.q_offsets[b]);
            q.insert(q.end(), a.q.f32() + i * a.q_stride, a.q.f32() + i * a.q_stride + width);
          }
          offsets.push_back(int32_t(rows.size()));
        }
        AttentionArgs some = a;
        some.q = q.data();
        some.q_stride = width;
        some.q_offsets = offsets.data();
        some.q_positions = positions.data();
        const std::vector<float> out = run(backend, some, describe(c, isa));
        for (size_t i = 0; i < rows.size(); ++i)
          CHECK(same_bits(&out[i * size_t(width)], &all[size_t(rows[i] * width)], size_t(width)), describe(c, isa),
                "query ", rows[i]);
      }
    }
  });
}

// Keys and values in bf16 give the bits of the same numbers in fp32, and what double precision gives.
DULTRA_TEST(attention_of_bf16_keys_and_values) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (const Case& c : cases_of_bits()) {
      Problem problem(c, {33, 0, 90}, 17);
      std::vector<uint16_t> narrow;
      for (float& x : problem.kv) {
        narrow.push_back(f32_to_bf16(x));
        x = bf16_to_f32(narrow.back());
      }
      const int64_t width = c.heads * c.head_dim;
      const AttentionArgs a = problem.args(nullptr, width);
      const std::vector<float> wide = run(backend, a, describe(c, isa));
      AttentionArgs half = a;
      half.k = narrow.data();
      half.v = narrow.data() + c.kv_heads * c.head_dim;
      const std::vector<float> out = run(backend, half, describe(c, isa));
      CHECK(same_bits(out.data(), wide.data(), out.size()), describe(c, isa));
      const std::vector<double> expected = reference(a);
      CHECK(worst_error(out.data(), expected.data(), expected.size(), 2e-6 * c.magnitude * c.magnitude, 2e-6) <= 1,
            describe(c, isa));
    }
  });
}

// A cache holds more rows than a pass computes: rows without queries lie between, and queries are anywhere in theirs.
DULTRA_TEST(attention_of_some_rows_of_a_cache) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (const Case& c : cases()) {
      if (c.mask != MaskKind::kBidirectional) continue;
      const Problem problem(c, {40, 12, 70, 5}, 18);
      const int64_t width = c.heads * c.head_dim;
      const AttentionArgs all = problem.args(nullptr, width);
      const std::vector<float> whole = run(backend, all, describe(c, isa));
      const int32_t some[5] = {0, 3, 3, 5, 5};  // three queries of the first row, two of the third
      const std::vector<int32_t> rows = {2, 3, 39, 52 + 11, 52 + 64}, positions = {2, 3, 39, 11, 64};
      std::vector<float> q;
      for (int32_t row : rows)
        q.insert(q.end(), all.q.f32() + row * all.q_stride, all.q.f32() + row * all.q_stride + width);
      AttentionArgs a = all;
      a.q = q.data();
      a.q_stride = width;
      a.q_offsets = some;
      a.q_positions = positions.data();
      const std::vector<float> out = run(backend, a, describe(c, isa));
      for (size_t i = 0; i < rows.size(); ++i)
        CHECK(same_bits(&out[i * size_t(width)], &whole[size_t(rows[i] * width)], size_t(width)), describe(c, isa),
              "query ", rows[i]);
    }
  });
}

// Keys that a mask hides may hold anything, even where the tile around them is read for other queries.
DULTRA_TEST(attention_hidden_keys_do_not_matter) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    const Case c{2, 2, 16, MaskKind::kBlockCausal, 8, true, 1, 0};
    Problem problem(c, {50, 20}, 8);
    const AttentionArgs a = problem.args(nullptr, 32);
    const std::vector<float> before = run(backend, a, isa);
    for (int b = 0; b < 2; ++b)
      for (int j = 0; j < problem.offsets[size_t(b) + 1] - problem.offsets[size_t(b)]; ++j) {
        if (j >= problem.key_begin[size_t(b)] && j < problem.key_end[size_t(b)]) continue;
        for (int64_t e = 0; e < a.kv_stride; ++e)
          problem.kv[size_t((problem.offsets[size_t(b)] + j) * a.kv_stride + e)] = NAN;
      }
    CHECK(same_bits(run(backend, a, isa).data(), before.data(), before.size()), isa);
  });
}

DULTRA_TEST(attention_without_keys_is_zero) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    const Case c{2, 2, 16, MaskKind::kCausal, 0, true, 1, 0};
    Problem problem(c, {40, 9}, 9);
    problem.key_begin = {12, 5};
    problem.key_end = {40, 5};  // nothing visible in the second sequence, nor to the first 12 queries of the first
    const std::vector<float> out = run(backend, problem.args(nullptr, 32), isa);
    for (int i = 0; i < 49; ++i) {
      if (i >= 12 && i < 40) continue;
      for (int e = 0; e < 32; ++e)
        CHECK(out[size_t(i * 32 + e)] == 0 && !std::signbit(out[size_t(i * 32 + e)]), isa, " query ", i);
    }
    CHECK(std::isfinite(out[12 * 32]) && out[12 * 32] != 0, isa);
    // No queries at all.
    AttentionArgs none = problem.args(nullptr, 32);
    const int32_t empty[3] = {0, 0, 0};
    none.q_offsets = empty;
    run(backend, none, isa);
  });
}

}  // namespace
}  // namespace test
}  // namespace dultra
