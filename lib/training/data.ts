// Sources of training examples: a seeded task, or the user's examples.

import type { DatasetInput } from '../data';
import type { Dataset, Example, ExamplePrompt, Shares } from '../data/dataset';
import { problemOf, usableExamples, warnUnusable } from '../data/unusable';
import { optionError } from '../errors';
import { deriveNumber, deriveSeed, Purpose, Random } from '../random';
import type { MixtureStage } from './options';

/** What the trainers take as `dataset`: a task, a data set, its name, a user's examples from a list or a file. */
export type TrainingData = DatasetInput;

/** An example as trainers see it. */
export type TrainingRow = Example<ExamplePrompt, string | null>;

/**
 * Throws what is wrong with an example for the model that trains. @param maxTokens the data set's own; null: it has none
 */
export type CheckExample = (row: TrainingRow, maxTokens: number | null) => void;

/** What the examples of a data set have to fit: those to train on, and the held-out ones. */
export interface ExampleChecks {
  train: CheckExample;
  validation: CheckExample;
}

/** {@link TrainingData} with everything settled. What `train` gives is a function of the seed and the step alone. */
export interface DataSource {
  name: string;
  /** null for endless data. */
  size: number | null;
  maxTokens: number | null;
  blockLength: number | null;
  /**
   * Examples that do not fit: of a finite set, those that are left out of it; of an endless one, those of the last step
   * in whose place others were drawn.
   */
  skipped(): number;
  /**
   * The `rows` examples of a step; all steps of a run ask for equally many. @param attempt above 0: others in their place,
   * drawn from all of the data
   */
  train(step: number, rows: number, attempt?: number): TrainingRow[];
  /** null without held-out examples. */
  validation: ((rows: number) => TrainingRow[]) | null;
  /** null where there is no verifier. */
  verify: ((example: TrainingRow, completion: string) => boolean | Promise<boolean>) | null;
}

/** Examples in a new random order each epoch. */
function epochs(rows: readonly TrainingRow[], seed: bigint): DataSource['train'] {
  let epoch = -1;
  let order: Int32Array = new Int32Array(0);
  return (step, count, attempt = 0) => {
    if (attempt > 0) {
      const random = new Random(deriveSeed(seed, Purpose.redraws, Purpose.order, step, attempt));
      return Array.from({ length: count }, () => rows[random.integer(rows.length)]);
    }
    return Array.from({ length: count }, (_, i) => {
      const index = step * count + i;
      if (Math.floor(index / rows.length) !== epoch) {
        epoch = Math.floor(index / rows.length);
        order = new Random(deriveSeed(seed, Purpose.order, epoch)).permutation(rows.length);
      }
      return rows[order[index % rows.length]];
    });
  };
}

/** Shares of a step's stage; null: the data set's own. */
function sharesAt(mixture: readonly MixtureStage[], step: number): Shares | null {
  let begin = 0;
  for (const { steps, shares = null } of mixture) {
    begin += steps ?? Infinity;
    if (step < begin) return shares;
  }
  return null;
}

/** Shares of the last stage, whose categories are evaluated. */
const lastShares = (mixture: readonly MixtureStage[]): Shares | null => mixture[mixture.length - 1].shares ?? null;

/** @throws RangeError where a stage names a category that there is not */
function checkCategories(mixture: readonly MixtureStage[], categories: readonly string[], name: string): void {
  for (const [i, { shares = {} }] of mixture.entries())
    for (const category of Object.keys(shares))
      if (!categories.includes(category))
        throw optionError(
          RangeError,
          `mixture[${i}].shares`,
          `expected categories of ${name} (${categories.join(', ')}), got ${JSON.stringify(category)}`,
        );
}

/** Examples drawn by the shares of their categories, each with the same probability within its category. */
function drawn(rows: readonly TrainingRow[], shares: Shares, count: number, seed: bigint): TrainingRow[] {
  const random = new Random(seed);
  const groups = Object.entries(shares)
    .map(([category, share]) => ({ share, rows: rows.filter((row) => row.category === category) }))
    .filter(({ share }) => share > 0);
  const total = groups.reduce((sum, { share }) => sum + share, 0);
  return Array.from({ length: count }, () => {
    let rest = random.uniform() * total;
    let chosen = 0;
    while (chosen < groups.length - 1 && rest >= groups[chosen].share) rest -= groups[chosen++].share;
    const { rows: group } = groups[chosen];
    return group[random.integer(group.length)];
  });
}

/** What is drawn from a finite set, by the stages of a mixture. */
function mixed(
  name: string,
  rows: readonly TrainingRow[],
  held: readonly TrainingRow[] | null,
  mixture: readonly MixtureStage[] | null,
  seed: bigint,
): Pick<DataSource, 'train' | 'validation'> {
  const all = epochs(rows, seed);
  if (!mixture) return { train: all, validation: held && ((count) => held.slice(0, count)) };
  checkCategories(mixture, [...new Set(rows.map(({ category }) => category))], name);
  const last = lastShares(mixture);
  const usable = last && held ? held.filter(({ category }) => (last[category] ?? 0) > 0) : held;
  if (usable?.length === 0)
    throw optionError(RangeError, 'mixture', 'expected held-out examples of the last stage, got none');
  return {
    train(step, count, attempt = 0) {
      const shares = sharesAt(mixture, step);
      const at = attempt > 0 ? [step, attempt] : [step];
      return shares ? drawn(rows, shares, count, deriveSeed(seed, Purpose.mixture, ...at)) : all(step, count, attempt);
    },
    validation: usable && ((count) => usable.slice(0, count)),
  };
}

