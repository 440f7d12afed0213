// Jinja's filters.
import { attribute, item, refuseUndefined } from './access';
import { toJson } from './json';
import { SPACE } from './lexer';
import { arithmetic, fixed, formatPercent } from './numbers';
import { applyTest } from './tests';
import { bind, capitalize, center, integerOf, replace, splitLines, strip, textOf } from './text-methods';
import {
  areEqual,
  asInteger,
  characters,
  compare,
  Iterator,
  isNumber,
  isTrue,
  itemsOf,
  type Keywords,
  lengthOf,
  Markup,
  TemplateError,
  Tuple,
  toText,
  typeName,
  Undefined,
  type Value,
} from './values';

type Filter = (value: Value, args: readonly (Value | undefined)[]) => Value;

/** The parts of "a.b.0" or of a number, which name an item of an item. */
function pathOf(path: Value | undefined): Value[] {
  if (path === undefined || path === null) return [];
  if (typeof path === 'string') return path.split('.').map((part) => (/^\d+$/.test(part) ? BigInt(part) : part));
  return [path];
}
function getter(path: Value | undefined, fallback?: Value): (value: Value) => Value {
  const parts = pathOf(path);
  return (value) => {
    let current = value;
    for (const part of parts) {
      current = item(current, part);
      if (fallback !== undefined && fallback !== null && current instanceof Undefined) current = fallback;
    }
    return current;
  };
}
const lowered = (isSensitive: Value | undefined) => (value: Value) =>
  typeof value === 'string' && !isTrue(isSensitive ?? false) ? value.toLowerCase() : value;

/** Items by a key, in order; equal ones stay in theirs, also from the last to the first. */
function sorted(items: readonly Value[], key: (value: Value) => Value, isReverse: boolean): Value[] {
  const keyed = items.map((value) => ({ value, key: key(value) }));
  return keyed.sort((a, b) => (isReverse ? compare(b.key, a.key) : compare(a.key, b.key))).map(({ value }) => value);
}
function best(value: Value, [isSensitive, path]: readonly (Value | undefined)[], sign: number): Value {
  const key = (one: Value) => lowered(isSensitive)(getter(path)(one));
  const items = itemsOf(value);
  if (items.length === 0) return new Undefined('item');
  return items.reduce((found, one) => (sign * compare(key(one), key(found)) > 0 ? one : found));
}

function refuseNumberOf(value: Value): void {
  refuseUndefined(value, 'number');
  if (value instanceof Markup) throw new TemplateError('numbers of text marked as safe are not supported');
}
/** Python's int() and float() of a text, null where it raises. */
const integerIn = (text: string) =>
  /^\s*[+-]?\d+(_\d+)*\s*$/.test(text) ? BigInt(text.trim().replace(/^\+|_/g, '')) : null;
function floatIn(text: string): number | null {
  const plain = strip(text, null, true, true);
  if (/^[+-]?(inf(inity)?|nan)$/i.test(plain)) throw new TemplateError(`the number ${plain} is not supported`);
  const isNumberText = /^[+-]?(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)(e[+-]?\d+(_\d+)*)?$/i.test(plain);
  return isNumberText ? Number(plain.replace(/_/g, '')) : null;
}
function toInteger(value: Value, fallback: Value): Value {
  refuseNumberOf(value);
  if (typeof value === 'bigint' || typeof value === 'boolean') return asInteger(value);
  const number = typeof value === 'string' ? (integerIn(value) ?? floatIn(value)) : value;
  if (typeof number === 'bigint') return number;
  return typeof number === 'number' && Number.isFinite(number) ? BigInt(Math.trunc(number)) : fallback;
}

function round(value: Value, [precision, method]: readonly (Value | undefined)[]): Value {
  if (!isNumber(value)) throw new TemplateError(`round of a value of type ${typeName(value)} is not supported`);
  const places = integerOf('round', precision, 0);
  if (places < 0 || places > 15) throw new TemplateError(`round to ${places} places is not supported`);
  const kind = method === undefined ? 'common' : textOf('round', method);
  if (kind === 'common') return typeof value === 'number' ? Number(fixed(value, places)) : asInteger(value);
  if (kind !== 'ceil' && kind !== 'floor') throw new TemplateError(`round: the method ${kind} is unknown`);
  // Python rounds to an int, which has no -0.
  return (Math[kind](Number(value) * 10 ** places) + 0) / 10 ** places;
}

