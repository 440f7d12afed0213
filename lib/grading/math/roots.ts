// Roots, powers with rational exponents and absolute values in normal form.
import { type Algebra, type Fraction, fractionOf, GiveUp, isOne, type Kernel } from './algebra';
import { Undefined } from './ball';
import { demand, isNonNegative } from './conditions';
import {
  addPoly,
  constantOf,
  contentOf,
  kernelsOf,
  leadingTerm,
  type Monomial,
  mergeMonomials,
  mulPoly,
  negPoly,
  ONE_POLY,
  onlyTerm,
  type Poly,
  powMonomial,
  powPoly,
  rootPoly,
  scalePoly,
  single,
  ZERO_POLY,
} from './polynomial';
import {
  absInt,
  factorInt,
  invRational,
  isPowerShort,
  mulRational,
  ONE,
  powRational,
  type Rational,
  rational,
  rationalRoot,
} from './rational';

const number = (value: Rational): Fraction => fractionOf(single(value));

/** a^r. */
export function pow(algebra: Algebra, a: Fraction, r: Rational): Fraction {
  if (a.n.size === 0) {
    if (r.n <= 0n) throw new Undefined();
    return a;
  }
  if (r.d === 1n) {
    const k = absInt(r.n);
    const [n, d] = [a.n, a.d].map((p) => integerPower(algebra, p, k));
    return r.n < 0n ? algebra.cancel(d, n) : algebra.cancel(n, d);
  }
  return pow(algebra, root(algebra, a, r.d), rational(r.n));
}
function integerPower(algebra: Algebra, p: Poly, k: bigint): Poly {
  const term = onlyTerm(p);
  if (term) {
    const c = constantOf(single(term.c))!;
    // A power that is too long to write out stays a power of primes.
    if (!isPowerShort(c.n, k) || !isPowerShort(c.d, k)) {
      const primes = primePower(algebra, rational(absInt(c.n), c.d), rational(k));
      const sign = c.n < 0n && k % 2n === 1n ? rational(-1n) : ONE;
      return mulPoly(scalePoly(primes, sign), algebra.reduce(ONE, powMonomial(term.m, rational(k))), algebra);
    }
    return algebra.reduce(powRational(c, k), powMonomial(term.m, rational(k)));
  }
  if (k > 200n) throw new GiveUp();
  return powPoly(p, k, algebra);
}
/** c^r for c > 0. */
function primePower(algebra: Algebra, c: Rational, r: Rational): Poly {
  const factors = [...factorInt(c.n), ...factorInt(c.d).map(([prime, k]) => [prime, -k] as const)];
  let m: Monomial = [];
  for (const [prime, k] of factors) m = mergeMonomials(m, [[algebra.prime(prime), mulRational(r, rational(k))]]);
  return algebra.reduce(ONE, m);
}

/** The q-th root of a, the real one where q is odd. */
export function root(algebra: Algebra, a: Fraction, q: bigint): Fraction {
  if (q === 1n || a.n.size === 0) return a;
  if (isOne(a.d)) return rootOfPoly(algebra, a.n, q);
  // √(n/d) = √(n d) / |d|.
  const raised = mulPoly(a.n, powPoly(a.d, q - 1n, algebra), algebra);
  const below = q % 2n === 0n ? abs(algebra, fractionOf(a.d)) : fractionOf(a.d);
  return algebra.mul(rootOfPoly(algebra, raised, q), algebra.inverse(below));
}

