// Several processes for tests: a group in memory, and jobs of mpirun.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import path from 'node:path';
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
const LIMIT_MS = process.env.DULTRA_TEST_UPDATES ? 3_600_000 : 180_000;

/** Why there cannot be two hosts here; null: there can. */
export const noTwoHosts = ((): string | null => {
  if (process.platform !== 'linux') return 'there are no namespaces';
  const cable = ['ip', 'link', 'add', 'cable', 'type', 'veth', 'peer', 'name', 'other'];
  const { status } = spawnSync('unshare', ['--user', '--map-root-user', '--net', '--uts', '--', ...cable]);
  return status === 0 ? null : 'this system does not let it make networks (unshare, ip)';
})();

/**
 * Starts `ranks` processes of Node.js with these arguments.
 * @param env more of the environment
 * @param hosts 2: half of them on a host of their own (two-hosts.sh)
 */
export function mpirun(
  launcher: string,
  ranks: number,
  args: readonly string[],
  { cwd, env = {}, hosts = 1 }: { cwd: string; env?: Record<string, string>; hosts?: 1 | 2 },
): Job {
  const options = launcher === 'mpirun.openmpi' ? ['--allow-run-as-root', '--oversubscribe', '--bind-to', 'none'] : [];
  const begin = performance.now();
  const command = hosts === 1 ? launcher : path.join(__dirname, 'two-hosts.sh');
  const before = hosts === 1 ? [...options, '-n', String(ranks)] : [launcher, String(ranks)];
  const child: ChildProcess = spawn(command, [...before, process.execPath, ...args], {
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
