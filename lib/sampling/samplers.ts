// Samplers as plain tagged objects: checks, defaults, and the native rule that each one is.
import type { NativeRule, NativeStepRequest } from '../native';
import { checkChoice, checkInteger, checkKeys, checkNumber } from '../options';
import type {
  ConfidenceSampler,
  CustomSampler,
  D3llmSampler,
  EntropySampler,
  EntropySumSampler,
  FactorSampler,
  FixedSampler,
  GeometricSampler,
  PlannerSampler,
  Sampler,
  SamplerObject,
} from '../types';

/** A built-in sampler with every default filled in. */
export type ResolvedSampler =
  | (Required<Omit<PlannerSampler, 'cut'>> & { cut: number | null })
  | Required<ConfidenceSampler>
  | Required<FactorSampler>
  | Required<EntropySampler>
  | Required<EntropySumSampler>
  | Required<GeometricSampler>
  | (Required<Omit<FixedSampler, 'steps'>> & { steps: number | null })
  | Required<D3llmSampler>;

const SAMPLER_TYPES = [
  'planner',
  'confidence',
  'factor',
  'entropy',
  'entropy-sum',
  'geometric',
  'fixed',
  'd3llm',
] as const;

/**
 * Checks a sampler and fills in its defaults.
 * @param sampler undefined takes the planner where there is one, else the confidence threshold.
 * @throws TypeError, RangeError naming the option, what was expected and what came.
 */
export function resolveSampler(sampler: Sampler | undefined, hasPlanner: boolean): ResolvedSampler | CustomSampler {
  if (typeof sampler === 'function') return sampler;
  const given: SamplerObject =
    sampler === undefined ? (hasPlanner ? { type: 'planner' } : { type: 'confidence' }) : sampler;
  if (typeof given !== 'object' || given === null)
    throw new TypeError(`sampler: expected an object with a "type", or a function, got ${String(given)}`);
  checkChoice('sampler.type', given.type, SAMPLER_TYPES);
  switch (given.type) {
    case 'planner': {
      checkKeys('sampler', given, ['type', 'select', 'cut', 'probabilityScale', 'plannerTemperature']);
      const { select = 'topk', cut, probabilityScale = 1, plannerTemperature = 1 } = given;
      checkChoice('sampler.select', select, ['topk', 'round', 'threshold', 'bernoulli'] as const);
      if (cut !== undefined) {
        checkNumber('sampler.cut', cut, { min: 0, max: 1 });
        if (select !== 'threshold')
          throw new TypeError(`sampler.cut: only with select "threshold", got select ${JSON.stringify(select)}`);
      }
      checkNumber('sampler.probabilityScale', probabilityScale, { minExclusive: 0, max: 1e6 });
      checkNumber('sampler.plannerTemperature', plannerTemperature, { minExclusive: 0, max: 1e6 });
      return {
        type: 'planner',
        select,
        cut: select === 'threshold' ? (cut ?? 0.5) : null,
        probabilityScale,
        plannerTemperature,
      };
    }
    case 'confidence': {
      checkKeys('sampler', given, ['type', 'threshold']);
      const { threshold = 0.9 } = given;
      checkNumber('sampler.threshold', threshold, { min: 0, max: 1 });
      return { type: 'confidence', threshold };
    }
    case 'factor': {
      checkKeys('sampler', given, ['type', 'factor', 'lastPair']);
      const { factor = 1, lastPair = false } = given;
      checkNumber('sampler.factor', factor, { min: 0, max: 1e6 });
      checkChoice('sampler.lastPair', lastPair, [true, false] as const);
      return { type: 'factor', factor, lastPair };
    }
    case 'entropy': {
      checkKeys('sampler', given, ['type', 'threshold']);
      const { threshold = 0.45 } = given;
      checkNumber('sampler.threshold', threshold, { min: 0, max: 1e6 });
      return { type: 'entropy', threshold };
    }
    case 'entropy-sum': {
      checkKeys('sampler', given, ['type', 'gamma']);
      const { gamma = 0.1 } = given;
      checkNumber('sampler.gamma', gamma, { min: 0, max: 1e6 });
      return { type: 'entropy-sum', gamma };
    }
    case 'geometric': {
      checkKeys('sampler', given, ['type', 'phi', 'order']);
      const { phi = 0.5, order = 'confidence' } = given;
      checkNumber('sampler.phi', phi, { minExclusive: 0, max: 1 });
      checkChoice('sampler.order', order, ['confidence', 'random', 'left_to_right'] as const);
      return { type: 'geometric', phi, order };
    }
    case 'fixed': {
      checkKeys('sampler', given, ['type', 'steps', 'remasking']);
      const { steps, remasking = 'low_confidence' } = given;
      if (steps !== undefined) checkInteger('sampler.steps', steps, { min: 1, max: 1e9 });
      checkChoice('sampler.remasking', remasking, ['low_confidence', 'random', 'low_entropy'] as const);
      return { type: 'fixed', steps: steps ?? null, remasking };
    }
    case 'd3llm': {
      checkKeys('sampler', given, ['type', 'threshold', 'blockAddThreshold', 'decodedTokenThreshold']);
      const { threshold = 0.45, blockAddThreshold = 0.1, decodedTokenThreshold = 0.95 } = given;
      checkNumber('sampler.threshold', threshold, { min: 0, max: 1e6 });
      checkNumber('sampler.blockAddThreshold', blockAddThreshold, { min: 0, max: 1e6 });
      checkNumber('sampler.decodedTokenThreshold', decodedTokenThreshold, { min: 0, max: 1e6 });
      return { type: 'd3llm', threshold, blockAddThreshold, decodedTokenThreshold };
    }
  }
}

