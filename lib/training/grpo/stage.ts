// One step of GRPO: rollouts under the current policy, their rewards and advantages, and the replay of every denoising
// step, whose log-likelihoods get the gradient.

import { optionError } from '../../errors';
import type { MaskedDiffusionModel } from '../../generation/masked-diffusion-model';
import type { GenerateResult } from '../../generation/types';
import type { ModelTrainer } from '../../model/trainer';
import { concatenate, mapRows } from '../../packing';
import { deriveSeed, Purpose } from '../../random';
import { correctRows, type RewardBatch } from '../../rewards';
import { mean, standardDeviation } from '../../statistics';
import { show } from '../../text';
import type { TrainingRow } from '../data';
import { writeAnswers } from '../exact-matches';
import type { Measured, Stage, StageContext, TrainingMetrics } from '../loop';
import { samplesOf } from '../samples';
import { computeAdvantages, totalRewards } from './advantages';
import { type GrpoStepLoss, grpoLoss } from './loss';
import { referenceStepLoss } from './loss-reference';
import type { ResolvedGrpo } from './options';
import { type ReplayRow, type Rollouts, recordRollouts, replayBatches, replayRequest, splitByRow } from './replay';

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
  /** Share of denoising steps in which no position was drawn and the most probable one was unmasked. */
  forcedSteps: number;
  /** Largest |ratio − 1| of a step. */
  ratioDeviation: number;
  /**
   * Share of replayed steps whose ratio fell below 1 − low with a negative advantage: they contribute no policy
   * gradient.
   */
  clippedLow: number;
  /** Share of replayed steps whose ratio rose above 1 + high with a positive advantage; likewise. */
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

/** Rollouts of one batch with their advantages; every update of the batch replays them. */
interface Experience extends Rollouts {
  batch: number;
  advantages: Float64Array;
  /** Log-likelihoods under the reference model, one array per step; null without beta. */
  references: Float32Array[] | null;
  metrics: Record<string, number>;
}

/** The frozen reference model and the trainer that scores it. */
export interface ReferenceScorer {
  model: MaskedDiffusionModel;
  trainer: ModelTrainer;
}

/** The part of the training loop that is GRPO's: rollouts, rewards, advantages, replay, evaluation. */
export class GrpoStage implements Stage {
  readonly #context: StageContext;
  readonly #options: ResolvedGrpo;
  readonly #reference: ReferenceScorer | null;
  readonly stepsPerBatch: number;
  #experience: Experience | null = null;

  /** @param reference null: the trained model without its adapters is the reference. */
  constructor(context: StageContext, options: ResolvedGrpo, reference: ReferenceScorer | null) {
    this.#context = context;
    this.#options = options;
    this.#reference = reference;
    this.stepsPerBatch = options.numIterations;
  }

  /** Adds the gradients of one update: the first of a batch draws its rollouts. */
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

