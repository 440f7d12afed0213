// What the CUDA backend has beside the CPU backend: bf16 on tensor cores, against the CPU backend in fp32 on operands
// rounded to bf16, and device memory. Each kernel's test is one check(shape, mask, seed).
#if defined(DULTRA_EMULATOR) || defined(DULTRA_GPU)
#include <algorithm>
#include <numeric>

#include "backends/cpu/cpu_backend.h"
#include "backends/cuda/cuda_backend.h"
#ifdef DULTRA_EMULATOR
#include "emulator/emulator.h"
#endif
#include "harness.h"

namespace dultra {
namespace test {
namespace {

std::vector<float> bf16_normals(Random& random, size_t n, double scale = 1) {
  std::vector<float> out = normals(random, n, scale);
  for (float& x : out) x = bf16_to_f32(f32_to_bf16(x));
  return out;
}

// |a - b| / |b|, Frobenius.
double relative_error(const float* a, const float* b, size_t n) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < n; ++i) {
    difference += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
    size += double(b[i]) * b[i];
  }
  const double error = std::sqrt(difference / std::max(size, 1e-30));
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

// A backend that computes in bf16. The emulator's device has wgmma or has not; a GPU is what
// it is.
std::unique_ptr<Backend> bf16_backend(int schedule, bool warpgroups = true) {
#ifdef DULTRA_EMULATOR
  emulator::set_warpgroups(warpgroups);
#else
  (void)warpgroups;
#endif
  auto backend = make_backend(schedule, "", Compute::kBF16);
#ifdef DULTRA_EMULATOR
  emulator::set_warpgroups(true);
#endif
  return backend;
}

// How many schedules of the emulator a test goes through (on a GPU, how many times it runs). Sanitizers see the same
// accesses between the same barriers in each of them, but for those of wgmma: it reads its operands when it is issued
// in the first, when it is waited for in the second.
#ifdef DULTRA_SANITIZED
constexpr int kSchedules = 1, kWgmmaSchedules = 2;
#else
constexpr int kSchedules = 3, kWgmmaSchedules = 3;
#endif

// Multiprocessors of the device, at most: fewer blocks than it has take smaller tiles, and attention splits keys.
#ifdef DULTRA_EMULATOR
constexpr int kMultiprocessors = 4;
#else
constexpr int kMultiprocessors = 160;
#endif

// Kinds of products that attention is tested with: by wgmma and by mma.sync where both can be had.
#ifdef DULTRA_EMULATOR
constexpr int kProducts = 2;
#else
constexpr int kProducts = 1;
#endif

struct Shape {
  std::vector<int> lengths;
  int heads, kv_heads, head_dim;
  int every;  // queries: every so many positions
  bool ranges;
};

struct Problem {
  Shape shape;
  MaskKind mask;
  std::vector<int32_t> q_offsets{0}, k_offsets{0}, positions, first_block, key_begin, key_end;
  std::vector<float> q, kv, dout;

