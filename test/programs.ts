// Programs, and what becomes of them: for every runner of programs, and for their rewards.
import type { datasets, RewardBatch, rewards } from '../lib';

/**
 * Programs that read and write in every way that a process can: name, program, standard input, and what it must print.
 */
const PROGRAM_IO: [name: string, code: string, stdin: string, stdout: string][] = [
  ['input()', 'print(int(input()) + int(input()))', '1\n2\n', '3\n'],
  ['input() with a prompt', 'print(input("n? "))', '7', 'n? 7\n'],
  ['sys.stdin', 'import sys\nprint(sum(int(line) for line in sys.stdin))', '1\n2\n', '3\n'],
  ['sys.stdin.readline', 'import sys\nread = sys.stdin.readline\nprint(read().strip() + read())', 'a\nb', 'ab\n'],
  ['sys.stdin.buffer', 'import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))', '1 2\n', '3\n'],
  ['lines that end as on Windows', 'import sys\nprint(sys.stdin.read().split("\\n"))', 'a\r\nb', "['a', 'b']\n"],
  ['bytes that are not changed', 'import sys\nprint(sys.stdin.buffer.read())', 'ä\r\n', "b'\\xc3\\xa4\\r\\n'\n"],
  ['open(0)', 'print(sum(map(int, open(0).read().split())))', '1 2\n', '3\n'],
  ['open(0) in bytes', 'print(open(0, "rb").read())', '1\n', "b'1\\n'\n"],
  ['os.read', 'import os\nprint(os.read(0, 100))', '1 2', "b'1 2'\n"],
  [
    'the size of a file',
    'import io, os\nread = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\nprint(int(read()) * int(read()))',
    '6\n7\n',
    '42\n',
  ],
  ['a map of memory', 'import mmap\nprint(mmap.mmap(0, 0, access=mmap.ACCESS_READ).readline())', '1\n', "b'1\\n'\n"],
  ['/dev/stdin', 'print(open("/dev/stdin").read())', 'x', 'x\n'],
  ['sys.stdin.fileno()', 'import os, sys\nprint(os.fdopen(os.dup(sys.stdin.fileno())).read())', 'x', 'x\n'],
  ['fileinput', 'import fileinput\nprint([line.strip() for line in fileinput.input()])', 'a\nb\n', "['a', 'b']\n"],
  ['no input', 'import sys\nprint(repr(sys.stdin.read()))', '', "''\n"],
  ['sys.stdout', 'import sys\nsys.stdout.write("a\\n")\nsys.stdout.buffer.write(b"")', '', 'a\n'],
  ['sys.stdout.buffer', 'import sys\nsys.stdout.buffer.write("ä\\n".encode())', '', 'ä\n'],
  ['os.write', 'import os\nos.write(1, b"a\\n")', '', 'a\n'],
  ['open(1)', 'with open(1, "w") as out: out.write("a\\n")', '', 'a\n'],
  ['a file that is not closed', 'import os\nout = os.fdopen(1, "w")\nout.write("a\\n")', '', 'a\n'],
  ['os.dup', 'import os\nout = os.fdopen(os.dup(1), "w")\nprint("a", file=out, flush=True)\nprint("b")', '', 'a\nb\n'],
  [
    'print to a file of strings',
    'import io, sys\nsys.stdout = io.StringIO()\nprint(1)\nsys.__stdout__.write("2\\n")',
    '',
    '2\n',
  ],
  [
    'at the end',
    'import atexit, io, sys\nkept = io.StringIO()\nsys.stdout = kept\natexit.register(lambda: sys.__stdout__.write(kept.getvalue()))\nprint(1)',
    '',
    '1\n',
  ],
  [
    'a writer with a buffer of its own',
    'import io, os, sys\nclass Writer(io.IOBase):\n    def __init__(self): self.text = ""\n    def write(self, text): self.text += text\n    def flush(self):\n        os.write(sys.__stdout__.fileno(), self.text.encode())\n        self.text = ""\nsys.stdout = Writer()\nprint(1)',
    '',
    '1\n',
  ],
  ['print behind os.write', 'import os, sys\nos.write(1, b"a\\n")\nprint("b")', '', 'a\nb\n'],
  ['standard error apart', 'import os, sys\nos.write(2, b"x")\nprint("y", file=sys.stderr)\nprint(1)', '', '1\n'],
  ['the main module', 'import __main__\nx = 1\nprint(__name__, __main__.x)', '', '__main__ 1\n'],
  ['a block for the main program', 'if __name__ == "__main__":\n    print(input())', 'a\n', 'a\n'],
  ['an early end', 'import sys\nprint(1)\nsys.exit()\nprint(2)', '', '1\n'],
  ['exit()', 'print(1)\nexit()', '', '1\n'],
];

