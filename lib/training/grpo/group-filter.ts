// Which groups of rollouts count, and rewards that are normalised one by one.
import { optionError } from '../../errors';
import { checkChoice, checkInteger, checkKeys, checkNumber } from '../../options';
import { isRounding, largest, mean, standardDeviation } from '../../statistics';
import { show } from '../../text';

/** Which groups count; a group has to pass all that is asked for. */
export interface GroupFilter {
  /** "drop": groups whose rollouts all have the same reward do not count, as in DAPO (arXiv 2503.14476). Default "keep". */
  zeroVariance?: 'keep' | 'drop' | undefined;
  /** Groups whose most and least tokens per forward pass differ by less do not count (LightningRL: 0.01). Default 0. */
  tokensPerForwardRange?: number | undefined;
  /** Groups whose share of right rollouts is outside do not count (TraceRL: 0.2 to 0.8). Default: none is. */
  accuracy?: { min: number; max: number } | undefined;
  /** How often other prompts are drawn, at most, for those whose groups do not count. Default 0. */
  resamples?: number | undefined;
}

/** {@link GroupFilter} with defaults. */
export interface ResolvedGroupFilter {
  zeroVariance: 'keep' | 'drop';
  tokensPerForwardRange: number;
  accuracy: { min: number; max: number } | null;
  resamples: number;
}

/** Checks a {@link GroupFilter}. @throws TypeError, RangeError */
export function resolveGroupFilter(filter: GroupFilter | undefined): ResolvedGroupFilter | null {
  if (filter === undefined) return null;
  if (typeof filter !== 'object' || filter === null)
    throw optionError(TypeError, 'filterGroups', `expected an object, got ${show(filter)}`);
  checkKeys('filterGroups', filter, ['zeroVariance', 'tokensPerForwardRange', 'accuracy', 'resamples']);
  const { zeroVariance = 'keep', tokensPerForwardRange = 0, accuracy = null, resamples = 0 } = filter;
  checkChoice('filterGroups.zeroVariance', zeroVariance, ['keep', 'drop'] as const);
  checkNumber('filterGroups.tokensPerForwardRange', tokensPerForwardRange, { min: 0 });
  if (accuracy !== null) {
    checkKeys('filterGroups.accuracy', accuracy, ['min', 'max']);
    checkNumber('filterGroups.accuracy.min', accuracy.min, { min: 0, max: 1 });
    checkNumber('filterGroups.accuracy.max', accuracy.max, { min: accuracy.min, max: 1 });
  }
  checkInteger('filterGroups.resamples', resamples, { min: 0, max: 1000 });
  if (zeroVariance === 'keep' && tokensPerForwardRange === 0 && accuracy === null)
    throw optionError(
      RangeError,
      'filterGroups',
      'expected zeroVariance "drop", tokensPerForwardRange above 0 or accuracy, got none of them',
    );
  return { zeroVariance, tokensPerForwardRange, accuracy, resamples };
}

/** What is known of a group's rollouts. Arrays are parallel. */
export interface GroupFacts {
  /** NaN: no reward function had anything to say. */
  rewards: ArrayLike<number>;
  tokensPerForward: readonly number[];
  /** null: there is no verifier, or it does not know. */
  right: readonly (boolean | null)[];
}

/** Whether a group counts. @throws RangeError for accuracy without a verifier */
export function groupCounts({ rewards, tokensPerForward, right }: GroupFacts, filter: ResolvedGroupFilter): boolean {
  const { zeroVariance, tokensPerForwardRange, accuracy } = filter;
  const values = Array.from(rewards).filter((reward) => !Number.isNaN(reward));
  const spread = (numbers: readonly number[]) => Math.max(...numbers) - Math.min(...numbers);
  if (zeroVariance === 'drop' && (values.length === 0 || isRounding(spread(values), largest(values)))) return false;
  if (tokensPerForwardRange > 0 && spread(tokensPerForward) < tokensPerForwardRange) return false;
  if (accuracy === null) return true;
  const judged = right.filter((value) => value !== null);
  if (judged.length === 0)
    throw optionError(
      RangeError,
      'filterGroups.accuracy',
      'expected a data set with a verifier, which says what is right',
    );
  const share = mean(judged.map(Number));
  return share >= accuracy.min && share <= accuracy.max;
}

/** Keeps a division by the standard deviation finite where all rewards are equal. */
const STD_EPSILON = 1e-4;

/**
 * One reward's values, centred and divided by their standard deviation within each group, so that each reward weighs by
 * its weight alone, whatever its scale (LightningRL, and GDPO, arXiv 2601.05242). null stays null; in a group of equal
 * values all are 0.
 */
export function normalizeWithinGroups(values: ArrayLike<number | null>, groupSize: number): (number | null)[] {
  const out: (number | null)[] = new Array(values.length).fill(null);
  for (let begin = 0; begin < values.length; begin += groupSize) {
    const rows = Array.from({ length: Math.min(groupSize, values.length - begin) }, (_, i) => begin + i);
    const known = rows.filter((row) => values[row] !== null && !Number.isNaN(values[row]));
    const group = known.map((row) => values[row]!);
    if (group.length === 0) continue;
    const centre = mean(group);
    const scale = standardDeviation(group) + STD_EPSILON;
    for (const row of known) {
      const difference = values[row]! - centre;
      out[row] = isRounding(difference, largest(group)) ? 0 : difference / scale;
    }
  }
  return out;
}
