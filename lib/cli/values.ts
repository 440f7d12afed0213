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

/** A share between 0 and 1; what is no number is the name of a file. */
export function shareOrFile(text: string): number | string {
  const value = Number(text);
  if (text.trim() === '') throw new InvalidArgumentError('Expected a file, or a share such as 0.1.');
  if (Number.isNaN(value)) return text;
  if (!(value > 0 && value < 1))
    throw new InvalidArgumentError('Expected a file, or a share greater than 0 and less than 1.');
  return value;
}

/** A seed, exact over all 64 bits. */
export function seed(text: string): bigint {
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError('Expected a whole number from 0 to 2^64 - 1.');
  return BigInt(text);
}

/** The parts of a list that commas or spaces separate; each of them says something. */
function list(text: string, example: string): string[] {
  if (text.trim() === '') throw new InvalidArgumentError(`Expected ids such as ${example}, got none.`);
  const parts = text.trim().split(/\s*,\s*|\s+/);
  if (parts.includes(''))
    throw new InvalidArgumentError(`Expected ids such as ${example}; one before or behind a comma is missing.`);
  return parts;
}

function tokenId(part: string, example: string): number {
  if (!/^\d+$/.test(part)) throw new InvalidArgumentError(`Expected ids such as ${example}; "${part}" is none.`);
  return Number(part);
}

const IDS = '5,17,3';
const MASKED_IDS = '5,_,_,3';

/** Token ids, separated by commas or spaces. */
export const ids = (text: string): number[] => list(text, IDS).map((part) => tokenId(part, IDS));

/** Token ids with "_" (as null) for masks. */
export const maskedIds = (text: string): (number | null)[] =>
  list(text, MASKED_IDS).map((part) => (part === '_' ? null : tokenId(part, MASKED_IDS)));
