// Python's arithmetic and the % of its texts.
import {
  asInteger,
  isNumber,
  itemsOf,
  represent,
  TemplateError,
  Tuple,
  toText,
  typeName,
  Undefined,
  type Value,
} from './values';

/** Longest text or list that a template may make. */
const MAX_LENGTH = 2 ** 24;

const unsupported = (operator: string, a: Value, b: Value) =>
  new TemplateError(`${typeName(a)} ${operator} ${typeName(b)} is not supported`);

function integerPower(base: bigint, exponent: bigint): Value {
  // Jinja compiles a negative literal so that the power binds first, and other powers differ in their last digit.
  if (base < 0n || exponent < 0n) throw new TemplateError(`${base} ** ${exponent} is not supported`);
  if (BigInt(base.toString(2).length) * exponent > 100_000n) throw new TemplateError('a power is too large');
  return base ** exponent;
}

function integers(operator: string, a: bigint, b: bigint): Value {
  if (/[/%]/.test(operator) && b === 0n) throw new TemplateError('division by zero');
  const remainder = () => ((a % b) + b) % b;
  if (operator === '+') return a + b;
  if (operator === '-') return a - b;
  if (operator === '*') return a * b;
  if (operator === '%') return remainder();
  if (operator === '//') return (a - remainder()) / b;
  if (operator === '**') return integerPower(a, b);
  const [x, y] = [Number(a), Number(b)];
  if (!Number.isSafeInteger(x) || !Number.isSafeInteger(y))
    throw new TemplateError('division of large integers is not supported');
  return x / y;
}

function floats(operator: string, a: number, b: number): Value {
  if (/[/%]/.test(operator) && b === 0) throw new TemplateError('division by zero');
  // Python's remainder has the sign of the divisor.
  const remainder = () => {
    const rest = a % b;
    if (rest === 0) return b < 0 ? -0 : 0;
    return rest < 0 !== b < 0 ? rest + b : rest;
  };
  if (operator === '+') return a + b;
  if (operator === '-') return a - b;
  if (operator === '*') return a * b;
  if (operator === '/') return a / b;
  if (operator === '%') return remainder();
  if (operator === '//') {
    if (!Number.isFinite(a) || !Number.isFinite(b))
      throw new TemplateError('division of infinite numbers is not supported');
    const quotient = (a - remainder()) / b;
    return quotient === 0 ? (a < 0 !== b < 0 ? -0 : 0) : Math.round(quotient);
  }
  throw new TemplateError(`${a} ** ${b} of floats is not supported`);
}

function repeat(value: Value, times: Value): Value | null {
  if (typeof times !== 'bigint' && typeof times !== 'boolean') return null;
  const count = Math.max(0, Number(asInteger(times)));
  const length =
    typeof value === 'string'
      ? value.length
      : Array.isArray(value) || value instanceof Tuple
        ? itemsOf(value).length
        : -1;
  if (length < 0) return null;
  if (length * count > MAX_LENGTH) throw new TemplateError('a repeated value is too long');
  if (typeof value === 'string') return value.repeat(count);
  const items = Array.from({ length: count }, () => itemsOf(value)).flat();
  return value instanceof Tuple ? new Tuple(items) : items;
}

/** One of + - * / // % **. */
export function arithmetic(operator: string, a: Value, b: Value): Value {
  if (operator === '%' && typeof a === 'string') return formatPercent(a, b);
  if (isNumber(a) && isNumber(b)) {
    if (typeof a === 'number' || typeof b === 'number') return floats(operator, Number(a), Number(b));
    return integers(operator, asInteger(a), asInteger(b));
  }
  if (operator === '+') {
    if (typeof a === 'string' && typeof b === 'string') {
      if (a.length + b.length > MAX_LENGTH) throw new TemplateError('a text is too long');
      return a + b;
    }
    if (Array.isArray(a) && Array.isArray(b)) return [...a, ...b];
    if (a instanceof Tuple && b instanceof Tuple) return new Tuple([...a.items, ...b.items]);
  }
  const repeated = operator === '*' ? (repeat(a, b) ?? repeat(b, a)) : null;
  if (repeated !== null) return repeated;
  throw unsupported(operator, a, b);
}

/** + or - before a value. */
export function signed(operator: '+' | '-', value: Value): Value {
  if (!isNumber(value))
    throw new TemplateError(`${operator} before a value of type ${typeName(value)} is not supported`);
  const number = typeof value === 'number' ? value : asInteger(value);
  return operator === '-' ? -number : number;
}

