// The limit of a comparison: a count of elementary steps, so that a verdict depends on the answers alone, never on how
// fast or busy the machine is.

/** The comparison costs more than it may: it is given up. */
export class WorkExceeded extends Error {
  /** An error without details: nobody sees it. */
  constructor() {
    super('the comparison takes too much work');
    this.name = 'WorkExceeded';
  }
}

/** Longer answers are equal only if their texts are the same. */
export const MAX_ANSWER_LENGTH = 2000;
/** Steps of one comparison: about 0.1 s on a current processor. */
const LIMIT = 1_000_000;
/** Longest integer that is computed, in bits. */
export const MAX_BITS = 1 << 16;

let left = LIMIT;

/** Begins a comparison. */
export function beginWork(): void {
  left = LIMIT;
}

/** Counts steps. @throws WorkExceeded */
export function spend(steps: number): void {
  left -= steps;
  if (left < 0) throw new WorkExceeded();
}

/** Length of an integer in bits, within three bits. */
export const bitsOf = (value: bigint): number => (value < 0n ? -value : value).toString(16).length * 4;

/** Counts an operation on integers of so many bits whose cost is their product. @throws WorkExceeded also for integers above MAX_BITS */
export function spendBits(a: number, b: number): void {
  if (a > MAX_BITS || b > MAX_BITS) throw new WorkExceeded();
  spend(1 + (a * b) / 200_000);
}
