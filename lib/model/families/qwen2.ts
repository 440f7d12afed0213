// Qwen2 and Qwen2.5.
import type { CausalConfig } from '../config';
import { causalDecoder, DECODER_KEYS, decoderName } from './decoder';
import type { Family } from './definition';

/** Qwen2: q_proj, k_proj and v_proj have biases, whatever config.json says; o_proj has none. */
export const qwen2: Family<CausalConfig> = {
  name: 'qwen2',
  modelTypes: ['qwen2'],
  architectures: ['Qwen2ForCausalLM'],
  keys: {
    ...DECODER_KEYS,
    // Of the sliding window, which use_sliding_window turns on; biases are as they are.
    harmless: [...DECODER_KEYS.harmless, 'sliding_window', 'max_window_layers', 'attention_bias', 'qkv_bias'],
    accepted: Object.fromEntries(Object.entries(DECODER_KEYS.accepted).filter(([key]) => key !== 'sliding_window')),
  },
  parseConfig: (json, file) => causalDecoder(json, file, { family: 'qwen2', qkvBias: true, attnOutBias: false }),
  checkpointName: decoderName,
};
