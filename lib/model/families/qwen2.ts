// Qwen2 and Qwen2.5.
import type { CausalConfig } from '../config';
import { causalDecoder, decoderName } from './decoder';
import type { Family } from './definition';

/** Qwen2: q_proj, k_proj and v_proj have biases, whatever config.json says; o_proj has none. */
export const qwen2: Family<CausalConfig> = {
  name: 'qwen2',
  modelTypes: ['qwen2'],
  architectures: ['Qwen2ForCausalLM'],
  parseConfig: (json, file) => causalDecoder(json, file, { family: 'qwen2', qkvBias: true, attnOutBias: false }),
  checkpointName: decoderName,
};
