// Python's values, as templates compute with them: their text, truth, equality, order and items.

/** A template that cannot be read, or does what is not supported or fails in Python too. */
export class TemplateError extends Error {}

/** What a name is that stands for nothing. */
export class Undefined {
  constructor(readonly name: string) {}
}
export class Tuple {
  constructor(readonly items: readonly Value[]) {}
}
/** What `namespace()` makes: fields that an inner scope may set. */
export class Namespace {
  readonly fields = new Map<string, Value>();
}
export class Range {
  constructor(
    readonly items: readonly bigint[],
    readonly text: string,
  ) {}
}
/** keys(), values() or items() of a dictionary. */
export class View {
  constructor(
    readonly name: string,
    readonly items: readonly Value[],
  ) {}
}
/** An iterator: its items can be taken once. */
export class Iterator {
  #items: readonly Value[];
  constructor(items: readonly Value[]) {
    this.#items = items;
  }
  take(): readonly Value[] {
    const items = this.#items;
    this.#items = [];
    return items;
  }
  next(): Value | undefined {
    const [first, ...rest] = this.#items;
    this.#items = rest;
    return first;
  }
}
/** Text that is not to be escaped for HTML again; nothing is escaped here, so that it can only be printed. */
export class Markup {
  constructor(readonly text: string) {}
}
export type Keywords = ReadonlyMap<string, Value>;
/** A function, method or macro. `fields`: what can be read of a macro. */
export class Callable {
  constructor(
    readonly name: string,
    readonly call: (args: readonly Value[], keywords: Keywords) => Value,
    readonly fields: ReadonlyMap<string, Value> = new Map(),
  ) {}
}
/** The variable `loop`. */
export abstract class LoopVariable {
  abstract field(name: string): Value;
}

export type Dict = Map<Value, Value>;
/** int is a bigint, float a number, str a string, list an array. */
export type Value =
  | null
  | boolean
  | bigint
  | number
  | string
  | Value[]
  | Tuple
  | Dict
  | Undefined
  | Namespace
  | Range
  | View
  | Iterator
  | Markup
  | Callable
  | LoopVariable;

export const isNumber = (value: Value): value is bigint | number | boolean =>
  typeof value === 'bigint' || typeof value === 'number' || typeof value === 'boolean';

/** A bool as the int that it is in Python. */
export const asInteger = (value: bigint | boolean): bigint => (typeof value === 'boolean' ? BigInt(value) : value);

/** Python's name of a value's type, for messages. */
export function typeName(value: Value): string {
  if (value === null) return 'None';
  if (Array.isArray(value)) return 'list';
  if (value instanceof Map) return 'dict';
  const names = { boolean: 'bool', bigint: 'int', number: 'float', string: 'str' } as Record<string, string>;
  return names[typeof value] ?? (value as object).constructor.name.toLowerCase();
}

/** The characters of a text as Python counts them. */
export const characters = (text: string): string[] => Array.from(text);

/** A float as Python prints it. */
export function floatText(value: number): string {
  if (Number.isNaN(value)) return 'nan';
  if (!Number.isFinite(value)) return value > 0 ? 'inf' : '-inf';
  if (Object.is(value, -0)) return '-0.0';
  const [mantissa, exponent] = value.toExponential().split('e');
  const power = Number(exponent);
  if (value !== 0 && (power < -4 || power >= 16))
    return `${mantissa}e${power < 0 ? '-' : '+'}${String(Math.abs(power)).padStart(2, '0')}`;
  const text = String(value);
  return /[.e]/.test(text) ? text : `${text}.0`;
}

const ESCAPED: Record<string, string> = { '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t' };

/** repr() of a text. */
export function quote(text: string): string {
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  const inner = text.replace(/[\p{C}\p{Z}\\'"]/gu, (character) => {
    if (character === ' ') return character;
    if (character in ESCAPED) return ESCAPED[character];
    if (character === "'" || character === '"') return character === mark ? `\\${character}` : character;
    const code = character.codePointAt(0)!;
    if (code < 0x100) return `\\x${code.toString(16).padStart(2, '0')}`;
    return code < 0x10000 ? `\\u${code.toString(16).padStart(4, '0')}` : `\\U${code.toString(16).padStart(8, '0')}`;
  });
  return `${mark}${inner}${mark}`;
}

/** repr() of a value. @throws TemplateError for what has an address in Python */
export function represent(value: Value): string {
  if (value === null) return 'None';
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  if (typeof value === 'bigint') return String(value);
  if (typeof value === 'number') return floatText(value);
  if (typeof value === 'string') return quote(value);
  if (Array.isArray(value)) return `[${value.map(represent).join(', ')}]`;
  if (value instanceof Tuple)
    return value.items.length === 1 ? `(${represent(value.items[0])},)` : `(${value.items.map(represent).join(', ')})`;
  if (value instanceof Map)
    return `{${Array.from(value, ([key, item]) => `${represent(key)}: ${represent(item)}`).join(', ')}}`;
  if (value instanceof Undefined) return 'Undefined';
  if (value instanceof View) return `${value.name}([${value.items.map(represent).join(', ')}])`;
  if (value instanceof Range) return value.text;
  throw new TemplateError(`the text of a value of type ${typeName(value)} is not supported`);
}

