// Whether two mathematical answers mean the same. Numbers, texts and what is made of them are compared here, exactly;
// what needs algebra goes to a thread with a computer-algebra library, which is ended when it takes too long.
import { Worker } from 'node:worker_threads';
import { checkKeys, checkNumber } from '../options';
import { compareAnswers, compareNumbers } from './math-form';
import { compiledModule, optionalPackage } from './optional-package';

export { extractAnswer } from './math-form';

/** Options of {@link mathEqual}. */
export interface MathEqualOptions {
  /** Longest time that one comparison may take; what takes longer counts as different. Default 2000. */
  timeLimitMs?: number;
}

const LIBRARY = '@cortex-js/compute-engine';
/** Bounds what a hostile expression can blow up to; the library itself needs a third of it. */
const HEAP_MB = 256;
/** Loading the library, on a slow machine. */
const START_LIMIT_MS = 60_000;

interface Question {
  a: string;
  b: string;
  timeLimitMs: number;
  resolve: (equal: boolean) => void;
  reject: (error: unknown) => void;
}

/** The one thread, and who waits for it. It does not keep the process alive, but while somebody waits. */
const queue: Question[] = [];
let worker: Worker | null = null;
let isReady = false;
let asked: Question | null = null;
let timer: NodeJS.Timeout | null = null;

function stop(): void {
  if (timer) clearTimeout(timer);
  timer = null;
  worker?.removeAllListeners();
  // An error of a thread that is being ended is nobody's.
  worker?.on('error', () => {});
  worker?.terminate();
  worker = null;
  isReady = false;
}

function start(): void {
  const library = optionalPackage(LIBRARY, 'comparing mathematical expressions');
  const own = new Worker(compiledModule('math-worker'), {
    workerData: { library },
    env: {},
    stdout: true,
    stderr: true,
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MB, maxYoungGenerationSizeMb: 32, stackSizeMb: 4 },
  });
  worker = own;
  own.on('message', (message: 'ready' | boolean) => {
    if (message === 'ready') isReady = true;
    else answer(message);
    next();
  });
  // Out of memory, or of stack: the answer that did it is not equal to anything.
  const fail = (error: unknown) => {
    const wasReady = isReady;
    stop();
    if (wasReady) answer(false);
    else queue.splice(0).forEach(({ reject }) => reject(error));
    next();
  };
  own.on('error', fail);
  own.on('exit', (code) => fail(new Error(`the thread for comparing expressions ended with code ${code}`)));
  timer = setTimeout(() => fail(new Error('the computer-algebra library did not load in time')), START_LIMIT_MS);
}

function answer(equal: boolean): void {
  if (timer) clearTimeout(timer);
  timer = null;
  asked?.resolve(equal);
  asked = null;
}

function next(): void {
  if (asked) return;
  const question = queue[0];
  if (!question) {
    worker?.unref();
    return;
  }
  if (!worker) {
    try {
      start();
    } catch (error) {
      queue.splice(0).forEach(({ reject }) => reject(error));
    }
    return;
  }
  worker.ref();
  if (!isReady) return;
  if (timer) clearTimeout(timer);
  queue.shift();
  asked = question;
  const { a, b, timeLimitMs } = question;
  timer = setTimeout(() => {
    stop();
    answer(false);
    next();
  }, timeLimitMs);
  worker.postMessage({ a, b });
}

/**
 * Whether two answers in LaTeX or plain text are mathematically the same: fractions, decimals, percent, thousands
 * separators, units, currency, roots, intervals, tuples, sets, matrices, equations, texts. A decimal equals a fraction
 * or root only where it is exact (0.33 is not 1/3). Never throws for an answer's content; texts that cannot be read
 * equal themselves alone.
 * @throws DUltraError PACKAGE_NOT_FOUND where algebra is needed and the optional package is missing; TypeError,
 * RangeError for options.
 */
export async function mathEqual(answer: string, gold: string, options: MathEqualOptions = {}): Promise<boolean> {
  if (typeof answer !== 'string') throw new TypeError(`answer: expected a string, got ${String(answer)}`);
  if (typeof gold !== 'string') throw new TypeError(`gold: expected a string, got ${String(gold)}`);
  checkKeys('options', options, ['timeLimitMs']);
  const { timeLimitMs = 2000 } = options;
  checkNumber('timeLimitMs', timeLimitMs, { minExclusive: 0, max: 1e9 });
  const known = compareAnswers(answer, gold, compareNumbers);
  if (known !== null) return known;
  return new Promise((resolve, reject) => {
    queue.push({ a: answer, b: gold, timeLimitMs, resolve, reject });
    next();
  });
}
