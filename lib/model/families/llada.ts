// LLaDA, and LLaDOU and dUltra, which add a head that plans what to unmask.
import { z } from 'zod';
import { badFile, checkFields } from '../../files/json';
import type { KeyTable } from '../../files/key-table';
import { show } from '../../text';
import type { ModelConfig } from '../config';
import { readEndIds } from '../generation-file';
import { ACCEPTED, HARMLESS } from './config-keys';
import { count, type DiffusionFamily, idOrNull, LIMITS, type NewShape, tokenId } from './definition';
import { ROPE_KEYS, readRope } from './rope';

/** Tensor whose presence says that a checkpoint has a planner head. */
const PLANNER_MARK = 'mask_linear.weight';
/** Tensor of a planner head that also sees which block is decided; its code takes it where config.json is silent. */
const BLOCK_EMBEDDING = 'block_embedding.weight';

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
  rms_norm_eps: z.number().nonnegative().max(1).nullish(),
  weight_tying: z.boolean().nullish(),
  include_bias: z.boolean().nullish(),
  include_qkv_bias: z.boolean().nullish(),
  bias_for_layer_norm: z.boolean().nullish(),
  mask_token_id: z.int().nonnegative(),
  pad_token_id: tokenId,
  use_adaln: z.boolean().nullish(),
  num_head_layers: z.int().nonnegative().max(1024).nullish(),
  use_mask_embeddings: z.boolean().nullish(),
});

/** Names of transformers for what LLaDA calls otherwise. Its own code does not read them; they must not disagree. */
const ALIASES = {
  hidden_size: 'd_model',
  num_attention_heads: 'n_heads',
  num_key_value_heads: 'n_kv_heads',
  num_hidden_layers: 'n_layers',
  intermediate_size: 'mlp_hidden_size',
  max_position_embeddings: 'max_sequence_length',
  tie_word_embeddings: 'weight_tying',
} as const;

const KEYS: KeyTable = {
  read: [...Object.keys(schema.shape), ...ROPE_KEYS, ...Object.keys(ALIASES), 'head_dim', 'eos_token_id'],
  accepted: {
    ...ACCEPTED,
    activation_type: ['silu'],
    hidden_act: ['silu'],
    block_type: ['llama'],
    layer_norm_type: ['rms'],
    alibi: [false],
    attention_layer_norm: [false],
    input_emb_norm: [false],
    scale_logits: [false],
    bias_for_layer_norm: [false],
    layer_norm_with_affine: [true],
    clip_qkv: [],
    block_group_size: [1],
    rope: [true],
    multi_query_attention: [false],
    use_block_embeddings: [false],
    is_causal: [false],
    bidirectional: [true],
    use_bidirectional_attention: [true],
  },
  harmless: [
    ...HARMLESS,
    // Of ALiBi and of the norm of queries and keys, which are off.
    'alibi_bias_max',
    'attention_layer_norm_with_affine',
    // Rounding alone: the rotary embedding is computed in fp32 here.
    'rope_full_precision',
  ],
};

/** Refuses a second name of a field that says something else. @throws DUltraError BAD_CHECKPOINT */
function checkAliases(
  json: Readonly<Record<string, unknown>>,
  file: string,
  fields: Readonly<Record<(typeof ALIASES)[keyof typeof ALIASES] | 'head_dim', unknown>>,
): void {
  for (const [alias, field] of [...Object.entries(ALIASES), ['head_dim', 'head_dim'] as const]) {
    const value = json[alias];
    const own = fields[field];
    if (value === undefined || value === null || value === own) continue;
    const source = field === alias ? '' : ` as in ${field}`;
    throw badFile(file, `${alias}: expected ${show(own)}${source}, got ${show(value)}`);
  }
}

