// A fixed share of the remaining masks.
import type { NativeRule } from '../../native';
import { checkChoice, checkKeys, checkNumber } from '../../options';
import type { SamplerDefinition } from './definition';

/**
 * Unmasks a fixed share of the remaining masks of the block: max(1, ⌊phi · masks + ½⌋) positions per step, so that the
 * number of masks falls geometrically.
 */
export interface GeometricSampler {
  type: 'geometric';
  /** Share of the remaining masks, above 0 and at most 1. Default 0.5. */
  phi?: number | undefined;
  /** Which positions go first. Default "confidence". */
  order?: 'confidence' | 'random' | 'left_to_right' | undefined;
}

const RULES = { confidence: 'fixed', random: 'random', left_to_right: 'leftToRight' } as const satisfies Record<
  string,
  NativeRule
>;

/** See {@link GeometricSampler}. */
export const geometric: SamplerDefinition<GeometricSampler, Required<GeometricSampler>> = {
  type: 'geometric',
  forms: {
    geometric: {
      base: { type: 'geometric' },
      main: 'phi',
      options: { phi: 'number', order: 'text' },
      help: [
        'geometric[:0.5]',
        'half of what is left in each pass, the most confident first; geometric:0.5:order=random or left_to_right',
      ],
    },
  },

  resolve(given) {
    checkKeys('sampler', given, ['type', 'phi', 'order']);
    const { phi = 0.5, order = 'confidence' } = given;
    checkNumber('sampler.phi', phi, { minExclusive: 0, max: 1 });
    checkChoice('sampler.order', order, ['confidence', 'random', 'left_to_right'] as const);
    return { type: 'geometric', phi, order };
  },

  request: ({ order }) => ({ rule: RULES[order] }),

  count: ({ phi }, { masks }) => Math.max(1, Math.floor(phi * masks + 0.5)),
};
