// Checkpoints, models and sessions as the addon uses them: mapped files, several threads, cancelling, letting go while
// work runs. Numbers are checked in TypeScript against a reference of the whole model; here it is memory and threads,
// under the sanitizers.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

#include "harness.h"
#include "model/memory_plan.h"
#include "model/trainer.h"
#include "model_fixture.h"
#include "ops/adamw.h"

namespace dultra {
namespace test {

namespace {

// All tokens that a whole generation selects, in order, and their log-probabilities.
struct Trace {
  std::vector<int32_t> tokens;
  std::vector<float> log_probs, planner_logits;
  bool operator==(const Trace& other) const {
    return tokens == other.tokens && log_probs.size() == other.log_probs.size() &&
           same_bits(log_probs.data(), other.log_probs.data(), log_probs.size()) &&
           planner_logits.size() == other.planner_logits.size() &&
           same_bits(planner_logits.data(), other.planner_logits.data(), planner_logits.size());
  }
};

Trace generate(std::shared_ptr<const Model> model, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> ids, offsets;
  make_rows(random, model->config(), 1 + random.below(3), &ids, &offsets);
  Session session(std::move(model), ids, offsets);
  Trace trace;
  for (uint32_t step = 0; step < 64; ++step) {
    const StepResult result = session.step(request_for(offsets, step));
    if (result.positions.empty()) break;
    for (size_t i = 0; i < result.tokens.size(); ++i)
      if (result.selected[i]) trace.tokens.push_back(result.tokens[i]);
    trace.log_probs.insert(trace.log_probs.end(), result.log_probs.begin(), result.log_probs.end());
    trace.planner_logits.insert(trace.planner_logits.end(), result.planner_logits.begin(), result.planner_logits.end());
  }
  return trace;
}

}  // namespace

DULTRA_TEST(model_mapped_files) {
  const int bad = int(ErrorCode::kBadCheckpoint);
  CHECK(thrown([] { MappedFile file("/no/such/file"); }) == bad, "missing");
  CHECK(thrown([] { MappedFile file("/"); }) == bad, "a folder");
  const TemporaryFile empty{std::vector<uint8_t>()};
  CHECK(thrown([&] { MappedFile file(empty.path()); }) == bad, "empty");

  std::vector<uint8_t> content(3 * 65536 + 5);
  for (size_t i = 0; i < content.size(); ++i) content[i] = uint8_t(i * 31 + i / 256);
  const TemporaryFile temporary(content);
  const MappedFile file(temporary.path());
  CHECK(file.size() == content.size(), file.size());
  CHECK(std::memcmp(file.data(), content.data(), content.size()) == 0, "contents");
  // Forgotten bytes are read again from the file, whatever the range.
  const std::pair<uint64_t, uint64_t> ranges[] = {
      {0, content.size()}, {1, 2}, {5000, 5000}, {4095, 70001}, {content.size() - 1, content.size()}};
  for (const auto& range : ranges) {
    file.forget(range.first, range.second);
    CHECK(std::memcmp(file.data(), content.data(), content.size()) == 0, "after forgetting ", range.first, " to ",
          range.second);
  }
}

DULTRA_TEST(model_checkpoint_ranges) {
  std::vector<uint8_t> content(64, 0);
  const TemporaryFile file(content);
  const auto open = [&](uint64_t begin, uint64_t end, std::vector<int64_t> shape, DType dtype = DType::kF32,
                        int index = 0) {
    TensorRef ref;
    ref.name = "t";
    ref.file = index;
    ref.dtype = dtype;
    ref.shape = std::move(shape);
    ref.begin = begin;
    ref.end = end;
    const Checkpoint checkpoint({file.path()}, {ref});
    checkpoint.get("t", ref.shape);
  };
  const int bad = int(ErrorCode::kBadCheckpoint);
  CHECK(thrown([&] { open(0, 64, {16}); }) == -1, "the whole file");
  CHECK(thrown([&] { open(3, 43, {2, 5}); }) == -1, "not aligned");
  CHECK(thrown([&] { open(64, 64, {0, 5}); }) == -1, "nothing, at the end");
  CHECK(thrown([&] { open(4, 68, {16}); }) == bad, "beyond the end");
  CHECK(thrown([&] { open(8, 4, {1}); }) == bad, "the wrong way round");
  CHECK(thrown([&] { open(~uint64_t(0) - 3, ~uint64_t(0), {1}); }) == bad, "far beyond");
  CHECK(thrown([&] { open(0, 64, {15}); }) == bad, "too long for its shape");
  CHECK(thrown([&] { open(0, 64, {-16}); }) == bad, "negative");
  CHECK(thrown([&] { open(0, 64, {int64_t(1) << 62, 4}); }) == bad, "a product that wraps to 0");
  CHECK(thrown([&] { open(0, 0, {int64_t(1) << 32, int64_t(1) << 32}); }) == bad, "another one");
  CHECK(thrown([&] { open(0, 4, {1}, DType::kF32, 1); }) == bad, "no such file");
  CHECK(thrown([&] { open(0, 4, {1}, DType::kF32, -1); }) == bad, "a negative file");
  std::string message;
  TensorRef ref;
  ref.name = "here";
  ref.shape = {4};
  ref.end = 16;
  const Checkpoint checkpoint({file.path()}, {ref});
  CHECK(thrown([&] { checkpoint.get("gone", {4}); }, &message) == bad && message.find("gone") != std::string::npos,
        message);
  CHECK(thrown(
            [&] {
              checkpoint.get("here", {2, 2});
            },
            &message) == bad &&
            message.find("expected shape [2, 2], got [4]") != std::string::npos,
        message);
}

DULTRA_TEST(model_non_finite_weights) {
  const auto code = [](DType dtype, uint32_t bits, size_t at) {
    const size_t count = 10000, bytes = dtype_size(dtype);
    std::vector<uint8_t> content(1 + count * bytes, 0);
    std::memcpy(content.data() + 1 + at * bytes, &bits, bytes);
    const TemporaryFile file(content);
    TensorRef ref;
    ref.name = "weights";
    ref.dtype = dtype;
    ref.shape = {int64_t(count)};
    ref.begin = 1;
    ref.end = content.size();
    const Checkpoint checkpoint({file.path()}, {ref});
    std::string message;
    const int thrown_code = thrown([&] { checkpoint.get("weights", ref.shape); }, &message);
    if (thrown_code == int(ErrorCode::kNonFinite))
      CHECK(message.find("tensor weights") != std::string::npos &&
                message.find("element " + std::to_string(at) + ")") != std::string::npos,
            message);
    return thrown_code;
  };
  const int bad = int(ErrorCode::kNonFinite);
  for (size_t at : {size_t(0), size_t(4095), size_t(4096), size_t(9999)}) {
    for (uint32_t bits : {0x7f800000u, 0xff800000u, 0x7fc00000u, 0x7f800001u, 0xffffffffu})
      CHECK(code(DType::kF32, bits, at) == bad, bits, " at ", at);
    for (uint32_t bits : {0x7f80u, 0xff80u, 0x7f81u, 0xffffu})
      CHECK(code(DType::kBF16, bits, at) == bad, bits, " at ", at);
    for (uint32_t bits : {0x7c00u, 0xfc00u, 0x7c01u, 0xffffu})
      CHECK(code(DType::kF16, bits, at) == bad, bits, " at ", at);
    CHECK(code(DType::kF32, 0x7f7fffffu, at) == -1, "the largest fp32");
    CHECK(code(DType::kBF16, 0xff7fu, at) == -1, "the least bf16");
    CHECK(code(DType::kF16, 0x7bffu, at) == -1, "the largest fp16");
  }
}

DULTRA_TEST(model_shapes) {
  // Every variant loads, steps and answers finite numbers; its weights may lie at any address.
  for (DType dtype : {DType::kF32, DType::kBF16})
    for (int variant = 0; variant < 8; ++variant) {
      ModelConfig config = small_config();
      if (variant == 1) config.weight_tying = true;
      if (variant == 2) config.planner.use_adaln = false;
      if (variant == 3) config.planner.use_mask_embeddings = false, config.planner.layers = 0;
      if (variant == 4) config.layers = 0, config.kv_heads = 1;
      if (variant == 5) config.kv_heads = 6, config.planner.layers = 3;
      // Heads whose widths do not add up to C, and biases everywhere.
      if (variant == 6)
        config.head_dim = 6, config.qkv_bias = config.attn_out_bias = config.mlp_bias = config.head_bias = true;
      if (variant == 7) config.mask = MaskKind::kBlockCausal, config.block_length = 8;
      const RandomCheckpoint checkpoint(config, dtype, uint64_t(variant) + 1);
      for (DType storage : {DType::kF32, DType::kBF16, DType::kF16}) {
        LoadOptions options;
        options.keep_storage = storage == DType::kF16;
        options.storage = storage;
        const auto model = checkpoint.load(2, options);
        const Trace trace = generate(model, 3);
        bool finite = !trace.tokens.empty();
        for (float x : trace.planner_logits) finite = finite && std::isfinite(x);
        CHECK(finite, "variant ", variant);
      }
    }
}

// Progress ends with all bytes of all tensors, and every tensor adds to it; a load that is cancelled stays below.
DULTRA_TEST(model_load_progress) {
  for (DType dtype : {DType::kF32, DType::kBF16})
    for (int variant = 0; variant < 4; ++variant) {
      ModelConfig config = small_config();
      if (variant == 1) config.weight_tying = true;
      if (variant == 2) config.planner.use_adaln = false;
      if (variant == 3) config.planner.present = false;
      const RandomCheckpoint checkpoint(config, dtype, uint64_t(variant) + 1);
      const Checkpoint file({checkpoint.file->path()}, checkpoint.tensors);
      uint64_t all = 0;
      for (const TensorRef& tensor : checkpoint.tensors) all += tensor.end - tensor.begin;
      CHECK(file.bytes() == all, file.bytes());
      for (DType storage : {DType::kF32, DType::kBF16}) {
        WeightOptions options;
        options.keep_storage = false;
        options.storage = storage;
        LoadProgress progress;
        const Model model(config, make_model_backend(1), file, options, nullptr, &progress);
        CHECK(progress.total == all && progress.loaded == all, "variant ", variant, ": ", progress.loaded.load(),
              " of ", all);
      }
      LoadProgress progress;
      const std::atomic<bool> cancelled{true};
      CHECK(thrown([&] { Model(config, make_model_backend(1), file, {}, &cancelled, &progress); }) ==
                int(ErrorCode::kAborted),
            "cancelled");
      CHECK(progress.total == all && progress.loaded < all, "variant ", variant, ": ", progress.loaded.load());
    }
}

DULTRA_TEST(model_bad_requests) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 1);
  const auto model = checkpoint.load(1);
  const int invalid = int(ErrorCode::kInvalidArgument);
  const auto make = [&](std::vector<int32_t> ids, std::vector<int32_t> offsets) {
    StepRequest request;
    request.rules.resize(1);
    request.rules[0].select = false;
    request.ids = std::move(ids);
    request.offsets = std::move(offsets);
    request.window_ends.resize(request.rows());
    request.seeds.resize(request.rows());
    request.row_keys.resize(request.rows());
    request.steps.resize(request.rows());
    run_step(*model, request, nullptr);
  };
  CHECK(thrown([&] { make({1}, {0, 1}); }) == -1, "as it should be");
  CHECK(thrown([&] { make({50}, {0, 1}); }) == invalid, "an id too large");
  CHECK(thrown([&] { make({-1}, {0, 1}); }) == invalid, "a negative id");
  CHECK(thrown([&] { make({1}, {0}); }) == invalid, "no rows");
  CHECK(thrown([&] { make({1}, {}); }) == invalid, "no offsets");
  CHECK(thrown([&] { make({1, 2}, {0, 2, 1}); }) == invalid, "falling offsets");
  CHECK(thrown([&] { make({1, 2}, {0, 0, 2}); }) == invalid, "an empty row");
  CHECK(thrown([&] { make({1, 2}, {0, 2000000000, 2}); }) == invalid, "offsets beyond the ids");
  CHECK(thrown([&] { make(std::vector<int32_t>(65, 1), {0, 65}); }) == invalid, "too long");

