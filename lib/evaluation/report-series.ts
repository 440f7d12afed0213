// What a report is made of: runs, the cost of a setting, the lines of the chart, and the sentence that sums them up.
import type { Evaluation, SamplerResult } from './evaluate';
import { percent } from './report-html';

/** One model's evaluation in a report. */
export interface ReportRun {
  /** As in "pretrained". */
  label: string;
  evaluation: Evaluation;
  /** The line of the chart that a setting belongs to, such as "threshold"; null: in the tables alone. */
  group: (name: string) => string | null;
  /** Lines to draw boldly. Default: none. */
  emphasis?: ((group: string) => boolean) | undefined;
}

/**
 * What a setting costs per prompt: forward passes, or with caches among the settings their full-forward equivalents.
 */
export type Cost = (result: SamplerResult) => number;

export function costOf(runs: readonly ReportRun[]): { cost: Cost; isWeighted: boolean } {
  const isWeighted = runs.some(({ evaluation }) => evaluation.results.some(({ cache }) => cache.type !== 'none'));
  return { cost: ({ nfe, fullForwards }) => (isWeighted ? fullForwards.mean : nfe.mean), isWeighted };
}

/** A dot of the chart. */
export interface SeriesPoint {
  name: string;
  nfe: number;
  accuracy: number;
  /** Standard error of the accuracy. */
  error: number;
}

/** A line of the chart: the settings of one rule under one model. */
export interface Series {
  /** Label of its run; '' where there is one alone. */
  run: string;
  /** Name of the rule. */
  rule: string;
  bold: boolean;
  /** Of a second model's rules, which have the colours of the first one's: dashed, with empty dots. */
  hollow: boolean;
  /** CSS colour variable. */
  color: string;
  points: SeriesPoint[];
}

const MAX_COLORS = 10;

export function seriesOf(runs: readonly ReportRun[], cost: Cost): Series[] {
  const all: Series[] = [];
  const colors = new Map<string, string>();
  let bold = 0;
  let isFirst = true;
  for (const { label, evaluation, group, emphasis } of runs) {
    const own = new Map<string, Series>();
    for (const result of evaluation.results) {
      const { name, accuracy, accuracyError } = result;
      const key = group(name);
      if (key === null) continue;
      let series = own.get(key);
      if (!series) {
        const isBold = emphasis?.(key) ?? false;
        if (!isBold && !colors.has(key)) colors.set(key, `--line${colors.size % MAX_COLORS}`);
        const color = isBold ? `--bold${bold++ % 3}` : colors.get(key)!;
        series = {
          run: runs.length > 1 ? label : '',
          rule: key,
          bold: isBold,
          hollow: !isBold && !isFirst,
          color,
          points: [],
        };
        own.set(key, series);
      }
      series.points.push({ name, nfe: cost(result), accuracy, error: accuracyError });
    }
    all.push(...own.values());
    isFirst &&= all.every((series) => series.bold);
  }
  return all;
}

/**
 * One sentence of conclusion: the fastest setting whose accuracy is within one standard error of the best, beside the
 * most accurate of the settings that it is compared with: those of other runs, or of the same run where there is one
 * alone. Emphasised runs are what a report is about; without any, all are.
 */
export function conclude(runs: readonly ReportRun[]): string {
  const { cost, isWeighted } = costOf(runs);
  const all = runs.flatMap(({ label, evaluation, group, emphasis }) =>
    evaluation.results.map((result) => {
      const key = group(result.name);
      const { name, accuracy, accuracyError: error } = result;
      return { run: label, name, accuracy, error, nfe: cost(result), bold: key !== null && !!emphasis?.(key) };
    }),
  );
  if (all.length === 0) return '';
  const meant = all.some(({ bold }) => bold) ? all.filter(({ bold }) => bold) : all;
  const mostAccurate = (settings: typeof all) =>
    settings.reduce((best, one) =>
      one.accuracy > best.accuracy || (one.accuracy === best.accuracy && one.nfe < best.nfe) ? one : best,
    );
  const best = mostAccurate(meant);
  const fast = meant
    .filter(({ accuracy }) => accuracy >= best.accuracy - best.error)
    .reduce((least, one) => (one.nfe < least.nfe ? one : least));
  const named = ({ run, name }: { run: string; name: string }) => (runs.length > 1 ? `${run}, "${name}"` : `"${name}"`);
  const said = (one: (typeof all)[number]) => `${percent(one.accuracy)} ± ${percent(one.error)} % right`;
  const unit = isWeighted ? 'full-forward equivalents' : 'forward passes';
  // The runs before come first in a report: what the emphasised settings are compared with.
  const [first] = runs;
  const others = meant === all ? all : all.filter(({ run, bold }) => run === first.label && !bold);
  const other = others.length > 0 ? mostAccurate(others) : best;
  if (other === fast)
    return `${named(fast)} is the most accurate setting: ${said(fast)} in ${fast.nfe.toFixed(2)} ${unit}.`;
  return (
    `${named(fast)} is ${said(fast)} in ${fast.nfe.toFixed(2)} ${unit}; ` +
    `the most accurate setting to compare it with (${named(other)}) is ${said(other)} in ${other.nfe.toFixed(2)}.`
  );
}
