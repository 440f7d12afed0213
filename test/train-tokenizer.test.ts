// Tokenizers learnt from texts, and new models that use them.
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { createModel, datasets, loadModel, trainTokenizer } from '../lib';
import { loadTokenizer } from '../lib/model/load-tokenizer';
import { readTensors, temporaryFolder } from './helpers';

const world = datasets.world();
const texts = world
  .sample('train', 3000, 1)
  .flatMap(({ prompt, answer }) => [
    ...(typeof prompt === 'string' ? [prompt] : prompt.map(({ content }) => content)),
    answer,
  ]);

let folder: string;
beforeAll(async () => {
  folder = path.join(temporaryFolder(), 'tokenizer');
  await trainTokenizer(folder, texts, { vocabSize: 1024, joinedWords: 100 });
});
const open = async () => (await loadTokenizer(folder, 1, 1024))!;
const pieces = async (text: string) => {
  const tokenizer = await open();
  return tokenizer.encode(text, { addSpecialTokens: false }).map((id) => tokenizer.decode([id]));
};

test('it writes every text', async () => {
  const tokenizer = await open();
  expect(tokenizer.size).toBe(1024);
  const odd = ['', ' ', 'a  b\n\tc ', 'Żółć 日本語 🙂', '"quoted", {"a":1}', "it's 007 and 1234567", '\u0000\u007f'];
  for (const text of [...texts.slice(0, 300), ...odd])
    expect(tokenizer.decode(tokenizer.encode(text, { addSpecialTokens: false }))).toBe(text);
});

test('numbers are pairs of digits', async () => {
  expect(await pieces('7')).toEqual(['7']);
  for (let n = 10; n < 100; n++) expect(await pieces(String(n))).toEqual([String(n)]);
  expect(await pieces('12345')).toEqual(['12', '34', '5']);
  expect(await pieces('9:05')).toEqual(['9', ':', '05']);
});

test('a word is the same token in prose and between quotes; function words take their space', async () => {
  expect(await pieces('Tom is Tom')).toEqual(['Tom', ' is', ' ', 'Tom']);
  expect(await pieces('{"name":"Tom","city":"Paris"}')).toEqual(expect.arrayContaining(['name', 'Tom', 'city']));
  expect(await pieces('3 + 4 = 7')).toEqual(['3', ' +', ' ', '4', ' =', ' ', '7']);
});

test('equal texts give equal files, and the most frequent pairs come first', async () => {
  const again = path.join(temporaryFolder(), 'again');
  await trainTokenizer(again, texts, { vocabSize: 1024, joinedWords: 100 });
  for (const name of readdirSync(folder))
    expect(readFileSync(path.join(again, name), 'utf8')).toBe(readFileSync(path.join(folder, name), 'utf8'));
  const small = path.join(temporaryFolder(), 'small');
  await trainTokenizer(small, ['abab abab abab cd cd'], { vocabSize: 512, joinedWords: 0 });
  const { model } = JSON.parse(readFileSync(path.join(small, 'tokenizer.json'), 'utf8'));
  // After the pairs of digits: "ab" six times, "ab" + "ab" three times, "cd" twice; nothing else occurs twice.
  expect(model.merges.slice(100)).toEqual(['a b', 'ab ab', 'c d']);
});

test('text is a message of a user, and messages are marked alike', async () => {
  const model = path.join(temporaryFolder(), 'model');
  await createModel(model, { tokenizer: folder, dModel: 16, nHeads: 2, nLayers: 1 });
  const loaded = await loadModel(model);
  const { tokenizer, config } = loaded;
  expect(config.embeddingSize).toBe(1024);
  expect(tokenizer!.decode([config.eosTokenId!])).toBe('<|end|>');
  expect(tokenizer!.decode([config.maskTokenId])).toBe('<|mask|>');
  expect(config.padTokenId).toBe(config.eosTokenId);
  const asText = loaded.encodePrompt('Hello!');
  expect(loaded.encodePrompt([{ role: 'user', content: 'Hello!' }])).toEqual(asText);
  expect(tokenizer!.decode(asText)).toBe('<|user|>Hello!<|assistant|>');
  const { text } = await loaded.generate('Hello!', { maxTokens: 8, blockLength: 8 });
  expect(typeof text).toBe('string');
  // A saved model has its tokenizer with it.
  const saved = path.join(temporaryFolder(), 'saved');
  await loaded.save(saved);
  loaded.dispose();
  const reloaded = await loadModel(saved);
  expect(reloaded.encodePrompt('Hello!')).toEqual(asText);
  reloaded.dispose();
});

test('a copying start: attention writes back what it reads, in groups of heads too', async () => {
  const shape = { tokenizer: folder, dModel: 8, nHeads: 4, nKvHeads: 2, nLayers: 2, seed: 5 };
  const base = temporaryFolder();
  await createModel(path.join(base, 'random'), shape);
  await createModel(path.join(base, 'copying'), { ...shape, attentionStart: 'copying' });
  const [plain, copying] = ['random', 'copying'].map((name) => readTensors(path.join(base, name, 'model.safetensors')));
  const changed = /^model\..*(attn_out|wte|blocks\.0\.[qk]_proj)\.weight$/;
  for (const name of Object.keys(plain))
    expect([name, copying[name].raw.equals(plain[name].raw)]).toEqual([name, !changed.test(name)]);
  for (const layer of [0, 1]) {
    const at = `model.transformer.blocks.${layer}`;
    const out = copying[`${at}.attn_out.weight`].data;
    const values = copying[`${at}.v_proj.weight`].data;
    // Heads of two channels; query heads 0 and 1 read value head 0, 2 and 3 read value head 1.
    for (let row = 0; row < 8; row++)
      for (let column = 0; column < 8; column++) {
        const source = Math.floor(column / 4) * 2 + (column % 2);
        expect(out[row * 8 + column]).toBeCloseTo(0.35 * values[source * 8 + row], 6);
      }
  }
});

