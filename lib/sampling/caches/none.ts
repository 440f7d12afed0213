// No cache.
import { checkKeys } from '../../options';
import type { CacheDefinition } from './definition';

/** No cache: every pass computes the whole row. Exact. */
export interface NoCache {
  type: 'none';
}

/** See {@link NoCache}. */
export const none: CacheDefinition<NoCache, NoCache> = {
  types: ['none'],
  forms: {
    none: { base: { type: 'none' }, options: {}, help: ['none', 'every pass computes the whole row (default)'] },
  },
  resolve(given, name) {
    checkKeys(name, given, ['type']);
    return { type: 'none' };
  },
  open: () => null,
};
