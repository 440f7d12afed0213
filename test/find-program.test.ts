// Where the program in an answer is found: the shapes that answers of language models have, each with the right program
// in the place that counts and a wrong one elsewhere, and the other way round.
import { datasets, rewards } from '../lib';
import { PYTHON_FINDER } from '../lib/grading/python-finder';
import { batchOf } from './programs';

const sandbox = new rewards.PythonSandbox({ workers: 2, timeLimitSeconds: 120 });
afterAll(() => sandbox.dispose());

const F = '```';
const fence = (code: string, language = 'python') => `${F}${language}\n${code}${F}`;
const indented = (code: string, margin: string) => code.replace(/^(?=.)/gm, margin);

/** Answers by name: from the program that counts and one that does not. */
const SHAPES: Record<string, (right: string, wrong: string) => string> = {
  'the program alone': (right) => right,
  'a word before': (right) => `Solution\n\n${right}`,
  'the name of the language before': (right) => `python\n${right}`,
  'words around': (right) => `Sure! It's easy.\n\n${right}\nThis works, because it's right.`,
  'a word behind': (right) => `${right}\nDone`,
  'a note behind': (right) => `${right}\nNote: fast`,
  headings: (right) => `# Solution\n\n${right}\n## Notes\nIt's fine.`,
  'carriage returns': (right) => fence(right).replace(/\n/g, '\r\n'),
  'carriage returns alone': (right) => fence(right).replace(/\n/g, '\r'),
  'a byte order mark': (right) => `\ufeff${right}`,
  'a byte order mark in a fence': (right) => fence(`\ufeff${right}`),
  'spaces that do not break': (right) => fence(right.replace(/ {4}/g, '\xa0\xa0\xa0\xa0')),
  'an end token on the last line': (right) => `${right.trimEnd()}<|endoftext|>`,
  'an end token of XML': (right) => `${right.trimEnd()}</s>`,
  'an end token in an open fence': (right) => `${F}python\n${right.trimEnd()}<|eot_id|>`,
  'another turn behind': (right, wrong) => `${fence(right)}<|im_end|>\n<|im_start|>user\n${fence(wrong)}`,
  'no language': (right) => fence(right, ''),
  ...Object.fromEntries(
    ['py', 'Python', 'PYTHON', ' python', 'python3', 'py3', 'python  ', 'ipython', '{.python}'].map((language) => [
      `the language "${language}"`,
      (right: string) => fence(right, language),
    ]),
  ),
  'a title': (right) => fence(right, 'python title="main.py"'),
  "a file's name": (right) => fence(right, 'main.py'),
  tildes: (right) => `~~~python\n${right}~~~`,
  'four backticks': (right) => `${F}\`python\n${right}${F}\``,
  'a fence in a fence': (right) => `${F}\`markdown\n${fence(right)}\n${F}\``,
  'the last fence at the end of a line': (right) => `${F}python\n${right.trimEnd()}${F}`,
  'the first fence behind words': (right) => `The code is: ${F}python\n${right}${F}`,
  'code on the line of the fence': (right) => `${F}python ${right}${F}`,
  'code on the line of the bare fence': (right) => `${F}${right}${F}`,
  'an open fence': (right) => `${F}python\n${right}`,
  'an open fence and words': (right) => `${F}python\n${right}\nIt does what's asked.`,
  'an open fence and another': (right, wrong) => `${F}python\n${wrong}\nNo:\n${fence(right)}`,
  'a mention of fences': (right) => `Use ${F}print${F} or \`x\`.\n${fence(right)}`,
  'a shell first': (right) => `Once:\n${fence('pip list\n', 'bash')}\nThen:\n${fence(right)}`,
  'a shell without a name first': (right) => `${fence('pip install x\n', '')}\n${fence(right)}`,
  'an example first': (right) => `${fence('>>> f(3)\n9\n', '')}\n${fence(right)}`,
  'text first': (right) => `${fence('Input: 3\nOutput: 9\n', 'text')}\n${fence(right)}`,
  'another language first': (right) => `${fence('int f(int x) { return 3 * x; }\n', 'c')}\n${fence(right)}`,
  'output behind': (right) => `${fence(right)}\nOutput:\n${fence('9\n', '')}`,
  'a call behind': (right) => `${fence(right)}\nUsage:\n${fence('result = unknown_name\n')}`,
  'a correction': (right, wrong) => `${fence(wrong)}\nThat is wrong.\n${fence(right)}`,
  'a correction without a language': (right, wrong) => `${fence(wrong)}\nBetter:\n${fence(right, '')}`,
  'a thought': (right, wrong) => `<think>\nPerhaps\n${fence(wrong)}\n</think>\n\n${fence(right)}`,
  'a thought that the prompt has opened': (right, wrong) => `Perhaps\n${fence(wrong)}\n</think>\n${fence(right)}`,
  'a thought with an open fence': (right, wrong) => `<think>\n${F}python\n${wrong}\n</think>\n${fence(right)}`,
  'a thought that does not end': (right, wrong) => `<think>\n${fence(wrong)}\nBetter:\n${fence(right)}`,
  'a thought behind': (right, wrong) => `${fence(right)}\n<think>\nOr ${fence(wrong)}`,
  'thoughts without fences': (right, wrong) => `<thinking>\n${wrong}\n</thinking>\n${right}`,
  'an answer tag': (right, wrong) => `${fence(wrong)}\n<answer>\n${fence(right)}\n</answer>`,
  'an answer tag without a fence': (right) => `So\n<answer>${right}</answer>`,
  'a thought and an answer': (right, wrong) => `<think>${fence(wrong)}</think><answer>${fence(right)}</answer>`,
  'in a list': (right) => `1. So:\n\n   ${F}python\n${indented(right, '   ')}   ${F}`,
  'deep in a list': (right) => `  * So:\n\n        ${F}python\n${indented(right, '        ')}        ${F}`,
  'on the line of a bullet': (right) => `- ${F}python\n${indented(right, '  ')}  ${F}`,
  'behind a tab': (right) => `\t${F}python\n${indented(right, '\t')}\t${F}`,
  'in a quotation': (right) => `> ${F}python\n${indented(right, '> ')}> ${F}`,
  'the marks of MBPP': (right) => `[BEGIN]\n${right}[DONE]`,
  'the marks of MBPP and a fence': (right) => `[BEGIN]\n${fence(right)}\n[DONE]`,
  'the marks of MBPP, twice': (right, wrong) => `[BEGIN]\n${right}[DONE]\n\nNext:\n[BEGIN]\n${wrong}[DONE]`,
  'the last mark of MBPP': (right) => `${right}[DONE]\nYou are an expert`,
  'the first mark of MBPP': (right) => `Sure\n[BEGIN]\n${right}`,
  'marks of Python': (right) => `[PYTHON]\n${right}[/PYTHON]\nSo it is.`,
};