  Session session(model, {1, 49, 49, 2}, {0, 4});
  const std::vector<int32_t> offsets = {0, 4};
  const auto step = [&](const std::function<void(SessionRequest&)>& change) {
    SessionRequest request = request_for(offsets, 0);
    request.select = false;
    change(request);
    return thrown([&] { session.step(request); });
  };
  CHECK(step([](SessionRequest&) {}) == -1, "as it should be");
  CHECK(step([](SessionRequest& r) { r.rows = {1}; }) == invalid, "no such row");
  CHECK(step([](SessionRequest& r) { r.rows = {-1}; }) == invalid, "a negative row");
  CHECK(step([](SessionRequest& r) { r.window_ends = {5}; }) == invalid, "a window beyond the row");
  CHECK(step([](SessionRequest& r) { r.window_ends = {-1}; }) == invalid, "a negative window");
  CHECK(step([](SessionRequest& r) { r.row_keys.clear(); }) == invalid, "lengths that differ");
  CHECK(step([](SessionRequest& r) { r.token_uniforms = {0.5}; }) == invalid, "too few uniforms");
  CHECK(step([](SessionRequest& r) { r.position_uniforms = {0.5}; }) == invalid, "too few uniforms of positions");
  CHECK(step([](SessionRequest& r) {
          r.select = true;
          r.rule = UnmaskRule::kFixed;
        }) == invalid,
        "no counts");

