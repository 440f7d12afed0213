// Powers, logarithms, sines and their inverses in normal form.

import { type Algebra, type Fraction, fractionOf, GiveUp, ONE_FRACTION, Restart } from './algebra';
import { type Node, num, numberNode, product } from './ast';
import { signBall, Undefined, Unsure } from './ball';
import { evaluate } from './evaluate';
import {
  addPoly,
  constantOf,
  contentOf,
  type Monomial,
  monomialKey,
  onlyTerm,
  type Poly,
  scalePoly,
  single,
  ZERO_POLY,
} from './polynomial';
import {
  absInt,
  factorInt,
  floorRational,
  gcd,
  invRational,
  mulRational,
  ONE,
  type Rational,
  rational,
} from './rational';

const number = (n: bigint | Rational, d = 1n): Fraction =>
  fractionOf(single(typeof n === 'bigint' ? rational(n, d) : n));
const ZERO_FRACTION = fractionOf(ZERO_POLY);
const add = (algebra: Algebra, ...parts: Fraction[]) => parts.reduce((a, b) => algebra.add(a, b), ZERO_FRACTION);

// ---- logarithms

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
  if (strict) algebra.demand(algebra.mul(a, fractionOf(a.d)).n);
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
    else if (isEven) plus(exponent, lnOf(algebra, algebra.abs(algebra.kernelPower(id))));
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

// ---- powers

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
    if (kernel?.name === 'ln') result = algebra.mul(result, algebra.pow(kernel.args![0], c));
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
    return algebra.pow(base, r);
  }
  return exponential(algebra, algebra.mul(exponent, logarithm(algebra, base, false)));
}

// ---- sines

const root = (n: bigint): Node => ({ kind: 'root', base: num(n), index: num(2) });
/** cos(π k/n) for the angles whose cosine is written with roots, by "k/n"; up to π/2. */
const COSINES: Readonly<Record<string, Node>> = (() => {
  const plus = (...args: Node[]): Node => ({ kind: 'sum', args });
  const times = (...args: Node[]) => product(...args);
  const sqrt = (base: Node): Node => ({ kind: 'root', base, index: num(2) });
  const minus = (a: Node) => times(num(-1), a);
  return {
    '0/1': num(1),
    '1/2': num(0),
    '1/3': num(1, 2),
    '1/4': times(num(1, 2), root(2n)),
    '1/6': times(num(1, 2), root(3n)),
    '1/5': times(num(1, 4), plus(num(1), root(5n))),
    '2/5': times(num(1, 4), plus(num(-1), root(5n))),
    '1/12': times(num(1, 4), plus(root(6n), root(2n))),
    '5/12': times(num(1, 4), plus(root(6n), minus(root(2n)))),
    '1/8': times(num(1, 2), sqrt(plus(num(2), root(2n)))),
    '3/8': times(num(1, 2), sqrt(plus(num(2), minus(root(2n))))),
    '1/10': times(num(1, 4), sqrt(plus(num(10), times(num(2), root(5n))))),
    '3/10': times(num(1, 4), sqrt(plus(num(10), times(num(-2), root(5n))))),
  };
})();

/** cos(π r). */
function cosineOfPi(algebra: Algebra, r: Rational): Fraction {
  // To [0, 1/2], where cos(π - x) = -cos x.
  const turn = 2n * r.d;
  let n = ((r.n % turn) + turn) % turn;
  if (n > r.d) n = turn - n;
  const isFlipped = 2n * n > r.d;
  const { n: k, d } = rational(isFlipped ? r.d - n : n, r.d);
  const known = COSINES[`${k}/${d}`];
  const value = known
    ? normalForm(algebra, known)
    : algebra.kernelPower(algebra.opaque('cos', [algebra.mul(number(k, d), algebra.kernelPower(algebra.pi()))]));
  return isFlipped ? algebra.neg(value) : value;
}
const sineOfPi = (algebra: Algebra, r: Rational) => cosineOfPi(algebra, rational(r.d - 2n * r.n, 2n * r.d));

type Angle = [cos: Fraction, sin: Fraction];

/** cos and sin of the sum of two angles. */
const turned = (algebra: Algebra, [c, s]: Angle, [d, t]: Angle): Angle => [
  algebra.add(algebra.mul(c, d), algebra.neg(algebra.mul(s, t))),
  algebra.add(algebra.mul(s, d), algebra.mul(c, t)),
];

