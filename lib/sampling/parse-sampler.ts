// Samplers as short text, for command lines and config files: "confidence:0.9".
import type { SamplerObject } from '../types';
import { type Form, parseForm } from './forms';
import { resolveSampler } from './samplers';

/** A new sampler, or a new option of one, is a line here; values are checked where samplers given as objects are. */
const FORMS: Readonly<Record<string, Form<SamplerObject>>> = {
  planner: {
    base: { type: 'planner' },
    main: 'select',
    mainNumber: 'probabilityScale',
    options: { select: 'text', cut: 'number', probabilityScale: 'number', plannerTemperature: 'number' },
  },
  'planner-round': {
    base: { type: 'planner', select: 'round' },
    main: 'probabilityScale',
    options: { probabilityScale: 'number', plannerTemperature: 'number' },
  },
  'planner-cut': {
    base: { type: 'planner', select: 'threshold' },
    main: 'cut',
    options: { cut: 'number', probabilityScale: 'number', plannerTemperature: 'number' },
  },
  confidence: { base: { type: 'confidence' }, main: 'threshold', options: { threshold: 'number' } },
  factor: { base: { type: 'factor' }, main: 'factor', options: { factor: 'number', lastPair: 'boolean' } },
  entropy: { base: { type: 'entropy' }, main: 'threshold', options: { threshold: 'number' } },
  'entropy-sum': { base: { type: 'entropy-sum' }, main: 'gamma', options: { gamma: 'number' } },
  geometric: { base: { type: 'geometric' }, main: 'phi', options: { phi: 'number', order: 'text' } },
  fixed: { base: { type: 'fixed' }, main: 'steps', options: { steps: 'number', remasking: 'text' } },
  random: { base: { type: 'fixed', remasking: 'random' }, main: 'steps', options: { steps: 'number' } },
  d3llm: {
    base: { type: 'd3llm' },
    main: 'threshold',
    options: { threshold: 'number', blockAddThreshold: 'number', decodedTokenThreshold: 'number' },
  },
};

/** Every name that {@link parseSampler} knows. */
export const SAMPLER_NAMES: readonly string[] = Object.keys(FORMS);

/**
 * A sampler out of its short form: a name, then values after colons. A bare value sets the sampler's main option,
 * `name=value` any: "planner", "planner:bernoulli", "planner:1.5" (probabilityScale), "planner-round:1.1",
 * "planner-cut:0.5", "confidence:0.9", "factor:1:lastPair=true", "entropy:0.45", "entropy-sum:0.1",
 * "geometric:0.5:order=random", "fixed:16" (steps), "random:16" (fixed steps, positions at random),
 * "d3llm:0.45:blockAddThreshold=0.1". A comma never occurs in it, so that lists can be split at commas.
 * @returns what was written and nothing else; defaults are filled in where the sampler is used.
 * @throws RangeError naming the part, what was expected and what came.
 */
export function parseSampler(text: string): SamplerObject {
  const sampler = parseForm('sampler', text, FORMS, 'confidence:0.9');
  resolveSampler(sampler, true);
  return sampler;
}
