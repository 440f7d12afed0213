// One step of distillation: rows of the model's own answers, a segment of each masked in two complementary views, and the
// certainty loss of both.
import { concatenate, packed, packRows } from '../../packing';
import { deriveSeed, Purpose, Random } from '../../random';
import { mean } from '../../statistics';
import type { TrainingRow } from '../data';
import { type AnswerOptions, exactMatches } from '../exact-matches';
import type { Measured, Stage, StageContext } from '../loop';
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
const maskedOf = (views: readonly View[]): number => views.reduce((sum, { positions }) => sum + positions.length, 0);

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

  /** Loss and gradients of a group. @param scored of all its views, one after the other */
  #loss(
    { views }: Group,
    scored: Scores,
    scale: number,
    sums: Sums,
  ): { dLogProbs: Float32Array; dEntropies: Float32Array } {
    const { entropyWeight, entropyOnComplement, divisor } = this.#options;
    const cut = maskedOf(views);
    const result = certaintyLoss(slice(scored, 0, cut), slice(scored, cut), {
      entropyWeight,
      entropyOnComplement,
      divisor: divisor / scale,
    });
    sums.loss += result.loss;
    sums.crossEntropy.push((result.crossEntropy + result.complementCrossEntropy) / 2);
    sums.entropy.push(entropyOnComplement ? (result.entropy + result.complementEntropy) / 2 : result.entropy);
    for (let i = 0; i < scored.correct.length; i++) sums.correct += scored.correct[i];
    sums.masked += scored.correct.length;
    const flat = (key: 'dLogProbs' | 'dEntropies') =>
      concatenate(
        result.gradients.map((gradient) => gradient[key]),
        Float32Array,
      );
    return { dLogProbs: flat('dLogProbs'), dEntropies: flat('dEntropies') };
  }

  /**
   * Loss of groups; adds their gradients where `train`. A group that is more than a pass takes is scored in parts, for
   * the means over all of it, and then again part by part.
   */
  async #run(groups: readonly Group[], scale: number, sums: Sums, train: boolean): Promise<void> {
    const { trainer, training } = this.#context;
    const { tokenBudget } = training;
    const viewsOf = ({ views, complements }: Group) => [...views, ...complements];
    const sizeOf = (group: Group) => tokensOf(viewsOf(group));
    for (const batch of packRows(groups, sizeOf, tokenBudget)) {
      const views = batch.flatMap(viewsOf);
      sums.tokens += tokensOf(views);
      const parts = tokensOf(views) <= tokenBudget ? [views] : packRows(views, ({ ids }) => ids.length, tokenBudget);
      const isWhole = parts.length === 1;
      const scores: Scores[] = [];
      for (const part of parts) scores.push(await this.#score(part, train && isWhole));
      const scored = {
        logProbs: concatenate(
          scores.map((score) => score.logProbs),
          Float32Array,
        ),
        entropies: concatenate(
          scores.map((score) => score.entropies),
          Float32Array,
        ),
        correct: concatenate(
          scores.map((score) => score.correct),
          Uint8Array,
        ),
      };
      let at = 0;
      const gradients = batch.map((group) => {
        const count = maskedOf(viewsOf(group));
        const own = slice(scored, at, at + count);
        at += count;
        return this.#loss(group, own, scale, sums);
      });
      if (!train) continue;
      const dLogProbs = concatenate(
        gradients.map((gradient) => gradient.dLogProbs),
        Float32Array,
      );
      const dEntropies = concatenate(
        gradients.map((gradient) => gradient.dEntropies),
        Float32Array,
      );
      at = 0;
      for (const part of parts) {
        if (!isWhole) await this.#score(part, true);
        const end = at + maskedOf(part);
        await trainer.backward({ dLogProbs: dLogProbs.subarray(at, end), dEntropies: dEntropies.subarray(at, end) });
        at = end;
      }
    }
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
      await this.#run(groups, 1 / (groups.length * batches), sums, train);
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