/** str() of a value. */
export function toText(value: Value): string {
  if (typeof value === 'string') return value;
  if (value instanceof Undefined) return '';
  if (value instanceof Markup) return value.text;
  return represent(value);
}

/** bool() of a value. */
export function isTrue(value: Value): boolean {
  if (value === null || value instanceof Undefined) return false;
  if (typeof value === 'bigint') return value !== 0n;
  if (typeof value === 'boolean' || typeof value === 'string') return Boolean(value);
  if (typeof value === 'number') return value !== 0;
  if (Array.isArray(value)) return value.length > 0;
  if (value instanceof Map) return value.size > 0;
  if (value instanceof Tuple || value instanceof Range || value instanceof View) return value.items.length > 0;
  if (value instanceof Markup) return value.text !== '';
  return true;
}

/** The items that a loop over a value has. @throws TemplateError where it cannot be looped over */
export function itemsOf(value: Value): readonly Value[] {
  if (Array.isArray(value)) return value;
  if (typeof value === 'string') return characters(value);
  if (value instanceof Tuple || value instanceof Range || value instanceof View) return value.items;
  if (value instanceof Map) return Array.from(value.keys());
  if (value instanceof Iterator) return value.take();
  if (value instanceof Undefined) return [];
  throw new TemplateError(`a value of type ${typeName(value)} has no items`);
}

/** len() of a value. */
export function lengthOf(value: Value): bigint {
  if (value === null || isNumber(value) || value instanceof Iterator)
    throw new TemplateError(`a value of type ${typeName(value)} has no length`);
  return BigInt(itemsOf(value).length);
}

/** A key of a dictionary. @throws TemplateError for what Python cannot hash, or finds under another type's key */
export function keyOf(value: Value): Value {
  if (value === null || typeof value === 'string' || typeof value === 'bigint') return value;
  throw new TemplateError(`a key of type ${typeName(value)} is not supported`);
}

const numeric = (value: bigint | number | boolean): bigint | number =>
  typeof value === 'boolean' ? asInteger(value) : value;

/** Python's ==. */
export function areEqual(a: Value, b: Value): boolean {
  // JavaScript compares a bigint with a number as Python does an int with a float: by value.
  // biome-ignore lint/suspicious/noDoubleEquals: see above
  if (isNumber(a) && isNumber(b)) return numeric(a) == numeric(b);
  if (a instanceof Undefined && b instanceof Undefined) return true;
  if ((Array.isArray(a) && Array.isArray(b)) || (a instanceof Tuple && b instanceof Tuple)) {
    const [left, right] = [itemsOf(a), itemsOf(b)];
    return left.length === right.length && left.every((item, i) => areEqual(item, right[i]));
  }
  if (a instanceof Map && b instanceof Map)
    return a.size === b.size && Array.from(a).every(([key, item]) => b.has(key) && areEqual(item, b.get(key)!));
  if (a instanceof Range || a instanceof View || a instanceof Markup || b instanceof Markup)
    throw new TemplateError(`comparing a value of type ${typeName(a)} is not supported`);
  return a === b;
}

/** Below 0, 0 or above: Python's order. @throws TemplateError where it has none */
export function compare(a: Value, b: Value): number {
  if (isNumber(a) && isNumber(b)) {
    const [x, y] = [numeric(a), numeric(b)];
    return x < y ? -1 : x > y ? 1 : areEqual(a, b) ? 0 : Number.NaN;
  }
  if (typeof a === 'string' && typeof b === 'string') {
    if (a === b) return 0;
    // By code points, where JavaScript's < goes by units of UTF-16.
    const [x, y] = [characters(a), characters(b)];
    for (let i = 0; i < Math.min(x.length, y.length); i++)
      if (x[i] !== y[i]) return x[i].codePointAt(0)! - y[i].codePointAt(0)!;
    return x.length - y.length;
  }
  if ((Array.isArray(a) && Array.isArray(b)) || (a instanceof Tuple && b instanceof Tuple)) {
    const [x, y] = [itemsOf(a), itemsOf(b)];
    for (let i = 0; i < Math.min(x.length, y.length); i++) if (!areEqual(x[i], y[i])) return compare(x[i], y[i]);
    return x.length - y.length;
  }
  throw new TemplateError(`values of types ${typeName(a)} and ${typeName(b)} have no order`);
}

/** Python's in. */
export function contains(container: Value, item: Value): boolean {
  if (typeof container === 'string') {
    if (typeof item === 'string') return container.includes(item);
    throw new TemplateError(`a text cannot contain a value of type ${typeName(item)}`);
  }
  if (container instanceof Map) return container.has(keyOf(item));
  if (container instanceof Iterator) throw new TemplateError('"in" of an iterator is not supported');
  return itemsOf(container).some((other) => areEqual(other, item));
}

/** A value of JavaScript, as JSON has them, as Python's: whole numbers are ints. */
export function fromJson(value: unknown): Value {
  if (value === null || typeof value === 'string' || typeof value === 'boolean') return value;
  if (typeof value === 'number') return Number.isInteger(value) && Math.abs(value) < 1e21 ? BigInt(value) : value;
  if (Array.isArray(value)) return value.map(fromJson);
  if (typeof value === 'object') return new Map(Object.entries(value).map(([key, item]) => [key, fromJson(item)]));
  throw new TemplateError(`a value of type ${typeof value} in a message is not supported`);
}
