// Methods of Python's texts, and how their arguments are read.
import { ALL_SPACE, SPACES, trimSpace } from './lexer';
import {
  asInteger,
  characters,
  itemsOf,
  type Keywords,
  TemplateError,
  Tuple,
  toText,
  typeName,
  Undefined,
  type Value,
} from './values';

/** Arguments by position or name. @throws TemplateError naming what is missing or too much */
export function bind(
  what: string,
  names: readonly string[],
  required: number,
  args: readonly Value[],
  keywords: Keywords,
): (Value | undefined)[] {
  if (args.length > names.length)
    throw new TemplateError(`${what}: expected at most ${names.length} arguments, got ${args.length}`);
  const bound: (Value | undefined)[] = names.map((_name, i) => args[i]);
  for (const [name, value] of keywords) {
    const at = names.indexOf(name);
    if (at < 0 || at < args.length) throw new TemplateError(`${what}: unexpected argument "${name}"`);
    bound[at] = value;
  }
  for (let i = 0; i < required; i++)
    if (bound[i] === undefined) throw new TemplateError(`${what}: "${names[i]}" is missing`);
  return bound;
}

export function textOf(what: string, value: Value | undefined): string {
  if (typeof value === 'string') return value;
  throw new TemplateError(
    `${what}: expected a text, got a value of type ${value === undefined ? 'None' : typeName(value)}`,
  );
}
export function integerOf(what: string, value: Value | undefined, fallback?: number): number {
  if (value === undefined && fallback !== undefined) return fallback;
  if (typeof value !== 'bigint' && typeof value !== 'boolean') throw new TemplateError(`${what}: expected an integer`);
  const number = Number(asInteger(value));
  if (!Number.isSafeInteger(number)) throw new TemplateError(`${what}: ${value} is too large`);
  return number;
}

/** Python's str.strip, lstrip and rstrip. `set`: the characters to take off, white space without it. */
export function strip(text: string, set: Value | undefined, left: boolean, right: boolean): string {
  if (set === undefined || set === null) return trimSpace(text, left, right);
  const taken = new Set(characters(textOf('strip', set)));
  const list = characters(text);
  let [start, end] = [0, list.length];
  while (left && start < end && taken.has(list[start])) start++;
  while (right && end > start && taken.has(list[end - 1])) end--;
  return list.slice(start, end).join('');
}

/** Python's str.split and, from the right, rsplit. */
function split(text: string, separator: Value | undefined, limit: number, fromRight: boolean): string[] {
  const most = limit < 0 ? Number.POSITIVE_INFINITY : limit;
  if (separator === undefined || separator === null) {
    const trimmed = strip(text, null, true, true);
    if (trimmed === '') return [];
    const gaps = Array.from(trimmed.matchAll(SPACES));
    const chosen = fromRight ? gaps.slice(Math.max(0, gaps.length - most)) : gaps.slice(0, most);
    const parts: string[] = [];
    let at = 0;
    // With a limit the white space at the far end stays.
    const whole = chosen.length < gaps.length ? strip(text, null, !fromRight, fromRight) : trimmed;
    const shift = fromRight ? whole.length - trimmed.length : 0;
    for (const gap of chosen) {
      parts.push(whole.slice(at, gap.index + shift));
      at = gap.index + shift + gap[0].length;
    }
    return [...parts, whole.slice(at)];
  }
  const mark = textOf('split', separator);
  if (mark === '') throw new TemplateError('split: empty separator');
  const all = text.split(mark);
  if (all.length - 1 <= most) return all;
  return fromRight
    ? [all.slice(0, all.length - most).join(mark), ...all.slice(all.length - most)]
    : [...all.slice(0, most), all.slice(most).join(mark)];
}

/** What Python's str.splitlines() takes for the end of a line. */
const LINE_END = '(?:\\r\\n|[\\n\\r\\v\\f\\x1c-\\x1e\\x85\\u2028\\u2029])';
const LINES = new RegExp(`[\\s\\S]*?(?:${LINE_END}|$)`, 'gu');
const ENDS_LINE = new RegExp(`${LINE_END}$`, 'u');

/** Python's str.splitlines. */
export function splitLines(text: string, keepEnds = false): string[] {
  const lines = (text.match(LINES) ?? []).filter((line) => line !== '');
  return keepEnds ? lines : lines.map((line) => line.replace(ENDS_LINE, ''));
}

/** Python's str.replace. */
export function replace(text: string, old: string, by: string, count: number): string {
  if (count === 0) return text;
  const most = count < 0 ? Number.POSITIVE_INFINITY : count;
  if (old !== '') return split(text, old, most === Number.POSITIVE_INFINITY ? -1 : most, false).join(by);
  const list = ['', ...characters(text)];
  return list.map((character, i) => character + (i < most ? by : '')).join('');
}

