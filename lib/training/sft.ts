// Masked-diffusion fine-tuning and pre-training.
import { open } from '../data';
import { DUltraError, optionError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { checkRoom } from '../model/prompt';
import { checkChoice, checkInteger, checkKeys, checkNumber } from '../options';
import { concatenate, mapRows, packed, packRows } from '../packing';
import { deriveSeed, Purpose, Random } from '../random';
import { resolveSampler, type SamplerObject } from '../sampling/samplers';
import { show } from '../text';
import { type CheckExample, type DataSource, openData, type TrainingData, type TrainingRow } from './data';
import { type AnswerOptions, exactMatches } from './exact-matches';
import { type Measured, runStage, type Stage, type StageContext, type TrainingMetrics } from './loop';
import { maskedDiffusionLoss } from './masked-diffusion-loss';
import { type MaskedRow, maskRow } from './masking';
import { checkLora, resolveTraining, type TrainableOptions, type TrainingOptions } from './options';

/** How answers are padded with end-of-sequence tokens, which count as answer. */
export interface AnswerPadding {
  /** Share of the rows whose answers are padded to a length drawn evenly from `min` to `max`. */
  share: number;
  /** Tokens; longer answers get one end of sequence. */
  min: number;
  max: number;
  /** The other rows get 1 to `tail` ends of sequence. Default 1. */
  tail?: number;
}

/** Options of {@link trainMaskedDiffusion}. */
export interface MaskedDiffusionOptions extends TrainingOptions, Pick<TrainableOptions, 'lora'> {
  /** What to learn from: prompts with answers. */
  dataset: TrainingData;
  /** "sft" (default): answers are masked, prompts never. "pretraining": whole rows are. */
  objective?: 'sft' | 'pretraining';
  /** Examples per batch. Default 64. */
  batchSize?: number;
  /**
   * Answers are padded to so many tokens with end-of-sequence tokens, which count as answer. Default: the data set's;
   * else one of them.
   */
  genLength?: number;
  /**
   * Answers are padded by a length drawn for each row in place of `genLength`: shorter rows cost less, and the model
   * learns to end an answer whatever room there is. Default: none.
   */
  padding?: AnswerPadding;
  /**
   * "row" (default): all rows weigh alike, as in LLaDA's code; "token": all tokens of answers do, so that a long answer
   * counts as much as its tokens. Of "sft"; in pre-training tokens always weigh alike.
   */
  lossPer?: 'row' | 'token';
  /**
   * Evaluations also write answers with this sampler, and count those that are right. Default: none; they measure the
   * loss alone.
   */
  evalSampler?: SamplerObject;
  /**
   * ε of the mask probability (1 − ε) t + ε. Larger ones keep rows with a single masked token from weighing a thousand
   * times. Default 1e-3.
   */
  maskEpsilon?: number;
  /**
   * How t is drawn: "stratified" (default) spreads a step's rows evenly over 0..1, which lowers the loss's variance;
   * "uniform" draws each by itself, as the reference does.
   */
  timesteps?: 'stratified' | 'uniform';
}

/** One step of {@link trainMaskedDiffusion}. */
export interface MaskedDiffusionMetrics extends TrainingMetrics {
  /** Share of all tokens that were masked. */
  masked: number;
  /** On held-out examples, in the steps that evaluate. */
  evalLoss?: number;
  /** Share of right answers there, with `evalSampler`. */
  evalAccuracy?: number;
  /** Forward passes per answer. */
  evalNfe?: number;
  /** Share of right answers by category, where there are several. */
  [category: `evalAccuracy/${string}`]: number;
}

/** A row before it is masked. */
export interface TokenRow {
  ids: Int32Array;
  /** Where the answer begins. */
  begin: number;
}

/**
 * Prompt and answer as one row.
 * @param genLength tokens of the answer; null: the answer's own and one end of sequence; or a function of the answer's
 * own, whose padding is cut where the row would be longer than the model's maximum
 */
export function encodeRow(
  model: MaskedDiffusionModel,
  example: TrainingRow,
  genLength: number | null | ((answer: number) => number),
): TokenRow {
  if (example.answer === null)
    throw optionError(TypeError, 'dataset', 'expected examples with an answer, got one without');
  if (!model.tokenizer)
    throw new DUltraError('NO_TOKENIZER', `${model.source} has no tokenizer.json, which training on text needs`);
  const prompt = model.encodePrompt(example.prompt);
  const answer = model.tokenizer.encode(example.answer, { addSpecialTokens: false });
  const { eosTokenId, maxSequenceLength } = model.config;
  const room = Math.max(answer.length + 1, maxSequenceLength - prompt.length);
  const length =
    typeof genLength === 'function' ? Math.min(genLength(answer.length), room) : (genLength ?? answer.length + 1);
  if (answer.length > length)
    throw optionError(
      RangeError,
      'genLength',
      `expected at least the ${answer.length} tokens of the answer ${show(example.answer)}, got ${length}`,
    );
  if (eosTokenId === null && answer.length < length)
    throw optionError(
      RangeError,
      'genLength',
      `${model.source} names no end-of-sequence token to pad answers with; expected answers of genLength tokens`,
    );
  const total = prompt.length + length;
  if (total > maxSequenceLength)
    throw optionError(
      RangeError,
      'dataset',
      `a row of ${total} tokens is longer than the model's maximum of ${maxSequenceLength}`,
    );
  const ids = new Int32Array(total).fill(eosTokenId ?? 0);
  ids.set(prompt);
  ids.set(answer, prompt.length);
  return { ids, begin: prompt.length };
}

/** Masked rows with the weight of each one's tokens in the loss. */
interface WeightedRow extends MaskedRow {
  weight: number;
}

interface StageOptions {
  batchSize: number;
  pretraining: boolean;
  genLength: number | null;
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

  /** Rows with their padding. @param seed of the lengths */
  #encode(examples: TrainingRow[], seed: bigint): TokenRow[] {
    const { genLength, padding } = this.#options;
    const { model } = this.#context;
    if (!padding) return examples.map((example) => encodeRow(model, example, genLength));
    const { share, min, max, tail } = padding;
    const random = new Random(seed);
    return examples.map((example) => {
      const isWide = random.uniform() < share;
      const draw = random.uniform();
      return encodeRow(model, example, (answer) =>
        isWide ? Math.max(answer + 1, min + Math.floor(draw * (max - min + 1))) : answer + 1 + Math.floor(draw * tail),
      );
    });
  }

  #mask(rows: TokenRow[], random: Random): WeightedRow[] {
    const { pretraining, lossPer, epsilon, stratified } = this.#options;
    const { model } = this.#context;
    const tokens = rows.reduce((sum, { ids, begin }) => sum + ids.length - (pretraining ? 0 : begin), 0);
    const order = random.permutation(rows.length);
    return rows.map(({ ids, begin }, i) => {
      const t = stratified ? (order[i] + random.uniform()) / rows.length : random.uniform();
      const uniforms = Float64Array.from(ids, random.uniform);
      const masked = maskRow(ids, {
        begin: pretraining ? 0 : begin,
        t,
        epsilon,
        uniforms,
        maskTokenId: model.config.maskTokenId,
      });
      const count = pretraining || lossPer === 'token' ? tokens : (ids.length - begin) * rows.length;
      return { ...masked, weight: 1 / (masked.maskProbability * count) };
    });
  }

  /** Loss of some rows; adds their gradients where `train`. */
  async #run(rows: WeightedRow[], train: boolean): Promise<{ loss: number; tokens: number }> {
    const { trainer, training } = this.#context;
    let loss = 0;
    let tokens = 0;
    // A row without masks has no part in the loss.
    const useful = rows.filter(({ positions }) => positions.length > 0);
    for (const batch of packRows(useful, ({ ids }) => ids.length, training.tokenBudget)) {
      const { logProbs } = await trainer.score({
        ...packed(batch),
        tokens: concatenate(
          batch.map((row) => row.tokens),
          Int32Array,
        ),
        keep: train,
      });
      const dLogProbs = mapRows(logProbs!, batch, Float32Array, (part, { weight }) => {
        const result = maskedDiffusionLoss(part, weight);
        loss += result.loss;
        return result.dLogProbs;
      });
      if (train) await trainer.backward({ dLogProbs });
      tokens += batch.reduce((sum, { ids }) => sum + ids.length, 0);
    }
    return { loss, tokens };
  }

  async accumulate(step: number): Promise<Measured> {
    const { data, training } = this.#context;
    const { batchSize } = this.#options;
    const examples = data.train(step, batchSize * training.gradientAccumulation);
    const encoded = this.#encode(examples, deriveSeed(training.seed, Purpose.padding, step));
    const rows = this.#mask(encoded, new Random(deriveSeed(training.seed, Purpose.masks, step)));
    const sum = { loss: 0, tokens: 0 };
    for (let i = 0; i < rows.length; i += batchSize) {
      const { loss, tokens } = await this.#run(rows.slice(i, i + batchSize), true);
      sum.loss += loss;
      sum.tokens += tokens;
    }
    const masked = rows.reduce((count, { positions }) => count + positions.length, 0);
    const all = rows.reduce((count, { ids }) => count + ids.length, 0);
    return { ...sum, masked: masked / all };
  }

  async evaluate(): Promise<Record<string, number>> {
    const { model, data, training } = this.#context;
    const { answers } = this.#options;
    const examples = data.validation!(training.evalExamples);
    // The same masks and lengths every time, so that evaluations can be compared.
    const encoded = this.#encode(examples, deriveSeed(training.seed, Purpose.padding));
    const rows = this.#mask(encoded, new Random(deriveSeed(training.seed, Purpose.evaluation)));
    const { loss: evalLoss } = await this.#run(rows, false);
    return answers
      ? { evalLoss, ...(await exactMatches(model, data, examples, answers, training.tokenBudget)) }
      : { evalLoss };
  }
}

