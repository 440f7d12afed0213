// A row whose blocks are decided strictly one after the other.
import { blockOf, blockStart } from '../../model/blocks';
import { type BlockProgress, Row, type RowInput, type RowSettings, type RowStep } from './row';

/** Consecutive steps without a change after which a sampled run stops with NO_PROGRESS. */
const MAX_IDLE_STEPS = 1000;

/** Decides its blocks strictly one after the other. */
export class BlockRow extends Row {
  readonly blocks: number;
  block = 0;
  /** Everything from `begin` to here is decided, and none of it is an end of sequence. */
  private decided: number;
  private sawEos = false;
  /** Masks of the block at its first counted pass, and counted passes since; null before it. */
  private counted: { firstMasks: number; step: number } | null = null;
  private idle = 0;
  /** The reference of block diffusion leaves a block whose passes are over, with masks in it: blocks before it are so. */
  private leftBehind = 0;
  /** How many positions the sampler unmasks in a pass. */
  private countOf: ((block: BlockProgress) => number | null) | null = null;
  /** First position of the window, as of the pass that began the block. */
  private windowBegin = -1;
  /**
   * Blocks are counted from here: from the completion's start, or with a model that attends by blocks from the start of
   * the one that the completion starts in. All but the row's first have the whole length.
   */
  protected readonly origin: number;
  /**
   * Fast-dLLM's caches for a model whose head is a position ahead: a block's first pass, over the whole row, decides its
   * first position alone, since the position before it is in no later pass.
   */
  private readonly beginsAlone: boolean;
  private isAlone = false;

  constructor(index: number, input: RowInput, settings: RowSettings) {
    super(index, input, settings);
    const { blockLength, grid, cache, reference, shiftLogits } = settings;
    this.beginsAlone = reference && shiftLogits && (cache.type === 'prefix' || cache.type === 'dual');
    this.decided = input.begin;
    this.origin = grid === null ? this.begin : blockStart(grid, blockOf(grid, this.begin));
    this.blocks = Math.max(1, Math.ceil((this.completionEnd - this.origin) / blockLength));
  }

  windowEnd(block = this.block): number {
    return Math.min(this.completionEnd, this.origin + (block + 1) * this.settings.blockLength);
  }

  /** First possible candidate: masks of the prompt are candidates too, except in the reference's cached decoders. */
  private candidatesBegin(block: number): number {
    return this.cache && this.settings.reference ? this.origin + block * this.settings.blockLength : 0;
  }

  protected hasMasks(from: number, to: number): boolean {
    const first = this.ids.indexOf(this.settings.maskTokenId, from);
    return first >= 0 && first < to;
  }

  /** The block has masks, or is owed a pass without any. */
  hasWork(block: number): boolean {
    if (block < this.leftBehind) return false;
    return (
      this.hasMasks(this.candidatesBegin(block), this.windowEnd(block)) ||
      (block === this.block && (this.cache?.owesPass ?? false))
    );
  }

  enterBlock(block: number): void {
    if (block !== this.block) {
      this.counted = null;
      this.windowBegin = -1;
    }
    this.block = block;
  }

  enter(): boolean {
    let { block } = this;
    while (block < this.blocks && !this.hasWork(block)) block++;
    if (block === this.blocks) {
      this.finished = true;
      return false;
    }
    this.enterBlock(block);
    this.settle();
    return true;
  }

  /** Sets candidates and queries of a pass in the current block. */
  settle(): void {
    const { block, begin, origin, ids } = this;
    const { blockLength } = this.settings;
    const end = this.windowEnd();
    this.candidates = this.candidatesOf(this.candidatesBegin(block), end);
    this.isAlone = this.beginsAlone && this.windowBegin < 0;
    if (this.isAlone) this.candidates = this.candidates.filter((p) => p === origin + block * blockLength);
    if (this.windowBegin < 0)
      this.windowBegin = Math.min(origin + block * blockLength, this.candidates[0] ?? ids.length);
    this.planPass({ begin: this.windowBegin, end }, this.steps + 1, () => {
      const blocks = [{ start: 0, end: begin, masks: this.countMasks(0, begin) }];
      for (let b = 0; b <= block; b++) {
        const start = Math.max(begin, origin + b * blockLength);
        blocks.push({ start, end: this.windowEnd(b), masks: this.countMasks(start, this.windowEnd(b)) });
      }
      return blocks;
    });
  }

  /** Candidates of a pass: the masks from `from` to before `to`, or some of them. */
  protected candidatesOf(from: number, to: number): Int32Array {
    return this.masks(from, to);
  }

  override nextCount(count: (block: BlockProgress) => number | null): number {
    this.countOf = count;
    const masks = this.candidates.length;
    if (masks === 0) return 0;
    this.counted ??= { firstMasks: masks, step: 0 };
    const { blockLength: length } = this.settings;
    const { reference } = this.settings;
    const chosen = this.isAlone ? 1 : count({ length, masks, ...this.counted, blocks: this.blocks, reference });
    this.counted.step++;
    // What a pass put back takes passes that the schedule does not have.
    if (chosen === null && this.constraint) return 1;
    if (chosen === null)
      throw this.noProgress('masks are left after all steps of the block: the model keeps predicting the mask token');
    return chosen;
  }

  override apply(step: RowStep): void {
    super.apply(step);
    const { maskTokenId, eosTokenIds, greedy, stopAtEos, reference, attended } = this.settings;
    const { positions, selected } = step;
    // The empty pass of a finished block changes nothing, nor does one in which the rule rests.
    const changed = !selected.includes(1) || positions.some((p) => this.ids[p] !== maskTokenId);
    this.idle = changed ? 0 : this.idle + 1;
    if (this.idle > (greedy ? 0 : MAX_IDLE_STEPS))
      throw this.noProgress(
        'the step changed nothing: the model predicts the mask token itself, which compat: "reference" allows (the reference loops for ever here)',
      );
    while (!this.sawEos && this.decided < this.completionEnd && this.ids[this.decided] !== maskTokenId) {
      if (eosTokenIds.includes(this.ids[this.decided])) this.sawEos = true;
      else this.decided++;
    }
    const finishesBlock = this.settings.finishesBlock && this.hasMasks(0, this.windowEnd());
    if (stopAtEos && this.sawEos && !finishesBlock) this.finished = true;
    if (reference && attended !== null && this.counted && this.countOf) {
      const progress = { length: this.settings.blockLength, masks: 1, ...this.counted, blocks: this.blocks, reference };
      if (this.countOf(progress) === null) this.leftBehind = this.block + 1;
    }
    // A row is also finished when no mask is left anywhere.
    const rest = this.candidatesBegin(this.block);
    this.finished ||= !this.hasMasks(rest, this.ids.length) && !(this.cache?.owesPass ?? false);
  }
}
