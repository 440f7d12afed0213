// Whether processes that work together do the same: compared before they begin.
import { DUltraError } from '../errors';
import { show } from '../text';
import { gatherJson, type ProcessGroup } from './process-group';

/** What has to be the same on every process, by name: values, or their hashes. */
export type Facts = Readonly<Record<string, unknown>>;

/**
 * Compares facts over all processes.
 * @throws DUltraError DISTRIBUTED, on every process the same, naming the first process that differs from rank 0, and in what
 */
export async function checkAlike(group: ProcessGroup, facts: Facts): Promise<void> {
  const [first, ...others] = await gatherJson(group, facts);
  for (const [i, other] of others.entries())
    for (const name of new Set([...Object.keys(first), ...Object.keys(other)])) {
      if (JSON.stringify(first[name]) === JSON.stringify(other[name])) continue;
      throw new DUltraError(
        'DISTRIBUTED',
        `rank ${i + 1} differs from rank 0 in its ${name}: expected ${show(first[name])}, got ${show(other[name])}`,
      );
    }
}
