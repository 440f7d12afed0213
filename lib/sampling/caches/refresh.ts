// Recomputes whole rows now and then, and masked and changed positions in between.
import type { CacheStorage } from '../../model/kv-cache';
import { checkInteger, checkKeys, checkNumber } from '../../options';
import { range } from '../../packing';
import { type CacheDefinition, type CacheView, type RowCache, resolveStorage, STORAGE_OPTIONS } from './definition';

/**
 * Recomputes the whole row every `every` passes, or when the share `changed` of its tokens has changed. The passes
 * between compute the masks of the current block and the tokens that have changed since they were last computed; all
 * other keys and values come from the cache. Block ends do not matter.
 */
export interface RefreshCache extends CacheStorage {
  type: 'refresh';
  /** Passes from one full pass to the next; 1 makes every pass a full one, which is exact. Default null: never. */
  every?: number | null | undefined;
  /** A full pass when more than this share of the row has changed since the last one, 0..1. Default null: never. */
  changed?: number | null | undefined;
}

class RefreshRowCache implements RowCache {
  readonly owesPass = false;
  /** The token whose keys and values are cached at each position; -1: none yet. */
  readonly #of: Int32Array;
  /** The row at the last full pass. */
  #full: Int32Array;
  #sinceFull = 0;

  constructor(
    private readonly policy: Required<RefreshCache>,
    length: number,
  ) {
    this.#of = new Int32Array(length).fill(-1);
    this.#full = new Int32Array(length).fill(-1);
  }

  plan({ ids, candidates }: CacheView): Int32Array {
    let queries = range(0, ids.length);
    if (!this.#isFullPassDue(ids)) {
      const wanted = new Uint8Array(ids.length);
      for (const position of candidates) wanted[position] = 1;
      queries = queries.filter((position) => wanted[position] === 1 || ids[position] !== this.#of[position]);
    }
    if (queries.length === ids.length) {
      this.#full = ids.slice();
      this.#sinceFull = 0;
    }
    this.#sinceFull++;
    for (const position of queries) this.#of[position] = ids[position];
    return queries;
  }

  #isFullPassDue(ids: Int32Array): boolean {
    const { every, changed } = this.policy;
    if (this.#of[0] < 0 || (every !== null && this.#sinceFull >= every)) return true;
    if (changed === null) return false;
    let differing = 0;
    for (let i = 0; i < ids.length; i++) if (ids[i] !== this.#full[i]) differing++;
    return differing > changed * ids.length;
  }
}

/** See {@link RefreshCache}. */
export const refresh: CacheDefinition<RefreshCache, Required<RefreshCache>> = {
  types: ['refresh'],
  forms: {
    refresh: {
      base: { type: 'refresh' },
      main: 'every',
      options: { ...STORAGE_OPTIONS, every: 'number', changed: 'number' },
      help: [
        'refresh[:4]',
        'what is masked in the block and what has changed; everything in every 4th pass, or refresh:changed=0.2 when a fifth of the row has changed',
      ],
    },
  },
  resolve(given, name) {
    checkKeys(name, given, ['type', 'dtype', 'planner', 'every', 'changed']);
    const { every = null, changed = null } = given;
    if (every !== null) checkInteger(`${name}.every`, every, { min: 1, max: 1e9 });
    if (changed !== null) checkNumber(`${name}.changed`, changed, { min: 0, max: 1 });
    return { type: 'refresh', ...resolveStorage(given, name), every, changed };
  },
  open: (policy, length) => new RefreshRowCache(policy, length),
};
