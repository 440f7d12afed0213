#include "model/kv_cache.h"

#include <algorithm>
#include <string>

#include "model/model.h"
#include "model/packing.h"

namespace dultra {

namespace {

size_t layers_of(const ModelConfig& config, const KvCacheOptions& options) {
  return size_t(config.layers) + (options.planner == PlannerCache::kBlocks ? size_t(config.planner.layers) : 0);
}

}  // namespace

KvCache::KvCache(std::shared_ptr<const Model> model, std::vector<int32_t> offsets, const KvCacheOptions& options,
                 std::vector<int32_t> first_blocks)
    : model_(std::move(model)),
      backend_(model_->backend()),
      options_(options),
      dtype_(options.dtype == DType::kF32 ? backend_.activation_dtype() : options.dtype),
      offsets_(std::move(offsets)),
      first_blocks_(std::move(first_blocks)),
      width_(2 * model_->config().kv_width()) {
  const ModelConfig& config = model_->config();
  check_offsets(offsets_, offsets_.empty() ? 0 : size_t(offsets_.back()), config.max_sequence_length);
  check_first_blocks(first_blocks_, offsets_.size() - 1, config.block_length);
  check_argument(options.dtype == DType::kF32 || options.dtype == DType::kBF16, "cache: dtype: expected fp32 or bf16");
  if (options.planner != PlannerCache::kNone && !config.planner.present)
    throw Error(ErrorCode::kNoPlanner, "this checkpoint has no planner head");
  const int64_t n = offsets_.back();
  for (size_t i = 0; i < layers_of(config, options); ++i)
    layers_.emplace_back(backend_, size_t(n * width_) * dtype_size(dtype_));
  if (options.planner == PlannerCache::kHidden) hidden_ = Buffer(backend_, size_t(n * config.hidden) * 4);
  bytes_ = bytes_needed(config, n, {dtype_, options.planner});
  clear();
}

size_t KvCache::bytes_needed(const ModelConfig& config, int64_t tokens, const KvCacheOptions& options) {
  const size_t keys_and_values = layers_of(config, options) * 2 * size_t(config.kv_width()) * dtype_size(options.dtype);
  const size_t states = options.planner == PlannerCache::kHidden ? size_t(config.hidden) * 4 : 0;
  return size_t(tokens) * (keys_and_values + states);
}

std::vector<float> KvCache::read(size_t layer, int row) const {
  check_argument(layer < layers_.size(),
                 "layer: expected 0 to " + std::to_string(layers_.size() - 1) + ", got " + std::to_string(layer));
  check_argument(row >= 0 && row < rows(),
                 "row: expected 0 to " + std::to_string(rows() - 1) + ", got " + std::to_string(row));
  const size_t first = size_t(offsets_[size_t(row)] * width_), count = size_t(length(row) * width_),
               size = dtype_size(dtype_);
  std::vector<uint8_t> stored(count * size);
  backend_.download(stored.data(), layers_[layer].as<uint8_t>() + first * size, stored.size());
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = load_as_f32(stored.data(), dtype_, i);
  return out;
}

bool KvCache::is_complete(const Filled& filled, int row, const int32_t* positions, size_t count) const {
  const uint8_t* cached = filled.positions.data() + offsets_[size_t(row)];
  const ModelConfig& config = model_->config();
  if (config.mask == MaskKind::kBidirectional) {
    int32_t missing = filled.missing[size_t(row)];
    for (size_t i = 0; i < count; ++i) missing -= !cached[positions[i]];
    return missing == 0;
  }
  if (count == 0) return true;
  // The last query sees most: what stands before it, or before the end of its block.
  const int32_t last = positions[count - 1], block = config.block_length;
  const int32_t first = first_blocks_.empty() ? block : first_blocks_[size_t(row)];
  const int32_t end = config.mask == MaskKind::kCausal
                          ? last + 1
                          : int32_t(std::min<int64_t>(length(row), block_end(last, block, first)));
  size_t next = 0;
  for (int32_t p = 0; p < end; ++p) {
    if (next < count && positions[next] == p)
      ++next;
    else if (!cached[p])
      return false;
  }
  return true;
}

bool KvCache::complete_with(int row, const int32_t* positions, size_t count, bool planner) const {
  return is_complete(base_, row, positions, count) && (!planner || is_complete(planner_, row, positions, count));
}

void KvCache::mark(int row, const int32_t* positions, size_t count, bool planner) {
  for (Filled* filled : {&base_, &planner_}) {
    if (filled == &planner_ && !planner) continue;
    for (size_t i = 0; i < count; ++i) {
      uint8_t& cached = filled->positions[size_t(offsets_[size_t(row)] + positions[i])];
      filled->missing[size_t(row)] -= !cached;
      cached = 1;
    }
  }
}

void KvCache::clear() {
  for (Filled* filled : {&base_, &planner_}) {
    filled->positions.assign(size_t(offsets_.back()), uint8_t(0));
    filled->missing = lengths_of(offsets_);
  }
}

KvPass::KvPass(KvCache& cache, std::vector<int32_t> rows, const std::vector<int32_t>& offsets,
               const std::vector<int32_t>& positions, bool planner)
    : cache_(cache),
      rows_(std::move(rows)),
      offsets_(offsets),
      positions_(positions),
      planner_(planner),
      key_offsets_(cache.offsets()),
      first_blocks_(cache.first_blocks()) {
  check_argument(
      offsets_.size() == rows_.size() + 1 && offsets_.front() == 0 && size_t(offsets_.back()) == positions_.size(),
      "positions: expected offsets from 0 to the number of positions, one more than rows");
  std::vector<int32_t> slots;
  for (size_t r = 0; r < rows_.size(); ++r) {
    const int32_t row = rows_[r], begin = offsets_[r], end = offsets_[r + 1];
    check_argument(row >= 0 && row < cache.rows() && (r == 0 || row > rows_[r - 1]),
                   "positions: rows must be ascending indices of the cache's rows");
    check_argument(begin <= end && size_t(end) <= positions_.size(), "positions: expected ascending offsets");
    for (int32_t i = begin; i < end; ++i) {
      const int32_t p = positions_[size_t(i)];
      check_argument(
          p >= 0 && p < cache.length(row) && (i == begin || p > positions_[size_t(i) - 1]),
          "positions: expected ascending positions inside row " + std::to_string(row) + ", got " + std::to_string(p));
      slots.push_back(cache.offsets()[size_t(row)] + p);
    }
    check_argument(cache.complete_with(row, positions_.data() + begin, size_t(end - begin), planner_),
                   "positions: row " + std::to_string(row) +
                       " has positions that are neither computed in this pass nor cached by an earlier one" +
                       (planner_ ? " with the planner" : ""));
  }
  slots_ = std::move(slots);
}

std::vector<int32_t> KvPass::expand(const std::vector<int32_t>& offsets) const {
  std::vector<int32_t> out(size_t(cache_.rows()) + 1);
  size_t r = 0;
  for (int row = 0; row < cache_.rows(); ++row) {
    out[size_t(row)] = offsets[r];
    if (r < rows_.size() && rows_[r] == row) ++r;
  }
  out.back() = offsets.back();
  return out;
}

void KvPass::lay_out(ExchangeLayout& layout) {
  layout.put(slots_);
  layout.put(key_offsets_);
  layout.put(first_blocks_);
}

void KvPass::done() {
  for (size_t r = 0; r < rows_.size(); ++r)
    cache_.mark(rows_[r], positions_.data() + offsets_[r], size_t(offsets_[r + 1] - offsets_[r]), planner_);
}

CacheUse::CacheUse(KvCache* cache) : cache_(cache) {
  if (cache_) lock_ = std::unique_lock<std::mutex>(cache_->mutex());
}

CacheUse::~CacheUse() {
  if (cache_ && is_writing_) cache_->clear();
}

void CacheUse::done(std::optional<KvPass>& pass) {
  if (pass) pass->done();
  is_writing_ = false;
}

}  // namespace dultra
