// Cache policies: which positions of a row each pass computes. A new one is a file here and an entry in the list; the
// union of their types, the text forms and the command line's help follow from it.

import { optionError } from '../../errors';
import type { BlockGrid } from '../../model/blocks';
import type { NativeCacheOptions } from '../../native';
import { checkChoice } from '../../options';
import { show } from '../../text';
import { parseForm } from '../text-form';
import { block } from './block';
import { blocks } from './blocks';
import type { CacheDefinition, RowCache } from './definition';
import { delayed } from './delayed';
import { none } from './none';
import { refresh } from './refresh';

export type { CacheStorage } from '../../model/kv-cache';
export type { DualCache, PrefixCache } from './block';
export type { BlocksCache } from './blocks';
export type { DelayedCache } from './delayed';
export type { NoCache } from './none';
export type { RefreshCache } from './refresh';

const CACHES = [none, block, blocks, refresh, delayed] as const;

type Definition = (typeof CACHES)[number];

/** Which keys and values a pass takes from earlier passes instead of computing them; plain JSON, like samplers. */
export type CachePolicy = Parameters<Definition['resolve']>[0];

/** A cache policy as options take it: an object, or its short form ({@link parseCache}). */
export type Cache = CachePolicy | string;

/** A cache policy with every default filled in; `emptyPass` null leaves it to `compat` and the sampler. */
export type ResolvedCache = ReturnType<Definition['resolve']>;

const definitions = CACHES as unknown as readonly CacheDefinition<CachePolicy, ResolvedCache>[];
const BY_TYPE = new Map(
  definitions.flatMap((definition) => definition.types.map((type) => [type, definition] as const)),
);
/** The types of {@link CachePolicy}. */
export const CACHE_TYPES = [...BY_TYPE.keys()];
const FORMS = Object.assign({}, ...definitions.map(({ forms }) => forms)) as Definition['forms'];

/**
 * Checks a cache policy and fills in its defaults. @param name of the option, for messages
 * @throws TypeError, RangeError naming the option, what was expected and what came.
 */
export function resolveCache(cache: Cache | undefined, name = 'cache'): ResolvedCache {
  const given = cache === undefined ? { type: 'none' as const } : cacheObject(cache, name);
  if (typeof given !== 'object' || given === null)
    throw optionError(
      TypeError,
      name,
      `expected an object with a "type", or its short form such as "refresh:4", got ${show(given)}`,
    );
  checkChoice(`${name}.type`, given.type, CACHE_TYPES);
  return BY_TYPE.get(given.type)!.resolve(given, name);
}

/** The object that a policy's short form stands for; anything else as it is. @throws as {@link parseCache} */
export function cacheObject<T>(cache: T | string, name = 'cache'): T | CachePolicy {
  return typeof cache === 'string' ? parseForm<CachePolicy>(name, cache, FORMS, 'refresh:4') : cache;
}

/** The cache of one row; null: every pass computes the whole row. @param attended see {@link CacheDefinition.open} */
export function openRowCache(policy: ResolvedCache, length: number, attended: BlockGrid | null): RowCache | null {
  return BY_TYPE.get(policy.type)!.open(policy, length, attended);
}

/** What the native cache of a policy holds; null: there is none. */
export function cacheStorage(cache: ResolvedCache, hasPlanner: boolean): NativeCacheOptions | null {
  if (cache.type === 'none') return null;
  const planner = hasPlanner ? (cache.planner === 'cached' ? 'blocks' : 'hidden') : 'none';
  return { dtype: cache.dtype === 'bfloat16' ? 'BF16' : 'F32', planner };
}

/** Every name that {@link parseCache} knows. */
export const CACHE_NAMES: readonly string[] = Object.keys(FORMS);

/** How each is written with its default value, and what it does. */
export const CACHE_HELP: readonly (readonly [form: string, text: string])[] = Object.values(FORMS).map(
  ({ help }) => help,
);

/**
 * A cache policy out of its short form: a name, then values after colons. A bare value sets the policy's main option,
 * `name=value` any: "none", "prefix", "dual:dtype=bfloat16", "dual:planner=fresh", "refresh:4" (every),
 * "refresh:changed=0.2", "delayed:2:every=3" (delay). A comma never occurs in it, so that lists can be split at commas.
 * @returns what was written and nothing else; defaults are filled in where the policy is used.
 * @throws TypeError, RangeError naming the part, what was expected and what came.
 */
export function parseCache(text: string): CachePolicy {
  if (typeof text !== 'string') throw optionError(TypeError, 'cache', `expected a string, got ${show(text)}`);
  const cache = cacheObject<never>(text);
  resolveCache(cache);
  return cache;
}
