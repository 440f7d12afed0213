// Gradients of attention. A backward in double is written down from the formulas and checked against central
// differences of the forward in double; the operation is compared with it element by element.
#include "harness.h"

namespace dultra {
namespace test {
namespace {

struct Case {
  int heads, kv_heads, head_dim;
  MaskKind mask;
  int block;
  bool ranges;       // hide keys at both ends of every sequence
  int keep;          // only every keep-th query is there; 1: all, without q_positions
  double magnitude;  // of queries: large ones make the softmax sharp
  int extra_stride;
};

std::string describe(const Case& c, const std::string& isa) {
  return text(isa, " heads ", c.heads, "/", c.kv_heads, " D ", c.head_dim, " mask ", int(c.mask), " ranges ", c.ranges,
              " keep ", c.keep, " ");
}

// Packed sequences with everything that AttentionArgs points to.
struct Problem {
  Case c;
  std::vector<int32_t> q_offsets{0}, k_offsets{0}, positions, first_block, key_begin, key_end;
  std::vector<float> q, kv, dout;
  int64_t q_stride, kv_stride, out_stride;

  Problem(const Case& shape, const std::vector<int>& lengths, uint64_t seed) : c(shape) {
    Random random(seed);
    for (size_t b = 0; b < lengths.size(); ++b) {
      for (int i = int(b) % c.keep; i < lengths[b]; i += c.keep) positions.push_back(i);
      q_offsets.push_back(int32_t(positions.size()));
      k_offsets.push_back(k_offsets.back() + lengths[b]);
      first_block.push_back(c.block > 0 ? 1 + int32_t(b) * 3 % c.block : 0);
      key_begin.push_back(lengths[b] / 5);
      key_end.push_back(lengths[b] - lengths[b] / 7);
    }
    q_stride = c.heads * c.head_dim + c.extra_stride;
    kv_stride = 2 * c.kv_heads * c.head_dim + c.extra_stride;
    out_stride = c.heads * c.head_dim + 2 * c.extra_stride;
    q = normals(random, positions.size() * size_t(q_stride), c.magnitude);
    kv = normals(random, size_t(k_offsets.back() * kv_stride));
    dout = normals(random, positions.size() * size_t(out_stride));
  }
  int64_t v_at() const { return c.kv_heads * c.head_dim; }
  AttentionArgs args() const {
    AttentionArgs a{};
    a.q = q.data();
    a.k = kv.data();
    a.v = kv.data() + v_at();
    a.q_stride = q_stride;
    a.kv_stride = kv_stride;
    a.out_stride = out_stride;
    a.heads = c.heads;
    a.kv_heads = c.kv_heads;
    a.head_dim = c.head_dim;
    a.scale = 1 / std::sqrt(float(c.head_dim));
    a.batch = int(q_offsets.size()) - 1;
    a.q_offsets = q_offsets.data();
    a.k_offsets = k_offsets.data();
    a.q_positions = c.keep > 1 ? positions.data() : nullptr;
    a.mask = c.mask;
    a.block = c.block;
    if (c.ranges) {
      a.first_block = first_block.data();
      a.key_begin = key_begin.data();
      a.key_end = key_end.data();
    }
    return a;
  }
  bool sees(int b, int32_t query, int key) const {
    const int position = positions[size_t(query)];
    if (c.ranges && (key < key_begin[size_t(b)] || key >= key_end[size_t(b)])) return false;
    if (c.mask == MaskKind::kCausal) return key <= position;
    if (c.mask == MaskKind::kBlockCausal) {
      const int lacking = c.ranges ? c.block - first_block[size_t(b)] : 0;
      return (key + lacking) / c.block <= (position + lacking) / c.block;
    }
    return true;
  }
};

// Probabilities of one query of one head over the keys of its sequence, and the log of the sum.
struct Softmax {
  std::vector<double> p;
  double log_sum = -INFINITY;
  Softmax(const Problem& problem, int b, int32_t i, int h, const std::vector<double>& q,
          const std::vector<double>& kv) {
    const int keys = problem.k_offsets[size_t(b) + 1] - problem.k_offsets[size_t(b)], d = problem.c.head_dim;
    const int g = h / (problem.c.heads / problem.c.kv_heads);
    p.assign(size_t(keys), -INFINITY);
    double top = -INFINITY, sum = 0;
    for (int j = 0; j < keys; ++j) {
      if (!problem.sees(b, i, j)) continue;
      double dot = 0;
      for (int e = 0; e < d; ++e)
        dot += q[size_t(i * problem.q_stride + h * d + e)] *
               kv[size_t((problem.k_offsets[size_t(b)] + j) * problem.kv_stride + g * d + e)];
      p[size_t(j)] = dot * double(1 / std::sqrt(float(d)));
      top = std::max(top, p[size_t(j)]);
    }
    if (top == -INFINITY) {
      p.assign(size_t(keys), 0.0);
      return;
    }
    for (double& score : p) {
      score = std::exp(score - top);
      sum += score;
    }
    for (double& score : p) score /= sum;
    log_sum = top + std::log(sum);
  }
};

template <class Body>
void for_each_query(const Problem& problem, const Body& body) {
  for (int b = 0; b + 1 < int(problem.q_offsets.size()); ++b)
    for (int32_t i = problem.q_offsets[size_t(b)]; i < problem.q_offsets[size_t(b) + 1]; ++i)
      for (int h = 0; h < problem.c.heads; ++h) body(b, i, h);
}

// sum of dout times the output.
double loss(const Problem& problem, const std::vector<double>& q, const std::vector<double>& kv) {
  const int d = problem.c.head_dim;
  double total = 0;
  for_each_query(problem, [&](int b, int32_t i, int h) {
    const Softmax softmax(problem, b, i, h, q, kv);
    const int g = h / (problem.c.heads / problem.c.kv_heads);
    for (size_t j = 0; j < softmax.p.size(); ++j)
      for (int e = 0; e < d && softmax.p[j] > 0; ++e)
        total += softmax.p[j] *
                 kv[size_t((problem.k_offsets[size_t(b)] + int(j)) * problem.kv_stride + problem.v_at() + g * d + e)] *
                 problem.dout[size_t(i * problem.out_stride + h * d + e)];
  });
  return total;
}

// Beside each gradient, the sum of the sizes of the terms it is made of: what its rounding is relative to.
struct Reference {
  std::vector<double> dq, dkv, dq_size, dkv_size, log_sum;
  explicit Reference(const Problem& problem)
      : dq(problem.q.size()), dkv(problem.kv.size()), dq_size(problem.q.size()), dkv_size(problem.kv.size()) {
    const std::vector<double> q(problem.q.begin(), problem.q.end()), kv(problem.kv.begin(), problem.kv.end());
    const int d = problem.c.head_dim;
    const double scale = double(1 / std::sqrt(float(d)));
    for_each_query(problem, [&](int b, int32_t i, int h) {
      const Softmax softmax(problem, b, i, h, q, kv);
      log_sum.push_back(softmax.log_sum);
      const float* dout = &problem.dout[size_t(i * problem.out_stride + h * d)];
      const size_t query = size_t(i * problem.q_stride + h * d);
      const auto key = [&](size_t j) {
        return size_t((problem.k_offsets[size_t(b)] + int(j)) * problem.kv_stride +
                      h / (problem.c.heads / problem.c.kv_heads) * d);
      };
      std::vector<double> dp(softmax.p.size());
      std::vector<double> dp_size(dp.size());
      double delta = 0, delta_size = 0;
      for (size_t j = 0; j < dp.size(); ++j) {
        for (size_t e = 0; e < size_t(d); ++e) {
          const double term = dout[e] * kv[key(j) + size_t(problem.v_at()) + e];
          dp[j] += term;
          dp_size[j] += std::fabs(term);
        }
        delta += softmax.p[j] * dp[j];
        delta_size += softmax.p[j] * dp_size[j];
      }
      for (size_t j = 0; j < dp.size(); ++j) {
        const double ds = softmax.p[j] * (dp[j] - delta) * scale,
                     ds_size = softmax.p[j] * (dp_size[j] + delta_size) * scale;
        for (size_t e = 0; e < size_t(d); ++e) {
          dkv[key(j) + size_t(problem.v_at()) + e] += softmax.p[j] * dout[e];
          dq[query + e] += ds * kv[key(j) + e];
          dkv[key(j) + e] += ds * q[query + e];
          dkv_size[key(j) + size_t(problem.v_at()) + e] += softmax.p[j] * std::fabs(dout[e]);
          dq_size[query + e] += ds_size * std::fabs(kv[key(j) + e]);
          dkv_size[key(j) + e] += ds_size * std::fabs(q[query + e]);
        }
      }
    });
  }
};

// The operation's gradients, laid out as q and kv, with NaN between the rows.
struct Gradients {
  Guarded<float> out, log_sum, dq, dkv;
  Gradients(Backend& backend, const Problem& problem, const AttentionArgs& args)
      : out(problem.dout.size()),
        log_sum(problem.positions.size() * size_t(problem.c.heads)),
        dq(poisoned(problem.q.size())),
        dkv(poisoned(problem.kv.size())) {
    AttentionGradArgs a{};
    a.forward = args;
    a.forward.out = out.data();
    a.forward.log_sum = log_sum.data();
    backend.attention_forward(a.forward);
    a.dout = problem.dout.data();
    a.dq = dq.data();
    a.dk = dkv.data();
    a.dv = dkv.data() + problem.v_at();
    backend.attention_backward(a);
  }
  bool intact() const {
    return out.guards_intact() && log_sum.guards_intact() && dq.guards_intact() && dkv.guards_intact();
  }
  bool same(const Gradients& other) const {
    return same_bits(dq.data(), other.dq.data(), dq.size()) && same_bits(dkv.data(), other.dkv.data(), dkv.size());
  }
};

// Worst error of the elements of rows of `width`, relative to their size; what lies between the rows must be NaN.
double worst_of(const Guarded<float>& actual, const std::vector<double>& expected, const std::vector<double>& size,
                int64_t width, int64_t stride, double tolerance) {
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    double error = std::fabs(actual[i] - expected[i]) / (tolerance * size[i] + 1e-12);
    if (int64_t(i) % stride >= width) error = std::isnan(actual[i]) ? 0 : 1e30;
    if (!(error <= worst)) worst = std::isnan(error) ? 1e30 : error;
  }
  return worst;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (int d : {2, 6, 8, 12, 16, 30, 32, 64, 80, 128})
    for (MaskKind mask : {MaskKind::kBidirectional, MaskKind::kCausal, MaskKind::kBlockCausal})
      for (bool ranges : {false, true})
        all.push_back({4, d % 16 == 0 ? 2 : 4, d, mask, 7, ranges, d == 16 || d == 12 ? 3 : 1, d == 32 ? 12.0 : 1.0,
                       d == 12 ? 5 : 0});
  all.push_back({6, 1, 16, MaskKind::kCausal, 0, false, 1, 1, 3});
  all.push_back({1, 1, 5, MaskKind::kBidirectional, 0, false, 1, 1, 0});
  all.push_back({8, 2, 1, MaskKind::kBlockCausal, 3, true, 2, 1, 1});
  return all;
}

// Those of a test that compares bits. Under the emulator each head dimension once, the masks and ranges in turn: a
// lane's parts of a head and what a query sees do not know of each other there, and attention_backward_matches_double
// takes all.
std::vector<Case> cases_of_bits() { return one_view_each(cases(), 6, 3); }

DULTRA_TEST(attention_backward_reference_matches_differences) {
  for (const Case& c : cases()) {
    const Problem problem(c, {1, 0, 13, 8}, 1);
    const Reference reference(problem);
    const std::vector<double> q(problem.q.begin(), problem.q.end()), kv(problem.kv.begin(), problem.kv.end());
    const std::vector<float> dq(reference.dq.begin(), reference.dq.end()),
        dkv(reference.dkv.begin(), reference.dkv.end());
    check_gradient(
        dq.data(), problem.q, [&](const auto& at) { return loss(problem, at, kv); }, 12, 1e-6, describe(c, "dq"));
    check_gradient(
        dkv.data(), problem.kv, [&](const auto& at) { return loss(problem, q, at); }, 20, 1e-6, describe(c, "dkv"));
  }
}

DULTRA_TEST(attention_backward_matches_double) {
  for (const Case& c : cases()) {
    const Problem problem(c, {1, 0, 33, 70, 16, 5, 24}, 3);
    const Reference reference(problem);
    for_each_backend([&](Backend& backend, const std::string& isa) {
      const std::string where = describe(c, isa);
      const Gradients got(backend, problem, problem.args());
      CHECK(got.intact(), where);
      // P is known to the rounding of exp (2e-7) and of score and log_sum, both relative to the score's terms (7 in sum
      // at D = 128, and those of a sharp softmax are larger).
      const double tolerance = 2e-6 * c.magnitude;
      const double q_error =
          worst_of(got.dq, reference.dq, reference.dq_size, c.heads * c.head_dim, problem.q_stride, tolerance);
      const double kv_error =
          worst_of(got.dkv, reference.dkv, reference.dkv_size, 2 * problem.v_at(), problem.kv_stride, tolerance);
      CHECK(q_error <= 1 && kv_error <= 1, where, "errors ", q_error, " ", kv_error);
      CHECK(worst_error(got.log_sum.data(), reference.log_sum.data(), reference.log_sum.size(), 2e-6 * c.magnitude,
                        1e-6) <= 1,
            where, "log_sum");
    });
  }
}

DULTRA_TEST(attention_backward_of_long_rows) {
  const Case c{4, 2, 32, MaskKind::kBidirectional, 0, false, 1, 1, 0};
  const Problem problem(c, {517}, 4);
  const Reference reference(problem);
  for_each_backend([&](Backend& backend, const std::string& isa) {
    const Gradients got(backend, problem, problem.args());
    const double q_error = worst_of(got.dq, reference.dq, reference.dq_size, 128, 128, 1e-6);
    const double kv_error = worst_of(got.dkv, reference.dkv, reference.dkv_size, 128, 128, 1e-6);
    CHECK(q_error <= 1 && kv_error <= 1 && got.intact(), isa, " errors ", q_error, " ", kv_error);
  });
}

DULTRA_TEST(attention_backward_of_extreme_scores_is_finite) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    const Case c{2, 2, 16, MaskKind::kBidirectional, 0, false, 1, 1000, 0};
    const Problem problem(c, {40}, 5);
    const Gradients got(backend, problem, problem.args());
    const Reference reference(problem);
    // Scores in the thousands: fp32 holds them to about 1e-3.
    const double q_error = worst_of(got.dq, reference.dq, reference.dq_size, 32, 32, 1e-3);
    const double kv_error = worst_of(got.dkv, reference.dkv, reference.dkv_size, 64, 64, 1e-3);
    CHECK(q_error <= 1 && kv_error <= 1, isa, " errors ", q_error, " ", kv_error);
  });
}

