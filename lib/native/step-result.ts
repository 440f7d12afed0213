// The results of a native step: one buffer, which a small model's step feels less than a dozen arrays made by native code.
import { DUltraError } from '../errors';

/** What a step says of one row. Arrays are per candidate, at ascending positions; views of the step's buffer. */
export interface StepRow {
  /** 1 - masks / row length, before the step. */
  timestep: number;
  positions: Int32Array;
  tokens: Int32Array;
  logProbs: Float32Array;
  confidences: Float32Array;
  entropies: Float32Array;
  /** Largest minus second largest probability; null unless the rule reads it. */
  margins: Float32Array | null;
  plannerLogits: Float32Array | null;
  probabilities: Float32Array;
  logLikelihoods: Float32Array;
  selected: Uint8Array;
  /** The rule selected nothing, and one position was unmasked nevertheless. */
  forced: boolean;
}

/** The error of a row, out of what native/model/step.h has as `non_finite`. @param row as the message names it */
function failureOf(code: number, row: number): DUltraError | null {
  if (code < 0) return null;
  const position = code >> 1;
  return new DUltraError(
    'NON_FINITE',
    code & 1
      ? `the planner produced a NaN or infinite logit at position ${position}`
      : `the model produced a NaN or infinite logit in row ${row} at position ${position}`,
  );
}

/** Numbers per candidate between `positions` and `selected`, without the planner's logits. */
const PER_CANDIDATE = 7;

/**
 * Reads the buffer of a step over R rows with M candidates, which native/addon/step.cc writes, in this order: offsets
 * (R + 1), timesteps (R) and which rows failed (R); positions, tokens, logProbs, confidences, entropies, plannerLogits where the planner ran,
 * probabilities, logLikelihoods and, where the rule reads them, margins (M); the log-probabilities of P scored tokens;
 * selected (M) and forced (R), of one byte.
 */
export class StepResult {
  readonly #buffer: ArrayBuffer;
  readonly #offsets: Int32Array;
  readonly #timesteps: Float32Array;
  readonly #failures: Int32Array;
  readonly #hasPlanner: boolean;
  readonly #hasMargins: boolean;
  /** (P) log-probabilities of scored tokens. */
  readonly scores: Float32Array;

  constructor(buffer: ArrayBuffer, rows: number, hasMargins = false, scored = 0) {
    this.#buffer = buffer;
    this.#offsets = new Int32Array(buffer, 0, rows + 1);
    this.#timesteps = new Float32Array(buffer, 4 * (rows + 1), rows);
    this.#failures = new Int32Array(buffer, 4 * (2 * rows + 1), rows);
    const m = this.#offsets[rows];
    this.#hasMargins = hasMargins;
    const words = 3 * rows + 1 + (PER_CANDIDATE + Number(hasMargins)) * m + scored;
    this.#hasPlanner = buffer.byteLength > 4 * words + m + rows;
    this.scores = new Float32Array(buffer, 4 * (words - scored + (this.#hasPlanner ? m : 0)), scored);
  }

  /** NON_FINITE where the model gave row r no numbers. @param name of the row in the message */
  failure(r: number, name: number): DUltraError | null {
    return failureOf(this.#failures[r], name);
  }

  row(r: number): StepRow {
    const buffer = this.#buffer;
    const rows = this.#timesteps.length;
    const m = this.#offsets[rows];
    const first = this.#offsets[r];
    const count = this.#offsets[r + 1] - first;
    // Bytes of the first array's part; the others follow at equal distances.
    const at = 4 * (3 * rows + 1 + first);
    const next = 4 * m;
    const planner = this.#hasPlanner ? 1 : 0;
    const words = 3 * rows + 1 + (PER_CANDIDATE + planner + Number(this.#hasMargins)) * m;
    const bytes = 4 * (words + this.scores.length);
    return {
      timestep: this.#timesteps[r],
      positions: new Int32Array(buffer, at, count),
      tokens: new Int32Array(buffer, at + next, count),
      logProbs: new Float32Array(buffer, at + 2 * next, count),
      confidences: new Float32Array(buffer, at + 3 * next, count),
      entropies: new Float32Array(buffer, at + 4 * next, count),
      plannerLogits: planner ? new Float32Array(buffer, at + 5 * next, count) : null,
      probabilities: new Float32Array(buffer, at + (5 + planner) * next, count),
      logLikelihoods: new Float32Array(buffer, at + (6 + planner) * next, count),
      margins: this.#hasMargins ? new Float32Array(buffer, at + (7 + planner) * next, count) : null,
      selected: new Uint8Array(buffer, bytes + first, count),
      forced: new Uint8Array(buffer, bytes + m, rows)[r] !== 0,
    };
  }
}

/** What a step selected of one row; arrays are per selected candidate, at ascending positions. */
export type SelectedRow = Pick<StepRow, 'positions' | 'tokens' | 'logProbs' | 'confidences' | 'probabilities'> & {
  /** Of all candidates; empty for rules without likelihoods. */
  logLikelihoods: Float32Array;
};

const NO_NUMBERS = new Float32Array(0);

/**
 * Reads the buffer of a step over R rows with `selectedOnly`, of S selected candidates, in this order: offsets (R + 1)
 * and which rows failed (R); positions, tokens, logProbs, confidences and probabilities (S); of planner rules the offsets
 * (R + 1) of the candidates and their logLikelihoods; the log-probabilities of P scored tokens.
 */
export class SelectedResult {
  readonly #words: Int32Array;
  readonly #floats: Float32Array;
  readonly #rows: number;
  /** (P) log-probabilities of scored tokens. */
  readonly scores: Float32Array;

  constructor(buffer: ArrayBuffer, rows: number, scored = 0) {
    this.#words = new Int32Array(buffer);
    this.#floats = new Float32Array(buffer);
    this.#rows = rows;
    this.scores = this.#floats.subarray(this.#floats.length - scored);
  }

  /** NON_FINITE where the model gave row r no numbers. @param name of the row in the message */
  failure(r: number, name: number): DUltraError | null {
    return failureOf(this.#words[this.#rows + 1 + r], name);
  }

  row(r: number): SelectedRow {
    const words = this.#words;
    const floats = this.#floats;
    const rows = this.#rows;
    const count = words[rows];
    const from = 2 * rows + 1 + words[r];
    const to = 2 * rows + 1 + words[r + 1];
    const likelihoods = 2 * rows + 1 + 5 * count;
    const values = likelihoods + rows + 1;
    return {
      positions: words.subarray(from, to),
      tokens: words.subarray(from + count, to + count),
      logProbs: floats.subarray(from + 2 * count, to + 2 * count),
      confidences: floats.subarray(from + 3 * count, to + 3 * count),
      probabilities: floats.subarray(from + 4 * count, to + 4 * count),
      logLikelihoods:
        words.length - this.scores.length > likelihoods
          ? floats.subarray(values + words[likelihoods + r], values + words[likelihoods + r + 1])
          : NO_NUMBERS,
    };
  }
}
