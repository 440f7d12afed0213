// Prompts and examples that do not fit the model: one of them ends no run, and none is left out without a word.
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import {
  createModel,
  type EvaluateOptions,
  type Example,
  evaluate,
  evaluateCampaign,
  GrpoTrainer,
  loadModel,
  type RewardBatch,
  rewards,
  type TaskDataset,
  type TrainingExample,
} from '../lib';
import { temporaryFolder } from './helpers';
import { collect, metricsOf, newModelFolder, task, weightsOf, withModel } from './trained-models';
import { earlyTokens, grpo, planner, sft } from './trainers';

let folder: string;
let warnings: jest.SpyInstance;
beforeAll(async () => {
  folder = await newModelFolder();
});
beforeEach(() => {
  warnings = jest.spyOn(process, 'emitWarning').mockImplementation(() => {});
});
afterEach(() => warnings.mockRestore());
/** The process warnings of this test; each is given once per process. */
const warned = () =>
  warnings.mock.calls.map(([message, options]) => {
    expect(options).toMatchObject({ code: 'DULTRA_DOES_NOT_FIT' });
    return String(message);
  });

// The model has room for 32 tokens, a letter each; answers take 8.
const fitting: TrainingExample[] = ['a', 'b', 'c', 'd', 'e'].map((letter) => ({
  prompt: `1 ${letter} b c`,
  answer: `a b c ${letter}`,
}));
const letters = (count: number) => new Array(count).fill('a').join(' ');
const long: TrainingExample = { prompt: letters(30), answer: 'a b' };
const LONG = "prompt: 30 tokens and maxTokens 8 make 38, more than the model's maximum of 32";
/** Messages, for which the model has no chat template. */
const odd: TrainingExample = { prompt: [{ role: 'user', content: 'a' }], answer: 'a b' };
const withBad = [fitting[0], long, ...fitting.slice(1, 4), odd, fitting[4]];
const data = (examples: TrainingExample[], validation = examples) => ({
  examples,
  validation,
  genLength: 8,
  blockLength: 8,
});