// Bits of a sequence's gradients depend neither on the batch nor on the number of threads.
DULTRA_TEST(attention_backward_batch_equals_singles) {
  for (const std::string& isa : isas())
    for (const Case& c : cases_of_bits()) {
      const std::vector<int> lengths = kEmulated ? std::vector<int>{40, 1, 17} : std::vector<int>{40, 1, 90, 17};
      const Problem problem(c, lengths, 6);
      const AttentionArgs a = problem.args();
      const auto backend_owner = make_backend(2, isa);
      Backend& backend = *backend_owner;
      const Gradients together(backend, problem, a);
      for (size_t b = 0; b < lengths.size(); ++b) {
        AttentionArgs one = a;
        const int32_t q_first = problem.q_offsets[b], k_first = problem.k_offsets[b];
        const int32_t q_offsets[2] = {0, problem.q_offsets[b + 1] - q_first}, k_offsets[2] = {0, lengths[b]};
        one.batch = 1;
        one.q_offsets = q_offsets;
        one.k_offsets = k_offsets;
        one.q += q_first * a.q_stride;
        one.k += k_first * a.kv_stride;
        one.v += k_first * a.kv_stride;
        if (a.q_positions) one.q_positions += q_first;
        if (a.first_block) one.first_block += b;
        if (a.key_begin) {
          one.key_begin += b;
          one.key_end += b;
        }
        Guarded<float> out(problem.dout.size()), log_sum(size_t(problem.c.heads) * problem.positions.size());
        Guarded<float> dq = poisoned(problem.q.size()), dkv = poisoned(problem.kv.size());
        one.out = out.data();
        one.log_sum = log_sum.data();
        backend.attention_forward(one);
        backend.attention_backward(
            {one, problem.dout.data() + q_first * a.out_stride, dq.data(), dkv.data(), dkv.data() + problem.v_at()});
        bool same = true;
        for (int32_t i = 0; i < q_offsets[1]; ++i)
          same = same && same_bits(dq.data() + i * a.q_stride, together.dq.data() + (q_first + i) * a.q_stride,
                                   size_t(c.heads * c.head_dim));
        for (int32_t j = 0; j < k_offsets[1]; ++j)
          same = same && same_bits(dkv.data() + j * a.kv_stride, together.dkv.data() + (k_first + j) * a.kv_stride,
                                   size_t(2 * problem.v_at()));
        CHECK(same, describe(c, isa), "sequence ", b);
      }
      for (int threads : {1, 3, 7}) {
        const auto other_owner = make_backend(threads, isa);
        Backend& other = *other_owner;
        CHECK(Gradients(other, problem, a).same(together), describe(c, isa), threads, " threads");
      }
    }
}