/** cos and sin of a. */
export function cosSin(algebra: Algebra, a: Fraction): Angle {
  if (a.n.size === 0) return [ONE_FRACTION, ZERO_FRACTION];
  if (!constantOf(a.d)) {
    const minus = algebra.neg(a);
    const isMinus = algebra.kernels.some(({ name, args }) => name === 'sin' && algebra.equal(args![0], minus));
    const of = isMinus ? minus : a;
    const sin = algebra.kernelPower(algebra.opaque('sin', [of]));
    return [algebra.kernelPower(algebra.opaque('cos', [of])), isMinus ? algebra.neg(sin) : sin];
  }
  let result: Angle = [ONE_FRACTION, ZERO_FRACTION];
  for (const { c, m } of a.n.values()) {
    if (m.some(([id]) => algebra.kernels[id].kind === 'i')) throw new GiveUp();
    result = turned(algebra, result, angleOfTerm(algebra, c, m));
  }
  return result;
}

function angleOfTerm(algebra: Algebra, c: Rational, m: Monomial): Angle {
  const isOne = m.length === 1 && m[0][1].n === 1n && m[0][1].d === 1n;
  if (isOne && m[0][0] === algebra.pi()) return [cosineOfPi(algebra, c), sineOfPi(algebra, c)];
  const key = monomialKey(m);
  const inverse = isOne ? inverseAngle(algebra, m[0][0]) : null;
  const size = c.n < 0n ? { n: -c.n, d: c.d } : c;
  const unit = algebra.hints.units.get(key) ?? (inverse ? ONE : size);
  const times = mulRational(c, invRational(unit));
  if (times.d !== 1n) {
    algebra.hints.units.set(key, gcdRational(unit, size));
    throw new Restart();
  }
  algebra.hints.units.set(key, unit);
  if (times.n > MAX_MULTIPLE || times.n < -MAX_MULTIPLE) {
    const whole = algebra.mul(number(size), fractionOf(algebra.reduce(ONE, m)));
    const sin = algebra.kernelPower(algebra.opaque('sin', [whole]));
    return [algebra.kernelPower(algebra.opaque('cos', [whole])), c.n < 0n ? algebra.neg(sin) : sin];
  }
  const isInverse = inverse !== null && unit.n === 1n && unit.d === 1n;
  const [cos, sin] = isInverse
    ? inverse
    : (algebra.angleKernels(m, unit).map((id) => algebra.kernelPower(id)) as Angle);
  let result: Angle = [ONE_FRACTION, ZERO_FRACTION];
  for (let k = 0n; k < absInt(times.n); k++) result = turned(algebra, result, [cos, sin]);
  return times.n < 0n ? [result[0], algebra.neg(result[1])] : result;
}
/** Largest multiple of an angle whose sine is written out. */
const MAX_MULTIPLE = 24n;
/** The greatest number of which both are multiples. */
const gcdRational = (a: Rational, b: Rational): Rational => rational(gcd(a.n * b.d, b.n * a.d), a.d * b.d);

/** cos and sin of asin u or atan u. */
function inverseAngle(algebra: Algebra, id: number): Angle | null {
  const { name, args } = algebra.kernels[id];
  if (name !== 'asin' && name !== 'atan') return null;
  const [u] = args!;
  const square = algebra.mul(u, u);
  if (name === 'asin') return [algebra.root(algebra.add(ONE_FRACTION, algebra.neg(square)), 2n), u];
  const cos = algebra.inverse(algebra.root(algebra.add(ONE_FRACTION, square), 2n));
  return [cos, algebra.mul(u, cos)];
}

/** asin a or atan a. */
function inverseSine(algebra: Algebra, name: 'asin' | 'atan', a: Fraction): Fraction {
  if (a.n.size === 0) return a;
  if (algebra.isConstant(a)) {
    const angle = angleOfValue(algebra, name, a);
    if (angle) return algebra.mul(number(angle), algebra.kernelPower(algebra.pi()));
  }
  const minus = algebra.neg(a);
  const isMinus =
    algebra.isConstant(a) && constantOf(a.d)
      ? algebra.signOf(a.n) === -1
      : algebra.kernels.some((kernel) => kernel.name === name && algebra.equal(kernel.args![0], minus));
  const value = algebra.kernelPower(algebra.opaque(name, [isMinus ? minus : a]));
  return isMinus ? algebra.neg(value) : value;
}

