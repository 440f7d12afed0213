// Holes whose length is not known: filled at some lengths, of which the most probable text is kept.
import { mkdirSync } from 'node:fs';
import path from 'node:path';
import { createModel, type GenerateOptions, type JsonSchema, loadModel, type MaskedDiffusionModel } from '../lib';
import { temporaryFolder } from './helpers';
import { byteLevelTokenizer, EOS_TOKEN, MASK_TOKEN, writeTokenizer } from './tokenizers';

let model: MaskedDiffusionModel;
beforeAll(async () => {
  const tokenizer = temporaryFolder();
  mkdirSync(tokenizer, { recursive: true });
  const bytes = byteLevelTokenizer();
  writeTokenizer(tokenizer, bytes.tokenizer, { ...bytes.config, eos_token: EOS_TOKEN, mask_token: MASK_TOKEN });
  const folder = path.join(temporaryFolder(), 'model');
  const size = { dModel: 16, nHeads: 2, nLayers: 1, maxSequenceLength: 256, seed: 3 };
  await createModel(folder, { tokenizer, ...size });
  model = await loadModel(folder, { threads: 1 });
});
afterAll(() => model.dispose());

const search = { hole: 'search' } as const;
const schema: JsonSchema = {
  type: 'object',
  properties: { name: { type: 'string' }, age: { type: 'integer', minimum: 0, maximum: 120 } },
  required: ['name', 'age'],
  additionalProperties: false,
};

/** The result without what a search adds to it. */
const plain = ({ lengths, fullForwards, ...result }: { lengths?: unknown; fullForwards: number }) => result;

/** Mean log-probability of tokens of a row, each masked together with every fourth of the others, in double precision. */
async function meanLogProb(ids: readonly number[], positions: readonly number[]): Promise<number> {
  const { maskTokenId, embeddingSize } = model.config;
  let sum = 0;
  for (let group = 0; group < 4; group++) {
    const own = positions.filter((_position, i) => i % 4 === group);
    if (own.length === 0) continue;
    const { logits } = await model.forward({ ids: ids.map((id, i) => (own.includes(i) ? maskTokenId : id)) });
    for (const position of own) {
      const row = [...logits!.subarray(position * embeddingSize, (position + 1) * embeddingSize)];
      const total = row.reduce((all, x, id) => (id === maskTokenId ? all : all + Math.exp(x)), 0);
      sum += row[ids[position]] - Math.log(total);
    }
  }
  return sum / positions.length;
}

test('before a suffix: the most probable of four lengths, each as generate fills it', async () => {
  const prompt = { prompt: 'ab', suffix: 'yz' };
  const { eosTokenId } = model.config;
  const suffix = [...model.encodePrompt('yz'), eosTokenId!];
  for (const options of [{}, { temperature: 1, seed: 5, cache: 'dual' }, { sampler: 'fixed:2', stopAtEos: false }]) {
    const found = await model.generate(prompt, { ...options, ...search, maxTokens: 16 });
    expect(found.lengths!.map(({ tokens }) => tokens)).toEqual([4, 8, 12, 16]);
    const each = await Promise.all(
      [4, 8, 12, 16].map((maxTokens) => model.generate(prompt, { ...options, maxTokens })),
    );
    let scored = 0;
    for (const [i, { ids, promptIds }] of each.entries()) {
      const row = [...promptIds, ...ids, ...suffix];
      const decided = Array.from(ids.keys(), (at) => promptIds.length + at).filter(
        (at) => row[at] !== model.config.maskTokenId,
      );
      // Ends of sequence and white space that fill up a hole do not count.
      while (decided.length > 0 && model.decode([row[decided.at(-1)!]]).trim() === '') decided.pop();
      scored += Math.min(4, decided.length);
      expect(found.lengths![i].score).toBeCloseTo(await meanLogProb(row, decided), 4);
    }
    const scores = found.lengths!.map(({ score }) => score);
    const isWhole = each.map(({ ids }) => !ids.includes(eosTokenId!));
    const rated = scores.map((score, i) => (isWhole[i] || !isWhole.includes(true) ? score : -Infinity));
    const best = each[rated.indexOf(Math.max(...rated))];
    expect(plain(found)).toEqual(plain(best));
    const cost = each.reduce((sum, { fullForwards }) => sum + fullForwards, scored);
    expect(found.fullForwards).toBeCloseTo(cost, 9);
    expect(await model.generate(prompt, { ...options, ...search, maxTokens: 16 })).toEqual(found);
  }
});

