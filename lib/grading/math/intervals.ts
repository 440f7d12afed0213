// The sets of real numbers that answers describe: intervals, their unions, and inequalities of one variable.
import { type Node, negate, num, product, quotient, sum, variablesOf } from './ast';
import { infinitySign, sameNode } from './equal-values';
import type { Form } from './forms';

interface Interval {
  low: Node;
  high: Node;
  lowClosed: boolean;
  highClosed: boolean;
}

/** A union of intervals, with the variable that an inequality is of. */
interface Solutions {
  name: string | null;
  intervals: Interval[];
}

const INFINITY: Node = { kind: 'constant', name: 'infinity' };
const MINUS_INFINITY: Node = { kind: 'product', args: [{ kind: 'number', value: { n: -1n, d: 1n } }, INFINITY] };

/** An endpoint: a number or infinity, without a unit. */
function endpoint(form: Form): Node | null {
  if (form.kind !== 'value' || form.node === null || form.unit !== null) return null;
  return infinitySign(form.node) !== null || variablesOf(form.node).size === 0 ? form.node : null;
}

function ofTuple(form: Form & { kind: 'tuple' }): Interval | null {
  if (form.parts.length !== 2 || !'(['.includes(form.open) || !')]'.includes(form.close)) return null;
  const [low, high] = form.parts.map(endpoint);
  return low && high && { low, high, lowClosed: form.open === '[', highClosed: form.close === ']' };
}

/** An expression with a number in the place of a variable. */
function substitute(node: Node, name: string, value: Node): Node {
  if (node.kind === 'variable') return node.name === name ? value : node;
  if (node.kind === 'sum' || node.kind === 'product' || node.kind === 'call')
    return { ...node, args: node.args.map((arg) => substitute(arg, name, value)) };
  if (node.kind === 'power')
    return { ...node, base: substitute(node.base, name, value), exponent: substitute(node.exponent, name, value) };
  if (node.kind === 'root') return { ...node, base: substitute(node.base, name, value) };
  return node;
}

/** 2x + 1 > 7: an inequality that is linear in its one variable. */
function ofLinear(operator: string, [left, right]: readonly Form[]): Solutions | null {
  if (left.kind !== 'value' || right.kind !== 'value' || !left.node || !right.node || left.unit || right.unit)
    return null;
  if (!['<', '>', 'le', 'ge'].includes(operator)) return null;
  const f = sum(left.node, negate(right.node));
  const [name, ...others] = variablesOf(f);
  if (name === undefined || others.length > 0 || infinitySign(left.node) || infinitySign(right.node)) return null;
  const constant = substitute(f, name, num(0));
  const slope = sum(substitute(f, name, num(1)), negate(constant));
  if (!sameNode(f, sum(product(slope, { kind: 'variable', name }), constant)) || sameNode(slope, num(0))) return null;
  const rising = sameNode(slope, { kind: 'call', name: 'abs', args: [slope] });
  const end = negate(quotient(constant, slope));
  const closed = operator === 'le' || operator === 'ge';
  const isAbove = (operator === '>' || operator === 'ge') === rising;
  return {
    name,
    intervals: [
      isAbove
        ? { low: end, high: INFINITY, lowClosed: closed, highClosed: false }
        : { low: MINUS_INFINITY, high: end, lowClosed: false, highClosed: closed },
    ],
  };
}

