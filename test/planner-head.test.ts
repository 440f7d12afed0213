// A planner head that is made and saved by itself, on models of every family.
import { copyFileSync, existsSync } from 'node:fs';
import path from 'node:path';
import { createPlanner, loadCausalModel, loadModel, trainPlanner } from '../lib';
import type { LoadModelOptions } from '../lib/model/load-weights';
import { modelFolder, temporaryFolder, withoutPlanner, withTokenizer } from './helpers';

const bases: [name: string, folder: () => string, options: Pick<LoadModelOptions, 'maskTokenId'>][] = [
  ['llada', () => withoutPlanner('base'), {}],
  ['dream', () => modelFolder('dream_gqa'), {}],
  ['sdar', () => modelFolder('sdar'), {}],
  ['fast-dllm-v2', () => modelFolder('fastdllm2'), { maskTokenId: 94 }],
  ['llada2', () => modelFolder('llada2'), { maskTokenId: 97 }],
  ['llada-moe', () => modelFolder('lladamoe'), { maskTokenId: 97 }],
];
const IDS = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
const request = { ids: IDS, rowOffsets: [0, IDS.length] };

describe.each(bases)('%s', (name, base, options) => {
  test.each(['block', 'small'] as const)(
    'a new head of size %s: the base keeps its numbers, and the planner unmasks',
    async (size) => {
      const source = base();
      const head = path.join(temporaryFolder(), 'planner');
      await createPlanner(source, head, { size, seed: 3, ...options });
      await using plain = await loadModel(source, { threads: 1, ...options });
      await using model = await loadModel(source, { threads: 1, planner: head, ...options });
      expect(plain.config.planner).toBeNull();
      expect(model.config).toEqual({
        ...plain.config,
        planner: { numLayers: size === 'block' ? 1 : 0, useAdaln: true, useMaskEmbeddings: true },
      });
      const planner = { timestep: [0.5], maskIndex: IDS.map((_, i) => i % 2) };
      const { hidden, logits, plannerLogits } = await model.forward({ ...request, planner });
      const before = await plain.forward(request);
      expect([hidden, logits]).toEqual([before.hidden, before.logits]);
      expect(plannerLogits!.every(Number.isFinite)).toBe(true);
      const { ids } = await model.generate({ promptIds: IDS }, { maxTokens: 16, sampler: { type: 'planner' } });
      expect(ids.length).toBeGreaterThanOrEqual(16);

      // Saved by itself, and with its base.
      const [alone, whole] = [path.join(temporaryFolder(), 'alone'), path.join(temporaryFolder(), 'whole')];
      await model.savePlanner(alone);
      await model.save(whole);
      for (const [from, head] of [
        [source, alone],
        [whole, undefined],
      ] as const) {
        await using again = await loadModel(from, { threads: 1, ...options, ...(head && { planner: head }) });
        expect((await again.forward({ ...request, planner })).plannerLogits).toEqual(plannerLogits);
        expect(again.config.family).toBe(name);
      }
    },
  );
});

test('the same seed makes the same head, another one another', async () => {
  const heads = await Promise.all(
    [1, 1, 2].map(async (seed) => {
      const head = path.join(temporaryFolder(), 'planner');
      await createPlanner(modelFolder('dream_gqa'), head, { seed });
      await using model = await loadModel(modelFolder('dream_gqa'), { threads: 1, planner: head });
      const planner = { timestep: [0.5], maskIndex: IDS.map(() => 1) };
      return (await model.forward({ ...request, planner })).plannerLogits;
    }),
  );
  expect(heads[1]).toEqual(heads[0]);
  expect(heads[2]).not.toEqual(heads[0]);
});

test('training moves the head alone', async () => {
  const source = withoutPlanner('base');
  for (const name of ['tokenizer.json', 'tokenizer_config.json'])
    copyFileSync(path.join(withTokenizer(), name), path.join(source, name));
  const head = path.join(temporaryFolder(), 'planner');
  await createPlanner(source, head);
  await using model = await loadModel(source, { threads: 1, planner: head });
  const before = await model.forward({ ...request, planner: { timestep: [0.5], maskIndex: IDS.map(() => 1) } });
  const dataset = Array.from({ length: 8 }, (_, i) => ({ prompt: `a${i}`, answer: `b${i}c` }));
  const losses = [];
  for await (const { loss } of trainPlanner(model, {
    dataset,
    maxSteps: 30,
    batchSize: 8,
    learningRate: 1e-2,
    outputDir: path.join(temporaryFolder(), 'run'),
  }))
    losses.push(loss);
  expect(losses.at(-1)).toBeLessThan(losses[0]);
  const after = await model.forward({ ...request, planner: { timestep: [0.5], maskIndex: IDS.map(() => 1) } });
  expect(after.logits).toEqual(before.logits);
  expect(after.plannerLogits).not.toEqual(before.plannerLogits);
});

describe('refused', () => {
  let head: string;
  beforeAll(async () => {
    head = path.join(temporaryFolder(), 'planner');
    await createPlanner(modelFolder('dream_gqa'), head);
  });

  test.each<[string, () => Promise<unknown>, RegExp | string]>([
    [
      'a model that has a planner',
      () => loadModel(modelFolder('base'), { planner: head }),
      /planner: expected none for .*base, which has a planner head of its own/,
    ],
    [
      'a head of another width',
      () => loadModel(modelFolder('sdar'), { planner: head }),
      /planner\.safetensors: tensor mask_head\.0\.q_proj\.weight: expected shape \[64, 32\], got \[48, 48\]/,
    ],
    [
      'a folder without a head',
      () => loadModel(modelFolder('sdar'), { planner: modelFolder('sdar') }),
      /planner\.json: .*no such file/,
    ],
    [
      'an autoregressive model',
      () => loadCausalModel(path.join(__dirname, 'fixtures', 'causal', 'qwen2'), { planner: head }),
      'planner: expected none for an autoregressive model',
    ],
    [
      'no path',
      () => loadModel(modelFolder('sdar'), { planner: 1 as never }),
      'planner: expected the folder of a planner head, got 1',
    ],
    [
      'an unknown size',
      () => createPlanner(modelFolder('sdar'), path.join(temporaryFolder(), 'x'), { size: 'tiny' as never }),
      'size: expected',
    ],
  ])('%s', async (_name, body, message) => {
    await expect(body()).rejects.toThrow(message);
  });

  test('saving the planner of a model that has none', async () => {
    await using model = await loadModel(modelFolder('sdar'), { threads: 1 });
    const folder = path.join(temporaryFolder(), 'none');
    await expect(model.savePlanner(folder)).rejects.toMatchObject({ code: 'NO_PLANNER' });
    expect(existsSync(folder)).toBe(false);
  });
});
