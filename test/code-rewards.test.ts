import { type datasets, rewards } from '../lib';
import { outputEqual, parseExact } from '../lib/grading/python-values';
import { batchOf } from './programs';

jest.setTimeout(180_000);
afterAll(() => rewards.sharedSandbox().dispose());

const metaOf = ({
  fn_name: functionName,
  inputs,
  outputs,
}: {
  fn_name: string;
  inputs: unknown[];
  outputs: unknown[];
}): datasets.CodeMeta => ({
  id: '0',
  head: '',
  functionName,
  tests: { kind: 'calls', functionName, inputs, outputs },
});

test('an example without tests has no reward', async () => {
  expect(await rewards.codeTests()(batchOf(['x'], null))).toEqual([null]);
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

type Calls = [program: string, expected: unknown, right: boolean, input?: unknown[]];
const returns = (value: string) => `def f(*given):\n    return ${value}`;
const CALLS: Calls[] = [
  // Lists, as they stand and in a list of one.
  [returns('[1, 2, 3]'), [1, 2, 3], true],
  [returns('[1, 2, 3]'), [[1, 2, 3]], true],
  [returns('[1, 2]'), [1, 2, 3], false],
  [returns('1'), [1, 2, 3], false],
  [returns('7'), 7, true],
  [returns('7'), [7], true],
  [returns('[7]'), [7], true],
  [returns('[7]'), [[7]], true],
  [returns('7'), [[7]], false],
  [returns('[]'), [], true],
  [returns('[]'), [[]], true],
  [returns('None'), [], false],
  [returns('None'), [null], true],
  [returns('None'), null, true],
  [
    returns('[[1, 2], [3, 4]]'),
    [
      [1, 2],
      [3, 4],
    ],
    true,
  ],
  [
    returns('[[1, 2]]'),
    [
      [1, 2],
      [3, 4],
    ],
    false,
  ],
  // Tuples are lists; sets, ranges and texts are not.
  [returns('(1, 2)'), [1, 2], true],
  [returns('(1, 2)'), [[1, 2]], true],
  [
    returns('[(1, 2), (3, 4)]'),
    [
      [
        [1, 2],
        [3, 4],
      ],
    ],
    true,
  ],
  [returns('{1, 2}'), [[1, 2]], false],
  [returns('range(2)'), [[0, 1]], false],
  [returns('"12"'), [['1', '2']], false],
  [returns('["a"]'), ['a'], true],
  // Numbers, as == of Python has them.
  [returns('True'), [1], true],
  [returns('1'), [true], true],
  [returns('1.0'), [1], true],
  [returns('0'), [false], true],
  [returns('0'), [null], false],
  [returns('"1"'), [1], false],
  [returns('0.1 + 0.2'), [0.3], false],
  [returns('0.5'), [0.5], true],
  [returns('10 ** 20'), [{ $int: '100000000000000000000' }], true],
  [returns('10 ** 20 + 1'), [1e20], false],
  [returns('__import__("decimal").Decimal("0.5")'), [0.5], true],
  [returns('__import__("decimal").Decimal("0.1")'), [0.1], false],
  [returns('__import__("fractions").Fraction(6, 2)'), [3], true],
  [returns('float("nan")'), [{ $float: 'nan' }], false],
  [returns('float("inf")'), [{ $float: 'inf' }], true],
  // Keys that JSON has made texts.
  [returns('{1: 2, 3: 4}'), { 1: 2, 3: 4 }, true],
  [returns('{1: 2, 3: 4}'), [{ 3: 4, 1: 2 }], true],
  [returns('{1: 2}'), [{ 1: 2, 3: 4 }], false],
  [returns('{-1: "a"}'), [{ '-1': 'a' }], true],
  [returns('{"1": 2}'), [{ 1: 2 }], false],
  [returns('{"a": 1}'), [{ a: 1 }], true],
  [returns('{"a": 1, 2: 3}'), [{ a: 1, 2: 3 }], false],
  [returns('{True: 1}'), [{ 1: 1 }], true],
  ['def f(d):\n    return sum(d)', [3], true, [{ 1: 'a', 2: 'b' }]],
  ['def f(d, k):\n    return d[k]', ['b'], true, [{ 1: 'a', 2: 'b' }, 2]],
  ['def f(d):\n    return d["x"]', [1], true, [{ x: 1 }]],
  // As many values as were expected.
  [returns('[1] * 300000'), [Array(300_000).fill(1)], true],
];

test('values of calls, as APPS compares them', async () => {
  const sandbox = new rewards.PythonSandbox({ workers: 2 });
  try {
    const got = await Promise.all(
      CALLS.map(([program, expected, , input = []]) =>
        rewards.gradeProgram(
          program,
          { kind: 'calls', functionName: 'f', inputs: [input], outputs: [expected] },
          sandbox,
        ),
      ),
    );
    const shown = ([program, expected]: Calls) => `${program} ~ ${JSON.stringify(expected).slice(0, 80)}`;
    expect(CALLS.filter(([, , right], i) => got[i].passed !== right).map(shown)).toEqual([]);
    // The reference compares the first element of any list, and knows no keys but texts.
    const calls = { kind: 'calls', functionName: 'f', inputs: [[]], outputs: [[1, 2, 3]] } as const;
    expect((await rewards.gradeProgram(returns('1'), calls, sandbox, { compat: 'reference' })).passed).toBe(true);
    expect((await rewards.gradeProgram(returns('[1, 2, 3]'), calls, sandbox, { compat: 'reference' })).passed).toBe(
      false,
    );
  } finally {
    await sandbox.dispose();
  }
});

test.each<[written: string, expected: string, right: boolean]>([
  ['3\n', '3', true],
  ['3', '3\n', true],
  ['3\n', '4', false],
  ['', '', true],
  ['\n', '', true],
  ['1', '', false],
  ['', '1', false],
  // White space and blank lines.
  ['a b \nc\n', 'a b\nc', true],
  ['a b\nc', 'a b  \n c \n\n', true],
  ['a\r\nb\r\n', 'a\nb\n', true],
  ['a\nb\n', 'a\r\nb\r\n', true],
  ['a\n\nb', 'a\nb', true],
  ['a  b', 'a b', true],
  ['ab', 'a b', false],
  ['a\nb', 'a b', false],
  // Order and number count.
  ['b a', 'a b', false],
  ['b\na', 'a\nb', false],
  ['a a b', 'a b', false],
  ['a\na', 'a', false],
  ['a', 'a\na', false],
  ['YES', 'Yes', false],
  // Numbers.
  ['0.50', '0.5', true],
  ['.5', '0.5', true],
  ['5e-1', '0.5', true],
  ['3', '3.0', true],
  ['007', '7', true],
  ['-0', '0', true],
  ['0.333333333', '0.3333333', true],
  ['0.3333', '0.3334', false],
  ['100000.0', '100001.0', true],
  ['100000', '100001', false],
  ['1000000000000000000000', '1000000000000000000001', false],
  ['0.51', '0.5', false],
  ['0.5\n0.25', '0.50\n0.250', true],
  ['1 0.50', '1.0 0.5', true],
  ['1 0.1234', '1 0.1236', false],
  ['1 0.12341', '1 0.12342', true],
  // 1/16 is rounded to an even digit.
  ['1 0.0625', '1 0.0627', false],
  ['1 0.0625', '1 0.0621', true],
  ['nan', 'nan', true],
  ['nan', 'NaN', false],
  ['inf', 'Infinity', true],
  // Not where words are among them.
  ['Yes 0.50', 'Yes 0.5', false],
  ['Case 1\n0.50', 'Case 1\n0.5', false],
  ['0x10', '16', false],
])('output %j for %j: %p', (written, expected, right) => expect(outputEqual(written, expected)).toBe(right));

test('JSON as Python writes it', () => {
  expect(parseExact('[12345678901234567890, 0.30000000000000004, -1e-20, "12345678901234567890 NaN", NaN]')).toEqual([
    { $int: '12345678901234567890' },
    0.30000000000000004,
    -1e-20,
    '12345678901234567890 NaN',
    { $float: 'nan' },
  ]);
  expect(parseExact('{"a": -Infinity, "b": -1234567890123456.5}')).toEqual({
    a: { $float: '-inf' },
    b: -1234567890123456.5,
  });
});

test('pass@k', () => {
  expect(rewards.passAtK(10, 0, 1)).toBe(0);
  expect(rewards.passAtK(10, 10, 3)).toBe(1);
  expect(rewards.passAtK(10, 3, 1)).toBeCloseTo(0.3, 12);
  // 1 − C(7,2)/C(10,2) = 1 − 21/45.
  expect(rewards.passAtK(10, 3, 2)).toBeCloseTo(1 - 21 / 45, 12);
  expect(rewards.passAtK(5, 3, 3)).toBe(1);
  expect(() => rewards.passAtK(3, 1, 4)).toThrow('k: expected 1 to the number of samples (3), got 4');
});
