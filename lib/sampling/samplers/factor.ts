// Fast-dLLM's factor rule.
import { checkChoice, checkKeys, checkNumber } from '../../options';
import type { SamplerDefinition } from './definition';

/**
 * Fast-dLLM's factor rule: of the candidates in descending order of confidence c_1, c_2, …, the first is unmasked, and
 * then the j-th while c_j ≥ 1 − factor / (j + 1).
 */
export interface FactorSampler {
  type: 'factor';
  /** Larger values unmask more. Default 1. */
  factor?: number | undefined;
  /** As in the reference: if only the last candidate fails the test, it is unmasked too. Default false. */
  lastPair?: boolean | undefined;
}

/** See {@link FactorSampler}. */
export const factor: SamplerDefinition<FactorSampler, Required<FactorSampler>> = {
  type: 'factor',
  forms: {
    factor: {
      base: { type: 'factor' },
      main: 'factor',
      options: { factor: 'number', lastPair: 'boolean' },
      help: ['factor[:1]', "Fast-dLLM's factor rule"],
    },
  },

  resolve(given) {
    checkKeys('sampler', given, ['type', 'factor', 'lastPair']);
    const { factor: value = 1, lastPair = false } = given;
    checkNumber('sampler.factor', value, { min: 0, max: 1e6 });
    checkChoice('sampler.lastPair', lastPair, [true, false] as const);
    return { type: 'factor', factor: value, lastPair };
  },

  request: ({ factor: value, lastPair }, reference) => ({
    rule: 'factor',
    factor: value,
    factorLastPair: lastPair || reference,
  }),

  referenceEmptyPass: false,
};
