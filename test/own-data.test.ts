// A user's own data: the shapes that they come in, the same from lists and files, held-out shares, training, evaluation.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parquetWriteBuffer } from 'hyparquet-writer';
import {
  datasets,
  type Evaluation,
  evaluate,
  evaluateCampaign,
  type GrpoOptions,
  GrpoTrainer,
  loadModel,
  type MaskedDiffusionModel,
  type TrainingData,
  trainMaskedDiffusion,
  trainPlanner,
} from '../lib';
import { inOneProcess } from './command-line';
import { temporaryFolder, withTokenizer } from './helpers';
import { newModelFolder, task, withModel } from './trained-models';

const user = (content: string) => ({ role: 'user', content });
const assistant = (content: string) => ({ role: 'assistant', content });
const lines = (records: readonly object[]) => records.map((record) => JSON.stringify(record)).join('\n');

function file(name: string, content: string): string {
  const full = path.join(temporaryFolder(), name);
  mkdirSync(path.dirname(full), { recursive: true });
  writeFileSync(full, content);
  return full;
}

const shapes: [string, object, object][] = [
  ['prompt and answer', { prompt: 'p', answer: 'a' }, { prompt: 'p', answer: 'a' }],
  ['prompt and completion', { prompt: 'p', completion: 'a' }, { prompt: 'p', answer: 'a' }],
  ['question and answer', { question: 'p', answer: 'a' }, { prompt: 'p', answer: 'a' }],
  ['question and response', { question: 'p', response: 'a' }, { prompt: 'p', answer: 'a' }],
  ['instruction and output', { instruction: 'p', input: '', output: 'a' }, { prompt: 'p', answer: 'a' }],
  ['instruction with an input', { instruction: 'p', input: 'i', output: 'a' }, { prompt: 'p\n\ni', answer: 'a' }],
  ['input and output', { input: 'p', output: 'a' }, { prompt: 'p', answer: 'a' }],
  ['a number', { question: 'p', answer: 42 }, { prompt: 'p', answer: '42' }],
  ['no answer', { prompt: 'p', answer: null, category: null }, { prompt: 'p', answer: null }],
  ['a chat', { messages: [user('p'), assistant('a')] }, { prompt: [user('p')], answer: 'a' }],
  [
    'a chat of several turns',
    {
      messages: [
        { role: 'system', content: 's' },
        user('p'),
        assistant('x'),
        user('q'),
        { ...assistant('a'), weight: 1 },
      ],
    },
    { prompt: [{ role: 'system', content: 's' }, user('p'), assistant('x'), user('q')], answer: 'a' },
  ],
  ['a chat without an answer', { messages: [user('p')] }, { prompt: [user('p')], answer: null }],
  ['a chat with one beside', { messages: [user('p')], answer: 'a' }, { prompt: [user('p')], answer: 'a' }],
  [
    'content in parts',
    {
      messages: [
        {
          role: 'user',
          content: [
            { type: 'text', text: 'p' },
            { type: 'text', text: 'q' },
          ],
        },
        assistant('a'),
      ],
    },
    { prompt: [user('pq')], answer: 'a' },
  ],
  [
    'messages in prompt and completion',
    { prompt: [user('p')], completion: [assistant('a')] },
    { prompt: [user('p')], answer: 'a' },
  ],
  [
    'a system message',
    { system: 's', instruction: 'p', output: 'a' },
    { prompt: [{ role: 'system', content: 's' }, user('p')], answer: 'a' },
  ],
  [
    'category and meta',
    { prompt: 'p', answer: 'a', category: 'c', meta: [1] },
    { prompt: 'p', answer: 'a', category: 'c', meta: [1] },
  ],
  [
    'other fields',
    { prompt: 'p', answer: 'a', id: 7, tests: ['t'] },
    { prompt: 'p', answer: 'a', meta: { id: 7, tests: ['t'] } },
  ],
];

