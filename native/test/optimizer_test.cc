#include "harness.h"
#include "ops/adamw.h"
#include "ops/fixed_point.h"

namespace dultra {
namespace test {
namespace {

DULTRA_TEST(adamw_matches_double, small) {
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
          p[i] -= a.lr / (1 - std::pow(a.beta1, double(step))) * m[i] /
                  (std::sqrt(v[i] / (1 - std::pow(a.beta2, double(step)))) + a.eps);
        }
      }
      const std::string where = text(isa, " n ", n);
      // Six steps of a few roundings each, of what was summed up and not of what is left of it.
      double worst = 0, worst_m = 0, worst_v = 0;
      for (size_t i = 0; i < size; ++i) {
        worst = std::max(worst, std::fabs(parameter[i] - p[i]) /
                                    (6e-8 + 4e-7 * std::max(std::fabs(p[i]), std::fabs(double(start[i])))));
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

// A step's state, stored in whatever way, that starts from given numbers.
struct AdamWState {
  bool split;
  DType moments;
  std::vector<float> parameter, exp_avg, exp_avg_sq;
  std::vector<uint16_t> high, exp_avg16, exp_avg_sq16;
  std::vector<int16_t> low;

  AdamWState(const std::vector<float>& start, bool is_split, DType type)
      : split(is_split), moments(type), parameter(start) {
    const size_t n = start.size();
    exp_avg.assign(n, 0), exp_avg_sq.assign(n, 0), exp_avg16.assign(n, 0), exp_avg_sq16.assign(n, 0);
    for (float x : start) high.push_back(split_float(x).high), low.push_back(split_float(x).low);
  }
  // Numbers [first, first + n) of parameter `stream`.
  AdamWArgs args(const std::vector<float>& gradient, int64_t step, int64_t first, int64_t n) {
    AdamWArgs a{};
    a.parameter = split ? nullptr : parameter.data() + first;
    a.high = high.data() + first;
    a.low = low.data() + first;
    a.gradient = gradient.data() + first;
    a.exp_avg = moments == DType::kF32 ? static_cast<void*>(exp_avg.data() + first) : exp_avg16.data() + first;
    a.exp_avg_sq = moments == DType::kF32 ? static_cast<void*>(exp_avg_sq.data() + first) : exp_avg_sq16.data() + first;
    a.moments = moments;
    a.seed = 77;
    a.stream = 3;
    a.first = first;
    a.n = n;
    a.step = step;
    a.lr = 0.01 / double(step);
    a.beta1 = 0.9;
    a.beta2 = 0.99;
    a.eps = 1e-8;
    a.weight_decay = 0.1;
    a.gradient_scale = step == 2 ? 0.25 : 1;
    return a;
  }
  std::vector<float> master() const {
    if (!split) return parameter;
    std::vector<float> out;
    for (size_t i = 0; i < high.size(); ++i) out.push_back(join_float(high[i], low[i]));
    return out;
  }
  bool operator==(const AdamWState& other) const {
    return same_bits(master().data(), other.master().data(), parameter.size()) &&
           same_bits(exp_avg.data(), other.exp_avg.data(), exp_avg.size()) &&
           same_bits(exp_avg_sq.data(), other.exp_avg_sq.data(), exp_avg_sq.size()) && exp_avg16 == other.exp_avg16 &&
           exp_avg_sq16 == other.exp_avg_sq16;
  }
};

DULTRA_TEST(split_float_gives_every_number_back) {
  int64_t lost = 0, far = 0, ties = 0;
  for (uint32_t high = 0; high < 65536; ++high)
    for (uint32_t low : {0x0000u, 0x0001u, 0x1234u, 0x7fffu, 0x8000u, 0x8001u, 0xabcdu, 0xffffu}) {
      const uint32_t bits = high << 16 | low;
      float x;
      std::memcpy(&x, &bits, 4);
      const SplitFloat split = split_float(x);
      const float back = join_float(split.high, split.low);
      if (std::isnan(x)) {
        lost += !std::isnan(back) || !std::isnan(bf16_to_f32(split.high));
      } else {
        lost += !same_bits(&back, &x, 1);
        // The nearest bf16 number: what f32_to_bf16 gives, but for ties.
        if (low == 0x8000u)
          ties += split.high != uint16_t(high + 1);
        else
          far += split.high != f32_to_bf16(x);
      }
    }
  CHECK(lost == 0 && far == 0 && ties == 0, lost, " lost, ", far, " not rounded to nearest, ", ties,
        " ties not away from 0");
}

// However the state is stored, arithmetic is that of fp32; cut into pieces anywhere, the same numbers are drawn.
DULTRA_TEST(adamw_split_and_bf16_moments, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t n : {1, 6, 33, 1031, 9000}) {
      Random random{uint64_t(n)};
      std::vector<float> start = normals(random, size_t(n), 0.02);
      for (float& x : start) x = bf16_to_f32(f32_to_bf16(x));  // as a checkpoint gives them
      for (DType moments : {DType::kF32, DType::kBF16}) {
        const std::string where = text(isa, " n ", n, moments == DType::kF32 ? " fp32" : " bf16", " moments");
        AdamWState whole(start, false, moments), split(start, true, moments), pieces(start, true, moments),
            nearest(start, false, DType::kF32);
        for (int64_t step = 1; step <= 5; ++step) {
          std::vector<float> gradient = normals(random, size_t(n));
          for (float& g : gradient) g *= std::pow(10.0f, float(random.below(7) - 5));
          backend.adamw_step(whole.args(gradient, step, 0, n));
          backend.adamw_step(split.args(gradient, step, 0, n));
          for (int64_t first = 0, size = 1; first < n; first += size, size = 3 * size + 1) {
            size = std::min(size, n - first);
            backend.adamw_step(pieces.args(gradient, step, first, size));
          }
          backend.adamw_step(nearest.args(gradient, step, 0, n));
        }
        CHECK(same_bits(split.master().data(), whole.parameter.data(), size_t(n)), where,
              ": a split master is not the fp32 one");
        CHECK(split.exp_avg16 == whole.exp_avg16 && split.exp_avg_sq16 == whole.exp_avg_sq16, where,
              ": moments beside a split master");
        CHECK(pieces == split, where, ": in pieces");
        CHECK(!same_bits(split.master().data(), start.data(), size_t(n)), where, ": nothing moved");
        if (moments == DType::kF32) CHECK(whole == nearest, where);
        // bf16 moments stay near the fp32 ones: five roundings of at most 2^-7.
        double worst = 0;
        for (size_t i = 0; moments == DType::kBF16 && i < size_t(n); ++i)
          worst = std::max(worst, std::fabs(bf16_to_f32(whole.exp_avg_sq16[i]) / double(nearest.exp_avg_sq[i]) - 1));
        CHECK(worst < 5.0 / 128, where, ": second moments differ by ", worst);
      }
    }
  });
}

