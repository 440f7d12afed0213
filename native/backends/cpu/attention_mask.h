// Which keys a query sees: every mask is one interval of the sequence's keys per query.
#pragma once
#include <algorithm>
#include <cstdint>

#include "ops/backend.h"

namespace dultra {
namespace cpu {

// End of the interval of keys that a query at `position` of sequence b sees, before key_begin and key_end.
inline int64_t mask_end(const AttentionArgs& a, int b, int64_t position, int64_t keys) {
  switch (a.mask) {
    case MaskKind::kBidirectional: return keys;
    case MaskKind::kCausal: return std::min(keys, position + 1);
    case MaskKind::kBlockCausal:
      return std::min(keys, block_end(position, a.block, a.first_block ? a.first_block[b] : a.block));
  }
  return keys;
}

// The keys of sequence b within key_begin and key_end: [begin, end) of `all`.
struct KeyRange {
  int64_t all, begin, end;
  KeyRange(const AttentionArgs& a, int b)
      : all(a.k_offsets[b + 1] - a.k_offsets[b]),
        begin(a.key_begin ? std::clamp<int64_t>(a.key_begin[b], 0, all) : 0),
        end(a.key_end ? std::clamp<int64_t>(a.key_end[b], begin, all) : all) {}
  // Number of keys from `begin` on that the packed query sees.
  int32_t visible(const AttentionArgs& a, int b, int64_t query) const {
    const int64_t position = a.q_positions ? a.q_positions[query] : query - a.q_offsets[b];
    return int32_t(std::max<int64_t>(0, std::min(end, mask_end(a, b, position, all)) - begin));
  }
};

}  // namespace cpu
}  // namespace dultra
