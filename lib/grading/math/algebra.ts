// The normal form of expressions: a fraction of two polynomials in kernels. Two expressions are proved equal when the
// cross products of their fractions are the same polynomial. Every rule holds for all real values of the variables for
// which both sides exist; what a root or logarithm demands for that is collected as a condition.
import { call, type Node, num, numberNode, power, product, quotient, sum } from './ast';
import { signBall, Undefined, Unsure } from './ball';
import { evaluate } from './evaluate';
import {
  addPoly,
  constantOf,
  contentOf,
  dividePoly,
  kernelsOf,
  type Monomial,
  monomialKey,
  mulPoly,
  negPoly,
  ONE_POLY,
  onlyTerm,
  type Poly,
  polyKey,
  powMonomial,
  powPoly,
  type Ring,
  scalePoly,
  single,
} from './polynomial';
import {
  absInt,
  floorRational,
  invRational,
  isPowerShort,
  mulRational,
  negRational,
  ONE,
  powRational,
  type Rational,
  rational,
} from './rational';
import { spend } from './work';

/** n / d; d is not 0 as a polynomial. */
export interface Fraction {
  n: Poly;
  d: Poly;
}

/** The normal form does not exist, or is not found: nothing is proved. */
export class GiveUp extends Error {}
/** A hint was added: the normal forms are to be computed anew. */
export class Restart extends Error {}

/** What earlier normal forms showed. */
export interface Hints {
  /** Variables that are not negative wherever the expressions exist. */
  nonNegative: Set<string>;
  /** The part of a monomial of which all its angles are multiples: sin x with sin(x/2) beside it needs halves. */
  units: Map<string, Rational>;
}

type KernelKind = 'prime' | 'i' | 'variable' | 'exp' | 'opaque' | 'radical' | 'abs' | 'sin' | 'cos';

/** What polynomials are made of. */
export interface Kernel {
  kind: KernelKind;
  /** As an expression, for its numeric value. */
  node: Node;
  constant: boolean;
  /** A positive real number for all values of its variables. */
  positive: boolean;
  /** Of a prime. */
  prime?: bigint;
  /** Below a radical, or between the bars. */
  base?: Poly;
  /** Of the sine: the kernel of the cosine. */
  partner?: number;
  /** Of a function. */
  name?: string;
  args?: Fraction[];
  /** e^exponent. */
  exponent?: Monomial;
}

/** As a fraction. */
export const fractionOf = (n: Poly): Fraction => ({ n, d: ONE_POLY });
/** 1. */
export const ONE_FRACTION: Fraction = fractionOf(ONE_POLY);
/** Whether a polynomial is 1. */
export const isOne = (p: Poly) => {
  const value = constantOf(p);
  return value !== null && value.n === 1n && value.d === 1n;
};

/** The normal forms of the expressions of one comparison. */
export class Algebra implements Ring {
  readonly hints: Hints;
  readonly kernels: Kernel[] = [];
  /** Polynomials that must not be negative for the expressions to exist, by their keys; positive factors are left out. */
  conditions = new Map<string, Poly>();
  hasLongPowers = false;
  readonly #ids = new Map<string, number>();

  constructor(hints: Hints) {
    this.hints = hints;
  }

  // ---- kernels

