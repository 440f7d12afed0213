// Parses an answer into a value, list, tuple or interval, union, matrix, relation, ratio or text.
import type { Node } from './ast';
import { isMathWord } from './functions';
import { nameOf } from './names';
import { parseExpression } from './parse';
import { closing, depthChange, isToken, keyOf, splitTokens, type Token, tokensOf, Unreadable } from './tokens';
import { splitUnit, type Unit, withoutNumerals } from './units';

/** Longest list that is parsed. */
const MAX_PARTS = 64;
/** Deepest nesting that is parsed. */
const MAX_DEPTH = 8;

/** A parsed answer. */
export type Form =
  /** `node` is null where the tokens are no expression: such a value equals its own tokens alone. */
  | { kind: 'value'; node: Node | null; key: string; unit: Unit | null }
  | { kind: 'text'; text: string }
  /** Also an interval: `open` and `close` are the brackets. Order counts here, not in lists and unions. */
  | { kind: 'tuple'; open: string; close: string; parts: Form[] }
  /** `braced`: a set. `connector`: what stands between the parts. */
  | { kind: 'list'; parts: Form[]; braced: boolean; connector: ',' | 'or' | 'and' }
  | { kind: 'union'; parts: Form[] }
  | { kind: 'matrix'; rows: Form[][]; isDeterminant: boolean }
  /** a = b, a < b ≤ c …; `operators` has one entry less than `parts`, and `names` those of the parts that are names. */
  | { kind: 'relation'; operators: string[]; parts: Form[]; names: (string | null)[] }
  | { kind: 'ratio'; parts: Form[] };

/** Words of a text, without signs and the size of letters. */
export const plainWords = (text: string): string =>
  text
    .toLowerCase()
    .replace(/[^\p{L}\p{N}]+/gu, ' ')
    .trim();

const connectorOf = (token: Token): 'or' | 'and' | null => {
  if (token.kind === 'sign' || token.kind === 'number') return null;
  const word = token.text.toLowerCase().replace(/[,.\s]/g, '');
  return word === 'or' || word === 'and' ? word : null;
};

/** Joins 1,234 where a comma separates thousands: no white space, three digits, and no other comma that is set so. */
function joinThousands(tokens: readonly Token[], inBrackets: boolean): Token[] {
  const isComma = (index: number) => isToken(tokens[index], ',');
  // Inside of brackets a comma separates thousands only if others, with white space, separate the parts.
  const hasSpaced = tokens.some((token, i) => isToken(token, ';') || (isComma(i) && tokens[i + 1]?.spaced));
  if (inBrackets && !hasSpaced) return [...tokens];
  const joined: Token[] = [];
  let depth = 0;
  for (let i = 0; i < tokens.length; i++) {
    const run = [i];
    depth += depthChange(tokens[i]);
    if (tokens[i].kind === 'number' && depth === 0)
      while (isComma(i + 2 * run.length - 1) && tokens[i + 2 * run.length]?.kind === 'number') {
        const [comma, number] = [tokens[i + 2 * run.length - 1], tokens[i + 2 * run.length]];
        if (comma.spaced || number.spaced) break;
        run.push(i + 2 * run.length);
      }
    const [first, ...rest] = run.map((index) => tokens[index].text);
    const isGrouped =
      rest.length > 0 &&
      /^[1-9]\d{0,2}$/.test(first) &&
      rest.every((digits, k) => (k === rest.length - 1 ? /^\d{3}(?:\.\d+)?$/ : /^\d{3}$/).test(digits));
    if (isGrouped) joined.push({ ...tokens[i], text: first + rest.join('') });
    else for (let k = i; k < i + 2 * run.length - 1; k++) joined.push(tokens[k]);
    i += 2 * run.length - 2;
  }
  return joined;
}

