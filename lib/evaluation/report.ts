// report.html: one file that needs nothing else, with the accuracy-NFE frontier, the tables, and prompts to step
// through.
import { writeFile } from 'node:fs/promises';
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
  emphasis?: (group: string) => boolean;
}

/** Input of {@link renderReport}. */
export interface ReportInput {
  title: string;
  /** A sentence or two below the title. */
  summary: string;
  runs: readonly ReportRun[];
  /** All models and seeds: means over the seeds, AUP, and what others have published on the data set. */
  campaign?: Campaign;
  /** Commands that made it, shown at the end. */
  commands?: readonly string[];
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
      `<text x="${MARGIN.left - 8}" y="${height}" class="tick" text-anchor="end" dominant-baseline="middle">${share * 10} %</text>`,
    );
  }
  for (const tick of TICKS.filter((value) => value <= most)) {
    const place = at(x(tick));
    parts.push(
      `<line class="grid" x1="${place}" x2="${place}" y1="${MARGIN.top}" y2="${HEIGHT - MARGIN.bottom}"/>`,
      `<text x="${place}" y="${HEIGHT - MARGIN.bottom + 18}" class="tick" text-anchor="middle">${tick}</text>`,
    );
  }
  parts.push(
    `<text x="${(MARGIN.left + WIDTH - MARGIN.right) / 2}" y="${HEIGHT - 8}" class="axis" text-anchor="middle">${isWeighted ? 'full-forward equivalents per answer, mean' : 'forward passes per answer (NFE), mean'}</text>`,
    `<text transform="translate(14 ${(MARGIN.top + HEIGHT - MARGIN.bottom) / 2}) rotate(-90)" class="axis" text-anchor="middle">right answers</text>`,
  );
  // Bold lines last, on top.
  for (const { points: own, color, bold, hollow, label } of [...series].sort(
    (a, b) => Number(a.bold) - Number(b.bold),
  )) {
    const line = frontier(own).map(({ nfe, accuracy }) => `${at(x(nfe))},${at(y(accuracy))}`);
    const dots = own.map(
      ({ name, nfe, accuracy }) =>
        `<circle cx="${at(x(nfe))}" cy="${at(y(accuracy))}" r="${bold ? 5 : 3.5}"><title>${escapeHtml(`${label}\n${name}: ${(100 * accuracy).toFixed(1)} % at ${nfe.toFixed(2)} passes`)}</title></circle>`,
    );
    parts.push(
      `<g class="series${bold ? ' bold' : ''}${hollow ? ' hollow' : ''}" style="--c: var(${color})"><polyline points="${line.join(' ')}"/>${dots.join('')}</g>`,
    );
  }
  const legend = series.map(
    ({ label, color, bold, hollow }) =>
      `<li${bold ? ' class="bold"' : ''}><i${hollow ? ' class="hollow"' : ''} style="--c: var(${color})"></i>${escapeHtml(label)}</li>`,
  );
  return `<figure><svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="Accuracy against forward passes for every sampler">${parts.join('')}</svg><ul class="legend">${legend.join('')}</ul><figcaption>Up and to the left is better. A dot is a setting (point at it for its name); a line joins the settings of a rule that no other setting of the rule beats.</figcaption></figure>`;
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

const percent = (share: number) => (100 * share).toFixed(1);

