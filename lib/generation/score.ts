// How probable a masked diffusion model finds a given answer.
import { DUltraError, optionError } from '../errors';
import { type Answer, type AnswerScore, answerIds, scoreOf } from '../model/answer-score';
import { attendedGrid, blockOf, blockStart, firstBlocks } from '../model/blocks';
import type { ModelConfig } from '../model/config';
import { encodePrompt, maskName } from '../model/prompt';
import { openTrainer } from '../model/trainer';
import { checkChoice, checkInteger, checkKeys, checkSeed, checkSignal } from '../options';
import { concatenate, packed, packRows, range } from '../packing';
import { deriveSeed, Purpose, Random } from '../random';
import { mean, standardDeviation, sum } from '../statistics';
import type { PlainPrompt } from '../types';
import type { GeneratingModel } from './prepare';

/**
 * Options of `score` of a masked diffusion model. Of a model that attends by blocks the score is the sum over the answer's
 * blocks, each behind the finished ones, as on the cache that decodes them: L is then the number of a block's tokens, what
 * stands in later blocks is not seen, and what the answer leaves of its last block is masked.
 */
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
  /** Draws of "monte-carlo", a row of the model for each block. Default 128, as in LLaDA's evaluation. */
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

/** A part of an answer that later parts do not change: its tokens, and where a row that ends with it ends. */
interface Part {
  begin: number;
  end: number;
  rowEnd: number;
}

/** The parts of an answer: the blocks that a model attends by, or the whole. */
function partsOf(config: ModelConfig, prompt: number, length: number): Part[] {
  const grid = attendedGrid(config, prompt);
  if (grid === null) return [{ begin: 0, end: length, rowEnd: prompt + length }];
  const parts: Part[] = [];
  for (let block = blockOf(grid, prompt); block <= blockOf(grid, prompt + length - 1); block++) {
    const [start, next] = [blockStart(grid, block), blockStart(grid, block + 1)];
    const rowEnd = Math.min(next, config.maxSequenceLength);
    parts.push({ begin: Math.max(0, start - prompt), end: Math.min(length, next - prompt), rowEnd });
  }
  return parts;
}

/** Log-probabilities of the masked tokens of rows whose completions begin at `begin`. */
async function logProbsOf(
  model: GeneratingModel,
  begin: number,
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
        firstBlocks: firstBlocks(
          model.config,
          batch.map(() => begin),
        ),
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
  const { maskTokenId } = model.config;
  const promptIds = encodePrompt(prompt, model);
  const ids = answerIds(model, promptIds, answer);
  if (ids.includes(maskTokenId))
    throw optionError(RangeError, 'answer', `expected no mask token, ${maskName(model)}, got one`);
  const begin = promptIds.length;
  const parts = partsOf(model.config, begin, ids.length);
  /** A row that ends with a part of the answer, some of whose tokens are masked. */
  const masked = ({ end, rowEnd }: Part, chosen: Int32Array): MaskedAnswer => {
    const row = new Int32Array(rowEnd).fill(maskTokenId);
    row.set(promptIds);
    row.set(ids.subarray(0, end), begin);
    for (const i of chosen) row[begin + i] = maskTokenId;
    return { ids: row, positions: chosen.map((i) => begin + i), tokens: chosen.map((i) => ids[i]) };
  };
  if (method === 'pseudo-likelihood') {
    const rows = parts.flatMap((part) =>
      Array.from(range(part.begin, part.end), (i) => masked(part, Int32Array.of(i))),
    );
    return scoreOf(model.source, method, concatenate(await logProbsOf(model, begin, rows, signal), Float32Array));
  }
  const rows: (MaskedAnswer & { draw: number; share: number })[] = [];
  for (const part of parts) {
    const length = part.end - part.begin;
    // Each number of masks is uniform, and they are spread evenly: less variance, the same mean. One token is always
    // masked.
    const draws = length === 1 ? 1 : samples;
    const first = random.integer(length);
    for (let draw = 0; draw < draws; draw++) {
      const masks = 1 + ((first + Math.floor((draw * length) / draws)) % length);
      const chosen = random.permutation(length).slice(0, masks).sort();
      const row = masked(
        part,
        chosen.map((i) => part.begin + i),
      );
      rows.push({ ...row, draw: draws === 1 ? -1 : draw, share: length / masks });
    }
  }
  const draws = ids.length === parts.length ? 1 : samples;
  const terms = new Array<number>(draws).fill(0);
  const all = await logProbsOf(model, begin, rows, signal);
  rows.forEach(({ draw, share }, i) => {
    const term = share * sum(Array.from(all[i]));
    // What does not depend on the draw counts in each.
    if (draw >= 0) terms[draw] += term;
    else for (let each = 0; each < draws; each++) terms[each] += term;
  });
  const logLikelihood = mean(terms);
  if (!Number.isFinite(logLikelihood))
    throw new DUltraError('NON_FINITE', `${model.source}: the log-probabilities of the answer are not finite`);
  const standardError = draws > 1 ? standardDeviation(terms) / Math.sqrt(draws) : 0;
  return { method, logLikelihood, standardError, tokens: ids.length, logProbs: null };
}
