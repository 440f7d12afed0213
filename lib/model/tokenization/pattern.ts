// Regular expressions of tokenizer.json, which are Oniguruma's, as JavaScript's. What is not known to mean the same is
// refused: a pattern that splits otherwise gives other ids.
import { show } from '../../text';

const ESCAPES: Record<string, string> = { n: '\\n', r: '\\r', t: '\\t', f: '\\f', v: '\\v', a: '\\x07', e: '\\x1b' };
/** Inside and outside of brackets. */
const CLASSES: Record<string, string> = {
  s: '\\p{White_Space}',
  S: '\\P{White_Space}',
  d: '\\p{Nd}',
  D: '\\P{Nd}',
};
const CATEGORY = /^(L[ultmo]?|M[nce]?|N[dlo]?|P[cdseifo]?|S[mcko]?|Z[slp]?|C[cfos]?)$/;
const SCRIPT =
  /^(Arabic|Armenian|Bengali|Cyrillic|Devanagari|Georgian|Greek|Han|Hangul|Hebrew|Hiragana|Katakana|Latin|Thai)$/;
/** Letters of other alphabets that have the same lower case as one of ASCII. */
const FOLDED: Record<string, string> = { k: '\u212a', s: '\u017f' };
/** Two letters that are one character in another case, as ß is ss. */
const JOINED = /ss|f[fil]|st/i;

class Translator {
  readonly #source: string;
  #at = 0;
  #groups = 0;

  constructor(source: string) {
    this.#source = source;
  }

