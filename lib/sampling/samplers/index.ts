// The built-in samplers. A new one is a file here and a line in the list; the union of their types, the text forms and
// the command line's help follow from it.

import { optionError } from '../../errors';
import { checkChoice } from '../../options';
import { show } from '../../text';
import { parseForm } from '../text-form';
import type { CustomSampler } from '../types';
import { confidence } from './confidence';
import { d3llm } from './d3llm';
import type { RuleRequest, SamplerDefinition } from './definition';
import { dream } from './dream';
import { dynamic } from './dynamic';
import { editing } from './editing';
import { entropy } from './entropy';
import { entropySum } from './entropy-sum';
import { factor } from './factor';
import { fixed } from './fixed';
import { geometric } from './geometric';
import { planner } from './planner';
import { subBlocks } from './sub-blocks';

export type { ConfidenceSampler } from './confidence';
export type { D3llmSampler } from './d3llm';
export type { DreamSampler } from './dream';
export type { DynamicSampler } from './dynamic';
export type { EditingSampler } from './editing';
export type { EntropySampler } from './entropy';
export type { EntropySumSampler } from './entropy-sum';
export type { FactorSampler } from './factor';
export type { FixedSampler } from './fixed';
export type { GeometricSampler } from './geometric';
export type { PlannerSampler } from './planner';
export type { SubBlocksSampler } from './sub-blocks';

const SAMPLERS = [
  planner,
  confidence,
  factor,
  entropy,
  entropySum,
  geometric,
  fixed,
  dynamic,
  editing,
  d3llm,
  dream,
  subBlocks,
] as const;

type Definition = (typeof SAMPLERS)[number];

/** A built-in sampler: plain JSON, written unchanged into reports. */
export type SamplerObject = Parameters<Definition['resolve']>[0];

/** A built-in sampler with every default filled in. */
export type ResolvedSampler = ReturnType<Definition['resolve']>;

/** How positions to unmask are chosen: an object, its short form ({@link parseSampler}), or a function. */
export type Sampler = SamplerObject | string | CustomSampler;

const definitions = SAMPLERS as unknown as readonly SamplerDefinition<SamplerObject, ResolvedSampler>[];
/** The types of {@link SamplerObject}. */
export const SAMPLER_TYPES = definitions.map(({ type }) => type);
const FORMS = Object.assign({}, ...definitions.map(({ forms }) => forms)) as Definition['forms'];

/** The definition of a sampler's type. */
export function definitionOf({
  type,
}: {
  type: SamplerObject['type'];
}): SamplerDefinition<SamplerObject, ResolvedSampler> {
  return definitions[SAMPLER_TYPES.indexOf(type)];
}

/**
 * Checks a sampler and fills in its defaults.
 * @param sampler undefined takes the planner where there is one, else the confidence threshold.
 * @throws TypeError, RangeError naming the option, what was expected and what came.
 */
export function resolveSampler(sampler: Sampler | undefined, hasPlanner: boolean): ResolvedSampler | CustomSampler {
  if (typeof sampler === 'function') return sampler;
  const given = samplerObject(sampler === undefined ? (hasPlanner ? 'planner' : 'confidence') : sampler);
  if (typeof given !== 'object' || given === null)
    throw optionError(
      TypeError,
      'sampler',
      `expected an object with a "type", its short form such as "confidence:0.9", or a function, got ${show(given)}`,
    );
  checkChoice('sampler.type', given.type, SAMPLER_TYPES);
  return definitionOf(given).resolve(given);
}

/** The object that a sampler's short form stands for; anything else as it is. @throws as {@link parseSampler} */
export function samplerObject<T>(sampler: T | string, name = 'sampler'): T | SamplerObject {
  return typeof sampler === 'string' ? parseForm<SamplerObject>(name, sampler, FORMS, 'confidence:0.9') : sampler;
}

/** The native rule of a sampler. `reference` applies the reference's quirks to all samplers but the planner's. */
export function ruleRequest(
  sampler: ResolvedSampler | CustomSampler,
  hasPlanner: boolean,
  reference: boolean,
  shiftLogits: boolean,
): RuleRequest {
  if (typeof sampler === 'function') return { rule: 'none', planner: hasPlanner };
  // The reference code of the other samplers allows the mask token as a prediction; dUltra's does not.
  return { excludeMask: !reference, ...definitionOf(sampler).request(sampler, reference, shiftLogits) };
}

/** Every name that {@link parseSampler} knows. */
export const SAMPLER_NAMES: readonly string[] = Object.keys(FORMS);

/** How each is written with its default value, and what it does. */
export const SAMPLER_HELP: readonly (readonly [form: string, text: string])[] = Object.values(FORMS).map(
  ({ help }) => help,
);

/**
 * A sampler out of its short form: a name, then values after colons. A bare value sets the sampler's main option,
 * `name=value` any: "planner", "planner:bernoulli", "planner:1.5" (probabilityScale), "planner-round:1.1",
 * "planner-cut:0.5", "confidence:0.9", "factor:1:lastPair=true", "entropy:0.45", "entropy-sum:0.1",
 * "geometric:0.5:order=random", "fixed:16" (steps), "random:16" (fixed steps, positions at random), "dynamic:0.9",
 * "static:4" (steps of a block), "editing:0.7:editingThreshold=0.5", "d3llm:0.45:blockAddThreshold=0.1",
 * "dream:64:alg=maskgit_plus" (steps), "sub-blocks:0.9:length=8". A comma never occurs in it, so that lists can be split
 * at commas.
 * @returns what was written and nothing else; defaults are filled in where the sampler is used.
 * @throws RangeError naming the part, what was expected and what came.
 */
export function parseSampler(text: string): SamplerObject {
  if (typeof text !== 'string') throw optionError(TypeError, 'sampler', `expected a string, got ${show(text)}`);
  const sampler = samplerObject<never>(text);
  resolveSampler(sampler, true);
  return sampler;
}
