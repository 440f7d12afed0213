// Quantised weights: what a block holds is tested by the recorded files (test/golden.test.ts); here is what is computed
// with it.
#include "ops/blocks.h"
#include "harness.h"

namespace dultra {
namespace test {
namespace {

constexpr int64_t kCols = 768;  // two blocks of k, of which the second is not full

std::vector<BlockType> types() {
  std::vector<BlockType> all;
  for (int i = 1; i < kBlockTypes; ++i) all.push_back(BlockType(i));
  return all;
}

// Rows of random blocks whose scales are of the size of weights.
std::vector<uint8_t> random_blocks(Random& random, BlockType type, int64_t rows, int64_t cols) {
  const BlockLayout& layout = block_layout(type);
  std::vector<uint8_t> bytes(size_t(rows * block_row_bytes(type, cols)));
  const std::vector<float> noise = normals(random, bytes.size());
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = uint8_t(int(noise[i] * 80));
  for (size_t block = 0; block < bytes.size(); block += size_t(layout.bytes))
    for (int at : layout.halves) {
      if (at < 0) continue;
      const uint16_t half = f32_to_f16(noise[block] * 0.01f);
      bytes[block + size_t(at)] = uint8_t(half & 255);
      bytes[block + size_t(at) + 1] = uint8_t(half >> 8);
    }
  return bytes;
}

struct Quantised {
  BlockType type;
  int64_t rows, heads;
  std::vector<uint8_t> bytes;
  std::vector<float> values;  // in the order of the matrix

