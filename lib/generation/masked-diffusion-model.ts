// A loaded model: what users hold.
import { DUltraError } from '../errors';
import { Adapter, applyAdapter, readAdapter } from '../model/adapter';
import type { ModelConfig } from '../model/config';
import { allocateCache, cacheBytes, KvCache, type KvCacheOptions, resolveCacheOptions } from '../model/kv-cache';
import { type SaveOptions, saveModel } from '../model/save';
import type { Tokenizer } from '../model/tokenizer';
import { type ModelTrainer, type ModelTrainerOptions, openTrainer } from '../model/trainer';
import { cancellable, type NativeCacheOptions, type NativeModel, type NativeModelInfo, native } from '../native';
import { checkInteger, checkKeys, checkList, checkNumber, checkSignal } from '../options';
import { offsetsOf } from '../packing';
import {
  type Denoisable,
  type DenoiseSettings,
  denoiseRows,
  type RecordedUniforms,
  resolveGenerateOptions,
} from '../sampling/denoise';
import type { RowInput, RowOutcome } from '../sampling/rows';
import type { DenoiseStep, GenerateOptions, GenerateResult, Prompt, StreamEvent } from '../types';
import type { GenerationDefaults } from './generation-config';

/** Default number of generated tokens, where the model has room for twice as many. */
const DEFAULT_GEN_LENGTH = 128;
/** Default block length, where it divides the generated length. */
const DEFAULT_BLOCK_LENGTH = 32;

/** Input of {@link MaskedDiffusionModel.forward}. */
export interface ForwardRequest {
  /** Token ids of all rows, laid end to end (N). With a cache: of those positions that are computed. */
  ids: ArrayLike<number>;
  /** Row b is `rowOffsets[b]` to `rowOffsets[b + 1]` (B + 1). Default: one row. */
  rowOffsets?: ArrayLike<number>;
  /** Also return logits, (N, embeddingSize). Default true. */
  logits?: boolean;
  /** Also run the planner head: a timestep in 0..1 per row (B), and per position (N) whether it is a candidate. */
  planner?: { timestep: ArrayLike<number>; maskIndex: ArrayLike<number | boolean> };
  /**
   * Keys and values are stored in it, and those of positions that are not computed are taken from it. Row b of the ids
   * is row b of the cache; a row may be empty. A planner needs one made with planner "cached".
   */
  cache?: KvCache;
  /** With a cache: the in-row position of each id (N), ascending in each row. Default: whole rows. */
  positions?: ArrayLike<number>;
  /** Stops the work. */
  signal?: AbortSignal;
}

/** Output of {@link MaskedDiffusionModel.forward}; row-major. */
export interface ForwardOutput {
  /** (N, C): hidden states after the final norm, the planner's input. */
  hidden: Float32Array;
  /** (N, embeddingSize), or null. */
  logits: Float32Array | null;
  /** (N) raw planner logits, or null. */
  plannerLogits: Float32Array | null;
}

function checkPlannerRequest(planner: NonNullable<ForwardRequest['planner']>): {
  timestep: Float32Array;
  maskIndex: Uint8Array;
} {
  checkKeys('planner', planner, ['timestep', 'maskIndex']);
  const timestep = checkList('planner.timestep', planner.timestep, (name, value) => {
    checkNumber(name, value, { min: 0, max: 1 });
    return value;
  });
  const maskIndex = checkList('planner.maskIndex', planner.maskIndex, (name, value) => {
    if (typeof value !== 'boolean') checkInteger(name, value, { min: 0, max: 1 });
    return Number(value);
  });
  return { timestep: Float32Array.from(timestep), maskIndex: Uint8Array.from(maskIndex) };
}

/** A prompt as rows of ids with masks. */
interface PreparedRow extends RowInput {
  promptIds: Int32Array;
  isTemplate: boolean;
}

