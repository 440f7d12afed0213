// One step of GRPO: rollouts under the current policy, their rewards and advantages, and the replay of every denoising
// step, whose log-likelihoods get the gradient.

import { gatherArrays, gatherJson, ownRange } from '../../distributed/process-group';
import { optionError } from '../../errors';
import type { GenerateResult } from '../../generation/types';
import { concatenate } from '../../packing';
import { deriveSeed, Purpose } from '../../random';
import { correctRows, type RewardBatch } from '../../rewards';
import { mean, standardDeviation } from '../../statistics';
import { show } from '../../text';
import type { TrainingRow } from '../data';
import { writeAnswers } from '../exact-matches';
import type { Measured, Stage, StageContext, TrainingMetrics } from '../loop';
import { samplesOf } from '../samples';
import { computeAdvantages, totalRewards } from './advantages';
import { gatherSteps } from './exchange';
import { groupCounts, normalizeWithinGroups } from './group-filter';
import type { ResolvedGrpo } from './options';
import { joinRollouts, type PolicyGradient, selectRollouts } from './policy-gradient';
import type { Rollouts } from './replay';
import { aboutModel, type JudgedRow } from './reward-rows';
import type { TeacherRanks } from './teacher-ranks';
import { ofOwnTokens, type TeacherRow, type TeacherScore, teacherRows } from './token-teacher';

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
  /** Replayed (rollout, step) pairs; of objectives that score tokens, rows that were scored. */
  replayedSteps: number;
  /**
   * Objective "dultra": share of denoising steps in which no position was drawn and the most probable one was unmasked.
   */
  forcedSteps?: number;
  /** Largest |ratio − 1| of a step, or of a token. */
  ratioDeviation: number;
  /**
   * Share of replayed steps (or tokens) whose ratio fell below 1 − low with a negative advantage: they contribute no policy
   * gradient.
   */
  clippedLow: number;
  /** Share of those whose ratio rose above 1 + high with a positive advantage; likewise. */
  clippedHigh: number;
  /** Mean KL estimate per replayed step (or token), with beta > 0. */
  kl?: number;
  /** With `filterGroups`: groups that count, as a share of those wanted, and how often others were drawn. */
  keptGroups?: number;
  resamples?: number;
  /** Objective "distillation": the teacher's mean log-probability of a token, and the model's minus it. */
  teacherLogProb?: number;
  reverseKl?: number;
  /** Mean reward on held-out prompts, in the steps that evaluate. */
  evalReward?: number;
  /** Share of right completions there, where the data set can tell. */
  evalAccuracy?: number;
  /** Forward passes per held-out prompt. */
  evalNfe?: number;
  [reward: `reward/${string}`]: number;
}

/** Rollouts with what is known of each of them, in groups of one prompt. */
interface Judged {
  rollouts: Rollouts;
  examples: TrainingRow[];
  columns: { name: string; values: ArrayLike<number | null>; weight: number }[];
  totals: Float64Array;
  right: (boolean | null)[] | null;
  /** What a teacher on other processes has said of each rollout's tokens; null: there is none. */
  teacher: Float32Array[] | null;
}

/** What other processes have been asked about some rollouts. */
interface Asked {
  /** By the reward's name. */
  rewards: Map<string, Promise<(number | null)[]>>;
  teacher: Promise<Float32Array[]> | null;
}

/** The part of the training loop that is GRPO's: rollouts, rewards, advantages, replay, evaluation. */
export class GrpoStage implements Stage {
  readonly #context: StageContext;
  readonly #options: ResolvedGrpo;
  readonly #gradient: PolicyGradient;
  readonly #others: TeacherRanks | null;
  readonly stepsPerBatch: number;
  #batch = -1;
  #metrics: Record<string, number> = {};

  /** @param others processes that score for this one; null: there are none */
  constructor(context: StageContext, options: ResolvedGrpo, gradient: PolicyGradient, others: TeacherRanks | null) {
    this.#context = context;
    this.#options = options;
    this.#gradient = gradient;
    this.#others = others;
    this.stepsPerBatch = options.numIterations;
    if (options.policy.compat !== null && context.group.size > 1)
      throw optionError(
        RangeError,
        'compat',
        'expected none with several processes: rows of a batch then depend on each other',
      );
  }

