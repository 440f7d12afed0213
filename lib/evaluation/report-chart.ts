// The chart of a report: accuracy against forward passes, as SVG, with a name for every dot.
import { frontier } from './operating-points';
import { escapeHtml, percent } from './report-html';
import type { Series } from './report-series';

const WIDTH = 720;
const HEIGHT = 540;
const MARGIN = { top: 44, right: 24, bottom: 68, left: 94 };
const TICKS = [1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024];
/** Least distance of two ticks, so that their numbers stay apart at a phone's size of letters too. */
const TICK_DISTANCE = 44;
/** Width of a letter of a name, and the height of its line, in a phone's size of letters. */
const LETTER = { width: 14, height: 28 };

const at = (value: number) => value.toFixed(1);

interface Box {
  left: number;
  right: number;
  top: number;
  bottom: number;
}

const overlap = (a: Box, b: Box) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

/** A place for a label beside its point where no other label stands; null: there is none. */
function placeLabel(
  label: string,
  x: number,
  y: number,
  taken: readonly Box[],
): (Box & { x: number; y: number }) | null {
  const width = label.length * LETTER.width;
  for (const [dx, dy] of [
    [12, 26],
    [-12 - width, 26],
    [12, 56],
    [-12 - width, 56],
    [12, 86],
    [-12 - width, 86],
    [12, -14],
    [-12 - width, -14],
  ]) {
    const left = x + dx;
    const base = y + dy;
    const box = { left, right: left + width, top: base - LETTER.height + 4, bottom: base + 4 };
    const isInside = left > MARGIN.left && box.right < WIDTH && box.top > MARGIN.top && base < HEIGHT - MARGIN.bottom;
    if (isInside && !taken.some((other) => overlap(box, other))) return { ...box, x: left, y: base };
  }
  return null;
}

/** The chart: forward passes on a logarithmic axis, accuracy on a linear one. */
export function chart(series: readonly Series[], isWeighted: boolean): string {
  const points = series.flatMap((line) => line.points);
  const most = Math.max(2, ...points.map(({ nfe }) => nfe)) * 1.08;
  const x = (nfe: number) =>
    MARGIN.left + (Math.log(Math.max(nfe, 1)) / Math.log(most)) * (WIDTH - MARGIN.left - MARGIN.right);
  const y = (accuracy: number) => MARGIN.top + (1 - accuracy) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const parts: string[] = [];
  for (let share = 0; share <= 10; share += 2) {
    const height = at(y(share / 10));
    parts.push(
      `<line class="grid" x1="${MARGIN.left}" x2="${WIDTH - MARGIN.right}" y1="${height}" y2="${height}"/>`,
      `<text x="${MARGIN.left - 8}" y="${height}" class="tick" text-anchor="end" dominant-baseline="middle">` +
        `${share * 10} %</text>`,
    );
  }
  let last = Number.NEGATIVE_INFINITY;
  for (const tick of TICKS.filter((value) => value <= most)) {
    if (x(tick) - last < TICK_DISTANCE) continue;
    last = x(tick);
    const place = at(last);
    parts.push(
      `<line class="grid" x1="${place}" x2="${place}" y1="${MARGIN.top}" y2="${HEIGHT - MARGIN.bottom}"/>`,
      `<text x="${place}" y="${HEIGHT - MARGIN.bottom + 22}" class="tick" text-anchor="middle">${tick}</text>`,
    );
  }
  const middle = (MARGIN.left + WIDTH - MARGIN.right) / 2;
  const xTitle = isWeighted ? 'full-forward equivalents per answer' : 'forward passes per answer (NFE)';
  parts.push(
    `<text x="${middle}" y="${HEIGHT - 8}" class="axis" text-anchor="middle">← fewer is better · ${xTitle}</text>`,
    `<text x="8" y="20" class="axis">right answers, ↑ more is better</text>`,
  );
  const labels: string[] = [];
  const taken: Box[] = [];
  // Bold lines last, on top; their labels first, as there is not room for all.
  const inOrder = [...series].sort((a, b) => Number(a.bold) - Number(b.bold));
  const hasBold = series.some(({ bold }) => bold);
  const labelOf = ({ run, rule }: Series) => (run === '' ? rule : `${run}: ${rule}`);
  for (const one of inOrder) {
    const { points: own, color, bold, hollow } = one;
    const line = frontier(own).map(({ nfe, accuracy }) => `${at(x(nfe))},${at(y(accuracy))}`);
    const dots = own.map(({ name, nfe, accuracy, error }) => {
      const what = `${labelOf(one)}, ${name}: ${percent(accuracy)} ± ${percent(error)} % right at ${nfe.toFixed(2)} passes`;
      const [cx, low, high] = [at(x(nfe)), at(y(Math.max(0, accuracy - error))), at(y(Math.min(1, accuracy + error)))];
      const bar = error > 0 ? `<line class="error" x1="${cx}" x2="${cx}" y1="${low}" y2="${high}"/>` : '';
      const dot = `<circle cx="${cx}" cy="${at(y(accuracy))}" r="${bold ? 5 : 4}"/>`;
      return `<g class="dot" role="img" aria-label="${escapeHtml(what)}">${bar}${dot}</g>`;
    });
    const kind = `series${bold ? ' bold' : ''}${hollow ? ' hollow' : ''}`;
    parts.push(
      `<g class="${kind}" style="--c: var(${color})"><polyline points="${line.join(' ')}"/>${dots.join('')}</g>`,
    );
  }
  // Names of what the report is about, else of all; those without room stand in the legend alone.
  for (const { points: own, color, bold, rule } of inOrder.filter(({ bold }) => bold || !hasBold)) {
    const best = frontier(own).at(-1);
    const place = best && placeLabel(rule, x(best.nfe), y(best.accuracy), taken);
    if (!place) continue;
    taken.push(place);
    labels.push(
      `<text class="name${bold ? ' bold' : ''}" style="--c: var(${color})" x="${at(place.x)}" y="${at(place.y)}">` +
        `${escapeHtml(rule)}</text>`,
    );
  }
  const legend = [...new Set(series.map(({ run }) => run))].map((run) => {
    const own = series.filter((one) => one.run === run);
    const items = own.map(({ rule, color, bold, hollow }) => {
      const sample = `<i${hollow ? ' class="hollow"' : ''} style="--c: var(${color})"></i>`;
      return `<li${bold ? ' class="bold"' : ''}>${sample}${escapeHtml(rule)}</li>`;
    });
    return `${run === '' ? '' : `<h3>${escapeHtml(run)}</h3>`}<ul class="legend">${items.join('')}</ul>`;
  });
  const about = 'Accuracy against forward passes for every sampler. Arrow keys go from setting to setting.';
  return (
    `<figure><svg id="chart" viewBox="0 0 ${WIDTH} ${HEIGHT}" role="group" tabindex="0" aria-label="${about}">` +
    `${parts.join('')}<g aria-hidden="true">${labels.join('')}</g></svg>` +
    '<p id="setting" role="status">Tap a dot, or go from dot to dot with the arrow keys, to read its setting.</p>' +
    `${legend.join('')}<figcaption>A dot is a setting, and its bar the standard error of its ` +
    'accuracy; a line joins the settings of a rule that no other setting of the rule beats.</figcaption></figure>'
  );
}
