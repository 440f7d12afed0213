// The processes that train one model together. Gradients are reduced in the native core; what is computed above them
// (advantages, metrics) goes through a process group.

/** Processes by rank, each with its own rows. Every process makes the same calls in the same order. */
export interface ProcessGroup {
  /** Of this process: 0 … size − 1. */
  readonly rank: number;
  readonly size: number;
  /** The values of every process, by rank; their lengths may differ. */
  allGather(values: Float64Array): Promise<Float64Array[]>;
  /** Resolves when every process has called it. */
  barrier(): Promise<void>;
}

/** The group of a process that trains alone. */
export const SINGLE_PROCESS: ProcessGroup = {
  rank: 0,
  size: 1,
  allGather: async (values) => [values],
  barrier: async () => {},
};
