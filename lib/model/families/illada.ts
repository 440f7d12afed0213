// iLLaDA, LLaDA's successor. See https://arxiv.org/abs/2606.25331.
import { z } from 'zod';
import { checkFields } from '../../files/json';
import { DECODER_KEYS } from './decoder';
import type { DiffusionFamily } from './definition';
import {
  DIFFUSION_KEYS,
  diffusionDecoder,
  diffusionDecoderJson,
  diffusionDecoderName,
  newDecoderJson,
} from './diffusion-decoder';
import { readRope } from './rope';

const schema = z.looseObject({ attention_bias: z.boolean().nullish() });

/** `<[MASK]>` of the published checkpoints, which neither their config.json nor their tokenizer names as the mask. */
const MASK_TOKEN_ID = 5;
const VOCABULARY = 155136;

/** A Llama with grouped heads and a tied table that sees the whole row. */
export const illada: DiffusionFamily = {
  name: 'illada',
  modelTypes: ['illada'],
  architectures: ['ILLaDAForCausalLM'],
  keys: {
    ...DECODER_KEYS,
    read: [...DECODER_KEYS.read, ...DIFFUSION_KEYS, 'attention_bias'],
    // layer_norm_eps turns the RMS norms into layer norms.
    accepted: { ...DECODER_KEYS.accepted, is_causal: [false], layer_norm_eps: [] },
  },
  parseConfig(json, file, tensors, hints = {}) {
    const { attention_bias: bias } = checkFields(schema, json, file);
    readRope(json, file, { types: ['default'] });
    return diffusionDecoder(json, file, tensors, hints, {
      family: 'illada',
      qkvBias: bias ?? false,
      attnOutBias: bias ?? false,
      blockLength: null,
      tiesWithoutHead: true,
      knownMaskTokenId: json.vocab_size === VOCABULARY ? MASK_TOKEN_ID : null,
    });
  },
  configJson: diffusionDecoderJson,
  newJson: newDecoderJson('illada', 'ILLaDAForCausalLM'),
  checkpointName: diffusionDecoderName,
};