/** The two readings of ±; null without one, or where several make it unclear which belong together. */
function signs(tokens: readonly Token[]): [Token[], Token[]] | null {
  const count = (name: string) => tokens.filter((token) => isToken(token, name)).length;
  const [plus, minus] = [count('pm'), count('mp')];
  if (plus + minus === 0 || plus > 1 || minus > 1) return null;
  const read = (up: string, down: string) =>
    tokens.map((token) => {
      const sign = isToken(token, 'pm') ? up : isToken(token, 'mp') ? down : null;
      return sign ? { ...token, kind: 'sign' as const, text: sign } : token;
    });
  return [read('+', '-'), read('-', '+')];
}

const RELATIONS = new Set([
  '=',
  '<',
  '>',
  'le',
  'ge',
  'ne',
  'in',
  'approx',
  'equiv',
  'cong',
  'sim',
  'subset',
  'subseteq',
  'to',
  'implies',
  'iff',
  'perp',
  'parallel',
]);

/** Parses an answer. @throws Unreadable, WorkExceeded */
export function parseAnswer(answer: string): Form {
  return parse(tokensOf(answer), 0, false);
}

function parse(given: readonly Token[], depth: number, inBrackets: boolean): Form {
  let tokens = unwrap(given);
  if (depth > MAX_DEPTH) return opaque(tokens);
  const matrix = parseMatrix(tokens, depth);
  if (matrix) return matrix;
  tokens = joinThousands(tokens, inBrackets);
  const list = parseList(tokens, depth);
  if (list) return list;
  const relation = parseRelation(tokens, depth);
  if (relation) return relation;
  // In a set, ± is a matter of its elements.
  const both = isToken(tokens[0], 'lbrace') && closing(tokens, 0) === tokens.length - 1 ? null : signs(tokens);
  if (both) {
    const parts = both.map((reading) => parse(reading, depth + 1, inBrackets));
    return flatten({ kind: 'list', parts, braced: false, connector: 'or' });
  }
  const unions = splitTokens(tokens, (token) => isToken(token, 'cup')).parts;
  if (unions.length > 1 && unions.length <= MAX_PARTS && unions.every((part) => part.length > 0))
    return { kind: 'union', parts: unions.map((part) => parse(part, depth + 1, false)) };
  const bracketed = parseBrackets(tokens, depth);
  if (bracketed) return bracketed;
  const ratio = splitTokens(tokens, (token) => isToken(token, ':')).parts;
  if (ratio.length > 1 && ratio.length < 8 && ratio.every((part) => part.length > 0))
    return { kind: 'ratio', parts: ratio.map((part) => parse(part, depth + 1, false)) };
  return parseValue(tokens);
}

const opaque = (tokens: readonly Token[]): Form => ({ kind: 'value', node: null, key: keyOf(tokens), unit: null });

/** Takes brackets off that hold the whole and no list. */
function unwrap(tokens: readonly Token[]): readonly Token[] {
  let inner = tokens;
  for (;;) {
    const first = inner[0];
    if (!isToken(first, '(') && !isToken(first, '{')) return inner;
    const end = closing(inner, 0);
    if (end !== inner.length - 1 || !isToken(inner[end], isToken(first, '(') ? ')' : '}')) return inner;
    const content = inner.slice(1, -1);
    const { found } = splitTokens(content, (token) => isToken(token, ',') || isToken(token, ';'));
    if (found.length > 0 || content.length === 0) return inner;
    inner = content;
  }
}

function parseList(tokens: readonly Token[], depth: number): Form | null {
  const hasSemicolon = splitTokens(tokens, (token) => isToken(token, ';')).found.length > 0;
  const { parts, found } = splitTokens(tokens, (token) =>
    hasSemicolon ? isToken(token, ';') : isToken(token, ',') || connectorOf(token) !== null,
  );
  if (found.length === 0 || found.length > MAX_PARTS) return null;
  // "1, 2, and 3" has nothing between the comma and "and".
  const filled = parts.filter((part, i) => part.length > 0 || !found[i] || !connectorOf(found[i]));
  if (filled.some((part) => part.length === 0) || filled.length < 2) return null;
  const words = found.map(connectorOf);
  const connector = words.includes('or') ? 'or' : words.includes('and') ? 'and' : ',';
  return flatten({
    kind: 'list',
    parts: filled.map((part) => parse(part, depth + 1, false)),
    braced: false,
    connector,
  });
}

