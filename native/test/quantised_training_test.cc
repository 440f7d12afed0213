// Training over weights in blocks: adapters beside them, and gradients that are those of the very same forward pass.
#include <cmath>

#include "harness.h"
#include "model/memory_plan.h"
#include "model/trainer.h"
#include "model_fixture.h"

namespace dultra {
namespace test {

namespace {

// Rows of whole blocks in every matrix.
ModelConfig blocks_config() {
  ModelConfig config = small_config();
  config.hidden = 32;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 16;
  config.rope.dim = 16;
  config.layers = kEmulated ? 1 : 2;
  config.mlp_hidden = 64;
  return config;
}

TrainerOptions adapters(bool all) {
  TrainerOptions options;
  options.lora.rank = 2;
  options.lora.alpha = 3;
  options.lora.targets = {"q_proj", "k_proj", "attn_out", "up_proj"};
  if (all) options.lora.targets.insert(options.lora.targets.end(), {"v_proj", "ff_proj", "ff_out"});
  options.seed = 4;
  return options;
}

using State = std::vector<NamedTensor>;

bool is_moment(const NamedTensor& tensor) { return tensor.name.rfind("exp_avg", 0) == 0; }
bool is_b(const NamedTensor& tensor) { return tensor.name.find("lora_B") != std::string::npos; }

// B is zero at first, which would hide A's gradients.
State with_random_b(State state) {
  Random random(5);
  for (NamedTensor& tensor : state)
    if (is_b(tensor) && !is_moment(tensor))
      for (float& x : tensor.data) x = float(0.3 * random.normal());
  return state;
}

ScoreRequest request_of(const ModelConfig& config) {
  Random random(6);
  ScoreRequest request = random_score(random, config);
  request.policy = false;
  request.selected.clear();
  request.forced.clear();
  return request;
}

// Sum of upstream gradients times log-probabilities and planner logits.
struct Loss {
  std::vector<float> by_log_prob, by_planner;

  explicit Loss(const ScoreResult& scored) {
    Random random(7);
    for (size_t i = 0; i < scored.log_probs.size(); ++i) by_log_prob.push_back(float(random.normal()));
    for (size_t i = 0; i < scored.planner_logits.size(); ++i) by_planner.push_back(float(random.normal()));
  }
  double operator()(const ScoreResult& scored) const {
    double sum = 0;
    for (size_t i = 0; i < by_log_prob.size(); ++i) sum += double(by_log_prob[i]) * double(scored.log_probs[i]);
    for (size_t i = 0; i < by_planner.size(); ++i) sum += double(by_planner[i]) * double(scored.planner_logits[i]);
    return sum;
  }
  BackwardRequest upstream() const {
    BackwardRequest request;
    request.dlog_probs = by_log_prob;
    request.dplanner_logits = by_planner;
    return request;
  }
};

std::vector<float> logits_of(const Model& model) {
  Random random(8);
  std::vector<int32_t> ids, offsets;
  make_rows(random, model.config(), 2, &ids, &offsets);
  const HostFloats logits = std::move(run_forward(model, ids, offsets, true).logits);
  return {logits.data(), logits.data() + logits.size()};
}
bool same_floats(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), a.size());
}

LoadOptions in_blocks(BlockType type, Compute compute = Compute::kF32) {
  LoadOptions options;
  options.quantise = type;
  options.compute = compute;
  return options;
}

}  // namespace