function mainTable(run: ReportRun, cost: Cost): string {
  const all = rowsOf(run, cost);
  const onFrontier = new Set(
    frontier(all.map(({ result }) => ({ accuracy: result.accuracy, nfe: cost(result), name: result.name }))).map(
      ({ name }) => name,
    ),
  );
  const rows = all.map(({ result }) => {
    const { name, accuracy, accuracyError, nfe, fullForwards, tokensPerForward, tokensPerSecond } = result;
    const cells = [
      `${percent(accuracy)} <small>± ${percent(accuracyError)}</small>`,
      `${nfe.mean.toFixed(2)} <small>± ${nfe.sd.toFixed(2)}</small>`,
      fullForwards.mean.toFixed(2),
      tokensPerForward.generated.toFixed(2),
      tokensPerForward.untilEos.toFixed(2),
      Math.round(tokensPerSecond).toLocaleString('en'),
    ];
    return `<tr${onFrontier.has(name) ? ' class="best"' : ''}><th scope="row">${escapeHtml(name)}</th>${cells.map((cell) => `<td>${cell}</td>`).join('')}</tr>`;
  });
  return `<div class="scroll"><table><thead><tr><th>sampler</th><th>right, %<br><small>± standard error</small></th><th>forward passes<br><small>± sd over prompts</small></th><th>full-forward<br>equivalents</th><th>tokens per pass<br><small>all positions</small></th><th>tokens per pass<br><small>up to the end</small></th><th>tokens/s</th></tr></thead><tbody>${rows.join('')}</tbody></table></div>`;
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
    ...categories.map((category) => `<th>${escapeHtml(category)}</th>`),
    ...(hasFamilies ? ['<th>right answers by sentence, wrong ones by kind</th>'] : []),
  ];
  return `<div class="scroll"><table><thead><tr><th>model: sampler</th>${head.join('')}</tr></thead><tbody>${rows.join('')}</tbody></table></div>`;
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

const STYLE = `
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1f24; --soft: #57606a; --rule: #d8dee4; --card: #f6f8fa; --best: #e8f3ec;
  --line0: #4e79a7; --line1: #f28e2b; --line2: #b07aa1; --line3: #59a14f; --line4: #9c755f; --line5: #17a2b8; --line6: #edc948; --line7: #8cb04f; --line8: #7f7f7f; --line9: #b6638b;
  --bold0: #d1242f; --bold1: #0550ae; --bold2: #116329;
  --s0: #d6e4f5; --s1: #d3efd9; --s2: #fdeabf; --s3: #f4d4e6; --s4: #dcd6f7; --s5: #f9d5c5; --s6: #c9ecec; --s7: #e4e0d4; }
@media (prefers-color-scheme: dark) { :root { --bg: #0d1117; --fg: #e6edf3; --soft: #9198a1; --rule: #30363d; --card: #161b22; --best: #12261c;
  --line0: #79a9dc; --line1: #ffae57; --line2: #d3a4c8; --line3: #7fcf74; --line4: #c9a18a; --line5: #4fd0e3; --line6: #f5d967; --line7: #b4d67b; --line8: #a8a8a8; --line9: #e08fb5;
  --bold0: #ff6b74; --bold1: #6cb2ff; --bold2: #5bd67f;
  --s0: #1f3f63; --s1: #1d4a2b; --s2: #5a4510; --s3: #57284a; --s4: #3a3268; --s5: #5e3220; --s6: #124848; --s7: #45402f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1060px; padding: 28px 20px 60px; background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 10px; } h3 { font-size: 15px; margin: 22px 0 6px; }
p { margin: 6px 0; max-width: 78ch; } .soft, figcaption, small { color: var(--soft); } code { font-size: 13px; }
figure { margin: 0; } svg { width: 100%; height: auto; display: block; } figcaption { font-size: 13px; margin-top: 6px; }
.grid { stroke: var(--rule); stroke-width: 1; } .tick { fill: var(--soft); font-size: 12px; } .axis { fill: var(--fg); font-size: 13px; }
.series polyline { fill: none; stroke: var(--c); stroke-width: 1.6; opacity: .75; } .series circle { fill: var(--c); stroke: var(--bg); stroke-width: 1; opacity: .85; }
.series.hollow polyline { stroke-dasharray: 5 4; } .series.hollow circle { fill: var(--bg); stroke: var(--c); stroke-width: 1.8; }
.series.bold polyline { stroke-width: 3.2; opacity: 1; } .series.bold circle { opacity: 1; }
.series:hover polyline { stroke-width: 4; opacity: 1; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 3px 18px; padding: 0; margin: 8px 0 0; font-size: 13px; } .legend i { display: inline-block; width: 18px; border-top: 4px solid var(--c); margin-right: 7px; vertical-align: middle; }
.legend .hollow { border-top: 3px dashed var(--c); } .legend .bold { font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; } th, td { padding: 4px 12px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
thead th { font-weight: 600; vertical-align: bottom; line-height: 1.25; } th:first-child { text-align: left; padding-left: 4px; } tbody th { font-weight: 400; } td.text { text-align: left; white-space: normal; min-width: 260px; }
tr.best { background: var(--best); } tr.best th { font-weight: 600; }
.player { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px; }
.controls { display: flex; flex-wrap: wrap; gap: 10px 14px; align-items: center; margin-bottom: 10px; } .controls input[type=range] { flex: 1 1 200px; min-width: 160px; } select, button { font: inherit; color: inherit; background: var(--bg); border: 1px solid var(--rule); border-radius: 6px; padding: 4px 10px; max-width: 100%; } button { min-width: 76px; cursor: pointer; }
.lane { padding: 8px 0; border-top: 1px solid var(--rule); } .lane .who { display: flex; justify-content: space-between; gap: 12px; font-size: 13px; } .lane.bold .who span:first-child { font-weight: 600; } .right { color: var(--bold2); } .wrong { color: var(--bold0); }
.tokens { display: flex; flex-wrap: wrap; gap: 4px; margin-top: 5px; font: 13px/1.5 ui-monospace, monospace; } .tokens span { border-radius: 4px; padding: 1px 6px; min-width: 24px; text-align: center; } .tokens .mask { background: none; outline: 1px dashed var(--rule); outline-offset: -1px; color: transparent; user-select: none; } .tokens .new { outline: 2px solid var(--fg); outline-offset: -1px; } .tokens .eos { opacity: .55; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 14px; overflow-x: auto; font-size: 13px; }
`;

