// Numbers of JSON within bounds, as languages of their decimal digits.
import { automatonOf, type ByteAutomaton, intersect } from './automaton';
import { characters, choice, type Language, NOTHING, optional, repeat, sequence, text } from './language';

/** Bounds of a number; absent: none. */
export interface Bounds {
  minimum?: number | undefined;
  exclusiveMinimum?: number | undefined;
  maximum?: number | undefined;
  exclusiveMaximum?: number | undefined;
}

/** Digits of a number that is written: as many as any double tells apart. */
const MOST_DIGITS = 15;
/** Digits before and behind the point, where bounds do not ask for more. */
const WHOLE_DIGITS = 9;
const FRACTION_DIGITS = 6;

const zero = 0x30;
const digits = (from: number, to: number): Language => (from > to ? choice() : characters([zero + from, zero + to]));
const DIGIT = digits(0, 9);

/** Digits of the same number as `s` that are at least it. */
function atLeast(s: string): Language {
  if (s === '') return NOTHING;
  const first = Number(s[0]);
  const rest = s.slice(1);
  return choice(
    sequence(text(s[0]), atLeast(rest)),
    sequence(digits(first + 1, 9), repeat(DIGIT, rest.length, rest.length)),
  );
}
function atMost(s: string): Language {
  if (s === '') return NOTHING;
  const first = Number(s[0]);
  const rest = s.slice(1);
  return choice(
    sequence(text(s[0]), atMost(rest)),
    sequence(digits(0, first - 1), repeat(DIGIT, rest.length, rest.length)),
  );
}
function between(a: string, b: string): Language {
  if (a === '') return NOTHING;
  const [low, high] = [Number(a[0]), Number(b[0])];
  const [restA, restB] = [a.slice(1), b.slice(1)];
  if (low === high) return sequence(text(a[0]), between(restA, restB));
  return choice(
    sequence(text(a[0]), atLeast(restA)),
    sequence(digits(low + 1, high - 1), repeat(DIGIT, restA.length, restA.length)),
    sequence(text(b[0]), atMost(restB)),
  );
}

/** Whole numbers from `low` to `high`, neither negative. */
function wholes(low: bigint, high: bigint): Language {
  const options: Language[] = [];
  const [a, b] = [String(low), String(high)];
  for (let length = a.length; low <= high && length <= b.length; length++)
    options.push(
      between(length === a.length ? a : `1${'0'.repeat(length - 1)}`, length === b.length ? b : '9'.repeat(length)),
    );
  return choice(...options);
}

/** A whole number within bounds. */
export function integerLanguage(bounds: Bounds): Language {
  const most = 10n ** BigInt(MOST_DIGITS) - 1n;
  let [low, high] = [-most, most];
  const raise = (value: bigint) => {
    if (value > low) low = value;
  };
  const lower = (value: bigint) => {
    if (value < high) high = value;
  };
  if (bounds.minimum !== undefined) raise(BigInt(Math.ceil(bounds.minimum)));
  if (bounds.exclusiveMinimum !== undefined) raise(BigInt(Math.floor(bounds.exclusiveMinimum)) + 1n);
  if (bounds.maximum !== undefined) lower(BigInt(Math.floor(bounds.maximum)));
  if (bounds.exclusiveMaximum !== undefined) lower(BigInt(Math.ceil(bounds.exclusiveMaximum)) - 1n);
  const options: Language[] = [];
  const max = (a: bigint, b: bigint) => (a > b ? a : b);
  if (high >= 0n) options.push(wholes(max(low, 0n), high));
  if (low < 0n) options.push(sequence(text('-'), wholes(max(-high, 1n), -low)));
  return choice(...options);
}

/** Digits before and behind the point of a number that is not negative, without zeros behind. */
function decimal(value: number): { whole: string; fraction: string } {
  const [mantissa, exponent = '0'] = String(value).split('e');
  const [before, behind = ''] = mantissa.split('.');
  const shift = Number(exponent);
  const all = shift >= 0 ? before + behind.padEnd(shift, '0') : before.padStart(1 - shift, '0') + behind;
  const point = shift >= 0 ? before.length + shift : Math.max(1, before.length + shift);
  return {
    whole: all.slice(0, point).replace(/^0+(?=\d)/, ''),
    fraction: all.slice(point).replace(/0+$/, ''),
  };
}