function indent(value: Value, [width, first, blank]: readonly (Value | undefined)[]): Value {
  const margin = typeof width === 'string' ? width : ' '.repeat(Math.max(0, integerOf('indent', width, 4)));
  const lines = splitLines(`${textOf('indent', value)}\n`);
  const rest = lines.slice(1).map((line) => (line !== '' || isTrue(blank ?? false) ? margin + line : line));
  return (isTrue(first ?? false) ? margin : '') + [lines[0], ...rest].join('\n');
}

function truncate(value: Value, [length, killWords, end, leeway]: readonly (Value | undefined)[]): Value {
  const list = characters(textOf('truncate', value));
  const [most, tail] = [integerOf('truncate', length, 255), end === undefined ? '...' : textOf('truncate', end)];
  const kept = most - characters(tail).length;
  if (kept < 0) throw new TemplateError(`truncate: the length ${most} is too short`);
  if (list.length <= most + integerOf('truncate', leeway, 5)) return value;
  const cut = list.slice(0, kept).join('');
  if (isTrue(killWords ?? false)) return cut + tail;
  const space = cut.lastIndexOf(' ');
  return (space < 0 ? cut : cut.slice(0, space)) + tail;
}

function json(value: Value, [isAscii, indentation, separators, sortKeys]: readonly (Value | undefined)[]): Value {
  const isNone = indentation === undefined || indentation === null;
  const step = isNone
    ? null
    : typeof indentation === 'string'
      ? indentation
      : ' '.repeat(Math.max(0, integerOf('tojson', indentation)));
  let marks: readonly [string, string] = step === null ? [', ', ': '] : [',', ': '];
  if (separators !== undefined && separators !== null) {
    const list = itemsOf(separators).map((mark) => textOf('tojson', mark));
    if (list.length !== 2) throw new TemplateError(`tojson: expected two separators, got ${list.length}`);
    marks = [list[0], list[1]];
  }
  return toJson(value, {
    isAscii: isTrue(isAscii ?? false),
    indent: step,
    separators: marks,
    sortKeys: isTrue(sortKeys ?? false),
  });
}

function batch(value: Value, [size, fill]: readonly (Value | undefined)[]): Value {
  const items = itemsOf(value);
  const count = integerOf('batch', size);
  if (count < 1) throw new TemplateError(`batch: expected at least 1, got ${count}`);
  const rows: Value[][] = [];
  for (let i = 0; i < items.length; i += count) rows.push(items.slice(i, i + count));
  const last = rows.at(-1);
  if (last && fill !== undefined && fill !== null) while (last.length < count) last.push(fill);
  return new Iterator(rows);
}
function inSlices(value: Value, [slices, fill]: readonly (Value | undefined)[]): Value {
  const items = itemsOf(value);
  const count = integerOf('slice', slices);
  if (count < 1) throw new TemplateError(`slice: expected at least 1, got ${count}`);
  const [each, extra] = [Math.floor(items.length / count), items.length % count];
  let at = 0;
  const rows = Array.from({ length: count }, (_row, i) => {
    const row = items.slice(at, at + each + (i < extra ? 1 : 0));
    at += row.length;
    if (fill !== undefined && fill !== null && i >= extra) row.push(fill);
    return row;
  });
  return new Iterator(rows);
}