function rootOfPoly(algebra: Algebra, p: Poly, q: bigint): Fraction {
  const even = q % 2n === 0n;
  const third = rational(1n, q);
  if (algebra.hasImaginary(p)) return complexRoot(algebra, p, q);
  if (algebra.isConstantPoly(p)) {
    const sign = algebra.signOf(p);
    if (sign === null || sign === 0) throw new GiveUp();
    if (sign < 0) {
      const size = rootOfPoly(algebra, negPoly(p), q);
      if (!even) return algebra.neg(size);
      if (q === 2n) return algebra.mul(size, algebra.kernelPower(algebra.imaginary()));
      throw new GiveUp();
    }
  } else if (even) demand(algebra, p);
  const content = contentOf(p);
  let rest = scalePoly(p, invRational(content));
  let result = fractionOf(primePower(algebra, content, third));
  // Factors of all terms leave the root.
  const common = commonFactor(algebra, rest);
  let inside: Monomial = [];
  for (const [id, exponent] of common) {
    const { positive, kind } = algebra.kernels[id];
    const sure = positive || kind === 'prime' || !even || exponent.d % 2n === 0n;
    const sole = onlyTerm(rest);
    const alone = sole && common.filter(([other]) => !algebra.kernels[other].positive).length === 1 && sole.c.n > 0n;
    if (sure || (alone && exponent.n % 2n !== 0n)) {
      result = algebra.mul(result, algebra.kernelPower(id, mulRational(exponent, third)));
      continue;
    }
    if (exponent.d !== 1n) throw new GiveUp();
    // x^3 = x^2 · x, and √(x^2) = |x|.
    const odd = exponent.n % 2n === 0n ? 0n : 1n;
    const square = abs(algebra, algebra.kernelPower(id));
    if (exponent.n !== odd) result = algebra.mul(result, positivePower(algebra, square, rational(exponent.n - odd, q)));
    if (odd) inside = mergeMonomials(inside, [[id, ONE]]);
  }
  rest = mulPoly(rest, algebra.reduce(ONE, powMonomial(common, rational(-1n))), algebra);
  const exact = rest.size > 1 ? rootPoly(rest, q, algebra, (c) => rationalRoot(c, q)) : null;
  if (exact && inside.length === 0)
    return algebra.mul(result, even ? abs(algebra, fractionOf(exact)) : fractionOf(exact));
  if (exact && even) {
    result = algebra.mul(result, abs(algebra, fractionOf(exact)));
    rest = ONE_POLY;
  }
  rest = mulPoly(rest, single(ONE, inside), algebra);
  const sole = constantOf(rest);
  if (sole && sole.n === 1n && sole.d === 1n) return result;
  if (sole && sole.n === -1n && sole.d === 1n && !even) return algebra.neg(result);
  if (q === 2n && algebra.isConstantPoly(rest)) {
    const nested = denest(algebra, rest);
    if (nested) return algebra.mul(result, nested);
  }
  if (!even && leadingTerm(rest).c.n < 0n) {
    rest = negPoly(rest);
    result = algebra.neg(result);
  }
  return algebra.mul(result, algebra.kernelPower(algebra.radical(rest), third));
}

/** base^r for base ≥ 0: r is no integer only if base is one kernel. */
function positivePower(algebra: Algebra, base: Fraction, r: Rational): Fraction {
  if (r.d === 1n) return pow(algebra, base, r);
  const term = isOne(base.d) ? onlyTerm(base.n) : null;
  if (term?.m.length !== 1 || term.c.n !== 1n || term.c.d !== 1n) throw new GiveUp();
  return fractionOf(algebra.reduce(ONE, powMonomial(term.m, r)));
}

/** The kernels that all terms have, with their lowest exponents. */
function commonFactor(algebra: Algebra, p: Poly): Monomial {
  const terms = [...p.values()];
  return terms[0].m.flatMap(([id, first]) => {
    const { kind } = algebra.kernels[id];
    if (terms.length > 1 && !['variable', 'exp', 'opaque'].includes(kind)) return [];
    let lowest = first;
    for (const { m } of terms.slice(1)) {
      const other = m.find(([kernel]) => kernel === id)?.[1];
      if (!other) return [];
      if (other.n * lowest.d < lowest.n * other.d) lowest = other;
    }
    return [[id, lowest] as const];
  });
}

/** √(a + b) with b² and a² - b² rational squares: √((a + r)/2) ± √((a - r)/2); null where that fails. */
function denest(algebra: Algebra, p: Poly): Fraction | null {
  const whole = p.get('')?.c;
  if (!whole || p.size !== 2 || whole.n <= 0n) return null;
  const [surd] = [...p.values()].filter(({ m }) => m.length > 0);
  const square = constantOf(algebra.reduce(mulRational(surd.c, surd.c), powMonomial(surd.m, rational(2n))));
  if (!square) return null;
  const r = rationalRoot(
    rational(whole.n * whole.n * square.d - square.n * whole.d * whole.d, whole.d * whole.d * square.d),
    2n,
  );
  if (!r) return null;
  const part = (sign: bigint) =>
    root(algebra, number(rational(whole.n * r.d + sign * r.n * whole.d, 2n * whole.d * r.d)), 2n);
  return algebra.add(part(1n), surd.c.n > 0n ? part(-1n) : algebra.neg(part(-1n)));
}

