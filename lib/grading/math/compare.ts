// Compares two parsed answers.

import { type Node, negate, num, numberNode, product, quotient, sum, variablesOf } from './ast';
import { infinitySign, sameNode } from './equal-values';
import { type Form, parseAnswer, plainWords } from './forms';
import { equalSolutions } from './intervals';
import { sameEquation, sameInequality } from './proportional';
import { table } from './table';
import { Unreadable } from './tokens';
import { isPercent, sameUnit, type Unit } from './units';
import { beginWork, MAX_ANSWER_LENGTH, spend, WorkExceeded } from './work';

type Relation = Form & { kind: 'relation' };
type List = Form & { kind: 'list' };
type Value = Form & { kind: 'value' };

/** Whether two lists have the same elements, in any order. */
function sameElements(a: readonly Form[], b: readonly Form[]): boolean {
  if (a.length !== b.length) return false;
  const free = [...b];
  return a.every((element) => {
    const at = free.findIndex((other) => compareForms(element, other));
    if (at >= 0) free.splice(at, 1);
    return at >= 0;
  });
}

const sameInOrder = (a: readonly Form[], b: readonly Form[]): boolean =>
  a.length === b.length && a.every((part, i) => compareForms(part, b[i]));

/** Each element of a set once. */
const distinct = (parts: readonly Form[]): Form[] =>
  parts.filter((part, i) => !parts.slice(0, i).some((before) => compareForms(part, before)));

/** Tokens with words as plain text has them: \text{June 20} is June 20. */
const unquoted = (key: string) =>
  key.replaceAll('"', '').replace(/(?<![\\a-zA-Z])[a-zA-Z]{3,}/g, (word) => word.toLowerCase());
const sameMeasure = (a: Unit, b: Unit) => sameUnit(a, b) && a.factor.n === b.factor.n && a.factor.d === b.factor.d;
const scaled = (node: Node, { factor }: Unit): Node => product(numberNode(factor), node);

function compareValues(a: Value, b: Value): boolean {
  if (a.node === null || b.node === null) {
    // What is not read is compared sign by sign, its unit too.
    if (a.key === '' || unquoted(a.key) !== unquoted(b.key)) return false;
    return a.unit === null || b.unit === null ? a.unit === b.unit : sameMeasure(a.unit, b.unit);
  }
  // A unit on one side alone makes no difference; 50% is 50, and 0.5.
  if (a.unit === null || b.unit === null) {
    if (sameNode(a.node, b.node)) return true;
    const [share, plain] = isPercent(a.unit) ? [a, b] : isPercent(b.unit) ? [b, a] : [null, null];
    return share !== null && sameNode(quotient(share.node!, num(100)), plain.node!);
  }
  if (!sameUnit(a.unit, b.unit)) return false;
  return sameNode(scaled(a.node, a.unit), scaled(b.node, b.unit));
}

/** The name without its index, so that x_1 and x_2 are names of one family. */
const family = (name: string) => name.replace(/\s*_.*$/, '');

