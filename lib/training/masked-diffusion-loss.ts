// The masked-diffusion loss of LLaDA, for fine-tuning (the answer is masked) and pre-training (the whole row is).

/** A row with some of its tokens masked. */
export interface MaskedRow {
  /** (T) ids with masks. */
  ids: Int32Array;
  /** Masked positions, ascending. */
  positions: Int32Array;
  /** Original tokens there. */
  tokens: Int32Array;
  /** Probability with which each maskable token was masked. */
  maskProbability: number;
}

/**
 * Masks every token from `begin` on, each with probability p = (1 − ε) t + ε.
 * @param options.begin first position that may be masked: the prompt's length, or 0 in pre-training
 * @param options.t uniform in 0..1
 * @param options.uniforms (T) one per position, those before `begin` unused
 */
export function maskRow(
  ids: Int32Array,
  options: { begin: number; t: number; epsilon: number; uniforms: ArrayLike<number>; maskTokenId: number },
): MaskedRow {
  const { begin, t, epsilon, uniforms, maskTokenId } = options;
  // In fp32, as the reference does: a draw near the edge then falls on the same side.
  const { fround } = Math;
  const maskProbability = fround(fround(fround(1 - epsilon) * fround(t)) + fround(epsilon));
  const noisy = Int32Array.from(ids);
  const positions: number[] = [];
  for (let i = begin; i < ids.length; i++) {
    if (!(uniforms[i] < maskProbability)) continue;
    noisy[i] = maskTokenId;
    positions.push(i);
  }
  return {
    ids: noisy,
    positions: Int32Array.from(positions),
    tokens: Int32Array.from(positions, (i) => ids[i]),
    maskProbability,
  };
}

/**
 * Σ over masked tokens of cross-entropy × weight, and its gradient.
 * @param logProbs of the original tokens at masked positions
 * @param weight 1 / (mask probability · answer length · rows) in fine-tuning, 1 / (mask probability · tokens of the
 * batch) in pre-training
 */
export function maskedDiffusionLoss(
  logProbs: ArrayLike<number>,
  weight: number,
): { loss: number; dLogProbs: Float32Array } {
  let loss = 0;
  for (let i = 0; i < logProbs.length; i++) loss -= logProbs[i] * weight;
  return { loss, dLogProbs: new Float32Array(logProbs.length).fill(-weight) };
}
