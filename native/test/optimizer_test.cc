#include "harness.h"

namespace dultra {
namespace test {
namespace {

DULTRA_TEST(adamw_matches_double) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t n : {0, 1, 7, 16, 33, 5000, 70001}) {
      Random random{uint64_t(n)};
      const size_t size = size_t(n);
      const std::vector<float> start = normals(random, size);
      Guarded<float> parameter(size), exp_avg(size), exp_avg_sq(size);
      std::copy(start.begin(), start.end(), parameter.data());
      std::fill_n(exp_avg.data(), size, 0.0f);
      std::fill_n(exp_avg_sq.data(), size, 0.0f);
      std::vector<double> p(start.begin(), start.end()), m(size), v(size), size_m(size);
      for (int64_t step = 1; step <= 6; ++step) {
        // Gradients of all sizes, exact zeros too; a learning rate that changes and is 0 once.
        std::vector<float> gradient = normals(random, size);
        for (float& g : gradient) g *= std::pow(10.0f, float(random.below(7) - 5));
        if (n > 3) gradient[3] = 0;
        AdamWArgs a{};
        a.parameter = parameter.data();
        a.gradient = gradient.data();
        a.exp_avg = exp_avg.data();
        a.exp_avg_sq = exp_avg_sq.data();
        a.n = n;
        a.step = step;
        a.lr = step == 4 ? 0 : 0.01 / double(step);
        a.beta1 = 0.9;
        a.beta2 = 0.99;
        a.eps = 1e-8;
        a.weight_decay = 0.1;
        a.gradient_scale = step == 2 ? 0.25 : 1;
        backend.adamw_step(a);
        for (size_t i = 0; i < size; ++i) {
          const double g = gradient[i] * a.gradient_scale;
          p[i] -= a.lr * a.weight_decay * p[i];
          m[i] = a.beta1 * m[i] + (1 - a.beta1) * g;
          size_m[i] = a.beta1 * size_m[i] + (1 - a.beta1) * std::fabs(g);
          v[i] = a.beta2 * v[i] + (1 - a.beta2) * g * g;
          p[i] -= a.lr / (1 - std::pow(a.beta1, double(step))) * m[i] / (std::sqrt(v[i] / (1 - std::pow(a.beta2, double(step)))) + a.eps);
        }
      }
      const std::string where = text(isa, " n ", n);
      // Six steps of a few roundings each, of what was summed up and not of what is left of it.
      double worst = 0, worst_m = 0, worst_v = 0;
      for (size_t i = 0; i < size; ++i) {
        worst = std::max(worst, std::fabs(parameter[i] - p[i]) / (6e-8 + 4e-7 * std::max(std::fabs(p[i]), std::fabs(double(start[i])))));
        worst_m = std::max(worst_m, std::fabs(exp_avg[i] - m[i]) / (1e-12 + 5e-7 * size_m[i]));
        worst_v = std::max(worst_v, std::fabs(exp_avg_sq[i] - v[i]) / (1e-14 + 8e-7 * v[i]));
      }
      CHECK(worst <= 1 && worst_m <= 1 && worst_v <= 1, where, " errors ", worst, " ", worst_m, " ", worst_v);
      CHECK(parameter.guards_intact() && exp_avg.guards_intact() && exp_avg_sq.guards_intact(), where);
    }
    AdamWArgs a{};
    ErrorCode code = ErrorCode::kInternal;
    try {
      backend.adamw_step(a);  // step 0
    } catch (const Error& error) {
      code = error.code();
    }
    CHECK(code == ErrorCode::kInvalidArgument, isa);
  });
}

DULTRA_TEST(sum_squares_matches_double) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t n : {0, 1, 3, 31, 4096, 4097, 100003}) {
      Random random{uint64_t(n)};
      std::vector<float> x = normals(random, size_t(n), 3);
      if (n > 2) x[2] = 1e25f;  // its square is beyond fp32
      double expected = 0;
      for (float value : x) expected += double(value) * value;
      const double sum = backend.sum_squares(x.data(), n);
      CHECK(std::fabs(sum - expected) <= 1e-13 * expected, isa, " n ", n, " ", sum, " for ", expected);
      if (n == 0) continue;
      x[size_t(n - 1)] = NAN;
      CHECK(std::isnan(backend.sum_squares(x.data(), n)), isa, " n ", n, " NaN");
      x[size_t(n - 1)] = -INFINITY;
      CHECK(backend.sum_squares(x.data(), n) == INFINITY, isa, " n ", n, " infinity");
    }
    Guarded<float> zeros = poisoned(37);
    backend.fill_zero(zeros.data(), 37);
    for (size_t i = 0; i < 37; ++i) CHECK(zeros[i] == 0, isa);
    CHECK(zeros.guards_intact(), isa);
  });
}

DULTRA_TEST(optimizer_does_not_depend_on_threads) {
  for (const std::string& isa : isas()) {
    const int64_t n = 200003;
    Random random(5);
    const std::vector<float> start = normals(random, size_t(n)), gradient = normals(random, size_t(n));
    std::vector<float> first;
    double first_sum = 0;
    for (int threads : {1, 2, 3, 8}) {
      const auto backend_owner = make_backend(threads, isa);
      Backend& backend = *backend_owner;
      std::vector<float> parameter(start), exp_avg(size_t(n), 0.1f), exp_avg_sq(size_t(n), 0.2f);
      AdamWArgs a{};
      a.parameter = parameter.data();
      a.gradient = gradient.data();
      a.exp_avg = exp_avg.data();
      a.exp_avg_sq = exp_avg_sq.data();
      a.n = n;
      a.step = 3;
      a.lr = 0.01;
      a.beta1 = 0.9;
      a.beta2 = 0.99;
      a.eps = 1e-8;
      a.weight_decay = 0.1;
      a.gradient_scale = 0.7;
      backend.adamw_step(a);
      const double sum = backend.sum_squares(gradient.data(), n);
      if (threads == 1) first = parameter, first_sum = sum;
      CHECK(same_bits(parameter.data(), first.data(), size_t(n)) && sum == first_sum, isa, " ", threads, " threads");
    }
  }
}

}  // namespace
}  // namespace test
}  // namespace dultra
