// The objectives of policy gradients that score tokens: what a rollout becomes, and the loss of what a pass says of it.
// dUltra's own scores the decisions of a planner (loss.ts). Nothing here knows of models: a researcher changes an
// objective here. ℓ is the log-probability of a token now, ℓ_old under the policy that made the rollout, ℓ_ref under the
// frozen reference model; r = exp(ℓ − ℓ_old); k3(d) = e^d − d − 1.
import { optionError } from '../../errors';
import { type BlockGrid, blockOf, blockStart } from '../../model/blocks';
import { clippedObjective } from './loss';

/** The objectives of policy gradients: "dultra" scores decisions of the planner, the others tokens. */
export const OBJECTIVES = ['dultra', 'diffu-grpo', 'trace', 'wd1', 'distillation'] as const;

/** One of {@link OBJECTIVES}. */
export type Objective = (typeof OBJECTIVES)[number];

/** One that scores tokens. */
export type TokenObjective = Exclude<Objective, 'dultra'>;

/** A pass over a rollout: a row with masks, and the tokens of it that are scored. */
export interface TokenRow {
  /** Index of the rollout. */
  rollout: number;
  /** Ids with masks. */
  ids: Int32Array;
  /** In-row positions that are scored, ascending, and the rollout's tokens there. */
  positions: Int32Array;
  tokens: Int32Array;
}

/** A rollout as ids: the prompt, and the completion that begins at `begin`. */
export interface Rollout {
  ids: Int32Array;
  begin: number;
  /** Tokens of the completion that count: up to its first end of sequence. */
  counted: number;
  /** Of each token of the completion, the step that decided it; Infinity: none did. */
  steps: ArrayLike<number>;
}

/**
 * The row of the one-step estimator of diffu-GRPO (d1, arXiv 2504.12216): the whole completion is masked, and each token
 * of the prompt with a probability, anew for every update, so that one pass gives the log-probabilities of all tokens, as
 * if they did not depend on each other. The mask of the prompt varies the estimate.
 * @param options.uniforms (T) one per position; those of the completion are not read
 */
export function oneStepRow(
  { ids, begin, counted }: Rollout,
  options: { promptMask: number; uniforms: ArrayLike<number>; maskTokenId: number },
): Omit<TokenRow, 'rollout'> {
  const { promptMask, uniforms, maskTokenId } = options;
  const noisy = Int32Array.from(ids).fill(maskTokenId, begin);
  for (let i = 0; i < begin; i++) if (uniforms[i] < Math.fround(promptMask)) noisy[i] = maskTokenId;
  const positions = Int32Array.from({ length: counted }, (_, i) => begin + i);
  return { ids: noisy, positions, tokens: positions.map((position) => ids[position]) };
}

/**
 * The rows of the trajectory's own order (TraceRL, arXiv 2509.06949): of the steps that decided something, taken `shrink`
 * at a time, each group is a row in which its tokens and those of later groups are masked and its own are scored. shrink
 * 1 is the likelihood of the decoding itself, at a pass per step. Of a model that attends by blocks a group has steps of
 * one block alone and the row ends with it: what stands behind is not seen, so that the likelihood is that of block
 * diffusion.
 * @param options.padId token whose occurrences beyond the first `keptPads` of a completion are not scored; null: none
 * @param options.grid the row's blocks, of a model that attends by blocks; else null
 */
export function traceRows(
  { ids, begin, counted, steps }: Rollout,
  options: {
    shrink: number;
    maskTokenId: number;
    padId?: number | null;
    keptPads?: number;
    grid?: BlockGrid | null;
  },
): Omit<TokenRow, 'rollout'>[] {
  const { shrink, maskTokenId, padId = null, keptPads = 0, grid = null } = options;
  const length = begin + steps.length;
  const scored = new Uint8Array(length).fill(1, begin, begin + counted);
  let pads = 0;
  for (let i = begin; i < length; i++) if (ids[i] === padId && ++pads > keptPads) scored[i] = 0;
  const rows: Omit<TokenRow, 'rollout'>[] = [];
  const blocks = grid ?? { first: length, length };
  for (let block = blockOf(blocks, begin); block <= blockOf(blocks, length - 1); block++) {
    const first = Math.max(begin, blockStart(blocks, block));
    const end = Math.min(length, blockStart(blocks, block + 1));
    const own = Array.from({ length: end - first }, (_, i) => steps[first - begin + i]);
    const distinct = [...new Set(own)].filter(Number.isFinite).sort((a, b) => a - b);
    for (let at = 0; at < distinct.length; at += shrink) {
      const from = distinct[at];
      const to = distinct[Math.min(at + shrink, distinct.length) - 1];
      const noisy = ids.slice(0, end);
      const positions: number[] = [];
      for (let i = first; i < end; i++) {
        const step = steps[i - begin];
        if (!(step < from)) noisy[i] = maskTokenId;
        if (step >= from && step <= to && scored[i] === 1) positions.push(i);
      }
      if (positions.length > 0)
        rows.push({
          ids: noisy,
          positions: Int32Array.from(positions),
          tokens: Int32Array.from(positions, (i) => ids[i]),
        });
    }
  }
  return rows;
}

