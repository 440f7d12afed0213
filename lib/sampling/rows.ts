// Rows on their way from masks to tokens: which part of a row the next pass decides, and what became of it.
import { DUltraError } from '../errors';
import type { NativeSession } from '../native';
import type { FinishReason } from '../types';
import { type CacheBlock, type ResolvedCache, RowCache } from './cache';
import { fixedSchedule } from './samplers';

/** A row to denoise: its ids with masks where tokens are to be found. */
export interface RowInput {
  ids: Int32Array;
  /** First position of the completion; blocks are counted from here. 0 for a template. */
  begin: number;
}

/** A row when the loop is done with it. */
export interface RowOutcome {
  ids: Int32Array;
  begin: number;
  nfe: number;
  fullForwards: number;
  finishReason: FinishReason;
  /** (row length) Step, from 1, that decided each position; 0 where it was given or never decided. */
  unmaskedAt: Int32Array;
  logLikelihood: number;
}

/** What a row's decoding depends on. */
export interface RowSettings {
  maskTokenId: number;
  /** null: rows never end early. */
  eosTokenId: number | null;
  blockLength: number;
  stopAtEos: boolean;
  reference: boolean;
  greedy: boolean;
  cache: ResolvedCache;
  /** Whether a finished block gets one more pass, where the policy does not say. */
  emptyPass: boolean;
}

/** What a pass did with a row's candidates; parallel arrays. */
export interface RowStep {
  positions: Int32Array;
  tokens: Int32Array;
  entropies: Float32Array;
  selected: Uint8Array;
}

/** Consecutive steps that may change nothing before a sampled run is given up. */
const MAX_IDLE_STEPS = 1000;

/** A row; how its blocks follow each other is left to the two kinds below. */
export abstract class Row {
  readonly ids: Int32Array;
  readonly begin: number;
  readonly unmaskedAt: Int32Array;
  protected readonly cache: RowCache | null;
  steps = 0;
  nfe = 0;
  fullForwards = 0;
  logLikelihood = 0;
  finished = false;
  /**
   * What the next pass decides about and computes, as `enter` settled it. Without a cache `queries` is null:
   * everything.
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
    this.unmaskedAt = new Int32Array(this.ids.length);
    this.cache = settings.cache.type === 'none' ? null : new RowCache(settings.cache, this.ids.length);
  }

  /** Current block, from 0. */
  abstract readonly block: number;

  /** Candidates end before it. */
  abstract windowEnd(): number;

  /** Settles the next pass; false, and `finished`, where nothing is left to do. */
  abstract enter(session: NativeSession): boolean;

  /** Takes a pass's tokens in. */
  apply({ positions, tokens, selected }: RowStep): void {
    this.steps++;
    this.fullForwards += this.queries === null ? 1 : this.queries.length / this.ids.length;
    let unmasked = 0;
    for (let i = 0; i < positions.length; i++) {
      if (!selected[i]) continue;
      unmasked++;
      this.ids[positions[i]] = tokens[i];
      if (tokens[i] !== this.settings.maskTokenId) this.unmaskedAt[positions[i]] = this.steps;
    }
    if (unmasked > 0) this.nfe++;
  }

  outcome(): RowOutcome {
    const { ids, begin, nfe, fullForwards, unmaskedAt, logLikelihood } = this;
    const eos = this.settings.eosTokenId;
    const finishReason = eos !== null && ids.indexOf(eos, begin) >= 0 ? 'eos' : 'length';
    return { ids, begin, nfe, fullForwards, unmaskedAt, logLikelihood, finishReason };
  }

  /** Masked positions from `from` to before `to`. */
  protected masks(from: number, to: number): Int32Array {
    const positions: number[] = [];
    for (let i = from; i < to; i++) if (this.ids[i] === this.settings.maskTokenId) positions.push(i);
    return Int32Array.from(positions);
  }

  protected countMasks(from: number, to: number): number {
    let count = 0;
    for (let i = from; i < to; i++) if (this.ids[i] === this.settings.maskTokenId) count++;
    return count;
  }

  /** Asks the cache, if there is one, what the pass computes. */
  protected planPass(window: { begin: number; end: number }, pass: number, blocks: () => CacheBlock[]): void {
    const { cache, ids, candidates } = this;
    if (!cache) return;
    const { cache: policy, emptyPass } = this.settings;
    const owes = policy.type === 'prefix' || policy.type === 'dual' ? (policy.emptyPass ?? emptyPass) : false;
    this.queries = cache.plan(
      { ids, candidates, window, pass, blocks: policy.type === 'delayed' ? blocks() : [] },
      owes,
    );
  }

