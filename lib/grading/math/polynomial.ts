// Polynomials with rational coefficients and rational exponents in "kernels": variables, primes under a root, π, powers
// of e, sines and other functions. A ring says how a product of kernels is reduced (√2·√2 = 2, i·i = -1).
import { absInt, addRational, gcd, mulRational, ONE, type Rational, rational, sameRational, ZERO } from './rational';
import { bitsOf, spend } from './work';

/** Kernels by number with their exponents, in the order of the numbers. */
export type Monomial = readonly (readonly [kernel: number, exponent: Rational])[];
/** One summand. */
export interface Term {
  c: Rational;
  m: Monomial;
}
/** A sum of terms with different monomials, by the monomials' keys. */
export type Poly = ReadonlyMap<string, Term>;

/** Reduces what a product of two terms gives. */
export interface Ring {
  reduce(c: Rational, m: Monomial): Poly;
  /** Coefficients are to be reduced too. */
  readonly hasLongPowers: boolean;
}

/** Text by which equal monomials are found. */
export const monomialKey = (m: Monomial): string =>
  m.map(([kernel, { n, d }]) => `${kernel}^${n}${d === 1n ? '' : `/${d}`}`).join(' ');

/** Text by which equal polynomials are found. */
export const polyKey = (p: Poly): string =>
  [...p]
    .map(([key, { c }]) => `${c.n}/${c.d}:${key}`)
    .sort()
    .join('|');

/** A polynomial of one term. */
export const single = (c: Rational, m: Monomial = []): Poly =>
  c.n === 0n ? new Map() : new Map([[monomialKey(m), { c, m }]]);
/** 0. */
export const ZERO_POLY: Poly = new Map();
/** 1. */
export const ONE_POLY: Poly = single(ONE);

/** The number that a polynomial is; null where it has kernels. */
export function constantOf(p: Poly): Rational | null {
  if (p.size === 0) return ZERO;
  const only = p.size === 1 ? p.get('') : undefined;
  return only ? only.c : null;
}

/** The only term of a polynomial; null where there are several, or none. */
export const onlyTerm = (p: Poly): Term | null => (p.size === 1 ? [...p.values()][0] : null);

/** a + b. */
export function addPoly(a: Poly, b: Poly): Poly {
  if (a.size === 0) return b;
  if (b.size === 0) return a;
  const result = new Map(a);
  spend(b.size);
  for (const [key, term] of b) {
    const old = result.get(key);
    const c = old ? addRational(old.c, term.c) : term.c;
    if (c.n === 0n) result.delete(key);
    else result.set(key, { c, m: term.m });
  }
  return result;
}

/** factor · a. */
export const scalePoly = (a: Poly, factor: Rational): Poly =>
  factor.n === 0n
    ? ZERO_POLY
    : sameRational(factor, ONE)
      ? a
      : new Map([...a].map(([key, { c, m }]) => [key, { c: mulRational(c, factor), m }]));
/** -a. */
export const negPoly = (a: Poly): Poly => scalePoly(a, { n: -1n, d: 1n });

/** The product of two monomials, unreduced. */
export function mergeMonomials(a: Monomial, b: Monomial): Monomial {
  if (a.length === 0) return b;
  if (b.length === 0) return a;
  const result: [number, Rational][] = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (j === b.length || (i < a.length && a[i][0] < b[j][0])) result.push([...a[i++]]);
    else if (i === a.length || b[j][0] < a[i][0]) result.push([...b[j++]]);
    else {
      const exponent = addRational(a[i][1], b[j][1]);
      if (exponent.n !== 0n) result.push([a[i][0], exponent]);
      i++;
      j++;
    }
  }
  return result;
}

/** m^r, unreduced. */
export const powMonomial = (m: Monomial, r: Rational): Monomial =>
  m.map(([kernel, exponent]) => [kernel, mulRational(exponent, r)] as const);

/** a · b. */
export function mulPoly(a: Poly, b: Poly, ring: Ring): Poly {
  const [x, y] = [constantOf(a), constantOf(b)];
  if (x && !ring.hasLongPowers) return scalePoly(b, x);
  if (y && !ring.hasLongPowers) return scalePoly(a, y);
  const result = new Map<string, Term>();
  for (const s of a.values())
    for (const t of b.values()) {
      spend(20 + (bitsOf(s.c.n) + bitsOf(t.c.n)) / 500);
      for (const [key, term] of ring.reduce(mulRational(s.c, t.c), mergeMonomials(s.m, t.m))) {
        const old = result.get(key);
        const c = old ? addRational(old.c, term.c) : term.c;
        if (c.n === 0n) result.delete(key);
        else result.set(key, { c, m: term.m });
      }
    }
  return result;
}

