import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { datasets, type Example } from '../lib';
import { sampleSplit } from '../lib/data/splits';
import { wordLevelTokenizer } from '../lib/model/create-model';
import { loadTokenizer } from '../lib/model/load-tokenizer';
import { temporaryFolder } from './helpers';

const tasks = datasets.TASK_NAMES.map((name) => datasets.byName(name));
const words = (text: string) => text.split(' ');

describe.each(tasks.map((task) => [task.name, task] as const))('%s', (_name, task) => {
  const samples = {
    train: task.sample('train', 400, 1),
    validation: task.sample('validation', 200, 1),
    test: task.sample('test', 200, 1),
  };
  const every = Object.values(samples).flat();

  test('every drawn answer is right, fits, and speaks the vocabulary', () => {
    const vocabulary = new Set(task.vocabulary);
    expect(vocabulary.size).toBe(task.vocabulary.length);
    expect(task.genLength % task.blockLength).toBe(0);
    for (const example of every) {
      expect(task.verify(example, example.answer)).toBe(true);
      expect(words(example.answer).length).toBeLessThanOrEqual(task.genLength);
      expect([...words(example.prompt), ...words(example.answer)].filter((word) => !vocabulary.has(word))).toEqual([]);
    }
  });

  test('a changed word is wrong unless it makes another right answer', () => {
    let refused = 0;
    let tried = 0;
    for (const example of samples.test.slice(0, 60)) {
      const right = words(example.answer);
      for (let i = 0; i < right.length; i++) {
        const other = task.vocabulary[(tried * 7 + i) % task.vocabulary.length];
        if (other === right[i]) continue;
        tried++;
        const changed = right.map((word, j) => (j === i ? other : word));
        if (!task.verify(example, changed.join(' '))) refused++;
      }
      expect(task.verify(example, right.slice(1).join(' '))).toBe(false);
      expect(task.verify(example, [...right, right[0]].join(' '))).toBe(false);
      expect(task.verify(example, '')).toBe(false);
    }
    // What is let through are the free choices: a letter in upper case, for one.
    expect(refused / tried).toBeGreaterThan(task.name.startsWith('free') ? 0.98 : 0.999);
  });

  test('the splits have no prompt in common, and a prompt knows its split', () => {
    const prompts = Object.values(samples).map((examples) => new Set(examples.map(({ prompt }) => prompt)));
    for (let i = 0; i < 3; i++)
      for (let j = 0; j < i; j++) expect([...prompts[i]].filter((prompt) => prompts[j].has(prompt))).toEqual([]);
    for (const [split, examples] of Object.entries(samples))
      for (const { prompt } of examples) expect(datasets.splitOf(prompt)).toBe(split);
    expect(prompts[1].size).toBe(200);
    expect(prompts[2].size).toBe(200);
  });

  test('equal seeds give equal examples, longer samples begin with shorter ones, other seeds give others', () => {
    expect(task.sample('test', 200, 1)).toEqual(samples.test);
    expect(task.sample('train', 50, 1)).toEqual(samples.train.slice(0, 50));
    expect(task.sample('train', 50, 2)).not.toEqual(samples.train.slice(0, 50));
  });

  test('a word-level tokenizer gives the text back', async () => {
    const folder = temporaryFolder();
    const { tokenizer, config, size } = wordLevelTokenizer(task.vocabulary);
    writeFileSync(path.join(folder, 'tokenizer.json'), JSON.stringify(tokenizer));
    writeFileSync(path.join(folder, 'tokenizer_config.json'), JSON.stringify(config));
    const loaded = (await loadTokenizer(folder, 1, size))!;
    expect(size).toBe(task.vocabulary.length + 3);
    for (const { prompt, answer } of every.slice(0, 50))
      for (const text of [prompt, answer]) {
        const ids = loaded.encode(text);
        expect(ids).toHaveLength(words(text).length);
        expect(loaded.decode(ids)).toBe(text);
      }
  });
});

