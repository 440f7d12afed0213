// GRPO on the unmasking policy: rollouts, rewards, advantages, and the replay of every denoising step.
import { DUltraError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import type { GenerateResult } from '../generation/types';
import type { ModelTrainer } from '../model/trainer';
import { checkChoice, checkInteger, checkKeys, checkNumber } from '../options';
import { concatenate, packRows } from '../packing';
import { deriveSeed, Purpose } from '../random';
import { correctRows, isStepReward, type RewardBatch, type RewardFunction } from '../rewards';
import { type CachePolicy, resolveCache } from '../sampling/caches';
import { resolveSampler, type SamplerObject } from '../sampling/samplers';
import { computeAdvantages, type ScaleRewards, totalRewards } from './advantages';
import { type DataSource, openData, type TrainingData, type TrainingRow } from './data';
import { type GrpoStepLoss, grpoLoss } from './grpo-loss';
import { referenceGrpoLoss } from './grpo-loss-reference';
import { type Measured, runStage, type StagePlan, type TrainingMetrics } from './loop';
import { checkLora, resolveTraining, type TrainableOptions, type TrainingOptions } from './options';
import {
  type PolicySettings,
  type ReplayRow,
  type Rollouts,
  recordRollouts,
  replayBatches,
  replayRequest,
  splitByRow,
} from './replay';

/** Options of {@link GrpoTrainer}. */
export interface GrpoOptions extends TrainingOptions, TrainableOptions {
  /** Prompts, with answers where a reward needs them. */
  dataset: TrainingData;
  /** Reward functions by name, each with weight 1 or `{ fn, weight }`. */
  rewards: Readonly<Record<string, RewardFunction | { fn: RewardFunction; weight: number }>>;
  /** Rollouts per prompt: a group. Default 8. */
  numGenerations?: number;
  /** Prompts per batch. Default 8. */
  promptsPerStep?: number;
  /** Optimiser steps per batch of rollouts. Default 1. */
  numIterations?: number;
  /** The ratio is clipped to 1 − low … 1 + high. Default { low: 0.2, high: 1 }. */
  clipEpsilon?: number | { low: number; high: number };
  /** Upper bound of the unclipped ratio. Default null: none. */
  delta?: number | null;
  /** Weight of the KL divergence from the reference model. Default 0. */
  beta?: number;
  /**
   * A second loaded model that stays as it is. Needed for beta > 0, except with `lora` and `freezePlanner`: there it is
   * the model without its adapters.
   */
  referenceModel?: MaskedDiffusionModel;
  /** Divide advantages by the group's or the batch's standard deviation. Default "none". */
  scaleRewards?: ScaleRewards;
  /** Advantages below it count as 0; null keeps all. Default 0: only better rollouts than the group's mean teach. */
  advantageMinClip?: number | null;
  /** Token temperature of rollouts. Default 0.5. */
  temperature?: number;
  /** Log-probabilities of tokens at temperature 1 ("untempered", default) or at the sampling temperature. */
  tokenLogProb?: 'tempered' | 'untempered';
  /**
   * Log-likelihood of a step in which progress was forced: "exact" (every other position kept) or "reference" (log p of
   * the forced position added). Default "exact", with compat: "reference" that.
   */
  forcedStep?: 'exact' | 'reference';
  /** Multiplies unmasking probabilities, in rollout and replay. Default 1. */
  probabilityScale?: number;
  /** Divides the planner's logits, in rollout and replay. Default 1. */
  plannerTemperature?: number;
  /** Tokens per completion. Default: the data set's. */
  genLength?: number;
  /** Tokens per block. Default: the data set's, else genLength. */
  blockLength?: number;
  /** End a rollout when everything before its first end of sequence is decided. Default true. */
  stopAtEos?: boolean;
  /**
   * Rollouts keep keys and values between passes. The replay goes through the same passes on a cache of its own, filled
   * with the weights as they are by then; keys and values of earlier passes are constants to the gradient. fp32 only,
   * and not with compat. Default: none.
   */
  cache?: CachePolicy;
  /** How evaluations decode. Default: `{ type: "planner" }`. */
  evalSampler?: SamplerObject;
  /**
   * "reference" computes what the reference implementation does: rows of a batch advance together, half-batches are
   * averaged by themselves (twice the gradient), forced steps add log p of the forced position, and a frozen planner
   * switches `stepPenalty` rewards off.
   */
  compat?: 'reference';
}

/** One step of {@link GrpoTrainer}; further keys are `reward/<name>`, the mean of each reward function. */
export interface GrpoMetrics extends TrainingMetrics {
  /** Mean of the weighted reward. */
  reward: number;
  /** Its standard deviation over the rollouts. */
  rewardStd: number;
  /** Share of right completions, where the data set can tell. */
  accuracy?: number;
  /** Forward passes per rollout. */
  nfe: number;
  /** Tokens up to the first end of sequence, per forward pass. */
  tokensPerForward: number;
  /** Share of rollouts whose advantage is 0: they are not replayed. */
  zeroAdvantage: number;
  /** Replayed (rollout, step) pairs. */
  replayedSteps: number;
  /** Share of steps in which progress was forced. */
  forcedSteps: number;
  /** Largest |ratio − 1| of a step. */
  ratioDeviation: number;
  /** Share of replayed steps whose ratio fell below 1 − low with a negative advantage: they teach nothing. */
  clippedLow: number;
  /** Share of replayed steps whose ratio rose above 1 + high with a positive advantage. */
  clippedHigh: number;
  /** Mean KL estimate per replayed step, with beta > 0. */
  kl?: number;
  /** Mean reward on held-out prompts, in the steps that evaluate. */
  evalReward?: number;
  /** Share of right completions there, where the data set can tell. */
  evalAccuracy?: number;
  /** Forward passes per held-out prompt. */
  evalNfe?: number;
  [reward: `reward/${string}`]: number;
}

interface WeightedReward {
  name: string;
  fn: RewardFunction;
  weight: number;
}

interface ResolvedGrpo {
  seed: bigint;
  accumulation: number;
  tokenBudget: number;
  evalExamples: number;
  rewards: WeightedReward[];
  numGenerations: number;
  promptsPerStep: number;
  numIterations: number;
  clipEpsilonLow: number;
  clipEpsilonHigh: number;
  delta: number | null;
  beta: number;
  scaleRewards: ScaleRewards;
  advantageMinClip: number | null;
  policy: PolicySettings;
  genLength: number;
  blockLength: number;
  stopAtEos: boolean | undefined;
  evalSampler: SamplerObject;
}

/** Rollouts of one batch with their advantages: what its updates replay. */
interface Experience extends Rollouts {
  batch: number;
  advantages: Float64Array;
  /** Log-likelihoods under the reference model, one array per step; null without beta. */
  references: Float32Array[] | null;
  metrics: Record<string, number>;
}

const mean = (values: ArrayLike<number>) =>
  Array.from(values).reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);

