// Sessions and forward passes on a cache, against a double-precision model that keeps keys and values the same way.
#include <cmath>
#include <map>
#include <thread>

#include "harness.h"
#include "model_fixture.h"

namespace dultra {
namespace test {

namespace {

using Row = std::vector<double>;
using Rows = std::vector<Row>;

// The base model in double: one row, keys and values of every position kept, rounded to bf16 where the cache's are; or
// everything that an operation writes, as a model does that stores all of its activations in it.
class DoubleModel {
 public:
  DoubleModel(const Model& model, int32_t length, DType dtype, bool all_bf16 = false)
      : config_(model.config()), dtype_(dtype), all_bf16_(all_bf16) {
    for (NamedTensor& tensor : model.weights().read_all(nullptr)) weights_[tensor.name] = std::move(tensor.data);
    keys_.assign(size_t(config_.layers), Rows(size_t(length)));
    values_ = keys_;
  }

  // Logits of the positions that the pass computes.
  Rows pass(const std::vector<int32_t>& positions, const std::vector<int32_t>& ids) {
    const size_t c = size_t(config_.hidden);
    Rows x;
    for (int32_t id : ids) {
      const float* row = &weights_.at("model.transformer.wte.weight")[size_t(id) * c];
      x.emplace_back(row, row + c);
    }
    for (int i = 0; i < config_.layers; ++i) block(size_t(i), positions, &x);
    Rows logits;
    for (const Row& row : x)
      logits.push_back(linear("model.transformer.ff_out.weight", norm(row, "model.transformer.ln_f.weight")));
    return logits;
  }