const SCRIPT = `
(() => {
  const views = JSON.parse(document.getElementById('traces').textContent);
  const get = (id) => document.getElementById(id);
  const [choice, slider, play, shown, lanes] = ['choice', 'slider', 'play', 'shown', 'lanes'].map(get);
  let timer = null;
  views.forEach((view, i) => choice.add(new Option(view.prompt, i)));
  const draw = () => {
    const view = views[choice.value], step = Number(slider.value);
    shown.textContent = 'after pass ' + step + ' of ' + slider.max;
    lanes.replaceChildren(...view.lanes.map((lane) => {
      const row = document.createElement('div');
      row.className = 'lane' + (lane.bold ? ' bold' : '');
      const who = row.appendChild(document.createElement('div'));
      who.className = 'who';
      const name = who.appendChild(document.createElement('span'));
      name.textContent = lane.label;
      const state = who.appendChild(document.createElement('span'));
      if (step < lane.nfe) state.textContent = 'pass ' + step;
      else {
        state.textContent = (lane.score === null ? '' : lane.score >= 0.5 ? '\\u2713 right, ' : '\\u2717 wrong, ') + lane.nfe + (lane.nfe === 1 ? ' pass' : ' passes');
        if (lane.score !== null) state.className = lane.score >= 0.5 ? 'right' : 'wrong';
      }
      const tokens = row.appendChild(document.createElement('div'));
      tokens.className = 'tokens';
      lane.tokens.forEach((text, i) => {
        const cell = tokens.appendChild(document.createElement('span'));
        const at = lane.unmaskedAt[i];
        const visible = at > 0 && at <= step;
        // Masked tokens keep their width, so that nothing moves.
        cell.textContent = text.replace(/^<(.*)>$/, '$1');
        cell.className = visible ? (at === step ? 'new' : '') + (/^<.*>$/.test(text) ? ' eos' : '') : 'mask';
        if (visible) { cell.style.background = 'var(--s' + (at - 1) % 8 + ')'; cell.title = 'pass ' + at; }
      });
      return row;
    }));
  };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = 'Play'; };
  const open = () => { stop(); slider.max = Math.max(...views[choice.value].lanes.map((lane) => lane.nfe)); slider.value = Math.min(2, slider.max); draw(); };
  play.addEventListener('click', () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    play.textContent = 'Pause';
    timer = setInterval(() => { slider.value = Number(slider.value) + 1; draw(); if (slider.value === slider.max) stop(); }, 700);
    draw();
  });
  choice.addEventListener('change', open);
  slider.addEventListener('input', () => { stop(); draw(); });
  if (views.length > 0) open();
})();
`;

const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  `<div class="scroll"><table><thead><tr>${head.map((title) => `<th>${title}</th>`).join('')}</tr></thead><tbody>${rows
    .map(
      ([first, ...cells]) =>
        `<tr><th scope="row">${first}</th>${cells.map((cell) => `<td>${cell}</td>`).join('')}</tr>`,
    )
    .join('')}</tbody></table></div>`;

