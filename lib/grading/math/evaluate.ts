// The value of an expression as a complex number with an error bound.

import type { Node } from './ast';
import {
  addBall,
  atanBall,
  type Ball,
  cosSinBall,
  divBall,
  expBall,
  integerBall,
  isZeroBall,
  lnBall,
  mulBall,
  negBall,
  piBall,
  rationalBall,
  signBall,
  sqrtBall,
  topBall,
  Undefined,
  Unsure,
  zeroBall,
} from './ball';
import { absInt, type Rational, rational } from './rational';
import { table } from './table';
import { factorialInt } from './whole-numbers';
import { bitsOf, spend } from './work';

/** A complex number; `im` is the number 0 exactly where the value is known to be real. */
export interface Complex {
  re: Ball;
  im: Ball;
}

/** What an evaluation needs to know. */
export interface Situation {
  bits: number;
  /** Values of the variables. */
  values: ReadonlyMap<string, Rational>;
  /** Roots, logarithms and powers of negative numbers do not exist: an expression of real variables. */
  real: boolean;
}

const real = (re: Ball): Complex => ({ re, im: zeroBall });
const isReal = (a: Complex) => isZeroBall(a.im);

const add = (a: Complex, b: Complex, bits: number): Complex => ({
  re: addBall(a.re, b.re, bits),
  im: addBall(a.im, b.im, bits),
});
const negative = (a: Complex): Complex => ({ re: negBall(a.re), im: negBall(a.im) });
/** a - b. */
export const subtract = (a: Complex, b: Complex, bits: number): Complex => add(a, negative(b), bits);

function mul(a: Complex, b: Complex, bits: number): Complex {
  if (isReal(a) && isReal(b)) return real(mulBall(a.re, b.re, bits));
  const times = (x: Ball, y: Ball) => (isZeroBall(x) || isZeroBall(y) ? zeroBall : mulBall(x, y, bits));
  return {
    re: addBall(times(a.re, b.re), negBall(times(a.im, b.im)), bits),
    im: addBall(times(a.re, b.im), times(a.im, b.re), bits),
  };
}

const square = (a: Complex, bits: number): Ball => addBall(mulBall(a.re, a.re, bits), mulBall(a.im, a.im, bits), bits);

function inverse(a: Complex, bits: number): Complex {
  const one = integerBall(1n);
  if (isReal(a)) return real(divBall(one, a.re, bits));
  const size = square(a, bits);
  return { re: divBall(a.re, size, bits), im: divBall(negBall(a.im), size, bits) };
}

/** a^k by repeated squaring. */
function integerPower(a: Complex, k: bigint, bits: number): Complex {
  if (k < 0n) return inverse(integerPower(a, -k, bits), bits);
  let result = real(integerBall(1n));
  // Every squaring may double a rounding error.
  const inner = bits + bitsOf(k) * 2;
  for (const bit of k.toString(2)) {
    result = mul(result, result, inner);
    if (bit === '1') result = mul(result, a, inner);
  }
  return result;
}

/** √a, in the right half-plane. */
function squareRoot(a: Complex, { bits, real: onlyReal }: Situation): Complex {
  if (isReal(a)) {
    const sign = signBall(a.re);
    if (sign === null) throw new Unsure();
    if (sign >= 0) return real(sqrtBall(a.re, bits));
    if (onlyReal) throw new Undefined();
    return { re: zeroBall, im: sqrtBall(negBall(a.re), bits) };
  }
  const size = sqrtBall(square(a, bits), bits);
  const half = (value: Ball): Ball => ({ ...value, e: value.e - 1 });
  const sign = signBall(a.im);
  if (sign === null || sign === 0) throw new Unsure();
  // The larger of the two parts first: no cancellation.
  if (signBall(a.re) === 1) {
    const re = sqrtBall(half(addBall(size, a.re, bits)), bits);
    return { re, im: divBall(half(a.im), re, bits) };
  }
  const im = sqrtBall(half(addBall(size, negBall(a.re), bits)), bits);
  const re = divBall(half(a.im), im, bits);
  return sign === 1 ? { re, im } : { re: negBall(re), im: negBall(im) };
}

/** The angle of a number in (-π, π]. */
function angle(a: Complex, bits: number): Ball {
  const [x, y] = [signBall(a.re), signBall(a.im)];
  if (x === null || y === null) throw new Unsure();
  if (x === 0 && y === 0) throw new Undefined();
  if (y === 0) return x === 1 ? zeroBall : piBall(bits);
  const halfPi: Ball = { ...piBall(bits), e: piBall(bits).e - 1 };
  // π/2 - atan(x / y) above the real line.
  const turned = atanBall(divBall(a.re, a.im, bits), bits);
  return addBall(y === 1 ? halfPi : negBall(halfPi), negBall(turned), bits);
}

