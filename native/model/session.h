// A batch of rows being denoised: holds their ids and scratch memory, and does one denoising step per call.
#pragma once
#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "model/memory.h"
#include "model/transformer.h"
#include "model/weights_mutex.h"

namespace dultra {

// Weights and backend of one loaded model. Shared by its sessions; only a trainer changes the weights, between two of
// their steps.
class Model {
 public:
  Model(const ModelConfig& config, std::unique_ptr<Backend> backend, const Checkpoint& checkpoint,
        const WeightOptions& options, const std::atomic<bool>* cancel, LoadProgress* progress = nullptr)
      : backend_(std::move(backend)), transformer_(config, *backend_, checkpoint, options, cancel, progress) {}

  Backend& backend() const { return *backend_; }
  const Transformer& transformer() const { return transformer_; }
  Transformer& transformer() { return transformer_; }
  // Shared by whoever computes with the weights, exclusive for whoever changes them.
  WeightsMutex& weights_mutex() const { return weights_mutex_; }
  // At most one trainer at a time; false if there is one.
  bool claim_trainer() { return !has_trainer_.exchange(true); }
  void release_trainer() { has_trainer_.store(false); }

  // Scratch memory of one forward pass or denoising step, and recordings of steps. What is not in use the model keeps,
  // one or as many as it has sessions: fresh pages for every call cost a small model a tenth of its time, and steps of
  // equal shapes repeat each other's recordings, whatever session they are of.
  struct Scratch {
    explicit Scratch(Backend& backend)
        : exchange(backend.make_exchange()), layers(backend, exchange.get()), head(backend, exchange.get()) {}
    const std::unique_ptr<Exchange> exchange;
    Workspace layers, head;
  };
  struct GiveBack {
    const Model* model;
    void operator()(Scratch* scratch) const { model->give_back(std::unique_ptr<Scratch>(scratch)); }
  };
  using BorrowedScratch = std::unique_ptr<Scratch, GiveBack>;
  // The one that was given back last. It is given back with its owner, before the model goes.
  BorrowedScratch borrow_scratch() const {
    const std::lock_guard<std::mutex> lock(scratch_mutex_);
    std::unique_ptr<Scratch> scratch;
    if (free_scratch_.empty()) {
      scratch = std::make_unique<Scratch>(*backend_);
    } else {
      scratch = std::move(free_scratch_.back());
      free_scratch_.pop_back();
    }
    return {scratch.release(), GiveBack{this}};
  }
  // By every session when it begins (1) and ends (-1).
  void count_session(int change) const {
    const std::lock_guard<std::mutex> lock(scratch_mutex_);
    sessions_ += change;
  }

 private:
  std::unique_ptr<Backend> backend_;  // first: everything below lives in its memory
  Transformer transformer_;
  mutable WeightsMutex weights_mutex_;
  std::atomic<bool> has_trainer_{false};
  // What is too much goes here, where a worker thread waits for the device, not where a session ends.
  void give_back(std::unique_ptr<Scratch> scratch) const {
    std::vector<std::unique_ptr<Scratch>> surplus;
    const std::lock_guard<std::mutex> lock(scratch_mutex_);
    const size_t kept = size_t(std::max(1, sessions_));
    (free_scratch_.size() < kept ? free_scratch_ : surplus).push_back(std::move(scratch));
    for (; free_scratch_.size() > kept; free_scratch_.pop_back()) surplus.push_back(std::move(free_scratch_.back()));
  }

