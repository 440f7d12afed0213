// Mixtures of experts: the choice, rows by their experts, products with the matrices of experts, and a whole mixture
// with its gradients.
#include <algorithm>
#include <set>

#include "harness.h"
#include "model/memory_plan.h"
#include "model/trainer.h"
#include "model_fixture.h"

namespace dultra {
namespace test {
namespace {

struct Routed {
  std::vector<int32_t> expert;
  std::vector<double> weight;
};

// The choice for one row in double, by sorting all experts.
Routed route_reference(const RouteArgs& a, const double* logits) {
  const int e = a.experts;
  std::vector<double> score(static_cast<size_t>(e)), rank(score);
  double sum = 0;
  for (int i = 0; i < e; ++i) sum += std::exp(logits[i]);
  for (int i = 0; i < e; ++i) {
    score[size_t(i)] = a.sigmoid ? 1 / (1 + std::exp(-logits[i])) : std::exp(logits[i]) / sum;
    rank[size_t(i)] = score[size_t(i)] + (a.bias ? double(a.bias[i]) : 0);
  }
  const int size = e / a.groups;
  std::vector<std::pair<double, int>> groups;
  for (int g = 0; g < a.groups; ++g) {
    std::vector<double> own(rank.begin() + g * size, rank.begin() + (g + 1) * size);
    std::sort(own.rbegin(), own.rend());
    groups.emplace_back(-(own[0] + (size > 1 ? own[1] : 0)), g);
  }
  std::sort(groups.begin(), groups.end());
  std::set<int> kept;
  for (int g = 0; g < a.groups_kept; ++g) kept.insert(groups[size_t(g)].second);
  std::vector<std::pair<double, int>> order;
  for (int i = 0; i < e; ++i)
    if (kept.count(i / size)) order.emplace_back(-rank[size_t(i)], i);
  std::sort(order.begin(), order.end());
  Routed out;
  double total = 0;
  for (int j = 0; j < a.per_row; ++j) {
    const int i = order[size_t(j)].second;
    out.expert.push_back(i);
    out.weight.push_back(a.bias_in_weights ? rank[size_t(i)] : score[size_t(i)]);
    total += out.weight.back();
  }
  for (double& w : out.weight) w = (a.normalise ? w / (total + 1e-20) : w) * double(a.scale);
  return out;
}

struct RouteCase {
  int experts, per_row;
  bool sigmoid, bias, bias_in_weights;
  int groups, groups_kept;
  bool normalise;
  float scale;
};
const std::vector<RouteCase> kRoutes{
    {2, 1, false, false, false, 1, 1, false, 1},   {8, 2, false, true, true, 1, 1, false, 1},
    {8, 2, true, true, false, 4, 2, true, 2.5f},   {6, 3, true, true, false, 2, 1, true, 1.5f},
    {33, 33, true, false, false, 1, 1, true, 1},   {64, 8, false, false, false, 1, 1, true, 3},
    {256, 8, true, true, false, 8, 4, true, 2.5f}, {1024, 5, true, true, true, 512, 70, true, 1},
};

RouteArgs args_of(const RouteCase& c, int64_t m, const float* logits, const float* bias, int32_t* expert,
                  float* weight) {
  RouteArgs args{};
  args.logits = logits;
  args.m = m;
  args.experts = c.experts;
  args.per_row = c.per_row;
  args.sigmoid = c.sigmoid;
  args.bias = c.bias ? bias : nullptr;
  args.bias_in_weights = c.bias_in_weights;
  args.groups = c.groups;
  args.groups_kept = c.groups_kept;
  args.normalise = c.normalise;
  args.scale = c.scale;
  args.expert = expert;
  args.weight = weight;
  return args;
}

DULTRA_TEST(route_matches_double, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (const RouteCase& c : kRoutes)
      for (int64_t m : {0, 1, 7}) {
        Random random(uint64_t(c.experts * 10 + m));
        const size_t k = size_t(c.per_row), e = size_t(c.experts);
        const std::vector<float> logits = normals(random, size_t(m) * e, 2), bias = normals(random, e, 0.3);
        Guarded<int32_t> expert(size_t(m) * k);
        Guarded<float> weight = poisoned(size_t(m) * k);
        const RouteArgs args = args_of(c, m, logits.data(), bias.data(), expert.data(), weight.data());
        backend.route_forward(args);
        const std::string where = text(isa, " experts ", c.experts, " M ", m);
        CHECK(expert.guards_intact() && weight.guards_intact(), where);
        for (size_t i = 0; i < size_t(m); ++i) {
          const std::vector<double> row(&logits[i * e], &logits[i * e] + e);
          const Routed expected = route_reference(args, row.data());
          CHECK(std::equal(expected.expert.begin(), expected.expert.end(), &expert[i * k]), where, " row ", i);
          CHECK(worst_error(&weight[i * k], expected.weight.data(), k, 1e-7, 4e-6) <= 1, where, " row ", i);
        }
        if (m < 2) continue;
        // A row alone gives the same bits.
        std::vector<int32_t> own(k);
        std::vector<float> own_weight(k);
        backend.route_forward(args_of(c, 1, &logits[size_t(m - 1) * e], bias.data(), own.data(), own_weight.data()));
        CHECK(std::equal(own.begin(), own.end(), &expert[size_t(m - 1) * k]) &&
                  same_bits(own_weight.data(), &weight[size_t(m - 1) * k], k),
              where);
      }
  });
}

DULTRA_TEST(route_ties_and_odd_numbers, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
    const RouteCase plain{8, 3, true, true, false, 1, 1, true, 1}, grouped{8, 3, true, true, false, 4, 2, true, 1};
    const std::vector<std::vector<float>> rows{{0, 0, 0, 0, 0, 0, 0, 0},
                                               {-kInf, 1, -kInf, 1, 1, -kInf, 1, 2},
                                               {kNan, 1, 2, kNan, 3, 4, kNan, kNan},
                                               {kNan, kNan, kNan, kNan, kNan, kNan, kNan, kNan}};
    const std::vector<std::vector<int32_t>> expected{{0, 1, 2}, {7, 1, 3}, {5, 4, 2}, {0, 1, 2}},
        in_groups{{0, 1, 2}, {7, 1, 6}, {5, 4, 1}, {0, 1, 2}};
    const std::vector<float> bias(8, 0.0f);
    for (size_t i = 0; i < rows.size(); ++i)
      for (bool groups : {false, true}) {
        std::vector<int32_t> expert(3);
        std::vector<float> weight(3);
        backend.route_forward(
            args_of(groups ? grouped : plain, 1, rows[i].data(), bias.data(), expert.data(), weight.data()));
        const std::vector<int32_t>& wanted = (groups ? in_groups : expected)[i];
        CHECK(expert == wanted, isa, " row ", i, " groups ", groups, ": ", expert[0], " ", expert[1], " ", expert[2]);
      }
  });
}