  protected noProgress(why: string): DUltraError {
    return new DUltraError('NO_PROGRESS', `row ${this.index}: ${why}`);
  }
}

/** Blocks strictly one after the other. */
export class BlockRow extends Row {
  readonly blocks: number;
  block = 0;
  /** Everything from `begin` to here is decided, and none of it is an end of sequence. */
  private decided: number;
  private sawEos = false;
  private schedule: Int32Array | null = null;
  private scheduleStep = 0;
  private idle = 0;
  /** First position of the window, as of the pass that began the block. */
  private windowBegin = -1;

  constructor(index: number, input: RowInput, settings: RowSettings) {
    super(index, input, settings);
    this.decided = input.begin;
    this.blocks = Math.max(1, Math.ceil((this.ids.length - this.begin) / settings.blockLength));
  }

  windowEnd(block = this.block): number {
    return Math.min(this.ids.length, this.begin + (block + 1) * this.settings.blockLength);
  }

  /** Where candidates begin: a mask of the prompt is one too, but for the reference's cached decoders. */
  private candidatesBegin(block: number): number {
    return this.cache && this.settings.reference ? this.begin + block * this.settings.blockLength : 0;
  }

  private hasMasks(from: number, to: number): boolean {
    const first = this.ids.indexOf(this.settings.maskTokenId, from);
    return first >= 0 && first < to;
  }

  /** The block has masks, or a pass to come although it has none. */
  hasWork(block: number): boolean {
    return (
      this.hasMasks(this.candidatesBegin(block), this.windowEnd(block)) ||
      (block === this.block && (this.cache?.owesPass ?? false))
    );
  }