/** What a pass says of the scored tokens of a row. Arrays are parallel. */
export interface ScoredTokens {
  /** ℓ */
  logProbs: Float32Array;
  /** ℓ_old */
  oldLogProbs: Float32Array;
  /** ℓ_ref; needed where the objective takes its KL divergence from the reference model and beta is above 0. */
  referenceLogProbs: Float32Array | null;
  /** A: of the rollout, or one per token. */
  advantage: number | Float32Array;
}

/** What decides the loss of a row, apart from its numbers. */
export interface TokenLossOptions {
  clipEpsilonLow: number;
  clipEpsilonHigh: number;
  /** Upper bound of the ratio in the unclipped term, or null. */
  delta?: number | null | undefined;
  /** Weight of the KL divergence. */
  beta: number;
  /** k3 is never negative; k1 = ℓ − ℓ_kl is the plain difference. Default "k3". */
  klEstimator?: 'k3' | 'k1' | undefined;
  /** Which policy the KL divergence is from. */
  klTo: 'reference' | 'old';
  /** Multiplies the policy term and the KL term of each token. */
  scale: number;
  klScale: number;
}

/** Loss of a row, what to report of it, and its gradient. */
export interface TokenLoss {
  loss: number;
  /** Sum over the tokens of the estimate of the KL divergence. */
  kl: number;
  /** Tokens whose clip decided the term, so that no policy gradient flows. */
  clippedLow: number;
  clippedHigh: number;
  /** Largest |r − 1|. */
  ratioDeviation: number;
  /** dL/dℓ */
  dLogProbs: Float32Array;
}

/** Log-ratios are cut here, so that no exponential overflows; TraceRL's code does the same. */
const MAX_LOG_RATIO = 10;

const cut = (x: number): number => Math.min(MAX_LOG_RATIO, Math.max(-MAX_LOG_RATIO, x));

/**
 * Σ_tokens −scale · min(r A, clip(r, 1 − ε_low, 1 + ε_high) A) + klScale · β · KL, the loss that diffu-GRPO, TraceRL and
 * on-policy distillation have in common: they differ in the rows, in A and in the scales.
 */
export function tokenLoss(row: ScoredTokens, options: TokenLossOptions): TokenLoss {
  const { logProbs, oldLogProbs, referenceLogProbs, advantage } = row;
  const { clipEpsilonLow, clipEpsilonHigh, delta = null, beta, klEstimator = 'k3', klTo, scale, klScale } = options;
  const other = klTo === 'old' ? oldLogProbs : referenceLogProbs;
  if (beta > 0 && !other) throw optionError(TypeError, 'tokenLoss', 'beta > 0 needs referenceLogProbs');
  const out: TokenLoss = {
    loss: 0,
    kl: 0,
    clippedLow: 0,
    clippedHigh: 0,
    ratioDeviation: 0,
    dLogProbs: new Float32Array(logProbs.length),
  };
  for (let i = 0; i < logProbs.length; i++) {
    const difference = logProbs[i] - oldLogProbs[i];
    const { ratio, objective, slope, clipped } = clippedObjective(
      cut(difference),
      typeof advantage === 'number' ? advantage : advantage[i],
      clipEpsilonLow,
      clipEpsilonHigh,
      delta,
    );
    out.loss -= objective * scale;
    // A ratio that is cut is constant.
    if (Math.abs(difference) < MAX_LOG_RATIO) out.dLogProbs[i] -= slope * scale;
    if (clipped === 'low') out.clippedLow++;
    if (clipped === 'high') out.clippedHigh++;
    out.ratioDeviation = Math.max(out.ratioDeviation, Math.abs(ratio - 1));
    if (beta === 0) continue;
    const d = other![i] - logProbs[i];
    const kl = klEstimator === 'k3' ? Math.exp(cut(d)) - d - 1 : -d;
    const slopeOfKl = klEstimator === 'k3' ? 1 - (Math.abs(d) < MAX_LOG_RATIO ? Math.exp(d) : 0) : 1;
    out.kl += kl;
    out.loss += beta * kl * klScale;
    out.dLogProbs[i] += beta * slopeOfKl * klScale;
  }
  return out;
}

