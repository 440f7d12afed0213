#include "model/model.h"

#include <algorithm>

namespace dultra {

Model::Model(const ModelConfig& config, std::unique_ptr<Backend> backend, const Checkpoint& checkpoint,
             const WeightOptions& options, const std::atomic<bool>* cancel, LoadProgress* progress)
    : config_(config),
      backend_(std::move(backend)),
      weights_(config, *backend_, checkpoint, options, cancel, progress) {}

Model::BorrowedScratch Model::borrow_scratch() const {
  const std::lock_guard<std::mutex> lock(scratch_mutex_);
  most_ = std::max(most_, ++lent_);
  std::unique_ptr<Scratch> scratch;
  if (free_scratch_.empty()) {
    scratch = std::make_unique<Scratch>(*backend_);
  } else {
    scratch = std::move(free_scratch_.back());
    free_scratch_.pop_back();
  }
  return {scratch.release(), Return{this}};
}

// Trims the pool here, on the worker thread, where waiting for the device does no harm.
void Model::take_back(std::unique_ptr<Scratch> scratch) const {
  std::vector<std::unique_ptr<Scratch>> surplus;
  const std::lock_guard<std::mutex> lock(scratch_mutex_);
  --lent_;
  if (++passes_ % kRecentPasses == 0) {
    most_before_ = most_;
    most_ = lent_ + 1;
  }
  free_scratch_.push_back(std::move(scratch));
  const auto kept = size_t(std::max(most_, most_before_) - lent_);
  while (free_scratch_.size() > kept) {
    surplus.push_back(std::move(free_scratch_.front()));
    free_scratch_.erase(free_scratch_.begin());
  }
}

}  // namespace dultra
