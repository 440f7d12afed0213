// What an autoregressive model takes of generate's options: where texts end, among what tokens are drawn, and a typed
// error for each of the others.
import { cpSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { type CausalGenerateOptions, type CausalModel, type CausalPrompt, loadCausalModel } from '../lib';
import { temporaryFolder } from './helpers';
import { characterTokenizer } from './tokenizers';

const QWEN2 = path.join(__dirname, 'fixtures', 'causal', 'qwen2');
const EOS = 3;

/** A letter for each id of the fixture's tables, and an end of sequence. */
const letter = (id: number): string => (id === EOS ? '<eos>' : String.fromCharCode(0x4e00 + id));

function checkpoint(generation?: object): string {
  const folder = temporaryFolder();
  for (const file of ['config.json', 'model.safetensors']) cpSync(path.join(QWEN2, file), path.join(folder, file));
  const vocab = Object.fromEntries(Array.from({ length: 71 }, (_, id) => [letter(id), id]));
  const tokenizer = characterTokenizer(vocab, ['<eos>']);
  writeFileSync(path.join(folder, 'tokenizer.json'), JSON.stringify(tokenizer));
  if (generation) writeFileSync(path.join(folder, 'generation_config.json'), JSON.stringify(generation));
  return folder;
}

let model: CausalModel;
beforeAll(async () => {
  model = await loadCausalModel(checkpoint(), { threads: 1 });
});
afterAll(() => model.dispose());

const prompt: CausalPrompt = { promptIds: [5, 7, 9] };
const one = async (options: CausalGenerateOptions, of = model) =>
  (await of.generateBatch([prompt], { maxTokens: 16, ...options }))[0];

/** A completion of 16 tokens, and two letters of it that begin nowhere before. */
async function drawn(seed: number) {
  const options = { temperature: 1.5, seed, stopAtEos: false, topK: 40 };
  const full = await one(options);
  return { options, full, text: Array.from(full.ids, letter).join('') };
}

test('a text ends before the first stop string, wherever it stands', async () => {
  let found = 0;
  for (let seed = 0; seed < 12; seed++) {
    const { options, full } = await drawn(seed);
    const ids = Array.from(full.ids);
    if (ids.includes(EOS)) continue;
    for (const [at, length] of [
      [0, 1],
      [4, 2],
      [14, 2],
    ]) {
      const stop = ids
        .slice(at, at + length)
        .map(letter)
        .join('');
      const begin = full.text.indexOf(stop);
      const result = await one({ ...options, stop: ['nowhere', stop] });
      expect(result).toMatchObject({ text: full.text.slice(0, begin), finishReason: 'stop', nfe: begin + length });
      expect(Array.from(result.ids)).toEqual(ids.slice(0, begin + length));
      expect(result.logProbs).toEqual(full.logProbs.slice(0, begin + length));
      found++;
    }
    expect(await one({ ...options, stop: 'nowhere' })).toEqual(full);
  }
  expect(found).toBeGreaterThan(9);
});

test('rows of a batch end by themselves', async () => {
  const { options, full } = await drawn(2);
  const stop = full.text.slice(3, 4);
  const [first, second] = await model.generateBatch([prompt, { promptIds: [8] }], { maxTokens: 16, ...options, stop });
  expect(first).toMatchObject({ finishReason: 'stop', nfe: full.text.indexOf(stop) + 1 });
  const [alone] = await model.generateBatch([{ promptIds: [8] }], { maxTokens: 16, ...options, firstRow: 1, stop });
  expect(second).toEqual(alone);
});

test('stop_strings of generation_config.json are the default, which a caller can take back', async () => {
  const { options, full } = await drawn(2);
  const stop = full.text.slice(3, 4);
  await using stopping = await loadCausalModel(checkpoint({ stop_strings: [stop] }), { threads: 1 });
  expect(stopping.generationDefaults).toEqual({ stop: [stop] });
  expect(await one(options, stopping)).toEqual(await one({ ...options, stop }));
  expect(await one({ ...options, stop: [] }, stopping)).toEqual(full);
});

test('an end of sequence ends a row, unless it must not', async () => {
  // With one token to draw from at each step, of 60 seeds some draw the end.
  for (let seed = 0; seed < 60; seed++) {
    const options = { temperature: 50, seed };
    const whole = await one({ ...options, stopAtEos: false });
    const at = whole.ids.indexOf(EOS);
    if (at < 0 || at > 12) continue;
    expect(whole).toMatchObject({ finishReason: 'length', nfe: 16 });
    expect(whole.text).toBe(Array.from(whole.ids.subarray(0, at), letter).join(''));
    const ended = await one(options);
    expect(ended).toMatchObject({ finishReason: 'stop', nfe: at + 1, text: whole.text });
    return;
  }
  throw new Error('no seed drew an end of sequence');
});

test('topK and topP leave the most probable tokens', async () => {
  const greedy = await one({});
  for (const filter of [{ topK: 1 }, { topP: 1e-6 }])
    expect((await one({ ...filter, temperature: 3, seed: 7 })).ids).toEqual(greedy.ids);
  expect((await one({ temperature: 3, seed: 7 })).ids).not.toEqual(greedy.ids);
});

test('without a seed, every call with a temperature draws another, which the result names', async () => {
  const results = await Promise.all([1, 2, 3].map(() => one({ temperature: 3 })));
  expect(new Set(results.map(({ seed }) => seed)).size).toBe(3);
  expect(await one({ temperature: 3, seed: results[1].seed })).toEqual(results[1]);
  expect((await one({})).seed).toBe(0);
  const big = await one({ temperature: 3, seed: 2n ** 63n + 1n });
  expect(big.seed).toBe(2n ** 63n + 1n);
});

test('special tokens in a prompt can be text', async () => {
  const [special] = await model.generateBatch([`${letter(5)}<eos>`], { maxTokens: 1 });
  expect(Array.from(special.promptIds)).toEqual([5, EOS]);
  // The fixture has no letters for "<eos>" as text.
  const split = model.encodePrompt(`${letter(5)}<eos>`, { splitSpecialTokens: true });
  expect(Array.from(split)).toEqual([5]);
});

test.each<[object, RegExp]>([
  [{ sampler: 'confidence:0.9' }, /^sampler: not for an autoregressive model: it decides one position per pass/],
  [{ cache: 'dual' }, /^cache: not for an autoregressive model: it always caches/],
  [{ blockLength: 8 }, /^blockLength: not for an autoregressive model/],
  [{ confidence: 'tempered' }, /^confidence: not for an autoregressive model/],
  [{ logprobs: true }, /^logprobs: not for an autoregressive model: its results always have logProbs/],
  [{ research: { firstRow: 1 } }, /^research: not for an autoregressive model: .*firstRow is an option/],
  [{ maxTokns: 3 }, /^options: unknown key "maxTokns"; did you mean "maxTokens"\?/],
  [{ stop: '' }, /^stop: expected a text of at least one character, got ""/],
  [{ stop: [3] }, /^stop\[0\]: expected a string, got 3/],
  [{ stop: 3 }, /^stop: expected a string or an array of strings, got 3/],
  [{ topK: 0 }, /^topK: expected an integer at least 1/],
  [{ topP: 0 }, /^topP: expected a finite number greater than 0/],
  [{ seed: -1 }, /^seed: expected 0 to 2\^64 - 1, got -1/],
  [{ stopAtEos: 'yes' }, /^stopAtEos: expected true or false, got "yes"/],
  [{ splitSpecialTokens: 1 }, /^splitSpecialTokens: expected true or false, got 1/],
  [{ maxTokens: 0 }, /^maxTokens: expected an integer at least 1/],
])('%j is refused', async (options, message) => {
  await expect(model.generateBatch([prompt], options as CausalGenerateOptions)).rejects.toMatchObject({
    name: expect.stringMatching(/^(Type|Range)Error$/),
    message: expect.stringMatching(message),
  });
});

test('options that say nothing are taken as such', async () => {
  const silent = { sampler: undefined, cache: undefined, stop: undefined, topK: undefined } as object;
  expect(await one(silent)).toEqual(await one({}));
});

test('templates, forms and what is no list are refused, and stop strings without a tokenizer', async () => {
  for (const wrong of [{ template: [5, 6] }, { prompt: 'a', form: [3] }])
    await expect(model.generateBatch([wrong as unknown as CausalPrompt])).rejects.toThrow(
      /^prompt: expected a string, an array of messages or \{ promptIds \}: .*no masks to fill/,
    );
  await expect(model.generateBatch('abc' as never)).rejects.toThrow(/^prompts: expected an array, got "abc"/);
  await using plain = await loadCausalModel(QWEN2, { threads: 1 });
  await expect(plain.generateBatch([prompt], { stop: 'x' })).rejects.toMatchObject({ code: 'NO_TOKENIZER' });
});
