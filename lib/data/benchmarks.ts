// The usual benchmarks: GSM8K, MATH500, DAPO-17k, HumanEval, MBPP, APPS. Schemas, prompts and verifiers; the data is
// read from where it is published, or from files.
import { z } from 'zod';
import { DUltraError, optionError } from '../errors';
import { type CodeResult, type CodeTests, gradeProgram } from '../grading/code';
import { extractAnswer } from '../grading/extract-answer';
import { mathEqual } from '../grading/math-answer';
import { type PythonRunner, sharedSandbox } from '../grading/python-sandbox';
import { parseExact } from '../grading/python-values';
import {
  boxedAnswer,
  callableProgram,
  hashAnswer,
  humanEvalProgramOf,
  isEquivalentInEvaluation,
  isRightGsm8k,
  mathEvaluationAnswer,
  mbppProgramOf,
  programOf,
} from '../grading/reference-text';
import { checkChoice, checkInteger, checkKeys } from '../options';
import { Random } from '../random';
import { numberText } from '../text';
import type { ChatMessage } from '../types';
import type { Example, TaskDataset } from './dataset';
import { appsPrompt, humanEvalPrompt, mathPrompt, mbppPrompt, PROMPT_STYLES, type PromptStyle } from './prompts';
import { type DataLocation, locateSplit, readRecords } from './records';
import type { Split } from './splits';

/** Names of the data sets. */
export const BENCHMARK_NAMES = ['gsm8k', 'math500', 'dapo17k', 'humaneval', 'mbpp', 'mbpp-sanitized', 'apps'] as const;

/** One of {@link BENCHMARK_NAMES}. */
export type BenchmarkName = (typeof BENCHMARK_NAMES)[number];

/** Options of {@link openBenchmark}. */
export interface BenchmarkOptions {
  /**
   * A file (JSON lines, a JSON array, Parquet; text also in gzip) that stands for every split; a folder with a file per split
   * (train.jsonl …); or a hub id. Default: where the data set is published.
   */
  source?: string | undefined;
  /** Splits to load. Default: those that there are. */
  splits?: readonly Split[] | undefined;
  /** Default "evaluation". */
  prompts?: PromptStyle | undefined;
  /**
   * "reference" grades as the reference's evaluation does: strings and last numbers; default: by mathematical equality.
   * Code is graded by its tests; with "reference", the program is looked for where the reference looks for it.
   */
  compat?: 'reference' | undefined;
  /** APPS: which problems. Default ["introductory"], as in the reference. */
  difficulties?: readonly string[] | undefined;
  /**
   * APPS: only problems that name a function, as in the reference's training; otherwise also problems with standard
   * input and output. Default false.
   */
  functionsOnly?: boolean | undefined;
  /** Default 256, as in the reference. */
  genLength?: number | undefined;
  /** Default 32, as in the reference. */
  blockLength?: number | undefined;
  /** Where programs run. Default: `rewards.sharedSandbox()`. */
  sandbox?: PythonRunner | undefined;
}

/** `meta` of examples in Python: what the verifier needs. */
export interface CodeMeta {
  id: string;
  tests: CodeTests;
  /**
   * Python before the completion's code: of HumanEval, the head of the function; of APPS, what its judge imports for
   * every program.
   */
  head: string;
  /** The problem as the reference's reward takes it: name of the function, or "". */
  functionName: string;
}

/** `meta` of mathematical examples: what the verifier needs. */
export interface MathMeta {
  id: string;
  /** The right answer by itself. */
  gold: string;
}

/** What shapes examples. */
type RecordOptions = Required<Pick<BenchmarkOptions, 'prompts' | 'difficulties' | 'functionsOnly'>>;

interface Definition {
  location: (split: Split) => DataLocation;
  splits: readonly Split[];
  schema: z.ZodType;
  /** null leaves the record out. @throws Error with a reason where the record is not right */
  example(record: never, options: RecordOptions, index: number): Example<ChatMessage[]> | null;
  kind: 'math' | 'code';
}

