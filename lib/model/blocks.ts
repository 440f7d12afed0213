// The blocks of rows that a model attends by.
import type { ModelConfig } from './config';

/** How a row is cut into blocks: the first of `first` positions, the others of `length`, the last of what is left. */
export interface BlockGrid {
  first: number;
  length: number;
}

/** The block that a position lies in, from 0. */
export const blockOf = ({ first, length }: BlockGrid, position: number): number =>
  position < first ? 0 : 1 + Math.floor((position - first) / length);

/** The first position of a block. */
export const blockStart = ({ first, length }: BlockGrid, block: number): number =>
  block === 0 ? 0 : first + (block - 1) * length;

/** Blocks of `length` in a row whose completion begins at `begin`, counted from where the model counts its own. */
export const gridOf = (config: ModelConfig, begin: number, length: number): BlockGrid => ({
  first: config.blocksFrom === 'completion' ? begin % length || length : length,
  length,
});

/** Length of the blocks that a model attends by; null: every position sees all. */
export const attendedBlock = ({ mask, blockLength }: ModelConfig): number | null =>
  mask === 'block-causal' ? blockLength! : null;

/** The blocks that a model attends by in a row whose completion begins at `begin`; null: every position sees all. */
export function attendedGrid(config: ModelConfig, begin: number): BlockGrid | null {
  const length = attendedBlock(config);
  return length === null ? null : gridOf(config, begin, length);
}

/** Of rows whose completions begin there: the lengths of their first blocks, as native requests take them. */
export function firstBlocks(config: ModelConfig, begins: readonly number[]): Int32Array | undefined {
  if (attendedBlock(config) === null || config.blocksFrom !== 'completion') return undefined;
  return Int32Array.from(begins, (begin) => attendedGrid(config, begin)!.first);
}

/**
 * Length of a row of so many tokens: a model that attends by blocks counted from the row's start was trained on whole
 * ones, so that its rows end with a block where there is room.
 */
export function rowLength(tokens: number, config: ModelConfig): number {
  const block = config.blocksFrom === 'completion' ? 1 : (attendedBlock(config) ?? 1);
  return Math.min(config.maxSequenceLength, Math.ceil(tokens / block) * block);
}

/** Ids of a row that is given as a whole: ends of sequence fill its last block. */
export function wholeRow(ids: ArrayLike<number>, config: ModelConfig): Int32Array {
  const { eosTokenId } = config;
  if (eosTokenId === null) return Int32Array.from(ids);
  const row = new Int32Array(rowLength(ids.length, config)).fill(eosTokenId);
  row.set(ids);
  return row;
}
