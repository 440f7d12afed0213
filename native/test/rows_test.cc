// Norms, rotary embedding, gates, embedding, gather.
#include <thread>

#include "harness.h"

namespace dultra {
namespace test {
namespace {

const std::vector<int64_t> kWidths{
    1,  3,   4,   8,   15,   16,   17,  31,
    64, 100, 129, 512, 1000, 4099, 4104};  // the widest: more than a block of a device keeps at hand

// Whether `body` throws INVALID_ARGUMENT.
template <class Body>
bool thrown_invalid(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.code() == ErrorCode::kInvalidArgument;
  }
  return false;
}

struct Affine {
  std::vector<float> mul, add;
  std::vector<int32_t> group;
  Affine(Random& random, int64_t m, int64_t c)
      : mul(normals(random, size_t(3 * c))), add(normals(random, size_t(3 * c))) {
    for (int64_t i = 0; i < m; ++i) group.push_back(int32_t(i % 3));
  }
};

// (M, C) layer norm in double.
std::vector<double> layernorm_reference(const std::vector<float>& x, const Affine& affine, bool grouped, int64_t m,
                                        int64_t c, double eps) {
  std::vector<double> out(x.size());
  for (int64_t i = 0; i < m; ++i) {
    double mean = 0, variance = 0;
    for (int64_t j = 0; j < c; ++j) mean += x[size_t(i * c + j)] / double(c);
    for (int64_t j = 0; j < c; ++j)
      variance += (x[size_t(i * c + j)] - mean) * (x[size_t(i * c + j)] - mean) / double(c);
    const int64_t g = grouped ? affine.group[size_t(i)] : 0;
    for (int64_t j = 0; j < c; ++j)
      out[size_t(i * c + j)] =
          (x[size_t(i * c + j)] - mean) / std::sqrt(variance + eps) * affine.mul[size_t(g * c + j)] +
          affine.add[size_t(g * c + j)];
  }
  return out;
}

DULTRA_TEST(rmsnorm_matches_double) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t c : kWidths)
      for (int64_t m : {0, 1, 3, 40}) {
        Random random(uint64_t(c * 100 + m));
        const std::vector<float> x = normals(random, size_t(m * c), 3), weight = normals(random, size_t(c));
        std::vector<double> expected(x.size());
        for (int64_t i = 0; i < m; ++i) {
          double squares = 0;
          for (int64_t j = 0; j < c; ++j) squares += double(x[size_t(i * c + j)]) * x[size_t(i * c + j)];
          for (int64_t j = 0; j < c; ++j)
            expected[size_t(i * c + j)] =
                x[size_t(i * c + j)] / std::sqrt(squares / double(c) + 1e-5) * weight[size_t(j)];
        }
        Guarded<float> out = poisoned(x.size());
        backend.rmsnorm_forward(out.data(), x.data(), weight.data(), m, c, 1e-5f);
        CHECK(worst_error(out.data(), expected.data(), expected.size(), 1e-7, 1e-6) <= 1 && out.guards_intact(), isa,
              " C ", c, " M ", m);
        if (m > 1) {
          std::vector<float> alone(static_cast<size_t>(c));
          backend.rmsnorm_forward(alone.data(), x.data() + (m - 1) * c, weight.data(), 1, c, 1e-5f);
          CHECK(same_bits(alone.data(), out.data() + (m - 1) * c, size_t(c)), isa, " C ", c);
        }
      }
  });
}

