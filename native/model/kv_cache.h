// Keys and values of rows, kept from one forward pass to the next, so that a pass need not compute every position
// again.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "model/config.h"
#include "model/memory.h"
#include "ops/backend.h"

namespace dultra {

class Model;

// What a cache keeps for the planner head.
enum class PlannerCache : uint8_t {
  kNone,
  kBlocks,  // keys and values of its own blocks: the planner, too, computes only what a pass computes
  kHidden,  // the base model's final states: every pass computes the planner's blocks for full rows, on partly old
            // states
};

struct KvCacheOptions {
  // Of keys and values. kF32: as they are computed, which is bf16 where the backend stores activations in it; kBF16:
  // rounded to bf16. States are fp32.
  DType dtype = DType::kF32;
  PlannerCache planner = PlannerCache::kNone;
};

// Where a row lies in a cache: its positions are those from `begin` on. first_block: the length of its first block, 0
// in a model that does not attend by blocks or where all rows have whole ones.
struct KvRange {
  int32_t begin, length, first_block = 0;
};

// One array per layer for all rows, allocated when the cache is made. Rows are its own, one after the other as offsets
// say, or ranges that a step names. Keys are stored after the rotary embedding, whose
// positions are those in the row. One user at a time: they lock `mutex()`.
class KvCache {
 public:
  // Row b has offsets[b + 1] - offsets[b] positions; first_blocks (B) as in AttentionArgs, or empty. Throws
  // OUT_OF_MEMORY, NO_PLANNER, and INVALID_ARGUMENT for offsets and blocks that do not fit the model.
  KvCache(std::shared_ptr<const Model> model, std::vector<int32_t> offsets, const KvCacheOptions& options,
          std::vector<int32_t> first_blocks = {});

  // Bytes that a cache of `tokens` positions takes at most.
  static size_t bytes_needed(const ModelConfig& config, int64_t tokens, const KvCacheOptions& options);

  std::mutex& mutex() const { return mutex_; }
  const Model& model() const { return *model_; }
  const KvCacheOptions& options() const { return options_; }
  const std::vector<int32_t>& offsets() const { return offsets_; }  // (B + 1)
  const std::vector<int32_t>& first_blocks() const { return first_blocks_; }
  int rows() const { return int(offsets_.size()) - 1; }
  int32_t length(int row) const { return offsets_[size_t(row) + 1] - offsets_[size_t(row)]; }
  int32_t capacity() const { return offsets_.back(); }
  // Of its own rows. Throws INVALID_ARGUMENT for one that it does not have.
  std::vector<KvRange> ranges(const std::vector<int32_t>& rows) const;
  // Throws INVALID_ARGUMENT unless the ranges ascend, apart from each other and inside the cache.
  void check(const std::vector<KvRange>& ranges) const;
  size_t bytes() const { return bytes_; }

  // (N, 2, Hk, D) of layer `i`: the base model's blocks, then the planner's (kBlocks).
  Array layer(size_t i) const { return {layers_[i].as<void>(), dtype_}; }
  size_t layer_count() const { return layers_.size(); }
  // (N, C), with kHidden.
  float* hidden() const { return hidden_.as(); }
  // Keys and values (length, 2, Hk, D) of a row in fp32, in host memory.
  std::vector<float> read(size_t layer, int row) const;

  // Whether a pass over `positions` (ascending) of a row finds all else that its queries see. With `planner` that
  // holds for the planner head's keys, values or states too: only a pass that runs the planner stores those.
  bool complete_with(const KvRange& row, const int32_t* positions, size_t count, bool planner) const;
  // Notes that `positions` are cached now.
  void mark(const KvRange& row, const int32_t* positions, size_t count, bool planner);
  // Invalidates the entries of a row.
  void forget(const KvRange& row);

 private:
  using Filled = std::vector<uint8_t>;  // (N) which positions are cached
  bool is_complete(const Filled& filled, const KvRange& row, const int32_t* positions, size_t count) const;

  const std::shared_ptr<const Model> model_;  // first: the buffers are in its backend's memory
  Backend& backend_;
  const KvCacheOptions options_;
  const DType dtype_;  // of keys and values in memory
  const std::vector<int32_t> offsets_, first_blocks_;
  const int64_t width_;  // 2 Hk D
  mutable std::mutex mutex_;
  std::vector<Buffer> layers_;
  Buffer hidden_;
  Filled base_, planner_;
  size_t bytes_ = 0;
};

// A pass over some positions of some of a cache's rows: it computes and stores their keys and values, and reads those
// of the rows' other positions.
class KvPass {
 public:
  // rows (R) as KvCache::check wants them; offsets (R + 1) into positions: in-row, ascending. Throws INVALID_ARGUMENT
  // where they do not fit the cache, or where a position is neither computed nor cached. planner: the planner head
  // runs, too.
  KvPass(KvCache& cache, std::vector<KvRange> rows, const std::vector<int32_t>& offsets,
         const std::vector<int32_t>& positions, bool planner);

  KvCache& cache() const { return cache_; }
  const std::vector<KvRange>& rows() const { return rows_; }
  // (N) place in the cache's arrays of each position that is computed
  const HostArray<int32_t>& slots() const { return slots_; }
  // (S + 1) The cache as sequences laid end to end: the pass's rows, and what lies between them.
  const HostArray<int32_t>& key_offsets() const { return key_offsets_; }
  // (S) or empty, likewise
  const HostArray<int32_t>& first_blocks() const { return first_blocks_; }
  int sequences() const { return int(key_offsets_.size()) - 1; }
  // Offsets over the pass's rows as offsets over all sequences: what lies between rows has no queries.
  std::vector<int32_t> expand(const std::vector<int32_t>& offsets) const;
  // Puts the arrays that operations read in an exchange.
  void lay_out(ExchangeLayout& layout);
  // Every position that was computed is cached now.
  void done();

 private:
  KvCache& cache_;
  const std::vector<KvRange> rows_;
  const std::vector<int32_t> offsets_, positions_;
  const bool planner_;
  HostArray<int32_t> slots_, key_offsets_, first_blocks_;
  std::vector<int32_t> row_of_;  // (S) which row of the pass a sequence is, or -1
};

// A cache (or none) while a pass uses it: locked. A pass that throws after `begin` leaves the keys and values of its
// rows inconsistent, so the cache forgets them then.
class CacheUse {
 public:
  explicit CacheUse(KvCache* cache);
  ~CacheUse();
  CacheUse(const CacheUse&) = delete;
  CacheUse& operator=(const CacheUse&) = delete;
  void begin(const std::optional<KvPass>& pass) {
    if (pass) writing_ = pass->rows();
  }
  void done(std::optional<KvPass>& pass);

 private:
  KvCache* const cache_;
  std::vector<KvRange> writing_;
  std::unique_lock<std::mutex> lock_;
};

}  // namespace dultra