DULTRA_TEST(route_backward_matches_differences, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (const RouteCase& c : kRoutes) {
      Random random(uint64_t(c.experts));
      const size_t k = size_t(c.per_row), e = size_t(c.experts);
      const std::vector<float> logits = normals(random, e, 2), bias = normals(random, e, 0.3),
                               dweight = normals(random, k);
      std::vector<int32_t> expert(k);
      std::vector<float> weight(k);
      const RouteArgs args = args_of(c, 1, logits.data(), bias.data(), expert.data(), weight.data());
      backend.route_forward(args);
      Guarded<float> dlogits = poisoned(e);
      backend.route_backward({args, dweight.data(), dlogits.data()});
      CHECK(dlogits.guards_intact(), isa);
      const auto loss = [&](const std::vector<double>& at) {
        const Routed routed = route_reference(args, at.data());
        double sum = 0;
        for (size_t j = 0; j < k; ++j) sum += routed.weight[j] * double(dweight[j]);
        return sum;
      };
      check_gradient(dlogits.data(), logits, loss, 40, 1e-4, text(isa, " experts ", c.experts), 1e-6);
    }
  });
}

DULTRA_TEST(route_refuses_bad_arguments, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    const std::vector<float> logits(8, 0.0f);
    std::vector<int32_t> expert(8);
    std::vector<float> weight(8);
    const auto refused = [&](RouteCase c) {
      return thrown([&] {
               backend.route_forward(args_of(c, 1, logits.data(), nullptr, expert.data(), weight.data()));
             }) == int(ErrorCode::kInvalidArgument);
    };
    CHECK(refused({8, 9, true, false, false, 1, 1, true, 1}), isa, " more than there are");
    CHECK(refused({8, 2, true, false, false, 3, 1, true, 1}), isa, " groups that do not divide");
    CHECK(refused({8, 2, true, false, false, 8, 1, true, 1}), isa, " groups of one");
    CHECK(refused({8, 3, true, false, false, 4, 1, true, 1}), isa, " more than the groups have");
    CHECK(refused({2000, 2, true, false, false, 1, 1, true, 1}), isa, " too many");
  });
}

