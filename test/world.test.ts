// The world of the embedded model: its splits, its verifiers, and what is invented.
import path from 'node:path';
import {
  type CreateModelOptions,
  createModel,
  datasets,
  type Example,
  evaluate,
  loadModel,
  training,
  trainTokenizer,
} from '../lib';
import { WORLD_QUESTIONS, WORLD_REFUSAL } from '../lib/data/world';
import { OUTSIDE_PATTERNS } from '../lib/data/world/outside';
import { CITIES, DOCTORS, ITEMS, MEN, SURNAMES, UNSEEN, WOMEN } from '../lib/data/world/words';
import { temporaryFolder } from './helpers';

const world = datasets.world();
const textOf = ({ prompt }: Example) =>
  typeof prompt === 'string' ? prompt : prompt.map(({ content }) => content).join('\n');
const metaOf = ({ meta }: Example) => meta as datasets.WorldMeta;
const SPLITS = ['train', 'validation', 'test', 'names', 'outside'] as const;
const samples = Object.fromEntries(
  SPLITS.map((split) => [split, world.sample(split, split === 'outside' ? 500 : 800, 1)]),
) as Record<datasets.WorldSplit, Example[]>;

/** A small model whose tokenizer is learnt from some examples. */
async function newWorldModel(shape: CreateModelOptions = { dModel: 16, nHeads: 2, nLayers: 1 }): Promise<string> {
  const folder = path.join(temporaryFolder(), 'model');
  const texts = [...samples.train, ...samples.validation].flatMap((example) => [textOf(example), example.answer]);
  await trainTokenizer(path.join(folder, 'tokenizer'), texts, { vocabSize: 1024 });
  await createModel(folder, { ...shape, tokenizer: path.join(folder, 'tokenizer') });
  return folder;
}

test('every drawn answer is right, but for labels that are drawn', () => {
  for (const split of SPLITS)
    for (const example of samples[split])
      if (example.category !== 'again')
        expect([textOf(example), example.answer, world.verify(example, example.answer)]).toEqual([
          textOf(example),
          example.answer,
          true,
        ]);
});

test('labels of "again" are as often "Yes." as the probability says', () => {
  const drawn = world.sample('train', 3000, 2, { again: 1 });
  for (const probability of new Set(drawn.map((example) => metaOf(example).probability!))) {
    const examples = drawn.filter((example) => metaOf(example).probability === probability);
    const share = examples.filter(({ answer }) => answer === 'Yes.').length / examples.length;
    expect(Math.abs(share - probability)).toBeLessThan(0.07);
  }
  for (const example of drawn) {
    const { probability, answers } = metaOf(example);
    expect(answers).toEqual(probability! > 0.5 ? ['Yes.'] : probability! < 0.5 ? ['No.'] : ['Yes.', 'No.']);
  }
});

test('a changed answer is wrong', () => {
  for (const example of samples.validation) {
    const { record, options, answers } = metaOf(example);
    expect(world.verify(example, '')).toBe(false);
    expect(world.verify(example, `${example.answer} Really`)).toBe(false);
    if (record) {
      const [key] = Object.keys(record);
      expect(world.verify(example, JSON.stringify({ ...record, [key]: `${record[key]}x` }))).toBe(false);
      expect(world.verify(example, JSON.stringify({ ...record, more: 1 }))).toBe(false);
      expect(world.verify(example, JSON.stringify([record]))).toBe(false);
      expect(world.verify(example, 'null')).toBe(false);
      const { [key]: _, ...rest } = record;
      expect(world.verify(example, JSON.stringify(rest))).toBe(false);
      // Neither spaces nor the order of keys make it wrong.
      const reversed = Object.fromEntries(Object.entries(record).reverse());
      expect(world.verify(example, JSON.stringify(reversed, null, 1))).toBe(true);
    }
    for (const option of options ?? [])
      if (!answers!.includes(`${option}.`)) expect(world.verify(example, `${option}.`)).toBe(false);
    if (example.category === 'outside') expect(example.answer).toBe(WORLD_REFUSAL);
  }
});

