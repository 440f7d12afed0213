// The page that evaluations are shown on: what is drawn, and that texts from models cannot break out of it.
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { runInNewContext } from 'node:vm';
import {
  createModel,
  datasets,
  type Evaluation,
  evaluate,
  loadModel,
  type MaskedDiffusionModel,
  renderReport,
  samplerGrid,
  writeReport,
} from '../lib';
import { reportStyle } from '../lib/evaluation/report-html';
import { temporaryFolder } from './helpers';

const task = datasets.wordProblems('st1');
const samplers = {
  'threshold 0.5': { type: 'confidence', threshold: 0.5 },
  'threshold 0.9': { type: 'confidence', threshold: 0.9 },
} as const;
const group = (name: string) => name.replace(/ [\d.]+$/, '');

let model: MaskedDiffusionModel;
let evaluation: Evaluation;
beforeAll(async () => {
  const folder = temporaryFolder();
  await createModel(folder, { vocabulary: task.vocabulary, dModel: 16, nLayers: 1, nHeads: 2, seed: 3 });
  model = await loadModel(folder, { threads: 2 });
  evaluation = await evaluate(model, { dataset: task, samplers, count: 12, traces: 3 });
});
afterAll(() => model.dispose());

const count = (text: string, pattern: RegExp) => text.match(pattern)?.length ?? 0;

test('one model: a dot per setting, a row per setting on its frontier, the traces', () => {
  const page = renderReport({ title: 'One', summary: 'A summary.', runs: [{ label: 'model', evaluation, group }] });
  expect(count(page, /<circle /g)).toBe(2);
  expect(count(page, /<g class="series"/g)).toBe(1);
  expect(page).toContain('<li><i style="--c: var(--line0)"></i>threshold</li>');
  expect(page).toContain('12 prompts of the test split of st1');
  const views = JSON.parse(/<script type="application\/json" id="traces">(.*?)<\/script>/.exec(page)![1]);
  expect(views.map(({ prompt }: { prompt: string }) => prompt)).toEqual(
    task.sample('test', 3, 0).map(({ prompt }) => prompt),
  );
  expect(views.map(({ expected }: { expected: string }) => expected)).toEqual(
    task.sample('test', 3, 0).map(({ answer }) => answer),
  );
  for (const { lanes } of views)
    for (const { tokens, unmaskedAt, nfe } of lanes) {
      expect(tokens).toHaveLength(24);
      expect(Math.max(...unmaskedAt)).toBe(nfe);
    }
});