// Pairs of rows with experts, sorted.
struct Sorted {
  std::vector<int32_t> row, offset, place;
  ExpertRows rows;

  Sorted(Backend& backend, const std::vector<int32_t>& expert, int64_t m, int per_row, int experts)
      : row(expert.size()), offset(size_t(experts) + 1), place(expert.size()) {
    backend.sort_by_expert(row.data(), offset.data(), place.data(), expert.data(), m, per_row, experts);
    rows = {row.data(), offset.data(), m * per_row, experts};
  }
};
std::vector<int32_t> choose(Random& random, int64_t m, int per_row, int experts) {
  std::vector<int32_t> expert;
  for (int64_t i = 0; i < m; ++i) {
    std::set<int> own;
    // Some experts get no rows at all.
    while (int(own.size()) < per_row) own.insert(random.below(experts) * 2 / 3 + random.below(per_row));
    std::vector<int> order(own.begin(), own.end());
    std::reverse(order.begin(), order.end());
    for (int e : order) expert.push_back(e % experts);
  }
  return expert;
}

DULTRA_TEST(sort_by_expert_keeps_the_order, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int experts : {2, 9, 70})
      for (int64_t m : {0, 1, 40, 300}) {
        Random random(uint64_t(experts + m));
        const int per_row = 2;
        const std::vector<int32_t> expert = choose(random, m, per_row, experts);
        const Sorted sorted(backend, expert, m, per_row, experts);
        std::vector<int32_t> row, offset(1, 0), place(expert.size());
        for (int e = 0; e < experts; ++e) {
          for (size_t i = 0; i < expert.size(); ++i)
            if (expert[i] == e) {
              place[i] = int32_t(row.size());
              row.push_back(int32_t(i) / per_row);
            }
          offset.push_back(int32_t(row.size()));
        }
        CHECK(row == sorted.row && offset == sorted.offset && place == sorted.place, isa, " experts ", experts, " M ",
              m);
      }
  });
}

