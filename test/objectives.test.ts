// Objectives that score tokens: rows, losses and gradients as pure functions, and the trainer with each of them.
import { cpSync } from 'node:fs';
import path from 'node:path';
import { type GrpoMetrics, GrpoTrainer, loadCausalModel, type MaskedDiffusionModel, training } from '../lib';
import { attendedGrid } from '../lib/model/blocks';
import { groupCounts, normalizeWithinGroups, resolveGroupFilter } from '../lib/training/grpo/group-filter';
import { alignValues } from '../lib/training/grpo/token-teacher';
import { random } from './checkpoints';
import { temporaryFolder } from './helpers';
import { metricsOf, newModelFolder, task, weightsOf, withModel } from './trained-models';
import { earlyTokens, grpo } from './trainers';

const { diffuGrpoLoss, oneStepRow, traceLoss, traceRows, wd1Loss, wd1Weights } = training;

let folder: string;
beforeAll(async () => {
  folder = await newModelFolder();
});

describe('rows', () => {
  const ids = Int32Array.from([5, 6, 10, 11, 12, 13, 3, 3]);
  const rollout = { ids, begin: 2, counted: 5, steps: [2, 1, 1, 3, 4, 4] };

  test('of one step: the whole completion masked, and some of the prompt', () => {
    const row = oneStepRow(rollout, { promptMask: 0.5, uniforms: [0.7, 0.2], maskTokenId: 1 });
    expect(Array.from(row.ids)).toEqual([5, 1, 1, 1, 1, 1, 1, 1]);
    expect([Array.from(row.positions), Array.from(row.tokens)]).toEqual([
      [2, 3, 4, 5, 6],
      [10, 11, 12, 13, 3],
    ]);
  });

  test('of the trajectory: a step at a time, or several', () => {
    const rows = traceRows(rollout, { shrink: 1, maskTokenId: 1 });
    expect(rows.map((row) => [Array.from(row.ids), Array.from(row.positions)])).toEqual([
      [
        [5, 6, 1, 1, 1, 1, 1, 1],
        [3, 4],
      ],
      [[5, 6, 1, 11, 12, 1, 1, 1], [2]],
      [[5, 6, 10, 11, 12, 1, 1, 1], [5]],
      // What stands behind the end does not count.
      [[5, 6, 10, 11, 12, 13, 1, 1], [6]],
    ]);
    expect(traceRows(rollout, { shrink: 3, maskTokenId: 1 }).map(({ positions }) => Array.from(positions))).toEqual([
      [2, 3, 4, 5],
      [6],
    ]);
    // Ends of sequence beyond the first few are not scored; what no step decided is masked throughout.
    const padded = { ...rollout, counted: 6, steps: [2, 1, 1, Number.POSITIVE_INFINITY, 4, 4] };
    const scored = traceRows(padded, { shrink: 1, maskTokenId: 1, padId: 3, keptPads: 1 });
    expect(scored.map(({ positions }) => Array.from(positions))).toEqual([[3, 4], [2], [6]]);
    expect(scored[2].ids[5]).toBe(1);
    expect(traceRows(padded, { shrink: 1, maskTokenId: 1, padId: 3 }).map((row) => row.positions.length)).toEqual([
      2, 1,
    ]);
  });

  test('of blocks: each group of one block, whose row ends with it', () => {
    const rows = traceRows(
      { ...rollout, steps: [1, 1, 2, 3, 4, 4] },
      { shrink: 2, maskTokenId: 1, grid: { first: 4, length: 4 } },
    );
    expect(rows.map((row) => [Array.from(row.ids), Array.from(row.positions)])).toEqual([
      [
        [5, 6, 1, 1],
        [2, 3],
      ],
      [
        [5, 6, 10, 11, 1, 1, 1, 1],
        [4, 5],
      ],
      [[5, 6, 10, 11, 12, 13, 1, 1], [6]],
    ]);
  });
});

