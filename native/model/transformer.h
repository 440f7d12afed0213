// The LLaDA transformer: embedding, blocks, final norm and output head, forward above backward; written once against
// ops/backend.h.
#pragma once
#include "model/weights.h"

namespace dultra {

// Activations of the base model that backward reads.
struct BaseTape {
  std::vector<BlockTape> blocks;
  float* last = nullptr;  // (M, C): what the final norm reads
};

// hidden (N, C), or with a subset the (M, C) of its rows alone: states after the final norm. ids (N).
void hidden_forward(const ForwardContext& context, const Weights& weights, const BlockTokens& tokens,
                    const int32_t* ids, Array hidden, BaseTape* tape);
// From dhidden (N, C), or (M, C): adds to the gradients of everything below the output head.
void hidden_backward(const BackwardContext& context, const Weights& weights, const BlockTokens& tokens,
                     const std::vector<int32_t>& ids, const float* dhidden, const BaseTape& tape);

// Rows of the output head that are computed at a time: bounds the (rows, V) logits to about 64 MB.
int64_t head_rows(int64_t vocab);
// logits (M, V) of hidden (M, C).
void head_forward(const ForwardContext& context, const Weights& weights, float* logits, ConstArray hidden, int64_t m);

// Calls `chunk(first, count, logits)` for all M rows of hidden (M, C), head_rows at a time: rows first .. first +
// count have logits (count, V) until it returns. `logits` holds the first chunk's.
template <class Chunk>
void for_head_chunks(const ForwardContext& context, const Weights& weights, ConstArray hidden, int64_t m, float* logits,
                     const Chunk& chunk) {
  const int64_t rows = std::min(m, head_rows(context.config.embedding_size));
  for (int64_t first = 0; first < m; first += rows) {
    check_cancelled(context.cancel);
    const int64_t count = std::min(rows, m - first);
    head_forward(context, weights, logits, hidden + first * context.config.hidden, count);
    chunk(first, count, logits);
  }
}

}  // namespace dultra