DULTRA_TEST(layernorm_and_planner_score_match_double, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t c : kWidths)
      for (int64_t m : {0, 1, 5, 40})
        for (bool grouped : {false, true}) {
          Random random(uint64_t(c * 100 + m));
          std::vector<float> x = normals(random, size_t(m * c), 3);
          for (float& value : x) value += 2;
          const Affine affine(random, m, c);
          const std::vector<float> weight = normals(random, size_t(c));
          const std::vector<double> expected = layernorm_reference(x, affine, grouped, m, c, 1e-4);
          const int32_t* group = grouped ? affine.group.data() : nullptr;
          Guarded<float> out = poisoned(x.size()), score = poisoned(size_t(m));
          backend.layernorm_forward(out.data(), x.data(), affine.mul.data(), affine.add.data(), group, m, c, 1e-4f);
          // C = 1: x - mean is 0 up to the rounding of the mean, and eps magnifies it 100 times.
          CHECK(worst_error(out.data(), expected.data(), expected.size(), 4e-6, 2e-6) <= 1 && out.guards_intact(), isa,
                " C ", c, " M ", m);
          backend.planner_score_forward(score.data(), x.data(), affine.mul.data(), affine.add.data(), group,
                                        weight.data(), 0.25f, m, c, 1e-4f);
          std::vector<double> expected_score(static_cast<size_t>(m), 0.25);
          double magnitude = 0.25;
          for (int64_t i = 0; i < m; ++i)
            for (int64_t j = 0; j < c; ++j) {
              expected_score[size_t(i)] += expected[size_t(i * c + j)] * weight[size_t(j)];
              magnitude += std::fabs(expected[size_t(i * c + j)] * weight[size_t(j)]) / double(m);
            }
          CHECK(worst_error(score.data(), expected_score.data(), size_t(m), 2e-6 * magnitude, 0) <= 1 &&
                    score.guards_intact(),
                isa, " C ", c, " M ", m);
        }
  });
}

DULTRA_TEST(head_norm_is_rmsnorm_of_heads, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int d : {1, 2, 8, 20, 32, 64, 100, 128, 256, 512})
      for (int heads : {1, 3}) {
        const std::string where = text(isa, " D ", d, " heads ", heads);
        const int64_t m = 5, width = heads * d, stride = width + 3;
        Random random{uint64_t(d)};
        const std::vector<float> x = normals(random, size_t(m * stride), 3), weight = normals(random, size_t(d));
        Guarded<float> out(x.size()), kept(size_t(m * width));
        std::copy(x.begin(), x.end(), out.data());
        backend.head_norm_forward(out.data(), stride, kept.data(), weight.data(), m, heads, d, 1e-5f);
        std::vector<double> expected(x.begin(), x.end());
        for (int64_t i = 0; i < m; ++i) {
          for (int h = 0; h < heads; ++h) {
            double* head = &expected[size_t(i * stride + h * d)];
            double squares = 0;
            for (int j = 0; j < d; ++j) squares += head[j] * head[j];
            for (int j = 0; j < d; ++j) head[j] *= double(weight[size_t(j)]) / std::sqrt(squares / d + 1e-5);
          }
          CHECK(same_bits(kept.data() + i * width, &x[size_t(i * stride)], size_t(width)), where, " kept");
        }
        CHECK(worst_error(out.data(), expected.data(), expected.size(), 1e-7, 1e-6) <= 1 && out.guards_intact() &&
                  kept.guards_intact(),
              where);
        // One row alone, and nothing kept: the same bits.
        std::vector<float> alone(x.begin() + stride, x.begin() + 2 * stride);
        backend.head_norm_forward(alone.data(), stride, nullptr, weight.data(), 1, heads, d, 1e-5f);
        CHECK(same_bits(alone.data(), out.data() + stride, alone.size()), where, " alone");
      }
    float x[1024] = {}, weight[1024] = {};
    CHECK(thrown_invalid([&] { backend.head_norm_forward(x, 1024, nullptr, weight, 1, 1, 1024, 1e-5f); }), isa,
          " wide");
    backend.head_norm_forward(x, 8, nullptr, weight, 0, 1, 8, 1e-5f);
  });
}

// What every scaling gives, in double: transformers' formulas.
double rope_frequency(const Rope& rope, int j) {
  const double frequency = std::pow(double(rope.theta), -2.0 * j / rope.dim);
  const double wavelength = 2 * M_PI / frequency;
  switch (rope.scaling) {
    case RopeScaling::kNone: return frequency;
    case RopeScaling::kLinear: return frequency / double(rope.factor);
    case RopeScaling::kLlama3: {
      const double low = double(rope.low_frequency), high = double(rope.high_frequency);
      const double smooth = (double(rope.original_positions) / wavelength - low) / (high - low);
      const double kept = std::min(1.0, std::max(0.0, smooth));
      return (1 - kept) * frequency / double(rope.factor) + kept * frequency;
    }
  }
  return 0;
}

