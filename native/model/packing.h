// Sequences laid end to end, and the checks of ids and offsets that come from callers.
#pragma once
#include <cstdint>
#include <vector>

#include "ops/exchange.h"

namespace dultra {

// Sequence b is rows offsets[b] .. offsets[b + 1] of every (N, .) array.
struct Packing {
  HostArray<int32_t> offsets;        // (B + 1)
  HostArray<int32_t> positions;      // (N) index inside the sequence
  HostArray<int32_t> cache_offsets;  // with a cache: KvPass::expand of the offsets, or empty
  HostArray<int32_t> first_blocks;   // (B) AttentionArgs::first_block of whole rows, or empty

  int batch() const { return int(offsets.size()) - 1; }
  int64_t tokens() const { return offsets.back(); }
  static Packing from_lengths(const std::vector<int32_t>& lengths, std::vector<int32_t> first_blocks = {});
};

// Some rows of a Packing, in order.
struct RowSubset {
  HostArray<int32_t> offsets;        // (B + 1) into the arrays below
  HostArray<int32_t> rows;           // (M) packed row
  HostArray<int32_t> positions;      // (M) index inside the sequence
  HostArray<int32_t> cache_offsets;  // as in Packing
  int max_queries = 0;               // AttentionArgs::max_queries, or 0

  int64_t size() const { return int64_t(rows.size()); }
  // Every row.
  static RowSubset all(const Packing& packing);
  // The rows of the positions before these, and of a sequence's first position itself. Where `packing` lacks
  // one: INVALID_ARGUMENT, or `inside` the row itself.
  RowSubset shifted_left(const Packing& packing, bool inside = false) const;
};

// The tokens that a pass computes: N, which all give keys and values, and M of them that are brought up to date.
struct BlockTokens {
  const Packing& packing;
  const RowSubset* subset = nullptr;  // null: all

  int64_t count() const { return packing.tokens(); }
  int64_t queries() const { return subset ? subset->size() : packing.tokens(); }
  const int32_t* positions() const { return packing.positions.data(); }
  const int32_t* query_positions() const { return subset ? subset->positions.data() : packing.positions.data(); }
};

// Throw INVALID_ARGUMENT for ids outside the vocabulary, and for offsets that do not cut `total` ids into sequences of
// 1 to max_length.
void check_ids(const std::vector<int32_t>& ids, int64_t vocab);
void check_offsets(const std::vector<int32_t>& offsets, size_t total, int64_t max_length);
// Throws INVALID_ARGUMENT for lengths of first blocks, one per row or none, that are not 1 to the model's block length;
// 0: the model does not attend by blocks.
void check_first_blocks(const std::vector<int32_t>& first_blocks, size_t rows, int block_length);
std::vector<int32_t> lengths_of(const std::vector<int32_t>& offsets);
// 0, 1, ..., n - 1
std::vector<int32_t> ascending(int64_t n);

}  // namespace dultra
