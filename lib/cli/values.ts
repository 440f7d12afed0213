// Values of options: parsers in the form that commander's .option() takes, and which of them were given.
import { InvalidArgumentError } from 'commander';

/** A copy without the keys whose value is undefined: only what was given, so that the API's defaults hold. */
export function given<T extends object>(values: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as ReturnType<
    typeof given<T>
  >;
}

/** A whole number. */
export function integer(text: string): number {
  if (!/^[+-]?\d+$/.test(text)) throw new InvalidArgumentError('Expected a whole number.');
  return Number(text);
}

/** Any finite number. */
export function number(text: string): number {
  const value = text.trim() === '' ? Number.NaN : Number(text);
  if (!Number.isFinite(value)) throw new InvalidArgumentError('Expected a number.');
  return value;
}

/** A seed, exact over all 64 bits. */
export function seed(text: string): bigint {
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError('Expected a whole number from 0 to 2^64 - 1.');
  return BigInt(text);
}

/** Token ids, separated by commas or spaces. */
export function ids(text: string): number[] {
  return text
    .split(/[\s,]+/)
    .filter((part) => part !== '')
    .map((part) => {
      if (!/^\d+$/.test(part)) throw new InvalidArgumentError(`Expected ids such as 5,17,3; "${part}" is none.`);
      return Number(part);
    });
}

/** Token ids with "_" (as null) for masks. */
export function maskedIds(text: string): (number | null)[] {
  return text
    .split(/[\s,]+/)
    .filter((part) => part !== '')
    .flatMap((part): (number | null)[] => (part === '_' ? [null] : ids(part)));
}
