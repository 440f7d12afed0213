// Sum, mean and standard deviation.

/** Differences between sums and means that rounding alone can make, relative to the values that were summed. */
const ROUNDING = 1e-12;

/** Whether a difference of sums or means of values of size `scale` is no more than rounding. */
export const isRounding = (difference: number, scale: number): boolean => Math.abs(difference) <= ROUNDING * scale;

/** Whether a sum or mean is larger than another by more than rounding: not where the same values were summed otherwise. */
export const exceeds = (a: number, b: number): boolean =>
  a > b && !isRounding(a - b, Math.max(Math.abs(a), Math.abs(b)));

/** The largest absolute value; 0 for none. */
export const largest = (values: readonly number[]): number =>
  values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

export const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);

/** NaN for no values. */
export const mean = (values: readonly number[]): number => sum(values) / values.length;

/** Unbiased (n − 1) standard deviation; 0 for fewer than two values, and for values that are equal up to rounding. */
export function standardDeviation(values: readonly number[]): number {
  if (values.length < 2) return 0;
  const centre = mean(values);
  const deviation = Math.sqrt(sum(values.map((value) => (value - centre) ** 2)) / (values.length - 1));
  return isRounding(deviation, largest(values)) ? 0 : deviation;
}
