// Data sets of a user's own examples, from lists and files.
import { createHash } from 'node:crypto';
import { existsSync, statSync } from 'node:fs';
import path from 'node:path';
import { DUltraError, optionError } from '../errors';
import { checkInteger, checkKeys } from '../options';
import { normaliseSpace, reasonOf, show } from '../text';
import { sampleFinite } from './benchmarks';
import type { Dataset, TaskDataset } from './dataset';
import { type DataRecord, exampleOf, FieldError, type OwnExample, type TrainingExample } from './record-shapes';
import { locateSplit, readRecords } from './records';
import { hash, type Split } from './splits';

/** A user's own data set. */
export interface ExampleData {
  /** Default: the name of the file, or "examples". */
  name?: string | undefined;
  /** Records, or a file or folder of them (JSON lines, a JSON array, Parquet). */
  examples: string | Iterable<TrainingExample | DataRecord>;
  /**
   * Held-out examples; evaluation during training needs them: records, a file, or a share of the examples (0.1), which
   * is taken from them. Equal prompts stay together, and the choice depends on the prompts and `splitSeed` alone.
   */
  validation?: string | number | Iterable<TrainingExample | DataRecord> | undefined;
  /** Of a share for `validation`. Default 0. */
  splitSeed?: number | undefined;
  /** Whether a completion's text is a right answer. Default: that it is `answer`, white space aside. */
  verify?: ((example: TrainingExample, completion: string) => boolean | Promise<boolean>) | undefined;
  /** Tokens that an answer is given. Default: the option `maxTokens` of what uses it. */
  genLength?: number | undefined;
  /** Default: the option `blockLength` of what uses it. */
  blockLength?: number | undefined;
}

/** Records of a list. @param name of the option, for errors @throws TypeError, RangeError naming the record's index */
export function listExamples(name: string, records: unknown): OwnExample[] {
  if (typeof records !== 'object' || records === null || !(Symbol.iterator in records))
    throw optionError(TypeError, name, `expected examples that can be iterated over, got ${show(records)}`);
  const examples: OwnExample[] = [];
  for (const record of records as Iterable<unknown>) {
    const at = `${name}[${examples.length}]`;
    try {
      examples.push(exampleOf(record));
    } catch (error) {
      if (error instanceof FieldError) throw optionError(TypeError, `${at}.${error.field}`, error.text);
      throw optionError(TypeError, at, reasonOf(error));
    }
  }
  if (examples.length === 0) throw optionError(RangeError, name, 'expected at least one example, got none');
  return examples;
}

/** Records of files. @throws DUltraError BAD_DATASET naming file and line */
async function readExamples(files: readonly string[]): Promise<OwnExample[]> {
  const examples: OwnExample[] = [];
  for (const file of files)
    for await (const { value, where } of readRecords(file)) {
      try {
        examples.push(exampleOf(value));
      } catch (cause) {
        throw new DUltraError('BAD_DATASET', `${where}: ${reasonOf(cause)}`, { cause });
      }
    }
  if (examples.length === 0)
    throw new DUltraError('BAD_DATASET', `${files.join(', ')}: expected at least one example, got none`);
  return examples;
}

/** Examples that are all there, by split. */
type Splits = Partial<Record<Split, readonly OwnExample[]>>;

/** What a file, or a folder or hub id with a file for each split (train.jsonl …), holds. */
async function readSplits(source: string): Promise<Splits> {
  if (existsSync(source) && !statSync(source).isDirectory()) return { train: await readExamples([source]) };
  const splits: Splits = {};
  for (const split of ['train', 'validation', 'test'] as const) {
    const files = await locateSplit({ source, config: null }, split);
    if (files.length > 0) splits[split] = await readExamples(files);
  }
  if (Object.keys(splits).length === 0)
    throw new DUltraError('BAD_DATASET', `${source}: expected files such as train.jsonl and test.jsonl, got none`);
  return splits;
}

/** Whether a text can be a hub id of a data set: "owner/name", without the look of a file. */
export const isHubId = (text: string): boolean =>
  /^[\w.-]+\/[\w.-]+(@[\w./-]+)?$/.test(text) && !/^\.|\.(jsonl?|ndjson|parquet|gz|[cm]?js)$/i.test(text);

