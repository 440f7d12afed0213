import { kernels } from '../lib';

/** A small deterministic generator for inputs. */
function numbers(count: number, seed: number, scale = 1): Float32Array {
  let state = seed >>> 0;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return ((state >>> 8) / 2 ** 24 - 0.5) * 2 * scale;
  });
}

describe('maskedAttention', () => {
  /** Plain attention in doubles: one query against keys first..last of its sequence. */
  function reference(
    q: Float32Array,
    k: Float32Array,
    v: Float32Array,
    heads: number,
    kvHeads: number,
    d: number,
    visible: (query: number) => number[],
  ): number[] {
    const out: number[] = [];
    for (let query = 0; query < q.length / (heads * d); query++)
      for (let h = 0; h < heads; h++) {
        const kv = Math.floor(h / (heads / kvHeads));
        const keys = visible(query);
        const scores = keys.map((key) => {
          let dot = 0;
          for (let j = 0; j < d; j++) dot += q[(query * heads + h) * d + j] * k[(key * kvHeads + kv) * d + j];
          return dot / Math.sqrt(d);
        });
        const max = Math.max(...scores);
        const weights = scores.map((score) => Math.exp(score - max));
        const sum = weights.reduce((a, b) => a + b, 0);
        for (let j = 0; j < d; j++)
          out.push(keys.reduce((acc, key, i) => acc + (weights[i] / sum) * v[(key * kvHeads + kv) * d + j], 0));
      }
    return out;
  }
  const [heads, kvHeads, headDim] = [4, 2, 16];
  const rowOffsets = [0, 37, 50];
  const q = numbers(50 * heads * headDim, 1);
  const k = numbers(50 * kvHeads * headDim, 2);
  const v = numbers(50 * kvHeads * headDim, 3);
  const start = (query: number) => (query < 37 ? 0 : 37);
  const end = (query: number) => (query < 37 ? 37 : 50);
  const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);

  test.each([
    ['bidirectional' as const, (query: number) => range(start(query), end(query))],
    ['causal' as const, (query: number) => range(start(query), query + 1)],
    [
      'block-causal' as const,
      (query: number) =>
        range(start(query), Math.min(end(query), start(query) + (Math.floor((query - start(query)) / 8) + 1) * 8)),
    ],
  ])('%s, packed rows, grouped heads', async (mask, visible) => {
    const out = await kernels.maskedAttention(q, k, v, { heads, kvHeads, headDim, rowOffsets, mask, blockLength: 8 });
    reference(q, k, v, heads, kvHeads, headDim, visible).forEach((value, i) => expect(out[i]).toBeCloseTo(value, 5));
  });

  test('a subset of queries gives the bits of all', async () => {
    const all = await kernels.maskedAttention(q, k, v, { heads, kvHeads, headDim, rowOffsets, mask: 'causal' });
    const rows = [3, 20, 36, 37, 49];
    const width = heads * headDim;
    const some = Float32Array.from(rows.flatMap((row) => Array.from(q.subarray(row * width, (row + 1) * width))));
    const out = await kernels.maskedAttention(some, k, v, {
      heads,
      kvHeads,
      headDim,
      rowOffsets,
      queryOffsets: [0, 3, 5],
      queryPositions: [3, 20, 36, 0, 12],
      mask: 'causal',
    });
    rows.forEach((row, i) =>
      expect(out.slice(i * width, (i + 1) * width)).toEqual(all.slice(row * width, (row + 1) * width)),
    );
  });

  test('shapes that do not fit', async () => {
    await expect(kernels.maskedAttention(q, k, v.slice(1), { heads, kvHeads, headDim })).rejects.toThrow(
      /v: expected 1600 elements, got 1599/,
    );
    await expect(kernels.maskedAttention(q, k, v, { heads, kvHeads: 3, headDim })).rejects.toThrow(/multiple/);
    await expect(
      kernels.maskedAttention(q, k, v, { heads, kvHeads, headDim, rowOffsets: [0, 60, 50] }),
    ).rejects.toThrow(/ascending offsets/);
    await expect(kernels.maskedAttention([1] as never, k, v, { headDim })).rejects.toThrow(
      /q: expected a Float32Array/,
    );
  });
});

