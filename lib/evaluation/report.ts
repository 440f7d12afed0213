// report.html: one self-contained file with the accuracy-NFE frontier, the tables, and prompts to step
// through.
import { readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { packageFile } from '../package';
import type { Campaign, Spread } from './campaign';
import type { Evaluation, SamplerResult } from './evaluate';
import { frontier } from './operating-points';
import { PUBLISHED } from './published';

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

/** Input of {@link renderReport}. */
export interface ReportInput {
  title: string;
  /** A sentence or two below the title. */
  summary: string;
  runs: readonly ReportRun[];
  /** All models and seeds: means over the seeds, AUP, and what others have published on the data set. */
  campaign?: Campaign | undefined;
  /** Commands that made it, shown at the end. */
  commands?: readonly string[] | undefined;
}

const ESCAPES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};
/**
 * What a setting costs per prompt: forward passes, or with caches among the settings their full-forward equivalents.
 */
type Cost = (result: SamplerResult) => number;

function costOf(runs: readonly ReportRun[]): { cost: Cost; isWeighted: boolean } {
  const isWeighted = runs.some(({ evaluation }) => evaluation.results.some(({ cache }) => cache.type !== 'none'));
  return { cost: ({ nfe, fullForwards }) => (isWeighted ? fullForwards.mean : nfe.mean), isWeighted };
}

