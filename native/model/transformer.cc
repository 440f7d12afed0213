#include "model/transformer.h"

#include <algorithm>

#include "model/parameters.h"
#include "model/trace.h"

namespace dultra {

void check_cancelled(const std::atomic<bool>* cancel) {
  if (cancel && cancel->load(std::memory_order_relaxed)) throw Error(ErrorCode::kAborted, "the work was cancelled");
}

void hidden_forward(const ForwardContext& context, const Weights& weights, const BlockTokens& tokens,
                    const int32_t* ids, Array hidden, BaseTape* tape) {
  Backend& backend = context.backend;
  const RowSubset* subset = tokens.subset;
  const int64_t n = tokens.count(), m = tokens.queries(), c = context.config.hidden;
  // A pass without candidates still renews keys and values.
  if (m == 0 && (!context.cache || n == 0)) return;
  float* x = tape ? context.tape_memory->take(n * c) : context.workspace.get(kResidual, (n + (subset ? m : 0)) * c);
  if (weights.embedding_blocks)
    backend.table_rows_forward(x, *weights.embedding_blocks, ids, n);
  else
    backend.embedding_forward(x, weights.embedding.as<void>(), weights.embedding_dtype, ids, n, c);
  const size_t layers = weights.blocks.size();
  if (tape) tape->blocks.assign(layers, BlockTape{});
  for (size_t i = 0; i < layers; ++i) {
    check_cancelled(context.cancel);
    // Only the last block need not bring every token up to date: the others give keys and values to the next.
    const RowSubset* narrowed = i + 1 == layers ? subset : nullptr;
    float* out = tape ? context.tape_memory->take((narrowed ? m : n) * c) : narrowed ? x + n * c : x;
    if (tape) tape->blocks[i].x = x;
    block_forward(context, weights.blocks[i], {tokens.packing, narrowed}, i, out, x,
                  tape && !context.inputs_only ? &tape->blocks[i] : nullptr);
    x = out;
  }
  if (subset && layers == 0) {
    float* out = tape ? context.tape_memory->take(m * c) : x + n * c;
    backend.gather_rows(out, x, subset->rows.data(), m, c);
    x = out;
  }
  if (tape) tape->last = x;
  backend.rmsnorm_forward(hidden, x, weights.final_norm.as(), m, c, context.config.rms_norm_eps);
  trace(context, "final_norm", layers, hidden, m, c);
}

void hidden_backward(const BackwardContext& context, const Weights& weights, const BlockTokens& tokens,
                     const std::vector<int32_t>& ids, const float* dhidden, const BaseTape& tape) {
  Backend& backend = context.backend();
  const RowSubset* subset = tokens.subset;
  const int64_t n = tokens.count(), m = tokens.queries(), c = context.config().hidden;
  float* dout = context.workspace.get(kDOut, std::max(n, m) * c);
  backend.fill_zero(dout, m * c);
  backend.rmsnorm_backward(dout, gradient_of(context.parameters, weights.final_norm), dhidden, tape.last,
                           weights.final_norm.as(), m, c, context.config().rms_norm_eps);
  const size_t layers = weights.blocks.size();
  for (size_t i = layers; i-- > 0;) {
    check_cancelled(context.forward.cancel);
    const RowSubset* narrowed = i + 1 == layers ? subset : nullptr;
    float* dx = narrowed ? context.workspace.get(kDX, n * c) : dout;
    block_backward(context, weights.blocks[i], {tokens.packing, narrowed}, i, dx, dout, tape.blocks[i]);
    context.finish(block_stage(context.config(), int64_t(i)));
    dout = dx;
  }
  float* dtable = gradient_of(context.parameters, weights.embedding);
  if (!dtable) return;
  if (subset && layers == 0) {
    std::vector<int32_t> own;
    for (int32_t row : subset->rows) own.push_back(ids[size_t(row)]);
    backend.embedding_backward(dtable, own.data(), dout, m, c);
  } else {
    backend.embedding_backward(dtable, ids.data(), dout, n, c);
  }
}

int64_t head_rows(int64_t vocab) { return std::max<int64_t>(16, (int64_t(64) << 20) / (vocab * 4)); }

void head_forward(const ForwardContext& context, const Weights& weights, float* logits, ConstArray hidden, int64_t m) {
  linear_forward(context, weights.head, logits, hidden, m);
  trace(context, "logits", weights.blocks.size(), logits, m, context.config.embedding_size);
}

}  // namespace dultra