describe('sample', () => {
  const [rows, vocabSize] = [5, 1003];
  const logits = numbers(rows * vocabSize, 4, 6);

  test('argmax, probability, entropy against doubles', async () => {
    const out = await kernels.sample(logits, { vocabSize });
    for (let r = 0; r < rows; r++) {
      const row = Array.from(logits.subarray(r * vocabSize, (r + 1) * vocabSize));
      const max = Math.max(...row);
      const log = Math.log(row.reduce((sum, x) => sum + Math.exp(x - max), 0)) + max;
      const entropy = -row.reduce((sum, x) => sum + Math.exp(x - log) * (x - log), 0);
      expect(out.tokens[r]).toBe(row.indexOf(max));
      expect(out.logProbs[r]).toBeCloseTo(max - log, 5);
      expect(out.confidences[r]).toBeCloseTo(Math.exp(max - log), 6);
      expect(out.entropies[r]).toBeCloseTo(entropy, 4);
    }
  });

  test('draws follow the softmax', async () => {
    const probabilities = [0.5, 0.3, 0.15, 0.05];
    const draws = 20_000;
    const row = probabilities.map((p) => Math.log(p));
    const many = Float32Array.from({ length: draws * 4 }, (_, i) => row[i % 4]);
    const { tokens } = await kernels.sample(many, { vocabSize: 4, temperature: 1, seed: 5 });
    // Pearson's chi-square with 3 degrees of freedom: 16.3 is the 0.1 % point.
    const chi = probabilities.reduce(
      (sum, p, token) => sum + (tokens.filter((t) => t === token).length - draws * p) ** 2 / (draws * p),
      0,
    );
    expect(chi).toBeLessThan(16.3);
  });

  test('an excluded token never comes, and does not count', async () => {
    const first = await kernels.sample(logits, { vocabSize });
    const out = await kernels.sample(logits, { vocabSize, excludedToken: first.tokens[0] });
    expect(out.tokens[0]).not.toBe(first.tokens[0]);
    expect(out.maxProbs[0]).toBe(out.confidences[0]);
  });

  test('NaN is an error that names the row', async () => {
    const broken = logits.slice();
    broken[2 * vocabSize + 7] = Number.NaN;
    await expect(kernels.sample(broken, { vocabSize })).rejects.toMatchObject({
      code: 'NON_FINITE',
      message: expect.stringMatching(/row 2/),
    });
    await expect(kernels.sample(logits, { vocabSize: 1000 })).rejects.toThrow(/multiple of vocabSize/);
  });
});

test('plannerScore is the AdaLN and linear of its definition', async () => {
  const [m, c, groups] = [7, 24, 2];
  const hidden = numbers(m * c, 5, 3);
  const scale = numbers(groups * c, 6);
  const shift = numbers(groups * c, 7);
  const weight = numbers(c, 8);
  const condition = [0, 1, 1, 0, 1, 0, 0];
  const out = await kernels.plannerScore(hidden, { scale, shift, condition, weight, bias: 0.25 });
  for (let i = 0; i < m; i++) {
    const row = Array.from(hidden.subarray(i * c, (i + 1) * c));
    const mean = row.reduce((a, b) => a + b) / c;
    const variance = row.reduce((a, b) => a + (b - mean) ** 2, 0) / c;
    const g = condition[i] * c;
    const score = row.reduce(
      (sum, x, j) => sum + (((x - mean) / Math.sqrt(variance + 1e-4)) * (1 + scale[g + j]) + shift[g + j]) * weight[j],
      0.25,
    );
    expect(out[i]).toBeCloseTo(score, 4);
  }
  await expect(kernels.plannerScore(hidden, { scale, shift, condition: [0, 2], weight })).rejects.toThrow(
    /hidden: expected 48 elements/,
  );
});

