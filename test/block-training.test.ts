// Training of models that attend by blocks: what a step is taken from, replay of rollouts, and that no result depends on
// how rows are batched.
import { type CachePolicy, type MaskedDiffusionModel, training, trainMaskedDiffusion } from '../lib';
import { drawBlock } from '../lib/training/masking';
import { encodeRow } from '../lib/training/token-rows';
import { random } from './checkpoints';
import { largestDifference, newModelFolder, weightsOf, withModel } from './trained-models';
import { COMPARED, grpo, planner, sft } from './trainers';

/** Attends by blocks of 4; and by blocks of 8, a position ahead. */
const models: [name: string, options: Parameters<typeof newModelFolder>[0]][] = [
  ['sdar', { family: 'sdar', blockLength: 4 }],
  ['fast-dllm-v2', { family: 'fast-dllm-v2', blockLength: 8 }],
];

describe('the block of a row', () => {
  const draw = (length: number, begin: number, blockLength: number, uniform: number) =>
    drawBlock(length, { begin, grid: { first: blockLength, length: blockLength }, uniform });

  test('lies where the model has it, and begins where the answer does', () => {
    // 0 1 2 3 | 4 5 [6 7 | 8 9 10 11 | 12 13]
    expect([0, 0.34, 0.99].map((uniform) => draw(14, 6, 4, uniform))).toEqual([
      { begin: 6, end: 8, count: 3 },
      { begin: 8, end: 12, count: 3 },
      { begin: 12, end: 14, count: 3 },
    ]);
    expect(draw(8, 4, 4, 0.9)).toEqual({ begin: 4, end: 8, count: 1 });
    expect(draw(3, 0, 4, 0.5)).toEqual({ begin: 0, end: 3, count: 1 });
  });

  test('is each of them equally often, and together they are the answer', () => {
    const next = random(4);
    const seen = new Map<number, number>();
    for (let i = 0; i < 4000; i++) {
      const { begin } = draw(23, 5, 4, next());
      seen.set(begin, (seen.get(begin) ?? 0) + 1);
    }
    expect([...seen.keys()].sort((a, b) => a - b)).toEqual([5, 8, 12, 16, 20]);
    for (const count of seen.values()) expect(Math.abs(count - 800)).toBeLessThan(120);
  });
});

