// The time limits of a program under judgement. CPU time decides, because other processes do not change it; wall time
// ends what sleeps or waits. Neither includes the start of the interpreter.
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';

/** Reads the CPU time, in seconds, that a process has used; null where the system does not tell. */
export type CpuClock = () => Promise<number | null>;

/** Limits of one program, both in seconds. */
export interface Limits {
  /** CPU time. */
  cpuSeconds: number;
  /** Wall time. */
  wallSeconds: number;
}

/** The wall limit behind a CPU limit: enough for a machine on which a program gets a tenth of a core. */
export const defaultWallSeconds = (cpuSeconds: number): number => Math.max(60, 10 * cpuSeconds);

/** The unit of /proc/…/stat: USER_HZ, which is 100 on every platform that Node supports. */
const TICKS_PER_SECOND = 100;
/** Shortest pause between two readings of a clock. */
const MIN_PAUSE_MS = 10;
/** Longest delay that setTimeout takes. */
const MAX_DELAY_MS = 2 ** 31 - 1;

/** CPU seconds of a process or its main thread, given its folder in /proc, with those of its children that have ended. */
function procSeconds(folder: string): number | null {
  try {
    const stat = readFileSync(`${folder}/stat`, 'utf8');
    // The command's name, in parentheses, may hold spaces. Fields 11 to 14 after it: utime, stime, cutime, cstime.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields.slice(11, 15).reduce((sum, ticks) => sum + Number(ticks), 0) / TICKS_PER_SECOND;
  } catch {
    return null;
  }
}

/** The process at the end of a chain of wrappers (unshare --fork), each of which has one child. */
function innermost(pid: number): number {
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
    return /^\d+$/.test(children) ? innermost(Number(children)) : pid;
  } catch {
    return pid;
  }
}

/** CPU seconds by `ps`, whose column "time" is [hours:]minutes:seconds. */
const psSeconds = (pid: number): Promise<number | null> =>
  new Promise((resolve) => {
    execFile('ps', ['-o', 'time=', '-p', String(pid)], (error, stdout) => {
      const seconds = stdout
        .trim()
        .split(':')
        .reduce((sum, part) => 60 * sum + Number(part), 0);
      resolve(error || !Number.isFinite(seconds) ? null : seconds);
    });
  });

/**
 * The CPU clock of a process that runs a program, itself or behind wrappers.
 * @param mainThread Count the main thread alone, where the system can (Linux), and not the compiler threads of V8.
 */
export function processClock(pid: number, { mainThread }: { mainThread: boolean }): CpuClock {
  if (process.platform === 'linux') {
    const inner = innermost(pid);
    const folder = mainThread ? `/proc/${inner}/task/${inner}` : `/proc/${inner}`;
    return async () => procSeconds(folder);
  }
  return process.platform === 'win32' ? async () => null : () => psSeconds(pid);
}

/** Calls `onEnd` when a program has used up one of its limits. */
export class TimeLimit {
  readonly #clock: CpuClock;
  readonly #limits: Limits;
  readonly #onEnd: (reason: string) => void;
  #timer: NodeJS.Timeout | null = null;
  #begin = 0;
  #cpuBegin: number | null = null;
  #isStopped = false;

  /** @param onEnd gets a sentence that names the limit. */
  constructor(clock: CpuClock, limits: Limits, onEnd: (reason: string) => void) {
    this.#clock = clock;
    this.#limits = limits;
    this.#onEnd = onEnd;
  }

  /** Reads the clock for the first time; the program may start when this has resolved. */
  async start(): Promise<void> {
    this.#cpuBegin = await this.#clock();
    this.#begin = performance.now();
    this.#wait(0, this.#cpuBegin === null ? null : 0);
  }

  /** Ends the watch; `onEnd` is not called any more. */
  stop(): void {
    this.#isStopped = true;
    if (this.#timer) clearTimeout(this.#timer);
  }

  /** Sleeps for as long as neither limit can be reached by one thread. */
  #wait(wall: number, cpu: number | null): void {
    if (this.#isStopped) return;
    const { cpuSeconds, wallSeconds } = this.#limits;
    const left = Math.min(wallSeconds - wall, cpu === null ? Number.POSITIVE_INFINITY : cpuSeconds - cpu);
    const delay = Math.min(MAX_DELAY_MS, Math.max(MIN_PAUSE_MS, Math.ceil(1000 * left)));
    this.#timer = setTimeout(() => void this.#check(), delay);
  }

  async #check(): Promise<void> {
    const now = this.#cpuBegin === null ? null : await this.#clock();
    if (this.#isStopped) return;
    const cpu = now === null ? null : now - this.#cpuBegin!;
    const wall = (performance.now() - this.#begin) / 1000;
    const { cpuSeconds, wallSeconds } = this.#limits;
    if (cpu !== null && cpu >= cpuSeconds) this.#onEnd(`more than ${cpuSeconds} s of CPU time`);
    else if (wall >= wallSeconds) this.#onEnd(`longer than ${wallSeconds} s`);
    else this.#wait(wall, cpu);
  }
}
