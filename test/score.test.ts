// Log-probabilities of generated tokens, and scores of given answers, against direct computations.
import path from 'node:path';
import { type GenerateOptions, loadCausalModel, loadModel, type MaskedDiffusionModel } from '../lib';
import { modelFolder, withTokenizer } from './helpers';

const MASK = 96; // of the golden model "base"
const prompt = { promptIds: [5, 17, 3] };
let model: MaskedDiffusionModel;

beforeAll(async () => {
  model = await loadModel(modelFolder('base'), { threads: 1 });
});
afterAll(() => model.dispose());

/** log p of every token at every position of a row, the mask token left out, from a forward pass. */
async function logSoftmax(from: MaskedDiffusionModel, ids: readonly number[]): Promise<number[][]> {
  const { logits } = await from.forward({ ids });
  const size = from.config.embeddingSize;
  return ids.map((_, p) => {
    // Models like Dream's score a position from the one before.
    const at = p - (from.config.shiftLogits ? 1 : 0);
    const row = Array.from(logits!.subarray(at * size, (at + 1) * size));
    const sum = row.reduce((total, x, id) => total + (id === from.config.maskTokenId ? 0 : Math.exp(x)), 0);
    return row.map((x) => x - Math.log(sum));
  });
}

/** Ways to choose k of n. */
const binomial = (n: number, k: number): number => (k === 0 ? 1 : (binomial(n - 1, k - 1) * n) / k);

describe('logprobs of generated tokens', () => {
  const options = { maxTokens: 16, blockLength: 8, temperature: 0.7, seed: 4, sampler: 'planner:bernoulli' };

  test('are those of the pass that decided each, at temperature 1', async () => {
    const result = await model.generate(prompt, { ...options, logprobs: true });
    expect(result.logprobs).toHaveLength(16);
    const ids = [...prompt.promptIds, ...new Array<number>(16).fill(MASK)];
    let compared = 0;
    for (let step = 1; step <= Math.max(...result.unmaskedAt); step++) {
      const logProbs = await logSoftmax(model, ids);
      result.unmaskedAt.forEach((at, i) => {
        if (at !== step) return;
        expect(result.logprobs![i]).toBeCloseTo(logProbs[3 + i][result.ids[i]], 4);
        compared++;
        ids[3 + i] = result.ids[i];
      });
    }
    expect(compared).toBeGreaterThan(8);
    for (const [i, at] of result.unmaskedAt.entries()) expect(Number.isNaN(result.logprobs![i])).toBe(at === 0);
    const { logprobs, ...rest } = { ...result };
    expect(rest).toEqual({ ...(await model.generate(prompt, options)) });
    const json = JSON.parse(JSON.stringify(result)).logprobs;
    expect(json).toEqual(Array.from(logprobs!, (value) => (Number.isNaN(value) ? null : value)));
  });

  test('in batches and streams as alone; NaN for what is given', async () => {
    const asked = { ...options, logprobs: true };
    const prompts = [prompt, { promptIds: [9, 9] }];
    const batch = await model.generateBatch(prompts, asked);
    for (const [i, one] of prompts.entries())
      expect(await model.generate(one, { ...asked, research: { firstRow: i } })).toEqual(batch[i]);
    for await (const { result } of model.generateStream(prompt, asked)) if (result) expect(result).toEqual(batch[0]);
    const { logprobs } = await model.generate({ template: [5, MASK, 7] }, { logprobs: true });
    expect(Array.from(logprobs!, Number.isNaN)).toEqual([true, false, true]);
  });

  test('an end of sequence that d3llm writes behind another was drawn by no pass', async () => {
    let filled = 0;
    for (let seed = 0; seed < 40; seed++) {
      const d3llm: GenerateOptions = { sampler: 'd3llm:3:blockAddThreshold=0.1', temperature: 2, seed, logprobs: true };
      const { ids, tokens, logprobs } = await model.generate(prompt, { ...d3llm, maxTokens: 32, blockLength: 8 });
      ids.forEach((id, i) => {
        if (i >= tokens && id !== MASK && Number.isNaN(logprobs![i])) filled++;
      });
      expect(logprobs!.slice(0, tokens).some(Number.isNaN)).toBe(false);
    }
    expect(filled).toBeGreaterThan(0);
  });
});

