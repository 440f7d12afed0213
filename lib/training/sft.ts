// Masked-diffusion fine-tuning and pre-training.
import { open } from '../data';
import { gatherNumbers } from '../distributed/process-group';
import { within } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { attendedGrid, firstBlocks } from '../model/blocks';
import { checkRoom } from '../model/prompt';
import { checkChoice, checkInteger, checkNumber } from '../options';
import { concatenate, mapRows, packed } from '../packing';
import { deriveSeed, Purpose, Random } from '../random';
import { resolveSampler, type SamplerObject } from '../sampling/samplers';
import { type CheckExample, openData, type TrainingData } from './data';
import { type AnswerOptions, answerOptions, exactMatches } from './exact-matches';
import { type Measured, runStage, type Stage, type StageContext, type TrainingMetrics } from './loop';
import { maskedDiffusionLoss } from './masked-diffusion-loss';
import { drawBlock, type MaskedRow, maskRow } from './masking';
import { checkLora, resolveTraining, type TrainableOptions, type TrainingOptions } from './options';
import { callbacksOf } from './samples';
import { BackwardPasses, numbered, ownBatches } from './shares';
import { type AnswerPadding, checkPadding, encodeRow, encodeRows, type TokenRow } from './token-rows';

/** Options of {@link trainMaskedDiffusion}. */
export interface MaskedDiffusionOptions extends TrainingOptions, Pick<TrainableOptions, 'lora'> {
  /** What to learn from: prompts with answers. */
  dataset: TrainingData;
  /** "sft" (default): answers are masked, prompts never. "pretraining": whole rows are. */
  objective?: 'sft' | 'pretraining' | undefined;
  /** Examples per batch. Default 64. */
  batchSize?: number | undefined;
  /**
   * Answers are padded to so many tokens with end-of-sequence tokens, which count as answer. Default: the data set's;
   * else one of them.
   */
  maxTokens?: number | undefined;
  /**
   * Answers are padded by a length drawn for each row in place of `maxTokens`: shorter rows cost less, and the model
   * learns to end an answer whatever room there is. Default: none.
   */
  padding?: AnswerPadding | undefined;
  /**
   * "row" (default): all rows weigh alike, as in LLaDA's code; "token": all tokens of answers do, so that a long answer
   * counts as much as its tokens. Of "sft"; in pre-training tokens always weigh alike.
   */
  lossPer?: 'row' | 'token' | undefined;
  /**
   * Evaluations also write answers with this sampler, and count those that are right. Default: none; they measure the
   * loss alone.
   */
  evalSampler?: SamplerObject | string | undefined;
  /**
   * ε of the mask probability (1 − ε) t + ε. Larger ones keep rows with a single masked token from weighing a thousand
   * times. Default 1e-3.
   */
  maskEpsilon?: number | undefined;
  /**
   * How t is drawn: "stratified" (default) spreads a step's rows evenly over 0..1, which lowers the loss's variance;
   * "uniform" draws each by itself, as the reference does.
   */
  timesteps?: 'stratified' | 'uniform' | undefined;
}

/** One step of {@link trainMaskedDiffusion}. */
export interface MaskedDiffusionMetrics extends TrainingMetrics {
  /** Share of all tokens that were masked. */
  masked: number;
  /** On held-out examples, in the steps that evaluate. */
  evalLoss?: number | undefined;
  /** Share of right answers there, with `evalSampler`. */
  evalAccuracy?: number | undefined;
  /** Forward passes per answer. */
  evalNfe?: number | undefined;
  /** Share of right answers by category, where there are several. */
  [category: `evalAccuracy/${string}`]: number;
}

/** Masked rows with the weight of each one's tokens in the loss. */
interface WeightedRow extends MaskedRow {
  /** Where the answer begins. */
  begin: number;
  weight: number;
}

interface StageOptions {
  batchSize: number;
  pretraining: boolean;
  maxTokens: number | null;
  padding: Required<AnswerPadding> | null;
  lossPer: 'row' | 'token';
  /** How evaluations write answers; null: they do not. */
  answers: AnswerOptions | null;
  epsilon: number;
  stratified: boolean;
}

class MaskedDiffusionStage implements Stage {
  readonly #context: StageContext;
  readonly #options: StageOptions;

  constructor(context: StageContext, options: StageOptions) {
    this.#context = context;
    this.#options = options;
  }

