// GRPO, through the public API.
import { type GrpoOptions, type RewardFunction, rewards, training } from '../lib';
import { newModelFolder, weightsOf, withModel } from './trained-models';
import { earlyTokens, grpo } from './trainers';

let folder: string;
beforeAll(async () => {
  folder = await newModelFolder();
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

  test.each([Number.NaN, Number.NEGATIVE_INFINITY])('a reward of %p is refused by its name and row', async (value) => {
    const odd: RewardFunction = ({ results }) => results.map((_, row) => (row === 5 ? value : 1));
    await expect(withModel(folder, (model) => grpo(model, { rewards: { early: earlyTokens, odd } }))).rejects.toThrow(
      `rewards.odd: expected a finite number or null for each row, got ${value} for row 5`,
    );
  });

  test.each(['none', 'group', 'batch'] as const)('equal rewards teach nothing: scaled by %s', async (scaleRewards) => {
    await withModel(folder, async (model) => {
      const before = await weightsOf(model);
      // Their mean over a group of six is not 0.1.
      const same: RewardFunction = ({ results }) => results.map(() => 0.1);
      const options = { numGenerations: 6, advantageMinClip: null, weightDecay: 0 };
      for (const metrics of await grpo(model, { ...options, scaleRewards, rewards: { same } })) {
        expect(metrics).toMatchObject({ zeroAdvantage: 1, replayedSteps: 0, gradNorm: 0, rewardStd: 0 });
      }
      expect(await weightsOf(model)).toEqual(before);
    });
  });

  test('the same rewards in another order are no new best', async () => {
    let evaluations = 0;
    // Summed in these orders, 0.6 and 0.6000000000000001.
    const orders = [
      [0.3, 0.2, 0.1],
      [0.1, 0.2, 0.3],
    ];
    const early: RewardFunction = (batch) =>
      batch.results.length === 3 ? orders[Math.min(evaluations++, 1)] : earlyTokens(batch);
    const options = { maxSteps: 9, evalEvery: 1, evalExamples: 3, patience: 2, rewards: { early } };
    expect(await withModel(folder, (model) => grpo(model, options))).toHaveLength(3);
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
      maxTokens: 8,
      blockLength: 8,
    });
    const whole = await model.generateBatch(['1 a b c d e f g h', '3 a a b c d e f g'], {
      maxTokens: 8,
      blockLength: 8,
      temperature: 0.5,
      seed: 5,
      sampler: { type: 'planner', select: 'bernoulli' },
    });
    expect(results).toEqual(whole);
    expect(steps.filter(({ rollout }) => rollout === 1)).toHaveLength(whole[1].nfe);
  });
});