/** Principal √(a + bi) where |a + bi| is rational. */
function complexRoot(algebra: Algebra, p: Poly, q: bigint): Fraction {
  if (q !== 2n || !algebra.isConstantPoly(p)) throw new GiveUp();
  const { re, im } = parts(algebra, p);
  const [a, b] = [constantOf(re), constantOf(im)];
  if (!a || !b || b.n === 0n) throw new GiveUp();
  const [x, y] = [a.n * b.d, b.n * a.d];
  const below = a.d * b.d;
  const size = rationalRoot(rational(x * x + y * y, below * below), 2n);
  if (!size) throw new GiveUp();
  const part = (sign: bigint) =>
    root(algebra, number(rational(size.n * a.d + sign * a.n * size.d, 2n * size.d * a.d)), 2n);
  const imaginary = algebra.mul(part(-1n), algebra.kernelPower(algebra.imaginary()));
  return algebra.add(part(1n), b.n > 0n ? imaginary : algebra.neg(imaginary));
}

/** Real and imaginary part of a polynomial whose other kernels are real. */
export function parts(algebra: Algebra, p: Poly): { re: Poly; im: Poly } {
  let [re, im] = [ZERO_POLY, ZERO_POLY];
  for (const { c, m } of p.values()) {
    const rest = m.filter(([id]) => algebra.kernels[id].kind !== 'i');
    if (rest.length === m.length) re = addPoly(re, single(c, m));
    else im = addPoly(im, single(c, rest));
  }
  return { re, im };
}

/** |a|. */
export function abs(algebra: Algebra, a: Fraction): Fraction {
  if (a.n.size === 0) return a;
  if (!isOne(a.d)) return algebra.mul(abs(algebra, fractionOf(a.n)), algebra.inverse(abs(algebra, fractionOf(a.d))));
  const p = a.n;
  // z is a complex number as a rule, of which |z|² is not z².
  const isComplex = ({ node }: Kernel) => node.kind === 'variable' && node.name === 'z';
  if ([...kernelsOf(p)].some((id) => isComplex(algebra.kernels[id])))
    return algebra.kernelPower(algebra.opaque('abs', [a]));
  if (algebra.hasImaginary(p)) {
    const { re, im } = parts(algebra, p);
    return root(algebra, fractionOf(addPoly(mulPoly(re, re, algebra), mulPoly(im, im, algebra))), 2n);
  }
  if (algebra.isConstantPoly(p)) {
    const sign = algebra.signOf(p);
    if (sign === null) throw new GiveUp();
    return sign < 0 ? algebra.neg(a) : a;
  }
  if (isNonNegative(algebra, p)) return a;
  const content = contentOf(p);
  let rest = scalePoly(p, invRational(content));
  const common = commonFactor(algebra, rest);
  rest = mulPoly(rest, algebra.reduce(ONE, powMonomial(common, rational(-1n))), algebra);
  let result = number(content);
  for (const [id, exponent] of common) {
    const kernel = algebra.kernels[id];
    const isEven = exponent.n % 2n === 0n || exponent.d % 2n === 0n;
    if (kernel.positive || isEven) {
      result = algebra.mul(result, algebra.kernelPower(id, exponent));
    } else {
      if (exponent.d !== 1n) throw new GiveUp();
      const bars = algebra.kernelPower(algebra.absKernel(single(ONE, [[id, ONE]])));
      result = algebra.mul(algebra.mul(result, bars), algebra.kernelPower(id, rational(exponent.n - 1n)));
    }
  }
  if (constantOf(rest)) return result;
  if (leadingTerm(rest).c.n < 0n) rest = negPoly(rest);
  if (isNonNegative(algebra, rest)) return algebra.mul(result, fractionOf(rest));
  return algebra.mul(result, algebra.kernelPower(algebra.absKernel(rest)));
}