  Problem(const Shape& s, MaskKind m, uint64_t seed) : shape(s), mask(m) {
    Random random(seed);
    for (int length : s.lengths) {
      for (int i = 0; i < length; i += s.every) positions.push_back(i);
      q_offsets.push_back(int32_t(positions.size()));
      k_offsets.push_back(k_offsets.back() + length);
      first_block.push_back(1 + int32_t(q_offsets.size()) * 5 % 24);
      key_begin.push_back(length / 5);
      key_end.push_back(length - length / 7);
    }
    q = bf16_normals(random, positions.size() * size_t(s.heads * s.head_dim));
    dout = bf16_normals(random, q.size());
    kv = bf16_normals(random, size_t(k_offsets.back() * 2 * s.kv_heads * s.head_dim));
  }
  int64_t kv_width() const { return int64_t(shape.kv_heads) * shape.head_dim; }
  AttentionArgs args(float* out, float* log_sum) const {
    AttentionArgs a{};
    a.q = q.data();
    a.k = kv.data();
    a.v = kv.data() + kv_width();
    a.out = out;
    a.log_sum = log_sum;
    a.q_stride = a.out_stride = int64_t(shape.heads) * shape.head_dim;
    a.kv_stride = 2 * kv_width();
    a.heads = shape.heads;
    a.kv_heads = shape.kv_heads;
    a.head_dim = shape.head_dim;
    a.scale = 1 / std::sqrt(float(shape.head_dim));
    a.batch = int(shape.lengths.size());
    a.q_offsets = q_offsets.data();
    a.k_offsets = k_offsets.data();
    a.q_positions = positions.data();
    a.mask = mask;
    a.block = 24;
    if (shape.ranges) {
      a.first_block = first_block.data();
      a.key_begin = key_begin.data();
      a.key_end = key_end.data();
    }
    return a;
  }
};

struct Gradients {
  Guarded<float> out, log_sum, dq, dkv;
  explicit Gradients(const Problem& p)
      : out(poisoned(p.q.size())),
        log_sum(poisoned(p.positions.size() * size_t(p.shape.heads))),
        dq(poisoned(p.q.size())),
        dkv(poisoned(p.kv.size())) {}
  void run(Backend& backend, const Problem& p) {
    const AttentionArgs a = p.args(out.data(), log_sum.data());
    backend.attention_forward(a);
    backend.attention_backward({a, p.dout.data(), dq.data(), dkv.data(), dkv.data() + p.kv_width()});
  }
  bool intact() const {
    return out.guards_intact() && log_sum.guards_intact() && dq.guards_intact() && dkv.guards_intact();
  }
};

// Weights rounded to bf16 are off by 2^-9 at most, evenly spread by 2^-9 / sqrt(3) of each; sums over keys average
// that.
constexpr double kForwardError = 2.5e-3, kBackwardError = 5e-3;

void check_attention(const Shape& shape, MaskKind mask, uint64_t seed) {
  const Problem problem(shape, mask, seed);
  const std::string where = text("D ", shape.head_dim, " heads ", shape.heads, "/", shape.kv_heads, " mask ", int(mask),
                                 " ranges ", shape.ranges, " every ", shape.every, " ");
  cpu::CpuBackend reference(1, "", Compute::kF32);
  Gradients expected(problem), first(problem);
  expected.run(reference, problem);
  for (int products = 0; products < kProducts; ++products)
    for (int schedule = 0; schedule < (products == 0 ? kWgmmaSchedules : kSchedules); ++schedule) {
      Gradients got(problem);
      got.run(*bf16_backend(schedule, products == 0), problem);
      CHECK(got.intact(), where);
      const size_t n = problem.q.size();
      CHECK(relative_error(got.out.data(), expected.out.data(), n) < kForwardError, where,
            relative_error(got.out.data(), expected.out.data(), n));
      CHECK(relative_error(got.dq.data(), expected.dq.data(), n) < kBackwardError, where, "dq ",
            relative_error(got.dq.data(), expected.dq.data(), n));
      // Keys and values apart: the one may not hide the other.
      for (int part = 0; part < 2; ++part) {
        std::vector<float> a, b;
        for (size_t i = 0; i < problem.kv.size(); ++i)
          if (int64_t(i) / problem.kv_width() % 2 == part) {
            a.push_back(got.dkv[i]);
            b.push_back(expected.dkv[i]);
          }
        CHECK(relative_error(a.data(), b.data(), a.size()) < kBackwardError, where, part ? "dv " : "dk ",
              relative_error(a.data(), b.data(), a.size()));
      }
      bool sums = true;
      for (size_t i = 0; i < got.log_sum.size(); ++i)
        sums =
            sums && (got.log_sum[i] == expected.log_sum[i] || std::fabs(got.log_sum[i] - expected.log_sum[i]) < 1e-4f);
      CHECK(sums, where, "log_sum");
      if (schedule == 0) first = got;  // of each kind of products
      CHECK(same_bits(got.out.data(), first.out.data(), n) && same_bits(got.dq.data(), first.dq.data(), n) &&
                same_bits(got.dkv.data(), first.dkv.data(), problem.kv.size()),
            where, "schedule ", schedule);
    }
}

DULTRA_TEST(cuda_attention_on_tensor_cores, small) {
  for (MaskKind mask : {MaskKind::kBidirectional, MaskKind::kCausal, MaskKind::kBlockCausal})
    for (bool ranges : {false, true}) {
      check_attention({{77, 1, 0, 33}, 2, 1, 64, 1, ranges}, mask, 1);
      check_attention({{70, 64}, 2, 2, 96, 1, ranges}, mask, 2);
      check_attention({{66, 9}, 2, 1, 128, 1, ranges}, mask, 3);
      check_attention({{130, 40}, 1, 1, 64, 5, ranges}, mask, 4);
    }
  check_attention({{200}, 4, 2, 64, 1, false}, MaskKind::kBidirectional, 5);
}

// A device of capability 9.0 multiplies by wgmma what mma.sync multiplies elsewhere.
DULTRA_TEST(cuda_warpgroups_work, small) {
  const auto device = make_backend(0, "");
  const std::string isa = device->isa();
  const bool hopper = isa.find("sm_90") != std::string::npos;
  CHECK((isa.find(", wgmma") != std::string::npos) == hopper && isa.find("no wgmma") == std::string::npos, isa);
#ifdef DULTRA_EMULATOR
  CHECK(hopper, isa);
  for (int schedule = 0; schedule < kWgmmaSchedules; ++schedule)
    CHECK(std::string(make_backend(schedule, "")->isa()).find(", wgmma") != std::string::npos, schedule);
  emulator::set_warpgroups(false);
  const auto other = make_backend(0, "");
  emulator::set_warpgroups(true);
  CHECK(std::string(other->isa()).find("wgmma") == std::string::npos, other->isa());
#endif
}

// A query's bits do not depend on the batch or on the other queries, those of a sequence's gradients not on the batch.
DULTRA_TEST(cuda_attention_rows_are_independent, small) {
  for (int run = 0; run < 2 * kProducts; ++run) {
    const MaskKind mask = run % 2 ? MaskKind::kCausal : MaskKind::kBidirectional;
    const Problem problem({{70, 33, 100}, 2, 1, 64, 1, true}, mask, 6);
    const auto backend = bf16_backend(1, run < 2);
    Gradients together(problem);
    together.run(*backend, problem);
    const size_t q_width = 128, kv_width = 128;
    for (size_t b = 0; b < 3; ++b) {
      Problem one = problem;
      const size_t first = size_t(problem.q_offsets[b]), count = size_t(problem.shape.lengths[b]);
      one.shape.lengths = {int(count)};
      one.q_offsets = one.k_offsets = {0, int32_t(count)};
      one.key_begin = {problem.key_begin[b]};
      one.key_end = {problem.key_end[b]};
      const auto cut = [&](std::vector<float>& x, size_t width) {
        x = std::vector<float>(&x[first * width], &x[first * width] + count * width);
      };
      cut(one.q, q_width);
      cut(one.dout, q_width);
      cut(one.kv, kv_width);
      one.positions.resize(count);
      std::iota(one.positions.begin(), one.positions.end(), 0);
      Gradients alone(one);
      alone.run(*backend, one);
      CHECK(same_bits(alone.out.data(), &together.out[first * q_width], count * q_width), "out of sequence ", b);
      CHECK(same_bits(alone.dq.data(), &together.dq[first * q_width], count * q_width), "dq of sequence ", b);
      CHECK(same_bits(alone.dkv.data(), &together.dkv[first * kv_width], count * kv_width), "dkv of sequence ", b);
      // Every seventh query.
      Problem some = one;
      some.q.clear();
      some.positions.clear();
      for (size_t i = b; i < count; i += 7) {
        some.positions.push_back(int32_t(i));
        some.q.insert(some.q.end(), &one.q[i * q_width], &one.q[i * q_width] + q_width);
      }
      some.q_offsets = {0, int32_t(some.positions.size())};
      Guarded<float> out = poisoned(some.q.size());
      backend->attention_forward(some.args(out.data(), nullptr));
      for (size_t i = 0; i < some.positions.size(); ++i)
        CHECK(same_bits(&out[i * q_width], &alone.out[size_t(some.positions[i]) * q_width], q_width), "query ",
              some.positions[i]);
    }
  }
}

// Many keys come in chunks: a sequence whose chunks have a block each gives the bits that it gives among so many others
// that one block goes through them all, whatever queries there are.
void check_split(int d, int length, int every, bool ranges, MaskKind mask, bool warpgroups = true) {
  const std::string where = text(warpgroups ? "" : "mma.sync ", "D ", d, " keys ", length, " every ", every, " ranges ",
                                 ranges, " mask ", int(mask), " ");
  std::vector<int> lengths{length};
  const Problem alone({lengths, 2, 1, d, every, ranges}, mask, 12);
  lengths.resize(kMultiprocessors / 2 + 1, 1);  // with two heads more blocks than a device is filled by
  Problem among({lengths, 2, 1, d, every, ranges}, mask, 13);
  std::copy(alone.q.begin(), alone.q.end(), among.q.begin());
  std::copy(alone.kv.begin(), alone.kv.end(), among.kv.begin());
  cpu::CpuBackend reference(1, "", Compute::kF32);
  Gradients expected(alone);
  reference.attention_forward(alone.args(expected.out.data(), expected.log_sum.data()));
  for (int schedule = 0; schedule < 3; ++schedule) {
    // These take long, and sanitizers with them.
    if ((length > 1024 || every == 1 || kSchedules == 1) && schedule != length % 3) continue;
    const auto backend = bf16_backend(schedule, warpgroups);
    Gradients split(alone), whole(among);
    backend->attention_forward(alone.args(split.out.data(), split.log_sum.data()));
    backend->attention_forward(among.args(whole.out.data(), whole.log_sum.data()));
    CHECK(split.intact() && whole.intact(), where);
    const size_t n = alone.q.size();
    CHECK(same_bits(split.out.data(), whole.out.data(), n) &&
              same_bits(split.log_sum.data(), whole.log_sum.data(), split.log_sum.size()),
          where);
    const double error = relative_error(split.out.data(), expected.out.data(), n);
    CHECK(error < kForwardError, where, error);
    bool sums = true;
    for (size_t i = 0; i < split.log_sum.size(); ++i)
      sums = sums &&
             (split.log_sum[i] == expected.log_sum[i] || std::fabs(split.log_sum[i] - expected.log_sum[i]) < 1e-4f);
    CHECK(sums, where, "log_sum");
    // Every other query: fewer rows of a block, so that another tile of keys may be the last that one of them sees.
    Problem some = alone;
    some.q.clear();
    some.positions.clear();
    for (size_t i = 1; i < alone.positions.size(); i += 2) {
      some.positions.push_back(alone.positions[i]);
      some.q.insert(some.q.end(), &alone.q[i * size_t(2 * d)], &alone.q[i * size_t(2 * d)] + 2 * d);
    }
    some.q_offsets = {0, int32_t(some.positions.size())};
    Guarded<float> out = poisoned(some.q.size());
    backend->attention_forward(some.args(out.data(), nullptr));
    for (size_t i = 0; i < some.positions.size(); ++i)
      CHECK(same_bits(&out[i * size_t(2 * d)], &split.out[(2 * i + 1) * size_t(2 * d)], size_t(2 * d)), where, "query ",
            some.positions[i]);
  }
}

DULTRA_TEST(cuda_attention_split_keys, small) {
  // Two chunks, of which the second has few keys; masks and ranges that end in the first, or at its end.
  for (MaskKind mask : {MaskKind::kBidirectional, MaskKind::kCausal, MaskKind::kBlockCausal})
    for (bool ranges : {false, true})
      for (int kind = 0; kind < kProducts; ++kind) check_split(64, 1100, 180, ranges, mask, kind == 0);
  for (int d : {96, 128}) check_split(d, 1200, 290, true, MaskKind::kCausal);
  if (kProducts > 1) check_split(128, 1200, 290, true, MaskKind::kCausal, false);
  // A last chunk of one key; chunks of two times the least, of which the last is not full.
  check_split(64, 1025, 300, false, MaskKind::kBidirectional);
  check_split(64, 8200, 2000, true, MaskKind::kCausal);
}

// Up to 1024 keys are one chunk: with more queries than one of the larger tiles of wgmma has, among so many other
// blocks that these are taken, and alone.
DULTRA_TEST(cuda_attention_of_one_chunk, small) {
  check_split(64, 1024, 300, false, MaskKind::kCausal);
  check_split(64, 151, 1, true, MaskKind::kCausal);
  check_split(128, 149, 1, false, MaskKind::kBidirectional);
  for (int d : {64, 96, 128})
    for (int kind = 0; kind < kProducts; ++kind) check_split(d, 300, 50, d != 96, MaskKind::kBlockCausal, kind == 0);
}

// A sequence of one chunk has the bits of its own whether another of the launch has several chunks or not, and zeros
// where it sees nothing: also of values that are no numbers, and of negative zeros.
DULTRA_TEST(cuda_attention_of_one_chunk_beside_several, small) {
  for (int kind = 0; kind < kProducts; ++kind) {
    const auto backend = bf16_backend(2, kind == 0);
    std::vector<int> lengths{40, 1030};
    Problem both({lengths, 1, 1, 64, 40, true}, MaskKind::kCausal, 21);
    both.key_begin[0] = 9;  // the first query of the first sequence sees no key
    both.key_end[0] = 40;
    for (size_t i = 0; i < 9 * 128; ++i) both.kv[i] = NAN;
    for (size_t i = 9 * 128; i < 40 * 128; ++i)
      if (i % 128 >= 64) both.kv[i] = -0.0f;
    Problem one = both;
    one.shape.lengths = {40};
    one.q_offsets = {0, 1};
    one.k_offsets = {0, 40};
    lengths.resize(kMultiprocessors + 2, 1);
    Problem more({lengths, 1, 1, 64, 40, true}, MaskKind::kCausal, 22);  // so many blocks that none is split
    more.key_begin[0] = 9;
    more.key_end[0] = 40;
    std::copy(both.q.begin(), both.q.end(), more.q.begin());
    std::copy(both.kv.begin(), both.kv.end(), more.kv.begin());
    constexpr size_t kWidth = 64;
    Gradients a(one), b(both), c(more);
    backend->attention_forward(one.args(a.out.data(), a.log_sum.data()));
    backend->attention_forward(both.args(b.out.data(), b.log_sum.data()));
    backend->attention_forward(more.args(c.out.data(), c.log_sum.data()));
    CHECK(same_bits(a.out.data(), b.out.data(), kWidth) && a.log_sum[0] == b.log_sum[0], kind);
    CHECK(same_bits(c.out.data(), b.out.data(), both.q.size()), kind);
    for (size_t i = 0; i < kWidth; ++i) CHECK(a.out[i] == 0 && !std::signbit(a.out[i]), kind, " ", a.out[i]);
    CHECK(a.log_sum[0] == -INFINITY, kind, " ", a.log_sum[0]);
  }
}

// Keys and values that are bf16 already give the bits of the same numbers in fp32, whether tiles can be copied from
// where they lie or not.
DULTRA_TEST(cuda_attention_of_bf16_keys_and_values, small) {
  for (int gap : {0, 8, 3}) {
    const Problem problem({{70, 33}, 2, 1, 64, 1, true}, MaskKind::kCausal, 8);
    const auto backend = bf16_backend(2);
    Gradients expected(problem);
    const AttentionArgs wide = problem.args(expected.out.data(), expected.log_sum.data());
    backend->attention_forward(wide);
    std::vector<uint16_t> narrow;
    for (size_t i = 0; i < problem.kv.size(); ++i) {
      narrow.push_back(f32_to_bf16(problem.kv[i]));
      if (i % 128 == 127) narrow.insert(narrow.end(), size_t(gap), 0x7fc0);
    }
    Guarded<float> out = poisoned(problem.q.size());
    AttentionArgs half = wide;
    half.out = out.data();
    half.log_sum = nullptr;
    half.k = narrow.data();
    half.v = narrow.data() + 64;
    half.kv_stride += gap;
    backend->attention_forward(half);
    CHECK(out.guards_intact() && same_bits(out.data(), expected.out.data(), problem.q.size()), "gap ", gap);
  }
}

// Keys outside the range may hold anything; a query that sees no key gives zeros.
DULTRA_TEST(cuda_attention_hidden_keys_do_not_matter, small) {
  Problem problem({{50, 80, 12}, 2, 2, 64, 1, true}, MaskKind::kBidirectional, 7);
  problem.key_begin[2] = problem.key_end[2] = 5;
  const auto backend = bf16_backend(2);
  Gradients before(problem), after(problem);
  before.run(*backend, problem);
  for (size_t b = 0; b < 3; ++b)
    for (int j = 0; j < problem.shape.lengths[b]; ++j)
      if (j < problem.key_begin[b] || j >= problem.key_end[b])
        std::fill_n(&problem.kv[size_t(problem.k_offsets[b] + j) * 256], 256, std::numeric_limits<float>::quiet_NaN());
  after.run(*backend, problem);
  CHECK(same_bits(before.out.data(), after.out.data(), problem.q.size()), "out");
  CHECK(same_bits(before.dq.data(), after.dq.data(), problem.q.size()), "dq");
  CHECK(same_bits(before.dkv.data(), after.dkv.data(), problem.kv.size()), "dkv");
  for (size_t i = 130 * 128; i < 142 * 128; ++i) CHECK(after.out[i] == 0 && after.dq[i] == 0, i);
  CHECK(after.log_sum[130 * 2] == -INFINITY, after.log_sum[130 * 2]);
}

// Of a sum of so many products: tensor cores cut off what they add, the emulator rounds.
double sum_tolerance(int64_t products) {
#ifdef DULTRA_GPU
  return 2e-6 + 2e-9 * double(products);
#else
  (void)products;
  return 2e-6;
#endif
}

// The three products of a linear layer in bf16, against the CPU backend's fp32 on rounded operands.
void check_linear(int64_t m, int64_t n, int64_t k, uint64_t seed) {
  Random random(seed);
  const std::string where = text("M ", m, " N ", n, " K ", k, " ");
  const std::vector<float> x = bf16_normals(random, size_t(m * k)), w = bf16_normals(random, size_t(n * k)),
                           dy = bf16_normals(random, size_t(m * n));
  const std::vector<float> old_x = normals(random, size_t(m * k)), old_w = normals(random, size_t(n * k)),
                           old_b = normals(random, size_t(n));
  cpu::CpuBackend reference(1, "", Compute::kF32);
  std::vector<float> y(size_t(m * n)), dx = old_x, dw = old_w, db = old_b;
  const auto matrix = reference.make_matrix({{w.data(), DType::kF32, n}}, k, DType::kF32);
  reference.linear_forward(y.data(), n, x.data(), m, *matrix, old_b.data(), false);
  reference.linear_backward_input(dx.data(), dy.data(), n, w.data(), m, n, k, true);
  reference.linear_backward_weight(dw.data(), db.data(), dy.data(), n, x.data(), m, n, k);
  for (int schedule = 0; schedule < kSchedules; ++schedule) {
    const auto backend = make_backend(schedule, "", Compute::kBF16);
    const auto weights = backend->make_matrix({{w.data(), DType::kF32, n}}, k, DType::kBF16);
    Guarded<float> got_y = poisoned(y.size()), got_dx(dx.size()), got_dw(dw.size()), got_db(db.size());
    std::copy(old_x.begin(), old_x.end(), got_dx.data());
    std::copy(old_w.begin(), old_w.end(), got_dw.data());
    std::copy(old_b.begin(), old_b.end(), got_db.data());
    backend->linear_forward(got_y.data(), n, x.data(), m, *weights, old_b.data(), false);
    // Rows that lie apart.
    std::vector<float> apart(size_t(m * (n + 3)), NAN), of_apart = old_x;
    for (int64_t i = 0; i < m; ++i) std::copy_n(&dy[size_t(i * n)], n, &apart[size_t(i * (n + 3))]);
    backend->linear_backward_input(of_apart.data(), apart.data(), n + 3, w.data(), m, n, k, true);
    backend->linear_backward_input(got_dx.data(), dy.data(), n, w.data(), m, n, k, true);
    backend->linear_backward_weight(got_dw.data(), got_db.data(), dy.data(), n, x.data(), m, n, k);
    // From the matrix itself.
    Guarded<float> from_rows(dx.size());
    std::copy(old_x.begin(), old_x.end(), from_rows.data());
    backend->linear_backward_input(from_rows.data(), dy.data(), n, weights->bf16_rows(), m, n, k, true);
    CHECK(same_bits(of_apart.data(), got_dx.data(), dx.size()), where, "dx from rows that lie apart");
    CHECK(from_rows.guards_intact() && same_bits(from_rows.data(), got_dx.data(), dx.size()), where,
          "dx from the matrix's own rows");
    CHECK(got_y.guards_intact() && got_dx.guards_intact() && got_dw.guards_intact() && got_db.guards_intact(), where);
    CHECK(relative_error(got_y.data(), y.data(), y.size()) < sum_tolerance(k), where,
          relative_error(got_y.data(), y.data(), y.size()));
    CHECK(relative_error(got_dx.data(), dx.data(), dx.size()) < sum_tolerance(n), where, "dx ",
          relative_error(got_dx.data(), dx.data(), dx.size()));
    CHECK(relative_error(got_dw.data(), dw.data(), dw.size()) < sum_tolerance(m), where, "dw ",
          relative_error(got_dw.data(), dw.data(), dw.size()));
    CHECK(relative_error(got_db.data(), db.data(), db.size()) < 2e-6, where, "db ",
          relative_error(got_db.data(), db.data(), db.size()));
  }
}

DULTRA_TEST(cuda_linear_on_tensor_cores, small) {
  check_linear(70, 96, 64, 1);
  check_linear(1, 200, 130, 2);
  check_linear(33, 7, 65, 3);
  check_linear(129, 65, 40, 4);
  // Enough blocks for the larger tile.
  check_linear(130, kMultiprocessors * 64 + 8, 24, 5);
}

// An optimiser step gives the CPU's bits, however its state is stored.
DULTRA_TEST(cuda_adamw_has_the_cpus_bits, small) {
  cpu::CpuBackend reference(2, "", Compute::kF32);
  // The baseline instruction set has no fused multiply-add.
  if (std::string(reference.isa()) == "baseline") return;
  for (int64_t n : {1, 5, 1030, 20011})
    for (bool split : {false, true})
      for (DType moments : {DType::kF32, DType::kBF16}) {
        Random random{uint64_t(n)};
        const std::vector<float> start = normals(random, size_t(n), 0.02);
        std::vector<float> gradient = normals(random, size_t(n));
        // Moments that are zero, very small, and infinite, among usual ones.
        const float unusual[] = {0, 1e-30f, 1e-12f, 1e10f, 1e25f, -1e-25f};
        for (size_t i = 7; i < size_t(n); i += 29) gradient[i] = unusual[i / 29 % 6];
        const std::string where = text("n ", n, split ? " split" : "", moments == DType::kBF16 ? " bf16" : "");
        struct State {
          std::vector<float> parameter, m, v;
          std::vector<uint16_t> high;
          std::vector<int16_t> low;
        } states[2];
        for (int b = 0; b < 2; ++b) {
          State& state = states[b];
          const auto made = b ? make_backend(1, "") : nullptr;
          Backend& backend = b ? *made : reference;
          state.parameter = start;
          state.m.assign(size_t(n), 0), state.v.assign(size_t(n), 0), state.high.assign(size_t(n), 0x3c00),
              state.low.assign(size_t(n), -5);
          // No first moment where there is a second.
          for (size_t i = 7; i < size_t(n); i += 29 * 6)
            if (moments == DType::kF32)
              state.v[i] = 1e-4f;
            else
              reinterpret_cast<uint16_t*>(state.v.data())[i] = f32_to_bf16(1e-4f);
          for (int64_t step = 1; step <= 3; ++step) {
            AdamWArgs a{};
            a.parameter = split ? nullptr : state.parameter.data();
            a.high = state.high.data();
            a.low = state.low.data();
            a.gradient = gradient.data();
            a.exp_avg = state.m.data();
            a.exp_avg_sq = state.v.data();
            a.moments = moments;
            a.seed = 123456789012345ull;
            a.stream = 9;
            a.first = 8;
            a.n = n;
            a.step = step;
            a.lr = 0.01;
            a.beta1 = 0.9;
            a.beta2 = 0.99;
            a.eps = 1e-8;
            a.weight_decay = 0.1;
            a.gradient_scale = 0.7;
            backend.adamw_step(a);
          }
        }
        CHECK(same_bits(states[0].parameter.data(), states[1].parameter.data(), size_t(n)), where, " parameters");
        CHECK(states[0].high == states[1].high && states[0].low == states[1].low, where, " halves");
        CHECK(same_bits(states[0].m.data(), states[1].m.data(), size_t(n)) &&
                  same_bits(states[0].v.data(), states[1].v.data(), size_t(n)),
              where, " moments");
      }
}

// ---- operands in bf16: what an operation makes of them is what it makes of the same numbers in fp32, and what it
// writes is that rounded -----

std::vector<uint16_t> narrow(const std::vector<float>& x) {
  std::vector<uint16_t> out;
  for (float value : x) out.push_back(f32_to_bf16(value));
  return out;
}
bool is_rounded(const Guarded<uint16_t>& actual, const float* exact) {
  bool same = actual.guards_intact();
  for (size_t i = 0; i < actual.size(); ++i) same = same && actual[i] == f32_to_bf16(exact[i]);
  return same;
}

// Turned keys are rounded as they are in place before they go to a cache of either type.
DULTRA_TEST(cuda_rope_store_of_bf16, small) {
  for (int d : {2, 10, 64})
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      const auto backend = bf16_backend(d);
      const int heads = d == 64 ? 40 : 3;  // more of a row than a block has
      const int64_t width = 2 * heads * d, all = 20;
      Random random{uint64_t(d)};
      const std::vector<int32_t> positions{0, 7, 300, 4095}, slots{17, 0, 3, 19};
      std::vector<uint16_t> kv = narrow(normals(random, size_t(4 * width))), turned = kv;
      Guarded<uint16_t> held(size_t(all * width * 2)), expected(held.size());  // bytes of either type
      backend->rope_forward(turned.data(), width, positions.data(), 4, heads, d, Rope{10000, d});
      backend->store_rows(expected.data(), dtype, turned.data(), slots.data(), 4, width);
      backend->rope_store_forward({held.data(), dtype}, slots.data(), kv.data(), positions.data(), 4, heads, d,
                                  Rope{10000, d});
      CHECK(held.guards_intact() && std::memcmp(held.data(), expected.data(), held.size() * 2) == 0, "D ", d, " dtype ",
            int(dtype));
    }
}

DULTRA_TEST(cuda_rows_of_bf16, small) {
  for (int schedule = 0; schedule < kSchedules; ++schedule) {
    const auto backend = bf16_backend(schedule);
    CHECK(backend->activation_dtype() == DType::kBF16, "operands");
    for (int64_t c : {6, 65, 64, 1030, 4112}) {
      Random random{uint64_t(c)};
      const int64_t m = 5;
      const std::string where = text("C ", c, " schedule ", schedule, " ");
      const std::vector<float> x = bf16_normals(random, size_t(m * c)), weight = normals(random, size_t(c));
      const std::vector<uint16_t> x16 = narrow(x);
      const std::vector<int32_t> index{3, 0, 0, 4, 2};
      std::vector<float> wide(x.size());
      Guarded<uint16_t> out(x.size());

      const std::vector<float> stream = normals(random, x.size());
      backend->rmsnorm_forward(wide.data(), stream.data(), weight.data(), m, c, 1e-5f);
      backend->rmsnorm_forward(out.data(), stream.data(), weight.data(), m, c, 1e-5f);
      CHECK(is_rounded(out, wide.data()), where, "rmsnorm");

      backend->gather_rows(wide.data(), stream.data(), index.data(), m, c);
      backend->gather_rows(out.data(), stream.data(), index.data(), m, c);
      CHECK(is_rounded(out, wide.data()), where, "gathered and rounded");
      backend->gather_rows(wide.data(), x.data(), index.data(), m, c);
      backend->gather_rows(out.data(), x16.data(), index.data(), m, c);
      CHECK(is_rounded(out, wide.data()), where, "gathered");

      // Into a cache of either type.
      const std::vector<int32_t> slots{3, 0, 1, 4, 2};
      Guarded<float> held = poisoned(x.size()), expected = poisoned(x.size());
      backend->store_rows(expected.data(), DType::kF32, x.data(), slots.data(), m, c);
      backend->store_rows(held.data(), DType::kF32, x16.data(), slots.data(), m, c);
      CHECK(held.guards_intact() && same_bits(held.data(), expected.data(), x.size()), where, "stored in fp32");
      backend->store_rows(out.data(), DType::kBF16, x16.data(), slots.data(), m, c);
      CHECK(is_rounded(out, expected.data()), where, "stored in bf16");

      if (c % 2 == 0) {
        const std::vector<int32_t> positions{0, 7, 1, 300, 4095};
        wide = x;
        std::copy(x16.begin(), x16.end(), out.data());
        backend->rope_forward(wide.data(), c, positions.data(), m, 1, int(c), Rope{10000, int(c)});
        backend->rope_forward(out.data(), c, positions.data(), m, 1, int(c), Rope{10000, int(c)});
        CHECK(is_rounded(out, wide.data()), where, "rope");
        wide = x;
        std::copy(x16.begin(), x16.end(), out.data());
        backend->rope_backward(wide.data(), c, positions.data(), m, 1, int(c), Rope{10000, int(c)});
        backend->rope_backward(out.data(), c, positions.data(), m, 1, int(c), Rope{10000, int(c)});
        CHECK(is_rounded(out, wide.data()), where, "rope backward");
      }

      const std::vector<float> gate_up = bf16_normals(random, size_t(2 * m * c), 4),
                               dout = normals(random, size_t(m * c));
      const std::vector<uint16_t> gate_up16 = narrow(gate_up);
      std::fill(wide.begin(), wide.end(), NAN);  // what neither call writes is not the same
      backend->swiglu_forward(wide.data(), gate_up.data(), m, c);
      backend->swiglu_forward(out.data(), gate_up16.data(), m, c);
      CHECK(is_rounded(out, wide.data()), where, "swiglu");
      std::vector<float> dwide(gate_up.size());
      Guarded<uint16_t> dnarrow(gate_up.size());
      backend->swiglu_backward(dwide.data(), dout.data(), gate_up.data(), m, c);
      backend->swiglu_backward(dnarrow.data(), dout.data(), gate_up16.data(), m, c);
      CHECK(is_rounded(dnarrow, dwide.data()), where, "swiglu backward");
      std::copy(gate_up16.begin(), gate_up16.end(), dnarrow.data());
      backend->swiglu_backward(dnarrow.data(), dout.data(), dnarrow.data(), m, c);
      CHECK(is_rounded(dnarrow, dwide.data()), where, "swiglu backward in place");
    }
  }
}

// An array may begin at any number of its type: what cannot be moved in the widest pieces gives the same bits, and
// nothing beside it is written.
DULTRA_TEST(cuda_rows_begin_anywhere, small) {
  const auto backend = bf16_backend(1);
  const int64_t m = 3, c = 64;
  std::vector<std::vector<uint8_t>> first;
  for (size_t shift : {0, 1, 2, 5}) {
    Random random(4);
    std::vector<std::vector<uint8_t>> results;
    const auto wide = [&](int64_t n) {
      Guarded<float> array(size_t(n) + shift);
      const std::vector<float> numbers = normals(random, size_t(n));
      std::copy(numbers.begin(), numbers.end(), array.data() + shift);
      return array;
    };
    const auto narrowed = [&](int64_t n) {
      Guarded<uint16_t> array(size_t(n) + shift);
      const std::vector<uint16_t> numbers = narrow(normals(random, size_t(n)));
      std::copy(numbers.begin(), numbers.end(), array.data() + shift);
      return array;
    };
    const auto keep = [&](const auto& array, const char* what) {
      bool intact = array.guards_intact();
      for (size_t i = 0; i < shift * sizeof(array[0]); ++i)
        intact = intact && reinterpret_cast<const uint8_t*>(array.data())[i] == 0xfb;
      CHECK(intact, what, " shift ", shift);
      const auto* bytes = reinterpret_cast<const uint8_t*>(array.data() + shift);
      results.emplace_back(bytes, bytes + (array.size() - shift) * sizeof(array[0]));
    };
    const std::vector<int32_t> index{2, 0, 1}, positions{5, 0, 900};
    Guarded<float> x = wide(m * c), dout = wide(m * c), gates = wide(2 * m * c), weight = wide(c), add = wide(c),
                   out = wide(m * c), sum = wide(c), cache = wide(m * c);
    Guarded<uint16_t> x16 = narrowed(m * c), dout16 = narrowed(m * c), gates16 = narrowed(2 * m * c),
                      out16 = narrowed(m * c), cache16 = narrowed(m * c);
    const auto at = [&](auto& array) { return array.data() + shift; };

    backend->gather_rows(at(out), at(x), index.data(), m, c);
    keep(out, "gather");
    backend->gather_rows(at(out), at(x16), index.data(), m, c);
    keep(out, "gather of bf16");
    backend->gather_rows(at(out16), at(x16), index.data(), m, c);
    keep(out16, "gather in bf16");
    backend->rope_store_forward(at(cache), index.data(), at(x16), positions.data(), m, 2, 16, Rope{10000, 16});
    keep(cache, "rope to a cache of fp32");
    backend->rope_store_forward(at(cache16), index.data(), at(x), positions.data(), m, 2, 16, Rope{10000, 16});
    keep(cache16, "rope to a cache of bf16");
    backend->swiglu_forward(at(out), at(gates), m, c);
    keep(out, "swiglu");
    backend->swiglu_forward(at(out16), at(gates16), m, c);
    keep(out16, "swiglu in bf16");
    backend->rmsnorm_forward(at(out), at(x), at(weight), m, c, 1e-5f);
    keep(out, "rmsnorm");
    backend->layernorm_forward(at(out), at(x), at(weight), at(add), nullptr, m, c, 1e-5f);
    keep(out, "layernorm");
    backend->rmsnorm_backward(at(out), at(sum), at(dout), at(x), at(weight), m, c, 1e-5f);
    keep(out, "rmsnorm backward");
    keep(sum, "rmsnorm backward, weights");
    backend->swiglu_backward(at(gates), at(dout16), at(gates16), m, c);
    keep(gates, "swiglu backward from bf16");
    backend->swiglu_backward(at(gates16), at(dout16), at(gates16), m, c);
    keep(gates16, "swiglu backward in bf16");
    backend->rope_forward(at(x), c, positions.data(), m, 4, 16, Rope{10000, 16});
    keep(x, "rope");
    backend->rope_forward(at(x16), c, positions.data(), m, 4, 16, Rope{10000, 16});
    keep(x16, "rope in bf16");
    backend->silu_forward(at(x), m * c);
    keep(x, "silu");
    if (shift == 0) first = results;
    CHECK(results == first, "shift ", shift);
  }
}

void check_linear_of_bf16(int64_t m, int64_t n, int64_t k, uint64_t seed) {
  Random random(seed);
  const std::string where = text("M ", m, " N ", n, " K ", k, " ");
  const std::vector<float> x = bf16_normals(random, size_t(m * k)), w = bf16_normals(random, size_t(n * k)),
                           dy = bf16_normals(random, size_t(m * n));
  const std::vector<float> bias = bf16_normals(random, size_t(n)), old_w = normals(random, size_t(n * k)),
                           old_b = normals(random, size_t(n));
  const std::vector<uint16_t> x16 = narrow(x), dy16 = narrow(dy);
  for (int schedule = 0; schedule < kSchedules; ++schedule) {
    const auto backend = make_backend(schedule, "", Compute::kBF16);
    const auto weights = backend->make_matrix({{w.data(), DType::kF32, n}}, k, DType::kBF16);
    std::vector<float> y(size_t(m * n)), y_again(y.size()), dx(size_t(m * k)), dw = old_w, dw_again = old_w, db = old_b,
                                                                               db_again = old_b;
    Guarded<uint16_t> y16(y.size()), dx16(dx.size());
    backend->linear_forward(y.data(), n, x.data(), m, *weights, bias.data(), false);
    backend->linear_forward(y_again.data(), n, x16.data(), m, *weights, bias.data(), false);
    backend->linear_forward(y16.data(), n, x16.data(), m, *weights, bias.data(), false);
    CHECK(same_bits(y.data(), y_again.data(), y.size()), where, "x");
    CHECK(is_rounded(y16, y.data()), where, "y");
    backend->linear_backward_input(dx.data(), dy.data(), n, w.data(), m, n, k, false);
    backend->linear_backward_input(dx16.data(), dy16.data(), n, w.data(), m, n, k, false);
    CHECK(is_rounded(dx16, dx.data()), where, "dx");
    backend->linear_backward_weight(dw.data(), db.data(), dy.data(), n, x.data(), m, n, k);
    backend->linear_backward_weight(dw_again.data(), db_again.data(), dy16.data(), n, x16.data(), m, n, k);
    CHECK(same_bits(dw.data(), dw_again.data(), dw.size()) && same_bits(db.data(), db_again.data(), db.size()), where,
          "dw, db");
    // One operand alone, as an adapter's.
    dw_again = old_w;
    backend->linear_backward_weight(dw_again.data(), nullptr, dy.data(), n, x16.data(), m, n, k);
    CHECK(same_bits(dw.data(), dw_again.data(), dw.size()), where, "dw of x alone");
    // A sum is never rounded.
    ErrorCode code = ErrorCode::kInternal;
    try {
      backend->linear_forward(y16.data(), n, x16.data(), m, *weights, nullptr, true);
    } catch (const Error& error) {
      code = error.code();
    }
    CHECK(code == ErrorCode::kInvalidArgument, where, "adding to bf16");
  }
}

DULTRA_TEST(cuda_linear_of_bf16, small) {
  check_linear_of_bf16(70, 96, 64, 1);
  check_linear_of_bf16(1, 200, 130, 2);
  check_linear_of_bf16(33, 7, 65, 3);
  check_linear_of_bf16(130, kMultiprocessors * 64 + 8, 24, 4);
}

// The gap lies between rows of every array: tiles then cannot be copied from where they lie.
void check_attention_of_bf16(const Shape& shape, int gap, MaskKind mask, uint64_t seed) {
  const Problem problem(shape, mask, seed);
  const size_t q_width = size_t(shape.heads * shape.head_dim), kv_width = size_t(2 * problem.kv_width());
  const std::string where = text("D ", shape.head_dim, " gap ", gap, " ");
  const auto spread = [&](const std::vector<float>& x, size_t width) {
    std::vector<uint16_t> out;
    for (size_t i = 0; i < x.size(); ++i) {
      out.push_back(f32_to_bf16(x[i]));
      if (i % width == width - 1) out.insert(out.end(), size_t(gap), 0x7fc0);
    }
    return out;
  };
  // Whether every row is `exact` rounded, and nothing is written between rows.
  const auto is_spread = [&](const Guarded<uint16_t>& actual, const Guarded<float>& exact, size_t width,
                             uint16_t untouched) {
    bool good = actual.guards_intact();
    for (size_t i = 0; i < actual.size(); ++i) {
      const size_t row = i / (width + size_t(gap)), column = i % (width + size_t(gap));
      good = good && actual[i] == (column < width ? f32_to_bf16(exact[row * width + column]) : untouched);
    }
    return good;
  };
  const std::vector<uint16_t> q = spread(problem.q, q_width), dout = spread(problem.dout, q_width),
                              kv = spread(problem.kv, kv_width);
  for (int schedule = 0; schedule < kWgmmaSchedules; ++schedule) {
    const auto backend = bf16_backend(schedule);
    Gradients expected(problem);
    const AttentionArgs wide = problem.args(expected.out.data(), expected.log_sum.data());
    backend->attention_forward(wide);
    Guarded<uint16_t> out(q.size()), dq(q.size()), dkv(kv.size());
    const uint16_t untouched = out[0];
    Guarded<float> log_sum = poisoned(expected.log_sum.size());
    AttentionArgs half = wide;
    half.q = q.data();
    half.k = kv.data();
    half.v = kv.data() + problem.kv_width();
    half.out = out.data();
    half.log_sum = log_sum.data();
    half.q_stride += gap;
    half.out_stride += gap;
    half.kv_stride += gap;
    backend->attention_forward(half);
    CHECK(is_spread(out, expected.out, q_width, untouched), where, "out");
    CHECK(log_sum.guards_intact() && same_bits(log_sum.data(), expected.log_sum.data(), log_sum.size()), where,
          "log_sum");
    for (size_t i = 0; i < expected.out.size(); ++i) expected.out[i] = bf16_to_f32(f32_to_bf16(expected.out[i]));
    backend->attention_backward(
        {wide, problem.dout.data(), expected.dq.data(), expected.dkv.data(), expected.dkv.data() + problem.kv_width()});
    backend->attention_backward({half, dout.data(), dq.data(), dkv.data(), dkv.data() + problem.kv_width()});
    CHECK(is_spread(dq, expected.dq, q_width, untouched), where, "dq");
    CHECK(is_spread(dkv, expected.dkv, kv_width, untouched), where, "dkv");
  }
}

DULTRA_TEST(cuda_attention_of_bf16, small) {
  for (int d : {64, 96, 128, 40})
    for (int gap : {0, 8, 3})
      check_attention_of_bf16({{40, 0, 9}, 2, 1, d, 1, true}, gap, MaskKind::kCausal, uint64_t(d + gap));
}

// FNV-1a, of which rows have which bits.
uint64_t digest_of(const std::vector<uint8_t>& bytes, uint64_t digest) {
  for (uint8_t byte : bytes) digest = (digest ^ byte) * 0x100000001b3ull;
  return digest;
}

// The first and the last row of products of so many rows have the bits of a product of one row, with all kinds of
// operands that a model's products have. `digest` takes these bits in.
void check_product_rows(Backend& backend, int64_t n, int64_t k, const std::vector<int64_t>& counts, uint64_t* digest) {
  const int64_t most = *std::max_element(counts.begin(), counts.end()), wide = std::max(n, k);
  Random random{uint64_t(n * 31 + k)};
  // Few numbers, since there are 500 million: rows and columns begin at different places of them.
  std::vector<uint16_t> pool(size_t(wide) + 4099), w(size_t(n * k)), rows(size_t(most * wide));
  for (uint16_t& x : pool) x = f32_to_bf16(float(random.normal()));
  const auto lay = [&](std::vector<uint16_t>& to, int64_t lines, int64_t width, int64_t step) {
    for (int64_t i = 0; i < lines; ++i) std::copy_n(&pool[size_t(i * step % 4099)], width, &to[size_t(i * width)]);
  };
  lay(w, n, k, 131);
  const auto matrix = backend.make_matrix({{w.data(), DType::kBF16, n}}, k, DType::kBF16);
  auto* const x = static_cast<uint16_t*>(backend.allocate(rows.size() * 2));
  auto* const bias = static_cast<float*>(backend.allocate(size_t(wide) * 4));
  auto* const out = static_cast<float*>(backend.allocate(size_t(most * wide) * 4));
  const std::vector<float> biases = normals(random, size_t(wide));
  backend.upload(bias, biases.data(), biases.size() * 4);
  struct Kind {
    const char* name;
    bool backward, narrow, bias, accumulate;
  };
  for (const Kind& kind : {Kind{"y", false, false, false, false}, Kind{"y in bf16", false, true, false, false},
                           Kind{"y with a bias", false, false, true, false}, Kind{"y added", false, false, false, true},
                           Kind{"dx", true, false, false, false}, Kind{"dx added", true, false, false, true}}) {
    const int64_t width = kind.backward ? n : k, columns = kind.backward ? k : n;
    const size_t row_bytes = size_t(columns) * (kind.narrow ? 2 : 4);
    lay(rows, most, width, 977);
    // The last row of every product is the same.
    const auto product = [&](int64_t m) {
      std::vector<uint16_t> sent(rows.begin(), rows.begin() + m * width);
      std::copy_n(&rows[size_t((most - 1) * width)], width, &sent[size_t((m - 1) * width)]);
      backend.upload(x, sent.data(), sent.size() * 2);
      backend.fill_zero(out, m * columns);
      const Array to(static_cast<void*>(out), kind.narrow ? DType::kBF16 : DType::kF32);
      const ConstArray from(static_cast<const void*>(x), DType::kBF16);
      if (kind.backward)
        backend.linear_backward_input(to, from, n, *matrix, 0, n, m, kind.accumulate);
      else
        backend.linear_forward(to, n, from, m, *matrix, kind.bias ? bias : nullptr, kind.accumulate);
      std::vector<uint8_t> ends(2 * row_bytes);
      const auto* bytes = reinterpret_cast<uint8_t*>(out);
      backend.download(ends.data(), bytes, row_bytes);
      backend.download(ends.data() + row_bytes, bytes + size_t(m - 1) * row_bytes, row_bytes);
      return ends;
    };
    const std::vector<uint8_t> alone = product(1);
    std::vector<uint8_t> first;
    *digest = digest_of(alone, *digest);
    for (int64_t m : counts) {
      if (m == 1) continue;
      const std::vector<uint8_t> ends = product(m);
      if (first.empty()) first = ends;
      const std::string where = text(kind.name, " N ", n, " K ", k, " M ", m);
      CHECK(std::equal(ends.begin(), ends.begin() + std::ptrdiff_t(row_bytes), first.begin()), where, ", first row");
      CHECK(std::equal(ends.begin() + std::ptrdiff_t(row_bytes), ends.end(), alone.begin()), where, ", last row");
    }
  }
  for (void* held : {static_cast<void*>(x), static_cast<void*>(bias), static_cast<void*>(out)}) backend.release(held);
}

// The products of an 8B model on a GPU, small ones on the emulator. DULTRA_VERBOSE prints what was chosen, and a digest
// of the bits: two processes print the same.
DULTRA_TEST(cuda_product_rows_are_independent, small) {
#ifdef DULTRA_EMULATOR
  emulator::set_cublaslt(true);
  const std::vector<std::pair<int64_t, int64_t>> shapes{{40, 64}, {24, 136}};
  const std::vector<int64_t> counts{1, 3, 32, 64, 65, 130};
#else
  const std::vector<std::pair<int64_t, int64_t>> shapes{{4096, 4096},  {8192, 4096},  {12288, 4096},
                                                        {24576, 4096}, {4096, 12288}, {126464, 4096}};
  const std::vector<int64_t> counts{1, 2, 8, 31, 32, 64, 65, 128, 200, 512, 1536, 6144};
#endif
  uint64_t digests[2];
  std::vector<std::string> products[2];
  for (int run = 0; run < 2; ++run) {
    uint64_t& digest = digests[run] = 0xcbf29ce484222325ull;
    cuda::CudaBackend backend(0, Compute::kBF16);
    // The other way round: what is chosen may not depend on what came before.
    for (size_t i = 0; i < shapes.size(); ++i) {
      const auto& [n, k] = shapes[i];
      std::vector<int64_t> order = counts;
      if (run == 1) std::reverse(order.begin(), order.end());
      if (n > 100000) order.erase(std::remove(order.begin(), order.end(), 6144), order.end());  // 3 GB
      check_product_rows(backend, n, k, order, &digest);
    }
    products[run] = backend.products();
#ifndef DULTRA_EMULATOR
    break;  // there the second is another process
#endif
  }
#ifdef DULTRA_EMULATOR
  CHECK(digests[0] == digests[1] && products[0] == products[1], digests[0], " ", digests[1]);
  CHECK(!products[0].empty(), "products by cuBLASLt");
  // Rounding to bf16 hides what sums differ by in so small a product.
  for (const std::string& line : products[0])
    if (line.find("bf16") == std::string::npos)
      CHECK(line.find(": id 5 ") != std::string::npos && line.find("rows id 6 ") != std::string::npos, line);
  emulator::set_cublaslt(false);
#endif
  if (std::getenv("DULTRA_VERBOSE")) {
    for (const std::string& line : products[0]) std::printf("product %s\n", line.c_str());
    std::printf("products digest %016llx\n", static_cast<unsigned long long>(digests[0]));
  }
}

#ifdef DULTRA_EMULATOR
// The same products through cuBLASLt: widths that it takes, and widths that fall back to the built-in products.
DULTRA_TEST(cuda_linear_by_cublaslt, small) {
  emulator::set_cublaslt(true);
  check_linear(40, 96, 64, 6);
  check_linear(8, 16, 136, 7);
  check_linear(33, 7, 65, 8);
  check_linear_of_bf16(40, 96, 64, 9);
  check_linear_of_bf16(33, 7, 65, 10);
  CHECK(std::string(make_backend(0, "")->isa()).find("cuBLASLt 130000") != std::string::npos,
        make_backend(0, "")->isa());
  emulator::set_cublaslt(false);
  CHECK(std::string(make_backend(0, "")->isa()).find("built-in") != std::string::npos, make_backend(0, "")->isa());
}

// DULTRA_TRACE=time names every operation with its time, and nothing is recorded then; profilers see a range of each.
DULTRA_TEST(cuda_time_of_operations, small) {
  const int64_t ranges = emulator::ranges_begun("silu_forward");
  const auto run = [](cuda::CudaBackend& backend) {
    auto* x = static_cast<float*>(backend.allocate(400));
    const std::unique_ptr<Exchange> exchange = backend.make_exchange();
    for (int i = 0; i < 3; ++i)
      exchange->run([&] {
        backend.fill_zero(x, 100);
        backend.silu_forward(x, 100);
      });
    const int64_t direct = exchange->counts().direct;
    backend.release(x);
    return direct;
  };
  setenv("DULTRA_TRACE", "time", 1);
  cuda::CudaBackend timed(0, Compute::kF32);
  unsetenv("DULTRA_TRACE");
  CHECK(run(timed) == 3, "no graphs");
  std::string all;
  for (const std::string& line : timed.times()) {
    // Words, one blank apart.
    for (size_t i = 0; i < line.size(); ++i)
      if (line[i] != ' ' || (i > 0 && line[i - 1] != ' ')) all += line[i];
    all += "\n";
  }
  for (const char* part : {"operation calls ms", "fill_zero 3 ", "silu_forward 3 ", "denoising steps 3 "})
    CHECK(all.find(part) != std::string::npos, all);
  CHECK(emulator::ranges_begun("silu_forward") == ranges + 3 && emulator::open_ranges() == 0, emulator::open_ranges());
  cuda::CudaBackend plain(0, Compute::kF32);
  CHECK(run(plain) == 1 && plain.times().empty(), "graphs");
}

// Memory that cuBLASLt's workspace did not get is no error of what comes next.
DULTRA_TEST(cuda_cublaslt_without_memory, small) {
  emulator::set_cublaslt(true);
  emulator::set_memory_limit(emulator::memory_in_use() + (size_t(8) << 20));
  cuda::CudaBackend backend(0, Compute::kBF16);
  emulator::set_cublaslt(false);
  CHECK(std::string(backend.isa()).find("built-in matrix products") != std::string::npos, backend.isa());
  void* held = backend.allocate(4000);
  backend.fill_zero(static_cast<float*>(held), 1000);
  backend.silu_forward(static_cast<float*>(held), 1000);
  backend.release(held);
  emulator::set_memory_limit(size_t(1) << 40);
}

// Weights, activations and scratch memory that do not fit: a typed error, and the backend goes on. Nothing stays
// behind.
DULTRA_TEST(cuda_out_of_memory, small) {
  const size_t before = emulator::memory_in_use();
  {
    cuda::CudaBackend backend(0, Compute::kF32);
    std::vector<float> x(1000, 2.0f);
    void* held = backend.allocate(4000);
    backend.upload(held, x.data(), 4000);
    const size_t in_use = emulator::memory_in_use();
    emulator::set_memory_limit(in_use + (1 << 20));
    for (const auto& greedy : std::vector<std::function<void()>>{
             [&] { backend.allocate(size_t(2) << 20); },
             [&] {
               backend.make_matrix({{x.data(), DType::kF32, 1 << 20}}, 1, DType::kF32);
             },
             [&] {
               std::vector<int32_t> ids(size_t(8) << 20);
               backend.embedding_forward(static_cast<float*>(held), held, DType::kF32, ids.data(), int64_t(ids.size()),
                                         0);
             },
         }) {
      ErrorCode code = ErrorCode::kInternal;
      try {
        greedy();
      } catch (const Error& error) {
        code = error.code();
      }
      CHECK(code == ErrorCode::kOutOfMemory, error_code_name(code));
    }
    emulator::set_memory_limit(size_t(1) << 40);
    backend.silu_forward(static_cast<float*>(held), 1000);
    backend.download(x.data(), held, 4000);
    CHECK(std::fabs(x[999] - 2 / (1 + std::exp(-2.0f))) < 1e-6f, x[999]);
    backend.release(held);
  }
  CHECK(emulator::memory_in_use() == before, emulator::memory_in_use() - before, " bytes stayed behind");
}

#endif

// Arrays in host memory take the ring, whatever their number and size; those in device memory are used where they are.
DULTRA_TEST(cuda_host_and_device_arrays, small) {
  cuda::CudaBackend backend(0, Compute::kF32);
  const int64_t m = 3000, c = 8;
  Random random(9);
  const std::vector<float> table = normals(random, size_t(m * c));
  std::vector<float> out(table.size());
  auto* x = static_cast<float*>(backend.allocate(table.size() * 4));
  auto* y = static_cast<float*>(backend.allocate(table.size() * 4));
  auto* on_device = static_cast<int32_t*>(backend.allocate(size_t(m) * 4));
  backend.upload(x, table.data(), table.size() * 4);
  std::vector<int32_t> index(static_cast<size_t>(m));
  for (int round = 0; round < 1000; ++round) {  // 12 MB in all: the ring turns round
    for (int64_t i = 0; i < m; ++i) index[size_t(i)] = int32_t((i * 7 + round) % m);
    if (round % 10 == 9) {
      backend.upload(on_device, index.data(), index.size() * 4);
      backend.gather_rows(y, x, on_device, m, c);
    } else {
      backend.gather_rows(y, x, index.data(), round % 10 == 8 ? m : 5, c);
    }
    if (round % 100 < 98) continue;
    backend.download(out.data(), y, out.size() * 4);
    bool good = true;
    for (int64_t i = 0; i < m; ++i)
      good = good && same_bits(&out[size_t(i * c)], &table[size_t(index[size_t(i)] * c)], size_t(c));
    CHECK(good, "round ", round);
  }
  for (void* pointer : {static_cast<void*>(x), static_cast<void*>(y), static_cast<void*>(on_device)})
    backend.release(pointer);
}

// A matrix in blocks that is written out a piece at a time is multiplied as one that is written out at once.
DULTRA_TEST(cuda_blocks_in_pieces, small) {
  constexpr int64_t kN = 150, kK = 512, kM = 3, kFew = 512;  // pieces of 64 rows, and of 256 columns
  for (Compute compute : {Compute::kF32, Compute::kBF16}) {
    cuda::CudaBackend whole(0, compute, true), pieces(0, compute, true, kFew);
    Random random(17);
    const std::vector<float> w = normals(random, kN * kK), x = normals(random, kM * kK), bias = normals(random, kN),
                             dy = normals(random, kM * kN);
    std::vector<uint8_t> blocks(size_t(kN * block_row_bytes(BlockType::kIQ4_NL, kK)));
    encode_blocks(blocks.data(), w.data(), BlockType::kIQ4_NL, kN * kK);
    std::vector<float> out[2], dx[2];
    for (int i : {0, 1}) {
      Backend& backend = i == 0 ? whole : pieces;
      const auto matrix =
          backend.make_block_matrix({{blocks.data(), BlockType::kIQ4_NL, kN, 5, nullptr}}, kK, 1, false);
      out[i].assign(kM * kN, 0.5f);
      dx[i].assign(kM * kK, 0.5f);
      backend.linear_forward(out[i].data(), kN, x.data(), kM, *matrix, bias.data(), true);
      backend.linear_backward_input(dx[i].data(), dy.data() + 1, kN, *matrix, 1, kN - 3, kM, true);
    }
    CHECK(same_bits(out[0].data(), out[1].data(), out[0].size()), "forward, compute ", int(compute));
    CHECK(same_bits(dx[0].data(), dx[1].data(), dx[0].size()), "backward, compute ", int(compute));
  }
}

DULTRA_TEST(cuda_device_that_does_not_exist, small) {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
  try {
    cuda::CudaBackend backend(300, Compute::kF32);
  } catch (const Error& error) {
    code = error.code();
    message = error.what();
  }
  CHECK(code == ErrorCode::kDeviceUnavailable && message.find("cuda:300") != std::string::npos, message);
}

}  // namespace
}  // namespace test
}  // namespace dultra
#endif
