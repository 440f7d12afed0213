// Qwen3.
import { z } from 'zod';
import { checkFields } from '../../files/json';
import type { CausalConfig } from '../config';
import { causalDecoder, DECODER_KEYS, type DecoderTraits, decoderName } from './decoder';
import type { Family } from './definition';

const schema = z.looseObject({ attention_bias: z.boolean().nullish(), head_dim: z.int().nullish() });

/** Keys of config.json of Qwen3, and of the models that were made of it. */
export const QWEN3_KEYS = {
  read: [...DECODER_KEYS.read, 'attention_bias'],
  accepted: Object.fromEntries(Object.entries(DECODER_KEYS.accepted).filter(([key]) => key !== 'sliding_window')),
  // Of the sliding window, which use_sliding_window turns on.
  harmless: [...DECODER_KEYS.harmless, 'sliding_window', 'max_window_layers'],
};

/** What Qwen3's config.json says of its attention: heads are normed, and `attention_bias` is one of all projections. */
export function qwen3Traits(json: Record<string, unknown>, file: string): Omit<DecoderTraits, 'family'> {
  const { attention_bias: bias } = checkFields(schema, json, file);
  return { qkvBias: bias ?? false, attnOutBias: bias ?? false, qkNorm: true };
}

/** transformers' default, where config.json says nothing: it does not follow from hidden_size. */
export const withHeadDim = (json: Record<string, unknown>): Record<string, unknown> => ({
  ...json,
  head_dim: json.head_dim ?? 128,
});

/** Qwen3 without mixtures of experts. */
export const qwen3: Family<CausalConfig> = {
  name: 'qwen3',
  modelTypes: ['qwen3'],
  architectures: ['Qwen3ForCausalLM'],
  keys: QWEN3_KEYS,
  parseConfig: (json, file) => causalDecoder(withHeadDim(json), file, { family: 'qwen3', ...qwen3Traits(json, file) }),
  checkpointName: decoderName,
};