const OWN_KEYS = [
  ...['dataset', 'objective', 'batchSize', 'genLength', 'padding', 'lossPer', 'evalSampler'],
  ...['maskEpsilon', 'timesteps', 'lora', 'signal'],
];

function checkPadding(padding: AnswerPadding): Required<AnswerPadding> {
  checkKeys('padding', padding, ['share', 'min', 'max', 'tail']);
  const { share, min, max, tail = 1 } = padding;
  checkNumber('padding.share', share, { min: 0, max: 1 });
  checkInteger('padding.min', min, { min: 1, max: 1 << 30 });
  checkInteger('padding.max', max, { min, max: 1 << 30 });
  checkInteger('padding.tail', tail, { min: 1, max: 1 << 30 });
  return { share, min, max, tail };
}

/** The shortest padding of an answer. */
const padded = (answer: number) => answer + 1;

/** How evaluations write answers. @throws TypeError, RangeError where nothing says how long they may be */
function answerOptions(options: MaskedDiffusionOptions, data: DataSource, hasPlanner: boolean): AnswerOptions | null {
  const { evalSampler: sampler } = options;
  if (sampler === undefined) return null;
  resolveSampler(sampler, hasPlanner);
  const genLength = options.genLength ?? data.genLength;
  if (genLength === null)
    throw optionError(TypeError, 'genLength', 'expected a number of tokens, which evalSampler needs, got none');
  const blockLength = options.genLength === undefined ? data.blockLength : null;
  return { sampler, genLength, blockLength: blockLength ?? genLength };
}

