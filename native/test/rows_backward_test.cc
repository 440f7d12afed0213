// Backward of norms, rotary embedding, gates, embedding, gather: against central differences of their definitions in
// double.
#include "harness.h"

namespace dultra {
namespace test {
namespace {

const std::vector<int64_t> kWidths{1, 3, 4, 8, 15, 16, 17, 31, 64, 100, 129, 520};
const std::vector<int64_t> kNormWidths{1,  3,   4,   8,   15,   16,  17, 31,
                                       64, 100, 129, 520, 4099, 4104};  // more than a block of a device keeps at hand
constexpr int kGroups = 3;

// The loss of a row operation: its outputs times fixed numbers.
double dot(const std::vector<double>& out, const std::vector<float>& dout) {
  double sum = 0;
  for (size_t i = 0; i < out.size(); ++i) sum += out[i] * double(dout[i]);
  return sum;
}

std::vector<double> widen(const std::vector<float>& x) { return std::vector<double>(x.begin(), x.end()); }

std::vector<double> rmsnorm(const std::vector<double>& x, const std::vector<double>& weight, double eps) {
  const size_t c = weight.size();
  std::vector<double> out(x.size());
  for (size_t i = 0; i < x.size(); i += c) {
    double squares = 0;
    for (size_t j = 0; j < c; ++j) squares += x[i + j] * x[i + j];
    for (size_t j = 0; j < c; ++j) out[i + j] = x[i + j] / std::sqrt(squares / double(c) + eps) * weight[j];
  }
  return out;
}

std::vector<double> layernorm(const std::vector<double>& x, const std::vector<double>& mul,
                              const std::vector<double>& add, const std::vector<int32_t>& group, size_t c, double eps) {
  std::vector<double> out(x.size());
  for (size_t i = 0; i < x.size() / c; ++i) {
    double mean = 0, variance = 0;
    for (size_t j = 0; j < c; ++j) mean += x[i * c + j] / double(c);
    for (size_t j = 0; j < c; ++j) variance += (x[i * c + j] - mean) * (x[i * c + j] - mean) / double(c);
    for (size_t j = 0; j < c; ++j) {
      const size_t g = size_t(group[i]) * c + j;
      out[i * c + j] = (x[i * c + j] - mean) / std::sqrt(variance + eps) * mul[g] + add[g];
    }
  }
  return out;
}

// What an operation that adds wrote, less what was there before: known to the rounding of the sum.
constexpr double kRounding = 4e-7;
struct Sum {
  std::vector<float> before;
  Guarded<float> data;
  Sum(Random& random, size_t n) : before(normals(random, n)), data(n) {
    std::copy(before.begin(), before.end(), data.data());
  }
  std::vector<float> added() const {
    std::vector<float> out(before.size());
    for (size_t i = 0; i < out.size(); ++i) out[i] = float(double(data[i]) - double(before[i]));
    return out;
  }
};

DULTRA_TEST(rmsnorm_backward_matches_differences, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t c : kNormWidths)
      for (int64_t m : {0, 1, 2, c < 4000 ? 70 : 18}) {
        Random random(uint64_t(c * 100 + m));
        const std::string where = text(isa, " C ", c, " M ", m);
        const std::vector<float> x = normals(random, size_t(m * c), 2), weight = normals(random, size_t(c)),
                                 dout = normals(random, size_t(m * c));
        Sum dx(random, x.size()), dweight(random, size_t(c));
        // A row of one number has no direction to move in but that of eps: a larger one keeps differences meaningful.
        const float eps = c == 1 ? 0.5f : 1e-5f;
        backend.rmsnorm_backward(dx.data.data(), dweight.data.data(), dout.data(), x.data(), weight.data(), m, c, eps);
        CHECK(dx.data.guards_intact() && dweight.data.guards_intact(), where);
        if (m == 0) continue;
        const std::vector<double> wide_x = widen(x), wide_weight = widen(weight);
        check_gradient(
            dx.added().data(), x, [&](const auto& at) { return dot(rmsnorm(at, wide_weight, double(eps)), dout); }, 30,
            4e-6, where + " dx", kRounding);
        check_gradient(
            dweight.added().data(), weight, [&](const auto& at) { return dot(rmsnorm(wide_x, at, double(eps)), dout); },
            30, 4e-6, where + " dweight", kRounding);
        Guarded<float> without(x.size());
        std::copy(dx.before.begin(), dx.before.end(), without.data());
        backend.rmsnorm_backward(without.data(), nullptr, dout.data(), x.data(), weight.data(), m, c, eps);
        CHECK(same_bits(without.data(), dx.data.data(), x.size()), where, " without weights");
      }
  });
}

