// Several processes for tests: a group in memory, and jobs of mpirun.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import type { ProcessGroup } from '../lib/distributed/process-group';
import type { Outcome } from './command-line';

/** The groups of processes that exchange in memory: each is used by a promise of its own. */
export function memoryGroups(size: number): ProcessGroup[] {
  let arrived: { value: unknown; resolve: (all: unknown[]) => void }[] = [];
  const exchange = <T>(rank: number, value: T) =>
    new Promise<T[]>((resolve) => {
      arrived[rank] = { value, resolve: resolve as (all: unknown[]) => void };
      if (Object.keys(arrived).length < size) return;
      const all = arrived;
      arrived = [];
      for (const { resolve: done } of all) done(all.map((one) => one.value));
    });
  return Array.from({ length: size }, (_, rank) => ({
    rank,
    size,
    allGather: (values: Float64Array) => exchange(rank, values.slice()),
    allGatherBytes: (bytes: Uint8Array) => exchange(rank, bytes.slice()),
    barrier: async () => void (await exchange(rank, null)),
  }));
}

/** The launchers that are installed here. */
export const LAUNCHERS = ['mpirun.openmpi', 'mpirun.mpich'].filter(
  (name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0,
);

/** What mpirun has started, and what came of it. */
export interface Job {
  outcome: Promise<Outcome & { seconds: number }>;
  /** Everything on stderr so far. */
  stderr(): string;
}

/** A launcher that does not end is killed, and its test fails. */
const LIMIT_MS = 180_000;

/** Starts `ranks` processes of Node.js with these arguments. @param env more of the environment */
export function mpirun(
  launcher: string,
  ranks: number,
  args: readonly string[],
  { cwd, env = {} }: { cwd: string; env?: Record<string, string> },
): Job {
  const options = launcher === 'mpirun.openmpi' ? ['--allow-run-as-root', '--oversubscribe', '--bind-to', 'none'] : [];
  const begin = performance.now();
  const child: ChildProcess = spawn(launcher, [...options, '-n', String(ranks), process.execPath, ...args], {
    cwd,
    env: { ...process.env, DULTRA_CUDA_PLUGIN: '/nowhere/libdultra_cuda.so', HF_HUB_OFFLINE: '1', ...env },
  });
  const found: Outcome = { code: null, stdout: '', stderr: '' };
  const limit = setTimeout(() => child.kill('SIGKILL'), LIMIT_MS);
  child.stdout!.on('data', (piece) => {
    found.stdout += piece;
  });
  child.stderr!.on('data', (piece) => {
    found.stderr += piece;
  });
  const outcome = new Promise<Outcome & { seconds: number }>((resolve) =>
    child.on('close', (code) => {
      clearTimeout(limit);
      resolve({ ...found, code, seconds: (performance.now() - begin) / 1000 });
    }),
  );
  return { outcome, stderr: () => found.stderr };
}
