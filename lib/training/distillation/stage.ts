// One step of distillation: rows of the model's own answers, a segment of each masked in two complementary views, and the
// certainty loss of both.
import { dealOut, gatherNumbers } from '../../distributed/process-group';
import { concatenate, packed, packRows } from '../../packing';
import { deriveSeed, Purpose, Random } from '../../random';
import { mean } from '../../statistics';
import type { TrainingRow } from '../data';
import { type AnswerOptions, exactMatches } from '../exact-matches';
import type { Measured, Stage, StageContext } from '../loop';
import { BackwardPasses, type Numbered, numbered } from '../shares';
import { certaintyLoss } from './loss';
import type { ResolvedDistillation } from './options';
import { type DistillationRow, encodeAnswer, type RowLengths, type Trajectories, trajectoryOfExample } from './rows';
import {
  countSegments,
  curriculumNoise,
  curriculumWindow,
  randomMask,
  type SegmentViews,
  segmentAt,
  segmentViews,
  trajectoryMask,
} from './segments';

/** What a stage has beside {@link ResolvedDistillation}. */
export interface DistillationStageOptions extends ResolvedDistillation {
  lengths: RowLengths;
  trajectories: Trajectories | null;
  /** How evaluations write answers; null: they do not. */
  answers: AnswerOptions | null;
}

/** A view of a row, as a pass takes it. */
interface View {
  ids: Int32Array;
  positions: Int32Array;
  tokens: Int32Array;
}

/** What a pass says of the masked tokens of views, one after the other. */
interface Scores {
  logProbs: Float32Array;
  entropies: Float32Array;
  correct: Uint8Array;
}

const slice = ({ logProbs, entropies, correct }: Scores, from: number, to?: number): Scores => ({
  logProbs: logProbs.subarray(from, to),
  entropies: entropies.subarray(from, to),
  correct: correct.subarray(from, to),
});

/** Rows whose tokens are averaged together: first views, then their complements in the same order. */
interface Group {
  views: View[];
  complements: View[];
}

const tokensOf = (views: readonly View[]): number => views.reduce((sum, { ids }) => sum + ids.length, 0);
const gradientsOf = (results: readonly { dLogProbs: Float32Array; dEntropies: Float32Array }[]) => ({
  dLogProbs: concatenate(
    results.map(({ dLogProbs }) => dLogProbs),
    Float32Array,
  ),
  dEntropies: concatenate(
    results.map(({ dEntropies }) => dEntropies),
    Float32Array,
  ),
});
const maskedOf = (views: readonly View[]): number => views.reduce((sum, { positions }) => sum + positions.length, 0);

/** Numbers of a group: loss, cross-entropy, entropy, correct tokens, masked tokens. */
const MEASURED = 5;

/** Sums over the groups of a step. */
class Sums {
  loss = 0;
  tokens = 0;
  readonly crossEntropy: number[] = [];
  readonly entropy: number[] = [];
  correct = 0;
  masked = 0;
}

export class DistillationStage implements Stage {
  readonly #context: StageContext;
  readonly #options: DistillationStageOptions;

  constructor(context: StageContext, options: DistillationStageOptions) {
    this.#context = context;
    this.#options = options;
  }