test('a copying start: two heads of the first layer attend to the token before and the token after', async () => {
  const length = 12;
  for (const nKvHeads of [2, 1]) {
    const [dModel, nHeads, ropeTheta] = [64, 2, 1000];
    const at = path.join(temporaryFolder(), 'copying');
    const shape = { tokenizer: folder, dModel, nHeads, nKvHeads, nLayers: 1, ropeTheta, seed: 5 };
    await createModel(at, { ...shape, attentionStart: 'copying' });
    const tensors = readTensors(path.join(at, 'model.safetensors'));
    const embeddings = tensors['model.transformer.wte.weight'].data;
    const headDim = dModel / nHeads;
    /** Head `head` of a projection of the token at a position, turned by its angle. */
    const project = (name: string, head: number, token: number, position: number) => {
      const row = Array.from({ length: dModel }, (_, j) => embeddings[token * dModel + j]);
      const scale = 1 / Math.sqrt(row.reduce((sum, x) => sum + x * x, 0) / dModel);
      const matrix = tensors[`model.transformer.blocks.0.${name}.weight`].data;
      const channel = (c: number) =>
        row.reduce((sum, x, j) => sum + scale * x * matrix[(head * headDim + c) * dModel + j], 0);
      return Array.from({ length: headDim }, (_, c) => {
        const pair = c % (headDim / 2);
        const angle = position * ropeTheta ** ((-2 * pair) / headDim);
        const [low, high] = [channel(pair), channel(pair + headDim / 2)];
        return c < headDim / 2
          ? low * Math.cos(angle) - high * Math.sin(angle)
          : high * Math.cos(angle) + low * Math.sin(angle);
      });
    };
    for (const [head, offset] of [
      [0, -1],
      [1, 1],
    ]) {
      // What is read at each distance, in the mean over rows of random tokens.
      const scores = Array<number>(length).fill(0);
      for (let trial = 0; trial < 64; trial++) {
        const tokens = Array.from({ length }, (_, i) => 300 + ((trial * 131 + i * 37) % 700));
        const query = project('q_proj', head, tokens[6], 6);
        for (let j = 0; j < length; j++) {
          const key = project('k_proj', Math.floor((head * nKvHeads) / nHeads), tokens[j], j);
          scores[j] += query.reduce((sum, x, c) => sum + x * key[c], 0) / Math.sqrt(headDim);
        }
      }
      // The random part of the matrices moves the peak a little.
      expect(Math.abs(scores.indexOf(Math.max(...scores)) - (6 + offset))).toBeLessThanOrEqual(1);
      expect(scores[6 + offset]).toBeGreaterThan(scores[6 - offset] + 1);
    }
  }
});

test('what cannot be learnt from or used is refused', async () => {
  const out = path.join(temporaryFolder(), 'out');
  await expect(trainTokenizer(out, [])).rejects.toThrow(/texts/);
  await expect(trainTokenizer(out, [1] as unknown as string[])).rejects.toThrow(/texts: expected strings, got 1/);
  await expect(trainTokenizer(out, 'text' as unknown as string[])).rejects.toThrow(/texts/);
  await expect(trainTokenizer(out, texts, { vocabSize: 100 })).rejects.toThrow(/vocabSize/);
  await expect(trainTokenizer(out, texts, { vocabSize: 512, joinedWords: 500 })).rejects.toThrow(/joinedWords/);
  await expect(createModel(out, { tokenizer: folder, vocabulary: ['a'] })).rejects.toThrow(/vocabulary/);
  await expect(createModel(out, { tokenizer: temporaryFolder() })).rejects.toMatchObject({ code: 'NO_TOKENIZER' });
  await expect(createModel(out, { tokenizer: 7 as unknown as string })).rejects.toThrow(/tokenizer/);
  await expect(createModel(out, {})).rejects.toThrow(/vocabulary/);
});

test('a vocabulary of words reads text as people write it, where no word is lost by it', async () => {
  const shape = { dModel: 16, nHeads: 2, nLayers: 1 };
  const encoded = async (vocabulary: string[], text: string) => {
    const folder = path.join(temporaryFolder(), 'model');
    await createModel(folder, { ...shape, vocabulary });
    await using model = await loadModel(folder);
    return model.tokenizer!.encode(text).map((id) => model.tokenizer!.idToken(id));
  };
  expect(await encoded(['has', 'tom', '7', '.', '+='], 'Tom HAS 7. +=')).toEqual(['tom', 'has', '7', '.', '+=']);
  // Capitals count where the vocabulary has some; so does what holds letters and marks.
  expect(await encoded(['Tom', 'tom', '.'], 'Tom TOM tom.')).toEqual(['Tom', '<unk>', 'tom', '.']);
  expect(await encoded(["don't", '.'], "don't .")).toEqual(["don't", '.']);
});
