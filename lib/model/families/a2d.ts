// Autoregressive models that dllm (https://github.com/ZHZisZZ/dllm) trained on into diffusion: Qwen2 and Qwen3.
import type { ConfigHints, DiffusionFamily } from './definition';
import {
  DIFFUSION_KEYS,
  type DiffusionTraits,
  diffusionDecoder,
  diffusionDecoderJson,
  diffusionDecoderName,
  newDecoderJson,
} from './diffusion-decoder';
import { qwen2 } from './qwen2';
import { QWEN3_KEYS, qwen3Traits, withHeadDim } from './qwen3';

/**
 * Masked diffusion of whole rows ("mdlm"), or by blocks ("bd3lm") where the caller gives their length. dllm pads prompts
 * on the left to whole blocks, with tokens that nothing sees: one begins where the completion does.
 */
const traitsOf = ({ blockLength }: ConfigHints): Pick<DiffusionTraits, 'blockLength' | 'blocksFrom'> => ({
  blockLength: blockLength ?? null,
  blocksFrom: 'completion',
});

/** Qwen3 as masked diffusion: dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1 and -bd3lm-v0.1. */
export const a2dQwen3: DiffusionFamily = {
  name: 'a2d-qwen3',
  modelTypes: ['a2d-qwen3'],
  architectures: ['A2DQwen3LMHeadModel'],
  finishesBlock: true,
  keys: { ...QWEN3_KEYS, read: [...QWEN3_KEYS.read, ...DIFFUSION_KEYS] },
  parseConfig: (json, file, tensors, hints = {}) =>
    diffusionDecoder(withHeadDim(json), file, tensors, hints, {
      family: 'a2d-qwen3',
      ...qwen3Traits(json, file),
      ...traitsOf(hints),
    }),
  configJson: diffusionDecoderJson,
  newJson: newDecoderJson('a2d-qwen3', 'A2DQwen3LMHeadModel'),
  checkpointName: diffusionDecoderName,
};

/** Qwen2 and Qwen2.5 as masked diffusion: dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-mdlm-v0.1 and -bd3lm-v0.1. */
export const a2dQwen2: DiffusionFamily = {
  name: 'a2d-qwen2',
  modelTypes: ['a2d-qwen2'],
  architectures: ['A2DQwen2LMHeadModel'],
  finishesBlock: true,
  keys: { ...qwen2.keys, read: [...qwen2.keys.read, ...DIFFUSION_KEYS] },
  parseConfig: (json, file, tensors, hints = {}) =>
    diffusionDecoder(json, file, tensors, hints, {
      family: 'a2d-qwen2',
      qkvBias: true,
      attnOutBias: false,
      ...traitsOf(hints),
    }),
  configJson: diffusionDecoderJson,
  newJson: newDecoderJson('a2d-qwen2', 'A2DQwen2LMHeadModel'),
  checkpointName: diffusionDecoderName,
};