/**
 * A masked diffusion language model (LLaDA, LLaDOU, dUltra) on one device. Made by `loadModel`; free it with
 * `dispose()` or `await using`.
 */
export class MaskedDiffusionModel {
  /** What config.json says. */
  readonly config: ModelConfig;
  /** null for a checkpoint without tokenizer.json: such a model is used by token ids. */
  readonly tokenizer: Tokenizer | null;
  /** The folder that the weights came from. */
  readonly source: string;
  /** Device, instruction set, threads, number of parameters, bytes of weights. */
  readonly info: NativeModelInfo;
  /** What `generate` does where its options say nothing, from generation_config.json. */
  readonly generationDefaults: GenerationDefaults;
  readonly #native: NativeModel;
  readonly #configJson: Record<string, unknown>;
  #disposed = false;

  /** @internal Use `loadModel`. */
  constructor(parts: {
    native: NativeModel;
    config: ModelConfig;
    configJson: Record<string, unknown>;
    tokenizer: Tokenizer | null;
    generationDefaults: GenerationDefaults;
    source: string;
  }) {
    this.#native = parts.native;
    this.config = parts.config;
    this.#configJson = parts.configJson;
    this.tokenizer = parts.tokenizer;
    this.generationDefaults = parts.generationDefaults;
    this.source = parts.source;
    this.info = parts.native.info();
  }

  /** The checkpoint has an unmasking planner head. */
  get hasPlanner(): boolean {
    return this.config.planner !== null;
  }

  /**
   * Completes one prompt.
   * @throws RangeError, TypeError for wrong options; DUltraError NO_PLANNER, NO_TOKENIZER, DISPOSED, NON_FINITE;
   * `signal.reason`.
   */
  async generate(prompt: Prompt, options: GenerateOptions = {}): Promise<GenerateResult> {
    return (await this.generateBatch([prompt], options))[0];
  }

