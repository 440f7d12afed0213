// Families that were made of autoregressive decoders: attention by blocks on an exact cache, and heads that are a
// position ahead. That their numbers are the reference's, test/golden.test.ts says.
import {
  type CachePolicy,
  type DenoiseRow,
  type GenerateOptions,
  loadModel,
  type MaskedDiffusionModel,
  parseSampler,
} from '../lib';
import type { LoadModelOptions } from '../lib/model/load-weights';
import { modelFolder, variant } from './helpers';

/** Attends by blocks of 4; by blocks of 8 and a position ahead; two mixtures of experts, by blocks of 8 and whole; sees whole rows, a position ahead; sees whole rows. */
const families: [name: string, folder: () => string, options: LoadModelOptions][] = [
  ['sdar', () => modelFolder('sdar'), {}],
  ['fast-dllm-v2', () => modelFolder('fastdllm2'), { maskTokenId: 94 }],
  ['llada2', () => modelFolder('llada2'), { maskTokenId: 97, blockLength: 8 }],
  ['llada-moe', () => modelFolder('lladamoe'), { maskTokenId: 97 }],
  ['dream', () => modelFolder('dream_gqa'), {}],
  [
    'a2d-qwen3',
    () =>
      variant('sdar', {
        config: (config) =>
          Object.assign(config, { model_type: 'a2d-qwen3', block_size: null, fuse_cross_entropy: null }),
      }),
    {},
  ],
];
const PROMPTS = [
  [5, 6, 7, 8, 9, 10, 11],
  [12, 13],
  [20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31],
].map((promptIds) => ({ promptIds }));
const SAMPLERS = ['confidence:0.3', 'fixed', 'dynamic:0.3', 'static:2', 'entropy:1.5', 'factor:1', 'entropy-sum:2'];

/** Every step of a run, without what says how it was computed. */
async function trace(
  model: MaskedDiffusionModel,
  prompts: { promptIds: number[] }[],
  options: GenerateOptions,
): Promise<Omit<DenoiseRow, 'computed'>[][]> {
  const steps = [];
  for await (const { rows } of model.denoise(prompts, options)) steps.push(rows.map(({ computed: _, ...row }) => row));
  return steps;
}

describe.each(families)('%s', (name, folder, load) => {
  let model: MaskedDiffusionModel;
  beforeAll(async () => {
    model = await loadModel(folder(), { threads: 1, ...load });
  });
  afterAll(() => model.dispose());
  const options = (sampler: string, more: GenerateOptions = {}): GenerateOptions => ({
    sampler: parseSampler(sampler),
    maxTokens: 16,
    blockLength: 8,
    stopAtEos: false,
    ...more,
  });
  const attends = ['sdar', 'fast-dllm-v2', 'llada2'].includes(name);

  test('says what it is', () => {
    expect(model.config).toMatchObject({
      family: name,
      mask: attends ? 'block-causal' : 'bidirectional',
      qkNorm: name !== 'dream' && name !== 'fast-dllm-v2',
    });
    expect(model.config.shiftLogits ?? false).toBe(name === 'dream' || name === 'fast-dllm-v2');
  });

  const caches: CachePolicy[] = attends
    ? [{ type: 'blocks' }, { type: 'prefix' }, { type: 'dual' }]
    : [{ type: 'refresh', every: 1 }];
  test.each(caches)('a cache that is exact changes no bit: %j', async (cache) => {
    for (const sampler of SAMPLERS) {
      const settings = options(sampler, { temperature: 0.5, seed: 3 });
      const [plain, cached] = [
        await trace(model, PROMPTS, { ...settings, cache: { type: 'none' } }),
        await trace(model, PROMPTS, { ...settings, cache }),
      ];
      expect(cached).toEqual(plain);
    }
  });

  test('caches that are approximations run, and compute what the head reads', async () => {
    for (const type of ['prefix', 'dual', 'delayed', 'refresh'] as const) {
      for await (const { rows } of model.denoise(PROMPTS, options('confidence:0.3', { cache: { type } })))
        for (const { positions, computed } of rows)
          for (const position of positions) {
            expect(computed).toContain(position);
            if (model.config.shiftLogits && position > 0) expect(computed).toContain(position - 1);
          }
    }
  });

  test('a template is filled in', async () => {
    const mask = model.config.maskTokenId;
    const template = [5, mask, 7, mask, mask, 9, 10, mask, 11, 12];
    const { ids } = await model.generate({ template }, { sampler: { type: 'fixed' } });
    expect(ids).not.toContain(mask);
    template.forEach((id, i) => {
      if (id !== mask) expect(ids[i]).toBe(id);
    });
  });
});

