// GSM8K and its kin: schemas, prompts, files of every format, the hub's layout; and training and measuring on them,
// with small files of the same form.
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parquetWriteBuffer } from 'hyparquet-writer';
import { datasets, type Example, rewards } from '../lib';
import { temporaryFolder } from './helpers';
import { HubServer } from './hub-server';

const lines = (records: object[]) => `${records.map((record) => JSON.stringify(record)).join('\n')}\n`;

function file(name: string, content: string | Buffer): string {
  const full = path.join(temporaryFolder(), name);
  mkdirSync(path.dirname(full), { recursive: true });
  writeFileSync(full, content);
  return full;
}

const GSM8K = [
  { question: 'Tom has 7 pens and buys 2. How many?', answer: '7 + 2 = <<7+2=9>>9\n#### 9' },
  { question: 'A car costs $1,200. Two cars?', answer: 'Twice 1200.\n#### 2,400' },
];
const MATH500 = [
  {
    problem: 'What is $\\frac12 + \\frac14$?',
    solution: 'It is $\\boxed{\\frac{3}{4}}$.',
    answer: '\\frac{3}{4}',
    subject: 'Prealgebra',
    unique_id: 'test/1',
  },
];
const DAPO = [{ prompt: ' What is 6 * 7? ', solution: '42', data_source: 'math_dapo' }];
const HUMANEVAL = [
  {
    task_id: 'HumanEval/0',
    prompt: 'def add(a: int, b: int) -> int:\n    """Adds.\n    """\n',
    entry_point: 'add',
    canonical_solution: '    return a + b\n',
    test: 'def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(0, 0) == 0\n',
  },
];
const MBPP = [
  {
    task_id: 11,
    text: 'Write a function to double a number.',
    code: 'def double(x):\n    return 2 * x',
    test_list: ['assert double(2) == 4', 'assert double(0) == 0', 'assert double(-1) == -2'],
    test_setup_code: '',
    challenge_test_list: [],
  },
];
const SANITIZED = [
  {
    ...MBPP[0],
    text: undefined,
    prompt: 'Double a number.',
    test_imports: ['import math'],
    test_setup_code: undefined,
  },
];
const APPS = [
  {
    problem_id: 1,
    question: '  Add two numbers.\n  Return the sum.',
    solutions: '[]',
    input_output:
      '{"fn_name": "add", "inputs": [[1, 2], [12345678901234567890, 1]], "outputs": [[3], [12345678901234567891]]}',
    difficulty: 'introductory',
    starter_code: '\ndef add(a, b):\n    ',
  },
  {
    problem_id: 2,
    question: 'Echo.',
    solutions: '',
    input_output: '{"inputs": ["4\\n"], "outputs": ["8\\n"]}',
    difficulty: 'introductory',
    starter_code: '',
  },
  {
    problem_id: 3,
    question: 'Hard.',
    solutions: '',
    input_output: '{"fn_name": "f", "inputs": [], "outputs": []}',
    difficulty: 'interview',
    starter_code: '',
  },
];

const sources: Record<datasets.BenchmarkName, object[]> = {
  gsm8k: GSM8K,
  math500: MATH500,
  dapo17k: DAPO,
  humaneval: HUMANEVAL,
  mbpp: MBPP,
  'mbpp-sanitized': SANITIZED,
  apps: APPS,
};

const first = async (name: datasets.BenchmarkName, options: datasets.BenchmarkOptions = {}): Promise<Example> => {
  const dataset = await datasets.openBenchmark(name, { source: file('data.jsonl', lines(sources[name])), ...options });
  return dataset.sample('test', 1, 0)[0];
};

