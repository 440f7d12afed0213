// How the work of an update is dealt out to the processes that train together. Every process knows all rows of an
// update; it computes its share of them, and what it measured is gathered by the number of the row.
import { dealOut, type ProcessGroup } from '../distributed/process-group';
import type { Reduction } from '../model/trainer';
import { packRows } from '../packing';

/** Who shares the work, and how it is cut. */
export interface Sharing {
  group: ProcessGroup;
  reduction: Reduction;
  /** Tokens of a micro-batch. */
  tokenBudget: number;
}

/** A row with its number among all rows of the update. */
export interface Numbered<T> {
  item: T;
  index: number;
}

/** Rows with their numbers. */
export const numbered = <T>(items: readonly T[]): Numbered<T>[] => items.map((item, index) => ({ item, index }));

/**
 * The micro-batches that this process computes, of at most `tokenBudget` tokens. With the sum, rows are dealt out and
 * each process packs its own. With the exact reduction micro-batches are cut from all rows, whatever the number of
 * processes, and dealt out whole.
 * @param parts rows that may share a micro-batch
 */
export function ownBatches<T>(
  parts: readonly (readonly T[])[],
  tokens: (item: T) => number,
  { group, reduction, tokenBudget }: Sharing,
): T[][] {
  const { rank, size } = group;
  if (reduction === 'exact') {
    const cut = parts.flatMap((part) => packRows(part, tokens, tokenBudget));
    const costs = cut.map((batch) => batch.reduce((sum, item) => sum + tokens(item), 0));
    const ranks = dealOut(costs, size);
    return cut.filter((_, i) => ranks[i] === rank);
  }
  const ranks = dealOut(parts.flat().map(tokens), size);
  let at = 0;
  return parts.flatMap((part) => {
    const own = part.filter(() => ranks[at++] === rank);
    return packRows(own, tokens, tokenBudget);
  });
}
