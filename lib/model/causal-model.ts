// An autoregressive model: a baseline for diffusion, and a teacher that scores completions.
import { DUltraError, optionError } from '../errors';
import {
  cancellable,
  type NativeCache,
  type NativeModel,
  type NativeModelInfo,
  type NativeStepRequest,
  native,
  StepResult,
} from '../native';
import { checkInteger, checkKeys, checkSignal } from '../options';
import { concatenate, offsetsOf, packed, packPositions, packRows } from '../packing';
import { show } from '../text';
import { type Answer, type AnswerScore, answerIds, scoreOf } from './answer-score';
import {
  type CausalGenerateOptions,
  type CausalPrompt,
  type CausalResult,
  type Draw,
  resolveCausalOptions,
} from './causal-options';
import type { CausalConfig } from './config';
import { allocateCache } from './kv-cache';
import { decodeIds, encodePrompt } from './prompt';
import { indexOfEnd, TextEnd } from './text-end';
import type { Tokenizer } from './tokenizer';
import { type ModelTrainer, openTrainer } from './trainer';

const DEFAULT_BUDGET = 8192;

/** A row that is continued. */
interface CausalRow {
  index: number;
  promptIds: Int32Array;
  /** Prompt and completion; what lies behind `length` is not read. */
  ids: Int32Array;
  /** Where it lies in the cache. */
  begin: number;
  length: number;
  /** Positions before it are in the cache. */
  computed: number;
  logProbs: number[];
  /** Why nothing follows; null while something does. */
  ended: boolean;
}

/** A step that computes what is new of each row and draws the token that follows. */
function nextTokens(
  rows: readonly CausalRow[],
  step: number,
  cache: NativeCache,
  { firstRow, seed, ...draw }: Draw,
): NativeStepRequest {
  const { offsets, positions: ids } = packPositions(rows.map((row) => row.ids));
  const fresh = rows.map(({ computed, length }) =>
    Int32Array.from({ length: length - computed }, (_, i) => computed + i),
  );
  return {
    ids,
    offsets,
    windowEnds: Int32Array.from(rows, ({ length }) => length),
    candidates: packPositions(rows.map(({ length }) => Int32Array.of(length - 1))),
    cached: { cache, begins: Int32Array.from(rows, ({ begin }) => begin), ...packPositions(fresh) },
    rowKeys: Uint32Array.from(rows, ({ index }) => firstRow + index),
    steps: new Uint32Array(rows.length).fill(step),
    seeds: new BigUint64Array(rows.length).fill(seed),
    rules: [{ ...draw, rule: 'none' }],
  };
}

/** A loaded autoregressive model. Made by `loadCausalModel`; free it with `dispose()` or `using`. */
export class CausalModel {
  readonly config: CausalConfig;
  /** null where the checkpoint brings no tokenizer.json. */
  readonly tokenizer: Tokenizer | null;
  /** Folder that it was loaded from. */
  readonly source: string;
  /** What `generateBatch` does where it is told nothing: `stop_strings` of generation_config.json. */
  readonly generationDefaults: { readonly stop?: readonly string[] | undefined };
  /** Device, instruction set and size. */
  readonly info: NativeModelInfo;
  readonly #native: NativeModel;
  #scorer: Promise<ModelTrainer> | null = null;
  #isDisposed = false;

  /** @internal */
  constructor(parts: {
    native: NativeModel;
    config: CausalConfig;
    tokenizer: Tokenizer | null;
    generationDefaults: CausalModel['generationDefaults'];
    source: string;
  }) {
    this.#native = parts.native;
    this.config = parts.config;
    this.tokenizer = parts.tokenizer;
    this.generationDefaults = parts.generationDefaults;
    this.source = parts.source;
    this.info = parts.native.info();
  }