  ModelConfig plain = small_config();
  plain.planner.present = false;
  const auto without = RandomCheckpoint(plain, DType::kF32, 1).load(1);
  Session other(without, {1, 49}, {0, 2});
  CHECK(thrown([&] { other.step(request_for({0, 2}, 0)); }) == int(ErrorCode::kNoPlanner), "no planner");
}

DULTRA_TEST(model_two_at_once) {
  // Two models of different shapes, four threads each: the bits are those of one thread alone.
  ModelConfig other = small_config();
  other.hidden = 16;
  other.heads = 2;
  other.kv_heads = 1;
  other.head_dim = 8;
  other.planner.layers = 2;
  const RandomCheckpoint first(small_config(), DType::kF32, 1), second(other, DType::kBF16, 2);
  const std::shared_ptr<const Model> models[] = {first.load(2), second.load(3)};
  std::vector<Trace> alone;
  for (int i = 0; i < 8; ++i) alone.push_back(generate(models[i % 2], uint64_t(i)));
  std::vector<Trace> together(8);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&, i] {
      for (int repeat = 0; repeat < 2; ++repeat) together[size_t(i)] = generate(models[i % 2], uint64_t(i));
    });
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 8; ++i)
    CHECK(!alone[size_t(i)].tokens.empty() && together[size_t(i)] == alone[size_t(i)], "thread ", i);
}

DULTRA_TEST(model_load_while_another_runs) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 1);
  const auto model = checkpoint.load(2);
  const Trace expected = generate(model, 5);
  std::atomic<bool> stop{false};
  std::thread loader([&] {
    while (!stop) checkpoint.load(2);
  });
  for (int i = 0; i < 10; ++i) CHECK(generate(model, 5) == expected, "generation ", i);
  stop = true;
  loader.join();
  // A model whose file is gone goes on: nothing is read from it after loading.
  auto kept = std::make_unique<RandomCheckpoint>(small_config(), DType::kF32, 1);
  const auto orphan = kept->load(1);
  kept.reset();
  CHECK(generate(orphan, 5) == expected, "without its file");
}