  mutable std::mutex scratch_mutex_;
  mutable std::vector<std::unique_ptr<Scratch>> free_scratch_;
  mutable int sessions_ = 0;
};

// Rows of the output head computed at a time: bounds the (rows, V) logits to about 64 MB.
int64_t head_rows(int64_t vocab);
// Throw INVALID_ARGUMENT for ids outside the vocabulary, and offsets that do not cut `total` ids into rows of 1 to
// max_length.
void check_ids(const std::vector<int32_t>& ids, int64_t vocab);
void check_offsets(const std::vector<int32_t>& offsets, size_t total, int64_t max_length);
std::vector<int32_t> lengths_of(const std::vector<int32_t>& offsets);

// Everything a forward pass can hand out, for inspection and tests.
struct ForwardResult {
  HostFloats hidden;          // (N, C) after the final norm
  HostFloats logits;          // (N, V) or empty
  HostFloats planner_logits;  // (N) or empty
};
// What of a cache a forward pass works on: the in-row position of each id, row b of the ids being row b of the cache.
struct CachedPositions {
  KvCache& cache;
  std::vector<int32_t> positions;  // (N)
};
// With `cached`, ids are those of the positions alone, and so are the results; the planner needs a cache with
// PlannerCache::kBlocks.
ForwardResult forward_all(const Model& model, const std::vector<int32_t>& ids, const std::vector<int32_t>& offsets,
                          bool logits, const std::vector<float>* timestep, const std::vector<uint8_t>* candidate,
                          const std::atomic<bool>* cancel, const CachedPositions* cached = nullptr);
// A cache for rows of a model. Throws INVALID_ARGUMENT for offsets that do not fit the model, OUT_OF_MEMORY.
std::shared_ptr<KvCache> make_cache(std::shared_ptr<const Model> model, std::vector<int32_t> offsets,
                                    const KvCacheOptions& options);
// Throws INVALID_ARGUMENT for a cache of another model.
void check_cache(const KvCache& cache, const Model& model);

struct StepRequest {
  std::vector<int32_t> rows;         // (R) rows that take part, ascending
  std::vector<int32_t> window_ends;  // (R) candidates are the masked positions before it
  // (R + 1), in-row positions, ascending: candidates in place of those; or empty
  std::vector<int32_t> candidate_offsets, candidates;
  // (R + 1), in-row positions, ascending: what a session with a cache computes; the rest of each row is cached
  std::vector<int32_t> query_offsets, queries;
  std::vector<uint32_t> row_keys;  // (R) random coordinates
  std::vector<uint32_t> steps;     // (R)
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
  std::vector<int32_t> counts;  // (R) counted rules
  bool by_entropy = false;      // kFixed takes the lowest entropies in place of the highest confidences
  bool reference_likelihood = false;
  std::vector<double> token_uniforms, position_uniforms;  // (M, V), (M) recorded draws, or empty
};

// Per candidate (M), packed by offsets over the R rows of the request.
struct StepResult {
  std::vector<int32_t> offsets, positions, tokens;
  std::vector<float> log_probs, confidences, entropies, planner_logits, probabilities, log_likelihoods;
  std::vector<uint8_t> selected, forced;
  std::vector<int32_t> remaining;  // (R) candidates that were not selected
  std::vector<float> timesteps;    // (R) 1 - masks / row length, before the step
};

class Session {
 public:
  // ids of the rows packed by offsets (B + 1); every id inside the vocabulary. `cache` (of the same rows) may be null:
  // every step then computes whole rows.
  Session(std::shared_ptr<const Model> model, std::vector<int32_t> ids, std::vector<int32_t> offsets,
          std::shared_ptr<KvCache> cache = nullptr);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // The host puts together what the step reads, queues all of its operations (or a recording of them), and then reads
  // the results.
  StepResult step(const StepRequest& request);
  // Writes tokens at in-row positions of a row.
  void write(int row, const std::vector<int32_t>& positions, const std::vector<int32_t>& tokens);
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }

 private:
  struct Step;
  // Checks the request and lists the rows that take part and their candidates.
  void prepare(Step& step) const;
  // Brings the number of candidates to one of few; what is added repeats a candidate and decides nothing.
  static void fill_up(Step& step);
  void enqueue(Step& step, Model::Scratch& scratch) const;
  std::vector<int64_t> key_of(const Step& step) const;

  const std::shared_ptr<const Model> model_;
  std::mutex mutex_;  // one step at a time
  std::vector<int32_t> ids_, offsets_;
  const std::shared_ptr<KvCache> cache_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace dultra