// Along the gradient of the adapters, and of the planner head, the loss of the quantised forward pass grows as the
// gradient says: one that were wrong in any direction would promise more.
DULTRA_TEST(quantised_training_gradients) {
  // In fp32, so that no small step of the planner is lost.
  const RandomCheckpoint checkpoint(blocks_config(), DType::kF32, 12);
  for (BlockType type : {BlockType::kQ8_0, BlockType::kIQ4_NL}) {
    const auto model = checkpoint.load(2, in_blocks(type));
    for (bool planner : {false, true}) {
      TrainerOptions options = adapters(true);
      options.freeze_planner = !planner;
      if (planner) {
        options.lora.rank = 0;
        options.freeze_base = true;
      }
      Trainer trainer(model, options);
      const State state = with_random_b(trainer.state());
      trainer.load_state(0, state);
      CHECK(model->weights().blocks[0].attention.q.matrix->quantised(), "the base stays in blocks");
      const ScoreRequest request = request_of(checkpoint.config);
      const ScoreResult scored = trainer.score(request, nullptr);
      const Loss loss(scored);
      trainer.backward(loss.upstream(), nullptr);
      const std::vector<NamedTensor> gradients = trainer.gradients();
      // Each tensor alone, or under the emulator all at once.
      for (size_t only = 0; only < (kEmulated ? 1 : gradients.size()); ++only) {
        const auto is_moved = [&](size_t i) { return kEmulated || i == only; };
        double square = 0;
        for (size_t i = 0; i < gradients.size(); ++i)
          if (is_moved(i))
            for (float g : gradients[i].data) square += double(g) * double(g);
        const double norm = std::sqrt(square), step = 0.001;
        CHECK(norm > 1e-3, gradients[only].name, ": no gradient");
        double at[2];
        for (int sign : {0, 1}) {
          State moved = state;
          for (NamedTensor& tensor : moved)
            for (size_t i = 0; i < gradients.size(); ++i)
              if (is_moved(i) && tensor.name == gradients[i].name)
                for (size_t e = 0; e < tensor.data.size(); ++e)
                  tensor.data[e] += float((sign ? step : -step) * double(gradients[i].data[e]) / norm);
          trainer.load_state(0, moved);
          at[sign] = loss(trainer.score(request, nullptr));
        }
        trainer.load_state(0, state);
        const double slope = (at[1] - at[0]) / (2 * step);
        CHECK(std::fabs(slope - norm) < 0.01 * norm + 2e-3, block_layout(type).name, planner ? " planner, " : " base, ",
              gradients[only].name, ": the loss grows by ", slope, ", the gradient says ", norm);
      }
    }
  }
}

// Adapters beside blocks compute what adapters merged into the same numbers do; products in bf16 come as near as they
// can.
DULTRA_TEST(quantised_training_is_that_of_its_numbers, slow_with_threads) {
  const RandomCheckpoint checkpoint(blocks_config(), DType::kBF16, 13);
  for (Compute compute : {Compute::kF32, Compute::kBF16}) {
    if (!make_model_backend(1)->supports(compute)) continue;
    const auto model = checkpoint.load(1, in_blocks(BlockType::kQ8_0, compute));
    // The same numbers in fp32.
    const auto plain = RandomCheckpoint(checkpoint.config, DType::kF32, 13).load(1, {});
    std::vector<Buffer> kept;
    plain->weights().write([&](const std::string& tensor) -> const float* {
      const std::vector<float> values = model->weights().read(tensor);
      kept.emplace_back(plain->backend(), values.size() * 4);
      plain->backend().upload(kept.back().as<void>(), values.data(), values.size() * 4);
      return kept.back().as();
    });
    std::vector<NamedTensor> gradients[2];
    std::vector<float> log_probs[2];
    State state;
    for (int i : {0, 1}) {
      Trainer trainer(i == 0 ? plain : model, adapters(false));
      if (i == 0) state = with_random_b(trainer.state());
      trainer.load_state(0, state);
      const ScoreResult scored = trainer.score(request_of(checkpoint.config), nullptr);
      log_probs[i].assign(scored.log_probs.data(), scored.log_probs.data() + scored.log_probs.size());
      trainer.backward(Loss(scored).upstream(), nullptr);
      gradients[i] = trainer.gradients();
    }
    const auto apart = [](const std::vector<float>& a, const std::vector<float>& b) {
      double size = 0, difference = 0;
      for (size_t j = 0; j < a.size(); ++j) {
        size += double(a[j]) * double(a[j]);
        difference += (double(a[j]) - double(b[j])) * (double(a[j]) - double(b[j]));
      }
      return std::sqrt(difference / size);
    };
    const double most = compute == Compute::kF32 ? 1e-4 : 0.08;
    CHECK(apart(log_probs[0], log_probs[1]) < most, "log-probabilities ", apart(log_probs[0], log_probs[1]));
    for (size_t i = 0; i < gradients[0].size(); ++i)
      CHECK(apart(gradients[0][i].data, gradients[1][i].data) < most, gradients[0][i].name, " compute ", int(compute),
            ": ", apart(gradients[0][i].data, gradients[1][i].data));
    // What the model says of its weights has the adapters in it.
    const std::string q = "model.transformer.blocks.0.q_proj.weight";
    CHECK(apart(plain->weights().read(q), model->weights().read(q)) < 1e-6, "weights that are read");
  }
}

