// Prompts and examples that do not fit a model: found before the work begins, and named.
import { optionError } from '../errors';

/** Most that a message names. */
const NAMED = 5;

/** Something that cannot be used, and why. */
export interface Unusable {
  /** As messages name it, such as "dataset.examples[3]". */
  name: string;
  index: number;
  problem: Error;
}

const list = (all: readonly Unusable[]) =>
  all
    .slice(0, NAMED)
    .map(({ name, problem }) => `${name} (${problem.message})`)
    .join('; ') + (all.length > NAMED ? `; and ${all.length - NAMED} more` : '');

/**
 * Those of `items` that `check` lets pass.
 * @param check throws what is wrong with one
 * @param nameOf its name for messages
 * @throws what is wrong with the first, where none can be used: then it is the model or an option
 */
export function partition<T>(
  items: readonly T[],
  check: (item: T) => void,
  nameOf: (index: number) => string,
): { usable: T[]; unusable: Unusable[] } {
  const usable: T[] = [];
  const unusable: Unusable[] = [];
  for (const [index, item] of items.entries()) {
    const problem = problemOf(item, check);
    if (problem) unusable.push({ name: nameOf(index), index, problem });
    else usable.push(item);
  }
  if (items.length > 0 && usable.length === 0) throw unusable[0].problem;
  return { usable, unusable };
}

/** What `check` throws; null: nothing. */
export function problemOf<T>(item: T, check: (item: T) => void): Error | null {
  try {
    check(item);
    return null;
  } catch (error) {
    return error as Error;
  }
}

/**
 * Examples that fit; one process warning names the others. @param name of the option, for messages
 * @throws RangeError where most do not fit: an option is wrong rather than the examples; as {@link partition}
 */
export function usableExamples<T>(name: string, items: readonly T[], check: (item: T) => void): T[] {
  const { usable, unusable } = partition(items, check, (index) => `${name}[${index}]`);
  if (unusable.length > usable.length)
    throw optionError(
      RangeError,
      name,
      `expected examples that fit the model, ${unusable.length} of ${items.length} do not: ${list(unusable)}`,
    );
  if (unusable.length > 0) warnOnce(`${unusable.length} of ${items.length} examples are left out: ${list(unusable)}`);
  return usable;
}

/**
 * Says what is left out, once per process. @param key of the occasion, where its prompts differ from time to time;
 * default: the message
 */
export function warnUnusable(all: readonly Unusable[], total: number, consequence: string, key?: string): void {
  if (all.length > 0) warnOnce(`${all.length} of ${total} prompts ${consequence}: ${list(all)}`, key);
}

const said = new Set<string>();

/** A process warning, once per process. @param key of the occasion, where the message differs from time to time */
export function warnOnce(message: string, key = message): void {
  if (said.has(key)) return;
  said.add(key);
  process.emitWarning(message, { type: 'DultraWarning', code: 'DULTRA_DOES_NOT_FIT' });
}
