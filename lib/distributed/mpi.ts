// MPI: found, started and ended. The native core opens its library at run time.
import { fstatSync, writeSync } from 'node:fs';
import { DUltraError } from '../errors';
import { native } from '../native';
import { type ProcessGroup, SINGLE_PROCESS } from './process-group';

/** An MPI that was found. */
export interface MpiInfo {
  /** Name or path of the library. */
  file: string;
  /** As it calls itself, such as "Open MPI v4.1.4". */
  version: string;
  /** Whose handles it has: Open MPI's, MPICH's, or those of the standard ABI of MPI 5. */
  abi: 'openmpi' | 'mpich' | 'standard';
}

type Environment = Readonly<Record<string, string | undefined>>;

/** What mpirun, mpiexec and srun tell a process that they start. */
interface Launch {
  /** Whose launcher it is; null: it could be any one's. */
  launcher: 'openmpi' | 'mpich' | null;
  rank: number;
  /** null where the launcher does not tell. */
  size: number | null;
}

/** What a launcher has said in the environment; null: there was none. */
export function launchOf(env: Environment): Launch | null {
  const number = (name: string) => (/^\d+$/.test(env[name] ?? '') ? Number(env[name]) : null);
  const rank = number('OMPI_COMM_WORLD_RANK');
  if (rank !== null) return { launcher: 'openmpi', rank, size: number('OMPI_COMM_WORLD_SIZE') };
  const pmi = number('PMI_RANK');
  if (pmi !== null) return { launcher: 'mpich', rank: pmi, size: number('PMI_SIZE') };
  const tasks = number('SLURM_STEP_ID') === null ? null : number('SLURM_NTASKS');
  const pmix = number('PMIX_RANK');
  if (pmix !== null) return { launcher: null, rank: pmix, size: tasks };
  const task = number('SLURM_PROCID');
  if (tasks !== null && tasks > 1 && task !== null) return { launcher: null, rank: task, size: tasks };
  return null;
}

/** Libraries by the ABI that they have: libmpi.so.12 is what MPICH and its relatives install, Debian's apart. */
const LIBRARIES: Readonly<Record<'linux' | 'darwin', Record<MpiInfo['abi'], readonly string[]>>> = {
  linux: {
    openmpi: ['libmpi.so.40', 'libmpi.so.80'],
    mpich: ['libmpi.so.12', 'libmpich.so.12'],
    standard: ['libmpi_abi.so.0'],
  },
  darwin: { openmpi: ['libmpi.40.dylib'], mpich: ['libmpi.12.dylib'], standard: ['libmpi_abi.0.dylib'] },
};

/** Libraries to try, in this order: those of the launcher that has started this process first. */
export function librariesFor(env: Environment, platform: NodeJS.Platform = process.platform): string[] {
  if (env.DULTRA_MPI) return [env.DULTRA_MPI];
  if (platform !== 'linux' && platform !== 'darwin') return [];
  const { openmpi, mpich, standard } = LIBRARIES[platform];
  // A process that mpirun has started would be alone with another MPI's library.
  const launcher = launchOf(env)?.launcher ?? null;
  if (launcher === 'openmpi') return [...openmpi, ...standard];
  if (launcher === 'mpich') return [...mpich, ...standard];
  return [...openmpi, ...mpich, ...standard];
}

/**
 * Whether the connection to MPICH's launcher is here: a file descriptor that PMI_FD names. Node.js closes what its child
 * processes would inherit, so that npx, and scripts of package.json, do not hand it on.
 */
function hasLauncher(env: Environment): boolean {
  if (!/^\d+$/.test(env.PMI_FD ?? '')) return true;
  try {
    return fstatSync(Number(env.PMI_FD)).isSocket();
  } catch {
    return false;
  }
}

/** The MPI that is installed here; else why none can be used. */
export function findMpi(): { mpi: MpiInfo | null; reason: string | null } {
  const files = librariesFor(process.env);
  if (files.length === 0) return { mpi: null, reason: 'dultra knows the MPIs of Linux and macOS alone' };
  const { reason, ...found } = native().openMpi(files);
  return found.file === '' ? { mpi: null, reason } : { mpi: found as MpiInfo, reason: null };
}

/** An NCCL that was found. */
export interface NcclInfo {
  /** Name or path of the library. */
  file: string;
  /** Such as "2.21.5". */
  version: string;
}

/** The NCCL that is installed here, by which the GPUs of several processes exchange; else why none can be used. */
export function findNccl(): { nccl: NcclInfo | null; reason: string | null } {
  if (native().cudaDevices().names.length === 0) return { nccl: null, reason: 'there is no GPU' };
  const { reason, ...found } = native().openNccl();
  return found.file === '' ? { nccl: null, reason } : { nccl: found, reason: null };
}

/** The processes of this job, once {@link init} has been called. */
let whole: ProcessGroup = SINGLE_PROCESS;
/** Those of them that do the same as this one. */
let current: ProcessGroup = SINGLE_PROCESS;

