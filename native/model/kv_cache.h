// Keys and values of rows, kept from one forward pass to the next, so that a pass need not compute every position
// again.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "model/config.h"
#include "model/memory.h"
#include "ops/backend.h"

namespace dultra {

// What of the planner head a cache holds.
enum class PlannerCache : uint8_t {
  kNone,
  kBlocks,  // keys and values of its own blocks: the planner, too, computes only what a pass computes
  kHidden,  // the base model's final states: the planner's blocks are computed for whole rows in every pass, on partly
            // old states
};

struct KvCacheOptions {
  // Of keys and values. kF32: as they are computed, which is bf16 where the backend stores operands in it; kBF16:
  // rounded to bf16. States are fp32.
  DType dtype = DType::kF32;
  PlannerCache planner = PlannerCache::kNone;
};

// One contiguous piece per layer, for all rows, allocated when the cache is made. Keys are held after the rotary
// embedding, whose positions are those in the row. One user at a time: they hold `mutex()`.
class KvCache {
 public:
  // `owner` keeps the backend alive. Row b has offsets[b + 1] - offsets[b] positions. Throws OUT_OF_MEMORY.
  KvCache(std::shared_ptr<const void> owner, Backend& backend, const ModelConfig& config, std::vector<int32_t> offsets,
          const KvCacheOptions& options);

  // Bytes that a cache of `tokens` positions takes at most.
  static size_t bytes_needed(const ModelConfig& config, int64_t tokens, const KvCacheOptions& options);

  std::mutex& mutex() const { return mutex_; }
  const void* owner() const { return owner_.get(); }
  const KvCacheOptions& options() const { return options_; }
  const std::vector<int32_t>& offsets() const { return offsets_; }  // (B + 1)
  int rows() const { return int(offsets_.size()) - 1; }
  int32_t length(int row) const { return offsets_[size_t(row) + 1] - offsets_[size_t(row)]; }
  size_t bytes() const { return bytes_; }

  // (N, 2, Hk, D) of layer `i`: the base model's blocks, then the planner's (kBlocks).
  Array layer(size_t i) const { return {layers_[i].as<void>(), dtype_}; }
  size_t layer_count() const { return layers_.size(); }
  // (N, C), with kHidden.
  float* hidden() const { return hidden_.as(); }
  // Keys and values (length, 2, Hk, D) of a row in fp32, in host memory.
  std::vector<float> read(size_t layer, int row) const;

  // Which positions hold something. A pass over `positions` of a row needs all others to; of a causal model, those
  // before its last one. With `planner`, what the planner head reads of them counts too: a pass that runs it needs
  // that, and only such a pass stores it.
  bool complete_with(int row, const int32_t* positions, size_t count, bool planner) const;
  void mark(int row, const int32_t* positions, size_t count, bool planner);
  // Nothing holds anything: after a pass that did not come to its end.
  void clear();

 private:
  const std::shared_ptr<const void> owner_;  // first: the buffers lie in its memory
  Backend& backend_;
  const KvCacheOptions options_;
  const DType dtype_;  // that they are held in
  const std::vector<int32_t> offsets_;
  const int64_t width_;  // 2 Hk D
  const bool causal_;
  mutable std::mutex mutex_;
  std::vector<Buffer> layers_;
  Buffer hidden_;
  // What positions hold something.
  struct Held {
    std::vector<uint8_t> filled;   // (N)
    std::vector<int32_t> missing;  // (B) positions of the row that hold nothing
  };
  bool is_complete(const Held& held, int row, const int32_t* positions, size_t count) const;
  Held base_, planner_;
  size_t bytes_ = 0;
};

// A forward pass over some positions of some of a cache's rows: their keys and values are computed and stored, those of
// the rows' other positions are read as they are.
class KvPass {
 public:
  // rows (R) ascending; offsets (R + 1) into positions: in-row, ascending. Throws INVALID_ARGUMENT where they do not
  // fit the cache, or where a position is neither computed nor held. planner: the planner head runs, too.
  KvPass(KvCache& cache, std::vector<int32_t> rows, const std::vector<int32_t>& offsets,
         const std::vector<int32_t>& positions, bool planner);

  KvCache& cache() const { return cache_; }
  const std::vector<int32_t>& rows() const { return rows_; }
  // (F) place in the cache's arrays of each position that is computed
  const HostArray<int32_t>& slots() const { return slots_; }
  HostArray<int32_t>& slots() { return slots_; }
  // (B + 1) the cache's own offsets
  const HostArray<int32_t>& key_offsets() const { return key_offsets_; }
  HostArray<int32_t>& key_offsets() { return key_offsets_; }
  // Offsets over the pass's rows as offsets over all rows of the cache: those that take no part have no queries.
  std::vector<int32_t> spread(const std::vector<int32_t>& offsets) const;
  // Every position that was computed now holds something.
  void done();

 private:
  KvCache& cache_;
  const std::vector<int32_t> rows_, offsets_, positions_;
  const bool planner_;
  HostArray<int32_t> slots_, key_offsets_;
};

// Clears a cache (null: none) unless told to keep it: what a pass that threw leaves behind is neither old nor new.
class CacheGuard {
 public:
  explicit CacheGuard(KvCache* cache) : cache_(cache) {}
  ~CacheGuard() {
    if (cache_) cache_->clear();
  }
  CacheGuard(const CacheGuard&) = delete;
  CacheGuard& operator=(const CacheGuard&) = delete;
  void keep() { cache_ = nullptr; }

 private:
  KvCache* cache_;
};

// One layer of a pass.
struct KvLayer {
  const KvPass& pass;
  size_t index;
};

}  // namespace dultra
