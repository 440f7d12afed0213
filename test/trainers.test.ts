// What all trainers share: results that do not depend on batches, threads or memory, and checks of options.
import path from 'node:path';
import { type GrpoOptions, GrpoTrainer, type MaskedDiffusionModel } from '../lib';
import { readTensors } from './helpers';
import { largestDifference, newModelFolder, task, weightsOf, withModel } from './trained-models';
import { COMPARED, earlyTokens, grpo, planner, sft } from './trainers';

let folder: string;
beforeAll(async () => {
  folder = await newModelFolder();
});

describe('what must not matter', () => {
  type Run = (
    model: MaskedDiffusionModel,
    changes: Record<string, unknown>,
  ) => Promise<{ loss: number; gradNorm: number }[]>;
  const runs: [string, Run, string][] = [
    ['fine-tuning', (model, changes) => sft(model, { ...COMPARED, ...changes }), 'batchSize'],
    ['planner initialisation', (model, changes) => planner(model, { ...COMPARED, ...changes }), 'batchSize'],
    ['GRPO', (model, changes) => grpo(model, { ...COMPARED, advantageMinClip: null, ...changes }), 'promptsPerStep'],
  ];
  const outcome = (run: Run, changes: Record<string, unknown>, threads = 2) =>
    withModel(
      folder,
      async (model) => ({ metrics: await run(model, changes), weights: await weightsOf(model) }),
      threads,
    );

  test.each(runs)('1 x 8 = 8 x 1 accumulation: %s', async (_name, run, size) => {
    const one = await outcome(run, { [size]: 8, gradientAccumulation: 1 });
    const eight = await outcome(run, { [size]: 1, gradientAccumulation: 8 });
    one.metrics.forEach(({ loss, gradNorm }, i) => {
      expect(Math.abs(eight.metrics[i].loss - loss)).toBeLessThan(1e-6 * Math.max(1, Math.abs(loss)));
      expect(Math.abs(eight.metrics[i].gradNorm - gradNorm)).toBeLessThan(1e-6 * Math.max(1, gradNorm));
    });
    expect(largestDifference(one.weights, eight.weights)).toBeLessThan(1e-6);
    expect(largestDifference(one.weights, readTensors(path.join(folder, 'model.safetensors')))).toBeGreaterThan(1e-5);
  });

  test.each(runs)('the token budget: %s', async (_name, run) => {
    const wide = await outcome(run, {});
    const narrow = await outcome(run, { tokenBudget: 20 });
    wide.metrics.forEach(({ loss }, i) => {
      expect(Math.abs(narrow.metrics[i].loss - loss)).toBeLessThan(1e-6 * Math.max(1, Math.abs(loss)));
    });
    expect(largestDifference(wide.weights, narrow.weights)).toBeLessThan(1e-6);
  });

  test.each(runs)('the number of threads, bit for bit: %s', async (_name, run) => {
    const single = await outcome(run, {}, 1);
    const several = await outcome(run, {}, 3);
    for (const [name, { raw }] of Object.entries(single.weights))
      expect([name, raw.equals(several.weights[name].raw)]).toEqual([name, true]);
  });

  test.each(runs)('activation checkpointing: %s', async (_name, run) => {
    const kept = await outcome(run, {});
    const recomputed = await outcome(run, { activationCheckpointing: true });
    expect(largestDifference(kept.weights, recomputed.weights)).toBeLessThan(1e-6);
  });
});

describe('options', () => {
  test.each([
    [{ maxSteps: 0 }, RangeError, 'maxSteps'],
    [{ maxSteps: 2, epochs: 1 }, RangeError, 'epochs'],
    [{ batchsize: 3 }, TypeError, 'unknown key "batchsize"'],
    [{ schedule: 'step' }, RangeError, 'schedule'],
    [{ betas: [0.9] }, TypeError, 'betas'],
    [{ momentDtype: 'float16' }, RangeError, 'momentDtype'],
    [{ lora: { rank: 0 } }, RangeError, 'lora.rank'],
    [{ lora: { rank: 2, targets: ['wte'] } }, RangeError, 'lora.targets'],
    [{ resume: true }, RangeError, 'resume'],
    [{ patience: 2 }, RangeError, 'patience'],
    [{ maxTokens: 3 }, RangeError, 'maxTokens'],
    [{ maxSteps: undefined }, RangeError, 'maxSteps'],
    [{ dataset: [] }, RangeError, 'dataset.examples'],
    [{ dataset: [{ prompt: 'a', answer: true }] }, TypeError, 'dataset.examples[0].answer'],
    [{ dataset: task.sample('train', 3, 1), evalEvery: 1 }, RangeError, 'evalEvery'],
  ])('fine-tuning refuses %j', async (options, kind, message) => {
    await withModel(folder, async (model) => {
      const run = sft(model, options as never);
      await expect(run).rejects.toThrow(kind);
      await expect(run).rejects.toThrow(message);
    });
  });

  test.each([
    [{ numGenerations: 1 }, RangeError, 'numGenerations'],
    [{ clipEpsilon: { low: 2, high: 0 } }, RangeError, 'clipEpsilon.low'],
    [{ beta: 0.1 }, RangeError, 'beta'],
    [{ rewards: {} }, RangeError, 'rewards'],
    [{ rewards: { a: 1 } }, TypeError, 'rewards.a'],
    [{ freezeBase: true, freezePlanner: true }, RangeError, 'freezePlanner'],
    [{ maxTokens: 6, blockLength: 4 }, RangeError, 'maxTokens'],
    [{ evalSampler: { type: 'planer' } }, RangeError, 'evalSampler.type'],
    [{ select: 'topk' }, TypeError, 'unknown key "select"'],
  ])('GRPO refuses %j', async (options, kind, message) => {
    await withModel(folder, async (model) => {
      const make = () =>
        new GrpoTrainer(model, {
          dataset: task,
          rewards: { early: earlyTokens },
          maxSteps: 1,
          ...(options as object),
        } as GrpoOptions);
      expect(make).toThrow(kind);
      expect(make).toThrow(message);
    });
  });
});