/** p^k for k ≥ 0. */
export function powPoly(p: Poly, k: bigint, ring: Ring): Poly {
  let result = ONE_POLY;
  for (const bit of k.toString(2)) {
    result = mulPoly(result, result, ring);
    if (bit === '1') result = mulPoly(result, p, ring);
  }
  return result;
}

const compareRational = (a: Rational, b: Rational): number => {
  const difference = a.n * b.d - b.n * a.d;
  return difference > 0n ? 1 : difference < 0n ? -1 : 0;
};
/** The order of the terms: by the exponent of the first kernel in which they differ. */
function compareMonomials(a: Monomial, b: Monomial): number {
  for (let i = 0; i < a.length || i < b.length; i++) {
    if (i === a.length) return -Number(b[i][1].n > 0n ? 1 : -1);
    if (i === b.length) return a[i][1].n > 0n ? 1 : -1;
    if (a[i][0] !== b[i][0]) {
      const [first, sign] = a[i][0] < b[i][0] ? [a[i], 1] : [b[i], -1];
      return first[1].n > 0n ? sign : -sign;
    }
    const order = compareRational(a[i][1], b[i][1]);
    if (order !== 0) return order;
  }
  return 0;
}

/** The term that comes first in the order of monomials; of a polynomial that is not 0. */
export function leadingTerm(p: Poly): Term {
  let best: Term | null = null;
  spend(p.size);
  for (const term of p.values()) if (!best || compareMonomials(term.m, best.m) > 0) best = term;
  return best!;
}

/** a / b where b divides a; null where it does not. */
export function dividePoly(a: Poly, b: Poly, ring: Ring): Poly | null {
  const lead = leadingTerm(b);
  const inverse = powMonomial(lead.m, rational(-1n));
  let rest = a;
  let result = ZERO_POLY;
  for (let step = 0; rest.size > 0; step++) {
    if (step > 60) return null;
    const top = leadingTerm(rest);
    const m = mergeMonomials(top.m, inverse);
    if (m.some(([, exponent]) => exponent.n < 0n)) return null;
    const c = mulRational(top.c, rational(lead.c.d, lead.c.n));
    const next = ring.reduce(c, m);
    result = addPoly(result, next);
    rest = addPoly(rest, negPoly(mulPoly(next, b, ring)));
  }
  return result;
}

/** s with s^k = p; null where there is none with rational coefficients that this finds. */
export function rootPoly(p: Poly, k: bigint, ring: Ring, rootOf: (c: Rational) => Rational | null): Poly | null {
  if (p.size > 60) return null;
  const lead = leadingTerm(p);
  const c = rootOf(lead.c);
  if (!c) return null;
  const first = single(c, powMonomial(lead.m, rational(1n, k)));
  if (onlyTerm(first)!.m.some(([, exponent]) => exponent.d !== 1n)) return null;
  // p = (first + …)^k: each further term is the leading one of the rest over k first^(k-1).
  const head = onlyTerm(first)!;
  const below = {
    c: mulRational(rational(k), powerOf(head.c, k - 1n)),
    m: powMonomial(head.m, rational(k - 1n)),
  };
  const inverse = powMonomial(below.m, rational(-1n));
  let root: Poly = first;
  for (let step = 0; step < 30; step++) {
    const rest = addPoly(p, negPoly(powPoly(root, k, ring)));
    if (rest.size === 0) return root;
    const top = leadingTerm(rest);
    const m = mergeMonomials(top.m, inverse);
    if (m.some(([, exponent]) => exponent.n < 0n || exponent.d !== 1n)) return null;
    root = addPoly(root, single(mulRational(top.c, rational(below.c.d, below.c.n)), m));
  }
  return null;
}

function powerOf(c: Rational, k: bigint): Rational {
  let result = ONE;
  for (let i = 0n; i < k; i++) result = mulRational(result, c);
  return result;
}

/** The greatest rational number of which all coefficients are integer multiples, positive; p is not 0. */
export function contentOf(p: Poly): Rational {
  let [n, d] = [0n, 1n];
  for (const { c } of p.values()) {
    n = gcd(n, c.n);
    d = (d * c.d) / gcd(d, c.d);
  }
  return { n: absInt(n), d };
}

/** The kernels of all terms. */
export function kernelsOf(p: Poly): Set<number> {
  const found = new Set<number>();
  for (const { m } of p.values()) for (const [kernel] of m) found.add(kernel);
  return found;
}
