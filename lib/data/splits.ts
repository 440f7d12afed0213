// Splits of endless tasks into train, validation and test prompts. The hash of a prompt decides, so splits are disjoint
// for every seed.
import { optionError } from '../errors';
import { checkChoice, checkInteger } from '../options';
import { deriveSeed, Purpose, Random } from '../random';
import type { Example } from './dataset';

/** Name of a part of a task's prompts. */
export type Split = 'train' | 'validation' | 'test';

const SPLITS: readonly Split[] = ['train', 'validation', 'test'];
/** Of this many parts, one is for validation and one for tests. */
const PARTS = 20;
/** Draws without a new example after which a split counts as exhausted. */
const MAX_IDLE_DRAWS = 10_000;

/** FNV-1a over the UTF-16 code units, with murmur's finaliser to spread the last bits. */
export function hash(text: string): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** The split that a prompt belongs to: 90 % train, 5 % validation, 5 % test. */
export function splitOf(prompt: string): Split {
  const part = hash(prompt) % PARTS;
  return part === 0 ? 'validation' : part === 1 ? 'test' : 'train';
}

/**
 * `count` examples of one of `splits`, by drawing until one belongs there. The examples of all splits but "train" are all
 * different, so that none counts twice; those of "train" may repeat. A shorter sample is the beginning of a longer one.
 * @param keyOf what tells examples apart; null: it belongs to another split
 * @throws RangeError, TypeError for arguments; RangeError where a split has fewer examples than asked for.
 */
export function drawExamples<Name extends string, E>(
  splits: readonly Name[],
  split: Name,
  count: number,
  seed: number,
  draw: (random: Random) => E,
  keyOf: (example: E) => string | null,
): E[] {
  checkChoice('split', split, splits);
  checkInteger('count', count, { min: 0, max: 2 ** 31 });
  checkInteger('seed', seed, { min: 0, max: Number.MAX_SAFE_INTEGER });
  const random = new Random(deriveSeed(BigInt(seed), Purpose.examples, splits.indexOf(split)));
  const examples: E[] = [];
  const seen = split === 'train' ? null : new Set<string>();
  for (let idle = 0; examples.length < count; idle++) {
    if (idle > MAX_IDLE_DRAWS)
      throw optionError(
        RangeError,
        'count',
        `expected no more prompts than the ${split} split has (about ${examples.length}), got ${count}`,
      );
    const example = draw(random);
    const key = keyOf(example);
    if (key === null || seen?.has(key)) continue;
    seen?.add(key);
    examples.push(example);
    idle = 0;
  }
  return examples;
}

/** {@link drawExamples} of a task whose prompts' hashes decide on the split. */
export const sampleSplit = (
  draw: (random: Random) => Example<string>,
  split: Split,
  count: number,
  seed: number,
): Example<string>[] =>
  drawExamples(SPLITS, split, count, seed, draw, ({ prompt }) => (splitOf(prompt) === split ? prompt : null));
