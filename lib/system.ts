// Versions, processor and devices of this machine.
import os from 'node:os';
import { findMpi, findNccl, type MpiInfo, type NcclInfo } from './distributed';
import { native } from './native';

/** Output of {@link systemInfo}. */
export interface SystemInfo {
  /** Version of the package. */
  version: string;
  /** Version of Node.js, with its "v". */
  node: string;
  /** Operating system and architecture, as in "linux-x64". */
  platform: string;
  /** The processor's name as the operating system gives it. */
  cpu: string;
  /** CPU threads that are used by default. */
  threads: number;
  /** Instruction sets that are compiled in and that this CPU runs, worst first; the last one is used by default. */
  cpuIsas: string[];
  /** What `loadModel`'s `device` can be here: "cpu", and "cuda:0" and so on for every usable CUDA device. */
  devices: string[];
  /** CUDA devices: name, architecture and memory of each, in the order of their numbers. */
  gpus: string[];
  /** What is missing for a GPU; null if there is one. */
  gpuReason: string | null;
  /** The MPI that connects processes here (`distributed.init`); null if there is none. */
  mpi: MpiInfo | null;
  /** Why there is none. */
  mpiReason: string | null;
  /** The NCCL by which GPUs of several processes exchange gradients; null if there is none, or no GPU. */
  nccl: NcclInfo | null;
  /** Why there is none. */
  ncclReason: string | null;
}

/** Versions, processor and devices. @throws DUltraError NATIVE_NOT_FOUND where the addon cannot be opened. */
export function systemInfo(): SystemInfo {
  const { version, cpuIsas, cudaDevices } = native();
  const cuda = cudaDevices();
  const { mpi, reason: mpiReason } = findMpi();
  const { nccl, reason: ncclReason } = findNccl();
  return {
    version,
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
    cpu: os.cpus()[0]?.model.trim() ?? 'unknown',
    threads: os.availableParallelism(),
    cpuIsas: cpuIsas(),
    devices: ['cpu', ...cuda.names.map((_, index) => `cuda:${index}`)],
    gpus: cuda.names,
    gpuReason: cuda.names.length > 0 ? null : cuda.reason,
    mpi,
    mpiReason,
    nccl,
    ncclReason,
  };
}
