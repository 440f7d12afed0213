// The policy gradients that score tokens: rollouts of any sampler become rows with masks, whose log-probabilities get the
// gradient of an objective (objectives.ts).
import type { MaskedDiffusionModel } from '../../generation/masked-diffusion-model';
import type { GenerateResult } from '../../generation/types';
import { attendedGrid, firstBlocks, rowLength } from '../../model/blocks';
import type { CausalModel } from '../../model/causal-model';
import type { ModelTrainer } from '../../model/trainer';
import { concatenate, mapRows, packed, packRows } from '../../packing';
import { deriveSeed, Purpose, Random } from '../../random';
import { mean } from '../../statistics';
import type { Measured, StageContext } from '../loop';
import {
  type BatchSize,
  diffuGrpoLoss,
  oneStepRow,
  type Rollout,
  type ScoredTokens,
  type TokenLoss,
  type TokenRow,
  traceLoss,
  traceRows,
  wd1Loss,
  wd1Weights,
} from './objectives';
import type { ResolvedGrpo } from './options';
import { type Batch, type PolicyGradient, type ReferenceScorer, withReference } from './policy-gradient';
import type { Rollouts } from './replay';
import { teacherLogProbs } from './token-teacher';

/** A row with what stays as it was over the updates of its batch. */
interface ScoredRow extends TokenRow {
  /** null: the update is the first of its batch, whose policy made the rollouts. */
  old: Float32Array | null;
  reference: Float32Array | null;
}

/** A batch under work. */
interface Experience {
  batch: number;
  rollouts: Rollout[];
  advantages: Float64Array;
  /** A teacher's log-probabilities of each completion's tokens, NaN where it has none; null without a teacher. */
  teacher: Float32Array[] | null;
  /** Rows of each update. */
  rows: ScoredRow[][];
}

export class TokenGradient implements PolicyGradient {
  readonly #context: StageContext;
  readonly #options: ResolvedGrpo;
  readonly #reference: ReferenceScorer | null;
  readonly #teacher: CausalModel | null;
  #experience: Experience | null = null;

  constructor(
    context: StageContext,
    options: ResolvedGrpo,
    reference: ReferenceScorer | null,
    teacher: CausalModel | null,
  ) {
    this.#context = context;
    this.#options = options;
    this.#reference = reference;
    this.#teacher = teacher;
  }

  async record(prompts: readonly Int32Array[], seed: bigint): Promise<Rollouts> {
    const { maxTokens, blockLength, stopAtEos, policy, objective } = this.#options;
    const { model, training } = this.#context;
    const rollouts: Rollouts = { results: [], steps: [], tokens: 0 };
    const lengthOf = (prompt: Int32Array) => rowLength(prompt.length + maxTokens, model.config);
    for (const batch of packRows(prompts, lengthOf, training.tokenBudget)) {
      const results = await model.generateBatch(
        batch.map((promptIds) => ({ promptIds })),
        {
          sampler: objective.rolloutSampler,
          maxTokens,
          blockLength,
          ...(stopAtEos !== undefined && { stopAtEos }),
          temperature: policy.temperature,
          seed,
          research: { firstRow: rollouts.results.length },
        },
      );
      results.forEach((result, i) => {
        rollouts.tokens += Math.round(result.fullForwards * lengthOf(batch[i]));
      });
      rollouts.results.push(...results);
    }
    return rollouts;
  }

