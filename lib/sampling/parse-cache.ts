// Cache policies as short text, for command lines and config files: "dual", "refresh:4".
import type { CachePolicy } from '../types';
import { resolveCache } from './cache';
import { type Form, parseForm } from './forms';

const STORAGE = { dtype: 'text', planner: 'text' } as const;

/** A new policy, or a new option of one, is a line here; values are checked where policies given as objects are. */
const FORMS: Readonly<Record<string, Form<CachePolicy>>> = {
  none: { base: { type: 'none' }, options: {} },
  prefix: { base: { type: 'prefix' }, options: { ...STORAGE, emptyPass: 'boolean' } },
  dual: { base: { type: 'dual' }, options: { ...STORAGE, emptyPass: 'boolean' } },
  refresh: { base: { type: 'refresh' }, main: 'every', options: { ...STORAGE, every: 'number', changed: 'number' } },
  delayed: { base: { type: 'delayed' }, main: 'delay', options: { ...STORAGE, delay: 'number', every: 'number' } },
};

/** Every name that {@link parseCache} knows. */
export const CACHE_NAMES: readonly string[] = Object.keys(FORMS);

/**
 * A cache policy out of its short form: a name, then values after colons. A bare value sets the policy's main option,
 * `name=value` any: "none", "prefix", "dual:dtype=bfloat16", "dual:planner=fresh", "refresh:4" (every),
 * "refresh:changed=0.2", "delayed:2:every=3" (delay). A comma never occurs in it, so that lists can be split at commas.
 * @returns what was written and nothing else; defaults are filled in where the policy is used.
 * @throws TypeError, RangeError naming the part, what was expected and what came.
 */
export function parseCache(text: string): CachePolicy {
  const cache = parseForm('cache', text, FORMS, 'refresh:4');
  resolveCache(cache);
  return cache;
}