function deviation(values: readonly number[]): number {
  if (values.length < 2) return 0;
  const centre = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - centre) ** 2, 0) / (values.length - 1));
}

/** The frozen reference model and what scores it. */
interface ReferenceScorer {
  model: MaskedDiffusionModel;
  trainer: ModelTrainer;
}

class GrpoStage {
  readonly #model: MaskedDiffusionModel;
  readonly #trainer: ModelTrainer;
  /** What scores the reference model; null: the trainer itself, without its adapters. */
  readonly #reference: ReferenceScorer | null;
  readonly #data: DataSource;
  readonly #options: ResolvedGrpo;
  readonly stepsPerBatch: number;
  #experience: Experience | null = null;

  constructor(
    model: MaskedDiffusionModel,
    trainer: ModelTrainer,
    reference: ReferenceScorer | null,
    data: DataSource,
    options: ResolvedGrpo,
  ) {
    this.#model = model;
    this.#trainer = trainer;
    this.#reference = reference;
    this.#data = data;
    this.#options = options;
    this.stepsPerBatch = options.numIterations;
  }

  async accumulate(step: number): Promise<Measured> {
    const batch = Math.floor(step / this.#options.numIterations);
    let tokens = 0;
    if (this.#experience?.batch !== batch) {
      this.#experience = await this.#collect(batch);
      tokens += this.#experience.tokens;
    }
    const { metrics } = this.#experience;
    const replayed = await this.#replay(this.#experience);
    return { ...metrics, ...replayed, tokens: tokens + replayed.tokens };
  }

  /** Rolls a batch out and judges it. */
  async #collect(batch: number): Promise<Experience> {
    const {
      promptsPerStep,
      accumulation,
      numGenerations,
      seed,
      policy,
      tokenBudget,
      genLength,
      blockLength,
      stopAtEos,
    } = this.#options;
    const examples = this.#data.train(batch, promptsPerStep * accumulation);
    const rows = examples.flatMap((example) => new Array<TrainingRow>(numGenerations).fill(example));
    const prompts = examples.flatMap((example) =>
      new Array<Int32Array>(numGenerations).fill(this.#model.encodePrompt(example.prompt)),
    );
    const rollouts = await recordRollouts(this.#model, prompts, {
      genLength,
      blockLength,
      stopAtEos,
      policy,
      seed: deriveSeed(seed, Purpose.rollouts, batch),
      tokenBudget,
    });
    const { totals, metrics } = await this.#judge(rows, rollouts.results);
    const { scaleRewards, advantageMinClip, beta } = this.#options;
    const advantages = computeAdvantages(totals, { groupSize: numGenerations, scaleRewards, advantageMinClip });
    metrics.zeroAdvantage = advantages.filter((advantage) => advantage === 0).length / advantages.length;
    metrics.forcedSteps = rollouts.steps.filter(({ forced }) => forced).length / rollouts.steps.length;
    const references = beta > 0 ? await this.#scoreReference(rollouts.steps) : null;
    return { ...rollouts, batch, advantages, references, metrics };
  }

