// Caches of keys and values: the forward pass on one against double precision, decoding with every policy, and what may
// not change.
import {
  CACHE_NAMES,
  type CachePolicy,
  type DenoiseStep,
  type GenerateOptions,
  GrpoTrainer,
  loadModel,
  type MaskedDiffusionModel,
  type Prompt,
  parseCache,
  type SamplerObject,
  type StreamEvent,
  training,
} from '../lib';
import { makeCheckpoint, random } from './checkpoints';
import { modelFolder, variant, withoutPlanner } from './helpers';
import {
  emptyReferenceCache,
  type ReferenceConfig,
  type ReferenceWeights,
  referenceHidden,
  referenceLogits,
  referencePlanner,
} from './reference-model';
import { collect, newModelFolder, task, withModel } from './trained-models';

const MASK = 96; // of the golden model "base"
const EOS = 95;
const prompts: Prompt[] = [
  { promptIds: [5, 17, 3] },
  { promptIds: [40, 41, 42, 43, 44, 45, 46, 47] },
  { promptIds: [1] },
];
const sampled: GenerateOptions = { genLength: 24, blockLength: 8, temperature: 0.8, seed: 11, stopAtEos: false };

let model: MaskedDiffusionModel;
beforeAll(async () => {
  model = await loadModel(modelFolder('base'), { threads: 2 });
});
afterAll(() => model.dispose());

const samplers: [string, SamplerObject][] = [
  ['planner', { type: 'planner' }],
  ['bernoulli', { type: 'planner', select: 'bernoulli', probabilityScale: 0.3 }],
  ['confidence', { type: 'confidence', threshold: 0.2 }],
  ['fixed', { type: 'fixed', steps: 6 }],
  ['fixed by entropy', { type: 'fixed', steps: 6, remasking: 'low_entropy' }],
  ['d3llm', { type: 'd3llm', threshold: 2, blockAddThreshold: 0.2 }],
];
const caches: [string, CachePolicy][] = [
  ['prefix', { type: 'prefix' }],
  ['dual', { type: 'dual' }],
  ['dual, planner fresh', { type: 'dual', planner: 'fresh' }],
  ['dual, bf16', { type: 'dual', dtype: 'bfloat16' }],
  ['refresh', { type: 'refresh', every: 3 }],
  ['refresh by changes', { type: 'refresh', changed: 0.1, planner: 'fresh' }],
  ['delayed', { type: 'delayed', delay: 1, every: 4 }],
];
const pairs = samplers.flatMap(([s, sampler]) =>
  caches.map(([c, cache]): [string, SamplerObject, CachePolicy] => [`${s} + ${c}`, sampler, cache]),
);

const stepsOf = async (prompt: Prompt, options: GenerateOptions): Promise<DenoiseStep[]> =>
  collect(model.denoise([prompt], options));
const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);

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

