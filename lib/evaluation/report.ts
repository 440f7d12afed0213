// report.html: one self-contained file with the accuracy-NFE frontier, the tables, and prompts to step
// through.
import { readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { packageFile } from '../package';
import type { Campaign, Spread } from './campaign';
import type { SamplerResult } from './evaluate';
import { frontier } from './operating-points';
import { PUBLISHED } from './published';
import { chart } from './report-chart';
import { embedJson, escapeHtml, percent, reportStyle, table, tableRow } from './report-html';
import { type Cost, conclude, costOf, type ReportRun, seriesOf } from './report-series';

export type { ReportRun } from './report-series';

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

/** What the step-by-step view shows: per prompt, a right answer and how each setting decided its own. */
interface TraceView {
  prompt: string;
  /** A right answer, from the data set; '': it has none. */
  expected: string;
  lanes: {
    /** Label of the run; the settings of a run stand together. */
    run: string;
    name: string;
    tokens: string[];
    unmaskedAt: number[];
    nfe: number;
    score: number | null;
    bold: boolean;
  }[];
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
      for (const { prompt, answer, trace, nfe, score } of samples) {
        if (!trace || !shown.has(name)) continue;
        const view = views.get(prompt) ?? { prompt, expected: answer, lanes: [] };
        const key = group(name);
        view.lanes.push({
          run: runs.length > 1 ? label : '',
          name,
          ...trace,
          nfe,
          score,
          bold: key !== null && (emphasis?.(key) ?? false),
        });
        views.set(prompt, view);
      }
  }
  // Runs with bold lanes first, as they are what the report is about; within a run by passes.
  const order = new Map(runs.map(({ label }, i) => [label, i]));
  for (const view of views.values()) {
    const boldRuns = new Set(view.lanes.filter(({ bold }) => bold).map(({ run }) => run));
    const rank = ({ run }: { run: string }) => (boldRuns.has(run) ? -1 : (order.get(run) ?? 0));
    view.lanes.sort((a, b) => rank(a) - rank(b) || a.nfe - b.nfe);
  }
  return [...views.values()];
}

/** In lib/, whichever of lib/ and dist/ this runs from. */
const reportScript = () => readFileSync(packageFile('lib', 'evaluation', 'report-page.js'), 'utf8');

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

/** The step-by-step view; report-page.js fills it. */
function player(): string {
  return (
    '<h2>Step by step</h2><p>How the answer to one prompt comes about. A small number is the forward pass that ' +
    'decided the word; empty cells are still masked; × counts tokens behind the end that the same pass decides; a ' +
    'frame marks what the pass shown has decided.</p>' +
    '<div class="player"><div class="controls"><select id="choice" aria-label="Prompt"></select>' +
    '<button id="play" type="button">Play</button>' +
    '<input id="slider" type="range" min="0" max="1" value="0" aria-label="Forward pass">' +
    '<span id="shown" class="soft"></span></div><p id="expected" class="soft"></p><div id="lanes"></div></div>'
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
${reportStyle()}</style>
</head>
<body>
<h1>${escapeHtml(title)}</h1>
<p class="conclusion">${escapeHtml(conclude(runs))}</p>
<p>${escapeHtml(summary)}</p>
<p class="soft">${escapeHtml(facts)}</p>
<h2>Accuracy against forward passes</h2>
${chart(seriesOf(runs, cost), isWeighted)}
${traces.length > 0 ? player() : ''}
<h2>Samplers</h2>
<p>The settings that no other setting of the same rule beats; shaded: that no sampler in the table beats.</p>
${tables}
${categories}
${campaign ? campaignSection(campaign) : ''}
${commands.length > 0 ? `<h2>Do it again</h2><pre>${escapeHtml(commands.join('\n'))}</pre>` : ''}
<script type="application/json" id="traces">${embedJson(traces)}</script><script>
${reportScript()}</script>
</body>
</html>
`;
}

/** Writes {@link renderReport}'s text to a file. */
export async function writeReport(file: string, input: ReportInput): Promise<void> {
  await writeFile(file, renderReport(input));
}
