// An autoregressive model: a baseline for diffusion, and a teacher that scores completions.
import { DUltraError, optionError } from '../errors';
import { type NativeCache, type NativeModel, type NativeModelInfo, native } from '../native';
import { checkInteger, checkKeys, checkNumber, checkSignal } from '../options';
import { concatenate, offsetsOf, packed, packRows } from '../packing';
import { deriveSeed, Purpose } from '../random';
import type { ChatMessage } from '../types';
import type { CausalConfig } from './config';
import { allocateCache } from './kv-cache';
import { decodeIds, encodePrompt } from './prompt';
import type { Tokenizer } from './tokenizer';
import { type ModelTrainer, openTrainer } from './trainer';

/** A prompt of an autoregressive model: text as it stands, chat messages for its template, or token ids. */
export type CausalPrompt = string | ChatMessage[] | { promptIds: ArrayLike<number> };

/** Options of {@link CausalModel.generateBatch}. */
export interface CausalGenerateOptions {
  /** Tokens to generate, at most. Default 128. */
  maxTokens?: number;
  /** 0 (default) takes the most probable token. */
  temperature?: number;
  /** Default 0. */
  seed?: number;
  /** Index of the first row in the random stream. Default 0. */
  firstRow?: number;
  signal?: AbortSignal;
}

/** One generated row. */
export interface CausalResult {
  /** Decoded completion, without the token that ended it. */
  text: string;
  /** Ids of the completion, with the token that ended it. */
  ids: Int32Array;
  promptIds: Int32Array;
  /** Forward passes: one per token. */
  nfe: number;
  /** Log-probability of each token, at temperature 1. */
  logProbs: Float32Array;
  finishReason: 'length' | 'eos';
}

const DEFAULT_BUDGET = 8192;

/** A loaded autoregressive model. Made by `loadCausalModel`; free it with `dispose()`. */
export class CausalModel {
  readonly config: CausalConfig;
  /** null where the checkpoint brings no tokenizer.json. */
  readonly tokenizer: Tokenizer | null;
  /** Folder that it was loaded from. */
  readonly source: string;
  /** Device, instruction set and size. */
  readonly info: NativeModelInfo;
  readonly #native: NativeModel;
  #scorer: Promise<ModelTrainer> | null = null;
  #isDisposed = false;

  /** @internal */
  constructor(parts: { native: NativeModel; config: CausalConfig; tokenizer: Tokenizer | null; source: string }) {
    this.#native = parts.native;
    this.config = parts.config;
    this.tokenizer = parts.tokenizer;
    this.source = parts.source;
    this.info = parts.native.info();
  }

  /** The ids that the model sees for a prompt. @throws TypeError; DUltraError NO_TOKENIZER */
  encodePrompt(prompt: CausalPrompt): Int32Array {
    return encodePrompt(prompt, this);
  }

  /**
   * Log-probability of every token of a completion, given its prompt and the tokens before it: log softmax(logits),
   * temperature 1. Ids are not tokenised again, so that tokens cannot shift at the boundary of prompt and completion.
   * @param rows ids below the model's vocabulary, of prompts of at least one token; rows are independent
   * @param options `tokenBudget`: tokens per forward pass, default 8192 (results do not depend on it)
   * @returns one array per row, as long as its completion
   * @throws RangeError, TypeError for rows; DUltraError DISPOSED, NON_FINITE; `signal.reason`.
   */
  async logProbs(
    rows: readonly { promptIds: ArrayLike<number>; ids: ArrayLike<number> }[],
    options: { tokenBudget?: number; signal?: AbortSignal } = {},
  ): Promise<Float32Array[]> {
    checkKeys('options', options, ['tokenBudget', 'signal']);
    const { tokenBudget = DEFAULT_BUDGET, signal } = options;
    checkInteger('tokenBudget', tokenBudget, { min: 1, max: 1 << 30 });
    checkSignal(signal);
    const scored = rows.map(({ promptIds, ids }, i) => {
      if (promptIds.length === 0)
        throw optionError(RangeError, `rows[${i}].promptIds`, `expected at least one token, got none`);
      const whole = this.#checkRow(`rows[${i}]`, Int32Array.from([...Array.from(promptIds), ...Array.from(ids)]));
      // The token at a position is predicted at the one before.
      const positions = Int32Array.from(ids, (_, j) => promptIds.length + j - 1);
      return { ids: whole, positions, logProbs: new Float32Array(ids.length) };
    });
    const scorer = await this.#openScorer();
    for (const batch of packRows(scored, ({ ids }) => ids.length, tokenBudget)) {
      signal?.throwIfAborted();
      const tokens = batch.map(({ ids, positions }) => positions.map((position) => ids[position + 1]));
      const { logProbs } = await scorer.score({ ...packed(batch), tokens: concatenate(tokens, Int32Array) });
      let at = 0;
      for (const row of batch) {
        row.logProbs.set(logProbs!.subarray(at, at + row.logProbs.length));
        at += row.logProbs.length;
      }
    }
    return scored.map(({ logProbs }) => logProbs);
  }