// Products with the matrices of experts give the bits of a product of the same row with one of them alone.
void check_experts(Backend& backend, const std::string& isa, DType storage, int64_t m, int64_t k, int64_t n) {
  const int experts = 5, per_row = 2;
  Random random(uint64_t(m * 100 + k + n));
  const std::string where = text(isa, " storage ", int(storage), " M ", m, " K ", k, " N ", n);
  const std::vector<float> w = normals(random, size_t(experts * n * k)), x = normals(random, size_t(m * k));
  const std::vector<int32_t> expert = choose(random, m, per_row, experts);
  const Sorted sorted(backend, expert, m, per_row, experts);
  const int64_t pairs = m * per_row;
  std::vector<MatrixPart> parts;
  for (int e = 0; e < experts; ++e) parts.push_back({&w[size_t(e * n * k)], DType::kF32, n});
  const auto matrix = backend.make_expert_matrix(parts, k, storage, experts);
  CHECK(matrix->experts() == experts && matrix->expert_rows() == n && matrix->rows() == experts * n, where);
  std::vector<float> unpacked(size_t(2 * n * k));
  matrix->unpack(unpacked.data(), n, 2 * n);
  if (storage == DType::kF32) CHECK(same_bits(unpacked.data(), &w[size_t(n * k)], unpacked.size()), where);

  Guarded<float> out = poisoned(size_t(pairs * n)), dx = poisoned(size_t(pairs * k));
  backend.experts_forward(out.data(), x.data(), false, sorted.rows, *matrix);
  // Each pair's row goes back through the same expert.
  std::vector<float> by_pair(out.data(), out.data() + out.size());
  backend.experts_backward_input(dx.data(), by_pair.data(), true, sorted.rows, *matrix);
  CHECK(out.guards_intact() && dx.guards_intact(), where);
  for (size_t i = 0; i < expert.size(); ++i) {
    const int64_t place = sorted.place[i];
    const auto own = backend.make_matrix({parts[size_t(expert[i])]}, k, storage);
    const float* row = &x[i / per_row * size_t(k)];
    std::vector<float> y(static_cast<size_t>(n));
    backend.linear_forward(y.data(), n, row, 1, *own, nullptr, false);
    std::vector<double> exact(y.begin(), y.end());
    // Tiles of several rows of a device sum in another order than cuBLASLt; on every set of the CPU the bits are equal.
    CHECK(std::string(backend.name()) == "cpu"
              ? same_bits(y.data(), &out[size_t(place * n)], y.size())
              : worst_error(&out[size_t(place * n)], exact.data(), y.size(), 1e-5, 1e-5) <= 1,
          where, " pair ", i);
    std::vector<float> back(static_cast<size_t>(k));
    backend.linear_backward_input(back.data(), &by_pair[size_t(place * n)], n, *own, 0, n, 1, false);
    exact.assign(back.begin(), back.end());
    CHECK(std::string(backend.name()) == "cpu"
              ? same_bits(back.data(), &dx[size_t(place * k)], back.size())
              : worst_error(&dx[size_t(place * k)], exact.data(), back.size(), 1e-4, 1e-5) <= 1,
          where, " pair ", i);
  }
  if (m < 3) return;
  // Neither the other rows nor threads change a row's bits.
  const auto other = make_backend(1, isa, backend.compute());
  const auto packed = other->make_expert_matrix(parts, k, storage, experts);
  const std::vector<int32_t> last(expert.end() - per_row, expert.end());
  const Sorted alone(*other, last, 1, per_row, experts);
  std::vector<float> few(size_t(per_row * n));
  other->experts_forward(few.data(), &x[size_t((m - 1) * k)], false, alone.rows, *packed);
  for (int j = 0; j < per_row; ++j)
    CHECK(same_bits(&few[size_t(alone.place[size_t(j)] * n)],
                    &out[size_t(sorted.place[expert.size() - size_t(per_row - j)] * n)], size_t(n)),
          where, " last row ", j);
}

DULTRA_TEST(experts_match_single_products, small) {
  for_each_arithmetic([](Backend& backend, const std::string& isa) {
    for (DType storage : {DType::kF32, DType::kBF16, DType::kF16}) {
      if (backend.compute() == Compute::kBF16 && storage == DType::kF16) continue;
      for (const auto& [k, n] : {std::pair<int64_t, int64_t>{7, 5}, {64, 48}, {130, 33}})
        for (int64_t m : {0, 1, 3}) check_experts(backend, isa, storage, m, k, n);
      check_experts(backend, isa, storage, 90, 33, 70);
    }
  });
}

