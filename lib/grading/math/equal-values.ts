// Whether two expressions are equal. "Equal" takes two methods that know nothing of each other: a proof (the normal
// forms are the same, or the difference is smaller than any algebraic number of its kind but 0) and agreement of
// numeric values to 60 digits. Whatever fails on the way means "different".
import { Algebra, GiveUp, type Hints, Restart } from './algebra';
import { contains, type Node, negate, sum, variablesOf } from './ast';
import { Undefined, Unsure } from './ball';
import { type Complex, errorOf, evaluate, exactValue, isNonZero, subtract, topComplex } from './evaluate';
import { normalForm } from './normal-form';
import { onlyTerm } from './polynomial';
import { type Rational, rational, sameRational } from './rational';
import { separationBits } from './separation';

/** More than 60 decimal digits. */
const DIGITS_BITS = 210;
/** A constant is evaluated with more bits until they suffice. */
const PRECISIONS = [100, 300, 1200];

/** Values of the variables: of both signs, small and large, whole and not. Each row gives one variable after the other its value. */
const POINTS: readonly (readonly [bigint, bigint][])[] = [
  [
    [7391n, 10_000n],
    [24142n, 10_000n],
    [3n, 17n],
    [51926n, 10_000n],
  ],
  [
    [-16181n, 10_000n],
    [-7n, 13n],
    [-33028n, 10_000n],
    [-11n, 19n],
  ],
  [
    [31623n, 10_000n],
    [-22361n, 10_000n],
    [13n, 23n],
    [-29n, 7n],
  ],
  [
    [-5n, 37n],
    [41n, 11n],
    [-1234n, 1000n],
    [17n, 29n],
  ],
  [
    [12345n, 100n],
    [-98765n, 1000n],
    [77777n, 1000n],
    [-5555n, 100n],
  ],
  [
    [-777_777n, 1000n],
    [31337n, 10n],
    [-4321n, 10n],
    [271_828n, 100n],
  ],
  [
    [2_718_281n, 3n],
    [-3_141_592n, 7n],
    [1_618_033n, 11n],
    [-577_215n, 13n],
  ],
  [
    [1n, 1009n],
    [-1n, 2003n],
    [5n, 3001n],
    [-2n, 997n],
  ],
];
/** For formulas of whole numbers: powers of negative numbers and factorials exist there alone. */
const WHOLE_POINTS: readonly (readonly [bigint, bigint][])[] = [
  [
    [5n, 1n],
    [3n, 1n],
    [2n, 1n],
    [4n, 1n],
  ],
  [
    [8n, 1n],
    [4n, 1n],
    [7n, 1n],
    [3n, 1n],
  ],
  [
    [11n, 1n],
    [6n, 1n],
    [3n, 1n],
    [5n, 1n],
  ],
  [
    [-3n, 1n],
    [-4n, 1n],
    [-5n, 1n],
    [-2n, 1n],
  ],
];

type Value = Complex | 'undefined' | 'unsure';

function valueAt(node: Node, values: ReadonlyMap<string, Rational>, bits: number, real: boolean): Value {
  try {
    return evaluate(node, { bits, values, real });
  } catch (error) {
    if (error instanceof Undefined || error instanceof RangeError) return 'undefined';
    if (error instanceof Unsure) return 'unsure';
    throw error;
  }
}

/** Whether two values agree to 60 digits; null where more bits are needed. */
function agree(a: Complex, b: Complex, bits: number): boolean | null {
  const difference = subtract(a, b, bits);
  if (isNonZero(difference)) return false;
  const scale = isNonZero(a) ? topComplex(a) : isNonZero(b) ? topComplex(b) : 0;
  return errorOf(difference) <= scale - DIGITS_BITS ? true : null;
}

/** Agreement of two constants; null where it cannot be decided. */
function constantsAgree(a: Node, b: Node): boolean | null {
  for (const bits of PRECISIONS) {
    const [x, y] = [a, b].map((node) => valueAt(node, new Map(), bits, false));
    if (x === 'undefined' || y === 'undefined') return null;
    if (x === 'unsure' || y === 'unsure') continue;
    const same = agree(x, y, bits);
    if (same !== null) return same;
  }
  return null;
}

function assign(names: readonly string[], row: readonly (readonly [bigint, bigint])[]): Map<string, Rational> {
  return new Map(
    names.map((name, i) => {
      const [n, d] = row[i % row.length];
      // Another value for each further variable.
      return [
        name,
        rational(n * 10n ** BigInt(Math.floor(i / row.length)) + BigInt(Math.floor(i / row.length)) * d, d),
      ];
    }),
  );
}

