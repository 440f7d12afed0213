// How probable a masked diffusion model finds a given answer.
import { DUltraError, optionError } from '../errors';
import { type Answer, type AnswerScore, answerIds, scoreOf } from '../model/answer-score';
import { encodePrompt, maskName } from '../model/prompt';
import { openTrainer } from '../model/trainer';
import { checkChoice, checkInteger, checkKeys, checkSeed, checkSignal } from '../options';
import { concatenate, packed, packRows } from '../packing';
import { deriveSeed, Purpose, Random } from '../random';
import { mean, standardDeviation, sum } from '../statistics';
import type { PlainPrompt } from '../types';
import type { GeneratingModel } from './prepare';

/** Options of `score` of a masked diffusion model. */
export interface AnswerScoreOptions {
  /**
   * A masked diffusion model has no exact likelihood that could be computed.
   * - "monte-carlo" (default): an unbiased estimate of a lower bound of the log-likelihood, that of LLaDA (arXiv
   *   2502.09992, the form with a fixed number of masks that its evaluation uses): the mean over draws of
   *   L/l · Σ log p(token | prompt, the tokens that are not masked) over l masked tokens, with l uniform in 1..L and the
   *   masked tokens at random.
   * - "pseudo-likelihood": Σ log p(token | prompt, all other tokens of the answer), one token masked at a time (arXiv
   *   1910.14659). Deterministic, L rows, and no likelihood: over all answers it does not sum to 1, and it is high for
   *   answers that repeat themselves.
   */
  method?: 'monte-carlo' | 'pseudo-likelihood' | undefined;
  /** Draws of "monte-carlo", a row of the model each. Default 128, as in LLaDA's evaluation. */
  samples?: number | undefined;
  /** Seed of the draws. Default 0: equal calls give equal scores. */
  seed?: number | bigint | undefined;
  /** Stops the work; the call rejects with `signal.reason`. */
  signal?: AbortSignal | undefined;
}

/** Tokens of a forward pass. */
const TOKEN_BUDGET = 8192;

/** A row with masks, and the tokens that stood there. */
interface MaskedAnswer {
  ids: Int32Array;
  positions: Int32Array;
  tokens: Int32Array;
}

/** Log-probabilities of the masked tokens of rows. */
async function logProbsOf(
  model: GeneratingModel,
  rows: readonly MaskedAnswer[],
  signal: AbortSignal | undefined,
): Promise<Float32Array[]> {
  const scorer = await openTrainer(model.native, { freezeBase: true, freezePlanner: true });
  try {
    const all: Float32Array[] = [];
    for (const batch of packRows(rows, ({ ids }) => ids.length, TOKEN_BUDGET)) {
      signal?.throwIfAborted();
      const { logProbs } = await scorer.score({
        ...packed(batch),
        tokens: concatenate(
          batch.map(({ tokens }) => tokens),
          Int32Array,
        ),
        excludedToken: model.config.maskTokenId,
      });
      let at = 0;
      for (const { tokens } of batch) {
        all.push(logProbs!.slice(at, at + tokens.length));
        at += tokens.length;
      }
    }
    signal?.throwIfAborted();
    return all;
  } finally {
    scorer.dispose();
  }
}

/** See `model.score`. */
export async function score(
  model: GeneratingModel,
  prompt: PlainPrompt,
  answer: Answer,
  options: AnswerScoreOptions,
): Promise<AnswerScore> {
  checkKeys('options', options, ['method', 'samples', 'seed', 'signal']);
  const { method = 'monte-carlo', samples = 128, seed = 0, signal } = options;
  checkChoice('method', method, ['monte-carlo', 'pseudo-likelihood'] as const);
  checkInteger('samples', samples, { min: 1, max: 1e6 });
  if (options.samples !== undefined && method !== 'monte-carlo')
    throw optionError(TypeError, 'samples', `only with method "monte-carlo", got method ${JSON.stringify(method)}`);
  checkSignal(signal);
  const random = new Random(deriveSeed(checkSeed('seed', seed), Purpose.scores));
  signal?.throwIfAborted();
  const { maskTokenId, mask, family } = model.config;
  if (mask === 'block-causal')
    throw optionError(
      RangeError,
      'model',
      `expected one that sees whole rows, got ${family}, which attends by blocks: its likelihood is that of each block behind finished ones`,
    );
  const promptIds = encodePrompt(prompt, model);
  const ids = answerIds(model, promptIds, answer);
  if (ids.includes(maskTokenId))
    throw optionError(RangeError, 'answer', `expected no mask token, ${maskName(model)}, got one`);
  const masked = (chosen: Int32Array): MaskedAnswer => {
    const row = Int32Array.from([...promptIds, ...ids]);
    for (const i of chosen) row[promptIds.length + i] = maskTokenId;
    return { ids: row, positions: chosen.map((i) => promptIds.length + i), tokens: chosen.map((i) => ids[i]) };
  };
  const length = ids.length;
  if (method === 'pseudo-likelihood') {
    const rows = Array.from(ids.keys(), (i) => masked(Int32Array.of(i)));
    return scoreOf(model.source, method, concatenate(await logProbsOf(model, rows, signal), Float32Array));
  }
  // Each number of masks is uniform, and they are spread evenly: less variance, the same mean. One token is always masked.
  const draws = length === 1 ? 1 : samples;
  const first = random.integer(length);
  const rows = Array.from({ length: draws }, (_, draw) => {
    const masks = 1 + ((first + Math.floor((draw * length) / draws)) % length);
    return masked(random.permutation(length).slice(0, masks).sort());
  });
  const terms = (await logProbsOf(model, rows, signal)).map(
    (logProbs) => (length / logProbs.length) * sum(Array.from(logProbs)),
  );
  const logLikelihood = mean(terms);
  if (!Number.isFinite(logLikelihood))
    throw new DUltraError('NON_FINITE', `${model.source}: the log-probabilities of the answer are not finite`);
  const standardError = draws > 1 ? standardDeviation(terms) / Math.sqrt(draws) : 0;
  return { method, logLikelihood, standardError, tokens: length, logProbs: null };
}
