// Runs Python programs in the Python that is installed on this machine: its version, with every package that it has,
// and without most of its walls. Nobody gets it without asking for it.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { DUltraError } from '../errors';
import { checkInteger, checkKeys, checkNumber, checkSignal } from '../options';
import { PYTHON_HARNESS } from './python-harness';
import {
  jobOf,
  outerWalls,
  type PythonOutcome,
  type PythonProgram,
  type PythonRunner,
  readOutcome,
} from './python-sandbox';

/** Options of {@link NativePython}. */
export interface NativePythonOptions {
  /** The interpreter: a command or a path. Default "python3". */
  python?: string;
  /** Programs that run side by side. Default: half of the CPUs, at most 8. */
  workers?: number;
  /** Longest time of one program, seconds of wall time. Default 10. */
  timeLimitSeconds?: number;
  /** Largest address space of one program, MiB. Default 1024: native packages reserve far more than they use. */
  memoryLimitMB?: number;
  /** Bytes of output that are kept; the rest is dropped. Default 1 MiB. */
  outputLimit?: number;
}

/** The job comes on standard input, what came of it goes to a pipe of its own, which the program is not told of. */
const REPORT = 3;
/** How long the pipes of a process that has ended may stay open. */
const CLOSE_LIMIT_MS = 1000;
const MAIN = `
import os, resource, sys
memory, seconds = int(sys.argv[1]), int(sys.argv[2])
for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
    try:
        resource.setrlimit(limit, (value, value))
    except (OSError, ValueError):
        pass
text = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
report = __run__(text).encode("utf-8", "surrogatepass")
with open(${REPORT}, "wb", closefd=False) as out:
    out.write(report)
    out.flush()
os._exit(0)
`;
const WARNING =
  'programs that a language model wrote now run in the Python of this machine: they may read what you may read, delete what you may delete, and ' +
  'start processes. Use rewards.PythonSandbox for programs that you do not trust';

let hasWarned = false;

/**
 * Runs programs with the Python that is installed here, a fresh process for each. **No sandbox**: a program has your
 * rights. It may read every file that you may read, delete files, and start processes; only time, memory, output and
 * writing into files are bounded, and on Linux, where the system allows it, it has no network and ends with its process
 * tree. Warns once per process when it is first used. Not on Windows.
 *
 * For models that you trust, or inside a container or virtual machine of its own: it needs no pyodide and knows every
 * package that is installed. It is not faster ({@link PythonSandbox} starts its interpreters ahead). Pass it as
 * `sandbox`.
 *
 * ```ts
 * const reward = rewards.codeTests({ sandbox: new rewards.NativePython({ timeLimitSeconds: 5 }) });
 * ```
 */
export class NativePython implements PythonRunner {
  readonly #options: Required<NativePythonOptions>;
  readonly #waiting: (() => void)[] = [];
  #running = 0;
  #walls: Promise<string[]> | null = null;

  /** @throws TypeError, RangeError for options; DUltraError SANDBOX on Windows. */
  constructor(options: NativePythonOptions = {}) {
    checkKeys('options', options, ['python', 'workers', 'timeLimitSeconds', 'memoryLimitMB', 'outputLimit']);
    const { python = 'python3', workers = Math.max(1, Math.min(8, Math.floor(os.availableParallelism() / 2))) } =
      options;
    const { timeLimitSeconds = 10, memoryLimitMB = 1024, outputLimit = 2 ** 20 } = options;
    if (typeof python !== 'string' || python === '')
      throw new TypeError(`python: expected a command, got ${JSON.stringify(python)}`);
    checkInteger('workers', workers, { min: 1, max: 1024 });
    checkNumber('timeLimitSeconds', timeLimitSeconds, { minExclusive: 0, max: 1e6 });
    checkInteger('memoryLimitMB', memoryLimitMB, { min: 64, max: 2 ** 20 });
    checkInteger('outputLimit', outputLimit, { min: 0, max: 2 ** 30 });
    if (process.platform === 'win32')
      throw new DUltraError('SANDBOX', 'NativePython: expected Linux or macOS, got Windows');
    this.#options = { python, workers, timeLimitSeconds, memoryLimitMB, outputLimit };
  }

