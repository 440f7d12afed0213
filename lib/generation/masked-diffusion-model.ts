// The public handle of a loaded model.
import { createHash } from 'node:crypto';
import { type DecideOptions, type DecisionState, type Decisions, decide } from '../decisions/decide';
import type { DecisionSettings } from '../decisions/file';
import type { Question } from '../decisions/questions';
import type { StoredDType } from '../dtypes';
import { DUltraError, optionError } from '../errors';
import { Adapter, applyAdapter, checkAdaptable, readAdapter } from '../model/adapter';
import type { Answer, AnswerScore } from '../model/answer-score';
import type { ModelConfig } from '../model/config';
import { type ForwardOutput, type ForwardRequest, runForward } from '../model/forward';
import { allocateCache, checkFirstBlocks, KvCache, type KvCacheOptions, resolveCacheOptions } from '../model/kv-cache';
import { savePlannerHead } from '../model/planner-head';
import { decodeIds, encodePrompt } from '../model/prompt';
import { type SaveOptions, saveModel } from '../model/save';
import type { Tokenizer } from '../model/tokenizer';
import { type ModelTrainer, type ModelTrainerOptions, openTrainer, resolveLora } from '../model/trainer';
import { type NativeModel, type NativeModelInfo, native } from '../native';
import { checkChoice, checkInteger, checkKeys, checkList } from '../options';
import { offsetsOf } from '../packing';
import { Engine } from '../sampling/engine';
import type { EngineOptions } from '../sampling/engine-options';
import type { RecordedUniforms } from '../sampling/settings';
import type { DenoiseStep } from '../sampling/types';
import type { PlainPrompt, Prompt } from '../types';
import { type ChatOptions, ChatSession } from './chat';
import { type Choice, choose } from './choose';
import { Encoding } from './encoding';
import { denoise, generateBatch, generateStream, textStream } from './generate';
import type { GenerationDefaults } from './generation-config';
import type { GeneratingModel } from './prepare';
import { type AnswerScoreOptions, score } from './score';
import type { GenerateOptions, GenerateResult, StreamEvent } from './types';

/**
 * A masked diffusion language model (LLaDA, LLaDOU, dUltra) on one device. Made by `loadModel`; free it with
 * `dispose()` or `using`.
 */
export class MaskedDiffusionModel {
  /** Shapes and constants from config.json. */
  readonly config: ModelConfig;
  /** null for a checkpoint without tokenizer.json: such a model is used by token ids. */
  readonly tokenizer: Tokenizer | null;
  /** The folder that the weights came from. */
  readonly source: string;
  /** The type that the weights have in the checkpoint's files; `dtype` of `loadModel` may hold them in another. */
  readonly storedDtype: StoredDType;
  /** Device, instruction set, threads, number of parameters, bytes of weights. */
  readonly info: NativeModelInfo;
  /** Defaults of the options of `generate`, from generation_config.json. */
  readonly generationDefaults: GenerationDefaults;
  /** How `decide` asks, from decision.json or built in; questions that the checkpoint knows, and its calibration. */
  readonly decisions: DecisionSettings;
  readonly #native: NativeModel;
  readonly #engine: Engine;
  readonly #encoding: Encoding;
  readonly #configJson: Record<string, unknown>;
  #disposed = false;
  /** Hash of weights that nothing has changed so far. */
  #hash: Promise<string> | null = null;
  /** There has been a trainer, which may change them at any time. */
  #mayChange = false;

