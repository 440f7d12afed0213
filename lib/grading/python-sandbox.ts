// Runs untrusted Python: CPython in WebAssembly, in processes that may be ended at any time.
//
// Walls, from the inside out: the interpreter's system calls reach only an in-memory file system, and Python cannot
// reach JavaScript; Node's permission model denies the process files (except pyodide's), child processes, threads and
// addons; on Linux, if the system allows them, namespaces remove network, other processes and privileges; resource
// limits forbid writing files. Time and memory are bounded from outside.
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { existsSync, realpathSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { DUltraError, optionError } from '../errors';
import { checkChoice, checkInteger, checkKeys, checkNumber, checkSignal } from '../options';
import { compiledModule, optionalPackage } from './optional-package';
import type { ProgramOutput } from './output-buffer';
import type { HarnessJob, HarnessReport } from './python-harness';
import type { WorkerMessage, WorkerSetup } from './python-worker';
import { defaultWallSeconds, type Limits, processClock, TimeLimit } from './time-limit';

/** Options of {@link PythonSandbox}. */
export interface PythonSandboxOptions {
  /** Processes that run programs side by side. Default: half of the CPUs, at most 8. */
  workers?: number | undefined;
  /**
   * CPU time of one program, seconds, without the start of its interpreter: how busy the machine is does not change
   * the outcome. On Windows, where it cannot be read, `wallLimitSeconds` is the only limit. Default 10.
   */
  timeLimitSeconds?: number | undefined;
  /** Wall time of one program, seconds: ends what waits. Default ten times `timeLimitSeconds`, at least 60. */
  wallLimitSeconds?: number | undefined;
  /** Largest memory of one interpreter, MiB; about 40 are its own. Default 256. */
  memoryLimitMB?: number | undefined;
  /** Bytes of output that are kept; the rest is dropped. Default 1 MiB. A program may ask for more. */
  outputLimit?: number | undefined;
  /** Programs after which a process is replaced. Default 200. */
  runsPerWorker?: number | undefined;
  /**
   * "auto" (default) uses namespaces where the system allows them, "require" fails without them, "off" does without.
   */
  namespaces?: 'auto' | 'require' | 'off' | undefined;
}

/** One program. */
export interface PythonProgram {
  code: string;
  /**
   * Python that runs behind `code`, in the same namespace: its tests. With tests or a `call`, `code` is a module that is
   * imported, so that its block under `if __name__ == "__main__":` does not run. Default: none.
   */
  tests?: string | undefined;
  /**
   * Leave out the lines of `code` behind the last one up to which it is valid Python: words that follow an answer.
   * Default false.
   */
  trim?: boolean | undefined;
  /**
   * `code` is an answer of a language model in which the program has yet to be found: behind thoughts, in a fence,
   * between lines of prose. `head` is Python that stands before the program: imports, or a function without its body,
   * which the answer may continue. Default: `code` is the program.
   */
  extract?: { head: string } | undefined;
  /** Call this function, or method of a class `Solution`, after the program has run, and return its value. */
  call?: {
    name: string;
    /**
     * A list of arguments; `{ args, kwargs }`; or one argument. {"$int": "…"}, {"$float": "nan"} and {"$dict": [[key,
     * value], …]} stand for what JSON cannot say.
     */
    input: unknown;
  };
  /** Text that the program reads, from a file that is its standard input. Default: none. */
  stdin?: string | undefined;
  /** Bytes of output that are kept at least, where the runner's own limit is lower. Default 0. */
  outputLimit?: number | undefined;
  /**
   * Whether leaving early by sys.exit() is an error, as it is where tests stand at the end of the code. Default false.
   */
  mustFinish?: boolean | undefined;
}

/** The outcome of a program. */
export interface PythonOutcome {
  /**
   * "ok"; "error": it raised; "timeout"; "memory": it needed more than the limit; "crashed": the interpreter ended, as
   * by os._exit or by a recursion that its stack does not hold.
   */
  status: 'ok' | 'error' | 'timeout' | 'memory' | 'crashed';
  /**
   * Python's repr of the exception, or a sentence; null for "ok". Where a {@link PythonSandbox} lacks what a program
   * asks for (a package, threads), it says so behind the exception.
   */
  error: string | null;
  /**
   * The value of `call`, as JSON: lists and tuples as arrays; {"$int": "…"} beyond 2^53; {"$float": "nan"}; {"$dict":
   * [[key, value], …]}; {"$set": […]}; {"$other": type} for any other value.
   */
  value: unknown;
  /** What was written to file descriptor 1, up to the output limit. */
  stdout: string;
  /** Whether output was dropped. */
  truncated: boolean;
  /** The last 2000 characters. */
  stderr: string;
  /** Wall time from the program's start to its end, seconds. */
  seconds: number;
}

/** Runs programs: a {@link PythonSandbox}, or a `NativePython`, which is no sandbox. */
export interface PythonRunner {
  /**
   * Runs one program to its outcome; a failing program is an outcome, not an error. @throws `signal.reason` where
   * it is aborted.
   */
  run(program: PythonProgram, options?: { signal?: AbortSignal | undefined }): Promise<PythonOutcome>;
}

/** The walls around programs, beside the interpreter itself. */
export interface SandboxWalls {
  /** Node's permission model: no files, processes, threads, addons. */
  permissions: boolean;
  /** Linux namespaces: no network, no other processes, no privileges. */
  namespaces: boolean;
  /** Linux resource limits: no file may be written. */
  limits: boolean;
}

const LIBRARY = 'pyodide';
/** Longest start of an interpreter, on a slow or busy machine. */
export const START_LIMIT_MS = 300_000;
const RECURSION_LIMIT = 5000;
/** Bytes: more output than any runner keeps. */
const MAX_OUTPUT = 2 ** 30;

/** A program that has been checked, as the harness takes it. @throws TypeError, RangeError */
export function jobOf(program: PythonProgram, runnerLimit: number): HarnessJob & { stdin: string } {
  checkKeys('program', program, ['code', 'tests', 'trim', 'extract', 'call', 'stdin', 'outputLimit', 'mustFinish']);
  const { code, tests = null, trim = false, extract = null, call = null, stdin = '', mustFinish = false } = program;
  const { outputLimit = 0 } = program;
  for (const [name, value] of Object.entries({ code, tests: tests ?? '', stdin, head: extract?.head ?? '' }))
    if (typeof value !== 'string')
      throw optionError(TypeError, `program.${name}`, `expected a string, got ${String(value)}`);
  checkInteger('program.outputLimit', outputLimit, { min: 0, max: MAX_OUTPUT });
  return {
    code,
    tests,
    trim,
    extract: extract && { head: extract.head ?? '' },
    call,
    stdin,
    hasInput: stdin.trim() !== '',
    mustFinish,
    outputLimit: Math.max(outputLimit, runnerLimit),
    recursionLimit: RECURSION_LIMIT,
  };
}

/** Starts that may fail one after the other. */
const MAX_FAILURES = 2;
/** Times that a program is run again after the system has killed its process. */
const MAX_LOSSES = 2;
/** Heap of the JavaScript side of a process. */
const HEAP_MB = 512;

interface Job {
  program: HarnessJob;
  /** Times that it is run again where the system ends its process, as it does when memory is short. */
  triesLeft: number;
  signal: AbortSignal | undefined;
  resolve: (outcome: PythonOutcome) => void;
  reject: (error: unknown) => void;
}

type Resolved = Required<PythonSandboxOptions>;

const runs = (command: string, args: string[]): Promise<boolean> =>
  new Promise((resolve) => {
    execFile(command, args, { timeout: 120_000 }, (error) => resolve(!error));
  });

/** Commands that put a process behind the outer walls: the best chain that works here. */
export async function outerWalls(
  wanted: NonNullable<PythonSandboxOptions['namespaces']>,
): Promise<{ command: string[]; walls: Omit<SandboxWalls, 'permissions'> }> {
  if (process.platform !== 'linux') {
    if (wanted === 'require') throw new DUltraError('SANDBOX', `namespaces: expected Linux, got ${process.platform}`);
    return { command: [], walls: { namespaces: false, limits: false } };
  }
  // Ends a program whose parent has died.
  const tied = ['setpriv', '--pdeathsig', 'KILL'];
  const limits = ['prlimit', '--core=0', '--fsize=0', '--nofile=256', '--'];
  const spaces = [
    'unshare',
    '--user',
    '--map-root-user',
    '--net',
    '--ipc',
    '--uts',
    '--pid',
    '--fork',
    '--kill-child=KILL',
  ];
  const bare = ['setpriv', '--no-new-privs', '--bounding-set=-all', '--inh-caps=-all'];
  const works = (command: string[]) => runs(command[0], [...command.slice(1), 'true']);
  if (wanted !== 'off') {
    for (const command of [
      [...tied, ...limits, ...spaces, ...bare],
      [...limits, ...spaces],
    ])
      if (await works(command)) return { command, walls: { namespaces: true, limits: true } };
    if (wanted === 'require')
      throw new DUltraError(
        'SANDBOX',
        'namespaces: expected unprivileged user namespaces, got none ' +
          '(is unshare of util-linux installed, and allowed?)',
      );
  }
  for (const command of [[...tied, ...limits], limits])
    if (await works(command)) return { command, walls: { namespaces: false, limits: true } };
  return { command: [], walls: { namespaces: false, limits: false } };
}

/** Node's own flags for a process that may read pyodide and nothing else. */
function nodeFlags(library: string, worker: string): string[] {
  const [major, minor] = process.versions.node.split('.').map(Number);
  const beside = ['python-harness.js', 'python-finder.js', 'output-buffer.js'];
  const readable = [`${library}${path.sep}*`, worker, ...beside.map((file) => path.join(path.dirname(worker), file))];
  // The loader looks for the type of the modules it loads.
  for (let folder = path.dirname(worker); ; folder = path.dirname(folder)) {
    const file = path.join(folder, 'package.json');
    readable.push(file);
    if (existsSync(file) || folder === path.dirname(folder)) break;
  }
  return [
    major > 23 || (major === 23 && minor >= 5) ? '--permission' : '--experimental-permission',
    ...readable.map((file) => `--allow-fs-read=${file}`),
    '--no-warnings',
    '--disallow-code-generation-from-strings',
    '--no-addons',
    `--max-old-space-size=${HEAP_MB}`,
  ];
}

/** Memory of a started interpreter, base64, by pyodide's folder: starting from one takes a tenth of the time. */
const snapshots = new Map<string, string>();

/** Result of one program: the harness's JSON, or why there is none; "lost": the system ended the process. */
type WorkerResult =
  | { json: string; output: ProgramOutput }
  | { timeout: string }
  | { crashed: string }
  | 'aborted'
  | 'lost';

/** A process with one interpreter, ready or starting. */
class SandboxWorker {
  readonly #child: ChildProcess;
  #onMessage: (message: WorkerMessage) => void = () => {};
  #errors = '';
  isReady = false;
  isDead = false;
  runs = 0;
  /** Called when a fresh interpreter is ready, or the process has ended. */
  onChange: () => void = () => {};
  /** Why it could not start. */
  failure: string | null = null;
  /** Whether this process ended it. */
  #isKilled = false;
  /** Whether the system did: no program in WebAssembly can. */
  #isLost = false;
  #startTimer: NodeJS.Timeout | null = null;
  #onEnd: (() => void) | null = null;

  constructor(command: string[], flags: string[], file: string, setup: WorkerSetup) {
    const [program, ...args] = [...command, process.execPath, ...flags, file];
    this.#child = spawn(program, args, {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      env: {},
      cwd: path.parse(process.cwd()).root,
    });
    this.#child.stderr?.on('data', (text) => {
      this.#errors = (this.#errors + text).slice(-4000);
    });
    this.#child.on('message', (message: WorkerMessage) => {
      if (message.type === 'ready') {
        this.#armStart(false);
        this.isReady = true;
        this.onChange();
      } else if (message.type === 'snapshot') {
        // Of a process that has run no program yet.
        if (this.runs === 0) snapshots.set(setup.library, message.data);
      } else if (message.type === 'failed' && message.fatal) {
        this.failure = message.error;
        this.kill();
      } else {
        this.#armStart(true);
        this.#onMessage(message);
      }
    });
    const end = (reason: string, signal: NodeJS.Signals | null = null) => {
      if (this.isDead) return;
      this.#isLost = signal === 'SIGKILL' && !this.#isKilled;
      this.isDead = true;
      this.isReady = false;
      this.#armStart(false);
      this.failure ??= `${reason}${this.#errors ? `: ${this.#errors.trim().split('\n').slice(-3).join(' ')}` : ''}`;
      this.#onEnd?.();
      this.onChange();
    };
    this.#child.on('error', (error) => end(error.message));
    this.#child.on('exit', (code, signal) => end(`the process ended with ${signal ?? `code ${code}`}`, signal));
    this.#armStart(true);
    this.#child.send(setup, (error) => error && end(error.message));
    this.unref();
  }

  #armStart(on: boolean): void {
    if (this.#startTimer) clearTimeout(this.#startTimer);
    this.#startTimer = on
      ? setTimeout(() => {
          this.failure = 'the interpreter did not start in time';
          this.kill();
        }, START_LIMIT_MS)
      : null;
    this.#startTimer?.unref();
  }

  ref(): void {
    this.#child.ref();
    this.#child.channel?.ref();
  }

  /** An idle pool must not keep the process alive. */
  unref(): void {
    this.#child.unref();
    this.#child.channel?.unref();
    (this.#child.stderr as { unref?: () => void } | null)?.unref?.();
  }

  kill(): void {
    this.isReady = false;
    this.#isKilled = true;
    this.#child.kill('SIGKILL');
  }

  /** The result of one program; a timeout, an abort or a crash ends the process. */
  async run(job: HarnessJob, limits: Limits, signal: AbortSignal | undefined): Promise<WorkerResult> {
    this.isReady = false;
    this.runs++;
    return new Promise((resolve) => {
      const settle = (outcome: WorkerResult) => {
        limit.stop();
        signal?.removeEventListener('abort', abort);
        this.#onMessage = () => {};
        this.#onEnd = null;
        resolve(outcome);
      };
      const clock = processClock(this.#child.pid!, { mainThread: true });
      const limit = new TimeLimit(clock, limits, (timeout) => {
        this.kill();
        settle({ timeout });
      });
      const abort = () => {
        this.kill();
        settle('aborted');
      };
      signal?.addEventListener('abort', abort, { once: true });
      this.#onEnd = () => settle(this.#isLost ? 'lost' : { crashed: this.failure ?? 'the process ended' });
      this.#onMessage = (message) => {
        if (message.type === 'result') settle({ json: message.json, output: message.output });
        else if (message.type === 'failed') settle({ crashed: message.error });
      };
      limit.start().then(() => this.#child.send({ job }, (error) => error && settle({ crashed: error.message })));
    });
  }
}

/**
 * A pool of processes for untrusted Python programs. Every program gets an interpreter that has run nothing else: no
 * state, no files, no modules of another one's making.
 *
 * Guaranteed, as far as CPython's WebAssembly and Node hold: a program cannot read or write files of the host, start
 * processes, or run longer or with more memory than allowed; whatever it does, this process goes on. With {@link
 * SandboxWalls}.namespaces it has no network either, whatever it breaks. Not guaranteed: that a program which breaks
 * out of WebAssembly *and* V8 (a bug in both) is held on systems without namespaces; that it cannot find out the time
 * or the CPU's speed; that a program cannot fool tests which are Python themselves, such as HumanEval's.
 *
 * ```ts
 * await using sandbox = new PythonSandbox({ timeLimitSeconds: 5 });
 * const code = 'def add(a, b): return a + b';
 * const { status, value } = await sandbox.run({ code, call: { name: 'add', input: [1, 2] } });
 * ```
 */
export class PythonSandbox implements PythonRunner {
  readonly #options: Resolved;
  readonly #queue: Job[] = [];
  readonly #workers = new Set<SandboxWorker>();
  #launch: Promise<{ command: string[]; flags: string[]; file: string; library: string; walls: SandboxWalls }> | null =
    null;
  #running = 0;
  /** Processes to keep, and those about to be started. */
  #wanted = 0;
  #starting = 0;
  #isDisposed = false;
  /** Starts that failed one after the other. */
  #failures = 0;

  /** @throws TypeError, RangeError for options. */
  constructor(options: PythonSandboxOptions = {}) {
    checkKeys('options', options, [
      'workers',
      'timeLimitSeconds',
      'wallLimitSeconds',
      'memoryLimitMB',
      'outputLimit',
      'runsPerWorker',
      'namespaces',
    ]);
    const {
      workers = Math.max(1, Math.min(8, Math.floor(os.availableParallelism() / 2))),
      timeLimitSeconds = 10,
      memoryLimitMB = 256,
    } = options;
    const { wallLimitSeconds = defaultWallSeconds(timeLimitSeconds) } = options;
    const { outputLimit = 2 ** 20, runsPerWorker = 200, namespaces = 'auto' } = options;
    checkInteger('workers', workers, { min: 1, max: 1024 });
    checkNumber('timeLimitSeconds', timeLimitSeconds, { minExclusive: 0, max: 1e6 });
    checkNumber('wallLimitSeconds', wallLimitSeconds, { minExclusive: 0, max: 1e7 });
    checkInteger('memoryLimitMB', memoryLimitMB, { min: 64, max: 4096 });
    checkInteger('outputLimit', outputLimit, { min: 0, max: MAX_OUTPUT });
    checkInteger('runsPerWorker', runsPerWorker, { min: 1, max: 1e9 });
    checkChoice('namespaces', namespaces, ['auto', 'require', 'off'] as const);
    this.#options = {
      workers,
      timeLimitSeconds,
      wallLimitSeconds,
      memoryLimitMB,
      outputLimit,
      runsPerWorker,
      namespaces,
    };
  }

  /** What keeps programs in on this machine. @throws DUltraError PACKAGE_NOT_FOUND, SANDBOX */
  async walls(): Promise<SandboxWalls> {
    return (await this.#prepare()).walls;
  }

  /** Processes that are alive. */
  get processes(): number {
    return this.#workers.size;
  }

  /**
   * Runs a program. What it does wrong is in the outcome; rejects only where the sandbox itself cannot work.
   * @throws DUltraError PACKAGE_NOT_FOUND where pyodide is not installed, SANDBOX where no interpreter starts,
   * DISPOSED; `signal.reason`.
   */
  async run(program: PythonProgram, options: { signal?: AbortSignal | undefined } = {}): Promise<PythonOutcome> {
    const job = jobOf(program, this.#options.outputLimit);
    const { signal } = options;
    checkSignal(signal);
    signal?.throwIfAborted();
    if (this.#isDisposed) throw new DUltraError('DISPOSED', 'this sandbox has been disposed');
    await this.#prepare();
    this.#failures = 0;
    return new Promise((resolve, reject) => {
      this.#queue.push({ program: job, triesLeft: MAX_LOSSES, signal, resolve, reject });
      this.#next();
    });
  }

  /** Ends all processes; programs under way are rejected with DISPOSED. */
  async dispose(): Promise<void> {
    this.#isDisposed = true;
    for (const worker of this.#workers) worker.kill();
    this.#queue
      .splice(0)
      .forEach(({ reject }) => reject(new DUltraError('DISPOSED', 'this sandbox has been disposed')));
    while (this.#workers.size > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  }

  /** As {@link PythonSandbox.dispose}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }

  #prepare() {
    this.#launch ??= (async () => {
      const library = realpathSync(optionalPackage(LIBRARY, 'running Python'));
      const file = realpathSync(compiledModule('python-worker'));
      const { command, walls } = await outerWalls(this.#options.namespaces);
      return { command, flags: nodeFlags(library, file), file, library, walls: { permissions: true, ...walls } };
    })();
    return this.#launch;
  }

  async #addWorker(): Promise<void> {
    this.#starting++;
    const prepared = await this.#prepare().catch((error) => {
      this.#starting--;
      throw error;
    });
    this.#starting--;
    if (this.#isDisposed) return;
    const { command, flags, file, library } = prepared;
    const { memoryLimitMB } = this.#options;
    const setup = { library, memoryLimitMB, snapshot: snapshots.get(library) ?? null };
    const worker = new SandboxWorker(command, flags, file, setup);
    this.#workers.add(worker);
    worker.onChange = () => {
      if (worker.isReady) this.#failures = 0;
      if (worker.isDead) {
        this.#workers.delete(worker);
        if (worker.runs === 0 && !this.#isDisposed && ++this.#failures > MAX_FAILURES) {
          const error = new DUltraError('SANDBOX', `no interpreter starts: ${worker.failure}`);
          this.#queue.splice(0).forEach(({ reject }) => reject(error));
        }
      }
      this.#next();
    };
    this.#next();
  }

  #next(): void {
    if (this.#isDisposed) return;
    for (
      let at = this.#queue.findIndex(({ signal }) => signal?.aborted);
      at >= 0;
      at = this.#queue.findIndex(({ signal }) => signal?.aborted)
    ) {
      const [{ reject, signal }] = this.#queue.splice(at, 1);
      reject(signal!.reason);
    }
    for (const worker of this.#workers) {
      if (!worker.isReady || this.#queue.length === 0) continue;
      if (worker.runs >= this.#options.runsPerWorker) worker.kill();
      else void this.#execute(worker, this.#queue.shift()!);
    }
    const busy = this.#queue.length + this.#running;
    // Processes that have ended are replaced at once, so that the next program finds one that is warm.
    this.#wanted = Math.max(this.#wanted, Math.min(this.#options.workers, busy));
    if (this.#workers.size + this.#starting < this.#wanted && this.#failures <= MAX_FAILURES)
      this.#addWorker().catch((error) => this.#queue.splice(0).forEach(({ reject }) => reject(error)));
    for (const worker of this.#workers) {
      if (busy > 0) worker.ref();
      else worker.unref();
    }
  }

  async #execute(worker: SandboxWorker, job: Job): Promise<void> {
    const { program, signal, resolve, reject } = job;
    this.#running++;
    const { timeLimitSeconds: cpuSeconds, wallLimitSeconds: wallSeconds, memoryLimitMB } = this.#options;
    const start = performance.now();
    try {
      const result = await worker.run(program, { cpuSeconds, wallSeconds }, signal);
      const seconds = (performance.now() - start) / 1000;
      const empty = { value: null, stdout: '', truncated: false, stderr: '', seconds };
      if (this.#isDisposed) reject(new DUltraError('DISPOSED', 'this sandbox has been disposed'));
      else if (result === 'aborted') reject(signal!.reason);
      else if (result === 'lost') {
        // Says nothing about the program.
        if (job.triesLeft-- > 0) this.#queue.unshift(job);
        else
          reject(
            new DUltraError('SANDBOX', `the system killed the interpreter ${MAX_LOSSES + 1} times: is memory short?`),
          );
      } else if ('timeout' in result) resolve({ status: 'timeout', error: result.timeout, ...empty });
      else if ('crashed' in result) {
        const isMemory = /memory limit|out of memory|memory allocation|allocation failed|Array buffer/i.test(
          result.crashed,
        );
        resolve({
          status: isMemory ? 'memory' : 'crashed',
          error: isMemory ? `more than ${memoryLimitMB} MiB: ${result.crashed}` : result.crashed,
          ...empty,
        });
      } else resolve(withLacks(readOutcome(result.json, result.output, seconds)));
    } catch (error) {
      reject(error);
    } finally {
      this.#running--;
      this.#next();
    }
  }
}

/** What the sandbox has not, by what Python says of it. */
const LACKS: readonly [RegExp, string][] = [
  [
    /^(ModuleNotFoundError|ImportError)\(/,
    "the sandbox has Python's standard library and no other packages; NativePython has those of this machine",
  ],
  [/^RuntimeError\("can't start new thread"\)/, 'the sandbox has no threads; NativePython has'],
];

/** An outcome whose error may lie in the sandbox, and tells so. */
function withLacks(outcome: PythonOutcome): PythonOutcome {
  const [, lack] = LACKS.find(([pattern]) => pattern.test(outcome.error ?? '')) ?? [];
  return lack ? { ...outcome, error: `${outcome.error} (${lack})` } : outcome;
}

/** Parses the harness's report, which a hostile program may have written. */
export function readOutcome(json: string, output: ProgramOutput, seconds: number): PythonOutcome {
  const spoilt = 'the program spoilt its report';
  try {
    const { status, error, value = null } = JSON.parse(json) as HarnessReport;
    if (['ok', 'error', 'memory'].includes(status) && (error === null) === (status === 'ok'))
      return { status, error: error === null ? null : String(error), value, ...output, seconds };
  } catch {}
  return { status: 'crashed', error: spoilt, value: null, ...output, seconds };
}

let shared: PythonSandbox | null = null;

/**
 * The pool that data sets and rewards use where they are given none; made at the first use, with the default limits.
 */
export function sharedSandbox(): PythonSandbox {
  shared ??= new PythonSandbox();
  return shared;
}
