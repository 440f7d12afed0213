// Pictures of measurements: from bench/results.
const { readFileSync } = require('node:fs');
const path = require('node:path');
const { HEIGHT, LEFT, RIGHT, at, curve, fill, plot, stroke, svg, text } = require('./svg.cjs');

const RESULTS = path.join(__dirname, '..', '..', 'bench', 'results');
const read = (file) => readFileSync(path.join(RESULTS, file), 'utf8');

/** Rows of cells of the first table behind a heading of a Markdown file. */
function tableBehind(markdown, heading) {
  const begin = markdown.indexOf(heading);
  if (begin < 0) throw new Error(`no heading "${heading}"`);
  const lines = markdown.slice(begin).split('\n');
  const first = lines.findIndex((line) => line.startsWith('|'));
  const last = lines.findIndex((line, i) => i > first && !line.startsWith('|'));
  return lines.slice(first + 2, last).map((line) =>
    line
      .slice(1, -1)
      .split('|')
      .map((cell) => cell.trim()),
  );
}

/** study-st1.svg, study-free12.svg: accuracy within each budget of passes, over five training seeds. */
function study(task, most) {
  const rows = tableBehind(read('study.md'), `## ${task}, seeds 0 to 4`);
  const { x, y, axes } = plot(most);
  const lines = [
    { row: 'base, **best of all heuristics**', label: 'before GRPO, best heuristic', color: 'before' },
    {
      row: 'GRPO base without its planner, **best of all heuristics**',
      label: 'after GRPO, best heuristic (planner not used)',
      color: 'after',
      dash: '5 4',
    },
    { row: 'after GRPO, **best planner rule**', label: 'after GRPO, the planner', color: 'planner' },
  ].map(({ row, ...line }, i) => {
    const cells = rows.find(([name]) => name === row).slice(1);
    const points = cells
      .map((cell) => /^([\d.]+) ± ([\d.]+) @ ([\d.]+)/.exec(cell))
      .filter(Boolean)
      .map(([, accuracy, error, nfe]) => ({ accuracy: Number(accuracy), error: Number(error), nfe: Number(nfe) }))
      // Cells repeat a setting that a larger budget does not change.
      .filter(({ nfe }, j, all) => j === 0 || nfe > all[j - 1].nfe);
    const dots = points.map(
      ({ nfe, accuracy }) => `<circle cx="${at(x(nfe))}" cy="${at(y(accuracy))}" r="4" ${fill(line.color)}/>`,
    );
    return curve({ x, y }, i, { ...line, points }) + dots.join('');
  });
  return svg(
    HEIGHT,
    `${task}: right answers within each budget of forward passes, mean and standard deviation over five training seeds`,
    [...axes, ...lines].join(''),
  );
}

/** caches.svg: right answers with each cache, before and after GRPO on it, and what a pass costs. */
function caches() {
  const markdown = read('cache-study.md');
  // A planner with fresh hidden states is right as often in every setting.
  const rowsOf = (heading) =>
    tableBehind(markdown, heading).filter(([sampler, cache]) => sampler === 'planner' && !cache.includes('fresh'));
  const before = rowsOf('### The model as it is, blocks of 12');
  const after = rowsOf('### After GRPO on the cache, blocks of 12');
  const parts = [
    text(LEFT, 28, 'the planner in blocks of 12, by cache', { weight: 600 }),
    text(LEFT, 50, 'right answers', { size: 14, color: 'soft' }),
    `<rect x="${LEFT + 110}" y="38" width="13" height="13" rx="2" ${fill('before')}/>`,
    text(LEFT + 130, 50, 'before GRPO on a cache', { size: 14 }),
    `<rect x="${LEFT + 312}" y="38" width="13" height="13" rx="2" ${fill('after')}/>`,
    text(LEFT + 332, 50, 'after', { size: 14 }),
  ];
  let y = 62;
  const scale = (RIGHT - LEFT - 70) / 100;
  after.forEach(([, cache, right, , , , share], i) => {
    y += 20;
    parts.push(
      text(LEFT, y, cache, { weight: 600, size: 14 }),
      text(RIGHT, y, `cost of an answer ${Math.round(100 * Number(share))} %`, {
        size: 14,
        anchor: 'end',
        color: 'soft',
      }),
    );
    y += 6;
    for (const [cell, color] of [
      [before[i][2], 'before'],
      [right, 'after'],
    ]) {
      const value = Number.parseFloat(cell);
      parts.push(
        `<rect x="${LEFT}" y="${y}" width="${at(value * scale)}" height="15" rx="2" ${fill(color)}/>`,
        text(LEFT + value * scale + 6, y + 12.5, `${value.toFixed(1)} %`, { size: 14 }),
      );
      y += 17;
    }
  });
  return svg(y + 18, 'Right answers of the planner with each cache, before and after GRPO', parts.join(''));
}