/** Python's str.capitalize. */
export function capitalize(text: string): string {
  const first = characters(text)[0] ?? '';
  const upper = first.toUpperCase();
  // Where the title case of a character is not its upper case.
  if (characters(upper).length > 1 || /[\u01c4-\u01cc\u01f1-\u01f3\u10d0-\u10ff]/.test(first))
    throw new TemplateError(`the title case of ${JSON.stringify(first)} is not supported`);
  return upper + text.toLowerCase().slice(first.toLowerCase().length);
}

/** Python's str.title: a capital behind every character that is no letter with case. */
function titleCase(text: string): string {
  if (/[Σ\u01c4-\u01cc\u01f1-\u01f3\u10d0-\u10ff]/u.test(text))
    throw new TemplateError('title() of these letters is not supported');
  let afterCased = false;
  return characters(text)
    .map((character) => {
      const result = afterCased ? character.toLowerCase() : character.toUpperCase();
      if (!afterCased && characters(result).length > 1)
        throw new TemplateError('title() of these letters is not supported');
      afterCased = /[\p{Lowercase}\p{Uppercase}\p{Lt}]/u.test(character);
      return result;
    })
    .join('');
}

function pad(what: string, text: string, args: readonly Value[], place: (missing: number) => number): string {
  const width = integerOf(what, args[0]);
  const fill = args[1] === undefined ? ' ' : textOf(what, args[1]);
  if (characters(fill).length !== 1 || width > 2 ** 24)
    throw new TemplateError(`${what}: the width or fill is not supported`);
  const missing = Math.max(0, width - characters(text).length);
  const left = place(missing);
  return fill.repeat(left) + text + fill.repeat(missing - left);
}
export const center = (text: string, args: readonly Value[]): string =>
  // Python puts the odd one to the left where the width is odd.
  pad('center', text, args, (missing) => (missing >> 1) + (missing & integerOf('center', args[0]) & 1));

/** Python's str.format, of plain fields. */
function format(text: string, args: readonly Value[], keywords: Keywords): string {
  let next = 0;
  return text.replace(/\{\{|\}\}|\{([^{}]*)\}|[{}]/g, (all, field: string | undefined) => {
    if (all === '{{' || all === '}}') return all[0];
    if (field === undefined || !/^(\d+|[A-Za-z_]\w*)?$/.test(field))
      throw new TemplateError(`the field ${all} of format() is not supported`);
    const value = field === '' ? args[next++] : /^\d/.test(field) ? args[Number(field)] : keywords.get(field);
    if (value === undefined) throw new TemplateError(`format(): the field ${all} has no value`);
    if (typeof value === 'object' && value !== null && !(value instanceof Undefined))
      throw new TemplateError(`format() of a value of type ${typeName(value)} is not supported`);
    return toText(value);
  });
}

/** A part of a text from one character to another, both of which may count from the end. */
function part(list: string[], start: Value | undefined, end: Value | undefined): { at: number; text: string } | null {
  const place = (value: Value | undefined, fallback: number) => {
    if (value === undefined || value === null) return fallback;
    const index = integerOf('index', value);
    return index < 0 ? Math.max(0, index + list.length) : index;
  };
  const at = place(start, 0);
  const stop = Math.min(place(end, list.length), list.length);
  return at > list.length || at > stop ? null : { at, text: list.slice(at, stop).join('') };
}

type TextMethod = (text: string, args: readonly Value[], keywords: Keywords) => Value;

const find =
  (name: 'indexOf' | 'lastIndexOf', isStrict: boolean): TextMethod =>
  (text, [needle, start, end]) => {
    const found = part(characters(text), start, end);
    const unit = found === null ? -1 : found.text[name](textOf('find', needle));
    if (unit >= 0) return BigInt(found!.at + characters(found!.text.slice(0, unit)).length);
    if (isStrict) throw new TemplateError('index: the text was not found');
    return -1n;
  };
const edge =
  (name: 'startsWith' | 'endsWith'): TextMethod =>
  (text, [wanted, start, end]) => {
    const found = part(characters(text), start, end);
    const list = wanted instanceof Tuple ? wanted.items : [wanted];
    return list.map((item) => found?.text[name](textOf(name.toLowerCase(), item)) ?? false).includes(true);
  };
const partition =
  (fromRight: boolean): TextMethod =>
  (text, [separator]) => {
    const mark = textOf('partition', separator);
    if (mark === '') throw new TemplateError('partition: empty separator');
    const at = fromRight ? text.lastIndexOf(mark) : text.indexOf(mark);
    if (at < 0) return new Tuple(fromRight ? ['', '', text] : [text, '', '']);
    return new Tuple([text.slice(0, at), mark, text.slice(at + mark.length)]);
  };