function logarithm(a: Complex, { bits, real: onlyReal }: Situation): Complex {
  if (isReal(a) && signBall(a.re) === 1) return real(lnBall(a.re, bits));
  if (isReal(a) && signBall(a.re) === null) throw new Unsure();
  if (onlyReal && isReal(a)) throw new Undefined();
  const re = lnBall(square(a, bits), bits);
  return { re: { ...re, e: re.e - 1 }, im: angle(a, bits) };
}

function exponential(a: Complex, bits: number): Complex {
  const size = expBall(a.re, bits);
  if (isReal(a)) return real(size);
  const [cos, sin] = cosSinBall(a.im, bits);
  return { re: mulBall(size, cos, bits), im: mulBall(size, sin, bits) };
}

/** a^(p/q): the real value where q is odd, else the principal one. */
function rationalPower(a: Complex, { n: p, d: q }: Rational, at: Situation): Complex {
  if (q === 1n) return integerPower(a, p, at.bits);
  if (isReal(a)) {
    const sign = signBall(a.re);
    if (sign === null) throw new Unsure();
    if (sign === 0) {
      if (p < 0n) throw new Undefined();
      return a;
    }
    if (sign === -1 && q % 2n === 1n) {
      const size = rationalPower(negative(a), { n: p, d: q }, at);
      return p % 2n === 0n ? size : negative(size);
    }
  }
  if (q === 2n) return integerPower(squareRoot(a, at), p, at.bits);
  const scale = rationalBall({ n: p, d: q }, at.bits);
  return exponential(mul(logarithm(a, at), real(scale), at.bits), at.bits);
}

/** The number that a node is exactly; null where it is not written as one. */
export function exactValue(node: Node, values: ReadonlyMap<string, Rational>): Rational | null {
  if (node.kind === 'number') return node.value;
  if (node.kind === 'variable') return values.get(node.name) ?? null;
  if (node.kind === 'sum' || node.kind === 'product') {
    let total = node.kind === 'sum' ? rational(0n) : rational(1n);
    for (const arg of node.args) {
      const value = exactValue(arg, values);
      if (!value || bitsOf(value.n) + bitsOf(value.d) > 4000) return null;
      const { n, d } = total;
      total =
        node.kind === 'sum' ? rational(n * value.d + value.n * d, d * value.d) : rational(n * value.n, d * value.d);
    }
    return total;
  }
  if (node.kind !== 'power') return null;
  const [base, exponent] = [exactValue(node.base, values), exactValue(node.exponent, values)];
  if (!base || !exponent || exponent.d !== 1n || exponent.n > 64n || exponent.n < -64n || base.n === 0n) return null;
  if (bitsOf(base.n) + bitsOf(base.d) > 400) return null;
  const k = exponent.n < 0n ? -exponent.n : exponent.n;
  const result = rational(base.n ** k, base.d ** k);
  return exponent.n < 0n ? rational(result.d, result.n) : result;
}

function powerOf(base: Node, exponent: Node, at: Situation): Complex {
  const exact = exactValue(exponent, at.values);
  if (base.kind === 'constant' && base.name === 'e') return exponential(evaluate(exponent, at), at.bits);
  const b = evaluate(base, at);
  if (exact) {
    if (exact.n === 0n && exact.d === 1n) {
      if (isZeroBall(b.re) && isReal(b)) throw new Undefined();
      return real(integerBall(1n));
    }
    return rationalPower(b, exact, at);
  }
  const x = evaluate(exponent, at);
  return exponential(mul(logarithm(b, at), x, at.bits), at.bits);
}

function realOnly(a: Complex): Ball {
  if (!isReal(a)) throw new Unsure();
  return a.re;
}

/** asin x = atan(x / √(1 - x²)) for -1 < x < 1. */
function arcsine(x: Ball, bits: number): Ball {
  const rest = addBall(integerBall(1n), negBall(mulBall(x, x, bits)), bits);
  if (isZeroBall(rest)) {
    const quarter: Ball = { ...piBall(bits), e: piBall(bits).e - 1 };
    return signBall(x) === 1 ? quarter : negBall(quarter);
  }
  return atanBall(divBall(x, sqrtBall(rest, bits), bits), bits);
}

/** The integer below a number. @throws Unsure where two integers are possible */
function floorBall(a: Ball): bigint {
  const shift = (value: bigint) => (a.e >= 0 ? value << BigInt(a.e) : value >> BigInt(-a.e));
  if (a.e > 100_000) throw new Unsure();
  const [low, high] = [shift(a.m - a.r), shift(a.m + a.r)];
  if (low !== high) throw new Unsure();
  return low;
}

type Function = (args: Complex[], at: Situation, nodes: Node[]) => Complex;
const realFunction =
  (compute: (x: Ball, bits: number) => Ball): Function =>
  ([a], { bits }) =>
    real(compute(realOnly(a), bits));
