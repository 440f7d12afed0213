// Masked-diffusion fine-tuning and pre-training, through the public API.
import type { MaskedDiffusionOptions } from '../lib';
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