describe('training on a set with examples that do not fit', () => {
  const trainers = { grpo, sft, planner } as const;
  test.each(Object.keys(trainers) as (keyof typeof trainers)[])(
    '%s: as without them, counted and named',
    async (kind) => {
      const train = trainers[kind] as typeof sft;
      const run = async (examples: TrainingExample[]) => {
        const outputDir = path.join(temporaryFolder(), 'run');
        const weights = await withModel(folder, async (model) => {
          await train(model, { dataset: data(examples), evalEvery: 2, evalExamples: 7, outputDir });
          return weightsOf(model);
        });
        return { outputDir, weights };
      };
      const [bad, good] = [await run(withBad), await run(fitting)];
      expect(bad.weights).toEqual(good.weights);
      const without = metricsOf(good.outputDir);
      expect(metricsOf(bad.outputDir)).toEqual(without.map((line) => ({ ...line, skippedExamples: 2 })));
      expect(without[0]).not.toHaveProperty('skippedExamples');
      const config = JSON.parse(readFileSync(path.join(bad.outputDir, 'config.json'), 'utf8'));
      expect(config.dataset).toEqual({ name: 'examples', size: 5, skipped: 2 });
      const [examples, held] = warned();
      // Once per process: the next trainer says other things at most.
      if (kind === 'grpo') {
        expect(examples).toMatch(/^2 of 7 examples are left out: dataset\.examples\[1\] \(/);
        expect(examples).toContain(LONG);
        expect(examples).toContain('dataset.examples[5] (');
        expect(held).toContain('dataset.validation[1] (');
      }
    },
  );

  test('answers that are too long, or missing, are such examples', async () => {
    const examples = [...fitting, { prompt: '1 a', answer: letters(9) }, { prompt: '1 a' }];
    const metrics = await withModel(folder, (model) => sft(model, { dataset: data(examples) }));
    expect(metrics[0].skippedExamples).toBe(2);
    expect(warned().join()).toMatch(/at least the 9 tokens of the answer .*; dataset\.examples\[6\] \(.*without/);
  });

  test('a run that is resumed draws the same examples', async () => {
    const outputDir = path.join(temporaryFolder(), 'run');
    const options = { dataset: data(withBad), promptsPerStep: 1, saveEvery: 1 };
    const weights = (maxSteps: number, more = {}) =>
      withModel(folder, async (model) => {
        await grpo(model, { ...options, ...more, maxSteps });
        return weightsOf(model);
      });
    const whole = await weights(6);
    await weights(3, { outputDir });
    expect(await weights(6, { outputDir, resume: true })).toEqual(whole);
  });

  test('where most do not fit, or none, nothing begins', async () => {
    const outputDir = path.join(temporaryFolder(), 'run');
    await withModel(folder, async (model) => {
      const start = (examples: TrainingExample[], more = {}) =>
        grpo(model, { dataset: data(examples), outputDir, ...more });
      await expect(start([fitting[0], long, odd])).rejects.toThrow(
        /^dataset\.examples: expected examples that fit the model, 2 of 3 do not: dataset\.examples\[1\] \(/,
      );
      await expect(start([long, long])).rejects.toThrow(LONG);
      await expect(start(fitting, { maxTokens: 32, blockLength: 32 })).rejects.toThrow(/and maxTokens 32 make 36/);
    });
    expect(existsSync(outputDir)).toBe(false);
  });
});

/** The small task, with some prompts too long. */
const uneven: TaskDataset = {
  ...task,
  name: 'uneven',
  sample: (split, count, seed) =>
    task
      .sample(split, count, seed)
      .map((example, i) => ((seed + i) % 3 === 0 ? { ...example, prompt: letters(30) } : example)),
};

test('an endless task: others are drawn in their place, the same ones by a run that is resumed', async () => {
  const outputDir = path.join(temporaryFolder(), 'run');
  const options = { dataset: uneven, promptsPerStep: 3, saveEvery: 1, evalEvery: 3, evalExamples: 6 };
  const run = (maxSteps: number, more = {}) =>
    withModel(folder, async (model) => {
      const metrics = await grpo(model, { ...options, ...more, maxSteps });
      return { metrics, weights: await weightsOf(model) };
    });
  const whole = await run(6);
  for (const { skippedExamples } of whole.metrics) expect(skippedExamples).toBe(1);
  await run(3, { outputDir });
  const resumed = await run(6, { outputDir, resume: true });
  expect(resumed.weights).toEqual(whole.weights);
  expect(resumed.metrics.map(({ reward }) => reward)).toEqual(whole.metrics.slice(3).map(({ reward }) => reward));
  // One warning, whatever the number of steps.
  expect(warned().filter((text) => text.includes('others are drawn'))).toHaveLength(1);
  const hopeless = {
    ...uneven,
    sample: (...args: Parameters<TaskDataset['sample']>) =>
      task.sample(...args).map((example) => ({ ...example, prompt: letters(30) })),
  };
  await expect(withModel(folder, (model) => grpo(model, { dataset: hopeless }))).rejects.toThrow(LONG);
});

describe('evaluation', () => {
  const samplers = { fixed: { type: 'fixed', steps: 4 }, planner: { type: 'planner' } } as const;
  const prompts = ['1 a b c', letters(30), '2 b c d', '3 c d e', letters(31), '1 e f g'];
  const dataset = (list: string[]): TaskDataset => ({
    ...task,
    name: 'mine',
    sample: (_split, count) =>
      list
        .slice(0, count)
        .map((prompt, i): Example => ({ prompt, answer: '', category: i < 3 ? 'x' : 'y', meta: null })),
    verify: () => true,
  });
  const options = (list = prompts): EvaluateOptions => ({
    dataset: dataset(list),
    samplers,
    count: list.length,
    batchSize: 4,
  });

  test('counts them as wrong, by name, and measures the others', async () => {
    await withModel(folder, async (model) => {
      const { results } = await evaluate(model, options());
      for (const { accuracy, scored, unanswered, nfe, tokensPerForward, categories, samples } of results) {
        expect([accuracy, scored, unanswered]).toEqual([4 / 6, 6, 2]);
        expect(samples.map(({ score }) => score)).toEqual([1, 0, 1, 1, 0, 1]);
        expect(samples[1]).toMatchObject({ completion: '', nfe: 0, tokens: 0, problem: LONG });
        expect(samples[0]).not.toHaveProperty('problem');
        // The means are those of the prompts that were asked.
        const asked = samples.filter(({ problem }) => !problem);
        const passes = asked.reduce((sum, sample) => sum + sample.nfe, 0);
        expect(nfe.mean).toBe(passes / 4);
        expect(tokensPerForward.generated).toBe((4 * task.genLength) / passes);
        expect(categories.x).toEqual({ count: 3, accuracy: 2 / 3, nfe: (asked[0].nfe + asked[1].nfe) / 2 });
      }
      // A custom score is not asked about them.
      const score: EvaluateOptions['score'] = ({ completions }) => completions.map(() => 1);
      expect((await evaluate(model, { ...options(), score })).results[0].accuracy).toBe(4 / 6);
      // The random numbers of the others are their own.
      const warm = { temperature: 1, seed: 5 };
      const alone = prompts.map((prompt) => (prompt.length > 20 ? '1 a' : prompt));
      const [with_, without] = [
        await evaluate(model, { ...options(), ...warm }),
        await evaluate(model, { ...options(alone), ...warm }),
      ];
      for (const i of [0, 2, 3, 5])
        expect(with_.results[0].samples[i].completion).toBe(without.results[0].samples[i].completion);
    });
    expect(warned()).toContainEqual(
      `2 of 6 prompts do not fit the model and count as wrong: prompt 1 (${LONG}); prompt 4 (${LONG.replace('30', '31').replace('38', '39')})`,
    );
  });

  test('a campaign goes on behind them, and continues', async () => {
    const outputDir = path.join(temporaryFolder(), 'campaign');
    const { samplers: _, ...rest } = options();
    const campaign = { ...rest, samplers, models: { one: () => loadModel(folder) }, outputDir };
    const { rows } = await evaluateCampaign(campaign);
    expect(rows.map(({ accuracy }) => accuracy.mean)).toEqual([4 / 6, 4 / 6]);
    const file = path.join(outputDir, 'samples.jsonl');
    const before = readFileSync(file, 'utf8');
    expect(before.split('\n').filter((line) => line.includes('"problem"'))).toHaveLength(4);
    const again = await evaluateCampaign(campaign);
    expect(again.rows).toEqual(rows);
    expect(readFileSync(file, 'utf8')).toBe(before);
  });

  test('one answer that is too long does not set the length of all', async () => {
    const own = [
      { prompt: '1 a b', answer: 'a b c' },
      { prompt: '2 b c', answer: letters(40) },
    ];
    await withModel(folder, async (model) => {
      const { config, results } = await evaluate(model, { dataset: own, samplers });
      expect([config.maxTokens, results[0].scored, results[0].unanswered]).toEqual([4, 2, undefined]);
    });
  });

  test('where none fits, it is an option: refused', async () => {
    await withModel(folder, async (model) => {
      await expect(evaluate(model, options([letters(30)]))).rejects.toThrow(LONG);
      await expect(evaluate(model, { ...options(['1 a']), maxTokens: 32 })).rejects.toThrow(/maxTokens 32 make 34/);
    });
  });
});

test('a teacher with less room gives no reward to rows that do not fit it', async () => {
  const small = path.join(temporaryFolder(), 'teacher');
  await createModel(small, { vocabulary: task.vocabulary, dModel: 16, nHeads: 2, nLayers: 1, maxSequenceLength: 16 });
  await withModel(folder, async (model) =>
    withModel(small, async (teacher) => {
      const prompts = ['1 a b', letters(20), '2 b c'];
      const results = await model.generateBatch(prompts, { maxTokens: 8, blockLength: 8 });
      const batch: RewardBatch = {
        completions: results.map(({ text }) => text),
        examples: prompts.map((prompt) => ({ prompt, answer: null, category: '', meta: null })),
        results,
        maxTokens: 8,
        verify: null,
        model,
      };
      const values = Array.from(await rewards.teacherLogProb({ model: teacher })(batch));
      expect(values.map((value) => value === null)).toEqual([false, true, false]);
      await using trainer = new GrpoTrainer(model, {
        dataset: data([...fitting, { prompt: letters(20) }]),
        rewards: { teacher: rewards.teacherLogProb({ model: teacher }), early: earlyTokens },
        maxSteps: 6,
        promptsPerStep: 1,
        numGenerations: 2,
      });
      expect(await collect(trainer.train())).toHaveLength(6);
    }),
  );
  expect(warned().filter((text) => text.includes("teacher's maximum of 16"))).toHaveLength(1);
});