DULTRA_TEST(model_steps_from_several_threads) {
  // Steps keep no state: one request from several threads gives the same bits every time.
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 1);
  const auto model = checkpoint.load(2);
  const SessionRequest one_rule = request_for({0, 15, 40}, 3);
  StepRequest request = one_rule;
  request.rules = {one_rule};
  request.seeds = {0, 0};
  request.ids.assign(40, 49);
  request.ids[0] = request.ids[15] = 1;
  request.offsets = {0, 15, 40};
  const StepResult expected = run_step(*model, request, nullptr);
  CHECK(expected.tokens.size() == 38, expected.tokens.size());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int repeat = 0; repeat < 10; ++repeat) {
        const StepResult got = run_step(*model, request, nullptr);
        CHECK(got.tokens == expected.tokens && got.selected == expected.selected, "repeat ", repeat);
      }
    });
  for (std::thread& thread : threads) thread.join();
}

DULTRA_TEST(model_cancel) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 1);
  const auto model = checkpoint.load(2);
  const int aborted = int(ErrorCode::kAborted);
  const std::atomic<bool> cancelled{true};
  CHECK(thrown([&] { checkpoint.load(2, {}, &cancelled); }) == aborted, "loading");
  ForwardRequest forward;
  forward.ids = {1, 49};
  forward.offsets = {0, 2};
  CHECK(thrown([&] { run_forward(*model, forward, &cancelled); }) == aborted, "a forward pass");

  // Cancelled from another thread while steps run, at different moments.
  for (int delay = 0; delay < 8; ++delay) {
    std::vector<int32_t> ids(60, 49);
    ids[0] = 1;
    Session session(model, ids, {0, 60});
    std::atomic<int> code{-1};
    std::thread worker([&] {
      code = thrown([&] {
        SessionRequest request = request_for({0, 60}, 0);
        request.select = false;  // nothing is ever decided: only cancelling ends this
        for (;;) session.step(request);
      });
    });
    std::this_thread::sleep_for(std::chrono::microseconds(300 * delay));
    session.cancel();
    worker.join();
    CHECK(code == aborted, "delay ", delay, ": ", code.load());
    CHECK(thrown([&] { session.step(request_for({0, 60}, 0)); }) == aborted, "stays cancelled");
  }
}

DULTRA_TEST(model_let_go_while_work_runs) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 1);
  const Trace expected = generate(checkpoint.load(1), 5);
  for (int i = 0; i < 8; ++i) {
    auto model = checkpoint.load(2);
    Trace trace;
    std::atomic<bool> started{false};
    std::thread worker([&trace, &started, held = model]() mutable {
      started = true;
      trace = generate(std::move(held), 5);
    });
    while (!started) std::this_thread::yield();
    model.reset();
    worker.join();
    CHECK(trace == expected, "round ", i);
  }
}

// ---- training -----------------------------------------------------------------------------------

// Optimiser steps from .. to of a run, whatever they begin from.
void train_steps(Trainer& trainer, const Model& model, int from, int to) {
  for (int step = from; step < to; ++step) {
    Random random(uint64_t(step) + 21);
    for (bool last : {false, true}) train_micro_batch(trainer, model.config(), random, last);
    const double norm = train_update(trainer);
    CHECK(norm > 0 && std::isfinite(norm), "step ", step, ": norm ", norm);
  }
}

std::vector<NamedTensor> train(const std::shared_ptr<Model>& model, const TrainerOptions& options, int steps) {
  Trainer trainer(model, options);
  train_steps(trainer, *model, 0, steps);
  return trainer.state();
}

DULTRA_TEST(trainer_threads_and_recomputation, small) {
  for (const auto& [config, dtype] : {std::pair<ModelConfig, DType>{small_config(), DType::kF32},
                                      {small_config(), DType::kBF16},
                                      {normed_heads_config(), DType::kF32}})
    for (const LoadOptions& weights : computes()) {
      const RandomCheckpoint checkpoint(config, dtype, 3);
      const auto expected = train(checkpoint.load(1, weights), {}, 3);
      CHECK(same(train(checkpoint.load(3, weights), {}, 3), expected), "three threads");
      TrainerOptions options;
      options.checkpointing = true;
      CHECK(same(train(checkpoint.load(2, weights), options, 3), expected), "recomputed activations");
      options = {};
      options.lora.rank = 2;
      options.lora.alpha = 4;
      options.lora.targets = {"q_proj", "ff_out"};
      CHECK(same(train(checkpoint.load(1, weights), options, 3), train(checkpoint.load(2, weights), options, 3)),
            "adapters");
    }
}