const text = z.string();
/** A field that a record may leave out; null, which Parquet has in its place, is the same. */
const optional = <T extends z.ZodType>(schema: T) => schema.nullish().transform((value) => value ?? undefined);
/** An answer as text; `form` is what stands for a number. */
const answerText = (form = (digits: string) => digits) =>
  z.preprocess((value, context) => {
    try {
      return typeof value === 'number' ? form(numberText(value)) : value;
    } catch (error) {
      context.addIssue((error as Error).message);
      return z.NEVER;
    }
  }, text);
const id = optional(z.union([z.string(), z.number()]));
const at =
  (source: string, config: string | null = null) =>
  (): DataLocation => ({ source, config });

/** @throws Error where a field that has to say something is blank */
function checkFilled(field: string, what: string, value: string): void {
  if (value.trim() === '') throw new Error(`field "${field}": expected ${what}, got none`);
}

const math = (
  prompt: string,
  answer: string,
  gold: string,
  category: string,
  ident: unknown,
  style: PromptStyle,
): Example<ChatMessage[]> => ({
  prompt: mathPrompt(prompt, style),
  answer,
  category,
  meta: { id: String(ident), gold } satisfies MathMeta,
});

interface MbppRecord {
  task_id?: string | number;
  text?: string;
  prompt?: string;
  code?: string;
  test_list: string[];
  test_setup_code?: string;
  test_imports?: string[];
}

function mbppExample(record: MbppRecord, prompts: PromptStyle, index: number): Example<ChatMessage[]> {
  const question = record.text ?? record.prompt;
  checkFilled(record.text === undefined ? 'prompt' : 'text', 'a problem', question ?? '');
  checkFilled('test_list', 'tests', record.test_list.join(''));
  const before = [...(record.test_imports ?? []), record.test_setup_code ?? '']
    .filter((line) => line !== '')
    .join('\n');
  const meta: CodeMeta = {
    id: String(record.task_id ?? index),
    tests: { kind: 'script', before, after: record.test_list.join('\n') },
    head: '',
    functionName: '',
  };
  return {
    prompt: mbppPrompt(question as string, record.test_list, prompts),
    answer: record.code ?? '',
    category: '',
    meta,
  };
}

/** Names that the judge of APPS gives every program, but for numpy's. */
const APPS_HEAD = `import collections, fractions, heapq, itertools, math, random, sys, time
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from functools import lru_cache
from heapq import *
from itertools import accumulate, combinations, permutations, product
from math import ceil, cos, exp, fabs, floor, gcd, log, log2, sin, sqrt, tan
from typing import List, Tuple
`;

/** The tests of APPS: JSON in a string. */
function appsTests(inputOutput: string): CodeTests | null {
  if (inputOutput.trim() === '') return null;
  let parsed: unknown;
  try {
    parsed = parseExact(inputOutput);
  } catch (cause) {
    throw new Error(`field "input_output": expected JSON, got ${(cause as Error).message}`, { cause });
  }
  const {
    fn_name: functionName,
    inputs,
    outputs,
  } = parsed as { fn_name?: unknown; inputs?: unknown; outputs?: unknown };
  if (!Array.isArray(inputs) || !Array.isArray(outputs))
    throw new Error('field "input_output": expected lists "inputs" and "outputs"');
  if (typeof functionName === 'string') return { kind: 'calls', functionName, inputs, outputs };
  const lines = (value: unknown) => (Array.isArray(value) ? value.join('\n') : String(value));
  return { kind: 'stdio', inputs: inputs.map(lines), outputs: outputs.map(lines) };
}

