// The settings of a comparison of samplers.
import { checkChoice } from '../options';
import type { SamplerObject } from '../sampling/samplers';

/** Rules that need no planner, by group. */
const RIVALS: Readonly<Record<string, readonly SamplerObject[]>> = {
  'fixed steps': [1, 2, 3, 4, 6, 8, 12].map((steps) => ({ type: 'fixed', steps })),
  threshold: [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99].map((threshold) => ({ type: 'confidence', threshold })),
  factor: [0.25, 0.5, 0.75, 1, 1.5, 2, 3].map((factor) => ({ type: 'factor', factor })),
  'factor, last pair': [0.25, 0.5, 1, 2, 3].map((factor) => ({ type: 'factor', factor, lastPair: true })),
  'entropy threshold': [0.02, 0.05, 0.1, 0.2, 0.45, 0.8, 1.2, 1.6].map((threshold) => ({ type: 'entropy', threshold })),
  'entropy sum': [0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3, 6].map((gamma) => ({ type: 'entropy-sum', gamma })),
  'geometric, confidence': [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9].map((phi) => ({ type: 'geometric', phi })),
  'geometric, left to right': [0.3, 0.5, 0.7, 0.9].map((phi) => ({ type: 'geometric', phi, order: 'left_to_right' })),
  'geometric, random': [0.3, 0.5, 0.7, 0.9].map((phi) => ({ type: 'geometric', phi, order: 'random' })),
};

const SCALES = [0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 3];
/** The planner's own rules. */
const PLANNER: Readonly<Record<string, readonly SamplerObject[]>> = {
  'planner, floor': SCALES.map((probabilityScale) => ({ type: 'planner', probabilityScale })),
  'planner, round': SCALES.map((probabilityScale) => ({ type: 'planner', select: 'round', probabilityScale })),
  'planner, cut': [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95].map((cut) => ({
    type: 'planner',
    select: 'threshold',
    cut,
  })),
};

/** The usual settings: a comparison in a minute. */
const QUICK: Readonly<Record<string, readonly SamplerObject[]>> = {
  'fixed steps': [2, 4, 8].map((steps) => ({ type: 'fixed', steps })),
  threshold: [0.5, 0.7, 0.9].map((threshold) => ({ type: 'confidence', threshold })),
  factor: [1].map((factor) => ({ type: 'factor', factor })),
  'factor, last pair': [{ type: 'factor', factor: 1, lastPair: true }],
  'entropy threshold': [0.1, 0.45].map((threshold) => ({ type: 'entropy', threshold })),
  'entropy sum': [0.05, 0.2, 0.8].map((gamma) => ({ type: 'entropy-sum', gamma })),
  'geometric, confidence': [0.5].map((phi) => ({ type: 'geometric', phi })),
};
const QUICK_PLANNER: Readonly<Record<string, readonly SamplerObject[]>> = {
  'planner, floor': [1, 1.25].map((probabilityScale) => ({ type: 'planner', probabilityScale })),
  'planner, round': [1].map((probabilityScale) => ({ type: 'planner', select: 'round', probabilityScale })),
  'planner, cut': [0.5].map((cut) => ({ type: 'planner', select: 'threshold', cut })),
};

/** One setting of a {@link samplerGrid}. */
export interface GridEntry {
  /** Unique, such as "threshold 0.9". */
  name: string;
  group: string;
  sampler: SamplerObject;
}

/** What varies in a group: the number behind the sampler's name. */
function settingOf(sampler: SamplerObject): number {
  switch (sampler.type) {
    case 'planner':
      return sampler.cut ?? sampler.probabilityScale ?? 1;
    case 'confidence':
    case 'entropy':
    case 'dynamic':
    case 'editing':
    case 'd3llm':
    case 'sub-blocks':
      return sampler.threshold!;
    case 'factor':
      return sampler.factor!;
    case 'entropy-sum':
      return sampler.gamma!;
    case 'geometric':
      return sampler.phi!;
    case 'fixed':
    case 'dream':
      return sampler.steps!;
  }
}

/** Options of {@link samplerGrid}. */
export interface GridOptions {
  /** "full" (default) sweeps every rule; "quick" takes the usual settings. */
  size?: 'full' | 'quick' | undefined;
  /** With the planner's rules (default), or only those that need no planner. */
  planner?: boolean | undefined;
  /** The task's maxTokens: adds one token per step, the slowest and usually most accurate setting. */
  maxTokens?: number | undefined;
}

/** The settings of a fair comparison, grouped by rule. Steps of the fixed schedule suppose one block. */
export function samplerGrid({ size = 'full', planner = true, maxTokens }: GridOptions = {}): GridEntry[] {
  checkChoice('size', size, ['full', 'quick'] as const);
  const rivals = size === 'full' ? RIVALS : QUICK;
  const groups = { ...rivals, ...(planner ? (size === 'full' ? PLANNER : QUICK_PLANNER) : {}) };
  const entries: GridEntry[] = [];
  for (const [group, samplers] of Object.entries(groups)) {
    for (const sampler of samplers) {
      if (sampler.type === 'fixed' && maxTokens !== undefined && sampler.steps! >= maxTokens) continue;
      entries.push({ name: `${group} ${settingOf(sampler)}`, group, sampler });
    }
    if (group === 'fixed steps' && maxTokens !== undefined)
      entries.push({ name: `${group} ${maxTokens}`, group, sampler: { type: 'fixed', steps: maxTokens } });
  }
  return entries;
}