const HTML: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', "'": '&#39;', '"': '&#34;' };
const escapeHtml = (value: Value) =>
  value instanceof Markup ? value : new Markup(toText(value).replace(/[&<>'"]/g, (character) => HTML[character]));

const text = (change: (value: string) => string): [string[], number, Filter] => [
  [],
  0,
  (value) => change(plainText(value)),
];
/** str() of what is not marked as safe, which the filters below would keep safe. */
function plainText(value: Value): string {
  if (value instanceof Markup) throw new TemplateError('filters of text marked as safe are not supported');
  return toText(value);
}
/** What words begin behind, for the filter title. */
const BEFORE_WORDS = new RegExp(`((?:${SPACE}|[-({[<])+)`);
const count: [string[], number, Filter] = [[], 0, (value) => lengthOf(value)];
const orDefault: [string[], number, Filter] = [
  ['default_value', 'boolean'],
  0,
  (value, [other, isBoolean]) =>
    value instanceof Undefined || (isTrue(isBoolean ?? false) && !isTrue(value))
      ? other === undefined
        ? ''
        : other
      : value,
];
const escaped: [string[], number, Filter] = [[], 0, escapeHtml];

/** name: [names of the arguments, how many it needs, filter]. */
const FILTERS: Record<string, [string[], number, Filter]> = {
  abs: [
    [],
    0,
    (value) => {
      if (!isNumber(value)) throw new TemplateError(`abs of a value of type ${typeName(value)} is not supported`);
      return typeof value === 'number' ? Math.abs(value) : asInteger(value) < 0n ? -asInteger(value) : asInteger(value);
    },
  ],
  attr: [
    ['name'],
    1,
    (value, [name]) => {
      const key = textOf('attr', name);
      return value instanceof Map && value.has(key) && attribute(new Map(), key) instanceof Undefined
        ? new Undefined(key)
        : attribute(value, key);
    },
  ],
  batch: [['linecount', 'fill_with'], 1, batch],
  capitalize: text(capitalize),
  center: [['width'], 0, (value, [width]) => center(plainText(value), [width ?? 80n])],
  count,
  d: orDefault,
  default: orDefault,
  dictsort: [
    ['case_sensitive', 'by', 'reverse'],
    0,
    (value, [isSensitive, by, isReverse]) => {
      if (!(value instanceof Map)) throw new TemplateError('dictsort: expected a dictionary');
      const at = by === undefined || by === 'key' ? 0 : by === 'value' ? 1 : -1;
      if (at < 0) throw new TemplateError('dictsort: expected "key" or "value"');
      const key = (entry: Value) => lowered(isSensitive)((entry as Tuple).items[at]);
      return sorted(
        Array.from(value, (entry) => new Tuple(entry)),
        key,
        isTrue(isReverse ?? false),
      );
    },
  ],
  e: escaped,
  escape: escaped,
  first: [[], 0, (value) => (value instanceof Iterator ? value.next() : itemsOf(value)[0]) ?? firstOf(value)],
  float: [
    ['default'],
    0,
    (value, [other]) => {
      if (isNumber(value)) return Number(value);
      refuseNumberOf(value);
      return (typeof value === 'string' ? floatIn(value) : null) ?? other ?? 0;
    },
  ],
  indent: [['width', 'first', 'blank'], 0, indent],
  int: [['default'], 0, (value, [other]) => toInteger(value, other ?? 0n)],
  items: [
    [],
    0,
    (value) => {
      if (value instanceof Undefined) return new Iterator([]);
      if (!(value instanceof Map)) throw new TemplateError('items: expected a dictionary');
      return new Iterator(Array.from(value, (entry) => new Tuple(entry)));
    },
  ],
  join: [
    ['d', 'attribute'],
    0,
    (value, [mark, path]) =>
      itemsOf(value)
        .map((one) => toText(getter(path)(one)))
        .join(toText(mark ?? '')),
  ],
  last: [
    [],
    0,
    (value) => {
      if (value instanceof Iterator) throw new TemplateError('last of an iterator is not supported');
      const items = itemsOf(value);
      return items.length === 0 ? new Undefined('last') : items[items.length - 1];
    },
  ],
  length: count,
  list: [[], 0, (value) => [...itemsOf(value)]],
  lower: text((value) => value.toLowerCase()),
  max: [['case_sensitive', 'attribute'], 0, (value, args) => best(value, args, 1)],
  min: [['case_sensitive', 'attribute'], 0, (value, args) => best(value, args, -1)],
  replace: [
    ['old', 'new', 'count'],
    2,
    (value, [old, by, most]) =>
      replace(plainText(value), plainText(old!), plainText(by!), most === null ? -1 : integerOf('replace', most, -1)),
  ],
  reverse: [
    [],
    0,
    (value) => {
      const items = [...itemsOf(value)].reverse();
      if (typeof value === 'string') return items.join('');
      return value instanceof Iterator ? items : new Iterator(items);
    },
  ],
  round: [['precision', 'method'], 0, round],
  safe: [[], 0, (value) => (value instanceof Markup ? value : new Markup(toText(value)))],
  slice: [['slices', 'fill_with'], 1, inSlices],
  sort: [
    ['reverse', 'case_sensitive', 'attribute'],
    0,
    (value, [isReverse, isSensitive, path]) => {
      const paths = typeof path === 'string' ? path.split(',') : [path];
      const key = (one: Value) => paths.map((part) => lowered(isSensitive)(getter(part)(one)));
      return sorted(itemsOf(value), key, isTrue(isReverse ?? false));
    },
  ],
  string: [[], 0, (value) => plainText(value)],
  sum: [
    ['attribute', 'start'],
    0,
    (value, [path, start]) => {
      if (typeof start === 'string') throw new TemplateError('sum of texts is not supported');
      return itemsOf(value)
        .map(getter(path))
        .reduce((total, one) => arithmetic('+', total, one), start ?? 0n);
    },
  ],
  title: text((value) =>
    value
      .split(BEFORE_WORDS)
      .map((part) => {
        const [first = '', ...rest] = characters(part);
        return first.toUpperCase() + rest.join('').toLowerCase();
      })
      .join(''),
  ),
  tojson: [['ensure_ascii', 'indent', 'separators', 'sort_keys'], 0, json],
  trim: [['chars'], 0, (value, [set]) => strip(plainText(value), set, true, true)],
  truncate: [['length', 'killwords', 'end', 'leeway'], 0, truncate],
  unique: [
    ['case_sensitive', 'attribute'],
    0,
    (value, [isSensitive, path]) => {
      const seen: Value[] = [];
      return new Iterator(
        itemsOf(value).filter((one) => {
          const key = lowered(isSensitive)(getter(path)(one));
          if (typeof key === 'object' && key !== null && !(key instanceof Undefined))
            throw new TemplateError('unique of lists and dictionaries is not supported');
          return !seen.some((other) => areEqual(other, key)) && seen.push(key);
        }),
      );
    },
  ],
  upper: text((value) => value.toUpperCase()),
  wordcount: [[], 0, (value) => BigInt(plainText(value).match(/[\p{L}\p{N}_]+/gu)?.length ?? 0)],
};

/** The first item may be None, which ?? passes over. */
const firstOf = (value: Value) =>
  !(value instanceof Iterator) && itemsOf(value).length > 0 ? null : new Undefined('first');

/** Whether an item passes the test named in the arguments, or is true where there is none. */
function chosen(args: readonly Value[], keywords: Keywords): (value: Value) => boolean {
  if (args.length === 0) return isTrue;
  return (value) => applyTest(textOf('select', args[0]), value, args.slice(1), keywords);
}
function select(
  value: Value,
  args: readonly Value[],
  keywords: Keywords,
  byAttribute: boolean,
  wanted: boolean,
): Value {
  if (!isTrue(value)) return new Iterator([]);
  if (byAttribute && args.length === 0) throw new TemplateError('selectattr: the attribute is missing');
  const read = byAttribute ? getter(args[0]) : (one: Value) => one;
  const test = chosen(byAttribute ? args.slice(1) : args, keywords);
  return new Iterator(itemsOf(value).filter((one) => test(read(one)) === wanted));
}
function map(value: Value, args: readonly Value[], keywords: Keywords): Value {
  if (!isTrue(value)) return new Iterator([]);
  if (args.length > 0) {
    const name = textOf('map', args[0]);
    return new Iterator(itemsOf(value).map((one) => applyFilter(name, one, args.slice(1), keywords)));
  }
  const [path, fallback] = bind('map', ['attribute', 'default'], 1, [], keywords);
  return new Iterator(itemsOf(value).map(getter(path, fallback)));
}

/** `value | name(arguments)`. @throws TemplateError for a filter that is not here */
export function applyFilter(name: string, value: Value, args: readonly Value[], keywords: Keywords): Value {
  if (name === 'map') return map(value, args, keywords);
  if (/^(select|reject)(attr)?$/.test(name))
    return select(value, args, keywords, name.endsWith('attr'), name.startsWith('select'));
  if (name === 'format') {
    if (keywords.size > 0) throw new TemplateError('format with names is not supported');
    return formatPercent(plainText(value), new Tuple(args));
  }
  if (!Object.hasOwn(FILTERS, name)) throw new TemplateError(`the filter "${name}" is not supported`);
  const [names, required, filter] = FILTERS[name];
  return filter(value, bind(name, names, required, args, keywords));
}
