// Pictures of runs of the embedded models.
const dultra = require('../..');
const {
  CHARACTER,
  FONT,
  HEIGHT,
  LEFT,
  RIGHT,
  STEP_COLORS,
  at,
  curve,
  escapeXml,
  fill,
  plot,
  stroke,
  svg,
  text,
} = require('./svg.cjs');

const BASE = 'word-problems-base';
const DATASET = dultra.datasets.byName('st1');
/** A held-out prompt. */
const EXAMPLE = DATASET.sample('test', 64, 0).find(({ category }) => category === 'story');
const PROMPT = EXAMPLE.prompt;
/** What the model that `loadModel()` loads is asked. */
const QUESTION = 'Tom has 9 apples. He gives 4 to Lily. How many has he now? Explain why.';
const COUNT = 512;

const CELL = 24; // height of a word

/**
 * One generation: the words that it decided, in their places, each with the pass (from 1) that decided it, and whether
 * they are right.
 */
async function trace(model, prompt, sampler) {
  const words = [];
  let done = null;
  for await (const { step, unmasked, result } of model.generateStream(prompt, { sampler })) {
    for (const { position, text: word } of unmasked)
      words.push({ position, word: word === '' ? 'eos' : word.trim() || '␣', step });
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
 * demo.svg: all confident tokens and one token per pass, on the same clock. Moves where animations do; elsewhere it shows the
 * end.
 */
async function demo() {
  const model = await dultra.loadModel();
  const panels = [];
  for (const [label, sampler] of [
    ['all that it is sure of', { type: 'factor', factor: 1 }],
    ['one token per pass', { type: 'fixed' }],
  ])
    panels.push({ label, ...(await trace(model, QUESTION, sampler)) });
  model.dispose();
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
  for (const line of wrap(`$ npx dultra generate --stream "${QUESTION}"`.split(' '), 47)) {
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

/** frontier.svg: accuracy against forward passes, before and after GRPO, on held-out prompts. */
async function frontier() {
  const dataset = DATASET;
  const grid = dultra.samplerGrid({ size: 'full', maxTokens: dataset.genLength });
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
  const { x, y, axes: parts } = plot(dataset.genLength * 1.05);
  // The best setting of each line has its name: below the others, where there is room.
  const names = [];
  lines.forEach((line, i) => {
    const { color, points } = line;
    const best = dultra.frontier(points);
    const dots = points.map(
      ({ name, nfe, accuracy }) =>
        `<circle cx="${at(x(nfe))}" cy="${at(y(accuracy))}" r="3" ${fill(color)}><title>${escapeXml(name)}</title></circle>`,
    );
    parts.push(dots.join(''), curve({ x, y }, i, { ...line, points: best }));
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

module.exports = { demo, unmasking, samplers, frontier };
