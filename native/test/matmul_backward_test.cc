// Backward of the linear layer, and weights that change: against central differences and sums in double.
#include "harness.h"

namespace dultra {
namespace test {
namespace {

struct Shape {
  int64_t m, n, k;
};
const std::vector<Shape> kShapes{{1, 1, 1},      {1, 33, 17},    {2, 7, 64},     {5, 16, 16},  {6, 96, 32},
                                 {13, 31, 33},   {65, 129, 64},  {70, 64, 1},    {130, 1, 70}, {200, 48, 31},
                                 {600, 192, 64}, {1100, 40, 24}, {3, 1030, 200}, {1, 0, 5}};

std::string describe(const std::string& isa, const Shape& s) { return text(isa, " M ", s.m, " N ", s.n, " K ", s.k); }

// Rounding errors of a chain of `length` fused multiply-adds of products of the size that `squares` (their sum of
// squares) says: see matmul_test.cc.
double chain_bound(double squares, int64_t length) {
  return 6e-8 * std::sqrt(squares) * (6 + 2.5 * std::sqrt(double(length)));
}

DULTRA_TEST(linear_backward_input_matches_double) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (const Shape& s : kShapes)
      for (bool accumulate : {false, true}) {
        Random random{uint64_t(s.m * 31 + s.n)};
        const int64_t stride = s.n + (accumulate ? 3 : 0);
        const std::vector<float> dy = normals(random, size_t(s.m * stride)), w = normals(random, size_t(s.n * s.k)),
                                 old = normals(random, size_t(s.m * s.k));
        Guarded<float> dx = poisoned(old.size());
        if (accumulate) std::copy(old.begin(), old.end(), dx.data());
        backend.linear_backward_input(dx.data(), dy.data(), stride, w.data(), s.m, s.n, s.k, accumulate);
        double worst = 0;
        for (int64_t i = 0; i < s.m; ++i)
          for (int64_t j = 0; j < s.k; ++j) {
            double sum = accumulate ? double(old[size_t(i * s.k + j)]) : 0, squares = 1;
            for (int64_t l = 0; l < s.n; ++l) {
              const double term = double(dy[size_t(i * stride + l)]) * w[size_t(l * s.k + j)];
              sum += term;
              squares += term * term;
            }
            const double error = std::fabs(dx[size_t(i * s.k + j)] - sum) / chain_bound(squares, s.n);
            if (!(error <= worst)) worst = std::isnan(error) ? 1e30 : error;
          }
        CHECK(worst <= 1 && dx.guards_intact(), describe(isa, s), " accumulate ", accumulate, " error ", worst);
      }
  });
}

// A packed matrix gives the bits of a row-major fp32 copy of what it holds, whatever rows of it are taken.
DULTRA_TEST(linear_backward_input_of_a_packed_matrix) {
  for_each_arithmetic([](Backend& backend, const std::string& isa) {
    const bool bf16 = backend.compute() == Compute::kBF16;
    for (DType storage : {DType::kF32, DType::kBF16, DType::kF16}) {
      if (bf16 && storage != DType::kBF16) continue;
      for (const Shape& s : kShapes)
        for (const auto& [first, rows] : std::vector<std::pair<int64_t, int64_t>>{
                 {0, s.n}, {s.n / 3, s.n - s.n / 3}, {s.n / 4, s.n / 2}, {s.n, 0}}) {
          const bool accumulate = first > 0;
          Random random{uint64_t(s.m * 31 + s.n)};
          const int64_t stride = rows + (accumulate ? 3 : 0);
          const std::vector<float> dy = normals(random, size_t(s.m * stride)), w = normals(random, size_t(s.n * s.k)),
                                   old = normals(random, size_t(s.m * s.k));
          const auto matrix = backend.make_matrix({{w.data(), DType::kF32, s.n}}, s.k, storage);
          std::vector<float> copy(w.size()), expected = old;
          matrix->unpack(copy.data(), 0, s.n);
          Guarded<float> dx = poisoned(old.size());
          std::copy(old.begin(), old.end(), dx.data());
          backend.linear_backward_input(expected.data(), dy.data(), stride, copy.data() + first * s.k, s.m, rows, s.k,
                                        accumulate);
          backend.linear_backward_input(dx.data(), dy.data(), stride, *matrix, first, rows, s.m, accumulate);
          CHECK(same_bits(dx.data(), expected.data(), dx.size()) && dx.guards_intact(), describe(isa, s), " storage ",
                int(storage), " bf16 products ", bf16, " rows ", rows, " from ", first);
        }
    }
    // More than the scratch memory holds at a time.
    if (kEmulated) return;
    const Shape large{9, 3000, 2500};
    Random random{5};
    const std::vector<float> dy = normals(random, size_t(large.m * large.n)),
                             w = normals(random, size_t(large.n * large.k));
    const auto matrix =
        backend.make_matrix({{w.data(), DType::kF32, large.n}}, large.k, bf16 ? DType::kBF16 : DType::kF32);
    std::vector<float> copy(w.size()), dx(size_t(large.m * large.k)), expected(dx.size());
    matrix->unpack(copy.data(), 0, large.n);
    backend.linear_backward_input(expected.data(), dy.data(), large.n, copy.data(), large.m, large.n, large.k, false);
    backend.linear_backward_input(dx.data(), dy.data(), large.n, *matrix, 0, large.n, large.m, false);
    CHECK(same_bits(dx.data(), expected.data(), dx.size()), describe(isa, large));
  });
}

