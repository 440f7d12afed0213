// Qwen2 and Qwen2.5.
import type { CausalConfig } from '../config';
import { decoderName, parseDecoder } from './decoder';
import type { Family } from './definition';

/** Qwen2: q_proj, k_proj and v_proj have biases, whatever config.json says. */
export const qwen2: Family<CausalConfig> = {
  name: 'qwen2',
  modelTypes: ['qwen2'],
  parseConfig: (json, file) => parseDecoder(json, file, { family: 'qwen2', qkvBias: true }),
  checkpointName: decoderName,
};
