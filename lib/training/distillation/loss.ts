// The loss of certainty-forcing distillation (dParallel, arXiv 2509.26488) and of pseudo-trajectory distillation (d3LLM,
// arXiv 2601.07568), and its gradient. Nothing here knows of models.

/** What a pass says of the masked tokens of a view, which may be those of several rows. Arrays are parallel. */
export interface ScoredView {
  /** Of the labels, at temperature 1. */
  logProbs: ArrayLike<number>;
  /** Of softmax(logits / temperature), in nats. */
  entropies: ArrayLike<number>;
  /** 1 where the label is the most probable token. */
  correct: ArrayLike<number>;
}

/** What decides the loss. */
export interface CertaintyLossOptions {
  /** w: weight of the entropies. */
  entropyWeight: number;
  /** Whether the complementary view has its entropy term, too. */
  entropyOnComplement: boolean;
  /** Divides the whole loss. */
  divisor: number;
}

/** Gradients of a view. */
export interface ViewGradient {
  dLogProbs: Float32Array;
  dEntropies: Float32Array;
}

/** The loss, its parts before weights and divisor, and gradients of each view. */
export interface CertaintyLoss {
  loss: number;
  crossEntropy: number;
  complementCrossEntropy: number;
  entropy: number;
  complementEntropy: number;
  gradients: ViewGradient[];
}

/** Mean over a view's tokens, or over its correct ones; an empty set gives 0. */
function meanOver(values: ArrayLike<number>, counts: (i: number) => boolean): { mean: number; count: number } {
  let sum = 0;
  let count = 0;
  for (let i = 0; i < values.length; i++) {
    if (!counts(i)) continue;
    sum += values[i];
    count++;
  }
  return { mean: count > 0 ? sum / count : 0, count };
}

/**
 * (mean_M CE + mean_M′ CE + w (mean_C H + mean_C′ H)) / divisor, with M and M′ the masked tokens of the two views, C and
 * C′ those of them whose label is the most probable token, CE = −log p(label) and H the entropy of softmax(z / T): what
 * the model predicts right already, it is made certain of. C is a constant to the gradient. Not divided by the
 * probability of a mask. An empty set gives 0.
 *
 * dParallel: w = 2 (Dream: 1), both entropy terms, divisor 1, each row by itself. d3LLM: the entropy of the first view
 * alone (Dream: of both), divisor 4, means over all rows of a batch together.
 * @param complement null: without it, and the divisor stays
 */
export function certaintyLoss(
  view: ScoredView,
  complement: ScoredView | null,
  { entropyWeight, entropyOnComplement, divisor }: CertaintyLossOptions,
): CertaintyLoss {
  const part = ({ logProbs, entropies, correct }: ScoredView, weight: number) => {
    const logProb = meanOver(logProbs, () => true);
    const entropy = meanOver(entropies, (i) => correct[i] === 1);
    const { length } = logProbs;
    const scale = weight / (divisor * Math.max(1, entropy.count));
    return {
      crossEntropy: 0 - logProb.mean,
      entropy: entropy.mean,
      loss: (weight * entropy.mean - logProb.mean) / divisor,
      gradient: {
        dLogProbs: new Float32Array(length).fill(-1 / (divisor * Math.max(1, length))),
        dEntropies: Float32Array.from({ length }, (_, i) => (correct[i] === 1 ? scale : 0)),
      },
    };
  };
  const first = part(view, entropyWeight);
  const second = complement && part(complement, entropyOnComplement ? entropyWeight : 0);
  return {
    loss: first.loss + (second?.loss ?? 0),
    crossEntropy: first.crossEntropy,
    complementCrossEntropy: second?.crossEntropy ?? 0,
    entropy: first.entropy,
    complementEntropy: second?.entropy ?? 0,
    gradients: second ? [first.gradient, second.gradient] : [first.gradient],
  };
}