  #fail(what: string): never {
    throw new Error(`the pattern ${show(this.#source)} is not supported: ${what}`);
  }
  #take(pattern: RegExp): RegExpExecArray | null {
    const sticky = new RegExp(pattern.source, 'yu');
    sticky.lastIndex = this.#at;
    const match = sticky.exec(this.#source);
    if (match) this.#at += match[0].length;
    return match;
  }

  translate(): string {
    const result = this.#alternatives(false);
    if (this.#at < this.#source.length) this.#fail('")" without "("');
    return result;
  }

  /** @param folds whether case is ignored */
  #alternatives(folds: boolean): string {
    let result = '';
    while (this.#at < this.#source.length && this.#source[this.#at] !== ')') {
      if (this.#take(/\|/)) result += '|';
      else result += this.#repeated(folds);
    }
    return result;
  }

  #repeated(folds: boolean): string {
    const start = this.#at;
    const atom = this.#atom(folds);
    const isLook = /^\((\?[=!]|\?<[=!])/.test(this.#source.slice(start, this.#at));
    const quantifier = this.#take(/[*+?]|\{(?:\d+(?:,\d*)?|,\d+)\}/);
    if (!quantifier) return atom;
    if (isLook) this.#fail('a repeated look-around');
    const bounds = quantifier[0].replace('{,', '{0,');
    const mode = this.#take(/[+?]/)?.[0] ?? '';
    if (this.#take(/[*+?]|\{(?:\d+(?:,\d*)?|,\d+)\}/)) this.#fail('quantifiers of quantifiers');
    if (mode === '') return atom + bounds;
    // "+" behind braces repeats what they repeat, "?" behind {n} makes it optional.
    if (bounds.startsWith('{')) this.#fail(`"${quantifier[0]}${mode}"`);
    return mode === '?' ? `${atom}${bounds}?` : this.#atomic(atom + bounds);
  }
  /** Matches once, without trying less later: as the lookahead of JavaScript does. */
  #atomic(inner: string): string {
    const name = `atom${this.#groups++}`;
    return `(?=(?<${name}>${inner}))\\k<${name}>`;
  }

  #atom(folds: boolean): string {
    const open = this.#take(/\((?:\?(?:<?[=!]|[:>]|i:))?/);
    if (open) {
      const kind = open[0];
      if (kind === '(' && this.#source[this.#at] === '?')
        this.#fail(`"${this.#source.slice(this.#at - 1, this.#at + 3)}"`);
      const start = this.#at;
      const inner = this.#alternatives(folds || kind === '(?i:');
      if (folds || kind === '(?i:')
        if (JOINED.test(this.#source.slice(start, this.#at).replace(/\[[^\]]*\]/g, ' ')))
          this.#fail('these letters without their case');
      if (!this.#take(/\)/)) this.#fail('"(" without ")"');
      if (kind === '(?>') return this.#atomic(inner);
      return `${kind === '(' || kind === '(?i:' ? '(?:' : kind}${inner})`;
    }
    if (this.#source[this.#at] === '[') return this.#class(folds);
    if (this.#take(/\./)) return '[^\\n]';
    if (this.#take(/\\/)) return this.#escape(false);
    const [literal] = this.#take(/[\s\S]/) ?? this.#fail('it ends early');
    if (/[*+?{}^$\]]/.test(literal)) this.#fail(`"${literal}"`);
    return this.#literal(literal, folds);
  }

  #literal(character: string, folds: boolean): string {
    if (folds && !/^[\x20-\x7e\n\r\t]$/.test(character)) this.#fail(`${show(character)} without its case`);
    if (folds && /[a-z]/i.test(character)) {
      const lower = character.toLowerCase();
      return `[${lower}${lower.toUpperCase()}${FOLDED[lower] ?? ''}]`;
    }
    return escapeText(character);
  }

  /** What follows a backslash. */
  #escape(inClass: boolean): string {
    const property = this.#take(/([pP])\{([A-Za-z]+)\}/);
    if (property) {
      const [, p, name] = property;
      if (CATEGORY.test(name)) return `\\${p}{${name}}`;
      if (SCRIPT.test(name)) return `\\${p}{Script=${name}}`;
      this.#fail(`the property ${name}`);
    }
    const code = this.#take(/x\{([\da-fA-F]{1,6})\}|x([\da-fA-F]{2})|u([\da-fA-F]{4})/);
    if (code) {
      const value = Number.parseInt(code[1] ?? code[2] ?? code[3], 16);
      // One byte above ASCII is a part of a character, not one.
      if ((code[2] !== undefined && value > 0x7f) || value > 0x10ffff) this.#fail(`"\\${code[0]}"`);
      return `\\u{${value.toString(16)}}`;
    }
    const [letter] = this.#take(/[\s\S]/) ?? this.#fail('it ends early');
    if (Object.hasOwn(ESCAPES, letter)) return ESCAPES[letter];
    if (Object.hasOwn(CLASSES, letter)) return CLASSES[letter];
    if (/[A-Za-z0-9]/.test(letter)) this.#fail(`"\\${letter}"${inClass ? ' in brackets' : ''}`);
    return this.#literal(letter, false);
  }

  #class(folds: boolean): string {
    this.#at++;
    const isNegated = this.#take(/\^/) !== null;
    let result = '';
    let isFirst = true;
    /** Whether the item before may begin a range. */
    let canRange = false;
    for (; ; isFirst = false) {
      if (this.#at >= this.#source.length) this.#fail('"[" without "]"');
      if (this.#take(/\]/)) {
        if (isFirst) this.#fail('empty brackets');
        break;
      }
      if (this.#source.startsWith('&&', this.#at) || this.#source.startsWith('[:', this.#at))
        this.#fail('"&&" or "[:" in brackets');
      if (this.#source[this.#at] === '[') {
        if (folds) this.#fail('brackets in brackets without their case');
        result += this.#class(false);
        canRange = false;
        continue;
      }
      if (canRange && this.#take(/-(?=[^\]])/)) {
        if (folds) this.#fail('a range without its case');
        const end = this.#take(/\\/)
          ? this.#escape(true)
          : this.#literal((this.#take(/[^[\]]/) ?? this.#fail('a range'))[0], false);
        if (/^\\[pP]/.test(end)) this.#fail('a range of classes');
        result += `-${this.#escapedPunctuation(end)}`;
        canRange = false;
        continue;
      }
      if (this.#take(/\\/)) {
        const escaped = this.#escape(true);
        if (folds) this.#fail('escapes without their case');
        result += escaped;
        canRange = !/^\\[pP]/.test(escaped);
        continue;
      }
      const [character] = this.#take(/[\s\S]/)!;
      // A "-" is itself at the start and at the end.
      if (character === '-' && !isFirst && this.#source[this.#at] !== ']') this.#fail('"-" in brackets');
      const literal = this.#literal(character, folds);
      result += folds ? literal.replace(/^\[|\]$/g, '') : this.#escapedPunctuation(literal);
      canRange = character !== '-';
    }
    if (folds && isNegated) this.#fail('negated brackets without their case');
    return `[${isNegated ? '^' : ''}${result}]`;
  }
  /** Characters that JavaScript's brackets give a meaning to when they stand twice. */
  #escapedPunctuation = (literal: string): string => literal.replace(/^[-&!#%,:;<=>@`~]$/, '\\$&');
}

/** A text as a pattern that matches it. */
export const escapeText = (text: string): string => text.replace(/[\\/()[\]{}|^$.*+?]/g, '\\$&');

/** A pattern of a text or of a regular expression. @throws Error naming what of it is not supported */
export function compile(pattern: { String: string } | { Regex: string }): RegExp {
  if ('String' in pattern) return new RegExp(escapeText(pattern.String), 'gu');
  try {
    return new RegExp(new Translator(pattern.Regex).translate(), 'gv');
  } catch (cause) {
    if (cause instanceof SyntaxError)
      throw new Error(`the pattern ${show(pattern.Regex)} is not supported: ${cause.message}`);
    throw cause;
  }
}