  Quantised(Random& random, BlockType t, int64_t r, int64_t cols = kCols, int64_t h = 0)
      : type(t), rows(r), heads(h), bytes(random_blocks(random, t, r, cols)), values(size_t(r * cols)) {
    const int64_t row_bytes = block_row_bytes(type, cols);
    for (int64_t row = 0; row < rows; ++row)
      decode_blocks(&values[size_t(row * cols)], &bytes[size_t(stored_row(row, rows, heads) * row_bytes)], type,
                    cols / block_layout(type).values);
  }
  BlockPart part() const { return {bytes.data(), type, rows, heads, nullptr}; }
};

// Every type, one stacked with others whose rows are reordered: rows are no multiple of a panel.
std::vector<std::vector<Quantised>> matrices(Random& random) {
  std::vector<std::vector<Quantised>> all;
  for (BlockType type : types()) all.push_back({Quantised(random, type, 37)});
  std::vector<Quantised> stacked;
  stacked.emplace_back(random, BlockType::kQ4_K, 24, kCols, 2);
  stacked.emplace_back(random, BlockType::kQ6_K, 40);
  stacked.emplace_back(random, BlockType::kQ8_0, 12, kCols, 3);
  all.push_back(std::move(stacked));
  return all;
}

std::vector<BlockPart> parts_of(const std::vector<Quantised>& stacked) {
  std::vector<BlockPart> parts;
  for (const Quantised& one : stacked) parts.push_back(one.part());
  return parts;
}
std::vector<float> values_of(const std::vector<Quantised>& stacked) {
  std::vector<float> values;
  for (const Quantised& one : stacked) values.insert(values.end(), one.values.begin(), one.values.end());
  return values;
}

bool is_same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

}  // namespace

// Exact products are those with the numbers written out, to the last bit.
DULTRA_TEST(blocks_multiply_as_their_numbers) {
  for_each_arithmetic([](Backend& backend, const std::string& isa) {
    Random random{5};
    for (const std::vector<Quantised>& stacked : matrices(random)) {
      const auto held = backend.make_block_matrix(parts_of(stacked), kCols, 1, false);
      if (!held) return;  // a device has no such products
      const std::vector<float> values = values_of(stacked);
      const int64_t n = held->rows();
      const std::string where = isa + " " + block_layout(stacked[0].type).name;
      const DType storage = backend.compute() == Compute::kBF16 ? DType::kBF16 : DType::kF32;
      const auto plain = backend.make_matrix({{values.data(), DType::kF32, n}}, kCols, storage);
      std::vector<float> unpacked(size_t(5 * kCols));
      held->unpack(unpacked.data(), n - 6, 5);
      CHECK(std::memcmp(unpacked.data(), &values[size_t((n - 6) * kCols)], unpacked.size() * 4) == 0, where, "unpack");
      for (int64_t m : {1, 2, 14}) {
        const std::vector<float> x = normals(random, size_t(m * kCols)), bias = normals(random, size_t(n));
        std::vector<float> out(size_t(m * n), 0.5f), wanted = out;
        backend.linear_forward(out.data(), n, x.data(), m, *held, bias.data(), m == 2);
        backend.linear_forward(wanted.data(), n, x.data(), m, *plain, bias.data(), m == 2);
        CHECK(is_same(out, wanted), where, "forward, M ", m);
        std::vector<float> dx(size_t(m * kCols), 0.5f), wanted_dx = dx;
        backend.linear_backward_input(dx.data(), out.data() + 3, n, *held, 3, n - 5, m, true);
        const auto* rows = values.data() + 3 * kCols;
        if (backend.compute() == Compute::kF32) {
          backend.linear_backward_input(wanted_dx.data(), out.data() + 3, n, rows, m, n - 5, kCols, true);
          CHECK(is_same(dx, wanted_dx), where, "backward, M ", m);
        }
      }
      const std::vector<int32_t> ids{int32_t(n) - 1, 0, 3};
      std::vector<float> table(ids.size() * size_t(kCols));
      backend.table_rows_forward(table.data(), *held, ids.data(), int64_t(ids.size()));
      for (size_t i = 0; i < ids.size(); ++i)
        CHECK(std::memcmp(&table[i * size_t(kCols)], &values[size_t(ids[i]) * size_t(kCols)], size_t(kCols) * 4) == 0,
              where, "row ", ids[i]);
    }
  });
}

// With codes of activations: against the same codes in double arithmetic, and each row as if it were alone.
DULTRA_TEST(blocks_multiply_int8) {
  for_each_arithmetic([](Backend& backend, const std::string& isa) {
    if (backend.compute() != Compute::kF32) return;
    Random random{6};
    for (const std::vector<Quantised>& stacked : matrices(random)) {
      const auto held = backend.make_block_matrix(parts_of(stacked), kCols, 1, true);
      if (!held) return;
      const std::vector<float> values = values_of(stacked);
      const int64_t n = held->rows(), m = 14;
      const std::string where = isa + " " + block_layout(stacked[0].type).name;
      std::vector<float> x = normals(random, size_t(m * kCols)), rounded(x.size());
      std::fill(&x[32], &x[64], 0.0f);
      for (size_t group = 0; group < x.size(); group += 32) {
        float most = 0;
        for (size_t i = 0; i < 32; ++i) most = std::max(most, std::fabs(x[group + i]));
        for (size_t i = 0; i < 32; ++i)
          rounded[group + i] =
              most == 0 ? 0 : std::nearbyint(x[group + i] * (127.0f / most)) * (most * (1.0f / 127.0f));
      }
      std::vector<float> out(size_t(m * n)), alone(static_cast<size_t>(n));
      backend.linear_forward(out.data(), n, x.data(), m, *held, nullptr, false);
      double worst = 0;
      for (int64_t i = 0; i < m; ++i) {
        backend.linear_forward(alone.data(), n, &x[size_t(i * kCols)], 1, *held, nullptr, false);
        CHECK(std::memcmp(alone.data(), &out[size_t(i * n)], alone.size() * 4) == 0, where, "row ", i, " alone");
        for (int64_t j = 0; j < n; ++j) {
          double sum = 0, size = 1e-6;
          for (int64_t k = 0; k < kCols; ++k) {
            const double product = double(values[size_t(j * kCols + k)]) * double(rounded[size_t(i * kCols + k)]);
            sum += product;
            size += product * product;
          }
          // A code that lies between two may be rounded either way: one of them in 127 of the largest of 32.
          worst = std::max(worst, std::fabs(sum - double(out[size_t(i * n + j)])) / std::sqrt(size));
        }
      }
      CHECK(worst < 2e-3, where, "error ", worst);
      x[40] = std::nanf("");
      backend.linear_forward(out.data(), n, x.data(), 2, *held, nullptr, false);
      CHECK(std::isnan(out[0]) && !std::isnan(out[size_t(n)]), where, "NaN");
    }
  });
}

DULTRA_TEST(blocks_of_experts) {
  for_each_arithmetic([](Backend& backend, const std::string& isa) {
    if (backend.compute() != Compute::kF32) return;
    Random random{7};
    std::vector<Quantised> stacked;
    for (int e = 0; e < 3; ++e) {
      stacked.emplace_back(random, BlockType::kQ5_0, 20);
      stacked.emplace_back(random, BlockType::kQ4_1, 13);
    }
    const std::vector<float> values = values_of(stacked);
    for (bool int8 : {false, true}) {
      const auto held = backend.make_block_matrix(parts_of(stacked), kCols, 3, int8);
      if (!held) return;
      CHECK(held->experts() == 3 && held->expert_rows() == 33, isa);
      const std::vector<int32_t> row{1, 0, 1}, offset{0, 1, 1, 3};
      const ExpertRows rows{row.data(), offset.data(), 3, 3};
      const std::vector<float> x = normals(random, size_t(2 * kCols));
      std::vector<float> out(3 * 33), wanted(33);
      backend.experts_forward(out.data(), x.data(), false, rows, *held);
      for (int e : {0, 2}) {
        const auto one = backend.make_block_matrix({stacked[size_t(2 * e)].part(), stacked[size_t(2 * e + 1)].part()},
                                                   kCols, 1, int8);
        for (int32_t i = offset[size_t(e)]; i < offset[size_t(e + 1)]; ++i) {
          backend.linear_forward(wanted.data(), 33, &x[size_t(row[size_t(i)]) * size_t(kCols)], 1, *one, nullptr,
                                 false);
          CHECK(std::memcmp(wanted.data(), &out[size_t(i) * 33], 33 * 4) == 0, isa, " expert ", e, " pair ", i);
        }
      }
    }
  });
}

// A number lies within half a step of what it was, and the codes are as good as those of the plainest rule.
DULTRA_TEST(blocks_encode) {
  Random random{8};
  std::vector<float> x = normals(random, 32 * 400);
  for (size_t i = 0; i < 32; ++i) x[i] = 0;
  x[40] = -100;
  double total[3] = {};  // squared errors of random numbers
  for (BlockType type : {BlockType::kQ8_0, BlockType::kQ4_0, BlockType::kIQ4_NL}) {
    const BlockLayout& layout = block_layout(type);
    std::vector<uint8_t> bytes(x.size() / 32 * size_t(layout.bytes));
    encode_blocks(bytes.data(), x.data(), type, int64_t(x.size()));
    std::vector<float> back(x.size());
    decode_blocks(back.data(), bytes.data(), type, int64_t(x.size()) / 32);
    for (size_t group = 0; group < x.size(); group += 32) {
      float most = 0;
      double error = 0;
      for (size_t i = group; i < group + 32; ++i) most = std::max(most, std::fabs(x[i]));
      for (size_t i = group; i < group + 32; ++i) error += double(x[i] - back[i]) * double(x[i] - back[i]);
      const double step = double(most) / (type == BlockType::kQ8_0 ? 127 : 8);
      CHECK(error <= 32 * step * step * 0.26, layout.name, " group ", group, " error ", error);
      if (group > 32) total[type == BlockType::kQ8_0 ? 0 : type == BlockType::kQ4_0 ? 1 : 2] += error;
    }
    CHECK(first_bad_block(bytes.data(), type, 40) == -1, layout.name);
    bytes[size_t(layout.bytes) * 7 + 1] |= 0x7c;
    CHECK(first_bad_block(bytes.data(), type, 40) == 7, layout.name);
  }
  // Steps that are finer about zero suit weights better.
  CHECK(total[2] < 0.85 * total[1] && total[2] > total[0], "IQ4_NL ", total[2], ", Q4_0 ", total[1]);
}

}  // namespace test
}  // namespace dultra
