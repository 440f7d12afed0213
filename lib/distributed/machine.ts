// What of its machine a process takes that shares it with other ranks.
import os from 'node:os';
import { native } from '../native';
import { gatherJson, type ProcessGroup } from './process-group';

/** See {@link machineShare}. */
export interface MachineShare {
  /** Of this process among those on its machine, and their number. */
  localRank: number;
  localSize: number;
  /** Threads for computing on the CPU. */
  threads: number;
  /** The GPU to compute on; null: there is none. */
  device: string | null;
}

/**
 * Which threads and which GPU of its machine a process takes: GPUs in turn, and equally many threads, unless the launcher
 * has bound each process to cores of its own. Every process calls it.
 */
export async function machineShare(group: ProcessGroup): Promise<MachineShare> {
  const hosts = await gatherJson(group, os.hostname());
  const local = hosts.flatMap((host, rank) => (host === os.hostname() ? [rank] : []));
  const localRank = local.indexOf(group.rank);
  const localSize = local.length;
  const available = os.availableParallelism();
  const isBound = available < os.cpus().length;
  const gpus = native().cudaDevices().names.length;
  return {
    localRank,
    localSize,
    threads: isBound ? available : Math.max(1, Math.floor(available / localSize)),
    device: gpus === 0 ? null : `cuda:${localRank % gpus}`,
  };
}
