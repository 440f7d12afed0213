// Segments of a row that distillation masks. Everything left of the segment is clean, everything right of it is masked,
// as a row looks while its blocks are decoded; of the segment, one view masks some tokens and the complementary view
// the others.
import { range } from '../../packing';
import type { Trajectory } from './trajectory';

/** Positions of a row, from `begin` to before `end`, which may lie beyond the row. */
export interface Segment {
  begin: number;
  end: number;
}

/** Two views of a row: each masks what the other one shows of the segment. */
export interface SegmentViews {
  /** (T) ids with masks. */
  ids: Int32Array;
  complementIds: Int32Array;
  /** Masked positions of the segment in each view, ascending; nothing else has a loss. */
  positions: Int32Array;
  complementPositions: Int32Array;
}

/** Where the answer of a row begins, the tokens of the answer, and those of the row, which may be more or fewer. */
export interface AnswerRange {
  begin: number;
  answer: number;
  length: number;
}

/**
 * How many segments of `blockLength` tokens a row has: the whole blocks of its answer, and what is left behind them, up
 * to the end of the row. With `empty` those without a token of the row count, too, as in the published code of dParallel
 * and d3LLM: such a draw trains nothing.
 */
export function countSegments(
  { begin, answer, length }: AnswerRange,
  blockLength: number,
  { empty = false }: { empty?: boolean } = {},
): number {
  const count = Math.floor(answer / blockLength) + 1;
  return empty ? count : Math.max(1, Math.min(count, Math.ceil((length - begin) / blockLength)));
}

/** Segment number `index` of a row: `blockLength` tokens, the last one up to the end of the row. */
export function segmentAt({ begin, answer, length }: AnswerRange, blockLength: number, index: number): Segment {
  const start = begin + index * blockLength;
  const isLast = (index + 1) * blockLength > answer;
  return { begin: start, end: isLast ? length : start + blockLength };
}

/** The two views of a row. @param isMasked of the positions of the segment, in the first view */
export function segmentViews(
  ids: Int32Array,
  segment: Segment,
  isMasked: (position: number) => boolean,
  maskTokenId: number,
): SegmentViews {
  const begin = Math.min(segment.begin, ids.length);
  const end = Math.min(Math.max(begin, segment.end), ids.length);
  const inside = range(begin, end);
  const positions = inside.filter((position) => isMasked(position));
  const complementPositions = inside.filter((position) => !isMasked(position));
  const hide = (masked: Int32Array) => {
    const noisy = Int32Array.from(ids).fill(maskTokenId, end);
    for (const position of masked) noisy[position] = maskTokenId;
    return noisy;
  };
  return { ids: hide(positions), complementIds: hide(complementPositions), positions, complementPositions };
}

/** (1 − ε) p + ε in fp32, as the published code computes it: a draw near the edge then falls on the same side. */
function maskChance(probability: number, epsilon: number): number {
  const { fround } = Math;
  return fround(fround(fround(1 - epsilon) * fround(probability)) + fround(epsilon));
}

/**
 * Which positions are masked at random: those whose uniform is below (1 − ε) p + ε.
 * @param uniforms (T) one per position of the row
 */
export function randomMask(
  uniforms: ArrayLike<number>,
  { probability, epsilon }: { probability: number; epsilon: number },
): (position: number) => boolean {
  const chance = maskChance(probability, epsilon);
  return (position) => uniforms[position] < chance;
}

/**
 * Which positions of a segment a teacher had not decided yet when it had done its share 1 − t of the segment: those that
 * are masked in its state number min((s − P) + ⌊(1 − t) S⌋, last), for a segment of S tokens that begins at s. State 0 is
 * the one after the first step. Positions that the trajectory does not reach are masked.
 * @param options.maskRatio t @param options.begin P, where the answer begins
 * @param options.shift tokens by which the row's prompt is longer than the trajectory's; the published code reads the
 * state at the row's own positions, shift 0
 */
export function trajectoryMask(
  trajectory: Trajectory,
  segment: Segment,
  options: { maskRatio: number; begin: number; shift: number },
): {
  /** Whether a position of the row is masked. */
  isMasked: (position: number) => boolean;
  /** The state of the trajectory that it was taken from. */
  state: number;
} {
  const { maskRatio, begin, shift } = options;
  const size = segment.end - segment.begin;
  const wanted = segment.begin - begin + Math.floor((1 - maskRatio) * size);
  const state = Math.max(0, Math.min(wanted, trajectory.states - 1));
  const { shownFrom } = trajectory;
  return {
    state,
    isMasked(position) {
      const column = position - shift;
      return column >= shownFrom.length || (column >= 0 && shownFrom[column] > state);
    },
  };
}

/**
 * The window of d3LLM's curriculum in a step: linear from one entry of the list to the next inside an epoch, truncated;
 * the last entry stays. @param epoch passes over the data so far, with their fraction
 */
export function curriculumWindow(windows: readonly number[], epoch: number): number {
  const at = Math.floor(epoch);
  const last = windows.length - 1;
  if (at >= last) return windows[last];
  return Math.trunc(windows[at] + (windows[at + 1] - windows[at]) * (epoch - at));
}

/** The least share of a segment that d3LLM's curriculum masks in a step: it climbs linearly from `min` to `max`. */
export function curriculumNoise({ min, max }: { min: number; max: number }, step: number, maxSteps: number): number {
  return min + ((max - min) * step) / maxSteps;
}