DULTRA_TEST(combine_experts_and_the_gradient_of_their_weights, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    for (int64_t c : {1, 7, 300})
      for (int64_t m : {0, 1, 20}) {
        const int experts = 5, per_row = 3;
        Random random(uint64_t(c * 100 + m));
        const std::vector<int32_t> expert = choose(random, m, per_row, experts);
        const Sorted sorted(backend, expert, m, per_row, experts);
        const size_t pairs = expert.size();
        const std::vector<float> y = normals(random, pairs * size_t(c)), weight = normals(random, pairs),
                                 old = normals(random, size_t(m * c)), d = normals(random, pairs * size_t(c));
        std::vector<double> expected(old.begin(), old.end()), dweight(pairs), scaled(d.size());
        for (size_t i = 0; i < pairs; ++i)
          for (size_t j = 0; j < size_t(c); ++j) {
            const size_t at = size_t(sorted.place[i]) * size_t(c) + j;
            expected[i / per_row * size_t(c) + j] += double(weight[i]) * double(y[at]);
            dweight[i] += double(d[at]) * double(y[at]);
            scaled[at] = double(d[at]) * double(weight[i]);
          }
        Guarded<float> out = poisoned(old.size()), ones = poisoned(old.size()), dw = poisoned(pairs),
                       dy = poisoned(d.size());
        std::copy(old.begin(), old.end(), out.data());
        std::fill_n(ones.data(), ones.size(), 0.0f);
        std::copy(d.begin(), d.end(), dy.data());
        backend.combine_experts(out.data(), y.data(), sorted.place.data(), weight.data(), m, per_row, c);
        backend.combine_experts(ones.data(), y.data(), sorted.place.data(), nullptr, m, per_row, c);
        backend.expert_weights_backward(dw.data(), dy.data(), y.data(), sorted.place.data(), weight.data(), m, per_row,
                                        c);
        const std::string where = text(isa, " C ", c, " M ", m);
        CHECK(worst_error(out.data(), expected.data(), expected.size(), 2e-6, 1e-6) <= 1 && out.guards_intact(), where);
        CHECK(worst_error(dw.data(), dweight.data(), pairs, 2e-5, 1e-5) <= 1 && dw.guards_intact(), where);
        CHECK(worst_error(dy.data(), scaled.data(), scaled.size(), 0, 1e-6) <= 1 && dy.guards_intact(), where);
        std::vector<double> plain(old.size());
        for (size_t i = 0; i < pairs; ++i)
          for (size_t j = 0; j < size_t(c); ++j)
            plain[i / per_row * size_t(c) + j] += double(y[size_t(sorted.place[i]) * size_t(c) + j]);
        CHECK(worst_error(ones.data(), plain.data(), plain.size(), 2e-6, 1e-6) <= 1 && ones.guards_intact(), where);
      }
  });
}

DULTRA_TEST(clamp_forward_bounds, small) {
  for_each_backend([](Backend& backend, const std::string& isa) {
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> x{-3, -2, -1.5f, 0, 1, 2, 2.5f, kNan};
    backend.clamp_forward(x.data(), int64_t(x.size()), 2);
    const std::vector<float> expected{-2, -2, -1.5f, 0, 1, 2, 2};
    CHECK(std::equal(expected.begin(), expected.end(), x.begin()) && std::isnan(x[7]), isa);
  });
}

// ---- a whole mixture ----------------------------------------------------------------------------

ModelConfig mixture_config(bool sigmoid) {
  ModelConfig config = small_config();
  config.experts.count = 6;
  config.experts.per_token = 2;
  config.experts.hidden = 10;
  config.experts.shared_hidden = sigmoid ? 12 : 0;
  config.experts.sigmoid = config.experts.normalise = sigmoid;
  config.experts.scale = sigmoid ? 1.5f : 1;
  config.experts.bias = sigmoid ? ExpertBias::kChoice : ExpertBias::kWeight;
  config.experts.groups = sigmoid ? 3 : 1;
  config.experts.groups_kept = sigmoid ? 2 : 1;
  config.experts.layers = {false, true};
  return config;
}

double silu(double x) { return x / (1 + std::exp(-x)); }

// out (C) += factor * down(silu(gate x) * up x)
void mlp_reference(std::vector<double>& out, const double* x, double factor, const std::vector<float>& gate,
                   const std::vector<float>& up, const std::vector<float>& down) {
  const size_t c = out.size(), f = gate.size() / c;
  for (size_t j = 0; j < f; ++j) {
    double g = 0, u = 0;
    for (size_t i = 0; i < c; ++i) {
      g += double(gate[j * c + i]) * x[i];
      u += double(up[j * c + i]) * x[i];
    }
    for (size_t i = 0; i < c; ++i) out[i] += factor * double(down[i * f + j]) * silu(g) * u;
  }
}

// The mixture of the second block in double, of one token.
struct MixtureReference {
  const ModelConfig& config;
  std::vector<float> router, bias, shared[3];
  std::vector<std::vector<float>> experts[3];

