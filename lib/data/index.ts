/**
 * The tasks and data sets, by name.
 * @module
 */
import { existsSync } from 'node:fs';
import { optionError } from '../errors';
import { checkChoice, checkKeys } from '../options';
import { show } from '../text';
import { BENCHMARK_NAMES, type BenchmarkName, type BenchmarkOptions, openBenchmark } from './benchmarks';
import type { Dataset, TaskDataset } from './dataset';
import { freeChoice } from './free-choice';
import { isModule, openModule } from './module';
import {
  type DataRecord,
  type ExampleData,
  examplesDataset,
  needsFiles,
  openExamples,
  type TrainingExample,
} from './own-data';
import { sudoku4 } from './sudoku';
import { wordProblems } from './word-problems';
import { world } from './world';

export {
  BENCHMARK_NAMES,
  type BenchmarkName,
  type BenchmarkOptions,
  type CodeMeta,
  type GradeCompletionOptions,
  gradeCompletion,
  type MathMeta,
  openBenchmark,
} from './benchmarks';
export type { Dataset, Example, ExamplePrompt, Shares, TaskDataset } from './dataset';
export { type FreeChoiceName, freeChoice } from './free-choice';
export type { DataRecord, ExampleData, TrainingExample } from './own-data';
export { appsPrompt, humanEvalPrompt, mathPrompt, mbppPrompt, PROMPT_STYLES, type PromptStyle } from './prompts';
export { type Split, splitOf } from './splits';
export { sudoku4 } from './sudoku';
export { type WordDiagnosis, type WordProblemDataset, type WordProblemName, wordProblems } from './word-problems';
export { type WorldCategory, type WorldDataset, type WorldMeta, type WorldSplit, world } from './world';

/** Names of the word-level tasks that are part of the package; {@link world} is the one in ordinary English. */
export const TASK_NAMES = ['st1', 's1', 't12', 't12w', 'free8', 'freeb8', 'free12', 'sudoku4'] as const;

/** One of {@link TASK_NAMES}. */
export type TaskName = (typeof TASK_NAMES)[number];

/** A task by its name; the embedded model is trained on "st1". @throws RangeError for another name. */
export function byName(name: TaskName): TaskDataset<string> {
  checkChoice('dataset', name, TASK_NAMES);
  switch (name) {
    case 'free8':
    case 'freeb8':
    case 'free12':
      return freeChoice(name);
    case 'sudoku4':
      return sudoku4();
    default:
      return wordProblems(name);
  }
}

/** Opens a registered data set. `options` are those that the caller of {@link open} gave. */
export type OpenDataset = (options: BenchmarkOptions) => TaskDataset | Promise<TaskDataset>;

const registered = new Map<string, OpenDataset>();

/**
 * Registers a data set of your own by a name, for {@link datasets.open}, `dultra eval --dataset` and training
 * configurations. It needs only prompts and a `verify`.
 * @throws TypeError for a name that is taken or not of letters, digits, "-" and "_"
 */
export function register(name: string, open: OpenDataset): void {
  if (typeof name !== 'string' || !/^[\w-]+$/.test(name))
    throw optionError(TypeError, 'name', `expected letters, digits, "-" and "_", got ${JSON.stringify(name)}`);
  if (typeof open !== 'function') throw optionError(TypeError, 'open', `expected a function, got ${show(open)}`);
  if (names().includes(name))
    throw optionError(TypeError, 'name', `expected one that is not taken, got ${JSON.stringify(name)}`);
  registered.set(name, open);
}

/** Every name that {@link open} knows. */
export const names = (): string[] => [...TASK_NAMES, 'world', ...BENCHMARK_NAMES, ...registered.keys()];

/** Whether {@link open} takes `text`: it is a module, or begins with a name that is known. */
export const isKnown = (text: string): boolean => isModule(text) || names().includes(text.split(':', 1)[0]);