const HEAD = `from typing import List


def above(numbers: List[int], limit: int) -> int:
    """ How many numbers are above the limit.
    >>> above([3, 8, 9], 5)
    2
    """

`;
const ABOVE = 'def above(numbers: List[int], limit: int) -> int:\n    return len([n for n in numbers if n > limit])\n';
const BODY = '    count = 0\n    for n in numbers:\n        if n > limit:\n            count += 1\n    return count\n';
const TRIPLE = 'def triple(x):\n    return 3 * x\n';
const ECHO = 'n = int(input())\nprint(3 * n)\n';

/** A problem: what stands before, what is tested, and a program that is wrong. */
const PROBLEMS = {
  script: {
    head: '',
    tests: 'assert triple(2) == 6\nassert triple(5) == 15',
    right: TRIPLE,
    wrong: TRIPLE.replace('3', '2'),
  },
  function: {
    head: HEAD,
    tests:
      'def check(candidate):\n    assert candidate([3, 8, 9], 5) == 2\n    assert candidate([3], 5) == 0\ncheck(above)',
    right: ABOVE,
    wrong: ABOVE.replace('n > limit', 'n < limit'),
  },
  call: { head: '', tests: 'triple', right: TRIPLE, wrong: TRIPLE.replace('3', '2') },
  program: { head: '', tests: '', right: ECHO, wrong: ECHO.replace('3', '2') },
};
type Problem = keyof typeof PROBLEMS;

const HELPER = 'def thrice(a):\n    return a + a + a\n';
const USER = 'def triple(x):\n    return thrice(x)\n';
const withDocumentation = (before: string, margin: string) =>
  `${before}${margin}"""Multiplies.\n\n${margin}${F}python\n${margin}triple(2)\n${margin}${F}\n${margin}"""\n`;