const DEFINITIONS: Readonly<Record<BenchmarkName, Definition>> = {
  gsm8k: {
    kind: 'math',
    location: at('openai/gsm8k', 'main'),
    splits: ['train', 'test'],
    // A number is no worked solution: it is the answer alone.
    schema: z.object({ question: text, answer: answerText((digits) => `#### ${digits}`) }),
    example({ question, answer }: { question: string; answer: string }, { prompts }, index) {
      const gold = hashAnswer(answer) ?? '';
      checkFilled('answer', 'an answer behind "####"', gold);
      checkFilled('question', 'a problem', question);
      return math(question, gold, gold, '', index, prompts);
    },
  },
  math500: {
    kind: 'math',
    location: (split) => ({ source: split === 'test' ? 'HuggingFaceH4/MATH-500' : 'ankner/math-500', config: null }),
    splits: ['train', 'test'],
    schema: z.object({
      problem: text,
      solution: optional(text),
      answer: optional(answerText()),
      subject: optional(text),
      unique_id: id,
    }),
    example(
      record: { problem: string; solution?: string; answer?: string; subject?: string; unique_id?: string },
      { prompts },
      index,
    ) {
      const { problem, solution, subject = '', unique_id: ident = index } = record;
      const gold = record.answer ?? (solution === undefined ? null : extractAnswer(solution));
      if (gold === null) throw new Error('field "answer": expected an answer, or a solution with a box, got neither');
      checkFilled(record.answer === undefined ? 'solution' : 'answer', 'an answer', gold);
      checkFilled('problem', 'a problem', problem);
      return math(problem, solution ?? gold, gold, subject, ident, prompts);
    },
  },
  dapo17k: {
    kind: 'math',
    location: at('open-r1/DAPO-Math-17k-Processed', 'en'),
    splits: ['train'],
    schema: z.object({ prompt: text, solution: answerText() }),
    example({ prompt, solution }: { prompt: string; solution: string }, { prompts }, index) {
      const gold = boxedAnswer(solution.trim());
      checkFilled('solution', 'an answer', gold);
      checkFilled('prompt', 'a problem', prompt);
      return math(prompt.trim(), solution.trim(), gold, '', index, prompts);
    },
  },
  humaneval: {
    kind: 'code',
    location: at('openai/openai_humaneval'),
    splits: ['test'],
    schema: z.object({ task_id: id, prompt: text, entry_point: text, test: text, canonical_solution: optional(text) }),
    example(
      record: { task_id?: string; prompt: string; entry_point: string; test: string; canonical_solution?: string },
      { prompts },
      index,
    ) {
      const { prompt, entry_point: entry, test } = record;
      for (const [field, value] of Object.entries({ prompt, entry_point: entry, test }))
        checkFilled(field, 'text', value);
      const meta: CodeMeta = {
        id: String(record.task_id ?? index),
        tests: { kind: 'script', before: '', after: `${test}\ncheck(${entry})` },
        head: `${prompt}\n`,
        functionName: entry,
      };
      return { prompt: humanEvalPrompt(prompt, prompts), answer: record.canonical_solution ?? '', category: '', meta };
    },
  },
  mbpp: {
    kind: 'code',
    location: at('google-research-datasets/mbpp', 'full'),
    splits: ['train', 'validation', 'test'],
    schema: z.object({
      task_id: id,
      text,
      code: optional(text),
      test_list: z.array(text).min(1),
      test_setup_code: optional(text),
    }),
    example: (record: MbppRecord, { prompts }, index) => mbppExample(record, prompts, index),
  },
  'mbpp-sanitized': {
    kind: 'code',
    location: at('google-research-datasets/mbpp', 'sanitized'),
    splits: ['train', 'validation', 'test'],
    schema: z.object({
      task_id: id,
      prompt: text,
      code: optional(text),
      test_list: z.array(text).min(1),
      test_imports: optional(z.array(text)),
    }),
    example: (record: MbppRecord, { prompts }, index) => mbppExample(record, prompts, index),
  },
  apps: {
    kind: 'code',
    location: at('codeparrot/apps'),
    splits: ['train', 'test'],
    schema: z.object({
      problem_id: id,
      question: text,
      input_output: optional(text),
      difficulty: text,
      starter_code: optional(text),
    }),
    example(
      record: {
        problem_id?: number;
        question: string;
        input_output?: string;
        difficulty: string;
        starter_code?: string;
      },
      options,
      index,
    ) {
      if (!options.difficulties.includes(record.difficulty)) return null;
      const tests = appsTests(record.input_output ?? '');
      checkFilled('question', 'a problem', record.question);
      if (tests === null || (options.functionsOnly && tests.kind !== 'calls')) return null;
      const functionName = tests.kind === 'calls' ? tests.functionName : '';
      const meta: CodeMeta = { id: String(record.problem_id ?? index), tests, head: APPS_HEAD, functionName };
      return {
        prompt: appsPrompt(record.question, record.starter_code ?? '', options.prompts),
        answer: '',
        category: record.difficulty,
        meta,
      };
    },
  },
};

