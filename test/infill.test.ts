// Infilling: an answer between a prompt and what follows it.
import { type GenerateOptions, loadModel, type MaskedDiffusionModel } from '../lib';
import { modelFolder, withTokenizer } from './helpers';

let model: MaskedDiffusionModel;
beforeAll(async () => {
  model = await loadModel(withTokenizer(), { threads: 1 });
});
afterAll(() => model.dispose());

const EOS = 95;
const MASK = 96;
const prompt = { promptIds: [10, 11, 12] };
const suffix = { suffixIds: [20, 21] };

test.each(['confidence:0.2', 'planner', 'fixed', 'd3llm:0.6', 'entropy', 'factor'])(
  '%s: the answer alone is the result, and every cache ends',
  async (sampler) => {
    for (const cache of ['none', 'dual', 'prefix', 'refresh'])
      for (const maxTokens of [7, 16]) {
        const options: GenerateOptions = { sampler, cache, maxTokens, seed: 3, logprobs: true, stopAtEos: false };
        const result = await model.generate({ prompt, suffix }, options);
        expect([result.ids.length, result.logprobs!.length, result.unmaskedAt.length]).toEqual(
          new Array(3).fill(maxTokens),
        );
        expect(result.ids.includes(MASK)).toBe(false);
        expect(result.usage).toEqual({
          promptTokens: 6,
          completionTokens: result.tokens,
          totalTokens: 6 + result.tokens,
        });
        expect(result.text).toBe(model.decode(result.ids.subarray(0, [...result.ids, EOS].indexOf(EOS))));
      }
  },
);

test('the row is what a template of prompt, masks, suffix and end would be', async () => {
  const maxTokens = 8;
  const options: GenerateOptions = { sampler: 'confidence:0.3', seed: 1, stopAtEos: false };
  const template = [10, 11, 12, ...new Array(maxTokens).fill(MASK), 20, 21, EOS];
  const whole = await model.generate({ template }, options);
  const infilled = await model.generate({ prompt, suffix }, { ...options, maxTokens, blockLength: maxTokens });
  expect([...infilled.ids]).toEqual([...whole.ids.subarray(3, 3 + maxTokens)]);
  expect(infilled.nfe).toBe(whole.nfe);
  // The end of sequence behind the suffix ends nothing.
  const without = await model.generate(
    { prompt, suffix },
    { ...options, maxTokens, stopAtEos: true, sampler: 'fixed' },
  );
  expect(without.finishReason).toBe([...without.ids].includes(EOS) ? 'stop' : 'length');
  const other = await model.generate({ prompt, suffix: { suffixIds: [50, 51] } }, { ...options, maxTokens });
  expect([...other.ids]).not.toEqual([...infilled.ids]);
});

test('text and ids of a suffix are the same, and so is a stream of it', async () => {
  const options: GenerateOptions = { sampler: 'fixed', maxTokens: 12, seed: 2 };
  const text = await model.generate({ prompt: 'ab', suffix: 'xy' }, options);
  const ids = [...'xy'].map((letter) => letter.charCodeAt(0) - 32);
  expect(await model.generate({ prompt: 'ab', suffix: { suffixIds: ids } }, options)).toEqual(text);
  let streamed = '';
  for await (const { delta, ids: now, result } of model.generateStream({ prompt: 'ab', suffix: 'xy' }, options)) {
    streamed += delta;
    expect(now.length).toBe(12);
    if (result) expect(result).toEqual(text);
  }
  expect(streamed).toBe(text.text);
  const stop = text.text.slice(2, 4);
  const cut = await model.generate({ prompt: 'ab', suffix: 'xy' }, { ...options, stop });
  expect([cut.text, cut.finishReason]).toEqual([text.text.slice(0, text.text.indexOf(stop)), 'stop']);
});

test('what is no suffix is refused by name', async () => {
  const ask = (given: unknown, options: GenerateOptions = {}) =>
    model.generate({ prompt, suffix: given } as never, { maxTokens: 8, ...options });
  await expect(ask(5)).rejects.toThrow('suffix: expected a string or { suffixIds }, got 5');
  await expect(ask({ suffixIds: [5000] })).rejects.toThrow(/^suffixIds\[0\]: expected 0 to \d+, got 5000$/);
  await expect(ask({ suffixIds: [MASK] })).rejects.toThrow('suffix: expected no mask token');
  await expect(ask({ suffixIds: new Array(100).fill(5) })).rejects.toThrow(/^prompt: \d+ tokens and maxTokens 8 make/);
  await expect(model.generate({ prompt, suffix: 'x', more: 1 } as never)).rejects.toThrow('unknown key "more"');
  const untold = await loadModel(modelFolder('base'), { threads: 1 });
  await expect(untold.generate({ prompt, suffix: 'x' }, { maxTokens: 8 })).rejects.toMatchObject({
    code: 'NO_TOKENIZER',
  });
  untold.dispose();
});
