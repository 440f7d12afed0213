// Cache policies as plain tagged objects: checks, defaults, and which positions of a row each pass computes.
import type { NativeCacheOptions } from '../native';
import { checkChoice, checkInteger, checkKeys, checkNumber } from '../options';
import type { CachePolicy, DelayedCache, DualCache, NoCache, PrefixCache, RefreshCache } from '../types';

/** A cache policy with every default filled in; `emptyPass` null leaves it to `compat` and the sampler. */
export type ResolvedCache =
  | NoCache
  | (Required<Omit<PrefixCache, 'emptyPass'>> & { emptyPass: boolean | null })
  | (Required<Omit<DualCache, 'emptyPass'>> & { emptyPass: boolean | null })
  | Required<RefreshCache>
  | Required<DelayedCache>;

const CACHE_TYPES = ['none', 'prefix', 'dual', 'refresh', 'delayed'] as const;

/**
 * Checks a cache policy and fills in its defaults.
 * @param name of the option, for messages
 * @throws TypeError, RangeError naming the option, what was expected and what came.
 */
export function resolveCache(cache: CachePolicy | undefined, name = 'cache'): ResolvedCache {
  const given: CachePolicy = cache === undefined ? { type: 'none' } : cache;
  if (typeof given !== 'object' || given === null)
    throw new TypeError(`${name}: expected an object with a "type", got ${String(given)}`);
  checkChoice(`${name}.type`, given.type, CACHE_TYPES);
  if (given.type === 'none') {
    checkKeys(name, given, ['type']);
    return { type: 'none' };
  }
  const { dtype = 'float32', planner = 'cached' } = given;
  const passes = (option: string, value: unknown, min: number) => {
    if (value !== null) checkInteger(`${name}.${option}`, value, { min, max: 1e9 });
  };
  let resolved: ResolvedCache;
  switch (given.type) {
    case 'prefix':
    case 'dual': {
      checkKeys(name, given, ['type', 'dtype', 'planner', 'emptyPass']);
      const { emptyPass } = given;
      if (emptyPass !== undefined) checkChoice(`${name}.emptyPass`, emptyPass, [true, false] as const);
      resolved = { type: given.type, dtype, planner, emptyPass: emptyPass ?? null };
      break;
    }
    case 'refresh': {
      checkKeys(name, given, ['type', 'dtype', 'planner', 'every', 'changed']);
      const { every = null, changed = null } = given;
      passes('every', every, 1);
      if (changed !== null) checkNumber(`${name}.changed`, changed, { min: 0, max: 1 });
      resolved = { type: 'refresh', dtype, planner, every, changed };
      break;
    }
    case 'delayed': {
      checkKeys(name, given, ['type', 'dtype', 'planner', 'delay', 'every']);
      const { delay = 1, every = null } = given;
      passes('delay', delay, 0);
      passes('every', every, 1);
      resolved = { type: 'delayed', dtype, planner, delay, every };
      break;
    }
  }
  checkChoice(`${name}.dtype`, dtype, ['float32', 'bfloat16'] as const);
  checkChoice(`${name}.planner`, planner, ['fresh', 'cached'] as const);
  return resolved;
}

/** What the native cache of a policy holds; null: there is none. */
export function cacheStorage(cache: ResolvedCache, hasPlanner: boolean): NativeCacheOptions | null {
  if (cache.type === 'none') return null;
  const planner = hasPlanner ? (cache.planner === 'cached' ? 'blocks' : 'hidden') : 'none';
  return { dtype: cache.dtype === 'bfloat16' ? 'BF16' : 'F32', planner };
}

/** A block as policies see it: its positions, and how many of them are masked by the decoder's count. */
export interface CacheBlock {
  start: number;
  end: number;
  masks: number;
  /** Decided by an end of sequence before it was ever opened: never cached by itself. */
  skipped?: boolean;
}

/** A row before a pass. */
export interface CacheView {
  ids: Int32Array;
  candidates: Int32Array;
  /** The part of the row that is being decided. */
  window: { begin: number; end: number };
  /** Number of the pass, from 1. */
  pass: number;
  /** From the prompt on, up to the last that is open. */
  blocks: readonly CacheBlock[];
}

function range(begin: number, end: number): Int32Array {
  return Int32Array.from({ length: end - begin }, (_, i) => begin + i);
}

/** One row of a cache: what each pass computes. */
export class RowCache {
  /** The token that each position's keys and values are of; -1: none yet. */
  readonly #of: Int32Array;
  /** The row at the last full pass. */
  #full: Int32Array;
  #sinceFull = 0;
  #window = { begin: -1, end: -1 };
  /** For "delayed": the positions before it are cached, and the pass that saw each block finished. */
  #length = 0;
  readonly #seen = new Map<number, number>([[0, 0]]);
  readonly #stored = new Set<number>();
  #waits = false;

  constructor(
    private readonly policy: Exclude<ResolvedCache, NoCache>,
    length: number,
  ) {
    this.#of = new Int32Array(length).fill(-1);
    this.#full = new Int32Array(length).fill(-1);
  }

  /** The block that began with the last pass has one more coming, finished or not (`emptyPass`). */
  get owesPass(): boolean {
    return this.#waits;
  }

  /** In-row positions that the pass computes, ascending; none where everything that could be decided is cached. */
  plan(view: CacheView, emptyPass: boolean): Int32Array {
    const { ids } = view;
    const queries = this.#choose(view, emptyPass);
    if (queries.length === ids.length) {
      this.#full = ids.slice();
      this.#sinceFull = 0;
    }
    this.#sinceFull++;
    for (const position of queries) this.#of[position] = ids[position];
    return queries;
  }

  #choose(view: CacheView, emptyPass: boolean): Int32Array {
    const { policy } = this;
    const { ids, window } = view;
    const all = () => range(0, ids.length);
    switch (policy.type) {
      case 'prefix':
      case 'dual': {
        const begins = window.begin !== this.#window.begin || window.end !== this.#window.end;
        this.#window = { ...window };
        this.#waits = begins && emptyPass;
        if (begins) return all();
        return range(window.begin, policy.type === 'dual' ? window.end : ids.length);
      }
      case 'refresh': {
        if (this.#of[0] < 0) return all();
        if (policy.every !== null && this.#sinceFull >= policy.every) return all();
        if (policy.changed !== null) {
          let changed = 0;
          for (let i = 0; i < ids.length; i++) if (ids[i] !== this.#full[i]) changed++;
          if (changed > policy.changed * ids.length) return all();
        }
        const wanted = new Uint8Array(ids.length);
        for (const position of view.candidates) wanted[position] = 1;
        return all().filter((position) => wanted[position] === 1 || ids[position] !== this.#of[position]);
      }
      case 'delayed':
        return this.#delayed(view, policy);
    }
  }

  #delayed({ ids, window, pass, blocks }: CacheView, policy: Required<DelayedCache>): Int32Array {
    let grown = this.#length;
    for (const [index, { end, masks, skipped }] of blocks.entries()) {
      if (end <= this.#length) continue;
      if (masks > 0) break;
      if (skipped) continue;
      if (!this.#seen.has(index)) this.#seen.set(index, pass);
      if (pass - this.#seen.get(index)! < policy.delay) break;
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
    const due = policy.every !== null && pass % policy.every === 0;
    return range(first === 0 || waits || due ? 0 : first, ids.length);
  }
}