const escapeHtml = (text: string) => text.replace(/[&<>"']/g, (character) => ESCAPES[character]);

/** JSON that a script element can hold whatever texts are in it. */
const embedJson = (value: unknown) =>
  JSON.stringify(value)
    .replace(/</g, '\\u003c')
    .replace(/\u2028/g, '\\u2028')
    .replace(/\u2029/g, '\\u2029');

/** A line of the chart: the settings of one rule under one model. */
interface Series {
  label: string;
  bold: boolean;
  /** Of a second model's rules, which have the colours of the first one's: dashed, with empty dots. */
  hollow: boolean;
  /** CSS colour variable. */
  color: string;
  points: { name: string; nfe: number; accuracy: number }[];
}

const MAX_COLORS = 10;

function seriesOf(runs: readonly ReportRun[], cost: Cost): Series[] {
  const all: Series[] = [];
  const colors = new Map<string, string>();
  let bold = 0;
  let isFirst = true;
  for (const { label, evaluation, group, emphasis } of runs) {
    const own = new Map<string, Series>();
    for (const result of evaluation.results) {
      const { name, accuracy } = result;
      const key = group(name);
      if (key === null) continue;
      let series = own.get(key);
      if (!series) {
        const isBold = emphasis?.(key) ?? false;
        if (!isBold && !colors.has(key)) colors.set(key, `--line${colors.size % MAX_COLORS}`);
        const color = isBold ? `--bold${bold++ % 3}` : colors.get(key)!;
        series = {
          label: runs.length > 1 ? `${label}: ${key}` : key,
          bold: isBold,
          hollow: !isBold && !isFirst,
          color,
          points: [],
        };
        own.set(key, series);
      }
      series.points.push({ name, nfe: cost(result), accuracy });
    }
    all.push(...own.values());
    isFirst &&= all.every((series) => series.bold);
  }
  return all;
}

const percent = (share: number) => (100 * share).toFixed(1);

/** A table that scrolls sideways. @param rows HTML of whole rows */
const table = (head: readonly string[], rows: readonly string[]): string =>
  `<div class="scroll"><table><thead><tr>${head.map((title) => `<th>${title}</th>`).join('')}</tr></thead>` +
  `<tbody>${rows.join('')}</tbody></table></div>`;

/** A row of {@link table}: HTML of the first cell and of the others. */
const tableRow = (first: string, cells: readonly string[], isBest = false): string =>
  `<tr${isBest ? ' class="best"' : ''}><th scope="row">${first}</th>` +
  `${cells.map((cell) => `<td>${cell}</td>`).join('')}</tr>`;

const WIDTH = 720;
const HEIGHT = 400;
const MARGIN = { top: 16, right: 20, bottom: 46, left: 68 };
const TICKS = [1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024];

/** The chart: forward passes on a logarithmic axis, accuracy on a linear one. */
function chart(series: readonly Series[], isWeighted: boolean): string {
  const points = series.flatMap((line) => line.points);
  const most = Math.max(2, ...points.map(({ nfe }) => nfe)) * 1.08;
  const x = (nfe: number) =>
    MARGIN.left + (Math.log(Math.max(nfe, 1)) / Math.log(most)) * (WIDTH - MARGIN.left - MARGIN.right);
  const y = (accuracy: number) => MARGIN.top + (1 - accuracy) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const at = (value: number) => value.toFixed(1);
  const parts: string[] = [];
  for (let share = 0; share <= 10; share += 2) {
    const height = at(y(share / 10));
    parts.push(
      `<line class="grid" x1="${MARGIN.left}" x2="${WIDTH - MARGIN.right}" y1="${height}" y2="${height}"/>`,
      `<text x="${MARGIN.left - 8}" y="${height}" class="tick" text-anchor="end" dominant-baseline="middle">` +
        `${share * 10} %</text>`,
    );
  }
  for (const tick of TICKS.filter((value) => value <= most)) {
    const place = at(x(tick));
    parts.push(
      `<line class="grid" x1="${place}" x2="${place}" y1="${MARGIN.top}" y2="${HEIGHT - MARGIN.bottom}"/>`,
      `<text x="${place}" y="${HEIGHT - MARGIN.bottom + 18}" class="tick" text-anchor="middle">${tick}</text>`,
    );
  }
  const centre = { x: (MARGIN.left + WIDTH - MARGIN.right) / 2, y: (MARGIN.top + HEIGHT - MARGIN.bottom) / 2 };
  const xTitle = isWeighted ? 'full-forward equivalents per answer, mean' : 'forward passes per answer (NFE), mean';
  parts.push(
    `<text x="${centre.x}" y="${HEIGHT - 8}" class="axis" text-anchor="middle">${xTitle}</text>`,
    `<text transform="translate(14 ${centre.y}) rotate(-90)" class="axis" text-anchor="middle">right answers</text>`,
  );
  // Bold lines last, on top.
  for (const { points: own, color, bold, hollow, label } of [...series].sort(
    (a, b) => Number(a.bold) - Number(b.bold),
  )) {
    const line = frontier(own).map(({ nfe, accuracy }) => `${at(x(nfe))},${at(y(accuracy))}`);
    const dots = own.map(({ name, nfe, accuracy }) => {
      const title = escapeHtml(`${label}\n${name}: ${percent(accuracy)} % at ${nfe.toFixed(2)} passes`);
      const place = `cx="${at(x(nfe))}" cy="${at(y(accuracy))}" r="${bold ? 5 : 3.5}"`;
      return `<circle ${place}><title>${title}</title></circle>`;
    });
    const kind = `series${bold ? ' bold' : ''}${hollow ? ' hollow' : ''}`;
    const curve = `<polyline points="${line.join(' ')}"/>`;
    parts.push(`<g class="${kind}" style="--c: var(${color})">${curve}${dots.join('')}</g>`);
  }
  const legend = series.map(({ label, color, bold, hollow }) => {
    const sample = `<i${hollow ? ' class="hollow"' : ''} style="--c: var(${color})"></i>`;
    return `<li${bold ? ' class="bold"' : ''}>${sample}${escapeHtml(label)}</li>`;
  });
  const about = 'Accuracy against forward passes for every sampler';
  return (
    `<figure><svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${about}">${parts.join('')}</svg>` +
    `<ul class="legend">${legend.join('')}</ul><figcaption>Up and to the left is better. ` +
    'A dot is a setting (point at it for its name); ' +
    'a line joins the settings of a rule that no other setting of the rule beats.</figcaption></figure>'
  );
}

/** The settings worth a row: those that no setting of the same rule beats, by rule and passes. */
function rowsOf({ evaluation, group }: ReportRun, cost: Cost): { key: string; result: SamplerResult }[] {
  const groups = new Map<string, SamplerResult[]>();
  for (const result of evaluation.results) {
    const key = group(result.name) ?? 'other';
    groups.set(key, [...(groups.get(key) ?? []), result]);
  }
  return [...groups].flatMap(([key, results]) => {
    const best = frontier(results.map((result) => ({ accuracy: result.accuracy, nfe: cost(result), result })));
    return best.map(({ result }) => ({ key, result }));
  });
}

function mainTable(run: ReportRun, cost: Cost): string {
  const all = rowsOf(run, cost);
  const onFrontier = new Set(
    frontier(all.map(({ result }) => ({ accuracy: result.accuracy, nfe: cost(result), name: result.name }))).map(
      ({ name }) => name,
    ),
  );
  const rows = all.map(({ result }) => {
    const { name, accuracy, accuracyError, nfe, fullForwards, tokensPerForward, tokensPerSecond } = result;
    const { unanswered } = result;
    const unasked = unanswered ? `<br><small>${unanswered} did not fit the model: wrong</small>` : '';
    const cells = [
      `${percent(accuracy)} <small>± ${percent(accuracyError)}</small>${unasked}`,
      `${nfe.mean.toFixed(2)} <small>± ${nfe.sd.toFixed(2)}</small>`,
      fullForwards.mean.toFixed(2),
      tokensPerForward.generated.toFixed(2),
      tokensPerForward.untilEos.toFixed(2),
      Math.round(tokensPerSecond).toLocaleString('en'),
    ];
    return tableRow(escapeHtml(name), cells, onFrontier.has(name));
  });
  const head = [
    'sampler',
    'right, %<br><small>± standard error</small>',
    'forward passes<br><small>± sd over prompts</small>',
    'full-forward<br>equivalents',
    'tokens per pass<br><small>all positions</small>',
    'tokens per pass<br><small>up to the end</small>',
    'tokens/s',
  ];
  return table(head, rows);
}

function categoryTable(runs: readonly ReportRun[], cost: Cost): string {
  const categories = [
    ...new Set(
      runs.flatMap(({ evaluation }) => evaluation.results.flatMap((result) => Object.keys(result.categories))),
    ),
  ].sort();
  const rows = runs.flatMap((run) => {
    const best = frontier(
      rowsOf(run, cost).map(({ result }) => ({ accuracy: result.accuracy, nfe: cost(result), result })),
    );
    return best.map(({ result }) => {
      const cells = categories.map((category) => {
        const part = result.categories[category];
        return part ? `<td>${percent(part.accuracy)} <small>@ ${part.nfe.toFixed(2)}</small></td>` : '<td>-</td>';
      });
      const families = Object.entries(result.families ?? {}).sort(([, a], [, b]) => b - a);
      const { errors } = result;
      const texts = [
        ...families.map(([name, count]) => `${name} ${count}`),
        ...(errors ? [`wrong slot ${errors.slot}`, `mixed ${errors.mix}`] : []),
      ];
      const detail = errors ? `<td class="text">${escapeHtml(texts.join(', '))}</td>` : '';
      return `<tr><th scope="row">${escapeHtml(`${run.label}: ${result.name}`)}</th>${cells.join('')}${detail}</tr>`;
    });
  });
  const hasFamilies = runs.some(({ evaluation }) => evaluation.results.some(({ errors }) => errors));
  const head = [
    'model: sampler',
    ...categories.map(escapeHtml),
    ...(hasFamilies ? ['right answers by sentence, wrong ones by kind'] : []),
  ];
  return table(head, rows);
}

/** Most settings of one model in the step-by-step view. */
const MAX_LANES = 5;

/** What the step-by-step view shows: per prompt, how each setting decided the answer. */
interface TraceView {
  prompt: string;
  lanes: { label: string; tokens: string[]; unmaskedAt: number[]; nfe: number; score: number | null; bold: boolean }[];
}

/**
 * Of the settings of one model, those to step through: the frontier, thinned to its ends and what lies evenly between.
 */
function lanesOf(run: ReportRun, cost: Cost): Set<string> {
  const best = frontier(
    rowsOf(run, cost).map(({ result }) => ({ accuracy: result.accuracy, nfe: cost(result), name: result.name })),
  );
  const most = Math.min(MAX_LANES, best.length);
  return new Set(
    Array.from({ length: most }, (_, i) => best[Math.round((i * (best.length - 1)) / Math.max(1, most - 1))].name),
  );
}

function tracesOf(runs: readonly ReportRun[], cost: Cost): TraceView[] {
  const views = new Map<string, TraceView>();
  for (const run of runs) {
    const { evaluation, label, group, emphasis } = run;
    const shown = lanesOf(run, cost);
    for (const { name, samples } of evaluation.results)
      for (const { prompt, trace, nfe, score } of samples) {
        if (!trace || !shown.has(name)) continue;
        const view = views.get(prompt) ?? { prompt, lanes: [] };
        const key = group(name);
        view.lanes.push({
          label: `${label}: ${name}`,
          ...trace,
          nfe,
          score,
          bold: key !== null && (emphasis?.(key) ?? false),
        });
        views.set(prompt, view);
      }
  }
  // Bold lanes first, as they are what the report is about; then by passes.
  for (const view of views.values()) view.lanes.sort((a, b) => Number(b.bold) - Number(a.bold) || a.nfe - b.nfe);
  return [...views.values()];
}

/** A part of the page that is a file of its own: in lib/, whichever of lib/ and dist/ this runs from. */
const pagePart = (name: string) => readFileSync(packageFile('lib', 'evaluation', `report-page.${name}`), 'utf8');

/** Means over the seeds, the area under each rule's curve, and published figures of the same data set. */
function campaignSection({ rows, curves, seeds, config }: Campaign): string {
  const spread = ({ mean, sd }: Spread, digits: number, scale = 1) =>
    `${(scale * mean).toFixed(digits)}${seeds.length > 1 ? ` <small>± ${(scale * sd).toFixed(digits)}</small>` : ''}`;
  const over = seeds.length > 1 ? ` ± standard deviation over the seeds ${seeds.join(', ')}` : `, seed ${seeds[0]}`;
  const means = rows.map(({ model, sampler, accuracy, nfe, tokensPerForward, tokensPerSecond }) => [
    escapeHtml(`${model}: ${sampler}`),
    spread(accuracy, 1, 100),
    spread(nfe, 2),
    spread(tokensPerForward.generated, 2),
    spread(tokensPerForward.untilEos, 2),
    spread(tokensPerSecond, 0),
  ]);
  const published = PUBLISHED.filter(({ dataset }) => dataset === config.dataset);
  const number = (value: number | null) => (value === null ? '-' : String(value));
  return [
    `<h2>All models and seeds</h2><p>Mean${over}. ` +
      'Tokens per second count what stands up to the end of the answer, without prompts.</p>',
    table(
      [
        'model: sampler',
        'right, %',
        'forward passes',
        'tokens per pass<br><small>all positions</small>',
        'tokens per pass<br><small>up to the end</small>',
        'tokens/s',
      ],
      means.map(([first, ...cells]) => tableRow(first, cells)),
    ),
    '<h2>Accuracy under parallelism</h2><p>AUP as d3LLM defines it: the area under accuracy ' +
      '(percent, weighted by its share of the best) against tokens per pass up to the end.</p>',
    table(
      ['model: rule', 'AUP'],
      curves.map(({ model, group, aup }) => tableRow(escapeHtml(`${model}: ${group}`), [aup.toFixed(1)])),
    ),
    ...(published.length > 0
      ? [
          `<h2>Published figures on ${escapeHtml(config.dataset)}</h2>` +
            '<p>Not measured here: as their sources give them, on other machines, prompts and rules of counting.</p>',
          table(
            ['method (published)', 'right, %', 'forward passes', 'tokens per pass', 'source'],
            published.map(({ method, accuracy, nfe, tokensPerForward, source }) =>
              tableRow(escapeHtml(`${method} (published)`), [
                accuracy.toFixed(1),
                number(nfe),
                number(tokensPerForward),
                `<small>${escapeHtml(source)}</small>`,
              ]),
            ),
          ),
        ]
      : []),
  ].join('\n');
}

/** The step-by-step view. */
function player(traces: readonly TraceView[]): string {
  return (
    '<h2>Step by step</h2><p>How the answer to one prompt comes about. A colour is a forward pass; ' +
    'empty cells are still masked; a frame marks what the pass shown has decided.</p>' +
    '<div class="player"><div class="controls"><select id="choice" aria-label="Prompt"></select>' +
    '<button id="play" type="button">Play</button>' +
    '<input id="slider" type="range" min="0" max="1" value="0" aria-label="Forward pass">' +
    '<span id="shown" class="soft"></span></div><div id="lanes"></div></div>' +
    `<script type="application/json" id="traces">${embedJson(traces)}</script><script>\n${pagePart('js')}</script>`
  );
}

/** The report as one HTML text: no requests, legible in light and dark. */
export function renderReport({ title, summary, runs, campaign, commands = [] }: ReportInput): string {
  const [{ config }] = runs.map(({ evaluation }) => evaluation);
  const { cost, isWeighted } = costOf(runs);
  const traces = tracesOf(runs, cost);
  const facts = [
    `${config.count} prompts of the ${config.split} split of ${config.dataset}, seed ${config.seed}`,
    `${config.maxTokens} tokens in blocks of ${config.blockLength}, token temperature ${config.temperature}`,
    `${config.device} (${config.isa}, ${config.threads} threads), dultra ${config.version}`,
  ].join('; ');
  const hasCategories =
    new Set(runs.flatMap(({ evaluation }) => evaluation.results.flatMap(({ categories }) => Object.keys(categories))))
      .size > 1;
  const categories = hasCategories
    ? '<h2>By kind of prompt</h2>' +
      '<p>Right answers in percent @ forward passes, for the settings that no other beats.</p>' +
      categoryTable(runs, cost)
    : '';
  const tables = runs.map((run) => `<h3>${escapeHtml(run.label)}</h3>${mainTable(run, cost)}`).join('');
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(title)}</title>
<style>
${pagePart('css')}</style>
</head>
<body>
<h1>${escapeHtml(title)}</h1>
<p>${escapeHtml(summary)}</p>
<p class="soft">${escapeHtml(facts)}</p>
<h2>Accuracy against forward passes</h2>
${chart(seriesOf(runs, cost), isWeighted)}
${traces.length > 0 ? player(traces) : ''}
<h2>Samplers</h2>
<p>The settings that no other setting of the same rule beats; shaded: that no sampler in the table beats.</p>
${tables}
${categories}
${campaign ? campaignSection(campaign) : ''}
${commands.length > 0 ? `<h2>Do it again</h2><pre>${escapeHtml(commands.join('\n'))}</pre>` : ''}
</body>
</html>
`;
}

/** Writes {@link renderReport}'s text to a file. */
export async function writeReport(file: string, input: ReportInput): Promise<void> {
  await writeFile(file, renderReport(input));
}
