// Units of measurement and currencies behind, or before, a value.

import { mulRational, ONE, type Rational, rational } from './rational';
import { table } from './table';
import { isToken, type Token } from './tokens';

/** A product of powers of base units, with the factor to them. */
export interface Unit {
  factor: Rational;
  /** Exponents by the name of the base unit. */
  powers: ReadonlyMap<string, number>;
}

const DEFINITIONS: readonly (readonly [base: string, factor: readonly [number, number], names: string])[] = [
  ['m', [1, 1], 'm meter meters metre metres'],
  ['m', [1000, 1], 'km kilometer kilometers kilometre kilometres kms'],
  ['m', [1, 100], 'cm centimeter centimeters centimetre centimetres cms'],
  ['m', [1, 1000], 'mm millimeter millimeters millimetre millimetres'],
  ['m', [1, 10], 'dm decimeter decimeters decimetre decimetres'],
  ['m', [254, 10_000], 'in inch inches'],
  ['m', [3048, 10_000], 'ft foot feet'],
  ['m', [9144, 10_000], 'yd yard yards yds'],
  ['m', [1_609_344, 1000], 'mi mile miles'],
  ['g', [1, 1], 'g gram grams gramme grammes'],
  ['g', [1000, 1], 'kg kilogram kilograms kilo kilos kgs'],
  ['g', [1, 1000], 'mg milligram milligrams'],
  ['g', [45_359_237, 100_000], 'lb lbs pound pounds'],
  ['g', [45_359_237, 1_600_000], 'oz ounce ounces'],
  ['s', [1, 1], 's sec secs second seconds'],
  ['s', [1, 1000], 'ms millisecond milliseconds'],
  ['s', [60, 1], 'min mins minute minutes'],
  ['s', [3600, 1], 'h hr hrs hour hours'],
  ['s', [86_400, 1], 'day days'],
  ['s', [604_800, 1], 'week weeks wk wks'],
  ['month', [1, 1], 'month months'],
  ['month', [12, 1], 'year years yr yrs'],
  ['L', [1, 1], 'L l liter liters litre litres'],
  ['L', [1, 1000], 'mL ml milliliter milliliters millilitre millilitres'],
  ['usd', [1, 1], 'usd dollar dollars buck bucks'],
  ['usd', [1, 100], 'cent cents ¢'],
  ['eur', [1, 1], 'eur euro euros'],
  ['gbp', [1, 1], 'gbp'],
  ['inr', [1, 1], 'inr rupee rupees'],
  ['jpy', [1, 1], 'jpy yen'],
  ['degree', [1, 1], 'deg degree degrees'],
  ['radian', [1, 1], 'rad radian radians'],
  ['percent', [1, 1], 'percent pct'],
  ['N', [1, 1], 'N newton newtons'],
  ['J', [1, 1], 'J joule joules'],
  ['J', [1000, 1], 'kJ kilojoule kilojoules'],
  ['W', [1, 1], 'W watt watts'],
  ['W', [1000, 1], 'kW kilowatt kilowatts'],
  ['V', [1, 1], 'V volt volts'],
  ['A', [1, 1], 'A amp amps ampere amperes'],
  ['Hz', [1, 1], 'Hz hertz'],
  ['Pa', [1, 1], 'Pa pascal pascals'],
  ['mol', [1, 1], 'mol mole moles'],
  ['kelvin', [1, 1], 'K kelvin kelvins'],
  ['celsius', [1, 1], 'C celsius'],
  ['fahrenheit', [1, 1], 'F fahrenheit'],
  ['unit', [1, 1], 'unit units'],
  ['am', [1, 1], 'am'],
  ['pm', [1, 1], 'pm'],
];
const KNOWN = new Map<string, { base: string; factor: Rational }>(
  DEFINITIONS.flatMap(([base, [n, d], names]) =>
    names.split(' ').map((name) => [name, { base, factor: rational(BigInt(n), BigInt(d)) }] as const),
  ),
);
const COMPOSED = table({ mph: 'mi/h', kph: 'km/h', kmh: 'km/h', sqft: 'ft^2', cc: 'cm^3' });
/** One letter that is a unit where white space stands before it, and a variable elsewhere. */
const LETTERS = new Set(['m', 'g', 's', 'h', 'L', 'l', 'N', 'J', 'W', 'V']);
const CURRENCY = table({ $: 'usd', '£': 'gbp', '€': 'eur', '¥': 'jpy', '₹': 'inr' });