describe('shapes of records', () => {
  test.each(shapes)('%s', async (_what, record, example) => {
    const expected = [{ category: '', meta: undefined, ...example }];
    expect((await datasets.open([record])).finite!.test).toEqual(expected);
    for (const [name, content] of [
      ['a.jsonl', JSON.stringify(record)],
      ['a.json', JSON.stringify([record])],
    ])
      expect((await datasets.open(file(name, content))).finite!.train).toEqual(expected);
  });

  const wrong: [unknown, string, string][] = [
    [{ text: 'x' }, 'prompt', 'expected one of messages, prompt, question, instruction, input, got none of them'],
    [{ prompt: 'p', question: 'q' }, 'question', 'expected "prompt" or "question", got both'],
    [{ prompt: 'p', answer: 'a', output: 'b' }, 'output', 'expected "answer" or "output", got both'],
    [
      { messages: [user('p'), assistant('a')], answer: 'b' },
      'answer',
      "expected none beside the assistant's last message",
    ],
    [{ prompt: 3 }, 'prompt', 'expected text or chat messages, got 3'],
    [{ prompt: ' \n' }, 'prompt', 'expected text, got an empty one'],
    [{ prompt: 'p', answer: '' }, 'answer', 'expected text, got an empty one'],
    [{ prompt: 'p', answer: true }, 'answer', 'expected text, got true'],
    [{ prompt: 'p', answer: { text: 'a' } }, 'answer', 'expected text, got an object'],
    [
      { prompt: 'p', completion: [user('a')] },
      'completion',
      'expected text or one message of the assistant, got an array of 1',
    ],
    [{ messages: [] }, 'messages', 'expected at least one message, got none'],
    [{ messages: 'hi' }, 'messages', 'expected text or chat messages, got "hi"'],
    [
      { messages: [assistant('a')] },
      'messages',
      "expected a message before the assistant's, which is the answer, got none",
    ],
    [{ messages: [user('p'), { role: 'assistant', content: null }] }, 'messages[1].content', 'expected text, got null'],
    [{ messages: [user('p'), assistant(' ')] }, 'messages[1].content', 'expected text, got an empty one'],
    [{ messages: [{ content: 'p' }] }, 'messages[0].role', 'expected text, got undefined'],
    [
      { messages: [{ role: 'user', content: [{ type: 'image_url' }] }] },
      'messages[0].content[0]',
      'expected a part of text',
    ],
    [{ messages: [user('')], answer: 'a' }, 'messages', 'expected messages that say something, got none that does'],
    [{ prompt: 'p', category: 3 }, 'category', 'expected text, got 3'],
    [
      { system: 's', messages: [{ role: 'system', content: 't' }, user('p')] },
      'system',
      'expected one system message, got two',
    ],
  ];

  test.each(wrong)('%j is refused, by its place', async (record, field, message) => {
    const good = { prompt: 'p', answer: 'a' };
    await expect(datasets.open([good, record as object])).rejects.toMatchObject({
      name: 'TypeError',
      option: `dataset.examples[1].${field}`,
      message: expect.stringContaining(message),
    });
    const source = file('own.jsonl', `${JSON.stringify(good)}\n\n${JSON.stringify(record)}`);
    await expect(datasets.open(source)).rejects.toMatchObject({
      code: 'BAD_DATASET',
      message: expect.stringContaining(`own.jsonl, line 3: field "${field}": ${message}`),
    });
  });

  test('what is no record, no list, no file', async () => {
    const bad = (data: unknown, options = {}) => expect(datasets.open(data as never, options)).rejects;
    await bad([3]).toThrow('dataset.examples[0]: expected an object with a prompt, got 3');
    await bad([[1]]).toThrow('dataset.examples[0]: expected an object with a prompt, got [1]');
    await bad([]).toThrow('dataset.examples: expected at least one example, got none');
    await bad(3).toThrow('dataset: expected a task, a data set, a file or a list of examples, got 3');
    await bad({ rows: [] }).toThrow('got an object');
    await bad({ examples: 3 }).toThrow('dataset.examples: expected examples that can be iterated over, got 3');
    await bad({ examples: [{ prompt: 'p' }], genLenght: 3 }).toThrow('dataset: unknown key "genLenght"');
    await bad('none.jsonl').toThrow(
      /expected one of st1, .*, a file or folder of examples, or a hub id of them, got "none\.jsonl"/,
    );
    await bad(file('empty.jsonl', '\n')).toThrow('empty.jsonl: expected at least one example, got none');
    await bad(temporaryFolder()).toThrow('expected files such as train.jsonl and test.jsonl, got none');
    await bad([{ prompt: 'p' }], { prompts: 'thinking' }).toThrow(
      'prompts: expected only with a data set such as gsm8k',
    );
    await bad('st1', { validation: 0.1 }).toThrow('validation: expected only with own examples, got it with "st1"');
    await bad([{ prompt: 'p' }], { validation: 'gone.jsonl' }).toThrow('validation: expected a file that exists');
  });

  test('Parquet, whose numbers and nulls are those of its own', async () => {
    const columnData = [
      { name: 'question', data: ['a', 'b'] },
      { name: 'answer', data: [1n, 9007199254740993n], type: 'INT64' },
      { name: 'category', data: [null, 'x'], type: 'STRING', nullable: true },
    ];
    const source = path.join(temporaryFolder(), 'own.parquet');
    writeFileSync(source, Buffer.from(parquetWriteBuffer({ columnData: columnData as never })));
    expect((await datasets.open(source)).finite!.test).toEqual([
      { prompt: 'a', answer: '1', category: '', meta: undefined },
      { prompt: 'b', answer: '9007199254740993', category: 'x', meta: undefined },
    ]);
  });

  test('a folder with a file for each split', async () => {
    const train = file('data/train.jsonl', lines([{ prompt: 'a', answer: '1' }]));
    const folder = path.dirname(train);
    writeFileSync(path.join(folder, 'test-00000.json'), JSON.stringify([{ prompt: 'b', answer: '2' }]));
    const { finite, name } = await datasets.open(folder);
    expect(name).toBe('data');
    expect(Object.entries(finite!).map(([split, rows]) => [split, rows.map(({ prompt }) => prompt)])).toEqual([
      ['train', ['a']],
      ['test', ['b']],
    ]);
  });
});

