// A row during denoising: which part of it the next pass decides, and its result.
import { DUltraError } from '../../errors';
import type { BlockGrid } from '../../model/blocks';
import { indexOfEnd } from '../../model/text-end';
import { range } from '../../packing';
import { openRowCache, type ResolvedCache } from '../caches';
import type { CacheBlock, RowCache } from '../caches/definition';
import type { FinishReason } from '../types';

/** What may be written into a row. It says so of the row as it is at the moment. */
export interface RowConstraint {
  /**
   * What may stand at positions, each by itself: token v where bit v % 32 of word v / 32 is 1; null: any token. At least
   * one may. Equal sets are one object.
   */
  allowed(ids: Int32Array, positions: Int32Array): ({ readonly bits: Uint32Array } | null)[];
  /** Whether a token may stand at a position. */
  fits(ids: Int32Array, position: number, token: number): boolean;
  /** Fills the masks that it says something of. */
  complete(ids: Int32Array): void;
}

/** A row to denoise: ids, with masks where tokens are wanted. */
export interface RowInput {
  ids: Int32Array;
  /** First position of the completion; blocks are counted from here. 0 for a template. */
  begin: number;
  /** Position behind the completion, where given tokens follow it. Default: the row's end. */
  end?: number | undefined;
  /** Whether the row is finished where this is decided of its completion, from its begin to the first mask. */
  isEnd?: (prefix: Int32Array) => boolean;
  /** Tokens that were asked for, where the row is longer so as to end with a block. Default: all behind `begin`. */
  wanted?: number | undefined;
  /** What may be written into it. Default: anything. */
  constraint?: RowConstraint | undefined;
}

/** The result of a row. */
export interface RowOutcome {
  ids: Int32Array;
  begin: number;
  nfe: number;
  fullForwards: number;
  finishReason: FinishReason;
  /** (row length) Step, from 1, that decided each position; 0 where it was given or never decided. */
  unmaskedAt: Int32Array;
  /** (row length) Log-probability of each token in the step that decided it; NaN where none did. */
  logProbs: Float32Array;
  logLikelihood: number;
}

/** `queries` and the positions before `candidates`, ascending. */
function withPredecessors(queries: Int32Array, candidates: Int32Array): Int32Array {
  const all = new Set(queries);
  for (const position of candidates) if (position > 0) all.add(position - 1);
  return all.size === queries.length ? queries : Int32Array.from(all).sort();
}

/** Settings of a row. */
export interface RowSettings {
  maskTokenId: number;
  /** Tokens that end a text; empty: rows never end early. */
  eosTokenIds: readonly number[];
  /** What a policy writes behind an end; null where there is none. */
  eosTokenId: number | null;
  blockLength: number;
  stopAtEos: boolean;
  /** A row stops when the block of its end of sequence is decided, not before. */
  finishesBlock: boolean;
  reference: boolean;
  greedy: boolean;
  cache: ResolvedCache;
  /** Whether a finished block gets one more pass, where the policy does not say. */
  emptyPass: boolean;
  /** The blocks that the model attends by; null: every position sees all. */
  attended: BlockGrid | null;
  /** Of a model that attends by blocks: those of `blockLength`, counted as its own are. Else null. */
  grid: BlockGrid | null;
  /** A position's token is scored from the position before it, which a pass must compute too. */
  shiftLogits: boolean;
}

/** A block of a row, for rules that count how many positions a pass unmasks. */
export interface BlockProgress {
  /** Positions of a whole block. */
  length: number;
  /** Masks of the block now, and when its first pass began. */
  masks: number;
  firstMasks: number;
  /** Passes of the block before this one. */
  step: number;
  /** Blocks of the row. */
  blocks: number;
  /** With compat "reference". */
  reference: boolean;
}

/** What a pass did with a row's candidates; parallel arrays. */
export interface RowStep {
  positions: Int32Array;
  tokens: Int32Array;
  logProbs: Float32Array;
  confidences: Float32Array;
  entropies: Float32Array;
  selected: Uint8Array;
}

/** A row. BlockRow, EditingRow and MultiBlockRow decide how its blocks follow each other. */
export abstract class Row {
  readonly ids: Int32Array;
  readonly begin: number;
  /** Position behind the completion. */
  protected readonly completionEnd: number;
  readonly unmaskedAt: Int32Array;
  protected readonly logProbs: Float32Array;
  readonly #isEnd: RowInput['isEnd'];
  /** Everything from `begin` to here is settled and was looked at for an end. */
  #seen: number;
  protected readonly cache: RowCache | null;
  readonly constraint: RowConstraint | null;
  steps = 0;
  nfe = 0;
  fullForwards = 0;
  logLikelihood = 0;
  finished = false;
  /**
   * In-row positions that the next pass decides about and computes, set by `enter`. `queries` is null without a cache:
   * all.
   */
  candidates: Int32Array = new Int32Array(0);
  queries: Int32Array | null = null;

  constructor(
    readonly index: number,
    input: RowInput,
    protected readonly settings: RowSettings,
  ) {
    this.ids = Int32Array.from(input.ids);
    this.begin = input.begin;
    this.completionEnd = input.end ?? input.ids.length;
    this.#isEnd = input.isEnd;
    this.constraint = input.constraint ?? null;
    this.#seen = input.begin;
    this.unmaskedAt = new Int32Array(this.ids.length);
    this.logProbs = new Float32Array(this.ids.length).fill(Number.NaN);
    this.cache = openRowCache(settings.cache, this.ids.length, settings.attended);
  }

  /** Current block, from 0. */
  abstract readonly block: number;

