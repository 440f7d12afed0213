// Entropy-bounded unmasking.
import { checkChoice, checkKeys, checkNumber } from '../../options';
import type { SamplerDefinition } from './definition';

/**
 * Entropy-bounded unmasking (the EB sampler, arXiv 2505.24857): candidates by ascending entropy, as many as keep the
 * sum of their entropies minus the largest of them at or below `gamma`. That difference bounds the error of predicting
 * them independently; the first always passes.
 */
export interface EntropySumSampler {
  type: 'entropy-sum';
  /** Nats. 0 takes one token per step (and everything that is certain). Default 0.1. */
  gamma?: number | undefined;
  /**
   * Whether the largest entropy counts too: "included" is the bound of SDAR's engine (entropy_bounded), which keeps the
   * whole sum below `gamma`. Default "excluded".
   */
  largest?: 'excluded' | 'included' | undefined;
}

/** See {@link EntropySumSampler}. */
export const entropySum: SamplerDefinition<EntropySumSampler, Required<EntropySumSampler>> = {
  type: 'entropy-sum',
  forms: {
    'entropy-sum': {
      base: { type: 'entropy-sum' },
      main: 'gamma',
      options: { gamma: 'number', largest: 'text' },
      help: [
        'entropy-sum[:0.1]',
        'as many positions by rising entropy as keep their sum, without the largest, at 0.1 nats',
      ],
    },
  },

  resolve(given) {
    checkKeys('sampler', given, ['type', 'gamma', 'largest']);
    const { gamma = 0.1, largest = 'excluded' } = given;
    checkChoice('sampler.largest', largest, ['excluded', 'included'] as const);
    checkNumber('sampler.gamma', gamma, { min: 0, max: 1e6 });
    return { type: 'entropy-sum', gamma, largest };
  },

  request: ({ gamma, largest }) => ({ rule: 'entropySum', threshold: gamma, sumWithLast: largest === 'included' }),
};
