#include "model/trainer.h"

#include <cmath>
#include <set>

#include "model/shards.h"

namespace dultra {

namespace {

ScoreOptions score_options(const TrainerOptions& options, const ModelConfig& config) {
  return {!options.freeze_base || options.lora.rank > 0, config.planner.present && !options.freeze_planner,
          options.checkpointing};
}

}  // namespace

void check_trainable(const ModelConfig& config, const TrainerOptions& options) {
  const bool lora = options.lora.rank > 0;
  check_argument(options.freeze_base || lora || !config.has_experts(),
                 "freezeBase: expected true, or adapters (lora) of attention, on a mixture of experts: its experts and "
                 "routers do not train");
  check_argument((options.freeze_base && !lora) || config.clip_qkv == 0,
                 "freezeBase: expected true on a model with clip_qkv, which does not train");
  if (!lora || !config.has_experts()) return;
  for (const TensorSpec& spec : tensor_table(config))
    check_argument(spec.expert < 0 || !is_adapter_target(spec.name, spec.planner, options.lora.targets),
                   "lora.targets: expected projections of attention (q_proj, k_proj, v_proj, attn_out) on a mixture of "
                   "experts, whose experts do not train; " +
                       spec.name + " is one of them");
}

Trainer::Trainer(std::shared_ptr<Model> model, const TrainerOptions& options,
                 std::shared_ptr<Communicator> communicator)
    : model_(std::move(model)),
      options_(options),
      score_options_(score_options(options, model_->config())),
      communicator_(std::move(communicator)),
      backend_(model_->backend()),
      parameters_(backend_, options.moments,
                  options.zero_stage > 0
                      ? Shard{communicator_->rank(), communicator_->size(), true, options.zero_stage > 1}
                      : Shard{}),
      gradients_(backend_, parameters_, communicator_, options.reduction),
      scorer_(*model_, parameters_, score_options_) {
  // Score-only: allocates no state and does not claim the model.
  if (!trains()) return;
  if (!model_->claim_trainer())
    throw Error(ErrorCode::kInvalidArgument, "trainer: this model already has one; dispose it first");
  try {
    make_parameters();
  } catch (...) {
    model_->release_trainer();
    throw;
  }
}

Trainer::~Trainer() {
  if (trains()) model_->release_trainer();
}

void Trainer::make_parameters() {
  Weights& weights = model_->weights();
  const bool lora = options_.lora.rank > 0;
  check_trainable(model_->config(), options_);
  const auto stages = gradient_stages(model_->config());
  std::set<std::string> seen;
  // Streams number all tensors that gradients flow through, frozen or not.
  uint32_t stream = 0;
  for (const WeightLocation& location : weights.locations()) {
    if (!seen.insert(location.tensor).second) continue;
    if (!location.planner && !score_options_.base_trains) continue;
    ++stream;
    if (location.planner ? !score_options_.planner_trains : lora) continue;
    parameters_.add(location.tensor, location.shape, location.planner, stream, stages.at(location.tensor),
                    weights.bf16_rows(location.tensor));
  }
  if (lora) lora_.emplace(backend_, weights, parameters_, options_.lora, stream, stages);
  parameters_.allocate();
  parameters_.bind(weights);
  if (!lora_) return;
  // Over blocks it changes what the model computes with.
  const std::unique_lock<WeightsMutex> lock(model_->weights_mutex());
  lora_->initialise(options_.seed);
}

void Trainer::write_model() {
  const bool is_split = parameters_.shard().is_split;
  if (is_split)
    share_updates(backend_, model_->weights(), parameters_, *communicator_, device_ ? device_->ranks.get() : nullptr);
  if (lora_) lora_->merge(adapters_on_);
  if (is_split) return;
  model_->weights().write([&](const std::string& name) -> const float* {
    const Parameter* p = parameters_.find(name);
    return p && p->model_rows.empty() ? parameters_.master(*p) : nullptr;
  });
}

ScoreResult Trainer::score(ScoreRequest request, const std::atomic<bool>* cancel) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::shared_lock<WeightsMutex> weights(model_->weights_mutex());
  return scorer_.score(std::move(request), cancel);
}

std::vector<float> Trainer::backward(const BackwardRequest& request, const std::atomic<bool>* cancel) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::shared_lock<WeightsMutex> weights(model_->weights_mutex());
  gradients_.begin(request.last);
  std::vector<float> dhidden;
  try {
    dhidden = scorer_.backward(request, cancel, [this](int stage) { gradients_.finish(stage); });
  } catch (...) {
    gradients_.interrupt();
    throw;
  }
  gradients_.end();
  return dhidden;
}

void Trainer::join_backward(bool last) {
  const std::lock_guard<std::mutex> lock(mutex_);
  gradients_.begin(last);
  gradients_.end();
}

DeviceRanks Trainer::connect(const Connect& connect) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (device_ || communicator_->size() == 1) return device_.value_or(DeviceRanks());
  communicator_->agree(Shared::kConnect, 0);
  const DeviceRanks found = connect(backend_, communicator_);
  gradients_.use_device(found.ranks);
  return *(device_ = found);
}

void Trainer::zero_grad() {
  const std::lock_guard<std::mutex> lock(mutex_);
  gradients_.clear();
}

void Trainer::check_own_gradients() const {
  check_argument(!parameters_.shard().splits_gradients,
                 "zeroStage: expected 0 or 1; with 2 no process has all of its gradients");
  check_argument(!gradients_.is_exchanging(),
                 "last: expected none so far; after the last backward pass of an update, gradients are added up over "
                 "all processes");
}

double Trainer::grad_norm() {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_own_gradients();
  gradients_.collect();
  const double norm = gradient_norm(backend_, parameters_, nullptr);
  gradients_.restore();
  return norm;
}

double Trainer::step(const OptimizerStep& request) {
  const std::lock_guard<std::mutex> lock(mutex_);
  gradients_.reduce();
  const double norm = gradient_norm(backend_, parameters_, communicator_.get());
  if (!std::isfinite(norm)) throw Error(ErrorCode::kNonFinite, "the gradient's norm is not finite");
  ++steps_;
  // From here on weights of the model change.
  const std::unique_lock<WeightsMutex> weights(model_->weights_mutex());
  update_parameters(backend_, parameters_, request, norm, steps_, options_.seed);
  write_model();
  return norm;
}

std::vector<NamedTensor> Trainer::gradients() {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_own_gradients();
  gradients_.collect();
  std::vector<NamedTensor> tensors = parameters_.read_gradients();
  gradients_.restore();
  return tensors;
}

std::vector<NamedTensor> Trainer::state() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return parameters_.read_state(*communicator_);
}

void Trainer::load_state(int64_t steps, const std::vector<NamedTensor>& tensors) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_argument(steps >= 0, "state: expected a number of steps from 0");
  if (parameters_.shard().is_split) communicator_->agree(Shared::kState, parameters_.size());
  const std::unique_lock<WeightsMutex> weights(model_->weights_mutex());
  parameters_.write_state(tensors);
  steps_ = steps;
  write_model();
}

void Trainer::set_adapters(bool on) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_argument(lora_.has_value(), "setAdapters: this trainer has no adapters");
  if (on == adapters_on_) return;
  adapters_on_ = on;
  const std::unique_lock<WeightsMutex> weights(model_->weights_mutex());
  // All else that trains is in the model as it is.
  lora_->merge(on);
}

}  // namespace dultra
