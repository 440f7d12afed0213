// Regular expressions of JavaScript (with the flag u) as languages.
import {
  type CharacterSet,
  choice,
  complement,
  EVERY_CHARACTER,
  type Language,
  NOTHING,
  repeat,
  sequence,
  union,
} from './language';

/** What of a pattern is not supported, or no pattern at all. */
export class PatternError extends Error {}

const DIGITS: CharacterSet = [[0x30, 0x39]];
const WORD: CharacterSet = [
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
];
const SPACES: CharacterSet = [
  [0x09, 0x0d],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
];
const LINE_ENDS: CharacterSet = [
  [0x0a, 0x0a],
  [0x0d, 0x0d],
  [0x2028, 0x2029],
];
const CLASSES: Readonly<Record<string, CharacterSet>> = {
  d: DIGITS,
  D: complement(DIGITS),
  w: WORD,
  W: complement(WORD),
  s: SPACES,
  S: complement(SPACES),
};
const CONTROLS: Readonly<Record<string, number>> = { n: 0x0a, r: 0x0d, t: 0x09, f: 0x0c, v: 0x0b, 0: 0 };
/** Most repetitions that are counted. */
const MOST_REPEATED = 4096;

const properties = new Map<string, CharacterSet>();
/** The characters of \p{…}, as this Node.js knows them. */
function propertySet(source: string): CharacterSet {
  let set = properties.get(source);
  if (!set) {
    const test = new RegExp(`^${source}$`, 'u');
    const ranges: [number, number][] = [];
    for (const [low, high] of EVERY_CHARACTER)
      for (let code = low; code <= high; code++) {
        if (!test.test(String.fromCodePoint(code))) continue;
        const last = ranges[ranges.length - 1];
        if (last && last[1] === code - 1) last[1] = code;
        else ranges.push([code, code]);
      }
    set = ranges;
    properties.set(source, set);
  }
  return set;
}

class Reader {
  #at = 0;
  readonly #characters: string[];

  constructor(readonly source: string) {
    this.#characters = Array.from(source);
  }

