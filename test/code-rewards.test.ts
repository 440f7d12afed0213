// Rewards for code: the reference's values, Python's equality outside of Python, pass@k, and one run for equal
// programs.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { type datasets, type RewardBatch, rewards } from '../lib';

jest.setTimeout(180_000);
afterAll(() => rewards.sharedSandbox().dispose());

function batchOf(completions: string[], meta: datasets.CodeMeta | null): RewardBatch {
  return {
    completions,
    examples: completions.map(() => ({ prompt: '', answer: '', category: '', meta })),
    results: completions.map(() => ({ nfe: 1 }) as RewardBatch['results'][number]),
    genLength: 1,
    verify: null,
    model: null as never,
  };
}

interface Row {
  completion: string;
  input_output: { fn_name: string; inputs: unknown[]; outputs: unknown[] };
  reward: number;
}
const file = path.join(__dirname, 'fixtures', 'golden', 'rewards', 'apps_reward.json');
const { rows } = JSON.parse(readFileSync(file, 'utf8')) as { rows: Row[] };
const metaOf = ({ fn_name: functionName, inputs, outputs }: Row['input_output']): datasets.CodeMeta => ({
  id: '0',
  head: '',
  functionName,
  tests: { kind: 'calls', functionName, inputs, outputs },
});

test("the reference's rewards", async () => {
  expect(rows).toHaveLength(10);
  const reward = rewards.codeTests();
  for (const row of rows)
    expect({ row, got: await reward(batchOf([row.completion], metaOf(row.input_output))) }).toEqual({
      row,
      got: [row.reward],
    });
  expect(await reward(batchOf(['x'], null))).toEqual([null]);
});

test('time and memory that run out cost as an exception does', async () => {
  const sandbox = new rewards.PythonSandbox({ workers: 1, timeLimitSeconds: 2, memoryLimitMB: 96 });
  try {
    const reward = rewards.codeTests({ sandbox });
    const meta = metaOf({ fn_name: 'f', inputs: [[1]], outputs: [[1]] });
    const programs = [
      'def f(x):\n    while True: pass',
      'def f(x): return "a" * 10**9',
      'import os\nos._exit(0)',
      'def f(x): return x',
    ];
    expect(await reward(batchOf(programs, meta))).toEqual([-0.05, -0.05, -0.05, 1]);
  } finally {
    await sandbox.dispose();
  }
});

test('a program cannot make its own result right', async () => {
  const reward = rewards.codeTests();
  const meta = metaOf({ fn_name: 'f', inputs: [[1]], outputs: [[2]] });
  const always =
    'class A:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\ndef f(x): return A()';
  const list = 'class L(list):\n    def __eq__(self, other): return True\ndef f(x): return L([1])';
  const integer =
    'class I(int):\n    def __eq__(self, other): return True\n    def __add__(self, other): return 2\ndef f(x): return I(1)';
  expect(await reward(batchOf([always, list, integer], meta))).toEqual([0, 0, 0]);
});

test('equal programs of a group run once', async () => {
  const sandbox = new rewards.PythonSandbox({ workers: 1 });
  try {
    let runs = 0;
    const { run } = sandbox;
    sandbox.run = (...args) => {
      runs++;
      return run.apply(sandbox, args);
    };
    const meta = metaOf({ fn_name: 'f', inputs: [[1], [2]], outputs: [[1], [2]] });
    expect(
      await rewards.codeTests({ sandbox })(
        batchOf(['def f(x): return x', 'def f(x): return x', 'def f(x): return 1'], meta),
      ),
    ).toEqual([1, 1, 0]);
    expect(runs).toBe(4);
  } finally {
    await sandbox.dispose();
  }
});

test.each<[unknown, unknown, boolean]>([
  [1, 1, true],
  [1, true, true],
  [[1, [2, 3]], [1, [2, 3]], true],
  [[1, 2], [2, 1], false],
  ['1', 1, false],
  [null, null, true],
  [null, 0, false],
  [0.1, 0.1, true],
  [0.30000000000000004, 0.3, false],
  [{ $int: '123456789012345678901' }, { $int: '123456789012345678901' }, true],
  [{ $int: '123456789012345678901' }, 1e20, false],
  [{ $dict: [['a', 1]] }, { a: 1 }, true],
  [{ $dict: [[1, 1]] }, { 1: 1 }, false],
  [{ $dict: [['a', 1]] }, { a: 1, b: 2 }, false],
  [{ $float: 'nan' }, null, false],
  [{ $set: [1] }, [1], false],
  [{ $other: 'A' }, 'A', false],
  [[], {}, false],
])('%j == %j: %p', (actual, expected, equal) => expect(rewards.pythonEqual(actual, expected)).toBe(equal));

test('pass@k', () => {
  expect(rewards.passAtK(10, 0, 1)).toBe(0);
  expect(rewards.passAtK(10, 10, 3)).toBe(1);
  expect(rewards.passAtK(10, 3, 1)).toBeCloseTo(0.3, 12);
  // 1 − C(7,2)/C(10,2) = 1 − 21/45.
  expect(rewards.passAtK(10, 3, 2)).toBeCloseTo(1 - 21 / 45, 12);
  expect(rewards.passAtK(5, 3, 3)).toBe(1);
  expect(() => rewards.passAtK(3, 1, 4)).toThrow('k: expected 1 to the number of samples (3), got 4');
});