struct Affine {
  std::vector<float> mul, add;
  std::vector<int32_t> group;
  Affine(Random& random, int64_t m, int64_t c, bool grouped)
      : mul(normals(random, size_t(kGroups * c))), add(normals(random, size_t(kGroups * c))) {
    for (int64_t i = 0; i < m; ++i) group.push_back(grouped ? random.below(kGroups) : 0);
  }
};

DULTRA_TEST(layernorm_backward_matches_differences) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t c : kNormWidths)
      for (int64_t m : {0, 1, 5, c < 4000 ? 70 : 2})
        for (bool grouped : {false, true}) {
          Random random(uint64_t(c * 100 + m));
          const std::string where = text(isa, " C ", c, " M ", m, " grouped ", grouped);
          std::vector<float> x = normals(random, size_t(m * c), 2);
          for (float& value : x) value += 1;
          const std::vector<float> dout = normals(random, x.size());
          const Affine affine(random, m, c, grouped);
          const float eps = c < 4 ? 0.5f : 1e-4f;
          const int32_t* group = grouped ? affine.group.data() : nullptr;
          const size_t groups = size_t((grouped ? kGroups : 1) * c);
          Sum dx(random, x.size()), dmul(random, groups), dadd(random, groups);
          backend.layernorm_backward(dx.data.data(), dmul.data.data(), dadd.data.data(), dout.data(), x.data(),
                                     affine.mul.data(), group, m, c, eps);
          CHECK(dx.data.guards_intact() && dmul.data.guards_intact() && dadd.data.guards_intact(), where);
          if (m == 0) continue;
          const std::vector<double> wide_x = widen(x), mul = widen(affine.mul), add = widen(affine.add);
          check_gradient(
              dx.added().data(), x,
              [&](const auto& at) { return dot(layernorm(at, mul, add, affine.group, size_t(c), double(eps)), dout); },
              30, 6e-6, where + " dx", kRounding);
          const std::vector<float> used_mul(affine.mul.begin(), affine.mul.begin() + std::ptrdiff_t(groups));
          const auto by_mul = [&](const auto& at) {
            return dot(layernorm(wide_x, at, add, affine.group, size_t(c), double(eps)), dout);
          };
          const auto by_add = [&](const auto& at) {
            return dot(layernorm(wide_x, mul, at, affine.group, size_t(c), double(eps)), dout);
          };
          check_gradient(dmul.added().data(), used_mul, by_mul, 30, 6e-6, where + " dmul", kRounding);
          check_gradient(dadd.added().data(), used_mul, by_add, 30, 6e-6, where + " dadd", kRounding);
          Guarded<float> without(x.size());
          std::copy(dx.before.begin(), dx.before.end(), without.data());
          backend.layernorm_backward(without.data(), nullptr, nullptr, dout.data(), x.data(), affine.mul.data(), group,
                                     m, c, eps);
          CHECK(same_bits(without.data(), dx.data.data(), x.size()), where, " without weights");
        }
  });
}

