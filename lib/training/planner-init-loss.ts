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

/** A completion prepared for planner initialisation. */
export interface PlannerRow {
  /** Row ids with masks. */
  ids: Int32Array;
  /** Masked positions of the span, ascending: the planner's candidates. */
  positions: Int32Array;
}

/**
 * Masks a random part of a random span of the completion, and everything right of the span, as a row looks in the
 * middle of decoding.
 * @param options.begin start of the completion; the span lies inside it (the reference's can slide into the prompt)
 * @param options.minSpan shortest span, cut to the completion's length
 * @param options.uniform draws: span length, span start, share masked, then one per position of the span to choose
 * which
 */
export function maskSpan(
  ids: Int32Array,
  options: { begin: number; minSpan: number; maskTokenId: number; uniform: () => number },
): PlannerRow {
  const { begin, maskTokenId, uniform } = options;
  const length = ids.length - begin;
  const shortest = Math.min(options.minSpan, length);
  const spanLength = shortest + Math.floor(uniform() * (length - shortest + 1));
  const spanBegin = begin + Math.floor(uniform() * (length - spanLength + 1));
  const spanEnd = spanBegin + spanLength;
  // t = 0 is possible but masks nothing; at least one position makes the row useful.
  const count = Math.max(1, Math.ceil(spanLength * uniform()));
  const order = Array.from({ length: spanLength }, (_, i) => ({ position: spanBegin + i, key: uniform() }));
  order.sort((a, b) => a.key - b.key || a.position - b.position);
  const positions = Int32Array.from(order.slice(0, count), ({ position }) => position).sort();
  const noisy = Int32Array.from(ids);
  for (const position of positions) noisy[position] = maskTokenId;
  noisy.fill(maskTokenId, spanEnd);
  return { ids: noisy, positions };
}
