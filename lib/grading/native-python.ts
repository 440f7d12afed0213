// Runs Python programs in the Python that is installed on this machine, with its packages and without most of the
// sandbox's walls. Used only where the caller asks for it.
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { DUltraError, optionError } from '../errors';
import { checkInteger, checkKeys, checkNumber, checkSignal } from '../options';
import { OutputBuffer, OutputTail } from './output-buffer';
import { type HarnessJob, PYTHON_HARNESS } from './python-harness';
import {
  jobOf,
  outerWalls,
  type PythonOutcome,
  type PythonProgram,
  type PythonRunner,
  readOutcome,
  START_LIMIT_MS,
} from './python-sandbox';
import { defaultWallSeconds, processClock, TimeLimit } from './time-limit';

/** Options of {@link NativePython}. */
export interface NativePythonOptions {
  /** The interpreter: a command or a path. Default "python3". */
  python?: string | undefined;
  /** Programs that run side by side. Default: half of the CPUs, at most 8. */
  workers?: number | undefined;
  /**
   * CPU time of one program, seconds, without the start of its interpreter: how busy the machine is does not change
   * the outcome. Threads count together. Default 10.
   */
  timeLimitSeconds?: number | undefined;
  /** Wall time of one program, seconds: ends what waits. Default ten times `timeLimitSeconds`, at least 60. */
  wallLimitSeconds?: number | undefined;
  /** Largest address space of one program, MiB. Default 1024: native packages reserve far more than they use. */
  memoryLimitMB?: number | undefined;
  /** Bytes of output that are kept; the rest is dropped. Default 1 MiB. */
  outputLimit?: number | undefined;
}

/** The pipe for reports, which the program is not told of: a line when the interpreter has started, then the outcome. */
const REPORT = 3;
/** The pipe for the job. Standard input, output and errors are the program's own. */
const JOB = 4;
/** How long the pipes of a process that has ended may stay open: a process that the program started may hold them. */
const CLOSE_LIMIT_MS = 10_000;
// The limit of CPU time counts from the start of the process, and takes whole seconds: the parent keeps the real one.
// This one, at the wall limit, ends a program whose parent is gone.
const MAIN = `
import os, resource, sys
memory, seconds = int(sys.argv[1]), int(sys.argv[2])
for limit, value in (
    (resource.RLIMIT_AS, memory),
    (resource.RLIMIT_CPU, seconds),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_CORE, 0),
):
    try:
        resource.setrlimit(limit, (value, value))
    except (OSError, ValueError):
        pass
os.write(${REPORT}, b"\\n")
with open(${JOB}, "rb") as job:
    text = job.read().decode("utf-8", "surrogatepass")
report = __run__(text).encode("utf-8", "surrogatepass")
with open(${REPORT}, "wb", closefd=False) as out:
    out.write(report)
    out.flush()
os._exit(0)
`;
const WARNING =
  'programs that a language model wrote now run in the Python of this machine: they may read what you may read, ' +
  'delete what you may delete, and start processes. Use rewards.PythonSandbox for programs that you do not trust';

let hasWarned = false;

