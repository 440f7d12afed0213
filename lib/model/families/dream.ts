// Dream, Dream-Coder and DiffuCoder. See https://arxiv.org/abs/2508.15487.
import type { DiffusionFamily } from './definition';
import {
  DIFFUSION_KEYS,
  diffusionDecoder,
  diffusionDecoderJson,
  diffusionDecoderName,
  newDecoderJson,
} from './diffusion-decoder';
import { qwen2 } from './qwen2';

/** Qwen2.5 that sees the whole row; its head is a position ahead, as Qwen2.5's is. */
export const dream: DiffusionFamily = {
  name: 'dream',
  modelTypes: ['Dream'],
  architectures: ['DreamModel'],
  keys: {
    ...qwen2.keys,
    // Not block_size, which Dream-Reasoner has, of the same model_type and with another way to attend and score.
    read: [...qwen2.keys.read, ...DIFFUSION_KEYS],
    // Dream's code does not read use_mrope, whose layout text alone does not need.
    harmless: [...qwen2.keys.harmless, 'use_mrope'],
  },
  filteredConfidence: true,
  topPFirst: true,
  parseConfig: (json, file, tensors, hints = {}) =>
    diffusionDecoder(json, file, tensors, hints, {
      family: 'dream',
      qkvBias: true,
      attnOutBias: false,
      blockLength: null,
      shiftLogits: true,
    }),
  configJson: diffusionDecoderJson,
  newJson: newDecoderJson('Dream', 'DreamModel'),
  checkpointName: diffusionDecoderName,
};
