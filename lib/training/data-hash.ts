// What of a data set is compared between processes.
import { createHash } from 'node:crypto';
import type { DataSource } from './data';

/** Examples that are compared: all of a data set up to that number. */
const COMPARED_EXAMPLES = 10_000;

/** Hash of a data set's examples: of a finite one's first ones in their order, of an endless one's first step. */
export function hashOfData({ size, train }: DataSource, examplesPerStep: number): string {
  const rows = train(0, size === null ? Math.max(1, Math.ceil(examplesPerStep)) : Math.min(size, COMPARED_EXAMPLES));
  const hash = createHash('sha256');
  for (const { prompt, answer } of rows) hash.update(JSON.stringify([prompt, answer]));
  return hash.digest('hex');
}
