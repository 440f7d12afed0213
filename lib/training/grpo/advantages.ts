// From rewards to advantages. A group is the rollouts of one prompt; rows of a group lie next to each other.
import { optionError } from '../../errors';
import { isRounding, largest, mean, standardDeviation } from '../../statistics';

/** How advantages are scaled after the group's mean is taken off. */
export type ScaleRewards = 'none' | 'group' | 'batch';

/** Keeps a division by the standard deviation finite where all rewards are equal. */
const STD_EPSILON = 1e-4;

/**
 * Weighted sum of several reward functions' values per row. null leaves a function out of a row's sum, and so does NaN,
 * which stands for null in recorded tensors (the trainer refuses it); a row that every function leaves out gets NaN.
 */
export function totalRewards(
  columns: readonly { values: ArrayLike<number | null>; weight: number }[],
  rows: number,
): Float64Array {
  const totals = new Float64Array(rows).fill(Number.NaN);
  for (const { values, weight } of columns)
    for (let row = 0; row < rows; row++) {
      const value = values[row];
      if (value === null || Number.isNaN(value)) continue;
      totals[row] = (Number.isNaN(totals[row]) ? 0 : totals[row]) + weight * value;
    }
  return totals;
}

/**
 * Reward minus the mean of its group, scaled if asked for; exactly 0 where the two differ by rounding alone, as in a
 * group of equal rewards: such a row teaches nothing, and need not be replayed.
 * @param rewards one per row; NaN rows take no part in means and get advantage 0
 * @param options groupSize rows make a group; advantages below advantageMinClip become 0 (null: none do)
 */
export function computeAdvantages(
  rewards: ArrayLike<number>,
  options: { groupSize: number; scaleRewards: ScaleRewards; advantageMinClip: number | null },
): Float64Array {
  const { groupSize, scaleRewards, advantageMinClip } = options;
  if (rewards.length % groupSize !== 0)
    throw optionError(RangeError, 'rewards', `expected a multiple of groupSize (${groupSize}), got ${rewards.length}`);
  const advantages = new Float64Array(rewards.length);
  const counted = (from: number, to: number) =>
    Array.from(rewards)
      .slice(from, to)
      .filter((reward) => !Number.isNaN(reward));
  const batchStd = scaleRewards === 'batch' ? standardDeviation(counted(0, rewards.length)) : 0;
  for (let begin = 0; begin < rewards.length; begin += groupSize) {
    const group = counted(begin, begin + groupSize);
    if (group.length === 0) continue;
    const centre = mean(group);
    const scale = largest(group);
    let divisor = 1;
    if (scaleRewards === 'group') divisor = standardDeviation(group) + STD_EPSILON;
    if (scaleRewards === 'batch') divisor = batchStd + STD_EPSILON;
    for (let row = begin; row < begin + groupSize; row++) {
      if (Number.isNaN(rewards[row]) || isRounding(rewards[row] - centre, scale)) continue;
      const advantage = (rewards[row] - centre) / divisor;
      advantages[row] = advantageMinClip !== null && advantage < advantageMinClip ? 0 : advantage;
    }
  }
  return advantages;
}