function parseConfig(
  json: Record<string, unknown>,
  file: string,
  tensors: { has(name: string): boolean },
): ModelConfig {
  const bad = (message: string) => badFile(file, message);
  const c = checkFields(schema, json, file);
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
  for (const field of ['mask_token_id', 'pad_token_id'] as const) {
    const id = c[field];
    if (typeof id === 'number' && id >= embeddingSize)
      throw bad(`${field}: expected an id below embedding_size (${embeddingSize}), got ${id}`);
  }
  const headDim = c.d_model / c.n_heads;
  const weightTying = c.weight_tying ?? false;
  checkAliases(json, file, {
    ...c,
    n_kv_heads: nKvHeads,
    mlp_hidden_size: mlpHiddenSize,
    weight_tying: weightTying,
    head_dim: headDim,
  });
  const eosTokenIds = readEndIds(json.eos_token_id, file, embeddingSize);
  const hasPlanner = tensors.has(PLANNER_MARK);
  if (hasPlanner && json.use_block_embeddings !== false && tensors.has(BLOCK_EMBEDDING))
    throw bad(
      `use_block_embeddings: expected false, got ${show(json.use_block_embeddings)} and a tensor ${BLOCK_EMBEDDING}`,
    );
  const useAdaln = c.use_adaln ?? true;
  return {
    family: 'llada',
    dModel: c.d_model,
    nHeads: c.n_heads,
    nKvHeads,
    headDim,
    nLayers: c.n_layers,
    mlpHiddenSize,
    vocabSize: c.vocab_size,
    embeddingSize,
    maxSequenceLength: c.max_sequence_length,
    ...readRope(json, file, { types: ['default'] }),
    rmsNormEps: c.rms_norm_eps ?? 1e-5,
    weightTying,
    qkvBias: c.include_bias === true || c.include_qkv_bias === true,
    attnOutBias: c.include_bias === true,
    mlpBias: c.include_bias === true,
    headBias: c.include_bias === true,
    qkNorm: false,
    mask: 'bidirectional',
    maskTokenId: c.mask_token_id,
    eosTokenIds,
    eosTokenId: eosTokenIds[0] ?? null,
    padTokenId: idOrNull(c.pad_token_id),
    planner: hasPlanner
      ? { numLayers: c.num_head_layers ?? 1, useAdaln, useMaskEmbeddings: c.use_mask_embeddings ?? true }
      : null,
  };
}

/** Settings that a config may leave out here, and for which LLaDA's own code has other defaults. */
const SETTINGS = {
  activation_type: 'silu',
  block_type: 'llama',
  layer_norm_type: 'rms',
  rope: true,
  rope_full_precision: true,
  include_bias: false,
  include_qkv_bias: false,
  bias_for_layer_norm: false,
  attention_dropout: 0,
  residual_dropout: 0,
  embedding_dropout: 0,
  use_block_embeddings: false,
};

function configJson(config: ModelConfig, json: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const { planner } = config;
  return {
    architectures: [planner ? 'LLaDOUModelLM' : 'LLaDAModelLM'],
    model_type: 'llada',
    ...SETTINGS,
    eos_token_id: config.eosTokenId,
    pad_token_id: config.padTokenId,
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
    ...(planner && {
      num_head_layers: planner.numLayers,
      use_adaln: planner.useAdaln,
      use_mask_embeddings: planner.useMaskEmbeddings,
    }),
  };
}

const newJson = (shape: NewShape): Record<string, unknown> => ({
  d_model: shape.dModel,
  n_heads: shape.nHeads,
  n_kv_heads: shape.nKvHeads,
  n_layers: shape.nLayers,
  mlp_hidden_size: shape.mlpHiddenSize,
  vocab_size: shape.vocabSize,
  max_sequence_length: shape.maxSequenceLength,
  rope_theta: shape.ropeTheta,
  mask_token_id: shape.maskTokenId,
  eos_token_id: shape.eosTokenId,
  pad_token_id: shape.padTokenId,
  num_head_layers: shape.plannerLayers,
});

/** See https://arxiv.org/abs/2502.09992. Its names of tensors are those of the native table. */
export const llada: DiffusionFamily = {
  name: 'llada',
  modelTypes: ['llada'],
  architectures: ['LLaDAModelLM', 'LLaDOUModelLM'],
  keys: KEYS,
  parseConfig,
  configJson,
  newJson,
  checkpointName: (tensor) => tensor,
};