const BENCH = '2026-11-25-cpu-avx512-bf16';

/** forward.svg: how many times as fast as onnxruntime-node a forward pass is. */
function forward() {
  const { machine, sections } = JSON.parse(read(`${BENCH}.json`));
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

/** steps.svg: the time of a step on a cache and of a full one, by the length of the row. */
function steps() {
  const { machine, sections } = JSON.parse(read(`${BENCH}-cached.json`));
  const rows = sections[0].rows.filter(({ shape, threads }) => shape.startsWith('C 256 x 4') && threads === 1);
  const lengths = [...new Set(rows.map(({ shape }) => Number(/T (\d+)/.exec(shape)[1])))].sort((a, b) => a - b);
  const top = 118;
  const bottom = HEIGHT - 76;
  const left = 76;
  const x = (length) =>
    left + (Math.log(length / lengths[0]) / Math.log(lengths[lengths.length - 1] / lengths[0])) * (RIGHT - 20 - left);
  const y = (ms) => bottom - (Math.log10(ms) / Math.log10(2000)) * (bottom - top);
  const parts = [text(LEFT, top - 14, 'time of a step, ↓ less is better')];
  for (const ms of [1, 10, 100, 1000])
    parts.push(
      `<line x1="${left}" x2="${RIGHT}" y1="${at(y(ms))}" y2="${at(y(ms))}" ${stroke('rule')}/>`,
      text(left - 8, y(ms) + 5, `${ms} ms`, { size: 14, anchor: 'end', color: 'soft' }),
    );
  for (const length of lengths)
    parts.push(text(x(length), bottom + 19, String(length), { size: 14, anchor: 'middle', color: 'soft' }));
  const times = (contender, block) =>
    lengths.flatMap((length) => {
      const row = rows.find(
        (one) => one.contender === contender && new RegExp(`T ${length}\\b.*block ${block}$`).test(one.shape),
      );
      return row ? [[x(length), y(row.median)]] : [];
    });
  const lines = [
    ['full step', times('full step', 8), 'before', ''],
    ['on a cache, block of 128', times('dual-cached step', 128), 'bf16', '2 3'],
    ['on a cache, block of 32', times('dual-cached step', 32), 'after', '5 4'],
    ['on a cache, block of 8', times('dual-cached step', 8), 'planner', ''],
  ];
  lines.forEach(([label, points, color, dash], i) => {
    const dashes = dash && ` stroke-dasharray="${dash}"`;
    const row = 26 + 20 * i;
    parts.push(
      `<polyline points="${points.map((point) => point.map(at).join(',')).join(' ')}" fill="none" ${stroke(color)} stroke-width="2.5"${dashes}/>`,
      ...points.map(([cx, cy]) => `<circle cx="${at(cx)}" cy="${at(cy)}" r="4" ${fill(color)}/>`),
      `<line x1="${LEFT}" x2="${LEFT + 26}" y1="${row - 5}" y2="${row - 5}" ${stroke(color)} stroke-width="3"${dashes}/>`,
      text(LEFT + 34, row, label, { color }),
    );
  });
  parts.push(
    text(RIGHT, bottom + 42, 'tokens in the row', { anchor: 'end' }),
    text(LEFT, bottom + 64, `C 256 × 4, one thread, ${machine.cpu}, ${machine.isa}`, {
      size: 14,
      color: 'soft',
    }),
  );
  return svg(HEIGHT, 'Time of a step on a cache and without one, by the length of the row', parts.join(''));
}

module.exports = { forward, study, caches, steps };