  MixtureReference(const ModelConfig& shape, const Weights& weights) : config(shape) {
    const std::string block = "model.transformer.blocks.1.";
    router = weights.read(block + "router.weight");
    bias = weights.read(block + "router.bias");
    const char* names[] = {"ff_proj", "up_proj", "ff_out"};
    for (int part = 0; part < 3; ++part) {
      if (config.experts.shared_hidden) shared[part] = weights.read(block + names[part] + ".weight");
      for (int e = 0; e < config.experts.count; ++e)
        experts[part].push_back(weights.read(block + "experts." + std::to_string(e) + "." + names[part] + ".weight"));
    }
  }
  std::vector<double> operator()(const double* x) const {
    const ExpertsConfig& shape = config.experts;
    std::vector<double> out(size_t(config.hidden)), logits(size_t(shape.count));
    for (size_t e = 0; e < logits.size(); ++e)
      for (size_t i = 0; i < out.size(); ++i) logits[e] += double(router[e * out.size() + i]) * x[i];
    const RouteCase route{
        shape.count,  shape.per_token,   shape.sigmoid,   true,       shape.bias == ExpertBias::kWeight,
        shape.groups, shape.groups_kept, shape.normalise, shape.scale};
    const Routed routed = route_reference(args_of(route, 1, nullptr, bias.data(), nullptr, nullptr), logits.data());
    for (size_t j = 0; j < routed.expert.size(); ++j) {
      const size_t e = size_t(routed.expert[j]);
      mlp_reference(out, x, routed.weight[j], experts[0][e], experts[1][e], experts[2][e]);
    }
    if (shape.shared_hidden) mlp_reference(out, x, 1, shared[0], shared[1], shared[2]);
    return out;
  }
};

DULTRA_TEST(mixture_and_its_gradient_match_double, small) {
  for (bool sigmoid : {false, true}) {
    const RandomCheckpoint checkpoint(mixture_config(sigmoid), DType::kF32, 5 + uint64_t(sigmoid));
    const auto model = checkpoint.load(2);
    Backend& backend = model->backend();
    const MixtureReference reference(model->config(), model->weights());
    const int64_t m = 9, c = model->config().hidden;
    Random random(3);
    const std::vector<float> x = normals(random, size_t(m * c)), dout = normals(random, size_t(m * c));
    Workspace workspace(backend), gradients(backend), tapes(backend);
    TapeMemory memory(tapes);
    ForwardContext forward{model->config(), backend, workspace};
    forward.tape_memory = &memory;
    Parameters parameters(backend, DType::kF32);
    parameters.allocate();
    parameters.bind(model->weights());
    const auto device = [&](const std::vector<float>& values) {
      Buffer buffer(backend, values.size() * 4);
      backend.upload(buffer.as<void>(), values.data(), values.size() * 4);
      return buffer;
    };
    const auto host = [&](const float* values) {
      std::vector<float> out(size_t(m * c));
      backend.download(out.data(), values, out.size() * 4);
      return out;
    };
    const Buffer normed = device(x), upstream = device(dout);
    const Buffer out = device(std::vector<float>(size_t(m * c))), dnormed = device(x);
    const ExpertsWeights& weights = model->weights().blocks[1].experts;
    CHECK(bool(weights) && !model->weights().blocks[0].experts, "the second block alone has experts");
    ExpertsTape tape;
    experts_forward(forward, weights, 1, out.as(), normed.as(), m, &tape);
    const std::vector<float> result = host(out.as());
    std::vector<double> expected;
    for (int64_t i = 0; i < m; ++i) {
      const std::vector<double> row(&x[size_t(i * c)], &x[size_t(i * c)] + c);
      for (double value : reference(row.data())) expected.push_back(value);
    }
    CHECK(worst_error(result.data(), expected.data(), expected.size(), 1e-5, 1e-5) <= 1, "sigmoid ", sigmoid);

    // Without a tape the bits are the same, and so are they a row at a time.
    ForwardContext plain{model->config(), backend, workspace};
    for (int64_t i = 0; i < m; ++i)
      backend.fill_zero(out.as() + i * c, c),
          experts_forward(plain, weights, 1, out.as() + i * c, normed.as() + i * c, 1, nullptr);
    CHECK(same_bits(host(out.as()).data(), result.data(), result.size()), "sigmoid ", sigmoid);

    const BackwardContext backward{forward, gradients, parameters, tapes, memory.next()};
    experts_backward(backward, weights, dnormed.as(), upstream.as(), normed.as(), m, tape);
    const std::vector<float> dx = host(dnormed.as());
    const auto loss = [&](const std::vector<double>& at) {
      double sum = 0;
      for (int64_t i = 0; i < m; ++i) {
        const std::vector<double> y = reference(&at[size_t(i * c)]);
        for (int64_t j = 0; j < c; ++j) sum += y[size_t(j)] * double(dout[size_t(i * c + j)]);
      }
      return sum;
    };
    check_gradient(dx.data(), x, loss, 60, 1e-3, text("sigmoid ", sigmoid), 1e-5);
  }
}

