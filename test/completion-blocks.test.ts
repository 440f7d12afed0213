// Models that attend by blocks which begin where the completion does: decoding on the exact cache, training, and the
// lengths of first blocks that rows may have.
import { GrpoTrainer, loadModel, type MaskedDiffusionModel, training, trainMaskedDiffusion } from '../lib';
import { blockOf, blockStart } from '../lib/model/blocks';
import { drawBlock } from '../lib/training/masking';
import { collect, newModelFolder, task } from './trained-models';
import { earlyTokens } from './trainers';

const BLOCK = 4;
let folder: string;
let model: MaskedDiffusionModel;
const open = () => loadModel(folder, { threads: 1, blockLength: BLOCK });
beforeAll(async () => {
  folder = await newModelFolder({ family: 'a2d-qwen3', nHeads: 4, nKvHeads: 2, dModel: 32 });
  model = await open();
});
afterAll(() => model.dispose());

test('a grid with a short first block', () => {
  const grid = { first: 2, length: 4 };
  const blocks = Array.from({ length: 11 }, (_, position) => blockOf(grid, position));
  expect(blocks).toEqual([0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3]);
  expect([0, 1, 2, 3].map((block) => blockStart(grid, block))).toEqual([0, 2, 6, 10]);
  // The blocks of an answer from 6 on.
  const draw = (uniform: number) => drawBlock(13, { begin: 6, grid, uniform });
  expect([0, 0.99].map(draw)).toEqual([
    { begin: 6, end: 10, count: 2 },
    { begin: 10, end: 13, count: 2 },
  ]);
});

/** Logits of a row of ids without a cache. */
const logitsOf = async (ids: number[], firstBlocks?: number[]) =>
  (await model.forward({ ids, rowOffsets: [0, ids.length], firstBlocks })).logits!;

test('what stands in a later block changes nothing before it, what stands in the same one does', async () => {
  const ids = [5, 6, 7, 8, 9, 10, 11, 12];
  const changed = [...ids.slice(0, 3), 13, ...ids.slice(4)];
  const v = model.config.embeddingSize;
  const differs = async (firstBlocks: number[]) => {
    const [a, b] = [await logitsOf(ids, firstBlocks), await logitsOf(changed, firstBlocks)];
    return ids.map((_, i) => a.subarray(i * v, (i + 1) * v).some((x, k) => x !== b[i * v + k]));
  };
  expect(await differs([3])).toEqual([false, false, false, true, true, true, true, true]);
  expect(await differs([1])).toEqual([false, true, true, true, true, true, true, true]);
  expect(await differs([4])).toEqual(new Array(8).fill(true));
  expect(await logitsOf(ids)).toEqual(await logitsOf(ids, [4]));
});

test('a cache of rows with first blocks of their own gives the bits of whole rows, and lacks what they see', async () => {
  const ids = [5, 6, 7, 8, 9, 10, 11];
  const v = model.config.embeddingSize;
  const whole = await logitsOf(ids, [1]);
  await using cache = await model.createCache([7, 3], { firstBlocks: [1, 3] });
  const pass = (positions: number[], other: number[] = []) =>
    model.forward({
      ids: [...positions, ...other].map((p) => ids[p]),
      positions: [...positions, ...other],
      rowOffsets: [0, positions.length, positions.length + other.length],
      cache,
    });
  await expect(pass([0, 1, 2, 3])).rejects.toThrow('neither computed in this pass nor cached');
  const first = await pass([0], [0, 1, 2]);
  const second = await pass([1, 2, 3, 4]);
  expect(first.logits!.subarray(0, v)).toEqual(whole.subarray(0, v));
  expect(second.logits).toEqual(whole.subarray(v, 5 * v));
});

test('decoding on the cache is decoding without one, and a prompt of any length begins a block', async () => {
  for (const prompt of ['1 a', '1 a b', '1 a b c', '2 d e f g']) {
    const settings = { sampler: 'confidence:0.5', maxTokens: 10, stopAtEos: false } as const;
    const run = model.denoise([prompt], { ...settings, cache: 'blocks' });
    const begin = model.encodePrompt(prompt).length;
    const ends: number[] = [];
    let next = await run.next();
    for (; !next.done; next = await run.next()) ends.push(next.value.rows[0].computed.at(-1)! + 1 - begin);
    expect([...new Set(ends)]).toEqual([4, 8, 10]);
    const [result] = next.value;
    const plain = await model.generate(prompt, { ...settings, cache: 'none' });
    expect(result.ids).toEqual(plain.ids);
    expect(result.ids).toHaveLength(10);
  }
});

test.each(['fresh', 'cached'] as const)('a rollout is scored as it was made, planner %s', async (planner) => {
  await using own = await open();
  await using trainer = new GrpoTrainer(own, {
    dataset: task,
    maxSteps: 2,
    promptsPerStep: 3,
    numGenerations: 4,
    rewards: { early: earlyTokens },
    cache: { type: 'blocks', planner },
  });
  const [first] = await collect(trainer.train());
  expect(first.ratioDeviation).toBeLessThanOrEqual(1e-5);
});

test('fine-tuning and planner initialisation learn its blocks', async () => {
  await using own = await open();
  const options = { dataset: task, maxSteps: 30, batchSize: 16, learningRate: 3e-3, warmupSteps: 3 };
  const losses = (await collect(trainMaskedDiffusion(own, options))).map(({ loss }) => loss);
  const mean = (part: number[]) => part.reduce((sum, x) => sum + x, 0) / part.length;
  expect(mean(losses.slice(-5))).toBeLessThan(mean(losses.slice(0, 5)));
  const { maxSteps: _, ...planner } = options;
  for (const { loss } of await collect(training.trainPlanner(own, { ...planner, maxSteps: 2, minSpan: 4 })))
    expect(Number.isFinite(loss)).toBe(true);
});

test('lengths of first blocks that do not fit are named', async () => {
  const ids = [5, 6, 7];
  await expect(logitsOf(ids, [0])).rejects.toThrow(
    'firstBlocks[0]: expected an integer at least 1 and at most 4, got 0',
  );
  await expect(logitsOf(ids, [5])).rejects.toThrow('firstBlocks[0]: expected');
  await expect(logitsOf(ids, [1, 2])).rejects.toThrow('firstBlocks: expected one per row (1), got 2');
  await expect(model.createCache([3], { firstBlocks: [1, 1] })).rejects.toThrow('firstBlocks: expected one per row');
  await using cache = await model.createCache([3]);
  await expect(model.forward({ ids, rowOffsets: [0, 3], cache, firstBlocks: [1] })).rejects.toThrow(
    'firstBlocks: expected none with a cache',
  );
  await using whole = await loadModel(folder, { threads: 1 });
  await expect(whole.forward({ ids, rowOffsets: [0, 3], firstBlocks: [1] })).rejects.toThrow(
    'firstBlocks: expected none: in this model every position sees all',
  );
});