/** The first thing that is wrong with a record, as "field "x": expected …, got …". */
function problemOf(error: z.ZodError, value: unknown): string {
  const [issue] = error.issues;
  let found: unknown = value;
  for (const key of issue.path)
    found = (found as Record<PropertyKey, unknown> | null | undefined)?.[key as PropertyKey];
  const expected = 'expected' in issue ? `expected ${issue.expected}` : issue.message;
  const got = Array.isArray(found) ? `a list of ${found.length}` : found === null ? 'null' : typeof found;
  const text = `${expected}, got ${found === undefined ? 'none' : got}`;
  return issue.path.length === 0 ? text : `field "${issue.path.join('.')}": ${text}`;
}

async function loadSplit(
  definition: Definition,
  location: DataLocation,
  split: Split,
  options: RecordOptions,
): Promise<Example<ChatMessage[]>[] | null> {
  const files = await locateSplit(location, split);
  if (files.length === 0) return null;
  const examples: Example<ChatMessage[]>[] = [];
  for (const file of files) {
    let index = 0;
    for await (const { value, where } of readRecords(file)) {
      const checked = definition.schema.safeParse(value);
      if (!checked.success) throw new DUltraError('BAD_DATASET', `${where}: ${problemOf(checked.error, value)}`);
      try {
        const example = definition.example(checked.data as never, options, index++);
        if (example) examples.push(example);
      } catch (cause) {
        throw new DUltraError('BAD_DATASET', `${where}: ${(cause as Error).message}`, { cause });
      }
    }
  }
  if (examples.length === 0)
    throw new DUltraError('BAD_DATASET', `${files[0]}: expected at least one problem for the split ${split}, got none`);
  return examples;
}

/** Whether a completion solves a mathematical problem. */
async function verifyMath(
  name: BenchmarkName,
  { gold }: MathMeta,
  completion: string,
  compat: 'reference' | undefined,
): Promise<boolean> {
  if (compat === 'reference') {
    if (name === 'gsm8k') return isRightGsm8k(completion, gold);
    const answer = mathEvaluationAnswer(completion);
    return answer !== null && isEquivalentInEvaluation(answer, gold);
  }
  const answer = extractAnswer(completion);
  return answer !== null && mathEqual(answer, gold);
}

/** The program of a completion, where the reference looks for it. */
function referenceProgram({ tests, head, functionName }: CodeMeta, completion: string): string {
  if (tests.kind !== 'script') return callableProgram(programOf(completion), functionName);
  return head === '' ? mbppProgramOf(completion) : `${head}${humanEvalProgramOf(completion)}`;
}

/** Options of {@link gradeCompletion}. */
export interface GradeCompletionOptions {
  /** Where programs run. Default: `rewards.sharedSandbox()`. */
  sandbox?: PythonRunner | undefined;
  /** "reference": program and results by the reference's rules. */
  compat?: 'reference' | undefined;
}

/**
 * Finds the program in a completion and runs the tests; null for a completion without anything.
 * @throws as the `run` of `sandbox`
 */