  /** Adds the gradients of one update: the first of a batch draws its rollouts. */
  async accumulate(step: number): Promise<Measured> {
    const { numIterations } = this.#options;
    const batch = Math.floor(step / numIterations);
    let tokens = 0;
    if (this.#batch !== batch) {
      tokens += await this.#collect(batch);
      this.#batch = batch;
    }
    const replayed = await this.#gradient.update(step % numIterations);
    return { ...this.#metrics, ...replayed, tokens: tokens + replayed.tokens };
  }

  /** Draws the rollouts of a batch and computes their advantages. @returns tokens of their passes */
  async #collect(batch: number): Promise<number> {
    const { data, training } = this.#context;
    const { promptsPerStep, numGenerations: groupSize, filter } = this.#options;
    const prompts = promptsPerStep * training.gradientAccumulation;
    const draws: Judged[] = [];
    /** Groups that count, as the draw and the place in it. */
    const kept: { draw: number; group: number }[] = [];
    for (let attempt = 0; attempt <= (filter?.resamples ?? 0) && kept.length < prompts; attempt++) {
      const examples = data.train(batch, prompts, attempt);
      const draw = await this.#draw(
        examples,
        deriveSeed(training.seed, Purpose.rollouts, batch, ...(attempt > 0 ? [attempt] : [])),
      );
      draws.push(draw);
      for (const group of examples.keys())
        if (kept.length < prompts && (!filter || this.#counts(draw, group)))
          kept.push({ draw: draws.length - 1, group });
    }
    const [first] = draws;
    this.#context.show('train', this.#samples(first, groupSize));
    const metrics = this.#measure(draws);
    const rowsOf = (index: number) =>
      kept.flatMap(({ draw, group }) =>
        draw === index ? Array.from({ length: groupSize }, (_, i) => group * groupSize + i) : [],
      );
    const parts = draws.map((draw, index) => ({ draw, rows: rowsOf(index) }));
    const rollouts = joinRollouts(
      parts.map(({ draw, rows }) =>
        rows.length === draw.totals.length ? draw.rollouts : selectRollouts(draw.rollouts, rows),
      ),
    );
    const examples = parts.flatMap(({ draw, rows }) => rows.map((row) => draw.examples[row]));
    const teacher = first.teacher && parts.flatMap(({ draw, rows }) => rows.map((row) => draw.teacher![row]));
    const totals = parts.map(({ draw, rows }) => {
      const scaled = this.#scaled(draw);
      return Float64Array.from(rows, (row) => scaled[row]);
    });
    const { scaleRewards, advantageMinClip } = this.#options;
    const advantages = computeAdvantages(concatenate(totals, Float64Array), {
      ...{ groupSize, scaleRewards, advantageMinClip },
    });
    metrics.zeroAdvantage =
      advantages.length === 0 ? 0 : advantages.filter((advantage) => advantage === 0).length / advantages.length;
    if (filter) {
      metrics.keptGroups = kept.length / prompts;
      metrics.resamples = draws.length - 1;
    }
    Object.assign(metrics, await this.#gradient.begin(rollouts, advantages, { batch, examples, teacher }));
    this.#metrics = metrics;
    return draws.reduce((sum, draw) => sum + draw.rollouts.tokens, 0);
  }

  /** Groups of rollouts of some examples, judged. Each process draws whole groups: a reward may compare the rows of one. */
  async #draw(all: readonly TrainingRow[], seed: bigint): Promise<Judged> {
    const { model, group } = this.#context;
    const { numGenerations } = this.#options;
    const own = ownRange(all.length, group);
    const firstRow = own.begin * numGenerations;
    const examples = all.slice(own.begin, own.end);
    const rows = examples.flatMap((example) => new Array<TrainingRow>(numGenerations).fill(example));
    const prompts = examples.flatMap((example) =>
      new Array<Int32Array>(numGenerations).fill(model.encodePrompt(example.prompt)),
    );
    const asked: Asked[] = [];
    const rollouts = await this.#gradient.record(prompts, seed, firstRow, (first, results) =>
      asked.push(this.#ask(rows.slice(first, first + results.length), results, this.#others?.has('teacher') ?? false)),
    );
    const judged = await this.#judge(rows, rollouts, asked);
    await rollouts.scored;
    const numbers = rows.map((_, i) => firstRow + i);
    const each = all.flatMap((example) => new Array<TrainingRow>(numGenerations).fill(example));
    return this.#gather(judged, numbers, each);
  }

  /** Asks other processes what they can say of completions. @param withTeacher also of their tokens */
  #ask(examples: readonly TrainingRow[], results: readonly GenerateResult[], withTeacher: boolean): Asked {
    const { model } = this.#context;
    const asked: Asked = { rewards: new Map(), teacher: null };
    const others = this.#others;
    if (!others) return asked;
    const cost = ({ promptIds, tokens }: GenerateResult) => promptIds.length + tokens;
    const costOf = ({ result }: { result: GenerateResult }) => cost(result);
    const judged: JudgedRow[] = results.map((result, i) => ({ prompt: examples[i].prompt, result }));
    for (const { name } of this.#options.rewards)
      if (others.has(`reward ${name}`))
        asked.rewards.set(name, others.ask(`reward ${name}`, judged, costOf, aboutModel(model)));
    if (withTeacher) {
      const rows = teacherRows(model, results, examples);
      asked.teacher = others
        .ask<TeacherRow, TeacherScore>('teacher', rows, ({ ids }) => ids.length)
        .then((scores) => results.map((result, i) => ofOwnTokens(model, result, rows[i], scores[i])));
      asked.teacher.catch(() => {});
    }
    return asked;
  }

  /**
   * The rows of all processes, each judged where it was written.
   * @param rows numbers of this process's rows @param examples of all rows
   */
  async #gather(own: Judged, rows: readonly number[], examples: TrainingRow[]): Promise<Judged> {
    const { group, training } = this.#context;
    const { results, tokens } = own.rollouts;
    const steps = await gatherSteps(group, own.rollouts.steps);
    // Whoever has drawn a rollout, micro-batches are cut from the same list.
    if (training.reduction === 'exact') steps.sort((a, b) => a.rollout - b.rollout || a.step - b.step);
    if (group.size === 1) return { ...own, rollouts: { ...own.rollouts, steps } };
    const lengths = (all: readonly GenerateResult[]) => all.map(({ ids }) => ids.length);
    const columns = own.columns.map(({ values }) => Array.from(values));
    const parts = await gatherJson(group, { rows, results, tokens, columns, right: own.right });
    const order = parts.flatMap((part) => part.rows.map((row, i) => ({ row, i, part }))).sort((a, b) => a.row - b.row);
    const judged = own.columns.map((column, at) => ({
      ...column,
      values: order.map(({ part, i }) => part.columns[at][i]),
    }));
    const all = order.map(({ part, i }) => revived(part.results[i]));
    const said = new Map(own.teacher?.map((values, i) => [rows[i], values]));
    return {
      rollouts: {
        results: all,
        steps,
        tokens: parts.reduce((sum, part) => sum + part.tokens, 0),
      },
      examples,
      columns: judged,
      totals: totalRewards(judged, order.length),
      right: own.right && order.map(({ part, i }) => part.right![i]),
      teacher: own.teacher && (await gatherArrays(group, said, lengths(all))),
    };
  }

