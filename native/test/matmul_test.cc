#include "harness.h"

namespace dultra {
namespace test {
namespace {

// x to the nearest number with `bits` mantissa bits (the leading one included) and no exponent below that of `least`,
// ties to even.
double round_to(double x, int bits, int least) {
  if (x == 0 || !std::isfinite(x)) return x;
  int exponent;
  std::frexp(x, &exponent);
  const double unit = std::ldexp(1, std::max(exponent - bits, least));
  return std::nearbyint(x / unit) * unit;
}
double round_to(double x, DType dtype) {
  return dtype == DType::kF32 ? double(float(x)) : dtype == DType::kBF16 ? round_to(x, 8, -133) : round_to(x, 11, -24);
}

// (rows, cols) numbers that `dtype` holds, as its bytes and as floats.
struct Stored {
  DType dtype;
  int64_t rows;
  std::vector<float> values;
  std::vector<uint8_t> bytes;

  Stored(Random& random, DType type, int64_t r, int64_t c)
      : dtype(type), rows(r), values(normals(random, size_t(r * c))) {
    bytes.resize(values.size() * dtype_size(type));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = float(round_to(values[i], type));
      if (type == DType::kF32) {
        std::memcpy(&bytes[i * 4], &values[i], 4);
      } else {
        uint16_t bits = 0;
        if (type == DType::kBF16) {
          bits = f32_to_bf16(values[i]);
        } else {
          while (bits < 0x7c00 && f16_to_f32(bits) < std::fabs(values[i]))
            bits = uint16_t(bits +
                            (bits + 64 < 0x7c00 && f16_to_f32(uint16_t(bits + 64)) <= std::fabs(values[i]) ? 64 : 1));
          if (values[i] < 0) bits |= 0x8000;
        }
        std::memcpy(&bytes[i * 2], &bits, 2);
      }
    }
  }
};

struct Kind {
  DType source, storage;
  Compute compute;
};
std::vector<Kind> kinds(Compute compute) {
  std::vector<Kind> all;
  for (DType source : {DType::kF32, DType::kBF16, DType::kF16})
    for (DType storage : {DType::kF32, DType::kBF16, DType::kF16})
      if (compute == Compute::kF32 || storage == DType::kBF16) all.push_back({source, storage, compute});
  return all;
}
std::string describe(const std::string& isa, const Kind& kind, int64_t m, int64_t k, int64_t n) {
  return text(isa, " source ", int(kind.source), " storage ", int(kind.storage), " compute ", int(kind.compute), " M ",
              m, " K ", k, " N ", n, " ");
}

// One product against double sums over the stored weights. The i-th of K additions rounds by up to u = 2^-24 of a
// partial sum of about sqrt(i) s, s the size of a product: rounding errors as good as independent add up to a standard
// deviation of u s K / sqrt(6), and with sqrt(K) s = sqrt(sum of squares) six of those are the bound below.
void check_product(Backend& backend, const std::string& isa, const Kind& kind, int64_t m, int64_t k, int64_t n,
                   bool bias, bool accumulate, int64_t gap) {
  Random random{uint64_t(m * 7919 + k * 31 + n)};
  const std::string where = describe(isa, kind, m, k, n);
  const Stored w(random, kind.source, n, k);
  const auto matrix = backend.make_matrix({{w.bytes.data(), w.dtype, n}}, k, kind.storage);
  CHECK(matrix->rows() == n && matrix->cols() == k && matrix->bytes() >= size_t(n * k) * dtype_size(kind.storage),
        where);
  const std::vector<float> x = normals(random, size_t(m * k)), b = normals(random, size_t(n)),
                           old = normals(random, size_t(m * n));
  const int64_t stride = n + gap;
  Guarded<float> out = poisoned(size_t(m * stride));
  if (accumulate)
    for (int64_t i = 0; i < m; ++i) std::copy(&old[size_t(i * n)], &old[size_t(i * n)] + n, &out[size_t(i * stride)]);
  backend.linear_forward(out.data(), stride, x.data(), m, *matrix, bias ? b.data() : nullptr, accumulate);
  bool good = out.guards_intact(), gaps = true;
  double worst = 0;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = (bias ? double(b[size_t(j)]) : 0) + (accumulate ? double(old[size_t(i * n + j)]) : 0), squares = 1;
      for (int64_t l = 0; l < k; ++l) {
        const double weight = round_to(double(w.values[size_t(j * k + l)]), kind.storage);
        const double value = kind.compute == Compute::kBF16 ? round_to(double(x[size_t(i * k + l)]), DType::kBF16)
                                                            : double(x[size_t(i * k + l)]);
        sum += weight * value;
        squares += weight * value * weight * value;
      }
      const double error = std::fabs(double(out[size_t(i * stride + j)]) - sum) /
                           (6e-8 * std::sqrt(squares) * (6 + 2.5 * std::sqrt(double(k))));
      if (!(error <= worst)) worst = std::isnan(error) ? 1e30 : error;
    }
    for (int64_t j = n; j < stride; ++j) gaps = gaps && std::isnan(out[size_t(i * stride + j)]);
  }
  CHECK(good && gaps, where, "wrote outside");
  CHECK(worst <= 1, where, "bias ", bias, " accumulate ", accumulate, " error ", worst);
}

