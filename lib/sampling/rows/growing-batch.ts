// Fast-dLLM v2's reference decoding of several prompts (its batch_sample): rows that grow by blocks together.
import { range } from '../../packing';
import { Row, type RowInput, type RowSettings, type RowStep } from './row';
import type { Parts } from './sub-block-row';

/** What all rows of a batch do in a pass. */
interface BatchPass {
  queries: Int32Array;
  /** The part whose masks are decided; null: a pass over final tokens. */
  part: { begin: number; end: number } | null;
  /** Of a pass over final tokens: where rows of `appends` get their next token. */
  next: number;
  appends: (row: GrowingBatchRow) => boolean;
}

/**
 * Passes of rows that stand in the same block: the whole blocks of the shortest prompt at once; then every block until no
 * row has a mask in it, and its final tokens once more. Prompts that reach further keep their tokens. A row that wrote an
 * end of sequence is finished with its block.
 */
class GrowingBatch {
  readonly rows: GrowingBatchRow[] = [];
  private made = 0;
  private pass: BatchPass | null = null;
  private block: number;
  private part = 0;
  /** Whether the caches have a pass over the whole of the current block. */
  private hasWhole = false;

  constructor(
    private readonly prompts: readonly number[],
    private readonly blocks: number,
    private readonly length: number,
    private readonly parts: Parts,
    private readonly maskTokenId: number,
  ) {
    this.block = Math.floor(Math.min(...prompts) / length);
  }

  /** The pass that a row takes after `steps` others; null: none is left. */
  passAfter(steps: number): BatchPass | null {
    if (steps === this.made) {
      this.made++;
      this.pass = this.nextPass();
    }
    return this.pass;
  }

  private nextPass(): BatchPass | null {
    const { length, prompts } = this;
    const shortest = Math.min(...prompts);
    if (this.made === 1 && shortest > length) {
      const isWhole = shortest % length === 0;
      const appends = ({ begin }: GrowingBatchRow) => isWhole && begin === shortest;
      return { queries: range(0, this.block * length), part: null, next: shortest, appends };
    }
    if (this.block >= this.blocks) return null;
    const start = this.block * length;
    const end = start + length;
    for (; this.part * this.parts.length < length; this.part++) {
      const begin = start + this.part * this.parts.length;
      const part = { begin, end: Math.min(end, begin + this.parts.length) };
      if (!this.anyMask(part.begin, part.end)) continue;
      const isAlone = this.parts.partCache && this.hasWhole && !this.anyMask(begin, begin + 1);
      this.hasWhole = true;
      return {
        queries: isAlone ? range(part.begin, part.end) : range(start, end),
        part,
        next: -1,
        appends: () => false,
      };
    }
    for (const row of this.rows) row.leaveBlock();
    if (this.rows.every(({ finished }) => finished)) return null;
    const { block } = this;
    this.block++;
    this.part = 0;
    this.hasWhole = false;
    // The reference overwrites a longest prompt's last token where it is the first of a block.
    const replaces = Math.max(...prompts) === end + 1;
    const appends = ({ begin }: GrowingBatchRow) => replaces || Math.floor(begin / length) <= block;
    return { queries: range(start, end), part: null, next: end, appends };
  }

  private anyMask(from: number, to: number): boolean {
    return this.rows.some(({ finished, ids }) => {
      const first = finished ? -1 : ids.indexOf(this.maskTokenId, from);
      return first >= 0 && first < to;
    });
  }
}

class GrowingBatchRow extends Row {
  override readonly isWindow = false;
  block = 0;
  private end = 0;
  private wroteEnd = false;

  constructor(
    index: number,
    input: RowInput,
    settings: RowSettings,
    private readonly batch: GrowingBatch,
  ) {
    super(index, input, settings);
  }

  windowEnd(): number {
    return this.end;
  }

  enter(): boolean {
    const pass = this.finished ? null : this.batch.passAfter(this.steps);
    // Making the pass may have finished it.
    if (pass === null || this.finished) {
      this.finished = true;
      return false;
    }
    const { queries, part, next } = pass;
    this.queries = queries;
    this.isGreedy = part === null;
    if (part) this.candidates = this.masks(part.begin, part.end);
    else this.candidates = pass.appends(this) && next < this.ids.length ? Int32Array.of(next) : new Int32Array(0);
    this.end = Math.max(this.end, queries[queries.length - 1] + 1, part ? 0 : next + 1);
    this.block = Math.floor(queries[queries.length - 1] / this.settings.blockLength);
    return true;
  }

  /** The block is decided. */
  leaveBlock(): void {
    if (this.wroteEnd && this.settings.stopAtEos) this.finished = true;
  }

  override nextCount(): number {
    return Math.min(1, this.candidates.length);
  }

  override apply(step: RowStep): void {
    super.apply(step);
    if (this.isGreedy) return;
    const { positions, tokens, selected } = step;
    const { eosTokenIds, maskTokenId, greedy } = this.settings;
    const written = tokens.filter((_, i) => selected[i]);
    // The first token of a block, which the block before it gave, is not looked at.
    this.wroteEnd ||= written.some((token) => eosTokenIds.includes(token));
    if (greedy && positions.length > 0 && written.every((token) => token === maskTokenId))
      throw this.noProgress('the model predicts the mask token itself (the reference loops for ever here)');
  }
}

/** Rows of a batch, each as long as the reference's last block and one token. */
export function growingBatch(inputs: readonly RowInput[], settings: readonly RowSettings[], parts: Parts): Row[] {
  const { blockLength: length, maskTokenId } = settings[0];
  const prompts = inputs.map(({ begin }) => begin);
  const wanted = Math.max(...inputs.map(({ ids, begin, wanted: some }) => some ?? ids.length - begin));
  const blocks = Math.floor(wanted / length) + Math.floor(Math.max(...prompts) / length);
  const batch = new GrowingBatch(prompts, blocks, length, parts, maskTokenId);
  batch.rows.push(
    ...inputs.map((input, index) => {
      const ids = new Int32Array(blocks * length + 1).fill(maskTokenId);
      ids.set(input.ids.subarray(0, Math.min(input.ids.length, ids.length)));
      return new GrowingBatchRow(index, { ...input, ids }, settings[index], batch);
    }),
  );
  return batch.rows;
}
