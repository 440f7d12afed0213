// What roots and logarithms demand of their variables: polynomials that must not be negative.
import type { Algebra } from './algebra';
import {
  contentOf,
  kernelsOf,
  monomialKey,
  onlyTerm,
  type Poly,
  polyKey,
  rootPoly,
  scalePoly,
  single,
} from './polynomial';
import { addRational, invRational, mulRational, ONE, rational, rationalRoot } from './rational';

/** Whether a polynomial is not negative for any real values, as far as its signs and exponents tell. */
export function isNonNegative(algebra: Algebra, p: Poly): boolean {
  for (const { c, m } of p.values()) {
    if (c.n < 0n) return false;
    for (const [id, exponent] of m) {
      const { positive, kind } = algebra.kernels[id];
      if (kind === 'i') return false;
      if (!positive && exponent.n % 2n !== 0n && exponent.d % 2n !== 0n) return false;
    }
  }
  return true;
}
/** Whether p is a square, or a quadratic polynomial in one variable without two real zeros, with a positive sign. */
function isSquareOrDefinite(algebra: Algebra, p: Poly): boolean {
  const root =
    p.size > 1 ? rootPoly(scalePoly(p, invRational(contentOf(p))), 2n, algebra, (c) => rationalRoot(c, 2n)) : null;
  if (root) return true;
  const [id, ...others] = kernelsOf(p);
  if (id === undefined || others.length > 0 || p.size > 3) return false;
  const coefficients = [0n, 1n, 2n].map(
    (k) => p.get(monomialKey(k === 0n ? [] : [[id, rational(k)]]))?.c ?? rational(0n),
  );
  const known = coefficients.filter(({ n }) => n !== 0n).length;
  const [c, b, a] = coefficients;
  if (known !== p.size || a.n <= 0n) return false;
  const discriminant = addRational(mulRational(b, b), mulRational(rational(-4n), mulRational(a, c)));
  return discriminant.n <= 0n;
}
/** Notes that a polynomial must not be negative. */
export function demand(algebra: Algebra, p: Poly): void {
  if (algebra.isConstantPoly(p) || isNonNegative(algebra, p) || isSquareOrDefinite(algebra, p)) return;
  let rest = scalePoly(p, invRational(contentOf(p)));
  const term = onlyTerm(rest);
  if (term) {
    const odd = term.m.filter(
      ([id, exponent]) => !algebra.kernels[id].positive && exponent.n % 2n !== 0n && exponent.d % 2n !== 0n,
    );
    rest = single(
      rational(term.c.n > 0n ? 1n : -1n),
      odd.map(([id]) => [id, ONE] as const),
    );
  }
  algebra.conditions.set(polyKey(rest), rest);
}
