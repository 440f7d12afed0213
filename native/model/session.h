// A batch of rows being denoised: holds their ids and scratch memory, and does one denoising step per call.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "model/memory.h"
#include "model/transformer.h"

namespace dultra {

// Weights, backend and file options of one loaded model. Shared by its sessions; immutable after loading.
class Model {
 public:
  Model(const ModelConfig& config, std::unique_ptr<Backend> backend, const Checkpoint& checkpoint, const WeightOptions& options,
        const std::atomic<bool>* cancel)
      : backend_(std::move(backend)), transformer_(config, *backend_, checkpoint, options, cancel) {}

  Backend& backend() const { return *backend_; }
  const Transformer& transformer() const { return transformer_; }

  // Scratch memory of one forward pass. The model keeps one that is not in use: fresh pages for every call cost a small model a tenth
  // of its time.
  struct Scratch {
    explicit Scratch(Backend& backend) : layers(backend), head(backend) {}
    Workspace layers, head;
  };
  std::unique_ptr<Scratch> take_scratch() const {
    const std::lock_guard<std::mutex> lock(scratch_mutex_);
    return scratch_ ? std::move(scratch_) : std::make_unique<Scratch>(*backend_);
  }
  void give_back(std::unique_ptr<Scratch> scratch) const {
    const std::lock_guard<std::mutex> lock(scratch_mutex_);
    scratch_ = std::move(scratch);
  }

 private:
  std::unique_ptr<Backend> backend_;  // first: everything below lives in its memory
  Transformer transformer_;
  mutable std::mutex scratch_mutex_;
  mutable std::unique_ptr<Scratch> scratch_;
};

// Everything a forward pass can hand out, for inspection and tests.
struct ForwardResult {
  HostFloats hidden;          // (N, C) after the final norm
  HostFloats logits;          // (N, V) or empty
  HostFloats planner_logits;  // (N) or empty
};
ForwardResult forward_all(const Model& model, const std::vector<int32_t>& ids, const std::vector<int32_t>& offsets, bool logits,
                          const std::vector<float>* timestep, const std::vector<uint8_t>* candidate, const std::atomic<bool>* cancel);

struct StepRequest {
  std::vector<int32_t> rows;         // (R) rows that take part, ascending
  std::vector<int32_t> window_ends;  // (R) candidates are the masked positions before it
  std::vector<uint32_t> row_keys;    // (R) random coordinates
  std::vector<uint32_t> steps;       // (R)
  uint64_t seed = 0;
  float temperature = 0;
  bool tempered_log_prob = false;
  bool exclude_mask = true;
  bool planner = false;  // planner logits wanted
  bool select = true;    // false: propose tokens only, write nothing
  UnmaskRule rule = UnmaskRule::kThreshold;
  float planner_temperature = 1, probability_scale = 1;
  double threshold = 0, factor = 0;
  bool factor_last_pair = false;
  std::vector<int32_t> counts;  // (R) fixed and random rules
  bool reference_likelihood = false;
  std::vector<double> token_uniforms, position_uniforms;  // (M, V), (M) recorded draws, or empty
};

// Per candidate (M), packed by offsets over the R rows of the request.
struct StepResult {
  std::vector<int32_t> offsets, positions, tokens;
  std::vector<float> log_probs, confidences, entropies, planner_logits, probabilities, log_likelihoods;
  std::vector<uint8_t> selected, forced;
  std::vector<float> timesteps;  // (R) 1 - masks / row length, before the step
};

class Session {
 public:
  // ids of the rows packed by offsets (B + 1); every id inside the vocabulary.
  Session(std::shared_ptr<const Model> model, std::vector<int32_t> ids, std::vector<int32_t> offsets);

  StepResult step(const StepRequest& request);
  // Writes tokens at in-row positions of a row.
  void write(int row, const std::vector<int32_t>& positions, const std::vector<int32_t>& tokens);
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }

 private:
  const std::shared_ptr<const Model> model_;
  std::mutex mutex_;  // one step at a time
  std::vector<int32_t> ids_, offsets_;
  Workspace workspace_, head_workspace_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace dultra