test('equal seeds give equal examples, longer samples begin with shorter ones, other seeds give others', () => {
  for (const split of SPLITS) {
    expect(world.sample(split, 40, 1)).toEqual(samples[split].slice(0, 40));
    expect(world.sample(split, 40, 2)).not.toEqual(samples[split].slice(0, 40));
  }
});

test('no held-out prompt is one of training', () => {
  const seen = new Set(world.sample('train', 20_000, 3).map((example) => textOf(example).toLowerCase()));
  for (const split of SPLITS.slice(1))
    expect([split, samples[split].map(textOf).filter((text) => seen.has(text.toLowerCase()))]).toEqual([split, []]);
  for (const split of ['train', 'validation'] as const)
    for (const example of samples[split]) expect(datasets.splitOf(textOf(example).toLowerCase())).toBe(split);
  for (const split of SPLITS.slice(1)) expect(new Set(samples[split].map(textOf)).size).toBe(samples[split].length);
});

test('names of the split "names" occur in no other, and every prompt there has one', () => {
  const unseen = Object.values(UNSEEN)
    .flat()
    .map((word) => word.toLowerCase());
  const words = (example: Example) =>
    textOf(example)
      .toLowerCase()
      .match(/[a-z]+/g) ?? [];
  for (const split of ['train', 'validation', 'test'] as const) {
    const found = new Set(samples[split].flatMap(words));
    expect([split, unseen.filter((word) => found.has(word))]).toEqual([split, []]);
  }
  const known = new Set(
    [...MEN, ...WOMEN, ...SURNAMES, ...CITIES, ...ITEMS, ...DOCTORS].map((word) => word.toLowerCase()),
  );
  expect(unseen.filter((word) => known.has(word))).toEqual([]);
  const orders = world.sample('names', 300, 1, { order: 1 });
  for (const example of orders) {
    const { name, city } = metaOf(example).record as Record<string, string>;
    for (const word of [...name.split(' '), city]) expect(unseen).toContain(word.toLowerCase());
  }
});

test('about a quarter of the names are invented', () => {
  const known = new Set([...MEN, ...WOMEN].map((word) => word.toLowerCase()));
  const orders = world.sample('train', 2000, 4, { order: 1 });
  const invented = orders.filter((example) => {
    const { name } = metaOf(example).record as Record<string, string>;
    return !known.has(name.split(' ')[0].toLowerCase());
  });
  expect(invented.length / orders.length).toBeGreaterThan(0.2);
  expect(invented.length / orders.length).toBeLessThan(0.3);
});

test('the questions from outside are no sentences of the patterns that training declines', () => {
  // A slot stands for any word; patterns of slots alone say nothing about sentences.
  const fixed = OUTSIDE_PATTERNS.filter((pattern) => !/\$words|^\$(noun|gib)/.test(pattern));
  const patterns = fixed.map((pattern) => {
    const source = pattern
      .replace(/[.*+?^()[\]\\]/g, '\\$&')
      .replaceAll('{', '(?:')
      .replaceAll('}', ')')
      .replaceAll(' ', '(?: +|(?<= )|(?=[.?!,])|$)')
      .replace(/\$[a-z]+\d?/g, "[\\w']+");
    return new RegExp(`^${source}$`, 'i');
  });
  const isKnown = (text: string) => patterns.some((pattern) => pattern.test(text));
  expect(['What is the capital of France?', 'Explain gravity.', 'Who won the world cup?'].filter(isKnown)).toHaveLength(
    3,
  );
  expect(WORLD_QUESTIONS.filter(isKnown)).toEqual([]);
  expect(new Set(WORLD_QUESTIONS).size).toBe(WORLD_QUESTIONS.length);
  expect(WORLD_QUESTIONS.length).toBeGreaterThanOrEqual(500);
});

