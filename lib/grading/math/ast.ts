// The expressions that answers are parsed into.
import { type Rational, rational } from './rational';

/** An expression. Numbers are exact: a decimal is the fraction that it is written as. */
export type Node =
  | { kind: 'number'; value: Rational }
  | { kind: 'constant'; name: 'pi' | 'e' | 'i' | 'infinity' }
  | { kind: 'variable'; name: string }
  | { kind: 'sum' | 'product'; args: Node[] }
  | { kind: 'power'; base: Node; exponent: Node }
  /** The root of an odd index is real for a negative radicand. */
  | { kind: 'root'; base: Node; index: Node }
  | { kind: 'call'; name: string; args: Node[] };

/** A whole number or fraction. */
export const num = (n: bigint | number, d: bigint | number = 1): Node => ({
  kind: 'number',
  value: rational(BigInt(n), BigInt(d)),
});
/** A rational number. */
export const numberNode = (value: Rational): Node => ({ kind: 'number', value });
/** The sum. */
export const sum = (...args: Node[]): Node => (args.length === 1 ? args[0] : { kind: 'sum', args });
/** The product. */
export const product = (...args: Node[]): Node => (args.length === 1 ? args[0] : { kind: 'product', args });
/** -a; numbers stay numbers. */
export const negate = (a: Node): Node =>
  a.kind === 'number' ? numberNode({ n: -a.value.n, d: a.value.d }) : product(num(-1), a);
/** a^b. */
export const power = (base: Node, exponent: Node): Node => ({ kind: 'power', base, exponent });
/** a / b; fractions of numbers stay numbers. */
export const quotient = (a: Node, b: Node): Node =>
  a.kind === 'number' && b.kind === 'number' && b.value.n !== 0n
    ? numberNode(rational(a.value.n * b.value.d, a.value.d * b.value.n))
    : product(a, power(b, num(-1)));
/** A function's value. */
export const call = (name: string, ...args: Node[]): Node => ({ kind: 'call', name, args });

/** The variables in an expression, each once. */
export function variablesOf(node: Node, found: Set<string> = new Set()): Set<string> {
  if (node.kind === 'variable') found.add(node.name);
  else if (node.kind === 'sum' || node.kind === 'product' || node.kind === 'call')
    for (const arg of node.args) variablesOf(arg, found);
  else if (node.kind === 'power') variablesOf(node.exponent, variablesOf(node.base, found));
  else if (node.kind === 'root') variablesOf(node.index, variablesOf(node.base, found));
  return found;
}

/** Whether a node fits a test, or one inside of it. */
export function contains(node: Node, test: (node: Node) => boolean): boolean {
  if (test(node)) return true;
  if (node.kind === 'sum' || node.kind === 'product' || node.kind === 'call')
    return node.args.some((arg) => contains(arg, test));
  if (node.kind === 'power') return contains(node.base, test) || contains(node.exponent, test);
  return node.kind === 'root' && (contains(node.base, test) || contains(node.index, test));
}