const sine = realFunction((x, bits) => cosSinBall(x, bits)[1]);
const cosine = realFunction((x, bits) => cosSinBall(x, bits)[0]);

const extreme =
  (sign: 1 | -1): Function =>
  (args, { bits }) => {
    const values = args.map(realOnly);
    return real(
      values.reduce((best, value) => {
        const order = signBall(addBall(value, negBall(best), bits));
        if (order === null) throw new Unsure();
        return order === sign ? value : best;
      }),
    );
  };

/** The functions. `real` numbers alone, where nothing else is said. */
const FUNCTIONS = table<Function>({
  sin: sine,
  cos: cosine,
  ln: ([a], at) => logarithm(a, at),
  exp: ([a], { bits }) => exponential(a, bits),
  abs: ([a], { bits }) => {
    if (!isReal(a)) return real(sqrtBall(square(a, bits), bits));
    const sign = signBall(a.re);
    if (sign === null) return real({ m: 0n, r: absInt(a.re.m) + a.re.r, e: a.re.e });
    return sign < 0 ? negative(a) : a;
  },
  asin: realFunction(arcsine),
  atan: realFunction(atanBall),
  acos: realFunction((x, bits) => addBall({ ...piBall(bits), e: piBall(bits).e - 1 }, negBall(arcsine(x, bits)), bits)),
  floor: ([a]) => real(integerBall(floorBall(realOnly(a)))),
  ceil: ([a]) => real(integerBall(-floorBall(negBall(realOnly(a))))),
  max: extreme(1),
  min: extreme(-1),
  re: ([a]) => real(a.re),
  im: ([a]) => real(a.im),
  conjugate: ([a]) => ({ re: a.re, im: negBall(a.im) }),
  factorial: (_args, { values }, [node]) => {
    const value = exactValue(node, values);
    if (value?.d !== 1n) throw new Undefined();
    return real(integerBall(factorialInt(value.n)));
  },
  binomial: ([n], { bits, values }, [, node]) => {
    const k = exactValue(node, values);
    if (k?.d !== 1n || k.n < 0n || k.n > 500n) throw new Undefined();
    let result = real(integerBall(1n));
    for (let j = 0n; j < k.n; j++) {
      const factor = mul(add(n, real(integerBall(-j)), bits), real(rationalBall(rational(1n, j + 1n), bits)), bits);
      result = mul(result, factor, bits);
    }
    return result;
  },
});

/**
 * The value of an expression.
 * @throws Undefined where it has none, Unsure where more bits may help, WorkExceeded
 */
export function evaluate(node: Node, at: Situation): Complex {
  const { bits } = at;
  spend(1);
  switch (node.kind) {
    case 'number':
      return real(rationalBall(node.value, bits));
    case 'constant':
      if (node.name === 'i') return { re: zeroBall, im: integerBall(1n) };
      if (node.name === 'infinity') throw new Undefined();
      return real(node.name === 'pi' ? piBall(bits) : expBall(integerBall(1n), bits));
    case 'variable': {
      const value = at.values.get(node.name);
      if (!value) throw new Undefined();
      return real(rationalBall(value, bits));
    }
    case 'sum':
    case 'product': {
      // Exact numbers keep an exact zero.
      const exact = exactValue(node, at.values);
      if (exact) return real(rationalBall(exact, bits));
      return node.args.map((arg) => evaluate(arg, at)).reduce((a, b) => (node.kind === 'sum' ? add : mul)(a, b, bits));
    }
    case 'power':
      return powerOf(node.base, node.exponent, at);
    case 'root': {
      const index = exactValue(node.index, at.values);
      if (index?.d !== 1n || index.n < 1n) throw new Undefined();
      return rationalPower(evaluate(node.base, at), rational(1n, index.n), at);
    }
    case 'call': {
      const compute = FUNCTIONS[node.name];
      if (!compute) throw new Undefined();
      const args = node.args.map((arg) => evaluate(arg, at));
      return compute(args, at, node.args);
    }
  }
}

/** Exponent of a power of two above the absolute value of a number. */
export const topComplex = (a: Complex): number =>
  Math.max(isZeroBall(a.re) ? Number.NEGATIVE_INFINITY : topBall(a.re), isReal(a) ? -Infinity : topBall(a.im));

/** Exponent of a power of two above the error of a number. */
export const errorOf = ({ re, im }: Complex): number =>
  Math.max(...[re, im].map((part) => (part.r === 0n ? Number.NEGATIVE_INFINITY : bitsOf(part.r) + part.e)));

/** Whether a number is certainly not 0. */
export const isNonZero = (a: Complex): boolean =>
  [a.re, a.im].some((part) => signBall(part) === 1 || signBall(part) === -1);