test('a second model has the colours of the first one, hollow; what is meant is bold', () => {
  const runs = [
    { label: 'before', evaluation, group },
    { label: 'after', evaluation, group, emphasis: () => true },
    { label: 'without', evaluation, group },
  ];
  const page = renderReport({ title: 'Three', summary: '', runs });
  expect(page.match(/<g class="series[^>]*>/g)).toEqual([
    '<g class="series" style="--c: var(--line0)">',
    '<g class="series hollow" style="--c: var(--line0)">',
    '<g class="series bold" style="--c: var(--bold0)">',
  ]);
  for (const label of ['before', 'after', 'without']) expect(page).toContain(`<h3>${label}</h3><ul class="legend">`);
  expect(count(page, /<\/i>threshold<\/li>/g)).toBe(3);
  // Only what is meant has its name on the chart.
  expect(page.match(/<text class="name[^>]*>/g)).toHaveLength(1);
});

test('texts stay texts', async () => {
  const evil = '</script><script>alert(1)</script>"&\u2028';
  const [result] = evaluation.results;
  const [sample, ...others] = result.samples;
  const changed = {
    ...evaluation,
    results: [{ ...result, name: evil, samples: [{ ...sample, prompt: evil }, ...others] }],
  };
  const runs = [{ label: evil, evaluation: changed, group: () => evil }];
  const page = renderReport({ title: evil, summary: evil, runs, commands: [evil] });
  expect(page).not.toContain('<script>alert');
  expect(/<script type="application\/json" id="traces">(.*?)<\/script>/s.exec(page)![1]).not.toContain('\u2028');
  expect(count(page, /<\/script>/g)).toBe(2);
  const file = path.join(temporaryFolder(), 'report.html');
  writeFileSync(file, 'old');
  await writeReport(file, { title: evil, summary: evil, runs, commands: [evil] });
  expect(readFileSync(file, 'utf8')).toBe(page);
});

test('every dot says its name, its accuracy with the error, and its passes', () => {
  const page = renderReport({ title: 'One', summary: '', runs: [{ label: 'model', evaluation, group }] });
  const names = [...page.matchAll(/<g class="dot" role="img" aria-label="([^"]*)">(<line class="error")?/g)];
  expect(names.map(([, name]) => name)).toEqual(
    evaluation.results.map(
      ({ name, accuracy, accuracyError, nfe }) =>
        `threshold, ${name}: ${(100 * accuracy).toFixed(1)} ± ${(100 * accuracyError).toFixed(1)} % right at ${nfe.mean.toFixed(2)} passes`,
    ),
  );
  expect(names.map(([, , bar]) => bar !== undefined)).toEqual(
    evaluation.results.map(({ accuracyError }) => accuracyError > 0),
  );
});

describe('the conclusion', () => {
  const made = (settings: Record<string, [accuracy: number, nfe: number]>): Evaluation => ({
    ...evaluation,
    results: Object.entries(settings).map(([name, [accuracy, nfe]]) => ({
      ...evaluation.results[0],
      name,
      accuracy,
      accuracyError: 0.01,
      nfe: { mean: nfe, sd: 0 },
    })),
  });
  const conclusion = (runs: Parameters<typeof renderReport>[0]['runs']) =>
    /<p class="conclusion">(.*?)<\/p>/
      .exec(renderReport({ title: '', summary: '', runs }))![1]
      .replaceAll('&quot;', '"');

  test('the fastest setting within the error of the best, beside the best', () => {
    const own = made({ slow: [0.95, 24], fast: [0.945, 3], faster: [0.9, 2] });
    expect(conclusion([{ label: 'model', evaluation: own, group }])).toBe(
      '"fast" is 94.5 ± 1.0 % right in 3.00 forward passes; ' +
        'the most accurate setting to compare it with ("slow") is 95.0 ± 1.0 % right in 24.00.',
    );
    expect(conclusion([{ label: 'model', evaluation: made({ only: [0.5, 2] }), group }])).toBe(
      '"only" is the most accurate setting: 50.0 ± 1.0 % right in 2.00 forward passes.',
    );
  });

  test('of what is meant, beside the first run', () => {
    const runs = [
      { label: 'before', evaluation: made({ a: [0.98, 8], b: [0.5, 2] }), group },
      { label: 'after', evaluation: made({ c: [1, 3] }), group, emphasis: () => true },
      { label: 'without', evaluation: made({ d: [0.99, 2.5] }), group },
    ];
    expect(conclusion(runs)).toBe(
      'after, "c" is 100.0 ± 1.0 % right in 3.00 forward passes; ' +
        'the most accurate setting to compare it with (before, "a") is 98.0 ± 1.0 % right in 8.00.',
    );
  });
});

describe('the page in light and in dark', () => {
  const ofDark = /@media \(prefers-color-scheme: dark\) \{\n {2}:root \{([\s\S]*?)\n {2}\}/g;
  const css = reportStyle();
  const [light, dark] = [css.replace(ofDark, ''), [...css.matchAll(ofDark)].map(([, colors]) => colors).join('\n')];
  const colors = (part: string) =>
    Object.fromEntries([...part.matchAll(/--([\w-]+): (#[0-9a-f]{3,6});/g)].map(([, name, color]) => [name, color]));
  const luminance = (color: string) => {
    const digits = color.length === 4 ? [...color.slice(1)].map((c) => c + c).join('') : color.slice(1);
    const [r, g, b] = [0, 2, 4]
      .map((at) => Number.parseInt(digits.slice(at, at + 2), 16) / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a: string, b: string) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };

  test.each([
    ['light', colors(light)],
    ['dark', { ...colors(light), ...colors(dark) }],
  ])('contrast: %s', (_name, color) => {
    const marks = Object.keys(color).filter((name) => /^(line|bold)\d$/.test(name));
    expect(marks.length).toBe(13);
    // Names are written in these colours, so that they need the contrast of text.
    for (const name of [...marks, 'fg', 'soft'])
      for (const ground of ['bg', 'card'])
        expect([name, ground, contrast(color[name], color[ground]) >= 4.5]).toEqual([name, ground, true]);
    for (const ground of ['bg', 'card']) expect(contrast(color.edge, color[ground])).toBeGreaterThanOrEqual(3);
    const steps = Object.keys(color).filter((name) => /^s\d$/.test(name));
    expect(steps).toHaveLength(8);
    for (const name of [...steps, 'best']) expect(contrast(color.fg, color[name])).toBeGreaterThanOrEqual(4.5);
  });
});

/** As much of a browser's page as report-page.js needs: elements with children, texts and listeners. */
class FakeElement {
  className = '';
  children: FakeElement[] = [];
  own = '';
  value: unknown = '';
  max: unknown = '';
  readonly style: Record<string, string> = {};
  readonly attributes: Record<string, string> = {};
  readonly listeners: Record<string, () => void> = {};
  set textContent(text: unknown) {
    this.own = String(text);
    this.children = [];
  }
  get textContent(): string {
    return this.own + this.children.map(({ textContent }) => textContent).join(' ');
  }
  appendChild(child: FakeElement) {
    this.children.push(child);
    return child;
  }
  append(child: FakeElement) {
    this.children.push(child);
  }
  replaceChildren() {
    this.children = [];
  }
  add() {}
  querySelectorAll() {
    return [];
  }
  setAttribute(name: string, value: string) {
    this.attributes[name] = value;
  }
  addEventListener(name: string, listener: () => void) {
    this.listeners[name] = listener;
  }
}

test('step by step: a word is in the page from the pass on that decides it, and read out', () => {
  const lane = { run: 'model', name: 'one', nfe: 2, score: 1, bold: true };
  const trace = {
    tokens: [' blue', ' sky', '<|end|>', '<|end|>', '<|end|>', '<|end|>'],
    unmaskedAt: [2, 1, 2, 2, 2, 1],
  };
  const dull = { prompt: 'hello', expected: 'hi', lanes: [{ ...lane, nfe: 1, tokens: [' hi'], unmaskedAt: [1] }] };
  const steady = { ...lane, name: 'other', nfe: 1, ...trace, unmaskedAt: trace.unmaskedAt.map(() => 1) };
  const views = [dull, { prompt: 'why ?', expected: 'the sky', lanes: [{ ...lane, ...trace }, steady] }];
  const elements: Record<string, FakeElement> = {};
  const get = (id: string) => {
    elements[id] ??= new FakeElement();
    return elements[id];
  };
  get('traces').textContent = JSON.stringify(views);
  const source = readFileSync(path.join(__dirname, '..', 'lib', 'evaluation', 'report-page.js'), 'utf8');
  const document = { getElementById: get, createElement: () => new FakeElement() };
  runInNewContext(source, { document, Option: class {}, setInterval, clearInterval });
  const spoken = () => {
    const [, row] = get('lanes').children;
    return row.children.find(({ className }) => className === 'unseen')!.textContent;
  };
  const cells = () => {
    const [, row] = get('lanes').children;
    return row.children.find(({ className }) => className === 'tokens')!.children.map(({ textContent }) => textContent);
  };
  expect(get('expected').textContent).toBe('A right answer: the sky');
  // What is still masked, a word, three ends that the same pass will decide, and one that is decided.
  expect(cells()).toEqual(['\u00a0', 'sky1', ' \u00d73', 'end1']);
  expect(get('shown').textContent).toBe('after pass 1 of 2');
  expect(get('lanes').textContent).toContain('sky');
  expect(get('lanes').children[1].textContent).not.toContain('blue');
  expect(spoken()).toBe('\u2026 sky \u2026');
  get('slider').value = 2;
  get('slider').listeners.input();
  expect(cells()).toEqual(['blue2', 'sky1', 'end \u00d732', 'end1']);
  expect(spoken()).toBe('blue sky');
  expect(get('lanes').textContent).toContain('\u2713 right, 2 passes');
});

test('every setting of the grid has its place', () => {
  const names = samplerGrid({ size: 'full', maxTokens: 24 }).map(({ name }) => name);
  expect(new Set(names).size).toBe(names.length);
});
