// Regular languages as trees of parts, over characters.
import type { ByteAutomaton } from './automaton';

/** Ascending ranges of code points that do not touch, both ends included. */
export type CharacterSet = readonly (readonly [number, number])[];

/** A regular language. */
export type Language =
  | { kind: 'set'; set: CharacterSet }
  | { kind: 'bytes'; bytes: Uint8Array }
  | { kind: 'sequence'; parts: readonly Language[] }
  | { kind: 'choice'; options: readonly Language[] }
  | { kind: 'repeat'; part: Language; min: number; max: number }
  /** One part or more, with a separator between them. */
  | { kind: 'separated'; part: Language; separator: Language }
  | { kind: 'automaton'; automaton: ByteAutomaton }
  /** The beginning and the end of the text, of a pattern that is not resolved yet. */
  | { kind: 'start' }
  | { kind: 'end' };

const encoder = new TextEncoder();

export const text = (value: string): Language => ({ kind: 'bytes', bytes: encoder.encode(value) });
export const sequence = (...parts: Language[]): Language => ({ kind: 'sequence', parts });
export const choice = (...options: Language[]): Language => ({ kind: 'choice', options });
export const repeat = (part: Language, min: number, max = Number.POSITIVE_INFINITY): Language => ({
  kind: 'repeat',
  part,
  min,
  max,
});
export const separated = (part: Language, separator: Language): Language => ({ kind: 'separated', part, separator });
export const optional = (part: Language): Language => repeat(part, 0, 1);
export const characters = (...ranges: (readonly [number, number])[]): Language => ({ kind: 'set', set: ranges });
export const NOTHING: Language = sequence();

/** Half a pair of surrogates is no character. */
export const EVERY_CHARACTER: CharacterSet = [
  [0, 0xd7ff],
  [0xe000, 0x10ffff],
];

/** Ranges in order, without overlaps. */
export function union(...sets: CharacterSet[]): CharacterSet {
  const all = sets.flat().sort((a, b) => a[0] - b[0]);
  const result: [number, number][] = [];
  for (const [from, to] of all) {
    const last = result[result.length - 1];
    if (last && from <= last[1] + 1) last[1] = Math.max(last[1], to);
    else result.push([from, to]);
  }
  return result;
}

export function intersection(a: CharacterSet, b: CharacterSet): CharacterSet {
  const result: [number, number][] = [];
  for (const [from, to] of a)
    for (const [other, end] of b)
      if (Math.max(from, other) <= Math.min(to, end)) result.push([Math.max(from, other), Math.min(to, end)]);
  return result;
}

export function complement(set: CharacterSet): CharacterSet {
  const result: [number, number][] = [];
  let next = 0;
  for (const [from, to] of union(set)) {
    if (from > next) result.push([next, from - 1]);
    next = to + 1;
  }
  if (next <= 0x10ffff) result.push([next, 0x10ffff]);
  return intersection(result, EVERY_CHARACTER);
}

/** A language with every part that a function replaces. */
export function mapLanguage(language: Language, replace: (part: Language) => Language | null): Language {
  const own = replace(language);
  if (own) return own;
  switch (language.kind) {
    case 'sequence':
      return { kind: 'sequence', parts: language.parts.map((part) => mapLanguage(part, replace)) };
    case 'choice':
      return { kind: 'choice', options: language.options.map((option) => mapLanguage(option, replace)) };
    case 'repeat':
      return { ...language, part: mapLanguage(language.part, replace) };
    default:
      return language;
  }
}
