// A row whose blocks are decided one after the other, and whose tokens may change until their block is finished.
import { type BlockGrid, blockOf, blockStart } from '../../model/blocks';
import { Row, type RowInput, type RowSettings, type RowStep } from './row';

/** Passes of a block with masks after which a run stops with NO_PROGRESS: edits that write the mask token open it again. */
const MAX_PASSES = 1000;

/** What {@link EditingRow} decides by. */
export interface EditingRule {
  threshold: number;
  editingThreshold: number;
  maxPostSteps: number;
  numToTransfer: number;
}

/** Decides its blocks strictly one after the other, with edits of what is decided. */
export class EditingRow extends Row {
  override readonly isWindow = false;
  override readonly readsAll = true;
  private at: number;
  private readonly grid: BlockGrid;
  private readonly blocks: number;
  /** The block that the completion starts in. */
  private readonly origin: number;
  /** (row length) 1: the token was given, and does not change. */
  private readonly given: Uint8Array;
  /** Of the block: passes, those that began without a mask, and masks when the last one began. */
  private passes = 0;
  private post = 0;
  private masksBefore = 0;

  constructor(
    index: number,
    input: RowInput,
    settings: RowSettings,
    private readonly rule: EditingRule,
  ) {
    super(index, input, settings);
    const { blockLength, maskTokenId, reference } = settings;
    this.grid = settings.grid ?? { first: blockLength, length: blockLength };
    this.blocks = blockOf(this.grid, this.ids.length - 1) + 1;
    this.origin = blockOf(this.grid, this.begin);
    this.given = Uint8Array.from(this.ids, (id, i) => Number(id !== maskTokenId || i < this.begin));
    // The reference does not decide masks of the prompt's own blocks.
    this.at = (reference ? this.origin : 0) - 1;
    this.nextBlock();
  }

  get block(): number {
    return Math.max(0, this.at - this.origin);
  }

  windowEnd(): number {
    return Math.min(this.ids.length, blockStart(this.grid, this.at + 1));
  }

  private get windowBegin(): number {
    return blockStart(this.grid, this.at);
  }

  /** Goes on to the next block with masks; without one the row is finished. */
  private nextBlock(): void {
    this.passes = 0;
    this.post = 0;
    do this.at++;
    while (this.at < this.blocks && this.countMasks(this.windowBegin, this.windowEnd()) === 0);
    this.finished = this.at >= this.blocks;
  }

  enter(): boolean {
    if (this.finished) return false;
    const { maskTokenId } = this.settings;
    const [begin, end] = [this.windowBegin, this.windowEnd()];
    const positions: number[] = [];
    for (let p = begin; p < end; p++) if (this.ids[p] === maskTokenId || !this.given[p]) positions.push(p);
    this.candidates = Int32Array.from(positions);
    this.masksBefore = this.countMasks(begin, end);
    this.planPass({ begin, end }, this.steps + 1, () => []);
    return true;
  }

  /** Selects what the pass writes: masks, and decided tokens that become others. */
  override force({ positions, tokens, confidences, selected }: RowStep): number {
    const { threshold, editingThreshold, numToTransfer } = this.rule;
    const { maskTokenId } = this.settings;
    const masks: number[] = [];
    for (let i = 0; i < positions.length; i++) {
      const token = this.ids[positions[i]];
      if (token === maskTokenId) masks.push(i);
      else if (confidences[i] > editingThreshold && tokens[i] !== token) selected[i] = 1;
    }
    const confident = masks.filter((i) => confidences[i] > threshold);
    // Equal ones: the lower position first, as the sort is stable.
    const chosen =
      confident.length >= numToTransfer
        ? confident
        : masks.sort((a, b) => confidences[b] - confidences[a]).slice(0, numToTransfer);
    for (const i of chosen) selected[i] = 1;
    return -1;
  }

  override apply(step: RowStep): void {
    const { nfe } = this;
    super.apply(step);
    // A pass that confirms a block costs what any other does.
    this.nfe = nfe + 1;
    this.passes++;
    const masks = this.countMasks(this.windowBegin, this.windowEnd());
    const isUnchanged = this.masksBefore === 0 && !step.selected.includes(1);
    if (isUnchanged || (masks === 0 && ++this.post > this.rule.maxPostSteps)) this.leaveBlock();
    else if (masks > 0 && this.passes >= MAX_PASSES)
      throw this.noProgress(
        `masks are left after ${MAX_PASSES} passes of a block: the model predicts the mask token itself, which compat: "reference" allows (the reference loops for ever here)`,
      );
  }

  /** The current block may still be edited. */
  override settledEnd(): number {
    const end = super.settledEnd();
    return this.finished ? end : Math.max(this.begin, Math.min(end, this.windowBegin));
  }

  private leaveBlock(): void {
    const eos = this.settings.stopAtEos ? this.endFrom(this.begin) : -1;
    if (eos >= 0 && eos < this.windowEnd()) this.finished = true;
    else this.nextBlock();
  }
}