describe('decoding by blocks', () => {
  test('blocks lie where the model has them, and later ones are not computed', async () => {
    await using model = await loadModel(modelFolder('sdar'), { threads: 1 });
    const [prompt] = PROMPTS;
    const seen: [block: number, first: number, end: number][] = [];
    const sampler = { type: 'dynamic', threshold: 1, steps: 1 } as const;
    const run = model.denoise([prompt], { maxTokens: 8, sampler, stopAtEos: false });
    for await (const { rows } of run)
      for (const { block, positions, computed } of rows) {
        seen.push([block, positions[0], computed.at(-1)! + 1]);
        // Once the prompt is cached, a pass computes its own block and the one before, whose tokens are new.
        if (seen.length > 1) expect(computed.length).toBeLessThanOrEqual(8);
      }
    // A prompt of 7 and 8 tokens more: 16 positions, of which the first block holds 3 of the prompt.
    expect(seen).toEqual([
      [0, 7, 8],
      [1, 8, 12],
      [2, 12, 16],
    ]);
  });

  test('the default cache is the exact one, and only models that attend by blocks have it', async () => {
    await using model = await loadModel(modelFolder('sdar'), { threads: 1 });
    const [prompt] = PROMPTS;
    const settings = { maxTokens: 16, sampler: { type: 'fixed' as const }, stopAtEos: false };
    const byDefault = await model.generate(prompt, settings);
    const plain = await model.generate(prompt, { ...settings, cache: { type: 'none' } });
    expect({ ...byDefault, fullForwards: 0 }).toEqual({ ...plain, fullForwards: 0 });
    expect(byDefault.fullForwards).toBeLessThan(plain.fullForwards / 2);
    await using dream = await loadModel(modelFolder('dream_gqa'), { threads: 1 });
    await expect(dream.generate(prompt, { cache: { type: 'blocks' } })).rejects.toThrow(
      'cache.type: expected another than "blocks", which is for models that attend by blocks',
    );
  });

  test('blocks of another length than config.json says', async () => {
    await using model = await loadModel(modelFolder('sdar'), { threads: 1, blockLength: 8 });
    expect(model.config.blockLength).toBe(8);
    await using other = await loadModel(modelFolder('sdar'), { threads: 1 });
    const ids = Array.from({ length: 16 }, (_, i) => i + 5);
    const logitsOf = async (of: MaskedDiffusionModel) =>
      (await of.forward({ ids, rowOffsets: [0, ids.length] })).logits!.slice(0, 50);
    expect(await logitsOf(model)).not.toEqual(await logitsOf(other));
  });

  test.each([
    [{ blockLength: 0 }, 'blockLength: expected'],
    [{ maskTokenId: -1 }, 'maskTokenId: expected'],
    [{ maskTokenId: 1e6 }, 'mask_token_id: expected an id below vocab_size (100), got 1000000'],
  ])('loadModel with %j: %s', async (options, message) => {
    await expect(loadModel(modelFolder('fastdllm2'), options)).rejects.toThrow(message);
  });

  test('a model whose mask token nothing names', async () => {
    await expect(loadModel(modelFolder('fastdllm2'))).rejects.toThrow(
      /config\.json: mask_token_id: expected the id of the mask token, got none, and the tokenizer names none either; loadModel takes it as maskTokenId/,
    );
  });

  test("the block's share of a pass", async () => {
    await using model = await loadModel(modelFolder('sdar'), { threads: 1, blockLength: 8 });
    const counts: number[] = [];
    const run = model.denoise([{ promptIds: [5, 6, 7, 8, 9, 10, 11, 12] }], {
      maxTokens: 8,
      sampler: { type: 'dynamic', threshold: 1, steps: 3 },
      stopAtEos: false,
    });
    for await (const { rows } of run) counts.push(rows[0].selected.reduce((sum, one) => sum + one, 0));
    expect(counts).toEqual([3, 3, 2]);
  });
});
