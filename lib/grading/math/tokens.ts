// The tokens of a cleaned answer.

import { cleanAnswer } from './clean';
import { table } from './table';

/** A token. */
export interface Token {
  /**
   * "number" with its digits; "word" with letters; "command" with the name of a LaTeX command, or of a sign that has
   * one; "sign" with one character; "text" with the words of \text{…}.
   */
  kind: 'number' | 'word' | 'command' | 'sign' | 'text';
  text: string;
  /** White space stands before it. */
  spaced: boolean;
}

/** A text without readable tokens. */
export class Unreadable extends Error {}

const MAX_TOKENS = 2000;

/** Commands of the same meaning, and what plain text writes for them. */
const SAME = table<string>({
  leq: 'le',
  leqslant: 'le',
  geq: 'ge',
  geqslant: 'ge',
  neq: 'ne',
  lt: '<',
  gt: '>',
  ast: 'cdot',
  dfrac: 'frac',
  tfrac: 'frac',
  cfrac: 'frac',
  dbinom: 'binom',
  tbinom: 'binom',
  varnothing: 'emptyset',
  '{': 'lbrace',
  '}': 'rbrace',
  div: '/',
  lbrack: '[',
  rbrack: ']',
  lvert: '|',
  rvert: '|',
  vert: '|',
  mid: '|',
  lVert: 'Vert',
  rVert: 'Vert',
  '|': 'Vert',
  to: 'to',
  rightarrow: 'to',
  degree: 'circ',
  ldots: 'dots',
  cdots: 'dots',
  dotsc: 'dots',
  dotsb: 'dots',
  infin: 'infty',
  slash: '/',
  bullet: 'cdot',
  colon: ':',
  cr: '\\',
  tabularnewline: '\\',
  newline: '\\',
  pounds: '£',
  euro: '€',
  yen: '¥',
  arcctg: 'arccot',
  tg: 'tan',
  ctg: 'cot',
  varphi: 'phi',
  varepsilon: 'epsilon',
  vartheta: 'theta',
  iff: 'iff',
  Leftrightarrow: 'iff',
  simeq: 'approx',
  thickapprox: 'approx',
  backslash: 'setminus',
  smallsetminus: 'setminus',
});
const SIGN = /^[^a-zA-Z]$/;
/** Commands whose argument is words. */
const TEXT = new Set(['text', 'textrm', 'textbf', 'textit', 'textnormal', 'textsf', 'texttt', 'mbox', 'hbox', 'emph']);
/** Commands that change the letters of their argument alone. */
const FONT = new Set([
  'mathrm',
  'mathbf',
  'mathit',
  'mathsf',
  'mathtt',
  'mathnormal',
  'boldsymbol',
  'bm',
  'operatorname',
  'mathcal',
  'mathscr',
  'mathfrak',
  'pmb',
  'rm',
  'bf',
  'it',
  'operatorname*',
]);
/** Digraphs of plain text. */
const PLAIN: readonly [string, string][] = [
  ['<=', 'le'],
  ['>=', 'ge'],
  ['!=', 'ne'],
  ['=/=', 'ne'],
  ['=<', 'le'],
  ['=>', 'implies'],
  ['->', 'to'],
  ['+/-', 'pm'],
];

/** End of the group that opens at `begin`; -1 if it does not close. */
function groupEnd(text: string, begin: number): number {
  let depth = 0;
  for (let i = begin; i < text.length; i++) {
    if (text[i] === '\\') i++;
    else if (text[i] === '{') depth++;
    else if (text[i] === '}' && --depth === 0) return i;
  }
  return -1;
}