DULTRA_TEST(matmul_matches_double) {
  for_each_arithmetic([](Backend& backend, const std::string& isa) {
    for (const Kind& kind : kinds(backend.compute())) {
      for (int64_t k : {1, 7, 64, 513})
        for (int64_t n : {1, 31, 33}) {
          for (int64_t m : {0, 1, 2, 13}) check_product(backend, isa, kind, m, k, n, (m + n) % 2, (m + k) % 2, m % 3);
          if (k == 64) check_product(backend, isa, kind, 65, k, n, true, true, 5);
        }
      check_product(backend, isa, kind, 2, 1030, 200, true, false, 1);
      check_product(backend, isa, kind, 65, 130, 200, false, true, 0);
    }
    if (backend.compute() != Compute::kF32) return;
    // Several blocks of k, and products large enough to be cut into tasks.
    check_product(backend, isa, {DType::kF32, DType::kF32, Compute::kF32}, 30, 1030, 200, true, true, 3);
    check_product(backend, isa, {DType::kF32, DType::kF32, Compute::kF32}, 200, 64, 600, true, false, 0);
  });
}

DULTRA_TEST(matmul_stacks_parts, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    Random random(4);
    const int64_t k = 70;
    const Stored a(random, DType::kF32, 19, k), b(random, DType::kBF16, 1, k), c(random, DType::kF16, 45, k);
    std::vector<float> joined;
    for (const Stored* part : {&a, &b, &c}) joined.insert(joined.end(), part->values.begin(), part->values.end());
    const auto stacked = backend.make_matrix(
        {{a.bytes.data(), a.dtype, 19}, {b.bytes.data(), b.dtype, 1}, {c.bytes.data(), c.dtype, 45}}, k, DType::kF32);
    const auto whole = backend.make_matrix({{joined.data(), DType::kF32, 65}}, k, DType::kF32);
    const std::vector<float> x = normals(random, size_t(3 * k));
    std::vector<float> out(3 * 65), expected(3 * 65);
    backend.linear_forward(out.data(), 65, x.data(), 3, *stacked, nullptr, false);
    backend.linear_forward(expected.data(), 65, x.data(), 3, *whole, nullptr, false);
    CHECK(same_bits(out.data(), expected.data(), out.size()), isa);
  });
}

// A row's bits depend neither on the rows beside it nor on the number of threads.
DULTRA_TEST(matmul_rows_are_independent) {
  for (const std::string& isa : isas())
    for (Compute compute : arithmetics(isa)) {
      std::unique_ptr<Backend> backends[3];
      for (int i = 0; i < 3; ++i) backends[i] = make_backend(i + 1, isa, compute);
      for (const Kind& kind : kinds(compute)) {
        if (kind.source != DType::kF32) continue;
        for (int64_t k : {33, 700})
          for (int64_t m : {2, 13, 65, 260}) {
            Random random{uint64_t(m + k)};
            const int64_t n = 100;
            const std::vector<float> w = normals(random, size_t(n * k)), x = normals(random, size_t(m * k)),
                                     b = normals(random, size_t(n));
            const std::string where = describe(isa, kind, m, k, n);
            std::vector<float> first;
            for (const std::unique_ptr<Backend>& backend : backends) {
              const auto matrix = backend->make_matrix({{w.data(), DType::kF32, n}}, k, kind.storage);
              std::vector<float> out(size_t(m * n)), alone(static_cast<size_t>(n));
              backend->linear_forward(out.data(), n, x.data(), m, *matrix, b.data(), false);
              if (first.empty()) first = out;
              CHECK(same_bits(out.data(), first.data(), out.size()), where, "threads");
              for (int64_t i : {int64_t(0), m / 2, m - 1}) {
                backend->linear_forward(alone.data(), n, x.data() + i * k, 1, *matrix, b.data(), false);
                CHECK(same_bits(alone.data(), &out[size_t(i * n)], size_t(n)), where, "row ", i);
              }
              std::vector<float> some(size_t(2 * n));
              backend->linear_forward(some.data(), n, x.data() + (m - 2) * k, 2, *matrix, b.data(), false);
              CHECK(same_bits(some.data(), &out[size_t((m - 2) * n)], some.size()), where, "two rows");
            }
          }
      }
    }
}

// A matrix that is stored in fp32 multiplies in fp32, whatever the others multiply in.
DULTRA_TEST(matmul_by_fp32_matrices_is_fp32) {
  for_each_arithmetic([](Backend& backend, const std::string& isa) {
    check_product(backend, isa, {DType::kF32, DType::kF32, Compute::kF32}, 5, 130, 33, true, false, 2);
    check_product(backend, isa, {DType::kBF16, DType::kF32, Compute::kF32}, 65, 64, 31, false, true, 0);
  });
}

DULTRA_TEST(matmul_refuses_bad_arguments) {
  for_each_arithmetic([](Backend& backend, const std::string& isa) {
    if (backend.compute() != Compute::kBF16) return;
    const std::vector<float> w(12, 1.0f);
    ErrorCode code = ErrorCode::kInternal;
    try {
      backend.make_matrix({{w.data(), DType::kF32, 3}}, 4, DType::kF16);
    } catch (const Error& error) {
      code = error.code();
    }
    CHECK(code == ErrorCode::kInvalidArgument, isa);
  });
}

}  // namespace
}  // namespace test
}  // namespace dultra