/** Agreement of two expressions of variables, at points of both signs; null where too few points tell. */
function functionsAgree(a: Node, b: Node, names: readonly string[]): boolean | null {
  const imaginary = (node: Node) => contains(node, (part) => part.kind === 'constant' && part.name === 'i');
  const real = !imaginary(a) && !imaginary(b);
  // A factorial of a variable exists for whole numbers alone.
  const discrete = [a, b].some((node) =>
    contains(node, (part) => part.kind === 'call' && part.name === 'factorial' && variablesOf(part).size > 0),
  );
  let agreed = 0;
  for (const [rows, whole] of [
    [POINTS, false],
    [WHOLE_POINTS, true],
  ] as const) {
    if (whole ? agreed >= 2 : discrete) continue;
    for (const row of rows) {
      const values = assign(names, row);
      for (const bits of PRECISIONS) {
        const [x, y] = [a, b].map((node) => valueAt(node, values, bits, real));
        if (x === 'unsure' || y === 'unsure') continue;
        if (x === 'undefined' || y === 'undefined') {
          // Where one is not defined, the other must not be, but for the gaps that whole numbers may hit.
          if (x !== y && !whole) return false;
          break;
        }
        const same = agree(x, y, bits);
        if (same === false) return false;
        if (same) {
          agreed++;
          break;
        }
      }
    }
  }
  return agreed >= 2 ? true : null;
}

/** Calls `prove` with fresh normal forms until no hint is added. */
export function withAlgebra(prove: (algebra: Algebra) => boolean): boolean {
  const hints: Hints = { nonNegative: new Set(), units: new Map() };
  for (let round = 0; round < 12; round++) {
    const algebra = new Algebra(hints);
    try {
      const proved = prove(algebra);
      if (proved || !learnSigns(algebra)) return proved;
    } catch (error) {
      if (error instanceof Restart) continue;
      if (
        error instanceof GiveUp ||
        error instanceof Unsure ||
        error instanceof Undefined ||
        error instanceof RangeError
      )
        return false;
      throw error;
    }
  }
  return false;
}

/** Takes variables below roots and logarithms as not negative; whether that is new. */
function learnSigns({ conditions, hints, kernels }: Algebra): boolean {
  const before = hints.nonNegative.size;
  for (const condition of conditions.values()) {
    const term = onlyTerm(condition);
    if (term?.m.length !== 1 || term.c.n < 0n || term.m[0][1].n !== 1n || term.m[0][1].d !== 1n) continue;
    const { node } = kernels[term.m[0][0]];
    if (node.kind === 'variable') hints.nonNegative.add(node.name);
  }
  return hints.nonNegative.size > before;
}

/** Whether the normal forms are the same, and what the two expressions demand of their variables. */
function sameForms(a: Node, b: Node): boolean {
  let demands: string[] = [];
  return withAlgebra((algebra) => {
    const x = normalForm(algebra, a);
    const first = [...algebra.conditions.keys()].sort();
    algebra.conditions = new Map();
    const y = normalForm(algebra, b);
    const second = [...algebra.conditions.keys()].sort();
    // What is learned is of no use later if the conditions are not the same now.
    if (demands.length === 0) demands = [first.join(';'), second.join(';')];
    return demands[0] === demands[1] && algebra.equal(x, y);
  });
}

/** Whether an algebraic constant is 0, by its separation bound. */
function isZeroByBound(node: Node): boolean {
  const bits = separationBits(node);
  if (bits === null) return false;
  const value = valueAt(node, new Map(), bits + 60, false);
  if (value === 'undefined' || value === 'unsure' || isNonZero(value)) return false;
  return topComplex(value) < -bits;
}

/** Whether two expressions have the same value, whatever their variables are. @throws WorkExceeded */
export function equalValues(a: Node, b: Node): boolean {
  const [x, y] = [exactValue(a, new Map()), exactValue(b, new Map())];
  if (x && y) return sameRational(x, y);
  const names = [...variablesOf(b, variablesOf(a))].sort();
  if (names.length > 12) return false;
  const agrees = names.length === 0 ? constantsAgree(a, b) : functionsAgree(a, b, names);
  if (agrees !== true) return false;
  return sameForms(a, b) || (names.length === 0 && isZeroByBound(sum(a, negate(b))));
}

/** ∞ as 1, -∞ as -1; null for anything else. */
export function infinitySign(node: Node): 1 | -1 | null {
  if (node.kind === 'constant' && node.name === 'infinity') return 1;
  if (node.kind !== 'product' || node.args.length !== 2) return null;
  const [sign, infinity] = node.args;
  const isMinus = sign.kind === 'number' && sign.value.n === -1n && sign.value.d === 1n;
  return isMinus && infinitySign(infinity) === 1 ? -1 : null;
}

/** Whether two expressions are equal; infinity equals itself, and a variable itself alone. @throws WorkExceeded */
export function sameNode(a: Node, b: Node): boolean {
  const [x, y] = [infinitySign(a), infinitySign(b)];
  if (x !== null || y !== null) return x === y;
  if (a.kind === 'variable' && b.kind === 'variable') return a.name === b.name;
  return equalValues(a, b);
}