const all =
  (pattern: RegExp): TextMethod =>
  (text) =>
    pattern.test(text);
/** The digits outside ASCII have kinds that JavaScript cannot tell apart. */
const digits: TextMethod = (text) => {
  if (/[^\p{Nd}]/u.test(text) && /[\p{No}\p{Nl}]/u.test(text))
    throw new TemplateError('digits of this kind are not supported');
  return /^\p{Nd}+$/u.test(text);
};
const splitWith =
  (fromRight: boolean): TextMethod =>
  (text, args, keywords) => {
    const [separator, limit] = bind('split', ['sep', 'maxsplit'], 0, args, keywords);
    return split(text, separator, integerOf('split', limit, -1), fromRight);
  };

/** name: [fewest arguments, most, method]; those that take names check them. */
export const TEXT_METHODS: Record<string, [number, number, TextMethod]> = {
  upper: [0, 0, (text) => text.toUpperCase()],
  lower: [0, 0, (text) => text.toLowerCase()],
  capitalize: [0, 0, capitalize],
  title: [0, 0, titleCase],
  strip: [0, 1, (text, [set]) => strip(text, set, true, true)],
  lstrip: [0, 1, (text, [set]) => strip(text, set, true, false)],
  rstrip: [0, 1, (text, [set]) => strip(text, set, false, true)],
  split: [0, 2, splitWith(false)],
  rsplit: [0, 2, splitWith(true)],
  splitlines: [
    0,
    1,
    (text, args, keywords) => splitLines(text, bind('splitlines', ['keepends'], 0, args, keywords)[0] === true),
  ],
  replace: [
    2,
    3,
    (text, [old, by, count]) =>
      replace(text, textOf('replace', old), textOf('replace', by), integerOf('replace', count, -1)),
  ],
  join: [
    1,
    1,
    (text, [items]) =>
      itemsOf(items)
        .map((item) => textOf('join', item))
        .join(text),
  ],
  startswith: [1, 3, edge('startsWith')],
  endswith: [1, 3, edge('endsWith')],
  find: [1, 3, find('indexOf', false)],
  rfind: [1, 3, find('lastIndexOf', false)],
  index: [1, 3, find('indexOf', true)],
  rindex: [1, 3, find('lastIndexOf', true)],
  count: [
    1,
    3,
    (text, [needle, start, end]) => {
      const mark = textOf('count', needle);
      const found = part(characters(text), start, end);
      if (found === null) return 0n;
      return BigInt(mark === '' ? characters(found.text).length + 1 : found.text.split(mark).length - 1);
    },
  ],
  partition: [1, 1, partition(false)],
  rpartition: [1, 1, partition(true)],
  removeprefix: [
    1,
    1,
    (text, [mark]) => (text.startsWith(textOf('removeprefix', mark)) ? text.slice(textOf('', mark).length) : text),
  ],
  removesuffix: [
    1,
    1,
    (text, [mark]) =>
      mark !== '' && text.endsWith(textOf('removesuffix', mark)) ? text.slice(0, -textOf('', mark).length) : text,
  ],
  ljust: [1, 2, (text, args) => pad('ljust', text, args, () => 0)],
  rjust: [1, 2, (text, args) => pad('rjust', text, args, (missing) => missing)],
  center: [1, 2, center],
  zfill: [
    1,
    1,
    (text, args) => {
      const sign = /^[+-]/.exec(text)?.[0] ?? '';
      return (
        sign +
        pad(
          'zfill',
          text.slice(sign.length),
          [BigInt(integerOf('zfill', args[0]) - sign.length), '0'],
          (missing) => missing,
        )
      );
    },
  ],
  format: [0, Number.POSITIVE_INFINITY, format],
  isspace: [0, 0, all(ALL_SPACE)],
  isalpha: [0, 0, all(/^\p{L}+$/u)],
  isalnum: [0, 0, all(/^[\p{L}\p{N}]+$/u)],
  isdecimal: [0, 0, all(/^\p{Nd}+$/u)],
  isdigit: [0, 0, digits],
  islower: [0, 0, (text) => /\p{Lowercase}/u.test(text) && !/[\p{Uppercase}\p{Lt}]/u.test(text)],
  isupper: [0, 0, (text) => /\p{Uppercase}/u.test(text) && !/[\p{Lowercase}\p{Lt}]/u.test(text)],
};
/** Those whose arguments may be given by name. */
export const TAKE_NAMES = ['split', 'rsplit', 'splitlines', 'format'];