test('the embedded model finds how long what stands before a suffix is', async () => {
  using world = await loadModel('world', { threads: 1 });
  for (const [item, city] of [
    ['mugs', 'Rome'],
    ['lamps', 'Vienna'],
  ]) {
    const infill = { prompt: `Say it again: ${item} and 7 and ${city}`, suffix: ` and ${city}` };
    const { text } = await world.generate(infill, { ...search, maxTokens: 16 });
    expect(text.trim()).toBe(`${item} and 7`);
    const widest = await world.generate(infill, { maxTokens: 16 });
    expect(widest.text.trim()).not.toBe(text.trim());
  }
});

test('rows of a batch are those that they are alone', async () => {
  const prompts = ['ab', 'c', 'de'].map((prompt) => ({ prompt, suffix: 'z' }));
  const options: GenerateOptions = { ...search, maxTokens: 12, temperature: 1, seed: 3 };
  const [batch, others] = await Promise.all([
    model.generateBatch(prompts, options),
    model.generateBatch(['x', 'y'], { maxTokens: 24, sampler: 'fixed:4' }),
  ]);
  expect(others).toHaveLength(2);
  for (const [i, prompt] of prompts.entries())
    expect(await model.generate(prompt, { ...options, research: { firstRow: i } })).toEqual(batch[i]);
});

test('values of schemas and texts of patterns are valid at every length', async () => {
  for (let seed = 0; seed < 3; seed++) {
    const options = { temperature: 1, seed };
    const { object, lengths } = await model.generate('a', { ...options, ...search, schema });
    expect(object).toEqual({ name: expect.any(String), age: expect.any(Number) });
    const widest = await model.generate('a', { ...options, schema });
    const tokens = lengths!.map((one) => one.tokens);
    expect(tokens).toHaveLength(4);
    expect(tokens.at(-1)).toBe(widest.ids.length);
    expect(tokens).toEqual([...tokens].sort((a, b) => a - b));
    const { text } = await model.generate('a', { ...options, ...search, pattern: '[a-c]+\\d' });
    expect(text).toMatch(/^[a-c]+\d$/);
  }
  // One length is all that there is.
  const { lengths } = await model.generate('a', { ...search, pattern: 'abc', maxTokens: 3 });
  expect(lengths!.map(({ tokens }) => tokens)).toEqual([3]);
});

test('slots of a form become shorter together, as far as their patterns have texts', async () => {
  const form = ['Year ', { tokens: 8, pattern: '\\d{4}' }, '!', 4];
  const { text, lengths } = await model.generate({ prompt: 'a', form }, { ...search, temperature: 2, seed: 1 });
  expect(text).toMatch(/^Year \d{4} *!/);
  // Beside the slots there are seven tokens. Two positions are too few for four digits.
  expect(lengths!.map(({ tokens }) => tokens - 7)).toEqual([6, 9, 12]);
});

test('what cannot be searched is refused', async () => {
  const refused = (prompt: Parameters<typeof model.generate>[0], options: GenerateOptions, message: string) =>
    expect(model.generate(prompt, { ...search, ...options })).rejects.toThrow(message);
  await refused('a', {}, 'hole: expected together with a schema, a pattern, a form or a suffix');
  await refused({ template: '[MASK]' }, {}, 'hole: expected together');
  await refused('a', { pattern: 'a', hole: 'find' as never }, 'hole: expected "search", got "find"');
  await refused({ prompt: 'a', suffix: 'b' }, { research: { compat: 'reference' } }, 'hole: not allowed with research');
  const stream = model.generateStream('a', { ...search, pattern: 'a' });
  await expect(stream.next()).rejects.toThrow('hole: for generate and generateBatch');
  const signal = AbortSignal.abort(new Error('enough'));
  await refused('a', { pattern: 'a+', signal }, 'enough');
});