function checkFile(name: string, file: string): void {
  if (!existsSync(file) && !(name === 'dataset' && isHubId(file)))
    throw optionError(RangeError, name, `expected a file that exists, got ${show(file)}`);
}

/** Takes a share of the examples for validation: the prompts whose hashes are lowest. */
function splitByShare(examples: readonly OwnExample[], share: number, seed: number): Splits {
  if (!(share > 0 && share < 1))
    throw optionError(
      RangeError,
      'validation',
      `expected a share greater than 0 and less than 1, a file or examples, got ${share}`,
    );
  const keyOf = ({ prompt }: OwnExample) => JSON.stringify(prompt);
  const order = [...new Set(examples.map(keyOf))]
    .map((key) => ({ key, rank: hash(`${seed} ${key}`) }))
    .sort((a, b) => a.rank - b.rank || (a.key < b.key ? -1 : 1));
  if (order.length < 2)
    throw optionError(RangeError, 'validation', 'expected two different prompts at least for a share, got one');
  const count = Math.min(order.length - 1, Math.max(1, Math.round(share * order.length)));
  const held = new Set(order.slice(0, count).map(({ key }) => key));
  return {
    train: examples.filter((example) => !held.has(keyOf(example))),
    validation: examples.filter((example) => held.has(keyOf(example))),
  };
}

const EXAMPLE_KEYS = ['name', 'examples', 'validation', 'splitSeed', 'verify', 'genLength', 'blockLength'];

/** Checks what {@link ExampleData} says of splits and lengths. */
function checkExampleData(data: ExampleData): void {
  checkKeys('dataset', data, EXAMPLE_KEYS);
  const { name, splitSeed = 0, verify, genLength, blockLength } = data;
  if (name !== undefined && typeof name !== 'string')
    throw optionError(TypeError, 'dataset.name', `expected text, got ${show(name)}`);
  if (verify !== undefined && typeof verify !== 'function')
    throw optionError(TypeError, 'dataset.verify', `expected a function, got ${show(verify)}`);
  checkInteger('splitSeed', splitSeed, { min: 0, max: Number.MAX_SAFE_INTEGER });
  if (genLength !== undefined) checkInteger('dataset.genLength', genLength, { min: 1, max: 2 ** 30 });
  if (blockLength !== undefined) checkInteger('dataset.blockLength', blockLength, { min: 1, max: 2 ** 30 });
}

/** Tells examples apart: an evaluation must not go on with others than it began with. */
function digestOf(splits: Splits): string {
  const digest = createHash('sha256');
  for (const [split, examples] of Object.entries(splits))
    for (const { prompt, answer } of examples) digest.update(JSON.stringify([split, prompt, answer]));
  return digest.digest('hex').slice(0, 16);
}

/** A data set of examples that are all there. */
function fromSplits(data: ExampleData, given: Splits, held: readonly OwnExample[] | number | undefined): Dataset {
  const { splitSeed = 0, verify, genLength = null, blockLength = null } = data;
  const { train = [] } = given;
  let finite = given;
  if (typeof held === 'number') finite = { ...given, ...splitByShare(train, held, splitSeed) };
  else if (held !== undefined) finite = { ...given, validation: held };
  // A list of which nothing is held out is what can be trained and evaluated on.
  else if (!given.test && !given.validation) finite = { train, test: train };
  const file = typeof data.examples === 'string' ? data.examples : null;
  const name = data.name ?? (file === null ? 'examples' : path.basename(file));
  const judge = verify ? 'a verifier of its own' : 'exact match of the answer';
  return {
    name,
    genLength,
    blockLength,
    finite,
    exactMatch: verify === undefined,
    get source() {
      const share = typeof held === 'number' ? { share: held, splitSeed } : {};
      return { data: file ?? `a list of ${train.length}`, judge, ...share, digest: digestOf(finite) };
    },
    get vocabulary() {
      const texts = Object.values(finite).flatMap((examples) =>
        examples.flatMap(({ prompt, answer }) => [
          ...(typeof prompt === 'string' ? [prompt] : prompt.map(({ content }) => content)),
          answer ?? '',
        ]),
      );
      return [...new Set(texts.join(' ').split(/\s+/))].filter((word) => word !== '').sort();
    },
    sample: (split, count, seed) => sampleFinite(name, finite, split, count, seed),
    verify(example, completion) {
      if (verify) return verify.call(data, withoutNull(example), completion);
      return example.answer !== null && normaliseSpace(example.answer) === normaliseSpace(completion);
    },
  };
}