describe('decoding', () => {
  test.each(samplers)('%s: recomputing everything always equals no cache, bit for bit', async (_name, sampler) => {
    for (const planner of ['cached', 'fresh'] as const) {
      const cached = await model.generateBatch(prompts, {
        ...sampled,
        sampler,
        cache: { type: 'refresh', every: 1, planner },
      });
      expect(cached).toEqual(await model.generateBatch(prompts, { ...sampled, sampler }));
      for (const { fullForwards, nfe } of cached) expect(fullForwards).toBe(nfe);
    }
  });

  test.each(pairs)(
    '%s: a batch of different lengths equals its rows alone, bit for bit',
    async (_name, sampler, cache) => {
      const batch = await model.generateBatch(prompts, { ...sampled, sampler, cache });
      for (let i = 0; i < prompts.length; i++) {
        const single = await model.generate(prompts[i], { ...sampled, sampler, cache, firstRow: i });
        expect(single).toEqual(batch[i]);
        expect(single.ids).not.toContain(MASK);
        expect(single.fullForwards).toBeLessThanOrEqual(single.nfe);
      }
    },
  );

  test.each([1, 3])('%i threads give the bits of 2', async (threads) => {
    const other = await loadModel(modelFolder('base'), { threads });
    for (const [, sampler, cache] of pairs) {
      const options = { ...sampled, sampler, cache };
      expect(await other.generateBatch(prompts, options)).toEqual(await model.generateBatch(prompts, options));
    }
    other.dispose();
  });

  test.each(pairs)('%s: a stream says what generate returns', async (_name, sampler, cache) => {
    const options = { ...sampled, sampler, cache };
    const events: StreamEvent[] = [];
    for await (const event of model.generateStream(prompts[1], options)) events.push(event);
    expect(events.at(-1)!.result).toEqual(await model.generate(prompts[1], options));
  });

  test('what each policy computes', async () => {
    const options: GenerateOptions = { ...sampled, sampler: { type: 'fixed' } };
    const computed = async (cache: CachePolicy) =>
      (await stepsOf(prompts[0], { ...options, cache })).map(({ rows }) => Array.from(rows[0].computed));
    const all = range(0, 27);
    const prefix = await computed({ type: 'prefix' });
    const dual = await computed({ type: 'dual' });
    expect(prefix).toHaveLength(24);
    prefix.forEach((positions, step) =>
      expect(positions).toEqual(step % 8 === 0 ? all : range(3 + 8 * Math.floor(step / 8), 27)),
    );
    dual.forEach((positions, step) => {
      const begin = 3 + 8 * Math.floor(step / 8);
      expect(positions).toEqual(step % 8 === 0 ? all : range(begin, begin + 8));
    });
    const refresh = await stepsOf(prompts[0], { ...options, cache: { type: 'refresh', every: 5 } });
    let changed = new Set<number>();
    refresh.forEach(({ rows: [row] }, step) => {
      const expected = new Set([...changed, ...row.positions]);
      expect(Array.from(row.computed)).toEqual(step % 5 === 0 ? all : [...expected].sort((a, b) => a - b));
      changed = new Set(row.positions.filter((_, i) => row.selected[i]));
    });
    const changes = await computed({ type: 'refresh', changed: 0.1 });
    // More than 2.7 of 27 positions have changed: every third pass.
    changes.forEach((positions, step) => expect(positions.length === 27).toBe(step % 3 === 0));
    const delayed = await computed({ type: 'delayed', delay: 2 });
    // The prompt is cached in pass 2, a block of 8 is seen finished in pass 9 of its kind and cached 2 passes later,
    // full passes between.
    expect(delayed.map((positions) => positions[0]).slice(0, 14)).toEqual([
      0, 0, 3, 3, 3, 3, 3, 3, 0, 0, 3, 11, 11, 11,
    ]);
  });

  test('a row ends when its end of sequence is decided, with a cache too', async () => {
    let ended = 0;
    for (const [, sampler, cache] of pairs)
      for (let seed = 0; seed < 4; seed++) {
        const result = await model.generate(prompts[0], {
          ...sampled,
          temperature: 2,
          sampler,
          cache,
          seed,
          stopAtEos: true,
        });
        if (result.finishReason !== 'eos') continue;
        ended++;
        expect(result.ids.subarray(0, result.tokens)).not.toContain(MASK);
        if (sampler.type === 'd3llm') expect(new Set(result.ids.subarray(result.tokens - 1))).toEqual(new Set([EOS]));
      }
    expect(ended).toBeGreaterThan(5);
  });

  test('templates and custom samplers', async () => {
    const template = [5, MASK, MASK, 7, 8, MASK, 9, 10, MASK, MASK];
    for (const [, cache] of caches) {
      const filled = await model.generate({ template }, { cache, blockLength: 4, sampler: { type: 'fixed' } });
      expect(filled.ids).not.toContain(MASK);
      template.forEach((id, i) => id !== MASK && expect(filled.ids[i]).toBe(id));
      const own = await model.generate(prompts[0], {
        ...sampled,
        cache,
        sampler: ({ positions }) => positions.slice(-1),
      });
      expect(own.nfe).toBe(24);
      expect(own.ids).not.toContain(MASK);
    }
  });

  test('masks of the prompt are filled as without a cache', async () => {
    const prompt = { promptIds: [5, MASK, 7, MASK, 3] };
    for (const [, sampler, cache] of pairs) {
      const result = await model.generate(prompt, { ...sampled, sampler, cache });
      expect(result.ids).not.toContain(MASK);
    }
  });

  test('a model without planner', async () => {
    const plain = await loadModel(withoutPlanner('base'), { threads: 2 });
    for (const [, cache] of caches)
      expect(
        (await plain.generate(prompts[0], { ...sampled, cache, sampler: { type: 'confidence' } })).ids,
      ).not.toContain(MASK);
    expect(() => plain.cacheBytes(10, { planner: 'cached' })).toThrow(/no planner head/);
    plain.dispose();
  });

  test('abort and dispose', async () => {
    const cache: CachePolicy = { type: 'dual' };
    const abort = new AbortController();
    let latest = 0;
    const sampler: GenerateOptions['sampler'] = ({ step, positions }) => {
      latest = step;
      if (step === 3) abort.abort(new Error('enough'));
      return [positions[0]];
    };
    await expect(model.generateBatch(prompts, { ...sampled, cache, sampler, signal: abort.signal })).rejects.toThrow(
      'enough',
    );
    expect(latest).toBe(3);
    for await (const _ of model.generateStream(prompts[0], { ...sampled, cache })) break;
    const other = await loadModel(modelFolder('base'));
    const pending = other.generate(prompts[0], { ...sampled, cache });
    other.dispose();
    // Work under way may finish, or find the model gone; nothing else.
    await pending.catch((error) => expect(error).toMatchObject({ code: 'DISPOSED' }));
  });
});

