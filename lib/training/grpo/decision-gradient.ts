// dUltra's policy gradient: the planner's decisions of every denoising step, with the tokens that it unmasked, replayed.
import { mapRows } from '../../packing';
import type { Measured, StageContext } from '../loop';
import { type GrpoStepLoss, grpoLoss } from './loss';
import { referenceStepLoss } from './loss-reference';
import type { ResolvedGrpo } from './options';
import { type PolicyGradient, type ReferenceScorer, withReference } from './policy-gradient';
import { type ReplayRow, type Rollouts, recordRollouts, replayBatches, replayRequest, splitByRow } from './replay';

/** Rollouts of one batch with their advantages; every update of the batch replays them. */
interface Experience extends Rollouts {
  advantages: Float64Array;
  /** Log-likelihoods under the reference model, one array per step; null without beta. */
  references: Float32Array[] | null;
}

export class DecisionGradient implements PolicyGradient {
  readonly #context: StageContext;
  readonly #options: ResolvedGrpo;
  readonly #reference: ReferenceScorer | null;
  #experience: Experience | null = null;

  /** @param reference null: the trained model without its adapters is the reference. */
  constructor(context: StageContext, options: ResolvedGrpo, reference: ReferenceScorer | null) {
    this.#context = context;
    this.#options = options;
    this.#reference = reference;
  }

  record(prompts: readonly Int32Array[], seed: bigint): Promise<Rollouts> {
    const { policy, maxTokens, blockLength, stopAtEos } = this.#options;
    const { model, training } = this.#context;
    const { tokenBudget } = training;
    return recordRollouts(model, prompts, { maxTokens, blockLength, stopAtEos, policy, seed, tokenBudget });
  }

  async begin(rollouts: Rollouts, advantages: Float64Array): Promise<Record<string, number>> {
    const { steps } = rollouts;
    const references = this.#options.beta > 0 ? await this.#scoreReference(steps) : null;
    this.#experience = { ...rollouts, advantages, references };
    return { forcedSteps: steps.filter(({ forced }) => forced).length / Math.max(1, steps.length) };
  }

  /** Log-likelihoods of all steps under the reference model. */
  #scoreReference(steps: ReplayRow[]): Promise<Float32Array[]> {
    const { policy } = this.#options;
    const { tokenBudget } = this.#context.training;
    const { config } = this.#context.model;
    return withReference(this.#context, this.#reference, async ({ model, trainer }) => {
      const out = new Array<Float32Array>(steps.length);
      const all = steps.map((row, index) => ({ row, index }));
      for await (const { items, cached } of replayBatches(model, all, ({ row }) => row, { policy, tokenBudget })) {
        const rows = items.map(({ row }) => row);
        const request = replayRequest(rows, policy, { config, keep: false, cached });
        const { logLikelihoods } = await trainer.score(request);
        for (const [i, part] of splitByRow(logLikelihoods!, rows).entries()) out[items[i].index] = part.slice();
      }
      return out;
    });
  }

  /** Scores the steps again under the current policy, and adds the loss's gradient. */
  async update(): Promise<Measured> {
    const { steps, advantages, references } = this.#experience!;
    const { model, trainer, training } = this.#context;
    const { policy, promptsPerStep, numGenerations, beta } = this.#options;
    const { config } = model;
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
        const { logLikelihoods } = await trainer.score(replayRequest(rows, policy, { config, keep: true, cached }));
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
}
