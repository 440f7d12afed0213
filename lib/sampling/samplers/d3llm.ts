// d3LLM's decoding of several blocks at once.
import { checkKeys, checkNumber } from '../../options';
import { MultiBlockRow } from '../rows/multi-block-row';
import type { SamplerDefinition } from './definition';

/**
 * d3LLM's decoding of several blocks at once. Every pass unmasks the positions of all open blocks whose entropy is at
 * most `threshold`, and at least the one of lowest entropy. The next block opens when the share `blockAddThreshold` of
 * the last one is decided, and must make progress in every pass when the share `decodedTokenThreshold` of the block
 * before it is. With `stopAtEos` everything right of the first end-of-sequence token is filled with that token.
 */
export interface D3llmSampler {
  type: 'd3llm';
  /** Nats. Default 0.45. */
  threshold?: number | undefined;
  /** The next block opens when this share of the last one is decided; above 1: when it is finished. Default 0.1. */
  blockAddThreshold?: number | undefined;
  /**
   * A block is active when this share of the block before it is decided (the prompt counts as a block); above 1: never.
   * The first active block with masks unmasks at least one position in every pass. Default 0.95.
   */
  decodedTokenThreshold?: number | undefined;
}

/** See {@link D3llmSampler}. */
export const d3llm: SamplerDefinition<D3llmSampler, Required<D3llmSampler>> = {
  type: 'd3llm',
  forms: {
    d3llm: {
      base: { type: 'd3llm' },
      main: 'threshold',
      options: { threshold: 'number', blockAddThreshold: 'number', decodedTokenThreshold: 'number' },
      help: [
        'd3llm[:0.45]',
        'several blocks in flight, positions with an entropy of at most 0.45 nats; d3llm:0.45:blockAddThreshold=0.1:decodedTokenThreshold=0.95',
      ],
    },
  },

  resolve(given) {
    checkKeys('sampler', given, ['type', 'threshold', 'blockAddThreshold', 'decodedTokenThreshold']);
    const { threshold = 0.45, blockAddThreshold = 0.1, decodedTokenThreshold = 0.95 } = given;
    checkNumber('sampler.threshold', threshold, { min: 0, max: 1e6 });
    checkNumber('sampler.blockAddThreshold', blockAddThreshold, { min: 0, max: 1e6 });
    checkNumber('sampler.decodedTokenThreshold', decodedTokenThreshold, { min: 0, max: 1e6 });
    return { type: 'd3llm', threshold, blockAddThreshold, decodedTokenThreshold };
  },

  // The reference for Dream leaves it to the progress rule of the first active block.
  request: ({ threshold }, reference, shiftLogits) => ({
    rule: 'entropy',
    threshold,
    mayRest: reference && shiftLogits,
  }),

  row: (sampler, index, input, settings) => new MultiBlockRow(index, input, settings, sampler),

  referenceStops: true,
};
