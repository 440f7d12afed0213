// Options of the policy gradient's objective: checks, and defaults as each was published.
import { optionError, within } from '../../errors';
import type { CausalModel } from '../../model/causal-model';
import { checkChoice, checkInteger, checkNumber } from '../../options';
import { resolveSampler, type SamplerObject, samplerObject } from '../../sampling/samplers';
import type { ScaleRewards } from './advantages';
import { type LossPer, OBJECTIVES, type Objective } from './objectives';

/** What of {@link GrpoOptions} is about the objective. */
export interface ObjectiveOptions {
  /**
   * What the policy gradient scores. "dultra" (default): every denoising step as one action of the planner, with the tokens
   * that it unmasked. The others score tokens, take the decoding as given, and leave the planner head as it is:
   * "diffu-grpo" (d1) in one pass over a masked completion; "trace" (TraceRL) in the order in which the rollout decided
   * them; "wd1" by weights, without ratios; "distillation" as "trace", with the log-probability under an autoregressive
   * `teacher` minus the model's own as advantage of each token: on-policy distillation.
   */
  objective?: Objective | undefined;
  /** How rollouts decode, with another objective than "dultra". Default: one token per pass, `{ type: "fixed" }`. */
  rolloutSampler?: SamplerObject | string | undefined;
  /** "trace" and "distillation": successive decoding steps that one pass scores. Default 1: the likelihood is exact. */
  shrink?: number | undefined;
  /** "diffu-grpo" and "wd1": probability with which a token of the prompt is masked. Default 0.15. */
  promptMask?: number | undefined;
  /**
   * Which policy the KL divergence of weight `beta` is from: the frozen reference model, or the one that made the rollouts.
   * Default "reference"; of "trace" "old".
   */
  klTo?: 'reference' | 'old' | undefined;
  /**
   * How tokens are averaged: all tokens of the batch alike, or those of a scored row first. Default "token"; of "trace"
   * and "distillation" "row". Not with "dultra" (a constant) and "wd1" (a sum).
   */
  lossPer?: LossPer | undefined;
  /** "distillation": the autoregressive teacher, loaded by `loadCausalModel`. */
  teacher?: CausalModel | undefined;
}

/** {@link ObjectiveOptions} checked, with defaults. */
export interface ResolvedObjective {
  objective: Objective;
  rolloutSampler: SamplerObject;
  shrink: number;
  promptMask: number;
  klTo: 'reference' | 'old';
  lossPer: LossPer;
}

/** Defaults that differ between objectives, as the published code of each has them. */
interface Published {
  clip: { low: number; high: number };
  scaleRewards: ScaleRewards;
  advantageMinClip: number | null;
  klTo: 'reference' | 'old';
  lossPer: LossPer;
}

const ONE_STEP = {
  clip: { low: 0.5, high: 0.5 },
  scaleRewards: 'none',
  advantageMinClip: null,
  klTo: 'reference',
  lossPer: 'token',
} as const;

/** What holds for an objective where nothing else is said. */
export const PUBLISHED: Readonly<Record<Objective, Published>> = {
  dultra: {
    clip: { low: 0.2, high: 1 },
    scaleRewards: 'none',
    advantageMinClip: 0,
    klTo: 'reference',
    lossPer: 'token',
  },
  'diffu-grpo': ONE_STEP,
  wd1: ONE_STEP,
  trace: {
    clip: { low: 0.2, high: 0.2 },
    scaleRewards: 'group',
    advantageMinClip: null,
    klTo: 'old',
    lossPer: 'row',
  },
  distillation: {
    clip: { low: 0.2, high: 0.2 },
    scaleRewards: 'none',
    advantageMinClip: null,
    klTo: 'reference',
    lossPer: 'row',
  },
};

/** Options that an objective has no use for, by option: those objectives that have. */
const USED_BY: Readonly<Record<string, readonly Objective[]>> = {
  rolloutSampler: ['diffu-grpo', 'trace', 'wd1', 'distillation'],
  shrink: ['trace', 'distillation'],
  promptMask: ['diffu-grpo', 'wd1'],
  lossPer: ['diffu-grpo', 'trace', 'distillation'],
  klTo: ['diffu-grpo', 'trace', 'distillation'],
  teacher: ['distillation'],
  plannerTemperature: ['dultra'],
  probabilityScale: ['dultra'],
  forcedStep: ['dultra'],
  cache: ['dultra'],
  compat: ['dultra'],
  clipEpsilon: ['dultra', 'diffu-grpo', 'trace', 'distillation'],
  delta: ['dultra', 'diffu-grpo', 'trace', 'distillation'],
};

/** Checks {@link ObjectiveOptions}. @throws TypeError, RangeError naming the option */
export function resolveObjective(options: ObjectiveOptions & { beta?: number | undefined }): ResolvedObjective {
  const { objective = 'dultra' } = options;
  checkChoice('objective', objective, OBJECTIVES);
  const given = options as Readonly<Record<string, unknown>>;
  for (const [name, users] of Object.entries(USED_BY))
    if (given[name] !== undefined && !users.includes(objective))
      throw optionError(
        RangeError,
        name,
        `expected none with objective "${objective}", which has no use for it; ${users.join(', ')} ${users.length > 1 ? 'have' : 'has'}`,
      );
  if (objective === 'wd1' && (options.beta ?? 0) > 0)
    throw optionError(RangeError, 'beta', 'expected 0 with objective "wd1", which has no KL term');
  const published = PUBLISHED[objective];
  const { shrink = 1, promptMask = 0.15, klTo = published.klTo, lossPer = published.lossPer } = options;
  const rolloutSampler = within('rolloutSampler', 'sampler', () => samplerObject(options.rolloutSampler ?? 'fixed'));
  within('rolloutSampler', 'sampler', () => resolveSampler(rolloutSampler, true));
  checkInteger('shrink', shrink, { min: 1, max: 1 << 20 });
  checkNumber('promptMask', promptMask, { min: 0, max: 1 });
  checkChoice('klTo', klTo, ['reference', 'old'] as const);
  checkChoice('lossPer', lossPer, ['token', 'row'] as const);
  if (objective === 'distillation' && typeof options.teacher?.logProbs !== 'function')
    throw optionError(
      TypeError,
      'teacher',
      'expected a model loaded by loadCausalModel, with objective "distillation"',
    );
  return { objective, rolloutSampler, shrink, promptMask, klTo, lossPer };
}