DULTRA_TEST(planner_score_backward_matches_differences) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t c : kNormWidths)
      for (int64_t m : {0, 1, 5, c < 4000 ? 70 : 2})
        for (bool grouped : {false, true}) {
          Random random(uint64_t(c * 100 + m));
          const std::string where = text(isa, " C ", c, " M ", m, " grouped ", grouped);
          std::vector<float> x = normals(random, size_t(m * c), 2);
          const std::vector<float> weight = normals(random, size_t(c)), dlogit = normals(random, size_t(m));
          const Affine affine(random, m, c, grouped);
          const float eps = c < 4 ? 0.5f : 1e-4f;
          const int32_t* group = grouped ? affine.group.data() : nullptr;
          const size_t groups = size_t((grouped ? kGroups : 1) * c);
          Sum dx(random, x.size()), dmul(random, groups), dadd(random, groups), dweight(random, size_t(c)),
              dbias(random, 1);
          backend.planner_score_backward(dx.data.data(), dmul.data.data(), dadd.data.data(), dweight.data.data(),
                                         dbias.data.data(), dlogit.data(), x.data(), affine.mul.data(),
                                         affine.add.data(), group, weight.data(), m, c, eps);
          for (const Sum* sum : {&dx, &dmul, &dadd, &dweight, &dbias}) CHECK(sum->data.guards_intact(), where);
          if (m == 0) {
            CHECK(same_bits(dbias.data.data(), dbias.before.data(), 1), where);
            continue;
          }
          const std::vector<double> wide_x = widen(x), mul = widen(affine.mul), add = widen(affine.add),
                                    w = widen(weight);
          const auto loss = [&](const auto& at_x, const auto& at_mul, const auto& at_add, const auto& at_w) {
            const std::vector<double> normed = layernorm(at_x, at_mul, at_add, affine.group, size_t(c), double(eps));
            double sum = 0;
            for (size_t i = 0; i < normed.size(); ++i) sum += normed[i] * at_w[i % size_t(c)] * dlogit[i / size_t(c)];
            return sum;
          };
          check_gradient(
              dx.added().data(), x, [&](const auto& at) { return loss(at, mul, add, w); }, 30, 8e-6, where + " dx",
              kRounding);
          const std::vector<float> used_mul(affine.mul.begin(), affine.mul.begin() + std::ptrdiff_t(groups));
          check_gradient(
              dmul.added().data(), used_mul, [&](const auto& at) { return loss(wide_x, at, add, w); }, 30, 6e-6,
              where + " dmul", kRounding);
          check_gradient(
              dadd.added().data(), used_mul, [&](const auto& at) { return loss(wide_x, mul, at, w); }, 30, 6e-6,
              where + " dadd", kRounding);
          check_gradient(
              dweight.added().data(), weight, [&](const auto& at) { return loss(wide_x, mul, add, at); }, 30, 6e-6,
              where + " dweight", kRounding);
          double bias = 0, magnitude = 0;
          for (float d : dlogit) bias += d, magnitude += std::fabs(d);
          CHECK(std::fabs(dbias.added()[0] - bias) < 3e-7 * magnitude + 3e-7, where, " dbias ", dbias.added()[0],
                " for ", bias);
          Guarded<float> without(x.size());
          std::copy(dx.before.begin(), dx.before.end(), without.data());
          backend.planner_score_backward(without.data(), nullptr, nullptr, nullptr, nullptr, dlogit.data(), x.data(),
                                         affine.mul.data(), affine.add.data(), group, weight.data(), m, c, eps);
          CHECK(same_bits(without.data(), dx.data.data(), x.size()), where, " without weights");
        }
  });
}

DULTRA_TEST(rope_backward_matches_differences) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (const auto& [d, dim] : {std::pair<int, int>{2, 2},
                                 {6, 6},
                                 {8, 8},
                                 {16, 16},
                                 {30, 30},
                                 {64, 64},
                                 {128, 128},
                                 {16, 8},
                                 {64, 32},
                                 {10, 0}})
      for (int heads : {1, 3}) {
        Random random{uint64_t(d)};
        const std::vector<int32_t> positions{0, 1, 5, 5, 300, 70000};
        const int64_t stride = heads * d + (heads == 1 ? 8 : 5);
        const Rope rope{10000, dim};
        const std::vector<float> frequencies = rope_frequencies(rope);
        const int head_dim = d, half = dim / 2;
        const std::vector<float> x = normals(random, positions.size() * size_t(stride)),
                                 dout = normals(random, x.size());
        Guarded<float> dx(x.size());
        std::copy(dout.begin(), dout.end(), dx.data());
        backend.rope_backward(dx.data(), stride, positions.data(), int64_t(positions.size()), heads, d, rope);
        CHECK(dx.guards_intact(), isa);
        const auto loss = [&](const std::vector<double>& at) {
          double sum = 0;
          for (size_t i = 0; i < positions.size(); ++i)
            for (int64_t e = 0; e < stride; ++e) {
              const size_t here = i * size_t(stride) + size_t(e);
              const int j = int(e) % head_dim;
              double out = at[here];  // between the rows nothing happens
              if (e < heads * head_dim && j < 2 * half) {
                const double angle = double(float(positions[i]) * frequencies[size_t(j % half)]);
                out = j < half ? at[here] * std::cos(angle) - at[here + size_t(half)] * std::sin(angle)
                               : at[here] * std::cos(angle) + at[here - size_t(half)] * std::sin(angle);
              }
              sum += out * dout[here];
            }
          return sum;
        };
        check_gradient(dx.data(), x, loss, 60, 2e-6, text(isa, " D ", d, " dim ", dim, " heads ", heads));
      }
  });
}

