// Options and results of generation.
import type { CachePolicy } from '../sampling/caches';
import type { Sampler } from '../sampling/samplers';
import type { FinishReason } from '../sampling/types';

/** Options of `generate`, `generateBatch`, `generateStream` and `denoise`. */
export interface GenerateOptions {
  /**
   * How positions are chosen. Default: the checkpoint's (generation_config.json), else `{ type: "planner" }` where it
   * has a planner, else `{ type: "confidence" }`.
   */
  sampler?: Sampler;
  /**
   * Keys and values kept between passes: faster, and but for "none" (default) an approximation. Its memory is taken up
   * front.
   */
  cache?: CachePolicy;
  /**
   * Tokens to generate after the prompt. Default: the checkpoint's (generation_config.json), else 128, or half of the
   * model's maximum where that is less. Not allowed with a template.
   */
  genLength?: number;
  /**
   * Tokens per block; blocks are finished left to right. genLength must be a multiple. Default: min(32, genLength);
   * templates: the whole row.
   */
  blockLength?: number;
  /** Token temperature; 0 takes the most probable token. Default 0. */
  temperature?: number;
  /** Seed of every random choice, a non-negative integer or bigint below 2^64. Default 0. */
  seed?: number | bigint;
  /** Index of the first row in the random stream: row i of a batch draws as row `firstRow + i`. Default 0. */
  firstRow?: number;
  /**
   * Finish a row when everything before its first end-of-sequence token is decided. Default true; false for templates.
   */
  stopAtEos?: boolean;
  /** Log-probabilities of drawn tokens at temperature 1 ("untempered", default) or at the sampling temperature. */
  tokenLogProb?: 'untempered' | 'tempered';
  /**
   * Log-likelihood of a planner step that selected nothing and let the most probable position through: "exact"
   * (default) is what happened, every other position kept; "reference" adds log p of the position let through, as the
   * reference implementation does.
   */
  forcedStep?: 'exact' | 'reference';
  /**
   * "reference" reproduces the reference implementations where they differ: rows of a batch advance through blocks
   * together, no stop at end-of-sequence (d3llm stops where `stopAtEos` is given as true), the mask token is a legal
   * prediction of the rival samplers, the factor rule's last pair, the reference's step log-likelihood, and with a
   * cache the empty pass of a finished block; d3llm's candidates are noted before what follows an end of sequence is
   * filled, and so may overwrite it.
   */
  compat?: 'reference';
  /** Stops the work; the call rejects with `signal.reason`. */
  signal?: AbortSignal;
}

/** One generated row. */
export interface GenerateResult {
  /**
   * Decoded completion up to the first end-of-sequence token, special tokens skipped; "" without a tokenizer.
   * Templates: the whole row.
   */
  text: string;
  /**
   * Ids of the completion: all genLength of them (positions after an end-of-sequence stop may still be masked).
   * Templates: the whole row.
   */
  ids: Int32Array;
  /** Prompt ids as the model saw them. */
  promptIds: Int32Array;
  /** Forward passes in which this row unmasked something. */
  nfe: number;
  /** Passes weighted by the share of the row that they computed: what the row cost, in passes without a cache. */
  fullForwards: number;
  /** Tokens of the completion up to and including the first end-of-sequence token. */
  tokens: number;
  /** tokens / nfe. */
  tokensPerForward: number;
  /** Why the row ended. */
  finishReason: FinishReason;
  /**
   * In-step order: `unmaskedAt[i]` is the step (from 1) that decided completion position i, 0 where it was given or
   * never decided.
   */
  unmaskedAt: Int32Array;
  /** Sum of the step log-likelihoods (planner samplers; 0 otherwise). */
  logLikelihood: number;
}

/** One event of `generateStream`. */
export interface StreamEvent {
  /** From 0. */
  step: number;
  /**
   * What this step decided, in ascending position; `position` counts from the start of the completion (templates: of
   * the row).
   */
  unmasked: { position: number; token: number; text: string; probability: number }[];
  /** Ids of the completion as they stand (templates: of the row). */
  ids: Int32Array;
  /** Masked positions left before the row ends. */
  remaining: number;
  /** Set on the last event. */
  result: GenerateResult | null;
}
