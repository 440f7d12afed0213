// Whether a generated Python program passes a problem's tests. It runs in the sandbox; what functions return is
// compared out here, where the program cannot reach.
import { optionError } from '../errors';
import type { PythonOutcome, PythonRunner } from './python-sandbox';

/** The tests of a problem. */
export type CodeTests =
  /** Calls of a function; each entry of `inputs` is its arguments, each of `outputs` what must come back. */
  | { kind: 'calls'; functionName: string; inputs: readonly unknown[]; outputs: readonly unknown[] }
  /** Whole programs: what they read, and what they must write. */
  | { kind: 'stdio'; inputs: readonly string[]; outputs: readonly string[] }
  /** Python that runs behind the program and raises where it is wrong. */
  | { kind: 'script'; before: string; after: string };

/** How a program did. */
export interface CodeResult {
  passed: boolean;
  /** Tests passed before the first that raised, and their number. */
  passedTests: number;
  tests: number;
  /** Outcome of the first test that raised or exceeded a limit; null if none did. */
  failure: PythonOutcome | null;
}

/** JSON whose whole numbers beyond 2^53 stay exact, as {"$int": "…"}. */
export function parseExact(json: string): unknown {
  return JSON.parse(
    json.replace(/"(?:[^"\\]|\\.)*"|-?\d{16,}(?![\d.eE])/g, (token) =>
      token[0] === '"' ? token : `{"$int":"${token}"}`,
    ),
  );
}

type Tagged = { $int?: string; $float?: string; $dict?: [unknown, unknown][]; $set?: unknown[]; $other?: string };

/** An integer of either notation; null for everything else. */
function integerOf(value: unknown): bigint | null {
  if (typeof value === 'boolean') return value ? 1n : 0n;
  if (typeof value === 'number') return Number.isInteger(value) ? BigInt(value) : null;
  const text = (value as Tagged | null)?.$int;
  return typeof text === 'string' ? BigInt(text) : null;
}

/**
 * Python's ==, of a value out of the sandbox and one of a test: 1 == 1.0 == True, tuples as lists, dictionaries by
 * their keys.
 */
export function pythonEqual(actual: unknown, expected: unknown): boolean {
  const [a, b] = [integerOf(actual), integerOf(expected)];
  if (a !== null || b !== null) return a !== null && a === b;
  if (typeof actual !== 'object' || typeof expected !== 'object' || actual === null || expected === null)
    return actual === expected;
  if (Array.isArray(actual) || Array.isArray(expected))
    return (
      Array.isArray(actual) &&
      Array.isArray(expected) &&
      actual.length === expected.length &&
      actual.every((item, i) => pythonEqual(item, expected[i]))
    );
  const { $dict, $set, $float, $other } = actual as Tagged;
  if ($float !== undefined || $other !== undefined || $set !== undefined || !$dict) return false;
  const entries = Object.entries(expected);
  return (
    $dict.length === entries.length &&
    $dict.every(
      ([key, item]) =>
        typeof key === 'string' &&
        Object.hasOwn(expected, key) &&
        pythonEqual(item, (expected as Record<string, unknown>)[key]),
    )
  );
}

/** Output as judges compare it: without white space at the ends of lines and of the whole. */
const tidy = (text: string) =>
  text
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n')
    .trim();

/** Options of {@link gradeProgram}. */
export interface GradeOptions {
  signal?: AbortSignal;
  /**
   * Of tests that are a script: leave out what stands behind the last line up to which the program is valid Python, as
   * the published evaluations of HumanEval and MBPP do with words that follow an answer. Default false.
   */
  trim?: boolean;
}

/** Programs of a problem whose results are kept: those of a group of rollouts, which are often the same. */
const MAX_KEPT = 64;
const kept = new WeakMap<PythonRunner, WeakMap<CodeTests, Map<string, Promise<CodeResult>>>>();

