// How probable a given answer is: what models of both kinds say of it.
import { DUltraError, optionError } from '../errors';
import { checkKeys } from '../options';
import { sum } from '../statistics';
import { show } from '../text';
import { checkIds, type Vocabulary } from './prompt';

/** An answer to score: text, or token ids, to which an end-of-sequence token can be added. */
export type Answer = string | { ids: ArrayLike<number> };

/** What `model.score` found. */
export interface AnswerScore {
  /** How it was computed; "exact" for autoregressive models. */
  method: 'monte-carlo' | 'pseudo-likelihood' | 'exact';
  /** Log-likelihood of the answer given the prompt, nats: what `method` stands for. */
  logLikelihood: number;
  /**
   * Standard error of a Monte Carlo estimate, as if its draws were independent; 0 for the other methods. The numbers of
   * masks of the draws are spread evenly, which makes the true error smaller as a rule.
   */
  standardError: number;
  /** Tokens of the answer (L). */
  tokens: number;
  /** (L) What each token adds to the sum; null for Monte Carlo, whose terms are of several tokens. */
  logProbs: number[] | null;
}

/** Ids of an answer behind a prompt. @throws TypeError, RangeError; DUltraError NO_TOKENIZER */
export function answerIds(
  model: Vocabulary & { config: { maxSequenceLength: number } },
  promptIds: Int32Array,
  answer: Answer,
): Int32Array {
  const { tokenizer, config, source } = model;
  let ids: Int32Array;
  if (typeof answer === 'string') {
    if (!tokenizer)
      throw new DUltraError('NO_TOKENIZER', `${source} has no tokenizer.json, which an answer of text needs`);
    ids = checkIds('answer', tokenizer.encode(answer, { addSpecialTokens: false }), config.embeddingSize);
  } else {
    if (typeof answer !== 'object' || answer === null)
      throw optionError(TypeError, 'answer', `expected a string or { ids }, got ${show(answer)}`);
    checkKeys('answer', answer, ['ids']);
    ids = checkIds('answer.ids', answer.ids, config.embeddingSize);
  }
  if (ids.length === 0) throw optionError(RangeError, 'answer', 'expected at least one token, got none');
  const length = promptIds.length + ids.length;
  if (length > config.maxSequenceLength)
    throw optionError(
      RangeError,
      'answer',
      `prompt and answer make ${length} tokens, more than the model's maximum of ${config.maxSequenceLength}`,
    );
  return ids;
}

/** The score of an answer out of its tokens' log-probabilities. @throws DUltraError NON_FINITE */
export function scoreOf(source: string, method: AnswerScore['method'], ofTokens: Float32Array): AnswerScore {
  const logProbs = Array.from(ofTokens);
  const logLikelihood = sum(logProbs);
  if (!Number.isFinite(logLikelihood))
    throw new DUltraError('NON_FINITE', `${source}: the log-probabilities of the answer are not finite`);
  return { method, logLikelihood, standardError: 0, tokens: logProbs.length, logProbs };
}
