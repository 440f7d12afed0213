// Which keys a query sees: every mask is one interval of the sequence's keys per query.
#pragma once
#include "backends/cuda/device.h"
#include "ops/backend.h"

namespace dultra {
namespace cuda {

// Sequence b of a call. Keys and queries count from the sequence's first.
struct SequenceKeys {
  int first_query, queries, first_key, keys;  // packed index and number
  int begin, end;                             // keys that a range leaves visible
  int sequence;                               // b

  __device__ __forceinline__ SequenceKeys(const AttentionArgs& a, int b)
      : first_query(a.q_offsets[b]),
        queries(a.q_offsets[b + 1] - first_query),
        first_key(a.k_offsets[b]),
        keys(a.k_offsets[b + 1] - first_key),
        sequence(b) {
    begin = a.key_begin ? clamp(a.key_begin[b], 0, keys) : 0;
    end = a.key_end ? clamp(a.key_end[b], begin, keys) : keys;
  }
  static __device__ __forceinline__ int clamp(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

  // End of the keys that query i of the sequence sees; at most `end`, and may lie before `begin`.
  __device__ __forceinline__ int visible_end(const AttentionArgs& a, int i) const {
    if (a.mask == MaskKind::kBidirectional) return end;
    const int position = a.q_positions ? a.q_positions[first_query + i] : i;
    // The first block is read where it is needed, since these kernels have no registers left.
    const int64_t last = a.mask == MaskKind::kCausal
                             ? int64_t(position) + 1
                             : block_end(position, a.block, a.first_block ? a.first_block[sequence] : a.block);
    return last < end ? int(last) : end;
  }
};

// The ends of the keys that some query, and that every query of `count` from row0 on sees. Positions need not ascend.
struct VisibleEnds {
  int most, least;
  __device__ __forceinline__ VisibleEnds(const AttentionArgs& a, const SequenceKeys& keys, int row0, int count)
      : most(keys.end), least(keys.end) {
    if (a.mask == MaskKind::kBidirectional) return;
    most = least = keys.visible_end(a, row0);
    for (int i = row0 + 1; i < keys.queries && i < row0 + count; ++i) {
      const int end = keys.visible_end(a, i);
      most = end > most ? end : most;
      least = end < least ? end : least;
    }
  }
};

}  // namespace cuda
}  // namespace dultra
