// Sources of training examples: a seeded task, or the user's examples.

import type { Example, Shares, TaskDataset } from '../data/dataset';
import { optionError } from '../errors';
import { deriveNumber, deriveSeed, Purpose, Random } from '../random';
import type { ChatMessage } from '../types';
import type { MixtureStage } from './options';

/** An example of a user's own data. */
export interface TrainingExample {
  /** Text, or chat messages for the checkpoint's chat template. */
  prompt: string | ChatMessage[];
  /** A right answer. Fine-tuning and planner initialisation need it; GRPO only where a reward does. */
  answer?: string;
  /** For tables. Default "". */
  category?: string;
  /** Whatever a verifier or a reward needs. */
  meta?: unknown;
}

/** A user's own data set. */
export interface ExampleData {
  /** Default "examples". */
  name?: string;
  examples: Iterable<TrainingExample>;
  /** Held-out examples; evaluation during training needs them. */
  validation?: Iterable<TrainingExample>;
  /** Whether a completion's text is a right answer. Default: none, and `rewards.exactAnswer` compares with `answer`. */
  verify?(example: TrainingExample, completion: string): boolean | Promise<boolean>;
  /** Tokens that an answer is given. Default: the option `genLength` of the trainer. */
  genLength?: number;
  /** Default: the option `blockLength` of the trainer. */
  blockLength?: number;
}

/** What the trainers take as `dataset`: a task, a user's data set, or just examples. */
export type TrainingData = TaskDataset | ExampleData | Iterable<TrainingExample>;

/** An example as trainers see it. */
export interface TrainingRow extends Omit<Example, 'prompt' | 'answer'> {
  prompt: string | ChatMessage[];
  answer: string | null;
}

/** {@link TrainingData} with everything settled. What `train` gives is a function of the seed and the step alone. */
export interface DataSource {
  name: string;
  /** null for endless data. */
  size: number | null;
  genLength: number | null;
  blockLength: number | null;
  /** The `rows` examples of a step; all steps of a run ask for equally many. */
  train(step: number, rows: number): TrainingRow[];
  /** null without held-out examples. */
  validation: ((rows: number) => TrainingRow[]) | null;
  /** null where there is no verifier. */
  verify: ((example: TrainingRow, completion: string) => boolean | Promise<boolean>) | null;
}

const isTask = (data: object): data is TaskDataset => 'sample' in data && typeof data.sample === 'function';

function checkExamples(name: string, examples: unknown): TrainingRow[] {
  if (typeof examples !== 'object' || examples === null || !(Symbol.iterator in examples))
    throw optionError(TypeError, name, `expected examples that can be iterated over, got ${String(examples)}`);
  const rows: TrainingRow[] = [];
  for (const example of examples as Iterable<Partial<TrainingExample> | null>) {
    const at = `${name}[${rows.length}]`;
    if (typeof example !== 'object' || example === null)
      throw optionError(TypeError, at, `expected an object with a prompt, got ${String(example)}`);
    const { prompt, answer, category = '', meta } = example;
    if (typeof prompt !== 'string' && !Array.isArray(prompt))
      throw optionError(TypeError, `${at}.prompt`, `expected a string or chat messages, got ${String(prompt)}`);
    if (answer !== undefined && typeof answer !== 'string')
      throw optionError(TypeError, `${at}.answer`, `expected a string, got ${String(answer)}`);
    rows.push({ prompt, answer: answer ?? null, category, meta });
  }
  if (rows.length === 0) throw optionError(RangeError, name, `expected at least one example, got none`);
  return rows;
}

/** Examples in a new random order each epoch. */
function epochs(rows: readonly TrainingRow[], seed: bigint): DataSource['train'] {
  let epoch = -1;
  let order: Int32Array = new Int32Array(0);
  return (step, count) =>
    Array.from({ length: count }, (_, i) => {
      const index = step * count + i;
      if (Math.floor(index / rows.length) !== epoch) {
        epoch = Math.floor(index / rows.length);
        order = new Random(deriveSeed(seed, Purpose.order, epoch)).permutation(rows.length);
      }
      return rows[order[index % rows.length]];
    });
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
    train(step, count) {
      const shares = sharesAt(mixture, step);
      return shares ? drawn(rows, shares, count, deriveSeed(seed, Purpose.mixture, step)) : all(step, count);
    },
    validation: usable && ((count) => usable.slice(0, count)),
  };
}

/**
 * Checks a data set. @param mixture how often each category is drawn; null: as the data set gives them
 * @throws TypeError, RangeError naming what is wrong.
 */
export function openData(data: TrainingData, seed: bigint, mixture: readonly MixtureStage[] | null = null): DataSource {
  if (typeof data !== 'object' || data === null)
    throw optionError(TypeError, 'dataset', `expected a task, { examples } or a list of examples, got ${String(data)}`);
  if (isTask(data)) {
    const { name, genLength, blockLength, finite } = data;
    if (finite) {
      const { train, validation } = finite;
      if (!train)
        throw optionError(
          RangeError,
          'dataset',
          `expected one with a split "train", got ${name} with ${Object.keys(finite).join(', ')}`,
        );
      return {
        name,
        size: train.length,
        genLength: genLength ?? null,
        blockLength: blockLength ?? null,
        ...mixed(name, train, validation ?? null, mixture, seed),
        verify: (example, completion) => data.verify(example as Example, completion),
      };
    }
    if (mixture) {
      if (!data.categories)
        throw optionError(RangeError, 'mixture', `expected a data set whose categories can be drawn, got ${name}`);
      checkCategories(mixture, data.categories, name);
    }
    const sample = (split: 'train' | 'validation', rows: number, drawSeed: number, shares: Shares | null) =>
      shares ? data.sample(split, rows, drawSeed, shares) : data.sample(split, rows, drawSeed);
    const shares = (step: number) => (mixture ? sharesAt(mixture, step) : null);
    return {
      name,
      size: null,
      genLength: genLength ?? null,
      blockLength: blockLength ?? null,
      train: (step, rows) => sample('train', rows, deriveNumber(seed, Purpose.examples, step), shares(step)),
      validation: (rows) =>
        sample('validation', rows, deriveNumber(seed, Purpose.evaluation), mixture && lastShares(mixture)),
      verify: (example, completion) => data.verify(example as Example, completion),
    };
  }
  const given: ExampleData = Symbol.iterator in data ? { examples: data } : data;
  const rows = checkExamples('dataset.examples', given.examples);
  const held = given.validation === undefined ? null : checkExamples('dataset.validation', given.validation);
  const { verify } = given;
  return {
    name: given.name ?? 'examples',
    size: rows.length,
    genLength: given.genLength ?? null,
    blockLength: given.blockLength ?? null,
    ...mixed(given.name ?? 'the examples', rows, held, mixture, seed),
    verify: verify ? (example, completion) => verify.call(given, toExample(example), completion) : null,
  };
}

function toExample({ prompt, answer, category, meta }: TrainingRow): TrainingExample {
  return answer === null ? { prompt, category, meta } : { prompt, answer, category, meta };
}
