// Programs in the Python of this machine: what is bounded holds, results are those of the sandbox, and nobody gets it
// unasked and unwarned.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { type DUltraError, rewards } from '../lib';
import { temporaryFolder } from './helpers';
import { testsOfRunners } from './programs';

const isWindows = process.platform === 'win32';
const hasPython = !isWindows && spawnSync('python3', ['-c', 'import resource']).status === 0;
const why = isWindows ? 'limits of memory and CPU time need a POSIX system' : 'there is no python3 on this machine';
const described = hasPython ? describe : describe.skip;

// A folder of its own: other programs on this machine may have theirs.
jest.spyOn(os, 'tmpdir').mockReturnValue(temporaryFolder());
const leftovers = () => readdirSync(os.tmpdir()).filter((name) => name.startsWith('dultra-python-'));

described(hasPython ? 'NativePython' : `NativePython (skipped: ${why})`, () => {
  const runner = hasPython
    ? new rewards.NativePython({ workers: 2, timeLimitSeconds: 5, memoryLimitMB: 512, outputLimit: 1000 })
    : null!;

  test('warns of what it risks, once', async () => {
    const emit = jest.spyOn(process, 'emitWarning').mockImplementation(() => {});
    await runner.run({ code: 'pass' });
    await new rewards.NativePython().run({ code: 'pass' });
    const warnings = emit.mock.calls.map(([message]) => String(message));
    emit.mockRestore();
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain('they may read what you may read');
  });

  test('results', async () => {
    expect(
      await runner.run({
        code: 'def f(a, b=1): return [a, b]',
        call: { name: 'f', input: { args: [2], kwargs: { b: 3 } } },
      }),
    ).toMatchObject({
      status: 'ok',
      error: null,
      value: [2, 3],
    });
    expect(await runner.run({ code: 'print(int(input()) * 2)', stdin: '21\n' })).toMatchObject({
      status: 'ok',
      stdout: '42\n',
      truncated: false,
    });
    expect(await runner.run({ code: 'x = 1 / 0' })).toMatchObject({
      status: 'error',
      error: "ZeroDivisionError('division by zero')",
    });
    expect(await runner.run({ code: 'import sys\nsys.exit()', mustFinish: true })).toMatchObject({ status: 'error' });
    const long = await runner.run({ code: 'print("a" * 5000)' });
    expect([long.stdout.length, long.truncated]).toEqual([1000, true]);
    expect(await runner.run({ code: 'def f(): return 2 ** 70', call: { name: 'f', input: [] } })).toMatchObject({
      value: { $int: String(2n ** 70n) },
    });
    expect(leftovers()).toEqual([]);
  });

  testsOfRunners(() => runner);

  test('threads are waited for, and what a process of its own writes counts', async () => {
    const thread =
      'import threading, time\ndef work():\n    time.sleep(0.1)\n    print(1)\nthreading.Thread(target=work).start()';
    expect(await runner.run({ code: thread })).toMatchObject({ status: 'ok', stdout: '1\n' });
    const pool = 'from concurrent.futures import ThreadPoolExecutor\nThreadPoolExecutor(2).submit(print, 1)';
    expect(await runner.run({ code: pool })).toMatchObject({ status: 'ok', stdout: '1\n' });
    expect(await runner.run({ code: 'import os\nos.system("echo 1")' })).toMatchObject({ status: 'ok', stdout: '1\n' });
  });

  test("grades as the reference's table says", async () => {
    const file = path.join(__dirname, 'fixtures', 'golden', 'rewards', 'apps_reward.json');
    type Row = {
      completion: string;
      input_output: { fn_name: string; inputs: unknown[]; outputs: unknown[] };
      reward: number;
    };
    const { rows } = JSON.parse(readFileSync(file, 'utf8')) as { rows: Row[] };
    for (const { completion, input_output: io, reward: expected } of rows) {
      const reward = rewards.codeTests({ sandbox: runner, compat: 'reference' });
      const tests = { kind: 'calls', functionName: io.fn_name, inputs: io.inputs, outputs: io.outputs };
      const meta = { id: '0', head: '', functionName: io.fn_name, tests };
      const batch = { completions: [completion], examples: [{ prompt: '', answer: '', category: '', meta }] };
      expect({ completion, got: await reward(batch as never) }).toEqual({ completion, got: [expected] });
    }
  });

  const quick = hasPython ? new rewards.NativePython({ workers: 4, timeLimitSeconds: 1, memoryLimitMB: 256 }) : null!;
  test.each([
    ['an endless loop', 'while True: pass', ['timeout']],
    [
      'a loop that ignores signals',
      'import signal\nfor s in range(1, 32):\n  try: signal.signal(s, signal.SIG_IGN)\n  except (OSError, ValueError): pass\nwhile True: pass',
      ['timeout'],
    ],
    ['memory', 'x = [0] * 10**9', ['memory']],
    ['the end of the interpreter', 'import os\nos._exit(0)', ['crashed']],
    // The first process of a namespace ignores it.
    ['a signal to itself', 'import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)', ['crashed', 'ok']],
    ['writing a file', 'open("x", "w").write("y" * 100000)', ['error']],
    ['a forged report', 'import os\nos.write(3, b"{}")\nos._exit(0)', ['crashed']],
    ['a broken report', 'import os\nos.write(3, b"no json")', ['crashed']],
  ] as const)('%s', async (_, code, statuses) => {
    const { status } = await quick.run({ code });
    expect(statuses).toContain(status);
    expect(await quick.run({ code: 'def f(): return 1', call: { name: 'f', input: [] } })).toMatchObject({
      status: 'ok',
      value: 1,
    });
  });

  test('CPU time decides, and not how long a program has to wait for it', async () => {
    const one = new rewards.NativePython({ workers: 1, timeLimitSeconds: 0.5, memoryLimitMB: 256 });
    expect(await one.run({ code: 'import time\ntime.sleep(1.5)\nprint(1)' })).toMatchObject({
      status: 'ok',
      stdout: '1\n',
    });
    expect(await one.run({ code: 'while True: pass' })).toMatchObject({
      status: 'timeout',
      error: 'more than 0.5 s of CPU time',
    });
  });

  test('what a program started ends with it', async () => {
    const mark = path.join(temporaryFolder(), 'mark');
    writeFileSync(mark, '');
    const code = `import subprocess, sys, time\nsubprocess.Popen([sys.executable, "-c", "import time; time.sleep(61)", ${JSON.stringify(mark)}])\ntime.sleep(60)`;
    const short = new rewards.NativePython({ workers: 1, wallLimitSeconds: 2 });
    expect(await short.run({ code })).toMatchObject({ status: 'timeout', error: 'longer than 2 s' });
    expect((await quick.run({ code: code.replace('\ntime.sleep(60)', '') })).status).toBe('ok');
    const alive = () => {
      try {
        return execFileSync('pgrep', ['-f', mark], { encoding: 'utf8' }).trim();
      } catch {
        return '';
      }
    };
    for (let i = 0; i < 5000 && alive() !== ''; i++) await new Promise((resolve) => setTimeout(resolve, 20));
    expect(alive()).toBe('');
  });

  test('at most as many at a time as there are workers; an abort ends them', async () => {
    const one = new rewards.NativePython({ workers: 1, timeLimitSeconds: 20 });
    const start = performance.now();
    await Promise.all([
      one.run({ code: 'import time\ntime.sleep(0.4)' }),
      one.run({ code: 'import time\ntime.sleep(0.4)' }),
    ]);
    expect(performance.now() - start).toBeGreaterThan(800);
    const controller = new AbortController();
    const runs = [1, 2, 3].map(() => one.run({ code: 'while True: pass' }, { signal: controller.signal }));
    setTimeout(() => controller.abort(new Error('enough')), 200);
    for (const outcome of await Promise.allSettled(runs))
      expect(outcome).toMatchObject({ status: 'rejected', reason: expect.objectContaining({ message: 'enough' }) });
    expect((await one.run({ code: 'pass' })).status).toBe('ok');
    expect(leftovers()).toEqual([]);
  });

  test('wrong arguments', async () => {
    expect(() => new rewards.NativePython({ python: '' })).toThrow('python: expected a command, got ""');
    expect(() => new rewards.NativePython({ workers: 0 })).toThrow(RangeError);
    await expect(runner.run({ code: 1 as never })).rejects.toThrow('program.code: expected a string, got 1');
    const missing: DUltraError = await new rewards.NativePython({ python: '/no/such/python' }).run({ code: '' }).then(
      () => null!,
      (error) => error,
    );
    expect(missing.code).toBe('SANDBOX');
    expect(missing.message).toMatch(/^python: \/no\/such\/python does not start: /);
    expect(existsSync('/no/such/python')).toBe(false);
  });
});