DULTRA_TEST(rope_frequencies_match_double) {
  for (float theta : {10000.0f, 500000.0f})
    for (int dim : {2, 16, 64, 128}) {
      Rope linear{theta, dim, RopeScaling::kLinear, 4};
      Rope llama3{theta, dim, RopeScaling::kLlama3, 8, 1, 4, 8192};
      Rope llama32{theta, dim, RopeScaling::kLlama3, 32, 1, 4, 8192};
      for (const Rope& rope : {Rope{theta, dim}, linear, llama3, llama32}) {
        const std::vector<float> frequencies = rope_frequencies(rope);
        CHECK(int(frequencies.size()) == dim / 2, dim);
        for (int j = 0; j < dim / 2; ++j) {
          const double expected = rope_frequency(rope, j);
          CHECK(std::fabs(double(frequencies[size_t(j)]) - expected) <= 3e-6 * expected, "scaling ", int(rope.scaling),
                " dim ", dim, " pair ", j, " ", frequencies[size_t(j)], " ", expected);
        }
      }
    }
  CHECK(rope_frequencies(Rope{10000, 0}).empty(), "none");
}

DULTRA_TEST(rope_matches_double, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    struct Size {
      int head_dim, dim;
    };
    for (const auto& [d, dim] :
         {Size{2, 2}, Size{8, 8}, Size{12, 12}, Size{16, 16}, Size{32, 32}, Size{64, 64}, Size{80, 80}, Size{128, 128},
          Size{16, 8}, Size{24, 6}, Size{64, 32}, Size{128, 64}, Size{20, 2}, Size{12, 0}})
      for (const Rope& rope : {Rope{10000, dim}, Rope{500000, dim, RopeScaling::kLlama3, 8, 1, 4, 8192}})
        for (int heads : {1, 3, 40}) {  // 40 of 64: more than a block of a device turns
          if (heads == 40 && d != 64) continue;
          const std::string where = text(isa, " D ", d, " dim ", dim, " theta ", rope.theta, " heads ", heads);
          Random random{uint64_t(d)};
          const std::vector<int32_t> positions{0, 1, 2, 17, 300, 4095, 70000, 5, 5};
          const int64_t stride = heads * d + (heads == 1 ? 8 : 7);
          const std::vector<float> x = normals(random, positions.size() * size_t(stride));
          Guarded<float> out(x.size());
          std::copy(x.begin(), x.end(), out.data());
          backend.rope_forward(out.data(), stride, positions.data(), int64_t(positions.size()), heads, d, rope);
          std::vector<double> expected(x.begin(), x.end());
          const std::vector<float> frequencies = rope_frequencies(rope);
          for (size_t i = 0; i < positions.size(); ++i)
            for (int h = 0; h < heads; ++h)
              for (int j = 0; j < dim / 2; ++j) {
                // The angle is fp32 by contract.
                const float angle = float(positions[i]) * frequencies[size_t(j)];
                double* p = &expected[i * size_t(stride) + size_t(h * d + j)];
                const double a = p[0], b = p[dim / 2], c = std::cos(double(angle)), s = std::sin(double(angle));
                p[0] = a * c - b * s;
                p[dim / 2] = b * c + a * s;
              }
          CHECK(worst_error(out.data(), expected.data(), expected.size(), 1e-6, 0) <= 1 && out.guards_intact(), where);
          std::vector<float> alone(x.begin() + 4 * stride, x.begin() + 5 * stride);
          backend.rope_forward(alone.data(), stride, &positions[4], 1, heads, d, rope);
          CHECK(same_bits(alone.data(), out.data() + 4 * stride, alone.size()), where);
          // The rest of a head, and what lies between rows, keeps its bits.
          for (size_t i = 0; i < x.size(); ++i) {
            const size_t at = i % size_t(stride);
            if (at >= size_t(heads * d) || int(at) % d >= dim)
              CHECK(same_bits(&x[i], out.data() + i, 1), where, " number ", i);
          }
        }
    float x[4] = {};
    const int32_t position = 0;
    CHECK(thrown_invalid([&] {
            backend.rope_forward(x, 3, &position, 1, 1, 3, Rope{10000, 2});
          }),
          isa, " odd head size");
    CHECK(thrown_invalid([&] { backend.rope_forward(x, 4, &position, 1, 1, 4, Rope{10000, 3}); }), isa, " odd dim");
    CHECK(thrown_invalid([&] { backend.rope_forward(x, 4, &position, 1, 1, 4, Rope{10000, 6}); }), isa, " wide dim");
  });
}

