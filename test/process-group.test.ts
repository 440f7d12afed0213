// Work that is dealt out to processes: which process computes what, and that all of it is computed once.
import { datasets, loadModel, type MaskedDiffusionModel, type ModelTrainer, rewards, training } from '../lib';
import { checkAlike } from '../lib/distributed/alike';
import { launchOf, librariesFor } from '../lib/distributed/mpi';
import {
  dealOut,
  firstAlone,
  gatherJson,
  gatherNumbers,
  numbersOfFirst,
  ownRange,
  type ProcessGroup,
  SINGLE_PROCESS,
} from '../lib/distributed/process-group';
import { packed } from '../lib/packing';
import { DecisionGradient } from '../lib/training/grpo/decision-gradient';
import { packSteps, unpackSteps } from '../lib/training/grpo/exchange';
import { resolveGrpo } from '../lib/training/grpo/options';
import { recordRollouts } from '../lib/training/grpo/replay';
import { GrpoStage } from '../lib/training/grpo/stage';
import { BackwardPasses, ownBatches } from '../lib/training/shares';
import { memoryGroups } from './processes';
import { newModelFolder } from './trained-models';

/** Runs the same on every process of a group in memory. */
const onAll = <T>(size: number, body: (group: ProcessGroup) => Promise<T>): Promise<T[]> =>
  Promise.all(memoryGroups(size).map(body));

test('a single process gathers its own values', async () => {
  const values = Float64Array.of(1, 2);
  expect(await SINGLE_PROCESS.allGather(values)).toEqual([values]);
  expect([SINGLE_PROCESS.rank, SINGLE_PROCESS.size]).toEqual([0, 1]);
  await SINGLE_PROCESS.barrier();
  expect(await gatherJson(SINGLE_PROCESS, { a: [1, null] })).toEqual([{ a: [1, null] }]);
});

test.each([
  [0, [['pass', 'pass last'], ['join last'], ['pass last']]],
  [1, [['pass', 'pass last'], ['join last'], ['pass last']]],
  [
    2,
    [
      ['pass', 'pass last'],
      ['join', 'join last'],
      ['pass', 'join last'],
    ],
  ],
] as const)('backward passes of an update, and who joins them (zeroStage %i)', async (zeroStage, expected) => {
  const called = await onAll(3, async (group) => {
    const calls: string[] = [];
    const note = (name: string, last = false) => calls.push(last ? `${name} last` : name);
    const trainer = {
      async backward({ last }: { last?: boolean | undefined }) {
        note('pass', last);
        return { dHidden: null };
      },
      joinBackward: async ({ last }: { last?: boolean | undefined }) => void note('join', last),
    };
    const count = [2, 0, 1][group.rank];
    const passes = new BackwardPasses(trainer, { group, zeroStage });
    for (let i = 0; i < count; i++) await passes.add({}, count);
    await passes.end();
    // A part that more passes follow, where nobody has any.
    await new BackwardPasses(trainer, { group, zeroStage }, false).end();
    return calls;
  });
  expect(called).toEqual(expected);
});