  /** Draws the rollouts of a batch and computes their advantages. */
  async #collect(batch: number): Promise<Experience> {
    const { model, data, training } = this.#context;
    const { promptsPerStep, numGenerations, policy, maxTokens, blockLength, stopAtEos } = this.#options;
    const examples = data.train(batch, promptsPerStep * training.gradientAccumulation);
    const rows = examples.flatMap((example) => new Array<TrainingRow>(numGenerations).fill(example));
    const prompts = examples.flatMap((example) =>
      new Array<Int32Array>(numGenerations).fill(model.encodePrompt(example.prompt)),
    );
    const rollouts = await recordRollouts(model, prompts, {
      maxTokens,
      blockLength,
      stopAtEos,
      policy,
      seed: deriveSeed(training.seed, Purpose.rollouts, batch),
      tokenBudget: training.tokenBudget,
    });
    const { totals, metrics, samples } = await this.#judge(rows, rollouts.results, numGenerations);
    this.#context.show('train', samples);
    const { beta } = this.#options;
    const advantages = await this.#advantages(totals);
    metrics.zeroAdvantage = advantages.filter((advantage) => advantage === 0).length / advantages.length;
    metrics.forcedSteps = rollouts.steps.filter(({ forced }) => forced).length / rollouts.steps.length;
    const references = beta > 0 ? await this.#scoreReference(rollouts.steps) : null;
    return { ...rollouts, batch, advantages, references, metrics };
  }

  /** Weighted rewards of completions, with their means and those of NFE and accuracy as metrics. */
  async #judge(
    examples: TrainingRow[],
    results: GenerateResult[],
    groupSize: number,
  ): Promise<{ totals: Float64Array; metrics: Record<string, number>; samples: ReturnType<typeof samplesOf> }> {
    const { model, data } = this.#context;
    const { rewards, maxTokens } = this.#options;
    const completions = results.map(({ text }) => text);
    const batch: RewardBatch = { completions, examples, results, maxTokens, verify: data.verify, model };
    const metrics: Record<string, number> = {};
    const columns: { name: string; values: ArrayLike<number | null>; weight: number }[] = [];
    for (const { name, fn, weight } of rewards) {
      const values = checkRewards(name, await fn(batch), results.length);
      columns.push({ name, values, weight });
      const counted = await this.#allRows(Array.from(values, (value) => value ?? Number.NaN));
      if (counted.length > 0) metrics[`reward/${name}`] = mean(counted);
    }
    const totals = totalRewards(columns, results.length);
    const counted = await this.#allRows(totals);
    metrics.reward = counted.length > 0 ? mean(counted) : 0;
    metrics.rewardStd = standardDeviation(counted);
    // Without a verifier, rewards alone say what is right: a comparison with the answer may be another thing.
    const right = data.verify ? await correctRows(batch) : null;
    if (right) {
      const judged = await this.#allRows(right.map((value) => (value === null ? Number.NaN : Number(value))));
      if (judged.length > 0) metrics.accuracy = mean(judged);
    }
    metrics.nfe = mean(await this.#allRows(results.map(({ nfe }) => nfe)));
    metrics.tokensPerForward = mean(await this.#allRows(results.map(({ tokensPerForward }) => tokensPerForward)));
    const samples = samplesOf(examples, results, groupSize, (row) => ({
      reward: totals[row],
      rewards: Object.fromEntries(columns.map(({ name, values }) => [name, values[row]])),
      ...(right && { right: right[row] }),
    }));
    return { totals, metrics, samples };
  }

  /** Numbers of the rows of every process, NaN left out. */
  async #allRows(own: ArrayLike<number>): Promise<number[]> {
    const parts = await this.#context.group.allGather(Float64Array.from(own));
    return parts.flatMap((part) => Array.from(part)).filter((value) => !Number.isNaN(value));
  }

  /** Advantages of this process's rows; the batch that scales them is that of every process. */
  async #advantages(totals: Float64Array): Promise<Float64Array> {
    const { group } = this.#context;
    const { numGenerations: groupSize, scaleRewards, advantageMinClip } = this.#options;
    const parts = await group.allGather(totals);
    const before = parts.slice(0, group.rank).reduce((sum, { length }) => sum + length, 0);
    const all = concatenate(parts, Float64Array);
    const advantages = computeAdvantages(all, { groupSize, scaleRewards, advantageMinClip });
    return advantages.subarray(before, before + totals.length);
  }

  /** Log-likelihoods of all steps under the reference model. */
  async #scoreReference(steps: ReplayRow[]): Promise<Float32Array[]> {
    const { policy } = this.#options;
    const { tokenBudget } = this.#context.training;
    const { maskTokenId } = this.#context.model.config;
    const { model, trainer } = this.#reference ?? this.#context;
    if (!this.#reference) await trainer.setAdapters('off');
    const out = new Array<Float32Array>(steps.length);
    try {
      const all = steps.map((row, index) => ({ row, index }));
      for await (const { items, cached } of replayBatches(model, all, ({ row }) => row, { policy, tokenBudget })) {
        const rows = items.map(({ row }) => row);
        const request = replayRequest(rows, policy, { maskTokenId, keep: false, cached });
        const { logLikelihoods } = await trainer.score(request);
        for (const [i, part] of splitByRow(logLikelihoods!, rows).entries()) out[items[i].index] = part.slice();
      }
    } finally {
      if (!this.#reference) await trainer.setAdapters('on');
    }
    return out;
  }

  /** Scores the steps again under the current policy, and adds the loss's gradient. */
  async #replay({ steps, advantages, references }: Experience): Promise<Measured> {
    const { model, trainer, training } = this.#context;
    const { policy, promptsPerStep, numGenerations, beta } = this.#options;
    const { maskTokenId } = model.config;
    const { tokenBudget } = training;
    // A rollout without advantage has no gradient, unless the KL term gives it one.
    const useful = steps
      .map((row, index) => ({ row, advantage: advantages[row.rollout], reference: references?.[index] ?? null }))
      .filter(({ advantage }) => beta > 0 || advantage !== 0);
    const part = promptsPerStep * numGenerations;
    const sum = { loss: 0, tokens: 0, kl: 0, clippedLow: 0, clippedHigh: 0, ratioDeviation: 0 };
    for (let begin = 0; begin < advantages.length; begin += part) {
      const own = useful.filter(({ row }) => row.rollout >= begin && row.rollout < begin + part);
      for await (const { items, cached } of replayBatches(model, own, ({ row }) => row, { policy, tokenBudget })) {
        const rows = items.map(({ row }) => row);
        const { logLikelihoods } = await trainer.score(
          replayRequest(rows, policy, { maskTokenId, keep: true, cached }),
        );
        const dLogLikelihoods = mapRows(logLikelihoods!, rows, Float32Array, (current, row, i) => {
          const result = this.#loss(row, items[i].advantage, current, items[i].reference);
          sum.loss += result.loss;
          sum.kl += result.kl;
          if (result.clipped === 'low') sum.clippedLow++;
          if (result.clipped === 'high') sum.clippedHigh++;
          sum.ratioDeviation = Math.max(sum.ratioDeviation, Math.abs(result.ratio - 1));
          return result.dLogLikelihoods;
        });
        await trainer.backward({ dLogLikelihoods });
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
    const { clipEpsilonLow, clipEpsilonHigh, delta, beta } = this.#options;
    const { maxTokens, promptsPerStep, numGenerations, policy } = this.#options;
    const { gradientAccumulation: accumulation } = this.#context.training;
    const { oldLogLikelihoods } = row;
    const rollouts = promptsPerStep * numGenerations;
    const clip = { clipEpsilonLow, clipEpsilonHigh, delta, beta };
    const step = { advantage, logLikelihoods, oldLogLikelihoods, referenceLogLikelihoods: reference };
    return policy.compat === null
      ? grpoLoss(step, { ...clip, scale: 1 / (rollouts * maxTokens * accumulation) })
      : referenceStepLoss(step, row, { ...clip, rollouts, maxTokens, accumulation });
  }

  /** Mean reward, accuracy and NFE on held-out prompts. */
  async evaluate(): Promise<Record<string, number>> {
    const { model, data, training } = this.#context;
    const { evalSampler, maxTokens, blockLength, stopAtEos, policy } = this.#options;
    const { compat, cache } = policy;
    const options = {
      sampler: evalSampler,
      maxTokens,
      blockLength,
      ...(stopAtEos !== undefined && { stopAtEos }),
      ...(compat && { research: { compat } }),
      // As in rollouts, whose planner may see what its default does not.
      ...(cache?.type === 'blocks' && { cache }),
    };
    const examples = data.validation!(training.evalExamples);
    const results = await writeAnswers(model, examples, options, training.tokenBudget);
    const { metrics, samples } = await this.#judge(examples, results, 1);
    this.#context.show('validation', samples);
    const { reward, nfe, accuracy } = metrics;
    return { evalReward: reward, evalNfe: nfe, ...(accuracy !== undefined && { evalAccuracy: accuracy }) };
  }
}

/** Checks what a reward function returned. */
function checkRewards(name: string, values: ArrayLike<number | null>, rows: number): ArrayLike<number | null> {
  if (typeof values?.length !== 'number' || values.length !== rows)
    throw optionError(
      TypeError,
      `rewards.${name}`,
      `expected ${rows} numbers or nulls, got ${values?.length ?? String(values)}`,
    );
  for (let row = 0; row < rows; row++) {
    const value = values[row];
    if (value !== null && !Number.isFinite(value))
      throw optionError(
        TypeError,
        `rewards.${name}`,
        `expected a finite number or null for each row, got ${show(value)} for row ${row}`,
      );
  }
  return values;
}
