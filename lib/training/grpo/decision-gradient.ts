// dUltra's policy gradient: the planner's decisions of every denoising step, with the tokens that it unmasked, replayed.
import { gatherArrays, gatherNumbers, SINGLE_PROCESS } from '../../distributed/process-group';
import type { ModelConfig } from '../../model/config';
import type { Reduction } from '../../model/trainer';
import { mapRows } from '../../packing';
import type { Measured, StageContext } from '../loop';
import { BackwardPasses, numbered, type Sharing } from '../shares';
import { type GrpoStepLoss, grpoLoss } from './loss';
import { referenceStepLoss } from './loss-reference';
import type { ResolvedGrpo } from './options';
import { type OnBatch, type PolicyGradient, type ReferenceScorer, withReference } from './policy-gradient';
import {
  chainsOf,
  type PolicySettings,
  type ReplayRow,
  type Rollouts,
  recordRollouts,
  replayBatches,
  replayRequest,
  splitByRow,
} from './replay';
import type { TeacherRanks } from './teacher-ranks';

/** Rollouts of one batch with their advantages; every update of the batch replays them. */
interface Experience extends Rollouts {
  advantages: Float64Array;
  /** Log-likelihoods under the reference model, one array per step; null without beta. */
  references: Float32Array[] | null;
}

/** How steps are scored, whoever does. */
export interface StepScoring {
  policy: PolicySettings;
  /** Of the model that trains. */
  config: ModelConfig;
  reduction: Reduction;
  tokenBudget: number;
}

/** Log-likelihoods of this process's share of some steps, by the number of the step. */
async function scoreSteps(
  { model, trainer }: ReferenceScorer,
  steps: readonly ReplayRow[],
  { policy, config }: Pick<StepScoring, 'policy' | 'config'>,
  sharing: Sharing,
): Promise<Map<number, Float32Array>> {
  const out = new Map<number, Float32Array>();
  const batches = replayBatches(model, [numbered(steps)], ({ item }) => item, { ...sharing, policy });
  for await (const { items, cached } of batches) {
    const rows = items.map(({ item }) => item);
    const request = replayRequest(rows, policy, { config, keep: false, cached });
    const { logLikelihoods } = await trainer.score(request);
    for (const [i, part] of splitByRow(logLikelihoods!, rows).entries()) out.set(items[i].index, part.slice());
  }
  return out;
}

/** Log-likelihoods of each step of whole rollouts, under a model that is not trained. */
export async function scoreReferenceSteps(
  scorer: ReferenceScorer,
  rollouts: readonly ReplayRow[][],
  scoring: StepScoring,
): Promise<Float32Array[][]> {
  const scored = await scoreSteps(scorer, rollouts.flat(), scoring, { ...scoring, group: SINGLE_PROCESS });
  let index = 0;
  return rollouts.map((steps) => steps.map(() => scored.get(index++)!));
}

export class DecisionGradient implements PolicyGradient {
  readonly #context: StageContext;
  readonly #options: ResolvedGrpo;
  readonly #reference: ReferenceScorer | null;
  readonly #others: TeacherRanks | null;
  #experience: Experience | null = null;

  /**
   * @param reference null: the trained model without its adapters is the reference
   * @param others processes that hold the reference; null: this process does
   */
  constructor(
    context: StageContext,
    options: ResolvedGrpo,
    reference: ReferenceScorer | null,
    others: TeacherRanks | null,
  ) {
    this.#context = context;
    this.#options = options;
    this.#reference = reference;
    this.#others = others?.has('reference') ? others : null;
  }

