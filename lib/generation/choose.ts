// A decision between given answers: how probable each of them is.
import { DUltraError, optionError } from '../errors';
import { runForward } from '../model/forward';
import { encodePrompt, maskName } from '../model/prompt';
import { checkList } from '../options';
import { concatenate, offsetsOf, packRows } from '../packing';
import { show } from '../text';
import type { PlainPrompt } from '../types';
import { type GeneratingModel, wholeRow } from './prepare';

/** What {@link MaskedDiffusionModel.choose} found. */
export interface Choice {
  /** The most probable option; the first among equals. */
  option: string;
  /** Its index. */
  index: number;
  /** Probability of each option (K), given that the answer is one of them; they add up to 1. */
  probabilities: number[];
  /** Log-probability of each option's tokens (K), not yet normalised over the options. */
  logProbs: number[];
}

/** A row of a decision: the answer up to a token, which is masked with everything behind it. */
interface ChoiceRow {
  ids: Int32Array;
  /** The masked position. */
  at: number;
}

/** Tokens of one forward pass, whose logits are all kept. */
const TOKEN_BUDGET = 2048;

/** log p of every token of the vocabulary at a position, the mask token left out. */
function logSoftmax(logits: Float32Array, maskTokenId: number): Float64Array {
  let max = -Infinity;
  for (let i = 0; i < logits.length; i++) if (i !== maskTokenId && logits[i] > max) max = logits[i];
  let sum = 0;
  for (let i = 0; i < logits.length; i++) if (i !== maskTokenId) sum += Math.exp(logits[i] - max);
  const normaliser = max + Math.log(sum);
  return Float64Array.from(logits, (logit, i) => (i === maskTokenId ? -Infinity : logit - normaliser));
}

/** The options as tokens. @throws TypeError, RangeError; DUltraError NO_TOKENIZER */
function encodeOptions(model: GeneratingModel, options: readonly string[]): number[][] {
  const { tokenizer, source } = model;
  if (!tokenizer) throw new DUltraError('NO_TOKENIZER', `${source} has no tokenizer.json, which options of text need`);
  const encoded = checkList('options', options, (name, option) => {
    if (typeof option !== 'string') throw optionError(TypeError, name, `expected a string, got ${String(option)}`);
    const ids = tokenizer.encode(option, { addSpecialTokens: false });
    if (ids.length === 0) throw optionError(RangeError, name, 'expected a text of at least one token, got ""');
    if (ids.includes(model.config.maskTokenId))
      throw optionError(RangeError, name, `expected no mask token, ${maskName(model)}, got ${show(option)}`);
    return ids;
  });
  if (encoded.length < 2)
    throw optionError(RangeError, 'options', `expected at least two texts, got ${encoded.length}`);
  const texts = encoded.map((ids) => ids.join());
  texts.forEach((text, i) => {
    if (texts.indexOf(text) < i)
      throw optionError(
        RangeError,
        `options[${i}]`,
        `expected a text unlike the others, got ${JSON.stringify(options[i])} again`,
      );
  });
  return encoded;
}

/** See `model.choose`. */
export async function choose(model: GeneratingModel, prompt: PlainPrompt, options: readonly string[]): Promise<Choice> {
  const encoded = encodeOptions(model, options);
  const promptIds = encodePrompt(prompt, model);
  const { maskTokenId, eosTokenId, maxSequenceLength, embeddingSize, shiftLogits } = model.config;
  const end = eosTokenId === null ? [] : [eosTokenId];
  const rows: ChoiceRow[] = [];
  const known = new Map<string, number>();
  /** Row of each token of each option; options that begin alike share rows. */
  const rowsOf = encoded.map((ids) =>
    ids.map((_, k) => {
      const answer = ids.map((id, i) => (i < k ? id : maskTokenId));
      const key = answer.join();
      const before = known.get(key);
      if (before !== undefined) return before;
      const row = [...promptIds, ...answer, ...end];
      if (row.length > maxSequenceLength)
        throw optionError(
          RangeError,
          'prompt',
          `prompt and option make ${row.length} tokens, more than the model's maximum of ${maxSequenceLength}`,
        );
      known.set(key, rows.length);
      return rows.push({ ids: wholeRow(row, model.config), at: promptIds.length + k }) - 1;
    }),
  );
  const logProbs: Float64Array[] = [];
  for (const batch of packRows(rows, ({ ids }) => ids.length, TOKEN_BUDGET)) {
    const offsets = offsetsOf(batch.map(({ ids }) => ids.length));
    const ids = concatenate(
      batch.map((row) => row.ids),
      Int32Array,
    );
    const { logits } = await runForward(model, { ids, rowOffsets: offsets });
    batch.forEach(({ at }, i) => {
      // Models like Dream's predict a token at the position before it.
      const begin = (offsets[i] + Math.max(0, at - Number(shiftLogits === true))) * embeddingSize;
      logProbs.push(logSoftmax(logits!.subarray(begin, begin + embeddingSize), maskTokenId));
    });
  }
  const scores = encoded.map((ids, i) => ids.reduce((sum, id, k) => sum + logProbs[rowsOf[i][k]][id], 0));
  const best = Math.max(...scores);
  if (!Number.isFinite(best)) throw new DUltraError('NON_FINITE', `${model.source}: the model's logits are not finite`);
  const weights = scores.map((score) => Math.exp(score - best));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const index = scores.indexOf(best);
  return {
    option: options[index],
    index,
    probabilities: weights.map((weight) => weight / total),
    logProbs: scores,
  };
}
