// Shared by families that name config.json's fields and tensors as Llama does in Hugging Face's transformers.
import { z } from 'zod';
import { DUltraError } from '../../errors';
import { badFile, checkFields } from '../../files/json';
import type { KeyTable } from '../../files/key-table';
import type { CausalConfig } from '../config';
import { readEndIds } from '../generation-file';
import { ACCEPTED, HARMLESS } from './config-keys';
import { count, LIMITS } from './definition';
import { ROPE_KEYS, readRope } from './rope';

const schema = z.looseObject({
  model_type: z.string(),
  hidden_size: count(LIMITS.width),
  num_attention_heads: count(LIMITS.heads),
  num_key_value_heads: count(LIMITS.heads).nullish(),
  num_hidden_layers: z.int().nonnegative().max(LIMITS.layers),
  intermediate_size: count(LIMITS.mlp),
  vocab_size: count(LIMITS.ids),
  max_position_embeddings: count(LIMITS.ids),
  head_dim: count(LIMITS.heads).nullish(),
  rms_norm_eps: z.number().nonnegative().max(1).nullish(),
  tie_word_embeddings: z.boolean().nullish(),
  mlp_bias: z.boolean().nullish(),
  layer_types: z.array(z.literal('full_attention')).nullish(),
});

/** Keys of config.json that every decoder has. */
export const DECODER_KEYS: KeyTable = {
  read: [...Object.keys(schema.shape), ...ROPE_KEYS, 'eos_token_id'],
  accepted: { ...ACCEPTED, hidden_act: ['silu'], hidden_activation: ['silu'], is_causal: [true], sliding_window: [] },
  harmless: HARMLESS,
};

type Fields = z.infer<typeof schema>;

/** Heads of a decoder. @throws DUltraError BAD_CHECKPOINT for numbers that do not divide. */
function headsOf(c: Fields, file: string): { nHeads: number; nKvHeads: number; headDim: number } {
  const nHeads = c.num_attention_heads;
  const nKvHeads = c.num_key_value_heads ?? nHeads;
  const headDim = c.head_dim ?? c.hidden_size / nHeads;
  if (!Number.isInteger(headDim) || headDim % 2 !== 0) {
    const field = c.head_dim == null ? 'hidden_size / num_attention_heads' : 'head_dim';
    throw badFile(file, `${field}: expected an even head size, got ${headDim}`);
  }
  if (nHeads % nKvHeads !== 0)
    throw badFile(file, `num_attention_heads: expected a multiple of num_key_value_heads (${nKvHeads}), got ${nHeads}`);
  return { nHeads, nKvHeads, headDim };
}

/** What config.json does not say in the same way for all families. */
export interface DecoderTraits {
  family: string;
  /** Biases of q_proj, k_proj and v_proj, and of o_proj. */
  qkvBias: boolean;
  attnOutBias: boolean;
  /** Each head of queries and keys is normed. Default false. */
  qkNorm?: boolean;
}

type DecoderShapes = Omit<CausalConfig, 'mask' | 'maskTokenId' | 'eosTokenIds' | 'planner'>;

/**
 * Shapes of a decoder, with whatever mask it attends.
 * @throws DUltraError BAD_CHECKPOINT naming the field, what was expected and what came.
 */
export function decoderShapes(json: Record<string, unknown>, file: string, traits: DecoderTraits): DecoderShapes {
  const c = checkFields(schema, json, file);
  return {
    ...traits,
    dModel: c.hidden_size,
    ...headsOf(c, file),
    nLayers: c.num_hidden_layers,
    mlpHiddenSize: c.intermediate_size,
    vocabSize: c.vocab_size,
    embeddingSize: c.vocab_size,
    maxSequenceLength: c.max_position_embeddings,
    ...readRope(json, file),
    rmsNormEps: c.rms_norm_eps ?? 1e-6,
    weightTying: c.tie_word_embeddings ?? false,
    mlpBias: c.mlp_bias ?? false,
    headBias: false,
    qkNorm: traits.qkNorm ?? false,
  };
}

/** The config of an autoregressive decoder. @throws as {@link decoderShapes} */
export function causalDecoder(json: Record<string, unknown>, file: string, traits: DecoderTraits): CausalConfig {
  const shapes = decoderShapes(json, file, traits);
  const eosTokenIds = readEndIds(json.eos_token_id, file, shapes.embeddingSize);
  return { ...shapes, mask: 'causal', maskTokenId: -1, eosTokenIds, planner: null };
}

/** Modules of a block, and tensors outside of blocks: names of the native table to those of decoders. */
const PARTS: ReadonlyMap<string, string> = new Map([
  ['q_proj', 'self_attn.q_proj'],
  ['k_proj', 'self_attn.k_proj'],
  ['v_proj', 'self_attn.v_proj'],
  ['attn_out', 'self_attn.o_proj'],
  ['ff_proj', 'mlp.gate_proj'],
  ['up_proj', 'mlp.up_proj'],
  ['ff_out', 'mlp.down_proj'],
  ['attn_norm', 'input_layernorm'],
  ['ff_norm', 'post_attention_layernorm'],
  ['q_norm', 'self_attn.q_norm'],
  ['k_norm', 'self_attn.k_norm'],
]);
const OUTSIDE_BLOCKS: ReadonlyMap<string, string> = new Map([
  ['model.transformer.wte.weight', 'model.embed_tokens.weight'],
  ['model.transformer.ln_f.weight', 'model.norm.weight'],
  ['model.transformer.ff_out.weight', 'lm_head.weight'],
]);

/** A decoder's name of a tensor of the native table. @throws DUltraError INTERNAL for one that decoders lack. */
export function decoderName(tensor: string): string {
  const [, layer, module, kind] = /^model\.transformer\.blocks\.(\d+)\.(\w+)\.(weight|bias)$/.exec(tensor) ?? [];
  const name = module === undefined ? OUTSIDE_BLOCKS.get(tensor) : PARTS.get(module);
  if (name === undefined) throw new DUltraError('INTERNAL', `tensor ${tensor}: decoders have no such tensor`);
  return module === undefined ? name : `model.layers.${layer}.${name}.${kind}`;
}
