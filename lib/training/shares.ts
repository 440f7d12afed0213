// How the work of an update is dealt out to the processes that train together. Every process knows all rows of an
// update; it computes its share of them, and what it measured is gathered by the number of the row.
import { dealOut, type ProcessGroup } from '../distributed/process-group';
import type { ModelTrainer, Reduction, ZeroStage } from '../model/trainer';
import type { NativeBackwardRequest } from '../native';
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

/**
 * The backward passes of an update, or of a part of it, of which each process has a number of its own. Where reduced
 * gradients are split, processes exchange in every pass, and one that has fewer joins those of the others.
 */
export class BackwardPasses {
  readonly #trainer: Pick<ModelTrainer, 'backward' | 'joinBackward'>;
  readonly #sharing: { group: ProcessGroup; zeroStage: ZeroStage };
  readonly #isLast: boolean;
  #done = 0;
  #rounds: number | null = null;

  /** @param isLast whether the update has no further passes: processes then exchange gradients in the last one */
  constructor(
    trainer: Pick<ModelTrainer, 'backward' | 'joinBackward'>,
    sharing: { group: ProcessGroup; zeroStage: ZeroStage },
    isLast = true,
  ) {
    this.#trainer = trainer;
    this.#sharing = sharing;
    this.#isLast = isLast;
  }

  /** @param count of all passes that this process has */
  async add(request: NativeBackwardRequest, count: number): Promise<void> {
    await this.#begin(count);
    await this.#trainer.backward({ ...request, last: this.#next() });
  }

  /** After the passes of this process, and in place of them where it has none. */
  async end(): Promise<void> {
    const rounds = await this.#begin(0);
    while (this.#done < rounds) await this.#trainer.joinBackward({ last: this.#next() });
  }

  /** Counts a pass. @returns whether it is the update's last */
  #next(): boolean {
    this.#done++;
    return this.#isLast && this.#done === this.#rounds;
  }

  async #begin(count: number): Promise<number> {
    const { group, zeroStage } = this.#sharing;
    if (this.#rounds === null) {
      const counts = zeroStage === 2 ? await group.allGather(Float64Array.of(count)) : [[count]];
      this.#rounds = Math.max(...counts.map(([one]) => one), zeroStage < 2 && this.#isLast ? 1 : 0);
    }
    return this.#rounds;
  }
}
