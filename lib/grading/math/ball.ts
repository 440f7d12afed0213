// Real numbers with an error bound: a ball is a midpoint m·2^e with a radius r·2^e, and every operation returns a ball
// that holds the result for all numbers of its arguments' balls. What is proved with balls is so, whatever the rounding.
// Reference: J. van der Hoeven, "Ball arithmetic" (2009).
import type { Rational } from './rational';
import { absInt, rootInt } from './rational';
import { bitsOf, spend } from './work';

/** The numbers between (m - r)·2^e and (m + r)·2^e. */
export interface Ball {
  m: bigint;
  r: bigint;
  e: number;
}

/** The balls are too wide to decide: more bits may help. */
export class Unsure extends Error {}
/** There is no such real number. */
export class Undefined extends Error {}

/** Largest exponent: numbers beyond 2^±10^12 are not computed. */
const MAX_EXPONENT = 1e12;

/** 0. */
export const zeroBall: Ball = { m: 0n, r: 0n, e: 0 };
/** An integer. */
export const integerBall = (m: bigint): Ball => ({ m, r: 0n, e: 0 });
/** Whether a ball is the number 0 alone. */
export const isZeroBall = (a: Ball): boolean => a.m === 0n && a.r === 0n;
/** -1, 0 or 1 for the sign of all numbers of a ball; null where they differ. */
export const signBall = (a: Ball): -1 | 0 | 1 | null => (isZeroBall(a) ? 0 : a.m > a.r ? 1 : -a.m > a.r ? -1 : null);
/** Exponent of a power of two above every absolute value in a ball. */
export const topBall = (a: Ball): number => bitsOf(absInt(a.m) + a.r) + a.e;

function round(m: bigint, r: bigint, e: number, bits: number): Ball {
  const extra = Math.max(bitsOf(m) - bits, bitsOf(r) - 32);
  if (Math.abs(e) > MAX_EXPONENT) throw new Unsure();
  spend(1 + bits / 400);
  if (extra <= 0) return { m, r, e };
  const shift = BigInt(extra);
  return { m: m >> shift, r: (r >> shift) + 2n, e: e + extra };
}

/** Moves a ball to another exponent. */
function shiftTo(a: Ball, e: number): { m: bigint; r: bigint } {
  if (a.e >= e) return { m: a.m << BigInt(a.e - e), r: a.r << BigInt(a.e - e) };
  const shift = BigInt(e - a.e);
  return { m: a.m >> shift, r: (a.r >> shift) + 2n };
}

/** a + b. */
export function addBall(a: Ball, b: Ball, bits: number): Ball {
  if (isZeroBall(a)) return b;
  if (isZeroBall(b)) return a;
  const e = Math.max(Math.min(a.e, b.e), Math.max(topBall(a), topBall(b)) - bits - 16);
  const [x, y] = [shiftTo(a, e), shiftTo(b, e)];
  return round(x.m + y.m, x.r + y.r, e, bits);
}
/** -a. */
export const negBall = (a: Ball): Ball => ({ m: -a.m, r: a.r, e: a.e });
/** a · b. */
export const mulBall = (a: Ball, b: Ball, bits: number): Ball =>
  round(a.m * b.m, absInt(a.m) * b.r + absInt(b.m) * a.r + a.r * b.r, a.e + b.e, bits);
/** a / b. @throws Undefined where b is 0, Unsure where it may be */
export function divBall(a: Ball, b: Ball, bits: number): Ball {
  const least = absInt(b.m) - b.r;
  if (least <= 0n) throw isZeroBall(b) ? new Undefined() : new Unsure();
  const shift = BigInt(Math.max(0, bits + bitsOf(b.m) - bitsOf(a.m) + 8));
  const m = (a.m << shift) / b.m;
  const r = ((a.r << shift) + (absInt(m) + 1n) * b.r) / least + 2n;
  return round(m, r, a.e - b.e - Number(shift), bits);
}
/** n / d. */
export const rationalBall = (a: Rational, bits: number): Ball =>
  a.d === 1n ? round(a.n, 0n, 0, bits) : divBall(integerBall(a.n), integerBall(a.d), bits);

