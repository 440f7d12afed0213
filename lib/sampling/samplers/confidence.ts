// Fast-dLLM's confidence threshold.
import { optionError } from '../../errors';
import { checkInteger, checkKeys, checkNumber } from '../../options';
import type { SamplerDefinition } from './definition';

/** Fast-dLLM's threshold rule: every position whose confidence reaches `threshold`, and at least the most confident. */
export interface ConfidenceSampler {
  type: 'confidence';
  /** Softmax probability of the predicted token, 0..1. Default 0.9. */
  threshold?: number | undefined;
  /**
   * Passes among which the masks of a block are shared, for the whole generation: no pass unmasks more than its share and
   * what earlier ones left over (Fast-dLLM's decoding of Dream without a cache). Default: no share.
   */
  steps?: number | undefined;
}

/** {@link ConfidenceSampler} with defaults; `steps` null: no share. */
export type ResolvedConfidenceSampler = Required<Omit<ConfidenceSampler, 'steps'>> & { steps: number | null };

/** See {@link ConfidenceSampler}. */
export const confidence: SamplerDefinition<ConfidenceSampler, ResolvedConfidenceSampler> = {
  type: 'confidence',
  forms: {
    confidence: {
      base: { type: 'confidence' },
      main: 'threshold',
      options: { threshold: 'number', steps: 'number' },
      help: ['confidence[:0.9]', 'positions with a probability of at least 0.9 (default without a planner)'],
    },
  },

  resolve(given) {
    checkKeys('sampler', given, ['type', 'threshold', 'steps']);
    const { threshold = 0.9, steps } = given;
    checkNumber('sampler.threshold', threshold, { min: 0, max: 1 });
    if (steps !== undefined) checkInteger('sampler.steps', steps, { min: 1, max: 1e9 });
    return { type: 'confidence', threshold, steps: steps ?? null };
  },

  request: ({ threshold }) => ({ rule: 'threshold', threshold }),

  isCounted: ({ steps }) => steps !== null,

  count({ steps }, { firstMasks, masks, step, blocks }) {
    const all = Math.max(1, Math.floor(steps! / blocks));
    const due = Math.floor((firstMasks * Math.min(step + 1, all)) / all);
    return Math.max(1, due - (firstMasks - masks));
  },

  checkBlocks({ steps }, blocks) {
    if (steps !== null && steps % blocks !== 0)
      throw optionError(
        RangeError,
        'sampler.steps',
        `expected a multiple of the number of blocks (${blocks}), got ${steps}`,
      );
  },
};
