// Whether a generated Python program passes a problem's tests. It runs in the sandbox; what functions return and
// programs write is compared out here, where the program cannot reach.
import { optionError } from '../errors';
import type { PythonOutcome, PythonProgram, PythonRunner } from './python-sandbox';
import { acceptedValues, argumentsOf, outputEqual, pythonEqual } from './python-values';

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

/** Options of {@link gradeProgram}. */
export interface GradeOptions {
  signal?: AbortSignal | undefined;
  /**
   * Of tests that are a script: leave out what stands behind the last line up to which the program is valid Python, as
   * the published evaluations of HumanEval and MBPP do with words that follow an answer. Default false.
   */
  trim?: boolean | undefined;
  /** `program` is an answer in which the program has yet to be found, as in `PythonProgram`. Default: it is one. */
  extract?: PythonProgram['extract'] | undefined;
  /** "reference": of an expected list only the first element counts, as in the reference's reward. */
  compat?: 'reference' | undefined;
}

export { parseExact, pythonEqual } from './python-values';

/** Programs of a problem whose results are kept: those of a group of rollouts, which are often the same. */
const MAX_KEPT = 64;
const kept = new WeakMap<PythonRunner, WeakMap<CodeTests, Map<string, Promise<CodeResult>>>>();

/**
 * Runs the tests of a problem one after the other, each in a fresh interpreter, until one raises; once for equal
 * programs: a reward and the accuracy beside it ask for the same, and so do equal rollouts. Results that hang on the
 * machine's load are not kept.
 *
 * Results are compared as APPS does it. Values: Python's ==, tuples as lists; an expected value may stand in a list of
 * one; keys of an expected dictionary, and of a first argument, that are whole numbers are numbers. Output: words line
 * by line, white space and blank lines aside; where all words are numbers, numbers that are not whole within APPS's
 * tolerance. Stricter than APPS: order and number of lines and words count, and whole numbers are exact.
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
  const { trim = false, extract = null, compat = null } = options;
  const key = JSON.stringify([trim, extract, compat, program]);
  const known = results.get(key);
  if (known) return known;
  const result = runTests(program, tests, sandbox, options);
  if (results.size >= MAX_KEPT) results.delete(results.keys().next().value as string);
  results.set(key, result);
  const forget = () => results.delete(key);
  result.then(({ failure }) => (failure && failure.status !== 'error' ? forget() : undefined), forget);
  return result;
}

/** Bytes of output to keep where this is expected: more than any way of writing it takes. */
const roomFor = (expected: string): number => Math.min(2 ** 30, 4 * Buffer.byteLength(expected) + 2 ** 16);

async function runTests(
  program: string,
  tests: CodeTests,
  sandbox: PythonRunner,
  { signal, trim = false, extract, compat }: GradeOptions,
): Promise<CodeResult> {
  const options = signal ? { signal } : {};
  const joined = (...parts: string[]) => parts.filter((part) => part !== '').join('\n\n');
  if (tests.kind === 'script') {
    const source = extract
      ? { code: program, extract: { head: joined(tests.before, extract.head) } }
      : { code: joined(tests.before, program), trim };
    const outcome = await sandbox.run({ ...source, tests: tests.after, mustFinish: true }, options);
    const passed = outcome.status === 'ok';
    return { passed, passedTests: Number(passed), tests: 1, failure: passed ? null : outcome };
  }
  const count = Math.min(tests.inputs.length, tests.outputs.length);
  let passedTests = 0;
  const source = { code: program, ...(extract && { extract }) };
  for (let i = 0; i < count; i++) {
    const outcome = await sandbox.run(
      tests.kind === 'calls'
        ? {
            ...source,
            call: { name: tests.functionName, input: argumentsOf(tests.inputs[i]) },
            outputLimit: roomFor(JSON.stringify(tests.outputs[i]) ?? ''),
          }
        : { ...source, stdin: tests.inputs[i], outputLimit: roomFor(tests.outputs[i]) },
      options,
    );
    if (outcome.status !== 'ok') return { passed: false, passedTests, tests: count, failure: outcome };
    if (tests.kind === 'calls') {
      const accepted = acceptedValues(tests.outputs[i], compat);
      if (accepted.some((expected) => pythonEqual(outcome.value, expected))) passedTests++;
    } else if (!outcome.truncated && outputEqual(outcome.stdout, tests.outputs[i])) passedTests++;
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