describe('unmask', () => {
  test('planner topk: the ⌊Σ p⌋ most probable', async () => {
    const plannerLogits = Float32Array.of(2, -1, 0.5, 3, -4);
    const p = Array.from(plannerLogits, (z) => 1 / (1 + Math.exp(-z)));
    const { selected, probabilities, forced } = await kernels.unmask({ rule: 'plannerTopK', plannerLogits });
    expect(Math.floor(p.reduce((a, b) => a + b))).toBe(2);
    expect(Array.from(selected)).toEqual([1, 0, 0, 1, 0]);
    expect(Array.from(forced)).toEqual([0]);
    p.forEach((value, i) => expect(probabilities[i]).toBeCloseTo(value, 6));
  });

  test('planner round and threshold', async () => {
    const plannerLogits = Float32Array.of(2, -1, 0.5, 3, -4);
    const p = Array.from(plannerLogits, (z) => 1 / (1 + Math.exp(-z)));
    expect(p.reduce((a, b) => a + b)).toBeGreaterThan(2.5);
    const select = async (options: Parameters<typeof kernels.unmask>[0]) =>
      Array.from((await kernels.unmask({ ...options, plannerLogits })).selected);
    expect(await select({ rule: 'plannerRound' })).toEqual([1, 0, 1, 1, 0]);
    expect(await select({ rule: 'plannerThreshold', threshold: 0.6 })).toEqual([1, 0, 1, 1, 0]);
    expect(await select({ rule: 'plannerThreshold', threshold: 0.25 })).toEqual([1, 1, 1, 1, 0]);
    expect(await select({ rule: 'plannerThreshold', threshold: 1 })).toEqual([0, 0, 0, 1, 0]);
  });

  test('Bernoulli frequencies follow p, and the log-likelihood is that of what happened', async () => {
    const rows = 4000;
    const z = [0.5, -1, 2];
    const plannerLogits = Float32Array.from({ length: rows * 3 }, (_, i) => z[i % 3]);
    const rowOffsets = Int32Array.from({ length: rows + 1 }, (_, i) => i * 3);
    const { selected, logLikelihoods, forced } = await kernels.unmask({
      rule: 'plannerBernoulli',
      plannerLogits,
      rowOffsets,
      seed: 9,
    });
    const p = z.map((x) => 1 / (1 + Math.exp(-x)));
    const none = (1 - p[0]) * (1 - p[1]) * (1 - p[2]);
    for (let j = 0; j < 3; j++) {
      const share = selected.filter((s, i) => i % 3 === j && s).length / rows;
      // The most probable one is also taken when none is.
      const expected = p[j] + (j === 2 ? none : 0);
      expect(Math.abs(share - expected)).toBeLessThan(4 * Math.sqrt((expected * (1 - expected)) / rows));
    }
    for (let row = 0; row < 50; row++) {
      const taken = selected.slice(row * 3, row * 3 + 3);
      // The most probable one alone is what comes out whether it was drawn or let through: its own p drops out.
      const topAlone = taken[2] === 1 && taken[0] + taken[1] === 0;
      if (forced[row]) expect(topAlone).toBe(true);
      let expected = 0;
      for (let j = 0; j < 3; j++)
        if (!(topAlone && j === 2)) expected += Math.log(selected[row * 3 + j] ? p[j] : 1 - p[j]);
      const sum = logLikelihoods.slice(row * 3, row * 3 + 3).reduce((a, b) => a + b, 0);
      expect(sum).toBeCloseTo(expected, 4);
    }
  });

  test("the rivals' rules", async () => {
    const confidences = Float32Array.of(0.55, 0.99, 0.7, 0.3);
    const select = async (options: Parameters<typeof kernels.unmask>[0]) =>
      Array.from((await kernels.unmask(options)).selected);
    expect(await select({ rule: 'threshold', confidences, threshold: 0.6 })).toEqual([0, 1, 1, 0]);
    expect(await select({ rule: 'threshold', confidences, threshold: 1 })).toEqual([0, 1, 0, 0]);
    // Sorted .99 .7 .55 .3: position 2 needs 1 - 1/3, position 3 needs 1 - 1/4.
    expect(await select({ rule: 'factor', confidences, factor: 1 })).toEqual([0, 1, 1, 0]);
    expect(await select({ rule: 'factor', confidences: Float32Array.of(0.9, 0.2), factor: 1 })).toEqual([1, 0]);
    expect(await select({ rule: 'factor', confidences: Float32Array.of(0.9, 0.2), factor: 1, lastPair: true })).toEqual(
      [1, 1],
    );
    expect(await select({ rule: 'entropy', entropies: Float32Array.of(2, 0.1, 0.4, 0.6), threshold: 0.5 })).toEqual([
      0, 1, 1, 0,
    ]);
    expect(await select({ rule: 'fixed', confidences, counts: [3] })).toEqual([1, 1, 1, 0]);
    expect(
      await select({ rule: 'entropySum', entropies: Float32Array.of(2, 0.125, 0.375, 0.6), threshold: 0.5 }),
    ).toEqual([0, 1, 1, 1]);
    expect(
      await select({ rule: 'entropySum', entropies: Float32Array.of(2, 0.125, 0.375, 0.6), threshold: 0.49 }),
    ).toEqual([0, 1, 1, 0]);
    expect(await select({ rule: 'leftToRight', confidences, counts: [3] })).toEqual([1, 1, 1, 0]);
    const random = await kernels.unmask({ rule: 'random', positions: [0, 1, 2, 3, 4, 5], counts: [4], seed: 1 });
    expect(random.selected.filter((s) => s)).toHaveLength(4);
  });

  test('missing inputs are named', async () => {
    await expect(kernels.unmask({ rule: 'plannerTopK', confidences: Float32Array.of(1) })).rejects.toThrow(
      /plannerLogits: expected 1 elements, got 0/,
    );
    await expect(kernels.unmask({ rule: 'best' as never })).rejects.toThrow(/rule: expected/);
  });
});