  whole(): Language {
    const result = this.#choice();
    if (this.#at < this.#characters.length) throw new PatternError(`cannot be read at ${this.#rest()}`);
    return result;
  }

  #rest(): string {
    return JSON.stringify(this.#characters.slice(this.#at, this.#at + 12).join(''));
  }
  #peek(): string | undefined {
    return this.#characters[this.#at];
  }
  #take(expected: string): boolean {
    const characters = Array.from(expected);
    if (!characters.every((character, i) => this.#characters[this.#at + i] === character)) return false;
    this.#at += characters.length;
    return true;
  }

  #choice(): Language {
    const options = [this.#sequence()];
    while (this.#take('|')) options.push(this.#sequence());
    return options.length === 1 ? options[0] : choice(...options);
  }

  #sequence(): Language {
    const parts: Language[] = [];
    for (;;) {
      const next = this.#peek();
      if (next === undefined || next === '|' || next === ')') break;
      parts.push(this.#quantified(this.#atom()));
    }
    return parts.length === 1 ? parts[0] : sequence(...parts);
  }

  #quantified(part: Language): Language {
    let [min, max] = [1, 1];
    const braces = /^\{(\d+)(,(\d*))?\}/.exec(this.#characters.slice(this.#at, this.#at + 24).join(''));
    if (this.#take('*')) [min, max] = [0, Number.POSITIVE_INFINITY];
    else if (this.#take('+')) [min, max] = [1, Number.POSITIVE_INFINITY];
    else if (this.#take('?')) [min, max] = [0, 1];
    else if (braces) {
      this.#at += braces[0].length;
      min = Number(braces[1]);
      max = braces[2] === undefined ? min : braces[3] === '' ? Number.POSITIVE_INFINITY : Number(braces[3]);
      if (Math.max(min, max === Number.POSITIVE_INFINITY ? 0 : max) > MOST_REPEATED)
        throw new PatternError(`repeats something more than ${MOST_REPEATED} times, ${braces[0]}`);
    } else return part;
    // Whether it takes as much or as little as it can makes no difference to what matches as a whole.
    this.#take('?');
    if (part.kind === 'start' || part.kind === 'end')
      throw new PatternError('repeats the start or the end of the text');
    return repeat(part, min, max);
  }

  #atom(): Language {
    if (this.#take('^')) return { kind: 'start' };
    if (this.#take('$')) return { kind: 'end' };
    if (this.#take('.')) return { kind: 'set', set: complement(LINE_ENDS) };
    if (this.#take('(')) return this.#group();
    if (this.#take('[')) return { kind: 'set', set: this.#class() };
    if (this.#take('\\')) return { kind: 'set', set: this.#escape(false) };
    const character = this.#characters[this.#at++];
    const code = character.codePointAt(0)!;
    return { kind: 'set', set: [[code, code]] };
  }

  #group(): Language {
    if (this.#take('?')) {
      const name = /^<[^>=!]+>/.exec(this.#characters.slice(this.#at).join(''));
      if (name) this.#at += Array.from(name[0]).length;
      else if (!this.#take(':')) throw new PatternError(`uses (?${this.#peek()}…), which is not supported`);
    }
    const inner = this.#choice();
    if (!this.#take(')')) throw new PatternError('misses a )');
    return inner;
  }

  /** What follows a backslash. */
  #escape(inClass: boolean): CharacterSet {
    const letter = this.#characters[this.#at++];
    if (letter in CLASSES) return CLASSES[letter];
    const one = (code: number): CharacterSet => [[code, code]];
    if (letter === 'p' || letter === 'P') {
      const end = this.#characters.indexOf('}', this.#at);
      const name = this.#characters.slice(this.#at, end + 1).join('');
      this.#at = end + 1;
      return propertySet(`\\${letter}${name}`);
    }
    if (letter === 'b' && inClass) return one(8);
    if (/[bB]/.test(letter)) throw new PatternError(`uses \\${letter}, which is not supported`);
    if (/[1-9k]/.test(letter)) throw new PatternError('refers to a group, which no regular language can');
    if (letter in CONTROLS) return one(CONTROLS[letter]);
    if (letter === 'c') return one(this.#characters[this.#at++].charCodeAt(0) & 31);
    if (letter === 'x') return one(this.#hex(2));
    if (letter === 'u') {
      if (!this.#take('{')) {
        const code = this.#hex(4);
        if (code < 0xd800 || code > 0xdbff || !this.#take('\\u')) return one(code);
        return one(0x10000 + ((code - 0xd800) << 10) + (this.#hex(4) - 0xdc00));
      }
      const end = this.#characters.indexOf('}', this.#at);
      const code = Number.parseInt(this.#characters.slice(this.#at, end).join(''), 16);
      this.#at = end + 1;
      return one(code);
    }
    return one(letter.codePointAt(0)!);
  }

  #hex(count: number): number {
    const digits = this.#characters.slice(this.#at, this.#at + count).join('');
    this.#at += count;
    return Number.parseInt(digits, 16);
  }

  #class(): CharacterSet {
    const isNegated = this.#take('^');
    const sets: CharacterSet[] = [];
    while (!this.#take(']')) {
      const first = this.#classAtom();
      const [range] = first;
      const isRange = this.#peek() === '-' && this.#characters[this.#at + 1] !== ']' && first.length === 1;
      if (!isRange || range[0] !== range[1]) {
        sets.push(first);
        continue;
      }
      this.#at++;
      const [[, to]] = this.#classAtom();
      sets.push([[range[0], to]]);
    }
    const set = union(...sets);
    return isNegated ? complement(set) : set;
  }

  #classAtom(): CharacterSet {
    if (this.#take('\\')) return this.#escape(true);
    const code = this.#characters[this.#at++].codePointAt(0)!;
    return [[code, code]];
  }
}

const hasAnchor = (language: Language): boolean =>
  language.kind === 'start' ||
  language.kind === 'end' ||
  (language.kind === 'sequence' && language.parts.some(hasAnchor)) ||
  (language.kind === 'choice' && language.options.some(hasAnchor)) ||
  (language.kind === 'repeat' && hasAnchor(language.part));

const ANY = repeat({ kind: 'set', set: EVERY_CHARACTER }, 0);

/** Texts that have a match, or with `whole` that are one; ^ and $ may stand first and last. */
function resolved(language: Language, whole: boolean): Language {
  if (language.kind === 'choice' && hasAnchor(language))
    return choice(...language.options.map((option) => resolved(option, whole)));
  let parts = language.kind === 'sequence' ? [...language.parts] : [language];
  // A choice at the border that has anchors is one of whole sequences.
  for (const at of [0, parts.length - 1]) {
    const part = parts[at];
    if (part?.kind === 'sequence' && hasAnchor(part)) {
      parts.splice(at, 1, ...part.parts);
      return resolved(sequence(...parts), whole);
    }
    if (part?.kind === 'choice' && hasAnchor(part) && parts.length > 1) {
      const around = (option: Language) => sequence(...parts.slice(0, at), option, ...parts.slice(at + 1));
      return choice(...part.options.map((option) => resolved(around(option), whole)));
    }
  }
  let [opens, closes] = [!whole, !whole];
  while (parts[0]?.kind === 'start') {
    opens = false;
    parts = parts.slice(1);
  }
  while (parts[parts.length - 1]?.kind === 'end') {
    closes = false;
    parts = parts.slice(0, -1);
  }
  const inner = sequence(...parts);
  if (hasAnchor(inner)) throw new PatternError('has ^ or $ in its middle, which is not supported');
  return sequence(opens ? ANY : NOTHING, inner, closes ? ANY : NOTHING);
}

/**
 * The texts that a pattern matches as a whole, or with `search` those that have a match in them, as JSON schema reads
 * one. @throws PatternError
 */
export function patternLanguage(pattern: string, { search }: { search: boolean }): Language {
  try {
    new RegExp(pattern, 'u');
  } catch (error) {
    throw new PatternError(`is no regular expression: ${(error as Error).message}`);
  }
  return resolved(new Reader(pattern).whole(), !search);
}