describe('a share for validation', () => {
  const rows = Array.from({ length: 60 }, (_, i) => ({ prompt: `p${i % 50}`, answer: String(i) }));
  const split = async (data: TrainingData, options: datasets.OpenOptions) => {
    const { finite } = await datasets.open(data, options);
    expect(Object.keys(finite!).sort()).toEqual(['train', 'validation']);
    return { train: finite!.train!, validation: finite!.validation! };
  };
  const prompts = (list: readonly { prompt: unknown }[]) =>
    [...new Set(list.map(({ prompt }) => prompt as string))].sort();

  test('has its size, all of a prompt, and depends on prompts and seed alone', async () => {
    const { train, validation } = await split(rows, { validation: 0.2 });
    expect(prompts(validation)).toHaveLength(10);
    expect(train.length + validation.length).toBe(60);
    expect(prompts(train).filter((prompt) => prompts(validation).includes(prompt))).toEqual([]);
    const turned = await split(file('a.jsonl', lines([...rows].reverse())), { validation: 0.2 });
    expect(prompts(turned.validation)).toEqual(prompts(validation));
    const other = await split({ examples: rows, validation: 0.2, splitSeed: 1 }, {});
    expect(prompts(other.validation)).not.toEqual(prompts(validation));
    // A smaller share is a part of a larger one.
    const small = await split(rows, { validation: 0.1 });
    expect(prompts(small.validation).every((prompt) => prompts(validation).includes(prompt))).toBe(true);
  });

  test('has one prompt at least, and leaves one', async () => {
    const two = [{ prompt: 'a' }, { prompt: 'b' }];
    for (const validation of [0.001, 0.999]) expect((await split(two, { validation })).train).toHaveLength(1);
    for (const validation of [0, 1, -0.1, 3, Number.NaN])
      await expect(datasets.open(two, { validation })).rejects.toThrow('validation: expected a share greater than 0');
    await expect(datasets.open([two[0], two[0]], { validation: 0.5 })).rejects.toThrow('two different prompts');
  });

  test('or a file, or a list', async () => {
    const held = [{ question: 'h', answer: 1 }];
    for (const validation of [held, file('held.json', JSON.stringify(held))]) {
      const { train, validation: examples } = await split(rows, { validation });
      expect(train).toHaveLength(60);
      expect(prompts(examples)).toEqual(['h']);
    }
  });
});