describe('quirks of the references', () => {
  const confidence: GenerateOptions = {
    genLength: 16,
    blockLength: 8,
    temperature: 0,
    sampler: { type: 'confidence', threshold: 0 },
  };
  const passes = async (options: GenerateOptions) =>
    (await stepsOf(prompts[0], { ...confidence, ...options })).map(({ rows }) => rows[0]);

  test.each(['prefix', 'dual'] as const)(
    '%s: a finished block gets an empty pass in the reference, none here',
    async (type) => {
      const ours = await passes({ cache: { type } });
      expect(ours.map(({ positions }) => positions.length)).toEqual([8, 8]);
      const theirs = await passes({ cache: { type }, compat: 'reference' });
      expect(theirs.map(({ positions }) => positions.length)).toEqual([8, 0, 8, 0]);
      expect(theirs.map(({ computed }) => computed.length)).toEqual(type === 'dual' ? [19, 8, 19, 8] : [19, 16, 19, 8]);
      expect(await passes({ cache: { type, emptyPass: true } })).toHaveLength(4);
      expect(await passes({ cache: { type, emptyPass: false }, compat: 'reference' })).toHaveLength(2);
      expect(
        await passes({ cache: { type }, compat: 'reference', sampler: { type: 'factor', factor: 1e6 } }),
      ).toHaveLength(2);
      const result = await model.generate(prompts[0], { ...confidence, cache: { type }, compat: 'reference' });
      expect(result.nfe).toBe(2);
      expect(result.fullForwards).toBeCloseTo(type === 'dual' ? 2 + 16 / 19 : 2 + 24 / 19);
    },
  );

  test('the mask token is never predicted here', async () => {
    // Fill ids that the model likes: the mask's row of the output head made the largest.
    const folder = variant('base', {
      tensors: (tensors) => {
        const head = tensors['model.transformer.ff_out.weight'];
        const width = head.shape[1];
        const table = new Float32Array(head.raw.buffer, head.raw.byteOffset, head.raw.length / 4);
        // Row of the mask: the sum of several others, so that it is often the largest.
        for (let c = 0; c < width; c++)
          table[MASK * width + c] = table[2 * width + c] + table[39 * width + c] + table[48 * width + c];
      },
    });
    const liking = await loadModel(folder, { threads: 2 });
    for (const [, sampler] of samplers) {
      if (sampler.type === 'planner') continue;
      for (const [, cache] of caches) {
        const { ids } = await liking.generate(prompts[0], { ...sampled, temperature: 0, sampler, cache });
        expect(ids).not.toContain(MASK);
      }
    }
    // The reference's d3LLM counts a mask as decided; its loop ends all the same.
    const options: GenerateOptions = {
      ...sampled,
      temperature: 0,
      compat: 'reference',
      sampler: { type: 'd3llm', threshold: 3 },
      cache: { type: 'delayed', delay: 1 },
    };
    const predicted = (await collect(liking.denoise([prompts[0]], options))).some(({ rows }) =>
      rows[0].tokens.includes(MASK),
    );
    expect(predicted).toBe(true);
    liking.dispose();
  });

  test('d3LLM: what an end of sequence has filled is no candidate here', async () => {
    const folder = variant('base', { config: (config) => Object.assign(config, { eos_token_id: 45 }) });
    const ending = await loadModel(folder, { threads: 2 });
    const options: GenerateOptions = {
      genLength: 24,
      blockLength: 8,
      stopAtEos: true,
      sampler: { type: 'd3llm', threshold: 1.9, blockAddThreshold: 0.1, decodedTokenThreshold: 0.95 },
      cache: { type: 'delayed', delay: 1 },
    };
    let overwritten = 0;
    for (let seed = 0; seed < 12; seed++) {
      const prompt = { promptIds: range(0, 5).map((i) => (i * 13 + seed * 29) % 90) };
      for (const compat of [undefined, 'reference'] as const) {
        let before: Int32Array | null = null;
        for await (const { rows } of ending.denoise([prompt], { ...options, ...(compat && { compat }) })) {
          const [row] = rows;
          const eos = before?.indexOf(45, 5) ?? -1;
          const late = row.positions.filter((position) => eos >= 0 && position > eos).length;
          if (compat) overwritten += late;
          else expect(late).toBe(0);
          before = row.ids;
        }
      }
    }
    expect(overwritten).toBeGreaterThan(0);
    ending.dispose();
  });
});

