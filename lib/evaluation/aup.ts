// Accuracy under parallelism: one number for a curve of accuracy against tokens per forward pass.
import { isRounding } from '../statistics';

/** A setting of a decoder: parallelism and accuracy. */
export interface ParallelismPoint {
  /** Tokens per forward pass, above 0. */
  tokensPerForward: number;
  /** Percent, 0 to 100. */
  accuracy: number;
}

/** Options of {@link accuracyUnderParallelism}. */
export interface AupOptions {
  /** Best accuracy of all methods that are compared, percent. Default: the best of the points. */
  bestAccuracy?: number | undefined;
  /** How fast lost accuracy loses weight. Default 3. */
  alpha?: number | undefined;
  /** Points that lose more than this against the slowest one are left out, percent points. Default 5. */
  tolerance?: number | undefined;
}

/**
 * d3LLM's AUP: ρ₁y₁ + Σ (ρᵢ − ρᵢ₋₁) (yᵢW(yᵢ) + yᵢ₋₁W(yᵢ₋₁)) / 2 over the points by rising parallelism ρ, with
 * accuracies y in percent and W(y) = min(exp(−α (1 − y / y_max)), 1). Points more than `tolerance` below the first are
 * left out. NaN without points. Source: hao-ai-lab/d3LLM, AUP_leaderboard/aup_utils.py (which refuses curves whose last
 * point is below, where this leaves the point out).
 */
export function accuracyUnderParallelism(points: readonly ParallelismPoint[], options: AupOptions = {}): number {
  if (points.length === 0) return Number.NaN;
  const { alpha = 3, tolerance = 5, bestAccuracy = Math.max(...points.map(({ accuracy }) => accuracy)) } = options;
  const sorted = [...points].sort((a, b) => a.tokensPerForward - b.tokensPerForward);
  // 62 − 57 is 5, although 100 · 0.57 is a little less than 57.
  const kept = sorted.filter(({ accuracy }) => {
    const excess = sorted[0].accuracy - accuracy - tolerance;
    return excess <= 0 || isRounding(excess, 100);
  });
  const weighted = (y: number) => (bestAccuracy > 0 ? y * Math.min(Math.exp(-alpha * (1 - y / bestAccuracy)), 1) : 0);
  let area = kept[0].tokensPerForward * kept[0].accuracy;
  for (let i = 1; i < kept.length; i++)
    area +=
      0.5 *
      (kept[i].tokensPerForward - kept[i - 1].tokensPerForward) *
      (weighted(kept[i].accuracy) + weighted(kept[i - 1].accuracy));
  return area;
}