const MORE_DIGITS = repeat(DIGIT, 0);
const FRACTION = optional(sequence(text('.'), repeat(DIGIT, 1)));
const NOT_ZERO = sequence(repeat(text('0'), 0), digits(1, 9), MORE_DIGITS);

/** What is above a value that is not negative, or also it. */
function above(value: number, inclusive: boolean): Language {
  const { whole, fraction } = decimal(value);
  const options: Language[] = [];
  for (let i = 0; i < fraction.length; i++)
    options.push(sequence(text(`.${fraction.slice(0, i)}`), digits(Number(fraction[i]) + 1, 9), MORE_DIGITS));
  if (fraction === '' && inclusive) options.push(FRACTION);
  else options.push(sequence(text(`.${fraction}`), inclusive ? MORE_DIGITS : NOT_ZERO));
  const next = String(BigInt(whole) + 1n);
  const greater = choice(atLeast(next), sequence(digits(1, 9), repeat(DIGIT, next.length)));
  return choice(sequence(greater, FRACTION), sequence(text(whole), choice(...options)));
}
/** What is below a value that is positive, or also it. */
function below(value: number, inclusive: boolean): Language {
  const { whole, fraction } = decimal(value);
  const options: Language[] = [];
  for (let i = 0; i < fraction.length; i++) {
    if (i > 0) options.push(text(`.${fraction.slice(0, i)}`));
    options.push(sequence(text(`.${fraction.slice(0, i)}`), digits(0, Number(fraction[i]) - 1), MORE_DIGITS));
  }
  if (fraction !== '') options.push(NOTHING);
  if (inclusive) {
    if (fraction === '') options.push(NOTHING, sequence(text('.'), repeat(text('0'), 1)));
    else options.push(sequence(text(`.${fraction}`), repeat(text('0'), 0)));
  }
  const smaller = BigInt(whole) > 0n ? sequence(wholes(0n, BigInt(whole) - 1n), FRACTION) : choice();
  return choice(smaller, sequence(text(whole), choice(...options)));
}

interface Bound {
  value: number;
  inclusive: boolean;
}

/** A number within bounds. @throws TooLarge */
export function numberAutomaton(bounds: Bounds): ByteAutomaton {
  const lows: Bound[] = [];
  const highs: Bound[] = [];
  if (bounds.minimum !== undefined) lows.push({ value: bounds.minimum, inclusive: true });
  if (bounds.exclusiveMinimum !== undefined) lows.push({ value: bounds.exclusiveMinimum, inclusive: false });
  if (bounds.maximum !== undefined) highs.push({ value: bounds.maximum, inclusive: true });
  if (bounds.exclusiveMaximum !== undefined) highs.push({ value: bounds.exclusiveMaximum, inclusive: false });
  const parts = [...lows, ...highs].map(({ value }) => decimal(Math.abs(value)));
  const whole = Math.min(MOST_DIGITS, Math.max(WHOLE_DIGITS, ...parts.map((part) => part.whole.length)));
  const fraction = Math.min(
    MOST_DIGITS - whole,
    Math.max(FRACTION_DIGITS, ...parts.map((part) => part.fraction.length)),
  );
  const wholeLanguage = choice(text('0'), sequence(digits(1, 9), repeat(DIGIT, 0, whole - 1)));
  const written = automatonOf(
    fraction > 0 ? sequence(wholeLanguage, optional(sequence(text('.'), repeat(DIGIT, 1, fraction)))) : wholeLanguage,
  );
  /** Magnitudes: those of numbers that are not negative, or of negative ones. */
  const magnitudes = (low: readonly Bound[], high: readonly Bound[], isNegative: boolean): ByteAutomaton => {
    let result = written;
    if (isNegative) result = intersect(result, automatonOf(above(0, false)));
    for (const { value, inclusive } of low)
      if (value > 0 || (value === 0 && !inclusive)) result = intersect(result, automatonOf(above(value, inclusive)));
    for (const { value, inclusive } of high) {
      const isEmpty = value < 0 || (value === 0 && !inclusive);
      result = intersect(result, automatonOf(isEmpty ? choice() : below(value, inclusive)));
    }
    return result;
  };
  const negated = ({ value, inclusive }: Bound): Bound => ({ value: -value, inclusive });
  const positive = magnitudes(lows, highs, false);
  const negative = magnitudes(highs.map(negated), lows.map(negated), true);
  return automatonOf(
    choice({ kind: 'automaton', automaton: positive }, sequence(text('-'), { kind: 'automaton', automaton: negative })),
  );
}