  enterBlock(block: number): void {
    if (block !== this.block) {
      this.schedule = null;
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

  /** What the pass in the current block decides about and computes. */
  settle(): void {
    const { block, begin, ids } = this;
    const { blockLength } = this.settings;
    const end = this.windowEnd();
    this.candidates = this.masks(this.candidatesBegin(block), end);
    if (this.windowBegin < 0)
      this.windowBegin = Math.min(begin + block * blockLength, this.candidates[0] ?? ids.length);
    this.planPass({ begin: this.windowBegin, end }, this.steps + 1, () => {
      const blocks = [{ start: 0, end: begin, masks: this.countMasks(0, begin) }];
      for (let b = 0; b <= block; b++) {
        const start = begin + b * blockLength;
        blocks.push({ start, end: this.windowEnd(b), masks: this.countMasks(start, this.windowEnd(b)) });
      }
      return blocks;
    });
  }

  /** Tokens that the fixed schedule takes in this step. */
  scheduledCount(steps: number | null): number {
    if (this.candidates.length === 0) return 0;
    if (this.schedule === null) {
      const masks = this.candidates.length;
      // The schedule's steps are those of the whole generation, shared evenly by its blocks, as in the reference.
      this.schedule = fixedSchedule(masks, steps === null ? Math.max(1, masks) : Math.floor(steps / this.blocks));
      this.scheduleStep = 0;
    }
    if (this.scheduleStep >= this.schedule.length)
      throw this.noProgress('masks are left after all steps of the block: the model keeps predicting the mask token');
    return this.schedule[this.scheduleStep++];
  }

  override apply(step: RowStep): void {
    super.apply(step);
    const { maskTokenId, eosTokenId, greedy, stopAtEos } = this.settings;
    const { positions } = step;
    // A finished block's empty pass has nothing to change.
    const changed = positions.length === 0 || positions.some((p) => this.ids[p] !== maskTokenId);
    this.idle = changed ? 0 : this.idle + 1;
    if (this.idle > (greedy ? 0 : MAX_IDLE_STEPS))
      throw this.noProgress(
        'the step changed nothing: the model predicts the mask token itself, which compat: "reference" allows (the reference loops for ever here)',
      );
    while (!this.sawEos && this.decided < this.ids.length && this.ids[this.decided] !== maskTokenId) {
      if (this.ids[this.decided] === eosTokenId) this.sawEos = true;
      else this.decided++;
    }
    if (stopAtEos && this.sawEos) this.finished = true;
    // A row is also finished when no mask is left anywhere.
    const rest = this.candidatesBegin(this.block);
    this.finished ||= !this.hasMasks(rest, this.ids.length) && !(this.cache?.owesPass ?? false);
  }
}

/** Blocks of a multi-block row; block 0 is the prompt. */
interface OpenBlock extends CacheBlock {
  /** Due for progress in every pass. */
  active: boolean;
}

/** Passes after which the loop of d3LLM's reference gives up. */
const MAX_PASSES = 10000;

/** Several blocks in flight, as d3LLM decodes. */
export class MultiBlockRow extends Row {
  private readonly open: OpenBlock[];
  private readonly count: number;
  private pass = 0;
  private end = 0;
  /** The next iteration would only fill what follows an end of sequence. */
  private fillAtEnd = false;

  constructor(
    index: number,
    input: RowInput,
    settings: RowSettings,
    private readonly rule: { blockAddThreshold: number; decodedTokenThreshold: number },
  ) {
    super(index, input, settings);
    const prompt = settings.reference ? 0 : this.countMasks(0, this.begin);
    this.count = Math.ceil((this.ids.length - this.begin) / settings.blockLength);
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
    const end = Math.min(this.ids.length, start + this.settings.blockLength);
    const active = skipped || this.progress(this.open[this.open.length - 1]) >= this.rule.decodedTokenThreshold;
    this.open.push({ start, end, masks: skipped ? 0 : this.countMasks(start, end), active, skipped });
  }

  enter(session: NativeSession): boolean {
    this.finished = !this.prepare(session);
    return !this.finished;
  }

  private hasMasks(): boolean {
    const { maskTokenId, reference } = this.settings;
    // A mask of the prompt stays one in the reference.
    return this.ids.indexOf(maskTokenId, reference ? this.begin : 0) >= 0;
  }

  /** The iteration up to its pass; false where it ends the row instead. */
  private prepare(session: NativeSession): boolean {
    const { ids, open } = this;
    const { reference, stopAtEos } = this.settings;
    if ((reference && this.pass > MAX_PASSES) || (!this.hasMasks() && open.length > this.count)) return false;
    this.pass++;
    // The reference notes its candidates before the fill, and so decides about positions that were just filled.
    const noted = this.masks(0, ids.length);
    const eos = stopAtEos && this.fillBehindEos(session);
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
    // Masks that the reference has left behind in its cache are out of reach.
    const { queries } = this;
    if (queries && reference) {
      const reachable = new Set(queries);
      this.candidates = this.candidates.filter((position) => reachable.has(position));
    }
    return true;
  }

  /** Fills what is right of the first end of sequence with that token, and closes its blocks. */
  private fillBehindEos(session: NativeSession): boolean {
    const { ids, begin, open } = this;
    const { eosTokenId } = this.settings;
    const eos = eosTokenId === null ? -1 : ids.indexOf(eosTokenId, begin);
    if (eosTokenId === null || eos < 0) return false;
    const filled = this.fill(eos, eosTokenId);
    if (filled.length > 0)
      session.write(this.index, Int32Array.from(filled), new Int32Array(filled.length).fill(eosTokenId));
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

  private fill(eos: number, token: number): number[] {
    const filled: number[] = [];
    for (let i = eos + 1; i < this.ids.length; i++) {
      // What was given stays (a template; the reference has none).
      const isGiven = this.unmaskedAt[i] === 0 && this.ids[i] !== this.settings.maskTokenId;
      if (this.ids[i] === token || (isGiven && !this.settings.reference)) continue;
      this.ids[i] = token;
      this.unmaskedAt[i] ||= this.steps;
      filled.push(i);
    }
    return filled;
  }

  /**
   * The progress rule: where the first active block with masks got nothing, its candidate of lowest entropy is selected
   * too. Returns its index among the candidates, or -1.
   */
  force({ positions, entropies, selected }: RowStep): number {
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
    // Whether another pass comes is settled here, so that the event of the last one can say so.
    const { reference, maskTokenId, stopAtEos, eosTokenId } = this.settings;
    const first = this.ids.indexOf(maskTokenId, reference ? this.begin : 0);
    const eos = stopAtEos && eosTokenId !== null ? this.ids.indexOf(eosTokenId, this.begin) : -1;
    // The reference ends here without a last fill, and so keeps what its candidates overwrote.
    if (first < 0 && (!reference || this.open.length > this.count)) this.finished = true;
    else if (eos >= 0 && (first < 0 || first > eos)) this.finished = this.fillAtEnd = true;
  }

  override outcome(): RowOutcome {
    const { eosTokenId } = this.settings;
    if (this.fillAtEnd && eosTokenId !== null) this.fill(this.ids.indexOf(eosTokenId, this.begin), eosTokenId);
    return super.outcome();
  }
}
