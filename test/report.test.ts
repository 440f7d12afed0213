// The page that evaluations are shown on: what is drawn, and that texts from models cannot break out of it.
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
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
  for (const label of ['before: threshold', 'after: threshold', 'without: threshold'])
    expect(page).toContain(`</i>${label}</li>`);
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

test('every setting of the grid has its place', () => {
  const names = samplerGrid({ size: 'full', maxTokens: 24 }).map(({ name }) => name);
  expect(new Set(names).size).toBe(names.length);
});
