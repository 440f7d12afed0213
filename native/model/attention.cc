#include "model/attention.h"

#include <cmath>

#include "model/parameters.h"
#include "model/trace.h"

namespace dultra {

namespace {

// Arguments of attention but for q, out and log_sum: queries are all tokens or the subset, keys and values those of
// this pass (N, 2, Hk, D), or with a cache those of its layer. Valid as long as `expanded` is.
AttentionArgs attention_args(const ForwardContext& context, const BlockTokens& tokens, size_t layer, ConstArray kv,
                             std::vector<int32_t>* expanded) {
  const ModelConfig& config = context.config;
  const Packing& packing = tokens.packing;
  const RowSubset* subset = tokens.subset;
  AttentionArgs args{};
  args.q_stride = args.out_stride = config.q_width();
  args.kv_stride = 2 * config.kv_width();
  args.heads = config.heads;
  args.kv_heads = config.kv_heads;
  args.head_dim = config.head_dim;
  args.scale = 1.0f / std::sqrt(float(config.head_dim));
  args.batch = packing.batch();
  args.q_offsets = subset ? subset->offsets.data() : packing.offsets.data();
  args.k_offsets = packing.offsets.data();
  args.q_positions = tokens.query_positions();
  args.mask = config.mask;
  args.block = config.block_length;
  args.first_block = packing.first_blocks.data();
  args.max_queries = subset ? subset->max_queries : 0;
  args.k = kv;
  if (context.cache) {
    const KvPass& pass = *context.cache;
    args.batch = pass.sequences();
    args.q_offsets = subset ? subset->cache_offsets.data() : packing.cache_offsets.data();
    if (!args.q_offsets) {
      *expanded = pass.expand(subset ? subset->offsets.values() : packing.offsets.values());
      args.q_offsets = expanded->data();
    }
    args.k_offsets = pass.key_offsets().data();
    args.first_block = pass.first_blocks().data();
    args.k = pass.cache().layer(layer);
  }
  args.v = args.k + config.kv_width();
  return args;
}

}  // namespace

void attention_forward(const ForwardContext& context, const AttentionWeights& weights, const BlockTokens& tokens,
                       size_t layer, ConstArray normed, ConstArray normed_queries, float* h, AttentionTape* tape) {
  const ModelConfig& config = context.config;
  Backend& backend = context.backend;
  const int64_t n = tokens.count(), m = tokens.queries(), q_width = config.q_width(), kv_width = config.kv_width();

  Array kv = context.activation(kKv, n * 2 * kv_width, tape ? &tape->kv : nullptr);
  linear_forward(context, weights.kv, kv, normed, n);
  if (config.qk_norm) {
    if (tape) tape->plain_k = context.tape_memory->activations(n * kv_width);
    backend.head_norm_forward(kv, 2 * kv_width, tape ? tape->plain_k : nullptr, weights.k_norm.as(), n, config.kv_heads,
                              config.head_dim, config.rms_norm_eps);
  }
  if (config.clip_qkv > 0) backend.clamp_forward(kv, n * 2 * kv_width, config.clip_qkv);
  if (context.cache) {
    const KvPass& pass = *context.cache;
    backend.rope_store_forward(pass.cache().layer(layer), pass.slots().data(), kv, tokens.positions(), n,
                               config.kv_heads, config.head_dim, config.rope);
  } else {
    backend.rope_forward(kv, 2 * kv_width, tokens.positions(), n, config.kv_heads, config.head_dim, config.rope);
    trace(context, "kv", layer, kv, n, 2 * kv_width);
  }

  Array q = context.activation(kQ, m * q_width, tape ? &tape->q : nullptr);
  linear_forward(context, weights.q, q, normed_queries, m);
  if (config.qk_norm) {
    if (tape) tape->plain_q = context.tape_memory->activations(m * q_width);
    backend.head_norm_forward(q, q_width, tape ? tape->plain_q : nullptr, weights.q_norm.as(), m, config.heads,
                              config.head_dim, config.rms_norm_eps);
  }
  if (config.clip_qkv > 0) backend.clamp_forward(q, m * q_width, config.clip_qkv);
  backend.rope_forward(q, q_width, tokens.query_positions(), m, config.heads, config.head_dim, config.rope);
  trace(context, "q", layer, q, m, q_width);

  std::vector<int32_t> expanded;
  AttentionArgs args = attention_args(context, tokens, layer, kv, &expanded);
  args.q = q;
  args.out = context.activation(kAttention, m * q_width, tape ? &tape->out : nullptr);
  if (tape) args.log_sum = tape->log_sum = context.tape_memory->take(m * config.heads);
  backend.attention_forward(args);
  trace(context, "attention", layer, args.out, m, q_width);
  linear_forward(context, weights.out, h, args.out, m, true);
}

void attention_backward(const BackwardContext& context, const AttentionWeights& weights, const BlockTokens& tokens,
                        size_t layer, ConstArray normed, ConstArray normed_queries, const AttentionTape& tape,
                        float* dnormed, float* dnormed_queries, const float* dh) {
  const ModelConfig& config = context.config();
  Backend& backend = context.backend();
  Workspace& workspace = context.workspace;
  const KvPass* pass = context.forward.cache;
  const int64_t n = tokens.count(), m = tokens.queries(), q_width = config.q_width(), kv_width = config.kv_width();

  const Array dattention = workspace.activations(kDAttention, m * q_width);
  linear_backward(context, weights.out, dattention, dh, tape.out, m);

  std::vector<int32_t> expanded;
  AttentionGradArgs args{};
  args.forward = attention_args(context.forward, tokens, layer, tape.kv, &expanded);
  args.forward.q = tape.q;
  args.forward.out = tape.out;
  args.forward.log_sum = tape.log_sum;
  args.dout = dattention;
  args.dq = workspace.activations(kDQ, m * q_width);
  Array dkv = workspace.activations(kDKv, (pass ? pass->cache().offsets().back() : n) * 2 * kv_width);
  args.dk = dkv;
  args.dv = dkv + kv_width;
  backend.attention_backward(args);
  if (pass) {
    // Keys and values that the pass took from the cache are constants: only the gradients of its own go on.
    const Array own = workspace.activations(kDKvOwn, n * 2 * kv_width);
    backend.gather_rows(own, dkv, pass->slots().data(), n, 2 * kv_width);
    dkv = own;
  }
  backend.rope_backward(args.dq, q_width, tokens.query_positions(), m, config.heads, config.head_dim, config.rope);
  backend.rope_backward(dkv, 2 * kv_width, tokens.positions(), n, config.kv_heads, config.head_dim, config.rope);
  if (config.qk_norm) {
    const Parameters& parameters = context.parameters;
    backend.head_norm_backward(args.dq, q_width, gradient_of(parameters, weights.q_norm), tape.plain_q,
                               weights.q_norm.as(), m, config.heads, config.head_dim, config.rms_norm_eps);
    backend.head_norm_backward(dkv, 2 * kv_width, gradient_of(parameters, weights.k_norm), tape.plain_k,
                               weights.k_norm.as(), n, config.kv_heads, config.head_dim, config.rms_norm_eps);
  }
  linear_backward(context, weights.kv, dnormed, dkv, normed, n);
  if (tokens.subset)
    linear_backward(context, weights.q, dnormed_queries, args.dq, normed_queries, m);
  else
    linear_backward(context, weights.q, dnormed, args.dq, normed, n, true);
}

}  // namespace dultra