  #mask(rows: TokenRow[], random: Random): WeightedRow[] {
    const { pretraining, lossPer, epsilon, stratified } = this.#options;
    const { model } = this.#context;
    const tokens = rows.reduce((sum, { ids, begin }) => sum + ids.length - (pretraining ? 0 : begin), 0);
    const order = random.permutation(rows.length);
    return rows.map(({ ids, begin: answer }, i) => {
      const begin = pretraining ? 0 : answer;
      const t = stratified ? (order[i] + random.uniform()) / rows.length : random.uniform();
      // One block of the row, behind finished ones: it stands for all of them.
      const grid = attendedGrid(model.config, answer);
      const { count: blocks, ...span } =
        grid === null
          ? { begin, end: ids.length, count: 1 }
          : drawBlock(ids.length, { begin, grid, uniform: random.uniform() });
      const seen = ids.subarray(0, span.end);
      const uniforms = Float64Array.from(seen, random.uniform);
      const { maskTokenId } = model.config;
      const masked = maskRow(seen, { begin: span.begin, t, epsilon, uniforms, maskTokenId });
      const count = pretraining || lossPer === 'token' ? tokens : (ids.length - answer) * rows.length;
      return { ...masked, begin: answer, weight: blocks / (masked.maskProbability * count) };
    });
  }

  /**
   * Loss of all rows, whichever process computes them; adds gradients of this process's rows where `train`.
   * @param part rows of a batch: batches share no micro-batch
   */
  async #run(rows: WeightedRow[], part: number, train: boolean): Promise<{ loss: number; tokens: number }> {
    const { model, trainer, training, group } = this.#context;
    // A row without masks has no part in the loss.
    const useful = numbered(rows).filter(({ item }) => item.positions.length > 0);
    const parts: (typeof useful)[] = [];
    for (let begin = 0; begin < rows.length; begin += part)
      parts.push(useful.filter(({ index }) => index >= begin && index < begin + part));
    const losses = new Map<number, [number]>();
    const batches = ownBatches(parts, ({ item }) => item.ids.length, { ...training, group });
    const passes = new BackwardPasses(trainer, { group, zeroStage: training.zeroStage });
    for (const micro of batches) {
      const batch = micro.map(({ item }) => item);
      const { logProbs } = await trainer.score({
        ...packed(batch),
        firstBlocks: firstBlocks(
          model.config,
          batch.map(({ begin }) => begin),
        ),
        tokens: concatenate(
          batch.map((row) => row.tokens),
          Int32Array,
        ),
        keep: train,
      });
      const dLogProbs = mapRows(logProbs!, batch, Float32Array, (values, { weight }, i) => {
        const result = maskedDiffusionLoss(values, weight);
        losses.set(micro[i].index, [result.loss]);
        return result.dLogProbs;
      });
      if (train) await passes.add({ dLogProbs }, batches.length);
    }
    if (train) await passes.end();
    const all = await gatherNumbers(group, rows.length, 1, losses);
    let loss = 0;
    for (let begin = 0; begin < rows.length; begin += part)
      loss += all.subarray(begin, begin + part).reduce((sum, value) => sum + value, 0);
    return { loss, tokens: useful.reduce((sum, { item }) => sum + item.ids.length, 0) };
  }

  async accumulate(step: number): Promise<Measured> {
    const { model, data, training } = this.#context;
    const { batchSize } = this.#options;
    const examples = data.train(step, batchSize * training.gradientAccumulation);
    const { maxTokens, padding } = this.#options;
    const encoded = encodeRows(model, examples, maxTokens, padding, deriveSeed(training.seed, Purpose.padding, step));
    const rows = this.#mask(encoded, new Random(deriveSeed(training.seed, Purpose.masks, step)));
    const measured = await this.#run(rows, batchSize, true);
    const masked = rows.reduce((count, { positions }) => count + positions.length, 0);
    const all = rows.reduce((count, { ids }) => count + ids.length, 0);
    return { ...measured, masked: masked / all };
  }

  async evaluate(): Promise<Record<string, number>> {
    const { model, data, training } = this.#context;
    const { maxTokens, padding, answers } = this.#options;
    const examples = data.validation!(training.evalExamples);
    // The same masks and lengths every time, so that evaluations can be compared.
    const encoded = encodeRows(model, examples, maxTokens, padding, deriveSeed(training.seed, Purpose.padding));
    const rows = this.#mask(encoded, new Random(deriveSeed(training.seed, Purpose.evaluation)));
    const { loss: evalLoss } = await this.#run(rows, rows.length, false);
    if (!answers) return { evalLoss };
    const { metrics, samples } = await exactMatches(this.#context, examples, answers);
    this.#context.show('validation', samples);
    return { evalLoss, ...metrics };
  }
}

