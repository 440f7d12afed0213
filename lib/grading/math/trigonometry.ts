// Sines, cosines and their inverses in normal form.
import { type Algebra, type Fraction, fractionOf, GiveUp, ONE_FRACTION, Restart } from './algebra';
import { num, product } from './ast';
import { evaluate } from './evaluate';
import { constantOf, type Monomial, monomialKey, single, ZERO_POLY } from './polynomial';
import { absInt, floorRational, gcd, invRational, mulRational, ONE, type Rational, rational } from './rational';
import { root } from './roots';

const number = (n: bigint | Rational, d = 1n): Fraction =>
  fractionOf(single(typeof n === 'bigint' ? rational(n, d) : n));
const ZERO_FRACTION = fractionOf(ZERO_POLY);

type Value = (algebra: Algebra) => Fraction;
const times =
  (n: bigint, d: bigint, value: Value): Value =>
  (algebra) =>
    algebra.mul(number(n, d), value(algebra));
const plus =
  (...values: Value[]): Value =>
  (algebra) =>
    values.map((value) => value(algebra)).reduce((x, y) => algebra.add(x, y));
const rootOf =
  (value: Value): Value =>
  (algebra) =>
    root(algebra, value(algebra), 2n);
const whole =
  (n: bigint): Value =>
  () =>
    number(n);
const surd = (n: bigint) => rootOf(whole(n));
/** cos(π k/n) for the angles up to π/2 whose cosine is written with roots, by "k/n". */
const COSINES: Readonly<Record<string, Value>> = {
  '0/1': whole(1n),
  '1/2': whole(0n),
  '1/3': times(1n, 2n, whole(1n)),
  '1/4': times(1n, 2n, surd(2n)),
  '1/6': times(1n, 2n, surd(3n)),
  '1/5': times(1n, 4n, plus(whole(1n), surd(5n))),
  '2/5': times(1n, 4n, plus(whole(-1n), surd(5n))),
  '1/12': times(1n, 4n, plus(surd(6n), surd(2n))),
  '5/12': times(1n, 4n, plus(surd(6n), times(-1n, 1n, surd(2n)))),
  '1/8': times(1n, 2n, rootOf(plus(whole(2n), surd(2n)))),
  '3/8': times(1n, 2n, rootOf(plus(whole(2n), times(-1n, 1n, surd(2n))))),
  '1/10': times(1n, 4n, rootOf(plus(whole(10n), times(2n, 1n, surd(5n))))),
  '3/10': times(1n, 4n, rootOf(plus(whole(10n), times(-2n, 1n, surd(5n))))),
};

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
    ? known(algebra)
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
  if (name === 'asin') return [root(algebra, algebra.add(ONE_FRACTION, algebra.neg(square)), 2n), u];
  const cos = algebra.inverse(root(algebra, algebra.add(ONE_FRACTION, square), 2n));
  return [cos, algebra.mul(u, cos)];
}

/** asin a or atan a. */
export function inverseSine(algebra: Algebra, name: 'asin' | 'atan', a: Fraction): Fraction {
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
