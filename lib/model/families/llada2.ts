// LLaDA2.0 and LLaDA2.1. See https://arxiv.org/abs/2512.15745 and https://arxiv.org/abs/2602.08676.
import { z } from 'zod';
import { badFile, checkFields } from '../../files/json';
import type { ModelConfig } from '../config';
import { DECODER_KEYS } from './decoder';
import { count, type DiffusionFamily, LIMITS, type TensorPlace } from './definition';
import { DIFFUSION_KEYS, diffusionDecoder, diffusionDecoderJson } from './diffusion-decoder';
import { EXPERT_ACCEPTED, EXPERT_KEYS, expertName, expertsOf, expertTensor, ropeDimOf } from './experts';

const schema = z.looseObject({
  num_hidden_layers: z.int().nonnegative().max(LIMITS.layers),
  num_attention_heads: count(LIMITS.heads),
  moe_intermediate_size: count(LIMITS.mlp),
  first_k_dense_replace: z.int().nonnegative().max(LIMITS.layers).nullish(),
  num_shared_experts: z.int().nonnegative().max(1024).nullish(),
  n_group: count(1024).nullish(),
  topk_group: count(1024).nullish(),
  routed_scaling_factor: z.number().positive().max(1e6).nullish(),
  use_qkv_bias: z.boolean().nullish(),
  use_bias: z.boolean().nullish(),
  rms_norm_eps: z.number().nonnegative().max(1).nullish(),
  rotary_dim: count(LIMITS.heads).nullish(),
  // Not of the published checkpoints, whose config.json does not name their blocks.
  block_size: count(2 ** 20).nullish(),
});

/** Of the published checkpoints, whose config.json names neither. */
const BLOCK_LENGTH = 32;
const MASK_TOKEN_ID = 156895;
const VOCABULARY = 157184;

/** Tensors that hold others: queries, keys and values of a layer, and in merged checkpoints all experts of one. */
function placesOf(tensor: string, { dModel, nHeads, nKvHeads, headDim, experts }: ModelConfig): TensorPlace[] {
  const expert = expertTensor(tensor);
  if (expert && experts) {
    const { count: all, hiddenSize } = experts;
    const [rows, columns] = expert.projection === 'down_proj' ? [dModel, hiddenSize] : [hiddenSize, dModel];
    const name = `model.layers.${expert.layer}.mlp.experts.${expert.projection}`;
    const place = { shape: [all, rows, columns], row: expert.expert * rows };
    return [
      { name, ...place },
      { name: `${name}.weight`, ...place },
    ];
  }
  const [, layer, part, kind] = /^model\.transformer\.blocks\.(\d+)\.([qkv])_proj\.(weight|bias)$/.exec(tensor) ?? [];
  if (layer === undefined) return [];
  const rows = (nHeads + 2 * nKvHeads) * headDim;
  return [
    {
      name: `model.layers.${layer}.attention.query_key_value.${kind}`,
      shape: kind === 'bias' ? [rows] : [rows, dModel],
      row: { q: 0, k: nHeads, v: nHeads + nKvHeads }[part as 'q' | 'k' | 'v'] * headDim,
    },
  ];
}

/** What differs from the names of other decoders. */
const NAMES: readonly (readonly [RegExp, string])[] = [
  [/^model\.embed_tokens\./, 'model.word_embeddings.'],
  [/\.self_attn\.[qkv]_proj\./, '.attention.query_key_value.'],
  [/\.self_attn\.o_proj\./, '.attention.dense.'],
  [/\.self_attn\.q_norm\./, '.attention.query_layernorm.'],
  [/\.self_attn\.k_norm\./, '.attention.key_layernorm.'],
];

/** A mixture of experts that attends by blocks; LLaDA2.1 is the same model, decoded with edits. */
export const llada2: DiffusionFamily = {
  name: 'llada2',
  modelTypes: ['llada2_moe'],
  architectures: ['LLaDA2MoeModelLM', 'LLaDA21MoeModelLM'],
  keys: {
    read: [...DECODER_KEYS.read, ...DIFFUSION_KEYS, ...EXPERT_KEYS, ...Object.keys(schema.shape)],
    accepted: {
      ...EXPERT_ACCEPTED,
      use_qk_norm: [true],
      // The model's code reads none of these; what it computes is what is accepted.
      norm_topk_prob: [true],
      score_function: ['sigmoid'],
      moe_router_enable_expert_bias: [true],
      norm_head: [false],
      norm_softmax: [false],
      use_rmsnorm: [true],
      using_split_qkv_in_self_attention: [false],
    },
    // The router computes in fp32 here, whatever it is asked to.
    harmless: [...DECODER_KEYS.harmless, 'router_dtype', 'max_window_layers', 'num_nextn_predict_layers'],
  },
  filteredConfidence: true,
  parseConfig(json, file, tensors, hints = {}) {
    const c = checkFields(schema, json, file);
    const dense = c.first_k_dense_replace ?? 0;
    const config = diffusionDecoder(
      {
        ...json,
        // 0: as many as heads of queries.
        num_key_value_heads: json.num_key_value_heads === 0 ? c.num_attention_heads : json.num_key_value_heads,
        rms_norm_eps: c.rms_norm_eps ?? 1e-5,
      },
      file,
      tensors,
      hints,
      {
        family: 'llada2',
        qkvBias: c.use_qkv_bias ?? false,
        attnOutBias: c.use_bias ?? true,
        qkNorm: true,
        blockLength: hints.blockLength ?? c.block_size ?? BLOCK_LENGTH,
        knownMaskTokenId: json.vocab_size === VOCABULARY ? MASK_TOKEN_ID : null,
      },
    );
    const ropeDim = ropeDimOf(json, file, config.headDim);
    if (c.rotary_dim != null && c.rotary_dim !== ropeDim)
      throw badFile(
        file,
        `rotary_dim: expected partial_rotary_factor times the head size (${ropeDim}), got ${c.rotary_dim}`,
      );
    return {
      ...config,
      ropeDim,
      experts: expertsOf(
        json,
        file,
        {
          hiddenSize: c.moe_intermediate_size,
          sharedHiddenSize: c.moe_intermediate_size * (c.num_shared_experts ?? 0),
          scores: 'sigmoid',
          normalize: json.num_experts_per_tok !== 1,
          scale: c.routed_scaling_factor ?? 1,
          bias: 'choice',
          groups: c.n_group ?? 1,
          groupsPerToken: c.topk_group ?? c.n_group ?? 1,
          layers: Array.from({ length: c.num_hidden_layers }, (_, layer) => layer >= dense),
        },
        { groups: 'n_group', kept: 'topk_group' },
      ),
    };
  },
  configJson: (config, json) => ({ ...diffusionDecoderJson(config, json), block_size: config.blockLength }),
  checkpointName(tensor, { experts }) {
    const name = expertName(tensor, experts, { routerBias: 'mlp.gate.expert_bias', shared: 'mlp.shared_experts' });
    return NAMES.reduce((text, [from, to]) => text.replace(from, to), name);
  },
  placesOf,
};
