// Masked-diffusion fine-tuning and pre-training.
import { DUltraError, optionError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { checkChoice, checkInteger, checkNumber } from '../options';
import { concatenate, mapRows, packed, packRows } from '../packing';
import { deriveSeed, Purpose, Random } from '../random';
import { openData, type TrainingData, type TrainingRow } from './data';
import { type Measured, runStage, type Stage, type StageContext, type TrainingMetrics } from './loop';
import { maskedDiffusionLoss } from './masked-diffusion-loss';
import { type MaskedRow, maskRow } from './masking';
import { checkLora, resolveTraining, type TrainableOptions, type TrainingOptions } from './options';

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
}

/** A row before it is masked. */
export interface TokenRow {
  ids: Int32Array;
  /** Where the answer begins. */
  begin: number;
}

/**
 * Prompt and answer as one row. @param genLength tokens of the answer; null: the answer's own and one end of sequence
 */
export function encodeRow(model: MaskedDiffusionModel, example: TrainingRow, genLength: number | null): TokenRow {
  if (example.answer === null)
    throw optionError(TypeError, 'dataset', 'expected examples with an answer, got one without');
  if (!model.tokenizer)
    throw new DUltraError('NO_TOKENIZER', `${model.source} has no tokenizer.json, which training on text needs`);
  const prompt = model.encodePrompt(example.prompt);
  const answer = model.tokenizer.encode(example.answer, { addSpecialTokens: false });
  const length = genLength ?? answer.length + 1;
  if (answer.length > length)
    throw optionError(
      RangeError,
      'genLength',
      `expected at least the ${answer.length} tokens of the answer ${JSON.stringify(example.answer)}, got ${length}`,
    );
  const { eosTokenId, maxSequenceLength } = model.config;
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

  #mask(examples: TrainingRow[], random: Random): WeightedRow[] {
    const { pretraining, genLength, epsilon, stratified } = this.#options;
    const { model } = this.#context;
    const rows = examples.map((example) => encodeRow(model, example, genLength));
    const tokens = rows.reduce((sum, { ids }) => sum + ids.length, 0);
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
      const count = pretraining ? tokens : (ids.length - begin) * rows.length;
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
    const rows = this.#mask(examples, new Random(deriveSeed(training.seed, Purpose.masks, step)));
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
    const { data, training } = this.#context;
    const examples = data.validation!(training.evalExamples);
    // The same masks every time, so that evaluations can be compared.
    const rows = this.#mask(examples, new Random(deriveSeed(training.seed, Purpose.evaluation)));
    return { evalLoss: (await this.#run(rows, false)).loss };
  }
}

const OWN_KEYS = ['dataset', 'objective', 'batchSize', 'genLength', 'maskEpsilon', 'timesteps', 'lora', 'signal'];

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
  const lora = checkLora(options.lora);
  const data = openData(options.dataset, training.seed);
  const genLength = options.genLength ?? data.genLength;
  yield* runStage<MaskedDiffusionMetrics>({
    kind: 'sft',
    model,
    data,
    training,
    // A planner that gets no gradient would still shrink by weight decay.
    trainable: { freezePlanner: true, lora },
    examplesPerStep: batchSize * training.gradientAccumulation,
    own: { objective, batchSize, genLength, maskEpsilon, timesteps },
    objective: { metric: 'evalLoss', goal: 'min' },
    signal: options.signal,
    start: (context) =>
      new MaskedDiffusionStage(context, {
        batchSize,
        pretraining: objective === 'pretraining',
        genLength,
        epsilon: maskEpsilon,
        stratified: timesteps === 'stratified',
      }),
  });
}
