#include "model/block.h"

#include <algorithm>

#include "model/parameters.h"
#include "model/trace.h"

namespace dultra {

void block_forward(const ForwardContext& context, const BlockWeights& weights, const BlockTokens& tokens, size_t layer,
                   float* out, float* x, BlockTape* tape) {
  Backend& backend = context.backend;
  const int64_t n = tokens.count(), m = tokens.queries(), c = context.config.hidden;
  const float eps = context.config.rms_norm_eps;
  trace(context, "block_input", layer, x, n, c);

  // h = x + attention(norm(x))
  float* h = tape ? (tape->h = context.tape_memory->take(m * c)) : out;
  const Array normed = context.activation(kNormed, n * c, tape ? &tape->normed : nullptr);
  if (tokens.subset || h == x)
    backend.rmsnorm_forward(normed, x, weights.attn_norm.as(), n, c, eps);
  else
    backend.rmsnorm_copy_forward(normed, h, x, nullptr, weights.attn_norm.as(), n, c, eps);
  Array normed_queries = normed;
  if (tokens.subset) {
    // Computed again rather than gathered: one pass over the rows gives the copy and the norm.
    normed_queries = context.activation(kNormedSubset, m * c, tape ? &tape->normed_queries : nullptr);
    backend.rmsnorm_copy_forward(normed_queries, h, x, tokens.subset->rows.data(), weights.attn_norm.as(), m, c, eps);
  }
  trace(context, "attn_norm", layer, normed, n, c);
  attention_forward(context, weights.attention, tokens, layer, normed, normed_queries, h,
                    tape ? &tape->attention : nullptr);
  trace(context, "after_attention", layer, h, m, c);

  // out = h + mlp(norm(h))
  const Array normed_h = context.activation(kNormed, m * c, tape ? &tape->normed_h : nullptr);
  if (out == h)
    backend.rmsnorm_forward(normed_h, h, weights.mlp_norm.as(), m, c, eps);
  else
    backend.rmsnorm_copy_forward(normed_h, out, h, nullptr, weights.mlp_norm.as(), m, c, eps);
  trace(context, "mlp_norm", layer, normed_h, m, c);
  if (weights.experts)
    experts_forward(context, weights.experts, layer, out, normed_h, m, tape ? &tape->experts : nullptr);
  else
    mlp_forward(context, weights.mlp, out, normed_h, m, tape ? &tape->mlp : nullptr);
  trace(context, "block_output", layer, out, m, c);
}

namespace {

// Of the MLP of the larger kind of blocks, for each token.
size_t mlp_tape_bytes(const ModelConfig& config, size_t activation) {
  return config.has_experts() ? experts_tape_bytes(config, activation) : activation * size_t(3 * config.mlp_hidden);
}

}  // namespace

// x and h in fp32 with the sums of attention; normed, normed_h, kv, q, attention, gate_up and product.
size_t block_tape_bytes(const ModelConfig& config, int64_t n, size_t activation) {
  const int64_t c = config.hidden, q = config.q_width(), kv = config.kv_width();
  const int64_t plain = config.qk_norm ? q + kv : 0;  // queries and keys before their norms
  return size_t(n) * (activation * size_t(2 * c + 2 * q + 2 * kv + plain) + mlp_tape_bytes(config, activation) +
                      4 * size_t(2 * c + config.heads));
}

size_t block_forward_bytes(const ModelConfig& config, int64_t n, size_t activation) {
  const int64_t c = config.hidden, q = config.q_width(), kv = config.kv_width();
  return activation * size_t(n * (c + 2 * q + 2 * kv)) +
         size_t(std::min(n, kMlpRows)) * mlp_tape_bytes(config, activation) + 4 * size_t(n * c);
}

// dproduct and dnormed in fp32; dgate_up, dattention, dq and dkv.
size_t block_backward_bytes(const ModelConfig& config, int64_t n, size_t activation) {
  const int64_t c = config.hidden, q = config.q_width(), kv = config.kv_width(), f = config.mlp_hidden;
  const size_t mlp =
      config.has_experts() ? experts_backward_bytes(config, activation) : 4 * size_t(f) + activation * size_t(2 * f);
  return size_t(n) * (mlp + 4 * size_t(2 * c) + activation * size_t(2 * q + 2 * kv));
}

namespace {

// Runs a checkpointed block again from its input, keeping what backward reads.
BlockTape recompute(const BackwardContext& context, const BlockWeights& weights, const BlockTokens& tokens,
                    size_t layer, const BlockTape& kept) {
  TapeMemory memory(context.tape_workspace, context.recompute_slot);
  ForwardContext forward = context.forward;
  forward.tape_memory = &memory;
  BlockTape tape;
  tape.x = kept.x;
  float* out = memory.take(tokens.queries() * context.config().hidden);
  block_forward(forward, weights, tokens, layer, out, tape.x, &tape);
  return tape;
}

}  // namespace

void block_backward(const BackwardContext& context, const BlockWeights& weights, const BlockTokens& tokens,
                    size_t layer, float* dx, float* dout, const BlockTape& kept) {
  Backend& backend = context.backend();
  const Parameters& parameters = context.parameters;
  const int64_t n = tokens.count(), m = tokens.queries(), c = context.config().hidden;
  const float eps = context.config().rms_norm_eps;
  const BlockTape tape = kept.normed ? kept : recompute(context, weights, tokens, layer, kept);

  float* dnormed = context.workspace.get(kDNormed, std::max(n, m) * c);
  if (weights.experts)
    experts_backward(context, weights.experts, dnormed, dout, tape.normed_h, m, tape.experts);
  else
    mlp_backward(context, weights.mlp, dnormed, dout, tape.normed_h, m, tape.mlp);
  float* dh = dout;  // the residual: out = h + ...
  backend.rmsnorm_backward(dh, gradient_of(parameters, weights.mlp_norm), dnormed, tape.h, weights.mlp_norm.as(), m, c,
                           eps);

  const RowSubset* subset = tokens.subset;
  float* dqueries = subset ? context.workspace.get(kDQueries, m * c) : nullptr;
  attention_backward(context, weights.attention, tokens, layer, tape.normed, subset ? tape.normed_queries : tape.normed,
                     tape.attention, dnormed, dqueries, dh);
  if (subset) {
    backend.scatter_add_rows(dnormed, dqueries, subset->rows.data(), m, c);
    backend.fill_zero(dx, n * c);
    backend.scatter_add_rows(dx, dh, subset->rows.data(), m, c);
  } else if (dx != dh) {
    backend.copy(dx, dh, n * c);
  }
  backend.rmsnorm_backward(dx, gradient_of(parameters, weights.attn_norm), dnormed, tape.x, weights.attn_norm.as(), n,
                           c, eps);
}

}  // namespace dultra
