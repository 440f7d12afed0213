// The report of a calibration: one self-contained HTML file with its tables and pictures.
import type { CalibrationReport, TypeCalibration } from './calibrate';
import type { DecisionFigures, Figure } from './calibration-metrics';
import { escapeHtml, percent, reportStyle, table, tableRow } from './report-html';

const SIZE = 420;
const MARGIN = { left: 76, right: 16, top: 16, bottom: 64 };

const place = (value: number) => value.toFixed(1);
const x = (value: number) => MARGIN.left + value * (SIZE - MARGIN.left - MARGIN.right);
const y = (value: number) => MARGIN.top + (1 - value) * (SIZE - MARGIN.top - MARGIN.bottom);

/** A square picture of shares. @param label what it shows, for those who do not see it */
function square(label: string, titles: { x: string; y: string }, content: string): string {
  const parts: string[] = [];
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    const [left, top] = [place(x(tick)), place(y(tick))];
    parts.push(
      `<line class="grid" x1="${MARGIN.left}" x2="${SIZE - MARGIN.right}" y1="${top}" y2="${top}"/>`,
      `<line class="grid" x1="${left}" x2="${left}" y1="${MARGIN.top}" y2="${SIZE - MARGIN.bottom}"/>`,
      `<text class="tick" x="${MARGIN.left - 8}" y="${top}" text-anchor="end" dominant-baseline="middle">${tick}</text>`,
      `<text class="tick" x="${left}" y="${SIZE - MARGIN.bottom + 22}" text-anchor="middle">${tick}</text>`,
    );
  }
  const middle = (MARGIN.left + SIZE - MARGIN.right) / 2;
  const height = (MARGIN.top + SIZE - MARGIN.bottom) / 2;
  parts.push(
    `<text class="axis" x="${middle}" y="${SIZE - 8}" text-anchor="middle">${titles.x}</text>`,
    `<text class="axis" transform="translate(16 ${height}) rotate(-90)" text-anchor="middle">${titles.y}</text>`,
  );
  return `<svg viewBox="0 0 ${SIZE} ${SIZE}" role="img" aria-label="${escapeHtml(label)}">${parts.join('')}${content}</svg>`;
}

/** Dots of the parts of 0..1 that have answers, larger where there are more, on a line between them. */
function reliabilityLine({ reliability }: DecisionFigures, color: string): string {
  const most = Math.max(...reliability.map(({ answers }) => answers));
  const points = reliability.map(({ confidence, accuracy }) => `${place(x(confidence))},${place(y(accuracy))}`);
  const dots = reliability.map(
    ({ confidence, accuracy, answers }) =>
      `<circle cx="${place(x(confidence))}" cy="${place(y(accuracy))}" r="${(2.5 + 6 * Math.sqrt(answers / most)).toFixed(1)}">` +
      `<title>confidence ${confidence.toFixed(3)}, right ${accuracy.toFixed(3)}, ${answers} answers</title></circle>`,
  );
  return `<g class="series" style="--c: var(${color})"><polyline points="${points.join(' ')}"/>${dots.join('')}</g>`;
}

function riskLine({ riskCoverage }: DecisionFigures, color: string): string {
  const points = riskCoverage.map(({ coverage, accuracy }) => `${place(x(coverage))},${place(y(accuracy))}`);
  return `<g class="series" style="--c: var(${color})"><polyline points="${points.join(' ')}"/></g>`;
}

const COLORS = { before: '--line1', after: '--line0' } as const;

function pictures(type: string, { before, after }: TypeCalibration): string {
  const diagonal = `<line class="grid" x1="${place(x(0))}" y1="${place(y(0))}" x2="${place(x(1))}" y2="${place(y(1))}"/>`;
  const both = (line: (figures: DecisionFigures, color: string) => string) =>
    line(before, COLORS.before) + (after ? line(after, COLORS.after) : '');
  const reliability = square(
    `Reliability of ${type}: share of right answers against confidence`,
    { x: 'probability of the most probable option', y: 'share of right answers' },
    diagonal + both(reliabilityLine),
  );
  const risk = square(
    `Accuracy of ${type} by the share of answers that are kept`,
    { x: 'share of answers kept, most confident first', y: 'share of right answers' },
    both(riskLine),
  );
  const legend = [
    ['at temperature 1', COLORS.before],
    ...(after ? [['after calibration, other half', COLORS.after]] : []),
  ].map(([text, color]) => `<li><i style="--c: var(${color})"></i>${text}</li>`);
  return (
    `<figure>${reliability}${risk}<ul class="legend">${legend.join('')}</ul>` +
    '<figcaption>Left: on the diagonal, confidence says how often answers are right; a larger dot stands for more ' +
    'answers. Right: accuracy where only the most confident answers are kept.</figcaption></figure>'
  );
}

const NAMES: Readonly<Record<string, string>> = {
  accuracy: 'accuracy',
  nll: 'NLL, nats',
  brier: 'Brier',
  ece: 'ECE, 15 equal parts',
  eceEqualMass: 'ECE, parts of equally many answers',
};

const shown = ({ value, low, high }: Figure) =>
  `${value.toFixed(4)} <small>${low.toFixed(4)} to ${high.toFixed(4)}</small>`;

function section(type: string, found: TypeCalibration): string {
  const { answers, majority, optionMass, before, after, temperature, orderBias, distance } = found;
  const rows = (Object.keys(NAMES) as (keyof DecisionFigures)[]).map((name) =>
    tableRow(
      NAMES[name],
      [before, after].map((figures) => (figures ? shown(figures[name] as Figure) : '–')),
    ),
  );
  if (distance)
    rows.push(
      tableRow('mean distance from the known probability', [
        distance.before.toFixed(4),
        distance.after === null ? '–' : distance.after.toFixed(4),
      ]),
    );
  const facts = [
    `${answers} answers; the most frequent one is right for ${percent(majority)} % of them.`,
    `Option mass ${optionMass.toFixed(4)} in the mean.`,
    temperature === null
      ? 'Under 100 answers: no temperature.'
      : `Temperature ${temperature.toFixed(4)} from all answers.`,
    orderBias === null
      ? 'The template does not list the options: their order changes nothing.'
      : `Listed from the back, another option is the most probable for ${percent(orderBias.changed)} % of the questions, and its probability differs by ${orderBias.difference.toFixed(4)} in the mean.`,
  ];
  return (
    `<section><h2>${type}</h2><p>${facts.join(' ')}</p>` +
    table(['figure, with its 95 % interval', 'at temperature 1', 'after calibration'], rows) +
    `${pictures(type, found)}</section>`
  );
}

/** The report of a calibration as one HTML file without anything outside it. @param title of the page */
export function calibrationPage(title: string, { types, calibration }: CalibrationReport): string {
  const sections = Object.entries(types).map(([type, found]) => section(type, found));
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">' +
    `<title>${escapeHtml(title)}</title><style>${reportStyle()}</style></head><body><main><h1>${escapeHtml(title)}</h1>` +
    '<p>Figures are of answers that had no part in the temperature they are given at: two halves, each at the ' +
    'temperature of the other.</p>' +
    `${sections.join('')}<p><small>Weights ${calibration.weights}, templates ${calibration.template}.</small></p>` +
    '</main></body></html>\n'
  );
}