/** All that {@link open}, evaluation and trainers take: a data set, its name, or own examples, from a list or a file. */
export type DatasetInput = string | Dataset | TaskDataset | ExampleData | Iterable<TrainingExample | DataRecord>;

/** Options of {@link open}: those of a benchmark, or of own examples. */
export interface OpenOptions extends BenchmarkOptions, Partial<Omit<ExampleData, 'name' | 'examples'>> {}

/** Options of own examples alone. */
const OWN_OPTIONS = ['validation', 'splitSeed', 'verify'] as const;

const isOpen = (data: object): data is Dataset =>
  'sample' in data && typeof data.sample === 'function' && 'verify' in data && typeof data.verify === 'function';

/** Own examples of any form with options beside them. @throws TypeError for what is none, or for options of others */
function ownData(data: DatasetInput, options: OpenOptions): ExampleData {
  if (typeof data !== 'string' && (typeof data !== 'object' || data === null))
    throw optionError(
      TypeError,
      'dataset',
      `expected a task, a data set, a file or a list of examples, got ${show(data)}`,
    );
  // `splits` says what to load, and all of these are here.
  const { splits: _, ...own } = options;
  for (const name of ['source', 'prompts', 'compat', 'difficulties', 'functionsOnly', 'sandbox'] as const)
    if (options[name] !== undefined)
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
 * Opens what needs no waiting: data sets that are open, and lists. @returns null for names and files, which {@link open}
 * opens. @throws TypeError, RangeError
 */
export function openNow(data: DatasetInput): Dataset | null {
  if (typeof data === 'string') return null;
  if (typeof data === 'object' && data !== null && isOpen(data)) return data;
  const own = ownData(data, {});
  return needsFiles(own) ? null : examplesDataset(own);
}

/**
 * Opens a task or data set: "st1", "world"; "gsm8k", where it is published; "gsm8k:test.jsonl" or "gsm8k:org/name", from a file,
 * a folder or another repository; a name that {@link register} knows; a JavaScript module
 * ("./task.mjs") that exports `sample`, `verify` and `genLength`, and what else of {@link TaskDataset} it has. Own examples: a file or a folder with a file per
 * split, whose records have one of the shapes of {@link DataRecord}, or a list of such records.
 * @throws RangeError for an unknown name; DUltraError BAD_DATASET for a module that does not load; as
 * {@link openBenchmark}
 */
export async function open(
  data: TaskName | 'world' | BenchmarkName | `${BenchmarkName}:${string}`,
  options?: BenchmarkOptions,
): Promise<TaskDataset>;
export async function open(data: DatasetInput, options?: OpenOptions): Promise<Dataset>;
export async function open(data: DatasetInput, options: OpenOptions = {}): Promise<Dataset> {
  if (typeof data === 'object' && data !== null && isOpen(data)) return data;
  if (typeof data !== 'string') return openExamples(ownData(data, options));
  if (!isKnown(data)) {
    if (existsSync(data)) return openExamples(ownData(data, options));
    throw optionError(
      RangeError,
      'dataset',
      `expected one of ${names().join(', ')}, or a file or folder of examples, got ${show(data)}`,
    );
  }
  for (const name of OWN_OPTIONS)
    if (options[name] !== undefined)
      throw optionError(TypeError, name, `expected only with own examples, got it with ${show(data)}`);
  if (isModule(data)) {
    checkKeys('datasetOptions', { ...options, splits: undefined }, ['splits']);
    return openModule(data);
  }
  const [head, ...rest] = data.split(':');
  const source = rest.length > 0 ? { source: rest.join(':') } : {};
  const own = registered.get(head);
  if (own) return own({ ...options, ...source });
  if ((BENCHMARK_NAMES as readonly string[]).includes(head))
    return openBenchmark(head as BenchmarkName, { ...options, ...source });
  if (rest.length === 0 && head === 'world') return world();
  if (rest.length === 0) return byName(head as TaskName);
  throw optionError(RangeError, 'dataset', `expected ${head} without a file, got ${show(data)}`);
}
