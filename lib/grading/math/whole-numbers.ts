// Functions of whole numbers.
import { absInt, gcd } from './rational';
import { bitsOf, MAX_BITS, spend, WorkExceeded } from './work';

/** n!. @throws WorkExceeded where it is too long; RangeError for negative n */
export function factorialInt(n: bigint): bigint {
  if (n < 0n) throw new RangeError('the factorial of a negative number');
  if (n > 20_000n || (n > 1n && Number(n) * bitsOf(n) > 2 * MAX_BITS)) throw new WorkExceeded();
  spend(1 + Number(n));
  let result = 1n;
  for (let k = 2n; k <= n; k++) result *= k;
  return result;
}

/** "n choose k" of whole numbers, n of any sign. @throws WorkExceeded where it is too long */
export function binomialInt(n: bigint, k: bigint): bigint {
  if (k < 0n || (n >= 0n && k > n)) return 0n;
  const j = n >= 0n && 2n * k > n ? n - k : k;
  if (j > 5000n) throw new WorkExceeded();
  let result = 1n;
  for (let i = 1n; i <= j; i++) {
    spend(1 + bitsOf(result) / 2000);
    if (bitsOf(result) > MAX_BITS) throw new WorkExceeded();
    result = (result * (n - i + 1n)) / i;
  }
  return result;
}

/** Least common multiple, not negative. */
export const lcmInt = (a: bigint, b: bigint): bigint => (a === 0n || b === 0n ? 0n : absInt(a * b) / gcd(a, b));
