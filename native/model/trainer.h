// Training of one model, as the addon sees it: scores, gradients, AdamW, adapters, and the state that a run saves.
#pragma once
#include <functional>
#include <mutex>
#include <optional>

#include "model/gradient_sum.h"
#include "model/lora.h"
#include "model/optimizer.h"
#include "model/score.h"

namespace dultra {

struct TrainerOptions {
  bool freeze_base = false, freeze_planner = false;
  bool checkpointing = false;   // ScoreOptions
  LoraOptions lora;             // with adapters the base itself is frozen
  DType moments = DType::kF32;  // kF32 or kBF16, how AdamW's moments are stored
  Reduction reduction = Reduction::kSum;
  int zero_stage = 0;  // 1: masters and moments are split over the communicator's ranks; 2: reduced gradients, too
  uint64_t seed = 0;   // draws A of adapters, and how bf16 moments are rounded
};

// INVALID_ARGUMENT where a model of this kind does not train so: experts and their routers are frozen.
void check_trainable(const ModelConfig& config, const TrainerOptions& options);

class Trainer {
 public:
  using Connect = std::function<DeviceRanks(Backend&, const std::shared_ptr<Communicator>&)>;

  // Throws INVALID_ARGUMENT where the model has a trainer already. `communicator`: of the processes whose gradients
  // make up an update; each of them calls `step`.
  Trainer(std::shared_ptr<Model> model, const TrainerOptions& options,
          std::shared_ptr<Communicator> communicator = make_single_communicator());
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  const std::vector<std::unique_ptr<Parameter>>& parameters() const { return parameters_.all(); }

  ScoreResult score(ScoreRequest request, const std::atomic<bool>* cancel);
  // Connects the backends of the communicator's ranks, so that gradients, and with a split the weights, are exchanged
  // where they are. Every rank calls it, before its first backward pass; without it the host's memory is between them.
  DeviceRanks connect(const Connect& connect);
  // After the `last` of an update, `step` is what follows. With zero_stage 2 every rank calls `backward` or
  // `join_backward` equally often.
  std::vector<float> backward(const BackwardRequest& request, const std::atomic<bool>* cancel);
  // In place of `backward` on a rank that has no micro-batch for it.
  void join_backward(bool last);
  // After a `last` one it waits until every rank has begun to exchange gradients.
  void zero_grad();
  // Of this process's gradients, which it has until the `last` of an update, and never with zero_stage 2.
  double grad_norm();
  // With the gradients of all processes. Returns the norm before clipping. NON_FINITE, with nothing changed, where it
  // is NaN or infinite.
  double step(const OptimizerStep& request);
  int64_t steps() const { return steps_; }
  std::vector<NamedTensor> gradients();
  // Parameters and moments, by name, whole. With split state every rank calls it, and rank 0 alone gets them.
  std::vector<NamedTensor> state();
  void load_state(int64_t steps, const std::vector<NamedTensor>& tensors);
  void set_adapters(bool on);
  size_t bytes() const { return parameters_.bytes() + gradients_.bytes() + (lora_ ? lora_->bytes() : 0); }

 private:
  bool trains() const { return score_options_.base_trains || score_options_.planner_trains; }
  void make_parameters();
  void check_own_gradients() const;
  // Writes masters to the model's weights, where they are not the model's own numbers. The caller holds the weights
  // exclusively.
  void write_model();

  const std::shared_ptr<Model> model_;
  const TrainerOptions options_;
  const ScoreOptions score_options_;
  const std::shared_ptr<Communicator> communicator_;
  std::optional<DeviceRanks> device_;  // once connected
  std::mutex mutex_;                   // one call at a time
  Backend& backend_;
  Parameters parameters_;
  GradientSum gradients_;
  std::optional<Lora> lora_;
  bool adapters_on_ = true;
  Scorer scorer_;
  int64_t steps_ = 0;
};

}  // namespace dultra