test('operands stay within the tables', () => {
  for (const { answer } of world.sample('train', 2000, 5, { sum: 1, money: 1, problem: 1 })) {
    const found = /(\d+) ([-+x]) (\d+) = (\d+)/.exec(answer);
    if (!found) continue;
    const [, a, sign, b, result] = found;
    const expected = { '+': +a + +b, '-': +a - +b, x: +a * +b }[sign as '+' | '-' | 'x'];
    expect(+result).toBe(expected);
    expect(Math.min(+a, +b)).toBeLessThanOrEqual(12);
    expect(expected).toBeLessThanOrEqual(100);
  }
});

test('a form is its template with filled slots, each with a space behind its value', () => {
  for (const example of world.sample('train', 300, 6, { form: 1 })) {
    const { template, record } = metaOf(example);
    let at = 0;
    const slots = template!.map((text) => {
      const begin = example.answer.indexOf(text, at);
      const slot = example.answer.slice(at, begin);
      at = begin + text.length;
      return slot;
    });
    expect(at).toBe(example.answer.length);
    expect(slots[0]).toBe('');
    Object.values(record!).forEach((value, i) => {
      expect(slots[i + 1]).toMatch(/ $/);
      expect(slots[i + 1].trimEnd()).toBe(typeof value === 'string' ? `${value}"` : String(value));
    });
  }
});

test('shares decide what is drawn', () => {
  const drawn = world.sample('train', 3000, 7, { sum: 3, chat: 1 });
  const sums = drawn.filter(({ category }) => category === 'sum').length / drawn.length;
  expect(new Set(drawn.map(({ category }) => category))).toEqual(new Set(['sum', 'chat']));
  expect(sums).toBeGreaterThan(0.71);
  expect(sums).toBeLessThan(0.79);
  expect(() => world.sample('train', 1, 1, { poem: 1 })).toThrow(/poem/);
  expect(() => world.sample('train', 1, 1, { sum: 0 })).toThrow(/above 0/);
  expect(() => world.sample('names', 1, 1, { sum: 1 })).toThrow(/above 0/);
  expect(() => world.sample('outside', 100_000, 1)).toThrow(/no more prompts/);
});

test('it opens by its name, for training and evaluation', async () => {
  expect(datasets.names()).toContain('world');
  expect((await datasets.open('world')).name).toBe('world');
});

test('presets train what is generated: no answer of planner and GRPO is longer, and hardly any row', async () => {
  const { create } = training.PRESETS.sft.world.model as { create: training.NewModelConfig };
  const { tokenizer: _, ...shape } = create;
  const model = await loadModel(await newWorldModel({ ...shape, dModel: 16, nLayers: 1 }));
  for (const stage of ['planner', 'grpo'] as const) {
    const { mixture } = training.PRESETS[stage].world;
    const [{ shares }] = mixture!;
    // With a tokenizer of half the size, which makes longer rows.
    let tooLong = 0;
    for (const { prompt, answer } of world.sample('train', 500, 9, shares)) {
      const tokens = model.tokenizer!.encode(answer, { addSpecialTokens: false }).length;
      expect(tokens).toBeLessThan(world.genLength);
      if (model.encodePrompt(prompt).length + world.genLength > model.config.maxSequenceLength) tooLong++;
    }
    // Others are drawn in their place.
    expect(tooLong).toBeLessThan(5);
  }
  model.dispose();
});

test('evaluation takes the further splits, and names what there is', async () => {
  const model = await loadModel(await newWorldModel());
  const options = { dataset: world, samplers: { one: { type: 'fixed', steps: 1 } as const }, count: 8, maxTokens: 8 };
  for (const split of ['names', 'outside']) {
    const { config, results } = await evaluate(model, { ...options, split });
    expect(config.split).toBe(split);
    expect(results[0].scored).toBe(8);
  }
  await expect(evaluate(model, { ...options, split: 'dev' })).rejects.toThrow(/"names" or "outside", got "dev"/);
  model.dispose();
});