describe('losses', () => {
  const next = random(8);
  const numbers = (n: number, scale = 1) => Float32Array.from({ length: n }, () => scale * (next() - 0.7));
  const row = () => ({
    logProbs: numbers(6, 2),
    oldLogProbs: numbers(6, 2),
    referenceLogProbs: numbers(6, 2),
    advantage: 0.8 as number | Float32Array,
  });
  const clip = { clipEpsilonLow: 0.2, clipEpsilonHigh: 0.3, beta: 0.1 };
  const losses: [string, (row: training.ScoredTokens) => training.TokenLoss][] = [
    [
      'diffu-GRPO',
      (row) => diffuGrpoLoss(row, { tokens: 20, rows: 3 }, { ...clip, klTo: 'reference', lossPer: 'token' }),
    ],
    [
      'diffu-GRPO by rows',
      (row) => diffuGrpoLoss(row, { tokens: 20, rows: 3 }, { ...clip, klTo: 'reference', lossPer: 'row' }),
    ],
    ['TraceRL', (row) => traceLoss(row, { tokens: 20, rows: 3 }, { ...clip, klTo: 'old', lossPer: 'row' })],
    [
      'TraceRL by tokens',
      (row) =>
        traceLoss(row, { tokens: 20, rows: 3 }, { ...clip, klTo: 'reference', lossPer: 'token', klEstimator: 'k1' }),
    ],
    ['wd1', (row) => wd1Loss(row, 4)],
  ];

  test.each(losses)('%s: the gradient against differences', (_name, loss) => {
    for (const advantage of [0.8, -0.6, numbers(6)]) {
      const given = { ...row(), advantage };
      const { dLogProbs } = loss(given);
      for (let i = 0; i < 6; i++) {
        const at = (x: number) =>
          loss({ ...given, logProbs: given.logProbs.map((value, k) => (k === i ? x : value)) }).loss;
        const slope = (at(given.logProbs[i] + 5e-3) - at(given.logProbs[i] - 5e-3)) / 1e-2;
        // Not where the clip begins.
        const ratio = Math.exp(given.logProbs[i] - given.oldLogProbs[i]);
        if ([0.8, 1.3].some((edge) => Math.abs(ratio - edge) < 0.02)) continue;
        expect(dLogProbs[i]).toBeCloseTo(slope, 4);
      }
    }
  });

  test('tokens weigh alike, or rows', () => {
    const one = { ...row(), advantage: 1 };
    const plain = { clipEpsilonLow: 9, clipEpsilonHigh: 9, beta: 0, klTo: 'reference' } as const;
    const same = { ...one, oldLogProbs: one.logProbs };
    expect(diffuGrpoLoss(same, { tokens: 20, rows: 3 }, { ...plain, lossPer: 'token' }).loss).toBeCloseTo(-6 / 20, 6);
    expect(diffuGrpoLoss(same, { tokens: 20, rows: 3 }, { ...plain, lossPer: 'row' }).loss).toBeCloseTo(-1 / 3, 6);
    // No exponential overflows.
    const far = { ...one, oldLogProbs: one.logProbs.map((x) => x - 500) };
    expect(
      Number.isFinite(traceLoss(far, { tokens: 6, rows: 1 }, { ...plain, beta: 1, klTo: 'old', lossPer: 'row' }).loss),
    ).toBe(true);
    expect(() =>
      diffuGrpoLoss({ ...one, referenceLogProbs: null }, { tokens: 1, rows: 1 }, { ...plain, beta: 1, lossPer: 'row' }),
    ).toThrow('referenceLogProbs');
  });

  test("wd1's weights like the better rollouts of a group as much as they dislike the others", () => {
    const weights = wd1Weights([1, -1, 0, 5, 5], 3);
    expect(weights[0]).toBeCloseTo(-weights[1], 12);
    expect(weights[2]).toBeCloseTo(0, 12);
    expect([weights[0] > 0, weights[3], weights[4]]).toEqual([true, 0, 0]);
  });
});

