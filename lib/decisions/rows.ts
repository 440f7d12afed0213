// Options as rows: answers whose slot is masked, from a token of the option on or as a whole.
import { DUltraError, optionError } from '../errors';
import { wholeRow } from '../model/blocks';
import type { ModelConfig } from '../model/config';
import { packRows } from '../packing';
import type { Engine } from '../sampling/engine';
import type { SubmitOptions } from '../sampling/job';
import type { ScoredInput } from '../sampling/rows/scored-row';

/** Positions that one pass computes at most, so that its memory has a bound. */
const TOKEN_BUDGET = 16384;

/** A prompt, an answer with a slot, and what may stand in the slot. */
export interface SlotQuery {
  promptIds: ArrayLike<number>;
  before: readonly number[];
  after: readonly number[];
  /** Tokens of each option, at least one. */
  options: readonly number[][];
  /** All masks of an option are in one row. */
  joint: boolean;
}

/** A row, with the tokens that options have at each of its positions. */
interface SlotRow {
  ids: Int32Array;
  positions: number[];
  tokens: Map<number, number>[];
}

/** The rows of a query, and where each token of each option is scored. */
export interface SlotRows {
  rows: ScoredInput[];
  /** Of each option and token: the row, and the index of the number among those of the row. */
  places: { row: number; index: number }[][];
  longest: number;
}

/** Rows of a slot. Options of equal length that begin alike share rows. */
export function slotRows(config: ModelConfig, { promptIds, before, after, options, joint }: SlotQuery): SlotRows {
  const { maskTokenId, eosTokenId } = config;
  const rows: SlotRow[] = [];
  const known = new Map<string, number>();
  const begin = promptIds.length;
  const first = begin + before.length;
  let longest = 0;
  /** The row of options of `length` tokens with these in front. */
  const rowOf = (length: number, front: readonly number[]): number => {
    const key = `${length} ${front.join()}`;
    const found = known.get(key);
    if (found !== undefined) return found;
    const size = first + length + after.length + Number(eosTokenId !== null);
    longest = Math.max(longest, size);
    const ids = new Int32Array(size).fill(maskTokenId);
    ids.set(promptIds);
    ids.set(before, begin);
    ids.set(front, first);
    ids.set(after, first + length);
    if (eosTokenId !== null) ids[size - 1] = eosTokenId;
    const count = joint ? length : 1;
    const positions = Array.from({ length: count }, (_, i) => first + front.length + i);
    known.set(key, rows.length);
    return rows.push({ ids, positions, tokens: positions.map(() => new Map()) }) - 1;
  };
  const used = options.map((option) =>
    option.map((token, i) => {
      const row = rowOf(option.length, joint ? [] : option.slice(0, i));
      const place = joint ? i : 0;
      const { tokens } = rows[row];
      if (!tokens[place].has(token)) tokens[place].set(token, tokens[place].size);
      return { row, place, token };
    }),
  );
  const starts = rows.map(({ tokens }) => {
    let at = 0;
    return tokens.map(({ size }) => {
      at += size;
      return at - size;
    });
  });
  return {
    rows:
      longest > config.maxSequenceLength
        ? []
        : rows.map((row) => ({
            ids: wholeRow(row.ids, config),
            begin,
            positions: Int32Array.from(row.positions),
            tokens: row.tokens.map((tokens) => Int32Array.from(tokens.keys())),
          })),
    places: used.map((tokens) =>
      tokens.map(({ row, place, token }) => ({ row, index: starts[row][place] + rows[row].tokens[place].get(token)! })),
    ),
    longest,
  };
}

/** @throws RangeError naming what the row is of, where it is longer than the model's longest */
export function checkLength(
  { longest }: SlotRows,
  { maxSequenceLength }: ModelConfig,
  name: string,
  what: string,
): void {
  if (longest > maxSequenceLength)
    throw optionError(
      RangeError,
      name,
      `${what} make ${longest} tokens, more than the model's maximum of ${maxSequenceLength}`,
    );
}

/** Σ log p of each option's tokens, for all queries, whose rows go through passes together. */
export async function scoreSlots(
  { engine, source }: { engine: Engine; source: string },
  queries: readonly SlotRows[],
  options: SubmitOptions = {},
): Promise<number[][]> {
  const rows = queries.flatMap((query) => query.rows);
  const scores: Float32Array[] = [];
  for (const group of packRows(rows, ({ ids }) => ids.length, TOKEN_BUDGET))
    scores.push(...(await engine.score(group, options)));
  let begin = 0;
  return queries.map(({ rows: own, places }) => {
    const from = begin;
    begin += own.length;
    const sums = places.map((tokens) => tokens.reduce((sum, { row, index }) => sum + scores[from + row][index], 0));
    if (!Number.isFinite(Math.max(...sums)))
      throw new DUltraError('NON_FINITE', `${source}: the model's logits are not finite`);
    return sums;
  });
}