// The table of angles is shared: many threads, growing positions.
DULTRA_TEST(rope_from_many_threads) {
  std::vector<std::thread> callers;
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t)
    callers.emplace_back([t, &wrong] {
      const auto backend_owner = make_backend(1, "");
      Backend& backend = *backend_owner;
      for (int round = 0; round < 20; ++round) {
        const int32_t position = 100 * round + t;
        std::vector<float> x{1, 0};
        const float theta = float(20000 + round % 6);
        backend.rope_forward(x.data(), 2, &position, 1, 1, 2, Rope{theta, 2});
        wrong[size_t(t)] += !(std::fabs(x[0] - std::cos(double(position))) < 1e-6 &&
                              std::fabs(x[1] - std::sin(double(position))) < 1e-6);
      }
    });
  for (std::thread& caller : callers) caller.join();
  for (int count : wrong) CHECK(count == 0, count);
}

DULTRA_TEST(gates_match_double) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t f : kWidths)
      for (int64_t m : {0, 1, 3, 20}) {
        Random random{uint64_t(f)};
        std::vector<float> gate_up = normals(random, size_t(2 * m * f), 4);
        if (m > 0) {
          gate_up[0] = -200;  // silu to -0, not NaN
          gate_up[size_t(f - 1)] = 200;
        }
        std::vector<double> expected(static_cast<size_t>(m * f)), silu(gate_up.size());
        for (size_t i = 0; i < gate_up.size(); ++i) silu[i] = gate_up[i] / (1 + std::exp(-double(gate_up[i])));
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < f; ++j)
            expected[size_t(i * f + j)] = silu[size_t(2 * i * f + j)] * gate_up[size_t((2 * i + 1) * f + j)];
        Guarded<float> out = poisoned(expected.size()), in_place(gate_up.size());
        backend.swiglu_forward(out.data(), gate_up.data(), m, f);
        CHECK(worst_error(out.data(), expected.data(), expected.size(), 1e-30, 5e-7) <= 1 && out.guards_intact(), isa,
              " F ", f, " M ", m);
        std::copy(gate_up.begin(), gate_up.end(), in_place.data());
        backend.silu_forward(in_place.data(), int64_t(gate_up.size()));
        CHECK(worst_error(in_place.data(), silu.data(), silu.size(), 1e-30, 5e-7) <= 1 && in_place.guards_intact(), isa,
              " n ", gate_up.size());
      }
    // Longer than one task, and NaN and infinity come through.
    Random random(9);
    std::vector<float> x = normals(random, 100003, 10);
    std::vector<double> expected(x.size());
    for (size_t i = 0; i < x.size(); ++i) expected[i] = x[i] / (1 + std::exp(-double(x[i])));
    backend.silu_forward(x.data(), int64_t(x.size()));
    CHECK(worst_error(x.data(), expected.data(), x.size(), 1e-30, 5e-7) <= 1, isa);
    std::vector<float> special{NAN, INFINITY, 90};  // on a device no array may lie on the stack
    backend.silu_forward(special.data(), 3);
    CHECK(std::isnan(special[0]) && special[1] == INFINITY && special[2] == 90, isa, " ", special[0], " ", special[1],
          " ", special[2]);
  });
}

