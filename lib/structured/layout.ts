// How a value of a schema, or a text of a pattern, is laid out in tokens: texts that are given, and slots.
import { optionError } from '../errors';
import type { Tokenizer } from '../model/tokenizer';
import { show } from '../text';
import { automatonOf, type ByteAutomaton, longestText, TooLarge } from './automaton';
import { type JsonSchema, languageOf, type Shape, shapeOf, WHITESPACE } from './json-schema';
import {
  choice,
  EVERY_CHARACTER,
  type Language,
  NOTHING,
  optional,
  repeat,
  separated,
  sequence,
  text,
} from './language';
import { PatternError, patternLanguage } from './pattern';
import { TokenAutomaton } from './token-automaton';
import { bytesOf, type TokenBytes, textOf } from './vocabulary';

/** Tokens of a slot, where nothing says more. */
const WIDTHS = { string: 16, number: 6, pattern: 16, json: 64 };
/** Items of a list, where nothing says more. */
const ITEMS = 3;
/** Schemas and patterns whose automata are kept. */
const MOST_KEPT = 64;

/** What a slot is made of. */
export interface SlotPlan {
  automaton: TokenAutomaton;
  /** Tokens that it takes: at least, where there is room, and at most (Infinity). */
  least: number;
  wanted: number;
  most: number;
}

/** Given ids, and slots. */
export type LayoutPart = Int32Array | SlotPlan;

/** Parts of an answer, the last of which is a slot. */
export interface Layout {
  parts: readonly LayoutPart[];
  /** Its texts are JSON. */
  isJson: boolean;
}

/** What layouts are made for. */
export interface LayoutTarget {
  tokenizer: Tokenizer;
  tokens: TokenBytes;
  /** The end of sequence, which fills the last slot; null: none. */
  eosTokenId: number | null;
}

/** Schemas, `'object'` for any object, or a regular expression. */
export type Request = { schema: JsonSchema | 'object' } | { pattern: string };

const kept = new WeakMap<TokenBytes, Map<string, Layout>>();

/** The layout of a request; of the last ones it is kept. @throws RangeError, TypeError naming what is not supported */
export function layoutOf(request: Request, target: LayoutTarget): Layout {
  const layouts = kept.get(target.tokens) ?? new Map<string, Layout>();
  kept.set(target.tokens, layouts);
  const name = JSON.stringify(request);
  let layout = layouts.get(name);
  if (!layout) {
    layout = 'pattern' in request ? patternLayout(request.pattern, target) : schemaLayout(request.schema, target);
    for (const old of [...layouts.keys()].slice(0, Math.max(0, layouts.size + 1 - MOST_KEPT))) layouts.delete(old);
    layouts.set(name, layout);
  }
  return layout;
}

/** The automaton of a pattern that fills a slot with spaces behind. @throws RangeError naming `name` */
export function patternSlot(pattern: string, tokens: TokenBytes, name: string): TokenAutomaton {
  const language = sequence(patternText(pattern, name), repeat(text(' '), 0));
  return new TokenAutomaton(tokens, automatonNamed(language, name), null);
}

function patternText(pattern: unknown, name: string): Language {
  if (typeof pattern !== 'string')
    throw optionError(TypeError, name, `expected a regular expression as a string, got ${show(pattern)}`);
  try {
    return patternLanguage(pattern, { search: false });
  } catch (error) {
    if (error instanceof PatternError) throw optionError(RangeError, name, `${show(pattern)} ${error.message}`);
    throw error;
  }
}

function automatonNamed(language: Language, name: string): ByteAutomaton {
  try {
    return automatonOf(language);
  } catch (error) {
    if (error instanceof TooLarge) throw optionError(RangeError, name, 'needs an automaton that is too large');
    throw error;
  }
}

function patternLayout(pattern: string, target: LayoutTarget): Layout {
  const automaton = automatonNamed(patternText(pattern, 'pattern'), 'pattern');
  const slot = slotOf(automaton, 'pattern', WIDTHS.pattern, true, target);
  return { parts: [slot], isJson: false };
}