  /**
   * Continues prompts token by token, until a token that ends a text, on cached keys and values. Row i draws as row
   * `firstRow + i` of the random stream; rows are independent.
   * @throws RangeError, TypeError for options; DUltraError DISPOSED, NO_TOKENIZER, NON_FINITE, OUT_OF_MEMORY;
   * `signal.reason`.
   */
  async generateBatch(prompts: readonly CausalPrompt[], options: CausalGenerateOptions = {}): Promise<CausalResult[]> {
    checkKeys('options', options, ['maxTokens', 'temperature', 'seed', 'firstRow', 'signal']);
    const { maxTokens = 128, temperature = 0, seed = 0, firstRow = 0, signal } = options;
    checkInteger('maxTokens', maxTokens, { min: 1, max: 1 << 30 });
    checkNumber('temperature', temperature, { min: 0, max: 1e6 });
    checkInteger('seed', seed, { min: 0, max: Number.MAX_SAFE_INTEGER });
    checkInteger('firstRow', firstRow, { min: 0, max: 2 ** 31 });
    checkSignal(signal);
    const { eosTokenIds, embeddingSize, maxSequenceLength } = this.config;
    this.#checkUsable();
    const rows = prompts.map((prompt, i) => {
      const promptIds = this.encodePrompt(prompt);
      if (promptIds.length === 0)
        throw optionError(RangeError, `prompts[${i}]`, `expected at least one token, got none`);
      if (promptIds.length + maxTokens > maxSequenceLength)
        throw optionError(
          RangeError,
          `prompts[${i}]`,
          `${promptIds.length} tokens and maxTokens ${maxTokens} are more than the model's maximum of ${maxSequenceLength}`,
        );
      return {
        index: i,
        promptIds,
        whole: Array.from(this.#checkRow(`prompts[${i}]`, promptIds)),
        logProbs: [] as number[],
        isDone: false,
      };
    });
    if (rows.length === 0) return [];
    const lengths = rows.map(({ promptIds }) => promptIds.length + maxTokens);
    const cache = await allocateCache(this.#native, this.config, offsetsOf(lengths), { dtype: 'F32', planner: 'none' });
    try {
      // Keys and values of all but the last token, whose prediction is the first that is wanted.
      await this.#cached(
        cache,
        rows.map(({ whole }) => ({ begin: 0, ids: whole.slice(0, -1) })),
        false,
      );
      for (let step = 0; step < maxTokens; step++) {
        const open = rows.filter(({ isDone }) => !isDone);
        if (open.length === 0) break;
        signal?.throwIfAborted();
        const last = rows.map(({ whole, isDone }) => ({ begin: whole.length - 1, ids: isDone ? [] : whole.slice(-1) }));
        const logits = (await this.#cached(cache, last, true))!;
        const drawn = await native().sample({
          logits,
          vocabSize: embeddingSize,
          temperature,
          temperedLogProb: false,
          excludedToken: -1,
          seed: deriveSeed(BigInt(seed), Purpose.evaluation),
          rows: Uint32Array.from(open, ({ index }) => firstRow + index),
          steps: Uint32Array.from(open, () => step),
          positions: Uint32Array.from(open, ({ whole }) => whole.length),
          threads: this.info.threads,
        });
        open.forEach((row, i) => {
          row.whole.push(drawn.tokens[i]);
          row.logProbs.push(drawn.logProbs[i]);
          row.isDone = eosTokenIds.includes(drawn.tokens[i]);
        });
      }
    } finally {
      cache.dispose();
    }
    return rows.map(({ promptIds, whole, logProbs, isDone }) => {
      const ids = Int32Array.from(whole.slice(promptIds.length));
      const shown = isDone ? ids.subarray(0, -1) : ids;
      return {
        text: decodeIds(shown, this),
        ids,
        promptIds,
        nfe: ids.length,
        logProbs: Float32Array.from(logProbs),
        finishReason: isDone ? 'eos' : 'length',
      };
    });
  }

  /** Frees the weights. Further calls throw DUltraError DISPOSED. */
  dispose(): void {
    this.#isDisposed = true;
    this.#native.dispose();
  }

  /** As {@link CausalModel.dispose}. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.dispose();
  }

  #checkRow(name: string, ids: Int32Array): Int32Array {
    const { embeddingSize, maxSequenceLength } = this.config;
    const at = ids.findIndex((id) => id < 0 || id >= embeddingSize);
    if (at >= 0) throw optionError(RangeError, name, `expected ids from 0 to ${embeddingSize - 1}, got ${ids[at]}`);
    if (ids.length > maxSequenceLength)
      throw optionError(RangeError, name, `expected at most ${maxSequenceLength} tokens, got ${ids.length}`);
    return ids;
  }

  #checkUsable(): void {
    if (this.#isDisposed) throw new DUltraError('DISPOSED', 'this model has been disposed');
  }

  /**
   * A pass over some positions of every row, on what the cache holds of those before: their logits (M, V) if asked for.
   */
  async #cached(
    cache: NativeCache,
    rows: readonly { begin: number; ids: number[] }[],
    logits: boolean,
  ): Promise<Float32Array | null> {
    const ids = Int32Array.from(rows.flatMap((row) => row.ids));
    if (ids.length === 0) return null;
    const positions = Int32Array.from(rows.flatMap((row) => row.ids.map((_, i) => row.begin + i)));
    const offsets = offsetsOf(rows.map((row) => row.ids.length));
    return (await this.#native.forward({ ids, offsets, logits, cache, positions })).logits;
  }

  #openScorer(): Promise<ModelTrainer> {
    this.#checkUsable();
    this.#scorer ??= openTrainer(this.#native, { freezeBase: true, freezePlanner: true });
    return this.#scorer;
  }
}