DULTRA_TEST(embedding_and_gather) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t c : {1, 7, 64, 129, 4104}) {
      Random random{uint64_t(c)};
      const int64_t v = 50;
      std::vector<float> table = normals(random, size_t(v * c));
      std::vector<uint16_t> bf16(table.size()), f16(table.size());
      for (size_t i = 0; i < table.size(); ++i) {
        bf16[i] = f32_to_bf16(table[i]);
        f16[i] = uint16_t(random.bits());
        if ((f16[i] & 0x7c00) == 0x7c00) f16[i] ^= 0x4000;  // finite, subnormals included
      }
      const std::vector<int32_t> ids{0, 49, 7, 7, 13, 48, 1};
      const auto half = [](uint16_t bits) {  // by the definition of the format
        const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
        const double value = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
        return bits & 0x8000 ? -value : value;
      };
      for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
        Guarded<float> out = poisoned(ids.size() * size_t(c));
        const void* data = dtype == DType::kF32    ? static_cast<const void*>(table.data())
                           : dtype == DType::kBF16 ? bf16.data()
                                                   : f16.data();
        backend.embedding_forward(out.data(), data, dtype, ids.data(), int64_t(ids.size()), c);
        bool equal = out.guards_intact();
        for (size_t i = 0; i < ids.size(); ++i)
          for (int64_t j = 0; j < c; ++j) {
            const size_t from = size_t(ids[i] * c + j);
            const double expected = dtype == DType::kF32    ? table[from]
                                    : dtype == DType::kBF16 ? bf16_to_f32(bf16[from])
                                                            : half(f16[from]);
            equal = equal && double(out[i * size_t(c) + size_t(j)]) == expected;
          }
        CHECK(equal, isa, " dtype ", int(dtype), " C ", c);
      }
      Guarded<float> out = poisoned(ids.size() * size_t(c));
      backend.gather_rows(out.data(), table.data(), ids.data(), int64_t(ids.size()), c);
      for (size_t i = 0; i < ids.size(); ++i)
        CHECK(same_bits(out.data() + i * size_t(c), &table[size_t(ids[i] * c)], size_t(c)), isa, " row ", i);
      CHECK(out.guards_intact(), isa);
    }
  });
}

DULTRA_TEST(rows_store) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    Random random(9);
    const int64_t c = 37, all = 50;
    const std::vector<int32_t> index = {49, 3, 0, 17, 18};
    const std::vector<float> from = normals(random, index.size() * size_t(c));
    Guarded<float> wide = poisoned(size_t(all * c));
    backend.store_rows(wide.data(), DType::kF32, from.data(), index.data(), int64_t(index.size()), c);
    Guarded<float> by_default = poisoned(size_t(all * c));
    backend.Backend::store_rows(by_default.data(), DType::kF32, from.data(), index.data(), int64_t(index.size()), c);
    CHECK(same_bits(by_default.data(), wide.data(), wide.size()), isa, " as a backend without the operation");
    Guarded<uint16_t> narrow(size_t(all * c));
    const uint16_t untouched = narrow[0];
    backend.store_rows(narrow.data(), DType::kBF16, from.data(), index.data(), int64_t(index.size()), c);
    CHECK(wide.guards_intact() && narrow.guards_intact(), isa);
    std::vector<float> expected(size_t(all * c), std::numeric_limits<float>::quiet_NaN());
    for (size_t i = 0; i < index.size(); ++i) std::copy_n(&from[i * size_t(c)], c, &expected[size_t(index[i] * c)]);
    for (size_t i = 0; i < expected.size(); ++i) {
      CHECK(std::isnan(expected[i]) ? std::isnan(wide[i]) : wide[i] == expected[i], isa, " fp32 ", i);
      CHECK(narrow[i] == (std::isnan(expected[i]) ? untouched : f32_to_bf16(expected[i])), isa, " bf16 ", i);
    }
    bool refused = false;
    try {
      backend.store_rows(narrow.data(), DType::kF16, from.data(), index.data(), 1, c);
    } catch (const Error&) {
      refused = true;
    }
    CHECK(refused, isa, " fp16");
  });
}

