// Perplexity of masked tokens: against a softmax in double precision, and what masks have to do with it.
import { loadModel, maskedPerplexity } from '../lib';
import { makeCheckpoint } from './checkpoints';

const examples = [3, 5, 11].map((length, r) => ({
  prompt: { promptIds: [1, 2 + r] },
  completion: { ids: Array.from({ length }, (_, i) => (7 * i + 13 * r) % 40) },
}));
const { folder } = makeCheckpoint({ config: { d_model: 32, n_heads: 4 } });

test('is exp of the mean surprise of what is masked', async () => {
  await using model = await loadModel(folder);
  const { maskTokenId, embeddingSize: size } = model.config;
  const [all] = await maskedPerplexity(model, examples, { ratios: [1] });
  let sum = 0;
  for (const { prompt, completion } of examples) {
    const { logits } = await model.forward({ ids: [...prompt.promptIds, ...completion.ids.map(() => maskTokenId)] });
    completion.ids.forEach((id, i) => {
      const row = Array.from(logits!.subarray((i + 2) * size, (i + 3) * size), Math.exp);
      sum -= Math.log(row[id] / row.reduce((a, b) => a + b, 0));
    });
  }
  expect(all.tokens).toBe(19);
  expect(all.perplexity).toBeCloseTo(Math.exp(sum / 19), 4);
  // The same masks in any batch, others with another seed.
  const some = await maskedPerplexity(model, examples, { ratios: [0.2, 0.5] });
  expect(some.map(({ tokens }) => tokens)).toEqual([4, 11]);
  expect(await maskedPerplexity(model, examples, { ratios: [0.2, 0.5], batchSize: 1 })).toEqual(some);
  expect(await maskedPerplexity(model, examples, { ratios: [0.2, 0.5], seed: 1 })).not.toEqual(some);
  // The end of sequence counts where completions are filled up with it.
  const [filled] = await maskedPerplexity(model, examples, { ratios: [1], fillTo: 8 });
  expect(filled.tokens).toBe(8 + 8 + 11);
});

test('options and examples are checked', async () => {
  await using model = await loadModel(folder);
  const [one] = examples;
  await expect(maskedPerplexity(model, [])).rejects.toThrow(/examples: expected at least one, got none/);
  await expect(maskedPerplexity(model, [one], { ratios: [0] })).rejects.toThrow(/ratios\[0\]/);
  await expect(maskedPerplexity(model, [one], { ratios: [] })).rejects.toThrow(/ratios: expected a list/);
  await expect(maskedPerplexity(model, [{ ...one, completion: 'a' }])).rejects.toMatchObject({ code: 'NO_TOKENIZER' });
  await expect(maskedPerplexity(model, [{ ...one, completion: { ids: [999] } }])).rejects.toThrow(
    /examples\[0\]\.completion\[0\]: expected 0 to/,
  );
  await expect(maskedPerplexity(model, [{ ...one, completion: { ids: [] } }])).rejects.toThrow(
    /examples\[0\]: expected a completion/,
  );
  const long = { ids: new Array<number>(model.config.maxSequenceLength).fill(3) };
  await expect(maskedPerplexity(model, [{ ...one, completion: long }])).rejects.toThrow(/at most \d+ tokens/);
});