/**
 * The processes that work together: of a job that {@link init} has joined (while it is parted, those of this process's
 * part), else this one alone.
 */
export const currentGroup = (): ProcessGroup => current;

/** All processes of the job, parted or not. */
export const wholeGroup = (): ProcessGroup => whole;

/**
 * Parts the job: until {@link joinParts}, exchanges, and the sums of trainers, are those of the processes that have called
 * it with the same color. Every process of the job calls it. @returns this process's part
 */
export async function splitGroup(color: number): Promise<ProcessGroup> {
  if (whole.size > 1) current = groupOf(await native().split(color));
  return current;
}

/** This process works among all of its job again; each does it by itself. */
export function joinParts(): void {
  if (current === whole) return;
  native().join();
  current = whole;
}

/** The rank that a launcher has given this process; null where there was none. For what is said before {@link init}. */
export const launchedRank = (): number | null => launchOf(process.env)?.rank ?? null;

function groupOf({ rank, size }: { rank: number; size: number }): ProcessGroup {
  const { gatherBytes, barrier } = native();
  return {
    rank,
    size,
    allGatherBytes: gatherBytes,
    async allGather(values) {
      const all = await gatherBytes(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
      return all.map((bytes) => new Float64Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 8));
    },
    barrier,
  };
}

/** MPI has started and not ended. */
let isRunning = false;

/** What ends the process, where nothing has caught it. */
let uncaught: unknown;

/**
 * Milliseconds that a rank waits before it tells of a failure: where a rank before it has failed alike, the job is over
 * by then, with one message.
 */
export const waitBeforeFailure = (rank: number): number => (rank === 0 ? 0 : 2000 + 200 * Math.min(rank, 10));

/** Keeps the process from ending for a while; nothing else runs in it meanwhile. */
const pause = (milliseconds: number) => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);

/** At the end of the process: with all others, or, after a failure, ending all others. */
function leave(exitCode: number): void {
  if (!isRunning) return;
  isRunning = false;
  let failure = uncaught;
  let wait = waitBeforeFailure(whole.rank);
  if (exitCode === 0 && current !== whole) failure ??= 'has ended before the others have done with it';
  else if (exitCode === 0) {
    try {
      native().finalizeMpi();
      return;
    } catch (error) {
      failure = (error as Error).message;
      // Those who wait for this rank tell of it; it does where none of them can.
      wait = 4000;
    }
  }
  // Node.js would print it after this, when the process is no more.
  if (failure !== undefined) {
    pause(wait);
    writeSync(2, `rank ${whole.rank}: ${failure instanceof Error ? failure.stack : String(failure)}\n`);
  }
  // MPICH's launcher ends all processes at once, and loses what it has not yet read of their output.
  pause(500);
  native().abortMpi(exitCode === 0 ? 1 : exitCode);
}

/**
 * Joins the job that mpirun, mpiexec or srun has started this process in: from here on trainers share their work with
 * the job's other processes, and a process that ends with a failure ends them all. Without a launcher nothing happens:
 * the group is this process alone. Further calls return the same group.
 * @throws DUltraError DISTRIBUTED where the launcher's MPI is not here, is too old, or does not start.
 */
export function init(): ProcessGroup {
  const launch = launchOf(process.env);
  if (isRunning || launch === null) return whole;
  // UCX, beneath MPICH and Open MPI, would put functions of its own in the place of malloc's and mmap's, while other
  // threads of Node.js run in them: MPI_Init has crashed there. It reads this when the library is opened.
  process.env.UCX_MEM_EVENTS ??= 'no';
  const { mpi, reason } = findMpi();
  if (mpi === null)
    throw new DUltraError(
      'DISTRIBUTED',
      `this process was started as rank ${launch.rank} of several, but there is no MPI that it could use: ${reason}; ` +
        'DULTRA_MPI can name the library',
    );
  if (launch.launcher === 'mpich' && !hasLauncher(process.env))
    throw new DUltraError(
      'DISTRIBUTED',
      "this process has lost its connection to MPICH's launcher, which Node.js does not hand on to child processes: " +
        'expected to be started by mpirun itself, as in "mpirun -n 2 node_modules/.bin/dultra", and not by npx or npm run',
    );
  native().startMpi();
  isRunning = true;
  process.on('uncaughtExceptionMonitor', (error) => {
    uncaught = error;
  });
  process.on('exit', (code) => leave(code));
  const group = groupOf(native().group());
  if (launch.size !== null && launch.size !== group.size)
    throw new DUltraError(
      'DISTRIBUTED',
      `expected ${launch.size} processes, as the launcher says, got ${group.size} from ${mpi.version}: the launcher is ` +
        "another MPI's, or srun needs --mpi=pmix (srun --mpi=list says what there is)",
    );
  whole = group;
  current = group;
  return group;
}