  /**
   * Completes several prompts of any lengths together. Row i equals `generate(prompts[i], { ...options, firstRow:
   * firstRow + i })` bit for bit: rows never influence each other.
   */
  async generateBatch(prompts: readonly Prompt[], options: GenerateOptions = {}): Promise<GenerateResult[]> {
    const { rows, run } = this.#prepare(prompts, options);
    for (;;) {
      const next = await run.next();
      if (next.done) return next.value.map((outcome, i) => this.#result(rows[i], outcome));
    }
  }

  /**
   * Completes one prompt, one event per denoising step; leaving the loop stops the native work. The last event carries
   * the result.
   */
  async *generateStream(prompt: Prompt, options: GenerateOptions = {}): AsyncGenerator<StreamEvent, void, void> {
    const { rows, run } = this.#prepare([prompt], options);
    const origin = rows[0].begin;
    try {
      for (let next = await run.next(); !next.done; ) {
        const row = next.value.rows[0];
        const event: StreamEvent = {
          step: next.value.step,
          unmasked: [],
          ids: row.ids.slice(origin),
          remaining: 0,
          result: null,
        };
        for (let i = 0; i < row.positions.length; i++) {
          if (!row.selected[i]) continue;
          const token = row.tokens[i];
          event.unmasked.push({
            position: row.positions[i] - origin,
            token,
            text: this.#decode([token]),
            probability: row.confidences[i],
          });
        }
        for (const id of row.ids) if (id === this.config.maskTokenId) event.remaining++;
        if (row.finished) {
          next = await run.next();
          if (next.done) event.result = this.#result(rows[0], next.value[0]);
          yield event;
        } else {
          yield event;
          next = await run.next();
        }
      }
    } finally {
      await run.return([]);
    }
  }

  /**
   * The loop itself: one event per forward pass of the batch, with everything the samplers saw. For research;
   * `generate*` are made of it.
   * @param recorded recorded draws in place of generated ones, to replay a recorded run.
   */
  async *denoise(
    prompts: readonly Prompt[],
    options: GenerateOptions = {},
    recorded?: RecordedUniforms,
  ): AsyncGenerator<DenoiseStep, GenerateResult[], void> {
    const { rows, run } = this.#prepare(prompts, options, recorded);
    return (yield* run).map((outcome, i) => this.#result(rows[i], outcome));
  }

  /**
   * One forward pass with its tensors, for inspection and research.
   * @throws RangeError for ids, offsets or shapes that do not fit; DUltraError NO_PLANNER, DISPOSED.
   */
  async forward(request: ForwardRequest): Promise<ForwardOutput> {
    this.#checkUsable();
    checkKeys('request', request, ['ids', 'rowOffsets', 'logits', 'planner', 'cache', 'positions', 'signal']);
    const { signal, planner, cache, logits = true } = request;
    if (cache !== undefined && !(cache instanceof KvCache))
      throw new TypeError(`cache: expected what model.createCache made, got ${String(cache)}`);
    if (cache === undefined && request.positions !== undefined)
      throw new TypeError('positions: expected together with a cache');
    checkSignal(signal);
    signal?.throwIfAborted();
    const ids = this.#checkIds('ids', request.ids);
    const offset = (name: string, value: unknown) => {
      checkInteger(name, value, { min: 0, max: ids.length });
      return value;
    };
    const offsets = Int32Array.from(
      request.rowOffsets === undefined ? [0, ids.length] : checkList('rowOffsets', request.rowOffsets, offset),
    );
    if (planner && !this.hasPlanner) throw new DUltraError('NO_PLANNER', `${this.source} has no planner head`);
    const plannerRequest = planner ? checkPlannerRequest(planner) : null;
    const positions = cache ? this.#forwardPositions(cache, request, ids, offsets) : null;
    const token = new (native().CancelToken)();
    const nativeRequest = { ids, offsets, logits, planner: plannerRequest, cache: cache?.native, positions };
    return cancellable(
      signal,
      () => token.cancel(),
      () => this.#native.forward(nativeRequest, token),
    );
  }

  /**
   * Memory for keys and values of rows, for `forward`; `generate` makes its own (`cache`). Allocated now, whatever is
   * used later.
   * @param rowLengths positions of each row
   * @throws RangeError, TypeError for options; DUltraError OUT_OF_MEMORY stating what is needed and what is free,
   * NO_PLANNER, DISPOSED.
   */
  async createCache(rowLengths: ArrayLike<number>, options: KvCacheOptions = {}): Promise<KvCache> {
    this.#checkUsable();
    const resolved = resolveCacheOptions(options, this.config);
    const lengths = checkList('rowLengths', rowLengths, (name, value) => {
      checkInteger(name, value, { min: 1, max: this.config.maxSequenceLength });
      return value;
    });
    if (lengths.length === 0) throw new RangeError('rowLengths: expected at least one row, got none');
    const cache = await allocateCache(this.#native, this.config, offsetsOf(lengths), resolved);
    return new KvCache(cache, this.config, lengths);
  }

  /**
   * Bytes that a cache of `tokens` positions takes, over all its rows. @throws RangeError, TypeError; DUltraError
   * NO_PLANNER.
   */
  cacheBytes(tokens: number, options: KvCacheOptions = {}): number {
    checkInteger('tokens', tokens, { min: 0, max: Number.MAX_SAFE_INTEGER });
    return cacheBytes(this.config, tokens, resolveCacheOptions(options, this.config));
  }

  /**
   * What training is made of: forward passes that keep their activations, backward passes, and the optimiser. The
   * trainers (`trainMaskedDiffusion`, `trainPlanner`, `GrpoTrainer`) use it; so can losses of your own. One trainer per
   * model at a time.
   * @throws RangeError, TypeError for options; DUltraError OUT_OF_MEMORY, NO_PLANNER, DISPOSED.
   */
  async createTrainer(options: ModelTrainerOptions = {}): Promise<ModelTrainer> {
    this.#checkUsable();
    return openTrainer(this.#native, options);
  }

  /**
   * Writes the model as it stands in the Hugging Face layout: config.json, model.safetensors, and the tokenizer's
   * files. `loadModel` reads it, and so does the reference implementation. Files are replaced atomically.
   * @throws TypeError, RangeError for options; DUltraError WRITE_FAILED where the disk does not take it.
   */
  async save(folder: string, options: SaveOptions = {}): Promise<void> {
    this.#checkUsable();
    const { config, source } = this;
    const weights = async (name: string) => (await this.#native.weights([name]))[0].data;
    await saveModel(folder, { config, configJson: this.#configJson, source, weights }, options);
  }

  /**
   * Loads low-rank adapters from a folder in the layout of PEFT and merges them into the weights. Until the returned
   * handle is disposed, they can be taken out and put back.
   * @throws DUltraError BAD_CHECKPOINT, DISPOSED.
   */
  async loadAdapter(folder: string): Promise<Adapter> {
    this.#checkUsable();
    const files = await readAdapter(folder);
    const planner = this.hasPlanner && files.tensors.some(({ name }) => !/\.lora_[AB]\.weight$/.test(name));
    const trainer = await this.createTrainer({ lora: files.lora, freezePlanner: !planner });
    try {
      await applyAdapter(trainer, files, folder);
    } catch (error) {
      trainer.dispose();
      throw error;
    }
    return new Adapter(trainer, files.lora);
  }

  /** The ids that the model sees for a prompt. @throws TypeError; DUltraError NO_TOKENIZER. */
  encodePrompt(prompt: Exclude<Prompt, { template: unknown }>): Int32Array {
    return this.#promptIds(prompt);
  }

  /** Text of token ids, special tokens skipped; "" without a tokenizer. */
  decode(ids: ArrayLike<number>): string {
    return this.#decode(Array.from(ids));
  }

  /** Frees the weights; work under way finishes first. Further calls throw DUltraError DISPOSED. */
  dispose(): void {
    this.#disposed = true;
    this.#native.dispose();
  }

  /** `dispose()` at the end of an `await using` block. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.dispose();
  }

  #checkUsable(): void {
    if (this.#disposed) throw new DUltraError('DISPOSED', 'this model has been disposed');
  }

  #prepare(
    prompts: readonly Prompt[],
    options: GenerateOptions,
    recorded?: RecordedUniforms,
  ): { rows: PreparedRow[]; run: AsyncGenerator<DenoiseStep, RowOutcome[], void> } {
    this.#checkUsable();
    if (!Array.isArray(prompts)) throw new TypeError(`prompts: expected an array, got ${String(prompts)}`);
    const settings = resolveGenerateOptions(this.#withDefaultSampler(options), this.hasPlanner);
    if (typeof settings.sampler !== 'function' && settings.sampler.type === 'planner' && !this.hasPlanner)
      throw new DUltraError(
        'NO_PLANNER',
        `sampler: ${this.source} has no planner head; use { type: "confidence" } or another sampler`,
      );
    const templates = prompts.filter(
      (prompt) => typeof prompt === 'object' && prompt !== null && 'template' in prompt,
    ).length;
    if (templates > 0 && templates < prompts.length)
      throw new TypeError('prompts: expected templates only or none, got both');
    const rows = prompts.map((prompt) => this.#prepareRow(prompt, options));
    const shape = this.#blockShape(options, settings, rows);
    if (templates > 0) shape.stopAtEos ??= false;
    const { maskTokenId, eosTokenId, hasPlanner } = { ...this.config, hasPlanner: this.hasPlanner };
    const createCache = (offsets: Int32Array, storage: NativeCacheOptions) =>
      allocateCache(this.#native, this.config, offsets, storage);
    const target: Denoisable = { native: this.#native, maskTokenId, eosTokenId, hasPlanner, createCache };
    return { rows, run: denoiseRows(target, rows, shape, recorded) };
  }

  /** In-row positions of a forward pass on a cache. */
  #forwardPositions(cache: KvCache, request: ForwardRequest, ids: Int32Array, offsets: Int32Array): Int32Array {
    const { rowLengths } = cache;
    if (offsets.length !== rowLengths.length + 1)
      throw new RangeError(
        `rowOffsets: expected ${rowLengths.length + 1} numbers, as many rows as the cache has, got ${offsets.length}`,
      );
    if (request.positions === undefined) {
      const whole = rowLengths.every((length, row) => offsets[row + 1] - offsets[row] === length);
      if (!whole)
        throw new RangeError(
          `ids: expected rows of ${rowLengths.join(', ')} tokens, as the cache has, without positions`,
        );
      return Int32Array.from(rowLengths.flatMap((length) => Array.from({ length }, (_, i) => i)));
    }
    const most = Math.max(...rowLengths) - 1;
    const positions = checkList('positions', request.positions, (name, value) => {
      checkInteger(name, value, { min: 0, max: most });
      return value;
    });
    if (positions.length !== ids.length)
      throw new RangeError(`positions: expected one per id (${ids.length}), got ${positions.length}`);
    return Int32Array.from(positions);
  }

  #withDefaultSampler(options: GenerateOptions): GenerateOptions {
    const { sampler } = this.generationDefaults;
    // compat: "reference" is for replaying recorded runs; a checkpoint's wishes have no part in it.
    const wanted = options?.sampler === undefined && sampler !== undefined && options?.compat === undefined;
    return wanted ? { ...options, sampler } : options;
  }

  #genLength(options: GenerateOptions): number {
    const fitting = Math.min(DEFAULT_GEN_LENGTH, Math.max(1, this.config.maxSequenceLength >> 1));
    return options.genLength ?? this.generationDefaults.genLength ?? fitting;
  }

  #blockShape(options: GenerateOptions, settings: DenoiseSettings, rows: PreparedRow[]): DenoiseSettings {
    const templates = rows.some((row) => row.isTemplate);
    const genLength = this.#genLength(options);
    let { blockLength } = settings;
    if (!templates) {
      if (options.genLength === undefined) blockLength ??= this.generationDefaults.blockLength ?? null;
      blockLength ??= genLength % DEFAULT_BLOCK_LENGTH === 0 ? DEFAULT_BLOCK_LENGTH : genLength;
      if (genLength % blockLength !== 0)
        throw new RangeError(`genLength: expected a multiple of blockLength (${blockLength}), got ${genLength}`);
    }
    const { sampler } = settings;
    if (typeof sampler !== 'function' && sampler.type === 'fixed' && sampler.steps !== null) {
      for (const row of rows) {
        const length = row.ids.length - row.begin;
        const blocks = Math.ceil(length / (blockLength ?? length));
        if (sampler.steps % blocks !== 0)
          throw new RangeError(
            `sampler.steps: expected a multiple of the number of blocks (${blocks}), got ${sampler.steps}`,
          );
      }
    }
    return { ...settings, blockLength };
  }

  #prepareRow(prompt: Prompt, options: GenerateOptions): PreparedRow {
    const { maskTokenId, maxSequenceLength } = this.config;
    if (typeof prompt === 'object' && prompt !== null && 'template' in prompt) {
      checkKeys('prompt', prompt, ['template']);
      if (options.genLength !== undefined)
        throw new TypeError('genLength: not allowed with a template, whose masks say what to fill');
      const { template } = prompt;
      const ids =
        typeof template === 'string' ? this.#encode(template, 'template') : this.#checkIds('template', template);
      if (!ids.includes(maskTokenId))
        throw new RangeError(`template: expected at least one mask token (id ${maskTokenId}), got none`);
      if (ids.length > maxSequenceLength)
        throw new RangeError(
          `template: expected at most ${maxSequenceLength} tokens, the model's maximum, got ${ids.length}`,
        );
      return { ids, begin: 0, promptIds: ids, isTemplate: true };
    }
    const promptIds = this.#promptIds(prompt);
    const genLength = this.#genLength(options);
    if (promptIds.length + genLength > maxSequenceLength)
      throw new RangeError(
        `prompt: ${promptIds.length} tokens and genLength ${genLength} make ${promptIds.length + genLength}, more than the model's maximum of ${maxSequenceLength}`,
      );
    const ids = new Int32Array(promptIds.length + genLength).fill(maskTokenId);
    ids.set(promptIds);
    return { ids, begin: promptIds.length, promptIds, isTemplate: false };
  }

  #promptIds(prompt: Exclude<Prompt, { template: unknown }>): Int32Array {
    if (typeof prompt === 'string') return this.#encode(prompt, 'prompt');
    if (Array.isArray(prompt)) {
      const tokenizer = this.#needTokenizer('chat messages');
      for (const message of prompt)
        if (typeof message?.role !== 'string' || typeof message?.content !== 'string')
          throw new TypeError(
            'prompt: expected messages of the form { role, content }, both strings; token ids go in { promptIds }',
          );
      return Int32Array.from(
        tokenizer.encode(tokenizer.applyChatTemplate(prompt, { addGenerationPrompt: true }), {
          addSpecialTokens: false,
        }),
      );
    }
    if (typeof prompt === 'object' && prompt !== null && 'promptIds' in prompt) {
      checkKeys('prompt', prompt, ['promptIds']);
      return this.#checkIds('promptIds', prompt.promptIds);
    }
    throw new TypeError('prompt: expected a string, an array of messages, { promptIds } or { template }');
  }

  #needTokenizer(what: string): Tokenizer {
    if (this.tokenizer) return this.tokenizer;
    throw new DUltraError(
      'NO_TOKENIZER',
      `${this.source} has no tokenizer.json, which ${what} needs; pass { promptIds: [...] } instead`,
    );
  }

