// Jinja's tests: what stands behind "is".
import { attribute } from './access';
import { arithmetic } from './numbers';
import {
  areEqual,
  Callable,
  compare,
  contains,
  Iterator,
  isNumber,
  isTrue,
  type Keywords,
  LoopVariable,
  Markup,
  Range,
  TemplateError,
  Tuple,
  toText,
  typeName,
  Undefined,
  type Value,
} from './values';

type Test = (value: Value, other: Value) => boolean;

const order = (accepts: (sign: number) => boolean): [number, Test] => [
  1,
  (value, other) => accepts(compare(value, other)),
];
const equal: [number, Test] = [1, areEqual];
const unequal: [number, Test] = [1, (value, other) => !areEqual(value, other)];
const [greater, least, less, most] = [
  order((sign) => sign > 0),
  order((sign) => sign >= 0),
  order((sign) => sign < 0),
  order((sign) => sign <= 0),
];
const remainder = (value: Value, by: bigint) => arithmetic('%', value, by);

/** name: [number of arguments, test]. */
const TESTS: Record<string, [number, Test]> = {
  boolean: [0, (value) => typeof value === 'boolean'],
  callable: [0, (value) => value instanceof Callable || value instanceof LoopVariable || value instanceof Undefined],
  defined: [0, (value) => !(value instanceof Undefined)],
  divisibleby: [1, (value, by) => areEqual(arithmetic('%', value, by), 0n)],
  eq: equal,
  equalto: equal,
  even: [0, (value) => areEqual(remainder(value, 2n), 0n)],
  false: [0, (value) => value === false],
  float: [0, (value) => typeof value === 'number'],
  ge: least,
  greaterthan: greater,
  gt: greater,
  in: [1, (value, container) => contains(container, value)],
  integer: [0, (value) => typeof value === 'bigint'],
  iterable: [0, (value) => isTextual(value) || value instanceof Iterator || isSized(value)],
  le: most,
  lessthan: less,
  lower: [0, (value) => isCased(value, true)],
  lt: less,
  mapping: [0, (value) => value instanceof Map],
  ne: unequal,
  none: [0, (value) => value === null],
  number: [0, isNumber],
  odd: [0, (value) => areEqual(remainder(value, 2n), 1n)],
  sequence: [0, (value) => isTextual(value) || (isSized(value) && !isView(value))],
  string: [0, (value) => typeof value === 'string' || value instanceof Markup],
  true: [0, (value) => value === true],
  undefined: [0, (value) => value instanceof Undefined],
  upper: [0, (value) => isCased(value, false)],
};

const isTextual = (value: Value) => typeof value === 'string' || value instanceof Markup || value instanceof Undefined;
const isView = (value: Value) => typeName(value) === 'view';
const isSized = (value: Value) =>
  Array.isArray(value) || value instanceof Map || value instanceof Tuple || value instanceof Range || isView(value);
function isCased(value: Value, isLower: boolean): boolean {
  const method = attribute(toText(value), isLower ? 'islower' : 'isupper') as Callable;
  return isTrue(method.call([], new Map()));
}

/** `value is name(arguments)`. @throws TemplateError for a test that is not here */
export function applyTest(name: string, value: Value, args: readonly Value[], keywords: Keywords): boolean {
  if (name === 'sameas' && (args[0] === null || typeof args[0] === 'boolean') && args.length === 1)
    return value === args[0];
  if (!Object.hasOwn(TESTS, name)) throw new TemplateError(`the test "${name}" is not supported`);
  const [expected, test] = TESTS[name];
  if (args.length !== expected || keywords.size > 0)
    throw new TemplateError(`the test "${name}" takes ${expected} arguments, got ${args.length + keywords.size}`);
  return test(value, args[0]);
}
