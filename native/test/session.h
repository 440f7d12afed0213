// Rows that a test or a benchmark denoises step by step: keeps their ids, and writes what a step selected.
#pragma once
#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "model/step.h"

namespace dultra {
namespace test {

// A step of some of a session's rows, by one rule and with one seed for all of them unless there are more.
struct SessionRequest : StepRequest, StepRule {
  std::vector<int32_t> rows;  // (R) ascending
  uint64_t seed = 0;
};

class Session {
 public:
  Session(std::shared_ptr<const Model> model, std::vector<int32_t> ids, std::vector<int32_t> offsets,
          std::shared_ptr<KvCache> cache = nullptr)
      : model_(std::move(model)), ids_(std::move(ids)), offsets_(std::move(offsets)), cache_(std::move(cache)) {}

  StepResult step(const SessionRequest& request) {
    StepResult result = peek(request);
    for (size_t r = 0; r < request.rows.size(); ++r)
      for (int32_t i = result.offsets[r]; i < result.offsets[r + 1]; ++i)
        if (result.selected[size_t(i)])
          write(request.rows[r], {result.positions[size_t(i)]}, {result.tokens[size_t(i)]});
    return result;
  }
  // A step that writes nothing.
  StepResult peek(const SessionRequest& request) {
    StepRequest own = request;
    own.offsets = {0};
    own.ids.clear();
    for (int32_t row : request.rows) {
      check_argument(row >= 0 && size_t(row) + 1 < offsets_.size(), "rows: expected indices of the session's rows");
      own.ids.insert(own.ids.end(), ids_.begin() + offsets_[size_t(row)], ids_.begin() + offsets_[size_t(row) + 1]);
      own.offsets.push_back(int32_t(own.ids.size()));
    }
    own.cache = cache_;
    if (cache_)
      for (int32_t row : request.rows) own.cache_begins.push_back(offsets_[size_t(row)]);
    if (own.rules.empty()) own.rules.push_back(request);
    if (own.seeds.empty()) own.seeds.assign(request.rows.size(), request.seed);
    return run_step(*model_, own, &cancelled_);
  }
  void write(int32_t row, const std::vector<int32_t>& positions, const std::vector<int32_t>& tokens) {
    for (size_t i = 0; i < positions.size(); ++i) ids_[size_t(offsets_[size_t(row)] + positions[i])] = tokens[i];
  }
  void cancel() { cancelled_ = true; }

 private:
  const std::shared_ptr<const Model> model_;
  std::vector<int32_t> ids_, offsets_;
  const std::shared_ptr<KvCache> cache_;
  std::atomic<bool> cancelled_{false};
};

inline std::shared_ptr<KvCache> make_cache(std::shared_ptr<const Model> model, std::vector<int32_t> offsets,
                                           const KvCacheOptions& options) {
  return std::make_shared<KvCache>(std::move(model), std::move(offsets), options);
}

}  // namespace test
}  // namespace dultra
