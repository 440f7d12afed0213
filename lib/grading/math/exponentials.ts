// Logarithms and powers in normal form.
import { type Algebra, type Fraction, fractionOf, ONE_FRACTION } from './algebra';
import { Undefined } from './ball';
import { demand } from './conditions';
import { addPoly, constantOf, contentOf, onlyTerm, type Poly, scalePoly, single, ZERO_POLY } from './polynomial';
import { factorInt, invRational, ONE, type Rational, rational } from './rational';
import { abs, pow } from './roots';
import { cosSin } from './trigonometry';

const number = (n: bigint | Rational, d = 1n): Fraction =>
  fractionOf(single(typeof n === 'bigint' ? rational(n, d) : n));
const ZERO_FRACTION = fractionOf(ZERO_POLY);
const add = (algebra: Algebra, ...parts: Fraction[]) => parts.reduce((a, b) => algebra.add(a, b), ZERO_FRACTION);

/**
 * ln a. `strict` demands a > 0 for it; without, it is the exponent of a power, which is also taken of negative numbers
 * for whole exponents.
 */
export function logarithm(algebra: Algebra, a: Fraction, strict = true): Fraction {
  if (a.n.size === 0) throw new Undefined();
  if (algebra.isConstant(a)) {
    const [above, below] = [algebra.signOf(a.n), algebra.signOf(a.d)];
    if (above === null || below === null) return algebra.kernelPower(algebra.opaque('ln', [a]));
    const sign = above * below;
    if (sign === 1)
      return constantOf(a.d)
        ? positiveLogarithm(algebra, a.n)
        : add(algebra, positiveLogarithm(algebra, a.n), algebra.neg(positiveLogarithm(algebra, a.d)));
    const minus = algebra.kernelPower(algebra.opaque('ln', [number(-1n)]));
    return add(algebra, minus, logarithm(algebra, algebra.neg(a), strict));
  }
  const below = onlyTerm(a.d);
  if (strict) demand(algebra, algebra.mul(a, fractionOf(a.d)).n);
  if (!below || below.m.length > 0) return algebra.kernelPower(algebra.opaque('ln', [a]));
  return positiveLogarithm(algebra, a.n);
}

function positiveLogarithm(algebra: Algebra, p: Poly): Fraction {
  const term = onlyTerm(p);
  const content = contentOf(p);
  let result = ZERO_FRACTION;
  const plus = (factor: Rational, part: Fraction) => {
    result = algebra.add(result, algebra.mul(number(factor), part));
  };
  for (const [sign, value] of [
    [1n, content.n],
    [-1n, content.d],
  ] as const)
    for (const [prime, k] of factorInt(value)) plus(rational(sign * k), lnOf(algebra, number(prime)));
  const rest = scalePoly(p, invRational(content));
  if (!term) return algebra.add(result, lnOf(algebra, fractionOf(rest)));
  const unknown: [number, Rational][] = [];
  const doubtful = term.m.filter(([id]) => !algebra.kernels[id].positive);
  for (const [id, exponent] of term.m) {
    const kernel = algebra.kernels[id];
    const isEven = exponent.n % 2n === 0n;
    if (kernel.kind === 'prime') plus(exponent, lnOf(algebra, number(kernel.prime!)));
    else if (kernel.kind === 'exp') plus(exponent, fractionOf(algebra.reduce(ONE, kernel.exponent!)));
    else if (kernel.kind === 'radical' && exponent.d % 2n === 0n)
      plus(exponent, lnOf(algebra, fractionOf(kernel.base!)));
    else if (kernel.positive || (doubtful.length === 1 && term.c.n > 0n && !isEven))
      plus(exponent, lnOf(algebra, algebra.kernelPower(id)));
    else if (isEven) plus(exponent, lnOf(algebra, abs(algebra, algebra.kernelPower(id))));
    else unknown.push([id, exponent]);
  }
  if (unknown.length === 0 && term.c.n > 0n) return result;
  const inner = fractionOf(algebra.reduce(rational(term.c.n > 0n ? 1n : -1n), unknown));
  return algebra.add(result, lnOf(algebra, inner));
}

/** ln as a kernel. */
function lnOf(algebra: Algebra, a: Fraction): Fraction {
  return algebra.kernelPower(algebra.opaque('ln', [a], { positive: isPrime(algebra, a) }));
}
function isPrime(algebra: Algebra, a: Fraction): boolean {
  const value = algebra.rationalOf(a);
  return value !== null && value.n > value.d;
}

/** e^a. */
export function exponential(algebra: Algebra, a: Fraction): Fraction {
  if (a.n.size === 0) return ONE_FRACTION;
  if (!constantOf(a.d)) return exponentialOfFraction(algebra, a);
  let result = ONE_FRACTION;
  let angle: Poly = ZERO_POLY;
  for (const { c, m } of a.n.values()) {
    const imaginary = m.find(([id]) => algebra.kernels[id].kind === 'i');
    if (imaginary) {
      angle = addPoly(
        angle,
        single(
          c,
          m.filter((factor) => factor !== imaginary),
        ),
      );
      continue;
    }
    const kernel = m.length === 1 && m[0][1].n === 1n && m[0][1].d === 1n ? algebra.kernels[m[0][0]] : null;
    // e^(c ln b) = b^c.
    if (kernel?.name === 'ln') result = algebra.mul(result, pow(algebra, kernel.args![0], c));
    else result = algebra.mul(result, algebra.kernelPower(algebra.exponentialKernel(m), c));
  }
  if (angle.size === 0) return result;
  const [cos, sin] = cosSin(algebra, fractionOf(angle));
  return algebra.mul(result, algebra.add(cos, algebra.mul(sin, algebra.kernelPower(algebra.imaginary()))));
}

/** e^(n/d) is a kernel, and e^(-n/d) its inverse. */
function exponentialOfFraction(algebra: Algebra, a: Fraction): Fraction {
  const minus = algebra.neg(a);
  const known = algebra.kernels.find(
    ({ name, args }) => name === 'exp' && (algebra.equal(args![0], a) || algebra.equal(args![0], minus)),
  );
  const isMinus = known !== undefined && algebra.equal(known.args![0], minus);
  const id = algebra.opaque('exp', [isMinus ? minus : a], { positive: true });
  return algebra.kernelPower(id, rational(isMinus ? -1n : 1n));
}

/** base^exponent. */
export function generalPower(algebra: Algebra, base: Fraction, exponent: Fraction): Fraction {
  const r = algebra.rationalOf(exponent);
  if (r) {
    if (r.n === 0n) {
      if (base.n.size === 0) throw new Undefined();
      return ONE_FRACTION;
    }
    return pow(algebra, base, r);
  }
  return exponential(algebra, algebra.mul(exponent, logarithm(algebra, base, false)));
}
