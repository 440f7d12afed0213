// The checkpoint's unmasking planner.
import { optionError } from '../../errors';
import type { NativeRule } from '../../native';
import { checkChoice, checkKeys, checkNumber } from '../../options';
import type { SamplerDefinition } from './definition';

/** The unmasking planner's sampler: the planner's probabilities p choose the positions that a step unmasks. */
export interface PlannerSampler {
  type: 'planner';
  /**
   * "topk" (default): the k = ⌊Σ p⌋ most probable positions (the reference's mode "inference"). "round": k = ⌊Σ p + ½⌋,
   * which saves a step when Σ p is just below a whole number. "threshold": every position with p above `cut`.
   * "bernoulli": each position with its own probability p (the reference's mode "training", the policy that GRPO
   * trains). The reference has only "topk" and "bernoulli". If none is selected, the most probable one is unmasked.
   */
  select?: 'topk' | 'round' | 'threshold' | 'bernoulli' | undefined;
  /** Threshold of select "threshold", 0..1; not allowed with the others. Default 0.5. */
  cut?: number | undefined;
  /** Multiplies every unmasking probability; > 1 unmasks faster. Default 1. (The reference calls it `factor`.) */
  probabilityScale?: number | undefined;
  /** Divides the planner's logits before the sigmoid. Default 1. */
  plannerTemperature?: number | undefined;
}

/** {@link PlannerSampler} with defaults; `cut` is null unless select is "threshold". */
export type ResolvedPlannerSampler = Required<Omit<PlannerSampler, 'cut'>> & { cut: number | null };

const RULES = {
  topk: 'plannerTopK',
  round: 'plannerRound',
  threshold: 'plannerThreshold',
  bernoulli: 'plannerBernoulli',
} as const satisfies Record<string, NativeRule>;

/** See {@link PlannerSampler}. */
export const planner: SamplerDefinition<PlannerSampler, ResolvedPlannerSampler> = {
  type: 'planner',
  forms: {
    planner: {
      base: { type: 'planner' },
      main: 'select',
      mainNumber: 'probabilityScale',
      options: { select: 'text', cut: 'number', probabilityScale: 'number', plannerTemperature: 'number' },
      help: [
        'planner[:1]',
        "the checkpoint's unmasking planner (default where there is one), its probabilities times a number; planner:bernoulli is --select bernoulli",
      ],
    },
    'planner-round': {
      base: { type: 'planner', select: 'round' },
      main: 'probabilityScale',
      options: { probabilityScale: 'number', plannerTemperature: 'number' },
      help: ['planner-round[:1]', 'the planner, with the expected number of positions rounded instead of cut off'],
    },
    'planner-cut': {
      base: { type: 'planner', select: 'threshold' },
      main: 'cut',
      options: { cut: 'number', probabilityScale: 'number', plannerTemperature: 'number' },
      help: ['planner-cut[:0.5]', 'the planner, every position with a probability above 0.5'],
    },
  },

  resolve(given) {
    checkKeys('sampler', given, ['type', 'select', 'cut', 'probabilityScale', 'plannerTemperature']);
    const { select = 'topk', cut, probabilityScale = 1, plannerTemperature = 1 } = given;
    checkChoice('sampler.select', select, ['topk', 'round', 'threshold', 'bernoulli'] as const);
    if (cut !== undefined) {
      checkNumber('sampler.cut', cut, { min: 0, max: 1 });
      if (select !== 'threshold')
        throw optionError(
          TypeError,
          'sampler.cut',
          `only with select "threshold", got select ${JSON.stringify(select)}`,
        );
    }
    checkNumber('sampler.probabilityScale', probabilityScale, { minExclusive: 0, max: 1e6 });
    checkNumber('sampler.plannerTemperature', plannerTemperature, { minExclusive: 0, max: 1e6 });
    const resolvedCut = select === 'threshold' ? (cut ?? 0.5) : null;
    return { type: 'planner', select, cut: resolvedCut, probabilityScale, plannerTemperature };
  },

  request({ select, cut, probabilityScale, plannerTemperature }) {
    const rule = RULES[select];
    // The planner's own reference code excludes the mask token too.
    return { rule, planner: true, plannerTemperature, probabilityScale, threshold: cut ?? 0, excludeMask: true };
  },

  needsPlanner: true,
};