  /** Whether a group of a draw counts. */
  #counts({ totals, rollouts, right }: Judged, group: number): boolean {
    const { numGenerations, filter } = this.#options;
    const begin = group * numGenerations;
    const end = begin + numGenerations;
    return groupCounts(
      {
        rewards: totals.subarray(begin, end),
        tokensPerForward: rollouts.results.slice(begin, end).map(({ tokensPerForward }) => tokensPerForward),
        right: right?.slice(begin, end) ?? [],
      },
      filter!,
    );
  }

  /** What advantages are computed of: the weighted sum of rewards as they are, or of each one normalised in its group. */
  #scaled({ totals, columns }: Judged): Float64Array {
    const { normalizeRewards, numGenerations } = this.#options;
    if (normalizeRewards === 'none') return totals;
    const normalised = columns.map((column) => ({
      ...column,
      values: normalizeWithinGroups(column.values, numGenerations),
    }));
    return totalRewards(normalised, totals.length);
  }

  /** Weighted rewards of completions, and which are right. @param asked of other processes, about the same rows */
  async #judge(examples: TrainingRow[], rollouts: Rollouts, asked: readonly Asked[]): Promise<Judged> {
    const { model, data } = this.#context;
    const { rewards, maxTokens } = this.#options;
    const { results } = rollouts;
    const completions = results.map(({ text }) => text);
    const batch: RewardBatch = { completions, examples, results, maxTokens, verify: data.verify, model };
    const judged = new Map<string, ArrayLike<number | null>>();
    for (const { name, fn } of rewards) {
      if (this.#others?.has(`reward ${name}`)) continue;
      // A process without rows has nothing to judge.
      judged.set(name, results.length === 0 ? [] : await fn(batch));
    }
    // Without a verifier, rewards alone say what is right: a comparison with the answer may be another thing.
    const right = data.verify ? await correctRows(batch) : null;
    // What others were asked is on its way meanwhile.
    const columns: Judged['columns'] = [];
    for (const { name, weight } of rewards) {
      const values = judged.get(name) ?? (await Promise.all(asked.map((part) => part.rewards.get(name)!))).flat();
      columns.push({ name, values: checkRewards(name, values, results.length), weight });
    }
    const teacher = this.#others?.has('teacher')
      ? (await Promise.all(asked.map((part) => part.teacher ?? []))).flat()
      : null;
    return { rollouts, examples, columns, totals: totalRewards(columns, results.length), right, teacher };
  }

  /** Means of rewards, NFE and accuracy over all completions of some draws, as metrics. */
  #measure(draws: readonly Judged[]): Record<string, number> {
    const metrics: Record<string, number> = {};
    const results = draws.flatMap(({ rollouts }) => rollouts.results);
    for (const [i, { name }] of this.#options.rewards.entries()) {
      const values = draws.flatMap(({ columns }) => Array.from(columns[i].values, (value) => value ?? Number.NaN));
      const counted = values.filter((value) => !Number.isNaN(value));
      if (counted.length > 0) metrics[`reward/${name}`] = mean(counted);
    }
    const counted = draws.flatMap(({ totals }) => Array.from(totals)).filter((value) => !Number.isNaN(value));
    metrics.reward = counted.length > 0 ? mean(counted) : 0;
    metrics.rewardStd = counted.length > 0 ? standardDeviation(counted) : 0;
    if (draws[0].right) {
      const judged = draws.flatMap((draw) => draw.right!.flatMap((value) => (value === null ? [] : [Number(value)])));
      if (judged.length > 0) metrics.accuracy = mean(judged);
    }
    metrics.nfe = mean(results.map(({ nfe }) => nfe));
    metrics.tokensPerForward = mean(results.map(({ tokensPerForward }) => tokensPerForward));
    return metrics;
  }

  #samples({ examples, rollouts, columns, totals, right }: Judged, groupSize: number): ReturnType<typeof samplesOf> {
    return samplesOf(examples, rollouts.results, groupSize, (row) => ({
      ...(columns.length > 0 && { reward: totals[row] }),
      rewards: Object.fromEntries(columns.map(({ name, values }) => [name, values[row]])),
      ...(right && { right: right[row] }),
    }));
  }

  /** Mean reward, accuracy and NFE on held-out prompts. */
  async evaluate(): Promise<Record<string, number>> {
    const { data, training } = this.#context;
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
    const own = await writeAnswers(this.#context, examples, options);
    const asked = this.#ask(own.examples, own.results, false);
    const answered = await this.#judge(own.examples, { results: own.results, steps: [], tokens: 0 }, [asked]);
    const judged = await this.#gather(answered, own.rows, examples);
    this.#context.show('validation', this.#samples(judged, 1));
    const { reward, nfe, accuracy } = this.#measure([judged]);
    return { evalReward: reward, evalNfe: nfe, ...(accuracy !== undefined && { evalAccuracy: accuracy }) };
  }
}

/** A result of another process, whose arrays went through JSON. */
function revived(result: GenerateResult): GenerateResult {
  const { ids, promptIds, unmaskedAt } = result;
  return {
    ...result,
    ...{ ids: Int32Array.from(ids), promptIds: Int32Array.from(promptIds), unmaskedAt: Int32Array.from(unmaskedAt) },
  };
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