  #encode(text: string, what: string): Int32Array {
    return Int32Array.from(this.#needTokenizer(`a text ${what}`).encode(text));
  }

  #decode(ids: number[]): string {
    return this.tokenizer ? this.tokenizer.decode(ids, { skipSpecialTokens: true }) : '';
  }

  #checkIds(name: string, ids: ArrayLike<number>): Int32Array {
    if (ids === null || typeof ids !== 'object' || !Number.isInteger(ids.length) || ids.length < 0)
      throw new TypeError(`${name}: expected an array of token ids, got ${String(ids)}`);
    const last = this.config.embeddingSize - 1;
    for (let i = 0; i < ids.length; i++)
      if (!Number.isInteger(ids[i]) || ids[i] < 0 || ids[i] > last)
        throw new RangeError(`${name}[${i}]: expected 0 to ${last}, got ${ids[i]}`);
    return Int32Array.from(ids);
  }

  #result(row: PreparedRow, outcome: RowOutcome): GenerateResult {
    const { maskTokenId, eosTokenId } = this.config;
    const ids = outcome.ids.slice(row.begin);
    const eos = eosTokenId === null || row.isTemplate ? -1 : ids.indexOf(eosTokenId);
    const tokens = eos < 0 ? ids.length : eos + 1;
    const shown = Array.from(eos < 0 ? ids : ids.subarray(0, eos)).filter((id) => id !== maskTokenId);
    return {
      text: this.#decode(shown),
      ids,
      promptIds: row.promptIds,
      nfe: outcome.nfe,
      fullForwards: outcome.fullForwards,
      tokens,
      tokensPerForward: outcome.nfe > 0 ? tokens / outcome.nfe : 0,
      finishReason: outcome.finishReason,
      unmaskedAt: outcome.unmaskedAt.slice(row.begin),
      logLikelihood: outcome.logLikelihood,
    };
  }
}
