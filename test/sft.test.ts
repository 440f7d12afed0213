// Masked-diffusion fine-tuning and pre-training, through the public API.
import { datasets, type MaskedDiffusionOptions, type training } from '../lib';
import { openNow } from '../lib/data/own-data';
import { openData } from '../lib/training/data';
import { newModelFolder, task, weightsOf, withModel } from './trained-models';
import { sft } from './trainers';

let folder: string;
beforeAll(async () => {
  folder = await newModelFolder();
});

describe('fine-tuning', () => {
  test('learns: the held-out loss falls', async () => {
    const metrics = await withModel(folder, (model) =>
      sft(model, { maxSteps: 60, batchSize: 32, learningRate: 1e-2, maskEpsilon: 0.05, evalEvery: 60, warmupSteps: 5 }),
    );
    expect(metrics.map(({ step }) => step)).toEqual(Array.from({ length: 60 }, (_, i) => i + 1));
    expect(metrics[59].evalLoss).toBeLessThan(0.75 * metrics[0].loss);
    expect(metrics[4].learningRate).toBeCloseTo((1e-2 * 5) / 6, 9);
    expect(metrics[59].learningRate).toBeLessThan(2e-3);
  });

  test('leaves the planner bit for bit as it was', async () => {
    await withModel(folder, async (model) => {
      const before = await weightsOf(model);
      await sft(model);
      const after = await weightsOf(model);
      for (const [name, { raw }] of Object.entries(after))
        expect([name, raw.equals(before[name].raw)]).toEqual([name, !name.startsWith('model.')]);
    });
  });

  test('bfloat16 moments: learns as with float32, and the seed alone decides how they are rounded', async () => {
    const run = (options: Partial<MaskedDiffusionOptions>, threads?: number) =>
      withModel(
        folder,
        async (model) => {
          const metrics = await sft(model, {
            maxSteps: 60,
            batchSize: 32,
            learningRate: 1e-2,
            maskEpsilon: 0.05,
            evalEvery: 60,
            ...options,
          });
          return { metrics, weights: await weightsOf(model) };
        },
        threads,
      );
    const wide = await run({});
    const narrow = await run({ momentDtype: 'bfloat16' }, 1);
    expect(narrow.metrics[59].evalLoss!).toBeLessThan(0.75 * narrow.metrics[0].loss);
    expect(Math.abs(narrow.metrics[59].evalLoss! / wide.metrics[59].evalLoss! - 1)).toBeLessThan(0.05);
    // The first step's moments are fp32 until they are stored: they change the second update.
    expect(narrow.metrics.slice(0, 2).map(({ loss }) => loss)).toEqual(
      wide.metrics.slice(0, 2).map(({ loss }) => loss),
    );
    expect(narrow.metrics[3].loss).not.toBe(wide.metrics[3].loss);
    const again = await run({ momentDtype: 'bfloat16' }, 3);
    for (const [name, { raw }] of Object.entries(narrow.weights))
      expect([name, raw.equals(again.weights[name].raw)]).toEqual([name, true]);
  });

  test('the state of a trainer with bfloat16 moments is exact', async () => {
    await withModel(folder, async (model) => {
      const trainer = await model.createTrainer({ momentDtype: 'bfloat16', seed: 5 });
      const update = {
        baseLr: 1e-3,
        plannerLr: 1e-3,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weightDecay: 0,
        maxGradNorm: 1,
      };
      const ids = Int32Array.from([3, 4, 5, 1, 1, 1]);
      const step = async () => {
        await trainer.score({
          ids,
          offsets: Int32Array.of(0, 6),
          positions: Int32Array.of(3, 4, 5),
          tokens: Int32Array.of(6, 7, 8),
          keep: true,
        });
        await trainer.backward({
          dLogProbs: Float32Array.of(-1, -0.3, 0.2),
        });
        return trainer.step(update);
      };
      await step();
      await step();
      const half = await trainer.state();
      const moments = half.tensors.filter(({ name }) => name.startsWith('exp_avg'));
      expect(moments.some(({ data }) => data.some((x) => x !== 0))).toBe(true);
      for (const { name, data } of moments)
        expect([name, new Uint32Array(data.buffer).every((x) => (x & 0xffff) === 0)]).toEqual([name, true]);
      await step();
      const expected = await trainer.state();
      await trainer.loadState(half);
      await step();
      expect(await trainer.state()).toEqual(expected);
      trainer.dispose();
    });
  });

  test('pre-training masks prompts too', async () => {
    const share = async (objective: 'sft' | 'pretraining') =>
      (await withModel(folder, (model) => sft(model, { objective, batchSize: 64 })))[0].masked;
    // Prompts are 9 of the 17 tokens.
    expect(await share('sft')).toBeLessThan(0.3);
    expect(await share('pretraining')).toBeGreaterThan(0.4);
  });

  test("a user's own examples, by epochs", async () => {
    const examples = task.sample('train', 20, 1);
    const metrics = await withModel(folder, (model) =>
      sft(model, { dataset: examples, maxSteps: undefined, epochs: 2, batchSize: 8 }),
    );
    expect(metrics).toHaveLength(5);
    const { verify: _, ...plain } = {
      ...task,
      examples: task.sample('train', 4, 1),
      validation: task.sample('validation', 4, 1),
    };
    const held = { examples: plain.examples, validation: plain.validation };
    const evaluated = await withModel(folder, (model) => sft(model, { dataset: held, evalEvery: 3 }));
    expect(evaluated[2].evalLoss).toBeGreaterThan(0);
  });
});

