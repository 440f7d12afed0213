// Values and output of programs, compared as Python and the judge of APPS do it, outside of Python.
// Source: hendrycks/apps, eval/testing_util.py.
import { pythonFloat, pythonWords } from './reference-text';

/** What a value that JSON cannot say looks like. */
type Tagged = { $int?: string; $float?: string; $dict?: [unknown, unknown][]; $set?: unknown[]; $other?: string };

/** JSON as Python writes it: whole numbers beyond 2^53 stay exact, as {"$int": "…"}, and NaN is {"$float": "nan"}. */
export function parseExact(json: string): unknown {
  const names: Record<string, string> = { NaN: 'nan', Infinity: 'inf', '-Infinity': '-inf' };
  return JSON.parse(
    json.replace(/"(?:[^"\\]|\\.)*"|-?Infinity|NaN|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g, (token) => {
      if (token in names) return `{"$float":"${names[token]}"}`;
      return /^-?\d{16,}$/.test(token) ? `{"$int":"${token}"}` : token;
    }),
  );
}

const isDictionary = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' &&
  value !== null &&
  !Array.isArray(value) &&
  !['$int', '$float', '$dict'].some((tag) => tag in value);

const INTEGER = /^\s*[+-]?\d+(?:_\d+)*\s*$/;

/** A dictionary whose keys JSON has made texts: whole numbers again, where all of them are. */
function withNumericKeys(value: unknown): unknown {
  if (!isDictionary(value)) return value;
  const entries = Object.entries(value);
  if (!entries.every(([key]) => INTEGER.test(key))) return value;
  const integer = (key: string) => ({ $int: BigInt(key.replace(/[_+\s]/g, '')).toString() });
  return { $dict: entries.map(([key, item]) => [integer(key), item]) };
}

/** The arguments of a call, as the data says them, for Python. */
export const argumentsOf = (input: unknown): unknown =>
  Array.isArray(input) && input.length > 0 ? [withNumericKeys(input[0]), ...input.slice(1)] : input;

/** The values that are right where the data expects `expected`, of which it may have made a list of one. */
export function acceptedValues(expected: unknown, compat?: 'reference'): unknown[] {
  if (compat === 'reference') return [Array.isArray(expected) ? expected[0] : expected];
  if (Array.isArray(expected) && expected.length !== 1) return [expected];
  const value = withNumericKeys(Array.isArray(expected) ? expected[0] : expected);
  return Array.isArray(expected) || value !== expected ? [value, [value]] : [value];
}

/** An integer of either notation; null for everything else. */
function integerOf(value: unknown): bigint | null {
  if (typeof value === 'boolean') return value ? 1n : 0n;
  if (typeof value === 'number') return Number.isInteger(value) ? BigInt(value) : null;
  const text = (value as Tagged | null)?.$int;
  return typeof text === 'string' ? BigInt(text) : null;
}

/** Equal for keys that Python takes for equal. */
const keyOf = (key: unknown): string => {
  const integer = integerOf(key);
  return integer === null ? JSON.stringify(key) : String(integer);
};

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
  const { $dict, $float } = actual as Tagged;
  const { $dict: pairs, $float: number } = expected as Tagged;
  if ($float !== undefined || number !== undefined) return $float === number && $float !== 'nan';
  if (!$dict) return false;
  const wanted = new Map((pairs ?? Object.entries(expected)).map(([key, item]) => [keyOf(key), item]));
  return (
    $dict.length === wanted.size &&
    $dict.every(([key, item]) => wanted.has(keyOf(key)) && pythonEqual(item, wanted.get(keyOf(key))))
  );
}

/** Lines of words, without blank lines. */
const linesOf = (text: string): string[][] =>
  text
    .split(/\r\n|\r|\n/)
    .map(pythonWords)
    .filter((words) => words.length > 0);

/** Python's round(value, 3): ties go to the even digit. */
function thousandths(value: number): string {
  if (!Number.isFinite(value) || Math.abs(value) >= 1e15) return String(value);
  const scaled = value * 1000;
  // A tie is exact: a multiple of 1/16.
  const isTie = Number.isInteger(value * 16) && Math.abs(scaled % 1) === 0.5;
  return (isTie ? 2 * Math.round(scaled / 2) : Number(value.toFixed(3)) * 1000).toFixed(0);
}

const isWhole = (word: string) => /^[+-]?\d+(?:_\d+)*$/.test(word);
const wholeOf = (word: string) => BigInt(word.replace(/[_+]/g, ''));

/**
 * Whether a program has written what was expected: the same words in the same lines. Where every word is a number,
 * whole numbers are equal by value; others within 1e-5 of the expected one, relatively, if each line is a single number,
 * and otherwise where they round to the same thousandth.
 */
export function outputEqual(actual: string, expected: string): boolean {
  const [lines, wanted] = [linesOf(actual), linesOf(expected)];
  if (lines.length !== wanted.length || lines.some((words, i) => words.length !== wanted[i].length)) return false;
  const [words, others] = [lines.flat(), wanted.flat()];
  if (words.every((word, i) => word === others[i])) return true;
  const isSingle = wanted.every(({ length }) => length === 1);
  return words.every((word, i) => {
    const [a, b] = [pythonFloat(word), pythonFloat(others[i])];
    if (a === null || b === null) return false;
    if (isWhole(word) && isWhole(others[i])) return wholeOf(word) === wholeOf(others[i]);
    if (a === b) return true;
    return isSingle ? Math.abs(a - b) <= 1e-8 + 1e-5 * Math.abs(b) : thousandths(a) === thousandths(b);
  });
}