// A model whose head is a position ahead scores a candidate as one that is not scores the position before it.
DULTRA_TEST(model_of_shifted_logits, small) {
  ModelConfig shifted_config = normed_heads_config();
  shifted_config.shift_logits = true;
  const RandomCheckpoint checkpoint(normed_heads_config(), DType::kF32, 9);
  RandomCheckpoint other(normed_heads_config(), DType::kF32, 9);
  other.config = shifted_config;
  const auto plain = checkpoint.load(1), shifted = other.load(2);
  const std::vector<int32_t> ids{49, 49, 3, 49, 49, 7, 49, 5, 49, 49}, offsets{0, 7, 10};
  StepRequest request;
  request.ids = ids;
  request.offsets = offsets;
  request.window_ends = {7, 3};
  request.seeds = {0, 0};
  request.row_keys = {0, 1};
  request.steps = {0, 0};
  request.rules.resize(1);
  request.rules[0].select = false;
  for (bool planner : {false, true}) {
    request.rules[0].planner = planner;
    request.candidate_offsets = {0, 4, 6};
    request.candidates = {0, 3, 5, 6, 1, 2};
    const StepResult got = run_step(*shifted, request, nullptr);
    CHECK(got.positions == std::vector<int32_t>(request.candidates), "positions are the candidates' own");
    request.candidates = {0, 2, 4, 5, 0, 1};
    const StepResult expected = run_step(*plain, request, nullptr);
    CHECK(got.tokens == expected.tokens, "tokens");
    CHECK(same_bits(got.log_probs.data(), expected.log_probs.data(), 6), "log-probabilities");
    if (!planner) continue;
    // The planner reads a candidate's own state.
    request.candidates = {0, 3, 5, 6, 1, 2};
    const StepResult own = run_step(*plain, request, nullptr);
    CHECK(same_bits(got.planner_logits.data(), own.planner_logits.data(), 6), "planner logits");
  }
  // Masked positions are the candidates where none are listed; the first one reads itself.
  request.candidate_offsets.clear();
  request.candidates.clear();
  CHECK(run_step(*shifted, request, nullptr).positions == std::vector<int32_t>({0, 1, 3, 4, 6, 1, 2}), "masks");

  // On a cache the position before must be computed.
  request.cache = make_cache(shifted, offsets, {});
  request.rules[0].planner = false;
  request.cache_begins = {0, 7};
  request.query_offsets = {0, 7, 10};
  request.queries = {0, 1, 2, 3, 4, 5, 6, 0, 1, 2};
  const StepResult whole = run_step(*shifted, request, nullptr);
  request.query_offsets = {0, 3, 5};
  request.queries = {2, 3, 4, 0, 1};
  request.candidate_offsets = {0, 2, 3};
  request.candidates = {3, 4, 1};
  const StepResult part = run_step(*shifted, request, nullptr);
  CHECK(part.tokens == std::vector<int32_t>({whole.tokens[2], whole.tokens[3], whole.tokens[5]}), "on a cache");
  request.candidates = {2, 4, 1};
  std::string message;
  CHECK(thrown([&] { run_step(*shifted, request, nullptr); }, &message) == int(ErrorCode::kInvalidArgument) &&
            message.find("position 2 is scored from 1") != std::string::npos,
        message);

  // Training: scores and gradients of the positions before.
  std::vector<std::vector<NamedTensor>> gradients;
  std::vector<ScoreResult> scores;
  for (const auto& model : {plain, shifted}) {
    Trainer trainer(model, {});
    ScoreRequest score;
    score.ids = ids;
    score.offsets = offsets;
    score.candidate_offsets = {0, 3, 5};
    score.positions = model == plain ? std::vector<int32_t>{2, 4, 5, 0, 1} : std::vector<int32_t>{3, 5, 6, 1, 2};
    score.tokens = {1, 2, 3, 4, 5};
    score.log_probs = score.keep = true;
    scores.push_back(trainer.score(score, nullptr));
    BackwardRequest upstream;
    upstream.dlog_probs = {1, -0.5f, 0.25f, 2, -1};
    trainer.backward(upstream, nullptr);
    gradients.push_back(trainer.gradients());
  }
  CHECK(same_bits(scores[0].log_probs.data(), scores[1].log_probs.data(), 5), "scores");
  CHECK(same(gradients[0], gradients[1]), "gradients");
}

// Gradients of a model in bf16, against those of the same weights in fp32. Rounding the operands of products and
// nothing else, as the CPU's products in bf16 do, puts them off by 0.0053 and by 0.0223 (the wider model's scores are
// larger); storing operands in bf16 may cost half as much again.
DULTRA_TEST(trainer_gradients_in_bf16) {
  for (bool wide : {false, true}) {
    const ModelConfig config = wide ? wide_config() : small_config();
    const RandomCheckpoint checkpoint(config, DType::kBF16, 6);
    std::vector<std::vector<NamedTensor>> gradients;
    for (const LoadOptions& weights : computes()) {
      Trainer trainer(checkpoint.load(2, weights), {});
      Random random(23);
      const ScoreResult scored = trainer.score(random_score(random, config), nullptr);
      BackwardRequest upstream;
      for (size_t i = 0; i < scored.log_likelihoods.size(); ++i)
        upstream.dlog_likelihoods.push_back(float(random.normal()) * 0.1f);
      trainer.backward(upstream, nullptr);
      gradients.push_back(trainer.gradients());
    }
    for (size_t which = 1; which < gradients.size(); ++which) {
      double difference = 0, size = 0;
      for (size_t t = 0; t < gradients[0].size(); ++t)
        for (size_t i = 0; i < gradients[0][t].data.size(); ++i) {
          const double exact = double(gradients[0][t].data[i]), error = double(gradients[which][t].data[i]) - exact;
          difference += error * error;
          size += exact * exact;
        }
      CHECK(size > 0 && std::sqrt(difference / size) < 1.5 * (wide ? 0.0223 : 0.0053), "head dimension ",
            config.head_dim, " error ", std::sqrt(difference / size));
    }
  }
}