describe('evaluation', () => {
  let model: MaskedDiffusionModel;
  beforeAll(async () => {
    model = await loadModel(withTokenizer());
  });
  afterAll(() => model.dispose());
  const samplers = { confidence: { type: 'confidence', threshold: 0.9 } } as const;
  const questions = ['1+2=', 'abc', 'x y z', 'Q: why?'];
  const lengths = { maxTokens: 8, blockLength: 8 };

  /** Records whose answers the model gives, but for the last. */
  async function known() {
    const results = await model.generateBatch(questions, { ...lengths, sampler: samplers.confidence });
    return results.map(({ text }, i) => ({ prompt: questions[i], answer: i === 3 ? `${text}!` : ` ${text}\n` }));
  }
  const outcome = ({ results }: Evaluation) =>
    results.map(({ accuracy, samples }) => ({ accuracy, completions: samples.map(({ completion }) => completion) }));

  test('the same of a list, a file, examples, and what is open: the answer exactly, white space aside', async () => {
    const rows = await known();
    const source = file('own.jsonl', lines(rows));
    const forms: TrainingData[] = [rows, new Set(rows), source, { examples: rows }, { examples: source }];
    const first = await evaluate(model, { dataset: rows, samplers, ...lengths });
    expect(first.results[0].accuracy).toBe(0.75);
    expect(first.config).toMatchObject({
      dataset: 'examples',
      split: 'test',
      score: 'exact match',
      count: 4,
      datasetSource: { data: 'a list of 4', judge: 'exact match of the answer' },
    });
    for (const form of forms)
      for (const dataset of [form, await datasets.open(form)])
        expect(outcome(await evaluate(model, { dataset, samplers, ...lengths }))).toEqual(outcome(first));
    const { config } = await evaluate(model, { dataset: source, samplers, ...lengths });
    expect(config).toMatchObject({ dataset: 'own.jsonl', datasetSource: { data: source } });
  });

  test('as many tokens as the longest answer and an end, or what a verifier leaves to the model', async () => {
    const rows = [
      { prompt: 'a', answer: 'one' },
      { prompt: 'b', answer: 'eleven chars'.slice(0, 11) },
    ];
    const exact = await evaluate(model, { dataset: rows, samplers });
    expect(exact.config).toMatchObject({ maxTokens: 12, blockLength: 12 });
    const long = await evaluate(model, { dataset: [{ prompt: 'a', answer: 'x'.repeat(63) }], samplers });
    expect(long.config).toMatchObject({ maxTokens: 64, blockLength: 32 });
    const verify = ({ answer }: { answer?: string }, completion: string) => answer === 'one' || completion === '';
    const judged = await evaluate(model, { dataset: { examples: rows, verify }, samplers });
    expect(judged.config).toMatchObject({
      maxTokens: 48,
      score: 'task',
      datasetSource: { judge: 'a verifier of its own' },
    });
    expect(judged.results[0].samples[0].score).toBe(1);
    const given = await evaluate(model, { dataset: { examples: rows, genLength: 10, blockLength: 5 }, samplers });
    expect(given.config).toMatchObject({ maxTokens: 10, blockLength: 5 });
  });

  test('examples without answers need a judge', async () => {
    const dataset = [{ prompt: 'a', answer: 'b' }, { prompt: 'c' }];
    await expect(evaluate(model, { dataset, samplers })).rejects.toThrow(
      'dataset: expected an answer of every example, or verify or score to judge completions; example 2 of examples',
    );
    const scored = await evaluate(model, { dataset, samplers, score: ({ examples }) => examples.map(() => 1) });
    expect(scored.config).toMatchObject({ score: 'custom', maxTokens: 48 });
    const verified = await evaluate(model, { dataset: { examples: dataset, verify: () => true }, samplers });
    expect(verified.results[0].accuracy).toBe(1);
  });

  test('of held-out examples, which are the default', async () => {
    const rows = Array.from({ length: 10 }, (_, i) => ({ prompt: `p${i}`, answer: 'a' }));
    const dataset = await datasets.open(rows, { validation: 0.3 });
    const { config, results } = await evaluate(model, { dataset, samplers });
    expect(config).toMatchObject({ split: 'validation', count: 3 });
    expect(results[0].samples.map(({ prompt }) => prompt)).toEqual(
      dataset.finite!.validation!.map(({ prompt }) => prompt),
    );
    await expect(evaluate(model, { dataset, samplers, split: 'test' })).rejects.toThrow(
      'split: examples has train, validation, got "test"',
    );
  });

  test('an evaluation goes on with the examples that it began with, and with no others', async () => {
    const source = file('own.jsonl', lines([{ prompt: 'a', answer: 'b' }]));
    const outputDir = path.join(temporaryFolder(), 'evaluation');
    const folder = withTokenizer();
    const models = { base: () => loadModel(folder) };
    const run = () => evaluateCampaign({ dataset: source, samplers, models, maxTokens: 8, outputDir });
    const first = await run();
    expect((await run()).evaluations).toEqual(first.evaluations);
    writeFileSync(source, lines([{ prompt: 'a', answer: 'c' }]));
    await expect(run()).rejects.toThrow('outputDir: ');
  });

  test('a wrong thing is named by its kind, not spelled out', async () => {
    const many = Array.from({ length: 40 }, () => ({}));
    await expect(evaluate(model, { dataset: st1, samplers: many as never, count: many as never })).rejects.toThrow(
      'count: expected an integer at least 1 and at most 10000000, got an array of 40',
    );
    await expect(evaluate(model, { dataset: { data: many } as never, samplers })).rejects.toThrow('got an object');
    await expect(model.generate('a', { maxTokens: many as never })).rejects.toThrow('got an array of 40');
  });
  const st1 = datasets.byName('st1');
});