describe('score', () => {
  const ids = [40, 7, 40, 22];

  /** The mean over numbers of masks and their places of L/l · Σ log p, by enumeration. */
  async function bound(): Promise<number> {
    let total = 0;
    for (let masks = 1; masks <= ids.length; masks++) {
      const terms: number[] = [];
      for (let set = 1; set < 1 << ids.length; set++) {
        const chosen = ids.map((_, i) => i).filter((i) => set & (1 << i));
        if (chosen.length !== masks) continue;
        const row = [...prompt.promptIds, ...ids.map((id, i) => (chosen.includes(i) ? MASK : id))];
        const logProbs = await logSoftmax(model, row);
        terms.push((ids.length / masks) * chosen.reduce((sum, i) => sum + logProbs[3 + i][ids[i]], 0));
      }
      total += terms.reduce((sum, term) => sum + term, 0) / terms.length;
    }
    return total / ids.length;
  }

  test('Monte Carlo: its mean is the bound, and its standard error is of the right size', async () => {
    const exact = await bound();
    const many = await model.score(prompt, { ids }, { samples: 2000 });
    expect(many).toMatchObject({ method: 'monte-carlo', tokens: 4, logProbs: null });
    expect(many.standardError).toBeGreaterThan(0);
    expect(Math.abs(many.logLikelihood - exact)).toBeLessThan(4 * many.standardError);
    // Single draws spread around it.
    let sum = 0;
    for (let seed = 0; seed < 400; seed++)
      sum += (await model.score(prompt, { ids }, { samples: 1, seed })).logLikelihood;
    expect(Math.abs(sum / 400 - exact)).toBeLessThan(4 * many.standardError * Math.sqrt(2000 / 400));
  });

  test('equal seeds give equal bits, others do not; one token has one value', async () => {
    const once = await model.score(prompt, { ids }, { seed: 7, samples: 5 });
    expect(await model.score(prompt, { ids }, { seed: 7n, samples: 5 })).toEqual(once);
    expect((await model.score(prompt, { ids }, { seed: 8, samples: 5 })).logLikelihood).not.toBe(once.logLikelihood);
    const one = await model.score(prompt, { ids: [40] });
    expect(one).toMatchObject({ standardError: 0, tokens: 1 });
    const logProbs = await logSoftmax(model, [...prompt.promptIds, MASK]);
    expect(one.logLikelihood).toBeCloseTo(logProbs[3][40], 4);
  });

  test.each(['base', 'dream_gqa'])('pseudo-likelihood of %s: one token masked at a time', async (name) => {
    await using other = await loadModel(modelFolder(name), { threads: 1 });
    const mask = other.config.maskTokenId;
    const { method, logLikelihood, logProbs } = await other.score(prompt, { ids }, { method: 'pseudo-likelihood' });
    expect(method).toBe('pseudo-likelihood');
    for (const [i, id] of ids.entries()) {
      const row = [...prompt.promptIds, ...ids];
      row[3 + i] = mask;
      expect(logProbs![i]).toBeCloseTo((await logSoftmax(other, row))[3 + i][id], 4);
    }
    expect(logLikelihood).toBeCloseTo(
      logProbs!.reduce((sum, value) => sum + value, 0),
      4,
    );
  });

  // Blocks of 4 from the row's start, of 4 a position ahead, and of 3 from the completion's start.
  test.each([
    ['sdar', {}, [3, 4, 8]],
    ['fastdllm2', { maskTokenId: 94, blockLength: 4 }, [3, 4, 8]],
    ['a2d_qwen3', { maskTokenId: 93, blockLength: 3 }, [3, 6, 9]],
  ] as const)('a model that attends by blocks, %s: each behind the finished ones', async (name, options, starts) => {
    await using other = await loadModel(modelFolder(name), { threads: 1, ...options });
    const { maskTokenId: mask, blocksFrom } = other.config;
    const answer = [40, 12, 71, 8, 33, 5];
    const firstBlocks = blocksFrom === 'completion' ? [3] : undefined;
    /** log p of the answer's tokens at `chosen`, all of one block, behind what is before it. */
    const logProbsOf = async (chosen: number[]) => {
      const block = starts.findLast((start) => start <= 3 + chosen[0])!;
      const rowEnd = block === 3 && name !== 'a2d_qwen3' ? 4 : block + other.config.blockLength!;
      const row = [...prompt.promptIds, ...answer, ...new Array<number>(9).fill(mask)].slice(0, rowEnd);
      for (const i of chosen) row[3 + i] = mask;
      const { logits } = await other.forward({ ids: row, firstBlocks });
      const size = other.config.embeddingSize;
      return chosen.map((i) => {
        const at = 3 + i - (other.config.shiftLogits ? 1 : 0);
        const scores = Array.from(logits!.subarray(at * size, (at + 1) * size));
        const total = scores.reduce((sum, x, id) => sum + (id === mask ? 0 : Math.exp(x)), 0);
        return scores[answer[i]] - Math.log(total);
      });
    };
    const pseudo = await other.score(prompt, { ids: answer }, { method: 'pseudo-likelihood' });
    for (const i of answer.keys()) expect(pseudo.logProbs![i]).toBeCloseTo((await logProbsOf([i]))[0], 4);
    // The bound of every block, over all of its subsets.
    let exact = 0;
    for (const [b, start] of starts.entries()) {
      const own = [...answer.keys()].filter(
        (i) => 3 + i >= start && 3 + i < (starts[b + 1] ?? Number.POSITIVE_INFINITY),
      );
      const n = own.length;
      for (let set = 1; n > 0 && set < 2 ** n; set++) {
        const chosen = own.filter((_, i) => (set >> i) & 1);
        const sum = (await logProbsOf(chosen)).reduce((total, x) => total + x, 0);
        exact += ((n / chosen.length) * sum) / (n * binomial(n, chosen.length));
      }
    }
    const estimate = await other.score(prompt, { ids: answer }, { samples: 3000 });
    expect(estimate).toMatchObject({ method: 'monte-carlo', tokens: 6, logProbs: null });
    expect(Math.abs(estimate.logLikelihood - exact)).toBeLessThan(4 * estimate.standardError);
    // One token of each block has one value.
    const few = await other.score(prompt, { ids: answer.slice(0, 1) });
    expect(few.standardError).toBe(0);
    expect(few.logLikelihood).toBeLessThan(0);
  });

  test('an autoregressive model: exact', async () => {
    await using causal = await loadCausalModel(path.join(__dirname, 'fixtures', 'causal', 'qwen2'));
    const score = await causal.score(prompt, { ids });
    const [logProbs] = await causal.logProbs([{ promptIds: [5, 17, 3], ids }]);
    expect(score).toMatchObject({ method: 'exact', standardError: 0, tokens: 4, logProbs: Array.from(logProbs) });
    expect(score.logLikelihood).toBeCloseTo(
      logProbs.reduce((sum, value) => sum + value, 0),
      4,
    );
    await expect(causal.score(prompt, { ids: [] })).rejects.toThrow('answer: expected at least one token, got none');
  });

  test('text is tokens without special ones', async () => {
    await using words = await loadModel(withTokenizer(), { threads: 1 });
    const text = words.decode([40, 41]);
    const asText = await words.score('x', text, { samples: 3 });
    expect(
      await words.score('x', { ids: words.tokenizer!.encode(text, { addSpecialTokens: false }) }, { samples: 3 }),
    ).toEqual(asText);
  });

  test('refuses what it cannot score', async () => {
    const refused = (answer: unknown, options: object = {}) =>
      expect(model.score(prompt, answer as never, options as never)).rejects;
    await refused({ ids: [] }).toThrow('answer: expected at least one token, got none');
    await refused({ ids: [1, MASK] }).toThrow('answer: expected no mask token');
    await refused({ ids: [1, 4000] }).toThrow(/answer\.ids\[1\]: expected 0 to/);
    await refused(5).toThrow('answer: expected a string or { ids }, got 5');
    await refused('text').toMatchObject({ code: 'NO_TOKENIZER' });
    await refused({ ids: new Array(500).fill(1) }).toThrow(/answer: prompt and answer make 503 tokens/);
    await refused({ ids }, { samples: 0 }).toThrow('samples: expected an integer at least 1');
    await refused({ ids }, { method: 'exact' }).toThrow('method: expected "monte-carlo" or "pseudo-likelihood"');
    await refused({ ids }, { method: 'pseudo-likelihood', samples: 4 }).toThrow(
      'samples: only with method "monte-carlo"',
    );
    await refused({ ids }, { n: 3 }).toThrow('unknown key "n"');
    await refused({ ids }, { signal: AbortSignal.abort(new Error('enough')) }).toThrow('enough');
  });
});
