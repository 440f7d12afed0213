import {
  averageOperatingPoints,
  chooseOperatingPoints,
  createModel,
  datasets,
  type Evaluation,
  evaluate,
  frontier,
  loadModel,
  type MaskedDiffusionModel,
  samplerGrid,
  type TaskDataset,
} from '../lib';
import { temporaryFolder } from './helpers';

const task = datasets.wordProblems('st1');
let model: MaskedDiffusionModel;
beforeAll(async () => {
  const folder = temporaryFolder();
  await createModel(folder, { vocabulary: task.vocabulary, dModel: 16, nLayers: 1, nHeads: 2, seed: 3 });
  model = await loadModel(folder, { threads: 2 });
});
afterAll(() => model.dispose());

/** A task whose right answer is what this model says, so that its accuracy is known. */
function oracle(said: Map<string, string>, wrongEvery: number): TaskDataset {
  let calls = 0;
  return {
    ...datasets.wordProblems('st1'),
    verify: (example, completion) => calls++ % wrongEvery !== 0 && completion === said.get(example.prompt as string),
  };
}

describe('evaluate', () => {
  test('counts what it says it counts', async () => {
    const { config, results } = await evaluate(model, {
      dataset: task,
      samplers: { fixed: { type: 'fixed', steps: 6 }, planner: { type: 'planner', select: 'round' } },
      count: 20,
      seed: 5,
      batchSize: 7,
      stopAtEos: false,
      traces: 2,
    });
    expect(config).toMatchObject({
      dataset: 'st1',
      split: 'test',
      count: 20,
      seed: 5,
      maxTokens: 24,
      blockLength: 24,
      score: 'task',
    });
    expect(config.model.parameters).toBe(model.info.parameters);
    const [fixed, planner] = results;
    expect(fixed.sampler).toEqual({ type: 'fixed', steps: 6, remasking: 'low_confidence', schedule: 'even' });
    expect(planner.sampler).toMatchObject({ type: 'planner', select: 'round', probabilityScale: 1 });
    expect(fixed.nfe).toEqual({ mean: 6, sd: 0 });
    expect(fixed.tokensPerForward.generated).toBe(4);
    const tokens = fixed.samples.reduce((total, sample) => total + sample.tokens, 0);
    expect(fixed.tokensPerForward.untilEos).toBeCloseTo(tokens / 120, 12);
    expect(fixed.samples.map(({ prompt }) => prompt)).toEqual(task.sample('test', 20, 5).map(({ prompt }) => prompt));
    const counts = Object.values(fixed.categories).map(({ count }) => count);
    expect(counts.reduce((a, b) => a + b)).toBe(20);
    expect(fixed.errors!.mix + fixed.errors!.slot + Math.round(fixed.accuracy * 20)).toBe(20);
    expect(fixed.samples[1].trace!.tokens).toHaveLength(24);
    expect(Math.max(...fixed.samples[0].trace!.unmaskedAt)).toBe(6);
    expect(fixed.samples[2].trace).toBeUndefined();
    expect(JSON.parse(JSON.stringify(results))).toEqual(results);
  });

  test('short forms of samplers and caches are their names, and mean the same', async () => {
    const shared = { dataset: task, count: 3, stopAtEos: false };
    const short = await evaluate(model, { ...shared, samplers: ['fixed:6', 'planner'], caches: ['none', 'dual'] });
    const long = await evaluate(model, {
      ...shared,
      samplers: { 'fixed:6': { type: 'fixed', steps: 6 }, planner: 'planner' },
      caches: { none: { type: 'none' }, dual: { type: 'dual' } },
    });
    expect(short.results.map(({ name }) => name)).toEqual(['fixed:6', 'fixed:6 + dual', 'planner', 'planner + dual']);
    const timeless = ({ results }: typeof short) =>
      results.map(({ seconds: _, tokensPerSecond: __, samples, ...rest }) => [
        rest,
        samples.map(({ completion }) => completion),
      ]);
    expect(timeless(short)).toEqual(timeless(long));
    for (const [changes, message] of [
      [{ samplers: ['planner', 'planner'] }, 'samplers: "planner" is given twice'],
      [{ samplers: [{ type: 'fixed' }] }, 'samplers[0]: expected a short form, since others need a name'],
      [{ samplers: [] }, 'samplers: expected at least one, got none'],
      [{ samplers: ['plannr'] }, 'samplers[0]: expected planner, planner-round'],
      [{ samplers: ['planner'], caches: ['dule'] }, 'caches[0]: expected none, prefix, dual'],
      [{ samplers: { a: 'fixed:x' } }, 'samplers.a.steps: expected a number, got "x"'],
    ] as const)
      await expect(evaluate(model, { ...shared, ...(changes as object) } as never)).rejects.toThrow(message);
  });

  test('every sampler with every cache, with what it cost', async () => {
    const options = {
      dataset: task,
      count: 12,
      samplers: { fixed: { type: 'fixed' as const, steps: 6 } },
      blockLength: 12,
      stopAtEos: false,
    };
    const { results } = await evaluate(model, {
      ...options,
      caches: { none: { type: 'none' }, dual: { type: 'dual' }, always: { type: 'refresh', every: 1 } },
    });
    expect(results.map(({ name }) => name)).toEqual(['fixed', 'fixed + dual', 'fixed + always']);
    const [none, dual, always] = results;
    const [plain] = (await evaluate(model, options)).results;
    const { seconds: _, tokensPerSecond: __, samples, ...expected } = plain;
    const untimed = (list: typeof samples) => list.map(({ seconds: ___, ...sample }) => sample);
    expect(none).toMatchObject(expected);
    expect(untimed(none.samples)).toEqual(untimed(samples));
    expect(none.cache).toEqual({ type: 'none' });
    expect(dual.cache).toEqual({ type: 'dual', dtype: 'float32', planner: 'cached', emptyPass: null });
    expect(none.fullForwards).toEqual({ mean: 6, sd: 0 });
    expect(untimed(always.samples)).toEqual(untimed(samples));
    // Two blocks of three passes: one over the row, two over the block.
    const costs = task
      .sample('test', 12, 0)
      .map(({ prompt }) => 2 + (4 * 12) / (model.encodePrompt(prompt).length + 24));
    expect(dual.nfe.mean).toBe(6);
    expect(dual.fullForwards.mean).toBeCloseTo(costs.reduce((a, b) => a + b) / 12, 9);
    dual.samples.forEach(({ fullForwards }, i) => expect(fullForwards).toBeCloseTo(costs[i], 9));
    await expect(evaluate(model, { ...options, caches: {} })).rejects.toThrow(
      /caches: expected at least one, got none/,
    );
    await expect(evaluate(model, { ...options, caches: { odd: { type: 'dual', every: 2 } as never } })).rejects.toThrow(
      /caches\.odd: unknown key "every"/,
    );
    await expect(evaluate(model, { ...options, caches: null as never })).rejects.toThrow(
      /caches: expected an object or an array of short forms, got null/,
    );
  });

  test('does not depend on the batch size, also where tokens and positions are drawn', async () => {
    const options = {
      dataset: task,
      samplers: { drawn: { type: 'planner' as const, select: 'bernoulli' as const } },
      count: 30,
      temperature: 1,
    };
    const whole = await evaluate(model, options);
    const pieces = await evaluate(model, { ...options, batchSize: 4 });
    // All but the time that they took.
    const samplesOf = ({ results }: Evaluation) => results[0].samples.map(({ seconds: _, ...sample }) => sample);
    expect(samplesOf(pieces)).toEqual(samplesOf(whole));
    const other = await evaluate(model, { ...options, seed: 1 });
    expect(samplesOf(other)).not.toEqual(samplesOf(whole));
  });

  test("accuracy is the mean of the verifier's verdicts, or of the score function's", async () => {
    const samplers = { fixed: { type: 'fixed' as const, steps: 2 } };
    const plain = await evaluate(model, { dataset: task, samplers, count: 40 });
    const said = new Map(plain.results[0].samples.map(({ prompt, completion }) => [prompt, completion]));
    const judged = await evaluate(model, { dataset: oracle(said, 4), samplers, count: 40 });
    expect(judged.results[0].accuracy).toBe(0.75);
    expect(judged.results[0].accuracyError).toBeCloseTo(Math.sqrt((0.75 * 0.25) / 39), 12);
    const scored = await evaluate(model, {
      dataset: task,
      samplers,
      count: 40,
      batchSize: 8,
      score: async ({ examples, completions, results }) =>
        examples.map((_, i) => (i === 0 ? null : completions[i] === results[i].text ? 0.5 : 0)),
    });
    expect(scored.results[0]).toMatchObject({ accuracy: 0.5, scored: 35 });
    expect(scored.config.score).toBe('custom');
  });

  test('tells its progress and stops when it is told to', async () => {
    const seen: number[] = [];
    const controller = new AbortController();
    const reason = new Error('enough');
    const run = evaluate(model, {
      dataset: task,
      samplers: { a: { type: 'fixed', steps: 1 }, b: { type: 'fixed' } },
      count: 8,
      batchSize: 4,
      signal: controller.signal,
      onProgress: ({ done, total, sampler }) => {
        seen.push(done);
        expect(total).toBe(16);
        if (sampler === 'b') controller.abort(reason);
      },
    });
    await expect(run).rejects.toBe(reason);
    expect(seen).toEqual([4, 8, 12]);
  });

  const good = { dataset: task, samplers: { a: { type: 'fixed' as const } }, count: 1 };
  test.each([
    ['no dataset', { ...good, dataset: undefined }, /dataset: expected a task/, 'TypeError'],
    ['unknown key', { ...good, sampler: {} }, /unknown key "sampler"/, 'TypeError'],
    ['split', { ...good, split: 'dev' }, /split: expected "train" or/, 'RangeError'],
    ['no samplers', { ...good, samplers: {} }, /samplers: expected at least one/, 'RangeError'],
    [
      'sampler',
      { ...good, samplers: { a: { type: 'fixed', steps: 0 } } },
      /sampler.steps: expected an integer at least 1/,
      'RangeError',
    ],
    ['count', { ...good, count: 0 }, /count: expected an integer at least 1/, 'RangeError'],
    ['count type', { ...good, count: '5' }, /count: expected an integer/, 'TypeError'],
    ['batchSize', { ...good, batchSize: 0 }, /batchSize/, 'RangeError'],
    [
      'block',
      { ...good, maxTokens: 24, blockLength: 7 },
      /maxTokens: expected a multiple of blockLength \(7\)/,
      'RangeError',
    ],
    ['score', { ...good, score: 'exact' }, /score: expected a function/, 'TypeError'],
    ['too few scores', { ...good, count: 2, score: () => [1] }, /return 2 scores, got 1/, 'TypeError'],
    [
      'a score above one',
      { ...good, score: () => [2] },
      /score: expected 0 to 1, a boolean or null, got 2/,
      'RangeError',
    ],
  ])('refuses %s', async (_name, options, message, name) => {
    await expect(evaluate(model, options as never)).rejects.toMatchObject({
      name,
      message: expect.stringMatching(message),
    });
  });
});