DULTRA_TEST(head_norm_backward_matches_differences, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int d : {2, 8, 20, 64, 128, 256})
      for (int heads : {1, 3})
        for (int64_t m : {1, 2, 50}) {
          const int64_t width = heads * d, stride = width + 5;
          const std::string where = text(isa, " D ", d, " heads ", heads, " M ", m);
          Random random{uint64_t(d * 100 + m)};
          const std::vector<float> x = normals(random, size_t(m * width), 2), weight = normals(random, size_t(d)),
                                   dense = normals(random, x.size());
          const float eps = 1e-5f;
          std::vector<float> spaced(size_t(m * stride), 7);
          for (int64_t i = 0; i < m; ++i) std::copy_n(&dense[size_t(i * width)], width, &spaced[size_t(i * stride)]);
          Guarded<float> dx(spaced.size());
          std::copy(spaced.begin(), spaced.end(), dx.data());
          Sum dweight(random, size_t(d));
          backend.head_norm_backward(dx.data(), stride, dweight.data.data(), x.data(), weight.data(), m, heads, d, eps);
          CHECK(dx.guards_intact() && dweight.data.guards_intact(), where);
          std::vector<float> got;
          for (int64_t i = 0; i < m; ++i) {
            got.insert(got.end(), dx.data() + i * stride, dx.data() + i * stride + width);
            for (int64_t e = width; e < stride; ++e) CHECK(dx.data()[i * stride + e] == 7, where, " between rows");
          }
          const std::vector<double> wide_x = widen(x), wide_weight = widen(weight);
          check_gradient(
              got.data(), x, [&](const auto& at) { return dot(rmsnorm(at, wide_weight, double(eps)), dense); }, 30,
              4e-6, where + " dx", kRounding);
          check_gradient(
              dweight.added().data(), weight,
              [&](const auto& at) { return dot(rmsnorm(wide_x, at, double(eps)), dense); }, 30, 4e-6,
              where + " dweight", kRounding);
          std::copy(spaced.begin(), spaced.end(), dx.data());
          backend.head_norm_backward(dx.data(), stride, nullptr, x.data(), weight.data(), m, heads, d, eps);
          for (int64_t i = 0; i < m; ++i)
            CHECK(same_bits(&got[size_t(i * width)], dx.data() + i * stride, size_t(width)), where, " without weights");
        }
  });
}

double silu(double x) { return x / (1 + std::exp(-x)); }

DULTRA_TEST(gates_backward_match_differences) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t f : kWidths)
      for (int64_t m : {0, 1, 3, 20}) {
        Random random{uint64_t(f)};
        const std::string where = text(isa, " F ", f, " M ", m);
        std::vector<float> gate_up = normals(random, size_t(2 * m * f), 3);
        const std::vector<float> dout = normals(random, size_t(m * f)), wide_dout = normals(random, gate_up.size());
        if (m > 0) {
          gate_up[0] = -200;  // the slope is 0, not NaN
          gate_up[size_t(f - 1)] = 200;
        }
        Guarded<float> dgate_up = poisoned(gate_up.size()), dx = poisoned(gate_up.size());
        backend.swiglu_backward(dgate_up.data(), dout.data(), gate_up.data(), m, f);
        const auto loss = [&](const std::vector<double>& at) {
          double sum = 0;
          for (size_t i = 0; i < size_t(m); ++i)
            for (size_t j = 0; j < size_t(f); ++j)
              sum += silu(at[i * size_t(2 * f) + j]) * at[i * size_t(2 * f) + size_t(f) + j] * dout[i * size_t(f) + j];
          return sum;
        };
        check_gradient(dgate_up.data(), gate_up, loss, 40, 2e-6, where + " swiglu");
        backend.silu_backward(dx.data(), wide_dout.data(), gate_up.data(), int64_t(gate_up.size()));
        const auto silu_loss = [&](const std::vector<double>& at) {
          double sum = 0;
          for (size_t i = 0; i < at.size(); ++i) sum += silu(at[i]) * wide_dout[i];
          return sum;
        };
        check_gradient(dx.data(), gate_up, silu_loss, 40, 2e-6, where + " silu");
        CHECK(dgate_up.guards_intact() && dx.guards_intact(), where);
        std::vector<float> in_place(gate_up), silu_in_place(wide_dout);
        backend.swiglu_backward(in_place.data(), dout.data(), in_place.data(), m, f);
        backend.silu_backward(silu_in_place.data(), silu_in_place.data(), gate_up.data(), int64_t(gate_up.size()));
        CHECK(same_bits(in_place.data(), dgate_up.data(), in_place.size()) &&
                  same_bits(silu_in_place.data(), dx.data(), in_place.size()),
              where, " in place");
      }
  });
}