describe('d3LLM', () => {
  test('thresholds of 1 give one block after the other; a low one opens blocks early', async () => {
    const blocksOf = async (blockAddThreshold: number, decodedTokenThreshold: number) => {
      const sampler = { type: 'd3llm' as const, threshold: 2, blockAddThreshold, decodedTokenThreshold };
      return (await stepsOf(prompts[0], { ...sampled, temperature: 0, sampler })).map(({ rows: [row] }) => {
        const blocks = new Set(Array.from(row.positions, (position) => Math.floor((position - 3) / 8)));
        return blocks.size;
      });
    };
    expect(new Set(await blocksOf(1, 1))).toEqual(new Set([1]));
    expect(Math.max(...(await blocksOf(0, 0.5)))).toBeGreaterThan(1);
  });

  test('a template keeps what it was given, behind an end of sequence too', async () => {
    const template = [5, MASK, EOS, MASK, 7, MASK, MASK, 8];
    const { ids } = await model.generate({ template }, { sampler: { type: 'd3llm' }, stopAtEos: true, blockLength: 3 });
    expect(Array.from(ids)).toEqual([5, ids[1], EOS, EOS, 7, EOS, EOS, 8]);
    expect(ids[1]).not.toBe(MASK);
    const all = await model.generate({ template }, { sampler: { type: 'd3llm' }, blockLength: 3 });
    expect(all.ids).not.toContain(MASK);
  });

  test('the first block that is due makes progress in every pass', async () => {
    const sampler = { type: 'd3llm' as const, threshold: 0, blockAddThreshold: 0, decodedTokenThreshold: 0.95 };
    const steps = await stepsOf(prompts[0], { ...sampled, temperature: 0, sampler });
    let forced = 0;
    for (const {
      rows: [row],
    } of steps) {
      const first = row.positions[0];
      const end = 3 + 8 * (Math.floor((first - 3) / 8) + 1);
      expect(row.positions.some((position, i) => row.selected[i] && position < end)).toBe(true);
      if (row.forced) {
        forced++;
        expect(row.selected[row.positions.indexOf(row.forcedPosition)]).toBe(1);
      } else expect(row.forcedPosition).toBe(-1);
    }
    expect(forced).toBeGreaterThan(0);
  });
});

