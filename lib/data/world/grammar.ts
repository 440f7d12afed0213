// Patterns of sentences: small grammars with alternatives and slots.
import type { Random } from '../../random';

/** Ways to say the same: those of training, and those that only the test split uses. */
export interface Patterns {
  train: readonly string[];
  test: readonly string[];
}

/** A pattern, parsed: texts, slots and choices. */
type Part = string | { slot: string } | { choices: Part[][] };

const parsed = new Map<string, Part[]>();

function parse(pattern: string): Part[] {
  const known = parsed.get(pattern);
  if (known) return known;
  let at = 0;
  const sequence = (nested: boolean): Part[] => {
    const parts: Part[] = [];
    while (at < pattern.length && !(nested && (pattern[at] === '|' || pattern[at] === '}'))) {
      if (pattern[at] === '{') {
        const choices: Part[][] = [];
        do {
          at++;
          choices.push(sequence(true));
        } while (pattern[at] === '|');
        if (pattern[at] !== '}') throw new Error(`no "}" in ${pattern}`);
        at++;
        parts.push({ choices });
      } else if (pattern[at] === '$') {
        const [, slot] = /^\$([a-z]+\d?)/i.exec(pattern.slice(at))!;
        at += slot.length + 1;
        parts.push({ slot });
      } else {
        const begin = at;
        while (at < pattern.length && !'{$'.includes(pattern[at]) && !(nested && '|}'.includes(pattern[at]))) at++;
        parts.push(pattern.slice(begin, at));
      }
    }
    return parts;
  };
  const parts = sequence(false);
  parsed.set(pattern, parts);
  return parts;
}

/**
 * A sentence of a pattern: of every `{a|b}` one alternative, and values in place of `$slot`. Spaces are tidied, and "a"
 * is "an" before a vowel.
 */
export function expand(random: Random, pattern: string, slots: Readonly<Record<string, string | number>> = {}): string {
  const write = (parts: readonly Part[]): string =>
    parts
      .map((part) => {
        if (typeof part === 'string') return part;
        if ('choices' in part) return write(part.choices[random.integer(part.choices.length)]);
        if (!(part.slot in slots)) throw new Error(`no value for $${part.slot} in ${pattern}`);
        return String(slots[part.slot]);
      })
      .join('');
  return write(parse(pattern))
    .replace(/\s+/g, ' ')
    .replace(/ ([.?!,])/g, '$1')
    .replace(/\b([Aa]) (?=[aeiou])/g, '$1n ')
    .trim();
}
