// Whether processes that work together do the same: compared before they begin.
import { DUltraError } from '../errors';
import { show } from '../text';
import { gatherJson, type ProcessGroup } from './process-group';

/** What has to be the same on every process, by name: values, or their hashes. */
export type Facts = Readonly<Record<string, unknown>>;

const isObject = (value: unknown): value is Facts =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** The first fact, or member of one, that differs: its name and both values; null: none does. */
function difference(a: Facts, b: Facts, prefix = ''): [name: string, a: unknown, b: unknown] | null {
  for (const name of new Set([...Object.keys(a), ...Object.keys(b)])) {
    const [one, other] = [a[name], b[name]];
    if (JSON.stringify(one) === JSON.stringify(other)) continue;
    // Members that are the same in another order are no difference.
    const found: ReturnType<typeof difference> =
      isObject(one) && isObject(other) ? difference(one, other, `${prefix}${name}.`) : [`${prefix}${name}`, one, other];
    if (found) return found;
  }
  return null;
}

/**
 * Compares facts over all processes.
 * @throws DUltraError DISTRIBUTED, on every process the same, naming the first process that differs from rank 0, and in what
 */
export async function checkAlike(group: ProcessGroup, facts: Facts): Promise<void> {
  const [first, ...others] = await gatherJson(group, facts);
  for (const [i, other] of others.entries()) {
    const found = difference(first, other);
    if (found === null) continue;
    const [name, expected, got] = found;
    throw new DUltraError(
      'DISTRIBUTED',
      `rank ${i + 1} differs from rank 0 in its ${name}: expected ${show(expected)}, got ${show(got)}`,
    );
  }
}