describe('training', () => {
  const records = task.sample('train', 12, 1).map(({ prompt, answer }) => ({ question: prompt, answer }));
  let folder: string;
  beforeAll(async () => {
    folder = await newModelFolder();
  });
  const losses = async (steps: AsyncIterable<{ loss: number }>) => {
    const found: number[] = [];
    for await (const { loss } of steps) found.push(loss);
    return found;
  };

  test.each([
    ['sft', trainMaskedDiffusion],
    ['planner', trainPlanner],
  ] as const)('%s learns the same of a list and of a file, and evaluates what is held out', async (_name, train) => {
    const source = file('own.jsonl', lines(records));
    const run = (dataset: TrainingData) =>
      withModel(folder, async (model) => losses(train(model, { dataset, maxSteps: 3, batchSize: 4, maxTokens: 12 })));
    const first = await run(records);
    expect(await run(source)).toEqual(first);
    expect(await run(await datasets.open(source))).toEqual(first);
    await withModel(folder, async (model) => {
      const options = { maxSteps: 1, batchSize: 4, evalEvery: 1 };
      for await (const { evalLoss } of train(model, { dataset: { examples: source, validation: 0.25 }, ...options }))
        expect(evalLoss).toEqual(expect.any(Number));
      await expect(losses(train(model, { dataset: source, ...options }))).rejects.toThrow('evalEvery');
    });
  });

  test('GRPO: files too; an accuracy only where a verifier tells what is right', async () => {
    const source = file('own.jsonl', lines(records));
    const run = (dataset: TrainingData, changes: Partial<GrpoOptions> = {}) =>
      withModel(folder, async (model) => {
        const options = {
          maxSteps: 1,
          promptsPerStep: 2,
          numGenerations: 2,
          maxTokens: 8,
          evalEvery: 1,
          evalExamples: 2,
        };
        const right = () => [1, 0, 1, 0];
        const rewards = {
          right: ({ completions }: { completions: readonly string[] }) => right().slice(0, completions.length),
        };
        await using trainer = new GrpoTrainer(model, { dataset, rewards, ...options, ...changes });
        const all = [];
        for await (const { seconds: _, tokensPerSecond: __, ...metrics } of trainer.train()) all.push(metrics);
        return all[0];
      });
    const data = { examples: records, validation: 0.25 };
    const plain = await run(data);
    expect(plain).toMatchObject({ 'reward/right': 0.5, evalReward: expect.any(Number) });
    expect(plain).not.toHaveProperty('accuracy');
    expect(plain).not.toHaveProperty('evalAccuracy');
    expect(await run({ ...data, examples: source })).toEqual(plain);
    const verified = await run({ ...data, verify: () => true });
    expect(verified).toMatchObject({ accuracy: 1, evalAccuracy: 1 });
    await expect(run('gone.jsonl')).rejects.toThrow('dataset: expected one of');
    await expect(run(source, { promptsPerStep: 0 })).rejects.toThrow('promptsPerStep');
  });
});

