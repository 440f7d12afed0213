// The processes that train or measure one model together. Gradients are reduced in the native core; what is computed
// above them (rollouts, advantages, metrics) goes through a process group.
import { concatenate } from '../packing';

/** Processes by rank, each with its own rows. Every process makes the same calls in the same order. */
export interface ProcessGroup {
  /** Of this process: 0 … size − 1. */
  readonly rank: number;
  readonly size: number;
  /** The values of every process, by rank; their lengths may differ. */
  allGather(values: Float64Array): Promise<Float64Array[]>;
  /** The bytes of every process, by rank; their lengths may differ. */
  allGatherBytes(bytes: Uint8Array): Promise<Uint8Array[]>;
  /** Resolves when every process has called it. */
  barrier(): Promise<void>;
}

/** The group of a process that works alone. */
export const SINGLE_PROCESS: ProcessGroup = {
  rank: 0,
  size: 1,
  allGather: async (values) => [values],
  allGatherBytes: async (bytes) => [bytes],
  barrier: async () => {},
};

/** A value of every process, by rank: where there are several, as JSON keeps it. */
export async function gatherJson<T>(group: ProcessGroup, value: T): Promise<T[]> {
  if (group.size === 1) return [value];
  const all = await group.allGatherBytes(new TextEncoder().encode(JSON.stringify(value)));
  return all.map((bytes) => JSON.parse(new TextDecoder().decode(bytes)) as T);
}

/** Does some work on rank 0 first, then on all others: what it downloads or writes is there for them. */
export async function firstAlone<T>(group: ProcessGroup, work: () => Promise<T>): Promise<T> {
  if (group.rank > 0) await group.barrier();
  const result = await work();
  if (group.rank === 0) await group.barrier();
  return result;
}

/** Rank 0's numbers by name, on every process: what decides how a run goes on must be the same everywhere. */
export async function numbersOfFirst(
  group: ProcessGroup,
  numbers: Record<string, number>,
): Promise<Record<string, number>> {
  const names = (await gatherJson(group, group.rank === 0 ? Object.keys(numbers) : []))[0];
  const own = group.rank === 0 ? Float64Array.from(names, (name) => numbers[name]) : new Float64Array(0);
  const [values] = await group.allGather(own);
  return Object.fromEntries(names.map((name, i) => [name, values[i]]));
}

/**
 * Which process computes which item: each item, the most costly first, goes to the process that has least to do so far.
 * @param costs of the items, in any unit
 * @param loads what each process has to do already, in the same unit; gets what is added. Default: nothing
 * @returns the rank of each item
 */
export function dealOut(
  costs: readonly number[],
  size: number,
  loads: Float64Array = new Float64Array(size),
): Int32Array {
  const ranks = new Int32Array(costs.length);
  if (size === 1) return ranks;
  const order = costs.map((_, i) => i).sort((a, b) => costs[b] - costs[a] || a - b);
  for (const i of order) {
    let least = 0;
    for (let rank = 1; rank < size; rank++) if (loads[rank] < loads[least]) least = rank;
    ranks[i] = least;
    loads[least] += costs[i];
  }
  return ranks;
}

/**
 * Numbers that each item has, wherever they were computed: (items × width), 0 for items that nobody has.
 * @param own of this process: numbers by item
 */
export async function gatherNumbers(
  group: ProcessGroup,
  items: number,
  width: number,
  own: ReadonlyMap<number, ArrayLike<number>>,
): Promise<Float64Array> {
  const packed = new Float64Array(own.size * (width + 1));
  let at = 0;
  for (const [item, numbers] of own) {
    packed[at++] = item;
    for (let i = 0; i < width; i++) packed[at++] = numbers[i];
  }
  const all = concatenate(await group.allGather(packed), Float64Array);
  const out = new Float64Array(items * width);
  for (let from = 0; from < all.length; from += width + 1)
    out.set(all.subarray(from + 1, from + 1 + width), all[from] * width);
  return out;
}

/** Arrays of items, wherever they were computed. @param own of this process, by item @param lengths of all items' arrays */
export async function gatherArrays(
  group: ProcessGroup,
  own: ReadonlyMap<number, Float32Array>,
  lengths: readonly number[],
): Promise<Float32Array[]> {
  const width = Math.max(0, ...lengths);
  const all = await gatherNumbers(group, lengths.length, width, own);
  return lengths.map((length, i) => Float32Array.from(all.subarray(i * width, i * width + length)));
}

/** The part of `count` things in a row that a process takes, as near to equal as may be. */
export function ownRange(count: number, { rank, size }: ProcessGroup): { begin: number; end: number } {
  return { begin: Math.floor((rank * count) / size), end: Math.floor(((rank + 1) * count) / size) };
}