// One step from zeros: what is stored is one of the two neighbours, and on average the number itself, for either
// moment; nothing hangs together with its neighbours, with the other moment, or with the next step.
DULTRA_TEST(adamw_bf16_moments_are_unbiased, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    const int64_t n = kEmulated ? 40000 : 400000;
    const double sigma = 1 / std::sqrt(double(n));
    for (float value : {1.7f, -0.0123f, 1e-20f}) {
      std::vector<std::vector<double>> ups[2];  // whether each element was rounded up, less the expected share
      for (int64_t step : {1, 2}) {
        AdamWState state(std::vector<float>(size_t(n), 0.5f), true, DType::kBF16);
        backend.adamw_step(state.args(std::vector<float>(size_t(n), value), step, 0, n));
        const float g = value * float(step == 2 ? 0.25 : 1);
        const float exact[2] = {g * float(1 - 0.9), g * g * float(1 - 0.99)};
        for (int which = 0; which < 2; ++which) {
          const std::vector<uint16_t>& stored = which ? state.exp_avg_sq16 : state.exp_avg16;
          uint32_t bits;
          std::memcpy(&bits, &exact[which], 4);
          const double share = (bits & 0xffffu) / 65536.0;
          const uint16_t down = uint16_t(bits >> 16);
          std::vector<double> up;
          int64_t elsewhere = 0;
          double sum = 0;
          for (uint16_t x : stored) {
            elsewhere += x != down && x != down + 1;
            up.push_back((x != down) - share);
            sum += up.back();
          }
          const double spread = std::sqrt(share * (1 - share));
          const std::string where = text(isa, " value ", value, " step ", step, " moment ", which);
          CHECK(elsewhere == 0, where, ": ", elsewhere, " not next to ", exact[which]);
          CHECK(std::fabs(sum / double(n)) < 4.5 * spread * sigma, where, ": off by ", sum / double(n),
                " of a bf16 step");
          for (double& x : up) x /= std::max(spread, 1e-9);
          ups[which].push_back(up);
        }
      }
      const auto correlation = [&](const std::vector<double>& a, const std::vector<double>& b, size_t shift) {
        double sum = 0;
        for (size_t i = 0; i + shift < a.size(); ++i) sum += a[i] * b[i + shift];
        return std::fabs(sum / double(a.size()));
      };
      for (size_t shift : {1, 2, 4, 64})
        for (const auto& moment : ups)
          CHECK(correlation(moment[0], moment[0], shift) < 4.5 * sigma, isa, " value ", value, " neighbours ", shift);
      CHECK(correlation(ups[0][0], ups[1][0], 0) < 4.5 * sigma, isa, " value ", value, ": the two moments");
      for (const auto& moment : ups)
        CHECK(correlation(moment[0], moment[1], 0) < 4.5 * sigma, isa, " value ", value, ": two steps");
    }
  });
}

