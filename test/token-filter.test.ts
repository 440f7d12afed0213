// Top-k and top-p, which distribution confidences are of, and Dream's and Fast-dLLM v2's samplers.
import { type GenerateOptions, kernels, loadModel, type MaskedDiffusionModel } from '../lib';
import { modelFolder } from './helpers';

const prompt = { promptIds: [3, 1, 4, 1, 5] };
const base: GenerateOptions = { maxTokens: 12, blockLength: 6, sampler: { type: 'fixed', steps: 6 }, seed: 7 };

let model: MaskedDiffusionModel;
beforeAll(async () => {
  model = await loadModel(modelFolder('base'), { threads: 2 });
});
afterAll(() => model.dispose());

const idsOf = async (options: GenerateOptions) => (await model.generate(prompt, { ...base, ...options })).ids;

test('with top-k 1, or next to no top-p, every draw is the most probable token', async () => {
  const greedy = await idsOf({});
  expect(await idsOf({ temperature: 1, topK: 1 })).toEqual(greedy);
  expect(await idsOf({ temperature: 1, topP: 1e-9 })).toEqual(greedy);
  expect(await idsOf({ temperature: 1 })).not.toEqual(greedy);
});

test('filters that keep everything change no bit', async () => {
  const run = async (options: GenerateOptions) => {
    const steps = [];
    const all = { ...base, temperature: 0.8, ...options };
    for await (const { rows } of model.denoise([prompt], all)) steps.push(rows);
    return steps;
  };
  const plain = await run({});
  expect(await run({ topK: 2 ** 31 - 1 })).toEqual(plain);
  expect(await run({ topP: 1 })).toEqual(plain);
  expect(await run({ topP: 0.5 })).not.toEqual(plain);
});

test('neither threads nor other rows change what is drawn', async () => {
  const options: GenerateOptions = { ...base, temperature: 1.2, topK: 9, topP: 0.8, confidence: 'filtered' };
  const prompts = [prompt, { promptIds: [2, 7] }, { promptIds: [1, 8, 2, 8] }];
  const together = await model.generateBatch(prompts, options);
  const one = await loadModel(modelFolder('base'), { threads: 1 });
  try {
    for (let i = 0; i < prompts.length; i++)
      expect((await one.generate(prompts[i], { ...options, research: { firstRow: i } })).ids).toEqual(together[i].ids);
  } finally {
    one.dispose();
  }
});

test('confidences are of the distribution that is asked for, log-probabilities always of all tokens', async () => {
  const first = async (options: GenerateOptions) => {
    const all = { ...base, temperature: 0.5, seed: 3, ...options };
    for await (const { rows } of model.denoise([prompt], all)) return rows[0];
    throw new Error('no step');
  };
  const plain = await first({ topK: 4 });
  const tempered = await first({ topK: 4, confidence: 'tempered' });
  const filtered = await first({ topK: 4, confidence: 'filtered' });
  expect(tempered.tokens).toEqual(plain.tokens);
  expect(filtered.tokens).toEqual(plain.tokens);
  expect(filtered.logProbs).toEqual(plain.logProbs);
  plain.confidences.forEach((p, i) => {
    expect(p).toBeCloseTo(Math.exp(plain.logProbs[i]), 5);
    expect(filtered.confidences[i]).toBeGreaterThan(tempered.confidences[i]);
    expect(filtered.entropies[i]).toBeLessThan(Math.log(4) + 1e-6);
  });
});

test('the kernel', async () => {
  const logits = Float32Array.of(1, 3, 2, 3, 0);
  const draw = async (options: object) => {
    const seeds = Array.from({ length: 200 }, (_, seed) => seed);
    const drawn = seeds.map((seed) => kernels.sample(logits, { vocabSize: 5, temperature: 1, seed, ...options }));
    return [...new Set((await Promise.all(drawn)).map(({ tokens }) => tokens[0]))].sort();
  };
  expect(await draw({})).toEqual(expect.arrayContaining([0, 1, 2, 3]));
  // Those that equal the last of them stay.
  expect(await draw({ topK: 1 })).toEqual([1, 3]);
  expect(await draw({ topK: 3 })).toEqual([1, 2, 3]);
  // Of equal ones the lower id comes first: p = 0.40, 0.40, 0.15, 0.05, 0.02.
  expect(await draw({ topP: 0.3 })).toEqual([1]);
  expect(await draw({ topP: 0.5 })).toEqual([1, 3]);
  expect(await draw({ topP: 0.9 })).toEqual([1, 2, 3]);
  const { confidences, entropies } = await kernels.sample(logits, { vocabSize: 5, topK: 1, confidence: 'filtered' });
  expect(confidences[0]).toBeCloseTo(0.5, 7);
  expect(entropies[0]).toBeCloseTo(Math.LN2, 6);
});