/** The two values of ± are parts of the list around them. */
const flatten = (list: Form & { kind: 'list' }): Form => ({
  ...list,
  parts: list.parts.flatMap((part) =>
    part.kind === 'list' && !part.braced && part.connector === 'or' ? part.parts : [part],
  ),
});

function parseRelation(tokens: readonly Token[], depth: number): Form | null {
  const { parts, found } = splitTokens(
    tokens,
    (token) => token.kind !== 'word' && token.kind !== 'text' && RELATIONS.has(token.text),
  );
  if (found.length === 0 || found.length > MAX_PARTS || parts.some((part) => part.length === 0)) return null;
  const names = parts.map(nameOf);
  const operators = found.map(({ text }) => text);
  // A name is not taken apart: P(A), ABC.
  const forms = parts.map((part, i) =>
    names[i] !== null && part.length > 1 ? nameForm(part) : parse(part, depth + 1, false),
  );
  const [left, right] = forms;
  // x = ±3 is x = 3 or x = -3.
  if (
    operators.length === 1 &&
    operators[0] === '=' &&
    right.kind === 'list' &&
    !right.braced &&
    right.connector === 'or'
  )
    return {
      ...right,
      parts: right.parts.map((part) => ({ kind: 'relation', operators, parts: [left, part], names })),
    };
  return { kind: 'relation', operators, parts: forms, names };
}

/** A name as a value: an expression where it is one. */
function nameForm(tokens: readonly Token[]): Form {
  try {
    const node = parseExpression(tokens);
    return { kind: 'value', node, key: keyOf(tokens), unit: null };
  } catch (error) {
    if (error instanceof Unreadable) return opaque(tokens);
    throw error;
  }
}

function parseBrackets(tokens: readonly Token[], depth: number): Form | null {
  const [first] = tokens;
  if (isToken(first, 'emptyset') && tokens.length === 1)
    return { kind: 'list', parts: [], braced: true, connector: ',' };
  if (!['(', '[', '{', 'lbrace', 'langle'].some((open) => isToken(first, open))) return null;
  const end = closing(tokens, 0);
  if (end !== tokens.length - 1) return null;
  const content = joinThousands(tokens.slice(1, -1), true);
  const { parts, found } = splitTokens(content, (token) => isToken(token, ',') || isToken(token, ';'));
  if (parts.length > MAX_PARTS) return null;
  if (isToken(first, 'lbrace') || isToken(first, '{')) {
    if (content.length === 0) return { kind: 'list', parts: [], braced: true, connector: ',' };
    const condition = splitTokens(content, (token) => isToken(token, '|') || isToken(token, ':'));
    // {x | x > 3}.
    if (condition.found.length === 1 && condition.parts[1].length > 0 && isToken(first, 'lbrace')) {
      const inner = parse(condition.parts[1], depth + 1, false);
      if (inner.kind === 'relation' || inner.kind === 'list') return inner;
    }
    if (parts.some((part) => part.length === 0)) return null;
    const list: Form = {
      kind: 'list',
      parts: parts.map((part) => parse(part, depth + 1, true)),
      braced: true,
      connector: ',',
    };
    return flatten(list);
  }
  if (found.length === 0 || parts.some((part) => part.length === 0)) return null;
  const matrix = first.text === '[' ? nestedRows(parts, depth) : null;
  if (matrix) return matrix;
  return {
    kind: 'tuple',
    open: first.text,
    close: tokens[end].text,
    parts: parts.map((part) => parse(part, depth + 1, true)),
  };
}

