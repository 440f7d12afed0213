// Where a completion's text ends: at tokens that end it, and at stop strings, before all of it is decided.
import { DUltraError, optionError } from '../errors';
import { checkList } from '../options';
import { show } from '../text';
import { decodeIds, type Vocabulary } from './prompt';

/** What the end of a text needs of a model. */
export interface EndingModel extends Vocabulary {
  /** `maskTokenId` is -1 in a model that has none. */
  config: { embeddingSize: number; eosTokenIds: readonly number[]; maskTokenId: number };
}

/** Position of the first of `ends` in a row of ids, from `from` on, or -1. */
export function indexOfEnd(ids: Int32Array, ends: readonly number[], from = 0): number {
  let first = -1;
  for (const end of ends) {
    const at = ids.indexOf(end, from);
    if (at >= 0 && (first < 0 || at < first)) first = at;
  }
  return first;
}

/** The texts of the option `stop`. @throws TypeError, RangeError */
export function stopStrings(stop: unknown): string[] {
  const check = (name: string, text: unknown): string => {
    if (typeof text !== 'string') throw optionError(TypeError, name, `expected a string, got ${show(text)}`);
    if (text === '') throw optionError(RangeError, name, 'expected a text of at least one character, got ""');
    return text;
  };
  if (stop === undefined) return [];
  if (typeof stop === 'string') return [check('stop', stop)];
  if (!Array.isArray(stop))
    throw optionError(TypeError, 'stop', `expected a string or an array of strings, got ${show(stop)}`);
  return checkList('stop', stop, check);
}

/** Where the texts of a call's rows end. */
export class TextEnd {
  readonly #model: EndingModel;
  readonly #strings: readonly string[];

  /** @throws DUltraError NO_TOKENIZER */
  constructor(model: EndingModel, strings: readonly string[]) {
    if (!model.tokenizer)
      throw new DUltraError('NO_TOKENIZER', `${model.source} has no tokenizer.json, which stop strings need`);
    this.#model = model;
    this.#strings = strings;
  }

  /** Begin of the stop string that ends first in a text, or -1; so it is the same one however the text grew. */
  indexIn(text: string): number {
    let first = -1;
    let firstEnd = Infinity;
    for (const string of this.#strings) {
      const begin = text.indexOf(string);
      const end = begin + string.length;
      if (begin < 0 || end > firstEnd || (end === firstEnd && begin > first)) continue;
      [first, firstEnd] = [begin, end];
    }
    return first;
  }

  /** The beginning of a text that is final whatever follows: what may become a stop string is left out. */
  finalPart(text: string): string {
    const found = this.indexIn(text);
    if (found >= 0) return text.slice(0, found);
    let begin = text.length;
    for (const string of this.#strings)
      for (let length = Math.min(string.length - 1, text.length); length > text.length - begin; length--)
        if (text.endsWith(string.slice(0, length))) begin = text.length - length;
    return text.slice(0, begin);
  }

  /** Whether the text of a completion's decided beginning has a stop string. */
  isIn(prefix: Int32Array): boolean {
    return this.indexIn(this.#textOf(prefix, false)) >= 0;
  }

  /**
   * The text before the first stop string in a completion, and the number of tokens that it takes to write the text with
   * it; null where there is none. What stands behind the first mask counts for nothing.
   */
  cut(ids: Int32Array): { text: string; tokens: number } | null {
    const mask = ids.indexOf(this.#model.config.maskTokenId);
    const isWhole = mask < 0;
    const prefix = isWhole ? ids : ids.subarray(0, mask);
    const text = this.#textOf(prefix, isWhole);
    const begin = this.indexIn(text);
    if (begin < 0) return null;
    // The shortest beginning that has it: a longer one has it as well.
    let [without, tokens] = [0, prefix.length];
    while (tokens - without > 1) {
      const middle = (without + tokens) >> 1;
      if (this.isIn(prefix.subarray(0, middle))) tokens = middle;
      else without = middle;
    }
    return { text: text.slice(0, begin), tokens };
  }

  /** Text of a completion's beginning, up to its end of sequence. @param isWhole nothing follows it */
  #textOf(prefix: Int32Array, isWhole: boolean): string {
    const { tokenizer, config } = this.#model;
    const eos = indexOfEnd(prefix, config.eosTokenIds);
    if (eos >= 0) return decodeIds(prefix.subarray(0, eos), this.#model);
    return isWhole ? decodeIds(prefix, this.#model) : tokenizer!.decodePrefix(prefix, { skipSpecialTokens: true });
  }
}