test('the command line: train with a share held out, evaluate on it; a new model of one’s own words', () => {
  const rows = task.sample('train', 20, 1).map(({ prompt, answer }) => ({ instruction: prompt, output: answer }));
  const source = file('own.jsonl', lines(rows));
  const output = path.join(temporaryFolder(), 'run');
  const english = file('eng.jsonl', '{"prompt":"The quick brown fox","answer":"jumps over the lazy dog"}');
  const create = 'model={create: {dModel: 16, nHeads: 2, nLayers: 1, maxSequenceLength: 64}}';
  const fast = ['--batch-size', '4', '--learning-rate', '1e-2', '--set', 'warmupSteps=5', '--max-steps', '60', '-q'];
  const fromNothing = ['--set', create, '-o', path.join(output, 'new'), ...fast];
  const outcomes = inOneProcess([
    [
      'train',
      'sft',
      '-d',
      source,
      '--validation',
      '0.2',
      '--set',
      create,
      '-o',
      output,
      '--max-steps',
      '2',
      '--eval-every',
      '1',
    ],
    ['eval', '-d', source, '--validation', '0.2', '-m', path.join(output, 'final'), '-s', 'confidence:0.9', '--json'],
    ['eval', '-d', source, '-m', path.join(output, 'final'), '-s', 'confidence:0.9', '-q'],
    ['train', 'sft', '-d', source, '--validation', '1.5'],
    ['train', 'sft', '-d', source, '--validation', 'gone.json', '--set', create],
    ['train', 'sft', '-d', 'st1', '--validation', '0.1'],
    ['eval', '-d', source, '--prompts', 'thinking'],
    ['eval', '-d', source, '--compat', 'reference'],
    ['train', '--resume', output, '--validation', '0.5'],
    [
      ...['train', 'grpo', '-d', source, '-m', path.join(output, 'final'), '-o', path.join(output, 'grpo')],
      ...['--set', 'rewards={exact: {type: exactAnswer}}'],
    ],
    [
      ...['train', 'sft', '-d', path.relative('.', english), '--validation', path.relative('.', english)],
      ...fromNothing,
    ],
    ['eval', '-d', english, '-m', path.join(output, 'new', 'final'), '-s', 'confidence:0.9', '--json'],
  ]);
  const [train, held, all, share, gone, known, prompts, compat, resume, lengths, made, learnt] = outcomes;
  expect(train).toMatchObject({ code: 0, stdout: `${path.join(output, 'final')}\n` });
  expect(train.stderr).toMatch(/held out: loss/);
  expect(JSON.parse(held.stdout).config).toMatchObject({ split: 'validation', count: 4, score: 'exact match' });
  expect(all.stdout).toMatch(
    /20 prompts of the test split of own\.jsonl, seed 0; \d+ tokens, right: the answer exactly/,
  );
  expect(share.stderr).toContain('Expected a file, or a share greater than 0 and less than 1.');
  expect(gone.stderr).toContain('--validation: expected a file that exists, got "gone.json"');
  expect(known.stderr).toContain('--validation: expected only with own examples');
  expect(prompts.stderr).toContain('--prompts: expected only with a data set such as gsm8k');
  expect(compat.stderr).toContain('--compat: expected only with a data set such as gsm8k');
  expect(resume.stderr).toContain('--validation: not together with --resume');
  for (const { code } of [share, gone, known, prompts, compat, resume, lengths]) expect(code).toBe(2);
  expect(lengths.stderr).toContain('--max-tokens: expected a number of tokens');
  // A new model knows the words of the examples, and learns them; the run finds its files from everywhere.
  expect(made.code).toBe(0);
  expect(JSON.parse(learnt.stdout).results[0].accuracy).toBe(1);
  const { config } = JSON.parse(readFileSync(path.join(output, 'new', 'train.json'), 'utf8'));
  expect(config).toMatchObject({ dataset: english, validation: english });
});