/** @param width tokens that would be enough, as far as texts are that long */
function slotOf(
  automaton: ByteAutomaton,
  name: string,
  width: number,
  isLast: boolean,
  { tokens, eosTokenId }: LayoutTarget,
): SlotPlan {
  const own = new TokenAutomaton(tokens, automaton, isLast ? eosTokenId : null);
  const least = own.fewest;
  if (least === Number.POSITIVE_INFINITY)
    throw optionError(RangeError, name, "no text of it can be made of the vocabulary's tokens");
  const most = longestText(automaton);
  return { automaton: own, least, wanted: Math.max(1, least, Math.min(most, width)), most };
}

const DIGIT: Language = { kind: 'set', set: [[0x30, 0x39]] };
/** A string whose characters need no escape, but for quotes, backslashes, line ends and tabs. */
const STRING = sequence(
  text('"'),
  repeat(
    choice(
      {
        kind: 'set',
        set: [[0x20, 0x21], [0x23, 0x5b], [0x5d, EVERY_CHARACTER[0][1]], ...EVERY_CHARACTER.slice(1)],
      },
      ...['\\"', '\\\\', '\\n', '\\t'].map(text),
    ),
    0,
  ),
  text('"'),
);
const NUMBER = sequence(
  optional(text('-')),
  choice(text('0'), sequence({ kind: 'set', set: [[0x31, 0x39]] }, repeat(DIGIT, 0))),
  optional(sequence(text('.'), repeat(DIGIT, 1))),
);

/** Objects of any values, nested up to so many times. */
function anyObject(depth: number): Language {
  const space = optional(text(' '));
  const list = (open: string, one: Language, close: string) =>
    sequence(text(open), optional(separated(one, sequence(text(','), space))), text(close));
  const anyValue = (left: number): Language =>
    choice(
      STRING,
      NUMBER,
      ...['true', 'false', 'null'].map(text),
      ...(left > 0 ? [anyObjectOf(left), list('[', anyValue(left - 1), ']')] : []),
    );
  const anyObjectOf = (left: number): Language =>
    list('{', sequence(STRING, text(':'), space, anyValue(left - 1)), '}');
  return anyObjectOf(depth);
}

/** Objects in each other of `schema: 'object'`. */
const OBJECT_DEPTH = 3;

function schemaLayout(schema: JsonSchema | 'object', target: LayoutTarget): Layout {
  if (schema === 'object') {
    const automaton = automatonNamed(anyObject(OBJECT_DEPTH), 'schema');
    return { parts: [slotOf(automaton, 'schema', WIDTHS.json, true, target)], isJson: true };
  }
  const shape = shapeOf(schema);
  const parts: LayoutPart[] = [];
  let given = '';
  const count = (value: string) => target.tokenizer.encode(value, { addSpecialTokens: false }).length;
  const flush = () => {
    if (given !== '') parts.push(idsOf(given, target));
    given = '';
  };
  /** @param behind what follows the value up to the next @param isLast nothing follows that */
  const add = (value: Shape, behind: string, isLast: boolean): void => {
    const isInside = given !== '' || parts.length > 0;
    if (value.kind === 'object' && value.properties.length > 0) {
      given += isInside ? ' {' : '{';
      value.properties.forEach(([key, own], i) => {
        const isEnd = i === value.properties.length - 1;
        given += `${i > 0 ? ' ' : ''}${JSON.stringify(key)}:`;
        add(own, isEnd ? `}${behind}` : ',', isEnd && isLast);
      });
      return;
    }
    if (value.kind === 'texts' && value.texts.length === 1 && !isLast) {
      given += `${isInside ? ' ' : ''}${value.texts[0]}${behind}`;
      return;
    }
    flush();
    const ends = isLast && target.eosTokenId !== null;
    const language = sequence(
      isInside ? optional(text(' ')) : NOTHING,
      languageOf(value),
      text(behind),
      ends ? NOTHING : repeat(WHITESPACE, 0),
    );
    parts.push(slotOf(automatonNamed(language, 'schema'), 'schema', widthOf(value, behind, count), isLast, target));
  };
  add(shape, '', true);
  return { parts, isJson: true };
}