// A number that its own update could not move in bf16 (half a step is more than 1 %) stays on average where it belongs.
DULTRA_TEST(adamw_bf16_second_moment_follows, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    const int64_t n = 512;
    AdamWState state(std::vector<float>(size_t(n), 0.5f), false, DType::kBF16);
    std::vector<float> gradient(size_t(n), 1.0f);
    double expected = 0;
    for (int64_t step = 1; step <= 250; ++step) {
      std::fill(gradient.begin(), gradient.end(), step < 150 ? 1.0f : 0.98f);
      const AdamWArgs a = state.args(gradient, step, 0, n);
      backend.adamw_step(a);
      const double g = gradient[0] * a.gradient_scale;
      expected = 0.99 * expected + 0.01 * g * g;
    }
    double mean = 0;
    for (uint16_t v : state.exp_avg_sq16) mean += bf16_to_f32(v) / double(n);
    CHECK(std::fabs(mean / expected - 1) < 2e-3, isa, ": ", mean, " for ", expected);
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

// Integers, and so the same on every backend and in any order.
DULTRA_TEST(fixed_point_sums_are_exact, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t n : {0, 1, 31, 257, 8193, 20000}) {
      const size_t size = size_t(n);
      Random random{uint64_t(n)};
      std::vector<std::vector<float>> addends;
      for (int i = 0; i < 3; ++i) addends.push_back(normals(random, size, i == 1 ? 300 : 1e-3));
      if (n > 30) {
        addends[0][7] = 4096;
        addends[1][7] = -addends[0][7];
        addends[0][8] = 1.5f * 0x1p-50f;  // ties go to the even unit
        addends[0][9] = -2.5f * 0x1p-50f;
        addends[0][10] = 1e-30f;
        for (size_t i : {8, 9, 10}) addends[1][i] = addends[2][i] = 0;
      }
      Guarded<float> largest(1);
      const auto add = [&](std::vector<int> order, Guarded<int64_t>& sum) {
        std::fill_n(sum.data(), size, 0);
        largest[0] = 0;
        float most = 0;
        for (int i : order) {
          for (float x : addends[size_t(i)]) most = std::max(most, std::fabs(x));
          backend.add_fixed(sum.data(), largest.data(), addends[size_t(i)].data(), n);
          CHECK(largest[0] == most, isa, " n ", n, ": largest ", largest[0], " for ", most);
        }
      };
      Guarded<int64_t> sum(size), reversed(size);
      add({0, 1, 2}, sum);
      add({2, 1, 0}, reversed);
      Guarded<float> x = poisoned(size);
      backend.read_fixed(x.data(), sum.data(), n);
      int64_t wrong = 0, apart = 0, misread = 0;
      for (size_t i = 0; i < size; ++i) {
        int64_t units = 0;
        for (const auto& addend : addends) units += int64_t(std::nearbyint(double(addend[i]) * 0x1p50));
        wrong += sum[i] != units;
        apart += sum[i] != reversed[i];
        misread += x[i] != float(double(units) * 0x1p-50);
      }
      CHECK(wrong == 0 && apart == 0 && misread == 0, isa, " n ", n, ": ", wrong, " wrong, ", apart,
            " not the same in another order, ", misread, " read otherwise");
      CHECK(sum.guards_intact() && x.guards_intact(), isa, " n ", n);
      if (n < 31) continue;
      CHECK(sum[8] == 2 && sum[9] == -2 && sum[10] == 0, isa, " n ", n, ": ties ", sum[8], " ", sum[9]);
      // What cannot be added is told, and left out, wherever it is.
      for (size_t at : {size_t(0), size - 1}) {
        for (float beyond : {4096.5f, -INFINITY, NAN}) {
          std::vector<float> bad(size, 1);
          bad[at] = beyond;
          std::fill_n(sum.data(), size, 5);
          for (int again = 0; again < 2; ++again) {
            // Once there, it stays.
            if (again == 0) largest[0] = 0;
            if (again == 1) bad[at] = 0;
            backend.add_fixed(sum.data(), largest.data(), bad.data(), n);
            const float most = largest[0];
            CHECK(std::isnan(beyond) ? std::isnan(most) : most == std::fabs(beyond), isa, " n ", n, " ", most);
          }
          CHECK(sum[at] == 5 && sum[1] == 5 + (int64_t(1) << 51), isa, " n ", n, " ", sum[at]);
          CHECK(largest.guards_intact(), isa, " n ", n);
        }
      }
    }
  });
}

DULTRA_TEST(sums_are_added_to_sums, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t n : {0, 1, 255, 8193, 20000}) {
      const size_t size = size_t(n);
      Random random{uint64_t(n)};
      const std::vector<float> x = normals(random, size), y = normals(random, size);
      std::vector<int64_t> units(size);
      for (int64_t& unit : units) unit = int64_t(random.bits());
      Guarded<float> sum(size);
      Guarded<int64_t> sums(size);
      for (size_t i = 0; i < size; ++i) sum[i] = y[i], sums[i] = int64_t(i) - 7;
      backend.add_numbers(sum.data(), x.data(), n);
      backend.add_fixed_sums(sums.data(), units.data(), n);
      int64_t wrong = 0;
      for (size_t i = 0; i < size; ++i)
        wrong += sum[i] != y[i] + x[i] || sums[i] != int64_t(uint64_t(units[i]) + uint64_t(int64_t(i) - 7));
      CHECK(wrong == 0, isa, " n ", n, ": ", wrong, " wrong");
      CHECK(sum.guards_intact() && sums.guards_intact(), isa, " n ", n);
    }
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
