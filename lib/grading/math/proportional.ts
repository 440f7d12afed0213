// Equations and inequalities that are multiples of each other: 4x + 12y - 10 = 0 and 2x + 6y - 5 = 0.
import type { Algebra, Fraction } from './algebra';
import { type Node, negate, num, product, quotient, sum, variablesOf } from './ast';
import { equalValues, withAlgebra } from './equal-values';
import { normalForm } from './normal-form';
import { monomialKey, mulPoly, type Poly, type Term } from './polynomial';

/** The terms of a polynomial by their variable part: what remains of each is a constant. */
function coefficients(algebra: Algebra, p: Poly): Map<string, Term[]> {
  const result = new Map<string, Term[]>();
  for (const term of p.values()) {
    const key = monomialKey(term.m.filter(([id]) => !algebra.kernels[id].constant));
    result.set(key, [...(result.get(key) ?? []), term]);
  }
  return result;
}

/** The constant c with a = c·b, as an expression; null where there is none. */
function ratio(algebra: Algebra, a: Fraction, b: Fraction): Node | null {
  const [x, y] = [mulPoly(a.n, b.d, algebra), mulPoly(b.n, a.d, algebra)];
  if (x.size === 0 || y.size === 0) return null;
  const [first, second] = [coefficients(algebra, x), coefficients(algebra, y)];
  const key = [...first.keys()].sort().find((name) => name !== '' && second.has(name));
  if (key === undefined) return null;
  const node = (terms: Term[]): Node =>
    algebra.polyNode(
      new Map(
        terms.map(({ c, m }) => {
          const constant = m.filter(([id]) => algebra.kernels[id].constant);
          return [monomialKey(constant), { c, m: constant }];
        }),
      ),
    );
  return quotient(node(first.get(key)!), node(second.get(key)!));
}

/** The c with a = c·b for all values of the variables; null where none is found. */
function multiple(a: Node, b: Node): Node | null {
  if (variablesOf(a).size === 0 || variablesOf(b).size === 0) return null;
  let c: Node | null = null;
  withAlgebra((algebra) => {
    c = ratio(algebra, normalForm(algebra, a), normalForm(algebra, b));
    return true;
  });
  return c && equalValues(a, product(c, b)) && !equalValues(a, num(0)) ? c : null;
}

/** Whether a = 0 and b = 0 are multiples of each other. */
export const sameEquation = (a: Node, b: Node): boolean => multiple(a, b) !== null;

/** Whether a > 0 and b > 0 are positive multiples of each other. */
export function sameInequality(a: Node, b: Node): boolean {
  const c = multiple(a, b);
  return (
    c !== null &&
    equalValues({ kind: 'call', name: 'abs', args: [c] }, c) &&
    !equalValues(sum(c, negate(num(0))), num(0))
  );
}
