// Distillation from a model's own answers: data, corruption, losses, and runs that go on bit for bit.
import { existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { type MaskedDiffusionModel, training } from '../lib';
import { random } from './checkpoints';
import { temporaryFolder } from './helpers';
import { collect, largestDifference, metricsOf, newModelFolder, task, weightsOf, withModel } from './trained-models';

const { certaintyLoss, countSegments, curriculumNoise, curriculumWindow, distillAnswers, randomMask } = training;
const { segmentAt, segmentViews, trajectoryMask, trajectoryOf, trajectoryOfStates, stateOf } = training;
const { trainCertainty, trainPseudoTrajectories } = training;

const MASK = 1;

let folder: string;
let answers: string;
beforeAll(async () => {
  folder = await newModelFolder();
  answers = path.join(temporaryFolder(), 'answers.jsonl');
  // An untrained model is right by luck alone.
  await withModel(folder, (model) =>
    collect(distillAnswers(model, { dataset: task, count: 40, output: answers, keepWrong: true, batchSize: 10 })),
  );
});

describe('segments', () => {
  test('are the whole blocks, and what is left behind them', () => {
    const row = { begin: 5, answer: 11, length: 16 };
    expect(countSegments(row, 4)).toBe(3);
    expect([0, 1, 2].map((index) => segmentAt(row, 4, index))).toEqual([
      { begin: 5, end: 9 },
      { begin: 9, end: 13 },
      { begin: 13, end: 16 },
    ]);
    // The published code also draws the rest that is empty, which trains nothing.
    const even = { begin: 4, answer: 8, length: 12 };
    expect([countSegments(even, 4), countSegments(even, 4, { empty: true })]).toEqual([2, 3]);
    expect(segmentAt(even, 4, 2)).toEqual({ begin: 12, end: 12 });
    // An answer shorter than the row: the last segment has its padding, too.
    expect(segmentAt({ begin: 2, answer: 5, length: 12 }, 4, 1)).toEqual({ begin: 6, end: 12 });
    // One that was cut: segments that would lie behind the row are none.
    expect(countSegments({ begin: 2, answer: 30, length: 9 }, 4)).toBe(2);
  });

  test('two views mask a segment between them, and everything behind it', () => {
    const ids = Int32Array.from([10, 11, 12, 13, 14, 15, 16]);
    const views = segmentViews(ids, { begin: 2, end: 5 }, (position) => position === 3, MASK);
    expect(Array.from(views.ids)).toEqual([10, 11, 12, MASK, 14, MASK, MASK]);
    expect(Array.from(views.complementIds)).toEqual([10, 11, MASK, 13, MASK, MASK, MASK]);
    expect([Array.from(views.positions), Array.from(views.complementPositions)]).toEqual([[3], [2, 4]]);
    const outside = segmentViews(ids, { begin: 9, end: 7 }, () => true, MASK);
    expect([outside.positions.length, outside.complementPositions.length]).toEqual([0, 0]);
    expect(Array.from(outside.ids)).toEqual(Array.from(ids));
  });

  test('a random mask has its share', () => {
    const next = random(3);
    const isMasked = randomMask(Float32Array.from({ length: 20_000 }, next), { probability: 0.3, epsilon: 0.1 });
    const share = Array.from({ length: 20_000 }, (_, i) => Number(isMasked(i))).reduce((a, b) => a + b) / 20_000;
    expect(Math.abs(share - 0.37)).toBeLessThan(0.01);
  });
});

describe('trajectories', () => {
  // Decided in steps 1, 3, 1, 2 and never.
  const trajectory = trajectoryOf(2, [1, 3, 1, 2, 0]);
  const final = [8, 9, 20, 21, 22, 23, MASK];

  test('give back every state', () => {
    const states = [0, 1, 2].map((state) => Array.from(stateOf(trajectory, final, state, MASK)));
    expect(states).toEqual([
      [8, 9, 20, MASK, 22, MASK, MASK],
      [8, 9, 20, MASK, 22, 23, MASK],
      [8, 9, 20, 21, 22, 23, MASK],
    ]);
    expect(trajectoryOfStates(states, MASK, 2)).toEqual(trajectory);
  });

  test('mask what a state has not decided, and what they do not reach', () => {
    const masksOf = (maskRatio: number, shift = 0) => {
      const { isMasked, state } = trajectoryMask(trajectory, { begin: 2, end: 6 }, { maskRatio, begin: 2, shift });
      return { state, masked: [2, 3, 4, 5, 6, 7].filter(isMasked) };
    };
    expect(masksOf(1)).toEqual({ state: 0, masked: [3, 5, 6, 7] });
    expect(masksOf(0.7)).toEqual({ state: 1, masked: [3, 6, 7] });
    expect(masksOf(0)).toEqual({ state: 2, masked: [6, 7] });
    // A row whose prompt is a token longer.
    expect(masksOf(1, 1)).toEqual({ state: 0, masked: [4, 6, 7] });
  });

  test('curricula', () => {
    expect([0, 0.5, 1, 1.25, 2, 9].map((epoch) => curriculumWindow([4, 8, 10], epoch))).toEqual([4, 6, 8, 8, 10, 10]);
    expect([0, 5, 10].map((step) => curriculumNoise({ min: 0.1, max: 0.7 }, step, 10))).toEqual([
      0.1,
      expect.closeTo(0.4, 12),
      expect.closeTo(0.7, 12),
    ]);
  });
});

test('the certainty loss: its parts, and its gradient against differences', () => {
  const next = random(5);
  const view = (n: number) => ({
    logProbs: Float64Array.from({ length: n }, () => -3 * next()),
    entropies: Float64Array.from({ length: n }, () => 2 * next()),
    correct: Uint8Array.from({ length: n }, () => Number(next() < 0.6)),
  });
  const [first, second] = [view(7), view(5)];
  first.correct.set([1, 0]);
  const options = { entropyWeight: 2, entropyOnComplement: true, divisor: 4 };
  const result = certaintyLoss(first, second, options);
  const { crossEntropy, complementCrossEntropy, entropy, complementEntropy } = result;
  expect(result.loss).toBeCloseTo((crossEntropy + complementCrossEntropy + 2 * (entropy + complementEntropy)) / 4, 12);
  [first, second].forEach((part, k) => {
    for (const [key, gradient] of [
      ['logProbs', 'dLogProbs'],
      ['entropies', 'dEntropies'],
    ] as const)
      for (let i = 0; i < part.correct.length; i++) {
        const before = part[key][i];
        const at = (x: number) => {
          part[key][i] = x;
          return certaintyLoss(first, second, options).loss;
        };
        const slope = (at(before + 1e-4) - at(before - 1e-4)) / 2e-4;
        part[key][i] = before;
        expect(result.gradients[k][gradient][i]).toBeCloseTo(slope, 6);
      }
  });
  // Without tokens, nothing; without the complement's entropy, its gradient is none.
  const none = view(0);
  expect(certaintyLoss(none, none, options)).toMatchObject({ loss: 0, crossEntropy: 0, entropy: 0 });
  const one = certaintyLoss(first, second, { ...options, entropyOnComplement: false });
  expect(one.gradients[1].dEntropies.every((d) => d === 0)).toBe(true);
  expect(certaintyLoss(first, null, options).gradients).toHaveLength(1);
});

describe('own answers', () => {
  const records = (file: string) =>
    readFileSync(file, 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as training.DistillationRecord);

  test('have the fields of the published data, and the order of the decoding', async () => {
    const [record] = records(answers);
    expect(Object.keys(record)).toEqual([
      'idx',
      'question',
      'prompt_ids',
      'llm_response',
      'gt_answer',
      'is_correct',
      'temperature',
      'nfe',
      'reveal_step',
    ]);
    await withModel(folder, async (model) => {
      const { text, unmaskedAt } = await model.generate(record.question!, {
        sampler: 'fixed',
        maxTokens: task.genLength,
        blockLength: task.blockLength,
        stopAtEos: false,
      });
      expect([record.llm_response, record.reveal_step]).toEqual([text, Array.from(unmaskedAt, (step) => step - 1)]);
    });
  });

  test('go on where they stopped, and refuse other options', async () => {
    const whole = path.join(temporaryFolder(), 'whole.jsonl');
    const broken = path.join(temporaryFolder(), 'broken.jsonl');
    await withModel(folder, async (model) => {
      const options = { dataset: task, count: 24, batchSize: 6, retries: 1, keepWrong: true, seed: 4 };
      await collect(distillAnswers(model, { ...options, output: whole }));
      for await (const { done } of distillAnswers(model, { ...options, output: broken })) if (done >= 12) break;
      // A line that a killed process has left unfinished.
      truncateSync(broken, readFileSync(broken).length - 9);
      await collect(distillAnswers(model, { ...options, output: broken }));
      expect(readFileSync(broken, 'utf8')).toBe(readFileSync(whole, 'utf8'));
      await expect(collect(distillAnswers(model, { ...options, output: broken, seed: 5 }))).rejects.toThrow(
        /^seed: expected "4", with which .* began, got "5"/,
      );
      const other = path.join(temporaryFolder(), 'mine.jsonl');
      writeFileSync(other, '{}\n');
      await expect(collect(distillAnswers(model, { ...options, output: other }))).rejects.toThrow(
        /no file of own answers/,
      );
      expect(readFileSync(other, 'utf8')).toBe('{}\n');
    });
  });

  test('that are wrong are tried again, and left out', async () => {
    const output = path.join(temporaryFolder(), 'right.jsonl');
    const prompts = [...new Set(task.sample('train', 40, 1).map(({ prompt }) => prompt))];
    const dataset = {
      ...task,
      // Right are answers of the second attempt to every other prompt.
      verify: (() => {
        const seen = new Map<string, number>();
        return ({ prompt }: { prompt: string }) => {
          const attempt = (seen.get(prompt) ?? 0) + 1;
          seen.set(prompt, attempt);
          return attempt === 2 && prompts.indexOf(prompt) % 2 === 0;
        };
      })(),
    };
    const list = {
      ...dataset,
      sample: () => prompts.map((prompt) => ({ prompt, answer: 'a', category: '', meta: null })),
    };
    await withModel(folder, (model) =>
      collect(distillAnswers(model, { dataset: list as never, count: prompts.length, output, retries: 2 })),
    );
    const written = records(output);
    expect(written.length).toBeGreaterThan(0);
    for (const { question, is_correct, temperature, idx } of written) {
      expect([idx % 2, is_correct, temperature]).toEqual([0, true, 0.1]);
      expect(prompts[idx]).toBe(question);
    }
  });

  test.each([
    [{ count: undefined }, 'count: expected a number of prompts'],
    [{ output: '' }, 'output: expected a file'],
    [{ sampler: 'fixd' }, 'sampler'],
    [{ retries: -1 }, 'retries'],
    [{ amount: 3 }, 'unknown key "amount"'],
  ])('%j is refused', async (options, message) => {
    const output = path.join(temporaryFolder(), 'a.jsonl');
    await withModel(folder, async (model) => {
      const run = collect(distillAnswers(model, { dataset: task, count: 2, output, ...options } as never));
      await expect(run).rejects.toThrow(message);
    });
    expect(existsSync(output)).toBe(false);
  });
});

type Run = (model: MaskedDiffusionModel, options: object) => Promise<training.DistillationMetrics[]>;
const COMPARED = { learningRate: 1e-3, eps: 1e-3, maxSteps: 3 } as const;
const runs: [string, Run][] = [
  [
    'dparallel',
    (model, options) =>
      collect(trainCertainty(model, { dataset: answers, maxTokens: 8, batchSize: 8, blockLength: 3, ...options })),
  ],
  [
    'd3llm',
    (model, options) =>
      collect(
        trainPseudoTrajectories(model, { dataset: answers, maxTokens: 8, batchSize: 8, windows: [3, 5], ...options }),
      ),
  ],
];

describe.each(runs)('%s', (name, run) => {
  test('30 steps, with evaluations; a run that goes on ends with the same bits', async () => {
    const base = temporaryFolder();
    const options = {
      maxSteps: 30,
      learningRate: 3e-3,
      evalEvery: 10,
      evalExamples: 6,
      evalSampler: 'entropy:0.45',
      saveEvery: 10,
      tensorboard: false,
    };
    const dataset = { examples: answers, validation: 0.2 };
    const given = { ...options, dataset };
    const runIn = (outputDir: string, more: object = {}) =>
      withModel(folder, async (model) => {
        const metrics = await run(model, { ...given, outputDir: path.join(base, outputDir), ...more });
        return { metrics, weights: await weightsOf(model) };
      });
    const whole = await runIn('whole');
    await runIn('broken', { maxSteps: 30, patience: 1, bestBy: 'evalNfe' });
    const stopped = metricsOf(path.join(base, 'broken')).length;
    expect(stopped).toBeLessThanOrEqual(30);
    const half = path.join(base, 'half');
    await withModel(folder, async (model) => {
      const all = name === 'dparallel' ? trainCertainty : trainPseudoTrajectories;
      const shape = name === 'dparallel' ? { blockLength: 3 } : { windows: [3, 5] };
      for await (const { step } of all(model, {
        ...given,
        ...shape,
        maxTokens: 8,
        batchSize: 8,
        outputDir: half,
      } as never))
        if (step === 10) break;
    });
    const resumed = await runIn('half', { resume: true });
    for (const [tensor, { raw }] of Object.entries(whole.weights))
      expect([tensor, raw.equals(resumed.weights[tensor].raw)]).toEqual([tensor, true]);
    expect(metricsOf(half)).toEqual(metricsOf(path.join(base, 'whole')));
    const [first, last] = [whole.metrics[0], whole.metrics[29]];
    expect(last.loss).toBeLessThan(first.loss);
    expect(whole.metrics[9]).toMatchObject({ evalLoss: expect.any(Number), evalNfe: expect.any(Number) });
    if (name === 'd3llm') expect(last).toMatchObject({ withoutTrajectory: 0, maskRatio: expect.any(Number) });
  });

  test('neither the token budget nor the number of threads matters', async () => {
    const outcome = (changes: object, threads = 2) =>
      withModel(
        folder,
        async (model) => ({ metrics: await run(model, { ...COMPARED, ...changes }), weights: await weightsOf(model) }),
        threads,
      );
    const wide = await outcome({});
    // Smaller than a batch, whose means are over all of it.
    const narrow = await outcome({ tokenBudget: 24 });
    wide.metrics.forEach(({ loss }, i) => expect(narrow.metrics[i].loss / loss).toBeCloseTo(1, 6));
    expect(largestDifference(wide.weights, narrow.weights)).toBeLessThan(1e-6);
    const single = await outcome({}, 1);
    for (const [tensor, { raw }] of Object.entries(wide.weights))
      expect([tensor, raw.equals(single.weights[tensor].raw)]).toEqual([tensor, true]);
  });

  test('the planner stays as it is; adapters train alone', async () => {
    await withModel(folder, async (model) => {
      const before = await weightsOf(model);
      await run(model, { ...COMPARED, lora: { rank: 2 } });
      const after = await weightsOf(model);
      const moved = Object.keys(before).filter((key) => !before[key].raw.equals(after[key].raw));
      expect(moved.length).toBeGreaterThan(0);
      expect(moved.every((key) => /q_proj|k_proj|v_proj|attn_out/.test(key))).toBe(true);
    });
  });

  test.each([
    [{ entropyTemperature: 0 }, 'entropyTemperature'],
    [{ segments: 'all' }, 'segments'],
    [{ rowTokens: 8 }, 'rowTokens: expected maxTokens or rowTokens, got both'],
    [{ bestBy: 'evalAccuracy' }, 'bestBy: expected evalSampler'],
    [{ objective: 'sft' }, 'unknown key "objective"'],
    name === 'd3llm' ? [{ windows: [] }, 'windows'] : [{ maskProbability: 2 }, 'maskProbability'],
    name === 'd3llm' ? [{ maskRatio: { min: 0.5, max: 0.2 } }, 'maskRatio.max'] : [{ blockLength: 0 }, 'blockLength'],
    name === 'd3llm' ? [{ trajectories: '' }, 'trajectories'] : [{ windows: [3] }, 'unknown key "windows"'],
  ])('%j is refused', (options, message) =>
    withModel(folder, (model) => expect(run(model, { maxSteps: 1, ...options })).rejects.toThrow(message)),
  );

  test('a model that attends by blocks is refused', async () => {
    const blocks = await newModelFolder({ family: 'sdar', blockLength: 4 });
    await withModel(blocks, (model) => expect(run(model, { maxSteps: 1 })).rejects.toThrow(/attends by blocks/));
  });
});

test('trajectories of a file go to the prompts that they are of', async () => {
  const file = path.join(temporaryFolder(), 'published.jsonl');
  const lines = readFileSync(answers, 'utf8').trim().split('\n').slice(0, 10);
  // As d3LLM publishes them: the whole row after each step.
  const published = lines.map((line) => {
    const { question, prompt_ids: promptIds, reveal_step: reveal } = JSON.parse(line) as training.DistillationRecord;
    const states = Array.from({ length: reveal.length }, (_, state) => [
      ...promptIds,
      ...reveal.map((step) => (step > state ? MASK : 20)),
    ]);
    return { question, prompt_ids: promptIds, trajectory: states };
  });
  writeFileSync(file, published.map((record) => `${JSON.stringify(record)}\n`).join(''));
  await withModel(folder, async (model) => {
    const options = { dataset: answers, maxTokens: 8, batchSize: 40, windows: [4], maxSteps: 1 };
    const [{ withoutTrajectory }] = await collect(trainPseudoTrajectories(model, { ...options, trajectories: file }));
    const questions = lines.map((line) => (JSON.parse(line) as training.DistillationRecord).question);
    const all = readFileSync(answers, 'utf8').trim().split('\n');
    const known = all.filter((line) => questions.includes((JSON.parse(line) as training.DistillationRecord).question));
    expect(withoutTrajectory).toBeCloseTo(1 - known.length / all.length, 12);
    writeFileSync(file, `${JSON.stringify({ ...published[0], trajectory: [[1, 2], [3]] })}\n`);
    await expect(collect(trainPseudoTrajectories(model, { ...options, trajectories: file }))).rejects.toThrow(
      /published\.jsonl, line 1: field "trajectory": expected rows of 2 ids/,
    );
  });
});
