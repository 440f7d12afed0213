// What an autoregressive model is asked: prompts, options, checked, and what comes back.
import { optionError } from '../errors';
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
import { deriveSeed, Purpose } from '../random';
import type { ChatMessage } from '../types';
import type { CausalModel } from './causal-model';
import { stopStrings } from './text-end';

/** A prompt of an autoregressive model: plain text, chat messages for its chat template, or token ids. */
export type CausalPrompt = string | readonly ChatMessage[] | { promptIds: ArrayLike<number> };

/**
 * Options of {@link CausalModel.generateBatch}: those of `generate` that do not choose positions, which an
 * autoregressive model decides one by one, from left to right.
 */
export interface CausalGenerateOptions {
  /** Tokens to generate, at most. Default 128. */
  maxTokens?: number | undefined;
  /** Tokens are drawn at this temperature; 0 takes the most probable token. Default 0. */
  temperature?: number | undefined;
  /** A token is drawn among the `topK` most probable ones, at least 1. Default: all. */
  topK?: number | undefined;
  /** Nucleus sampling, after `topK`, as in `generate`: above 0, at most 1. Default 1: all. */
  topP?: number | undefined;
  /**
   * Seed of every draw, a non-negative integer or bigint below 2^64. Default: with a temperature above 0 another one for
   * each call, which the results name; else 0.
   */
  seed?: number | bigint | undefined;
  /** Index of the first row in the random stream. Default 0. */
  firstRow?: number | undefined;
  /** A row ends with the first token that ends a text. Default true; false: it has all maxTokens of them. */
  stopAtEos?: boolean | undefined;
  /**
   * The text ends before the first of these, which is the one that is complete first, and the row with it: `finishReason`
   * is "stop". Needs a tokenizer. Default: `stop_strings` of the checkpoint's generation_config.json.
   */
  stop?: string | readonly string[] | undefined;
  /** Special tokens that are written in a text or in a message are text like any other, as in `generate`. */
  splitSpecialTokens?: boolean | undefined;
  /** Stops the work; the call rejects with `signal.reason`. */
  signal?: AbortSignal | undefined;
}

/** One generated row. */
export interface CausalResult {
  /** Decoded completion up to the token or stop string that ended it, special tokens skipped; "" without a tokenizer. */
  text: string;
  /** Ids of the completion, with the token that ended it, or those of the stop string. */
  ids: Int32Array;
  promptIds: Int32Array;
  /** The seed of the call, given or drawn. */
  seed: number | bigint;
  /** Forward passes: one per token. */
  nfe: number;
  /** Log-probability of each token, at temperature 1. */
  logProbs: Float32Array;
  /** "stop", at an end-of-sequence token or a stop string; "length", at `maxTokens`. */
  finishReason: 'length' | 'stop';
}

const KEYS = [
  'maxTokens',
  'temperature',
  'topK',
  'topP',
  'seed',
  'firstRow',
  'stopAtEos',
  'stop',
  'splitSpecialTokens',
  'signal',
];

/** Options of `generate` that say nothing to an autoregressive model, and why. */
const OF_DIFFUSION: Readonly<Record<string, string>> = {
  sampler: 'it decides one position per pass, from left to right',
  cache: 'it always caches keys and values, which is exact',
  blockLength: 'it decides one position per pass, from left to right',
  confidence: 'no sampler reads confidences',
  logprobs: 'its results always have logProbs',
  research: 'there is no reference to replay; firstRow is an option by itself',
};

/** Refuses options that there are not. @throws TypeError */
function checkCausalKeys(options: CausalGenerateOptions): void {
  if (typeof options === 'object' && options !== null)
    for (const [key, reason] of Object.entries(OF_DIFFUSION))
      if ((options as Record<string, unknown>)[key] !== undefined)
        throw optionError(TypeError, key, `not for an autoregressive model: ${reason}`);
  const known = Object.keys(OF_DIFFUSION).filter((key) => Object.hasOwn(options ?? {}, key));
  checkKeys('options', options, [...KEYS, ...known]);
}

/** How tokens are drawn. */
export interface Draw {
  temperature: number;
  topK?: number;
  topP?: number;
  seed: bigint;
  firstRow: number;
}

/** Options, checked, with defaults. @param defaultStop the checkpoint's own stop strings @throws TypeError, RangeError */
export function resolveCausalOptions(options: CausalGenerateOptions, defaultStop: readonly string[] | undefined) {
  checkCausalKeys(options);
  const { maxTokens = 128, temperature = 0, topK, topP, firstRow = 0, stopAtEos = true } = options;
  const { splitSpecialTokens, stop = defaultStop, signal } = options;
  checkInteger('maxTokens', maxTokens, { min: 1, max: 1 << 30 });
  checkNumber('temperature', temperature, { min: 0, max: 1e6 });
  checkTokenFilter(topK, topP);
  const { seed = temperature > 0 ? drawSeed() : 0 } = options;
  const drawn = deriveSeed(checkSeed('seed', seed), Purpose.evaluation);
  checkInteger('firstRow', firstRow, { min: 0, max: 2 ** 31 });
  checkChoice('stopAtEos', stopAtEos, [true, false] as const);
  if (splitSpecialTokens !== undefined) checkChoice('splitSpecialTokens', splitSpecialTokens, [true, false] as const);
  checkSignal(signal);
  const draw: Draw = {
    temperature,
    ...(topK !== undefined && { topK }),
    ...(topP !== undefined && topP < 1 && { topP }),
    seed: drawn,
    firstRow,
  };
  return { maxTokens, seed, draw, stopAtEos, splitSpecialTokens, strings: stopStrings(stop), signal };
}