const PLANNER_RULES = {
  topk: 'plannerTopK',
  round: 'plannerRound',
  threshold: 'plannerThreshold',
  bernoulli: 'plannerBernoulli',
} as const satisfies Record<string, NativeRule>;

const ORDER_RULES = { confidence: 'fixed', random: 'random', left_to_right: 'leftToRight' } as const satisfies Record<
  string,
  NativeRule
>;

/** The part of a native step request that a sampler decides. */
export type RuleRequest = Pick<
  NativeStepRequest,
  | 'rule'
  | 'planner'
  | 'plannerTemperature'
  | 'probabilityScale'
  | 'threshold'
  | 'factor'
  | 'factorLastPair'
  | 'byEntropy'
  | 'excludeMask'
>;

/** The native rule of a sampler. `reference` applies the reference's quirks to the rival samplers. */
export function ruleRequest(
  sampler: ResolvedSampler | CustomSampler,
  hasPlanner: boolean,
  reference: boolean,
): RuleRequest {
  const request: RuleRequest = {
    rule: 'none',
    planner: false,
    plannerTemperature: 1,
    probabilityScale: 1,
    threshold: 0,
    factor: 0,
    factorLastPair: false,
    byEntropy: false,
    // The rivals' reference code lets the mask token be predicted; dUltra's does not.
    excludeMask: !reference,
  };
  if (typeof sampler === 'function') return { ...request, planner: hasPlanner, excludeMask: true };
  switch (sampler.type) {
    case 'planner': {
      const rule = PLANNER_RULES[sampler.select];
      const { plannerTemperature, probabilityScale } = sampler;
      return {
        ...request,
        rule,
        planner: true,
        plannerTemperature,
        probabilityScale,
        threshold: sampler.cut ?? 0,
        excludeMask: true,
      };
    }
    case 'confidence':
      return { ...request, rule: 'threshold', threshold: sampler.threshold };
    case 'factor':
      return { ...request, rule: 'factor', factor: sampler.factor, factorLastPair: sampler.lastPair || reference };
    case 'entropy':
    case 'd3llm':
      return { ...request, rule: 'entropy', threshold: sampler.threshold };
    case 'entropy-sum':
      return { ...request, rule: 'entropySum', threshold: sampler.gamma };
    case 'geometric':
      return { ...request, rule: ORDER_RULES[sampler.order] };
    case 'fixed':
      return {
        ...request,
        rule: sampler.remasking === 'random' ? 'random' : 'fixed',
        byEntropy: sampler.remasking === 'low_entropy',
      };
  }
}

/** How many of `masks` positions a step of the geometric sampler unmasks. */
export function geometricCount(masks: number, phi: number): number {
  return Math.max(1, Math.floor(phi * masks + 0.5));
}

/** How many of `masks` positions each of `steps` steps unmasks: evenly, the remainder one each in the first steps. */
export function fixedSchedule(masks: number, steps: number): Int32Array {
  const base = Math.floor(masks / steps);
  const remainder = masks % steps;
  return Int32Array.from({ length: steps }, (_, step) => base + (step < remainder ? 1 : 0));
}
