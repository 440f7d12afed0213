// One loaded model: its weights and backend, who may use them, and scratch memory that passes borrow.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "model/weights.h"
#include "model/weights_mutex.h"

namespace dultra {

// Shared by everything that computes with it; only a trainer changes the weights, between two passes.
class Model {
 public:
  Model(const ModelConfig& config, std::unique_ptr<Backend> backend, const Checkpoint& checkpoint,
        const WeightOptions& options, const std::atomic<bool>* cancel, LoadProgress* progress = nullptr);

  const ModelConfig& config() const { return config_; }
  Backend& backend() const { return *backend_; }
  const Weights& weights() const { return weights_; }
  Weights& weights() { return weights_; }
  // Shared by whoever computes with the weights, exclusive for whoever changes them.
  WeightsMutex& weights_mutex() const { return weights_mutex_; }
  // At most one trainer at a time; false if there is one.
  bool claim_trainer() { return !has_trainer_.exchange(true); }
  void release_trainer() { has_trainer_.store(false); }

  // Scratch memory of one pass, and graphs captured on it. The model keeps as many as passes ran at a time lately:
  // new pages for every pass cost a small model a tenth of its time, and passes of equal shapes replay each other's
  // graphs.
  struct Scratch {
    explicit Scratch(Backend& backend)
        : exchange(backend.make_exchange()), layers(backend, exchange.get()), head(backend, exchange.get()) {}
    const std::unique_ptr<Exchange> exchange;
    Workspace layers, head;
  };
  struct Return {
    const Model* model;
    void operator()(Scratch* scratch) const { model->take_back(std::unique_ptr<Scratch>(scratch)); }
  };
  using BorrowedScratch = std::unique_ptr<Scratch, Return>;
  // The one that was returned last. Its owner must not outlive the model.
  BorrowedScratch borrow_scratch() const;
  // Passes over which the pool looks back.
  static constexpr int kRecentPasses = 64;

 private:
  void take_back(std::unique_ptr<Scratch> scratch) const;

  const ModelConfig config_;
  const std::unique_ptr<Backend> backend_;  // first: everything below is in its memory
  Weights weights_;
  mutable WeightsMutex weights_mutex_;
  std::atomic<bool> has_trainer_{false};
  mutable std::mutex scratch_mutex_;
  mutable std::vector<std::unique_ptr<Scratch>> free_scratch_;
  // Scratch memories in use; the most that were so at a time, in this window of kRecentPasses and in the last one.
  mutable int lent_ = 0, most_ = 0, most_before_ = 0, passes_ = 0;
};

}  // namespace dultra