/** Of an unknown word: its singular. */
const singular = (word: string) => {
  const lower = word.toLowerCase();
  if (/(?:s|x|ch|sh)es$/.test(lower)) return lower.slice(0, -2);
  if (/ies$/.test(lower)) return `${lower.slice(0, -3)}y`;
  return /[^s]s$/.test(lower) ? lower.slice(0, -1) : lower;
};

const lookUp = (word: string) => KNOWN.get(word) ?? (word.length > 2 ? KNOWN.get(word.toLowerCase()) : undefined);
/** Whether a word is the name of a unit. */
const isUnit = (word: string) => lookUp(word) !== undefined || word in COMPOSED;

class Reader {
  factor = ONE;
  readonly powers = new Map<string, number>();

  add(word: string, exponent: number): void {
    const composed = COMPOSED[word];
    if (composed) {
      const [above, below] = composed.split('/');
      const [name, power = '1'] = above.split('^');
      this.add(name, exponent * Number(power));
      if (below) this.add(below, -exponent);
      return;
    }
    const known = lookUp(word);
    const name = known?.base ?? singular(word);
    for (let k = 0; known && k < Math.abs(exponent); k++)
      this.factor = mulRational(this.factor, exponent > 0 ? known.factor : rational(known.factor.d, known.factor.n));
    const total = (this.powers.get(name) ?? 0) + exponent;
    if (total === 0) this.powers.delete(name);
    else this.powers.set(name, total);
  }
}

/** Words behind a number that change it. */
const OPERATIONS = new Set(
  'factorial squared cubed plus minus less fewer greater over divided multiplied mod modulo choose root power negative not below above base binary octal hexadecimal to wrong false'.split(
    ' ',
  ),
);
/** Numbers as words, by which the number before is multiplied, or divided. */
const NUMERALS = new Map<string, readonly ['cdot' | '/', string]>();
const numerals = (words: string, sign: 'cdot' | '/', value: (k: number) => string) =>
  words.split(' ').forEach((word, k) => {
    for (const name of [word, `${word}s`]) NUMERALS.set(name, [sign, value(k)]);
  });
numerals('hundred thousand million billion trillion', 'cdot', (k) => `1${'0'.repeat([2, 3, 6, 9, 12][k])}`);
numerals('dozen', 'cdot', () => '12');
numerals('half third quarter fifth sixth seventh eighth ninth tenth', '/', (k) => String(k + 2));
numerals('halve', '/', () => '2');
numerals('fourth', '/', () => '4');
numerals('hundredth thousandth millionth', '/', (k) => `1${'0'.repeat([2, 3, 6][k])}`);

/** Writes "5 million" and "2 thirds" with signs. */
export function withoutNumerals(tokens: readonly Token[]): Token[] {
  return tokens.flatMap((token, i): Token[] => {
    const before = tokens.slice(0, i).filter(({ text }) => !(text in CURRENCY));
    if ((token.kind !== 'word' && token.kind !== 'text') || !isPlainNumber(before)) return [token];
    const [word, ...rest] = token.text.split(/\s+/);
    const numeral = NUMERALS.get(word.toLowerCase());
    if (!numeral) return [token];
    const [sign, number] = numeral;
    return [
      { kind: sign === '/' ? 'sign' : 'command', text: sign, spaced: true },
      { kind: 'number', text: number, spaced: true },
      ...(rest.length > 0 ? [{ kind: 'text' as const, text: rest.join(' '), spaced: true }] : []),
    ];
  });
}

