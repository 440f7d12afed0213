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
  text.replace(/[&<>]/g, (character) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[character]);
const at = (value) => String(Math.round(10 * value) / 10);

/** Colours of the steps, one after the other. */
const STEPS = ['#cfe3fb', '#cdeed6', '#fde7b3', '#f6d3e6', '#ddd6f8', '#fad4c2', '#c6ecee', '#e6e1d3'];
const FONT = 'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"';
const SANS = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"';
const CHARACTER = 7.9; // width of one at 13 px, generously
const ROW = 26;

/** A picture on a white card, with what it shows in words for those who cannot see it. */
function svg(width, height, title, body, style = '') {
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${Math.ceil(width)} ${Math.ceil(height)}" width="${Math.ceil(width)}" role="img">` +
    `<title>${escapeXml(title)}</title>${style ? `<style>${style}</style>` : ''}` +
    `<rect x="0.5" y="0.5" width="${Math.ceil(width) - 1}" height="${Math.ceil(height) - 1}" rx="10" fill="#ffffff" stroke="#d8dee4"/>${body}</svg>\n`
  );
}

function text(
  x,
  y,
  content,
  { size = 13, fill = '#1b1f24', font = SANS, anchor = 'start', weight = 400, extra = '' } = {},
) {
  return `<text x="${at(x)}" y="${at(y)}" font-size="${size}" fill="${fill}" ${font} text-anchor="${anchor}" font-weight="${weight}"${extra}>${escapeXml(content)}</text>`;
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

/** Words in a line, each in a box as wide as it is long: [{ word, step, x, width }]. */
function layOut(words, left) {
  let x = left;
  return words.map(({ word, step }) => {
    const width = word.length * CHARACTER + 10;
    const cell = { word, step, x, width };
    x += width + 4;
    return cell;
  });
}

const rightEdge = (cells) => cells[cells.length - 1].x + cells[cells.length - 1].width;
const isEnd = (word) => word === 'eos';

/** A decided word on its colour, or an empty box. */
function cellAt({ word, step, x, width }, y, { isDecided = true, isNew = true, number = false } = {}) {
  const box = `<rect x="${at(x)}" y="${at(y)}" width="${at(width)}" height="20" rx="4" `;
  if (!isDecided) return `${box}fill="#f6f8fa" stroke="#d0d7de" stroke-dasharray="3 3"/>`;
  const fill = isNew ? STEPS[(step - 1) % STEPS.length] : '#ffffff';
  const label = text(x + width / 2, y + 14.5, word, {
    font: FONT,
    anchor: 'middle',
    fill: isEnd(word) ? '#8b949e' : '#1b1f24',
  });
  const pass = number ? text(x + width / 2, y + 30, String(step), { size: 10, anchor: 'middle', fill: '#57606a' }) : '';
  return `${box}fill="${fill}"/>${label}${pass}`;
}

/** unmasking.svg: pass by pass, under two samplers. */
async function unmasking(model) {
  const panels = [];
  for (const [label, sampler] of [
    ['the planner', { type: 'planner' }],
    ['confidence threshold 0.9', { type: 'confidence', threshold: 0.9 }],
  ])
    panels.push({ label, ...(await trace(model, PROMPT, sampler)) });
  const left = 78;
  let y = 34;
  let width = 0;
  const parts = [text(20, y, `prompt: ${PROMPT}`, { font: FONT })];
  for (const { label, words, nfe, isRight } of panels) {
    y += 34;
    parts.push(
      text(20, y, `${label}: ${nfe} forward passes, ${isRight ? 'right' : 'wrong'}`, { weight: 600, size: 14 }),
    );
    y += 10;
    const cells = layOut(words, left);
    width = Math.max(width, rightEdge(cells));
    for (let pass = 1; pass <= nfe; pass++) {
      parts.push(text(20, y + 14.5, `pass ${pass}`, { fill: '#57606a', size: 12 }));
      for (const cell of cells)
        parts.push(cellAt(cell, y, { isDecided: cell.step <= pass, isNew: cell.step === pass }));
      y += ROW;
    }
  }
  return svg(
    width + 20,
    y + 12,
    `How the answer fills, pass by pass, under ${panels.map(({ label }) => label).join(' and ')}`,
    parts.join(''),
  );
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
  const left = 196;
  let y = 20;
  let width = 0;
  const parts = [];
  for (const name of names) {
    const { words, nfe, isRight } = await trace(model, PROMPT, dultra.parseSampler(name));
    const cells = layOut(words, left);
    width = Math.max(width, rightEdge(cells));
    parts.push(
      text(20, y + 14.5, name, { font: FONT }),
      text(left - 30, y + 14.5, String(nfe), { anchor: 'end', weight: 600 }),
      text(left - 17, y + 14.5, isRight ? '✓' : '✗', {
        anchor: 'middle',
        fill: isRight ? '#116329' : '#d1242f',
        weight: 600,
      }),
    );
    for (const cell of cells) parts.push(cellAt(cell, y, { number: true }));
    y += 44;
  }
  return svg(width + 20, y + 4, `The pass that decided each word, under ${names.length} samplers`, parts.join(''));
}

const TICK = 0.55; // seconds
const PAUSE = 6; // ticks at the end

/**
 * demo.svg: the planner and one token per pass, on the same clock. Moves where animations do; elsewhere it shows the
 * end.
 */
async function demo(model) {
  const panels = [];
  for (const [label, sampler] of [
    ['dultra, with the planner', { type: 'planner' }],
    ['one token per forward pass', { type: 'fixed' }],
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
  const left = 20;
  let y = 34;
  const command = `$ npx dultra generate --stream "${PROMPT}"`;
  let width = left + command.length * CHARACTER;
  const parts = [text(left, y, command, { font: FONT, fill: '#57606a' })];
  for (const { label, words, nfe } of panels) {
    y += 34;
    parts.push(text(left, y, label, { weight: 600, size: 14 }));
    y += 10;
    const cells = layOut(words, left);
    width = Math.max(width, rightEdge(cells));
    for (const cell of cells)
      parts.push(cellAt(cell, y, { isDecided: false }), `<g class="on${cell.step}">${cellAt(cell, y)}</g>`);
    y += 20;
    parts.push(
      `<g class="on${nfe}">${text(rightEdge(cells), y - 30, `${nfe} forward passes`, { anchor: 'end', weight: 600, fill: '#116329' })}</g>`,
    );
  }
  return svg(
    width + 20,
    y + 18,
    `The same model and prompt: ${panels.map(({ label, nfe }) => `${label}, ${nfe} passes`).join('; ')}`,
    parts.join(''),
    style,
  );
}

const WIDTH = 720;
const HEIGHT = 420;
const MARGIN = { top: 62, right: 24, bottom: 52, left: 66 };

/** frontier.svg: accuracy against forward passes, before and after GRPO, on held-out prompts. */
async function frontier() {
  const dataset = DATASET;
  const grid = dultra.samplerGrid({ size: 'full', maxTokens: dataset.maxTokens });
  const isPlanner = (group) => group.startsWith('planner');
  const lines = [];
  for (const { folder, label, color, choose, dash = '' } of [
    { folder: BASE, label: 'before GRPO, every heuristic', color: '#57606a', choose: ({ group }) => !isPlanner(group) },
    {
      folder: undefined,
      label: 'after GRPO, every heuristic (planner not used)',
      color: '#0550ae',
      choose: ({ group }) => !isPlanner(group),
      dash: '5 4',
    },
    { folder: undefined, label: 'after GRPO, the planner', color: '#d1242f', choose: ({ group }) => isPlanner(group) },
  ]) {
    const model = await dultra.loadModel(folder);
    const chosen = Object.fromEntries(grid.filter(choose).map(({ name, sampler }) => [name, sampler]));
    const { results } = await dultra.evaluate(model, { dataset, samplers: chosen, count: COUNT });
    model.dispose();
    lines.push({
      label,
      color,
      dash,
      points: results.map(({ name, accuracy, nfe }) => ({ name, accuracy, nfe: nfe.mean })),
    });
  }
  const most = dataset.maxTokens * 1.05;
  const x = (nfe) => MARGIN.left + (Math.log(Math.max(1, nfe)) / Math.log(most)) * (WIDTH - MARGIN.left - MARGIN.right);
  const y = (accuracy) => MARGIN.top + (1 - accuracy) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const parts = [];
  for (let share = 0; share <= 10; share += 2)
    parts.push(
      `<line x1="${MARGIN.left}" x2="${WIDTH - MARGIN.right}" y1="${at(y(share / 10))}" y2="${at(y(share / 10))}" stroke="#e4e8ec"/>`,
      text(MARGIN.left - 8, y(share / 10) + 4, `${share * 10} %`, { size: 12, anchor: 'end', fill: '#57606a' }),
    );
  for (const tick of [1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24].filter((value) => value <= most))
    parts.push(
      `<line x1="${at(x(tick))}" x2="${at(x(tick))}" y1="${MARGIN.top}" y2="${HEIGHT - MARGIN.bottom}" stroke="#e4e8ec"/>`,
      text(x(tick), HEIGHT - MARGIN.bottom + 18, String(tick), { size: 12, anchor: 'middle', fill: '#57606a' }),
    );
  parts.push(
    text(
      (MARGIN.left + WIDTH - MARGIN.right) / 2,
      HEIGHT - 12,
      `forward passes per answer (mean of ${COUNT} held-out prompts)`,
      {
        anchor: 'middle',
      },
    ),
    text(0, 0, 'right answers', {
      anchor: 'middle',
      extra: ` transform="translate(18 ${(MARGIN.top + HEIGHT - MARGIN.bottom) / 2}) rotate(-90)"`,
    }),
  );
  lines.forEach(({ label, color, dash, points }, i) => {
    const best = dultra.frontier(points).map(({ nfe, accuracy }) => `${at(x(nfe))},${at(y(accuracy))}`);
    const dots = points.map(
      ({ name, nfe, accuracy }) =>
        `<circle cx="${at(x(nfe))}" cy="${at(y(accuracy))}" r="3" fill="${color}" opacity="0.55"><title>${escapeXml(name)}</title></circle>`,
    );
    parts.push(
      dots.join(''),
      `<polyline points="${best.join(' ')}" fill="none" stroke="${color}" stroke-width="2.5"${dash && ` stroke-dasharray="${dash}"`}/>`,
    );
    const top = 18 + 17 * i;
    parts.push(
      `<line x1="${MARGIN.left}" x2="${MARGIN.left + 26}" y1="${top - 4}" y2="${top - 4}" stroke="${color}" stroke-width="2.5"${dash && ` stroke-dasharray="${dash}"`}/>`,
      text(MARGIN.left + 34, top, label, { size: 12.5 }),
    );
  });
  return svg(
    WIDTH,
    HEIGHT,
    'Accuracy against forward passes on word problems: before GRPO with every heuristic, after it with the planner and without',
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
  const shapes = [...new Set(rows.map(({ shape, threads }) => `${shape}, ${threads} thread${threads > 1 ? 's' : ''}`))];
  const colors = { 'dultra fp32': '#4e79a7', 'dultra bf16 compute': '#f28e2b' };
  const left = 250;
  const scale = 170;
  const parts = [];
  let y = 60;
  Object.entries(colors).forEach(([name, color], i) => {
    parts.push(
      `<rect x="${left + 190 * i}" y="16" width="12" height="12" rx="2" fill="${color}"/>`,
      text(left + 18 + 190 * i, 26.5, name.replace('dultra ', ''), { size: 12.5 }),
    );
  });
  for (const shape of shapes) {
    const own = rows.filter((row) => `${row.shape}, ${row.threads} thread${row.threads > 1 ? 's' : ''}` === shape);
    parts.push(text(left - 10, y + 7 + 7 * (own.length - 1), shape, { size: 12.5, anchor: 'end' }));
    for (const { contender, ratio } of own) {
      parts.push(
        `<rect x="${left}" y="${y - 4}" width="${at(ratio * scale)}" height="12" rx="2" fill="${colors[contender]}"/>`,
        text(left + ratio * scale + 6, y + 6, `${ratio.toFixed(2)} ×`, { size: 11.5, fill: '#57606a' }),
      );
      y += 15;
    }
    y += 9;
  }
  const one = left + scale;
  parts.push(
    `<line x1="${one}" x2="${one}" y1="44" y2="${y - 6}" stroke="#1b1f24" stroke-dasharray="3 3"/>`,
    text(one, 42, 'onnxruntime-node (fp32) = 1', { size: 11.5, anchor: 'middle', fill: '#57606a' }),
  );
  parts.push(
    text(20, y + 12, `${machine.cpu} (${machine.isa}), ${machine.date}, npm run bench`, {
      size: 11.5,
      fill: '#57606a',
    }),
  );
  return svg(left + 2.6 * scale, y + 26, 'Speed of a forward pass beside onnxruntime-node', parts.join(''));
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
