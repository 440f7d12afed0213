// A row that decides several blocks at once.
import type { CacheBlock } from '../caches/definition';
import { Row, type RowInput, type RowOutcome, type RowSettings, type RowStep } from './row';

/** Blocks of a multi-block row; block 0 is the prompt. */
interface OpenBlock extends CacheBlock {
  /** Due for progress in every pass. */
  active: boolean;
}

/** Passes after which d3LLM's reference stops. */
const MAX_PASSES = 10000;

/** Decides several blocks at once, as d3LLM does. */
export class MultiBlockRow extends Row {
  private readonly open: OpenBlock[];
  private readonly count: number;
  override readonly isWindow = false;
  override readonly readsAll = true;
  private pass = 0;
  private end = 0;
  /** Only positions behind an end of sequence are left to fill. */
  private fillAtEnd = false;

  constructor(
    index: number,
    input: RowInput,
    settings: RowSettings,
    private readonly rule: { blockAddThreshold: number; decodedTokenThreshold: number },
  ) {
    super(index, input, settings);
    const prompt = settings.reference ? 0 : this.countMasks(0, this.begin);
    this.count = Math.ceil((this.completionEnd - this.begin) / settings.blockLength);
    this.open = [{ start: 0, end: this.begin, masks: prompt, active: true }];
    if (this.count > 0) this.addBlock();
  }

  /** Blocks are numbered from that of the first candidate. */
  get block(): number {
    const first = this.candidates[0] ?? this.begin;
    return Math.max(0, Math.floor((first - this.begin) / this.settings.blockLength));
  }

  windowEnd(): number {
    return this.end;
  }

  private progress({ start, end, masks }: OpenBlock): number {
    return end > start ? 1 - masks / (end - start) : 1;
  }

  private addBlock(skipped = false): void {
    const start = this.begin + (this.open.length - 1) * this.settings.blockLength;
    const end = Math.min(this.completionEnd, start + this.settings.blockLength);
    const active = skipped || this.progress(this.open[this.open.length - 1]) >= this.rule.decodedTokenThreshold;
    this.open.push({ start, end, masks: skipped ? 0 : this.countMasks(start, end), active, skipped });
  }

  enter(): boolean {
    this.finished = !this.prepare();
    return !this.finished;
  }

  private hasMasks(): boolean {
    const { maskTokenId, reference } = this.settings;
    // The reference never decides masks of the prompt.
    return this.ids.indexOf(maskTokenId, reference ? this.begin : 0) >= 0;
  }

  /** One iteration up to its pass; false: the row is finished instead. */
  private prepare(): boolean {
    const { ids, open } = this;
    const { reference, stopAtEos } = this.settings;
    if ((reference && this.pass > MAX_PASSES) || (!this.hasMasks() && open.length > this.count)) return false;
    this.pass++;
    // The reference lists its candidates before the fill, and so may overwrite positions that were just filled.
    const noted = this.masks(0, ids.length);
    const eos = stopAtEos && this.fillBehindEos();
    if (eos && !this.hasMasks()) return false;
    for (const [i, block] of open.entries())
      if (i > 0 && !block.active && this.progress(open[i - 1]) >= this.rule.decodedTokenThreshold) block.active = true;
    const last = open[open.length - 1];
    if (
      !eos &&
      open.length > 1 &&
      open.length <= this.count &&
      (this.progress(last) >= this.rule.blockAddThreshold || last.masks === 0)
    )
      this.addBlock();
    let rightmost = 0;
    for (const [i, { active, masks }] of open.entries()) if (i > 0 && (active || masks > 0)) rightmost = i;
    if (rightmost === 0 && (reference || open[0].masks === 0)) return false;
    this.end = open[rightmost].end;
    this.candidates = (reference ? noted : this.masks(0, this.end)).filter((position) => position < this.end);
    const first = open.find(({ masks }) => masks > 0);
    this.planPass(
      { begin: Math.min(first?.start ?? this.end, this.candidates[0] ?? this.end), end: this.end },
      this.pass,
      () => open,
    );
    if (this.queries?.length === 0) return false;
    // The reference cannot reach masks at positions that are already cached.
    const { queries } = this;
    if (queries && reference) {
      const reachable = new Set(queries);
      this.candidates = this.candidates.filter((position) => reachable.has(position));
    }
    return true;
  }

  /** Fills what is right of the first end of sequence with `eosTokenId`, and closes its blocks. */
  private fillBehindEos(): boolean {
    const { begin, open } = this;
    const eos = this.endFrom(begin);
    if (eos < 0) return false;
    this.fillBehind(eos);
    for (const [i, block] of open.entries()) {
      if (i === 0 || block.end <= eos) continue;
      const masks = block.start > eos ? 0 : this.countMasks(block.start, eos + 1);
      if (masks === 0 && block.masks !== 0) block.active = true;
      block.masks = masks;
    }
    while (open.length <= this.count && begin + (open.length - 1) * this.settings.blockLength > eos)
      this.addBlock(true);
    return true;
  }

  private fillBehind(eos: number): void {
    if (eos < 0) return;
    const token = this.settings.eosTokenId ?? this.ids[eos];
    for (let i = eos + 1; i < this.completionEnd; i++) {
      // Given tokens of a template stay; the reference has no templates.
      const isGiven = this.unmaskedAt[i] === 0 && this.ids[i] !== this.settings.maskTokenId;
      if (this.ids[i] === token || (isGiven && !this.settings.reference)) continue;
      this.ids[i] = token;
      this.logProbs[i] = Number.NaN;
      this.unmaskedAt[i] ||= this.steps;
    }
  }

  /**
   * The progress rule: where the first active block with masks got nothing, its candidate of lowest entropy is selected
   * too. Returns its index among the candidates, or -1.
   */
  override force({ positions, entropies, selected }: RowStep): number {
    const block = this.open.find(({ active, masks }, i) => i > 0 && active && masks > 0);
    if (!block) return -1;
    let best = -1;
    for (let i = 0; i < positions.length; i++) {
      if (positions[i] < block.start || positions[i] >= block.end) continue;
      if (selected[i]) return -1;
      if (best < 0 || entropies[i] < entropies[best]) best = i;
    }
    if (best >= 0) selected[best] = 1;
    return best;
  }

  override apply(step: RowStep): void {
    super.apply(step);
    const { positions, selected } = step;
    for (const [b, block] of this.open.entries()) {
      if (b === 0 && this.settings.reference) continue;
      let chosen = 0;
      for (let i = 0; i < positions.length; i++)
        if (selected[i] && positions[i] >= block.start && positions[i] < block.end) chosen++;
      block.masks = Math.max(0, block.masks - chosen);
    }
    // Determined here rather than before the next pass, so that the last event can say `finished`.
    const { reference, maskTokenId, stopAtEos } = this.settings;
    const first = this.ids.indexOf(maskTokenId, reference ? this.begin : 0);
    const eos = stopAtEos ? this.endFrom(this.begin) : -1;
    // The reference stops here without a last fill, and so keeps what its candidates overwrote.
    if (first < 0 && (!reference || this.open.length > this.count)) this.finished = true;
    else if (eos >= 0 && (first < 0 || first > eos)) this.finished = this.fillAtEnd = true;
  }

  override outcome(): RowOutcome {
    if (this.fillAtEnd) this.fillBehind(this.endFrom(this.begin));
    return super.outcome();
  }
}