/** The unit that tokens write; null where they write none. */
function unitOf(tokens: readonly Token[]): Unit | null {
  const reader = new Reader();
  let sign = 1;
  let next = 1;
  const unknown: string[] = [];
  for (let i = 0; i < tokens.length; i++) {
    const token = tokens[i];
    if (isToken(token, '/')) {
      sign = -1;
      continue;
    }
    if (isToken(token, 'cdot') || isToken(token, '*') || isToken(token, '.')) continue;
    if (isToken(token, '%')) {
      reader.add('percent', 1);
      continue;
    }
    if (token.kind === 'command' && CURRENCY[token.text]) {
      reader.add(CURRENCY[token.text], 1);
      continue;
    }
    if (token.kind !== 'word' && token.kind !== 'text') return null;
    const words = token.text.split(/[\s.,]+|(?=\/)|(?<=\/)/).filter((word) => word !== '');
    // cm^2.
    let exponent = 1;
    if (isToken(tokens[i + 1], '^')) {
      const braced = isToken(tokens[i + 2], '{');
      const digits = tokens.slice(i + 2 + (braced ? 1 : 0), i + 6);
      const minus = isToken(digits[0], '-');
      const number = digits[minus ? 1 : 0];
      if (number?.kind !== 'number' || !/^\d$/.test(number.text)) return null;
      exponent = Number(number.text) * (minus ? -1 : 1);
      i += 2 + (braced ? 2 : 0) + (minus ? 1 : 0);
    }
    words.forEach((word, k) => {
      const lower = word.toLowerCase();
      const last = k === words.length - 1;
      if (lower === 'per' || word === '/') sign = -1;
      else if (lower === 'square' || lower === 'sq') next = 2;
      else if (lower === 'cubic' || lower === 'cu') next = 3;
      else if (lower === 'squared' || lower === 'cubed') {
        const only = [...reader.powers.keys()].pop();
        if (only) reader.add(only, (lower === 'squared' ? 1 : 2) * Math.sign(reader.powers.get(only)!));
      } else {
        if (!isUnit(word)) unknown.push(lower);
        reader.add(word, sign * next * (last ? exponent : 1));
        next = 1;
        if (sign < 0) sign = 1;
      }
    });
  }
  if (reader.powers.size === 0 || unknown.some((word) => OPERATIONS.has(word) || NUMERALS.has(word))) return null;
  // Several unknown words are one thing: "red apples".
  if (unknown.length > 1) return { factor: ONE, powers: new Map([[unknown.map(singular).join(' '), 1]]) };
  return { factor: reader.factor, powers: reader.powers };
}

const isPlainNumber = (tokens: readonly Token[]) =>
  tokens.length > 0 &&
  tokens.some(({ kind }) => kind === 'number') &&
  tokens.every(
    (token) =>
      token.kind === 'number' ||
      ['-', '+', '/', '{', '}', 'frac', 'vulgar', 'cdot', '^', 'sqrt', 'pi', '.'].includes(token.text),
  );

/** Number of tokens at the end that are a unit. */
function unitLength(tokens: readonly Token[]): number {
  let best = 0;
  for (let begin = tokens.length - 1; begin > 0; begin--) {
    const token = tokens[begin];
    const value = tokens.slice(0, begin);
    const isCurrency = token.kind === 'command' && token.text in CURRENCY;
    if (token.kind === 'text' || isToken(token, '%') || isCurrency) {
      best = tokens.length - begin;
      continue;
    }
    if (isToken(token, '/') && isPlainNumber(value) && isDivider(tokens[begin + 1])) {
      best = tokens.length - begin;
      continue;
    }
    if (token.kind === 'word') {
      const { text, spaced } = token;
      if (isDivided(tokens, begin)) continue;
      const single = text.length === 1;
      if (single ? LETTERS.has(text) && spaced && isPlainNumber(value) : isUnit(text) && isPlainNumber(value))
        best = tokens.length - begin;
      else if (POWERS.has(text.toLowerCase()) && isPlainNumber(value)) best = tokens.length - begin;
      else if (single && POWERS.has(tokens[begin - 1].text.toLowerCase())) continue;
      else if (!single && text.length > 2 && spaced && (isPlainNumber(value) || isWordBefore(value)))
        best = tokens.length - begin;
      else if (!single && spaced && /^(?:of|a|an|in)$/i.test(text)) continue;
      else break;
      continue;
    }
    // Parts of a unit: km/h, m^2, m \cdot s.
    if (
      ['/', '^', 'cdot', '*', '{', '}', '-', '.'].includes(token.text) ||
      (token.kind === 'number' && inExponent(tokens, begin))
    )
      continue;
    break;
  }
  return best;
}
/** Words that say the power of the unit behind them. */
const POWERS = new Set(['sq', 'square', 'cu', 'cubic']);
/** A unit behind a slash. */
const isDivider = (token: Token | undefined) =>
  token?.kind === 'text' ||
  (token?.kind === 'word' && token.text.length > 1 && (isUnit(token.text) || token.text.length > 2));
