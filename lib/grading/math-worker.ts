// The thread in which the computer-algebra library works: it may be ended at any time.
import { readlinkSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { compareAnswers, compareNumbers } from './math-form';

/** The first message: the library has loaded. */
export interface MathWorkerReady {
  /** The thread's folder below /proc, "pid/task/tid"; null where there is none. */
  task: string | null;
}

/** The parts of the library that are used. */
interface Expression {
  isValid: boolean;
  unknowns: readonly string[];
  re: number;
  im: number;
  isSame(other: Expression): boolean;
  evaluate(): Expression;
  N(): Expression;
  subs(values: Record<string, number>): Expression;
}
interface Engine {
  parse(latex: string): Expression;
}

const { ComputeEngine } = require((workerData as { library: string }).library) as { ComputeEngine: new () => Engine };
const engine = new ComputeEngine();

/**
 * Two expressions that agree at so many points are equal: polynomials of any degree that an answer has room for cannot
 * do so by chance.
 */
const POINTS = [0.7391, 1.6180339, 2.4142135, 3.3027756, 0.2360679, 5.1925824];
const NEEDED = 3;
/** Relative. Above the rounding of evaluating an answer, below what a rounded decimal is off by. */
const TOLERANCE = 1e-11;

const EXACT = /^-?\d+(\/\d+)?$/;

function near(a: Expression, b: Expression): boolean | null {
  const [x, y, p, q] = [a.re, a.im, b.re, b.im];
  if (![x, y, p, q].every(Number.isFinite)) return null;
  return Math.hypot(x - p, y - q) <= TOLERANCE * Math.max(1e-300, Math.hypot(x, y), Math.hypot(p, q));
}

/** Whether two LaTeX expressions have the same value whatever their variables are. */
function compareExpressions(left: string, right: string): boolean {
  const known = compareNumbers(left, right);
  if (known !== null) return known;
  const [a, b] = [engine.parse(left), engine.parse(right)];
  if (!a.isValid || !b.isValid) return false;
  if (a.isSame(b)) return true;
  const names = [...new Set([...a.unknowns, ...b.unknowns])].sort();
  if (names.length === 0) {
    const [x, y] = [a.evaluate(), b.evaluate()];
    // Whole numbers and fractions are exact, however large.
    const [u, v] = [String(x), String(y)];
    if (EXACT.test(u) && EXACT.test(v)) return u === v;
    return x.isSame(y) || near(a.N(), b.N()) === true;
  }
  // A variable that one side lacks makes no difference only where it cancels, which is not how answers are written.
  if (a.unknowns.length !== b.unknowns.length) return false;
  let agreed = 0;
  for (let i = 0; i < POINTS.length && agreed < NEEDED; i++) {
    const values = Object.fromEntries(names.map((name, j) => [name, POINTS[(i + 2 * j) % POINTS.length] + 0.1 * j]));
    const same = near(a.subs(values).N(), b.subs(values).N());
    if (same === false) return false;
    if (same) agreed++;
  }
  return agreed === NEEDED;
}

parentPort!.on('message', ({ a, b }: { a: string; b: string }) => {
  let equal = false;
  try {
    equal = compareAnswers(a, b, compareExpressions) === true;
  } catch {
    // The library does not promise to take every text.
  }
  parentPort!.postMessage(equal);
});
const task = process.platform === 'linux' ? readlinkSync('/proc/thread-self') : null;
parentPort!.postMessage({ task } satisfies MathWorkerReady);