/**
 * Runs programs with the Python that is installed here, a fresh process for each. **No sandbox**: a program has your
 * permissions. It may read every file that you may read, delete files, and start processes; only time, memory, output
 * and writing into files are bounded, and on Linux, where the system allows it, it has no network and ends with its
 * process tree. Warns once per process when it is first used. Not on Windows.
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
    checkKeys('options', options, [
      'python',
      'workers',
      'timeLimitSeconds',
      'wallLimitSeconds',
      'memoryLimitMB',
      'outputLimit',
    ]);
    const { python = 'python3', workers = Math.max(1, Math.min(8, Math.floor(os.availableParallelism() / 2))) } =
      options;
    const { timeLimitSeconds = 10, memoryLimitMB = 1024, outputLimit = 2 ** 20 } = options;
    const { wallLimitSeconds = defaultWallSeconds(timeLimitSeconds) } = options;
    if (typeof python !== 'string' || python === '')
      throw optionError(TypeError, 'python', `expected a command, got ${JSON.stringify(python)}`);
    checkInteger('workers', workers, { min: 1, max: 1024 });
    checkNumber('timeLimitSeconds', timeLimitSeconds, { minExclusive: 0, max: 1e6 });
    checkNumber('wallLimitSeconds', wallLimitSeconds, { minExclusive: 0, max: 1e7 });
    checkInteger('memoryLimitMB', memoryLimitMB, { min: 64, max: 2 ** 20 });
    checkInteger('outputLimit', outputLimit, { min: 0, max: 2 ** 30 });
    if (process.platform === 'win32')
      throw new DUltraError('SANDBOX', 'NativePython: expected Linux or macOS, got Windows');
    this.#options = { python, workers, timeLimitSeconds, wallLimitSeconds, memoryLimitMB, outputLimit };
  }

  /**
   * As {@link PythonSandbox.run}.
   * @throws DUltraError SANDBOX where the interpreter does not start; `signal.reason`.
   */
  async run(program: PythonProgram, options: { signal?: AbortSignal | undefined } = {}): Promise<PythonOutcome> {
    const { stdin, ...job } = jobOf(program, this.#options.outputLimit);
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
      const input = await openInput(folder, stdin);
      return await this.#execute({ ...job, stdin: null }, input, walls, folder, signal);
    } finally {
      await rm(folder, { recursive: true, force: true });
      // The place goes to the next one, if there is one.
      const next = this.#waiting.shift();
      if (next) next();
      else this.#running--;
    }
  }

  #execute(
    job: HarnessJob,
    input: number,
    walls: string[],
    folder: string,
    signal: AbortSignal | undefined,
  ): Promise<PythonOutcome> {
    const { python, timeLimitSeconds: cpuSeconds, wallLimitSeconds: wallSeconds, memoryLimitMB } = this.#options;
    const limits = [String(memoryLimitMB * 2 ** 20), String(Math.ceil(wallSeconds))];
    const command = [...walls, python, '-I', '-B', '-c', `${PYTHON_HARNESS}${MAIN}`, ...limits];
    return new Promise((resolve, reject) => {
      const child = spawnInGroup(command, folder, input);
      closeSync(input);
      const doesNotStart = (why: string, options?: ErrorOptions) =>
        reject(new DUltraError('SANDBOX', `python: ${python} does not start: ${why}`, options));
      let start: number | null = null;
      let report = '';
      const [out, errors] = [new OutputBuffer(job.outputLimit), new OutputTail()];
      let ending: { timeout: string } | 'aborted' | 'late start' | null = null;
      const end = (why: NonNullable<typeof ending>) => {
        ending ??= why;
        killGroup(child);
      };
      const startTimer = setTimeout(() => end('late start'), START_LIMIT_MS);
      let limit: TimeLimit | null = null;
      const onStart = async () => {
        clearTimeout(startTimer);
        start = performance.now();
        const clock = processClock(child.pid!, { mainThread: false });
        limit = new TimeLimit(clock, { cpuSeconds, wallSeconds }, (timeout) => end({ timeout }));
        await limit.start();
        (child.stdio[JOB] as NodeJS.WritableStream).end(JSON.stringify(job));
      };
      const abort = () => end('aborted');
      signal?.addEventListener('abort', abort, { once: true });
      const done = () => {
        clearTimeout(startTimer);
        limit?.stop();
        signal?.removeEventListener('abort', abort);
      };
      child.stdout?.on('data', (bytes: Buffer) => out.add(bytes));
      child.stderr?.on('data', (bytes: Buffer) => errors.add(bytes));
      (child.stdio[REPORT] as NodeJS.ReadableStream).setEncoding('utf8').on('data', (text: string) => {
        report += text;
        if (start === null) void onStart();
      });
      // A child that did not start, or ended before it had read.
      child.stdio[JOB]?.on('error', () => {});
      child.on('error', (cause) => {
        done();
        doesNotStart(cause.message, { cause });
      });
      child.on('exit', (code, killedBy) => {
        limit?.stop();
        // Processes that the program started end with it; one that left the group may hold the pipes open.
        if (ending === null && child.pid !== undefined) killGroup(child);
        const leave = setTimeout(() => child.stdio.forEach((stream) => stream?.destroy()), CLOSE_LIMIT_MS);
        child.once('close', () => {
          clearTimeout(leave);
          done();
          const seconds = start === null ? 0 : (performance.now() - start) / 1000;
          const output = { stdout: out.text(), truncated: out.truncated, stderr: errors.text() };
          const empty = { value: null, ...output, seconds };
          if (ending === 'aborted') reject(signal?.reason);
          else if (ending === 'late start') doesNotStart('it took too long');
          else if (ending !== null) resolve({ status: 'timeout', error: ending.timeout, ...empty });
          else if (start === null) doesNotStart(output.stderr.trim().split('\n').at(-1)!);
          // Past the line that told of the start.
          else if (report.length > 1) resolve(readOutcome(report.slice(1), output, seconds));
          else
            resolve({ status: 'crashed', error: `the interpreter ended with ${killedBy ?? `code ${code}`}`, ...empty });
        });
      });
    });
  }
}

/** A file without a name that holds `text`, open for reading: the standard input of a process. */
async function openInput(folder: string, text: string): Promise<number> {
  const file = path.join(folder, 'stdin');
  await writeFile(file, text);
  const descriptor = openSync(file, 'r');
  await rm(file);
  return descriptor;
}

/**
 * Starts a process that leads a group of its own and finds nothing of this process in its environment.
 * @param input file descriptor of its standard input
 */
function spawnInGroup([command, ...args]: string[], folder: string, input: number): ChildProcess {
  return spawn(command, args, {
    cwd: folder,
    env: {
      PATH: process.env.PATH,
      HOME: folder,
      PYTHONHASHSEED: '0',
      OPENBLAS_NUM_THREADS: '1',
      OMP_NUM_THREADS: '1',
    },
    stdio: [input, 'pipe', 'pipe', 'pipe', 'pipe'],
    detached: true,
  });
}

/** Ends a process with its group: also what the program started. */
function killGroup(child: ChildProcess): void {
  try {
    process.kill(-child.pid!, 'SIGKILL');
  } catch {
    child.kill('SIGKILL');
  }
}