/** Draws before an endless task counts as one without examples that fit. */
const MAX_REDRAWS = 16;

/**
 * `count` examples of an endless task. In the place of one that does not fit comes the next that does, of further draws.
 * @param draw the examples of a draw: the first is number 0
 */
function drawUsable(
  name: string,
  draw: (number: number) => TrainingRow[],
  check: (row: TrainingRow) => void,
): { rows: TrainingRow[]; skipped: number } {
  const rows = draw(0);
  const problems = rows.map((row) => problemOf(row, check));
  const unusable = problems.flatMap((problem, i) => (problem ? [{ name: `prompt ${i}`, index: i, problem }] : []));
  const open = [...problems.keys()].filter((i) => problems[i] !== null);
  for (let number = 1; open.length > 0; number++) {
    if (number > MAX_REDRAWS) throw unusable[0].problem;
    for (const row of draw(number)) if (open.length > 0 && !problemOf(row, check)) rows[open.shift()!] = row;
  }
  const consequence = 'of a step do not fit the model; in such places others are drawn';
  warnUnusable(unusable, rows.length, consequence, `${name}: redrawn`);
  return { rows, skipped: unusable.length };
}

/**
 * Where examples of a data set come from.
 * @param mixture how often each category is drawn; null: as the data set gives them
 * @param checks examples that these refuse are left out, with a warning; default: none
 * @throws RangeError where there are none to train on, or not the categories, or where most do not fit
 */
export function openData(
  data: Dataset,
  seed: bigint,
  mixture: readonly MixtureStage[] | null = null,
  checks: ExampleChecks = { train: () => {}, validation: () => {} },
): DataSource {
  const { name, finite } = data;
  // A task of a user may leave lengths out.
  const { genLength: maxTokens = null, blockLength = null }: Partial<Dataset> = data;
  // A reward can compare with the answer by itself; it is no verifier that could tell an accuracy.
  const verify: DataSource['verify'] = data.exactMatch
    ? null
    : (example, completion) => data.verify(example, completion);
  if (finite) {
    if (!finite.train)
      throw optionError(
        RangeError,
        'dataset',
        `expected one with a split "train", got ${name} with ${Object.keys(finite).join(', ')}`,
      );
    const { train, validation, skipped } = usable(finite.train, finite.validation ?? null, maxTokens, checks);
    const drawnFrom = mixed(name, train, validation, mixture, seed);
    return { name, size: train.length, maxTokens, blockLength, skipped: () => skipped, ...drawnFrom, verify };
  }
  if (mixture) {
    if (!data.categories)
      throw optionError(RangeError, 'mixture', `expected a data set whose categories can be drawn, got ${name}`);
    checkCategories(mixture, data.categories, name);
  }
  const sample = (split: 'train' | 'validation', rows: number, drawSeed: number, shares: Shares | null) =>
    shares ? data.sample(split, rows, drawSeed, shares) : data.sample(split, rows, drawSeed);
  const shares = (step: number) => (mixture ? sharesAt(mixture, step) : null);
  const seedOf = (purpose: number, number: number, ...step: number[]) =>
    number === 0 ? deriveNumber(seed, purpose, ...step) : deriveNumber(seed, Purpose.redraws, purpose, number, ...step);
  let skipped = 0;
  return {
    name,
    size: null,
    maxTokens,
    blockLength,
    skipped: () => skipped,
    train(step, rows, attempt = 0) {
      const at = attempt > 0 ? [step, attempt] : [step];
      const drawn = drawUsable(
        name,
        (number) => sample('train', rows, seedOf(Purpose.examples, number, ...at), shares(step)),
        (row) => checks.train(row, maxTokens),
      );
      skipped = drawn.skipped;
      return drawn.rows;
    },
    validation: (rows) =>
      drawUsable(
        name,
        (number) => sample('validation', rows, seedOf(Purpose.evaluation, number), mixture && lastShares(mixture)),
        (row) => checks.validation(row, maxTokens),
      ).rows,
    verify,
  };
}

/** The examples of a finite set that fit. */
function usable(
  train: readonly TrainingRow[],
  validation: readonly TrainingRow[] | null,
  maxTokens: number | null,
  checks: ExampleChecks,
): { train: TrainingRow[]; validation: TrainingRow[] | null; skipped: number } {
  const kept = usableExamples('dataset.examples', train, (row) => checks.train(row, maxTokens));
  const held =
    validation && usableExamples('dataset.validation', validation, (row) => checks.validation(row, maxTokens));
  return { train: kept, validation: held, skipped: train.length - kept.length };
}
