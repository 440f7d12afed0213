// Caches of keys and values: passes on one against double precision, and options.
import { CACHE_NAMES, type CachePolicy, loadModel, type MaskedDiffusionModel, parseCache } from '../lib';
import { prompts, range } from './cache-cases';
import { makeCheckpoint, random } from './checkpoints';
import { modelFolder, variant } from './helpers';
import {
  emptyReferenceCache,
  type ReferenceConfig,
  referenceHidden,
  referenceLogits,
  referencePlanner,
} from './reference-model';

let model: MaskedDiffusionModel;
beforeAll(async () => {
  model = await loadModel(modelFolder('base'), { threads: 2 });
});
afterAll(() => model.dispose());

describe('forward', () => {
  const variants: [string, Partial<ReferenceConfig>][] = [
    ['grouped heads', {}],
    ['two planner layers', { num_head_layers: 2, n_kv_heads: 6 }],
    ['no AdaLN', { use_adaln: false }],
  ];
  test.each(variants)('%s: passes over some positions against double precision', async (_name, config) => {
    const made = makeCheckpoint({ config, seed: 4 });
    const small = await loadModel(made.folder, { threads: 2 });
    const next = random(7);
    const lengths = [11, 7, 16];
    const cache = await small.createCache(lengths, { planner: 'cached' });
    const reference = lengths.map(() => emptyReferenceCache(made.config));
    for (let pass = 0; pass < 5; pass++) {
      const positions = lengths.map((length) => range(0, length).filter(() => pass === 0 || next() < 0.4));
      const ids = positions.map((row) => row.map(() => Math.floor(next() * 45)));
      const timestep = lengths.map(() => Math.fround(next()));
      const maskIndex = positions.map((row) => row.map(() => next() < 0.5));
      const rowOffsets = [0];
      for (const row of positions) rowOffsets.push(rowOffsets.at(-1)! + row.length);
      const output = await small.forward({
        ids: ids.flat(),
        rowOffsets,
        positions: positions.flat(),
        cache,
        planner: { timestep, maskIndex: maskIndex.flat() },
      });
      lengths.forEach((_, row) => {
        const computed = { positions: positions[row], cache: reference[row] };
        const hidden = referenceHidden(made.config, made.weights, ids[row], computed);
        const logits = referenceLogits(made.config, made.weights, hidden);
        const planner = referencePlanner(made.config, made.weights, hidden, timestep[row], maskIndex[row], computed);
        const V = made.config.embedding_size;
        positions[row].forEach((_position, i) => {
          const at = rowOffsets[row] + i;
          expect(Math.abs(output.plannerLogits![at] - planner[i])).toBeLessThan(2e-4);
          logits[i].forEach((x, v) => expect(Math.abs(output.logits![at * V + v] - x)).toBeLessThan(2e-4));
        });
      });
    }
    cache.dispose();
    small.dispose();
  });

  test('a pass over everything gives the bits of a pass without a cache, whatever the cache held', async () => {
    const ids = range(0, 20).map((i) => (i * 7) % 95);
    const plain = await model.forward({ ids, rowOffsets: [0, 12, 20] });
    const cache = await model.createCache([12, 8]);
    await model.forward({ ids: ids.toReversed(), rowOffsets: [0, 12, 20], cache });
    expect(await model.forward({ ids, rowOffsets: [0, 12, 20], cache })).toEqual(plain);
    expect(cache.bytes).toBe(model.cacheBytes(20));
    cache.dispose();
  });

  test('bf16 holds what fp32 rounds to', async () => {
    const ids = range(0, 12);
    const [full, half] = [await model.createCache([12]), await model.createCache([12], { dtype: 'bfloat16' })];
    expect(half.bytes).toBe(full.bytes / 2);
    await model.forward({ ids, cache: full });
    await model.forward({ ids, cache: half });
    const [{ keys }, rounded] = [await full.read(0), await half.read(0)];
    rounded.keys.forEach((key, i) => expect(Math.abs(key - keys[i])).toBeLessThanOrEqual(Math.abs(keys[i]) * 2 ** -8));
    expect(rounded.keys).not.toEqual(keys);
    full.dispose();
    half.dispose();
  });

  test('wrong requests', async () => {
    const cache = await model.createCache([4, 3]);
    const request = { ids: [1, 2], rowOffsets: [0, 1, 2], positions: [0, 0], cache };
    await expect(model.forward(request)).rejects.toThrow(
      /row 0 has positions that are neither computed in this pass nor cached/,
    );
    const whole = { ids: [1, 2, 3, 4, 5, 6, 7], rowOffsets: [0, 4, 7], cache };
    await model.forward(whole);
    await expect(
      model.forward({ ...request, ids: [1, 2, 3], rowOffsets: [0, 3, 3], positions: [1, 0, 2] }),
    ).rejects.toThrow(/ascending/);
    await expect(model.forward({ ...request, positions: [0, 3] })).rejects.toThrow(/positions inside row 1, got 3/);
    await expect(model.forward({ ...request, positions: [0] })).rejects.toThrow(/positions: expected one per id/);
    await expect(model.forward({ ids: [1, 2], cache })).rejects.toThrow(/rowOffsets: expected 3 numbers/);
    await expect(model.forward({ ids: [1, 2], rowOffsets: [0, 1, 2], cache })).rejects.toThrow(
      /expected rows of 4, 3 tokens/,
    );
    await expect(model.forward({ ids: [1], positions: [0] })).rejects.toThrow(TypeError);
    await expect(model.forward({ ids: [1], cache: {} as never })).rejects.toThrow(
      /cache: expected what model\.createCache made/,
    );
    const planner = { timestep: [0, 0], maskIndex: [0, 0, 0, 0, 0, 0, 0] };
    await expect(model.forward({ ...whole, planner })).rejects.toThrow(
      /planner: expected a cache made with planner "cached"/,
    );
    const other = await loadModel(modelFolder('base'));
    await expect(other.forward(whole)).rejects.toThrow(/cache: expected one of this model/);
    other.dispose();
    await expect(cache.read(9)).rejects.toThrow(/layer: expected 0 to 1, got 9/);
    await expect(cache.read(0, 2)).rejects.toThrow(/row: expected 0 to 1, got 2/);
    cache.dispose();
    await expect(model.forward(whole)).rejects.toMatchObject({ code: 'DISPOSED' });
    await expect(model.createCache([])).rejects.toThrow(/rowLengths: expected at least one row/);
    await expect(model.createCache([97])).rejects.toThrow(
      /rowLengths\[0\]: expected an integer at least 1 and at most 96, got 97/,
    );
    await expect(model.createCache([4], { dtype: 'float16' as never })).rejects.toThrow(/dtype/);
  });

  test('a pass that is aborted leaves nothing behind', async () => {
    // Long enough that it cannot be over when the abort comes.
    const rows = 80;
    const cache = await model.createCache(new Array(rows).fill(90));
    const whole = {
      ids: range(0, 90 * rows).map((i) => i % 90),
      rowOffsets: range(0, rows + 1).map((i) => 90 * i),
      logits: false,
      cache,
    };
    const first = {
      ids: new Array(rows).fill(1),
      positions: new Array(rows).fill(0),
      rowOffsets: range(0, rows + 1),
      logits: false,
      cache,
    };
    await model.forward(whole);
    await model.forward(first);
    const abort = new AbortController();
    const work = model.forward({ ...whole, signal: abort.signal });
    abort.abort(new Error('enough'));
    await expect(work).rejects.toThrow('enough');
    await expect(model.forward(first)).rejects.toThrow(/neither computed/);
    await model.forward(whole);
    await model.forward(first);
    cache.dispose();
  });
});