describe('what processes exchange', () => {
  test('numbers by item, wherever they were computed', async () => {
    const all = await onAll(3, (group) =>
      gatherNumbers(group, 4, 2, new Map(group.rank === 1 ? [] : [[group.rank, [group.rank, Number.NaN]]])),
    );
    expect(all).toEqual(new Array(3).fill(Float64Array.of(0, Number.NaN, 0, 0, 2, Number.NaN, 0, 0)));
  });

  test('numbers of rank 0, by name', async () => {
    expect(await onAll(2, (group) => numbersOfFirst(group, group.rank === 0 ? { b: 1 } : { a: 2, b: 3 }))).toEqual([
      { b: 1 },
      { b: 1 },
    ]);
  });

  test('rank 0 works before the others', async () => {
    const order: number[] = [];
    await onAll(3, (group) => firstAlone(group, async () => void order.push(group.rank)));
    expect([order[0], order.length]).toEqual([0, 3]);
  });

  test('a process that would train something else is named by all', async () => {
    const errors = await onAll(3, (group) =>
      checkAlike(group, { version: '1', 'option seed': group.rank === 2 ? '8' : '7' }).catch((error) => error),
    );
    for (const error of errors) {
      expect(error.code).toBe('DISTRIBUTED');
      expect(error.message).toBe('rank 2 differs from rank 0 in its option seed: expected "7", got "8"');
    }
    await onAll(2, (group) => checkAlike(group, { version: '1' }));
    const data = (rank: number) => (rank === 0 ? { name: 'own', size: 3 } : { size: 4, name: 'own' });
    const [error] = await onAll(2, (group) =>
      checkAlike(group, { data: data(group.rank) }).catch((problem) => problem),
    );
    expect(error.message).toBe('rank 1 differs from rank 0 in its data.size: expected 3, got 4');
    const order = (rank: number) => (rank === 0 ? { a: 1, b: { c: 2, d: 3 } } : { b: { d: 3, c: 2 }, a: 1 });
    await onAll(2, (group) => checkAlike(group, { order: order(group.rank) }));
  });

  test('denoising steps, as they were', () => {
    const step = (rollout: number, length: number) => ({
      rollout,
      step: 3,
      begin: 4,
      ids: Int32Array.from({ length }, (_, i) => i - 1),
      computed: Int32Array.of(0, 2),
      positions: new Int32Array(0),
      tokens: Int32Array.of(2 ** 31 - 1),
      selected: Uint8Array.of(1, 0),
      forced: length % 2 === 1,
      timestep: 1 / 3,
      oldLogLikelihoods: Float32Array.of(-0.1, Number.NEGATIVE_INFINITY),
    });
    const steps = [step(0, 5), step(7, 0), step(2, 4)];
    expect(unpackSteps(packSteps(steps))).toEqual(steps);
    expect(unpackSteps(packSteps([]))).toEqual([]);
  });
});

describe('how work is dealt out', () => {
  // Answers of very different lengths: 4 to 1, as rollouts that end early and late.
  const costs = Array.from({ length: 64 }, (_, i) => 100 + ((i * 37) % 64) * 5);

  test.each([1, 2, 3, 8])('loads of %d processes are even', (size) => {
    const ranks = dealOut(costs, size);
    const loads = new Float64Array(size);
    ranks.forEach((rank, i) => {
      loads[rank] += costs[i];
    });
    const total = costs.reduce((sum, cost) => sum + cost, 0);
    expect(total / size / Math.max(...loads)).toBeGreaterThan(0.95);
  });

  test('the replay of recorded rollouts keeps eight processes busy', async () => {
    using model = await loadModel('word-problems', { threads: 1 });
    const dataset = datasets.byName('st1');
    const { own, data } = resolveGrpo(
      model,
      { dataset, maxSteps: 1, rewards: { fast: rewards.fastAnswer() }, promptsPerStep: 8, numGenerations: 8 },
      dataset,
    );
    const prompts = data.train(0, 8).flatMap(({ prompt }) => new Array(8).fill(model.encodePrompt(prompt)));
    const { maxTokens, blockLength, stopAtEos, policy } = own;
    const options = {
      maxTokens,
      blockLength,
      policy,
      seed: 1n,
      tokenBudget: 8192,
      ...(stopAtEos !== undefined && { stopAtEos }),
    };
    const { steps, results } = await recordRollouts(model, prompts, options);
    // Rollouts differ: in passes, and so in what there is to replay.
    const passes = results.map(({ nfe }) => nfe);
    expect(Math.max(...passes)).toBeGreaterThan(Math.min(...passes));
    const total = steps.reduce((sum, { computed }) => sum + computed.length, 0);
    for (const reduction of ['sum', 'exact'] as const) {
      const loads = memoryGroups(8).map((group) =>
        ownBatches([steps], ({ computed }) => computed.length, {
          ...{ group, reduction, tokenBudget: Math.ceil(total / 80) },
        })
          .flat()
          .reduce((sum, { computed }) => sum + computed.length, 0),
      );
      expect(loads.reduce((sum, load) => sum + load, 0)).toBe(total);
      expect([reduction, total / 8 / Math.max(...loads) >= 0.9]).toEqual([reduction, true]);
    }
  });

  test.each(['sum', 'exact'] as const)('every row is computed once (%s)', (reduction) => {
    const parts = [costs.slice(0, 40), costs.slice(40)].map((part, p) =>
      part.map((tokens, i) => ({ id: 40 * p + i, tokens })),
    );
    for (const size of [1, 2, 3, 5]) {
      const batches = memoryGroups(size).map((group) =>
        ownBatches(parts, ({ tokens }) => tokens, { group, reduction, tokenBudget: 1000 }),
      );
      const ids = batches.flat(2).map(({ id }) => id);
      expect(ids.sort((a, b) => a - b)).toEqual(costs.map((_, i) => i));
      for (const batch of batches.flat()) {
        expect(batch.reduce((sum, { tokens }) => sum + tokens, 0)).toBeLessThanOrEqual(1000);
        expect(new Set(batch.map(({ id }) => id < 40)).size).toBe(1);
      }
    }
  });

  test('with the exact reduction micro-batches are the same for any number of processes', () => {
    const cut = (size: number) =>
      memoryGroups(size)
        .flatMap((group) =>
          ownBatches([costs.map((tokens, id) => ({ id, tokens }))], ({ tokens }) => tokens, {
            ...{ group, reduction: 'exact', tokenBudget: 900 },
          }),
        )
        .map((batch) => batch.map(({ id }) => id).join())
        .sort();
    expect(cut(3)).toEqual(cut(1));
    expect(cut(4)).toEqual(cut(1));
  });

  test('ranges meet without a gap', () => {
    for (const [count, size] of [
      [7, 3],
      [2, 4],
      [0, 2],
    ]) {
      const ranges = memoryGroups(size).map((group) => ownRange(count, group));
      expect([ranges[0].begin, ranges[size - 1].end]).toEqual([0, count]);
      for (let i = 1; i < size; i++) expect(ranges[i].begin).toBe(ranges[i - 1].end);
    }
  });
});