/** A float with so many digits behind the point, of its exact value, halves to even. */
export function fixed(value: number, digits: number): string {
  if (!Number.isFinite(value)) return value > 0 ? 'inf' : value < 0 ? '-inf' : 'nan';
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, Math.abs(value));
  const bits = view.getBigUint64(0);
  const power = Number(bits >> 52n);
  const mantissa = (bits & ((1n << 52n) - 1n)) | (power === 0 ? 0n : 1n << 52n);
  const shift = Math.max(power, 1) - 1075;
  const numerator = mantissa * 10n ** BigInt(digits) * (shift > 0 ? 1n << BigInt(shift) : 1n);
  const denominator = shift < 0 ? 1n << BigInt(-shift) : 1n;
  let rounded = numerator / denominator;
  const twice = (numerator % denominator) * 2n;
  if (twice > denominator || (twice === denominator && rounded % 2n === 1n)) rounded++;
  const text = rounded.toString().padStart(digits + 1, '0');
  const sign = value < 0 || Object.is(value, -0) ? '-' : '';
  return sign + (digits === 0 ? text : `${text.slice(0, -digits)}.${text.slice(-digits)}`);
}

const CONVERSION = /%(?:\(([^)]*)\))?([-+ 0#]*)(\d*)(?:\.(\d*))?([a-zA-Z%])/g;

function convert(kind: string, value: Value, flags: string, precision: number | null): string {
  if (kind === 's' || kind === 'r') {
    const text = kind === 's' ? toText(value) : represent(value);
    return precision === null ? text : Array.from(text).slice(0, precision).join('');
  }
  if (!isNumber(value)) throw new TemplateError(`%${kind} of a value of type ${typeName(value)} is not supported`);
  let text: string;
  if (/[diu]/.test(kind) && precision === null) {
    if (typeof value === 'number' && !Number.isFinite(value))
      throw new TemplateError(`%${kind} of ${value} is not supported`);
    text = String(typeof value === 'number' ? BigInt(Math.trunc(value)) : asInteger(value));
  } else if (/[fF]/.test(kind) && Number.isFinite(Number(value))) text = fixed(Number(value), precision ?? 6);
  else if (/[xXo]/.test(kind) && precision === null && typeof value !== 'number') {
    text = asInteger(value).toString(kind === 'o' ? 8 : 16);
    if (kind === 'X') text = text.toUpperCase();
  } else
    throw new TemplateError(`the conversion %${precision === null ? '' : `.${precision}`}${kind} is not supported`);
  if (text.startsWith('-')) return text;
  return flags.includes('+') ? `+${text}` : flags.includes(' ') ? ` ${text}` : text;
}

/** `format % values` of texts. */
export function formatPercent(format: string, values: Value): string {
  const list = values instanceof Tuple ? values.items : [values];
  let next = 0;
  let usesKeys = false;
  const used = format.replace(/%%/g, '').replace(CONVERSION, '');
  if (used.includes('%')) throw new TemplateError(`the format ${JSON.stringify(format)} is not supported`);
  const result = format.replace(
    CONVERSION,
    (all, key: string | undefined, flags: string, width: string, precision: string | undefined, kind: string) => {
      if (kind === '%') {
        if (all === '%%') return '%';
        throw new TemplateError(`the conversion ${all} is not supported`);
      }
      if (flags.includes('#')) throw new TemplateError(`the conversion ${all} is not supported`);
      let value: Value;
      if (key !== undefined) {
        if (!(values instanceof Map) || !values.has(key)) throw new TemplateError(`${all} without a value`);
        value = values.get(key)!;
        usesKeys = true;
      } else {
        if (next >= list.length) throw new TemplateError('a format has more conversions than values');
        value = list[next++];
      }
      if (value instanceof Undefined && !/[sr]/.test(kind)) throw new TemplateError(`${all} of what is undefined`);
      const text = convert(kind, value, flags, precision === undefined ? null : Number(precision));
      const missing = Number(width) - Array.from(text).length;
      if (missing <= 0) return text;
      if (missing > MAX_LENGTH) throw new TemplateError('a text is too long');
      if (flags.includes('-')) return text + ' '.repeat(missing);
      if (flags.includes('0') && !/[sr]/.test(kind))
        return text.replace(/^[-+ ]?/, (sign) => sign + '0'.repeat(missing));
      return ' '.repeat(missing) + text;
    },
  );
  const isMapping = values instanceof Map || Array.isArray(values);
  if (!usesKeys && next < list.length && !isMapping)
    throw new TemplateError('a format has fewer conversions than values');
  return result;
}
