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
import { type DatasetInput, isHubId, isOpen, type OwnOptions, openExamples, ownData } from './own-data';
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
export type { DatasetInput, ExampleData } from './own-data';
export { appsPrompt, humanEvalPrompt, mathPrompt, mbppPrompt, PROMPT_STYLES, type PromptStyle } from './prompts';
export type { DataRecord, TrainingExample } from './record-shapes';
export { type Split, splitOf } from './splits';
export { sudoku4 } from './sudoku';
export { type WordDiagnosis, type WordProblemDataset, type WordProblemName, wordProblems } from './word-problems';
export {
  WORLD_REFUSAL,
  WORLD_TOPICS,
  type WorldCategory,
  type WorldDataset,
  type WorldMeta,
  type WorldSplit,
  world,
} from './world';
export { worldDecisions } from './world/decisions';

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

/** Options of {@link open}: those of a benchmark, or of own examples. */
export interface OpenOptions extends BenchmarkOptions, OwnOptions {}

/** Options of own examples alone. */
const OWN_OPTIONS = ['validation', 'splitSeed', 'verify'] as const;

/**
 * Opens a task or data set: "st1", "world"; "gsm8k", where it is published; "gsm8k:test.jsonl" or "gsm8k:org/name", from
 * a file, a folder or another repository; a name that {@link register} knows; a JavaScript module ("./task.mjs") that
 * exports `sample`, `verify` and `genLength`, and what else of {@link TaskDataset} it has.
 * @throws RangeError for an unknown name; DUltraError BAD_DATASET for a module that does not load; as
 * {@link openBenchmark}
 */
export async function open(
  data: TaskName | 'world' | BenchmarkName | `${BenchmarkName}:${string}`,
  options?: BenchmarkOptions,
): Promise<TaskDataset>;
/**
 * Opens any of these, or own examples: a file or a folder with a file per split, whose records have one of the shapes of
 * {@link DataRecord}, or a list of such records.
 * @throws TypeError, RangeError for options and records of a list; DUltraError BAD_DATASET naming file and line
 */
export async function open(data: DatasetInput, options?: OpenOptions): Promise<Dataset>;
export async function open(data: DatasetInput, options: OpenOptions = {}): Promise<Dataset> {
  const isReady = typeof data === 'object' && data !== null && isOpen(data);
  if (typeof data !== 'string' && !isReady) return openExamples(ownData(data, options));
  if (typeof data === 'string' && !isKnown(data)) {
    if (existsSync(data) || isHubId(data)) return openExamples(ownData(data, options));
    throw optionError(
      RangeError,
      'dataset',
      `expected one of ${names().join(', ')}, a file or folder of examples, or a hub id of them, got ${show(data)}`,
    );
  }
  for (const name of OWN_OPTIONS)
    if (options[name] !== undefined)
      throw optionError(TypeError, name, `expected only with own examples, got it with ${show(data)}`);
  if (isReady) return data;
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