export async function gradeCompletion(
  meta: CodeMeta,
  completion: string,
  { sandbox = sharedSandbox(), compat }: GradeCompletionOptions = {},
): Promise<CodeResult | null> {
  const program = compat === 'reference' ? referenceProgram(meta, completion) : completion;
  if (program.trim() === '') return null;
  const options = compat === 'reference' ? { trim: true, compat } : { extract: { head: meta.head } };
  return gradeProgram(program, meta.tests, sandbox, options);
}

/**
 * Opens a data set. Records are checked against its schema.
 * @throws DUltraError BAD_DATASET naming file, line and field, DOWNLOAD_FAILED; TypeError, RangeError for options.
 */
export async function openBenchmark(
  name: BenchmarkName,
  options: BenchmarkOptions = {},
): Promise<TaskDataset<ChatMessage[]>> {
  checkChoice('dataset', name, BENCHMARK_NAMES);
  checkKeys('options', options, [
    'source',
    'splits',
    'prompts',
    'compat',
    'difficulties',
    'functionsOnly',
    'genLength',
    'blockLength',
    'sandbox',
  ]);
  const { source, prompts = 'evaluation', compat, difficulties = ['introductory'], functionsOnly = false } = options;
  const { genLength = 256, blockLength = 32, sandbox } = options;
  checkChoice('prompts', prompts, PROMPT_STYLES);
  checkChoice('functionsOnly', functionsOnly, [true, false] as const);
  if (compat !== undefined) checkChoice('compat', compat, ['reference'] as const);
  checkInteger('genLength', genLength, { min: 1, max: 2 ** 30 });
  checkInteger('blockLength', blockLength, { min: 1, max: genLength });
  const definition = DEFINITIONS[name];
  const wanted =
    options.splits ?? (source === undefined ? definition.splits : (['train', 'validation', 'test'] as const));
  const finite: Partial<Record<Split, readonly Example<ChatMessage[]>[]>> = {};
  for (const split of wanted) {
    checkChoice('splits', split, ['train', 'validation', 'test'] as const);
    const published = definition.location(split);
    const examples = await loadSplit(definition, { ...published, source: source ?? published.source }, split, {
      prompts,
      difficulties,
      functionsOnly,
    });
    if (examples) finite[split] = examples;
    else if (options.splits)
      throw optionError(RangeError, 'splits', `${name} has no split ${split} in ${source ?? published.source}`);
  }
  return {
    name,
    genLength,
    blockLength,
    vocabulary: [],
    finite,
    source: {
      data: source ?? definition.location('test').source,
      prompts,
      compat: compat ?? null,
      ...(name === 'apps' && { difficulties, functionsOnly }),
    },
    sample: (split, count, seed) => sampleFinite(name, finite, split, count, seed),
    async verify(example, completion) {
      if (definition.kind === 'math') return verifyMath(name, example.meta as MathMeta, completion, compat);
      return (await gradeCompletion(example.meta as CodeMeta, completion, { sandbox, compat }))?.passed ?? false;
    },
  };
}

/**
 * `sample` of a finite set: the first examples of a split; of "train", some drawn by the seed. @throws RangeError for
 * more than there are
 */
export function sampleFinite<E>(
  name: string,
  finite: Readonly<Partial<Record<Split, readonly E[]>>>,
  split: Split,
  count: number,
  seed: number,
): E[] {
  checkChoice('split', split, ['train', 'validation', 'test'] as const);
  checkInteger('count', count, { min: 0, max: 2 ** 31 });
  checkInteger('seed', seed, { min: 0, max: Number.MAX_SAFE_INTEGER });
  const all = finite[split];
  if (!all)
    throw optionError(
      RangeError,
      'split',
      `${name} has ${Object.keys(finite).join(', ') || 'none'}, got ${JSON.stringify(split)}`,
    );
  if (count > all.length)
    throw optionError(
      RangeError,
      'count',
      `expected no more prompts than the ${split} split of ${name} has (${all.length}), got ${count}`,
    );
  if (split !== 'train') return all.slice(0, count);
  return Array.from(new Random(BigInt(seed)).permutation(all.length).subarray(0, count), (i) => all[i]);
}
