// What can be read of a value with "." and "[]": methods, fields and items.
import { integerOf, TAKE_NAMES, TEXT_METHODS } from './text-methods';
import {
  areEqual,
  asInteger,
  Callable,
  type Dict,
  isNumber,
  itemsOf,
  keyOf,
  LoopVariable,
  Markup,
  Namespace,
  Range,
  TemplateError,
  Tuple,
  typeName,
  Undefined,
  type Value,
  View,
} from './values';

/** Names that Python's types have and this file does not; a name of neither is looked up as an item. */
const OTHER_NAMES: Record<string, RegExp> = {
  str: /^(casefold|encode|expandtabs|format_map|is(ascii|identifier|numeric|printable|title)|maketrans|swapcase|translate)$/,
  int: /^(as_integer_ratio|bit_count|bit_length|conjugate|denominator|from_bytes|imag|is_integer|numerator|real|to_bytes)$/,
  float: /^(as_integer_ratio|conjugate|fromhex|hex|imag|is_integer|real)$/,
  dict: /^(fromkeys)$/,
  range: /^(count|index|start|step|stop)$/,
  view: /^(isdisjoint|mapping)$/,
  iterator: /^(close|gi_\w+|send|throw)$/,
  callable: /./,
  markup: /./,
};
/** What would change a list or dictionary, which templates may not: there, but undefined. */
const CHANGING: Record<string, RegExp> = {
  list: /^(append|clear|extend|insert|pop|remove|reverse|sort)$/,
  dict: /^(clear|pop|popitem|setdefault|update)$/,
};

/** name: [fewest arguments, most, method]. */
const DICT_METHODS: Record<string, [number, number, (dict: Dict, args: readonly Value[]) => Value]> = {
  items: [
    0,
    0,
    (dict) =>
      new View(
        'dict_items',
        Array.from(dict, (entry) => new Tuple(entry)),
      ),
  ],
  keys: [0, 0, (dict) => new View('dict_keys', Array.from(dict.keys()))],
  values: [0, 0, (dict) => new View('dict_values', Array.from(dict.values()))],
  copy: [0, 0, (dict) => new Map(dict)],
  get: [1, 2, (dict, [key, fallback]) => dict.get(keyOf(key)) ?? (dict.has(key) ? null : (fallback ?? null))],
};
const LIST_METHODS: Record<string, (list: readonly Value[], wanted: Value) => Value> = {
  count: (list, wanted) => BigInt(list.filter((other) => areEqual(other, wanted)).length),
  index: (list, wanted) => {
    const at = list.findIndex((other) => areEqual(other, wanted));
    if (at < 0) throw new TemplateError('index: the item was not found');
    return BigInt(at);
  },
};

/** A method or field of a value, undefined where its type has none of that name. */
function fieldOf(value: Value, name: string): Value | undefined {
  if (name.startsWith('__')) throw new TemplateError(`the attribute "${name}" is not supported`);
  if (value instanceof LoopVariable) return value.field(name);
  if (value instanceof Namespace) return value.fields.get(name);
  if (value instanceof Callable && value.fields.has(name)) return value.fields.get(name);
  const kind = typeof value === 'boolean' ? 'int' : typeName(value);
  if (CHANGING[kind]?.test(name)) return new Undefined(name);
  if (OTHER_NAMES[kind]?.test(name)) throw new TemplateError(`"${name}" of a value of type ${kind} is not supported`);
  const method = (fewest: number, most: number, call: Callable['call'], takesNames = false) =>
    new Callable(name, (args, keywords) => {
      const count = args.length + (takesNames ? 0 : keywords.size);
      if (count < fewest || count > most)
        throw new TemplateError(`${name}: expected ${fewest} to ${most} arguments, got ${count}`);
      return call(args, keywords);
    });
  if (typeof value === 'string' && Object.hasOwn(TEXT_METHODS, name)) {
    const [fewest, most, call] = TEXT_METHODS[name];
    return method(fewest, most, (args, keywords) => call(value, args, keywords), TAKE_NAMES.includes(name));
  }
  if (value instanceof Map && Object.hasOwn(DICT_METHODS, name)) {
    const [fewest, most, call] = DICT_METHODS[name];
    return method(fewest, most, (args) => call(value, args));
  }
  if (Array.isArray(value) && name === 'copy') return method(0, 0, () => [...value]);
  if ((Array.isArray(value) || value instanceof Tuple) && Object.hasOwn(LIST_METHODS, name))
    return method(1, 1, ([wanted]) => LIST_METHODS[name](itemsOf(value), wanted));
  return undefined;
}

/** An item, undefined where there is none. */
function itemAt(object: Value, index: Value): Value | undefined {
  if (object instanceof Map) {
    const isPlain = index === null || typeof index === 'string' || !isNumber(index);
    return object.get(isPlain ? index : keyOf(index));
  }
  if (typeof index !== 'bigint' && typeof index !== 'boolean') return undefined;
  if (!(typeof object === 'string' || Array.isArray(object) || object instanceof Tuple || object instanceof Range))
    return undefined;
  const items = itemsOf(object);
  const at = Number(asInteger(index));
  return items[at < 0 ? at + items.length : at];
}

export function refuseUndefined(object: Value, what: string): void {
  if (object instanceof Undefined) throw new TemplateError(`"${object.name}" is undefined and has no ${what}`);
  if (object instanceof Markup) throw new TemplateError(`${what} of text marked as safe is not supported`);
}

/** `object.name`: a method or field, else an item. */
export function attribute(object: Value, name: string): Value {
  refuseUndefined(object, `"${name}"`);
  const field = fieldOf(object, name);
  if (field !== undefined) return field;
  return itemAt(object, name) ?? (object instanceof Map && object.has(name) ? null : new Undefined(name));
}
/** `object[index]`: an item, else a method or field. */
export function item(object: Value, index: Value): Value {
  refuseUndefined(object, 'items');
  const found = itemAt(object, index);
  if (found !== undefined) return found;
  return (
    (typeof index === 'string' ? fieldOf(object, index) : undefined) ??
    new Undefined(typeof index === 'string' ? index : 'item')
  );
}

/** `object[start:stop:step]`. */
export function slice(object: Value, bounds: readonly (Value | null)[]): Value {
  refuseUndefined(object, 'items');
  if (!(typeof object === 'string' || Array.isArray(object) || object instanceof Tuple))
    throw new TemplateError(`a slice of a value of type ${typeName(object)} is not supported`);
  const items = itemsOf(object);
  const read = (value: Value | undefined) => (value === undefined || value === null ? null : integerOf('slice', value));
  const [start, stop, step = 1] = [read(bounds[0]), read(bounds[1]), read(bounds[2]) ?? 1];
  // Python raises for a step of 0; jinja2 passes it on.
  if (step === 0) throw new TemplateError('slice: the step is 0');
  const low = step > 0 ? 0 : -1;
  const high = step > 0 ? items.length : items.length - 1;
  const clamp = (value: number | null, fallback: number) =>
    value === null ? fallback : Math.min(Math.max(value < 0 ? value + items.length : value, low), high);
  const [from, to] = step > 0 ? [clamp(start, 0), clamp(stop, items.length)] : [clamp(start, high), clamp(stop, -1)];
  const chosen: Value[] = [];
  for (let i = from; step > 0 ? i < to : i > to; i += step) chosen.push(items[i]);
  if (typeof object === 'string') return chosen.join('');
  return object instanceof Tuple ? new Tuple(chosen) : chosen;
}
