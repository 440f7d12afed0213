// Fast-dLLM's caches: refilled by a pass over the whole row when a block begins.
import type { CacheStorage } from '../../model/kv-cache';
import { checkChoice, checkKeys } from '../../options';
import { range } from '../../packing';
import { type CacheDefinition, type CacheView, type RowCache, resolveStorage, STORAGE_OPTIONS } from './definition';

/**
 * Fast-dLLM's prefix cache: when a block begins, a pass computes the whole row; the block's further passes compute
 * everything from the block on, and read the keys and values of all other positions from that pass.
 */
export interface PrefixCache extends CacheStorage {
  type: 'prefix';
  /**
   * As in the reference: after a block's first pass, make one more even if the block is finished. Default false; with
   * compat "reference" true, except with the factor rule.
   */
  emptyPass?: boolean | undefined;
}

/**
 * Fast-dLLM's dual cache: as "prefix", but a block's further passes compute the block alone, and read the keys and
 * values of all other positions from the block's first pass.
 */
export interface DualCache extends CacheStorage {
  type: 'dual';
  /** As for "prefix". */
  emptyPass?: boolean | undefined;
}

type Resolved<T extends PrefixCache | DualCache> = Required<Omit<T, 'emptyPass'>> & {
  /** null: `compat` and the sampler decide. */
  emptyPass: boolean | null;
};

/** {@link PrefixCache} or {@link DualCache} with defaults. */
export type ResolvedBlockCache = Resolved<PrefixCache> | Resolved<DualCache>;

class BlockRowCache implements RowCache {
  #window = { begin: -1, end: -1 };
  owesPass = false;

  constructor(private readonly policy: ResolvedBlockCache) {}

  plan({ ids, window, emptyPass }: CacheView): Int32Array {
    const begins = window.begin !== this.#window.begin || window.end !== this.#window.end;
    this.#window = { ...window };
    this.owesPass = begins && (this.policy.emptyPass ?? emptyPass);
    if (begins) return range(0, ids.length);
    return range(window.begin, this.policy.type === 'dual' ? window.end : ids.length);
  }
}

/** See {@link PrefixCache} and {@link DualCache}. */
export const block: CacheDefinition<PrefixCache | DualCache, ResolvedBlockCache> = {
  types: ['prefix', 'dual'],
  forms: {
    prefix: {
      base: { type: 'prefix' },
      options: { ...STORAGE_OPTIONS, emptyPass: 'boolean' },
      help: ['prefix', 'a whole pass as a block begins, then everything from the block on (Fast-dLLM)'],
    },
    dual: {
      base: { type: 'dual' },
      options: { ...STORAGE_OPTIONS, emptyPass: 'boolean' },
      help: ['dual', 'a whole pass as a block begins, then the block alone (Fast-dLLM)'],
    },
  },
  resolve(given, name) {
    checkKeys(name, given, ['type', 'dtype', 'planner', 'emptyPass']);
    const { type, emptyPass } = given;
    if (emptyPass !== undefined) checkChoice(`${name}.emptyPass`, emptyPass, [true, false] as const);
    return { type, ...resolveStorage(given, name), emptyPass: emptyPass ?? null };
  },
  open: (policy) => new BlockRowCache(policy),
};
