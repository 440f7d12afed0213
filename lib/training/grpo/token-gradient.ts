// The policy gradients that score tokens: rollouts of any sampler become rows with masks, whose log-probabilities get the
// gradient of an objective (objectives.ts).
import { gatherArrays, gatherNumbers, ownRange } from '../../distributed/process-group';
import type { MaskedDiffusionModel } from '../../generation/masked-diffusion-model';
import type { GenerateResult } from '../../generation/types';
import { attendedGrid, firstBlocks, rowLength } from '../../model/blocks';
import type { CausalModel } from '../../model/causal-model';
import type { ModelConfig } from '../../model/config';
import type { ModelTrainer } from '../../model/trainer';
import { concatenate, mapRows, packed, packRows } from '../../packing';
import { deriveSeed, Purpose, Random } from '../../random';
import { mean } from '../../statistics';
import type { Measured, StageContext } from '../loop';
import { BackwardPasses, numbered, ownBatches, type Sharing } from '../shares';
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
import { type Batch, type OnBatch, type PolicyGradient, type ReferenceScorer, withReference } from './policy-gradient';
import type { PolicySettings, Rollouts } from './replay';
import type { TeacherRanks } from './teacher-ranks';
import { ofOwnTokens, scoreCompletions, teacherRows } from './token-teacher';

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
  readonly #others: TeacherRanks | null;
  #experience: Experience | null = null;

  /** @param others processes that score in place of reference and teacher; null: this process does */
  constructor(
    context: StageContext,
    options: ResolvedGrpo,
    { reference, teacher }: { reference: ReferenceScorer | null; teacher: CausalModel | null },
    others: TeacherRanks | null,
  ) {
    this.#context = context;
    this.#options = options;
    this.#reference = reference;
    this.#teacher = teacher;
    this.#others = others;
  }

  async record(
    prompts: readonly Int32Array[],
    seed: bigint,
    firstRow: number,
    onBatch: OnBatch = () => {},
  ): Promise<Rollouts> {
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
      onBatch(rollouts.results.length, results);
      rollouts.results.push(...results);
    }
    return rollouts;
  }

  async begin(
    { results }: Rollouts,
    advantages: Float64Array,
    { batch, examples, teacher: asked }: Batch,
  ): Promise<Record<string, number>> {
    const { objective, numGenerations, numIterations, beta } = this.#options;
    const isWeighted = objective.objective === 'wd1';
    const rollouts = results.map((result) => rolloutOf(result, this.#context.model));
    const teacher = asked ?? (this.#teacher && (await this.#teacherLogProbs(this.#teacher, results, examples)));
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
    const isCompared = beta > 0 && objective.klTo === 'reference';
    const others = isCompared && this.#others?.has('reference') ? this.#others : null;
    const references = others && this.#askReference(others, all);
    // Before the first update the policy is that of the rollouts; later ones need its numbers.
    if (numIterations > 1 && !isWeighted) await this.#scoreAll(this.#context.trainer, all, 'old');
    if (references) await this.#gatherScores(await references, all, 'reference');
    else if (isCompared)
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
    const own = results.slice(begin, end);
    const rows = teacherRows(model, own, examples.slice(begin, end));
    const scores = await scoreCompletions(teacher, rows);
    return gatherArrays(
      group,
      new Map(own.map((result, i) => [begin + i, ofOwnTokens(model, result, rows[i], scores[i])])),
      results.map(({ ids }) => ids.length),
    );
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
  #score(trainer: ModelTrainer, rows: readonly TokenRow[], keep: boolean): Promise<Float32Array> {
    return scoreTokens(trainer, this.#withBegins(rows), this.#scoring, keep);
  }

  #withBegins<T extends TokenRow>(rows: readonly T[]): (T & { begin: number })[] {
    const { rollouts } = this.#experience!;
    return rows.map((row) => ({ ...row, begin: rollouts[row.rollout].begin }));
  }

  get #scoring(): TokenScoring {
    const { model, training } = this.#context;
    return { config: model.config, policy: this.#options.policy, tokenBudget: training.tokenBudget };
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
    await this.#gatherScores(scored, rows, key);
  }

  /** Asks other processes what the reference says of this process's share of the rows. */
  async #askReference(others: TeacherRanks, rows: readonly ScoredRow[]): Promise<Map<number, Float32Array>> {
    const own = ownBatches([numbered(rows)], ({ item }) => item.ids.length, this.#sharing).flat();
    const asked = this.#withBegins(own.map(({ item }) => item)).map(({ ids, positions, tokens, begin }) => ({
      ...{ ids, positions, tokens, begin },
    }));
    const scores = await others.ask<ReferenceRow, Float32Array>(
      'reference',
      asked,
      ({ ids }) => ids.length,
      this.#scoring,
    );
    return new Map(own.map(({ index }, i) => [index, scores[i]]));
  }

  async #gatherScores(
    scored: ReadonlyMap<number, Float32Array>,
    rows: readonly ScoredRow[],
    key: 'old' | 'reference',
  ): Promise<void> {
    const all = await gatherArrays(
      this.#context.group,
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
    const batches = ownBatches([numbered(useful)], ({ item }) => item.ids.length, this.#sharing);
    const passes = new BackwardPasses(trainer, { group, zeroStage: this.#context.training.zeroStage });
    for (const batch of batches) {
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
      await passes.add({ dLogProbs }, batches.length);
    }
    await passes.end();
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

/** How tokens are scored, whoever does. */
export interface TokenScoring {
  /** Of the model that trains. */
  config: ModelConfig;
  policy: PolicySettings;
  tokenBudget: number;
}

/** A row whose tokens are scored, and where its completion begins. */
export type ReferenceRow = Pick<TokenRow, 'ids' | 'positions' | 'tokens'> & { begin: number };

/** Log-probabilities of the rows' tokens, one row after the other. */
async function scoreTokens(
  trainer: ModelTrainer,
  rows: readonly ReferenceRow[],
  { config, policy }: TokenScoring,
  keep: boolean,
): Promise<Float32Array> {
  const { logProbs } = await trainer.score({
    ...packed(rows),
    firstBlocks: firstBlocks(
      config,
      rows.map(({ begin }) => begin),
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

/** Log-probabilities of each row's tokens under a model that is not trained. */
export async function scoreReferenceRows(
  trainer: ModelTrainer,
  rows: readonly ReferenceRow[],
  scoring: TokenScoring,
): Promise<Float32Array[]> {
  const all: Float32Array[] = [];
  for (const batch of packRows(rows, ({ ids }) => ids.length, scoring.tokenBudget))
    mapRows(await scoreTokens(trainer, batch, scoring, false), batch, Float32Array, (part) => {
      all.push(part.slice());
      return part;
    });
  return all;
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
