// Rows that can go through one native pass together, and whose turn it is.
import type { NativeCacheOptions } from '../native';
import type { Slab } from './kv-arena';
import type { RowTask } from './pass';

/** What a lane knows of a row. */
export interface LaneRow {
  readonly task: RowTask;
  /** Share of the work: twice the weight, twice the positions. */
  readonly weight: number;
  /** Positions that its next pass computes. */
  readonly cost: number;
  /** What it has got, divided by its weight. */
  virtualTime: number;
  /** Where its keys and values are; null without a cache. */
  slab: Slab | null;
}

/**
 * Rows of one kind of cache, all with the planner or all without it: a function of what each was asked for, so that the
 * kernels that compute a row do not depend on who else is there.
 */
export class Lane {
  readonly rows = new Set<LaneRow>();
  virtualTime = 0;

  constructor(
    readonly name: string,
    readonly storage: NativeCacheOptions | null,
  ) {}

  /** A new row has no claim on what others got before it came. */
  add(row: LaneRow): void {
    let least = Number.POSITIVE_INFINITY;
    for (const other of this.rows) least = Math.min(least, other.virtualTime);
    row.virtualTime = Number.isFinite(least) ? least : 0;
    this.rows.add(row);
  }

  remove(row: LaneRow): void {
    this.rows.delete(row);
  }

  /** Notes what rows got. */
  charge(rows: readonly LaneRow[]): void {
    for (const row of rows) {
      const share = row.cost / row.weight;
      row.virtualTime += share;
      this.virtualTime += share;
    }
  }

  /**
   * The rows of the next pass, of one memory: those that got least, as many as a budget of positions has room for, and
   * at least one. So a row of cost c waits until each of the n others has got as much as it: about n c / budget passes.
   */
  choose(budget: number): LaneRow[] {
    let total = 0;
    let isOneSlab = true;
    const [first] = this.rows;
    for (const row of this.rows) {
      total += row.cost;
      isOneSlab &&= row.slab === first.slab;
    }
    let chosen = [...this.rows];
    if (total > budget || !isOneSlab) {
      // A stable sort: of equal rows the one that came first.
      const order = chosen.sort((a, b) => a.virtualTime - b.virtualTime);
      chosen = [];
      let left = budget;
      for (const row of order) {
        if (row.slab !== order[0].slab || (chosen.length > 0 && row.cost > left)) continue;
        chosen.push(row);
        left -= row.cost;
      }
    }
    return this.storage ? chosen.sort((a, b) => a.task.begin - b.task.begin) : byRule(chosen);
  }
}

/** Rows of one rule behind each other, in the order in which rules first occur. */
function byRule(rows: LaneRow[]): LaneRow[] {
  const first = rows[0]?.task.rule;
  if (rows.every(({ task }) => task.rule === first)) return rows;
  const groups = new Map<unknown, LaneRow[]>();
  for (const row of rows) {
    const group = groups.get(row.task.rule);
    if (group) group.push(row);
    else groups.set(row.task.rule, [row]);
  }
  return [...groups.values()].flat();
}
