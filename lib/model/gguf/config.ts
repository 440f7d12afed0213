// What the keys of a GGUF file say of a model, as the config.json of its family would.
import type { GgufHeader, GgufValue } from '../../files/gguf';
import { show } from '../../text';

type Fail = (message: string) => Error;

/** Reads keys of a header. */
export class GgufKeys {
  constructor(
    readonly metadata: ReadonlyMap<string, GgufValue>,
    readonly fail: Fail,
  ) {}

  #of<T>(key: string, type: string, isRight: (value: GgufValue) => boolean): T | undefined {
    const value = this.metadata.get(key);
    if (value !== undefined && !isRight(value)) throw this.fail(`${key}: expected ${type}, got ${show(value)}`);
    return value as T | undefined;
  }
  text(key: string): string | undefined {
    return this.#of(key, 'a text', (value) => typeof value === 'string');
  }
  flag(key: string): boolean | undefined {
    return this.#of(key, 'true or false', (value) => typeof value === 'boolean');
  }
  number(key: string): number | undefined {
    return this.#of(key, 'a number', (value) => typeof value === 'number' && Number.isFinite(value));
  }
  /** A number, or one that is the same for every layer. */
  count(key: string): number | undefined {
    const value = this.metadata.get(key);
    const one = Array.isArray(value) && value.length > 0 && value.every((item) => item === value[0]) ? value[0] : value;
    if (one === undefined) return undefined;
    if (typeof one !== 'number' || !Number.isSafeInteger(one) || one < 0)
      throw this.fail(`${key}: expected a whole number, the same for every layer, got ${show(value)}`);
    return one;
  }
  needed(key: string): number {
    const value = this.count(key);
    if (value === undefined) throw this.fail(`${key}: expected a number, got no such key`);
    return value;
  }
  texts(key: string): string[] | undefined {
    return this.#of(
      key,
      'a list of texts',
      (value) => Array.isArray(value) && value.every((x) => typeof x === 'string'),
    );
  }
  numbers(key: string): number[] | undefined {
    return this.#of(key, 'a list of numbers', (value) => Array.isArray(value) && value.every(Number.isSafeInteger));
  }
}

/** Tokens that are masks, in files that do not name it. */
const MASKS = ['<|mdm_mask|>', '<|mask|>', '[MASK]'];

/** How an architecture differs from the others. */
interface Architecture {
  modelType: string;
  architecture: string;
  /** Writers put the two halves of a rotated pair side by side. */
  interleaved: boolean;
  isDiffusion: boolean;
  /** Keys of config.json beside those of a decoder. */
  more?: (keys: GgufKeys, name: string) => Record<string, unknown>;
}

/** A mixture's experts, as LLaDA-MoE's config.json has them. */
function expertFields(keys: GgufKeys, name: string): Record<string, unknown> {
  const used = keys.needed(`${name}.expert_used_count`);
  const width = keys.count(`${name}.expert_feed_forward_length`);
  return {
    num_experts: keys.needed(`${name}.expert_count`),
    num_experts_per_tok: used,
    expert_intermediate_size: width
      ? width
      : Math.floor(keys.needed(`${name}.feed_forward_length`) / Math.max(1, used)),
    qk_layernorm: true,
  };
}

const ARCHITECTURES: Readonly<Record<string, Architecture>> = {
  llada: { modelType: 'llada', architecture: 'LLaDAModelLM', interleaved: true, isDiffusion: true },
  'llada-moe': {
    modelType: 'lladamoe',
    architecture: 'LLaDAMoEModelLM',
    interleaved: false,
    isDiffusion: true,
    more: expertFields,
  },
  dream: { modelType: 'Dream', architecture: 'DreamModel', interleaved: false, isDiffusion: true },
  llama: { modelType: 'llama', architecture: 'LlamaForCausalLM', interleaved: true, isDiffusion: false },
  qwen2: { modelType: 'qwen2', architecture: 'Qwen2ForCausalLM', interleaved: false, isDiffusion: false },
  qwen3: { modelType: 'qwen3', architecture: 'Qwen3ForCausalLM', interleaved: false, isDiffusion: false },
};

/** What a header says of a model. */
export interface GgufModel {
  /** As a config.json of its family. */
  json: Record<string, unknown>;
  /** Of the mask token, where the file or its tokens name one. */
  maskTokenId: number | null;
  /** See `NativeModelConfig.shiftLogits`. */
  shiftLogits: boolean;
  /** Heads of the matrices of queries and keys whose rows are reordered (`NativeTensorRef.heads`). */
  headsOf(tensor: string): number;
}