// How a model can be held for training: in fp32; in bf16, multiplied in fp32; in bf16 both.
std::vector<LoadOptions> held_ways(Backend& backend) {
  std::vector<LoadOptions> ways(2);
  ways[0].keep_storage = false;
  if (backend.supports(Compute::kBF16)) {
    ways.emplace_back();
    ways.back().compute = Compute::kBF16;
  }
  return ways;
}

std::vector<TrainerOptions> training_ways() {
  std::vector<TrainerOptions> ways(3);
  ways[1].moments = ways[2].moments = DType::kBF16;
  ways[1].seed = ways[2].seed = 11;
  ways[2].lora.rank = 2;
  ways[2].lora.alpha = 4;
  ways[2].lora.targets = {"q_proj", "k_proj", "up_proj", "ff_out"};
  return ways;
}

// A run that is interrupted goes on as if it had not been: its state is exact, whatever it is stored in.
DULTRA_TEST(trainer_resumes) {
  const RandomCheckpoint checkpoint(small_config(), DType::kBF16, 8);
  for (const LoadOptions& weights : held_ways(*make_model_backend(1)))
    for (const TrainerOptions& options : training_ways()) {
      const std::string where = text("storage ", int(weights.keep_storage), " compute ", int(weights.compute),
                                     " moments ", int(options.moments), " rank ", options.lora.rank);
      const auto expected = train(checkpoint.load(1, weights), options, 4);
      const auto half = train(checkpoint.load(2, weights), options, 2);
      const auto model = checkpoint.load(1, weights);
      Trainer trainer(model, options);
      trainer.load_state(2, half);
      CHECK(same(trainer.state(), half), where, ": the state is not what was loaded");
      train_steps(trainer, *model, 2, 4);
      CHECK(same(trainer.state(), expected), where, ": not as without the interruption");
      // On another device it is the same state, whether masters are split there or not.
      if (options.lora.rank > 0) continue;
      LoadOptions fp32;
      fp32.keep_storage = false;
      for (const LoadOptions& other : {fp32, LoadOptions()}) {
        Trainer elsewhere(checkpoint.load(1, other), options);
        elsewhere.load_state(4, expected);
        CHECK(same(elsewhere.state(), expected), where, ": the state does not survive another storage");
      }
    }
}

// With split masters a weight costs 2 bytes beside the model's, else 4; the model holds their upper halves, and
// gradients are those of copies.
DULTRA_TEST(trainer_split_masters, small, slow_with_threads) {
  const RandomCheckpoint checkpoint(small_config(), DType::kBF16, 9);
  for (const LoadOptions& weights : held_ways(*make_model_backend(1)))
    for (DType moments : {DType::kF32, DType::kBF16}) {
      const auto model = checkpoint.load(1, weights);
      const bool cuda = std::string(model->backend().name()).rfind("cuda", 0) == 0;
      TrainerOptions options;
      options.moments = moments;
      Trainer trainer(model, options);
      size_t bytes = 0;
      int split = 0;
      for (const auto& parameter : trainer.parameters()) {
        size_t n = 1;
        for (int64_t size : parameter->shape) n *= size_t(size);
        const bool table = parameter->name.find(".wte.") != std::string::npos;
        const bool matrix = parameter->shape.size() == 2 && parameter->name != "mask_embedding.weight" &&
                            parameter->name != "mask_linear.weight";
        const bool halves = matrix && (table || (cuda && weights.keep_storage));  // a table is never widened
        split += halves;
        CHECK(model->weights().bf16_rows(parameter->name).empty() == !halves, parameter->name);
        const size_t aligned = (n + 15) / 16 * 16;  // in the arenas of masters, gradients and both moments
        bytes += aligned * ((halves ? 2 : 4) + 4 + 2 * dtype_size(moments));
      }
      CHECK(trainer.bytes() == bytes, trainer.bytes(), " bytes, expected ", bytes);
      CHECK(split == (cuda && weights.keep_storage ? 27 : 1), split, " split");
      train_steps(trainer, *model, 0, 2);
      int moved = 0;
      for (const NamedTensor& tensor : trainer.state()) {
        if (model->weights().bf16_rows(tensor.name).empty()) continue;
        const std::vector<float> held = model->weights().read(tensor.name);
        int64_t wrong = 0;
        for (size_t i = 0; i < held.size(); ++i) {
          wrong += held[i] != bf16_to_f32(split_float(tensor.data[i]).high);
          moved += held[i] != tensor.data[i];
        }
        CHECK(wrong == 0, tensor.name, ": ", wrong, " numbers of the model are not their masters'");
      }
      CHECK(moved > 0, "no low half is in use");
    }
  // Gradients of a bf16 model, multiplied in fp32, are those of the same numbers in fp32.
  std::vector<NamedTensor> gradients[2];
  for (int i = 0; i < 2; ++i) {
    LoadOptions weights;
    weights.keep_storage = i == 1;
    const auto model = checkpoint.load(1, weights);
    Trainer trainer(model, {});
    Random random(3);
    const ScoreResult scored = trainer.score(random_score(random, checkpoint.config), nullptr);
    BackwardRequest upstream;
    for (size_t j = 0; j < scored.log_likelihoods.size(); ++j)
      upstream.dlog_likelihoods.push_back(float(random.normal()));
    trainer.backward(upstream, nullptr);
    gradients[i] = trainer.gradients();
  }
  for (size_t i = 0; i < gradients[0].size(); ++i) {
    const std::vector<float>&a = gradients[0][i].data, &b = gradients[1][i].data;
    double size = 0, difference = 0;
    for (size_t j = 0; j < a.size(); ++j) {
      size += double(a[j]) * a[j];
      difference += (double(a[j]) - b[j]) * (double(a[j]) - b[j]);
    }
    CHECK(difference <= 1e-10 * size, gradients[0][i].name, ": ", std::sqrt(difference / size));
  }
}

