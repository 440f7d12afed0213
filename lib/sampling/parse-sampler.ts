// Samplers as short text, for command lines and config files: "confidence:0.9".
import { checkChoice } from '../options';
import type { SamplerObject } from '../types';
import { resolveSampler } from './samplers';

/** How one name is written: what it stands for, what a bare value sets, and the options that can follow as name=value. */
interface Form {
  base: SamplerObject;
  /** The option that a value without a name sets. */
  main: string;
  /** Another one, for values that are numbers. */
  mainNumber?: string;
  options: Readonly<Record<string, 'number' | 'boolean' | 'text'>>;
}

/** A new sampler, or a new option of one, is a line here; values are checked where samplers given as objects are. */
const FORMS: Readonly<Record<string, Form>> = {
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
};

/** Every name that {@link parseSampler} knows. */
export const SAMPLER_NAMES: readonly string[] = Object.keys(FORMS);

function parseValue(name: string, text: string, kind: Form['options'][string]): number | boolean | string {
  if (kind === 'text') return text;
  if (kind === 'boolean') {
    checkChoice(name, text, ['true', 'false'] as const);
    return text === 'true';
  }
  const value = text.trim() === '' ? Number.NaN : Number(text);
  if (Number.isNaN(value)) throw new RangeError(`${name}: expected a number, got ${JSON.stringify(text)}`);
  return value;
}

/**
 * A sampler out of its short form: a name, then values after colons. A bare value sets the sampler's main option, `name=value` any:
 * "planner", "planner:bernoulli", "planner:1.5" (probabilityScale), "planner-round:1.1", "planner-cut:0.5", "confidence:0.9",
 * "factor:1:lastPair=true", "entropy:0.45", "entropy-sum:0.1", "geometric:0.5:order=random", "fixed:16" (steps), "random:16" (fixed steps,
 * positions at random). A comma never occurs in it, so that lists can be split at commas.
 * @returns what was written and nothing else; defaults are filled in where the sampler is used.
 * @throws RangeError naming the part, what was expected and what came.
 */
export function parseSampler(text: string): SamplerObject {
  if (typeof text !== 'string') throw new TypeError(`sampler: expected a string, got ${String(text)}`);
  const [name, ...parts] = text.trim().split(':');
  if (!Object.hasOwn(FORMS, name))
    throw new RangeError(
      `sampler: expected ${SAMPLER_NAMES.join(', ')}, with a value as in "confidence:0.9" where wanted, got ${JSON.stringify(text)}`,
    );
  const { base, main, mainNumber, options } = FORMS[name];
  const given: Record<string, unknown> = {};
  for (const part of parts) {
    const equals = part.indexOf('=');
    const bare = mainNumber && part.trim() !== '' && !Number.isNaN(Number(part)) ? mainNumber : main;
    const option = equals < 0 ? bare : part.slice(0, equals);
    if (!Object.hasOwn(options, option))
      throw new RangeError(
        `sampler: ${name} takes ${Object.keys(options).join(', ')}; got ${JSON.stringify(option)} in ${JSON.stringify(text)}`,
      );
    if (Object.hasOwn(given, option)) throw new RangeError(`sampler: ${option} is given twice in ${JSON.stringify(text)}`);
    given[option] = parseValue(`sampler.${option}`, part.slice(equals + 1), options[option]);
  }
  const sampler = { ...base, ...given } as SamplerObject;
  resolveSampler(sampler, true);
  return sampler;
}
