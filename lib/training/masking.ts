// Masks of training rows: random tokens for the masked-diffusion loss, a random span for planner initialisation.
import { type BlockGrid, blockOf, blockStart } from '../model/blocks';

/**
 * The block of a model that attends by blocks which a row trains in a step, drawn evenly from those that reach behind
 * `begin`, and their number. What stands behind it is later than all that it sees; what stands before it is finished.
 * @param options.begin first position that is learnt @param options.uniform in 0..1
 */
export function drawBlock(
  length: number,
  options: { begin: number; grid: BlockGrid; uniform: number },
): { begin: number; end: number; count: number } {
  const { begin, grid, uniform } = options;
  const first = blockOf(grid, begin);
  const count = blockOf(grid, length - 1) + 1 - first;
  const block = first + Math.min(count - 1, Math.floor(uniform * count));
  return { begin: Math.max(begin, blockStart(grid, block)), end: Math.min(length, blockStart(grid, block + 1)), count };
}

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
  /** Share of the whole row that is decided, in fp32. */
  timestep: number;
}

/**
 * Masks a random part of a random span of the completion, and everything right of the span, as a row looks in the
 * middle of decoding.
 * @param options.begin start of the completion; the span lies inside it (the reference's can slide into the prompt)
 * @param options.end where the span must end. Default: the row's end
 * @param options.minSpan shortest span, cut to the completion's length
 * @param options.uniform draws: span length, span start, share masked, then one per position of the span to choose
 * which
 */
export function maskSpan(
  ids: Int32Array,
  options: { begin: number; end?: number; minSpan: number; maskTokenId: number; uniform: () => number },
): PlannerRow {
  const { begin, end = ids.length, maskTokenId, uniform } = options;
  const length = end - begin;
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
  const masks = noisy.reduce((sum, id) => sum + (id === maskTokenId ? 1 : 0), 0);
  return { ids: noisy, positions, timestep: 1 - Math.fround(masks / ids.length) };
}