describe('groups', () => {
  test('count by their variance, speed and accuracy', () => {
    const filter = (options: object) => resolveGroupFilter(options as never)!;
    const facts = { rewards: [1, 1, 1], tokensPerForward: [2, 2.5, 2], right: [true, false, null] };
    expect(groupCounts(facts, filter({ zeroVariance: 'drop' }))).toBe(false);
    expect(groupCounts({ ...facts, rewards: [1, Number.NaN, 2] }, filter({ zeroVariance: 'drop' }))).toBe(true);
    expect(groupCounts(facts, filter({ tokensPerForwardRange: 0.5 }))).toBe(true);
    expect(groupCounts(facts, filter({ tokensPerForwardRange: 0.6 }))).toBe(false);
    expect(groupCounts(facts, filter({ accuracy: { min: 0.2, max: 0.8 } }))).toBe(true);
    expect(groupCounts(facts, filter({ accuracy: { min: 0.6, max: 1 } }))).toBe(false);
    expect(() => groupCounts({ ...facts, right: [] }, filter({ accuracy: { min: 0, max: 1 } }))).toThrow('verifier');
    for (const bad of [{}, { resamples: 2 }, { zeroVariance: 'no' }, { accuracy: { min: 1, max: 0 } }, { other: 1 }])
      expect(() => filter(bad)).toThrow('filterGroups');
    expect(resolveGroupFilter(undefined)).toBeNull();
  });

  test('each reward is normalised by itself', () => {
    const values = normalizeWithinGroups([1, 3, null, 7, 7, 7], 3);
    expect(values[2]).toBeNull();
    expect(values[0]).toBeCloseTo(-values[1]!, 12);
    expect(values.slice(3)).toEqual([0, 0, 0]);
    // Whatever its scale.
    const scaled = normalizeWithinGroups([100, 300, null], 3);
    expect(scaled[0]).toBeCloseTo(values[0]!, 3);
  });

  test('that do not count are drawn again, up to a limit', async () => {
    const dropped = await withModel(folder, (model) =>
      grpo(model, {
        rewards: { same: () => new Array(16).fill(1) },
        filterGroups: { zeroVariance: 'drop', resamples: 2 },
        maxSteps: 1,
      }),
    );
    expect(dropped[0]).toMatchObject({ keptGroups: 0, resamples: 2, replayedSteps: 0, loss: 0 });
    // Half of the groups have rewards that differ.
    let call = 0;
    const sometimes = () => {
      const odd = call++ % 2;
      return Array.from({ length: 16 }, (_, i) => ((i >> 2) % 2 === odd ? i : 0));
    };
    const run = () =>
      withModel(folder, async (model) => {
        call = 0;
        const metrics = await grpo(model, {
          rewards: { sometimes },
          filterGroups: { zeroVariance: 'drop', resamples: 3 },
          maxSteps: 2,
        });
        return { metrics, weights: await weightsOf(model) };
      });
    const [one, two] = [await run(), await run()];
    expect(one.metrics[0]).toMatchObject({ keptGroups: 1, resamples: 1 });
    expect(one.metrics.map(({ loss }) => loss)).toEqual(two.metrics.map(({ loss }) => loss));
  });
});