/** Single answers, and whether they are right. */
const ANSWERS: [name: string, problem: Problem, completion: string, right: boolean][] = [
  [
    'a fence in documentation',
    'script',
    fence(`${withDocumentation('def triple(x):\n', '    ')}    return 3 * x\n`),
    true,
  ],
  ["a fence in a module's documentation", 'call', fence(`${withDocumentation('', '')}${TRIPLE}`), true],
  ['a fence in a string', 'call', fence(`MARK = "${F}"\n${TRIPLE}`), true],
  ['a tag in a string', 'script', fence(`TAG = "</think>"\n${TRIPLE}`), true],
  ['another tag in a string', 'call', fence(`TAG = "<answer>"\n${TRIPLE}`), true],
  ['an answer tag of a number', 'script', `${fence(TRIPLE)}\n<answer>6</answer>`, true],
  ['a part that the last one uses', 'script', `${fence(HELPER)}\nand\n${fence(USER)}`, true],
  ['a part behind that it uses', 'call', `${fence(USER)}\nwith\n${fence(HELPER)}`, true],
  [
    'an import before',
    'call',
    `${fence('import math\n')}\n${fence('def triple(x):\n    return math.prod([3, x])\n')}`,
    true,
  ],
  ['wrong assertions behind', 'script', `${fence(TRIPLE)}\nTests:\n${fence('assert triple(1) == 7\n')}`, true],
  ['a stub behind', 'call', `${fence(TRIPLE)}\nIts head:\n${fence('def triple(x):\n    ...\n')}`, true],
  ['a function on one line', 'call', `${F}python def triple(x): return 3 * x${F}`, true],
  ['a lambda', 'script', fence('triple = lambda x: 3 * x\n'), true],
  ['a method of Solution', 'call', fence('class Solution:\n    def triple(self, x):\n        return 3 * x\n'), true],
  ['the first indentation lost', 'script', 'import math\n    def triple(x):\n        return 3 * x\n', true],
  ['another function', 'call', fence('def quadruple(x):\n    return 4 * x\n'), false],
  ['a thought alone', 'script', `<think>\n${fence(TRIPLE)}\n</think>\nThe answer is above.`, false],
  ['words alone', 'call', 'I cannot do that.', false],
  ['an empty fence', 'script', `${F}python\n${F}`, false],
  ['a body', 'function', BODY, true],
  ['a body in a fence', 'function', fence(BODY), true],
  ['a body in a list', 'function', `1. So:\n   ${F}python\n${indented(BODY, '   ')}   ${F}`, true],
  ['a body whose first line is not indented', 'function', BODY.trim(), true],
  ['a body that is not indented', 'function', BODY.replace(/^ {4}/gm, ''), true],
  ['a line of a body, not indented', 'function', 'return len([n for n in numbers if n > limit])', true],
  [
    'a condition, not indented',
    'function',
    'if not numbers:\n        return 0\n    return sum(n > limit for n in numbers)',
    true,
  ],
  ['a body not indented, behind words', 'function', 'So:\n\nreturn sum(n > limit for n in numbers)', true],
  ['a body and words', 'function', `${BODY}\nIt's done.`, true],
  [
    'a body and a helper',
    'function',
    '    return most(numbers, limit)\n\ndef most(a, b):\n    return sum(n > b for n in a)\n',
    true,
  ],
  ['a body behind a tab', 'function', '\treturn sum(n > limit for n in numbers)\n', true],
  ['a body with two spaces', 'function', '  return sum(n > limit for n in numbers)\n', true],
  ['a body behind a thought', 'function', `<think>return 0</think>\n${BODY}`, true],
  ['the prompt again', 'function', fence(`${HEAD}${BODY}`), true],
  ['a wrong body', 'function', 'return 0', false],
  ['a body that is a stub', 'function', '    raise NotImplementedError\n', false],
  ['words for a body', 'function', 'This function counts numbers.', false],
  [
    'a block for the main program',
    'program',
    fence(`def main():\n    print(3 * int(input()))\nif __name__ == "__main__":\n    main()\n`),
    true,
  ],
  ['a program and an example', 'program', `${fence(ECHO)}\nFor example:\n${fence('print(6)\n')}`, true],
  [
    'a program, its input and output',
    'program',
    `${fence(ECHO)}\n${fence('2\n', '')}\ngives\n${fence('6\n', '')}`,
    true,
  ],
  ['a program in two parts', 'program', `${fence(HELPER)}\nthen\n${fence('print(thrice(int(input())))\n')}`, true],
  ['a constant', 'program', fence('print(6)\n'), false],
];