DULTRA_TEST(mixture_trains_beside_its_experts, small) {
  const RandomCheckpoint checkpoint(mixture_config(true), DType::kF32, 4);
  std::string message;
  TrainerOptions all;
  CHECK(thrown([&] { Trainer trainer(checkpoint.load(1), all); }, &message) == int(ErrorCode::kInvalidArgument) &&
            message.find("experts and routers do not train") != std::string::npos,
        message);
  TrainerOptions experts;
  experts.lora = {2, 4, {"q_proj", "ff_proj"}};
  CHECK(thrown([&] { Trainer trainer(checkpoint.load(1), experts); }, &message) == int(ErrorCode::kInvalidArgument) &&
            message.find("experts.0.ff_proj.weight is one of them") != std::string::npos,
        message);
  TrainerOptions attention;
  attention.lora = {2, 4, {"q_proj", "v_proj"}};
  const auto model = checkpoint.load(1);
  Trainer adapters(model, attention);
  MemoryRequest request;
  request.config = checkpoint.config;
  request.trainer = attention;
  request.tokens = 100;
  request.on_device = std::string(model->backend().name()).rfind("cuda", 0) == 0;
  request.storage.assign(tensor_table(request.config).size(), DType::kF32);
  const MemoryPlan plan = plan_memory(request);
  int64_t trainable = 0;
  for (const auto& parameter : adapters.parameters()) trainable += parameter->n;
  CHECK(plan.parameters == model->weights().parameters() && plan.trainable == trainable, plan.parameters);
  // One layer; of each of the four experts that a token leaves aside three matrices.
  CHECK(plan.active == plan.parameters - 4 * 3 * 10 * request.config.hidden, plan.active);
  CHECK(plan.weights <= model->weights().bytes() + model->weights().bytes() / 2, plan.weights);
  request.trainer = all;
  CHECK(thrown([&] { plan_memory(request); }) == int(ErrorCode::kInvalidArgument), "what is refused is not planned");
  TrainerOptions planner;
  planner.freeze_base = true;
  Trainer head(checkpoint.load(1), planner);
}

DULTRA_TEST(mixture_steps_do_not_depend_on_neighbours, small) {
  for (const LoadOptions& options : computes()) {
    const RandomCheckpoint checkpoint(mixture_config(true), DType::kBF16, 8);
    const auto model = checkpoint.load(2, options), single = checkpoint.load(1, options);
    Random random(2);
    std::vector<int32_t> ids, offsets;
    make_rows(random, model->config(), 3, &ids, &offsets);
    const ForwardResult together = run_forward(*model, ids, offsets, true);
    for (size_t r = 0; r + 1 < offsets.size(); ++r) {
      const std::vector<int32_t> own(ids.begin() + offsets[r], ids.begin() + offsets[r + 1]);
      const ForwardResult alone = run_forward(*single, own, {0, int32_t(own.size())}, true);
      CHECK(
          same_bits(alone.logits.data(), together.logits.data() + int64_t(offsets[r]) * model->config().embedding_size,
                    alone.logits.size()),
          "row ", r, " compute ", int(options.compute));
    }
  }
}

}  // namespace
}  // namespace test
}  // namespace dultra
