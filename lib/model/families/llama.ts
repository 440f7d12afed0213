// Llama.
import type { CausalConfig } from '../config';
import { decoderName, parseDecoder } from './decoder';
import { type Family, requireValues } from './definition';

/** Llama: no biases. */
export const llama: Family<CausalConfig> = {
  name: 'llama',
  modelTypes: ['llama'],
  parseConfig(json, file) {
    // It would be a bias of o_proj too.
    requireValues(file, [['attention_bias', json.attention_bias, [false]]]);
    return parseDecoder(json, file, { family: 'llama', qkvBias: false });
  },
  checkpointName: decoderName,
};