  #encode(example: TrainingRow): DistillationRow {
    const { model } = this.#context;
    const { lengths, trajectories, corruption } = this.#options;
    const trajectory =
      corruption.type === 'trajectory' ? trajectoryOfExample(example, trajectories, model.config.maskTokenId) : null;
    return encodeAnswer(model, example, lengths, trajectory);
  }

  /** A step's tokens per segment and least share of masks. */
  #schedule(step: number): { blockLength: number; low: number } {
    const { corruption, batchSize } = this.#options;
    const { data, training, maxSteps } = this.#context;
    if (corruption.type === 'certainty') return { blockLength: corruption.blockLength, low: 0 };
    const { windows, maskRatio } = corruption;
    const epoch =
      data.size === null
        ? (windows.length * step) / maxSteps
        : (step * batchSize * training.gradientAccumulation) / data.size;
    return { blockLength: curriculumWindow(windows, epoch), low: curriculumNoise(maskRatio, step, maxSteps) };
  }

  /** Masks a row. @param maskRatio share of its segment, where a trajectory decides */
  #mask(row: DistillationRow, random: Random, blockLength: number, maskRatio: number): SegmentViews {
    const { model } = this.#context;
    const { corruption, segments, compat, maskEpsilon: epsilon } = this.#options;
    const { ids, begin, length, trajectory } = row;
    const isReference = compat === 'reference';
    const choice = random.uniform();
    const count = countSegments(row, blockLength, { empty: isReference });
    const segment =
      segments === 'response'
        ? { begin, end: length }
        : segmentAt(row, blockLength, Math.min(count - 1, Math.floor(choice * count)));
    const uniforms = Float32Array.from(ids, random.uniform);
    const probability = corruption.type === 'certainty' ? corruption.maskProbability : maskRatio;
    const { isMasked } = trajectory
      ? trajectoryMask(trajectory, segment, {
          maskRatio,
          begin,
          shift: isReference ? 0 : begin - trajectory.promptTokens,
        })
      : { isMasked: randomMask(uniforms, { probability, epsilon }) };
    return segmentViews(ids, segment, isMasked, model.config.maskTokenId);
  }

  /** Rows whose means are taken together: each by itself, or those of a batch. */
  #groups(rows: readonly DistillationRow[], views: readonly SegmentViews[]): Group[] {
    const viewOf = (row: DistillationRow, ids: Int32Array, positions: Int32Array): View => ({
      ids,
      positions,
      tokens: positions.map((position) => row.ids[position]),
    });
    const groupOf = (from: number, to: number): Group => ({
      views: rows.slice(from, to).map((row, i) => viewOf(row, views[from + i].ids, views[from + i].positions)),
      complements: rows
        .slice(from, to)
        .map((row, i) => viewOf(row, views[from + i].complementIds, views[from + i].complementPositions)),
    });
    if (this.#options.corruption.type === 'trajectory') return [groupOf(0, rows.length)];
    return rows.map((_, i) => groupOf(i, i + 1));
  }

  /** Scores views, which together are a pass. */
  async #score(views: readonly View[], keep: boolean): Promise<Scores> {
    const tokens = concatenate(
      views.map((view) => view.tokens),
      Int32Array,
    );
    const { logProbs, entropies, argmax } = await this.#context.trainer.score({
      ...packed(views),
      tokens,
      confidences: true,
      entropyTemperature: this.#options.entropyTemperature,
      keep,
    });
    return {
      logProbs: logProbs!,
      entropies: entropies!,
      correct: Uint8Array.from(argmax!, (id, i) => Number(id === tokens[i])),
    };
  }

  /** Loss, numbers and gradients of a group. @param scored of all its views, one after the other */
  #loss(
    { views }: Group,
    scored: Scores,
    scale: number,
  ): { measured: number[]; dLogProbs: Float32Array; dEntropies: Float32Array } {
    const { entropyWeight, entropyOnComplement, divisor } = this.#options;
    const cut = maskedOf(views);
    const result = certaintyLoss(slice(scored, 0, cut), slice(scored, cut), {
      entropyWeight,
      entropyOnComplement,
      divisor: divisor / scale,
    });
    const measured = [
      result.loss,
      (result.crossEntropy + result.complementCrossEntropy) / 2,
      entropyOnComplement ? (result.entropy + result.complementEntropy) / 2 : result.entropy,
      scored.correct.reduce((sum, one) => sum + one, 0),
      scored.correct.length,
    ];
    const flat = (key: 'dLogProbs' | 'dEntropies') =>
      concatenate(
        result.gradients.map((gradient) => gradient[key]),
        Float32Array,
      );
    return { measured, dLogProbs: flat('dLogProbs'), dEntropies: flat('dEntropies') };
  }

  /**
   * Loss of groups; adds the gradients of this process's share where `train`. Groups that fit a pass together are dealt
   * out to the processes. One that is more than a pass takes is scored in parts, by all of them, for the means over all
   * of it, and then again part by part.
   * @param isLast whether they are the last of an update
   */
  async #run(
    groups: readonly Group[],
    { scale, sums, train, isLast }: { scale: number; sums: Sums; train: boolean; isLast: boolean },
  ): Promise<void> {
    const { group, training } = this.#context;
    const viewsOf = ({ views, complements }: Group) => [...views, ...complements];
    const sizeOf = ({ item }: Numbered<Group>) => tokensOf(viewsOf(item));
    const all = numbered(groups);
    const tokens = all.reduce((sum, one) => sum + sizeOf(one), 0);
    // Micro-batches of the exact reduction do not depend on the number of processes.
    const share = training.reduction === 'exact' ? tokens : Math.ceil(tokens / group.size);
    const budget = Math.max(1, Math.min(training.tokenBudget, share));
    const batches = packRows(all, sizeOf, budget);
    const isWhole = (batch: readonly Numbered<Group>[]) => batch.reduce((sum, one) => sum + sizeOf(one), 0) <= budget;
    const whole = batches.filter(isWhole);
    const ranks = dealOut(
      whole.map((batch) => batch.reduce((sum, one) => sum + sizeOf(one), 0)),
      group.size,
    );
    const measured = new Map<number, number[]>();
    const larger = batches.filter((one) => !isWhole(one)).flat();
    const own = whole.filter((_, i) => ranks[i] === group.rank);
    const passes = this.#passes(isLast && larger.length === 0);
    for (const batch of own) {
      const views = batch.flatMap(({ item }) => viewsOf(item));
      const scored = await this.#score(views, train);
      let at = 0;
      const results = batch.map(({ item, index }) => {
        const count = maskedOf(viewsOf(item));
        const result = this.#loss(item, slice(scored, at, at + count), scale);
        at += count;
        measured.set(index, result.measured);
        return result;
      });
      if (train) await passes.add(gradientsOf(results), own.length);
    }
    if (train) await passes.end();
    for (const [i, { item, index }] of larger.entries()) {
      const isEnd = isLast && i === larger.length - 1;
      const numbers = await this.#runInParts(item, viewsOf(item), { scale, budget, train, isLast: isEnd });
      if (group.rank === 0) measured.set(index, numbers);
    }
    const numbers = await gatherNumbers(group, groups.length, MEASURED, measured);
    sums.tokens += tokens;
    for (const index of groups.keys()) {
      const [loss, crossEntropy, entropy, correct, masked] = numbers.subarray(index * MEASURED, (index + 1) * MEASURED);
      sums.loss += loss;
      sums.crossEntropy.push(crossEntropy);
      sums.entropy.push(entropy);
      sums.correct += correct;
      sums.masked += masked;
    }
  }

  #passes(isLast: boolean): BackwardPasses {
    const { trainer, group, training } = this.#context;
    return new BackwardPasses(trainer, { group, zeroStage: training.zeroStage }, isLast);
  }

  /** A group that is more than a pass takes, shared by all processes. @returns its numbers, on every process the same */
  async #runInParts(
    whole: Group,
    views: readonly View[],
    { scale, budget, train, isLast }: { scale: number; budget: number; train: boolean; isLast: boolean },
  ): Promise<number[]> {
    const { group } = this.#context;
    const parts = packRows(views, ({ ids }) => ids.length, budget);
    const ranks = dealOut(parts.map(tokensOf), group.size);
    const own = [...parts.keys()].filter((part) => ranks[part] === group.rank);
    const keep = train && own.length === 1;
    const counts = parts.map(maskedOf);
    const scores = new Map<number, Float64Array>();
    for (const part of own) {
      const { logProbs, entropies, correct } = await this.#score(parts[part], keep);
      const numbers = new Float64Array(3 * counts[part]);
      numbers.set(logProbs);
      numbers.set(entropies, counts[part]);
      numbers.set(correct, 2 * counts[part]);
      scores.set(part, numbers);
    }
    const width = 3 * Math.max(0, ...counts);
    // Shorter ones are padded.
    const padded = new Map(
      [...scores].map(([part, numbers]) => {
        const row = new Float64Array(width);
        row.set(numbers);
        return [part, row] as const;
      }),
    );
    const all = await gatherNumbers(group, parts.length, width, padded);
    const of = (which: number) =>
      parts.map((_, part) => {
        const from = part * width + which * counts[part];
        return all.subarray(from, from + counts[part]);
      });
    const result = this.#loss(
      whole,
      {
        logProbs: Float32Array.from(concatenate(of(0), Float64Array)),
        entropies: Float32Array.from(concatenate(of(1), Float64Array)),
        correct: Uint8Array.from(concatenate(of(2), Float64Array)),
      },
      scale,
    );
    if (!train) return result.measured;
    const begins = counts.map((_, part) => counts.slice(0, part).reduce((sum, count) => sum + count, 0));
    const passes = this.#passes(isLast);
    for (const part of own) {
      if (!keep) await this.#score(parts[part], true);
      const [from, to] = [begins[part], begins[part] + counts[part]];
      await passes.add(
        { dLogProbs: result.dLogProbs.subarray(from, to), dEntropies: result.dEntropies.subarray(from, to) },
        own.length,
      );
    }
    await passes.end();
    return result.measured;
  }

  /** Masks rows and runs them in batches. @param ratioOf the share of masks of a batch */
  async #batches(
    rows: readonly DistillationRow[],
    random: Random,
    blockLength: number,
    ratioOf: (batch: number, batches: number) => number,
    train: boolean,
  ): Promise<Measured> {
    const { batchSize, corruption } = this.#options;
    const sums = new Sums();
    const batches = Math.ceil(rows.length / batchSize);
    const ratios: number[] = [];
    for (let batch = 0; batch < batches; batch++) {
      const own = rows.slice(batch * batchSize, (batch + 1) * batchSize);
      const maskRatio = ratioOf(batch, batches);
      ratios.push(maskRatio);
      const views = own.map((row) => this.#mask(row, random, blockLength, maskRatio));
      const groups = this.#groups(own, views);
      const isLast = batch === batches - 1;
      await this.#run(groups, { scale: 1 / (groups.length * batches), sums, train, isLast });
    }
    const all = 2 * rows.reduce((sum, { ids }) => sum + ids.length, 0);
    return {
      loss: sums.loss,
      tokens: sums.tokens,
      crossEntropy: mean(sums.crossEntropy),
      entropy: mean(sums.entropy),
      correct: sums.masked > 0 ? sums.correct / sums.masked : 0,
      masked: sums.masked / all,
      ...(corruption.type === 'trajectory' && {
        window: blockLength,
        maskRatio: mean(ratios),
        withoutTrajectory: rows.filter(({ trajectory }) => !trajectory).length / rows.length,
      }),
    };
  }

  async accumulate(step: number): Promise<Measured> {
    const { data, training } = this.#context;
    const { batchSize, corruption } = this.#options;
    const examples = data.train(step, batchSize * training.gradientAccumulation);
    const random = new Random(deriveSeed(training.seed, Purpose.masks, step));
    const { blockLength, low } = this.#schedule(step);
    const high = corruption.type === 'trajectory' ? corruption.maskRatio.max : 0;
    const rows = examples.map((example) => this.#encode(example));
    return this.#batches(rows, random, blockLength, () => low + (high - low) * random.uniform(), true);
  }

  async evaluate(): Promise<Record<string, number>> {
    const { data, training, maxSteps } = this.#context;
    const { answers, corruption } = this.#options;
    const examples = data.validation!(training.evalExamples);
    // The same masks every time, of the last window, at shares all over their range, so that evaluations can be compared.
    const random = new Random(deriveSeed(training.seed, Purpose.evaluation));
    const { blockLength } =
      corruption.type === 'trajectory' ? { blockLength: corruption.windows.at(-1)! } : this.#schedule(maxSteps);
    const { min, max } = corruption.type === 'trajectory' ? corruption.maskRatio : { min: 0, max: 0 };
    const rows = examples.map((example) => this.#encode(example));
    const ratioOf = (batch: number, batches: number) => min + ((max - min) * (batch + 0.5)) / batches;
    const { loss: evalLoss } = await this.#batches(rows, random, blockLength, ratioOf, false);
    if (!answers) return { evalLoss };
    const { metrics, samples } = await exactMatches(this.#context, examples, answers);
    this.#context.show('validation', samples);
    return { evalLoss, ...metrics };
  }
}