  /** Rewards of completions, and what they say on the whole. */
  async #judge(
    examples: TrainingRow[],
    results: GenerateResult[],
  ): Promise<{ totals: Float64Array; metrics: Record<string, number> }> {
    const { rewards, genLength } = this.#options;
    const { verify } = this.#data;
    const batch: RewardBatch = {
      completions: results.map(({ text }) => text),
      examples,
      results,
      genLength,
      verify,
      model: this.#model,
    };
    const metrics: Record<string, number> = {};
    const columns: { values: ArrayLike<number | null>; weight: number }[] = [];
    for (const { name, fn, weight } of rewards) {
      const values = await fn(batch);
      if (typeof values?.length !== 'number' || values.length !== results.length)
        throw new TypeError(
          `rewards.${name}: expected ${results.length} numbers or nulls, got ${values?.length ?? String(values)}`,
        );
      for (let row = 0; row < values.length; row++)
        if (values[row] !== null && (typeof values[row] !== 'number' || Math.abs(values[row] as number) === Infinity))
          throw new TypeError(
            `rewards.${name}: expected a finite number or null for each row, got ${String(values[row])} for row ${row}`,
          );
      columns.push({ values, weight });
      const counted = Array.from(values).filter((value): value is number => value !== null && !Number.isNaN(value));
      if (counted.length > 0) metrics[`reward/${name}`] = mean(counted);
    }
    const totals = totalRewards(columns, results.length);
    const counted = Array.from(totals).filter((total) => !Number.isNaN(total));
    metrics.reward = mean(counted);
    metrics.rewardStd = deviation(counted);
    const correct = (await correctRows(batch)).filter((value) => value !== null);
    if (correct.length > 0) metrics.accuracy = mean(correct.map(Number));
    metrics.nfe = mean(results.map(({ nfe }) => nfe));
    metrics.tokensPerForward = mean(results.map(({ tokensPerForward }) => tokensPerForward));
    return { totals, metrics };
  }

  /** Log-likelihoods of all steps under the reference model. */
  async #scoreReference(steps: ReplayRow[]): Promise<Float32Array[]> {
    const { policy, tokenBudget } = this.#options;
    const { maskTokenId } = this.#model.config;
    const { model, trainer: scorer } = this.#reference ?? { model: this.#model, trainer: this.#trainer };
    if (!this.#reference) await this.#trainer.setAdapters('off');
    const out = new Array<Float32Array>(steps.length);
    try {
      const all = steps.map((row, index) => ({ row, index }));
      for await (const { items, cached } of replayBatches(model, all, ({ row }) => row, { policy, tokenBudget })) {
        const rows = items.map(({ row }) => row);
        const { logLikelihoods } = await scorer.score(
          replayRequest(rows, policy, { maskTokenId, keep: false, cached }),
        );
        for (const [i, part] of splitByRow(logLikelihoods!, rows).entries()) out[items[i].index] = part.slice();
      }
    } finally {
      if (!this.#reference) await this.#trainer.setAdapters('on');
    }
    return out;
  }

  /** Scores the steps again under the policy as it is now, and adds the loss's gradient. */
  async #replay({ steps, advantages, references }: Experience): Promise<Measured> {
    const { policy, tokenBudget, promptsPerStep, numGenerations, beta } = this.#options;
    const { maskTokenId } = this.#model.config;
    // A rollout without advantage has no gradient, unless the KL term gives it one.
    const useful = steps
      .map((row, index) => ({ row, advantage: advantages[row.rollout], reference: references?.[index] ?? null }))
      .filter(({ advantage }) => beta > 0 || advantage !== 0);
    const part = promptsPerStep * numGenerations;
    const sum = { loss: 0, tokens: 0, kl: 0, clippedLow: 0, clippedHigh: 0, ratioDeviation: 0 };
    for (let begin = 0; begin < advantages.length; begin += part) {
      const own = useful.filter(({ row }) => row.rollout >= begin && row.rollout < begin + part);
      for await (const { items, cached } of replayBatches(this.#model, own, ({ row }) => row, {
        policy,
        tokenBudget,
      })) {
        const rows = items.map(({ row }) => row);
        const { logLikelihoods } = await this.#trainer.score(
          replayRequest(rows, policy, { maskTokenId, keep: true, cached }),
        );
        const current = splitByRow(logLikelihoods!, rows);
        const gradients = items.map(({ row, advantage, reference }, i) => {
          const result = this.#loss(row, advantage, current[i], reference);
          sum.loss += result.loss;
          sum.kl += result.kl;
          if (result.clipped === 'low') sum.clippedLow++;
          if (result.clipped === 'high') sum.clippedHigh++;
          sum.ratioDeviation = Math.max(sum.ratioDeviation, Math.abs(result.ratio - 1));
          return result.dLogLikelihoods;
        });
        const dLogLikelihoods = concatenate(gradients, Float32Array);
        await this.#trainer.backward({ dLogLikelihoods });
        sum.tokens += rows.reduce((count, { computed }) => count + computed.length, 0);
      }
    }
    const count = Math.max(1, useful.length);
    return {
      loss: sum.loss,
      tokens: sum.tokens,
      replayedSteps: useful.length,
      ratioDeviation: sum.ratioDeviation,
      clippedLow: sum.clippedLow / count,
      clippedHigh: sum.clippedHigh / count,
      ...(beta > 0 && { kl: sum.kl / count }),
    };
  }

  #loss(row: ReplayRow, advantage: number, logLikelihoods: Float32Array, reference: Float32Array | null): GrpoStepLoss {
    const {
      clipEpsilonLow,
      clipEpsilonHigh,
      delta,
      beta,
      genLength,
      accumulation,
      promptsPerStep,
      numGenerations,
      policy,
    } = this.#options;
    const { oldLogLikelihoods } = row;
    const rollouts = promptsPerStep * numGenerations;
    const clip = { clipEpsilonLow, clipEpsilonHigh, delta, beta };
    if (policy.compat === null) {
      const step = { advantage, logLikelihoods, oldLogLikelihoods, referenceLogLikelihoods: reference };
      return grpoLoss(step, { ...clip, scale: 1 / (rollouts * genLength * accumulation) });
    }
    const dense = (values: Float32Array) => {
      const out = new Float32Array(row.ids.length);
      row.positions.forEach((position, i) => {
        out[position] = values[i];
      });
      return out;
    };
    const whole = {
      advantage,
      idle: false,
      logLikelihoods: dense(logLikelihoods),
      oldLogLikelihoods: dense(oldLogLikelihoods),
      references: reference ? [dense(reference)] : [],
    };
    const chunkRows = Math.max(1, Math.floor(rollouts / 2));
    const { loss, ratios, dLogLikelihoods } = referenceGrpoLoss([whole], {
      ...clip,
      genLength,
      accumulation,
      chunkRows,
    });
    const own = Float32Array.from(row.positions, (position) => dLogLikelihoods[0][position]);
    return { loss, ratio: ratios[0], kl: 0, clipped: null, dLogLikelihoods: own };
  }

  async evaluate(): Promise<Record<string, number>> {
    const { evalExamples, evalSampler, genLength, blockLength, stopAtEos, tokenBudget, policy } = this.#options;
    const examples = this.#data.validation!(evalExamples);
    const rows = examples.map((example) => ({ example, promptIds: this.#model.encodePrompt(example.prompt) }));
    const results: GenerateResult[] = [];
    for (const batch of packRows(rows, ({ promptIds }) => promptIds.length + genLength, tokenBudget)) {
      const prompts = batch.map(({ promptIds }) => ({ promptIds }));
      const options = { sampler: evalSampler, genLength, blockLength, ...(stopAtEos !== undefined && { stopAtEos }) };
      results.push(
        ...(await this.#model.generateBatch(prompts, { ...options, ...(policy.compat && { compat: policy.compat }) })),
      );
    }
    const { metrics } = await this.#judge(examples, results);
    const { reward, nfe, accuracy } = metrics;
    return { evalReward: reward, evalNfe: nfe, ...(accuracy !== undefined && { evalAccuracy: accuracy }) };
  }
}

const OWN_KEYS: readonly string[] = [
  'dataset',
  'rewards',
  'numGenerations',
  'promptsPerStep',
  'numIterations',
  'clipEpsilon',
  'delta',
  'beta',
  'referenceModel',
  'scaleRewards',
  'advantageMinClip',
  'temperature',
  'tokenLogProb',
  'forcedStep',
  'probabilityScale',
  'plannerTemperature',
  'genLength',
  'blockLength',
  'stopAtEos',
  'cache',
  'evalSampler',
  'compat',
  'freezeBase',
  'freezePlanner',
  'lora',
];

function resolveRewards(rewards: GrpoOptions['rewards'], zeroSteps: boolean): WeightedReward[] {
  if (typeof rewards !== 'object' || rewards === null)
    throw new TypeError(`rewards: expected an object of reward functions, got ${String(rewards)}`);
  const resolved = Object.entries(rewards).map(([name, reward]) => {
    if (typeof reward === 'function') return { name, fn: reward, weight: 1 };
    if (typeof reward !== 'object' || reward === null || typeof reward.fn !== 'function')
      throw new TypeError(`rewards.${name}: expected a function or { fn, weight }, got ${String(reward)}`);
    checkKeys(`rewards.${name}`, reward, ['fn', 'weight']);
    checkNumber(`rewards.${name}.weight`, reward.weight, {});
    return { name, fn: reward.fn, weight: reward.weight };
  });
  if (resolved.length === 0) throw new RangeError('rewards: expected at least one reward function, got none');
  return resolved.map((reward) => (zeroSteps && isStepReward(reward.fn) ? { ...reward, weight: 0 } : reward));
}

function resolveClip(clip: GrpoOptions['clipEpsilon']): { clipEpsilonLow: number; clipEpsilonHigh: number } {
  if (typeof clip === 'object' && clip !== null) checkKeys('clipEpsilon', clip, ['low', 'high']);
  const { low, high } = typeof clip === 'number' ? { low: clip, high: clip } : (clip ?? { low: 0.2, high: 1 });
  checkNumber('clipEpsilon.low', low, { min: 0, max: 1 });
  checkNumber('clipEpsilon.high', high, { min: 0, max: 1e6 });
  return { clipEpsilonLow: low, clipEpsilonHigh: high };
}

/**
 * Trains base and planner together by on-policy reinforcement learning: groups of completions are drawn from the
 * planner's own policy, rewarded, and every denoising step of the better ones is made more likely.
 *
 * ```ts
 * await using trainer = new GrpoTrainer(model, { dataset, maxSteps: 200, rewards: { fast: rewards.fastAnswer() } });
 * for await (const { step, reward, nfe } of trainer.train()) console.log(step, reward, nfe);
 * ```
 */
export class GrpoTrainer {
  readonly #plan: Omit<StagePlan, 'signal'>;
  #reference: ModelTrainer | null = null;
  #run: AsyncGenerator<GrpoMetrics, void, void> | null = null;

  /** @throws TypeError, RangeError for options; DUltraError NO_PLANNER. */
  constructor(model: MaskedDiffusionModel, options: GrpoOptions) {
    const defaults = {
      learningRate: 5e-6,
      schedule: 'constant',
      warmupSteps: 0,
      learningRateFloor: 0,
      betas: [0.9, 0.99],
      weightDecay: 0.1,
    } as const;
    const training = resolveTraining(options, defaults, OWN_KEYS);
    if (!model.hasPlanner)
      throw new DUltraError('NO_PLANNER', `${model.source} has no planner head, whose policy GRPO trains`);
    const {
      numGenerations = 8,
      promptsPerStep = 8,
      numIterations = 1,
      delta = null,
      beta = 0,
      referenceModel,
    } = options;
    const { scaleRewards = 'none', advantageMinClip = 0, temperature = 0.5, tokenLogProb = 'untempered' } = options;
    const {
      probabilityScale = 1,
      plannerTemperature = 1,
      stopAtEos,
      compat,
      freezeBase = false,
      freezePlanner = false,
    } = options;
    const { forcedStep = compat ?? 'exact' } = options;
    const { evalSampler = { type: 'planner' } } = options;
    checkInteger('numGenerations', numGenerations, { min: 2, max: 1 << 16 });
    checkInteger('promptsPerStep', promptsPerStep, { min: 1, max: 1 << 16 });
    checkInteger('numIterations', numIterations, { min: 1, max: 1 << 16 });
    if (delta !== null) checkNumber('delta', delta, { minExclusive: 0 });
    checkNumber('beta', beta, { min: 0 });
    checkChoice('scaleRewards', scaleRewards, ['none', 'group', 'batch'] as const);
    if (advantageMinClip !== null) checkNumber('advantageMinClip', advantageMinClip, {});
    checkNumber('temperature', temperature, { min: 0, max: 1e6 });
    checkChoice('tokenLogProb', tokenLogProb, ['tempered', 'untempered'] as const);
    checkChoice('forcedStep', forcedStep, ['exact', 'reference'] as const);
    checkNumber('probabilityScale', probabilityScale, { minExclusive: 0, max: 1e6 });
    checkNumber('plannerTemperature', plannerTemperature, { minExclusive: 0, max: 1e6 });
    if (stopAtEos !== undefined) checkChoice('stopAtEos', stopAtEos, [true, false] as const);
    if (compat !== undefined) checkChoice('compat', compat, ['reference'] as const);
    checkChoice('freezeBase', freezeBase, [true, false] as const);
    checkChoice('freezePlanner', freezePlanner, [true, false] as const);
    resolveSampler(evalSampler, true);
    const cache = resolveCache(options.cache);
    if (cache.type !== 'none' && cache.dtype !== 'float32')
      throw new RangeError('cache.dtype: expected "float32", which gradients need');
    if (cache.type !== 'none' && compat === 'reference')
      throw new RangeError('cache: expected none with compat "reference"');
    const lora = checkLora(options.lora);
    if (freezeBase && lora)
      throw new RangeError('freezeBase: expected false with lora, whose adapters are the base that trains');
    if (freezeBase && freezePlanner)
      throw new RangeError('freezePlanner: expected false with freezeBase, or nothing would train');
    if (beta > 0 && !referenceModel && !(lora && freezePlanner))
      throw new RangeError(
        'beta: expected a referenceModel with beta > 0 (or lora with freezePlanner, whose base is the reference)',
      );
    if (referenceModel === model)
      throw new RangeError('referenceModel: expected a model loaded by itself, got the one that trains');
    if (referenceModel && !referenceModel.hasPlanner)
      throw new DUltraError('NO_PLANNER', 'referenceModel: the reference has no planner head');
    const data = openData(options.dataset, training.seed);
    const genLength = options.genLength ?? data.genLength;
    if (genLength === null) throw new TypeError('genLength: expected a number of tokens, since the dataset names none');
    checkInteger('genLength', genLength, { min: 1, max: 1 << 30 });
    const blockLength = options.blockLength ?? data.blockLength ?? genLength;
    checkInteger('blockLength', blockLength, { min: 1, max: genLength });
    if (genLength % blockLength !== 0)
      throw new RangeError(`genLength: expected a multiple of blockLength (${blockLength}), got ${genLength}`);
    const rewards = resolveRewards(options.rewards, compat === 'reference' && freezePlanner);
    const policy = {
      temperature,
      tokenLogProb,
      plannerTemperature,
      probabilityScale,
      forcedStep,
      compat: compat ?? null,
      cache,
    };
    const resolved: ResolvedGrpo = {
      seed: training.seed,
      accumulation: training.gradientAccumulation,
      tokenBudget: training.tokenBudget,
      evalExamples: training.evalExamples,
      rewards,
      numGenerations,
      promptsPerStep,
      numIterations,
      ...resolveClip(options.clipEpsilon),
      delta,
      beta,
      scaleRewards,
      advantageMinClip,
      policy,
      genLength,
      blockLength,
      stopAtEos,
      evalSampler,
    };
    const { seed: _, accumulation: __, tokenBudget: ___, evalExamples: ____, rewards: _____, ...own } = resolved;
    this.#plan = {
      kind: 'grpo',
      model,
      data,
      training,
      trainable: { freezeBase, freezePlanner, lora },
      examplesPerStep: (promptsPerStep * training.gradientAccumulation) / numIterations,
      own: {
        ...own,
        freezeBase,
        freezePlanner,
        rewards: Object.fromEntries(rewards.map(({ name, weight }) => [name, weight])),
      },
      objective: { metric: 'evalReward', goal: 'max' },
      start: async (trainer) => {
        if (beta > 0 && referenceModel)
          this.#reference = await referenceModel.createTrainer({ freezeBase: true, freezePlanner: true });
        const reference =
          this.#reference && referenceModel ? { model: referenceModel, trainer: this.#reference } : null;
        return new GrpoStage(model, trainer, reference, data, resolved);
      },
    };
  }

  /**
   * One yield per optimiser step, after its checkpoint where one is due. Once per trainer.
   * @param options `signal`: finishes the step under way, saves, and throws `signal.reason`
   * @throws DUltraError NON_FINITE naming the step, WRITE_FAILED, BAD_CHECKPOINT; whatever a reward throws.
   */
  train(options: { signal?: AbortSignal } = {}): AsyncGenerator<GrpoMetrics, void, void> {
    checkKeys('options', options, ['signal']);
    if (this.#run) throw new RangeError('train: expected one call per GrpoTrainer; make another to train on');
    this.#run = runStage<GrpoMetrics>({ ...this.#plan, signal: options.signal });
    return this.#run;
  }

  /** Ends the training and frees what it holds; the model keeps its weights as they are. */
  async dispose(): Promise<void> {
    await this.#run?.return();
    this.#reference?.dispose();
    this.#reference = null;
  }

  /** `dispose()` at the end of an `await using` block. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
}