describe('word problems', () => {
  const known: Example<string> = {
    prompt: 'tom has 7 pens . he buys 2 . how many now ?',
    answer: '',
    category: 'plus',
    meta: {
      name: 'tom',
      object: 'pens',
      steps: [{ op: '+', before: 7, change: 2, after: 9, verb: 'buys' }],
      style: null,
    },
  };

  test('the twenty right answers to an addition, twelve to a subtraction', () => {
    const s1 = datasets.wordProblems('s1');
    expect(s1.answers(known).sort()).toEqual(
      [
        '7 + 2 = 9 , so tom has 9 pens in total',
        '2 + 7 = 9 , so tom has 9 pens in total',
        'tom starts with 7 pens , buys 2 , so 7 + 2 = 9',
        'tom starts with 7 pens , buys 2 , so 2 + 7 = 9',
        'now tom has 9 pens because 7 + 2 = 9',
        'now tom has 9 pens because 2 + 7 = 9',
        'we add 2 to 7 and get 9 pens',
        'from 7 pens tom goes up by 2 to 9',
        'tom buys 2 pens , so 7 + 2 = 9 and now he has 9',
        'tom buys 2 pens , so 2 + 7 = 9 and now he has 9',
      ]
        .flatMap((sentence) => [`${sentence} . answer 9`, `${sentence} . the answer is 9 pens`])
        .sort(),
    );
    for (const example of s1.sample('train', 300, 3)) {
      const [{ op, before, change }] = (example.meta as { steps: { op: string; before: number; change: number }[] })
        .steps;
      expect(s1.answers(example)).toHaveLength(op === '-' ? 12 : before === change ? 12 : 20);
    }
  });

  test('st1: a style leaves 5.4 answers in the mean, and another family is wrong', () => {
    const st1 = datasets.wordProblems('st1');
    const examples = st1.sample('train', 4000, 3);
    const mean = examples.reduce((sum, example) => sum + st1.answers(example).length, 0) / examples.length;
    expect(mean).toBeGreaterThan(5.2);
    expect(mean).toBeLessThan(5.6);
    const asked = { ...known, meta: { ...(known.meta as object), style: 'words' } };
    expect(st1.verify(asked, 'we add 2 to 7 and get 9 pens . answer 9')).toBe(true);
    expect(st1.verify(asked, 'now tom has 9 pens because 7 + 2 = 9 . answer 9')).toBe(false);
    expect(st1.diagnose(asked, 'now tom has 9 pens because 7 + 2 = 9 . answer 9')).toEqual({
      family: null,
      error: 'slot',
    });
  });

  test('a wrong number is told from mixed paraphrases', () => {
    const s1 = datasets.wordProblems('s1');
    expect(s1.diagnose(known, 'we add 2 to 7 and get 9 pens . answer 9')).toEqual({ family: 'we add', error: null });
    expect(s1.diagnose(known, 'we add 2 to 7 and get 8 pens . answer 9')).toEqual({ family: null, error: 'slot' });
    expect(s1.diagnose(known, 'we add 2 to 7 because 9 pens . answer 9')).toEqual({ family: null, error: 'mix' });
  });

  test('t12w: two-step answers write the first result down, t12 also has those that do not', () => {
    const plain = datasets.wordProblems('t12');
    const working = datasets.wordProblems('t12w');
    const example = plain.sample('train', 20, 1).find(({ category }) => category === 'two steps')!;
    const { steps } = example.meta as { steps: { after: number }[] };
    const hides = (answer: string) => !new RegExp(`(=|get|to) ${steps[0].after}\\b`).test(answer);
    expect(plain.answers(example).some(hides)).toBe(true);
    expect(working.answers(example).some(hides)).toBe(false);
    expect(plain.sample('train', 300, 1).filter(({ category }) => category === 'two steps').length).toBeGreaterThan(
      110,
    );
  });

  test('answers as the prompt has them: no subtraction below one, operands in their ranges', () => {
    for (const name of ['s1', 't12'] as const)
      for (const { meta } of datasets.wordProblems(name).sample('train', 500, 5))
        for (const { change, after } of (meta as { steps: { change: number; after: number }[] }).steps) {
          expect(after).toBeGreaterThanOrEqual(1);
          expect(change).toBeGreaterThanOrEqual(1);
          expect(change).toBeLessThanOrEqual(9);
        }
  });
});

test('free choice: each operation by hand', () => {
  const task = datasets.freeChoice('freeb8');
  const letters = words('c a k b f o d e');
  const ask = (operation: string, answer: string) =>
    task.verify({ prompt: '', answer: '', category: operation, meta: { operation, letters } }, answer);
  expect(ask('copy', 'c a k b f o d e')).toBe(true);
  expect(ask('copy', 'c a k b f o e d')).toBe(false);
  expect(ask('sort', 'a b c d e f k o')).toBe(true);
  expect(ask('star', 'c * k b f o * e')).toBe(true);
  expect(ask('star', 'c * k b f o d e')).toBe(false);
  expect(ask('star', 'c * k b f * * e')).toBe(false);
  expect(ask('swap', 'a c k b o f d e')).toBe(true);
  expect(ask('swap', 'c k a b f o d e')).toBe(false);
  expect(ask('swap', 'c c k b f o d e')).toBe(false);
  expect(ask('case', 'C a k B f o D e')).toBe(true);
  expect(ask('case', 'C a k B f o D *')).toBe(false);
  expect(datasets.freeChoice('free8').vocabulary).toHaveLength(5 + 16 + 16 + 1);
});

test('sudoku: any valid completion of the given cells', () => {
  const task = datasets.sudoku4();
  const given = words('1 _ _ 4 3 _ _ 2 _ _ _ _ _ _ _ _');
  const example = { prompt: given.join(' '), answer: '', category: '', meta: given };
  expect(task.verify(example, '1 2 3 4 3 4 1 2 2 1 4 3 4 3 2 1')).toBe(true);
  expect(task.verify(example, '1 2 3 4 3 4 1 2 4 3 2 1 2 1 4 3')).toBe(true);
  expect(task.verify(example, '2 1 3 4 3 4 1 2 1 2 4 3 4 3 2 1')).toBe(false); // a given cell changed
  expect(task.verify(example, '1 2 3 4 3 4 1 2 2 1 4 3 4 3 1 2')).toBe(false); // a column twice
});

test('a split that has fewer prompts than asked for says so', () => {
  const draw = (random: { integer(n: number): number }) => ({
    prompt: `p${random.integer(200)}`,
    answer: '',
    category: '',
    meta: null,
  });
  const inTest = Array.from({ length: 200 }, (_, i) => `p${i}`).filter(
    (prompt) => datasets.splitOf(prompt) === 'test',
  ).length;
  expect(sampleSplit(draw, 'test', inTest, 0)).toHaveLength(inTest);
  expect(() => sampleSplit(draw, 'test', inTest + 1, 0)).toThrow(
    `count: expected no more prompts than the test split has (about ${inTest})`,
  );
  expect(sampleSplit(draw, 'train', 1000, 0)).toHaveLength(1000);
});

test('wrong arguments', () => {
  const [task] = tasks;
  expect(() => task.sample('dev' as never, 1, 0)).toThrow(/split: expected "train" or/);
  expect(() => task.sample('test', -1, 0)).toThrow(/count/);
  expect(() => task.sample('test', 1, 0.5)).toThrow(/seed/);
  expect(() => datasets.byName('st2' as never)).toThrow(/dataset: expected "st1" or/);
});
