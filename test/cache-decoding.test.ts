// Decoding with every cache policy and sampler, and what may not change.
import {
  type CachePolicy,
  type DenoiseStep,
  type GenerateOptions,
  loadModel,
  type MaskedDiffusionModel,
  type Prompt,
  type StreamEvent,
} from '../lib';
import { caches, EOS, MASK, pairs, prompts, range, sampled, samplers } from './cache-cases';
import { modelFolder, variant, withoutPlanner } from './helpers';
import { collect } from './trained-models';

let model: MaskedDiffusionModel;
beforeAll(async () => {
  model = await loadModel(modelFolder('base'), { threads: 2 });
});
afterAll(() => model.dispose());

const stepsOf = async (prompt: Prompt, options: GenerateOptions): Promise<DenoiseStep[]> =>
  collect(model.denoise([prompt], options));

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
        const single = await model.generate(prompts[i], { ...sampled, sampler, cache, research: { firstRow: i } });
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
        if (result.finishReason !== 'stop') continue;
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
    maxTokens: 16,
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
      const theirs = await passes({ cache: { type }, research: { compat: 'reference' } });
      expect(theirs.map(({ positions }) => positions.length)).toEqual([8, 0, 8, 0]);
      expect(theirs.map(({ computed }) => computed.length)).toEqual(type === 'dual' ? [19, 8, 19, 8] : [19, 16, 19, 8]);
      expect(await passes({ cache: { type, emptyPass: true } })).toHaveLength(4);
      expect(await passes({ cache: { type, emptyPass: false }, research: { compat: 'reference' } })).toHaveLength(2);
      expect(
        await passes({ cache: { type }, research: { compat: 'reference' }, sampler: { type: 'factor', factor: 1e6 } }),
      ).toHaveLength(2);
      const result = await model.generate(prompts[0], {
        ...confidence,
        cache: { type },
        research: { compat: 'reference' },
      });
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
      research: { compat: 'reference' },
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
      maxTokens: 24,
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
        for await (const { rows } of ending.denoise([prompt], { ...options, research: { compat } })) {
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