  async record(prompts: readonly Int32Array[], seed: bigint, firstRow: number, onBatch: OnBatch): Promise<Rollouts> {
    const { policy, maxTokens, blockLength, stopAtEos } = this.#options;
    const { model, training } = this.#context;
    const { tokenBudget } = training;
    const asked: Promise<void>[] = [];
    const rollouts = await recordRollouts(model, prompts, {
      ...{ maxTokens, blockLength, stopAtEos, policy, seed, tokenBudget, firstRow },
      onBatch: (first, results, steps) => {
        onBatch(first, results);
        if (this.#others) asked.push(this.#askReference(this.#others, steps));
      },
    });
    return { ...rollouts, scored: Promise.all(asked) };
  }

  /** Asks other processes for what the reference says of whole rollouts, and writes it into their steps. */
  async #askReference(others: TeacherRanks, steps: readonly ReplayRow[]): Promise<void> {
    const rollouts = chainsOf(steps, (step) => step);
    const { policy } = this.#options;
    const { reduction, tokenBudget } = this.#context.training;
    const scoring: StepScoring = { policy, config: this.#context.model.config, reduction, tokenBudget };
    const scores = await others.ask<ReplayRow[], Float32Array[]>(
      'reference',
      rollouts,
      (own) => own.reduce((sum, { computed }) => sum + computed.length, 0),
      scoring,
    );
    for (const [i, own] of rollouts.entries())
      for (const [k, step] of own.entries()) step.referenceLogLikelihoods = scores[i][k];
  }

  /** How steps are dealt out. */
  get #sharing(): Sharing & { policy: ResolvedGrpo['policy'] } {
    const { training, group } = this.#context;
    const { tokenBudget, reduction } = training;
    return { group, reduction, tokenBudget, policy: this.#options.policy };
  }

  async begin(rollouts: Rollouts, advantages: Float64Array): Promise<Record<string, number>> {
    const { steps } = rollouts;
    const references = this.#options.beta > 0 ? await this.#scoreReference(steps) : null;
    this.#experience = { ...rollouts, advantages, references };
    return { forcedSteps: steps.filter(({ forced }) => forced).length / Math.max(1, steps.length) };
  }

  /** Log-likelihoods of all steps under the reference model; each process scores its share. */
  async #scoreReference(steps: ReplayRow[]): Promise<Float32Array[]> {
    if (this.#others) return steps.map(({ referenceLogLikelihoods }) => referenceLogLikelihoods ?? new Float32Array(0));
    const { policy } = this.#options;
    const { config } = this.#context.model;
    const scored = await withReference(this.#context, this.#reference, (scorer) =>
      scoreSteps(scorer, steps, { policy, config }, this.#sharing),
    );
    return gatherArrays(
      this.#context.group,
      scored,
      steps.map(({ positions }) => positions.length),
    );
  }

  /** Scores the steps again under the current policy, and adds the loss's gradient. */
  async update(): Promise<Measured> {
    const { steps, advantages, references } = this.#experience!;
    const { model, trainer, group } = this.#context;
    const { policy, promptsPerStep, numGenerations, beta } = this.#options;
    const { config } = model;
    // A rollout without advantage has no gradient, unless the KL term gives it one.
    const useful = steps
      .map((row, index) => ({ row, index, advantage: advantages[row.rollout], reference: references?.[index] ?? null }))
      .filter(({ advantage }) => beta > 0 || advantage !== 0);
    const part = promptsPerStep * numGenerations;
    const parts: (typeof useful)[] = [];
    for (let begin = 0; begin < advantages.length; begin += part)
      parts.push(useful.filter(({ row }) => row.rollout >= begin && row.rollout < begin + part));
    // Of each step: loss, KL, clipped below, clipped above, deviation of the ratio.
    const measured = new Map<number, number[]>();
    const passes = new BackwardPasses(trainer, { group, zeroStage: this.#context.training.zeroStage });
    for await (const { items, cached, count } of replayBatches(model, parts, ({ row }) => row, this.#sharing)) {
      const rows = items.map(({ row }) => row);
      const { logLikelihoods } = await trainer.score(replayRequest(rows, policy, { config, keep: true, cached }));
      const dLogLikelihoods = mapRows(logLikelihoods!, rows, Float32Array, (current, row, i) => {
        const { index, advantage, reference } = items[i];
        const { loss, kl, clipped, ratio, dLogLikelihoods } = this.#loss(row, advantage, current, reference);
        measured.set(index, [loss, kl, Number(clipped === 'low'), Number(clipped === 'high'), Math.abs(ratio - 1)]);
        return dLogLikelihoods;
      });
      await passes.add({ dLogLikelihoods }, count);
    }
    await passes.end();
    const numbers = await gatherNumbers(group, steps.length, 5, measured);
    const sum = [0, 0, 0, 0];
    let ratioDeviation = 0;
    for (const { index } of parts.flat()) {
      for (let i = 0; i < 4; i++) sum[i] += numbers[5 * index + i];
      ratioDeviation = Math.max(ratioDeviation, numbers[5 * index + 4]);
    }
    const [loss, kl, clippedLow, clippedHigh] = sum;
    const count = Math.max(1, useful.length);
    return {
      loss,
      tokens: useful.reduce((tokens, { row }) => tokens + row.computed.length, 0),
      replayedSteps: useful.length,
      ratioDeviation,
      clippedLow: clippedLow / count,
      clippedHigh: clippedHigh / count,
      ...(beta > 0 && { kl: kl / count }),
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
}