// Adapters out: the base's weights, bit for bit; in again: what they were. Frozen weights never move.
// The plan of a trainer's memory is what it allocates, but for the alignment of its arenas.
DULTRA_TEST(trainer_memory_plan) {
  for (DType dtype : {DType::kF32, DType::kBF16})
    for (int variant = 0; variant < 5; ++variant) {
      MemoryRequest request;
      request.config = small_config();
      request.config.weight_tying = variant == 1;
      request.trainer.freeze_base = variant == 2;
      request.trainer.freeze_planner = variant == 3;
      if (variant == 4) request.trainer.lora = {2, 4, {"q_proj", "up_proj"}};
      request.tokens = 100;
      const RandomCheckpoint checkpoint(request.config, dtype, 3);
      const auto model = checkpoint.load(1);
      request.on_device = std::string(model->backend().name()).rfind("cuda", 0) == 0;
      request.storage.assign(tensor_table(request.config).size(), dtype);
      const MemoryPlan plan = plan_memory(request);
      Trainer trainer(model, request.trainer);
      int64_t trainable = 0;
      for (const auto& parameter : trainer.parameters()) trainable += parameter->n;
      CHECK(plan.trainable == trainable && plan.parameters == model->weights().parameters(), "variant ", variant);
      const auto planned = double(plan.masters + plan.gradients + plan.moments), taken = double(trainer.bytes());
      // At most 15 numbers of 16 bytes a parameter.
      CHECK(taken >= planned && taken <= planned + 240.0 * double(trainer.parameters().size()), "variant ", variant,
            " type ", int(dtype), ": ", taken, " bytes, planned ", planned);
      CHECK(plan.activations > 0 && plan.scratch > 0, "variant ", variant);
    }
}

DULTRA_TEST(trainer_adapters_leave_the_base, small, slow_with_threads) {
  const RandomCheckpoint checkpoint(small_config(), DType::kBF16, 10);
  for (const LoadOptions& weights : held_ways(*make_model_backend(1))) {
    const auto model = checkpoint.load(1, weights);
    TrainerOptions options = training_ways()[2];
    options.freeze_planner = true;
    const auto before = model->weights().read_all(nullptr);
    Trainer trainer(model, options);
    CHECK(same(model->weights().read_all(nullptr), before), "adapters that are 0 change the model");
    train_steps(trainer, *model, 0, 3);
    const auto trained = model->weights().read_all(nullptr);
    int moved = 0;
    for (size_t i = 0; i < before.size(); ++i) {
      const bool adapted =
          before[i].name.find(".transformer.blocks.") != std::string::npos &&
          (before[i].name.find("q_proj") != std::string::npos || before[i].name.find("k_proj") != std::string::npos ||
           before[i].name.find("up_proj") != std::string::npos || before[i].name.find("ff_out") != std::string::npos);
      const bool equal = same({before[i]}, {trained[i]});
      moved += !equal;
      CHECK(adapted || equal, before[i].name, " moved");
    }
    CHECK(moved == 8, moved, " of 8 weights moved");
    trainer.set_adapters(false);
    CHECK(same(model->weights().read_all(nullptr), before), "the base is not what it was");
    trainer.set_adapters(true);
    CHECK(same(model->weights().read_all(nullptr), trained), "the adapted model is not what it was");
  }
}

// A pass that computes every position of a cache has the gradients of one without, whatever the cache holds keys and
// values in.
DULTRA_TEST(trainer_on_a_cache) {
  for (const LoadOptions& weights : computes())
    for (const ModelConfig& config : {small_config(), wide_config()}) {
      const RandomCheckpoint checkpoint(config, DType::kBF16, 7);
      const auto model = checkpoint.load(2, weights);
      Trainer trainer(model, {});
      std::vector<NamedTensor> gradients[2];
      for (bool cached : {false, true}) {
        Random random(24);
        ScoreRequest request = random_score(random, config);
        if (cached) {
          KvCacheOptions options;
          options.planner = PlannerCache::kBlocks;
          request.cache = make_cache(model, request.offsets, options);
          request.query_positions = Packing::from_lengths(lengths_of(request.offsets)).positions.values();
          for (int32_t row = 0; row + 1 < int32_t(request.offsets.size()); ++row) request.rows.push_back(row);
        }
        const ScoreResult scored = trainer.score(std::move(request), nullptr);
        BackwardRequest upstream;
        for (size_t i = 0; i < scored.log_likelihoods.size(); ++i)
          upstream.dlog_likelihoods.push_back(float(random.normal()) * 0.1f);
        trainer.backward(upstream, nullptr);
        gradients[cached] = trainer.gradients();
        trainer.zero_grad();
      }
      CHECK(same(gradients[0], gradients[1]), "head dimension ", config.head_dim, " compute ", int(weights.compute));
    }
}