const cases: [string, Problem, string, boolean][] = [
  ...Object.entries(SHAPES).flatMap(([name, shape]) =>
    (Object.keys(PROBLEMS) as Problem[]).flatMap((problem): [string, Problem, string, boolean][] => {
      const { right, wrong } = PROBLEMS[problem];
      return [
        [name, problem, shape(right, wrong), true],
        [`${name}, wrong`, problem, shape(wrong, right), false],
      ];
    }),
  ),
  ...ANSWERS,
];

// All answers in one interpreter: the finder with a driver, which runs what is found with the tests.
const DRIVER = `
def judge(head, tests, kind, answer):
    import io, sys
    job = {
        "code": answer, "extract": {"head": head}, "hasInput": kind == "program",
        "tests": tests if kind in ("script", "function") else None,
        "call": {"name": tests} if kind == "call" else None,
    }
    def run(numbers):
        scope = {"__name__": "__main__" if kind == "program" else "__answer__"}
        out, sys.stdin, sys.stdout = sys.stdout, io.StringIO("%d\\n" % numbers), io.StringIO()
        try:
            for source in __find__(job):
                exec(compile(source, "<answer>", "exec"), scope)
            if kind == "program":
                return sys.stdout.getvalue() == "%d\\n" % (3 * numbers)
            if kind == "call":
                solution = scope.get("Solution")
                return (getattr(solution(), tests) if solution else scope[tests])(numbers) == 3 * numbers
            exec(tests, scope)
            return True
        except BaseException:
            return False
        finally:
            sys.stdout = out
    return run(2) and run(5)
def grade(cases):
    return [judge(*case) for case in cases]
`;

test(`${cases.length} answers, right and wrong`, async () => {
  expect(cases.length).toBeGreaterThan(400);
  const input = [
    cases.map(([, problem, answer]) => [PROBLEMS[problem].head, PROBLEMS[problem].tests, problem, answer]),
  ];
  const outcome = await sandbox.run({ code: `${PYTHON_FINDER}${DRIVER}`, call: { name: 'grade', input } });
  expect(outcome).toMatchObject({ status: 'ok', error: null });
  const got = outcome.value as boolean[];
  const wrong = cases.filter(([, , , right], i) => got[i] !== right);
  expect(wrong.map(([name, problem, completion]) => ({ name, problem, completion }))).toEqual([]);
});

test('hostile answers cost no more time than they are long', async () => {
  const input = [
    [
      'x = [\n'.repeat(3000),
      `${F}python\n`.repeat(3000),
      '<think>'.repeat(20_000),
      `${'def f(x):\n    pass\n'.repeat(1500)}(`,
      '('.repeat(5000),
    ].map((answer) => ['', 'triple', 'call', answer]),
  ];
  const outcome = await sandbox.run({ code: `${PYTHON_FINDER}${DRIVER}`, call: { name: 'grade', input } });
  expect(outcome).toMatchObject({ status: 'ok', value: [false, false, false, false, false] });
});

test('rewards and data sets follow the same rule; compat: "reference" has its own', async () => {
  const meta: datasets.CodeMeta = {
    id: '0',
    head: '',
    functionName: 'triple',
    tests: { kind: 'calls', functionName: 'triple', inputs: [[2], [5]], outputs: [[6], [15]] },
  };
  const right = [SHAPES.tildes, SHAPES['a correction'], SHAPES['a shell first']];
  const completions = [
    ...right.map((shape) => shape(TRIPLE, TRIPLE.replace('3', '2'))),
    'no program',
    '',
    'def triple(:',
  ];
  expect(await rewards.codeTests({ sandbox })(batchOf(completions, meta))).toEqual([1, 1, 1, 0, 0, 0]);
  expect(await rewards.codeTests({ sandbox, compat: 'reference' })(batchOf(completions, meta))).toEqual([
    0, 0, 1, 0, 0, 0,
  ]);
  for (const [completion, theirs] of [
    [fence(TRIPLE), true],
    [fence(TRIPLE, 'py'), false],
  ] as const) {
    const script: datasets.CodeMeta = {
      ...meta,
      tests: { kind: 'script', before: '', after: 'assert triple(2) == 6' },
    };
    expect(await datasets.gradeCompletion(script, completion, { sandbox })).toMatchObject({ passed: true });
    const reference = await datasets.gradeCompletion(script, completion, { sandbox, compat: 'reference' });
    expect(reference?.passed ?? false).toBe(theirs);
  }
});
