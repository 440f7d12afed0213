// Planner initialisation: the planner learns to say which positions Fast-dLLM's factor rule would unmask.

/**
 * Which candidates of one row the factor rule takes: of the candidates by falling confidence, the first, and position j
 * ≥ 2 while c_j ≥ 1 − factor / (j + 1).
 * @param lastPair the reference's quirk: where only the very last candidate fails, it is taken too
 */
export function factorTargets(confidences: ArrayLike<number>, factor: number, { lastPair = false } = {}): Uint8Array {
  const order = Array.from(confidences, (_, i) => i).sort((a, b) => confidences[b] - confidences[a] || a - b);
  const targets = new Uint8Array(order.length);
  let taken = 0;
  while (taken < order.length && (taken === 0 || confidences[order[taken]] >= 1 - factor / (taken + 2))) taken++;
  if (lastPair && taken === order.length - 1) taken++;
  for (let rank = 0; rank < taken; rank++) targets[order[rank]] = 1;
  return targets;
}

/** #negatives / #positives, which makes both classes weigh the same; 1 where one of them is empty. */
export function positiveWeight(positives: number, count: number): number {
  return positives > 0 && positives < count ? (count - positives) / positives : 1;
}

const softplus = (x: number) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const sigmoid = (x: number) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));

/**
 * Binary cross-entropy with logits, positives weighted, times `scale`, and its gradient.
 * @param scale 1 / number of candidates of the batch, for a mean
 */
export function binaryCrossEntropy(
  logits: ArrayLike<number>,
  targets: ArrayLike<number>,
  posWeight: number,
  scale: number,
): { loss: number; dLogits: Float32Array } {
  let loss = 0;
  const dLogits = new Float32Array(logits.length);
  for (let i = 0; i < logits.length; i++) {
    const z = logits[i];
    loss += (targets[i] ? posWeight * softplus(-z) : softplus(z)) * scale;
    dLogits[i] = (targets[i] ? -posWeight * sigmoid(-z) : sigmoid(z)) * scale;
  }
  return { loss, dLogits };
}
