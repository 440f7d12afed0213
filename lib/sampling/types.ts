// Events of the denoising loop, and functions as samplers.

/** Why a row ended: "stop", at an end-of-sequence token or a stop string; "length", at `maxTokens`. */
export type FinishReason = 'length' | 'stop';

/**
 * What a custom sampler sees of one row at one step. Arrays are parallel, one entry per candidate, in ascending
 * position.
 */
export interface SamplerCandidates {
  /** Index of the row in the batch. */
  row: number;
  /** Denoising steps this row has taken before this one. */
  step: number;
  /** In-row indices of the masked positions before the end of the current block. */
  positions: Int32Array;
  /** The token drawn for each candidate; at temperature 0 the most probable one. */
  tokens: Int32Array;
  /** Softmax probability of that token; see `confidence` of GenerateOptions. */
  confidences: Float32Array;
  /** Entropy of the prediction, nats; likewise. */
  entropies: Float32Array;
  /** Log-probability of that token. */
  logProbs: Float32Array;
  /** Planner logits, null for a checkpoint without a planner. */
  plannerLogits: Float32Array | null;
  /** Token ids of the row before the step, masks included. */
  ids: Int32Array;
}

/**
 * A sampler of your own: returns the positions (a subset of `candidates.positions`) to unmask now. If it returns none,
 * the most confident position is unmasked. The call that generates rejects with a RangeError for a position that is no
 * candidate, and with a TypeError for a value that is no array.
 */
export type CustomSampler = (candidates: SamplerCandidates) => ArrayLike<number> | Promise<ArrayLike<number>>;

/** What one row did in one step. Arrays are per candidate, in ascending position. */
export interface DenoiseRow {
  /** Index of the row in the batch. */
  row: number;
  /** Current block, from 0. */
  block: number;
  /** 1 − masks / row length before the step: the planner's timestep. */
  timestep: number;
  /** In-row positions that the pass computed; all of them without a cache. */
  computed: Int32Array;
  /** In-row indices of the candidates: masks, and with the sampler editing decided tokens of their block. */
  positions: Int32Array;
  /** The token drawn for each candidate; at temperature 0 the most probable one. */
  tokens: Int32Array;
  /** Log-probability of that token. */
  logProbs: Float32Array;
  /** Softmax probability of that token; see `confidence` of GenerateOptions. */
  confidences: Float32Array;
  /** Entropy of the prediction, nats; likewise. */
  entropies: Float32Array;
  /** Largest minus second largest probability; null unless the sampler reads it (`dream` with "topk_margin"). */
  margins: Float32Array | null;
  /** Raw planner logits; null where no planner ran. */
  plannerLogits: Float32Array | null;
  /** Unmasking probabilities of the planner samplers (above 1 where `probabilityScale` takes them there), else 0. */
  probabilities: Float32Array;
  /** Each candidate's part of the step's log-likelihood (planner samplers), else 0. */
  logLikelihoods: Float32Array;
  /** 1 where the candidate was unmasked; with the sampler editing, also where a decided token became another. */
  selected: Uint8Array;
  /**
   * The sampler selected nothing (d3llm: nothing in the first active block) and one position was unmasked nevertheless.
   */
  forced: boolean;
  /** That position, or -1. */
  forcedPosition: number;
  /** No later pass changes what the completion has before this position of the row: its first mask, without edits. */
  settled: number;
  /** The row's ids after the step. */
  ids: Int32Array;
  /** The row is finished after this step. */
  finished: boolean;
}

/** One forward pass of the batch. */
export interface DenoiseStep {
  /** From 0. */
  step: number;
  /** Rows that took part, ascending. */
  rows: DenoiseRow[];
}