describe('replay = rollout', () => {
  const check = async (model: MaskedDiffusionModel, sampler: string) => {
    const results = await model.generateBatch(
      task.sample('validation', 4, 1).map(({ prompt }) => prompt),
      { sampler, maxTokens: 8, temperature: 0.7, seed: 3, logprobs: true },
    );
    const trainer = await model.createTrainer({ freezeBase: true, freezePlanner: true });
    for (const { promptIds, ids, tokens, unmaskedAt, logprobs } of results) {
      const steps = Array.from(unmaskedAt, (step) => (step > 0 ? step : Number.POSITIVE_INFINITY));
      const whole = Int32Array.from([...promptIds, ...ids]);
      const { maskTokenId } = model.config;
      const rows = traceRows(
        { ids: whole, begin: promptIds.length, counted: tokens, steps },
        { shrink: 1, maskTokenId, grid: attendedGrid(model.config, promptIds.length) },
      );
      let scored = 0;
      for (const { ids: noisy, positions, tokens: labels } of rows) {
        const request = {
          ids: noisy,
          offsets: Int32Array.of(0, noisy.length),
          positions,
          tokens: labels,
          excludedToken: maskTokenId,
        };
        const { logProbs } = await trainer.score(request);
        positions.forEach((position, i) => {
          expect(logProbs![i]).toBeCloseTo(logprobs![position - promptIds.length], 4);
          scored++;
        });
      }
      expect(scored).toBe(tokens);
    }
    trainer.dispose();
  };
  test.each(['fixed:4', 'confidence:0.3', 'entropy:2'])('%s', (sampler) =>
    withModel(folder, (model) => check(model, sampler)),
  );
  test('by blocks', async () => {
    // Prompt and completion fill whole blocks: what stands behind maxTokens in the last block is not in a result.
    const blocks = await newModelFolder({ family: 'sdar', blockLength: 1, maxSequenceLength: 32 });
    await withModel(blocks, (model) => check(model, 'confidence:0.3'));
  });
});

const settings: [string, object][] = [
  ['dultra', { objective: 'dultra', filterGroups: { zeroVariance: 'drop', resamples: 1 }, normalizeRewards: 'group' }],
  ['diffu-grpo', { objective: 'diffu-grpo', rolloutSampler: 'fixed:4' }],
  ['wd1', { objective: 'wd1', rolloutSampler: 'fixed:4' }],
  ['trace', { objective: 'trace', rolloutSampler: 'confidence:0.5', shrink: 2, beta: 0.01 }],
];

describe.each(settings)('%s', (_name, options) => {
  test('30 steps; a run that goes on ends with the same bits', async () => {
    const base = temporaryFolder();
    const given = {
      ...options,
      dataset: task,
      rewards: { early: earlyTokens },
      promptsPerStep: 2,
      numGenerations: 4,
      numIterations: 2,
      learningRate: 3e-3,
      maxSteps: 30,
      evalEvery: 10,
      evalExamples: 4,
      saveEvery: 10,
      tensorboard: false,
    } as const;
    const run = (name: string, until = 30) =>
      withModel(folder, async (model) => {
        const outputDir = path.join(base, name);
        await using trainer = new GrpoTrainer(model, { ...given, outputDir, resume: true } as never);
        for await (const { step } of trainer.train()) if (step === until) break;
        return weightsOf(model);
      });
    const whole = await run('whole');
    await run('half', 10);
    const resumed = await run('half');
    for (const [tensor, { raw }] of Object.entries(whole))
      expect([tensor, raw.equals(resumed[tensor].raw)]).toEqual([tensor, true]);
    const metrics = metricsOf(path.join(base, 'whole'));
    expect(metricsOf(path.join(base, 'half'))).toEqual(metrics);
    // The first update of a batch is that of the policy that made the rollouts.
    expect(metrics[0].ratioDeviation as number).toBeLessThan(1e-4);
    expect(metrics.some(({ replayedSteps }) => (replayedSteps as number) > 0)).toBe(true);
    expect(metrics[9]).toMatchObject({ evalReward: expect.any(Number), evalNfe: expect.any(Number) });
  });
});

test('a model without a planner trains, with objectives that need none', async () => {
  const plain = await newModelFolder({ family: 'sdar', blockLength: 4 });
  await withModel(plain, async (model) => {
    const [{ replayedSteps }] = await grpo(model, {
      objective: 'trace',
      rolloutSampler: 'confidence:0.5',
      maxSteps: 1,
    });
    expect(replayedSteps).toBeGreaterThan(0);
  });
});

