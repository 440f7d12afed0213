// npm run pictures: the pictures of README.md and docs/, made from runs of the embedded models and from bench/results.
//
//   node scripts/make-pictures.cjs            all of them
//   node scripts/make-pictures.cjs frontier   one
const { mkdirSync, readFileSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const dultra = require('..');

const root = path.resolve(__dirname, '..');
const OUT = path.join(root, 'docs', 'pictures');
const BASE = path.join(root, 'models', 'base');
const DATASET = dultra.datasets.byName('st1');
/** A held-out prompt. */
const EXAMPLE = DATASET.sample('test', 64, 0).find(({ category }) => category === 'story');
const PROMPT = EXAMPLE.prompt;
const COUNT = 512;

const escapeXml = (text) =>
  text.replace(/[&<>"]/g, (character) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[character]);
const at = (value) => String(Math.round(10 * value) / 10);

/**
 * Every picture is so wide that its letters can be read on a phone, which shows it in about 358 pixels; a page on a
 * large screen shows it in SHOWN.
 */
const WIDTH = 480;
const SHOWN = 620;
const LEFT = 18;
const RIGHT = WIDTH - LEFT;

/** Colours in light and in dark: of letters and marks, and of the steps, one after the other. */
const COLORS = {
  card: ['#ffffff', '#0d1117'],
  rule: ['#d8dee4', '#30363d'],
  edge: ['#79818a', '#7d8590'],
  fg: ['#1b1f24', '#e6edf3'],
  soft: ['#57606a', '#9198a1'],
  good: ['#116329', '#5bd67f'],
  bad: ['#c01c28', '#ff7b82'],
  before: ['#57606a', '#a8b1bb'],
  after: ['#0550ae', '#6cb2ff'],
  planner: ['#c01c28', '#ff7b82'],
  bf16: ['#a34a00', '#ffae57'],
  s0: ['#cfe3fb', '#1f3f63'],
  s1: ['#cdeed6', '#1d4a2b'],
  s2: ['#fde7b3', '#5a4510'],
  s3: ['#f6d3e6', '#57284a'],
  s4: ['#ddd6f8', '#3a3268'],
  s5: ['#fad4c2', '#5e3220'],
  s6: ['#c6ecee', '#124848'],
  s7: ['#e6e1d3', '#45402f'],
};
const STEP_COLORS = 8;
const FONT = 'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"';
const SANS = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"';
const SIZE = 15;
const CHARACTER = 9.1; // width of one at 15 px, generously
const CELL = 24; // height of a word

/** Attributes that fill or outline in a colour of COLORS; the dark one follows the reader's choice. */
const fill = (name) => `class="f-${name}" fill="${COLORS[name][0]}"`;
const stroke = (name) => `class="l-${name}" stroke="${COLORS[name][0]}"`;

/** A picture on a card, with what it shows in words for those who cannot see it. */
function svg(height, title, body, style = '') {
  const rows = Object.entries(COLORS).filter(([name]) => new RegExp(`class="[fl]-${name}[" ]`).test(body));
  const dark = [['card', COLORS.card], ['rule', COLORS.rule], ...rows].map(
    ([name, [, color]]) => `.f-${name}{fill:${color}}.l-${name}{stroke:${color}}`,
  );
  const css = `${style}@media (prefers-color-scheme:dark){${[...new Set(dark)].join('')}}`;
  const card = `<rect x="0.5" y="0.5" width="${WIDTH - 1}" height="${Math.ceil(height) - 1}" rx="10" class="f-card l-rule" fill="#ffffff" stroke="#d8dee4"/>`;
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${Math.ceil(height)}" width="${SHOWN}" role="img">` +
    `<title>${escapeXml(title)}</title><style>${css}</style>${card}${body}</svg>\n`
  );
}

function text(x, y, content, { size = SIZE, color = 'fg', font = SANS, anchor = 'start', weight = 400 } = {}) {
  return `<text x="${at(x)}" y="${at(y)}" font-size="${size}" ${fill(color)} ${font} text-anchor="${anchor}" font-weight="${weight}">${escapeXml(content)}</text>`;
}

/**
 * One generation: the words that it decided, in their places, each with the pass (from 1) that decided it, and whether
 * they are right.
 */
async function trace(model, prompt, sampler) {
  const words = [];
  let done = null;
  for await (const { step, unmasked, result } of model.generateStream(prompt, { sampler })) {
    for (const { position, text: word } of unmasked)
      words.push({ position, word: word.trim() === '' ? 'eos' : word.trim(), step });
    done = result;
  }
  words.sort((a, b) => a.position - b.position);
  return {
    words: words.filter(({ word }, i) => word !== 'eos' || words[i - 1]?.word !== 'eos'),
    nfe: done.nfe,
    isRight: DATASET.verify(EXAMPLE, done.text),
  };
}

/** Lines of text of at most so many letters. */
function wrap(words, most) {
  const lines = [];
  for (const word of words)
    if (lines.length > 0 && lines[lines.length - 1].length + 1 + word.length <= most)
      lines[lines.length - 1] += ` ${word}`;
    else lines.push(word);
  return lines;
}

/** Words in lines, each in a box as wide as it is long: [{ word, step, x, y, width }]; y from 0. */
function layOut(words) {
  let x = LEFT;
  let y = 0;
  return words.map(({ word, step }) => {
    const width = word.length * CHARACTER + 8;
    if (x + width > RIGHT) {
      x = LEFT;
      y += CELL + 4;
    }
    const cell = { word, step, x, y, width };
    x += width + 4;
    return cell;
  });
}

const bottomOf = (cells) => cells[cells.length - 1].y + CELL;
const colorOf = (step) => `s${(step - 1) % STEP_COLORS}`;
const passesOf = (nfe) => `${nfe} forward pass${nfe === 1 ? '' : 'es'}`;

/** A decided word, on the colour of its pass or, if an earlier pass decided it, on none; or an empty box. */
function cellAt({ word, step, x, y, width }, top, { isDecided = true, isNew = true } = {}) {
  const box = `<rect x="${at(x)}" y="${at(top + y)}" width="${at(width)}" height="${CELL}" rx="4" `;
  if (!isDecided) return `${box}fill="none" ${stroke('edge')} stroke-dasharray="3 3"/>`;
  const label = text(x + width / 2, top + y + 17, word, {
    font: FONT,
    anchor: 'middle',
    color: word === 'eos' ? 'soft' : 'fg',
  });
  return `${box}${isNew ? fill(colorOf(step)) : fill('card')}/>${label}`;
}

/** unmasking.svg: pass by pass, under two samplers. */
async function unmasking(model) {
  const panels = [];
  for (const [label, sampler] of [
    ['the planner', { type: 'planner' }],
    ['threshold 0.9', { type: 'confidence', threshold: 0.9 }],
  ])
    panels.push({ label, ...(await trace(model, PROMPT, sampler)) });
  let y = 12;
  const parts = [];
  for (const line of wrap(`prompt: ${PROMPT}`.split(' '), 47)) {
    y += 20;
    parts.push(text(LEFT, y, line, { font: FONT }));
  }
  for (const { label, words, nfe, isRight } of panels) {
    y += 40;
    parts.push(text(LEFT, y, `${label}: ${passesOf(nfe)}, ${isRight ? 'right' : 'wrong'}`, { weight: 600, size: 17 }));
    const cells = layOut(words);
    for (let pass = 1; pass <= nfe; pass++) {
      y += 24;
      parts.push(text(LEFT, y, `pass ${pass}`, { color: 'soft' }));
      y += 8;
      for (const cell of cells)
        parts.push(cellAt(cell, y, { isDecided: cell.step <= pass, isNew: cell.step === pass }));
      y += bottomOf(cells);
    }
  }
  const names = panels.map(({ label }) => label).join(' and ');
  return svg(y + 18, `How the answer fills, pass by pass, under ${names}`, parts.join(''));
}

/** samplers.svg: which pass decided which word, under every sampler. */
async function samplers(model) {
  const names = [
    'planner',
    'planner-round',
    'confidence:0.9',
    'factor:1',
    'entropy:0.1',
    'entropy-sum:0.2',
    'geometric:0.5',
    'fixed:6',
    'fixed:24',
  ];
  let y = 30;
  const parts = [
    text(LEFT, y, 'a square is a word; its number is the pass that decided it', { color: 'soft', size: 14 }),
  ];
  y += 10;
  const traces = [];
  for (const name of names) traces.push({ name, ...(await trace(model, PROMPT, dultra.parseSampler(name))) });
  const width = (RIGHT - LEFT) / Math.max(...traces.map(({ words }) => words.length));
  for (const { name, words, nfe, isRight } of traces) {
    y += 24;
    parts.push(
      text(LEFT, y, name, { font: FONT, weight: 600 }),
      text(RIGHT - 76, y, passesOf(nfe), { anchor: 'end' }),
      text(RIGHT, y, isRight ? '✓ right' : '✗ wrong', {
        anchor: 'end',
        color: isRight ? 'good' : 'bad',
        weight: 600,
      }),
    );
    y += 8;
    words.forEach(({ step }, i) => {
      const x = LEFT + i * width;
      parts.push(
        `<rect x="${at(x)}" y="${y}" width="${at(width - 1.5)}" height="22" rx="3" ${fill(colorOf(step))}/>`,
        text(x + width / 2 - 0.7, y + 16, String(step), { size: 14, anchor: 'middle' }),
      );
    });
    y += 26;
  }
  return svg(y + 12, `The pass that decided each word, under ${names.length} samplers`, parts.join(''));
}

const TICK = 0.4; // seconds
const PAUSE = 6; // ticks at the end

/**
 * demo.svg: the planner and one token per pass, on the same clock. Moves where animations do; elsewhere it shows the
 * end.
 */
async function demo(model) {
  const panels = [];
  for (const [label, sampler] of [
    ['the planner', { type: 'planner' }],
    ['one token per pass', { type: 'fixed' }],
  ])
    panels.push({ label, ...(await trace(model, PROMPT, sampler)) });
  const ticks = 1 + Math.max(...panels.map(({ nfe }) => nfe)) + PAUSE;
  const total = at(ticks * TICK);
  const steps = new Set(panels.flatMap(({ words }) => words.map(({ step }) => step)));
  const rules = [...steps].map((step) => {
    const share = ((100 * step) / ticks).toFixed(3);
    return `@keyframes on${step}{0%,${share}%{opacity:0}${(Number(share) + 0.01).toFixed(3)}%,100%{opacity:1}}.on${step}{animation:on${step} ${total}s infinite}`;
  });
  const style = `@media (prefers-reduced-motion:no-preference){${rules.join('')}}`;
  let y = 12;
  const parts = [];
  for (const line of wrap(`$ npx dultra generate --stream "${PROMPT}"`.split(' '), 47)) {
    y += 20;
    parts.push(text(LEFT, y, line, { font: FONT, color: 'soft' }));
  }
  for (const { label, words, nfe } of panels) {
    y += 40;
    parts.push(
      text(LEFT, y, label, { weight: 600, size: 17 }),
      text(RIGHT, y, passesOf(nfe), { weight: 600, size: 17, anchor: 'end', color: 'good' }),
    );
    y += 12;
    const cells = layOut(words);
    for (const cell of cells)
      parts.push(cellAt(cell, y, { isDecided: false }), `<g class="on${cell.step}">${cellAt(cell, y)}</g>`);
    y += bottomOf(cells);
  }
  const title = `The same model and prompt: ${panels.map(({ label, nfe }) => `${label}, ${nfe} passes`).join('; ')}`;
  return svg(y + 18, title, parts.join(''), style);
}

const HEIGHT = 430;
const MARGIN = { top: 108, right: 20, bottom: 56, left: 58 };

/** Lines and numbers of frontier.svg's axes. */
function axes(x, y, most) {
  const parts = [];
  for (let share = 0; share <= 10; share += 2)
    parts.push(
      `<line x1="${MARGIN.left}" x2="${WIDTH - MARGIN.right}" y1="${at(y(share / 10))}" y2="${at(y(share / 10))}" ${stroke('rule')}/>`,
      text(MARGIN.left - 8, y(share / 10) + 5, `${share * 10} %`, { size: 14, anchor: 'end', color: 'soft' }),
    );
  for (const tick of [1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24].filter((value) => value <= most))
    parts.push(
      `<line x1="${at(x(tick))}" x2="${at(x(tick))}" y1="${MARGIN.top}" y2="${HEIGHT - MARGIN.bottom}" ${stroke('rule')}/>`,
      text(x(tick), HEIGHT - MARGIN.bottom + 19, String(tick), { size: 14, anchor: 'middle', color: 'soft' }),
    );
  parts.push(
    text(LEFT, MARGIN.top - 14, 'right answers, ↑ more is better'),
    text(RIGHT, HEIGHT - 12, '← fewer is better · forward passes per answer', { anchor: 'end' }),
  );
  return parts;
}

/** frontier.svg: accuracy against forward passes, before and after GRPO, on held-out prompts. */
async function frontier() {
  const dataset = DATASET;
  const grid = dultra.samplerGrid({ size: 'full', maxTokens: dataset.maxTokens });
  const isPlanner = (group) => group.startsWith('planner');
  const lines = [];
  for (const { folder, label, color, choose, dash = '' } of [
    { folder: BASE, label: 'before GRPO, heuristics', color: 'before', choose: ({ group }) => !isPlanner(group) },
    {
      folder: undefined,
      label: 'after GRPO, heuristics (planner not used)',
      color: 'after',
      choose: ({ group }) => !isPlanner(group),
      dash: '5 4',
    },
    { folder: undefined, label: 'after GRPO, the planner', color: 'planner', choose: ({ group }) => isPlanner(group) },
  ]) {
    const model = await dultra.loadModel(folder);
    const chosen = Object.fromEntries(grid.filter(choose).map(({ name, sampler }) => [name, sampler]));
    const { results } = await dultra.evaluate(model, { dataset, samplers: chosen, count: COUNT });
    model.dispose();
    lines.push({
      label,
      color,
      dash,
      points: results.map(({ name, accuracy, accuracyError: error, nfe }) => ({
        name,
        accuracy,
        error,
        nfe: nfe.mean,
      })),
    });
  }
  const most = dataset.maxTokens * 1.05;
  const x = (nfe) => MARGIN.left + (Math.log(Math.max(1, nfe)) / Math.log(most)) * (WIDTH - MARGIN.left - MARGIN.right);
  const y = (accuracy) => MARGIN.top + (1 - accuracy) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const parts = axes(x, y, most);
  // The best setting of each line has its name: below the others, where there is room.
  const names = [];
  lines.forEach(({ label, color, dash, points }, i) => {
    const best = dultra.frontier(points);
    const dashes = dash && ` stroke-dasharray="${dash}"`;
    const curve = best.map(({ nfe, accuracy }) => `${at(x(nfe))},${at(y(accuracy))}`).join(' ');
    const bars = best.map(
      ({ nfe, accuracy, error }) =>
        `<line x1="${at(x(nfe))}" x2="${at(x(nfe))}" y1="${at(y(Math.min(1, accuracy + error)))}" y2="${at(y(accuracy - error))}" ${stroke(color)}/>`,
    );
    const dots = points.map(
      ({ name, nfe, accuracy }) =>
        `<circle cx="${at(x(nfe))}" cy="${at(y(accuracy))}" r="3" ${fill(color)}><title>${escapeXml(name)}</title></circle>`,
    );
    parts.push(
      dots.join(''),
      bars.join(''),
      `<polyline points="${curve}" fill="none" ${stroke(color)} stroke-width="2.5"${dashes}/>`,
    );
    const top = 26 + 21 * i;
    parts.push(
      `<line x1="${LEFT}" x2="${LEFT + 26}" y1="${top - 5}" y2="${top - 5}" ${stroke(color)} stroke-width="3"${dashes}/>`,
      text(LEFT + 34, top, label, { size: 15, color }),
    );
    const last = best[best.length - 1];
    names.push({ name: last.name, color, x: x(last.nfe), y: y(last.accuracy) });
  });
  names.sort((a, b) => a.x - b.x);
  names.forEach(({ name, color, x: left, y: top }, i) => {
    const base = y(0.22) + 22 * i;
    parts.push(
      `<path d="M${at(left)} ${at(top + 5)}V${at(base - 14)}" fill="none" ${stroke(color)} stroke-dasharray="1 4"/>`,
      text(Math.min(left, RIGHT - name.length * 9), base, name, { size: 14, color, weight: 600 }),
    );
  });
  return svg(
    HEIGHT,
    `Accuracy against forward passes on ${COUNT} held-out word problems: before GRPO with every heuristic, after it with the planner and without`,
    parts.join(''),
  );
}

const BENCH = '2026-11-25-cpu-avx512-bf16';

/** forward.svg: how many times as fast as onnxruntime-node a forward pass is. */
function forward() {
  const { machine, sections } = JSON.parse(readFileSync(path.join(root, 'bench', 'results', `${BENCH}.json`), 'utf8'));
  const rows = sections
    .find(({ name }) => name === 'forward')
    .rows.filter(({ contender }) => contender !== 'onnxruntime-node' && contender !== 'dultra bf16 weights');
  const shapeOf = ({ shape, threads }) => `${shape}, ${threads} thread${threads > 1 ? 's' : ''}`;
  const shapes = [...new Set(rows.map(shapeOf))];
  const colors = { 'dultra fp32': 'after', 'dultra bf16 compute': 'bf16' };
  const scale = 150;
  const one = LEFT + scale;
  const parts = [text(LEFT, 28, 'forward pass: speed, onnxruntime-node (fp32) = 1', { weight: 600 })];
  Object.entries(colors).forEach(([name, color], i) => {
    parts.push(
      `<rect x="${LEFT + 90 * i}" y="42" width="13" height="13" rx="2" ${fill(color)}/>`,
      text(LEFT + 20 + 90 * i, 54, name.replace('dultra ', ''), { size: 14 }),
    );
  });
  parts.push(text(LEFT, 76, 'C: hidden size × layers; T: tokens', { size: 14, color: 'soft' }));
  let y = 88;
  for (const shape of shapes) {
    y += 18;
    parts.push(text(LEFT, y, shape, { size: 14 }));
    y += 6;
    for (const { contender, ratio } of rows.filter((row) => shapeOf(row) === shape)) {
      const name = contender.replace('dultra ', '').replace(' compute', '');
      parts.push(
        `<rect x="${LEFT}" y="${y}" width="${at(ratio * scale)}" height="16" rx="2" ${fill(colors[contender])}/>`,
        text(LEFT + ratio * scale + 6, y + 13, `${ratio.toFixed(2)} × ${name}`, { size: 14, color: 'soft' }),
      );
      y += 18;
    }
    y += 4;
  }
  parts.push(
    `<line x1="${one}" x2="${one}" y1="92" y2="${y}" ${stroke('fg')} stroke-dasharray="3 3"/>`,
    text(LEFT, y + 22, `${machine.cpu} (${machine.isa})`, { size: 14, color: 'soft' }),
    text(LEFT, y + 42, `${machine.date}, npm run bench`, { size: 14, color: 'soft' }),
  );
  return svg(y + 56, 'Speed of a forward pass beside onnxruntime-node', parts.join(''));
}

async function main() {
  const pictures = { demo, unmasking, samplers, frontier, forward };
  const wanted = process.argv.slice(2);
  const unknown = wanted.find((name) => !Object.hasOwn(pictures, name));
  if (unknown) throw new Error(`expected ${Object.keys(pictures).join(', ')}, got ${unknown}`);
  mkdirSync(OUT, { recursive: true });
  const model = await dultra.loadModel();
  for (const [name, draw] of Object.entries(pictures)) {
    if (wanted.length > 0 && !wanted.includes(name)) continue;
    writeFileSync(path.join(OUT, `${name}.svg`), await draw(model));
    process.stdout.write(`docs/pictures/${name}.svg\n`);
  }
  model.dispose();
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exitCode = 1;
});
