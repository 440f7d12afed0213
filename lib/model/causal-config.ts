// config.json and tensor names of autoregressive models of the Llama family (Llama, Qwen2, Qwen2.5) as Hugging Face
// lays them out.
import { z } from 'zod';
import type { DUltraError } from '../errors';
import { badFile, checkFields } from '../files/json';
import type { NativeModelConfig } from '../native';
import { show } from '../text';

/** Shapes and constants of an autoregressive model, from its config.json. */
export interface CausalConfig extends NativeModelConfig {
  vocabSize: number;
  /** Ids that end a text; empty where the checkpoint names none. */
  eosTokenIds: number[];
}

const count = (max: number) => z.int().positive().max(max);
const schema = z.looseObject({
  model_type: z.string(),
  hidden_size: count(2 ** 20),
  num_attention_heads: count(2 ** 16),
  num_key_value_heads: count(2 ** 16).nullish(),
  num_hidden_layers: z.int().nonnegative().max(65536),
  intermediate_size: count(2 ** 24),
  vocab_size: count(2 ** 30),
  max_position_embeddings: count(2 ** 30),
  head_dim: count(2 ** 16).nullish(),
  rms_norm_eps: z.number().nonnegative().max(1).nullish(),
  rope_theta: z.number().min(1e-6).max(1e12).nullish(),
  rope_parameters: z
    .looseObject({ rope_theta: z.number().min(1e-6).max(1e12).nullish(), rope_type: z.string().nullish() })
    .nullish(),
  rope_scaling: z.looseObject({ rope_type: z.string().nullish(), type: z.string().nullish() }).nullish(),
  tie_word_embeddings: z.boolean().nullish(),
  attention_bias: z.boolean().nullish(),
  mlp_bias: z.boolean().nullish(),
  hidden_act: z.string().nullish(),
  use_sliding_window: z.boolean().nullish(),
  eos_token_id: z.union([z.int(), z.array(z.int())]).nullish(),
});

/**
 * Checks the parsed config.json of an autoregressive model.
 * @throws DUltraError BAD_CHECKPOINT naming the field, what was expected and what came
 */
export function parseCausalConfig(json: Record<string, unknown>, file: string): CausalConfig {
  const bad = (message: string) => badFile(file, message);
  const c = checkFields(schema, json, file);
  const required: [field: string, value: unknown, accepted: unknown[]][] = [
    ['model_type', c.model_type, ['qwen2', 'llama']],
    ['hidden_act', c.hidden_act ?? 'silu', ['silu']],
    ['mlp_bias', c.mlp_bias ?? false, [false]],
    ['use_sliding_window', c.use_sliding_window ?? false, [false]],
    ['rope_scaling', c.rope_scaling?.rope_type ?? c.rope_scaling?.type ?? 'default', ['default']],
    ['rope_parameters.rope_type', c.rope_parameters?.rope_type ?? 'default', ['default']],
  ];
  for (const [field, value, accepted] of required)
    if (!accepted.includes(value))
      throw bad(`${field}: expected ${accepted.map((item) => JSON.stringify(item)).join(' or ')}, got ${show(value)}`);
  const nKvHeads = c.num_key_value_heads ?? c.num_attention_heads;
  const headSize = c.hidden_size / c.num_attention_heads;
  if (!Number.isInteger(headSize) || headSize % 2 !== 0)
    throw bad(`hidden_size / num_attention_heads: expected an even head size, got ${headSize}`);
  if (c.head_dim != null && c.head_dim !== headSize)
    throw bad(`head_dim: expected hidden_size / num_attention_heads (${headSize}), got ${c.head_dim}`);
  if (c.num_attention_heads % nKvHeads !== 0)
    throw bad(
      `num_attention_heads: expected a multiple of num_key_value_heads (${nKvHeads}), got ${c.num_attention_heads}`,
    );
  const eos = c.eos_token_id ?? [];
  return {
    dModel: c.hidden_size,
    nHeads: c.num_attention_heads,
    nKvHeads,
    nLayers: c.num_hidden_layers,
    mlpHiddenSize: c.intermediate_size,
    vocabSize: c.vocab_size,
    embeddingSize: c.vocab_size,
    maxSequenceLength: c.max_position_embeddings,
    ropeTheta: c.rope_theta ?? c.rope_parameters?.rope_theta ?? 10000,
    rmsNormEps: c.rms_norm_eps ?? 1e-6,
    weightTying: c.tie_word_embeddings ?? false,
    // Qwen2 has these whatever its config says; Llama where it says so. Its attention_bias is one of o_proj too.
    qkvBias: c.model_type === 'qwen2',
    linearBias: false,
    causal: true,
    maskTokenId: -1,
    eosTokenIds: typeof eos === 'number' ? [eos] : eos,
    planner: null,
    ...(c.attention_bias && c.model_type === 'llama' ? failBias(bad) : {}),
  };
}

function failBias(bad: (message: string) => DUltraError): never {
  throw bad('attention_bias: expected false, got true');
}

const PARTS: Readonly<Record<string, string>> = {
  q_proj: 'self_attn.q_proj',
  k_proj: 'self_attn.k_proj',
  v_proj: 'self_attn.v_proj',
  attn_out: 'self_attn.o_proj',
  ff_proj: 'mlp.gate_proj',
  up_proj: 'mlp.up_proj',
  ff_out: 'mlp.down_proj',
  attn_norm: 'input_layernorm',
  ff_norm: 'post_attention_layernorm',
};

/** The name that a tensor of LLaDA has in the Llama family. */
export function causalName(name: string): string {
  const block = name.match(/^model\.transformer\.blocks\.(\d+)\.(\w+)\.(weight|bias)$/);
  if (block) return `model.layers.${block[1]}.${PARTS[block[2]]}.${block[3]}`;
  return (
    {
      'model.transformer.wte.weight': 'model.embed_tokens.weight',
      'model.transformer.ln_f.weight': 'model.norm.weight',
    }[name] ?? 'lm_head.weight'
  );
}