function withoutNull({ prompt, answer, category, meta }: OwnExample): TrainingExample {
  return answer === null ? { prompt, category, meta } : { prompt, answer, category, meta };
}

/** Whether data have to be read from files first: {@link openExamples} does, {@link examplesDataset} cannot. */
export const needsFiles = (data: ExampleData): boolean =>
  typeof data.examples === 'string' || typeof data.validation === 'string';

/** A data set of lists. @throws TypeError, RangeError naming what is wrong */
export function examplesDataset(data: ExampleData): Dataset {
  checkExampleData(data);
  const { validation } = data;
  const examples = listExamples('dataset.examples', data.examples);
  const held =
    validation === undefined || typeof validation === 'number'
      ? validation
      : listExamples('dataset.validation', validation);
  return fromSplits(data, { train: examples }, held);
}

/** A data set of lists and files. @throws as {@link examplesDataset}; DUltraError BAD_DATASET naming file and line */
export async function openExamples(data: ExampleData): Promise<Dataset> {
  if (!needsFiles(data)) return examplesDataset(data);
  checkExampleData(data);
  const { examples, validation } = data;
  for (const [name, value] of Object.entries({ dataset: examples, validation }))
    if (typeof value === 'string') checkFile(name, value);
  const splits =
    typeof examples === 'string' ? await readSplits(examples) : { train: listExamples('dataset.examples', examples) };
  if (typeof validation === 'string') return fromSplits(data, splits, await readExamples([validation]));
  const held =
    validation === undefined || typeof validation === 'number'
      ? validation
      : listExamples('dataset.validation', validation);
  return fromSplits(data, splits, held);
}

/** All that `datasets.open`, evaluation and trainers take: a data set, its name, or own examples, from a list or a file. */
export type DatasetInput = string | Dataset | TaskDataset | ExampleData | Iterable<TrainingExample | DataRecord>;

/** Options beside own examples. */
export type OwnOptions = Partial<Omit<ExampleData, 'name' | 'examples'>>;

/** Whether data are a data set that is open. */
export const isOpen = (data: object): data is Dataset =>
  'sample' in data && typeof data.sample === 'function' && 'verify' in data && typeof data.verify === 'function';

/** Own examples of any form with options beside them. @throws TypeError for what is none, or for options of others */
export function ownData(data: DatasetInput, options: OwnOptions & { splits?: unknown }): ExampleData {
  if (typeof data !== 'string' && (typeof data !== 'object' || data === null))
    throw optionError(
      TypeError,
      'dataset',
      `expected a task, a data set, a file or a list of examples, got ${show(data)}`,
    );
  // `splits` says what to load, and all of these are here.
  const { splits: _, ...own } = options;
  for (const name of ['source', 'prompts', 'compat', 'difficulties', 'functionsOnly', 'sandbox'])
    if ((options as Readonly<Record<string, unknown>>)[name] !== undefined)
      throw optionError(TypeError, name, 'expected only with a data set such as gsm8k, got own examples');
  const isData = typeof data === 'object' && !(Symbol.iterator in data);
  if (isData && !('examples' in data))
    throw optionError(
      TypeError,
      'dataset',
      `expected a task, a data set, a file or a list of examples, got ${show(data)}`,
    );
  return { ...(isData ? (data as ExampleData) : { examples: data as string | Iterable<DataRecord> }), ...own };
}

/**
 * Opens what needs no waiting: data sets that are open, and lists. @returns null for names and files, which
 * `datasets.open` opens. @throws TypeError, RangeError
 */
export function openNow(data: DatasetInput): Dataset | null {
  if (typeof data === 'string') return null;
  if (typeof data === 'object' && data !== null && isOpen(data)) return data;
  const own = ownData(data, {});
  return needsFiles(own) ? null : examplesDataset(own);
}
