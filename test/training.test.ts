// The trainers, through the public API.
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import {
  type GrpoOptions,
  GrpoTrainer,
  loadModel,
  type MaskedDiffusionModel,
  type MaskedDiffusionOptions,
  type PlannerOptions,
  type RewardFunction,
  rewards,
  training,
  trainMaskedDiffusion,
  trainPlanner,
} from '../lib';
import { crc32c } from '../lib/training/tensorboard';
import { modelFolder, readTensors, temporaryFolder } from './helpers';
import { collect, largestDifference, metricsOf, newModelFolder, task, weightsOf, withModel } from './trained-models';

// AdamW's eps is large where runs are compared: with a small one an element whose gradient is rounding noise moves by a
// whole learning rate.
const COMPARED = { learningRate: 1e-3, eps: 1e-3, schedule: 'constant', warmupSteps: 0 } as const;
const sft = (model: MaskedDiffusionModel, options: Partial<MaskedDiffusionOptions> = {}) =>
  collect(trainMaskedDiffusion(model, { dataset: task, maxSteps: 3, batchSize: 8, ...options }));
const planner = (model: MaskedDiffusionModel, options: Partial<PlannerOptions> = {}) =>
  collect(
    trainPlanner(model, { dataset: task, maxSteps: 3, batchSize: 8, minSpan: 4, learningRate: 1e-3, ...options }),
  );

/** A reward without a task: how many of the tokens are early ones of the vocabulary. */
const earlyTokens: RewardFunction = ({ results }) =>
  results.map(({ ids }) => ids.filter((id) => id > 2 && id < 20).length / ids.length);
const grpo = async (model: MaskedDiffusionModel, options: Partial<GrpoOptions> = {}) => {
  await using trainer = new GrpoTrainer(model, {
    dataset: task,
    maxSteps: 3,
    promptsPerStep: 4,
    numGenerations: 4,
    learningRate: 1e-3,
    rewards: { early: earlyTokens },
    ...options,
  });
  // Awaited here: the trainer is disposed of on the way out.
  return await collect(trainer.train());
};

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

describe('planner initialisation', () => {
  test('learns the rule, and leaves the base bit for bit as it was', async () => {
    await withModel(folder, async (model) => {
      const before = await weightsOf(model);
      const metrics = await planner(model, { maxSteps: 60, batchSize: 32, learningRate: 1e-2, evalEvery: 60 });
      expect(metrics[59].evalLoss).toBeLessThan(0.9 * metrics[0].loss);
      expect(metrics[59].agreement).toBeGreaterThan(0.5);
      const after = await weightsOf(model);
      for (const [name, { raw }] of Object.entries(after))
        expect([name, raw.equals(before[name].raw)]).toEqual([name, name.startsWith('model.')]);
    });
  });
});

