// Fast-dLLM v2's reference decoding: a row that grows by blocks.
import { range } from '../../packing';
import { Row, type RowInput, type RowSettings, type RowStep } from './row';
import type { Parts } from './sub-block-row';

/**
 * Grows by blocks: a pass over the prompt's whole blocks; then passes over a block until it is decided, one more over its
 * final tokens, and its last position gives the next block's first token, the most probable one at any temperature.
 */
export class GrowingRow extends Row {
  override readonly isWindow = false;
  block = 0;
  /** Positions from it on do not exist yet. */
  private end: number;
  /** Positions before it are in the cache for good. */
  private done = 0;
  /** Where the current block began to grow. */
  private grownFrom: number;
  private blocksLeft: number;
  private isOpen = false;
  /** Whether the cache has a pass over the whole of the current block. */
  private hasWhole = false;

  constructor(
    index: number,
    input: RowInput,
    settings: RowSettings,
    private readonly parts: Parts,
  ) {
    super(index, input, settings);
    this.end = this.grownFrom = this.begin;
    this.blocksLeft = Math.floor((input.wanted ?? this.ids.length - this.begin) / settings.blockLength);
  }

  windowEnd(): number {
    return this.end;
  }

  enter(): boolean {
    const { blockLength: length, maskTokenId } = this.settings;
    if (this.done === 0 && this.steps === 0 && this.begin > length)
      return this.passTo(Math.floor(this.begin / length) * length);
    if (!this.isOpen && !this.openBlock()) return this.finish();
    const start = Math.floor((this.end - 1) / length) * length;
    const stop = this.settings.stopAtEos ? this.endFrom(this.grownFrom) : -1;
    if (stop >= 0 && !this.hasMasksBefore(stop)) return this.finish();
    const first = this.ids.indexOf(maskTokenId, start);
    if (first < 0 || first >= this.end) {
      this.isOpen = false;
      return this.passTo(this.end);
    }
    this.isGreedy = false;
    const begin = start + Math.floor((first - start) / this.parts.length) * this.parts.length;
    const end = Math.min(this.end, begin + this.parts.length);
    this.candidates = this.masks(begin, end);
    const isPart = this.parts.partCache && this.hasWhole && this.ids[begin] !== maskTokenId;
    this.queries = isPart ? range(begin, end) : range(start, this.end);
    this.hasWhole = true;
    return true;
  }

  /** A pass over final tokens up to `to`; where that is the row's end, it appends a token. */
  private passTo(to: number): boolean {
    this.queries = range(this.done, to);
    this.candidates = to === this.end && to < this.ids.length ? Int32Array.of(to) : new Int32Array(0);
    this.isGreedy = true;
    this.done = to;
    return true;
  }

  /** The next block, up to a multiple of its length. */
  private openBlock(): boolean {
    if (this.blocksLeft === 0 || (this.settings.stopAtEos && this.endFrom(this.begin) >= 0)) return false;
    const { blockLength: length } = this.settings;
    this.blocksLeft--;
    this.grownFrom = this.end;
    this.end = Math.min(this.ids.length, (Math.floor(this.end / length) + 1) * length);
    this.block = Math.floor((this.end - 1) / length);
    this.isOpen = true;
    this.hasWhole = false;
    return true;
  }

  private finish(): boolean {
    this.finished = true;
    return false;
  }

  private hasMasksBefore(position: number): boolean {
    const first = this.ids.indexOf(this.settings.maskTokenId, this.begin);
    return first >= 0 && first < position;
  }

  override nextCount(): number {
    return Math.min(1, this.candidates.length);
  }

  override apply(step: RowStep): void {
    super.apply(step);
    const { maskTokenId, greedy } = this.settings;
    if (greedy && !this.isGreedy && step.tokens.every((token, i) => !step.selected[i] || token === maskTokenId))
      throw this.noProgress('the model predicts the mask token itself (the reference loops for ever here)');
    // What a pass over final tokens appends.
    if (this.isGreedy && step.positions.length > 0) this.end++;
  }
}
