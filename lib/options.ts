// Checks of option values. A wrong type is a TypeError, a value out of range a RangeError; both name the option, what
// was expected and what came.
import { randomInt } from 'node:crypto';
import { optionError } from './errors';
import { show } from './text';

/** More keys than these are not listed where one of them is meant. */
const FEW_KEYS = 20;

/** What a message expects in place of a key that there is not. */
export function expectedKeys(key: string, allowed: readonly string[]): string {
  if (allowed.length === 0) return 'expected none';
  const meant = similarName(key, allowed);
  if (meant === null) return `expected one of ${allowed.join(', ')}`;
  const question = `did you mean "${meant}"?`;
  return allowed.length > FEW_KEYS ? question : `${question} Expected one of ${allowed.join(', ')}`;
}

/** `object` must be a plain object whose keys are all in `allowed`. */
export function checkKeys(name: string, object: unknown, allowed: readonly string[]): void {
  if (typeof object !== 'object' || object === null)
    throw optionError(TypeError, name, `expected an object, got ${show(object)}`);
  for (const key of Object.keys(object))
    if (!allowed.includes(key))
      throw optionError(TypeError, name, `unknown key ${show(key)}; ${expectedKeys(key, allowed)}`);
}

/** Names that other libraries have for an option, as {@link plain} writes them. */
const OTHER_NAMES: Readonly<Record<string, readonly string[]>> = {
  maxTokens: ['genlength', 'maxnewtokens', 'maxoutputtokens', 'maxcompletiontokens', 'npredict', 'numpredict'],
  sampler: ['steps', 'remasking', 'threshold', 'alg'],
  research: ['compat', 'firstrow', 'forcedstep', 'tokenlogprob'],
  signal: ['abortsignal', 'abort'],
  stop: ['stopsequences', 'stopstrings'],
  logprobs: ['returnlogprobs'],
};

/** A name without what spellings differ in: max_tokens, max-tokens and maxTokens are one. */
const plain = (name: string): string => name.toLowerCase().replace(/[^a-z0-9]/g, '');

/** Insertions, deletions, changes and swaps of neighbours that make one text the other. */
function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const change = last[j - 1] + Number(a[i - 1] !== b[j - 1]);
      row[j] = Math.min(change, last[j] + 1, row[j - 1] + 1);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        row[j] = Math.min(row[j], before[j - 2] + 1);
    }
    [before, last] = [last, row];
  }
  return last[b.length];
}

/** The one of `allowed` that a wrong name probably stands for, or null: another spelling or name of it, or a typing error. */
export function similarName(name: string, allowed: readonly string[]): string | null {
  const written = plain(name.slice(0, 64));
  const known = allowed.find((other) => plain(other) === written || OTHER_NAMES[other]?.includes(written));
  if (known !== undefined) return known;
  let best: string | null = null;
  // One error in three letters: with more, names of other things are as near.
  let nearest = Math.floor(Math.max(written.length, 3) / 3) + 1;
  for (const other of allowed) {
    const distance = editDistance(written, plain(other));
    if (distance < nearest && distance < plain(other).length) [best, nearest] = [other, distance];
  }
  return best;
}

function bounds({ min, max, minExclusive }: { min?: number; max?: number; minExclusive?: number }): string {
  const parts: string[] = [];
  if (min !== undefined) parts.push(`at least ${min}`);
  if (minExclusive !== undefined) parts.push(`greater than ${minExclusive}`);
  if (max !== undefined) parts.push(`at most ${max}`);
  return parts.length > 0 ? ` ${parts.join(' and ')}` : '';
}

/** `value` must be a finite number inside the bounds. */
export function checkNumber(
  name: string,
  value: unknown,
  range: { min?: number; max?: number; minExclusive?: number },
): asserts value is number {
  if (typeof value !== 'number')
    throw optionError(TypeError, name, `expected a number${bounds(range)}, got ${show(value)}`);
  const { min = -Infinity, max = Infinity, minExclusive = -Infinity } = range;
  if (!Number.isFinite(value) || value < min || value > max || value <= minExclusive)
    throw optionError(RangeError, name, `expected a finite number${bounds(range)}, got ${value}`);
}

