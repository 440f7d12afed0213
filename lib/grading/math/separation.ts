// A lower bound of the absolute value of an algebraic number that is not 0: a number that is smaller is 0. It proves
// equalities of nested roots, which have no normal form here.
// Source: Burnikel, Funke, Mehlhorn, Schirra and Schmitt, "A separation bound for real algebraic expressions" (2001).
import { type Node, variablesOf } from './ast';
import { exactValue } from './evaluate';
import { type Rational, rational } from './rational';
import { bitsOf, spend } from './work';

/** Binary logarithms of the bounds of numerator and denominator, each above those of all conjugates. */
interface Bounds {
  above: number;
  below: number;
}

const NONE: ReadonlyMap<string, Rational> = new Map();
/** Largest degree that is considered. */
const MAX_DEGREE = 512;

/** The factor r of an angle π r; null for other angles. */
function factorOfPi(node: Node): Rational | null {
  if (node.kind === 'constant') return node.name === 'pi' ? rational(1n) : null;
  if (node.kind !== 'product') return null;
  let found: Rational | null = null;
  const rest: Node[] = [];
  for (const arg of node.args) {
    const factor: Rational | null = found ? null : factorOfPi(arg);
    if (factor) found = factor;
    else rest.push(arg);
  }
  if (!found || rest.length === 0) return found;
  const scale = exactValue({ kind: 'product', args: rest }, NONE);
  return scale && rational(scale.n * found.n, scale.d * found.d);
}

class Bound {
  /** Product of the indices of all different roots. */
  degree = 1;
  /** Common denominator of the angles in units of π. */
  #turns = 1n;
  readonly #roots = new Set<string>();

  #extend(key: string, degree: number): void {
    if (this.#roots.has(key)) return;
    this.#roots.add(key);
    this.degree *= degree;
  }
  #root(base: Node, key: string, q: number): Bounds {
    const { above: u, below: l } = this.of(base);
    this.#extend(key, q);
    return u >= l ? { above: (u + (q - 1) * l) / q, below: l } : { above: u, below: ((q - 1) * u + l) / q };
  }
  #power({ above, below }: Bounds, k: bigint): Bounds {
    const size = Number(k < 0n ? -k : k);
    return k < 0n ? { above: below * size, below: above * size } : { above: above * size, below: below * size };
  }

  /** @throws RangeError where an expression is not algebraic, or not seen to be */
  of(node: Node): Bounds {
    spend(1);
    const exact = exactValue(node, NONE);
    if (exact) return { above: exact.n === 0n ? 0 : bitsOf(exact.n), below: exact.d === 1n ? 0 : bitsOf(exact.d) };
    switch (node.kind) {
      case 'constant':
        if (node.name !== 'i') break;
        this.#extend('i', 2);
        return { above: 0, below: 0 };
      case 'sum':
        return node.args
          .map((arg) => this.of(arg))
          .reduce((a, b) => ({
            above: Math.max(a.above + b.below, b.above + a.below) + 1,
            below: a.below + b.below,
          }));
      case 'product':
        return node.args
          .map((arg) => this.of(arg))
          .reduce((a, b) => ({ above: a.above + b.above, below: a.below + b.below }));
      case 'power': {
        const r = exactValue(node.exponent, NONE);
        if (!r || r.d > 64n || r.n > 1000n || r.n < -1000n) break;
        if (r.d === 1n) return this.#power(this.of(node.base), r.n);
        return this.#power(this.#root(node.base, `${r.d} ${keyOf(node.base)}`, Number(r.d)), r.n);
      }
      case 'root': {
        const q = exactValue(node.index, NONE);
        if (q?.d !== 1n || q.n < 1n || q.n > 64n) break;
        return this.#root(node.base, `${q.n} ${keyOf(node.base)}`, Number(q.n));
      }
      case 'call': {
        const r = node.name === 'sin' || node.name === 'cos' ? factorOfPi(node.args[0]) : null;
        if (!r || r.d > 200n) break;
        // A sum of two roots of unity over 2, or 2i.
        this.#turns = (this.#turns * 4n * r.d) / gcd(this.#turns, 4n * r.d);
        return { above: 1, below: 1 };
      }
    }
    throw new RangeError('not an algebraic number');
  }
  /** Degree of the whole. */
  total(): number {
    return this.#turns === 1n ? this.degree : this.degree * Number(this.#turns);
  }
}

const gcd = (a: bigint, b: bigint): bigint => (b === 0n ? a : gcd(b, a % b));
const keyOf = (node: Node): string =>
  JSON.stringify(node, (_key, value) => (typeof value === 'bigint' ? `${value}n` : value));

/**
 * The number of bits k with |x| > 2^-k for a constant x that is not 0; null where x is not algebraic, or the bound too
 * small to be of use.
 */
export function separationBits(node: Node): number | null {
  if (variablesOf(node).size > 0) return null;
  try {
    const bound = new Bound();
    const { above, below } = bound.of(node);
    const degree = bound.total();
    if (degree > MAX_DEGREE) return null;
    const bits = Math.ceil((degree - 1) * Math.max(above, 0) + below + 2);
    return bits <= 20_000 ? bits : null;
  } catch (error) {
    if (error instanceof RangeError) return null;
    throw error;
  }
}
