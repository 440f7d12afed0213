// LLaDA-MoE. See https://arxiv.org/abs/2509.24389.
import { z } from 'zod';
import { badFile, checkFields } from '../../files/json';
import { DECODER_KEYS } from './decoder';
import { count, type DiffusionFamily, LIMITS } from './definition';
import { DIFFUSION_KEYS, diffusionDecoder, diffusionDecoderJson } from './diffusion-decoder';
import { EXPERT_ACCEPTED, EXPERT_KEYS, expertName, expertsOf, ropeDimOf } from './experts';

const schema = z.looseObject({
  expert_intermediate_size: count(LIMITS.mlp),
  dense_intermediate_size: count(LIMITS.mlp).nullish(),
  shared_expert_intermediate_size: z.int().nonnegative().max(LIMITS.mlp).nullish(),
  moe_layer_freq: z.array(z.union([z.literal(0), z.literal(1)])).nullish(),
  num_hidden_layers: z.int().nonnegative().max(LIMITS.layers),
  moe_router_enable_expert_bias: z.boolean().nullish(),
  qk_layernorm: z.boolean().nullish(),
  clip_qkv: z.number().positive().max(1e9).nullish(),
});

/** The mask token of the published checkpoints, which their config.json does not name. */
const MASK_TOKEN_ID = 156895;
const VOCABULARY = 157184;

/** A mixture of experts that sees the whole row. Weights of the chosen experts are their softmax numbers as they are. */
export const lladaMoe: DiffusionFamily = {
  name: 'llada-moe',
  modelTypes: ['lladamoe'],
  architectures: ['LLaDAMoEModel', 'LLaDAMoEModelLM'],
  keys: {
    read: [...DECODER_KEYS.read, ...DIFFUSION_KEYS, ...EXPERT_KEYS, ...Object.keys(schema.shape)],
    accepted: {
      ...EXPERT_ACCEPTED,
      attention_bias: [false],
      moe_router_score_function: ['softmax'],
      // The model's code reads none of these; what it computes is what is accepted.
      norm_topk_prob: [false],
      routed_scaling_factor: [1],
      router_num_group: [1],
      router_topk_group: [1],
    },
    harmless: [...DECODER_KEYS.harmless, 'router_aux_loss_coef'],
  },
  parseConfig(json, file, tensors, hints = {}) {
    const c = checkFields(schema, json, file);
    const layers = c.moe_layer_freq ?? new Array<number>(c.num_hidden_layers).fill(1);
    if (layers.length !== c.num_hidden_layers)
      throw badFile(
        file,
        `moe_layer_freq: expected an entry for each of ${c.num_hidden_layers} layers (num_hidden_layers), got ${layers.length}`,
      );
    if (layers.includes(0) && c.dense_intermediate_size == null)
      throw badFile(file, 'dense_intermediate_size: expected the width of the layers without experts, got none');
    const fields = { ...json, intermediate_size: c.dense_intermediate_size ?? c.expert_intermediate_size };
    const config = diffusionDecoder(fields, file, tensors, hints, {
      family: 'llada-moe',
      qkvBias: false,
      attnOutBias: false,
      qkNorm: c.qk_layernorm ?? true,
      blockLength: null,
      knownMaskTokenId: json.vocab_size === VOCABULARY ? MASK_TOKEN_ID : null,
    });
    return {
      ...config,
      ropeDim: ropeDimOf(json, file, config.headDim),
      ...(c.clip_qkv != null && { clipQkv: c.clip_qkv }),
      experts: expertsOf(json, file, {
        hiddenSize: c.expert_intermediate_size,
        sharedHiddenSize: c.shared_expert_intermediate_size ?? 0,
        scores: 'softmax',
        normalize: false,
        scale: 1,
        bias: c.moe_router_enable_expert_bias ? 'weight' : null,
        groups: 1,
        groupsPerToken: 1,
        layers: layers.map((has) => has === 1),
      }),
    };
  },
  configJson: diffusionDecoderJson,
  checkpointName: (tensor, { experts }) =>
    expertName(tensor, experts, { routerBias: 'mlp.expert_bias', shared: 'shared_expert' }),
};