describe('GRPO', () => {
  const models: MaskedDiffusionModel[] = [];
  afterAll(() => {
    for (const model of models) model.dispose();
  });

  test.each(['sum', 'exact'] as const)(
    'two processes measure what one does, gradients add up (%s)',
    async (reduction) => {
      const folder = await newModelFolder();
      const measure = async (group: ProcessGroup) => {
        const model = await loadModel(folder, { threads: 1 });
        models.push(model);
        const {
          training: settings,
          data,
          own,
        } = resolveGrpo(
          model,
          {
            ...{ dataset: datasets.byName('free8'), rewards: { steps: rewards.stepPenalty() } },
            ...{ promptsPerStep: 3, numGenerations: 4, maxSteps: 1, tokenBudget: 60, reduction },
            ...{ advantageMinClip: null, evalEvery: 1, evalExamples: 5 },
          },
          datasets.byName('free8'),
        );
        const trainer = await model.createTrainer({ reduction });
        try {
          const context = { model, trainer, data, training: settings, maxSteps: 1, group, show: () => {} };
          const stage = new GrpoStage(context, own, new DecisionGradient(context, own, null, null), null);
          const evaluated = await stage.evaluate();
          const measured = await stage.accumulate(0);
          return { measured, evaluated, gradients: await trainer.gradients() };
        } finally {
          trainer.dispose();
        }
      };
      const alone = await measure(SINGLE_PROCESS);
      const both = await onAll(2, measure);
      expect(both[1].measured).toEqual(both[0].measured);
      expect(both[0].evaluated).toEqual(alone.evaluated);
      const { loss, ...metrics } = alone.measured;
      expect(both[0].measured).toMatchObject(metrics);
      expect(both[0].measured.loss).toBeCloseTo(loss, 12);
      for (const [i, { name, data: whole }] of alone.gradients.entries()) {
        const parts = both.map(({ gradients }) => gradients[i].data);
        const largest = whole.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
        const apart = whole.reduce((most, value, k) => Math.max(most, Math.abs(value - parts[0][k] - parts[1][k])), 0);
        expect([name, apart <= 2e-6 * largest + 1e-12]).toEqual([name, true]);
      }
      // Both have done something.
      for (const { gradients } of both)
        expect(gradients.some(({ data }) => data.some((value) => value !== 0))).toBe(true);
    },
  );
});