  /**
   * The ids that the model sees for a prompt. @param splitSpecialTokens as in {@link CausalGenerateOptions}
   * @throws TypeError; DUltraError NO_TOKENIZER
   */
  encodePrompt(
    prompt: CausalPrompt,
    { splitSpecialTokens }: { splitSpecialTokens?: boolean | undefined } = {},
  ): Int32Array {
    if (typeof prompt === 'object' && prompt !== null && ('template' in prompt || 'form' in prompt))
      throw optionError(
        TypeError,
        'prompt',
        'expected a string, an array of messages or { promptIds }: an autoregressive model has no masks to fill',
      );
    return encodePrompt(prompt, this, { splitSpecialTokens });
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
    options: { tokenBudget?: number | undefined; signal?: AbortSignal | undefined } = {},
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
   * How probable a given answer is: its exact log-likelihood, the sum of `logProbs`. The answer is what stands behind the
   * prompt, without an end of sequence unless its ids have one.
   * @throws RangeError, TypeError for prompt and answer; DUltraError NO_TOKENIZER, DISPOSED, NON_FINITE; `signal.reason`.
   */
  async score(
    prompt: CausalPrompt,
    answer: Answer,
    options: { signal?: AbortSignal | undefined } = {},
  ): Promise<AnswerScore> {
    checkKeys('options', options, ['signal']);
    const promptIds = this.encodePrompt(prompt);
    const ids = answerIds(this, promptIds, answer);
    const [logProbs] = await this.logProbs([{ promptIds, ids }], options);
    return scoreOf(this.source, 'exact', logProbs);
  }

  /**
   * Continues prompts token by token, until a token or a stop string that ends a text, on cached keys and values. Row i
   * draws as row `firstRow + i` of the random stream; rows are independent.
   * @throws RangeError, TypeError for options; DUltraError DISPOSED, NO_TOKENIZER, NON_FINITE, OUT_OF_MEMORY;
   * `signal.reason`.
   */
  async generateBatch(prompts: readonly CausalPrompt[], options: CausalGenerateOptions = {}): Promise<CausalResult[]> {
    const { maxTokens, seed, draw, stopAtEos, splitSpecialTokens, strings, signal } = resolveCausalOptions(
      options,
      this.generationDefaults.stop,
    );
    if (!Array.isArray(prompts)) throw optionError(TypeError, 'prompts', `expected an array, got ${show(prompts)}`);
    const end = strings.length === 0 ? null : new TextEnd(this, strings);
    this.#checkUsable();
    const rows = prompts.map((prompt, index) => this.#openRow(prompt, index, maxTokens, splitSpecialTokens));
    if (rows.length === 0) return [];
    const offsets = offsetsOf(rows.map(({ ids }) => ids.length));
    for (const row of rows) row.begin = offsets[row.index];
    const cache = await allocateCache(this.#native, this.config, offsets, { dtype: 'F32', planner: 'none' });
    const token = new (native().CancelToken)();
    try {
      for (let step = 0; step < maxTokens; step++) {
        const open = rows.filter(({ ended }) => !ended);
        if (open.length === 0) break;
        const buffer = await cancellable(
          signal,
          () => token.cancel(),
          () => this.#native.step(nextTokens(open, step, cache, draw), token),
        );
        const result = new StepResult(buffer, open.length);
        for (const [i, row] of open.entries()) {
          const failure = result.failure(i, draw.firstRow + row.index);
          if (failure) throw failure;
          const { tokens, logProbs } = result.row(i);
          row.computed = row.length;
          row.ids[row.length++] = tokens[0];
          row.logProbs.push(logProbs[0]);
          if (stopAtEos && this.config.eosTokenIds.includes(tokens[0])) row.ended = true;
          else if (end?.isIn(row.ids.subarray(row.promptIds.length, row.length))) row.ended = true;
        }
      }
    } finally {
      cache.dispose();
    }
    return rows.map((row) => ({ ...this.#resultOf(row, end), seed }));
  }

  /** Frees the weights. Further calls throw DUltraError DISPOSED. */
  dispose(): void {
    this.#isDisposed = true;
    this.#native.dispose();
  }

  /** `dispose()` at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** `dispose()` at the end of an `await using` block. */
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

  #openRow(prompt: CausalPrompt, index: number, maxTokens: number, splitSpecialTokens: boolean | undefined): CausalRow {
    const name = `prompts[${index}]`;
    const promptIds = this.#checkRow(name, this.encodePrompt(prompt, { splitSpecialTokens }));
    const { maxSequenceLength } = this.config;
    if (promptIds.length === 0) throw optionError(RangeError, name, 'expected at least one token, got none');
    if (promptIds.length + maxTokens > maxSequenceLength)
      throw optionError(
        RangeError,
        name,
        `${promptIds.length} tokens and maxTokens ${maxTokens} are more than the model's maximum of ${maxSequenceLength}`,
      );
    const ids = new Int32Array(promptIds.length + maxTokens);
    ids.set(promptIds);
    return { index, promptIds, ids, begin: 0, length: promptIds.length, computed: 0, logProbs: [], ended: false };
  }

  #resultOf(
    { promptIds, ids: all, length, logProbs, ended }: CausalRow,
    end: TextEnd | null,
  ): Omit<CausalResult, 'seed'> {
    const ids = all.slice(promptIds.length, length);
    // The last token can complete a stop string that was open before it.
    const cut = end?.cut(ids) ?? null;
    const eos = indexOfEnd(ids, this.config.eosTokenIds);
    return {
      text: cut?.text ?? decodeIds(eos < 0 ? ids : ids.subarray(0, eos), this),
      ids,
      promptIds,
      nfe: ids.length,
      logProbs: Float32Array.from(logProbs),
      finishReason: cut || ended ? 'stop' : 'length',
    };
  }

  #openScorer(): Promise<ModelTrainer> {
    this.#checkUsable();
    this.#scorer ??= openTrainer(this.#native, { freezeBase: true, freezePlanner: true });
    return this.#scorer;
  }
}