/** Refuses what would change the results and is not computed. */
function checkUnsupported(keys: GgufKeys, name: string, tensors: GgufHeader['tensors']): void {
  const scaling = keys.text(`${name}.rope.scaling.type`);
  const factor = keys.number(`${name}.rope.scaling.factor`);
  if (scaling !== undefined && scaling !== 'none' && factor !== 1)
    throw keys.fail(`${name}.rope.scaling.type: expected "none", got ${show(scaling)}`);
  for (const tensor of ['rope_freqs.weight', 'rope_factors_long.weight', 'rope_factors_short.weight'])
    if (tensors.has(tensor)) throw keys.fail(`tensor ${tensor}: positions that are scaled are not supported`);
  for (const key of ['attention.clamp_kqv', 'attention.sliding_window', 'logit_scale', 'attention.max_alibi_bias']) {
    const value = keys.number(`${name}.${key}`);
    if (value !== undefined && value !== 0) throw keys.fail(`${name}.${key}: expected none, got ${show(value)}`);
  }
}

/**
 * The model that a header describes. A key that is absent is what llama.cpp takes it for.
 * @throws DUltraError BAD_CHECKPOINT naming the key, what was expected and what came
 */
export function ggufModel({ metadata, tensors }: GgufHeader, fail: Fail): GgufModel {
  const keys = new GgufKeys(metadata, fail);
  const name = keys.text('general.architecture') ?? '';
  const architecture = Object.hasOwn(ARCHITECTURES, name) ? ARCHITECTURES[name] : undefined;
  if (!architecture)
    throw fail(`general.architecture: expected ${Object.keys(ARCHITECTURES).join(', ')}, got ${show(name)}`);
  checkUnsupported(keys, name, tensors);
  const nHeads = keys.needed(`${name}.attention.head_count`);
  const nKvHeads = keys.count(`${name}.attention.head_count_kv`) ?? nHeads;
  const width = keys.needed(`${name}.embedding_length`);
  const usual = nHeads > 0 ? width / nHeads : 0;
  const headDim = keys.count(`${name}.attention.key_length`) ?? usual;
  for (const [key, value] of [
    ['attention.value_length', keys.count(`${name}.attention.value_length`) ?? usual],
    ...(architecture.modelType === 'lladamoe'
      ? []
      : [['rope.dimension_count', keys.count(`${name}.rope.dimension_count`) ?? headDim] as const]),
  ] as const)
    if (value !== headDim) throw fail(`${name}.${key}: expected the head size ${headDim}, got ${value}`);
  if (name === 'llada' && headDim !== usual)
    throw fail(`${name}.attention.key_length: expected embedding_length / head_count (${usual}), got ${headDim}`);
  const tokens = keys.texts('tokenizer.ggml.tokens');
  const vocabulary = keys.count(`${name}.vocab_size`) ?? tokens?.length;
  if (vocabulary === undefined)
    throw fail(`${name}.vocab_size: expected the number of tokens, got no such key and no tokens`);
  const eps = keys.number(`${name}.attention.layer_norm_rms_epsilon`);
  if (eps === undefined) throw fail(`${name}.attention.layer_norm_rms_epsilon: expected a number, got no such key`);
  const masks = MASKS.map((mask) => tokens?.indexOf(mask) ?? -1).filter((id) => id >= 0);
  const maskTokenId = keys.count('tokenizer.ggml.mask_token_id') ?? masks[0] ?? null;
  const isTied = !tensors.has('output.weight');
  const ids = {
    ...(maskTokenId !== null && architecture.isDiffusion && { mask_token_id: maskTokenId }),
    eos_token_id: keys.count('tokenizer.ggml.eos_token_id') ?? null,
    pad_token_id: keys.count('tokenizer.ggml.padding_token_id') ?? null,
  };
  const shared = {
    model_type: architecture.modelType,
    architectures: [architecture.architecture],
    vocab_size: vocabulary,
    rope_theta: keys.number(`${name}.rope.freq_base`) ?? 10000,
    rms_norm_eps: eps,
    ...ids,
  };
  const layers = keys.needed(`${name}.block_count`);
  const positions = keys.needed(`${name}.context_length`);
  const mlp = keys.count(`${name}.feed_forward_length`);
  const rotated = keys.count(`${name}.rope.dimension_count`) ?? headDim;
  const json =
    name === 'llada'
      ? {
          ...shared,
          d_model: width,
          n_heads: nHeads,
          n_kv_heads: nKvHeads,
          n_layers: layers,
          mlp_hidden_size: mlp,
          max_sequence_length: positions,
          weight_tying: isTied,
        }
      : {
          ...shared,
          hidden_size: width,
          num_attention_heads: nHeads,
          num_key_value_heads: nKvHeads,
          head_dim: headDim,
          num_hidden_layers: layers,
          intermediate_size: mlp,
          max_position_embeddings: positions,
          tie_word_embeddings: isTied,
          hidden_act: 'silu',
          ...(architecture.modelType === 'lladamoe' &&
            rotated !== headDim && { partial_rotary_factor: rotated / headDim }),
          ...architecture.more?.(keys, name),
        };
  return {
    json,
    maskTokenId,
    shiftLogits: architecture.isDiffusion && (keys.flag('diffusion.shift_logits') ?? true),
    headsOf: (tensor) => {
      const [, which] = /^blk\.\d+\.attn_([qk])\.weight$/.exec(tensor) ?? [];
      if (!architecture.interleaved || which === undefined) return 0;
      return which === 'q' ? nHeads : nKvHeads;
    },
  };
}
