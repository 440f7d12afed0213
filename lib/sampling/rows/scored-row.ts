// A row that is given as a whole: one pass says how probable some tokens are at its masks.
import { Row } from './row';

/** A row, the positions of it that are asked about, and the tokens that are asked for. */
export interface ScoredInput {
  ids: Int32Array;
  /** Where the answer begins: models that attend by blocks may count them from there. */
  begin: number;
  /** Ascending; masks. */
  positions: Int32Array;
  /** Of each position: at least one token, none of them the mask. */
  tokens: readonly Int32Array[];
}

/** Takes part in one pass, which changes nothing of it. */
export class ScoredRow extends Row {
  readonly block = 0;
  override readonly isWindow = false;
  readonly #input: ScoredInput;
  /** Log-probabilities of the tokens, position by position, with the mask token left out of the softmax. */
  scores: Float32Array | null = null;

  constructor(index: number, input: ScoredInput, maskTokenId: number) {
    super(index, input, {
      maskTokenId,
      eosTokenIds: [],
      eosTokenId: null,
      blockLength: input.ids.length,
      stopAtEos: false,
      finishesBlock: false,
      reference: false,
      greedy: true,
      cache: { type: 'none' },
      emptyPass: false,
      attended: null,
      grid: null,
      shiftLogits: false,
    });
    this.#input = input;
    this.candidates = input.positions;
  }

  get tokens(): readonly Int32Array[] {
    return this.#input.tokens;
  }

  get tokenCount(): number {
    return this.tokens.reduce((sum, { length }) => sum + length, 0);
  }

  windowEnd(): number {
    return this.ids.length;
  }

  enter(): boolean {
    return true;
  }

  override apply(): void {
    this.steps++;
    this.nfe++;
    this.fullForwards++;
    this.finished = true;
  }
}