function read(text: string, tokens: Token[], depth: number): void {
  if (depth > 4) throw new Unreadable();
  let spaced = false;
  const push = (kind: Token['kind'], value: string) => {
    if (tokens.length >= MAX_TOKENS) throw new Unreadable();
    tokens.push({ kind, text: value, spaced });
    spaced = false;
  };
  const number = /(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+(?![\w.]))?/y;
  const word = /[a-zA-Z]+'*/y;
  for (let i = 0; i < text.length; ) {
    const character = text[i];
    if (character === ' ') {
      spaced = true;
      i++;
      continue;
    }
    const plain = PLAIN.find(([sign]) => text.startsWith(sign, i));
    if (plain) {
      push('command', plain[1]);
      i += plain[0].length;
      continue;
    }
    if (text.startsWith('**', i)) {
      push('sign', '^');
      i += 2;
      continue;
    }
    if (text.startsWith('==', i)) {
      push('sign', '=');
      i += 2;
      continue;
    }
    number.lastIndex = word.lastIndex = i;
    const digits = number.exec(text);
    const letters = digits ? null : word.exec(text);
    if (digits) {
      push('number', digits[0]);
      i += digits[0].length;
    } else if (letters) {
      push('word', letters[0]);
      i += letters[0].length;
    } else if (character === '\\') {
      const name = text.slice(i + 1).match(/^(?:[a-zA-Z]+\*?|.)/s)?.[0];
      if (!name) throw new Unreadable();
      i += 1 + name.length;
      const open = /^\s*\{/.exec(text.slice(i, i + 20));
      if ((TEXT.has(name) || FONT.has(name)) && open) {
        const begin = i + open[0].length - 1;
        const end = groupEnd(text, begin);
        if (end < 0) throw new Unreadable();
        const inside = text.slice(begin + 1, end);
        i = end + 1;
        readWords(name, inside);
      } else if (name === 'boxed' || name === 'fbox' || FONT.has(name) || name === 'color') {
        // Its braces remain as a group.
        if (name === 'color' && open) i = groupEnd(text, i + open[0].length - 1) + 1;
      } else {
        const same = SAME[name] ?? name;
        if (same === '$' || same === '%' || same === '\\') push('command', same);
        else push(SIGN.test(same) && !'£€¥₹&#_'.includes(same) ? 'sign' : 'command', same);
        // \\[4pt] ends a row with more space.
        if (same === '\\') i += /^\s*\[[\d.]+\s*[a-z]{2}\]/.exec(text.slice(i, i + 30))?.[0].length ?? 0;
      }
    } else {
      push('sign', character);
      i++;
    }
  }

  function readWords(name: string, inside: string): void {
    const isText = TEXT.has(name);
    const words = inside.trim();
    if (words === '') {
      spaced = true;
      return;
    }
    if (/^\s/.test(inside)) spaced = true;
    // What holds more than words is read like the text around it; \text{15 cm} is a number with its unit.
    const isUnit =
      name === 'mathrm' && /^[a-zA-Z]/.test(words) && /^(?:[a-zA-Z\s/.^{}\d\-~·]|\\[,;: ]|\\cdot)+$/.test(words);
    if (isText ? /[0-9\\$^=<>+]/.test(words) : !/^[a-zA-Z\s/.]+$/.test(words)) {
      const before = tokens.length;
      read(isText || isUnit ? words.replace(/\s+/g, ' ') : `{${words}}`, tokens, depth + 1);
      if (spaced && tokens[before]) tokens[before].spaced = true;
      // Words of \text{} beside numbers are units and connectors.
      for (const token of tokens.slice(before))
        if (token.kind === 'word' && (isUnit || (isText && token.text.length > 1 && /\s/.test(words))))
          token.kind = 'text';
    } else if (isText || (words.length > 1 && name !== 'boldsymbol' && name !== 'bm')) {
      push('text', words);
    } else push('word', words);
    if (/\s$/.test(inside)) spaced = true;
  }
}

/** The tokens of an answer. @throws Unreadable */
export function tokensOf(answer: string): Token[] {
  const tokens: Token[] = [];
  const text = cleanAnswer(answer);
  read(text, tokens, 0);
  // The product of vectors does not commute.
  const product = /\\(?:vec|overrightarrow|mathbf|boldsymbol|bm|hat)(?![a-zA-Z])/.test(text) ? 'cross' : 'cdot';
  for (const token of tokens) if (token.kind === 'command' && token.text === 'times') token.text = product;
  return tokens;
}

/** Whether a token is this sign or command. */
export const isToken = (token: Token | undefined, text: string): boolean =>
  token !== undefined && (token.kind === 'sign' || token.kind === 'command') && token.text === text;

/** Text that tokens of the same meaning share; white space does not count. */
export const keyOf = (tokens: readonly Token[]): string =>
  tokens
    .map(({ kind, text }) => (kind === 'command' ? `\\${text}` : kind === 'text' ? `"${text.toLowerCase()}"` : text))
    .join(' ')
    .replace(/([_^]|\\pmod|\\mathbb) \{ (\S+) \}/g, '$1 $2');

const isOpen = (token: Token) =>
  (token.kind === 'sign' && '([{'.includes(token.text)) ||
  (token.kind === 'command' && ['lbrace', 'langle', 'lfloor', 'lceil', 'begin'].includes(token.text));
const isClose = (token: Token) =>
  (token.kind === 'sign' && ')]}'.includes(token.text)) ||
  (token.kind === 'command' && ['rbrace', 'rangle', 'rfloor', 'rceil', 'end'].includes(token.text));

/** 1 for what opens a bracket or group, -1 for what closes one. */
export const depthChange = (token: Token): number => Number(isOpen(token)) - Number(isClose(token));

/** Splits at separators outside of brackets and groups. */
export function splitTokens(
  tokens: readonly Token[],
  isSeparator: (token: Token, index: number) => boolean,
): { parts: Token[][]; found: Token[] } {
  const parts: Token[][] = [[]];
  const found: Token[] = [];
  let depth = 0;
  tokens.forEach((token, index) => {
    if (depth === 0 && isSeparator(token, index)) {
      found.push(token);
      parts.push([]);
      return;
    }
    depth += depthChange(token);
    parts[parts.length - 1].push(token);
  });
  return { parts, found };
}

/** Index of the token that closes the bracket at `begin`, whatever kind of bracket closes it; -1 if none does. */
export function closing(tokens: readonly Token[], begin: number): number {
  let depth = 0;
  for (let i = begin; i < tokens.length; i++) {
    if (isOpen(tokens[i])) depth++;
    else if (isClose(tokens[i]) && --depth === 0) return i;
  }
  return -1;
}