/** The r with |r| ≤ 1/2, of a denominator up to 24, for which sin(π r), or tan(π r), is a; null where there is none. */
function angleOfValue(algebra: Algebra, name: 'asin' | 'atan', a: Fraction): Rational | null {
  const { re } = evaluate(
    product(
      { kind: 'call', name, args: [algebra.node(a)] },
      { kind: 'power', base: { kind: 'constant', name: 'pi' }, exponent: num(-1) },
    ),
    { bits: 80, values: new Map(), real: true },
  );
  for (let d = 1n; d <= 24n; d++) {
    const scaled = re.e >= 0 ? (d * re.m) << BigInt(re.e) : d * re.m;
    const unit = 1n << BigInt(Math.max(0, -re.e));
    const n = floorRational({ n: 2n * scaled + unit, d: 2n * unit });
    const off = scaled - n * unit;
    if ((off < 0n ? -off : off) * (1n << 50n) > unit) continue;
    const r = rational(n, d);
    const [sin, cos] = [sineOfPi(algebra, r), cosineOfPi(algebra, r)];
    const holds = name === 'asin' ? algebra.equal(sin, a) : algebra.equal(sin, algebra.mul(a, cos));
    if (holds) return r;
  }
  return null;
}

// ---- all functions

type Rule = (algebra: Algebra, args: Fraction[]) => Fraction;
const half = number(1n, 2n);

/** Orders constants; functions of variables are kernels. */
const extreme =
  (name: 'max' | 'min'): Rule =>
  (algebra, args) => {
    if (!args.every((arg) => algebra.isConstant(arg)))
      return algebra.kernelPower(algebra.opaque(name, args, { unordered: true }));
    return args.reduce((best, arg) => {
      const order = signOfFraction(algebra, algebra.add(arg, algebra.neg(best)));
      return order === (name === 'max' ? 1 : -1) ? arg : best;
    });
  };
function signOfFraction(algebra: Algebra, { n, d }: Fraction): number {
  const [x, y] = [algebra.signOf(n), algebra.signOf(d)];
  if (x === null || y === null) throw new GiveUp();
  return x * y;
}

/** A rounding function: of constants the integer, of variables a kernel. */
const rounded =
  (name: 'floor' | 'ceil'): Rule =>
  (algebra, [a]) => {
    if (!algebra.isConstant(a)) return algebra.kernelPower(algebra.opaque(name, [a]));
    const { re, im } = evaluate(
      { kind: 'call', name, args: [algebra.node(a)] },
      { bits: 200, values: new Map(), real: true },
    );
    if (signBall(im) !== 0 || re.r !== 0n || re.e < 0) throw new Unsure();
    return number(re.m << BigInt(re.e));
  };

/** n!, and (p + k)! as p! (p + 1) … (p + k) for a polynomial p. */
function factorial(algebra: Algebra, a: Fraction): Fraction {
  const value = algebra.rationalOf(a);
  if (value) {
    const node: Node = { kind: 'call', name: 'factorial', args: [numberNode(value)] };
    const { re } = evaluate(node, { bits: 1 << 20, values: new Map(), real: true });
    return number(re.m << BigInt(re.e));
  }
  const shift = constantOf(a.d) ? (a.n.get('')?.c ?? rational(0n)) : rational(0n);
  if (shift.d !== 1n || shift.n > 20n || shift.n < -20n) return algebra.kernelPower(algebra.opaque('factorial', [a]));
  const base = algebra.add(a, number(-shift.n));
  let result = algebra.kernelPower(algebra.opaque('factorial', [base]));
  for (let k = 1n; k <= shift.n; k++) result = algebra.mul(result, algebra.add(base, number(k)));
  for (let k = 0n; k > shift.n; k--) result = algebra.mul(result, algebra.inverse(algebra.add(base, number(k))));
  return result;
}