// Out, the model is its base again; in, on another copy of it, what it was, bit for bit.
DULTRA_TEST(quantised_training_adapters_come_and_go, small, slow_with_threads) {
  const RandomCheckpoint checkpoint(blocks_config(), DType::kBF16, 14);
  const LoadOptions options = in_blocks(BlockType::kIQ4_NL);
  const auto model = checkpoint.load(2, options), other = checkpoint.load(1, options);
  const std::vector<float> base = logits_of(*model);
  State state;
  std::vector<float> adapted;
  {
    Trainer trainer(model, adapters(true));
    CHECK(same_floats(logits_of(*model), base), "new adapters add nothing");
    trainer.load_state(0, with_random_b(trainer.state()));
    const ScoreResult scored = trainer.score(request_of(checkpoint.config), nullptr);
    trainer.backward(Loss(scored).upstream(), nullptr);
    OptimizerStep step;
    step.base_lr = step.planner_lr = 0.01;
    trainer.step(step);
    state = trainer.state();
    adapted = logits_of(*model);
    CHECK(!same_floats(adapted, base), "the adapters do something");
    trainer.set_adapters(false);
    CHECK(same_floats(logits_of(*model), base), "without adapters");
    trainer.set_adapters(true);
    CHECK(same_floats(logits_of(*model), adapted), "with them again");
  }
  CHECK(same_floats(logits_of(*model), adapted), "a model keeps what it has when the trainer goes");
  CHECK(model->weights().blocks[0].mlp.gate_up.matrix->quantised(), "in blocks");
  Trainer trainer(other, adapters(true));
  trainer.load_state(1, state);
  CHECK(same_floats(logits_of(*other), adapted), "on the same base");
}

// The plan knows blocks; adapters take what it says, but for arenas' alignment and the panels of a CPU.
DULTRA_TEST(quantised_training_memory_plan, small) {
  MemoryRequest request;
  request.config = blocks_config();
  request.trainer = adapters(true);
  request.tokens = 10;
  const RandomCheckpoint checkpoint(request.config, DType::kBF16, 15);
  const auto model = checkpoint.load(1, in_blocks(BlockType::kQ4_0));
  const bool on_device = std::string(model->backend().name()).rfind("cuda", 0) == 0;
  request.on_device = on_device;
  for (const TensorSpec& spec : tensor_table(request.config)) {
    const bool matrix = spec.shape.size() == 2 && !spec.planner;
    const bool in_block = spec.name.find(".blocks.") != std::string::npos;
    request.storage.push_back(DType::kBF16);
    request.blocks.push_back(!matrix ? BlockType::kNone : in_block ? BlockType::kQ4_0 : BlockType::kQ8_0);
  }
  const MemoryPlan plan = plan_memory(request);
  // A CPU's panels are padded, and the planner's bias is no array.
  const double held = double(model->weights().bytes());
  CHECK(!on_device || std::fabs(double(plan.weights) - held) <= 64, plan.weights, " planned, ", held, " held");
  Trainer trainer(model, request.trainer);
  const auto planned = double(plan.masters + plan.gradients + plan.moments), taken = double(trainer.bytes());
  const double slack = 240.0 * double(trainer.parameters().size()) +
                       (on_device ? 0 : 32 * 4 * 100.0 * double(trainer.parameters().size()));
  CHECK(taken >= planned && taken <= planned + slack, taken, " bytes, planned ", planned);
  request.blocks[0] = BlockType::kQ4_K;
  CHECK(thrown([&] { plan_memory(request); }) == int(ErrorCode::kInvalidArgument), "rows of no whole blocks");
}

}  // namespace test
}  // namespace dultra