  async begin(
    { results }: Rollouts,
    advantages: Float64Array,
    { batch, examples }: Batch,
  ): Promise<Record<string, number>> {
    const { objective, numGenerations, numIterations, beta } = this.#options;
    const isWeighted = objective.objective === 'wd1';
    const rollouts = results.map((result) => rolloutOf(result, this.#context.model));
    const teacher = this.#teacher && (await teacherLogProbs(this.#teacher, this.#context.model, results, examples));
    const experience: Experience = {
      batch,
      rollouts,
      advantages: isWeighted ? wd1Weights(advantages, numGenerations) : advantages,
      teacher,
      rows: [],
    };
    for (let iteration = 0; iteration < numIterations; iteration++) {
      const rows = this.#rowsOf(experience, iteration).map((row) => ({ ...row, old: null, reference: null }));
      experience.rows.push(rows);
    }
    this.#experience = experience;
    const all = experience.rows.flat();
    // Before the first update the policy is that of the rollouts; later ones need its numbers.
    if (numIterations > 1 && !isWeighted) await this.#scoreAll(this.#context.trainer, all, 'old');
    if (beta > 0 && objective.klTo === 'reference')
      await withReference(this.#context, this.#reference, ({ trainer }) => this.#scoreAll(trainer, all, 'reference'));
    if (!teacher) return {};
    const known = teacher.flatMap((logProbs) => Array.from(logProbs)).filter((value) => !Number.isNaN(value));
    return { teacherLogProb: known.length > 0 ? mean(known) : 0 };
  }

  /** The rows of an update. */
  #rowsOf({ batch, rollouts }: Experience, iteration: number): TokenRow[] {
    const { objective, shrink, promptMask } = this.#options.objective;
    const { model, training } = this.#context;
    const { maskTokenId, eosTokenId } = model.config;
    const isOneStep = objective === 'diffu-grpo' || objective === 'wd1';
    return rollouts.flatMap((rollout, index) => {
      if (isOneStep) {
        const random = new Random(deriveSeed(training.seed, Purpose.masks, batch, iteration, index));
        const uniforms = Float64Array.from({ length: rollout.begin }, random.uniform);
        const row = oneStepRow(rollout, { promptMask, uniforms, maskTokenId });
        return row.positions.length > 0 ? [{ ...row, rollout: index }] : [];
      }
      const rows = traceRows(rollout, {
        shrink,
        maskTokenId,
        padId: eosTokenId,
        keptPads: 1,
        grid: attendedGrid(model.config, rollout.begin),
      });
      return rows.map((row) => ({ ...row, rollout: index }));
    });
  }

  /** Log-probabilities of the rows' tokens. */
  async #score(trainer: ModelTrainer, rows: readonly TokenRow[], keep: boolean): Promise<Float32Array> {
    const { policy } = this.#options;
    const { config } = this.#context.model;
    const { rollouts } = this.#experience!;
    const { logProbs } = await trainer.score({
      ...packed(rows),
      firstBlocks: firstBlocks(
        config,
        rows.map(({ rollout }) => rollouts[rollout].begin),
      ),
      tokens: concatenate(
        rows.map(({ tokens }) => tokens),
        Int32Array,
      ),
      temperature: policy.tokenLogProb === 'tempered' ? policy.temperature : 0,
      excludedToken: config.maskTokenId,
      keep,
    });
    return logProbs!;
  }

  async #scoreAll(trainer: ModelTrainer, rows: readonly ScoredRow[], key: 'old' | 'reference'): Promise<void> {
    for (const batch of packRows(rows, ({ ids }) => ids.length, this.#context.training.tokenBudget)) {
      const logProbs = await this.#score(trainer, batch, false);
      mapRows(logProbs, batch, Float32Array, (part, row) => {
        row[key] = part.slice();
        return part;
      });
    }
  }

  /** What stands for the advantage of a row's tokens. */
  #advantageOf(
    { advantages, teacher, rollouts }: Experience,
    row: ScoredRow,
    old: Float32Array,
  ): number | Float32Array {
    if (!teacher) return advantages[row.rollout];
    const { begin } = rollouts[row.rollout];
    return old.map((logProb, i) => {
      const wanted = teacher[row.rollout][row.positions[i] - begin];
      return Number.isNaN(wanted) ? 0 : wanted - logProb;
    });
  }