/**
 * Masked-diffusion fine-tuning (LLaDA's): of each answer a random share t of the tokens is masked, and the model learns
 * to predict them. The planner head is left as it is. One yield per optimiser step; leaving the loop ends the training.
 * @throws TypeError, RangeError for options; DUltraError NON_FINITE naming the step, WRITE_FAILED, NO_TOKENIZER;
 * `signal.reason`, after
 *   the step under way is finished and saved.
 */
export async function* trainMaskedDiffusion(
  model: MaskedDiffusionModel,
  options: MaskedDiffusionOptions & { signal?: AbortSignal },
): AsyncGenerator<MaskedDiffusionMetrics, void, void> {
  const defaults = {
    learningRate: 1e-4,
    schedule: 'cosine',
    warmupSteps: 50,
    learningRateFloor: 0.1,
    betas: [0.9, 0.98],
    weightDecay: 0.1,
  } as const;
  const training = resolveTraining(options, defaults, OWN_KEYS);
  const { objective = 'sft', batchSize = 64, maskEpsilon = 1e-3, timesteps = 'stratified' } = options;
  checkChoice('objective', objective, ['sft', 'pretraining'] as const);
  checkInteger('batchSize', batchSize, { min: 1, max: 1 << 20 });
  checkNumber('maskEpsilon', maskEpsilon, { minExclusive: 0, max: 1 });
  checkChoice('timesteps', timesteps, ['stratified', 'uniform'] as const);
  if (options.genLength !== undefined) checkInteger('genLength', options.genLength, { min: 1, max: 1 << 30 });
  const { lossPer = 'row', evalSampler } = options;
  checkChoice('lossPer', lossPer, ['row', 'token'] as const);
  const padding = options.padding === undefined ? null : checkPadding(options.padding);
  const lora = checkLora(options.lora);
  const fits: CheckExample = (row, own) => void encodeRow(model, row, padding ? padded : (options.genLength ?? own));
  const data = openData(await open(options.dataset), training.seed, training.mixture, {
    train: fits,
    validation(row, own) {
      fits(row, own);
      const genLength = options.genLength ?? own;
      if (evalSampler !== undefined && genLength !== null)
        checkRoom(model.encodePrompt(row.prompt).length, genLength, model.config.maxSequenceLength);
    },
  });
  const answers = answerOptions(options, data, model.hasPlanner);
  const genLength = options.genLength ?? data.genLength;
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
      genLength,
      padding,
      lossPer,
      evalSampler: evalSampler ?? null,
      maskEpsilon,
      timesteps,
    },
    objective: { metric: 'evalLoss', goal: 'min' },
    signal: options.signal,
    start: (context) =>
      new MaskedDiffusionStage(context, {
        batchSize,
        pretraining: objective === 'pretraining',
        genLength,
        padding,
        lossPer,
        answers,
        epsilon: maskEpsilon,
        stratified: timesteps === 'stratified',
      }),
  });
}
