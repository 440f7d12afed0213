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
  leadingTerm,
  type Monomial,
  mergeMonomials,
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
  rootPoly,
  scalePoly,
  single,
  ZERO_POLY,
} from './polynomial';
import {
  absInt,
  addRational,
  factorInt,
  floorRational,
  invRational,
  isPowerShort,
  mulRational,
  negRational,
  ONE,
  powRational,
  type Rational,
  rational,
  rootInt,
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

interface Kernel {
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
const number = (value: Rational): Fraction => fractionOf(single(value));
/** 1. */
export const ONE_FRACTION: Fraction = fractionOf(ONE_POLY);
const isOne = (p: Poly) => {
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
  #prime(prime: bigint): number {
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
  #radical(base: Poly): number {
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
    return this.#cancel(mulPoly(a.n, b.n, this), mulPoly(a.d, b.d, this));
  }
  /** a + b. */
  add(a: Fraction, b: Fraction): Fraction {
    if (isOne(a.d) && isOne(b.d)) return fractionOf(addPoly(a.n, b.n));
    if (polyKey(a.d) === polyKey(b.d)) return this.#cancel(addPoly(a.n, b.n), a.d);
    return this.#cancel(addPoly(mulPoly(a.n, b.d, this), mulPoly(b.n, a.d, this)), mulPoly(a.d, b.d, this));
  }
  neg(a: Fraction): Fraction {
    return { n: negPoly(a.n), d: a.d };
  }
  /** 1 / a. @throws Undefined for 0 */
  inverse({ n, d }: Fraction): Fraction {
    if (n.size === 0) throw new Undefined();
    return this.#cancel(d, n);
  }
  #cancel(n: Poly, d: Poly): Fraction {
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
    return below ? this.#cancel(ONE_POLY, below) : { n: x, d: y };
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
  #hasImaginary(p: Poly): boolean {
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
  /** Whether a polynomial is not negative for any real values, as far as its signs and exponents tell. */
  isNonNegative(p: Poly): boolean {
    for (const { c, m } of p.values()) {
      if (c.n < 0n) return false;
      for (const [id, exponent] of m) {
        const { positive, kind } = this.kernels[id];
        if (kind === 'i') return false;
        if (!positive && exponent.n % 2n !== 0n && exponent.d % 2n !== 0n) return false;
      }
    }
    return true;
  }
  /** Whether p is a square, or a quadratic polynomial in one variable without two real zeros, with a positive sign. */
  #isSquareOrDefinite(p: Poly): boolean {
    const root =
      p.size > 1 ? rootPoly(scalePoly(p, invRational(contentOf(p))), 2n, this, (c) => rationalRoot(c, 2n)) : null;
    if (root) return true;
    const [id, ...others] = kernelsOf(p);
    if (id === undefined || others.length > 0 || p.size > 3) return false;
    const coefficients = [0n, 1n, 2n].map(
      (k) => p.get(monomialKey(k === 0n ? [] : [[id, rational(k)]]))?.c ?? rational(0n),
    );
    const known = coefficients.filter(({ n }) => n !== 0n).length;
    const [c, b, a] = coefficients;
    if (known !== p.size || a.n <= 0n) return false;
    const discriminant = addRational(mulRational(b, b), mulRational(rational(-4n), mulRational(a, c)));
    return discriminant.n <= 0n;
  }
  /** Notes that a polynomial must not be negative. */
  demand(p: Poly): void {
    if (this.isConstantPoly(p) || this.isNonNegative(p) || this.#isSquareOrDefinite(p)) return;
    let rest = scalePoly(p, invRational(contentOf(p)));
    const term = onlyTerm(rest);
    if (term) {
      const odd = term.m.filter(
        ([id, exponent]) => !this.kernels[id].positive && exponent.n % 2n !== 0n && exponent.d % 2n !== 0n,
      );
      rest = single(
        rational(term.c.n > 0n ? 1n : -1n),
        odd.map(([id]) => [id, ONE] as const),
      );
    }
    this.conditions.set(polyKey(rest), rest);
  }

  // ---- roots and absolute values

  /** a^r. */
  pow(a: Fraction, r: Rational): Fraction {
    if (a.n.size === 0) {
      if (r.n <= 0n) throw new Undefined();
      return a;
    }
    if (r.d === 1n) {
      const k = absInt(r.n);
      const [n, d] = [a.n, a.d].map((p) => this.#integerPower(p, k));
      return r.n < 0n ? this.#cancel(d, n) : this.#cancel(n, d);
    }
    return this.pow(this.root(a, r.d), rational(r.n));
  }
  #integerPower(p: Poly, k: bigint): Poly {
    const term = onlyTerm(p);
    if (term) {
      const c = constantOf(single(term.c))!;
      // A power that is too long to write out stays a power of primes.
      if (!isPowerShort(c.n, k) || !isPowerShort(c.d, k)) {
        const primes = this.#primePower(rational(absInt(c.n), c.d), rational(k));
        const sign = c.n < 0n && k % 2n === 1n ? rational(-1n) : ONE;
        return mulPoly(scalePoly(primes, sign), this.reduce(ONE, powMonomial(term.m, rational(k))), this);
      }
      return this.reduce(powRational(c, k), powMonomial(term.m, rational(k)));
    }
    if (k > 200n) throw new GiveUp();
    return powPoly(p, k, this);
  }
  /** c^r for c > 0. */
  #primePower(c: Rational, r: Rational): Poly {
    const factors = [...factorInt(c.n), ...factorInt(c.d).map(([prime, k]) => [prime, -k] as const)];
    let m: Monomial = [];
    for (const [prime, k] of factors) m = mergeMonomials(m, [[this.#prime(prime), mulRational(r, rational(k))]]);
    return this.reduce(ONE, m);
  }

  /** The q-th root of a, the real one where q is odd. */
  root(a: Fraction, q: bigint): Fraction {
    if (q === 1n || a.n.size === 0) return a;
    if (isOne(a.d)) return this.#rootOfPoly(a.n, q);
    // √(n/d) = √(n d) / |d|.
    const raised = mulPoly(a.n, powPoly(a.d, q - 1n, this), this);
    const below = q % 2n === 0n ? this.abs(fractionOf(a.d)) : fractionOf(a.d);
    return this.mul(this.#rootOfPoly(raised, q), this.inverse(below));
  }

  #rootOfPoly(p: Poly, q: bigint): Fraction {
    const even = q % 2n === 0n;
    const third = rational(1n, q);
    if (this.#hasImaginary(p)) return this.#complexRoot(p, q);
    if (this.isConstantPoly(p)) {
      const sign = this.signOf(p);
      if (sign === null || sign === 0) throw new GiveUp();
      if (sign < 0) {
        const size = this.#rootOfPoly(negPoly(p), q);
        if (!even) return this.neg(size);
        if (q === 2n) return this.mul(size, this.kernelPower(this.imaginary()));
        throw new GiveUp();
      }
    } else if (even) this.demand(p);
    const content = contentOf(p);
    let rest = scalePoly(p, invRational(content));
    let result = fractionOf(this.#primePower(content, third));
    // Factors of all terms leave the root.
    const common = this.#commonFactor(rest);
    let inside: Monomial = [];
    for (const [id, exponent] of common) {
      const { positive, kind } = this.kernels[id];
      const sure = positive || kind === 'prime' || !even || exponent.d % 2n === 0n;
      const sole = onlyTerm(rest);
      const alone = sole && common.filter(([other]) => !this.kernels[other].positive).length === 1 && sole.c.n > 0n;
      if (sure || (alone && exponent.n % 2n !== 0n)) {
        result = this.mul(result, this.kernelPower(id, mulRational(exponent, third)));
        continue;
      }
      if (exponent.d !== 1n) throw new GiveUp();
      // x^3 = x^2 · x, and √(x^2) = |x|.
      const odd = exponent.n % 2n === 0n ? 0n : 1n;
      const square = this.abs(this.kernelPower(id));
      if (exponent.n !== odd) result = this.mul(result, this.#positivePower(square, rational(exponent.n - odd, q)));
      if (odd) inside = mergeMonomials(inside, [[id, ONE]]);
    }
    rest = mulPoly(rest, this.reduce(ONE, powMonomial(common, rational(-1n))), this);
    const exact = rest.size > 1 ? rootPoly(rest, q, this, (c) => rationalRoot(c, q)) : null;
    if (exact && inside.length === 0) return this.mul(result, even ? this.abs(fractionOf(exact)) : fractionOf(exact));
    if (exact && even) {
      result = this.mul(result, this.abs(fractionOf(exact)));
      rest = ONE_POLY;
    }
    rest = mulPoly(rest, single(ONE, inside), this);
    const sole = constantOf(rest);
    if (sole && sole.n === 1n && sole.d === 1n) return result;
    if (sole && sole.n === -1n && sole.d === 1n && !even) return this.neg(result);
    if (q === 2n && this.isConstantPoly(rest)) {
      const nested = this.#denest(rest);
      if (nested) return this.mul(result, nested);
    }
    if (!even && leadingTerm(rest).c.n < 0n) {
      rest = negPoly(rest);
      result = this.neg(result);
    }
    return this.mul(result, this.kernelPower(this.#radical(rest), third));
  }

  /** base^r for base ≥ 0: r is no integer only if base is one kernel. */
  #positivePower(base: Fraction, r: Rational): Fraction {
    if (r.d === 1n) return this.pow(base, r);
    const term = isOne(base.d) ? onlyTerm(base.n) : null;
    if (term?.m.length !== 1 || term.c.n !== 1n || term.c.d !== 1n) throw new GiveUp();
    return fractionOf(this.reduce(ONE, powMonomial(term.m, r)));
  }

  /** The kernels that all terms have, with their lowest exponents. */
  #commonFactor(p: Poly): Monomial {
    const terms = [...p.values()];
    return terms[0].m.flatMap(([id, first]) => {
      const { kind } = this.kernels[id];
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
  #denest(p: Poly): Fraction | null {
    const whole = p.get('')?.c;
    if (!whole || p.size !== 2 || whole.n <= 0n) return null;
    const [surd] = [...p.values()].filter(({ m }) => m.length > 0);
    const square = constantOf(this.reduce(mulRational(surd.c, surd.c), powMonomial(surd.m, rational(2n))));
    if (!square) return null;
    const r = rationalRoot(
      rational(whole.n * whole.n * square.d - square.n * whole.d * whole.d, whole.d * whole.d * square.d),
      2n,
    );
    if (!r) return null;
    const part = (sign: bigint) =>
      this.root(number(rational(whole.n * r.d + sign * r.n * whole.d, 2n * whole.d * r.d)), 2n);
    return this.add(part(1n), surd.c.n > 0n ? part(-1n) : this.neg(part(-1n)));
  }

  /** Principal √(a + bi) where |a + bi| is rational. */
  #complexRoot(p: Poly, q: bigint): Fraction {
    if (q !== 2n || !this.isConstantPoly(p)) throw new GiveUp();
    const { re, im } = this.parts(p);
    const [a, b] = [constantOf(re), constantOf(im)];
    if (!a || !b || b.n === 0n) throw new GiveUp();
    const [x, y] = [a.n * b.d, b.n * a.d];
    const below = a.d * b.d;
    const size = rationalRoot(rational(x * x + y * y, below * below), 2n);
    if (!size) throw new GiveUp();
    const part = (sign: bigint) =>
      this.root(number(rational(size.n * a.d + sign * a.n * size.d, 2n * size.d * a.d)), 2n);
    const imaginary = this.mul(part(-1n), this.kernelPower(this.imaginary()));
    return this.add(part(1n), b.n > 0n ? imaginary : this.neg(imaginary));
  }

  /** Real and imaginary part of a polynomial whose other kernels are real. */
  parts(p: Poly): { re: Poly; im: Poly } {
    let [re, im] = [ZERO_POLY, ZERO_POLY];
    for (const { c, m } of p.values()) {
      const rest = m.filter(([id]) => this.kernels[id].kind !== 'i');
      if (rest.length === m.length) re = addPoly(re, single(c, m));
      else im = addPoly(im, single(c, rest));
    }
    return { re, im };
  }

  /** |a|. */
  abs(a: Fraction): Fraction {
    if (a.n.size === 0) return a;
    if (!isOne(a.d)) return this.mul(this.abs(fractionOf(a.n)), this.inverse(this.abs(fractionOf(a.d))));
    const p = a.n;
    // z is a complex number as a rule, of which |z|² is not z².
    const isComplex = ({ node }: Kernel) => node.kind === 'variable' && node.name === 'z';
    if ([...kernelsOf(p)].some((id) => isComplex(this.kernels[id]))) return this.kernelPower(this.opaque('abs', [a]));
    if (this.#hasImaginary(p)) {
      const { re, im } = this.parts(p);
      return this.root(fractionOf(addPoly(mulPoly(re, re, this), mulPoly(im, im, this))), 2n);
    }
    if (this.isConstantPoly(p)) {
      const sign = this.signOf(p);
      if (sign === null) throw new GiveUp();
      return sign < 0 ? this.neg(a) : a;
    }
    if (this.isNonNegative(p)) return a;
    const content = contentOf(p);
    let rest = scalePoly(p, invRational(content));
    const common = this.#commonFactor(rest);
    rest = mulPoly(rest, this.reduce(ONE, powMonomial(common, rational(-1n))), this);
    let result = number(content);
    for (const [id, exponent] of common) {
      const kernel = this.kernels[id];
      const isEven = exponent.n % 2n === 0n || exponent.d % 2n === 0n;
      if (kernel.positive || isEven) {
        result = this.mul(result, this.kernelPower(id, exponent));
      } else {
        if (exponent.d !== 1n) throw new GiveUp();
        const bars = this.kernelPower(this.absKernel(single(ONE, [[id, ONE]])));
        result = this.mul(this.mul(result, bars), this.kernelPower(id, rational(exponent.n - 1n)));
      }
    }
    if (constantOf(rest)) return result;
    if (leadingTerm(rest).c.n < 0n) rest = negPoly(rest);
    if (this.isNonNegative(rest)) return this.mul(result, fractionOf(rest));
    return this.mul(result, this.kernelPower(this.absKernel(rest)));
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