  /** The kernel of a key. */
  kernel(key: string, make: () => Kernel): number {
    let id = this.#ids.get(key);
    if (id === undefined) {
      const kernel = make();
      id = this.kernels.length;
      this.kernels.push(kernel);
      this.#ids.set(key, id);
    }
    return id;
  }
  /** A power of a kernel. */
  kernelPower(id: number, exponent: Rational = ONE): Fraction {
    return fractionOf(this.reduce(ONE, exponent.n === 0n ? [] : [[id, exponent]]));
  }
  prime(prime: bigint): number {
    return this.kernel(`prime ${prime}`, () => ({
      kind: 'prime',
      node: num(prime),
      constant: true,
      positive: true,
      prime,
    }));
  }
  /** i. */
  imaginary(): number {
    return this.kernel('i', () => ({
      kind: 'i',
      node: { kind: 'constant', name: 'i' },
      constant: true,
      positive: false,
    }));
  }
  /** π. */
  pi(): number {
    return this.kernel('pi', () => ({
      kind: 'opaque',
      node: { kind: 'constant', name: 'pi' },
      constant: true,
      positive: true,
    }));
  }
  variable(name: string): number {
    return this.kernel(`variable ${name}`, () => ({
      kind: 'variable',
      node: { kind: 'variable', name },
      constant: false,
      positive: this.hints.nonNegative.has(name),
    }));
  }
  /** e^m. */
  exponentialKernel(m: Monomial): number {
    const constant = m.every(([id]) => this.kernels[id].constant);
    return this.kernel(`exp ${monomialKey(m)}`, () => ({
      kind: 'exp',
      node: power({ kind: 'constant', name: 'e' }, this.monomialNode(m)),
      constant,
      positive: true,
      exponent: m,
    }));
  }
  /** A function's value about which nothing else is known. Kernels with equal arguments are one. */
  opaque(name: string, args: Fraction[], { positive = false, unordered = false } = {}): number {
    const sameArgs = (a: Fraction[], b: Fraction[]): boolean => {
      if (a.length !== b.length) return false;
      if (!unordered) return a.every((arg, i) => this.equal(arg, b[i]));
      const free = [...b];
      return a.every((arg) => {
        const at = free.findIndex((other) => this.equal(arg, other));
        if (at >= 0) free.splice(at, 1);
        return at >= 0;
      });
    };
    const found = this.kernels.findIndex(
      (kernel) => kernel.kind === 'opaque' && kernel.name === name && sameArgs(args, kernel.args!),
    );
    if (found >= 0) return found;
    const nodes = args.map((arg) => this.node(arg));
    return this.kernel(`call ${name} ${this.kernels.length}`, () => ({
      kind: 'opaque',
      node: call(name, ...nodes),
      constant: args.every((arg) => this.isConstant(arg)),
      positive,
      name,
      args,
    }));
  }
  radical(base: Poly): number {
    return this.kernel(`radical ${polyKey(base)}`, () => ({
      kind: 'radical',
      node: this.polyNode(base),
      constant: this.isConstantPoly(base),
      positive: false,
      base,
    }));
  }
  /** |base|. */
  absKernel(base: Poly): number {
    return this.kernel(`abs ${polyKey(base)}`, () => ({
      kind: 'abs',
      node: call('abs', this.polyNode(base)),
      constant: false,
      positive: true,
      base,
    }));
  }
  /** cos and sin of unit · m. */
  angleKernels(m: Monomial, unit: Rational): [cos: number, sin: number] {
    const key = `${monomialKey(m)} : ${unit.n}/${unit.d}`;
    const node = product(this.monomialNode(m), numberNode(unit));
    const constant = m.every(([id]) => this.kernels[id].constant);
    const cos = this.kernel(`cos ${key}`, () => ({ kind: 'cos', node: call('cos', node), constant, positive: false }));
    const sin = this.kernel(`sin ${key}`, () => ({
      kind: 'sin',
      node: call('sin', node),
      constant,
      positive: false,
      partner: cos,
    }));
    return [cos, sin];
  }

  // ---- the ring

  reduce(c: Rational, m: Monomial): Poly {
    let coefficient = c;
    const kept: (readonly [number, Rational])[] = [];
    const factors: Poly[] = [];
    for (const [id, exponent] of m) {
      const kernel = this.kernels[id];
      const whole = floorRational(exponent);
      if (kernel.kind === 'prime' && whole !== 0n && isPowerShort(kernel.prime!, whole)) {
        coefficient = mulRational(coefficient, powRational(rational(kernel.prime!), whole));
        if (exponent.d !== 1n) kept.push([id, { n: exponent.n - whole * exponent.d, d: exponent.d }]);
      } else if (kernel.kind === 'i') {
        if (exponent.d !== 1n) throw new GiveUp();
        const turn = ((exponent.n % 4n) + 4n) % 4n;
        if (turn >= 2n) coefficient = negRational(coefficient);
        if (turn % 2n === 1n) kept.push([id, ONE]);
      } else if ((kernel.kind === 'radical' && whole > 0n) || (kernel.kind === 'abs' && whole > 1n)) {
        const times = kernel.kind === 'abs' ? whole - (whole % 2n) : whole;
        factors.push(powPoly(kernel.base!, times, this));
        const rest = { n: exponent.n - times * exponent.d, d: exponent.d };
        if (rest.n !== 0n) kept.push([id, rest]);
      } else if (kernel.kind === 'sin' && whole > 1n) {
        const cosine = single(rational(-1n), [[kernel.partner!, rational(2n)]]);
        factors.push(powPoly(addPoly(ONE_POLY, cosine), whole / 2n, this));
        if (whole % 2n === 1n) kept.push([id, ONE]);
      } else kept.push([id, exponent]);
    }
    let result = single(...this.#withLongPowers(coefficient, kept));
    for (const factor of factors) result = mulPoly(result, factor, this);
    return result;
  }

  /** Moves a prime's factors from the coefficient to its power, where that is too long to be written out. */
  #withLongPowers(c: Rational, m: Monomial): [Rational, Monomial] {
    if (c.n === 0n || !m.some(([id, { n, d }]) => this.kernels[id].kind === 'prime' && absInt(n) > d)) return [c, m];
    this.hasLongPowers = true;
    let { n, d } = c;
    const moved = m.map(([id, exponent]) => {
      const { prime } = this.kernels[id];
      if (prime === undefined || absInt(exponent.n) <= exponent.d) return [id, exponent] as const;
      let k = 0n;
      for (; n % prime === 0n; k++) n /= prime;
      for (; d % prime === 0n; k--) d /= prime;
      return [id, { n: exponent.n + k * exponent.d, d: exponent.d }] as const;
    });
    return [{ n, d }, moved];
  }