describe('options', () => {
  const wrong: [unknown, RegExp][] = [
    [5, /cache: expected an object with a "type", got 5/],
    [null, /cache: expected an object/],
    ['dual', /cache: expected an object/],
    [{ type: 'both' }, /cache\.type: expected "none" or "prefix" or "dual" or "refresh" or "delayed", got "both"/],
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
      cache === null || typeof cache !== 'object' || (cache as { type: string }).type === 'none' ? TypeError : Error,
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
    ['', /cache: expected none, prefix, dual, refresh, delayed, .*, got ""/],
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

describe('GRPO on a cache', () => {
  const policies: [string, CachePolicy][] = [
    ['dual', { type: 'dual' }],
    ['prefix, planner fresh', { type: 'prefix', planner: 'fresh' }],
    ['refresh', { type: 'refresh', every: 3 }],
    ['delayed, planner fresh', { type: 'delayed', delay: 1, planner: 'fresh' }],
  ];
  test.each(policies)('%s: the replay of a rollout is the rollout', async (_name, cache) => {
    await withModel(await newModelFolder({ nLayers: 2 }), async (fresh) => {
      const options = {
        dataset: task,
        maxSteps: 2,
        promptsPerStep: 3,
        numGenerations: 4,
        blockLength: 4,
        temperature: 1,
        tokenBudget: 40,
        learningRate: 1e-2,
        advantageMinClip: null,
        rewards: {
          any: ({ results }: { results: readonly { ids: Int32Array }[] }) => results.map(({ ids }) => ids[0] % 5),
        },
        cache,
      };
      await using trainer = new GrpoTrainer(fresh, options);
      const metrics = await collect(trainer.train());
      expect(metrics).toHaveLength(2);
      for (const { ratioDeviation, replayedSteps } of metrics) {
        expect(ratioDeviation).toBeLessThanOrEqual(1e-5);
        expect(replayedSteps).toBeGreaterThan(3);
      }
    });
  });

  test('a second update from the same rollouts refills the cache with the new weights', async () => {
    await withModel(await newModelFolder(), async (fresh) => {
      await using trainer = new GrpoTrainer(fresh, {
        dataset: task,
        maxSteps: 2,
        numIterations: 2,
        promptsPerStep: 2,
        numGenerations: 4,
        blockLength: 4,
        temperature: 1,
        learningRate: 1e-3,
        rewards: { any: ({ results }) => results.map(({ ids }) => ids[0] % 5) },
        advantageMinClip: null,
        cache: { type: 'dual' },
        referenceModel: undefined,
      });
      const [first, second] = await collect(trainer.train());
      expect(first.ratioDeviation).toBeLessThanOrEqual(1e-5);
      expect(second.ratioDeviation).toBeGreaterThan(1e-4);
      expect(second.ratioDeviation).toBeLessThan(1);
    });
  });

  test('a frozen reference replays on a cache of its own', async () => {
    const folder = await newModelFolder();
    await withModel(folder, (fresh) =>
      withModel(folder, async (referenceModel) => {
        await using trainer = new GrpoTrainer(fresh, {
          dataset: task,
          maxSteps: 1,
          promptsPerStep: 2,
          numGenerations: 3,
          blockLength: 4,
          beta: 0.1,
          referenceModel,
          rewards: { any: ({ results }) => results.map(({ ids }) => ids[0] % 5) },
          cache: { type: 'dual' },
        });
        const [{ kl }] = await collect(trainer.train());
        // The same weights: no divergence.
        expect(Math.abs(kl!)).toBeLessThan(1e-6);
      }),
    );
  });

  test('wrong options', async () => {
    await withModel(await newModelFolder(), async (fresh) => {
      const options = { dataset: task, rewards: { any: () => [] } };
      expect(() => new GrpoTrainer(fresh, { ...options, cache: { type: 'dual', dtype: 'bfloat16' } })).toThrow(
        /cache\.dtype: expected "float32", which gradients need/,
      );
      expect(() => new GrpoTrainer(fresh, { ...options, cache: { type: 'dual' }, compat: 'reference' })).toThrow(
        /cache: expected none with compat "reference"/,
      );
      expect(() => new GrpoTrainer(fresh, { ...options, cache: { type: 'some' as never } })).toThrow(/cache\.type/);
    });
  });
});

describe('gradients of a pass on a cache', () => {
  const next = random(12);
  const length = 12;
  const positions = [2, 3, 5, 6, 7, 10];
  const candidates = [3, 6, 10];

  test.each(['cached', 'fresh'] as const)(
    'planner %s: every tensor against central differences in double',
    async (planner) => {
      const made = makeCheckpoint({ config: { num_head_layers: 2 }, seed: 9 });
      const { config, weights } = made;
      const small = await loadModel(made.folder);
      const token = () => Math.floor(next() * (config.vocab_size - 2));
      const first = range(0, length).map((i) => (candidates.includes(i) ? config.mask_token_id : token()));
      const second = first.map((id, i) => (positions.includes(i) && id !== config.mask_token_id ? token() : id));
      const tokens = candidates.map(token);
      const timesteps = [Math.fround(0.3), Math.fround(0.6)];
      const upstream = candidates.map(() => [next() - 0.5, next() - 0.5]);

      // What the first pass leaves, in double: constants of the second.
      const held = emptyReferenceCache(config);
      const isCandidate = (list: readonly number[]) => list.map((position) => candidates.includes(position));
      const whole = { positions: range(0, length), cache: held };
      const states = referenceHidden(config, weights, first, whole);
      referencePlanner(config, weights, states, timesteps[0], isCandidate(whole.positions), whole);
      const objective = (w: ReferenceWeights) => {
        const cache = structuredClone(held);
        const pass = { positions, cache };
        const hidden = referenceHidden(
          config,
          w,
          positions.map((position) => second[position]),
          pass,
        );
        let logits: Float64Array;
        if (planner === 'cached') {
          const own = referencePlanner(config, w, hidden, timesteps[1], isCandidate(positions), pass);
          logits = Float64Array.from(candidates, (position) => own[positions.indexOf(position)]);
        } else {
          const mixed = states.slice();
          for (const [i, position] of positions.entries()) mixed[position] = hidden[i];
          const all = referencePlanner(config, w, mixed, timesteps[1], isCandidate(whole.positions));
          logits = Float64Array.from(candidates, (position) => all[position]);
        }
        const rows = referenceLogits(
          config,
          w,
          candidates.map((position) => hidden[positions.indexOf(position)]),
        );
        return candidates.reduce((total, _, i) => {
          const x = Array.from(rows[i], (value, id) => (id === config.mask_token_id ? -Infinity : value));
          const largest = Math.max(...x);
          const logProb =
            x[tokens[i]] - largest - Math.log(x.reduce((sum, value) => sum + Math.exp(value - largest), 0));
          return total + upstream[i][0] * logProb + upstream[i][1] * logits[i];
        }, 0);
      };

      const cache = await small.createCache([length], { planner });
      for (const activationCheckpointing of [false, true]) {
        const trainer = await small.createTrainer({ activationCheckpointing });
        const score = (ids: number[], computed: number[], timestep: number, keep: boolean) =>
          trainer.score({
            ids: Int32Array.from(computed, (position) => ids[position]),
            offsets: Int32Array.from([0, computed.length]),
            candidateOffsets: Int32Array.from([0, candidates.length]),
            positions: Int32Array.from(candidates),
            tokens: Int32Array.from(tokens),
            excludedToken: config.mask_token_id,
            planner: { timestep: Float32Array.of(timestep), maskIndex: Uint8Array.from(isCandidate(computed), Number) },
            cached: { cache: cache.native, rows: Int32Array.of(0), positions: Int32Array.from(computed) },
            keep,
          });
        await score(first, range(0, length), timesteps[0], false);
        await score(second, positions, timesteps[1], true);
        await trainer.backward({
          dLogProbs: Float32Array.from(upstream, ([x]) => x),
          dPlannerLogits: Float32Array.from(upstream, ([, x]) => x),
        });
        const found = new Map((await trainer.gradients()).map(({ name, data }) => [name, data]));
        trainer.dispose();
        for (const [name, { data }] of weights) {
          const gradient = found.get(name)!;
          const norm = Math.sqrt(gradient.reduce((sum, x) => sum + x * x, 0));
          const largest = gradient.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
          for (const entry of [gradient.findIndex((x) => Math.abs(x) === largest), Math.floor(next() * data.length)]) {
            const value = data[entry];
            data[entry] = value + 1e-5;
            const above = objective(weights);
            data[entry] = value - 1e-5;
            const below = objective(weights);
            data[entry] = value;
            const expected = (above - below) / 2e-5;
            const error = Math.abs(gradient[entry] - expected) / (1e-4 * Math.max(norm, 1e-3));
            if (!(error < 1))
              throw new Error(`${name}[${entry}]: expected ${expected}, got ${gradient[entry]} (norm ${norm})`);
          }
        }
      }
      cache.dispose();
      small.dispose();
    },
  );
});

test('recorded rollouts on a cache are what denoise gives', async () => {
  await withModel(await newModelFolder(), async (fresh) => {
    const cache: CachePolicy = { type: 'refresh', every: 2 };
    const policy = {
      temperature: 0.5,
      tokenLogProb: 'untempered',
      plannerTemperature: 1,
      probabilityScale: 1,
      forcedStep: 'exact',
      compat: null,
    } as const;
    const texts = ['1 a b c d e f g h', '3 a a b c d e f g'];
    const { results, steps } = await training.recordRollouts(
      fresh,
      texts.map((text) => fresh.encodePrompt(text)),
      {
        policy: { ...policy, cache: { type: 'refresh', every: 2, changed: null, dtype: 'float32', planner: 'cached' } },
        seed: 5n,
        tokenBudget: 17,
        genLength: 8,
        blockLength: 4,
      },
    );
    const whole = await fresh.generateBatch(texts, {
      genLength: 8,
      blockLength: 4,
      temperature: 0.5,
      seed: 5,
      sampler: { type: 'planner', select: 'bernoulli' },
      cache,
    });
    expect(results).toEqual(whole);
    expect(steps.some(({ computed, ids }) => computed.length < ids.length)).toBe(true);
  });
});
