// The policy gradients that score tokens: rollouts of any sampler become rows with masks, whose log-probabilities get the
// gradient of an objective (objectives.ts).
import { gatherNumbers, ownRange } from '../../distributed/process-group';
import type { MaskedDiffusionModel } from '../../generation/masked-diffusion-model';
import type { GenerateResult } from '../../generation/types';
import { attendedGrid, firstBlocks, rowLength } from '../../model/blocks';
import type { CausalModel } from '../../model/causal-model';
import type { ModelTrainer } from '../../model/trainer';
import { concatenate, mapRows, packed, packRows } from '../../packing';
import { deriveSeed, Purpose, Random } from '../../random';
import { mean } from '../../statistics';
import type { Measured, StageContext } from '../loop';
import { numbered, ownBatches, type Sharing } from '../shares';
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

  async record(prompts: readonly Int32Array[], seed: bigint, firstRow: number): Promise<Rollouts> {
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
          research: { firstRow: firstRow + rollouts.results.length },
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
    const teacher = this.#teacher && (await this.#teacherLogProbs(this.#teacher, results, examples));
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

  /** How rows are dealt out. */
  get #sharing(): Sharing {
    const { training, group } = this.#context;
    return { group, reduction: training.reduction, tokenBudget: training.tokenBudget };
  }

  /** What the teacher says of all completions; each process asks it of its share. */
  async #teacherLogProbs(
    teacher: CausalModel,
    results: readonly GenerateResult[],
    examples: Batch['examples'],
  ): Promise<Float32Array[]> {
    const { model, group } = this.#context;
    const { begin, end } = ownRange(results.length, group);
    const own = await teacherLogProbs(teacher, model, results.slice(begin, end), examples.slice(begin, end));
    return this.#gatherArrays(
      new Map(own.map((logProbs, i) => [begin + i, logProbs])),
      results.map(({ ids }) => ids.length),
    );
  }

  /** Arrays of rows, wherever they were computed. @param lengths of all rows */
  async #gatherArrays(own: ReadonlyMap<number, Float32Array>, lengths: readonly number[]): Promise<Float32Array[]> {
    const width = Math.max(0, ...lengths);
    const all = await gatherNumbers(this.#context.group, lengths.length, width, own);
    return lengths.map((length, i) => Float32Array.from(all.subarray(i * width, i * width + length)));
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
    const scored = new Map<number, Float32Array>();
    for (const batch of ownBatches([numbered(rows)], ({ item }) => item.ids.length, this.#sharing)) {
      const own = batch.map(({ item }) => item);
      mapRows(await this.#score(trainer, own, false), own, Float32Array, (part, _, i) => {
        scored.set(batch[i].index, part.slice());
        return part;
      });
    }
    const all = await this.#gatherArrays(
      scored,
      rows.map(({ positions }) => positions.length),
    );
    for (const [i, row] of rows.entries()) row[key] = all[i];
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
    const { trainer, group } = this.#context;
    const { beta, numGenerations } = this.#options;
    const rows = experience.rows[iteration];
    const size = {
      tokens: rows.reduce((count, { positions }) => count + positions.length, 0),
      rows: rows.length,
      groups: experience.rollouts.length / numGenerations,
    };
    // A rollout without advantage has no gradient, unless a KL term or a teacher gives it one.
    const useful = rows.filter(
      ({ rollout }) => beta > 0 || experience.teacher !== null || experience.advantages[rollout] !== 0,
    );
    // Of each row: loss, KL, clipped below, clipped above, teacher's lead, deviation of the ratio.
    const measured = new Map<number, number[]>();
    for (const batch of ownBatches([numbered(useful)], ({ item }) => item.ids.length, this.#sharing)) {
      const own = batch.map(({ item }) => item);
      const dLogProbs = mapRows(await this.#score(trainer, own, true), own, Float32Array, (part, row, i) => {
        const old = row.old ?? part.slice();
        const advantage = this.#advantageOf(experience, row, old);
        let lead = 0;
        if (typeof advantage !== 'number') for (const gap of advantage) lead += gap;
        const { loss, kl, clippedLow, clippedHigh, ratioDeviation, dLogProbs } = this.#loss(
          { logProbs: part, oldLogProbs: old, referenceLogProbs: row.reference, advantage },
          size,
        );
        measured.set(batch[i].index, [loss, kl, clippedLow, clippedHigh, lead, ratioDeviation]);
        return dLogProbs;
      });
      await trainer.backward({ dLogProbs });
    }
    const numbers = await gatherNumbers(group, useful.length, 6, measured);
    const sums = [0, 0, 0, 0, 0];
    let ratioDeviation = 0;
    for (const index of useful.keys()) {
      for (const i of sums.keys()) sums[i] += numbers[6 * index + i];
      ratioDeviation = Math.max(ratioDeviation, numbers[6 * index + 5]);
    }
    const [loss, kl, clippedLow, clippedHigh, lead] = sums;
    const count = Math.max(
      1,
      useful.reduce((sum, { positions }) => sum + positions.length, 0),
    );
    return {
      loss,
      tokens: useful.reduce((sum, { ids }) => sum + ids.length, 0),
      replayedSteps: useful.length,
      ratioDeviation,
      clippedLow: clippedLow / count,
      clippedHigh: clippedHigh / count,
      ...(beta > 0 && { kl: kl / count }),
      ...(experience.teacher && { reverseKl: -lead / count }),
    };
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
