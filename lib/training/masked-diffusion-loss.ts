// The masked-diffusion loss of LLaDA, for fine-tuning (the answer is masked) and pre-training (the whole row is).

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
