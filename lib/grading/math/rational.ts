// Exact rational numbers.
import { bitsOf, MAX_BITS, spend, spendBits, WorkExceeded } from './work';

/** A fraction in lowest terms; d > 0. */
export interface Rational {
  n: bigint;
  d: bigint;
}

/** Absolute value. */
export const absInt = (value: bigint): bigint => (value < 0n ? -value : value);

/** Greatest common divisor, not negative. */
export function gcd(a: bigint, b: bigint): bigint {
  let [x, y] = [absInt(a), absInt(b)];
  if (x === 1n || y === 1n) return 1n;
  const bits = Math.min(bitsOf(x), bitsOf(y));
  if (bits > 200) spendBits(bits * 40, bits);
  while (y !== 0n) [x, y] = [y, x % y];
  return x;
}

/** n / d in lowest terms. @throws RangeError for d = 0 */
export function rational(n: bigint, d = 1n): Rational {
  if (d === 1n) return { n, d };
  if (d === 0n) throw new RangeError('division by zero');
  const common = d < 0n ? -gcd(n, d) : gcd(n, d);
  return { n: n / common, d: d / common };
}

/** 0. */
export const ZERO: Rational = { n: 0n, d: 1n };
/** 1. */
export const ONE: Rational = { n: 1n, d: 1n };

const checked = (value: bigint) => {
  if (bitsOf(value) > MAX_BITS) throw new WorkExceeded();
  return value;
};

/** a + b. */
export const addRational = (a: Rational, b: Rational): Rational =>
  a.d === 1n && b.d === 1n ? { n: a.n + b.n, d: 1n } : rational(a.n * b.d + b.n * a.d, checked(a.d * b.d));
/** a · b. */
export const mulRational = (a: Rational, b: Rational): Rational =>
  a.d === 1n && b.d === 1n ? { n: checked(a.n * b.n), d: 1n } : rational(checked(a.n * b.n), checked(a.d * b.d));
/** -a. */
export const negRational = (a: Rational): Rational => ({ n: -a.n, d: a.d });
/** 1 / a. @throws RangeError for 0 */
export const invRational = (a: Rational): Rational => rational(a.d, a.n);
/** Whether a = b. */
export const sameRational = (a: Rational, b: Rational): boolean => a.n === b.n && a.d === b.d;
/** The greatest integer that is not above a. */
export const floorRational = (a: Rational): bigint => (a.n >= 0n ? a.n / a.d : -((-a.n + a.d - 1n) / a.d));

/** Whether base^exponent is at most MAX_BITS long. */
export const isPowerShort = (base: bigint, exponent: bigint): boolean => {
  const size = absInt(base);
  return size <= 1n || absInt(exponent) * BigInt(bitsOf(size) - 3) <= BigInt(MAX_BITS);
};

/** a^k. @throws WorkExceeded where the result is too long */
export function powRational(a: Rational, k: bigint): Rational {
  if (!isPowerShort(a.n, k) || !isPowerShort(a.d, k)) throw new WorkExceeded();
  spend(1 + Number(absInt(k)) / 50);
  if (k >= 0n) return { n: a.n ** k, d: a.d ** k };
  if (a.n === 0n) throw new RangeError('division by zero');
  const [n, d] = [a.d ** -k, a.n ** -k];
  return d < 0n ? { n: -n, d: -d } : { n, d };
}

/** The greatest r with r^k ≤ a, for a ≥ 0. */
export function rootInt(a: bigint, k: bigint): bigint {
  if (a < 2n) return a;
  const bits = BigInt(bitsOf(a));
  if (bits <= k) {
    // 2^k > a, unless the estimate of the length is above it.
    if (a < 1n << k) return 1n;
  }
  spendBits(Number(bits), Number(bits));
  let r = 1n << (bits / k + 1n);
  for (;;) {
    const next = ((k - 1n) * r + a / r ** (k - 1n)) / k;
    if (next >= r) return r;
    r = next;
    spend(2);
  }
}

/** The rational q-th root of a number; null where it has none. */
export function rationalRoot({ n, d }: Rational, q: bigint): Rational | null {
  if (n < 0n) {
    if (q % 2n === 0n) return null;
    const root = rationalRoot({ n: -n, d }, q);
    return root && negRational(root);
  }
  const [x, y] = [rootInt(n, q), rootInt(d, q)];
  return x ** q === n && y ** q === d ? { n: x, d: y } : null;
}

/** Largest prime that is looked for in a number. */
const MAX_PRIME = 2000;
const PRIMES = (() => {
  const found: number[] = [];
  for (let n = 2; n <= MAX_PRIME; n++) if (found.every((prime) => n % prime !== 0)) found.push(n);
  return found.map(BigInt);
})();

/**
 * a > 0 as a product of powers of primes up to 2000 and of one remaining factor, which is 1, or no perfect power; the
 * remaining factor counts as a prime.
 */
export function factorInt(a: bigint): [bigint, bigint][] {
  const factors: [bigint, bigint][] = [];
  let rest = a;
  const bits = bitsOf(a);
  for (const prime of PRIMES) {
    if (rest === 1n) break;
    if (prime * prime > rest && rest < 4_000_000n) break;
    let k = 0n;
    spend(1 + bits / 1000);
    while (rest % prime === 0n) {
      rest /= prime;
      k++;
      spend(1 + bits / 500);
    }
    if (k > 0n) factors.push([prime, k]);
  }
  if (rest > 1n) {
    // No factor is below 2000 > 2^10.
    for (let k = BigInt(Math.floor(bitsOf(rest) / 10)); k > 1n; k--) {
      if (k > 64n) continue;
      const root = rootInt(rest, k);
      if (root ** k === rest) {
        factors.push([root, k]);
        return factors;
      }
    }
    factors.push([rest, 1n]);
  }
  return factors;
}