describe('the exact reduction', () => {
  const rows = [
    { ids: Int32Array.of(3, 1, 4), positions: Int32Array.of(1), tokens: Int32Array.of(5) },
    { ids: Int32Array.of(1, 1, 6, 7), positions: Int32Array.of(0, 1), tokens: Int32Array.of(8, 9) },
  ];
  const add = async (trainer: ModelTrainer, { tokens, ...row }: (typeof rows)[number], scale: number) => {
    await trainer.score({ ...packed([row]), tokens, keep: true });
    await trainer.backward({ dLogProbs: new Float32Array(tokens.length).fill(scale) });
  };

  test('gradients do not depend on the order of micro-batches', async () => {
    using model = await loadModel(await newModelFolder(), { threads: 1 });
    using trainer = await model.createTrainer({ freezePlanner: true, reduction: 'exact' });
    const inOrder = async (...order: number[]) => {
      await trainer.zeroGrad();
      for (const i of order) await add(trainer, rows[i % 2], 0.1 + i);
      const norm = await trainer.gradNorm();
      return { norm, gradients: await trainer.gradients() };
    };
    const found = await inOrder(0, 1, 2, 3);
    expect(await inOrder(3, 1, 0, 2)).toEqual(found);
    expect(found.norm).toBeGreaterThan(0);
    // Reading them has changed nothing: they are what the step moves the weights along.
    const { gradNorm } = await trainer.step({ baseLr: 0, plannerLr: 0 });
    expect(gradNorm).toBe(found.norm);
    expect(await trainer.gradNorm()).toBe(0);
  });

  test('a gradient that cannot be added exactly is refused, and the weights stay', async () => {
    using model = await loadModel(await newModelFolder(), { threads: 1 });
    using trainer = await model.createTrainer({ freezePlanner: true, reduction: 'exact' });
    const before = await model.weightsHash();
    // Also one whose gradients overflow.
    for (const scale of [1e12, 3e38]) {
      await add(trainer, rows[0], scale);
      await expect(trainer.step({ baseLr: 1, plannerLr: 1 })).rejects.toMatchObject({ code: 'NON_FINITE' });
      expect(await model.weightsHash()).toBe(before);
      await trainer.zeroGrad();
    }
    await add(trainer, rows[0], 1);
    await trainer.step({ baseLr: 1e-3, plannerLr: 0 });
    expect(await model.weightsHash()).not.toBe(before);
  });

  test('its memory is in the plan', async () => {
    const config = { model: await newModelFolder(), dataset: 'free8' };
    const gradients = async (reduction: 'sum' | 'exact') => {
      const plan = await training.planMemory('sft', { ...config, reduction }, { device: 'cpu' });
      return { bytes: plan.items.find(({ name }) => name === 'gradients')!.bytes, trainable: plan.trainable };
    };
    const sum = await gradients('sum');
    expect((await gradients('exact')).bytes).toBe(sum.bytes + 8 * sum.trainable);
  });
});

describe('launchers', () => {
  test('what they say in the environment', () => {
    expect(launchOf({})).toBeNull();
    const openmpi = { OMPI_COMM_WORLD_RANK: '1', OMPI_COMM_WORLD_SIZE: '4', PMIX_RANK: '1' };
    expect(launchOf(openmpi)).toEqual({ launcher: 'openmpi', rank: 1, size: 4 });
    expect(launchOf({ PMI_RANK: '2', PMI_SIZE: '3' })).toEqual({ launcher: 'mpich', rank: 2, size: 3 });
    const slurm = { SLURM_STEP_ID: '0', SLURM_NTASKS: '8', SLURM_PROCID: '5' };
    expect(launchOf({ ...slurm, PMIX_RANK: '5' })).toEqual({ launcher: null, rank: 5, size: 8 });
    expect(launchOf(slurm)).toEqual({ launcher: null, rank: 5, size: 8 });
    // A shell inside an allocation, and a step of one task, are single processes.
    expect(launchOf({ SLURM_NTASKS: '8', SLURM_PROCID: '0' })).toBeNull();
    expect(launchOf({ ...slurm, SLURM_NTASKS: '1', SLURM_PROCID: '0' })).toBeNull();
  });

  test("libraries are the launcher's own", () => {
    expect(librariesFor({ OMPI_COMM_WORLD_RANK: '0' }, 'linux')[0]).toBe('libmpi.so.40');
    expect(librariesFor({ OMPI_COMM_WORLD_RANK: '0' }, 'linux')).not.toContain('libmpich.so.12');
    expect(librariesFor({ PMI_RANK: '0' }, 'linux')).toEqual(['libmpi.so.12', 'libmpich.so.12', 'libmpi_abi.so.0']);
    expect(librariesFor({ DULTRA_MPI: '/opt/libmpi.so' }, 'linux')).toEqual(['/opt/libmpi.so']);
    expect(librariesFor({}, 'win32')).toEqual([]);
  });
});
