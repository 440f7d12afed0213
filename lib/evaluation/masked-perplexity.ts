// How well a model tells the masked tokens of a completion from the rest.

import { DUltraError, optionError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { checkIds, encodePrompt } from '../model/prompt';
import { checkInteger, checkKeys, checkNumber } from '../options';
import { deriveSeed, Purpose, Random } from '../random';
import type { PlainPrompt } from '../types';

/** Options of {@link maskedPerplexity}. */
export interface MaskedPerplexityOptions {
  /** Shares of a completion's tokens that are masked, above 0 and up to 1. Default 0.1, 0.3, 0.5, 0.7, 0.9. */
  ratios?: readonly number[] | undefined;
  /** Seed of the positions, which the examples' order and the ratio decide besides: equal for every model. Default 0. */
  seed?: number | undefined;
  /**
   * Tokens that a shorter completion is filled up to with the model's end of sequence, as in training on such answers.
   * Default: none is.
   */
  fillTo?: number | undefined;
  /** Examples in a pass. Default 16. */
  batchSize?: number | undefined;
}

/** A text whose completion is masked; for one without a prompt that is `{ promptIds: [] }`. */
export interface MaskedExample {
  prompt: PlainPrompt;
  /** A text that the model's tokenizer encodes without special tokens, or token ids. */
  completion: string | { ids: ArrayLike<number> };
}

/** What {@link maskedPerplexity} measured at one ratio. */
export interface MaskedPerplexity {
  ratio: number;
  /** Masked tokens of all examples. */
  tokens: number;
  /** exp of the mean of −log p over them: 1 for certainty, the size of the vocabulary for none. */
  perplexity: number;
}

const RATIOS = [0.1, 0.3, 0.5, 0.7, 0.9];

/** −log p of an id under the softmax of `size` numbers from `from` on. */
function surprise(logits: Float32Array, from: number, size: number, id: number): number {
  let most = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < size; i++) most = Math.max(most, logits[from + i]);
  let sum = 0;
  for (let i = 0; i < size; i++) sum += Math.exp(logits[from + i] - most);
  return Math.log(sum) + most - logits[from + id];
}

function completionIds(
  completion: MaskedExample['completion'],
  { tokenizer, config, source }: MaskedDiffusionModel,
  name: string,
): Int32Array {
  if (typeof completion !== 'string') return checkIds(name, completion?.ids, config.embeddingSize);
  if (!tokenizer)
    throw new DUltraError('NO_TOKENIZER', `${source} has no tokenizer.json, which a text needs; pass { ids: [...] }`);
  return checkIds(name, tokenizer.encode(completion, { addSpecialTokens: false }), config.embeddingSize);
}

/**
 * Masks a share of each completion's tokens at random, at least one, and asks the model for them in one pass, as its
 * training does. The same tokens are masked for every model of the same tokenizer, so that a quantised one can be
 * compared.
 * @returns one entry for each ratio
 * @throws RangeError, TypeError for options, for no examples, and for an empty completion or one that is, with its
 * prompt, longer than the model's rows; DUltraError NO_TOKENIZER
 */
export async function maskedPerplexity(
  model: MaskedDiffusionModel,
  examples: readonly MaskedExample[],
  options: MaskedPerplexityOptions = {},
): Promise<MaskedPerplexity[]> {
  checkKeys('options', options, ['ratios', 'seed', 'fillTo', 'batchSize']);
  const { ratios = RATIOS, seed = 0, fillTo = 0, batchSize = 16 } = options;
  if (!Array.isArray(ratios) || ratios.length === 0)
    throw optionError(RangeError, 'ratios', 'expected a list of at least one share');
  ratios.forEach((ratio, i) => {
    checkNumber(`ratios[${i}]`, ratio, { minExclusive: 0, max: 1 });
  });
  checkInteger('seed', seed, { min: 0, max: Number.MAX_SAFE_INTEGER });
  checkInteger('fillTo', fillTo, { min: 0, max: 2 ** 20 });
  checkInteger('batchSize', batchSize, { min: 1, max: 4096 });
  if (examples.length === 0) throw optionError(RangeError, 'examples', 'expected at least one, got none');
  const { maskTokenId, embeddingSize, maxSequenceLength, shiftLogits = false, eosTokenId } = model.config;
  if (fillTo > 0 && eosTokenId === null)
    throw optionError(RangeError, 'fillTo', 'expected none for a model that names no end of sequence');
  const rows = examples.map(({ prompt, completion }, i) => {
    const before = encodePrompt(prompt, model);
    const own = completionIds(completion, model, `examples[${i}].completion`);
    const filled = new Array<number>(Math.max(0, fillTo - own.length)).fill(eosTokenId ?? 0);
    const ids = Int32Array.from([...before, ...own, ...filled]);
    if (own.length === 0 || ids.length > maxSequenceLength)
      throw optionError(
        RangeError,
        `examples[${i}]`,
        `expected a completion and at most ${maxSequenceLength} tokens, as the model's rows have, got ${own.length} of ${ids.length} tokens`,
      );
    return { ids, start: before.length };
  });
  const results: MaskedPerplexity[] = [];
  for (const ratio of ratios) {
    let tokens = 0;
    let sum = 0;
    for (let first = 0; first < rows.length; first += batchSize) {
      const batch = rows.slice(first, first + batchSize).map(({ ids, start }, i) => {
        const random = new Random(deriveSeed(BigInt(seed), Purpose.masks, first + i, Math.round(ratio * 2 ** 20)));
        const size = ids.length - start;
        const count = Math.max(1, Math.round(ratio * size));
        const masked = random
          .permutation(size)
          .slice(0, count)
          .map((position) => start + position);
        const noisy = Int32Array.from(ids);
        for (const position of masked) noisy[position] = maskTokenId;
        return { ids, noisy, masked };
      });
      const rowOffsets = [0];
      for (const { ids } of batch) rowOffsets.push(rowOffsets.at(-1)! + ids.length);
      const { logits } = await model.forward({ ids: batch.flatMap(({ noisy }) => [...noisy]), rowOffsets });
      batch.forEach(({ ids, masked }, r) => {
        for (const position of masked) {
          // The head of some families is a position ahead.
          const at = rowOffsets[r] + Math.max(0, position - (shiftLogits ? 1 : 0));
          sum += surprise(logits!, at * embeddingSize, embeddingSize, ids[position]);
        }
        tokens += masked.length;
      });
    }
    results.push({ ratio, tokens, perplexity: Math.exp(sum / tokens) });
  }
  return results;
}