/** Blocks that stand behind a function under test, and must not run: they would read, end, or fail. */
const MAIN_BLOCKS: [name: string, block: string][] = [
  ['input()', 'if __name__ == "__main__":\n    print(f(int(input())))'],
  [
    "unittest's",
    'import unittest\nclass Test(unittest.TestCase):\n    def test(self): self.assertEqual(f(1), 5)\nif __name__ == "__main__":\n    unittest.main()',
  ],
  ['an end with a status', "import sys\nif '__main__' == __name__:\n    sys.exit(f(1))"],
  ['an assertion', 'def main():\n    assert False\nif __name__ == "__main__": main()'],
];

/** What runners of programs have in common, whatever Python they have. */
export function testsOfRunners(runner: () => rewards.PythonRunner): void {
  test.each(PROGRAM_IO)('reads and writes: %s', async (_name, code, stdin, stdout) => {
    expect(await runner().run({ code, stdin })).toMatchObject({ status: 'ok', error: null, stdout });
  });

  test.each(MAIN_BLOCKS)(
    'functions are imported: a block for the main program does not run: %s',
    async (_name, block) => {
      const code = `def f(x):\n    return 2 * x\n${block}`;
      expect(await runner().run({ code, tests: 'assert f(2) == 4' })).toMatchObject({ status: 'ok', stdout: '' });
      expect(await runner().run({ code, tests: 'assert f(2) == 5' })).toMatchObject({ status: 'error' });
      expect(await runner().run({ code, call: { name: 'f', input: [3] } })).toMatchObject({ status: 'ok', value: 6 });
    },
  );

  test('tests see what the program left, and are not part of it', async () => {
    const run = (code: string, tests: string) => runner().run({ code, tests, mustFinish: true });
    // Text that is not closed would swallow what stands behind it.
    expect(await run('x = """', 'assert False\n"""')).toMatchObject({ status: 'error' });
    expect(await run('x = 1', 'from __future__ import annotations\nassert x == 1')).toMatchObject({ status: 'ok' });
    expect(await run('x = 1', 'if __name__ == "__main__":\n    assert x == 2')).toMatchObject({ status: 'error' });
    const module = 'import sys\nfrom __future__ import annotations\n'.split('\n').reverse().join('\n').trim();
    const dataclass = `${module}\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int`;
    expect(await run(dataclass, 'assert P(1) == P(1) and sys.modules[P.__module__].P is P')).toMatchObject({
      status: 'ok',
    });
  });

  test('more output than the limit is kept where a program asks for it', async () => {
    const code = 'print("ab" * 30000)';
    expect(await runner().run({ code })).toMatchObject({ truncated: true });
    const long = await runner().run({ code, outputLimit: 70_000 });
    expect([long.truncated, long.stdout.length]).toEqual([false, 60_001]);
    await expect(runner().run({ code, outputLimit: -1 })).rejects.toThrow('program.outputLimit: expected');
  });
}

/** Completions as a reward is given them, all of one example. */
export function batchOf(completions: string[], meta: datasets.CodeMeta | null): RewardBatch {
  return {
    completions,
    examples: completions.map(() => ({ prompt: '', answer: '', category: '', meta })),
    results: completions.map(() => ({ nfe: 1 }) as RewardBatch['results'][number]),
    maxTokens: 1,
    verify: null,
    model: null as never,
  };
}