/** The shortest padding of an answer. */
const padded = (answer: number) => answer + 1;

/**
 * Checks {@link MaskedDiffusionOptions} as far as they do not depend on a model and on data, and fills in defaults.
 * @throws TypeError, RangeError naming the option.
 */
export function resolveSft(options: MaskedDiffusionOptions) {
  const defaults = {
    learningRate: 1e-4,
    schedule: 'cosine',
    warmupSteps: 50,
    learningRateFloor: 0.1,
    betas: [0.9, 0.98],
    weightDecay: 0.1,
  } as const;
  const training = resolveTraining('sft', options, defaults, ['signal']);
  const { objective = 'sft', batchSize = 64, maskEpsilon = 1e-3, timesteps = 'stratified' } = options;
  checkChoice('objective', objective, ['sft', 'pretraining'] as const);
  checkInteger('batchSize', batchSize, { min: 1, max: 1 << 20 });
  checkNumber('maskEpsilon', maskEpsilon, { minExclusive: 0, max: 1 });
  checkChoice('timesteps', timesteps, ['stratified', 'uniform'] as const);
  if (options.maxTokens !== undefined) checkInteger('maxTokens', options.maxTokens, { min: 1, max: 1 << 30 });
  const { lossPer = 'row', evalSampler } = options;
  checkChoice('lossPer', lossPer, ['row', 'token'] as const);
  if (evalSampler !== undefined) within('evalSampler', 'sampler', () => resolveSampler(evalSampler, true));
  const padding = options.padding === undefined ? null : checkPadding(options.padding);
  const lora = checkLora(options.lora);
  return { training, objective, batchSize, maskEpsilon, timesteps, lossPer, padding, lora };
}

/**
 * Masked-diffusion fine-tuning (LLaDA's): of each answer a random share t of the tokens is masked, and the model learns
 * to predict them. Of a model that attends by blocks a step trains one random block of each answer, behind the finished
 * ones. The planner head is left as it is. One yield per optimiser step; leaving the loop ends the training.
 * @throws TypeError, RangeError for options; DUltraError NON_FINITE naming the step, WRITE_FAILED, NO_TOKENIZER;
 * `signal.reason`, after
 *   the step under way is finished and saved.
 */
export async function* trainMaskedDiffusion(
  model: MaskedDiffusionModel,
  options: MaskedDiffusionOptions & { signal?: AbortSignal | undefined },
): AsyncGenerator<MaskedDiffusionMetrics, void, void> {
  const { training, objective, batchSize, maskEpsilon, timesteps, lossPer, padding, lora } = resolveSft(options);
  const fits: CheckExample = (row, own) => void encodeRow(model, row, padding ? padded : (options.maxTokens ?? own));
  const data = openData(await open(options.dataset), training.seed, training.mixture, {
    train: fits,
    validation(row, own) {
      fits(row, own);
      const maxTokens = options.maxTokens ?? own;
      if (options.evalSampler !== undefined && maxTokens !== null)
        checkRoom(model.encodePrompt(row.prompt).length, maxTokens, model.config.maxSequenceLength);
    },
  });
  const answers = answerOptions(options, data, model);
  const maxTokens = options.maxTokens ?? data.maxTokens;
  yield* runStage<MaskedDiffusionMetrics>({
    kind: 'sft',
    model,
    data,
    training,
    // A planner that gets no gradient would still shrink by weight decay.
    trainable: { freezePlanner: true, lora },
    examplesPerStep: batchSize * training.gradientAccumulation,
    own: {
      objective,
      batchSize,
      maxTokens,
      padding,
      lossPer,
      evalSampler: answers?.sampler ?? null,
      maskEpsilon,
      timesteps,
    },
    objective: { metric: 'evalLoss', goal: 'min' },
    signal: options.signal,
    callbacks: callbacksOf(options),
    start: (context) =>
      new MaskedDiffusionStage(context, {
        batchSize,
        pretraining: objective === 'pretraining',
        maxTokens,
        padding,
        lossPer,
        answers,
        epsilon: maskEpsilon,
        stratified: timesteps === 'stratified',
      }),
  });
}