describe.each(models)('%s', (_name, options) => {
  const load = (body: (model: MaskedDiffusionModel) => Promise<void>, threads?: number) =>
    newModelFolder(options).then((folder) => withModel(folder, body, threads));
  const example = { prompt: '1 a b c d e f g h', answer: 'a b c', category: '', meta: null };

  test('rows end with a block', () =>
    load(async (model) => {
      const { ids, begin } = encodeRow(model, example, 3);
      const { blockLength, eosTokenId } = model.config;
      expect(ids.length % blockLength!).toBe(0);
      expect(ids.length).toBeLessThan(begin + 3 + blockLength!);
      expect(ids.subarray(begin + 3).every((id) => id === eosTokenId)).toBe(true);
    }));

  test('the loss is that of the block behind clean ones, and in the mean that of all blocks', () =>
    load(async (model) => {
      const { ids, begin } = encodeRow(model, example, 11);
      const { maskTokenId, blockLength, shiftLogits } = model.config;
      // Every block of the row by itself, all of it masked: what ε = 1 draws.
      const losses: number[] = [];
      for (let start = Math.floor(begin / blockLength!) * blockLength!; start < ids.length; start += blockLength!) {
        const row = ids.slice(0, start + blockLength!);
        const masked = Array.from({ length: blockLength! }, (_, i) => start + i).filter((p) => p >= begin);
        for (const p of masked) row[p] = maskTokenId;
        const { logits } = await model.forward({ ids: row, rowOffsets: [0, row.length] });
        const v = model.config.embeddingSize;
        const lossAt = (p: number) => {
          const at = Math.max(0, shiftLogits ? p - 1 : p) * v;
          const scores = Array.from(logits!.subarray(at, at + v));
          const top = Math.max(...scores);
          return top + Math.log(scores.reduce((sum, x) => sum + Math.exp(x - top), 0)) - scores[ids[p]];
        };
        losses.push(masked.reduce((sum, p) => sum + lossAt(p), 0));
      }
      const expected = losses.map((loss) => (loss * losses.length) / (ids.length - begin));
      const found = new Set<number>();
      const run = trainMaskedDiffusion(model, {
        dataset: [example],
        maxTokens: 11,
        maskEpsilon: 1,
        batchSize: 1,
        maxSteps: 12,
        learningRate: 0,
      });
      for await (const { loss } of run) {
        const at = expected.findIndex((value) => Math.abs(value - loss) < 1e-4 * value);
        expect(at).toBeGreaterThanOrEqual(0);
        found.add(at);
      }
      expect(found.size).toBe(losses.length);
    }));

  const policies: [string, CachePolicy | undefined][] = [
    ['its default', undefined],
    ['no cache', { type: 'none' }],
    ['finished blocks', { type: 'blocks' }],
    ['finished blocks, planner fresh', { type: 'blocks', planner: 'fresh' }],
    ['dual', { type: 'dual' }],
  ];
  test.each(policies)('GRPO on %s: the replay of a rollout is the rollout', (_name, cache) =>
    load(async (model) => {
      const metrics = await grpo(model, {
        maxSteps: 2,
        tokenBudget: 50,
        temperature: 1,
        advantageMinClip: null,
        cache,
      });
      for (const { ratioDeviation, replayedSteps } of metrics) {
        expect(ratioDeviation).toBeLessThanOrEqual(1e-5);
        expect(replayedSteps).toBeGreaterThan(3);
      }
    }),
  );

  test('the default, no cache and fresh states are the same training; a planner of old states is another', async () => {
    const trained = async (cache?: CachePolicy) => {
      let weights: Awaited<ReturnType<typeof weightsOf>> = {};
      await load(async (model) => {
        await grpo(model, { ...COMPARED, temperature: 1, maxSteps: 1, advantageMinClip: null, cache });
        weights = await weightsOf(model);
      });
      return weights;
    };
    const byDefault = await trained();
    expect(largestDifference(byDefault, await trained({ type: 'none' }))).toBeLessThan(1e-7);
    expect(largestDifference(byDefault, await trained({ type: 'blocks', planner: 'fresh' }))).toBe(0);
    expect(largestDifference(byDefault, await trained({ type: 'blocks' }))).toBeGreaterThan(1e-6);
  });

  test.each([
    ['sft', sft],
    ['planner', planner],
    ['grpo', grpo],
  ] as const)('%s: a row at a time or all at once, on one thread or three', async (_stage, train) => {
    const trained = async (threads: number, more: object) => {
      let weights: Awaited<ReturnType<typeof weightsOf>> = {};
      await load(async (model) => {
        await train(model, { ...COMPARED, maxSteps: 2, ...more });
        weights = await weightsOf(model);
      }, threads);
      return weights;
    };
    const whole = await trained(1, {});
    expect(largestDifference(whole, await trained(3, {}))).toBe(0);
    expect(largestDifference(whole, await trained(1, { tokenBudget: 1 }))).toBeLessThan(1e-6);
  });
});

test('options that are for other models', async () => {
  const whole = await newModelFolder();
  await withModel(whole, async (model) => {
    await expect(grpo(model, { cache: { type: 'blocks' } })).rejects.toThrow(
      'cache.type: expected another than "blocks", which is for models that attend by blocks',
    );
  });
  await expect(newModelFolder({ family: 'dream', blockLength: 4 })).rejects.toThrow(
    'blockLength: expected none for the family dream, whose config.json names no length of blocks, got 4',
  );
  await expect(newModelFolder({ family: 'gpt2' })).rejects.toThrow(
    /family: expected "llada" or .*"dream" or .*got "gpt2"/,
  );
  expect(
    training.maskSpan(new Int32Array(8), { begin: 4, end: 6, minSpan: 2, maskTokenId: 1, uniform: () => 0.9 }).ids,
  ).toEqual(Int32Array.of(0, 0, 0, 0, 1, 1, 1, 1));
});