function binomial(algebra: Algebra, [n, k]: Fraction[]): Fraction {
  const below = algebra.rationalOf(k);
  if (below?.d !== 1n || below.n < 0n || below.n > 500n) return algebra.kernelPower(algebra.opaque('binomial', [n, k]));
  let result = ONE_FRACTION;
  for (let j = 0n; j < below.n; j++)
    result = algebra.mul(algebra.mul(result, algebra.add(n, number(-j))), number(1n, j + 1n));
  return result;
}

const RULES: Readonly<Record<string, Rule>> = {
  sin: (algebra, [a]) => cosSin(algebra, a)[1],
  cos: (algebra, [a]) => cosSin(algebra, a)[0],
  ln: (algebra, [a]) => logarithm(algebra, a),
  abs: (algebra, [a]) => algebra.abs(a),
  asin: (algebra, [a]) => inverseSine(algebra, 'asin', a),
  atan: (algebra, [a]) => inverseSine(algebra, 'atan', a),
  acos: (algebra, [a]) =>
    algebra.add(algebra.mul(half, algebra.kernelPower(algebra.pi())), algebra.neg(inverseSine(algebra, 'asin', a))),
  floor: rounded('floor'),
  ceil: rounded('ceil'),
  max: extreme('max'),
  min: extreme('min'),
  factorial: (algebra, [a]) => factorial(algebra, a),
  binomial,
  conjugate: (algebra, [{ n, d }]) => {
    if (!constantOf(d) || !algebra.isConstantPoly(n)) throw new GiveUp();
    const { re, im } = algebra.parts(n);
    const i: Monomial = [[algebra.imaginary(), ONE]];
    return algebra.add(fractionOf(re), algebra.neg(algebra.mul(fractionOf(im), fractionOf(single(ONE, i)))));
  },
  re: (algebra, [{ n, d }]) => {
    if (!constantOf(d) || !algebra.isConstantPoly(n)) throw new GiveUp();
    return fractionOf(algebra.parts(n).re);
  },
  im: (algebra, [{ n, d }]) => {
    if (!constantOf(d) || !algebra.isConstantPoly(n)) throw new GiveUp();
    return fractionOf(algebra.parts(n).im);
  },
};

/**
 * The normal form of an expression.
 * @throws GiveUp, Unsure where none is found; Undefined; Restart; WorkExceeded
 */
export function normalForm(algebra: Algebra, node: Node): Fraction {
  switch (node.kind) {
    case 'number':
      return number(node.value);
    case 'constant':
      if (node.name === 'infinity') throw new GiveUp();
      if (node.name === 'e') return algebra.kernelPower(algebra.exponentialKernel([]));
      return algebra.kernelPower(node.name === 'pi' ? algebra.pi() : algebra.imaginary());
    case 'variable':
      return algebra.kernelPower(algebra.variable(node.name));
    case 'sum':
      return node.args.map((arg) => normalForm(algebra, arg)).reduce((a, b) => algebra.add(a, b));
    case 'product':
      return node.args.map((arg) => normalForm(algebra, arg)).reduce((a, b) => algebra.mul(a, b));
    case 'power':
      if (node.base.kind === 'constant' && node.base.name === 'e')
        return exponential(algebra, normalForm(algebra, node.exponent));
      return generalPower(algebra, normalForm(algebra, node.base), normalForm(algebra, node.exponent));
    case 'root': {
      const index = algebra.rationalOf(normalForm(algebra, node.index));
      if (index?.d !== 1n || index.n < 1n || index.n > 1000n) throw new GiveUp();
      return algebra.root(normalForm(algebra, node.base), index.n);
    }
    case 'call': {
      // ln(b^k) = k ln|b| for even k: b^k written out would hide it.
      const [arg] = node.args;
      if (node.name === 'ln' && arg.kind === 'power') {
        const k = algebra.rationalOf(normalForm(algebra, arg.exponent));
        const base = normalForm(algebra, arg.base);
        if (k && k.d === 1n && k.n !== 0n && !onlyTerm(base.n) && !algebra.isConstant(base)) {
          const inner = k.n % 2n === 0n ? algebra.abs(base) : base;
          return algebra.mul(number(k), logarithm(algebra, inner));
        }
      }
      const rule = RULES[node.name];
      const args = node.args.map((value) => normalForm(algebra, value));
      return rule ? rule(algebra, args) : algebra.kernelPower(algebra.opaque(node.name, args));
    }
  }
}
