// A row as a stream of events: what each step decided, and the text that is final.
import { decodeIds } from '../model/prompt';
import { indexOfEnd } from '../model/text-end';
import type { RowStepEvent } from '../sampling/job';
import type { GeneratingModel, PreparedRow } from './prepare';
import type { GenerateResult, StreamEvent, UnmaskedToken } from './types';

/** Tokens that are decoded on each side of one: as many as the bytes that a character has beside the token's. */
const CONTEXT = 4;

/** Fields of an event, with its ids where JSON.stringify does not look. */
class Event implements StreamEvent {
  readonly #ids: Int32Array;
  constructor(
    readonly step: number,
    readonly text: string,
    readonly delta: string,
    readonly unmasked: UnmaskedToken[],
    readonly remaining: number,
    readonly result: GenerateResult | null,
    ids: Int32Array,
  ) {
    this.#ids = ids;
  }
  get ids(): Int32Array {
    return this.#ids;
  }
}

/** Length of the beginning that two texts share; no pair of surrogates is cut. */
function sharedLength(a: string, b: string): number {
  let length = 0;
  while (length < a.length && length < b.length && a[length] === b[length]) length++;
  return /[\ud800-\udbff]/.test(b.charAt(length - 1)) ? length - 1 : length;
}

type StreamedStep = Pick<RowStepEvent, 'step' | 'positions' | 'tokens' | 'confidences' | 'ids' | 'settled'>;

/** Makes a row's events. */
export class RowStream {
  readonly #model: GeneratingModel;
  readonly #row: PreparedRow;
  /** Tokens of the prefix that is decoded in `#prefix`. */
  #decided = 0;
  #prefix = '';
  #text = '';

  constructor(model: GeneratingModel, row: PreparedRow) {
    this.#model = model;
    this.#row = row;
  }

  /**
   * @param row what a step selected, and the row after it @param result where the row ended with this step
   * @param hasTokens the event has what was unmasked: texts of single tokens take longer than that of all
   */
  event(row: StreamedStep, result: GenerateResult | null, hasTokens = true): StreamEvent {
    const { maskTokenId } = this.#model.config;
    const ids = row.ids.slice(this.#row.begin, this.#row.end);
    const before = this.#text.length;
    this.#prefix = this.#prefixText(ids.subarray(0, row.settled - this.#row.begin));
    this.#text = result ? result.text : (this.#row.textEnd?.finalPart(this.#prefix) ?? this.#prefix);
    const unmasked = hasTokens ? this.#unmasked(row, ids) : [];
    let remaining = 0;
    for (const id of row.ids) if (id === maskTokenId) remaining++;
    return new Event(row.step, this.#text, this.#text.slice(before), unmasked, remaining, result, ids);
  }

  #prefixText(prefix: Int32Array): string {
    const { tokenizer, config } = this.#model;
    if (!tokenizer || prefix.length <= this.#decided) return this.#prefix;
    this.#decided = prefix.length;
    const eos = this.#row.isTemplate ? -1 : indexOfEnd(prefix, config.eosTokenIds);
    // Nothing follows an end of sequence.
    if (eos >= 0) return decodeIds(prefix.subarray(0, eos), this.#model);
    return tokenizer.decodePrefix(prefix, { skipSpecialTokens: true });
  }

  #unmasked({ positions, tokens, confidences }: StreamedStep, ids: Int32Array): UnmaskedToken[] {
    const { begin } = this.#row;
    const now = new Set(Array.from(positions, (position) => position - begin));
    return Array.from(positions, (inRow, i) => {
      const position = inRow - begin;
      const text = this.#textInContext(ids, position, tokens[i], now);
      return { position, token: tokens[i], text, probability: confidences[i] };
    });
  }

  /** What a token adds to the text around it. @param now positions that this step decided */
  #textInContext(ids: Int32Array, position: number, token: number, now: ReadonlySet<number>): string {
    const { maskTokenId } = this.#model.config;
    let from = position;
    while (from > 0 && position - from < CONTEXT && ids[from - 1] !== maskTokenId) from--;
    // Behind a mask the token stands for the one before, unless it continues a character: what a tokenizer does between
    // two tokens, it does here.
    const standsIn = from === position && position > 0 && !decodeIds([token], this.#model).startsWith('\ufffd');
    const left = standsIn ? [token] : Array.from(ids.subarray(from, position));
    const before = decodeIds(left, this.#model);
    const tokens = [...left, token];
    let text = decodeIds(tokens, this.#model);
    // Bytes behind it that came earlier may complete its character.
    for (let next = position + 1; next < ids.length && next - position < CONTEXT && text.endsWith('\ufffd'); next++) {
      if (ids[next] === maskTokenId || now.has(next)) break;
      tokens.push(ids[next]);
      const longer = decodeIds(tokens, this.#model);
      // The character stays unfinished.
      if (longer.length > text.length && longer.startsWith(text)) break;
      text = longer;
    }
    return text.slice(sharedLength(before, text)).replace(/^\ufffd+|\ufffd+$/g, '');
  }
}
