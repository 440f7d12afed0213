// LLaDA, and LLaDOU and dUltra, which add a head that plans what to unmask.
import { z } from 'zod';
import { badFile, checkFields } from '../../files/json';
import { show } from '../../text';
import type { ModelConfig } from '../config';
import { count, type DiffusionFamily, LIMITS, requireValues } from './definition';

/** Tensor whose presence says that a checkpoint has a planner head. */
const PLANNER_MARK = 'mask_linear.weight';

const schema = z.looseObject({
  d_model: count(LIMITS.width),
  n_heads: count(LIMITS.heads),
  n_kv_heads: count(LIMITS.heads).nullish(),
  n_layers: z.int().nonnegative().max(LIMITS.layers),
  mlp_hidden_size: count(LIMITS.mlp).nullish(),
  mlp_ratio: z.number().positive().max(1024).nullish(),
  vocab_size: count(LIMITS.ids),
  embedding_size: count(LIMITS.ids).nullish(),
  max_sequence_length: count(LIMITS.ids),
  rope: z.boolean().nullish(),
  rope_theta: z.number().min(1e-6).max(1e12).nullish(),
  rms_norm_eps: z.number().nonnegative().max(1).nullish(),
  weight_tying: z.boolean().nullish(),
  include_bias: z.boolean().nullish(),
  include_qkv_bias: z.boolean().nullish(),
  bias_for_layer_norm: z.boolean().nullish(),
  mask_token_id: z.int().nonnegative(),
  eos_token_id: z.int().nonnegative().nullish(),
  pad_token_id: z.int().nonnegative().nullish(),
  use_adaln: z.boolean().nullish(),
  num_head_layers: z.int().nonnegative().max(1024).nullish(),
  use_mask_embeddings: z.boolean().nullish(),
});

/** Settings that change the arithmetic, with the values that are computed here. */
const REQUIRED: readonly [field: string, accepted: readonly unknown[]][] = [
  ['activation_type', ['silu']],
  ['block_type', ['llama']],
  ['layer_norm_type', ['rms']],
  ['alibi', [false]],
  ['attention_layer_norm', [false]],
  ['input_emb_norm', [false]],
  ['scale_logits', [false]],
  ['include_bias', [false, true]],
  ['include_qkv_bias', [false, true]],
  ['bias_for_layer_norm', [false]],
  ['layer_norm_with_affine', [true]],
  ['clip_qkv', []],
  ['rope_scaling', []],
  ['block_group_size', [1]],
  ['rope', [true]],
  ['multi_query_attention', [false]],
  ['use_block_embeddings', [false]],
];

function parseConfig(
  json: Record<string, unknown>,
  file: string,
  tensors: { has(name: string): boolean },
): ModelConfig {
  const bad = (message: string) => badFile(file, message);
  const c = checkFields(schema, json, file);
  requireValues(
    file,
    REQUIRED.map(([field, accepted]) => [field, json[field], accepted]),
  );
  // Where nothing else is said, norms have biases if linears have.
  if (c.include_bias && c.bias_for_layer_norm !== false)
    throw bad(`bias_for_layer_norm: expected false with include_bias, got ${show(c.bias_for_layer_norm)}`);
  if (c.mlp_hidden_size == null && c.mlp_ratio != null && !Number.isInteger(c.mlp_ratio * c.d_model))
    throw bad(`mlp_ratio: expected mlp_ratio times d_model (${c.d_model}) to be whole, got ${c.mlp_ratio}`);
  const nKvHeads = c.n_kv_heads ?? c.n_heads;
  const embeddingSize = c.embedding_size ?? c.vocab_size;
  const mlpHiddenSize = c.mlp_hidden_size ?? (c.mlp_ratio ?? 4) * c.d_model;
  if (c.d_model % c.n_heads !== 0)
    throw bad(`d_model: expected a multiple of n_heads (${c.n_heads}), got ${c.d_model}`);
  if ((c.d_model / c.n_heads) % 2 !== 0)
    throw bad(`d_model / n_heads: expected an even head size, got ${c.d_model / c.n_heads}`);
  if (c.n_heads % nKvHeads !== 0)
    throw bad(`n_heads: expected a multiple of n_kv_heads (${nKvHeads}), got ${c.n_heads}`);
  if (embeddingSize < c.vocab_size)
    throw bad(`embedding_size: expected at least vocab_size (${c.vocab_size}), got ${embeddingSize}`);
  for (const field of ['mask_token_id', 'eos_token_id', 'pad_token_id'] as const) {
    const id = c[field];
    if (typeof id === 'number' && id >= embeddingSize)
      throw bad(`${field}: expected an id below embedding_size (${embeddingSize}), got ${id}`);
  }
  const useAdaln = c.use_adaln ?? true;
  return {
    family: 'llada',
    dModel: c.d_model,
    nHeads: c.n_heads,
    nKvHeads,
    headDim: c.d_model / c.n_heads,
    nLayers: c.n_layers,
    mlpHiddenSize,
    vocabSize: c.vocab_size,
    embeddingSize,
    maxSequenceLength: c.max_sequence_length,
    ropeTheta: c.rope_theta ?? 10000,
    rmsNormEps: c.rms_norm_eps ?? 1e-5,
    weightTying: c.weight_tying ?? false,
    qkvBias: c.include_bias === true || c.include_qkv_bias === true,
    attnOutBias: c.include_bias === true,
    mlpBias: c.include_bias === true,
    headBias: c.include_bias === true,
    qkNorm: false,
    mask: 'bidirectional',
    maskTokenId: c.mask_token_id,
    eosTokenId: c.eos_token_id ?? null,
    padTokenId: c.pad_token_id ?? null,
    planner: tensors.has(PLANNER_MARK)
      ? { numLayers: c.num_head_layers ?? 1, useAdaln, useMaskEmbeddings: c.use_mask_embeddings ?? true }
      : null,
  };
}

function configJson(config: ModelConfig, json: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const { planner } = config;
  return {
    architectures: [planner ? 'LLaDOUModelLM' : 'LLaDAModelLM'],
    model_type: 'llada',
    ...json,
    d_model: config.dModel,
    n_heads: config.nHeads,
    n_kv_heads: config.nKvHeads,
    n_layers: config.nLayers,
    mlp_hidden_size: config.mlpHiddenSize,
    vocab_size: config.vocabSize,
    embedding_size: config.embeddingSize,
    max_sequence_length: config.maxSequenceLength,
    rope_theta: config.ropeTheta,
    rms_norm_eps: config.rmsNormEps,
    weight_tying: config.weightTying,
    mask_token_id: config.maskTokenId,
    eos_token_id: config.eosTokenId,
    pad_token_id: config.padTokenId,
    ...(planner && {
      num_head_layers: planner.numLayers,
      use_adaln: planner.useAdaln,
      use_mask_embeddings: planner.useMaskEmbeddings,
    }),
  };
}

/** See https://arxiv.org/abs/2502.09992. Its names of tensors are those of the native table. */
export const llada: DiffusionFamily = {
  name: 'llada',
  modelTypes: ['llada'],
  architectures: ['LLaDAModelLM', 'LLaDOUModelLM'],
  parseConfig,
  configJson,
  checkpointName: (tensor) => tensor,
};
