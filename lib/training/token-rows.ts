// Prompts and answers as rows of tokens, padded by ends of sequence.
import { DUltraError, optionError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { rowLength } from '../model/blocks';
import { checkInteger, checkKeys, checkNumber } from '../options';
import { Random } from '../random';
import { show } from '../text';
import type { TrainingRow } from './data';

/** How answers are padded with end-of-sequence tokens, which count as answer. */
export interface AnswerPadding {
  /** Share of the rows whose answers are padded to a length drawn evenly from `min` to `max`. */
  share: number;
  /** Tokens; longer answers get one end of sequence. */
  min: number;
  max: number;
  /** The other rows get 1 to `tail` ends of sequence. Default 1. */
  tail?: number;
}

/** Checks an {@link AnswerPadding} and fills in defaults. @throws TypeError, RangeError */
export function checkPadding(padding: AnswerPadding): Required<AnswerPadding> {
  checkKeys('padding', padding, ['share', 'min', 'max', 'tail']);
  const { share, min, max, tail = 1 } = padding;
  checkNumber('padding.share', share, { min: 0, max: 1 });
  checkInteger('padding.min', min, { min: 1, max: 1 << 30 });
  checkInteger('padding.max', max, { min, max: 1 << 30 });
  checkInteger('padding.tail', tail, { min: 1, max: 1 << 30 });
  return { share, min, max, tail };
}

/** A row before it is masked. */
export interface TokenRow {
  ids: Int32Array;
  /** Where the answer begins. */
  begin: number;
}

/**
 * Prompt and answer as one row.
 * @param maxTokens tokens of the answer; null: the answer's own and one end of sequence; or a function of the answer's
 * own, whose padding is cut where the row would be longer than the model's maximum
 */
export function encodeRow(
  model: MaskedDiffusionModel,
  example: TrainingRow,
  maxTokens: number | null | ((answer: number) => number),
): TokenRow {
  if (example.answer === null)
    throw optionError(
      TypeError,
      'dataset',
      `expected examples with an answer, got one without: its prompt is ${show(example.prompt)}`,
    );
  if (!model.tokenizer)
    throw new DUltraError('NO_TOKENIZER', `${model.source} has no tokenizer.json, which training on text needs`);
  const prompt = model.encodePrompt(example.prompt);
  const answer = model.tokenizer.encode(example.answer, { addSpecialTokens: false });
  const { eosTokenId, maxSequenceLength } = model.config;
  const room = Math.max(answer.length + 1, maxSequenceLength - prompt.length);
  const length =
    typeof maxTokens === 'function' ? Math.min(maxTokens(answer.length), room) : (maxTokens ?? answer.length + 1);
  if (answer.length > length)
    throw optionError(
      RangeError,
      'maxTokens',
      `expected at least the ${answer.length} tokens of the answer ${show(example.answer)}, got ${length}`,
    );
  if (eosTokenId === null && answer.length < length)
    throw optionError(
      RangeError,
      'maxTokens',
      `${model.source} names no end-of-sequence token to pad answers with; expected answers of maxTokens tokens`,
    );
  const total = prompt.length + length;
  if (total > maxSequenceLength)
    throw optionError(
      RangeError,
      'dataset',
      `a row of ${total} tokens is longer than the model's maximum of ${maxSequenceLength}`,
    );
  // Ends of sequence fill the last block of a model that attends by blocks, as decoding fills it.
  const ids = new Int32Array(eosTokenId === null ? total : rowLength(total, model.config)).fill(eosTokenId ?? 0);
  ids.set(prompt);
  ids.set(answer, prompt.length);
  return { ids, begin: prompt.length };
}

/**
 * Examples as rows. @param maxTokens tokens of every answer; null: its own and one end of sequence
 * @param padding in place of maxTokens, where it is given @param seed of the lengths that it draws
 */
export function encodeRows(
  model: MaskedDiffusionModel,
  examples: readonly TrainingRow[],
  maxTokens: number | null,
  padding: Required<AnswerPadding> | null,
  seed: bigint,
): TokenRow[] {
  if (!padding) return examples.map((example) => encodeRow(model, example, maxTokens));
  const { share, min, max, tail } = padding;
  const random = new Random(seed);
  return examples.map((example) => {
    const isWide = random.uniform() < share;
    const draw = random.uniform();
    return encodeRow(model, example, (answer) =>
      isWide ? Math.max(answer + 1, min + Math.floor(draw * (max - min + 1))) : answer + 1 + Math.floor(draw * tail),
    );
  });
}