test.each<[GenerateOptions, ErrorConstructor | RangeErrorConstructor | TypeErrorConstructor, string]>([
  [{ topK: 0 }, RangeError, 'topK: expected an integer at least 1 and at most 2147483647, got 0'],
  [{ topK: 1.5 }, RangeError, 'topK: expected an integer'],
  [{ topK: '5' as never }, TypeError, 'topK: expected an integer'],
  [{ topP: 0 }, RangeError, 'topP: expected a finite number greater than 0 and at most 1, got 0'],
  [{ topP: 1.1 }, RangeError, 'topP: expected'],
  [{ topP: Number.NaN }, RangeError, 'topP: expected'],
  [{ confidence: 'all' as never }, RangeError, 'confidence: expected "untempered" or "tempered" or "filtered"'],
  [{ sampler: { type: 'dream', alg: 'origin', algTemp: 1 } }, TypeError, 'sampler.algTemp: not allowed'],
  [{ sampler: { type: 'dream', steps: 5 } }, RangeError, 'sampler.steps: expected a multiple of the number of blocks'],
  [{ sampler: { type: 'confidence', steps: 5 } }, RangeError, 'sampler.steps: expected a multiple'],
  [
    { sampler: { type: 'dynamic', order: 'left_to_right', threshold: 0.9 } },
    TypeError,
    'sampler.threshold: not allowed with order "left_to_right"',
  ],
  [{ sampler: { type: 'sub-blocks', partCache: true } }, TypeError, 'sampler.partCache: expected a model that attends'],
])('%j is refused', async (options, Type, message) => {
  const run = model.generate(prompt, { ...base, ...options });
  await expect(run).rejects.toThrow(Type);
  await expect(run).rejects.toThrow(message);
});

describe("Dream's schedule", () => {
  test.each(['entropy', 'maskgit_plus', 'topk_margin', 'origin'] as const)('%s decides everything', async (alg) => {
    for (const algTemp of alg === 'origin' ? [0] : [0, 0.5])
      for (const temperature of [0, 0.9]) {
        const sampler = { type: 'dream', alg, steps: 8, algTemp } as const;
        const { ids, nfe } = await model.generate(prompt, { ...base, temperature, topP: 0.9, sampler });
        expect(ids).not.toContain(model.config.maskTokenId);
        expect(nfe).toBeLessThanOrEqual(8);
      }
  });

  test('unmasks at least one position per pass, and with compat as many as the reference', async () => {
    const counts = async (compat?: 'reference') => {
      const sampler = { type: 'dream', steps: 12 } as const;
      const out: number[] = [];
      for await (const { rows } of model.denoise([prompt], {
        maxTokens: 12,
        blockLength: 12,
        sampler,
        research: { compat },
      }))
        out.push(rows[0].selected.reduce((sum, one) => sum + one, 0));
      return out;
    };
    expect(await counts()).toEqual(new Array(12).fill(1));
    expect(await counts('reference')).toEqual([0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2]);
  });
});

test('sub-blocks decides a block in parts', async () => {
  const sampler = { type: 'sub-blocks', length: 3, threshold: 0 } as const;
  const parts: number[][] = [];
  for await (const { rows } of model.denoise([prompt], { ...base, sampler })) parts.push(Array.from(rows[0].positions));
  expect(parts).toEqual([0, 3, 6, 9].map((from) => [5, 6, 7].map((p) => p + from)));
});

test('a threshold with steps never unmasks more than its share', async () => {
  const run = async (threshold: number) => {
    const out: number[] = [];
    const sampler = { type: 'confidence', threshold, steps: 4 } as const;
    for await (const { rows } of model.denoise([prompt], { maxTokens: 12, blockLength: 12, sampler }))
      out.push(rows[0].selected.reduce((sum, one) => sum + one, 0));
    return out;
  };
  expect(await run(0)).toEqual([3, 3, 3, 3]);
  expect((await run(1)).every((count) => count === 1)).toBe(true);
});