DULTRA_TEST(linear_backward_weight_matches_double) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (const Shape& s : kShapes)
      for (bool bias : {false, true}) {
        Random random{uint64_t(s.m * 31 + s.n)};
        const int64_t stride = s.n + (bias ? 3 : 0);
        const std::vector<float> dy = normals(random, size_t(s.m * stride)), x = normals(random, size_t(s.m * s.k)),
                                 old = normals(random, size_t(s.n * s.k)), old_bias = normals(random, size_t(s.n));
        Guarded<float> dw(old.size()), db(old_bias.size());
        std::copy(old.begin(), old.end(), dw.data());
        std::copy(old_bias.begin(), old_bias.end(), db.data());
        backend.linear_backward_weight(dw.data(), bias ? db.data() : nullptr, dy.data(), stride, x.data(), s.m, s.n,
                                       s.k);
        double worst = 0, worst_bias = 0;
        for (int64_t l = 0; l < s.n; ++l) {
          double column = old_bias[size_t(l)], column_squares = 1;
          for (int64_t i = 0; bias && i < s.m; ++i) {
            const double d = dy[size_t(i * stride + l)];
            column += d;
            column_squares += d * d;
          }
          worst_bias = std::max(worst_bias, std::fabs(db[size_t(l)] - column) / chain_bound(column_squares, s.m));
          for (int64_t j = 0; j < s.k; ++j) {
            double sum = old[size_t(l * s.k + j)], squares = 1;
            for (int64_t i = 0; i < s.m; ++i) {
              const double term = double(dy[size_t(i * stride + l)]) * x[size_t(i * s.k + j)];
              sum += term;
              squares += term * term;
            }
            const double error = std::fabs(dw[size_t(l * s.k + j)] - sum) / chain_bound(squares, s.m);
            if (!(error <= worst)) worst = std::isnan(error) ? 1e30 : error;
          }
        }
        CHECK(worst <= 1 && dw.guards_intact(), describe(isa, s), " error ", worst);
        CHECK(worst_bias <= 1 && db.guards_intact(), describe(isa, s), " bias error ", worst_bias);
      }
  });
}

// All three gradients of one layer against differences of the layer itself.
DULTRA_TEST(linear_backward_matches_differences) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (const Shape& s : std::vector<Shape>{{1, 1, 1}, {3, 5, 9}, {14, 20, 33}, {40, 17, 16}}) {
      Random random{uint64_t(s.k)};
      const std::vector<float> x = normals(random, size_t(s.m * s.k)), w = normals(random, size_t(s.n * s.k)),
                               b = normals(random, size_t(s.n)), dy = normals(random, size_t(s.m * s.n));
      std::vector<float> dx(x.size()), dw(w.size()), db(b.size());
      backend.linear_backward_input(dx.data(), dy.data(), s.n, w.data(), s.m, s.n, s.k, false);
      backend.linear_backward_weight(dw.data(), db.data(), dy.data(), s.n, x.data(), s.m, s.n, s.k);
      const auto loss = [&](const auto& at_x, const auto& at_w, const auto& at_b) {
        double sum = 0;
        for (int64_t i = 0; i < s.m; ++i)
          for (int64_t l = 0; l < s.n; ++l) {
            double out = at_b[size_t(l)];
            for (int64_t j = 0; j < s.k; ++j) out += double(at_x[size_t(i * s.k + j)]) * at_w[size_t(l * s.k + j)];
            sum += out * dy[size_t(i * s.n + l)];
          }
        return sum;
      };
      const std::string where = describe(isa, s);
      check_gradient(
          dx.data(), x, [&](const auto& at) { return loss(at, w, b); }, 40, 3e-6, where + " dx");
      check_gradient(
          dw.data(), w, [&](const auto& at) { return loss(x, at, b); }, 40, 3e-6, where + " dw");
      check_gradient(
          db.data(), b, [&](const auto& at) { return loss(x, w, at); }, 40, 3e-6, where + " db");
    }
  });
}