  /** a · b. */
  mul(a: Fraction, b: Fraction): Fraction {
    return this.cancel(mulPoly(a.n, b.n, this), mulPoly(a.d, b.d, this));
  }
  /** a + b. */
  add(a: Fraction, b: Fraction): Fraction {
    if (isOne(a.d) && isOne(b.d)) return fractionOf(addPoly(a.n, b.n));
    if (polyKey(a.d) === polyKey(b.d)) return this.cancel(addPoly(a.n, b.n), a.d);
    return this.cancel(addPoly(mulPoly(a.n, b.d, this), mulPoly(b.n, a.d, this)), mulPoly(a.d, b.d, this));
  }
  neg(a: Fraction): Fraction {
    return { n: negPoly(a.n), d: a.d };
  }
  /** 1 / a. @throws Undefined for 0 */
  inverse({ n, d }: Fraction): Fraction {
    if (n.size === 0) throw new Undefined();
    return this.cancel(d, n);
  }
  cancel(n: Poly, d: Poly): Fraction {
    if (isOne(d)) return { n, d };
    if (d.size === 0) throw new Undefined();
    if (n.size === 0) return { n, d: ONE_POLY };
    const term = onlyTerm(d);
    if (term) {
      // Kernels without rules of reduction can have negative exponents.
      const isFree = (id: number) => ['prime', 'i', 'variable', 'exp', 'opaque', 'cos'].includes(this.kernels[id].kind);
      const free = term.m.filter(([id]) => isFree(id));
      const rest = term.m.filter(([id]) => !isFree(id));
      const inverse = this.reduce(invRational(term.c), powMonomial(free, rational(-1n)));
      return { n: mulPoly(n, inverse, this), d: single(ONE, rest) };
    }
    const scale = contentOf(d);
    const [x, y] = [scalePoly(n, invRational(scale)), scalePoly(d, invRational(scale))];
    if (x.size * y.size > 400) return { n: x, d: y };
    const whole = dividePoly(x, y, this);
    if (whole) return fractionOf(whole);
    const below = x.size > 1 ? dividePoly(y, x, this) : null;
    return below ? this.cancel(ONE_POLY, below) : { n: x, d: y };
  }
  /** Whether two fractions are the same. */
  equal(a: Fraction, b: Fraction): boolean {
    if (isOne(a.d) && isOne(b.d)) return addPoly(a.n, negPoly(b.n)).size === 0;
    return addPoly(mulPoly(a.n, b.d, this), negPoly(mulPoly(b.n, a.d, this))).size === 0;
  }

  // ---- what is known of an expression

  isConstantPoly(p: Poly): boolean {
    for (const id of kernelsOf(p)) if (!this.kernels[id].constant) return false;
    return true;
  }
  isConstant({ n, d }: Fraction): boolean {
    return this.isConstantPoly(n) && this.isConstantPoly(d);
  }
  /** The rational number that a fraction is; null where it is none. */
  rationalOf({ n, d }: Fraction): Rational | null {
    const [x, y] = [constantOf(n), constantOf(d)];
    return x && y ? mulRational(x, invRational(y)) : null;
  }
  hasImaginary(p: Poly): boolean {
    for (const id of kernelsOf(p)) if (this.kernels[id].kind === 'i') return true;
    return false;
  }
  /** The sign of a constant; null where it is not real. @throws GiveUp where it is not found */
  signOf(p: Poly): -1 | 0 | 1 | null {
    const exact = constantOf(p);
    if (exact) return exact.n > 0n ? 1 : exact.n < 0n ? -1 : 0;
    const node = this.polyNode(p);
    for (const bits of [80, 400]) {
      try {
        const { re, im } = evaluate(node, { bits, values: new Map(), real: false });
        if (signBall(im) !== 0) return null;
        const sign = signBall(re);
        if (sign !== null) return sign;
      } catch (error) {
        if (!(error instanceof Unsure)) throw error;
      }
    }
    throw new GiveUp();
  }
  // ---- back to expressions

  monomialNode(m: Monomial): Node {
    spend(m.length);
    if (m.length === 0) return num(1);
    return product(
      ...m.map(([id, exponent]) =>
        exponent.n === 1n && exponent.d === 1n
          ? this.kernels[id].node
          : power(this.kernels[id].node, numberNode(exponent)),
      ),
    );
  }
  polyNode(p: Poly): Node {
    if (p.size === 0) return num(0);
    return sum(...[...p.values()].map(({ c, m }) => product(numberNode(c), this.monomialNode(m))));
  }
  node({ n, d }: Fraction): Node {
    return isOne(d) ? this.polyNode(n) : quotient(this.polyNode(n), this.polyNode(d));
  }
}