/** [[1, 2], [3, 4]]. */
function nestedRows(parts: readonly Token[][], depth: number): Form | null {
  if (!parts.every((part) => isToken(part[0], '[') && isToken(part[part.length - 1], ']'))) return null;
  const rows = parts.map((part) => splitTokens(part.slice(1, -1), (token) => isToken(token, ',')).parts);
  if (rows.some((row) => row.length !== rows[0].length || row.some((cell) => cell.length === 0))) return null;
  return {
    kind: 'matrix',
    rows: rows.map((row) => row.map((cell) => parse(cell, depth + 2, true))),
    isDeterminant: false,
  };
}

/** A matrix, perhaps in brackets of its own. */
function parseMatrix(tokens: readonly Token[], depth: number): Form | null {
  let inner = tokens;
  let fence = '';
  const last = inner[inner.length - 1];
  if (
    isToken(inner[1], 'begin') &&
    ['[', '(', '|'].some((open) => isToken(inner[0], open)) &&
    last.kind === 'sign' &&
    ')]|'.includes(last.text)
  ) {
    fence = inner[0].text;
    inner = inner.slice(1, -1);
  }
  if (!isToken(inner[0], 'begin') || !isToken(inner[1], '{')) return null;
  const end = closing(inner, 0);
  const name = inner[2]?.text;
  if (end < 0 || end + 4 !== inner.length || inner[end + 2]?.text !== name) return null;
  const isMatrix = /^(?:[pbvBV]?matrix|smallmatrix|array)$/.test(name ?? '');
  if (!isMatrix) return null;
  let begin = 4;
  if (name === 'array' && isToken(inner[begin], '{')) begin = closing(inner, begin) + 1;
  const rows = splitTokens(inner.slice(begin, end), (token) => isToken(token, '\\')).parts;
  while (rows.length > 0 && rows[rows.length - 1].length === 0) rows.pop();
  const cells = rows.map((row) => splitTokens(row, (token) => isToken(token, '&')).parts);
  if (cells.flat().length > MAX_PARTS || cells.flat().some((cell) => cell.length === 0)) return null;
  return {
    kind: 'matrix',
    rows: cells.map((row) => row.map((cell) => parse(cell, depth + 1, false))),
    isDeterminant: name[0] === 'v' || name[0] === 'V' || fence === '|',
  };
}

/** A value with its unit, or words. */
function parseValue(tokens: readonly Token[]): Form {
  const isLetter = ({ kind, text }: Token) => kind === 'word' && text.length === 1;
  const signs = tokens.some(isLetter) ? ".'?!" : "-.'?!";
  const isWordy = tokens.every(({ kind, text }) => kind === 'word' || kind === 'text' || signs.includes(text));
  const hasWord = tokens.some(
    ({ kind, text }) => kind === 'text' || (kind === 'word' && text.replace(/'/g, '').length > 2),
  );
  if (isWordy && hasWord && !isExpression(tokens))
    return { kind: 'text', text: plainWords(tokens.map(({ text }) => text).join(' ')) };
  const { value, unit } = splitUnit(withoutNumerals(tokens));
  try {
    return { kind: 'value', node: parseExpression(unwrap(value)), key: keyOf(unwrap(value)), unit };
  } catch (error) {
    if (error instanceof Unreadable || error instanceof RangeError)
      return { kind: 'value', node: null, key: keyOf(unwrap(value)), unit };
    throw error;
  }
}

/** Words that are names of functions and constants, or short: "sin x", "infinity". */
function isExpression(tokens: readonly Token[]): boolean {
  const words = tokens.filter(({ kind }) => kind === 'word' || kind === 'text');
  const known = words.filter(({ kind, text }) => kind === 'word' && isMathWord(text));
  return (
    known.length > 0 && words.every((word) => known.includes(word) || (word.kind === 'word' && word.text.length < 3))
  );
}