describe('how much a row counts, and how far it is padded', () => {
  const [short, long] = [
    { prompt: '1 a b c d e f g h', answer: 'a b c d' },
    { prompt: '1 a b c d e f g h', answer: 'a b c d e f g h i j k l' },
  ];
  /** Held-out loss of examples whose answers are masked as a whole, on the untrained model. */
  const lossOf = async (validation: { prompt: string; answer: string }[], options: Partial<MaskedDiffusionOptions>) =>
    (
      await withModel(folder, (model) =>
        sft(model, {
          dataset: { examples: validation, validation },
          maskEpsilon: 1,
          learningRate: 0,
          maxSteps: 1,
          evalEvery: 1,
          ...options,
        }),
      )
    )[0].evalLoss!;

  test('lossPer: rows alike, or tokens alike', async () => {
    const [a, b] = [await lossOf([short], {}), await lossOf([long], {})];
    // An end of sequence follows each answer.
    const [n, m] = [4 + 1, 12 + 1];
    expect(await lossOf([short, long], {})).toBeCloseTo((a + b) / 2, 5);
    expect(await lossOf([short, long], { lossPer: 'row' })).toBe(await lossOf([short, long], {}));
    expect(await lossOf([short, long], { lossPer: 'token' })).toBeCloseTo((n * a + m * b) / (n + m), 5);
    expect(Math.abs((n * a + m * b) / (n + m) - (a + b) / 2)).toBeGreaterThan(1e-3);
  });

  test('padding: a drawn length is a maxTokens, a tail of one is the end of sequence', async () => {
    const wide = { share: 1, min: 14, max: 14 };
    expect(await lossOf([short, long], { padding: wide })).toBe(await lossOf([short, long], { maxTokens: 14 }));
    const tight = { share: 0, min: 1, max: 1 };
    expect(await lossOf([short, long], { padding: tight })).toBe(await lossOf([short, long], {}));
    // An answer longer than the drawn length gets its end of sequence all the same.
    expect(await lossOf([long], { padding: { share: 1, min: 2, max: 5 } })).toBe(await lossOf([long], {}));
    // Padding, not answers, is cut to the model's maximum.
    expect(await lossOf([long], { padding: { share: 1, min: 99, max: 99 } })).toBe(
      await lossOf([long], { maxTokens: 23 }),
    );
  });

  test('padding: lengths are drawn for every row and step, by the seed', async () => {
    const run = (seed: number) =>
      withModel(folder, (model) =>
        sft(model, { padding: { share: 0.5, min: 10, max: 20, tail: 4 }, maxSteps: 6, seed, maskEpsilon: 1 }),
      );
    const first = (await run(1)).map(({ tokens }) => tokens);
    expect((await run(1)).map(({ tokens }) => tokens)).toEqual(first);
    expect((await run(2)).map(({ tokens }) => tokens)).not.toEqual(first);
    expect(new Set(first).size).toBeGreaterThan(3);
  });

  test.each([
    [{ padding: { share: 2, min: 1, max: 2 } }, /padding\.share/],
    [{ padding: { share: 0.5, min: 3, max: 2 } }, /padding\.max/],
    [{ padding: { share: 0.5, min: 3, max: 4, tail: 0 } }, /padding\.tail/],
    [{ padding: { share: 0.5, min: 3, max: 4, to: 1 } as never }, /to/],
    [{ lossPer: 'batch' as never }, /lossPer/],
    [{ evalSampler: { type: 'none' } as never }, /none/],
    [{ mixture: [] }, /mixture/],
    [{ mixture: [{ shares: { copy: 1 } }, {}] }, /mixture\[0\]\.steps/],
    [{ mixture: [{ steps: 3, shares: { copy: 1 } }] }, /mixture\[0\]\.steps/],
    [{ mixture: [{ shares: { copy: -1 } }] }, /mixture\[0\]\.shares\.copy/],
    [{ mixture: [{ shares: { copy: 0 } }] }, /above 0/],
    [{ mixture: [{ shares: { copy: 1 } }] }, /categories can be drawn, got free8/],
  ] as [Partial<MaskedDiffusionOptions>, RegExp][])('%j is refused', async (options, message) => {
    await withModel(folder, (model) => expect(sft(model, options)).rejects.toThrow(message));
  });
});

