// The GRPO loss exactly as the reference implementation computes it, for `compat: "reference"`. It differs from
// loss.ts in four ways:
// * the batch is walked in chunks of ⌊B/2⌋ rows, each averaged over its own rows, so that gradients are twice those of
//   a mean over B;
// * rows that idle in a step in which another row of the chunk does not still add −A to the loss (a constant: no
//   gradient);
// * with beta > 0 the sequence-level term is broadcast over the P + G positions of the row before the sum, hence
//   counted P + G times;
// * with beta > 0 the reference rows are not cut to the chunk, so that a chunk of one row meets every row of the batch.
import { clippedObjective, type GrpoLossOptions, type GrpoStep, type GrpoStepLoss } from './loss';
import type { ReplayRow } from './replay';

/** One row of a chunk at one step. Arrays cover the whole row, (P + G): 0 where a position is no candidate. */
export interface ReferenceGrpoRow {
  advantage: number;
  /** The row unmasked nothing in this step. */
  idle: boolean;
  logLikelihoods: Float32Array;
  oldLogLikelihoods: Float32Array;
  /** Rows of the reference model that meet this one: its own, or all of the batch. Empty without beta. */
  references: readonly Float32Array[];
}

/**
 * The loss of one (chunk, step) and dL/d(logLikelihoods) per row.
 * @param rows all rows of the chunk; a part of them gives that part's share, if `chunkRows` says how many there are.
 */
export function referenceGrpoLoss(
  rows: readonly ReferenceGrpoRow[],
  options: Omit<GrpoLossOptions, 'scale'> & { maxTokens: number; accumulation: number; chunkRows?: number },
): { loss: number; ratios: number[]; dLogLikelihoods: Float32Array[] } {
  const { clipEpsilonLow, clipEpsilonHigh, delta, beta, maxTokens, accumulation, chunkRows = rows.length } = options;
  const ratios: number[] = [];
  const dLogLikelihoods = rows.map((row) => new Float32Array(row.logLikelihoods.length));
  // A chunk in which every row idles is skipped as a whole.
  if (rows.every((row) => row.idle)) return { loss: 0, ratios: rows.map(() => 1), dLogLikelihoods };
  let loss = 0;
  rows.forEach((row, r) => {
    const { advantage, logLikelihoods, oldLogLikelihoods, references } = row;
    const length = logLikelihoods.length;
    let logRatio = 0;
    for (let i = 0; i < length; i++) logRatio += logLikelihoods[i] - oldLogLikelihoods[i];
    const { ratio, objective, slope } = clippedObjective(logRatio, advantage, clipEpsilonLow, clipEpsilonHigh, delta);
    ratios.push(ratio);
    const scale = 1 / (chunkRows * maxTokens * accumulation);
    const broadcast = beta > 0 ? length : 1;
    loss -= objective * broadcast * scale;
    if (!row.idle) dLogLikelihoods[r].fill(-slope * broadcast * scale);
    if (beta === 0) return;
    for (const reference of references) {
      for (let i = 0; i < length; i++) {
        const x = reference[i] - logLikelihoods[i];
        loss += (beta * (Math.exp(x) - x - 1) * scale) / references.length;
        if (!row.idle) dLogLikelihoods[r][i] += (beta * (1 - Math.exp(x)) * scale) / references.length;
      }
    }
  });
  return { loss, ratios, dLogLikelihoods };
}

/**
 * The loss of one replayed step, as its share of a chunk of half the rollouts.
 * @param row its ids (length of the whole row) and positions (of the candidates)
 */
export function referenceStepLoss(
  { advantage, logLikelihoods, oldLogLikelihoods, referenceLogLikelihoods }: GrpoStep,
  { ids, positions }: Pick<ReplayRow, 'ids' | 'positions'>,
  options: Omit<GrpoLossOptions, 'scale'> & { rollouts: number; maxTokens: number; accumulation: number },
): GrpoStepLoss {
  const dense = (values: Float32Array) => {
    const out = new Float32Array(ids.length);
    positions.forEach((position, i) => {
      out[position] = values[i];
    });
    return out;
  };
  const whole = {
    advantage,
    idle: false,
    logLikelihoods: dense(logLikelihoods),
    oldLogLikelihoods: dense(oldLogLikelihoods),
    references: referenceLogLikelihoods ? [dense(referenceLogLikelihoods)] : [],
  };
  const chunkRows = Math.max(1, Math.floor(options.rollouts / 2));
  const { loss, ratios, dLogLikelihoods } = referenceGrpoLoss([whole], { ...options, chunkRows });
  const own = Float32Array.from(positions, (position) => dLogLikelihoods[0][position]);
  return { loss, ratio: ratios[0], kl: 0, clipped: null, dLogLikelihoods: own };
}
