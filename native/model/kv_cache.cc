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
  base_.resize(size_t(n));
  planner_.resize(size_t(n));
}

std::vector<KvRange> KvCache::ranges(const std::vector<int32_t>& of) const {
  std::vector<KvRange> out;
  for (int32_t row : of) {
    check_argument(row >= 0 && row < rows(), "positions: rows must be ascending indices of the cache's rows");
    const int32_t first_block = first_blocks_.empty() ? 0 : first_blocks_[size_t(row)];
    out.push_back({offsets_[size_t(row)], length(row), first_block});
  }
  return out;
}

void KvCache::check(const std::vector<KvRange>& ranges) const {
  int64_t end = 0;
  for (const KvRange& range : ranges) {
    check_argument(range.begin >= end && range.length > 0 && int64_t(range.begin) + range.length <= capacity(),
                   "positions: rows must be ascending ranges of the cache");
    end = int64_t(range.begin) + range.length;
  }
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

bool KvCache::is_complete(const Filled& filled, const KvRange& row, const int32_t* positions, size_t count) const {
  const uint8_t* cached = filled.data() + row.begin;
  const ModelConfig& config = model_->config();
  int32_t end = row.length;
  if (config.mask != MaskKind::kBidirectional) {
    if (count == 0) return true;
    // The last query sees most: what stands before it, or before the end of its block.
    const int32_t last = positions[count - 1], block = config.block_length;
    const int32_t first = row.first_block > 0 ? row.first_block : block;
    end = config.mask == MaskKind::kCausal ? last + 1
                                           : int32_t(std::min<int64_t>(row.length, block_end(last, block, first)));
  }
  size_t next = 0;
  for (int32_t p = 0; p < end; ++p) {
    if (next < count && positions[next] == p)
      ++next;
    else if (!cached[p])
      return false;
  }
  return true;
}

bool KvCache::complete_with(const KvRange& row, const int32_t* positions, size_t count, bool planner) const {
  return is_complete(base_, row, positions, count) && (!planner || is_complete(planner_, row, positions, count));
}

void KvCache::mark(const KvRange& row, const int32_t* positions, size_t count, bool planner) {
  for (size_t i = 0; i < count; ++i) {
    base_[size_t(row.begin + positions[i])] = 1;
    if (planner) planner_[size_t(row.begin + positions[i])] = 1;
  }
}

void KvCache::forget(const KvRange& row) {
  for (Filled* filled : {&base_, &planner_}) std::fill_n(filled->begin() + row.begin, row.length, uint8_t(0));
}

KvPass::KvPass(KvCache& cache, std::vector<KvRange> rows, const std::vector<int32_t>& offsets,
               const std::vector<int32_t>& positions, bool planner)
    : cache_(cache), rows_(std::move(rows)), offsets_(offsets), positions_(positions), planner_(planner) {
  check_argument(
      offsets_.size() == rows_.size() + 1 && offsets_.front() == 0 && size_t(offsets_.back()) == positions_.size(),
      "positions: expected offsets from 0 to the number of positions, one more than rows");
  cache.check(rows_);
  std::vector<int32_t> slots, key_offsets{0}, first_blocks;
  const bool has_first_blocks = !rows_.empty() && rows_[0].first_block > 0;
  const auto add_sequence = [&](int32_t end, int32_t row) {
    key_offsets.push_back(end);
    row_of_.push_back(row);
    // What lies between rows has no queries, and so blocks of any length.
    if (has_first_blocks) first_blocks.push_back(row < 0 ? 1 : rows_[size_t(row)].first_block);
  };
  for (size_t r = 0; r < rows_.size(); ++r) {
    const KvRange& row = rows_[r];
    if (row.begin > key_offsets.back()) add_sequence(row.begin, -1);
    add_sequence(row.begin + row.length, int32_t(r));
    const int32_t begin = offsets_[r], end = offsets_[r + 1];
    check_argument(begin <= end && size_t(end) <= positions_.size(), "positions: expected ascending offsets");
    for (int32_t i = begin; i < end; ++i) {
      const int32_t p = positions_[size_t(i)];
      check_argument(
          p >= 0 && p < row.length && (i == begin || p > positions_[size_t(i) - 1]),
          "positions: expected ascending positions inside row " + std::to_string(r) + ", got " + std::to_string(p));
      slots.push_back(row.begin + p);
    }
    check_argument(cache.complete_with(row, positions_.data() + begin, size_t(end - begin), planner_),
                   "positions: row " + std::to_string(r) +
                       " has positions that are neither computed in this pass nor cached by an earlier one" +
                       (planner_ ? " with the planner" : ""));
  }
  if (cache.capacity() > key_offsets.back()) add_sequence(cache.capacity(), -1);
  slots_ = std::move(slots);
  key_offsets_ = std::move(key_offsets);
  first_blocks_ = std::move(first_blocks);
}

std::vector<int32_t> KvPass::expand(const std::vector<int32_t>& offsets) const {
  std::vector<int32_t> out{0};
  for (int32_t row : row_of_) out.push_back(row < 0 ? out.back() : offsets[size_t(row) + 1]);
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
  for (const KvRange& row : writing_) cache_->forget(row);
}

void CacheUse::done(std::optional<KvPass>& pass) {
  if (pass) pass->done();
  writing_.clear();
}

}  // namespace dultra