/**
 * Runs the tests of a problem one after the other, each in a fresh interpreter, until one raises; once for equal
 * programs: a reward and the accuracy beside it ask for the same, and so do equal rollouts. Results that hang on the
 * machine's load are not kept. An expected output in a list of one is that one, as in APPS.
 * @throws as the `run` of `sandbox`
 */
export function gradeProgram(
  program: string,
  tests: CodeTests,
  sandbox: PythonRunner,
  options: GradeOptions = {},
): Promise<CodeResult> {
  const ofSandbox = kept.get(sandbox) ?? new WeakMap<CodeTests, Map<string, Promise<CodeResult>>>();
  kept.set(sandbox, ofSandbox);
  const results = ofSandbox.get(tests) ?? new Map<string, Promise<CodeResult>>();
  ofSandbox.set(tests, results);
  const key = `${options.trim ? 'trimmed' : 'whole'}\n${program}`;
  const known = results.get(key);
  if (known) return known;
  const result = runTests(program, tests, sandbox, options);
  if (results.size >= MAX_KEPT) results.delete(results.keys().next().value as string);
  results.set(key, result);
  const forget = () => results.delete(key);
  result.then(({ failure }) => (failure && failure.status !== 'error' ? forget() : undefined), forget);
  return result;
}

async function runTests(
  program: string,
  tests: CodeTests,
  sandbox: PythonRunner,
  { signal, trim = false }: GradeOptions,
): Promise<CodeResult> {
  const options = signal ? { signal } : {};
  if (tests.kind === 'script') {
    const code = [tests.before, program].filter((part) => part !== '').join('\n\n');
    const outcome = await sandbox.run({ code, tests: tests.after, trim, mustFinish: true }, options);
    const passed = outcome.status === 'ok';
    return { passed, passedTests: Number(passed), tests: 1, failure: passed ? null : outcome };
  }
  const count = Math.min(tests.inputs.length, tests.outputs.length);
  let passedTests = 0;
  for (let i = 0; i < count; i++) {
    const outcome = await sandbox.run(
      tests.kind === 'calls'
        ? { code: program, call: { name: tests.functionName, input: tests.inputs[i] } }
        : { code: program, stdin: tests.inputs[i] },
      options,
    );
    if (outcome.status !== 'ok') return { passed: false, passedTests, tests: count, failure: outcome };
    if (tests.kind === 'calls') {
      const expected = tests.outputs[i];
      if (pythonEqual(outcome.value, Array.isArray(expected) ? expected[0] : expected)) passedTests++;
    } else if (!outcome.truncated && tidy(outcome.stdout) === tidy(tests.outputs[i])) passedTests++;
  }
  return { passed: count > 0 && passedTests === count, passedTests, tests: count, failure: null };
}

/**
 * The reference's reward for code: 1 where all tests pass; −0.05 where the program raises, or runs out of time or
 * memory, before; 0 otherwise, also for code that does not parse.
 */
export function codeRewardOf({ passed, failure }: CodeResult): number {
  if (failure) return failure.status === 'error' && /syntax|indentation/i.test(failure.error ?? '') ? 0 : -0.05;
  return passed ? 1 : 0;
}

/**
 * Unbiased estimate of pass@k: the chance that of k drawn out of n samples, c of them right, one is right (Chen et al.
 * 2021, arXiv 2107.03374).
 * @throws RangeError for k above n
 */
export function passAtK(samples: number, right: number, k: number): number {
  if (!(Number.isInteger(k) && k >= 1 && k <= samples))
    throw optionError(RangeError, 'k', `expected 1 to the number of samples (${samples}), got ${k}`);
  if (!(Number.isInteger(right) && right >= 0 && right <= samples))
    throw optionError(RangeError, 'right', `expected 0 to ${samples}, got ${right}`);
  let none = 1;
  for (let i = 0; i < k; i++) none *= Math.max(0, samples - right - i) / (samples - i);
  return 1 - none;
}