/** Means over the seeds, the area under each rule's curve, and published figures of the same data set. */
function campaignSection({ rows, curves, seeds, config }: Campaign): string {
  const spread = ({ mean, sd }: Spread, digits: number, scale = 1) =>
    `${(scale * mean).toFixed(digits)}${seeds.length > 1 ? ` <small>± ${(scale * sd).toFixed(digits)}</small>` : ''}`;
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
    `<h2>All models and seeds</h2><p>Mean${seeds.length > 1 ? ` ± standard deviation over the seeds ${seeds.join(', ')}` : `, seed ${seeds[0]}`}. Tokens per second count what stands up to the end of the answer, without prompts.</p>`,
    table(
      [
        'model: sampler',
        'right, %',
        'forward passes',
        'tokens per pass<br><small>all positions</small>',
        'tokens per pass<br><small>up to the end</small>',
        'tokens/s',
      ],
      means,
    ),
    '<h2>Accuracy under parallelism</h2><p>AUP as d3LLM defines it: the area under accuracy (percent, weighted by its share of the best) against tokens per pass up to the end.</p>',
    table(
      ['model: rule', 'AUP'],
      curves.map(({ model, group, aup }) => [escapeHtml(`${model}: ${group}`), aup.toFixed(1)]),
    ),
    ...(published.length > 0
      ? [
          `<h2>Published figures on ${escapeHtml(config.dataset)}</h2><p>Not measured here: as their sources give them, on other machines, prompts and rules of counting.</p>`,
          table(
            ['method (published)', 'right, %', 'forward passes', 'tokens per pass', 'source'],
            published.map(({ method, accuracy, nfe, tokensPerForward, source }) => [
              escapeHtml(`${method} (published)`),
              accuracy.toFixed(1),
              number(nfe),
              number(tokensPerForward),
              `<small>${escapeHtml(source)}</small>`,
            ]),
          ),
        ]
      : []),
  ].join('\n');
}

/** The report as one HTML text: no requests, legible in light and dark. */
export function renderReport({ title, summary, runs, campaign, commands = [] }: ReportInput): string {
  const [{ config }] = runs.map(({ evaluation }) => evaluation);
  const { cost, isWeighted } = costOf(runs);
  const traces = tracesOf(runs, cost);
  const facts = `${config.count} prompts of the ${config.split} split of ${config.dataset}, seed ${config.seed}; ${config.genLength} tokens in blocks of ${config.blockLength}, token temperature ${config.temperature}; ${config.device} (${config.isa}, ${config.threads} threads), dultra ${config.version}`;
  const player =
    traces.length === 0
      ? ''
      : `<h2>Step by step</h2><p>How the answer to one prompt comes about. A colour is a forward pass; empty cells are still masked; a frame marks what the pass shown has decided.</p><div class="player"><div class="controls"><select id="choice" aria-label="Prompt"></select><button id="play" type="button">Play</button><input id="slider" type="range" min="0" max="1" value="0" aria-label="Forward pass"><span id="shown" class="soft"></span></div><div id="lanes"></div></div><script type="application/json" id="traces">${embedJson(traces)}</script><script>${SCRIPT}</script>`;
  const tables = runs.map((run) => `<h3>${escapeHtml(run.label)}</h3>${mainTable(run, cost)}`).join('');
  const hasCategories =
    new Set(runs.flatMap(({ evaluation }) => evaluation.results.flatMap(({ categories }) => Object.keys(categories))))
      .size > 1;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<h1>${escapeHtml(title)}</h1>
<p>${escapeHtml(summary)}</p>
<p class="soft">${escapeHtml(facts)}</p>
<h2>Accuracy against forward passes</h2>
${chart(seriesOf(runs, cost), isWeighted)}
${player}
<h2>Samplers</h2>
<p>The settings that no other setting of the same rule beats; shaded: that no sampler in the table beats.</p>
${tables}
${hasCategories ? `<h2>By kind of prompt</h2><p>Right answers in percent @ forward passes, for the settings that no other beats.</p>${categoryTable(runs, cost)}` : ''}
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
