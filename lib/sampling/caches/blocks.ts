// The exact cache of models that attend by blocks.

import { type BlockGrid, blockOf, blockStart } from '../../model/blocks';
import type { CacheStorage } from '../../model/kv-cache';
import { checkKeys } from '../../options';
import { range } from '../../packing';
import { type CacheDefinition, type CacheView, type RowCache, resolveStorage, STORAGE_OPTIONS } from './definition';

/**
 * For models that attend by blocks (block diffusion): no later position changes the keys and values of a finished block,
 * so that caching them is exact. A pass computes the current block and those before it that are not cached as they are
 * now; later blocks are not computed at all.
 */
export interface BlocksCache extends CacheStorage {
  type: 'blocks';
}

class BlocksRowCache implements RowCache {
  readonly owesPass = false;
  /** The token whose keys and values are cached at each position; -1: none yet. */
  readonly #of: Int32Array;

  constructor(
    length: number,
    private readonly attended: BlockGrid,
  ) {
    this.#of = new Int32Array(length).fill(-1);
  }

  plan({ ids, window }: CacheView): Int32Array {
    // A token changes what its own block of the model and all blocks behind it hold, wherever the window's edges are.
    let first = 0;
    while (first < window.begin && ids[first] === this.#of[first]) first++;
    const { attended } = this;
    const begin = blockStart(attended, blockOf(attended, first));
    const end = Math.min(ids.length, blockStart(attended, blockOf(attended, window.end - 1) + 1));
    for (let p = begin; p < end; p++) this.#of[p] = ids[p];
    return range(begin, end);
  }
}

/** See {@link BlocksCache}. */
export const blocks: CacheDefinition<BlocksCache, Required<BlocksCache>> = {
  types: ['blocks'],
  forms: {
    blocks: {
      base: { type: 'blocks' },
      options: { ...STORAGE_OPTIONS },
      help: ['blocks', 'finished blocks, of models that attend by blocks: exact (default for these)'],
    },
  },
  resolve(given, name) {
    checkKeys(name, given, ['type', 'dtype', 'planner']);
    return { type: 'blocks', ...resolveStorage(given, name) };
  },
  open: (_policy, length, attended) => new BlocksRowCache(length, attended ?? { first: length, length }),
};