// Two readers of whom one always holds the lock do not keep a writer out.
DULTRA_TEST(weights_are_written_beside_readers) {
  WeightsMutex mutex;
  std::atomic<bool> written{false};
  std::atomic<int> reads{0};
  std::vector<std::thread> readers;
  for (int t = 0; t < 2; ++t)
    readers.emplace_back([&, t] {
      std::this_thread::sleep_for(std::chrono::milliseconds(t));
      while (!written && reads < 2000) {
        const std::shared_lock<WeightsMutex> reading(mutex);
        ++reads;
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    });
  while (reads < 4) std::this_thread::yield();
  {
    const std::unique_lock<WeightsMutex> writing(mutex);
    written = true;
  }
  for (std::thread& reader : readers) reader.join();
  CHECK(reads < 2000, "reads before the writer came in: ", reads.load());
}

DULTRA_TEST(trainer_beside_sessions) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 4);
  const auto expected = train(checkpoint.load(2), {}, 4);
  const auto model = checkpoint.load(2);
  std::atomic<bool> done{false};
  std::vector<std::thread> decoders;
  // They see the weights of one update or of the next, never a mixture; what they compute is not checked, that they may
  // is.
  for (uint32_t t = 0; t < 2; ++t)
    decoders.emplace_back([&, t] {
      try {
        do generate(model, t);
        while (!done);
      } catch (const std::exception& error) {
        CHECK(false, "decoder ", t, ": ", error.what());
      }
    });
  std::vector<NamedTensor> state;
  const int failed = thrown([&] { state = train(model, {}, 4); });
  done = true;
  for (std::thread& decoder : decoders) decoder.join();
  CHECK(failed == -1, failed);
  CHECK(same(state, expected), "decoding changed the training");
  // The model now computes with what was trained.
  for (const NamedTensor& tensor : state) {
    if (tensor.name.rfind("exp_avg", 0) == 0) continue;
    const std::vector<float> weight = model->weights().read(tensor.name);
    CHECK(std::memcmp(weight.data(), tensor.data.data(), weight.size() * sizeof(float)) == 0, tensor.name);
  }
}

DULTRA_TEST(trainer_bad_requests) {
  const RandomCheckpoint checkpoint(small_config(), DType::kF32, 5);
  const auto model = checkpoint.load(1);
  const int invalid = int(ErrorCode::kInvalidArgument);
  Trainer trainer(model, {});
  CHECK(thrown([&] { Trainer second(model, {}); }) == invalid, "a second trainer");
  CHECK(thrown([&] { trainer.backward({}, nullptr); }) == invalid, "backward without score");
  const auto score = [&](const std::function<void(ScoreRequest&)>& change) {
    Random random(6);
    ScoreRequest request = random_score(random, checkpoint.config);
    change(request);
    return thrown([&] { trainer.score(std::move(request), nullptr); });
  };
  CHECK(score([](ScoreRequest&) {}) == -1, "as it should be");
  CHECK(score([](ScoreRequest& r) { r.positions[0] = 1000; }) == invalid, "a position beyond the row");
  CHECK(score([](ScoreRequest& r) { r.positions[1] = r.positions[0]; }) == invalid, "positions out of order");
  CHECK(score([](ScoreRequest& r) { r.tokens.pop_back(); }) == invalid, "a token too few");
  CHECK(score([](ScoreRequest& r) { r.tokens[0] = 50; }) == invalid, "a token beyond the vocabulary");
  CHECK(score([](ScoreRequest& r) { r.candidate_offsets[1] = -1; }) == invalid, "offsets that go back");
  CHECK(score([](ScoreRequest& r) { r.timestep.pop_back(); }) == invalid, "a timestep too few");
  CHECK(score([](ScoreRequest& r) { r.selected.pop_back(); }) == invalid, "a decision too few");
  CHECK(score([](ScoreRequest& r) { r.hidden.resize(7); }) == invalid, "hidden states of another shape");
  CHECK(score([](ScoreRequest&) {}) == -1, "as it should be");
  BackwardRequest upstream;
  upstream.dlog_likelihoods.resize(1);
  CHECK(thrown([&] { trainer.backward(upstream, nullptr); }) == invalid, "gradients too few");
  auto state = trainer.state();
  state[0].data.pop_back();
  CHECK(thrown([&] { trainer.load_state(1, state); }) == invalid, "a state of another shape");
  state.erase(state.begin());
  CHECK(thrown([&] { trainer.load_state(1, state); }) == invalid, "a state with a tensor too few");
}

}  // namespace test
}  // namespace dultra