  /** Candidates end before it. */
  abstract windowEnd(): number;

  /** Candidates are all masks before `windowEnd`, so that they need not be listed. */
  readonly isWindow: boolean = true;

  /** It reads all of a pass's candidates, and not only those that the rule selected. */
  readonly readsAll: boolean = false;

  /** The next pass takes the most probable token, whatever the temperature. */
  isGreedy = false;

  /** Sets candidates and queries of the next pass; false, and `finished`, if nothing is left to do. */
  abstract enter(): boolean;

  /** How many candidates a counted rule unmasks now; `count` is the sampler's. */
  nextCount(_count: (block: BlockProgress) => number | null): number {
    throw new Error('this kind of row has no counted rule');
  }

  /**
   * Selects one candidate more where the row has to make progress and the rule selected nothing for it, or all where the
   * row itself is the rule. Returns the index of what was forced among the candidates, or -1; null for rows that leave
   * this to the rule.
   */
  force(_step: RowStep): number | null {
    return null;
  }

  /**
   * Takes back from a pass's selection what does not fit together, the less confident first: the others are written, and
   * it is decided again. One is always left.
   */
  keepFitting({ positions, tokens, confidences, selected }: RowStep): void {
    if (!this.constraint) return;
    const ids = this.ids.slice();
    const chosen = Array.from(positions.keys()).filter((i) => selected[i] === 1);
    for (const i of chosen.sort((a, b) => confidences[b] - confidences[a]))
      if (this.constraint.fits(ids, positions[i], tokens[i])) ids[positions[i]] = tokens[i];
      else selected[i] = 0;
    if (chosen.length > 0 && chosen.every((i) => selected[i] === 0))
      throw new DUltraError('INTERNAL', `row ${this.index}: a pass drew tokens that its row does not allow`);
  }

  /** Writes a pass's tokens. */
  apply({ positions, tokens, logProbs, selected }: RowStep): void {
    this.steps++;
    this.fullForwards += this.queries === null ? 1 : this.queries.length / this.ids.length;
    let unmasked = 0;
    for (let i = 0; i < positions.length; i++) {
      if (!selected[i]) continue;
      unmasked++;
      this.ids[positions[i]] = tokens[i];
      const isMask = tokens[i] === this.settings.maskTokenId;
      if (!isMask) this.unmaskedAt[positions[i]] = this.steps;
      this.logProbs[positions[i]] = isMask ? Number.NaN : logProbs[i];
    }
    if (unmasked > 0) this.nfe++;
  }

  /** Sets candidates and queries of a pass that decides every mask that is left. @param cached there is a cache */
  enterLast(cached: boolean): void {
    this.candidates = this.masks(0, this.ids.length);
    this.queries = cached ? range(0, this.ids.length) : null;
  }

  /** Writes the tokens of that pass. */
  applyLast(step: RowStep): void {
    Row.prototype.apply.call(this, step);
    this.constraint?.complete(this.ids);
    for (const position of step.positions) this.unmaskedAt[position] ||= this.steps;
    this.finished = true;
  }

  /** No later pass changes the completion before this position: its first mask. After `apply`. */
  settledEnd(): number {
    const mask = this.ids.indexOf(this.settings.maskTokenId, this.begin);
    return mask < 0 ? this.completionEnd : mask;
  }

  /** Finishes the row where its settled beginning is an end. After `apply`. */
  endEarly(): void {
    if (!this.#isEnd || this.finished) return;
    const end = this.settledEnd();
    if (end <= this.#seen) return;
    this.#seen = end;
    this.finished = this.#isEnd(this.ids.subarray(this.begin, end));
  }

  outcome(): RowOutcome {
    const { ids, begin, nfe, fullForwards, unmaskedAt, logProbs, logLikelihood } = this;
    const finishReason = this.endFrom(begin) >= 0 ? 'stop' : 'length';
    return { ids, begin, nfe, fullForwards, unmaskedAt, logProbs, logLikelihood, finishReason };
  }

  /** Position of the completion's first token from `from` on that ends a text, or -1. */
  protected endFrom(from: number): number {
    const at = indexOfEnd(this.ids, this.settings.eosTokenIds, from);
    return at < this.completionEnd ? at : -1;
  }

  /** Masked positions from `from` to before `to`. */
  protected masks(from: number, to: number): Int32Array {
    // Two loops: each row makes this list for each pass, and typed arrays out of lists take several times as long.
    const positions = new Int32Array(this.countMasks(from, to));
    const { ids } = this;
    const { maskTokenId } = this.settings;
    for (let i = from, count = 0; count < positions.length; i++) if (ids[i] === maskTokenId) positions[count++] = i;
    return positions;
  }

  protected countMasks(from: number, to: number): number {
    const { ids } = this;
    const { maskTokenId } = this.settings;
    let count = 0;
    for (let i = from; i < to; i++) if (ids[i] === maskTokenId) count++;
    return count;
  }

  /** Sets `queries` from the cache policy, if there is one. */
  protected planPass(window: { begin: number; end: number }, pass: number, blocks: () => CacheBlock[]): void {
    const { cache, ids, candidates } = this;
    if (!cache) return;
    const queries = cache.plan({ ids, candidates, window, pass, blocks, emptyPass: this.settings.emptyPass });
    // The reference's cached decoders score a pass's first position from its own state.
    const completes = this.settings.shiftLogits && !this.settings.reference;
    this.queries = completes ? withPredecessors(queries, candidates) : queries;
  }

  protected noProgress(why: string): DUltraError {
    return new DUltraError('NO_PROGRESS', `row ${this.index}: ${why}`);
  }
}