describe('operating points', () => {
  const evaluation = (
    split: 'validation' | 'test',
    points: Record<string, [accuracy: number, nfe: number]>,
  ): Evaluation =>
    ({
      config: { split },
      results: Object.entries(points).map(([name, [accuracy, mean]]) => ({
        name,
        accuracy,
        accuracyError: 0.01,
        nfe: { mean, sd: 0 },
      })),
    }) as never;
  const validation = evaluation('validation', { 'a 1': [0.5, 2], 'a 2': [0.9, 5], 'a 3': [0.9, 4], 'b 1': [0.95, 8] });
  const test_ = evaluation('test', { 'a 1': [0.6, 2.1], 'a 2': [0.99, 5], 'a 3': [0.8, 4.2], 'b 1': [0.9, 8] });

  test('are chosen on validation and reported on test', () => {
    const rows = chooseOperatingPoints(validation, test_, { budgets: [1, 2, 6, null], group: (name) => name[0] });
    expect(rows.map(({ group }) => group)).toEqual(['a', 'b']);
    const [a, b] = rows;
    expect(a.points[0]).toBeNull();
    expect(a.points[1]).toMatchObject({ name: 'a 1', test: { accuracy: 0.6, nfe: 2.1 } });
    // a 2 would do better on test; a 3 is as accurate on validation and faster.
    expect(a.points[2]).toMatchObject({ name: 'a 3', validation: { accuracy: 0.9, nfe: 4 }, test: { accuracy: 0.8 } });
    expect(b.points.map((point) => point?.name ?? null)).toEqual([null, null, null, 'b 1']);
    expect(chooseOperatingPoints(validation, test_, { budgets: [null] })[0]).toMatchObject({
      group: 'best',
      points: [{ name: 'b 1' }],
    });
  });

  test('accuracies that differ by rounding are equal', () => {
    // The same three scores, summed in two orders.
    const points = { slow: [(0.1 + 0.2 + 0.3) / 3, 5], fast: [(0.3 + 0.2 + 0.1) / 3, 4] } as const;
    expect(points.slow[0]).toBeGreaterThan(points.fast[0]);
    const [held, measured] = (['validation', 'test'] as const).map((split) =>
      evaluation(split, points as unknown as Record<string, [number, number]>),
    );
    expect(chooseOperatingPoints(held, measured, { budgets: [null] })[0].points[0]).toMatchObject({ name: 'fast' });
    const both = Object.values(points).map(([accuracy, nfe]) => ({ accuracy, nfe }));
    expect(frontier(both)).toEqual([both[1]]);
  });

  test('refuse one split twice, and tables of different settings', () => {
    expect(() => chooseOperatingPoints(validation, validation)).toThrow(/another split/);
    expect(() => chooseOperatingPoints(validation, evaluation('test', { 'a 1': [1, 1] }))).toThrow(/"a 2" is missing/);
  });

  test('are averaged over runs', () => {
    const better = evaluation('test', { 'a 1': [0.8, 2.3], 'a 2': [0.99, 5], 'a 3': [0.9, 4], 'b 1': [0.9, 8] });
    const options = { budgets: [2, 6], group: (name: string) => name[0] };
    const tables = [test_, better].map((measured) => chooseOperatingPoints(validation, measured, options));
    const [a, b] = averageOperatingPoints(tables);
    expect(a.points[0]!.accuracy.mean).toBeCloseTo(0.7, 12);
    expect(a.points[0]!.accuracy.sd).toBeCloseTo(Math.SQRT2 / 10, 12);
    expect(a.points[0]!.nfe.mean).toBeCloseTo(2.2, 12);
    expect(b.points).toEqual([null, null]);
    expect(() => averageOperatingPoints([tables[0], []])).toThrow(/group "a" in every table/);
  });

  test('frontier: what nothing else beats in both', () => {
    const points = [
      { accuracy: 0.5, nfe: 2 },
      { accuracy: 0.4, nfe: 3 },
      { accuracy: 0.9, nfe: 4 },
      { accuracy: 0.9, nfe: 5 },
      { accuracy: 0.45, nfe: 1.5 },
    ];
    expect(frontier(points)).toEqual([points[4], points[0], points[2]]);
  });
});

test('the grid: names are unique, and every setting runs', async () => {
  const grid = samplerGrid({ maxTokens: task.genLength });
  expect(new Set(grid.map(({ name }) => name)).size).toBe(grid.length);
  expect(grid.map(({ name }) => name)).toContain('fixed steps 24');
  expect(samplerGrid({ planner: false }).some(({ sampler }) => sampler.type === 'planner')).toBe(false);
  expect(samplerGrid({ size: 'quick' }).length).toBeLessThan(grid.length / 2);
  const samplers = Object.fromEntries(grid.map(({ name, sampler }) => [name, sampler]));
  const { results } = await evaluate(model, { dataset: task, samplers, count: 2, stopAtEos: false });
  for (const { nfe } of results) expect(nfe.mean).toBeGreaterThanOrEqual(1);
});