/** The named value of "x = 5", "5 = x" or "x = 10/2 = 5"; null where no side is a name. */
function named({ operators, parts, names }: Relation): { name: string; value: Form } | null {
  const values = parts.map((part, i) => ({ part, name: names[i] }));
  if (operators.length === 1 && operators[0] === 'in')
    return names[0] === null ? null : { name: names[0], value: parts[1] };
  if (!operators.every((operator) => operator === '=' || operator === 'approx')) return null;
  const [first, ...rest] = names[0] === null && parts.length === 2 ? [...values].reverse() : values;
  if (first.name === null) return null;
  // Between two names nothing tells which is the value; words name what they stand before.
  if (rest.some(({ name }) => name !== null) && !/^"/.test(first.name)) return null;
  const [value, ...others] = rest.map(({ part }) => part).reverse();
  if (!others.every((other) => compareForms(other, value))) return null;
  return mentions(value, first.name) ? null : { name: first.name, value };
}

/** Whether a form has a variable of this name. */
function mentions(form: Form, name: string): boolean {
  if (form.kind === 'value') return form.node !== null && variablesOf(form.node).has(name);
  if (form.kind === 'text') return false;
  return (form.kind === 'matrix' ? form.rows.flat() : form.parts).some((part) => mentions(part, name));
}

const FLIPPED = table<string>({
  '<': '>',
  '>': '<',
  le: 'ge',
  ge: 'le',
  '=': '=',
  ne: 'ne',
  approx: 'approx',
  equiv: 'equiv',
  cong: 'cong',
  sim: 'sim',
});

function compareRelations(a: Relation, b: Relation): boolean {
  const inOrder = (operators: readonly string[], parts: readonly Form[]) =>
    operators.length === b.operators.length &&
    operators.every((operator, i) => operator === b.operators[i]) &&
    sameInOrder(parts, b.parts);
  if (inOrder(a.operators, a.parts)) return true;
  const flipped = a.operators.map((operator) => FLIPPED[operator] ?? '');
  if (inOrder(flipped.reverse(), [...a.parts].reverse())) return true;
  if (a.operators.length !== 1 || b.operators.length !== 1) return false;
  const nodes = [...a.parts, ...b.parts].map((part) =>
    part.kind === 'value' && part.unit === null ? part.node : null,
  );
  const [l1, r1, l2, r2] = nodes;
  if (!l1 || !r1 || !l2 || !r2 || [l1, r1, l2, r2].some((node) => infinitySign(node) !== null)) return false;
  const [first, second] = [sum(l1, negate(r1)), sum(l2, negate(r2))];
  if (a.operators[0] === '=' || a.operators[0] === 'ne')
    return a.operators[0] === b.operators[0] && sameEquation(first, second);
  const direction: Readonly<Record<string, readonly [strict: boolean, sign: 1 | -1]>> = {
    '<': [true, -1],
    '>': [true, 1],
    le: [false, -1],
    ge: [false, 1],
  };
  const [x, y] = [direction[a.operators[0]], direction[b.operators[0]]];
  if (!x || !y || x[0] !== y[0]) return false;
  return sameInequality(x[1] === 1 ? first : negate(first), y[1] === 1 ? second : negate(second));
}

/** The elements of a list to compare with another: without names where the other has none. */
function compareLists(a: List, b: List): boolean {
  // For x = 1 and y = 2, or for x > 1 and x < 3, "and" is not "or"; for the values of one thing it is.
  const kinds = [a, b].map(({ parts, connector }) => {
    const relations = parts.flatMap((part) => (part.kind === 'relation' ? [part] : []));
    const names = new Set(relations.map((part) => family(named(part)?.name ?? '')));
    return { isSystem: names.size > 1 || names.has(''), isOr: connector === 'or' };
  });
  if (kinds.some(({ isSystem }) => isSystem) && kinds[0].isOr !== kinds[1].isOr) return false;
  const isSet = a.braced || b.braced;
  const namesOf = (list: List) =>
    list.parts.flatMap((part) => (part.kind === 'relation' ? [named(part)?.name ?? ''] : []));
  const isPlain = (list: List) => namesOf(list).every((name) => name !== '' && name === family(namesOf(list)[0]));
  const values = ([of, other]: readonly [List, List]): Form[] | null => {
    const names = of.parts.map((part) => (part.kind === 'relation' ? named(part) : null));
    const hasNames = (list: List) => list.parts.some((part) => part.kind === 'relation');
    const families = new Set(names.flatMap((name) => (name ? [family(name.name)] : [])));
    if (!hasNames(of) || (hasNames(other) && !(isPlain(of) || isPlain(other)))) return of.parts;
    // x = 1, y = 2 is no list of two values of one thing; x = 1, x = 2 has the values of x_1 = 1, x_2 = 2.
    if (families.size > 1) return null;
    const [theirs] = namesOf(other);
    if (theirs !== undefined && !families.has(family(theirs))) return null;
    return of.parts.map((part, i) => names[i]?.value ?? part);
  };
  const [x, y] = [values([a, b]), values([b, a])];
  if (!x || !y) return false;
  return isSet ? sameElements(distinct(x), distinct(y)) : sameElements(x, y);
}

/** Whether the names in tuples follow the alphabet, as the places do: (y = 1, x = 2) is not (1, 2). */
const hasNamesInOrder = (...tuples: (Form & { kind: 'tuple' })[]): boolean =>
  tuples.every(({ parts }) => {
    const names = parts.flatMap((part) => (part.kind === 'relation' ? [named(part)?.name ?? ''] : []));
    return names.join() === [...names].sort().join();
  });

/** The words that a value's tokens are; null where there are signs. */
const wordsOf = (key: string): string | null => (/^[\p{L}\p{N} ]+$/u.test(key) ? plainWords(key) : null);

/** Whether two parsed answers are equal. */
export function compareForms(a: Form, b: Form): boolean {
  spend(20);
  if (a.kind === 'relation' && b.kind === 'relation' && compareRelations(a, b)) return true;
  const solutions = equalSolutions(a, b);
  if (solutions !== null) return solutions;
  if (a.kind === 'relation' && b.kind === 'relation') return compareNamed(a, b);
  if (a.kind === 'relation' || b.kind === 'relation') {
    const [relation, other] = a.kind === 'relation' ? [a, b] : [b as Relation, a];
    const value = named(relation);
    return value !== null && compareForms(value.value, other);
  }
  if (a.kind === 'text' || b.kind === 'text') {
    const [x, y] = [a, b].map((form) =>
      form.kind === 'text' ? form.text : form.kind === 'value' && form.unit === null ? wordsOf(form.key) : null,
    );
    return x !== null && x !== '' && x === y;
  }
  if (a.kind === 'value' && b.kind === 'value') return compareValues(a, b);
  if (a.kind === 'tuple' && b.kind === 'tuple')
    return a.open === b.open && a.close === b.close && hasNamesInOrder(a, b) && sameInOrder(a.parts, b.parts);
  if (a.kind === 'ratio' && b.kind === 'ratio') return sameInOrder(a.parts, b.parts);
  if (a.kind === 'matrix' && b.kind === 'matrix')
    return (
      a.isDeterminant === b.isDeterminant &&
      a.rows.length === b.rows.length &&
      a.rows.every((row, i) => sameInOrder(row, b.rows[i]))
    );
  if (a.kind === 'union' && b.kind === 'union') return sameElements(a.parts, b.parts);
  if (a.kind === 'list' && b.kind === 'list') return compareLists(a, b);
  // A set of one element equals the element.
  if (a.kind === 'list' && a.braced && a.parts.length === 1) return compareForms(a.parts[0], b);
  if (b.kind === 'list' && b.braced && b.parts.length === 1) return compareForms(a, b.parts[0]);
  return false;
}

/** x = 1 and x = 1.0: the same name, and the same value. */
function compareNamed(a: Relation, b: Relation): boolean {
  const [x, y] = [named(a), named(b)];
  return x !== null && y !== null && x.name === y.name && compareForms(x.value, y.value);
}

/** Whether two answers are equal. */
export function compareAnswers(a: string, b: string): boolean {
  if (a.trim() === b.trim()) return a.trim() !== '';
  if (a.length > MAX_ANSWER_LENGTH || b.length > MAX_ANSWER_LENGTH) return false;
  beginWork();
  try {
    return compareForms(parseAnswer(a), parseAnswer(b));
  } catch (error) {
    // RangeError: nested deeper than the stack.
    if (error instanceof WorkExceeded || error instanceof Unreadable || error instanceof RangeError) return false;
    throw error;
  }
}
