// dParallel's entropy threshold.
import { checkKeys, checkNumber } from '../../options';
import type { SamplerDefinition } from './definition';

/** dParallel's rule: every position whose predictive entropy is at most `threshold`, and at least the lowest. */
export interface EntropySampler {
  type: 'entropy';
  /** Nats. Default 0.45. */
  threshold?: number | undefined;
}

/** See {@link EntropySampler}. */
export const entropy: SamplerDefinition<EntropySampler, Required<EntropySampler>> = {
  type: 'entropy',
  forms: {
    entropy: {
      base: { type: 'entropy' },
      main: 'threshold',
      options: { threshold: 'number' },
      help: ['entropy[:0.45]', 'positions with an entropy below 0.45 nats'],
    },
  },

  resolve(given) {
    checkKeys('sampler', given, ['type', 'threshold']);
    const { threshold = 0.45 } = given;
    checkNumber('sampler.threshold', threshold, { min: 0, max: 1e6 });
    return { type: 'entropy', threshold };
  },

  request: ({ threshold }) => ({ rule: 'entropy', threshold }),
};
