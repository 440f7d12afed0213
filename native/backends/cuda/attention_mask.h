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
  int first_block;                            // of AttentionArgs

  __device__ __forceinline__ SequenceKeys(const AttentionArgs& a, int b)
      : first_query(a.q_offsets[b]),
        queries(a.q_offsets[b + 1] - first_query),
        first_key(a.k_offsets[b]),
        keys(a.k_offsets[b + 1] - first_key) {
    begin = a.key_begin ? clamp(a.key_begin[b], 0, keys) : 0;
    end = a.key_end ? clamp(a.key_end[b], begin, keys) : keys;
    first_block = a.first_block ? a.first_block[b] : a.block;
  }
  static __device__ __forceinline__ int clamp(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

  // End of the keys that query i of the sequence sees; at most `end`, and may lie before `begin`.
  __device__ __forceinline__ int visible_end(const AttentionArgs& a, int i) const {
    if (a.mask == MaskKind::kBidirectional) return end;
    const int position = a.q_positions ? a.q_positions[first_query + i] : i;
    unsigned last = unsigned(position) + 1;
    if (a.mask != MaskKind::kCausal) {
      // block_end in 32 bits: a division of 64 takes registers that these kernels do not have.
      const unsigned block = unsigned(a.block), lacking = block - unsigned(first_block);
      last = ((unsigned(position) + lacking) / block + 1) * block - lacking;
    }
    return last < unsigned(end) ? int(last) : end;
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