describe('prompts', () => {
  const steps =
    'You are a math expert.\nFollow these rules:\n1) Carefully read the question and identify what is being asked.\n2) Solve the problem step by step, showing the intermediate reasoning.\n3) Present the final answer inside \\boxed{}.';
  const thinking =
    "You are a math expert. To answer the user's question, first write your full reasoning inside <think></think>. After thinking, provide only the final result inside an <answer></answer> block, wrapping the answer in \\boxed{}.";

  test.each(['gsm8k', 'math500', 'dapo17k'] as const)('%s', async (name) => {
    const question = name === 'gsm8k' ? GSM8K[0].question : name === 'math500' ? MATH500[0].problem : 'What is 6 * 7?';
    expect((await first(name, { prompts: 'non-thinking' })).prompt).toEqual([
      { role: 'system', content: steps },
      { role: 'user', content: question },
    ]);
    expect((await first(name, { prompts: 'thinking' })).prompt).toEqual([
      { role: 'system', content: thinking },
      { role: 'user', content: question },
    ]);
    expect((await first(name)).prompt).toEqual([{ role: 'user', content: `${steps}\n\n\n${question}` }]);
  });

  test('apps', async () => {
    const plain = (await first('apps', { prompts: 'non-thinking' })).prompt as readonly { content: string }[];
    expect(plain[1].content).toBe(
      'Write a solution to the following problem:\nAdd two numbers.\nReturn the sum.\n\nStarter code:\ndef add(a, b):.',
    );
    expect(plain[0].content).toMatch(
      /^You are an expert Python programmer\. Carefully read and think .* Wrap the final code inside a ```python``` code block\.$/,
    );
    const thought = (await first('apps', { prompts: 'thinking' })).prompt as readonly { content: string }[];
    expect(thought[1].content).toMatch(/def add\(a, b\):\. Make sure to include all your thinking steps\.$/);
    expect(thought[0].content).toMatch(/i\.e\., <think> reasonin\n```python\nanswer code here\n```\.$/);
  });

  test('humaneval and mbpp', async () => {
    expect((await first('humaneval')).prompt).toEqual([
      {
        role: 'user',
        content: `Write a solution to the following problem and make sure that it passes the tests:\n${HUMANEVAL[0].prompt}`,
      },
    ]);
    expect((await first('mbpp')).prompt).toEqual([
      {
        role: 'user',
        content:
          'You are an expert Python programmer, and here is your task: Write a function to double a number. Your code should pass these tests:\n\nassert double(2) == 4\nassert double(0) == 0\nassert double(-1) == -2. Respond with the completed solution inside a ```python``` code block.',
      },
    ]);
    expect(((await first('mbpp-sanitized')).prompt as readonly { content: string }[])[0].content).toMatch(
      /your task: Double a number\. Your code/,
    );
  });
});