const isWordBefore = (value: readonly Token[]) => {
  const last = value[value.length - 1];
  return last?.kind === 'word' && last.text.length > 1;
};
const isDivided = (tokens: readonly Token[], at: number) =>
  ['/', 'cdot', '*'].some((sign) => isToken(tokens[at - 1], sign));
const inExponent = (tokens: readonly Token[], at: number) =>
  isToken(tokens[at - 1], '^') ||
  (isToken(tokens[at - 1], '{') && isToken(tokens[at - 2], '^')) ||
  (isToken(tokens[at - 1], '-') && (isToken(tokens[at - 2], '^') || isToken(tokens[at - 3], '^')));

/** Takes degrees, currencies and units off a value. */
export function splitUnit(tokens: readonly Token[]): { value: readonly Token[]; unit: Unit | null } {
  const only = (name: string): Unit => {
    const reader = new Reader();
    reader.add(name, 1);
    return { factor: reader.factor, powers: reader.powers };
  };
  // 30^\circ, and 30^\circ C.
  const circle = tokens.findIndex((token) => isToken(token, 'circ'));
  const hasSine = tokens.some(({ text }) => /^(?:sin|cos|tan|cot|sec|csc|cis)$/.test(text));
  if (circle > 1 && !hasSine) {
    const braced = isToken(tokens[circle - 1], '{');
    const begin = circle - (braced ? 2 : 1);
    const rest = tokens.slice(circle + (braced ? 2 : 1));
    if (isToken(tokens[begin], '^') && rest.length <= 1) {
      const scale = rest[0]?.text.toLowerCase();
      if (rest.length === 0) return { value: tokens.slice(0, begin), unit: only('degree') };
      if (scale === 'c' || scale === 'f')
        return { value: tokens.slice(0, begin), unit: only(scale === 'c' ? 'celsius' : 'fahrenheit') };
    }
  }
  // -$5 and $-5, US$5.
  const minus = isToken(tokens[0], '-') ? 1 : 0;
  const prefix = tokens[minus];
  if (prefix?.kind === 'command' && CURRENCY[prefix.text] && tokens.length > minus + 1) {
    const rest = [...tokens.slice(0, minus), ...tokens.slice(minus + 1)];
    const inner = splitUnit(rest);
    const unit = only(CURRENCY[prefix.text]);
    if (!inner.unit) return { value: rest, unit };
    // "$5 dollars" names it twice; "$5 per hour" and "$5/h" compose.
    if (sameUnit(inner.unit, unit)) return inner;
    const powers = new Map(inner.unit.powers);
    if ([...powers.values()].every((exponent) => exponent < 0))
      return { value: inner.value, unit: { factor: inner.unit.factor, powers: powers.set(CURRENCY[prefix.text], 1) } };
    return { value: tokens, unit: null };
  }
  const length = unitLength(tokens);
  if (length === 0) return { value: tokens, unit: null };
  const unit = unitOf(tokens.slice(tokens.length - length));
  return unit ? { value: tokens.slice(0, tokens.length - length), unit } : { value: tokens, unit: null };
}

/** Whether two units measure the same. */
export const sameUnit = (a: Unit, b: Unit): boolean =>
  a.powers.size === b.powers.size && [...a.powers].every(([name, exponent]) => b.powers.get(name) === exponent);

/** Whether a unit is percent. */
export const isPercent = (unit: Unit | null): boolean => unit?.powers.size === 1 && unit.powers.get('percent') === 1;
