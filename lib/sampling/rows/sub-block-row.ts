// A row whose blocks are decided in parts, from left to right.
import { range } from '../../packing';
import type { CacheBlock } from '../caches/definition';
import { BlockRow } from './block-row';
import type { RowInput, RowSettings } from './row';

/** How a block is divided. */
export interface Parts {
  /** Positions of a part. */
  length: number;
  /** Passes over a part alone where its first token is known. */
  partCache: boolean;
}

/** Decides its blocks one after the other, and each in parts. */
export class SubBlockRow extends BlockRow {
  override readonly isWindow = false;
  /** The current part. */
  private part = { begin: 0, end: 0 };
  /** The block of the last pass over a whole one. */
  private whole = -1;

  constructor(
    index: number,
    input: RowInput,
    settings: RowSettings,
    private readonly parts: Parts,
  ) {
    super(index, input, settings);
  }

  protected override candidatesOf(from: number, to: number): Int32Array {
    const all = this.masks(from, to);
    if (all.length === 0) return all;
    const { length } = this.parts;
    const block = this.origin + this.block * this.settings.blockLength;
    // Masks before the block, of a prompt, are a part of their own.
    const begin = all[0] < block ? 0 : block + Math.floor((all[0] - block) / length) * length;
    this.part = { begin, end: all[0] < block ? block : Math.min(to, begin + length) };
    return all.filter((position) => position < this.part.end);
  }

  protected override planPass(window: { begin: number; end: number }, pass: number, blocks: () => CacheBlock[]): void {
    const { begin, end } = this.part;
    const isKnown = this.ids[begin] !== this.settings.maskTokenId;
    if (this.parts.partCache && this.cache && this.whole === this.block && isKnown) {
      this.queries = range(begin, end);
      return;
    }
    super.planPass(window, pass, blocks);
    this.whole = this.block;
  }
}