describe('GRPO', () => {
  test('finds a trivial reward within seconds', async () => {
    const metrics = await withModel(folder, (model) =>
      grpo(model, {
        maxSteps: 25,
        promptsPerStep: 8,
        numGenerations: 8,
        learningRate: 1e-2,
        evalEvery: 25,
        evalExamples: 32,
      }),
    );
    expect(metrics[24].reward).toBeGreaterThan(metrics[0].reward + 0.2);
    expect(metrics[24].evalReward).toBeGreaterThan(0.8);
    expect(metrics[0]['reward/early']).toBeCloseTo(metrics[0].reward, 12);
  });

  test('learns to be fast where only speed pays', async () => {
    const metrics = await withModel(folder, (model) =>
      grpo(model, {
        maxSteps: 25,
        promptsPerStep: 8,
        numGenerations: 8,
        learningRate: 1e-2,
        rewards: { steps: rewards.stepPenalty() },
      }),
    );
    expect(metrics[24].nfe).toBeLessThan(0.7 * metrics[0].nfe);
  });

  test.each([
    ['as it is', {}],
    ['greedy tokens', { temperature: 0 }],
    ['tempered', { temperature: 0.7, tokenLogProb: 'tempered' }],
    ['scaled and tempered planner', { probabilityScale: 1.4, plannerTemperature: 0.6 }],
    ['two blocks, to the last mask', { blockLength: 4, stopAtEos: false, probabilityScale: 0.3 }],
    ['small micro-batches', { tokenBudget: 40 }],
    ['reference', { compat: 'reference', blockLength: 4, advantageMinClip: null }],
    ["the reference's forced steps", { forcedStep: 'reference', probabilityScale: 0.3 }],
  ] as const)('replay = rollout: %s', async (_name, options) => {
    // Speed differs between rollouts even where their tokens do not.
    const paid = { rewards: { early: earlyTokens, steps: rewards.stepPenalty({ form: 'sqrt' }) } };
    const metrics = await withModel(folder, (model) => grpo(model, { ...paid, ...(options as Partial<GrpoOptions>) }));
    for (const { ratioDeviation, replayedSteps } of metrics) {
      expect(replayedSteps).toBeGreaterThan(0);
      expect(ratioDeviation).toBeLessThanOrEqual(1e-5);
    }
  });

  test('several updates per batch: the second one is off-policy', async () => {
    const metrics = await withModel(folder, (model) =>
      grpo(model, { numIterations: 2, maxSteps: 4, learningRate: 1e-2 }),
    );
    expect(metrics.map(({ ratioDeviation }) => ratioDeviation > 1e-4)).toEqual([false, true, false, true]);
    expect(metrics[1].reward).toBe(metrics[0].reward);
    expect(metrics[2].reward).not.toBe(metrics[0].reward);
  });

  test.each([
    ['freezeBase', (name: string) => !name.startsWith('model.')],
    ['freezePlanner', (name: string) => name.startsWith('model.')],
  ] as const)('%s leaves the rest alone', async (option, trains) => {
    await withModel(folder, async (model) => {
      const before = await weightsOf(model);
      await grpo(model, { [option]: true });
      const after = await weightsOf(model);
      for (const [name, { raw }] of Object.entries(after))
        expect([name, raw.equals(before[name].raw)]).toEqual([name, !trains(name)]);
    });
  });

  test('beta holds the policy to the reference model', async () => {
    const kl = async (beta: number) =>
      withModel(folder, async (model) =>
        withModel(folder, async (referenceModel) => {
          const metrics = await grpo(model, { maxSteps: 12, beta, referenceModel, learningRate: 3e-3 });
          expect(metrics[0].kl).toBeLessThan(1e-9);
          return metrics[11].kl!;
        }),
      );
    const loose = await kl(1e-6);
    const tight = await kl(10);
    expect(loose).toBeGreaterThan(1e-4);
    expect(tight).toBeLessThan(loose / 2);
  });

  test('with adapters the base alone is the reference', async () => {
    await withModel(folder, async (model) => {
      const metrics = await grpo(model, {
        maxSteps: 5,
        beta: 0.1,
        lora: { rank: 2 },
        freezePlanner: true,
        learningRate: 1e-2,
      });
      expect(metrics[0].kl).toBeLessThan(1e-9);
      expect(metrics[4].kl).toBeGreaterThan(1e-9);
      expect(metrics[4].ratioDeviation).toBeLessThanOrEqual(1e-5);
    });
  });

  test('rewards: weights, null, async', async () => {
    const halves: RewardFunction = async ({ results }) => results.map((_, row) => (row % 2 === 0 ? null : 2));
    const metrics = await withModel(folder, (model) =>
      grpo(model, { maxSteps: 1, rewards: { halves: { fn: halves, weight: 0.5 }, one: () => new Array(16).fill(3) } }),
    );
    expect(metrics[0]['reward/halves']).toBe(2);
    expect(metrics[0].reward).toBeCloseTo(3.5, 12);
    const bad = withModel(folder, (model) => grpo(model, { rewards: { short: () => [1] } }));
    await expect(bad).rejects.toThrow('rewards.short: expected 16 numbers or nulls, got 1');
  });

  test('the reference switches step rewards off with the planner', async () => {
    const both = { early: earlyTokens, steps: rewards.stepPenalty() };
    const run = (options: Partial<GrpoOptions>) =>
      withModel(folder, (model) => grpo(model, { maxSteps: 1, rewards: both, freezePlanner: true, ...options }));
    const [ours] = await run({});
    const [reference] = await run({ compat: 'reference' });
    expect(ours.reward).toBeCloseTo(ours['reward/early'] + ours['reward/steps'], 12);
    expect(reference.reward).toBeCloseTo(reference['reward/early'], 12);
  });
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
    [{ genLength: 3 }, RangeError, 'genLength'],
    [{ maxSteps: undefined }, RangeError, 'maxSteps'],
    [{ dataset: [] }, RangeError, 'dataset.examples'],
    [{ dataset: [{ prompt: 'a', answer: 3 }] }, TypeError, 'dataset.examples[0].answer'],
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
    [{ genLength: 6, blockLength: 4 }, RangeError, 'genLength'],
    [{ evalSampler: { type: 'planer' } }, RangeError, 'sampler.type'],
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

describe('rewards', () => {
  test("step penalties, as the reference's", () => {
    // Rows and values that the reference recorded.
    const steps = [[4, 1, 3], [1, 1, 1, 1, 1, 1, 1, 1], [8], [2, 0, 4, 0, 2]].map((counts) =>
      counts.flatMap((count, step) => new Array(count).fill(step + 1) as number[]),
    );
    const expected = {
      sum: [-0.06, -0.16, -0.02, -0.06],
      sqrt: [-4.732050807568877, -8, -2.8284271247461903, -4.82842712474619],
      sqrt_sum: [-0.5915063509461096, -1, -0.3535533905932738, -0.6035533905932737],
    };
    for (const form of ['sum', 'sqrt', 'sqrt_sum'] as const) {
      const values = rewards.stepPenalty({ form })({
        results: steps.map((unmaskedAt) => ({ unmaskedAt })),
      } as never) as number[];
      values.forEach((value, i) => expect(value).toBeCloseTo(expected[form][i], 12));
    }
  });

  const batch = (completions: string[], answers: (string | null)[], nfe = 2) =>
    ({
      completions,
      examples: answers.map((answer) => ({ prompt: 'p', answer, category: '', meta: null })),
      results: completions.map(() => ({ nfe })),
      genLength: 8,
      verify: null,
    }) as never;

  test('exactAnswer, fastAnswer, format', async () => {
    expect(await rewards.exactAnswer(batch(['a  b', 'a c', 'x'], ['a b', 'a b', null]))).toEqual([1, 0, null]);
    expect(await rewards.fastAnswer({ weight: 0.4 })(batch(['a', 'b'], ['a', 'a']))).toEqual([1 + 0.4 * 0.75, 0]);
    const tagged = rewards.format(/<answer>.*<\/answer>/g, { reward: 0.5 });
    expect(tagged(batch(['<answer>1</answer>', 'no', '<answer>2</answer>'], [null, null, null]))).toEqual([
      0.5, 0, 0.5,
    ]);
    expect(() => rewards.stepPenalty({ form: 'cube' as never })).toThrow('form');
  });

  test('teacherLogProb is the mean log-probability under the teacher', async () => {
    await withModel(folder, async (teacher) => {
      const results = await teacher.generateBatch(['1 a b c d e f g h', '2 c c d a b f e a'], {
        genLength: 8,
        blockLength: 8,
      });
      const judge = rewards.teacherLogProb({ model: teacher, passes: 8, tokenBudget: 40 });
      const values = (await judge({
        results,
        completions: results.map(({ text }) => text),
        examples: [],
        model: teacher,
      } as never)) as number[];
      for (const [row, { promptIds, ids, tokens }] of results.entries()) {
        let sum = 0;
        for (let i = 0; i < tokens; i++) {
          const whole = [...promptIds, ...ids.slice(0, tokens)];
          whole[promptIds.length + i] = teacher.config.maskTokenId;
          const { logits } = await teacher.forward({ ids: whole });
          const v = teacher.config.embeddingSize;
          const at = Array.from(logits!.slice((promptIds.length + i) * v, (promptIds.length + i + 1) * v), (x, id) =>
            id === teacher.config.maskTokenId ? -Infinity : x,
          );
          const top = Math.max(...at);
          sum += at[ids[i]] - top - Math.log(at.reduce((s, x) => s + Math.exp(x - top), 0));
        }
        expect(values[row]).toBeCloseTo(sum / tokens, 4);
      }
    });
  });

  test('a frozen copy can judge while its twin trains', async () => {
    await withModel(folder, (teacher) =>
      withModel(folder, async (model) => {
        const [metrics] = await grpo(model, {
          maxSteps: 1,
          rewards: { teacher: rewards.teacherLogProb({ model: teacher }) },
        });
        expect(metrics.reward).toBeLessThan(0);
      }),
    );
  });
});

describe('models as files', () => {
  const ids = [3, 4, 5, 1, 1, 1, 6, 1];
  const logitsOf = async (model: MaskedDiffusionModel) => (await model.forward({ ids })).logits!;

  test('save keeps fp32 exactly, with config and tokenizer', async () => {
    const target = temporaryFolder();
    await withModel(folder, async (model) => {
      await sft(model);
      await model.save(target);
      const wanted = await logitsOf(model);
      await withModel(target, async (copy) => {
        expect(await logitsOf(copy)).toEqual(wanted);
        expect(copy.config).toEqual(model.config);
        expect(copy.tokenizer!.encode('1 a B *')).toEqual(model.tokenizer!.encode('1 a B *'));
      });
    });
    const config = JSON.parse(readFileSync(path.join(target, 'config.json'), 'utf8'));
    expect(config).toMatchObject({
      num_head_layers: 1,
      use_adaln: true,
      torch_dtype: 'float32',
      architectures: ['LLaDOUModelLM'],
    });
  });

  test('fields that nobody here reads survive', async () => {
    const target = temporaryFolder();
    await withModel(modelFolder('gqa'), (model) => model.save(target));
    const original = JSON.parse(readFileSync(path.join(modelFolder('gqa'), 'config.json'), 'utf8'));
    expect(JSON.parse(readFileSync(path.join(target, 'config.json'), 'utf8'))).toEqual({
      ...original,
      torch_dtype: 'float32',
    });
    const [before, after] = [modelFolder('gqa'), target].map((from) =>
      readTensors(path.join(from, 'model.safetensors')),
    );
    expect(Object.keys(after).sort()).toEqual(Object.keys(before).sort());
    for (const [name, { raw, shape }] of Object.entries(after))
      expect([name, shape, raw.equals(before[name].raw)]).toEqual([name, before[name].shape, true]);
  });

  test.each([
    ['bfloat16', 2 ** -8],
    ['float16', 2 ** -11],
  ] as const)('save as %s rounds to nearest', async (dtype, relative) => {
    const target = temporaryFolder();
    await withModel(folder, async (model) => {
      await model.save(target, { dtype });
      const exact = await weightsOf(model);
      await withModel(target, async (copy) => {
        const rounded = await weightsOf(copy);
        for (const [name, { data }] of Object.entries(exact))
          data.forEach((x, i) =>
            expect(Math.abs(rounded[name].data[i] - x)).toBeLessThanOrEqual(relative * Math.abs(x) + 2 ** -25),
          );
      });
    });
  });

  test('a folder with a checkpoint in shards is refused', async () => {
    const target = temporaryFolder();
    writeFileSync(path.join(target, 'model.safetensors.index.json'), '{}');
    await withModel(folder, (model) => expect(model.save(target)).rejects.toThrow('folder: '));
  });

  test('adapters: train, save, load, take out, put back', async () => {
    const run = path.join(temporaryFolder(), 'run');
    const targets = ['q_proj', 'k_proj', 'v_proj', 'attn_out', 'ff_proj', 'up_proj', 'ff_out'] as const;
    const lora = { rank: 3, alpha: 5, targets };
    const trained = await withModel(folder, async (model) => {
      await sft(model, { lora, outputDir: run, learningRate: 1e-2, warmupSteps: 0 });
      return logitsOf(model);
    });
    const adapter = path.join(run, 'checkpoints', 'step-00000003', 'adapter');
    const config = JSON.parse(readFileSync(path.join(adapter, 'adapter_config.json'), 'utf8'));
    expect(config).toMatchObject({ peft_type: 'LORA', r: 3, lora_alpha: 5, modules_to_save: null });
    expect('model.transformer.blocks.1.q_proj').toMatch(new RegExp(`^${config.target_modules}$`));
    for (const other of ['model.transformer.ff_out', 'mask_head.0.q_proj'])
      expect(other).not.toMatch(new RegExp(`^${config.target_modules}$`));
    const tensors = readTensors(path.join(adapter, 'adapter_model.safetensors'));
    expect(tensors['base_model.model.model.transformer.blocks.0.ff_out.lora_A.weight'].shape).toEqual([3, 48]);
    expect(tensors['base_model.model.model.transformer.blocks.0.ff_out.lora_B.weight'].shape).toEqual([16, 3]);
    await withModel(folder, async (model) => {
      const base = await logitsOf(model);
      const distance = async (wanted: Float32Array) =>
        (await logitsOf(model)).reduce((max, x, i) => Math.max(max, Math.abs(x - wanted[i])), 0);
      expect(await distance(trained)).toBeGreaterThan(1e-2);
      const handle = await model.loadAdapter(adapter);
      expect(await distance(trained)).toBeLessThan(1e-5);
      await handle.unmerge();
      expect(await distance(base)).toBe(0);
      await handle.merge();
      expect(await distance(trained)).toBeLessThan(1e-5);
      handle.dispose();
      expect(await distance(trained)).toBeLessThan(1e-5);
    });
    // The merged checkpoint is the same model.
    await withModel(path.dirname(adapter), async (model) => {
      const merged = await logitsOf(model);
      merged.forEach((x, i) => expect(Math.abs(x - trained[i])).toBeLessThan(1e-5));
    });
  });

  test('adapters beside a planner that trains', async () => {
    const run = path.join(temporaryFolder(), 'run');
    const forward = async (model: MaskedDiffusionModel) =>
      (await model.forward({ ids, planner: { timestep: [0.5], maskIndex: ids.map((id) => id === 1) } })).plannerLogits!;
    const trained = await withModel(folder, async (model) => {
      await grpo(model, { lora: { rank: 2 }, outputDir: run, learningRate: 1e-2 });
      return forward(model);
    });
    await withModel(folder, async (model) => {
      (await model.loadAdapter(path.join(run, 'checkpoints', 'step-00000003', 'adapter'))).dispose();
      (await forward(model)).forEach((z, i) => expect(Math.abs(z - trained[i])).toBeLessThan(1e-5));
    });
  });
});

describe('run folders', () => {
  test('what is in them', async () => {
    const run = path.join(temporaryFolder(), 'run');
    const metrics = await withModel(folder, (model) =>
      sft(model, { outputDir: run, maxSteps: 7, saveEvery: 2, keepLast: 2, evalEvery: 3 }),
    );
    const config = JSON.parse(readFileSync(path.join(run, 'config.json'), 'utf8'));
    expect(config).toMatchObject({
      kind: 'sft',
      seed: '0',
      dataset: { name: 'free8' },
      device: { device: 'cpu' },
      options: { batchSize: 8, weightDecay: 0.1 },
    });
    expect(config.version).toBe((require('../package.json') as { version: string }).version);
    expect(metricsOf(run).map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6, 7]);
    const [first] = metricsOf(run);
    expect(first.loss).toBe(metrics[0].loss);
    const kept = readdirSync(path.join(run, 'checkpoints')).sort();
    expect(kept.slice(-2)).toEqual(['step-00000006', 'step-00000007']);
    const state = JSON.parse(readFileSync(path.join(run, 'checkpoints', 'step-00000007', 'state.json'), 'utf8'));
    const best = Math.min(...metrics.flatMap(({ evalLoss }) => evalLoss ?? []));
    expect(state.best.value).toBe(best);
    expect(kept).toContain(`step-${String(state.best.step).padStart(8, '0')}`);
    const last = await loadModel(path.join(run, 'checkpoints', 'step-00000007'));
    last.dispose();
    const events = readdirSync(run).filter((name) => name.startsWith('events.out.tfevents.'));
    expect(events).toHaveLength(1);
    checkEvents(readFileSync(path.join(run, events[0])), 7);
  });

  /** Walks the records of an event file and checks lengths, checksums and steps. */
  function checkEvents(bytes: Buffer, steps: number): void {
    const masked = (part: Uint8Array) => {
      const crc = crc32c(part);
      return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
    };
    const seen: string[] = [];
    let at = 0;
    while (at < bytes.length) {
      const length = Number(bytes.readBigUInt64LE(at));
      expect(bytes.readUInt32LE(at + 8)).toBe(masked(bytes.subarray(at, at + 8)));
      const data = bytes.subarray(at + 12, at + 12 + length);
      expect(bytes.readUInt32LE(at + 12 + length)).toBe(masked(data));
      seen.push(data.toString('latin1'));
      at += length + 16;
    }
    expect(seen[0]).toContain('brain.Event:2');
    expect(seen).toHaveLength(steps + 1);
    for (const record of seen.slice(1))
      for (const tag of ['loss', 'gradNorm', 'learningRate']) expect(record).toContain(tag);
  }

  test('the checksum is CRC-32C', () => expect(crc32c(Buffer.from('123456789'))).toBe(0xe3069283));

  test('a folder is not written twice at once', async () => {
    const run = path.join(temporaryFolder(), 'run');
    await withModel(folder, async (model) => {
      const first = trainMaskedDiffusion(model, { dataset: task, outputDir: run, maxSteps: 9, batchSize: 8 });
      await first.next();
      await withModel(folder, async (other) => {
        const refused = new RegExp(`outputDir: .* is being written by process ${process.pid}`);
        await expect(sft(other, { outputDir: run, resume: true })).rejects.toThrow(refused);
        await first.return();
        expect(await sft(other, { outputDir: run, resume: true })).not.toEqual([]);
      });
    });
  });

  test('a second run in the same folder is refused; resuming one with other options too', async () => {
    const run = path.join(temporaryFolder(), 'run');
    await withModel(folder, async (model) => {
      await sft(model, { outputDir: run });
      await expect(sft(model, { outputDir: run })).rejects.toThrow('outputDir: ');
      await expect(sft(model, { outputDir: run, resume: true, batchSize: 9 })).rejects.toThrow(
        'batchSize: expected 8, with which the run began, got 9',
      );
      await expect(planner(model, { outputDir: run, resume: true })).rejects.toThrow('resume: ');
      expect(await sft(model, { outputDir: run, resume: true })).toEqual([]);
      expect(await sft(model, { outputDir: run, resume: true, maxSteps: 5 })).toHaveLength(2);
    });
  });

  test('early stop after evaluations without a new best', async () => {
    const metrics = await withModel(folder, (model) =>
      sft(model, {
        maxSteps: 50,
        learningRate: 0,
        evalEvery: 2,
        patience: 2,
        outputDir: path.join(temporaryFolder(), 'run'),
      }),
    );
    expect(metrics).toHaveLength(6);
  });

  test('an abort finishes the step, saves, and throws the reason', async () => {
    const run = path.join(temporaryFolder(), 'run');
    const controller = new AbortController();
    const reason = new Error('enough');
    await withModel(folder, async (model) => {
      const seen: number[] = [];
      const work = async () => {
        for await (const { step } of trainMaskedDiffusion(model, {
          dataset: task,
          maxSteps: 9,
          batchSize: 4,
          outputDir: run,
          signal: controller.signal,
        })) {
          seen.push(step);
          if (step === 3) controller.abort(reason);
        }
      };
      await expect(work()).rejects.toBe(reason);
      // The abort came after step 3 was handed out: step 4 was not begun, or is finished.
      expect(seen).toEqual([1, 2, 3]);
    });
    expect(existsSync(path.join(run, 'checkpoints', 'step-00000003', 'state.json'))).toBe(true);
  });

  test('NaN or infinity stops with the step, and leaves weights and checkpoint', async () => {
    const run = path.join(temporaryFolder(), 'run');
    await withModel(folder, async (model) => {
      let calls = 0;
      const explodes: RewardFunction = ({ results }) => results.map((_, row) => (++calls > 32 ? 1e300 : 1) * row);
      const work = grpo(model, { maxSteps: 9, saveEvery: 2, outputDir: run, rewards: { explodes } });
      await expect(work).rejects.toMatchObject({ name: 'DUltraError', code: 'NON_FINITE' });
      await expect(work).rejects.toThrow(/^step 3: .*step-00000002/);
      const good = readTensors(path.join(run, 'checkpoints', 'step-00000002', 'model.safetensors'));
      expect(largestDifference(await weightsOf(model), good)).toBe(0);
    });
    expect(metricsOf(run)).toHaveLength(2);
  });
});

test('recorded rollouts are what denoise gives', async () => {
  await withModel(folder, async (model) => {
    const policy = {
      temperature: 0.5,
      tokenLogProb: 'untempered',
      plannerTemperature: 1,
      probabilityScale: 1,
      forcedStep: 'exact',
      compat: null,
    } as const;
    const prompts = ['1 a b c d e f g h', '3 a a b c d e f g'].map((prompt) => model.encodePrompt(prompt));
    const { results, steps } = await training.recordRollouts(model, prompts, {
      policy,
      seed: 5n,
      tokenBudget: 17,
      genLength: 8,
      blockLength: 8,
    });
    const whole = await model.generateBatch(['1 a b c d e f g h', '3 a a b c d e f g'], {
      genLength: 8,
      blockLength: 8,
      temperature: 0.5,
      seed: 5,
      sampler: { type: 'planner', select: 'bernoulli' },
    });
    expect(results).toEqual(whole);
    expect(steps.filter(({ rollout }) => rollout === 1)).toHaveLength(whole[1].nfe);
  });
});
