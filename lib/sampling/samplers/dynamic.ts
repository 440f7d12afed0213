// The rules of block diffusion models (SDAR, LLaDA2).
import { optionError } from '../../errors';
import { checkChoice, checkInteger, checkKeys, checkNumber } from '../../options';
import type { SamplerDefinition } from './definition';

/**
 * SDAR's dynamic rule, and LLaDA2's: a pass unmasks what its share of the block's positions is, the most confident
 * first, and every other position whose confidence is above `threshold`. With threshold 1 it is SDAR's static rule.
 */
export interface DynamicSampler {
  type: 'dynamic';
  /** Softmax probability of the predicted token, 0..1. Default 0.9; 1: only the shares. */
  threshold?: number | undefined;
  /**
   * Passes among which a block's positions are shared, the first passes one more where they do not divide. Default: as
   * many as positions, one each.
   */
  steps?: number | undefined;
  /** Which positions go first. "left_to_right" is SDAR's sequential rule, which has no threshold. Default "confidence". */
  order?: 'confidence' | 'left_to_right' | undefined;
}

/** {@link DynamicSampler} with defaults; `steps` null: one position per pass. */
export type ResolvedDynamicSampler = Required<Omit<DynamicSampler, 'steps'>> & { steps: number | null };

/** See {@link DynamicSampler}. */
export const dynamic: SamplerDefinition<DynamicSampler, ResolvedDynamicSampler> = {
  type: 'dynamic',
  forms: {
    dynamic: {
      base: { type: 'dynamic' },
      main: 'threshold',
      options: { threshold: 'number', steps: 'number', order: 'text' },
      help: ['dynamic[:0.9]', "the most confident position and all above 0.9 (SDAR's and LLaDA2's rule)"],
    },
    static: {
      base: { type: 'dynamic', threshold: 1 },
      main: 'steps',
      options: { steps: 'number' },
      help: ['static[:4]', "every block in 4 passes; without a number one position per pass (SDAR's static rule)"],
    },
    sequential: {
      base: { type: 'dynamic', order: 'left_to_right' },
      main: 'steps',
      options: { steps: 'number' },
      help: ['sequential[:4]', "as static, from left to right (SDAR's sequential rule)"],
    },
  },

  resolve(given) {
    checkKeys('sampler', given, ['type', 'threshold', 'steps', 'order']);
    const { order = 'confidence', steps } = given;
    checkChoice('sampler.order', order, ['confidence', 'left_to_right'] as const);
    if (order === 'left_to_right' && given.threshold !== undefined)
      throw optionError(TypeError, 'sampler.threshold', 'not allowed with order "left_to_right"');
    const { threshold = order === 'confidence' ? 0.9 : 1 } = given;
    checkNumber('sampler.threshold', threshold, { min: 0, max: 1 });
    if (steps !== undefined) checkInteger('sampler.steps', steps, { min: 1, max: 1e9 });
    return { type: 'dynamic', threshold, steps: steps ?? null, order };
  },

  request: ({ threshold, order }) =>
    order === 'confidence' ? { rule: 'dynamic', threshold } : { rule: 'leftToRight' },

  count({ steps }, { length, step }) {
    if (steps === null) return 1;
    if (step >= steps) return null;
    return Math.floor(length / steps) + (step < length % steps ? 1 : 0);
  },
};
