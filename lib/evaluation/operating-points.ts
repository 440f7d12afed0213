// The setting of a sampler to report: chosen on validation prompts, measured on test prompts.
import { optionError } from '../errors';
import { exceeds } from '../statistics';
import { type Evaluation, meanAndSd, type SamplerResult } from './evaluate';

/** Accuracy at a number of forward passes. */
export interface Point {
  accuracy: number;
  nfe: number;
}

/** The setting chosen for one budget. */
export interface OperatingPoint {
  /** Mean forward passes that the setting may need on the validation prompts; null: any number. */
  budget: number | null;
  /** Name of the setting. */
  name: string;
  validation: Point;
  test: Point & { accuracyError: number };
}

/**
 * A group of settings, such as the thresholds of one rule, with its point for each budget (null: no setting is that
 * fast).
 */
export interface OperatingRow {
  group: string;
  points: (OperatingPoint | null)[];
}

/** Options of {@link chooseOperatingPoints}. */
export interface OperatingOptions {
  /** Mean forward passes; null is no limit. Default: 1.1, 2, 2.5, 3, 4, 6, 8, 12, no limit. */
  budgets?: readonly (number | null)[] | undefined;
  /** Name of the group that a setting belongs to; null leaves it out. Default: all in one group, "best". */
  group?: ((name: string) => string | null) | undefined;
}

/** Default budgets. */
export const BUDGETS: readonly (number | null)[] = [1.1, 2, 2.5, 3, 4, 6, 8, 12, null];

const pointOf = ({ accuracy, nfe }: SamplerResult): Point => ({ accuracy, nfe: nfe.mean });

/** The more accurate one; of equally accurate ones the faster; of equals the first. */
const better = (a: Point, b: Point) =>
  exceeds(b.accuracy, a.accuracy) || (!exceeds(a.accuracy, b.accuracy) && b.nfe < a.nfe);

/**
 * For each group and budget, the most accurate setting on the validation prompts within the budget, with its figures on
 * the test prompts. Choosing and reporting on different prompts avoids a bias towards groups with many settings.
 * @throws RangeError where the two evaluations are not of the same settings on different splits.
 */
export function chooseOperatingPoints(
  validation: Evaluation,
  test: Evaluation,
  options: OperatingOptions = {},
): OperatingRow[] {
  const { budgets = BUDGETS, group = () => 'best' } = options;
  if (validation.config.split === test.config.split)
    throw optionError(
      RangeError,
      'test',
      `expected another split than validation's, got ${JSON.stringify(test.config.split)} twice`,
    );
  const measured = new Map(test.results.map((result) => [result.name, result]));
  for (const { name } of validation.results)
    if (!measured.has(name))
      throw optionError(RangeError, 'test', `expected the samplers of validation, ${JSON.stringify(name)} is missing`);
  const groups = new Map<string, SamplerResult[]>();
  for (const result of validation.results) {
    const key = group(result.name);
    if (key !== null) groups.set(key, [...(groups.get(key) ?? []), result]);
  }
  return [...groups].map(([key, results]) => ({
    group: key,
    points: budgets.map((budget) => {
      let best: SamplerResult | null = null;
      for (const result of results) {
        if (budget !== null && result.nfe.mean > budget) continue;
        if (best === null || better(pointOf(best), pointOf(result))) best = result;
      }
      if (best === null) return null;
      const reported = measured.get(best.name)!;
      return {
        budget,
        name: best.name,
        validation: pointOf(best),
        test: { ...pointOf(reported), accuracyError: reported.accuracyError },
      };
    }),
  }));
}

/** Mean and standard deviation over several runs (seeds, models) of the same table. */
export interface AveragedRow {
  group: string;
  /** Per budget; null where a run has no setting that fast. */
  points: ({
    budget: number | null;
    accuracy: { mean: number; sd: number };
    nfe: { mean: number; sd: number };
    runs: number;
  } | null)[];
}

/** Averages tables of equal groups and budgets cell by cell. @throws RangeError where they differ. */
export function averageOperatingPoints(tables: readonly OperatingRow[][]): AveragedRow[] {
  if (tables.length === 0) throw optionError(RangeError, 'tables', 'expected at least one, got none');
  return tables[0].map(({ group, points }) => ({
    group,
    points: points.map((_, i) => {
      const cells = tables.map((table) => {
        const row = table.find((candidate) => candidate.group === group);
        if (!row || row.points.length !== points.length)
          throw optionError(RangeError, 'tables', `expected group ${JSON.stringify(group)} in every table`);
        return row.points[i];
      });
      const found = cells.flatMap((cell) => (cell === null ? [] : [cell]));
      if (found.length < cells.length) return null;
      return {
        budget: found[0].budget,
        accuracy: meanAndSd(found.map(({ test }) => test.accuracy)),
        nfe: meanAndSd(found.map(({ test }) => test.nfe)),
        runs: found.length,
      };
    }),
  }));
}

/** The points that no other one beats in both accuracy and forward passes, by ascending number of passes. */
export function frontier<T extends Point>(points: readonly T[]): T[] {
  const sorted = [...points].sort((a, b) => a.nfe - b.nfe || b.accuracy - a.accuracy);
  const kept: T[] = [];
  for (const point of sorted)
    if (kept.length === 0 || exceeds(point.accuracy, kept[kept.length - 1].accuracy)) kept.push(point);
  return kept;
}
