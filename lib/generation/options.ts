// Options of generation, checked.
import {
  checkChoice,
  checkInteger,
  checkKeys,
  checkNumber,
  checkSeed,
  checkSignal,
  checkTokenFilter,
  drawSeed,
} from '../options';
import { resolveCache } from '../sampling/caches';
import { resolveSampler } from '../sampling/samplers';
import type { DenoiseSettings } from '../sampling/settings';
import type { GenerateOptions } from './types';

const GENERATE_KEYS = [
  'sampler',
  'cache',
  'maxTokens',
  'blockLength',
  'temperature',
  'topK',
  'topP',
  'confidence',
  'seed',
  'stopAtEos',
  'stop',
  'schema',
  'pattern',
  'hole',
  'logprobs',
  'splitSpecialTokens',
  'research',
  'signal',
] as const;

const RESEARCH_KEYS = ['firstRow', 'tokenLogProb', 'forcedStep', 'compat'] as const;

/**
 * Checks everything in {@link GenerateOptions} that does not depend on a prompt.
 * @throws TypeError, RangeError naming the option.
 */
export function resolveGenerateOptions(options: GenerateOptions, hasPlanner: boolean): DenoiseSettings {
  checkKeys('options', options, GENERATE_KEYS);
  const {
    maxTokens,
    blockLength,
    temperature = 0,
    topK,
    topP,
    confidence,
    seed = 0,
    stopAtEos,
    splitSpecialTokens,
    logprobs,
    research = {},
    signal,
  } = options;
  checkKeys('research', research, RESEARCH_KEYS);
  const { firstRow = 0, tokenLogProb = 'untempered', forcedStep, compat } = research;
  if (maxTokens !== undefined) checkInteger('maxTokens', maxTokens, { min: 1 });
  if (blockLength !== undefined) checkInteger('blockLength', blockLength, { min: 1 });
  checkNumber('temperature', temperature, { min: 0, max: 1e6 });
  checkTokenFilter(topK, topP);
  if (confidence !== undefined) checkChoice('confidence', confidence, ['untempered', 'tempered', 'filtered'] as const);
  checkInteger('research.firstRow', firstRow, { min: 0, max: 2 ** 32 - 1 });
  if (stopAtEos !== undefined) checkChoice('stopAtEos', stopAtEos, [true, false] as const);
  if (logprobs !== undefined) checkChoice('logprobs', logprobs, [true, false] as const);
  if (splitSpecialTokens !== undefined) checkChoice('splitSpecialTokens', splitSpecialTokens, [true, false] as const);
  checkChoice('research.tokenLogProb', tokenLogProb, ['untempered', 'tempered'] as const);
  if (forcedStep !== undefined) checkChoice('research.forcedStep', forcedStep, ['exact', 'reference'] as const);
  if (compat !== undefined) checkChoice('research.compat', compat, ['reference'] as const);
  checkSignal(signal);
  return {
    sampler: resolveSampler(options.sampler, hasPlanner),
    cache: resolveCache(options.cache),
    blockLength: blockLength ?? null,
    temperature,
    topK: topK ?? null,
    topP: topP ?? 1,
    scores: confidence ?? null,
    topPFirst: false,
    finishesBlock: false,
    seed: checkSeed('seed', seed),
    firstRow,
    stopAtEos: stopAtEos ?? null,
    tempered: tokenLogProb === 'tempered',
    referenceLikelihood: (forcedStep ?? (compat === 'reference' ? 'reference' : 'exact')) === 'reference',
    reference: compat === 'reference',
    signal,
  };
}

/**
 * Options with a seed of its own for each call that draws tokens and was given none, so that a text asked for again is
 * another. Recorded runs of the reference (`research.compat`) keep the default.
 */
export function withDrawnSeed(options: GenerateOptions): GenerateOptions {
  const draws =
    options?.seed === undefined && options?.research?.compat === undefined && (options?.temperature ?? 0) > 0;
  return draws ? { ...options, seed: drawSeed() } : options;
}