 private:
  static void round(Row* x) {
    for (double& value : *x) value = double(bf16_to_f32(f32_to_bf16(float(value))));
  }
  Row stored(Row x) const {
    if (all_bf16_) round(&x);
    return x;
  }
  Row linear(const std::string& name, const Row& x) const {
    const std::vector<float>& w = weights_.at(name);
    Row out(w.size() / x.size());
    for (size_t o = 0; o < out.size(); ++o)
      for (size_t i = 0; i < x.size(); ++i) out[o] += double(w[o * x.size() + i]) * x[i];
    return stored(out);
  }
  Row norm(const Row& x, const std::string& name) const {
    double squares = 0;
    for (double value : x) squares += value * value;
    Row out = x;
    for (size_t i = 0; i < x.size(); ++i)
      out[i] *= double(weights_.at(name)[i]) / std::sqrt(squares / double(x.size()) + double(config_.rms_norm_eps));
    return stored(out);
  }
  // Every head normed, where the model norms them, and rotated.
  void place(Row* x, const std::string& norm_name, int32_t position) const {
    const size_t d = size_t(config_.head_dim), half = size_t(config_.rope.dim) / 2;
    const std::vector<float> frequencies = rope_frequencies(config_.rope);
    for (size_t head = 0; head < x->size(); head += d) {
      if (config_.qk_norm) {
        const Row normed = norm({x->begin() + long(head), x->begin() + long(head + d)}, norm_name);
        std::copy(normed.begin(), normed.end(), x->begin() + long(head));
      }
      for (size_t j = 0; j < half; ++j) {
        const double angle = position * double(frequencies[j]);
        const double a = (*x)[head + j], b = (*x)[head + j + half];
        (*x)[head + j] = a * std::cos(angle) - b * std::sin(angle);
        (*x)[head + j + half] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
    *x = stored(*x);
  }
  void block(size_t layer, const std::vector<int32_t>& positions, Rows* x) {
    const std::string at = "model.transformer.blocks." + std::to_string(layer) + ".";
    const size_t d = size_t(config_.head_dim), heads = size_t(config_.heads), group = heads / size_t(config_.kv_heads);
    Rows q;
    for (size_t i = 0; i < x->size(); ++i) {
      const Row normed = norm((*x)[i], at + "attn_norm.weight");
      const size_t p = size_t(positions[i]);
      q.push_back(linear(at + "q_proj.weight", normed));
      place(&q.back(), at + "q_norm.weight", positions[i]);
      keys_[layer][p] = linear(at + "k_proj.weight", normed);
      place(&keys_[layer][p], at + "k_norm.weight", positions[i]);
      values_[layer][p] = linear(at + "v_proj.weight", normed);
      if (dtype_ == DType::kF32) continue;
      round(&keys_[layer][p]);
      round(&values_[layer][p]);
    }
    for (size_t i = 0; i < x->size(); ++i) {
      Row attended(heads * d);
      for (size_t h = 0; h < heads; ++h) {
        const size_t kv = h / group * d;
        Row score;
        double most = -INFINITY, total = 0;
        for (const Row& key : keys_[layer]) {
          double dot = 0;
          for (size_t e = 0; e < d; ++e) dot += q[i][h * d + e] * key[kv + e];
          score.push_back(dot / std::sqrt(double(d)));
          most = std::max(most, score.back());
        }
        for (double& s : score) total += s = std::exp(s - most);
        for (size_t j = 0; j < score.size(); ++j)
          for (size_t e = 0; e < d; ++e) attended[h * d + e] += score[j] / total * values_[layer][j][kv + e];
      }
      Row& row = (*x)[i];
      const Row out = linear(at + "attn_out.weight", stored(attended));
      for (size_t j = 0; j < row.size(); ++j) row[j] += out[j];
      row = stored(row);
      const Row inner = norm(row, at + "ff_norm.weight");
      Row gate = linear(at + "ff_proj.weight", inner);
      const Row up = linear(at + "up_proj.weight", inner);
      for (size_t j = 0; j < gate.size(); ++j) gate[j] = gate[j] / (1 + std::exp(-gate[j])) * up[j];
      const Row mlp = linear(at + "ff_out.weight", stored(gate));
      for (size_t j = 0; j < row.size(); ++j) row[j] += mlp[j];
      row = stored(row);
    }
  }

  const ModelConfig config_;
  const DType dtype_;
  const bool all_bf16_;
  std::map<std::string, std::vector<float>> weights_;
  std::vector<Rows> keys_, values_;
};

std::vector<int32_t> upto(int32_t n) {
  std::vector<int32_t> out;
  for (int32_t i = 0; i < n; ++i) out.push_back(i);
  return out;
}

// The same request for a session with a cache, computing `queries` of each row.
SessionRequest cached_request(const std::vector<int32_t>& offsets, uint32_t step,
                              const std::vector<std::vector<int32_t>>& queries) {
  SessionRequest request = request_for(offsets, step);
  request.query_offsets.push_back(0);
  for (const auto& row : queries) {
    request.queries.insert(request.queries.end(), row.begin(), row.end());
    request.query_offsets.push_back(int32_t(request.queries.size()));
  }
  return request;
}

bool same(const StepResult& a, const StepResult& b) {
  return a.tokens == b.tokens && a.selected == b.selected && a.positions == b.positions && a.timesteps == b.timesteps &&
         same_bits(a.log_probs.data(), b.log_probs.data(), a.log_probs.size()) &&
         a.planner_logits.size() == b.planner_logits.size() &&
         same_bits(a.planner_logits.data(), b.planner_logits.data(), a.planner_logits.size());
}

}  // namespace

void check_forward(const ModelConfig& config) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const RandomCheckpoint checkpoint(config, DType::kF32, 31);
    const auto model = checkpoint.load(2);
    Random random(32);
    const std::vector<int32_t> lengths = {13, 1, 34}, offsets = {0, 13, 14, 48};
    KvCacheOptions options;
    options.dtype = dtype;
    const auto cache = make_cache(model, offsets, options);
    CHECK(cache->bytes() == KvCache::bytes_needed(checkpoint.config, 48, options), "bytes");
    std::vector<DoubleModel> reference;
    for (int32_t length : lengths) reference.emplace_back(*model, length, dtype);
    for (int pass = 0; pass < 6; ++pass) {
      std::vector<std::vector<int32_t>> positions, ids;
      std::vector<int32_t> all_positions, all_ids, pass_offsets = {0};
      for (int32_t length : lengths) {
        positions.emplace_back();
        ids.emplace_back();
        for (int32_t p = 0; p < length; ++p) {
          if (pass > 0 && random.below(3) > 0) continue;
          positions.back().push_back(p);
          ids.back().push_back(random.below(50));
        }
        all_positions.insert(all_positions.end(), positions.back().begin(), positions.back().end());
        all_ids.insert(all_ids.end(), ids.back().begin(), ids.back().end());
        pass_offsets.push_back(int32_t(all_ids.size()));
      }
      const ForwardResult result = run_forward(*model, all_ids, pass_offsets, true, cache, all_positions);
      // A number between two of bf16 may be rounded to either.
      const double tolerance = dtype == DType::kF32 ? 1e-4 : 5e-3;
      const float* logits = result.logits.data();
      for (size_t b = 0; b < lengths.size(); ++b)
        for (const Row& row : reference[b].pass(positions[b], ids[b])) {
          CHECK(worst_error(logits, row.data(), row.size(), tolerance, tolerance) <= 1, "pass ", pass, " row ", b);
          logits += row.size();
        }
    }
  }
}

DULTRA_TEST(kv_cache_forward_matches_double) {
  check_forward(small_config());
  check_forward(normed_heads_config());
}

// In bf16 the logits are off by no more than twice what they are off where every activation is rounded to it.
DULTRA_TEST(kv_cache_forward_in_bf16) {
  LoadOptions weights;
  weights.compute = Compute::kBF16;
  if (!make_model_backend(1)->supports(weights.compute)) return;
  for (const ModelConfig& config : {small_config(), wide_config()})
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      const RandomCheckpoint checkpoint(config, DType::kBF16, 51);
      const auto model = checkpoint.load(2, weights);
      const int32_t length = 23;
      KvCacheOptions options;
      options.dtype = dtype;
      const auto cache = make_cache(model, {0, length}, options);
      CHECK(cache->layer(0).dtype == (dtype == DType::kF32 ? model->backend().activation_dtype() : DType::kBF16),
            "held as computed");
      DoubleModel exact(*model, length, DType::kF32), rounded(*model, length, dtype, true);
      Random random(52);
      std::vector<int32_t> ids;
      for (int32_t i = 0; i < length; ++i) ids.push_back(random.below(50));
      double ours = 0, plain = 0;
      for (int pass = 0; pass < 3; ++pass) {
        std::vector<int32_t> positions, pass_ids;
        for (int32_t p = pass; p < length; p += 1 + 2 * pass) {
          positions.push_back(p);
          pass_ids.push_back(ids[size_t(p)]);
        }
        const ForwardResult result =
            run_forward(*model, pass_ids, {0, int32_t(positions.size())}, true, cache, positions);
        const Rows expected = exact.pass(positions, pass_ids), low = rounded.pass(positions, pass_ids);
        for (size_t i = 0; i < expected.size(); ++i)
          for (size_t j = 0; j < expected[i].size(); ++j) {
            const double value = double(result.logits.data()[i * expected[i].size() + j]);
            ours += (value - expected[i][j]) * (value - expected[i][j]);
            plain += (low[i][j] - expected[i][j]) * (low[i][j] - expected[i][j]);
          }
      }
      CHECK(std::sqrt(ours) <= 2 * std::sqrt(plain) && plain > 0, "head dimension ", config.head_dim, " cache ",
            int(dtype), " error ", std::sqrt(ours), ", plain ", std::sqrt(plain));
    }
}

// Computing everything is what a session without a cache does, bit for bit; rows of a batch are as they are alone; so
// with any threads.
void check_sessions(const LoadOptions& weights) {
  const RandomCheckpoint checkpoint(weights.compute == Compute::kBF16 ? wide_config() : small_config(), DType::kBF16,
                                    33);
  const auto model = checkpoint.load(2, weights), alone_model = checkpoint.load(1, weights);
  Random random(34);
  std::vector<int32_t> ids, offsets;
  make_rows(random, checkpoint.config, 3, &ids, &offsets);
  std::vector<std::vector<int32_t>> whole;
  for (size_t r = 0; r < 3; ++r) whole.push_back(upto(offsets[r + 1] - offsets[r]));
  for (PlannerCache planner : {PlannerCache::kBlocks, PlannerCache::kHidden}) {
    KvCacheOptions options;
    options.planner = planner;
    Session plain(model, ids, offsets), full(model, ids, offsets, make_cache(model, offsets, options));
    for (uint32_t step = 0; step < 4; ++step)
      CHECK(same(plain.step(request_for(offsets, step)), full.step(cached_request(offsets, step, whole))),
            "whole, step ", step);

    Session together(model, ids, offsets, make_cache(model, offsets, options));
    std::vector<Session*> alone;
    std::vector<std::unique_ptr<Session>> owned;
    for (size_t r = 0; r < 3; ++r) {
      const std::vector<int32_t> own(ids.begin() + offsets[r], ids.begin() + offsets[r + 1]),
          own_offsets = {0, offsets[r + 1] - offsets[r]};
      owned.push_back(
          std::make_unique<Session>(alone_model, own, own_offsets, make_cache(alone_model, own_offsets, options)));
    }
    for (uint32_t step = 0; step < 5; ++step) {
      auto queries = whole;
      if (step > 0)
        for (auto& row : queries) row.erase(row.begin(), row.begin() + 2);
      // The middle row sits out every other step.
      SessionRequest request = cached_request(offsets, step, queries);
      if (step % 2 == 1) {
        request = cached_request(offsets, step, {queries[0], queries[2]});
        request.rows = {0, 2};
        request.window_ends = {request.window_ends[0], request.window_ends[2]};
        request.row_keys = {0, 2};
        request.steps.pop_back();
      }
      const StepResult result = together.step(request);
      for (size_t i = 0; i < request.rows.size(); ++i) {
        const size_t r = size_t(request.rows[i]);
        SessionRequest one = cached_request({0, offsets[r + 1] - offsets[r]}, step, {queries[r]});
        one.row_keys = {uint32_t(r)};
        const StepResult single = owned[r]->step(one);
        const size_t begin = size_t(result.offsets[i]), count = single.tokens.size();
        CHECK(size_t(result.offsets[i + 1]) == begin + count, "candidates of row ", r);
        CHECK(std::equal(single.tokens.begin(), single.tokens.end(), result.tokens.begin() + long(begin)),
              "tokens of row ", r);
        CHECK(same_bits(single.planner_logits.data(), result.planner_logits.data() + begin, count),
              "planner logits of row ", r, " step ", step);
      }
    }
  }
}

DULTRA_TEST(kv_cache_sessions, small, slow_with_threads) {
  for (const LoadOptions& weights : computes()) check_sessions(weights);
}

DULTRA_TEST(kv_cache_bad_requests) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 35);
  const auto model = checkpoint.load(1);
  const int invalid = int(ErrorCode::kInvalidArgument);
  const std::vector<int32_t> ids = {1, 49, 49, 2, 49}, offsets = {0, 5};
  KvCacheOptions with_planner;
  with_planner.planner = PlannerCache::kBlocks;
  const auto cache = make_cache(model, offsets, with_planner);
  CHECK(thrown([&] {
          Session(model, {1, 49, 49, 2, 49, 3}, {0, 6}, cache).step(cached_request({0, 6}, 0, {upto(6)}));
        }) == invalid,
        "a row longer than the cache");
  CHECK(thrown([&] { Session(checkpoint.load(1), ids, offsets, cache).step(cached_request(offsets, 0, {upto(5)})); }) ==
            invalid,
        "another model's cache");
  CHECK(thrown([&] { make_cache(model, {0}, with_planner); }) == invalid, "no rows");
  CHECK(thrown([&] { make_cache(model, {0, 65}, with_planner); }) == invalid, "too long");
  Session session(model, ids, offsets, cache);
  const auto step = [&](
                        std::vector<std::vector<int32_t>> queries,
                        const std::function<void(SessionRequest&)>& change = [](SessionRequest&) {}) {
    SessionRequest request = cached_request(offsets, 0, queries);
    request.select = false;
    change(request);
    return thrown([&] { session.step(request); });
  };
  CHECK(step({{1, 2, 4}}) == invalid, "nothing is cached yet");
  CHECK(step({{0, 1, 2, 3, 4}}) == -1, "everything");
  CHECK(step({{1, 2, 4}}) == -1, "the masks");
  CHECK(step({{1, 2}}, [](SessionRequest& r) { r.window_ends = {3}; }) == -1, "the masks of a window");
  CHECK(step({{1, 1, 2}}) == invalid, "a position twice");
  CHECK(step({{2, 5}}) == invalid, "a position beyond the row");
  CHECK(step({{-1, 2}}) == invalid, "a negative position");
  CHECK(step({}) == invalid, "no positions");
  const auto given = [](std::vector<int32_t> candidates) {
    return [=](SessionRequest& r) {
      r.candidates = candidates;
      r.candidate_offsets = {0, int32_t(candidates.size())};
    };
  };
  CHECK(step({{1, 2, 3}}, given({1, 3})) == -1, "given candidates");
  CHECK(step({{1, 2, 3}}, given({1, 4})) == invalid, "a candidate that is not computed");
  CHECK(step({{1, 2, 3}}, given({2, 1})) == invalid, "candidates out of order");
  CHECK(step({{1, 2, 3}}, given({})) == -1, "no candidates: keys and values alone");

  Session without(model, ids, offsets, make_cache(model, offsets, {}));
  CHECK(thrown([&] { without.step(cached_request(offsets, 0, {upto(5)})); }) == invalid,
        "a planner on a cache that was made for none");

  // A pass that is cancelled leaves nothing behind.
  Session cancelled(model, ids, offsets, cache);
  cancelled.cancel();
  CHECK(thrown([&] { cancelled.step(cached_request(offsets, 0, {upto(5)})); }) == int(ErrorCode::kAborted),
        "cancelled");
  CHECK(step({{1, 2, 4}}) == invalid, "after a pass that did not come to its end");
  CHECK(step({{0, 1, 2, 3, 4}}) == -1, "and everything again");
}

DULTRA_TEST(kv_cache_from_several_threads) {
  // Sessions and forward passes on one cache take turns.
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 36);
  const auto model = checkpoint.load(2);
  const std::vector<int32_t> offsets = {0, 20};
  std::vector<int32_t> ids(20, 49);
  const auto cache = make_cache(model, offsets, {});
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      for (int repeat = 0; repeat < 10; ++repeat) {
        if (t == 0) {
          run_forward(*model, ids, offsets, false, cache, upto(20));
        } else {
          Session session(model, ids, offsets, cache);
          SessionRequest request = cached_request(offsets, 0, {upto(20)});
          request.rule = UnmaskRule::kThreshold;
          session.step(request);
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(cache->read(0, 0).size() == 20 * 16, cache->read(0, 0).size());
}

}  // namespace test
}  // namespace dultra