/** `value` must be a whole number inside the bounds. */
export function checkInteger(
  name: string,
  value: unknown,
  range: { min?: number; max?: number },
): asserts value is number {
  if (typeof value !== 'number')
    throw optionError(TypeError, name, `expected an integer${bounds(range)}, got ${show(value)}`);
  const { min = -Infinity, max = Infinity } = range;
  if (!Number.isInteger(value) || value < min || value > max)
    throw optionError(RangeError, name, `expected an integer${bounds(range)}, got ${value}`);
}

/** `value` must be one of `choices`. */
export function checkChoice<T extends string | boolean>(
  name: string,
  value: unknown,
  choices: readonly T[],
): asserts value is T {
  if (choices.includes(value as T)) return;
  const Type = choices.some((choice) => typeof choice === typeof value) ? RangeError : TypeError;
  const expected = choices.map((choice) => JSON.stringify(choice)).join(' or ');
  throw optionError(Type, name, `expected ${expected}, got ${show(value)}`);
}

/** `value` must be an AbortSignal, or absent. */
export function checkSignal(value: unknown): asserts value is AbortSignal | undefined {
  if (
    value === undefined ||
    (typeof value === 'object' && value !== null && typeof (value as AbortSignal).throwIfAborted === 'function')
  )
    return;
  throw optionError(TypeError, 'signal', `expected an AbortSignal, got ${show(value)}`);
}

/** The array-like `value` with every element checked; `name` is that of the whole. */
export function checkList<T>(name: string, value: unknown, check: (name: string, element: unknown) => T): T[] {
  const length = typeof value === 'object' && value !== null ? (value as ArrayLike<unknown>).length : undefined;
  if (typeof length !== 'number' || !Number.isInteger(length) || length < 0)
    throw optionError(TypeError, name, `expected an array, got ${show(value)}`);
  const list: T[] = [];
  for (let i = 0; i < length; i++) list.push(check(`${name}[${i}]`, (value as ArrayLike<unknown>)[i]));
  return list;
}

/** A seed as the bigint that the native core takes: a whole number from 0 to 2^64 − 1. */
export function checkSeed(name: string, value: unknown): bigint {
  if (typeof value !== 'bigint' && typeof value !== 'number')
    throw optionError(TypeError, name, `expected an integer or a bigint, got ${show(value)}`);
  if (typeof value === 'number' && !Number.isSafeInteger(value))
    throw optionError(RangeError, name, `expected a safe integer or a bigint, got ${value}`);
  const seed = BigInt(value);
  if (seed < 0n || seed >= 2n ** 64n) throw optionError(RangeError, name, `expected 0 to 2^64 - 1, got ${seed}`);
  return seed;
}

/** Drawn seeds are below it: they are safe integers, which people can write down. */
const DRAWN_SEEDS = 2 ** 32;

/** A seed for a call that draws tokens and was given none, so that a text asked for again is another. */
export const drawSeed = (): number => randomInt(DRAWN_SEEDS);

/** A copy of `object` without some of its keys. */
export function omit<T extends object, K extends keyof T>(object: T, keys: readonly K[]): Without<T, K> {
  const out = { ...object };
  for (const key of keys) delete out[key];
  return out as unknown as Without<T, K>;
}

/** Omit of each member of a union. */
type Without<T, K extends keyof T> = T extends unknown ? Omit<T, K> : never;

/** Options of top-k and top-p. */
export function checkTokenFilter(topK: unknown, topP: unknown): void {
  if (topK !== undefined) checkInteger('topK', topK, { min: 1, max: 2 ** 31 - 1 });
  if (topP !== undefined) checkNumber('topP', topP, { minExclusive: 0, max: 1 });
}
