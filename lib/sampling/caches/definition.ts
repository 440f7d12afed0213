// What a cache policy is made of.
import type { BlockGrid } from '../../model/blocks';
import type { CacheStorage } from '../../model/kv-cache';
import { checkChoice } from '../../options';
import type { Forms } from '../text-form';

/** A block: its positions, and how many of them the decoder counts as masked. */
export interface CacheBlock {
  start: number;
  end: number;
  masks: number;
  /** Filled behind an end of sequence before it was opened: not cached as a block. */
  skipped?: boolean;
}

/** A row before a pass. */
export interface CacheView {
  ids: Int32Array;
  candidates: Int32Array;
  /** The part of the row that is being decided. */
  window: { begin: number; end: number };
  /** Number of the pass, from 1. */
  pass: number;
  /** From the prompt on, up to the last that is open. */
  blocks: () => readonly CacheBlock[];
  /** Whether a finished block gets one more pass, where the policy does not say. */
  emptyPass: boolean;
}

/** One row of a cache. */
export interface RowCache {
  /** In-row positions that the pass computes, ascending; none where everything that could be decided is cached. */
  plan(view: CacheView): Int32Array;
  /** The block that began with the last pass gets one more pass, finished or not (`emptyPass`). */
  readonly owesPass: boolean;
}

/** A cache policy: `Given` is what users write, `Resolved` has every default filled in. */
export interface CacheDefinition<Given extends { type: string }, Resolved extends { type: Given['type'] }> {
  readonly types: readonly Given['type'][];
  /** Its short text forms, by name. */
  readonly forms: Forms<Given>;
  /**
   * Checks the options and fills in defaults. @param name of the option, for messages
   * @throws TypeError, RangeError naming the option, what was expected and what came.
   */
  resolve(given: Given, name: string): Resolved;
  /**
   * The cache of one row; null: every pass computes the whole row.
   * @param attended the blocks that the model attends by; null: every position sees all
   */
  open(policy: Resolved, length: number, attended: BlockGrid | null): RowCache | null;
}

/** Options that every policy has, in its text form. */
export const STORAGE_OPTIONS = { dtype: 'text', planner: 'text' } as const;

/** Checks the options that every policy has. */
export function resolveStorage(
  { dtype = 'float32', planner = 'cached' }: CacheStorage,
  name: string,
): Required<CacheStorage> {
  checkChoice(`${name}.dtype`, dtype, ['float32', 'bfloat16'] as const);
  checkChoice(`${name}.planner`, planner, ['fresh', 'cached'] as const);
  return { dtype, planner };
}
