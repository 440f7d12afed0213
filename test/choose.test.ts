// Decisions between given answers.
import { copyFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel, type MaskedDiffusionModel } from '../lib';
import { modelFolder, variant, withTokenizer } from './helpers';
import { newModelFolder } from './trained-models';

const PROMPT = '1 a b c d e f g h';

let model: MaskedDiffusionModel;
beforeAll(async () => {
  model = await loadModel(await newModelFolder(), { threads: 1 });
});
afterAll(() => model.dispose());

/** log p of a token at a masked position, by a pass of its own. */
async function logProb(answer: (number | null)[], at: number, id: number): Promise<number> {
  const { maskTokenId, eosTokenId, embeddingSize } = model.config;
  const prompt = [...model.encodePrompt(PROMPT)];
  const ids = [...prompt, ...answer.map((token) => token ?? maskTokenId), eosTokenId!];
  const { logits } = await model.forward({ ids });
  const row = [...logits!.subarray((prompt.length + at) * embeddingSize, (prompt.length + at + 1) * embeddingSize)];
  const sum = row.reduce((total, logit, token) => total + (token === maskTokenId ? 0 : Math.exp(logit)), 0);
  return row[id] - Math.log(sum);
}
const ids = (text: string) => model.tokenizer!.encode(text, { addSpecialTokens: false });

test('single tokens: the softmax over them at one masked position', async () => {
  const options = ['a', 'b', 'H', '*'];
  const { probabilities, logProbs, option, index } = await model.choose(PROMPT, options);
  const expected = await Promise.all(options.map((text) => logProb([null], 0, ids(text)[0])));
  logProbs.forEach((value, i) => expect(value).toBeCloseTo(expected[i], 5));
  const total = expected.reduce((sum, value) => sum + Math.exp(value), 0);
  probabilities.forEach((value, i) => expect(value).toBeCloseTo(Math.exp(expected[i]) / total, 6));
  expect(probabilities.reduce((sum, value) => sum + value)).toBeCloseTo(1, 12);
  expect(option).toBe(options[index]);
  expect(probabilities[index]).toBe(Math.max(...probabilities));
});

test('several tokens: from left to right, what follows masked', async () => {
  const { logProbs, probabilities } = await model.choose(PROMPT, ['a b', 'a c', 'd']);
  const [a, b, c, d] = ids('a b c d');
  expect(logProbs[0]).toBeCloseTo((await logProb([null, null], 0, a)) + (await logProb([a, null], 1, b)), 5);
  expect(logProbs[1]).toBeCloseTo((await logProb([null, null], 0, a)) + (await logProb([a, null], 1, c)), 5);
  expect(logProbs[2]).toBeCloseTo(await logProb([null], 0, d), 5);
  expect(probabilities.reduce((sum, value) => sum + value)).toBeCloseTo(1, 12);
});

test('many rows, in several batches, give what each gives alone', async () => {
  const words = ['a b c d e f g h', 'h g f e d c b a', 'b c d e f g h a', 'c a b d e f g h'];
  const options = words.flatMap((text) => ['', ' a', ' b', ' c', ' d'].map((end) => text + end));
  const all = await model.choose(PROMPT, options);
  for (const i of [0, 7, 19]) {
    const { logProbs } = await model.choose(PROMPT, [options[i], 'a']);
    expect(logProbs[0]).toBeCloseTo(all.logProbs[i], 9);
  }
});

test('a decision needs options that differ, and a tokenizer', async () => {
  const refused = (options: unknown, message: RegExp) =>
    expect(model.choose(PROMPT, options as string[])).rejects.toThrow(message);
  await refused(['a'], /options: expected at least two/);
  await refused('ab', /options/);
  await refused(['a', 3], /options\[1\]: expected a string, got 3/);
  await refused(['a', ''], /options\[1\].*at least one token/);
  await refused(['a', 'b', 'a'], /options\[2\].*"a" again/);
  await refused(['a', '<mask>'], /options\[1\].*no mask token/);
  await refused(['a', 'b '.repeat(40)], /more than the model's maximum of 32/);
  await expect(model.choose({ template: 'a' } as never, ['a', 'b'])).rejects.toThrow(/prompt/);
  const plain = await loadModel(modelFolder('base'), { threads: 1 });
  await expect(plain.choose({ promptIds: [1] }, ['a', 'b'])).rejects.toMatchObject({ code: 'NO_TOKENIZER' });
  plain.dispose();
});

test('a model that predicts a token at the position before it', async () => {
  const folder = variant('dream_gqa', {});
  copyFileSync(path.join(withTokenizer(), 'tokenizer.json'), path.join(folder, 'tokenizer.json'));
  await using dream = await loadModel(folder, { threads: 1 });
  const { logProbs } = await dream.choose('ab', ['c', 'd']);
  const { eosTokenId, maskTokenId, embeddingSize } = dream.config;
  const end = eosTokenId === null ? [] : [eosTokenId];
  const { logits } = await dream.forward({ ids: [...dream.encodePrompt('ab'), maskTokenId, ...end] });
  const row = [...logits!.subarray(embeddingSize, 2 * embeddingSize)];
  const sum = row.reduce((total, logit, token) => total + (token === maskTokenId ? 0 : Math.exp(logit)), 0);
  const letters = ['c', 'd'].map((letter) => dream.tokenizer!.encode(letter, { addSpecialTokens: false })[0]);
  logProbs.forEach((value, i) => expect(value).toBeCloseTo(row[letters[i]] - Math.log(sum), 4));
});
