/**
 * The tasks and data sets, by name.
 * @module
 */
import { existsSync } from 'node:fs';
import path from 'node:path';
import { DUltraError, optionError } from '../errors';
import { checkChoice, checkKeys } from '../options';
import { reasonOf } from '../text';
import { BENCHMARK_NAMES, type BenchmarkName, type BenchmarkOptions, openBenchmark } from './benchmarks';
import type { TaskDataset } from './dataset';
import { freeChoice } from './free-choice';
import { sudoku4 } from './sudoku';
import { wordProblems } from './word-problems';
import { world } from './world';

export {
  BENCHMARK_NAMES,
  type BenchmarkName,
  type BenchmarkOptions,
  type CodeMeta,
  type MathMeta,
  openBenchmark,
  programFor,
} from './benchmarks';
export type { Example, ExamplePrompt, Shares, TaskDataset } from './dataset';
export { type FreeChoiceName, freeChoice } from './free-choice';
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
  if (typeof open !== 'function') throw optionError(TypeError, 'open', `expected a function, got ${String(open)}`);
  if (names().includes(name))
    throw optionError(TypeError, 'name', `expected one that is not taken, got ${JSON.stringify(name)}`);
  registered.set(name, open);
}

/** Every name that {@link open} knows. */
export const names = (): string[] => [...TASK_NAMES, 'world', ...BENCHMARK_NAMES, ...registered.keys()];

const isModule = (text: string): boolean => /\.[cm]?js$/i.test(text) && existsSync(text);

/** Whether {@link open} takes `text`: it is a module, or begins with a name that is known. */
export const isKnown = (text: string): boolean => isModule(text) || names().includes(text.split(':', 1)[0]);

/**
 * A task that a JavaScript module exports, by name or as its default.
 * @throws DUltraError BAD_DATASET where it does not load; TypeError where it is no task
 */
function openModule(file: string): TaskDataset {
  let exported: Partial<TaskDataset> & { default?: Partial<TaskDataset> };
  try {
    exported = require(path.resolve(file)) as typeof exported;
  } catch (cause) {
    throw new DUltraError('BAD_DATASET', `${file}: ${reasonOf(cause)}`, { cause });
  }
  const hasDefault = exported.sample === undefined && typeof exported.default === 'object' && exported.default !== null;
  const task: Partial<TaskDataset> = hasDefault ? exported.default! : exported;
  for (const name of ['sample', 'verify'] as const)
    if (typeof task[name] !== 'function')
      throw optionError(
        TypeError,
        'dataset',
        `expected ${file} to export a function ${name}, got ${typeof task[name]}`,
      );
  const { genLength } = task;
  if (!Number.isInteger(genLength) || (genLength as number) < 1)
    throw optionError(
      TypeError,
      'dataset',
      `expected ${file} to export genLength, tokens of an answer, got ${genLength}`,
    );
  const defaults = { name: path.basename(file), blockLength: genLength as number, vocabulary: [] };
  return { ...defaults, ...(task as TaskDataset) };
}

/**
 * Opens a task or data set: "st1", "world"; "gsm8k", where it is published; "gsm8k:test.jsonl" or "gsm8k:org/name", from a file,
 * a folder or another repository; a name that {@link register} knows; a
 * JavaScript module ("./task.mjs") that exports `sample`, `verify` and `genLength`, and what else of
 * {@link TaskDataset} it has.
 * @throws RangeError for an unknown name; DUltraError BAD_DATASET for a module that does not load; as
 * {@link openBenchmark}
 */
export async function open(name: string, options: BenchmarkOptions = {}): Promise<TaskDataset> {
  if (isModule(name)) {
    checkKeys('datasetOptions', { ...options, splits: undefined }, ['splits']);
    return openModule(name);
  }
  const [head, ...rest] = name.split(':');
  const source = rest.length > 0 ? { source: rest.join(':') } : {};
  const own = registered.get(head);
  if (own) return own({ ...options, ...source });
  if ((BENCHMARK_NAMES as readonly string[]).includes(head))
    return openBenchmark(head as BenchmarkName, { ...options, ...source });
  if (rest.length === 0 && head === 'world') return world();
  if (rest.length === 0 && (TASK_NAMES as readonly string[]).includes(head)) return byName(head as TaskName);
  throw optionError(RangeError, 'dataset', `expected one of ${names().join(', ')}, got ${JSON.stringify(name)}`);
}