/** √a. @throws Undefined where a is negative, Unsure where it may be */
export function sqrtBall(a: Ball, bits: number): Ball {
  const sign = signBall(a);
  if (sign === 0) return a;
  if (sign === -1) throw new Undefined();
  if (sign === null) throw new Unsure();
  let shift = Math.max(0, 2 * bits + 16 - bitsOf(a.m));
  if ((a.e - shift) % 2 !== 0) shift++;
  spend(bits / 40);
  const m = rootInt(a.m << BigInt(shift), 2n);
  const least = rootInt((a.m - a.r) << BigInt(shift), 2n);
  return round(m, (a.r << BigInt(shift)) / (least + m + 1n) + 2n, (a.e - shift) / 2, bits);
}

/** A number with an error of some units in fixed point: value / 2^p. */
const fromFixed = (value: bigint, p: number, bits: number, error = 1n << 24n): Ball => round(value, error, -p, bits);
/** The midpoint as a fixed-point number with p bits behind the point. */
const toFixed = (a: Ball, p: number): bigint => (a.e + p >= 0 ? a.m << BigInt(a.e + p) : a.m >> BigInt(-a.e - p));
/** Radius of a ball, where it is below 1/4. @throws Unsure */
function smallRadius(a: Ball): Ball {
  if (a.r !== 0n && bitsOf(a.r) + a.e > -2) throw new Unsure();
  return { m: 0n, r: a.r, e: a.e };
}
const withRadius = (a: Ball, by: Ball, bits: number): Ball => (by.r === 0n ? a : addBall(a, by, bits));

const constants = new Map<string, bigint>();
/** A constant in fixed point with p bits, within 2^16 units; computed once per precision. */
function constant(name: string, p: number, compute: (p: number) => bigint): bigint {
  const key = `${name}${p}`;
  let value = constants.get(key);
  if (value === undefined) {
    if (constants.size > 200) constants.clear();
    spend(p / 2);
    value = compute(p);
    constants.set(key, value);
  }
  return value;
}
/** atan(1/k) or atanh(1/k). */
function inverseSeries(k: bigint, p: number, alternating: boolean): bigint {
  let term = (1n << BigInt(p)) / k;
  let total = term;
  const square = k * k;
  for (let n = 3n, minus = alternating; term !== 0n; n += 2n, minus = alternating && !minus) {
    term /= square;
    total += minus ? -(term / n) : term / n;
  }
  return total;
}
const fixedPi = (p: number): bigint =>
  constant('pi', p, (q) => 4n * (4n * inverseSeries(5n, q, true) - inverseSeries(239n, q, true)));
const fixedLn2 = (p: number): bigint => constant('ln2', p, (q) => 2n * inverseSeries(3n, q, false));

/** π. */
export const piBall = (bits: number): Ball => fromFixed(fixedPi(bits + 40), bits + 40, bits);

/** e^a. */
export function expBall(a: Ball, bits: number): Ball {
  if (isZeroBall(a)) return integerBall(1n);
  const size = Math.max(0, topBall(a));
  if (size > 40) throw new Unsure();
  const spread = smallRadius(a);
  const halvings = Math.ceil(Math.sqrt(bits) / 2);
  const p = bits + 40 + size + halvings;
  const x = toFixed(a, p);
  const ln2 = fixedLn2(p);
  const n = x / ln2;
  const y = (x - n * ln2) >> BigInt(halvings);
  let term = 1n << BigInt(p);
  let total = term;
  for (let k = 1n; term !== 0n; k++) {
    spend(1 + (p * p) / 100_000);
    term = ((term * y) >> BigInt(p)) / k;
    if (term === -1n) term = 0n;
    total += term;
  }
  for (let k = 0; k < halvings; k++) total = (total * total) >> BigInt(p);
  // The error is that of n ln 2, of the series and of the squarings.
  const result = fromFixed(total, p, bits, 1n << BigInt(24 + size + halvings));
  const scaled = { ...result, e: result.e + Number(n) };
  // e^r - 1 <= 2r for r <= 1.
  const factor: Ball = { m: 1n, r: 0n, e: 0 };
  return spread.r === 0n ? scaled : mulBall(scaled, addBall(factor, { ...spread, r: 2n * spread.r }, bits), bits);
}

