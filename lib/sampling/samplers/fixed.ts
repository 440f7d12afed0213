// LLaDA's fixed schedule.
import { optionError } from '../../errors';
import { checkChoice, checkInteger, checkKeys } from '../../options';
import type { SamplerDefinition } from './definition';

/** LLaDA's fixed schedule: the masks of a block are spread evenly over its steps. */
export interface FixedSampler {
  type: 'fixed';
  /** Steps for the whole generation, divided evenly among the blocks. Default: one token per step. */
  steps?: number | undefined;
  /**
   * Which positions go first: the most confident (default), random ones, or those of lowest entropy (dParallel's cached
   * decoders).
   */
  remasking?: 'low_confidence' | 'random' | 'low_entropy' | undefined;
  /**
   * How many each pass unmasks: equal shares ("even", default), or what a linear noise schedule expects, rounded, passes
   * that would unmask nothing left out ("linear", the mdlm sampler of dllm).
   */
  schedule?: 'even' | 'linear' | undefined;
}

/** {@link FixedSampler} with defaults; `steps` null: one token per step. */
export type ResolvedFixedSampler = Required<Omit<FixedSampler, 'steps'>> & { steps: number | null };

/** To the nearest whole number, halves to the even one. */
function roundHalfEven(x: number): number {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/**
 * Positions that the passes of a linear schedule unmask, without those that unmask none. Of time t a share of t is
 * masked, as 1 − (1 − t) in fp32: halves are then rounded as dllm rounds them.
 */
function linearCounts(masks: number, steps: number): number[] {
  const { fround } = Math;
  const maskedAt = (left: number) => fround(1 - fround(1 - fround(left / steps)));
  const counts: number[] = [];
  let left = masks;
  for (let i = 0; i < steps; i++) {
    const share = fround(1 - fround(maskedAt(steps - i - 1) / maskedAt(steps - i)));
    const count = Math.min(left, roundHalfEven(left * share));
    if (count > 0) counts.push(count);
    left -= count;
  }
  return counts;
}

/** See {@link FixedSampler}. */
export const fixed: SamplerDefinition<FixedSampler, ResolvedFixedSampler> = {
  type: 'fixed',
  forms: {
    fixed: {
      base: { type: 'fixed' },
      main: 'steps',
      options: { steps: 'number', remasking: 'text', schedule: 'text' },
      help: [
        'fixed[:16]',
        '16 forward passes in all, the most confident positions first; without a number one token per pass',
      ],
    },
    random: {
      base: { type: 'fixed', remasking: 'random' },
      main: 'steps',
      options: { steps: 'number' },
      help: ['random[:16]', 'as fixed, positions in random order'],
    },
  },

  resolve(given) {
    checkKeys('sampler', given, ['type', 'steps', 'remasking', 'schedule']);
    const { steps, remasking = 'low_confidence', schedule = 'even' } = given;
    checkChoice('sampler.schedule', schedule, ['even', 'linear'] as const);
    if (steps !== undefined) checkInteger('sampler.steps', steps, { min: 1, max: 1e9 });
    checkChoice('sampler.remasking', remasking, ['low_confidence', 'random', 'low_entropy'] as const);
    return { type: 'fixed', steps: steps ?? null, remasking, schedule };
  },

  request: ({ remasking }) => ({
    rule: remasking === 'random' ? 'random' : 'fixed',
    byEntropy: remasking === 'low_entropy',
  }),

  count({ steps, schedule }, { firstMasks, step, blocks }) {
    if (schedule === 'linear')
      return linearCounts(firstMasks, steps === null ? firstMasks : Math.ceil(steps / blocks))[step] ?? null;
    // The steps are those of the whole generation, shared evenly by its blocks, as in the reference; the first steps of
    // a block take one mask more where they do not divide.
    const perBlock = steps === null ? firstMasks : Math.floor(steps / blocks);
    if (step >= perBlock) return null;
    return Math.floor(firstMasks / perBlock) + (step < firstMasks % perBlock ? 1 : 0);
  },

  checkBlocks({ steps, schedule }, blocks) {
    if (schedule === 'even' && steps !== null && steps % blocks !== 0)
      throw optionError(
        RangeError,
        'sampler.steps',
        `expected a multiple of the number of blocks (${blocks}), got ${steps}`,
      );
  },
};