describe('files', () => {
  test.each(Object.keys(sources) as datasets.BenchmarkName[])(
    '%s: JSON lines, JSON and Parquet hold the same',
    async (name) => {
      const records = sources[name].map((record) => JSON.parse(JSON.stringify(record)) as Record<string, unknown>);
      const columns = Object.keys(records[0]).map((key) => ({ name: key, data: records.map((record) => record[key]) }));
      const parquet = Buffer.from(parquetWriteBuffer({ columnData: columns as never }));
      const read = async (source: string) => (await datasets.openBenchmark(name, { source })).finite;
      const fromLines = await read(file('a.jsonl', lines(records)));
      expect(fromLines?.test?.length).toBe(name === 'apps' || name === 'gsm8k' ? 2 : 1);
      expect(await read(file('a.json', JSON.stringify(records)))).toEqual(fromLines);
      // HumanEval has no other test than strings; lists of strings are written as JSON columns.
      if (name !== 'mbpp' && name !== 'mbpp-sanitized')
        expect(await read(file('a.parquet', parquet))).toEqual(fromLines);
    },
  );

  test('a folder laid out as on the hub', async () => {
    const folder = temporaryFolder();
    for (const [name, records] of [
      ['main/train-00000-of-00002.jsonl', [GSM8K[0]]],
      ['main/train-00001-of-00002.jsonl', [GSM8K[1]]],
      ['main/test-00000-of-00001.jsonl', [GSM8K[1]]],
      ['socratic/test-00000-of-00001.jsonl', [GSM8K[0]]],
    ] as const) {
      mkdirSync(path.dirname(path.join(folder, name)), { recursive: true });
      writeFileSync(path.join(folder, name), lines([...records]));
    }
    writeFileSync(path.join(folder, 'README.md'), '# train');
    const dataset = await datasets.open(`gsm8k:${folder}`);
    expect(Object.entries(dataset.finite!).map(([split, rows]) => [split, rows.map(({ answer }) => answer)])).toEqual([
      ['train', ['9', '2,400']],
      ['test', ['2,400']],
    ]);
    expect(() => dataset.sample('validation', 1, 0)).toThrow('split: gsm8k has train, test, got "validation"');
    expect(() => dataset.sample('test', 2, 0)).toThrow(
      'count: expected no more prompts than the test split of gsm8k has (1), got 2',
    );
    const draws = [1, 2, 3, 4, 5, 6].map((seed) => dataset.sample('train', 2, seed).map(({ answer }) => answer));
    expect(new Set(draws.map(String)).size).toBe(2);
    expect(dataset.sample('train', 2, 1)).toEqual(dataset.sample('train', 2, 1));
  });

  test.each([
    [
      'gsm8k',
      '{"question": "a", "answer": "#### 1"}\n{"question": 3, "answer": "x"}',
      'data.jsonl, line 2: field "question": expected string, got number',
    ],
    ['gsm8k', '{"question": "a"}', 'data.jsonl, line 1: field "answer": expected string, got none'],
    [
      'gsm8k',
      '{"question": "a", "answer": "9"}',
      'data.jsonl, line 1: field "answer": expected an answer behind "####", got none',
    ],
    ['gsm8k', '{"question": "a",', 'data.jsonl, line 1: expected JSON, got '],
    ['gsm8k', '[1]\n', 'data.jsonl, line 1: expected object, got a list of 1'],
    ['gsm8k', '\n', 'expected at least one problem for the split test, got none'],
    [
      'math500',
      '{"problem": "p"}',
      'line 1: field "answer": expected an answer, or a solution with a box, got neither',
    ],
    ['mbpp', '{"text": "t", "test_list": ["a", 2]}', 'line 1: field "test_list.1": expected string, got number'],
    [
      'apps',
      JSON.stringify({ ...APPS[0], input_output: '{"inputs"' }),
      'line 1: field "input_output": expected JSON, got ',
    ],
    [
      'apps',
      JSON.stringify({ ...APPS[0], input_output: '{"inputs": 1}' }),
      'line 1: field "input_output": expected lists "inputs" and "outputs"',
    ],
  ] as const)('%s: %s', async (name, text, message) => {
    const opened = datasets.openBenchmark(name, { source: file('data.jsonl', text), splits: ['test'] });
    await expect(opened).rejects.toMatchObject({ code: 'BAD_DATASET', message: expect.stringContaining(message) });
  });

  test('from the hub, once', async () => {
    const records = GSM8K.map((record) => ({ ...record }));
    const columns = Object.keys(records[0]).map((name) => ({
      name,
      data: records.map((record) => record[name as 'answer']),
    }));
    const parquet = Buffer.from(parquetWriteBuffer({ columnData: columns as never }));
    const hub = await new HubServer(
      new Map([
        ['README.md', Buffer.from('# GSM8K')],
        ['main/test-00000-of-00001.parquet', parquet],
        ['main/train-00000-of-00001.jsonl', Buffer.from(lines([GSM8K[0]]))],
        ['socratic/test-00000-of-00001.parquet', Buffer.from('another configuration')],
      ]),
      'openai/gsm8k',
    ).start();
    const before = { ...process.env };
    process.env.HF_ENDPOINT = hub.url;
    process.env.HF_HUB_CACHE = temporaryFolder();
    process.env.HF_TOKEN = 'hf_secret';
    const quiet = jest.spyOn(console, 'debug').mockImplementation(() => {});
    try {
      for (let i = 0; i < 2; i++) {
        const dataset = await datasets.open('gsm8k');
        expect(
          Object.entries(dataset.finite!).map(([split, rows]) => [split, rows.map(({ answer }) => answer)]),
        ).toEqual([
          ['train', ['9']],
          ['test', ['9', '2,400']],
        ]);
      }
      const content = hub.seen.filter(
        ({ path: asked, range }) => asked.includes('/resolve/') && asked.includes('test-') && range === null,
      );
      expect(content.length).toBeLessThanOrEqual(1);
      expect(new Set(hub.seen.map(({ authorization }) => authorization))).toEqual(new Set(['Bearer hf_secret']));
      // Nothing is said where nobody asked.
      expect(quiet).not.toHaveBeenCalled();
      await hub.stop();
      await expect(datasets.open('gsm8k:openai/gsm8k@main')).rejects.toMatchObject({
        code: 'DOWNLOAD_FAILED',
        message: expect.stringMatching(/^data set openai\/gsm8k@main: .* HF_HUB_OFFLINE=1 uses$/),
      });
      process.env.HF_HUB_OFFLINE = '1';
      expect((await datasets.open('gsm8k')).finite?.test).toHaveLength(2);
      await expect(datasets.open('math500')).rejects.toThrow('HF_HUB_OFFLINE is set and the cache has nothing of it');
    } finally {
      quiet.mockRestore();
      process.env = before;
      await hub.stop().catch(() => {});
    }
  });

  test('a file that is no Parquet', async () => {
    const opened = datasets.open(`gsm8k:${file('a.parquet', 'no parquet at all, but long enough')}`);
    await expect(opened).rejects.toMatchObject({ code: 'BAD_DATASET', message: expect.stringContaining('a.parquet') });
  });

  test('names and options', async () => {
    await expect(datasets.open('gsm9k')).rejects.toThrow(/dataset: expected one of st1, .*gsm8k, .*, got "gsm9k"/);
    await expect(datasets.open('gsm8k:no/such/file.jsonl')).rejects.toThrow(
      'dataset: expected a file, a folder or a hub id',
    );
    await expect(datasets.openBenchmark('gsm8k', { prompts: 'loud' as never })).rejects.toThrow(
      'prompts: expected "thinking" or',
    );
    await expect(datasets.openBenchmark('gsm8k', { colour: 1 } as never)).rejects.toThrow(
      'options: unknown key "colour"',
    );
    expect((await datasets.open('st1')).name).toBe('st1');
  });

  test('a data set of the user', async () => {
    const own = { ...datasets.byName('st1'), name: 'own' };
    datasets.register('own', () => own);
    expect(await datasets.open('own')).toBe(own);
    expect(() => datasets.register('own', () => own)).toThrow('name: expected one that is not taken, got "own"');
    expect(() => datasets.register('gsm8k', () => own)).toThrow(TypeError);
    expect(() => datasets.register('a b', () => own)).toThrow(TypeError);
  });
});