describe('options', () => {
  const wrong: [unknown, RegExp][] = [
    [5, /cache: expected an object with a "type", or its short form such as "refresh:4", got 5/],
    [null, /cache: expected an object/],
    ['duel', /cache: expected none, prefix, dual, .*, got "duel"/],
    [
      { type: 'both' },
      /cache\.type: expected "none" or "prefix" or "dual" or "blocks" or "refresh" or "delayed", got "both"/,
    ],
    [{ type: 'none', dtype: 'float32' }, /cache: unknown key "dtype"/],
    [{ type: 'dual', every: 3 }, /cache: unknown key "every"/],
    [{ type: 'dual', dtype: 'float16' }, /cache\.dtype: expected "float32" or "bfloat16", got "float16"/],
    [{ type: 'dual', planner: 'stale' }, /cache\.planner: expected "fresh" or "cached"/],
    [{ type: 'prefix', emptyPass: 1 }, /cache\.emptyPass: expected true or false/],
    [{ type: 'refresh', every: 0 }, /cache\.every: expected an integer at least 1/],
    [{ type: 'refresh', changed: 2 }, /cache\.changed: expected a finite number at least 0 and at most 1, got 2/],
    [{ type: 'delayed', delay: -1 }, /cache\.delay: expected an integer at least 0/],
    [{ type: 'delayed', every: 1.5 }, /cache\.every: expected an integer/],
  ];
  test.each(wrong)('%j is refused', async (cache, message) => {
    const work = model.generate(prompts[0], { cache: cache as CachePolicy });
    await expect(work).rejects.toThrow(message);
    await expect(work).rejects.toThrow(
      cache === null || typeof cache === 'number' || (cache as { type: string }).type === 'none' ? TypeError : Error,
    );
  });

  test.each<[string, CachePolicy]>([
    ['none', { type: 'none' }],
    ['dual', { type: 'dual' }],
    ['dual:dtype=bfloat16:planner=fresh', { type: 'dual', dtype: 'bfloat16', planner: 'fresh' }],
    ['prefix:emptyPass=true', { type: 'prefix', emptyPass: true }],
    ['refresh:4', { type: 'refresh', every: 4 }],
    ['refresh:changed=0.2', { type: 'refresh', changed: 0.2 }],
    ['delayed:2:every=3', { type: 'delayed', delay: 2, every: 3 }],
  ])('"%s" parses', (text, cache) => expect(parseCache(text)).toEqual(cache));

  test.each<[string, RegExp]>([
    ['', /cache: expected none, prefix, dual, blocks, refresh, delayed, .*, got ""/],
    ['dual:4', /cache: dual takes dtype, planner, emptyPass; got "4"/],
    ['refresh:none', /cache\.every: expected a number, got "none"/],
    ['none:4', /cache: none takes no options; got "4"/],
  ])('"%s" does not', (text, message) => {
    expect(() => parseCache(text)).toThrow(RangeError);
    expect(() => parseCache(text)).toThrow(message);
  });

  test('every name parses', () => {
    for (const name of CACHE_NAMES) expect(parseCache(name)).toEqual({ type: name });
    expect(() => parseCache(5 as never)).toThrow(TypeError);
  });

  test('memory is stated before it is taken', async () => {
    // 2 layers, 4 heads of 16: 2 · 64 numbers per layer and position; the planner's block is a third; its states are 64
    // numbers.
    expect(model.cacheBytes(100)).toBe(100 * 2 * 128 * 4);
    expect(model.cacheBytes(100, { dtype: 'bfloat16' })).toBe(100 * 2 * 128 * 2);
    expect(model.cacheBytes(100, { planner: 'cached' })).toBe(100 * 3 * 128 * 4);
    expect(model.cacheBytes(100, { planner: 'fresh', dtype: 'bfloat16' })).toBe(100 * (2 * 128 * 2 + 64 * 4));
    const long = await loadModel(
      variant('base', { config: (config) => Object.assign(config, { max_sequence_length: 2 ** 29 }) }),
      {
        threads: 1,
      },
    );
    const work = long.createCache([2 ** 29, 2 ** 29]);
    await expect(work).rejects.toMatchObject({ name: 'DUltraError', code: 'OUT_OF_MEMORY' });
    await expect(work).rejects.toThrow(
      /^cache: keys and values of 2 rows, 1073741824 tokens in all, need 1024\.0 GiB, .* GiB are free; dtype: "bfloat16" needs half/,
    );
    long.dispose();
  });
});