/** How much there is in a batch: its scored tokens, and the rows that have some. */
export interface BatchSize {
  tokens: number;
  rows: number;
}

/** How the tokens of a batch are averaged: all alike, or within each row and then over rows. */
export type LossPer = 'token' | 'row';

/** Factor on each token of a row. */
function tokenScale(lossPer: LossPer, rowTokens: number, { tokens, rows }: BatchSize): number {
  return lossPer === 'token' ? 1 / Math.max(1, tokens) : 1 / Math.max(1, rowTokens * rows);
}

/** The options of an objective's loss that a run has. */
export type RunLossOptions = Pick<
  TokenLossOptions,
  'clipEpsilonLow' | 'clipEpsilonHigh' | 'delta' | 'beta' | 'klTo' | 'klEstimator'
> & { lossPer: LossPer };

/**
 * diffu-GRPO (d1, arXiv 2504.12216): Σ_tokens (−min(r A, clip(r) A) + β k3(ref)) / Σ_tokens 1 over the batch, on rows of
 * {@link oneStepRow}. `lossPer: "row"` averages within each completion first, as GRPO did.
 */
export function diffuGrpoLoss(row: ScoredTokens, batch: BatchSize, { lossPer, ...options }: RunLossOptions): TokenLoss {
  const scale = tokenScale(lossPer, row.logProbs.length, batch);
  return tokenLoss(row, { ...options, scale, klScale: scale });
}

/**
 * TraceRL (arXiv 2509.06949): −mean over rows of the mean over scored tokens of min(r A, clip(r) A), on rows of
 * {@link traceRows}; plus β times the mean over rows of the sum over scored tokens of k3(old): the policy term is
 * averaged over a row and the KL term summed, as in its code for LLaDA. `lossPer: "token"` averages both over all tokens
 * of the batch.
 */
export function traceLoss(row: ScoredTokens, batch: BatchSize, { lossPer, ...options }: RunLossOptions): TokenLoss {
  const scale = tokenScale(lossPer, row.logProbs.length, batch);
  const klScale = lossPer === 'token' ? scale : 1 / Math.max(1, batch.rows);
  return tokenLoss(row, { ...options, scale, klScale });
}

/**
 * wd1 (arXiv 2507.08838): −Σ_b (softmax(A)_b − softmax(−A)_b) ℓ_b over the rollouts of a group, ℓ_b the sum over the
 * tokens of a row of {@link oneStepRow}; averaged over the groups. No ratio, no clip and no KL term; A here is that
 * difference ({@link wd1Weights}).
 * @param groups groups of the batch
 */
export function wd1Loss({ logProbs, advantage }: ScoredTokens, groups: number): TokenLoss {
  const weight = (typeof advantage === 'number' ? advantage : 0) / Math.max(1, groups);
  let loss = 0;
  for (let i = 0; i < logProbs.length; i++) loss -= weight * logProbs[i];
  const dLogProbs = new Float32Array(logProbs.length).fill(-weight);
  return { loss, kl: 0, clippedLow: 0, clippedHigh: 0, ratioDeviation: 0, dLogProbs };
}

/** softmax(A) − softmax(−A) within each group of rollouts: what {@link wd1Loss} weighs them with. */
export function wd1Weights(advantages: ArrayLike<number>, groupSize: number): Float64Array {
  const weights = new Float64Array(advantages.length);
  for (let begin = 0; begin < advantages.length; begin += groupSize) {
    const group = Array.from(
      { length: Math.min(groupSize, advantages.length - begin) },
      (_, i) => advantages[begin + i],
    );
    const softmax = (sign: number) => {
      const top = Math.max(...group.map((a) => sign * a));
      const powers = group.map((a) => Math.exp(sign * a - top));
      const total = powers.reduce((sum, power) => sum + power, 0);
      return powers.map((power) => power / total);
    };
    const [liked, disliked] = [softmax(1), softmax(-1)];
    group.forEach((_, i) => {
      weights[begin + i] = liked[i] - disliked[i];
    });
  }
  return weights;
}
