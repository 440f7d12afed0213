// The GRPO loss of one replayed denoising step, and its gradient. Nothing here knows of models: a researcher changes
// the loss here.
//
// A step unmasked some candidates of a row and left the others masked. Its log-likelihood is a sum of parts, one per
// candidate (log p + log π(token) where unmasked, log(1 − p) where not); the whole step is one action, so there is one
// ratio per step.
import { optionError } from '../../errors';

/** What decides the loss, apart from the numbers of a step. */
export interface GrpoLossOptions {
  /** The ratio is clipped to 1 − low … 1 + high. */
  clipEpsilonLow: number;
  clipEpsilonHigh: number;
  /**
   * Upper bound of the ratio in the unclipped term, or null (two-sided clipping: bounds the loss of negative
   * advantages).
   */
  delta: number | null;
  /** Weight of the KL divergence from the frozen reference model. */
  beta: number;
  /** Multiplies loss and gradient: 1 / (rollouts · maxTokens · accumulation). */
  scale: number;
}

/** One (rollout, step) pair. Arrays are per candidate: parts of the step's log-likelihood. */
export interface GrpoStep {
  advantage: number;
  /** Under the policy as it is now. */
  logLikelihoods: Float32Array;
  /** Under the policy that made the rollout. */
  oldLogLikelihoods: Float32Array;
  /** Under the frozen reference model; needed where beta > 0. */
  referenceLogLikelihoods: Float32Array | null;
}

/** Loss of one step, what to report of it, and its gradient. */
export interface GrpoStepLoss {
  loss: number;
  /** exp Σ (new − old), before any clipping. */
  ratio: number;
  /** Σ over candidates of the k3 estimate of KL(policy ‖ reference); 0 without a reference. */
  kl: number;
  /** The clip decided the term from below or above, so that no policy gradient flows. */
  clipped: 'low' | 'high' | null;
  /** dL/d(logLikelihoods). */
  dLogLikelihoods: Float32Array;
}

/**
 * −min(ρ' A, clip(ρ, 1 − ε_low, 1 + ε_high) A) + β Σ k3, times `scale`, with ρ' = min(ρ, δ).
 *
 * The gradient of the first term with respect to every part of the log-likelihood is the same number, −ρ A (or 0 where
 * clipped), since log ρ is their plain sum; the KL term adds its own per candidate.
 */
export function grpoLoss(step: GrpoStep, options: GrpoLossOptions): GrpoStepLoss {
  const { advantage, logLikelihoods, oldLogLikelihoods, referenceLogLikelihoods } = step;
  const { clipEpsilonLow, clipEpsilonHigh, delta, beta, scale } = options;

  let logRatio = 0;
  for (let i = 0; i < logLikelihoods.length; i++) logRatio += logLikelihoods[i] - oldLogLikelihoods[i];
  const { ratio, objective, slope, clipped } = clippedObjective(
    logRatio,
    advantage,
    clipEpsilonLow,
    clipEpsilonHigh,
    delta,
  );

  const dLogLikelihoods = new Float32Array(logLikelihoods.length).fill(-slope * scale);
  let kl = 0;
  if (beta > 0) {
    if (!referenceLogLikelihoods) throw optionError(TypeError, 'grpoLoss', 'beta > 0 needs referenceLogLikelihoods');
    for (let i = 0; i < logLikelihoods.length; i++) {
      // k3: exp(r) − r − 1 with r = log(reference / policy); never negative, unbiased under the policy.
      const r = referenceLogLikelihoods[i] - logLikelihoods[i];
      kl += Math.exp(r) - r - 1;
      dLogLikelihoods[i] += beta * (1 - Math.exp(r)) * scale;
    }
  }
  return { loss: (beta * kl - objective) * scale, ratio, kl, clipped, dLogLikelihoods };
}

/** min(ρ' A, clip(ρ) A) and its slope with respect to log ρ. */
export function clippedObjective(
  logRatio: number,
  advantage: number,
  low: number,
  high: number,
  delta: number | null,
): { ratio: number; objective: number; slope: number; clipped: 'low' | 'high' | null } {
  const ratio = Math.exp(logRatio);
  const bounded = delta === null ? ratio : Math.min(ratio, delta);
  const inside = Math.min(Math.max(ratio, 1 - low), 1 + high);
  const unclippedTerm = bounded * advantage;
  const clippedTerm = inside * advantage;
  const objective = Math.min(unclippedTerm, clippedTerm);
  // min takes one branch; a branch that sits on a bound is constant there.
  const flows = unclippedTerm <= clippedTerm ? bounded === ratio : inside === ratio;
  let clipped: 'low' | 'high' | null = null;
  if (ratio < 1 - low && advantage < 0) clipped = 'low';
  if (ratio > 1 + high && advantage > 0) clipped = 'high';
  return { ratio, objective, slope: flows && advantage !== 0 ? ratio * advantage : 0, clipped };
}
