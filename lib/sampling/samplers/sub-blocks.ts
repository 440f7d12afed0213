// Fast-dLLM v2's decoding of blocks in parts.
import { checkChoice, checkInteger, checkKeys, checkNumber } from '../../options';
import { growingBatch } from '../rows/growing-batch';
import { GrowingRow } from '../rows/growing-row';
import { SubBlockRow } from '../rows/sub-block-row';
import type { SamplerDefinition } from './definition';

/**
 * Fast-dLLM v2's decoding (arXiv 2509.26328): a block is decided in parts from left to right; a pass unmasks the most
 * confident position of the part, and every other one whose confidence is above `threshold`.
 */
export interface SubBlocksSampler {
  type: 'sub-blocks';
  /** Softmax probability of the predicted token, 0..1. Default 0.9; 1: one token per pass. */
  threshold?: number | undefined;
  /** Positions of a part. Default 8. */
  length?: number | undefined;
  /**
   * Once a part's first token is known, passes compute the part alone, and read the keys and values of the rest of its
   * block from the last pass over the block (its block cache). Needs a model that attends by blocks, and a cache.
   * Default false.
   */
  partCache?: boolean | undefined;
}

/** See {@link SubBlocksSampler}. */
export const subBlocks: SamplerDefinition<SubBlocksSampler, Required<SubBlocksSampler>> = {
  type: 'sub-blocks',
  forms: {
    'sub-blocks': {
      base: { type: 'sub-blocks' },
      main: 'threshold',
      options: { threshold: 'number', length: 'number', partCache: 'boolean' },
      help: [
        'sub-blocks[:0.9]',
        'blocks in parts of 8 (length=8), in each the most confident position and all above 0.9 (Fast-dLLM v2)',
      ],
    },
  },

  resolve(given) {
    checkKeys('sampler', given, ['type', 'threshold', 'length', 'partCache']);
    const { threshold = 0.9, length = 8, partCache = false } = given;
    checkNumber('sampler.threshold', threshold, { min: 0, max: 1 });
    checkInteger('sampler.length', length, { min: 1, max: 2 ** 30 });
    checkChoice('sampler.partCache', partCache, [true, false] as const);
    return { type: 'sub-blocks', threshold, length, partCache };
  },

  request: ({ threshold }) => ({ rule: 'dynamic', threshold }),

  count: () => 1,

  row: (sampler, index, input, settings) =>
    settings.reference && settings.attended !== null && settings.shiftLogits
      ? new GrowingRow(index, input, settings, sampler)
      : new SubBlockRow(index, input, settings, sampler),

  batch: (sampler, inputs, settings) =>
    inputs.length > 1 && settings[0].reference && settings[0].attended !== null && settings[0].shiftLogits
      ? growingBatch(inputs, settings, sampler)
      : null,

  filteredConfidence: true,
};