/** ln a. @throws Undefined where a is not positive, Unsure where it may not be */
export function lnBall(a: Ball, bits: number): Ball {
  const sign = signBall(a);
  if (sign === 0 || sign === -1) throw new Undefined();
  if (sign === null) throw new Unsure();
  if (a.r === 0n && a.m === 1n && a.e === 0) return zeroBall;
  const p = bits + 60;
  const one = 1n << BigInt(p);
  // a = 2^n y with y in [1/2, 2).
  const n = bitsOf(a.m) + a.e - 2;
  const y = toFixed({ m: a.m, r: 0n, e: a.e - n }, p);
  // atanh((y - 1) / (y + 1)), after square roots that bring y near to 1.
  const roots = Math.ceil(Math.sqrt(bits) / 2);
  let root = y;
  spend((roots * p) / 40);
  for (let k = 0; k < roots; k++) root = rootInt(root << BigInt(p), 2n);
  const z = ((root - one) << BigInt(p)) / (root + one);
  const square = (z * z) >> BigInt(p);
  let power = z;
  let total = z;
  for (let k = 3n; power !== 0n && power !== -1n; k += 2n) {
    spend(1 + (p * p) / 100_000);
    power = (power * square) >> BigInt(p);
    total += power / k;
  }
  const fixed = (total << BigInt(roots + 1)) + BigInt(n) * fixedLn2(p);
  const result = fromFixed(fixed, p, bits, 1n << BigInt(24 + roots + bitsOf(BigInt(n))));
  // |ln x - ln m| <= r / (m - r).
  return a.r === 0n ? result : addBall(result, { m: 0n, r: (a.r << BigInt(p)) / (a.m - a.r) + 1n, e: -p }, bits);
}

/** cos a and sin a. */
export function cosSinBall(a: Ball, bits: number): [Ball, Ball] {
  if (isZeroBall(a)) return [integerBall(1n), zeroBall];
  const size = Math.max(0, topBall(a));
  if (size > 4000) throw new Unsure();
  const spread = smallRadius(a);
  const p = bits + 60 + size;
  const turn = 2n * fixedPi(p);
  let x = toFixed(a, p) % turn;
  const halvings = Math.ceil(Math.sqrt(bits) / 2);
  x >>= BigInt(halvings);
  // 1 - cos x by its series, then 1 - cos 2x = 2 (2 v - v^2) with v = 1 - cos x; the sine beside it.
  const square = (x * x) >> BigInt(p);
  let term = 1n << BigInt(p);
  let cos = term;
  let sin = x;
  let sineTerm = x;
  for (let k = 1n; term !== 0n && term !== -1n; k += 2n) {
    spend(1 + (p * p) / 60_000);
    term = -((term * square) >> BigInt(p)) / (k * (k + 1n));
    sineTerm = -((sineTerm * square) >> BigInt(p)) / ((k + 1n) * (k + 2n));
    cos += term;
    sin += sineTerm;
  }
  for (let k = 0; k < halvings; k++) {
    [cos, sin] = [(cos * cos - sin * sin) >> BigInt(p), (2n * sin * cos) >> BigInt(p)];
  }
  const error = 1n << BigInt(26 + size + 2 * halvings);
  return [fromFixed(cos, p, bits, error), fromFixed(sin, p, bits, error)].map((value) =>
    withRadius(value, spread, bits),
  ) as [Ball, Ball];
}

/** atan a. */
export function atanBall(a: Ball, bits: number): Ball {
  if (isZeroBall(a)) return a;
  // atan x = 2 atan(x / (1 + √(1 + x²))).
  const inner = bits + 20;
  const one = integerBall(1n);
  const spread = smallRadius(a);
  let x: Ball = { m: a.m, r: 0n, e: a.e };
  const halvings = Math.ceil(Math.sqrt(bits) / 2) + 2;
  for (let k = 0; k < halvings; k++)
    x = divBall(x, addBall(one, sqrtBall(addBall(one, mulBall(x, x, inner), inner), inner), inner), inner);
  const p = bits + 60;
  const fixed = toFixed(x, p);
  const square = (fixed * fixed) >> BigInt(p);
  let power = fixed;
  let total = fixed;
  for (let k = 3n, minus = true; power !== 0n && power !== -1n; k += 2n, minus = !minus) {
    spend(1 + (p * p) / 100_000);
    power = (power * square) >> BigInt(p);
    total += minus ? -(power / k) : power / k;
  }
  const rounding = x.e + p >= 0 ? x.r << BigInt(x.e + p) : (x.r >> BigInt(-x.e - p)) + 1n;
  const result = fromFixed(total << BigInt(halvings), p, bits, (rounding + (1n << 24n)) << BigInt(halvings));
  return withRadius(result, spread, bits);
}
