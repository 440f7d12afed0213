// Entropy-bounded unmasking.
import { checkKeys, checkNumber } from '../../options';
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
}

/** See {@link EntropySumSampler}. */
export const entropySum: SamplerDefinition<EntropySumSampler, Required<EntropySumSampler>> = {
  type: 'entropy-sum',
  forms: {
    'entropy-sum': {
      base: { type: 'entropy-sum' },
      main: 'gamma',
      options: { gamma: 'number' },
      help: [
        'entropy-sum[:0.1]',
        'as many positions by rising entropy as keep their sum, without the largest, at 0.1 nats',
      ],
    },
  },

  resolve(given) {
    checkKeys('sampler', given, ['type', 'gamma']);
    const { gamma = 0.1 } = given;
    checkNumber('sampler.gamma', gamma, { min: 0, max: 1e6 });
    return { type: 'entropy-sum', gamma };
  },

  request: ({ gamma }) => ({ rule: 'entropySum', threshold: gamma }),
};