// One operation for a norm and a copy, and for turning keys and storing them: the bits of the operations that it stands
// for.
DULTRA_TEST(rows_in_one_pass) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t c : {5, 64, 1030}) {
      Random random{uint64_t(c)};
      const std::vector<float> x = normals(random, size_t(9 * c)), weight = normals(random, size_t(c));
      const std::vector<int32_t> rows{8, 0, 3, 3, 5};
      for (bool indexed : {false, true}) {
        const int64_t m = indexed ? 5 : 9;
        Guarded<float> out = poisoned(size_t(m * c)), copied = poisoned(size_t(m * c));
        std::vector<float> expected(out.size()), expected_copy(out.size());
        backend.rmsnorm_copy_forward(out.data(), copied.data(), x.data(), indexed ? rows.data() : nullptr,
                                     weight.data(), m, c, 1e-5f);
        for (int64_t i = 0; i < m; ++i)
          std::copy_n(&x[size_t((indexed ? rows[size_t(i)] : i) * c)], c, &expected_copy[size_t(i * c)]);
        backend.rmsnorm_forward(expected.data(), expected_copy.data(), weight.data(), m, c, 1e-5f);
        CHECK(out.guards_intact() && same_bits(out.data(), expected.data(), out.size()), isa, " C ", c, " norm");
        CHECK(copied.guards_intact() && same_bits(copied.data(), expected_copy.data(), out.size()), isa, " C ", c,
              " copy");
      }
    }
    for (const auto& [d, dim] : {std::pair<int, int>{2, 2}, {10, 10}, {64, 64}, {64, 32}, {10, 4}, {16, 0}})
      for (DType dtype : {DType::kF32, DType::kBF16}) {
        const int heads = 3;
        const int64_t width = 2 * heads * d, all = 20;
        Random random{uint64_t(d)};
        const std::vector<int32_t> positions{0, 7, 300, 4095}, slots{17, 0, 3, 19};
        std::vector<float> kv = normals(random, size_t(4 * width)), turned = kv;
        Guarded<uint16_t> held(size_t(all * width * 2)), expected(held.size());  // bytes of either type
        backend.rope_forward(turned.data(), width, positions.data(), 4, heads, d, Rope{10000, dim});
        backend.store_rows(expected.data(), dtype, turned.data(), slots.data(), 4, width);
        backend.rope_store_forward({held.data(), dtype}, slots.data(), kv.data(), positions.data(), 4, heads, d,
                                   Rope{10000, dim});
        CHECK(held.guards_intact() && std::memcmp(held.data(), expected.data(), held.size() * 2) == 0, isa, " D ", d,
              " dim ", dim, " dtype ", int(dtype));
      }
  });
}

DULTRA_TEST(rows_do_not_depend_on_threads) {
  for (const std::string& isa : isas()) {
    Random random(11);
    const int64_t m = 300, c = 160;
    const std::vector<float> x = normals(random, size_t(m * c)), weight = normals(random, size_t(c));
    const Affine affine(random, m, c);
    std::vector<float> first[4];
    for (int threads : {1, 2, 3, 8}) {
      const auto backend_owner = make_backend(threads, isa);
      Backend& backend = *backend_owner;
      std::vector<float> out[4];
      for (auto& o : out) o.resize(x.size());
      backend.rmsnorm_forward(out[0].data(), x.data(), weight.data(), m, c, 1e-5f);
      backend.layernorm_forward(out[1].data(), x.data(), affine.mul.data(), affine.add.data(), affine.group.data(), m,
                                c, 1e-5f);
      backend.planner_score_forward(out[2].data(), x.data(), affine.mul.data(), affine.add.data(), affine.group.data(),
                                    weight.data(), 1, m, c, 1e-5f);
      out[3] = x;
      backend.silu_forward(out[3].data(), m * c);
      for (int i = 0; i < 4; ++i) {
        if (threads == 1) first[i] = out[i];
        CHECK(same_bits(out[i].data(), first[i].data(), out[i].size()), isa, " ", threads, " threads, op ", i);
      }
    }
  }
}

}  // namespace
}  // namespace test
}  // namespace dultra