describe('right and wrong', () => {
  afterAll(() => rewards.sharedSandbox().dispose());

  test.each([
    ['gsm8k', 'So \\boxed{9}.', true, true],
    ['gsm8k', 'The total is 9', true, true],
    ['gsm8k', 'So \\boxed{\\frac{18}{2}}.', true, false],
    ['gsm8k', 'So \\boxed{8}.', false, false],
    ['gsm8k', '', false, false],
    ['math500', '\\boxed{0.75}', true, false],
    ['math500', '\\boxed{\\frac34}', true, true],
    ['math500', '\\boxed{\\frac43}', false, false],
    ['dapo17k', 'It is \\boxed{42}', true, true],
  ] as const)('%s: %s', async (name, completion, ours, theirs) => {
    for (const [compat, expected] of [
      [undefined, ours],
      ['reference', theirs],
    ] as const) {
      const dataset = await datasets.openBenchmark(name, {
        source: file('data.jsonl', lines(sources[name])),
        ...(compat && { compat }),
      });
      expect(await dataset.verify(dataset.sample('test', 1, 0)[0], completion)).toBe(expected);
    }
  });

  test.each([
    ['humaneval', 'Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nThat is it.', true],
    ['humaneval', '```python\n    return a + b\n```', true],
    ['humaneval', '    return a + b', true],
    ['humaneval', '    return a + b\n\nThis function adds its two arguments.', true],
    ['humaneval', '    return a + b\n\ndef other(x):\n    return (x', true],
    ['humaneval', 'This function adds its two arguments.', false],
    ['humaneval', '```python\ndef add(a, b):\n    return a - b\n```', false],
    ['humaneval', '```python\nimport sys\nsys.exit(0)\n```', false],
    ['mbpp', '```python\ndef double(x):\n    return x + x\n```', true],
    ['mbpp', 'def double(x):\n    return x * x', false],
    ['mbpp', 'def double(x):\n    return x + x\nThat is it: x + x.', true],
    ['mbpp-sanitized', '```python\ndef double(x):\n    return math.prod([2, x])\n```', true],
    ['apps', '```python\ndef add(a, b):\n    return a + b\n```', true],
    ['apps', '```python\nclass Solution:\n    def add(self, a, b):\n        return a + b\n```', true],
    ['apps', '```python\ndef add(a, b):\n    return float(a + b)\n```', false],
    ['apps', '', false],
  ] as const)('%s: %s', async (name, completion, expected) => {
    const dataset = await datasets.openBenchmark(name, { source: file('data.jsonl', lines(sources[name])) });
    expect(await dataset.verify(dataset.sample('test', 1, 0)[0], completion)).toBe(expected);
  });

  test('a program that reads and writes', async () => {
    const dataset = await datasets.openBenchmark('apps', { source: file('data.jsonl', lines(APPS)) });
    const [, echo] = dataset.sample('test', 2, 0);
    expect(await dataset.verify(echo, '```python\nprint(int(input()) * 2)\n```')).toBe(true);
    expect(await dataset.verify(echo, '```python\nprint(int(input()) * 3)\n```')).toBe(false);
    const functions = await datasets.openBenchmark('apps', {
      source: file('data.jsonl', lines(APPS)),
      functionsOnly: true,
    });
    expect(functions.finite?.test).toHaveLength(1);
  });
});