// Bits do not depend on the number of threads; those of a row of dx not on the other rows.
DULTRA_TEST(linear_backward_does_not_depend_on_launch_shape) {
  for (const std::string& isa : isas())
    for (const Shape& s : std::vector<Shape>{{13, 100, 33}, {700, 129, 64}, {1100, 64, 200}, {40, 700, 100}}) {
      Random random{uint64_t(s.m)};
      const std::vector<float> dy = normals(random, size_t(s.m * s.n)), w = normals(random, size_t(s.n * s.k)),
                               x = normals(random, size_t(s.m * s.k));
      std::vector<float> first_dx, first_dw, first_db;
      for (int threads : {1, 2, 3, 8}) {
        const auto backend_owner = make_backend(threads, isa);
        Backend& backend = *backend_owner;
        std::vector<float> dx(x.size()), dw(w.size()), db(size_t(s.n)), alone(size_t(s.k));
        backend.linear_backward_input(dx.data(), dy.data(), s.n, w.data(), s.m, s.n, s.k, false);
        backend.linear_backward_weight(dw.data(), db.data(), dy.data(), s.n, x.data(), s.m, s.n, s.k);
        if (threads == 1) first_dx = dx, first_dw = dw, first_db = db;
        CHECK(same_bits(dx.data(), first_dx.data(), dx.size()), describe(isa, s), " dx with threads ", threads);
        CHECK(same_bits(dw.data(), first_dw.data(), dw.size()), describe(isa, s), " dw with threads ", threads);
        CHECK(same_bits(db.data(), first_db.data(), db.size()), describe(isa, s), " db with threads ", threads);
        for (int64_t i : {int64_t(0), s.m / 2, s.m - 1}) {
          backend.linear_backward_input(alone.data(), &dy[size_t(i * s.n)], s.n, w.data(), 1, s.n, s.k, false);
          CHECK(same_bits(alone.data(), &dx[size_t(i * s.k)], alone.size()), describe(isa, s), " row ", i);
        }
      }
    }
}

DULTRA_TEST(matrix_update_and_unpack) {
  for_each_arithmetic([](Backend& backend, const std::string& isa) {
    const bool bf16 = backend.compute() == Compute::kBF16;
    for (DType storage : {DType::kF32, DType::kBF16, DType::kF16}) {
      if (bf16 && storage != DType::kBF16) continue;
      for (int64_t k : {1, 5, 8, 64, 65, 200})
        for (int64_t n : {1, 15, 33, 64, 129}) {
          const std::string where = text(isa, " storage ", int(storage), " bf16 products ", bf16, " N ", n, " K ", k);
          Random random{uint64_t(n * k)};
          // Two parts, the second one of a row more than nothing.
          const int64_t last = n / 3;
          const auto parts = [&](const std::vector<float>& w) {
            return std::vector<MatrixPart>{{w.data(), DType::kF32, n - last},
                                           {w.data() + (n - last) * k, DType::kF32, last}};
          };
          const std::vector<float> before = normals(random, size_t(n * k)), after = normals(random, size_t(n * k)),
                                   x = normals(random, size_t(3 * k));
          const auto matrix = backend.make_matrix(parts(before), k, storage);
          backend.update_matrix(*matrix, parts(after));
          const auto fresh = backend.make_matrix(parts(after), k, storage);
          std::vector<float> out(size_t(3 * n)), expected(size_t(3 * n));
          backend.linear_forward(out.data(), n, x.data(), 3, *matrix, nullptr, false);
          backend.linear_forward(expected.data(), n, x.data(), 3, *fresh, nullptr, false);
          CHECK(same_bits(out.data(), expected.data(), out.size()), where);
          Guarded<float> rows = poisoned(size_t((n - last) * k));
          matrix->unpack(rows.data(), last, n - last);
          bool equal = rows.guards_intact();
          for (size_t i = 0; i < rows.size(); ++i) {
            const float w = after[size_t(last * k) + i];
            const float stored = storage == DType::kF32 ? w : bf16_to_f32(f32_to_bf16(w));
            equal = equal && (storage == DType::kF16 ? std::fabs(rows[i] - w) <= 0x1p-11f * std::fabs(w) + 0x1p-25f
                                                     : rows[i] == stored);
          }
          CHECK(equal, where, " unpacked");
        }
    }
    const std::vector<float> w(12, 1.0f);
    const auto matrix = backend.make_matrix({{w.data(), DType::kF32, 3}}, 4, bf16 ? DType::kBF16 : DType::kF32);
    std::vector<float> rows(16);
    for (const auto& wrong : std::vector<std::function<void()>>{
             [&] {
               backend.update_matrix(*matrix, {{w.data(), DType::kF32, 2}});
             },
             [&] { matrix->unpack(rows.data(), 2, 2); }, [&] { matrix->unpack(rows.data(), -1, 2); },
             [&] { backend.linear_backward_input(rows.data(), w.data(), 2, *matrix, 2, 2, 1, false); }}) {
      ErrorCode code = ErrorCode::kInternal;
      try {
        wrong();
      } catch (const Error& error) {
        code = error.code();
      }
      CHECK(code == ErrorCode::kInvalidArgument, isa);
    }
  });
}

}  // namespace
}  // namespace test
}  // namespace dultra
