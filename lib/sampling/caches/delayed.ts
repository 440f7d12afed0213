// d3LLM's cache: finished blocks from the left, each some passes after it was finished.
import type { CacheStorage } from '../../model/kv-cache';
import { checkInteger, checkKeys } from '../../options';
import { range } from '../../packing';
import { type CacheDefinition, type CacheView, type RowCache, resolveStorage, STORAGE_OPTIONS } from './definition';

/**
 * d3LLM's cache: finished blocks are cached from left to right, each `delay` passes after the first pass that finds it
 * finished; a pass computes everything right of the cached blocks.
 */
export interface DelayedCache extends CacheStorage {
  type: 'delayed';
  /** Passes that a finished block waits; passes are full while one waits. Default 1. */
  delay?: number | undefined;
  /** A full pass whenever the row's pass number is a multiple of it. Default null: never. */
  every?: number | null | undefined;
}

class DelayedRowCache implements RowCache {
  readonly owesPass = false;
  /** Positions before it are cached. */
  #length = 0;
  /** The pass that saw each block finished; blocks that are cached. */
  readonly #seen = new Map<number, number>([[0, 0]]);
  readonly #stored = new Set<number>();

  constructor(private readonly policy: Required<DelayedCache>) {}

  plan({ ids, window, pass, blocks: list }: CacheView): Int32Array {
    const { delay, every } = this.policy;
    const blocks = list();
    let grown = this.#length;
    for (const [index, { end, masks, skipped }] of blocks.entries()) {
      if (end <= this.#length) continue;
      if (masks > 0) break;
      if (skipped) continue;
      if (!this.#seen.has(index)) this.#seen.set(index, pass);
      if (pass - this.#seen.get(index)! < delay) break;
      this.#stored.add(index);
      grown = end;
    }
    const first = this.#length;
    if (first >= window.end) return new Int32Array(0);
    if (grown > first) {
      this.#length = grown;
      return range(first, ids.length);
    }
    const waits = blocks.some(({ masks }, index) => masks === 0 && this.#seen.has(index) && !this.#stored.has(index));
    const due = every !== null && pass % every === 0;
    return range(first === 0 || waits || due ? 0 : first, ids.length);
  }
}

/** See {@link DelayedCache}. */
export const delayed: CacheDefinition<DelayedCache, Required<DelayedCache>> = {
  types: ['delayed'],
  forms: {
    delayed: {
      base: { type: 'delayed' },
      main: 'delay',
      options: { ...STORAGE_OPTIONS, delay: 'number', every: 'number' },
      help: [
        'delayed[:1]',
        'finished blocks are cached, 1 pass after (d3LLM); delayed:1:every=3 recomputes everything in every 3rd pass',
      ],
    },
  },
  resolve(given, name) {
    checkKeys(name, given, ['type', 'dtype', 'planner', 'delay', 'every']);
    const { delay = 1, every = null } = given;
    checkInteger(`${name}.delay`, delay, { min: 0, max: 1e9 });
    if (every !== null) checkInteger(`${name}.every`, every, { min: 1, max: 1e9 });
    return { type: 'delayed', ...resolveStorage(given, name), delay, every };
  },
  open: (policy) => new DelayedRowCache(policy),
};
