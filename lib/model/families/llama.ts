// Llama.
import { z } from 'zod';
import { checkFields } from '../../files/json';
import type { CausalConfig } from '../config';
import { causalDecoder, DECODER_KEYS, decoderName } from './decoder';
import type { Family } from './definition';

const biasSchema = z.looseObject({ attention_bias: z.boolean().nullish() });

/** Llama: `attention_bias` is one of q_proj, k_proj, v_proj and o_proj. */
export const llama: Family<CausalConfig> = {
  name: 'llama',
  modelTypes: ['llama'],
  architectures: ['LlamaForCausalLM'],
  keys: { ...DECODER_KEYS, read: [...DECODER_KEYS.read, 'attention_bias'] },
  parseConfig(json, file) {
    const { attention_bias: bias } = checkFields(biasSchema, json, file);
    return causalDecoder(json, file, { family: 'llama', qkvBias: bias ?? false, attnOutBias: bias ?? false });
  },
  checkpointName: decoderName,
};