  #loss(row: ScoredTokens, size: BatchSize & { groups: number }): TokenLoss {
    const { clipEpsilonLow, clipEpsilonHigh, delta, beta, objective } = this.#options;
    const { klTo, lossPer } = objective;
    const options = { clipEpsilonLow, clipEpsilonHigh, delta, beta, klTo, lossPer };
    if (objective.objective === 'wd1') return wd1Loss(row, size.groups);
    return objective.objective === 'diffu-grpo' ? diffuGrpoLoss(row, size, options) : traceLoss(row, size, options);
  }

  async update(iteration: number): Promise<Measured> {
    const experience = this.#experience!;
    const { trainer, training } = this.#context;
    const { beta, numGenerations } = this.#options;
    const rows = experience.rows[iteration];
    const size = await this.#sizeOf(rows, experience.rollouts.length / numGenerations);
    // A rollout without advantage has no gradient, unless a KL term or a teacher gives it one.
    const useful = rows.filter(
      ({ rollout }) => beta > 0 || experience.teacher !== null || experience.advantages[rollout] !== 0,
    );
    const sum = { loss: 0, tokens: 0, kl: 0, clippedLow: 0, clippedHigh: 0, ratioDeviation: 0, scored: 0, gap: 0 };
    for (const batch of packRows(useful, ({ ids }) => ids.length, training.tokenBudget)) {
      const logProbs = await this.#score(trainer, batch, true);
      const dLogProbs = mapRows(logProbs, batch, Float32Array, (part, row) => {
        const old = row.old ?? part.slice();
        const advantage = this.#advantageOf(experience, row, old);
        if (typeof advantage !== 'number') for (const gap of advantage) sum.gap += gap;
        const result = this.#loss(
          { logProbs: part, oldLogProbs: old, referenceLogProbs: row.reference, advantage },
          size,
        );
        sum.loss += result.loss;
        sum.kl += result.kl;
        sum.clippedLow += result.clippedLow;
        sum.clippedHigh += result.clippedHigh;
        sum.scored += part.length;
        sum.ratioDeviation = Math.max(sum.ratioDeviation, result.ratioDeviation);
        return result.dLogProbs;
      });
      await trainer.backward({ dLogProbs });
      sum.tokens += batch.reduce((count, { ids }) => count + ids.length, 0);
    }
    const count = Math.max(1, sum.scored);
    return {
      loss: sum.loss,
      tokens: sum.tokens,
      replayedSteps: useful.length,
      ratioDeviation: sum.ratioDeviation,
      clippedLow: sum.clippedLow / count,
      clippedHigh: sum.clippedHigh / count,
      ...(beta > 0 && { kl: sum.kl / count }),
      ...(experience.teacher && { reverseKl: -sum.gap / count }),
    };
  }

  /** How much there is in the batch, over every process. */
  async #sizeOf(rows: readonly TokenRow[], groups: number): Promise<BatchSize & { groups: number }> {
    const tokens = rows.reduce((count, { positions }) => count + positions.length, 0);
    const parts = await this.#context.group.allGather(Float64Array.of(tokens, rows.length, groups));
    const total = (i: number) => parts.reduce((sum, part) => sum + part[i], 0);
    return { tokens: total(0), rows: total(1), groups: total(2) };
  }
}

/** A result of `generate` as a rollout; rows of a model that attends by blocks end with one. */
function rolloutOf({ promptIds, ids, tokens, unmaskedAt }: GenerateResult, { config }: MaskedDiffusionModel): Rollout {
  const begin = promptIds.length;
  const whole = new Int32Array(rowLength(begin + ids.length, config)).fill(config.maskTokenId);
  whole.set(promptIds);
  whole.set(ids, begin);
  const steps = new Float64Array(whole.length - begin).fill(Number.POSITIVE_INFINITY);
  unmaskedAt.forEach((step, i) => {
    if (step > 0) steps[i] = step;
  });
  return { ids: whole, begin, counted: tokens, steps };
}
