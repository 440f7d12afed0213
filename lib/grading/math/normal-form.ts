// The normal form of an expression.

import { type Algebra, type Fraction, fractionOf, GiveUp, ONE_FRACTION } from './algebra';
import { type Node, numberNode } from './ast';
import { signBall, Unsure } from './ball';
import { evaluate } from './evaluate';
import { exponential, generalPower, logarithm } from './exponentials';
import { constantOf, type Monomial, onlyTerm, single } from './polynomial';
import { ONE, type Rational, rational } from './rational';
import { abs, parts, root } from './roots';
import { table } from './table';
import { cosSin, inverseSine } from './trigonometry';

const number = (n: bigint | Rational, d = 1n): Fraction =>
  fractionOf(single(typeof n === 'bigint' ? rational(n, d) : n));

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

const RULES = table<Rule>({
  sin: (algebra, [a]) => cosSin(algebra, a)[1],
  cos: (algebra, [a]) => cosSin(algebra, a)[0],
  ln: (algebra, [a]) => logarithm(algebra, a),
  abs: (algebra, [a]) => abs(algebra, a),
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
    const { re, im } = parts(algebra, n);
    const i: Monomial = [[algebra.imaginary(), ONE]];
    return algebra.add(fractionOf(re), algebra.neg(algebra.mul(fractionOf(im), fractionOf(single(ONE, i)))));
  },
  re: (algebra, [{ n, d }]) => {
    if (!constantOf(d) || !algebra.isConstantPoly(n)) throw new GiveUp();
    return fractionOf(parts(algebra, n).re);
  },
  im: (algebra, [{ n, d }]) => {
    if (!constantOf(d) || !algebra.isConstantPoly(n)) throw new GiveUp();
    return fractionOf(parts(algebra, n).im);
  },
});

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
      return root(algebra, normalForm(algebra, node.base), index.n);
    }
    case 'call': {
      // ln(b^k) = k ln|b| for even k: b^k written out would hide it.
      const [arg] = node.args;
      if (node.name === 'ln' && arg.kind === 'power') {
        const k = algebra.rationalOf(normalForm(algebra, arg.exponent));
        const base = normalForm(algebra, arg.base);
        if (k && k.d === 1n && k.n !== 0n && !onlyTerm(base.n) && !algebra.isConstant(base)) {
          const inner = k.n % 2n === 0n ? abs(algebra, base) : base;
          return algebra.mul(number(k), logarithm(algebra, inner));
        }
      }
      const rule = RULES[node.name];
      const args = node.args.map((value) => normalForm(algebra, value));
      return rule ? rule(algebra, args) : algebra.kernelPower(algebra.opaque(node.name, args));
    }
  }
}