DULTRA_TEST(embedding_backward_adds_rows_in_order) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t c : {1, 7, 16, 65, 300}) {
      Random random{uint64_t(c)};
      const int64_t table_rows = 9, m = 300;
      std::vector<int32_t> ids;
      for (int64_t i = 0; i < m; ++i) ids.push_back(random.below(int(table_rows) - 1));  // the last row gets nothing
      const std::vector<float> dout = normals(random, size_t(m * c));
      Sum dtable(random, size_t(table_rows * c)), rows(random, size_t(table_rows * c));
      std::vector<float> expected(dtable.before);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < c; ++j) expected[size_t(ids[size_t(i)] * c + j)] += dout[size_t(i * c + j)];
      backend.embedding_backward(dtable.data.data(), ids.data(), dout.data(), m, c);
      CHECK(same_bits(dtable.data.data(), expected.data(), expected.size()) && dtable.data.guards_intact(), isa, " C ",
            c);
      std::copy(dtable.before.begin(), dtable.before.end(), rows.data.data());
      backend.scatter_add_rows(rows.data.data(), dout.data(), ids.data(), m, c);
      CHECK(same_bits(rows.data.data(), expected.data(), expected.size()) && rows.data.guards_intact(), isa, " C ", c);
    }
  });
}

DULTRA_TEST(rows_backward_does_not_depend_on_threads) {
  for (const std::string& isa : isas()) {
    Random random(11);
    const int64_t m = 700, c = 161;
    const std::vector<float> x = normals(random, size_t(m * c)), weight = normals(random, size_t(c)),
                             dout = normals(random, x.size());
    const std::vector<float> dlogit = normals(random, size_t(m)), dgate = normals(random, size_t(m * c / 2));
    const Affine affine(random, m, c, true);
    std::vector<int32_t> positions;
    for (int64_t i = 0; i < m; ++i) positions.push_back(int32_t(i));
    std::vector<std::vector<float>> first;
    for (int threads : {1, 2, 3, 8}) {
      const auto backend_owner = make_backend(threads, isa);
      Backend& backend = *backend_owner;
      std::vector<std::vector<float>> out;
      const auto zeros = [&](int64_t n) {
        out.emplace_back(static_cast<size_t>(n));
        return out.back().data();
      };
      out.reserve(32);
      float* dx = zeros(m * c);
      backend.rmsnorm_backward(dx, zeros(c), dout.data(), x.data(), weight.data(), m, c, 1e-5f);
      dx = zeros(m * c);
      float *dmul = zeros(kGroups * c), *dadd = zeros(kGroups * c);
      backend.layernorm_backward(dx, dmul, dadd, dout.data(), x.data(), affine.mul.data(), affine.group.data(), m, c,
                                 1e-5f);
      dx = zeros(m * c);
      dmul = zeros(kGroups * c), dadd = zeros(kGroups * c);
      float *dweight = zeros(c), *dbias = zeros(1);
      backend.planner_score_backward(dx, dmul, dadd, dweight, dbias, dlogit.data(), x.data(), affine.mul.data(),
                                     affine.add.data(), affine.group.data(), weight.data(), m, c, 1e-5f);
      backend.swiglu_backward(zeros(m * c / 2 * 2), dgate.data(), x.data(), m, c / 2);
      backend.silu_backward(zeros(m * c), dout.data(), x.data(), m * c);
      backend.embedding_backward(zeros(kGroups * c), affine.group.data(), dout.data(), m, c);
      out.push_back(dout);
      backend.rope_backward(out.back().data(), c, positions.data(), m, 1, 160, Rope{10000, 160});
      if (threads == 1) first = out;
      for (size_t i = 0; i < out.size(); ++i)
        CHECK(same_bits(out[i].data(), first[i].data(), out[i].size()), isa, " ", threads, " threads, output ", i);
    }
  }
}

}  // namespace
}  // namespace test
}  // namespace dultra
