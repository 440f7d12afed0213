// Memory of keys and values that rows come to and go from.
import { DUltraError } from '../errors';
import { allocateCache } from '../model/kv-cache';
import { type NativeCache, type NativeCacheOptions, type NativeModel, native } from '../native';
import { offsetsOf } from '../packing';
import { formatGiB } from '../text';
import type { Denoisable } from './settings';

/** Positions of a cache: a row has one range of them, since its length is known when it comes. */
export class Slab {
  /** Ranges that no row has, ascending and apart from each other. */
  #free: { begin: number; end: number }[];

  constructor(
    readonly cache: NativeCache,
    readonly capacity: number,
    readonly storage: string,
  ) {
    this.#free = [{ begin: 0, end: capacity }];
  }

  get isEmpty(): boolean {
    return this.#free.length === 1 && this.#free[0].end - this.#free[0].begin === this.capacity;
  }

  get used(): number {
    return this.#free.reduce((sum, { begin, end }) => sum - (end - begin), this.capacity);
  }

  /** The first range of `length` that is free, or -1. */
  take(length: number): number {
    const i = this.#free.findIndex(({ begin, end }) => end - begin >= length);
    if (i < 0) return -1;
    const { begin, end } = this.#free[i];
    if (end - begin === length) this.#free.splice(i, 1);
    else this.#free[i] = { begin: begin + length, end };
    return begin;
  }

  give(begin: number, length: number): void {
    let i = this.#free.findIndex((range) => range.begin > begin);
    if (i < 0) i = this.#free.length;
    this.#free.splice(i, 0, { begin, end: begin + length });
    for (const at of [i, i - 1]) {
      const [left, right] = [this.#free[at], this.#free[at + 1]];
      if (left && right && left.end === right.begin) this.#free.splice(at, 2, { begin: left.begin, end: right.end });
    }
  }
}

/** The name of what a cache holds: rows of one name share memory. */
export const storageName = ({ dtype, planner }: NativeCacheOptions): string => `${dtype} ${planner}`;

/**
 * The slabs of an engine. With a limit, memory is taken up to it and kept for the rows that follow; without one, what
 * rows need is allocated as they come and freed as they go.
 */
export class KvArena {
  readonly #target: Denoisable;
  readonly #limit: number | null;
  #slabs: Slab[] = [];
  #pendingBytes = 0;

  constructor(target: Denoisable, limit: number | null) {
    this.#target = target;
    this.#limit = limit;
  }

  #bytesOf(positions: number, options: NativeCacheOptions): number {
    return native().cacheBytes(this.#target.config, positions, options);
  }

  /** Bytes that are allocated, and of them those that rows have. */
  get bytes(): { allocated: number; used: number } {
    let [allocated, used] = [0, 0];
    for (const { cache, capacity, used: positions } of this.#slabs) {
      const bytes = cache.bytes();
      allocated += bytes;
      used += (bytes * positions) / capacity;
    }
    return { allocated, used };
  }

  /** @throws DUltraError OUT_OF_MEMORY for a row that never fits */
  check(length: number, options: NativeCacheOptions): void {
    const needed = this.#bytesOf(length, options);
    if (this.#limit !== null && needed > this.#limit)
      throw Object.assign(
        new DUltraError(
          'OUT_OF_MEMORY',
          `cache: keys and values of ${length} tokens need ${formatGiB(needed)}, the engine has ${formatGiB(this.#limit)} in all`,
        ),
        { option: 'cache' },
      );
  }

  /** Room for a row, or null. */
  take(length: number, options: NativeCacheOptions): { slab: Slab; begin: number } | null {
    const storage = storageName(options);
    for (const slab of this.#slabs) {
      if (slab.storage !== storage) continue;
      const begin = slab.take(length);
      if (begin >= 0) return { slab, begin };
    }
    return null;
  }

  give(slab: Slab, begin: number, length: number): void {
    slab.give(begin, length);
    if (this.#limit === null && slab.isEmpty) this.#drop(slab);
  }

  /**
   * Allocates room for rows where the limit lets it. @returns false: rows have to go first
   * @throws DUltraError OUT_OF_MEMORY
   */
  async grow(model: NativeModel, lengths: readonly number[], options: NativeCacheOptions): Promise<boolean> {
    const { config } = this.#target;
    let offsets = offsetsOf(lengths);
    if (this.#limit !== null) {
      // Memory of another kind that nobody uses makes room.
      for (const slab of this.#slabs) if (slab.isEmpty) this.#drop(slab);
      const left = this.#limit - this.bytes.allocated - this.#pendingBytes;
      const most = Math.floor(left / this.#bytesOf(1, options));
      if (most < Math.min(...lengths)) return false;
      offsets = partsOf(most, config.maxSequenceLength);
    }
    const positions = offsets[offsets.length - 1];
    const bytes = this.#bytesOf(positions, options);
    this.#pendingBytes += bytes;
    try {
      const cache = await allocateCache(model, config, offsets, options);
      this.#slabs.push(new Slab(cache, positions, storageName(options)));
      return true;
    } finally {
      this.#pendingBytes -= bytes;
    }
  }

  /** Frees what no row has. */
  trim(): void {
    for (const slab of this.#slabs) if (slab.isEmpty) this.#drop(slab);
  }

  #drop(slab: Slab): void {
    this.#slabs = this.#slabs.filter((other) => other !== slab);
    slab.cache.dispose();
  }
}

/** Offsets of so many positions: a cache's own rows are no longer than the model's longest. */
function partsOf(positions: number, longest: number): Int32Array {
  const parts = Math.ceil(positions / longest);
  return Int32Array.from({ length: parts + 1 }, (_, i) => Math.min(positions, i * longest));
}