test('with a sampler, evaluations count right answers, by category too', async () => {
  const metrics = await withModel(folder, (model) =>
    sft(model, { evalEvery: 3, evalExamples: 24, evalSampler: { type: 'fixed', steps: 2 }, learningRate: 1e-2 }),
  );
  expect(metrics[1].evalAccuracy).toBeUndefined();
  const { evalAccuracy, evalNfe, ...rest } = metrics[2];
  expect(evalNfe).toBe(2);
  const byCategory = Object.entries(rest).filter(([key]) => key.startsWith('evalAccuracy/'));
  expect(byCategory.map(([key]) => key).sort()).toEqual(
    ['case', 'copy', 'sort', 'star', 'swap'].map((category) => `evalAccuracy/${category}`),
  );
  for (const value of [evalAccuracy, ...byCategory.map(([, value]) => value)]) {
    expect(value).toBeGreaterThanOrEqual(0);
    expect(value).toBeLessThanOrEqual(1);
  }
});

describe('mixtures', () => {
  const examples = ['a', 'b', 'c'].flatMap((category) =>
    Array.from({ length: 10 }, (_, i) => ({ prompt: `${category} ${i}`, answer: category, category })),
  );
  const held = examples.map((example) => ({ ...example, prompt: `held ${example.prompt}` }));
  const shares = (rows: { category: string }[]) =>
    Object.fromEntries(
      ['a', 'b', 'c'].map((name) => [name, rows.filter(({ category }) => category === name).length / rows.length]),
    );

  test('of examples: each stage has its shares, and the last one is evaluated', () => {
    const mixture: training.MixtureStage[] = [{ steps: 2, shares: { a: 1 } }, { steps: 1 }, { shares: { b: 3, c: 1 } }];
    const data = openData(openNow({ examples, validation: held })!, 5n, mixture);
    expect(shares(data.train(1, 50))).toEqual({ a: 1, b: 0, c: 0 });
    // A stage without shares takes the examples as they come: each epoch has every one.
    expect(shares(data.train(2, 30))).toEqual({ a: 1 / 3, b: 1 / 3, c: 1 / 3 });
    const last = shares(data.train(3, 2000));
    expect(last.a).toBe(0);
    expect(Math.abs(last.b - 0.75)).toBeLessThan(0.04);
    expect(shares(data.validation!(100))).toEqual({ a: 0, b: 0.5, c: 0.5 });
    // A function of seed and step alone.
    const again = openData(openNow({ examples, validation: held })!, 5n, mixture);
    expect(again.train(3, 20)).toEqual(data.train(3, 20));
    expect(openData(openNow({ examples })!, 6n, mixture).train(3, 20)).not.toEqual(data.train(3, 20));
    expect(data.train(4, 20)).not.toEqual(data.train(3, 20));
  });

  test('of the world: categories are drawn by their shares', () => {
    const data = openData(datasets.world(), 5n, [{ steps: 3, shares: { record: 1 } }, { shares: { sum: 1, chat: 1 } }]);
    const categories = (rows: { category: string }[]) => [...new Set(rows.map(({ category }) => category))].sort();
    expect(categories(data.train(2, 40))).toEqual(['record']);
    expect(categories(data.train(3, 40))).toEqual(['chat', 'sum']);
    expect(categories(data.validation!(40))).toEqual(['chat', 'sum']);
  });

  test('a category that there is not is named', () => {
    expect(() => openData(openNow(examples)!, 1n, [{ shares: { d: 1 } }])).toThrow(
      /mixture\[0\].shares.*\(a, b, c\), got "d"/,
    );
    expect(() => openData(datasets.world(), 1n, [{ shares: { poem: 1 } }])).toThrow(/got "poem"/);
  });
});