  /** @internal Use `loadModel`. */
  constructor(parts: {
    native: NativeModel;
    config: ModelConfig;
    configJson: Record<string, unknown>;
    tokenizer: Tokenizer | null;
    generationDefaults: GenerationDefaults;
    decisions: DecisionSettings;
    source: string;
    storedDtype: StoredDType;
    engine: EngineOptions;
  }) {
    this.#native = parts.native;
    this.#engine = new Engine(parts, parts.engine);
    this.#encoding = new Encoding(parts);
    this.config = parts.config;
    this.#configJson = parts.configJson;
    this.tokenizer = parts.tokenizer;
    this.generationDefaults = parts.generationDefaults;
    this.decisions = parts.decisions;
    this.source = parts.source;
    this.storedDtype = parts.storedDtype;
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
   * Completes several prompts of any lengths together. Row i equals `generate(prompts[i], { ...options, research:
   * { firstRow: i } })` bit for bit: rows never influence each other.
   */
  async generateBatch(prompts: readonly Prompt[], options: GenerateOptions = {}): Promise<GenerateResult[]> {
    return generateBatch(this.#parts(), prompts, options);
  }

  /**
   * Completes one prompt, one event per denoising step; leaving the loop stops the native work. The last event carries
   * the result.
   */
  async *generateStream(prompt: Prompt, options: GenerateOptions = {}): AsyncGenerator<StreamEvent, void, void> {
    yield* generateStream(this.#parts(), prompt, options);
  }

  /**
   * Completes one prompt, as pieces of text that follow each other: the `delta` of each event of `generateStream`, where
   * it is not empty. Together they are the `text` of the result. A model without a tokenizer gives none.
   */
  async *textStream(prompt: Prompt, options: GenerateOptions = {}): AsyncGenerator<string, void, void> {
    yield* textStream(this.#parts(), prompt, options);
  }

  /**
   * A chat that keeps its messages, with the checkpoint's chat template. `model.chat(JSON.parse(saved))` goes on with
   * one whose JSON was saved.
   * @throws TypeError, RangeError for options; DUltraError NO_TOKENIZER for a model without a chat template.
   */
  chat(options: ChatOptions = {}): ChatSession {
    return new ChatSession(this, options);
  }

  /**
   * Answers questions about a state, each with a probability for every option: whether something is so, which of some
   * options it is, or which level. All questions are asked together, each in a row of its own, so that no answer depends
   * on the others: adding, leaving out or reordering questions changes no bit of one.
   *
   * Probabilities are as good as the model knows this form of question, which `optionMass` says something about; they are
   * not called calibrated (`calibrated`) without a calibration of this checkpoint, made by `dultra calibrate`.
   * @param state a text, a value that the model reads as JSON, or messages of a chat. One that is too long is refused
   * @param questions by name; `model.decisions.questions` are those that the checkpoint was trained on
   * @throws TypeError, RangeError for options, questions, and for a state that does not fit; DUltraError NO_TOKENIZER,
   * NON_FINITE, OVERLOADED, OUT_OF_MEMORY, DISPOSED; `signal.reason`.
   */
  async decide(
    state: DecisionState,
    questions: Readonly<Record<string, Question>>,
    options: DecideOptions = {},
  ): Promise<Decisions> {
    return decide(this.#parts(), state, questions, options);
  }

  /**
   * Decides between given answers: probabilities instead of a text.
   *
   * Options are whole answers, such as "Yes." and "No.". The score of one is the log-probability of its tokens from left
   * to right, each with what follows it masked. All of them are computed in one batch, and single tokens in one row: then
   * the probabilities are the softmax over those tokens. Each option is scored among answers of its own length, so
   * options of equal length compare best.
   * @throws TypeError, RangeError for options; DUltraError NO_TOKENIZER, DISPOSED.
   */
  async choose(prompt: PlainPrompt, options: readonly string[]): Promise<Choice> {
    return choose(this.#parts(), prompt, options);
  }

  /**
   * How probable a given answer is: a score of its log-likelihood, by the `method` of {@link AnswerScoreOptions}. Scores
   * of one method and equal lengths compare best; `choose` gives probabilities of several answers.
   *
   * The answer is what stands behind the prompt, without an end of sequence unless its ids have one. The mask token is
   * left out of the softmax, as in generation.
   * @throws RangeError, TypeError for options, and for a model that attends by blocks; DUltraError NO_TOKENIZER,
   * NON_FINITE, OUT_OF_MEMORY, DISPOSED; `signal.reason`.
   */
  async score(prompt: PlainPrompt, answer: Answer, options: AnswerScoreOptions = {}): Promise<AnswerScore> {
    return score(this.#parts(), prompt, answer, options);
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
    return yield* denoise(this.#parts(), prompts, options, recorded);
  }

  /**
   * One forward pass with its tensors, for inspection and research.
   * @throws RangeError for ids, offsets or shapes that do not fit; DUltraError NO_PLANNER, DISPOSED.
   */
  async forward(request: ForwardRequest): Promise<ForwardOutput> {
    return runForward(this.#parts(), request);
  }

  /**
   * A cache of the keys and values of rows, for `forward`; `generate` makes its own (`cache`). All memory is allocated
   * at once.
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
    if (lengths.length === 0) throw optionError(RangeError, 'rowLengths', 'expected at least one row, got none');
    const firstBlocks = checkFirstBlocks(options.firstBlocks, lengths.length, this.config);
    const cache = await allocateCache(this.#native, this.config, offsetsOf(lengths), { ...resolved, firstBlocks });
    return new KvCache(cache, this.config, lengths);
  }

  /**
   * Bytes that a cache of `tokens` positions takes, over all its rows. @throws RangeError, TypeError; DUltraError
   * NO_PLANNER.
   */
  cacheBytes(tokens: number, options: KvCacheOptions = {}): number {
    checkInteger('tokens', tokens, { min: 0, max: Number.MAX_SAFE_INTEGER });
    return native().cacheBytes(this.config, tokens, resolveCacheOptions(options, this.config));
  }

  /**
   * The parts of a trainer: forward passes that keep their activations, backward passes, and the optimiser. The
   * trainers (`trainMaskedDiffusion`, `trainPlanner`, `GrpoTrainer`) use it, and your own losses can. One trainer per
   * model at a time.
   * @throws RangeError, TypeError for options; DUltraError OUT_OF_MEMORY, NO_PLANNER, DISPOSED.
   */
  async createTrainer(options: ModelTrainerOptions = {}): Promise<ModelTrainer> {
    this.#checkUsable();
    this.#mayChange = true;
    this.#hash = null;
    if (options.lora) checkAdaptable(this.config, resolveLora(options.lora).targets);
    return openTrainer(this.#native, options);
  }

  /**
   * Writes the model with its current weights in the Hugging Face layout: config.json, model.safetensors, and the
   * tokenizer's files. `loadModel` reads it, and so does the reference implementation. Files are replaced atomically.
   * @throws TypeError, RangeError for options; DUltraError WRITE_FAILED if writing fails.
   */
  async save(folder: string, options: SaveOptions = {}): Promise<void> {
    this.#checkUsable();
    const { config, source } = this;
    const weights = async (name: string) => (await this.#native.weights([name]))[0].data;
    await saveModel(folder, { config, configJson: this.#configJson, source, weights }, options);
  }

  /** SHA-256 of the current weights (adapters merged) in fp32, in hex: the same for models that compute the same. */
  async weightsHash(): Promise<string> {
    this.#checkUsable();
    const hash = createHash('sha256');
    for (const { name } of native().tensors(this.config)) {
      const [{ data }] = await this.#native.weights([name]);
      hash.update(name).update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    }
    return hash.digest('hex');
  }

  /**
   * Writes the planner head with its current weights into a folder of its own, planner.json and planner.safetensors:
   * `loadModel(base, { planner: folder })` puts it on its base model.
   * @throws TypeError, RangeError for options; DUltraError NO_PLANNER; WRITE_FAILED if writing fails.
   */
  async savePlanner(folder: string, options: SaveOptions = {}): Promise<void> {
    this.#checkUsable();
    checkKeys('options', options, ['dtype']);
    const { dtype = 'float32' } = options;
    checkChoice('dtype', dtype, ['float32', 'bfloat16', 'float16'] as const);
    const { planner } = this.config;
    if (!planner) throw new DUltraError('NO_PLANNER', `${this.source} has no planner head`);
    const weights = async (name: string) => (await this.#native.weights([name]))[0].data;
    await savePlannerHead(folder, { ...this.config, planner }, dtype, weights);
  }

  /**
   * Loads low-rank adapters from a folder in the layout of PEFT and merges them into the weights. Until the returned
   * handle is disposed, they can be taken out and put back.
   * @throws DUltraError BAD_CHECKPOINT, DISPOSED.
   */
  async loadAdapter(folder: string): Promise<Adapter> {
    this.#checkUsable();
    const files = await readAdapter(folder, this.config);
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

  /**
   * The ids that the model sees for a prompt. @param splitSpecialTokens as in {@link GenerateOptions}
   * @throws TypeError; DUltraError NO_TOKENIZER, BAD_CHECKPOINT.
   */
  encodePrompt(
    prompt: PlainPrompt,
    { splitSpecialTokens }: { splitSpecialTokens?: boolean | undefined } = {},
  ): Int32Array {
    return encodePrompt(prompt, this, { splitSpecialTokens });
  }

  /** Text of token ids, special tokens skipped; "" without a tokenizer. */
  decode(ids: ArrayLike<number>): string {
    return decodeIds(ids, this);
  }

  /** Frees the weights; work under way finishes first. Further calls throw DUltraError DISPOSED. */
  dispose(): void {
    this.#disposed = true;
    this.#engine.retire();
    this.#encoding.close();
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

  #checkUsable(): void {
    if (this.#disposed) throw new DUltraError('DISPOSED', 'this model has been disposed');
  }

  /** `weightsHash`, computed once where nothing can have changed the weights. */
  #knownHash(): Promise<string> {
    if (this.#mayChange) return this.weightsHash();
    this.#hash ??= this.weightsHash().catch((error) => {
      this.#hash = null;
      throw error;
    });
    return this.#hash;
  }

  /** @internal What a server works on. @throws DUltraError DISPOSED */
  engineParts(): GeneratingModel {
    return this.#parts();
  }

  /** What forward passes and generation work on. @throws DUltraError DISPOSED */
  #parts(): GeneratingModel {
    this.#checkUsable();
    const { config, tokenizer, source, generationDefaults, decisions } = this;
    return {
      native: this.#native,
      config,
      tokenizer,
      source,
      generationDefaults,
      decisions,
      engine: this.#engine,
      encoding: this.#encoding,
      weightsHash: () => this.#knownHash(),
    };
  }
}
