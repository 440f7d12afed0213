// config.json of a LLaDA, LLaDOU or dUltra checkpoint, checked.
import path from 'node:path';
import { z } from 'zod';
import { badFile, checkFields, readJsonObject } from '../files/json';
import type { NativeModelConfig } from '../native';
import { show } from '../text';

/** Shapes and constants of a model, from its config.json. */
export interface ModelConfig extends NativeModelConfig {
  /** Ids that the tokenizer knows; the tables may have more rows (`embeddingSize`). */
  vocabSize: number;
  /** null where the checkpoint names none. */
  eosTokenId: number | null;
  /** null where the checkpoint names none. */
  padTokenId: number | null;
}

const count = (max: number) => z.int().positive().max(max);
// Bounds as the native core has them: far above every model, and small enough that no product overflows.
const SIZE = 2 ** 20;
const IDS = 2 ** 30;
const schema = z.looseObject({
  d_model: count(SIZE),
  n_heads: count(2 ** 16),
  n_kv_heads: count(2 ** 16).nullish(),
  n_layers: z.int().nonnegative().max(65536),
  mlp_hidden_size: count(2 ** 24).nullish(),
  mlp_ratio: z.number().positive().max(1024).nullish(),
  vocab_size: count(IDS),
  embedding_size: count(IDS).nullish(),
  max_sequence_length: count(IDS),
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

/** Settings that change the arithmetic, with the only value that is computed here. */
const REQUIRED: [field: string, accepted: unknown[]][] = [
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

/**
 * Checks the parsed config.json.
 * @param file named in errors @param hasPlanner the checkpoint's tensors include a planner head
 * @throws DUltraError BAD_CHECKPOINT naming the field, what was expected and what came.
 */
export function parseModelConfig(json: Record<string, unknown>, file: string, hasPlanner: boolean): ModelConfig {
  const bad = (message: string) => badFile(file, message);
  const c = checkFields(schema, json, file);
  for (const [field, accepted] of REQUIRED) {
    const value = json[field];
    if (value !== undefined && value !== null && !accepted.includes(value))
      throw bad(
        `${field}: expected ${[...accepted, null].map((v) => JSON.stringify(v)).join(' or ')}, got ${show(value)}`,
      );
  }
  // Without a word of it, norms have biases where everything has.
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
    dModel: c.d_model,
    nHeads: c.n_heads,
    nKvHeads,
    nLayers: c.n_layers,
    mlpHiddenSize,
    vocabSize: c.vocab_size,
    embeddingSize,
    maxSequenceLength: c.max_sequence_length,
    ropeTheta: c.rope_theta ?? 10000,
    rmsNormEps: c.rms_norm_eps ?? 1e-5,
    weightTying: c.weight_tying ?? false,
    qkvBias: c.include_bias === true || c.include_qkv_bias === true,
    linearBias: c.include_bias === true,
    causal: false,
    maskTokenId: c.mask_token_id,
    eosTokenId: c.eos_token_id ?? null,
    padTokenId: c.pad_token_id ?? null,
    planner: hasPlanner
      ? { numLayers: c.num_head_layers ?? 1, useAdaln, useMaskEmbeddings: c.use_mask_embeddings ?? true }
      : null,
  };
}

/** Reads a checkpoint's config.json as JSON. @throws DUltraError BAD_CHECKPOINT where it is missing or not JSON. */
export async function readConfigJson(folder: string): Promise<{ file: string; json: Record<string, unknown> }> {
  const file = path.join(folder, 'config.json');
  return { file, json: await readJsonObject(file) };
}
