// Masks of training rows: random tokens for the masked-diffusion loss, a random span for planner initialisation.

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