// Keys outside the range may hold anything and get 0, as do queries that see no key.
DULTRA_TEST(attention_backward_of_what_is_hidden) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    const Case c{2, 2, 16, MaskKind::kCausal, 0, true, 1, 1, 0};
    Problem problem(c, {40, 9}, 9);
    problem.key_begin = {12, 5};
    problem.key_end = {36, 5};  // nothing visible in the second sequence, nor to the first 12 queries of the first
    const Gradients before(backend, problem, problem.args());
    for (int j = 0; j < 49; ++j)
      if (j < 12 || j >= 36)
        for (int e = 0; e < 64; ++e) problem.kv[size_t(j * 64 + e)] = NAN;
    const Gradients after(backend, problem, problem.args());
    CHECK(after.same(before) && after.intact(), isa);
    for (int j = 0; j < 49; ++j)
      for (int e = 0; e < 64; ++e) CHECK((after.dkv[size_t(j * 64 + e)] == 0) == (j < 12 || j >= 36), isa, " key ", j);
    for (int i = 0; i < 49; ++i)
      for (int e = 0; e < 32; ++e)
        CHECK(i < 12 || i >= 40 ? after.dq[size_t(i * 32 + e)] == 0 : std::isfinite(after.dq[size_t(i * 32 + e)]), isa,
              " ", i);
    for (int i = 0; i < 49; ++i)
      CHECK((after.log_sum[size_t(i * 2)] == -INFINITY) == (i < 12 || i >= 40), isa, " query ", i);
    ErrorCode code = ErrorCode::kInternal;
    try {
      backend.attention_backward({problem.args(), nullptr, nullptr, nullptr, nullptr});  // no log_sum
    } catch (const Error& error) {
      code = error.code();
    }
    CHECK(code == ErrorCode::kInvalidArgument, isa);
    // No queries: the keys still get their zeros.
    AttentionArgs none = problem.args();
    const int32_t empty[3] = {0, 0, 0};
    none.q_offsets = empty;
    const Gradients zeros(backend, problem, none);
    for (size_t i = 0; i < zeros.dkv.size(); ++i) CHECK(zeros.dkv[i] == 0, isa);
  });
}

}  // namespace
}  // namespace test
}  // namespace dultra
