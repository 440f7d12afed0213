// Fast-dLLM's confidence threshold.
import { checkKeys, checkNumber } from '../../options';
import type { SamplerDefinition } from './definition';

/** Fast-dLLM's threshold rule: every position whose confidence reaches `threshold`, and at least the most confident. */
export interface ConfidenceSampler {
  type: 'confidence';
  /** Softmax probability of the predicted token, 0..1. Default 0.9. */
  threshold?: number | undefined;
}

/** See {@link ConfidenceSampler}. */
export const confidence: SamplerDefinition<ConfidenceSampler, Required<ConfidenceSampler>> = {
  type: 'confidence',
  forms: {
    confidence: {
      base: { type: 'confidence' },
      main: 'threshold',
      options: { threshold: 'number' },
      help: ['confidence[:0.9]', 'positions with a probability of at least 0.9 (default without a planner)'],
    },
  },

  resolve(given) {
    checkKeys('sampler', given, ['type', 'threshold']);
    const { threshold = 0.9 } = given;
    checkNumber('sampler.threshold', threshold, { min: 0, max: 1 });
    return { type: 'confidence', threshold };
  },

  request: ({ threshold }) => ({ rule: 'threshold', threshold }),
};