  /**
   * As {@link PythonSandbox.run}.
   * @throws DUltraError SANDBOX where the interpreter does not start; `signal.reason`.
   */
  async run(program: PythonProgram, options: { signal?: AbortSignal } = {}): Promise<PythonOutcome> {
    const job = jobOf(program, this.#options.outputLimit);
    const { signal } = options;
    checkSignal(signal);
    signal?.throwIfAborted();
    if (!hasWarned) {
      hasWarned = true;
      process.emitWarning(WARNING, { type: 'DUltraWarning', code: 'DULTRA_NATIVE_PYTHON' });
    }
    this.#walls ??= outerWalls('auto').then(({ command }) => command);
    const walls = await this.#walls;
    if (this.#running >= this.#options.workers) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    else this.#running++;
    const folder = await mkdtemp(path.join(os.tmpdir(), 'dultra-python-'));
    try {
      signal?.throwIfAborted();
      return await this.#execute(job, walls, folder, signal);
    } finally {
      await rm(folder, { recursive: true, force: true });
      // The place goes to the next one, if there is one.
      const next = this.#waiting.shift();
      if (next) next();
      else this.#running--;
    }
  }

  #execute(job: string, walls: string[], folder: string, signal: AbortSignal | undefined): Promise<PythonOutcome> {
    const { python, timeLimitSeconds, memoryLimitMB } = this.#options;
    const limits = [String(memoryLimitMB * 2 ** 20), String(Math.ceil(timeLimitSeconds) + 1)];
    const [command, ...args] = [...walls, python, '-I', '-B', '-c', `${PYTHON_HARNESS}${MAIN}`, ...limits];
    const start = performance.now();
    return new Promise((resolve, reject) => {
      const child: ChildProcess = spawn(command, args, {
        cwd: folder,
        env: {
          PATH: process.env.PATH,
          HOME: folder,
          PYTHONHASHSEED: '0',
          OPENBLAS_NUM_THREADS: '1',
          OMP_NUM_THREADS: '1',
        },
        stdio: ['pipe', 'ignore', 'pipe', 'pipe'],
        detached: true,
      });
      let report = '';
      let errors = '';
      let ending: 'timeout' | 'aborted' | null = null;
      const end = (why: 'timeout' | 'aborted') => {
        ending ??= why;
        // The whole group: what the program started, too.
        try {
          process.kill(-(child.pid as number), 'SIGKILL');
        } catch {
          child.kill('SIGKILL');
        }
      };
      const timer = setTimeout(() => end('timeout'), timeLimitSeconds * 1000);
      const abort = () => end('aborted');
      signal?.addEventListener('abort', abort, { once: true });
      child.stderr?.setEncoding('utf8').on('data', (text: string) => {
        errors = (errors + text).slice(-4000);
      });
      const pipe = child.stdio[REPORT] as NodeJS.ReadableStream;
      pipe.setEncoding('utf8').on('data', (text: string) => {
        report += text;
      });
      // A child that never started, or left before it read.
      child.stdin?.on('error', () => {});
      child.stdin?.end(job);
      const done = () => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', abort);
      };
      child.on('error', (cause) => {
        done();
        reject(new DUltraError('SANDBOX', `python: ${python} does not start: ${cause.message}`, { cause }));
      });
      child.on('exit', (code, killedBy) => {
        // What the program started goes with it; what got away may hold the pipe open, and is not waited for.
        if (ending === null && child.pid !== undefined)
          try {
            process.kill(-child.pid, 'SIGKILL');
          } catch {}
        const leave = setTimeout(() => child.stdio.forEach((stream) => stream?.destroy()), CLOSE_LIMIT_MS);
        child.once('close', () => {
          clearTimeout(leave);
          done();
          const seconds = (performance.now() - start) / 1000;
          const empty = { value: null, stdout: '', truncated: false, stderr: errors.slice(-2000), seconds };
          if (ending === 'aborted') reject(signal?.reason);
          else if (ending === 'timeout' || killedBy === 'SIGXCPU')
            resolve({ status: 'timeout', error: `longer than ${timeLimitSeconds} s`, ...empty });
          else if (report !== '') resolve(readOutcome(report, seconds));
          else if (/: not found|No such file or directory|cannot execute|failed to execute/i.test(errors))
            reject(new DUltraError('SANDBOX', `python: ${python} does not start: ${errors.trim().split('\n').at(-1)}`));
          else
            resolve({ status: 'crashed', error: `the interpreter ended with ${killedBy ?? `code ${code}`}`, ...empty });
        });
      });
    });
  }
}