function ofRelation({ operators, parts, names }: Form & { kind: 'relation' }): Solutions | null {
  const at = names.findIndex((name) => name !== null);
  const name = names[at] ?? null;
  if (operators.length === 1 && names.every((part) => part === null)) return ofLinear(operators[0], parts);
  if (name === null || names.filter((other) => other !== null).length !== 1) return null;
  if (operators.length === 1 && operators[0] === 'in') {
    const inner = at === 0 ? solutionsOf(parts[1]) : null;
    return inner && inner.name === null ? { name, intervals: inner.intervals } : null;
  }
  const ends = parts.map((part, i) => (i === at ? null : endpoint(part)));
  if (ends.some((end, i) => i !== at && end === null)) return null;
  if (operators.length === 1) {
    const end = ends[1 - at]!;
    const [operator] = operators;
    if (operator === 'ne')
      return {
        name,
        intervals: [
          { low: MINUS_INFINITY, high: end, lowClosed: false, highClosed: false },
          { low: end, high: INFINITY, lowClosed: false, highClosed: false },
        ],
      };
    if (!['<', '>', 'le', 'ge'].includes(operator)) return null;
    const isBelow = (operator === '<' || operator === 'le') === (at === 0);
    const closed = operator === 'le' || operator === 'ge';
    return {
      name,
      intervals: [
        isBelow
          ? { low: MINUS_INFINITY, high: end, lowClosed: false, highClosed: closed }
          : { low: end, high: INFINITY, lowClosed: closed, highClosed: false },
      ],
    };
  }
  if (operators.length !== 2 || at !== 1) return null;
  const up = operators.every((operator) => operator === '<' || operator === 'le');
  if (!up && !operators.every((operator) => operator === '>' || operator === 'ge')) return null;
  const closed = operators.map((operator) => operator === 'le' || operator === 'ge');
  const [first, last] = [ends[0]!, ends[2]!];
  return {
    name,
    intervals: [
      up
        ? { low: first, high: last, lowClosed: closed[0], highClosed: closed[1] }
        : { low: last, high: first, lowClosed: closed[1], highClosed: closed[0] },
    ],
  };
}

/** x > 1 and x < 3: one interval; x < 1 or x > 3: two. */
function ofList(form: Form & { kind: 'list' }): Solutions | null {
  if (form.braced || form.connector === ',') return null;
  const parts = form.parts.map((part) => (part.kind === 'relation' ? ofRelation(part) : null));
  if (parts.some((part) => part === null || part.name !== parts[0]!.name)) return null;
  const all = parts.flatMap((part) => part!.intervals);
  const { name } = parts[0]!;
  if (form.connector === 'or') return { name, intervals: all };
  if (all.length !== 2 || parts.length !== 2) return null;
  const lower = all.find(({ high }) => infinitySign(high) === 1);
  const upper = all.find(({ low }) => infinitySign(low) === -1);
  if (!lower || !upper || lower === upper) return null;
  return {
    name,
    intervals: [{ low: lower.low, lowClosed: lower.lowClosed, high: upper.high, highClosed: upper.highClosed }],
  };
}

function solutionsOf(form: Form): Solutions | null {
  if (form.kind === 'tuple') {
    const interval = ofTuple(form);
    return interval && { name: null, intervals: [interval] };
  }
  if (form.kind === 'union') {
    const parts = form.parts.map((part) => (part.kind === 'tuple' ? ofTuple(part) : null));
    return parts.includes(null) ? null : { name: null, intervals: parts as Interval[] };
  }
  if (form.kind === 'relation') return ofRelation(form);
  if (form.kind === 'list') return ofList(form);
  const isLine =
    (form.kind === 'value' && /^\\mathbb (?:\{ )?R(?: \})?$/.test(form.key)) ||
    (form.kind === 'text' && /^all real(?: number)?s?$/.test(form.text));
  return isLine
    ? { name: null, intervals: [{ low: MINUS_INFINITY, high: INFINITY, lowClosed: false, highClosed: false }] }
    : null;
}

function sameInterval(a: Interval, b: Interval): boolean {
  const sameEnd = (x: Node, y: Node, closedX: boolean, closedY: boolean) =>
    sameNode(x, y) && (closedX === closedY || infinitySign(x) !== null);
  return sameEnd(a.low, b.low, a.lowClosed, b.lowClosed) && sameEnd(a.high, b.high, a.highClosed, b.highClosed);
}

/**
 * Whether two answers describe the same set of numbers; null where one of them describes none, or neither is an
 * inequality, so that their forms are compared.
 */
export function equalSolutions(a: Form, b: Form): boolean | null {
  if (a.kind === b.kind && a.kind !== 'relation' && a.kind !== 'list') return null;
  const [x, y] = [solutionsOf(a), solutionsOf(b)];
  if (!x || !y) return null;
  if (x.name !== null && y.name !== null && x.name !== y.name) return false;
  if (x.intervals.length !== y.intervals.length) return false;
  const free = [...y.intervals];
  return x.intervals.every((interval) => {
    const at = free.findIndex((other) => sameInterval(interval, other));
    if (at >= 0) free.splice(at, 1);
    return at >= 0;
  });
}