/** Tokens that a value and what is behind it are likely to take. */
function widthOf(shape: Shape, behind: string, count: (text: string) => number): number {
  switch (shape.kind) {
    case 'texts':
      return Math.max(...shape.texts.map((value) => count(` ${value}${behind}`)));
    case 'any':
      return Math.max(...shape.options.map((option) => widthOf(option, behind, count)));
    case 'object':
      return shape.properties.reduce(
        (sum, [key, value]) => sum + count(` ${JSON.stringify(key)}:`) + widthOf(value, ',', count),
        1 + count(`}${behind}`),
      );
    case 'array': {
      const items = Math.min(shape.max, Math.max(shape.min, ITEMS));
      return 1 + count(`]${behind}`) + (items > 0 ? items * widthOf(shape.item, ',', count) : 0);
    }
    default:
      return WIDTHS[shape.kind];
  }
}

/** Ids of a text: the tokenizer's where they spell it, else the longest tokens from the left. */
function idsOf(value: string, { tokenizer, tokens }: LayoutTarget): Int32Array {
  const ids = tokenizer.encode(value, { addSpecialTokens: false, splitSpecialTokens: true });
  if (textOf(tokens, ids) === value && ids.every((id) => bytesOf(tokens, id) !== null)) return Int32Array.from(ids);
  const bytes = new TextEncoder().encode(value);
  const known = new Map<string, number>();
  for (const id of tokens.ids) {
    const name = Buffer.from(bytesOf(tokens, id)!).toString('latin1');
    if (!known.has(name)) known.set(name, id);
  }
  const all = Buffer.from(bytes).toString('latin1');
  const result: number[] = [];
  for (let at = 0; at < all.length; ) {
    let end = all.length;
    while (end > at && !known.has(all.slice(at, end))) end--;
    if (end === at) throw optionError(RangeError, 'schema', `the vocabulary has no tokens for ${show(value)}`);
    result.push(known.get(all.slice(at, end))!);
    at = end;
  }
  return Int32Array.from(result);
}

const isSlot = (part: LayoutPart): part is SlotPlan => 'automaton' in part;
const sum = (numbers: readonly number[]) => numbers.reduce((all, one) => all + one, 0);

/** The fewest tokens of each part. */
const leastOf = (parts: Layout['parts']): number[] =>
  parts.map((part) => (isSlot(part) ? Math.max(1, part.least) : part.length));

/** The fewest tokens that all parts take together. */
export const fewestOf = ({ parts }: Layout): number => sum(leastOf(parts));

/**
 * How many tokens each part takes. @param total of all parts; null: as many as are wanted @param room the most
 * @throws RangeError naming maxTokens
 */
export function widthsOf({ parts }: Layout, total: number | null, room: number): number[] {
  const least = leastOf(parts);
  const wanted = parts.map((part) => (isSlot(part) ? part.wanted : part.length));
  const target = total ?? Math.min(sum(wanted), room);
  const widths = wanted;
  if (sum(least) > target)
    throw optionError(
      RangeError,
      'maxTokens',
      `expected at least ${sum(least)}, the fewest tokens of a text that is asked for, got ${target}${total === null ? ', for which there is room' : ''}`,
    );
  // Equal shares of what is missing or left, as far as each slot can give and take.
  const slots = [...parts.keys()].filter((i) => isSlot(parts[i]));
  const mostOf = (i: number) => (parts[i] as SlotPlan).most;
  for (let left = target - sum(widths); left !== 0; left = target - sum(widths)) {
    const step = Math.sign(left);
    const open = slots.filter((i) => (step < 0 ? widths[i] > least[i] : widths[i] < mostOf(i)));
    if (open.length === 0) {
      widths[widths.length - 1] += left;
      break;
    }
    // Of those that give, the widest first.
    if (step < 0) open.sort((a, b) => widths[b] - least[b] - (widths[a] - least[a]));
    for (const i of open.slice(0, Math.abs(left))) widths[i] += step;
  }
  return widths;
}
