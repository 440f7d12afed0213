// Mathematical equality of two answers. Numbers, texts and their tuples are compared here, exactly; what needs algebra
// goes to a thread with a computer-algebra library, which is ended when a comparison exceeds its time limit.

import { Worker } from 'node:worker_threads';
import { optionError } from '../errors';
import { checkKeys, checkNumber } from '../options';
import { compareAnswers, compareNumbers } from './math-form';
import type { MathWorkerReady } from './math-worker';
import { compiledModule, optionalPackage } from './optional-package';
import { type CpuClock, defaultWallSeconds, TimeLimit, threadClock } from './time-limit';

/** Options of {@link mathEqual}. */
export interface MathEqualOptions {
  /**
   * CPU time of one comparison in milliseconds, without loading the algebra library; what takes longer counts as
   * different, however busy the machine is. On macOS and Windows it is measured from Node.js 24.6 on; before that, and
   * behind it, a comparison ends after ten times as much wall time, at least a minute. Default 2000.
   */
  timeLimitMs?: number;
}

const LIBRARY = '@cortex-js/compute-engine';
/** Heap limit: bounds the expansion of a hostile expression. The library itself needs a third of it. */
const HEAP_MB = 256;
/** Longest loading of the library, on a slow or busy machine. */
const START_LIMIT_MS = 300_000;

interface Question {
  a: string;
  b: string;
  timeLimitMs: number;
  resolve: (equal: boolean) => void;
  reject: (error: unknown) => void;
}

/** Questions that wait for the one thread, which keeps the process alive only while it has a question. */
const queue: Question[] = [];
let worker: Worker | null = null;
/** Of the thread once it is ready. */
let clock: CpuClock | null = null;
let asked: Question | null = null;
let startTimer: NodeJS.Timeout | null = null;
let limit: TimeLimit | null = null;

function stopTimers(): void {
  if (startTimer) clearTimeout(startTimer);
  startTimer = null;
  limit?.stop();
  limit = null;
}

function stop(): void {
  stopTimers();
  worker?.removeAllListeners();
  // Errors of a thread that is being ended have no receiver.
  worker?.on('error', () => {});
  worker?.terminate();
  worker = null;
  clock = null;
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
  own.on('message', (message: MathWorkerReady | boolean) => {
    if (typeof message === 'boolean') answer(message);
    else {
      stopTimers();
      clock = threadClock(own, message.task);
    }
    next();
  });
  // Out of memory or stack: an answer that causes it equals nothing.
  const fail = (error: unknown) => {
    const wasReady = clock !== null;
    stop();
    if (wasReady) answer(false);
    else queue.splice(0).forEach(({ reject }) => reject(error));
    next();
  };
  own.on('error', fail);
  own.on('exit', (code) => fail(new Error(`the thread for comparing expressions ended with code ${code}`)));
  startTimer = setTimeout(() => fail(new Error('the computer-algebra library did not load in time')), START_LIMIT_MS);
}

function answer(equal: boolean): void {
  stopTimers();
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
  if (!clock) return;
  queue.shift();
  asked = question;
  ask(worker, clock, question);
}

function ask(worker: Worker, clock: CpuClock, { a, b, timeLimitMs }: Question): void {
  const cpuSeconds = timeLimitMs / 1000;
  const own = new TimeLimit(clock, { cpuSeconds, wallSeconds: defaultWallSeconds(cpuSeconds) }, () => {
    stop();
    answer(false);
    next();
  });
  limit = own;
  void own.start().then(() => worker.postMessage({ a, b }));
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
  if (typeof answer !== 'string') throw optionError(TypeError, 'answer', `expected a string, got ${String(answer)}`);
  if (typeof gold !== 'string') throw optionError(TypeError, 'gold', `expected a string, got ${String(gold)}`);
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
