// Functions that every template can call.
import { bind, integerOf, textOf } from './text-methods';
import {
  Callable,
  type Dict,
  itemsOf,
  type Keywords,
  keyOf,
  Namespace,
  Range,
  TemplateError,
  type Value,
} from './values';

/** Longest range, as in the sandbox of Jinja. */
const MAX_RANGE = 100_000;

function range(args: readonly Value[]): Value {
  if (args.length < 1 || args.length > 3) throw new TemplateError(`range: expected 1 to 3 numbers, got ${args.length}`);
  const [first, second, third] = args.map((value) => integerOf('range', value));
  const [start, stop, step] = args.length === 1 ? [0, first, 1] : [first, second, third ?? 1];
  if (step === 0) throw new TemplateError('range: the step is 0');
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (length > MAX_RANGE) throw new TemplateError(`range: more than ${MAX_RANGE} numbers`);
  const items = Array.from({ length }, (_number, i) => BigInt(start + i * step));
  return new Range(items, `range(${start}, ${stop}${step === 1 ? '' : `, ${step}`})`);
}

/** Python's dict(): of a dictionary or of pairs, and of names. */
function dictionary(args: readonly Value[], keywords: Keywords): Dict {
  const result: Dict = new Map();
  if (args.length > 1) throw new TemplateError(`dict: expected at most 1 argument, got ${args.length}`);
  const [source] = args;
  if (source instanceof Map) for (const [key, value] of source) result.set(key, value);
  else if (source !== undefined)
    for (const pair of itemsOf(source)) {
      const [key, value, ...more] = itemsOf(pair);
      if (value === undefined || more.length > 0) throw new TemplateError('dict: expected pairs');
      result.set(keyOf(key), value);
    }
  for (const [name, value] of keywords) result.set(name, value);
  return result;
}

const two = (value: number, fill = '0') => String(value).padStart(2, fill);
const name = (date: Date, options: Intl.DateTimeFormatOptions) => date.toLocaleString('en-US', options);

/** Python's datetime.strftime in the C locale, of what a date in a prompt may need. */
function formatTime(format: string, date: Date): string {
  const parts: Record<string, () => string> = {
    Y: () => String(date.getFullYear()),
    y: () => two(date.getFullYear() % 100),
    m: () => two(date.getMonth() + 1),
    d: () => two(date.getDate()),
    e: () => two(date.getDate(), ' '),
    H: () => two(date.getHours()),
    I: () => two(date.getHours() % 12 || 12),
    M: () => two(date.getMinutes()),
    S: () => two(date.getSeconds()),
    p: () => (date.getHours() < 12 ? 'AM' : 'PM'),
    A: () => name(date, { weekday: 'long' }),
    a: () => name(date, { weekday: 'short' }),
    B: () => name(date, { month: 'long' }),
    b: () => name(date, { month: 'short' }),
    '%': () => '%',
  };
  return format.replace(/%(-?)([\s\S]?)/g, (all, minus: string, letter: string) => {
    if (!Object.hasOwn(parts, letter) || (minus !== '' && !/[mdHIMS]/.test(letter)))
      throw new TemplateError(`strftime_now: ${all} is not supported`);
    return minus === '' ? parts[letter]() : String(Number(parts[letter]()));
  });
}

const functions: [string, Callable['call']][] = [
  ['range', range],
  ['dict', dictionary],
  [
    'namespace',
    (args, keywords) => {
      const result = new Namespace();
      for (const [key, value] of dictionary(args, keywords)) result.fields.set(textOf('namespace', key), value);
      return result;
    },
  ],
  [
    'raise_exception',
    (args, keywords) => {
      throw new TemplateError(textOf('raise_exception', bind('raise_exception', ['message'], 1, args, keywords)[0]));
    },
  ],
  [
    'strftime_now',
    (args, keywords) =>
      formatTime(textOf('strftime_now', bind('strftime_now', ['format'], 1, args, keywords)[0]), new Date()),
  ],
  ...['cycler', 'joiner', 'lipsum'].map((missing): [string, Callable['call']] => [
    missing,
    () => {
      throw new TemplateError(`the function "${missing}" is not supported`);
    },
  ]),
];

/** The functions by name. */
export const globals: ReadonlyMap<string, Value> = new Map(
  functions.map(([called, call]) => [called, new Callable(called, call)]),
);