describe('distillation from a teacher', () => {
  test('values of tokens that end elsewhere are shared', () => {
    expect(Array.from(alignValues([-1, -2, -3], [2, 5, 9], [2, 5, 9]))).toEqual([-1, -2, -3]);
    expect(Array.from(alignValues([-1, -2, -3], [2, 5, 9], [5, 7, 9]))).toEqual([-3, -1.5, -1.5]);
    expect(Array.from(alignValues([-4], [4], [1, 2, -1, 4]))).toEqual([-1, -1, -1, -1]);
    expect(Array.from(alignValues([-1], [3], [2]))).toEqual([Number.NaN]);
  });

  test('needs no reward, and brings the model nearer to the teacher; a run that goes on ends with the same bits', async () => {
    // An autoregressive model that speaks the words of the task.
    const own = temporaryFolder();
    cpSync(path.join(__dirname, 'fixtures', 'causal', 'qwen2'), own, { recursive: true });
    for (const name of ['tokenizer.json', 'tokenizer_config.json'])
      cpSync(path.join(folder, name), path.join(own, name));
    await using teacher = await loadCausalModel(own, { threads: 2 });
    const base = temporaryFolder();
    const run = (name: string, until = 30) =>
      withModel(folder, async (model) => {
        const shape = { dataset: task, maxSteps: 30, promptsPerStep: 4, numGenerations: 8, learningRate: 3e-3 };
        const kept = { outputDir: path.join(base, name), resume: true, saveEvery: 10, tensorboard: false };
        const options = { ...shape, ...kept, objective: 'distillation', teacher, temperature: 1 } as const;
        await using trainer = new GrpoTrainer(model, options);
        const metrics: GrpoMetrics[] = [];
        for await (const step of trainer.train()) if (metrics.push(step) === until) break;
        return { metrics, weights: await weightsOf(model) };
      });
    const { metrics, weights } = await run('whole');
    await run('half', 10);
    const resumed = await run('half');
    for (const [tensor, { raw }] of Object.entries(weights))
      expect([tensor, raw.equals(resumed.weights[tensor].raw)]).toEqual([tensor, true]);
    expect(metricsOf(path.join(base, 'half'))).toEqual(metricsOf(path.join(base, 'whole')));
    const mean = (from: number) =>
      metrics.slice(from, from + 5).reduce((sum, { reverseKl }) => sum + reverseKl! / 5, 0);
    expect(mean(25)).toBeLessThan(mean(0) - 0.5);
    expect(metrics[29]['reward/teacher']).toBeLessThan(0);
    expect(metrics[29].teacherLogProb).toBeLessThan(0);
  });
});

test.each([
  [{ objective: 'ppo' }, 'objective'],
  [{ shrink: 2 }, 'shrink: expected none with objective "dultra"'],
  [{ objective: 'trace', promptMask: 0.1 }, 'promptMask'],
  [{ objective: 'trace', cache: 'refresh' }, 'cache'],
  [{ objective: 'trace', freezePlanner: false }, 'freezePlanner'],
  [{ objective: 'trace', freezeBase: true }, 'freezePlanner'],
  [{ objective: 'wd1', beta: 0.1 }, 'beta'],
  [{ objective: 'diffu-grpo', beta: 0.1 }, 'beta: expected a referenceModel'],
  [{ objective: 'diffu-grpo', rolloutSampler: 'fixd' }, 'rolloutSampler'],
  [{ objective: 'distillation' }, 'teacher'],
  [{ teacher: {} }, 'teacher: expected none'],
  [{ filterGroups: {} }, 'filterGroups'],
  [{ normalizeRewards: 'all' }, 'normalizeRewards'],
  [{ bestBy: 'loss' }, 'bestBy'],
])('%j is refused', (options, message) =>
  withModel(folder, async (model) => {
    await expect(grpo(model, options as never)).rejects.toThrow(message);
  }),
);
