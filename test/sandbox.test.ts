// The sandbox against programs that mean harm. Each prints ESCAPED where it gets out; none may, this process must be
// unharmed, and the next program must find everything as new. `npm run test:sandbox` runs this file alone, with a
// thousand programs in the last test.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { rewards } from '../lib';
import { exceptOnWindows } from './helpers';
import { testsOfRunners } from './programs';

const { PythonSandbox } = rewards;
const RUNS = Number(process.env.DULTRA_SANDBOX_RUNS ?? 40);

let sandbox: InstanceType<typeof PythonSandbox>;
let folder: string;
let secret: string;
let server: Server;
let requests = 0;

beforeAll(async () => {
  sandbox = new PythonSandbox({ workers: 2, timeLimitSeconds: 3, memoryLimitMB: 128, outputLimit: 10_000 });
  folder = mkdtempSync(path.join(os.tmpdir(), 'dultra-secret-'));
  secret = path.join(folder, 'secret.txt');
  writeFileSync(secret, 'TOP-SECRET');
  process.env.DULTRA_TEST_SECRET = 'TOP-SECRET';
  server = createServer((_request, response) => {
    requests++;
    response.end('TOP-SECRET');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
});

afterAll(async () => {
  delete process.env.DULTRA_TEST_SECRET;
  await sandbox.dispose();
  server.close();
  rmSync(folder, { recursive: true, force: true });
});

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;
/** Bytes that this process holds when nothing that could be collected is left: what a leak makes grow. */
function heldMemory(): number {
  collect();
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

type Status = rewards.PythonOutcome['status'];

/** Programs by name: what they try, and what may come of it. SECRET, FOLDER and PORT are replaced. */
const HOSTILE: [name: string, code: string, allowed: Status[]][] = [
  // Time.
  ['an endless loop', 'while True: pass', ['timeout']],
  [
    'a loop that catches everything',
    'while True:\n  try:\n    while True: pass\n  except BaseException: pass',
    ['timeout'],
  ],
  ['sleeping', 'import time\ntime.sleep(100)', ['timeout']],
  ['a number that takes for ever', 'x = 7 ** (7 ** 12)', ['timeout', 'memory']],
  ['a regular expression that takes for ever', 'import re\nre.match(r"(a+)+$", "a" * 60 + "b")', ['timeout']],
  ['an endless generator', 'sum(1 for _ in iter(int, 1))', ['timeout']],
  [
    'ignoring signals',
    'import signal\nfor s in range(1, 32):\n  try: signal.signal(s, lambda *a: None)\n  except Exception: pass\nwhile True: pass',
    ['timeout'],
  ],
  [
    'an alarm',
    'import signal\nsignal.signal(signal.SIGALRM, lambda *a: print("alarm"))\nsignal.alarm(1)\nwhile True: pass',
    ['timeout', 'error'],
  ],
  ['a recursion without end', 'def f(): return f()\nf()', ['error', 'crashed', 'memory']],
  ['a recursion in C', 'x = []\nfor _ in range(200000): x = [x]\nrepr(x)', ['error', 'crashed', 'memory', 'ok']],
  ['nesting that the parser cannot take', 'eval("(" * 100000 + ")" * 100000)', ['error', 'crashed', 'memory']],
  [
    'raising the recursion limit',
    'import sys\nsys.setrecursionlimit(10**8)\ndef f(n): return f(n + 1)\nf(0)',
    ['error', 'crashed', 'memory', 'timeout'],
  ],
  // Memory.
  ['a memory bomb', 'x = []\nwhile True: x.append(bytearray(10**7))', ['memory']],
  ['a list that grows', 'x = [0]\nwhile True: x += x', ['memory']],
  ['a long string', 'x = "a" * (10**10)', ['memory', 'error']],
  [
    'a memory bomb that catches',
    'x = []\nwhile True:\n  try: x.append("a" * 10**6 + str(len(x)))\n  except MemoryError: x.append(1)',
    ['timeout', 'memory', 'crashed', 'error'],
  ],
  ['an array in another module', 'import array\nx = array.array("d", [0.0]) * (10**9)', ['memory', 'error']],
  // Output.
  ['output without end', 'while True: print("x" * 1000)', ['timeout']],
  // Without a line's end it is gathered; where time suffices, until the process has no memory left.
  [
    'output past Python',
    'import os\nwhile True: os.write(1, b"x" * 100000)',
    ['timeout', 'error', 'memory', 'crashed'],
  ],
  ['a value without end', 'def f():\n  x = []\n  x.append(x)\n  return [x] * 10**6\nprint(len(f()))', ['ok', 'memory']],
  // Ends.
  ['os._exit', 'import os\nos._exit(0)', ['crashed']],
  ['os.abort', 'import os\nos.abort()', ['crashed', 'error']],
  ['sys.exit', 'import sys\nsys.exit(3)', ['error']],
  [
    'killing its process',
    'import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\nprint("still here")',
    ['crashed', 'error', 'ok'],
  ],
  ['killing its parent', 'import os, signal\nos.kill(os.getppid(), 9)', ['crashed', 'error', 'ok']],
  [
    'a segmentation fault',
    'import ctypes\nctypes.string_at(0)\nprint(ctypes.cast(1 << 31, ctypes.POINTER(ctypes.c_char))[0])',
    ['crashed', 'error', 'ok'],
  ],
  ['a fork bomb', 'import os\nwhile True:\n  os.fork()', ['error', 'crashed']],
  ['threads', 'import threading\nwhile True: threading.Thread(target=lambda: None).start()', ['error', 'timeout']],
  ['processes', 'import multiprocessing\nmultiprocessing.Process(target=print).start()', ['error', 'crashed']],
  // The host.
  ['reading a file', 'print("ESCAPED" if "TOP" in open("SECRET").read() else "")', ['error']],
  ['reading the passwords', 'open("/etc/passwd").read()\nprint("ESCAPED")', ['error']],
  ['reading the process', 'open("/proc/self/environ").read()\nprint("ESCAPED")', ['error']],
  [
    'listing files',
    'import os\nfor root, _, files in os.walk("/"):\n  if "secret.txt" in files: print("ESCAPED")',
    ['ok'],
  ],
  [
    'writing a file',
    'import os\nos.makedirs("FOLDER", exist_ok=True)\nopen("FOLDER/escaped.txt", "w").write("x")',
    ['ok', 'error'],
  ],
  [
    'the environment',
    'import os, sys\nif "TOP-SECRET" in str(dict(os.environ)) or "dultra" in str(dict(os.environ)) or "grading" in str(dict(os.environ)) + str(sys.argv) + str(sys.executable): print("ESCAPED", os.environ)',
    ['ok'],
  ],
  [
    'a subprocess',
    'import subprocess\nprint(subprocess.run(["id"], capture_output=True))\nprint("ESCAPED")',
    ['error', 'crashed'],
  ],
  ['a shell', 'import os\nif os.system("true") == 0: print("ESCAPED")', ['error', 'ok', 'crashed']],
  [
    'a socket',
    'import socket\ns = socket.create_connection(("127.0.0.1", PORT), timeout=2)\ns.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")\nif b"TOP" in s.recv(1000): print("ESCAPED")',
    ['error', 'timeout', 'crashed', 'ok'],
  ],
  [
    'a request',
    'import urllib.request\nprint("ESCAPED", urllib.request.urlopen("http://127.0.0.1:PORT/").read())',
    ['error', 'timeout', 'crashed'],
  ],
  [
    'mounting the host',
    'import pyodide_js\npyodide_js.FS.mount(pyodide_js.FS.filesystems.NODEFS, {"root": "/"}, "/mnt")\nprint("ESCAPED")',
    ['error'],
  ],
  // JavaScript.
  ['import js', 'import js\nprint("ESCAPED", js.process)', ['error']],
  ['run_js', 'from pyodide.code import run_js\nprint("ESCAPED", run_js("process"))', ['error']],
  [
    'forgetting what is forbidden',
    'import sys\nfor name in ("js", "pyodide_js", "pyodide", "pyodide.code", "pyodide.ffi", "_pyodide", "_pyodide_core"):\n  sys.modules.pop(name, None)\nimport js\nprint("ESCAPED" if hasattr(js, "process") or hasattr(js, "fetch") else "")',
    ['error', 'ok'],
  ],
  [
    'the core module',
    'import sys\nfor name in list(sys.modules):\n  if sys.modules[name] is None: del sys.modules[name]\nimport _pyodide_core\nprint(dir(_pyodide_core))',
    ['error', 'ok'],
  ],
  [
    'a constructor of JavaScript',
    'import sys\nfor name in list(sys.modules):\n  if sys.modules[name] is None: del sys.modules[name]\nfrom pyodide.ffi import to_js\nf = to_js([1]).constructor.constructor("return process")\nprint("ESCAPED", f().pid)',
    ['error'],
  ],
  [
    'an object of JavaScript by the garbage collector',
    'import gc\nfor o in gc.get_objects():\n  if "JsProxy" in type(o).__name__:\n    try:\n      p = o.constructor.constructor("return process")()\n      print("ESCAPED", p)\n    except Exception: pass',
    ['ok', 'error'],
  ],
  [
    'a finder that was taken away',
    'import sys, gc\nfor o in gc.get_objects():\n  if type(o).__name__ == "JsFinder": sys.meta_path.append(o)\nfor name in list(sys.modules):\n  if sys.modules[name] is None: del sys.modules[name]\nimport js\nprint("ESCAPED" if hasattr(js, "process") or hasattr(js, "fetch") or hasattr(js, "globalThis") else "")',
    ['ok', 'error'],
  ],
  ['installing packages', 'import micropip\nmicropip.install("numpy")\nprint("ESCAPED")', ['error']],
  ['code from eval', 'print(eval("__import__(\\"js\\").process"))\nprint("ESCAPED")', ['error']],
  // The harness.
  [
    'changing what the harness uses',
    'import json, sys, io\njson.dumps = lambda *a, **k: "ESCAPED"\nsys.stdout = None\nsys.exit = print\nimport builtins\nbuiltins.repr = builtins.str = builtins.isinstance = lambda *a: "ESCAPED"',
    ['ok', 'error', 'crashed'],
  ],
  ['closing its output', 'import sys\nsys.stdout.close()\nsys.stderr.close()\nsys.stdin.close()', ['ok', 'error']],
  [
    'an exception that cannot be shown',
    'class E(BaseException):\n  def __repr__(self): raise E()\n  __str__ = __repr__\nraise E()',
    ['error'],
  ],
  [
    'deleting the builtins',
    'import builtins\nfor name in list(vars(builtins)):\n  if not name.startswith("_"): delattr(builtins, name)',
    ['ok', 'error', 'crashed'],
  ],
];

test('there are at least thirty', () => expect(HOSTILE.length).toBeGreaterThanOrEqual(30));

test.each(HOSTILE)('%s', async (_name, code, allowed) => {
  const program = code
    .replaceAll('SECRET"', `${secret}"`)
    .replaceAll('FOLDER', folder)
    .replaceAll('PORT', String((server.address() as AddressInfo).port));
  const before = heldMemory();
  const outcome = await sandbox.run({ code: program });
  expect({ status: outcome.status, error: outcome.error, isAllowed: allowed.includes(outcome.status) }).toMatchObject({
    isAllowed: true,
  });
  expect(`${outcome.stdout}${outcome.stderr}`).not.toMatch(/ESCAPED|TOP-SECRET/);
  expect(outcome.stdout.length).toBeLessThanOrEqual(10_000);
  expect(readdirSync(folder)).toEqual(['secret.txt']);
  expect(readFileSync(secret, 'utf8')).toBe('TOP-SECRET');
  expect(heldMemory() - before).toBeLessThan(50e6);
});

test('nothing reached the network, and the pool works on', async () => {
  expect(requests).toBe(0);
  const outcomes = await Promise.all([1, 2, 3, 4].map((n) => sandbox.run({ code: `print(${n} + 1)` })));
  expect(outcomes.map(({ status, stdout }) => [status, stdout])).toEqual([1, 2, 3, 4].map((n) => ['ok', `${n + 1}\n`]));
});

test('no program sees what another one left', async () => {
  const one = new PythonSandbox({ workers: 1, timeLimitSeconds: 10 });
  try {
    const leave =
      'import builtins, sys, os, math\nbuiltins.left = 1\nleft = 2\nmath.pi = 3\nsys.modules["gone"] = math\nopen("/tmp/left.txt", "w").write("x")\nos.environ["LEFT"] = "1"\nos.chdir("/tmp")';
    expect((await one.run({ code: leave })).status).toBe('ok');
    const look =
      'import sys, os, math, builtins\nprint(hasattr(builtins, "left"), "left" in globals(), math.pi, "gone" in sys.modules, os.path.exists("/tmp/left.txt"), "LEFT" in os.environ, os.getcwd())';
    expect((await one.run({ code: look })).stdout).toBe(
      'False False 3.141592653589793 False False False /home/pyodide\n',
    );
  } finally {
    await one.dispose();
  }
});

test('calls, values, input and output', async () => {
  const call = (code: string, input: unknown, name = 'f') => sandbox.run({ code, call: { name, input } });
  expect(await call('def f(a, b=2): return [a, (b, {"k": None}), 1.5, True, "ä"]', [1])).toMatchObject({
    status: 'ok',
    value: [1, [2, { $dict: [['k', null]] }], 1.5, true, 'ä'],
  });
  expect((await call('def f(*a, **k): return a[0] + k["x"]', { args: [1], kwargs: { x: 2 } })).value).toBe(3);
  expect((await call('def f(x): return x * 10**20', 7)).value).toEqual({ $int: '700000000000000000000' });
  expect((await call('def f(): return float("nan")', [])).value).toEqual({ $float: 'nan' });
  expect((await call('def f(): return {3, 3}', null)).value).toEqual({ $set: [3] });
  expect(await call('def g(): pass', [])).toMatchObject({
    status: 'error',
    error: expect.stringContaining("function 'f' is not defined"),
  });
  expect(await call('def f(:', [])).toMatchObject({ status: 'error', error: expect.stringContaining('SyntaxError') });
  expect(
    (await sandbox.run({ code: 'import sys\nfor line in sys.stdin: print(int(line) * 2)', stdin: '1\n2\n' })).stdout,
  ).toBe('2\n4\n');
  expect(await sandbox.run({ code: 'print("x" * 20000)' })).toMatchObject({ status: 'ok', truncated: true });
  expect((await sandbox.run({ code: 'import sys\nsys.exit(0)', mustFinish: true })).status).toBe('error');
  expect((await sandbox.run({ code: 'import sys\nprint(1)\nsys.exit(0)' })).status).toBe('ok');
});

testsOfRunners(() => sandbox);

test('what the sandbox lacks is told with the error', async () => {
  expect(await sandbox.run({ code: 'import numpy' })).toMatchObject({
    status: 'error',
    error: expect.stringMatching(
      /^ModuleNotFoundError\(.*numpy.*standard library and no other packages; NativePython has/,
    ),
  });
  expect(await sandbox.run({ code: 'import threading\nthreading.Thread(target=print).start()' })).toMatchObject({
    error: expect.stringContaining('the sandbox has no threads'),
  });
  expect((await sandbox.run({ code: 'raise ValueError("no module")' })).error).toBe("ValueError('no module')");
});

test('a value too large to send', async () => {
  const outcome = await sandbox.run({ code: 'def f(): return ["a" * 10**6] * 50', call: { name: 'f', input: [] } });
  expect(JSON.stringify(outcome.value).length).toBeLessThan(5e6);
});

test('walls', async () => {
  const walls = await sandbox.walls();
  expect(walls.permissions).toBe(true);
  const allowed = process.platform === 'linux' && spawnSync('unshare', ['-Urn', 'true']).status === 0;
  expect(walls.namespaces).toBe(allowed);
  // The inner walls hold by themselves.
  const alone = new PythonSandbox({ workers: 1, timeLimitSeconds: 5, namespaces: 'off' });
  try {
    expect((await alone.walls()).namespaces).toBe(false);
    const port = (server.address() as AddressInfo).port;
    const code = `import socket\ns = socket.create_connection(("127.0.0.1", ${port}), timeout=2)\ns.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")\nprint(s.recv(1000))`;
    const outcome = await alone.run({ code });
    expect(outcome.stdout).not.toMatch(/SECRET/);
    expect((await alone.run({ code: `print(open("${secret}").read())` })).status).toBe('error');
    expect(requests).toBe(0);
  } finally {
    await alone.dispose();
  }
});

test('an abort ends a program, and dispose all of them', async () => {
  const one = new PythonSandbox({ workers: 1, timeLimitSeconds: 60 });
  const controller = new AbortController();
  const running = one.run({ code: 'while True: pass' }, { signal: controller.signal });
  setTimeout(() => controller.abort(new Error('enough')), 3000);
  await expect(running).rejects.toThrow('enough');
  const last = one.run({ code: 'while True: pass' });
  const refused = expect(last).rejects.toMatchObject({ code: 'DISPOSED' });
  setTimeout(() => one.dispose(), 500);
  await refused;
  await one.dispose();
  expect(one.processes).toBe(0);
  await expect(one.run({ code: '1' })).rejects.toMatchObject({ code: 'DISPOSED' });
});

exceptOnWindows('Windows tells no signal')(
  'a process that the system ends says nothing about its program',
  async () => {
    const one = new PythonSandbox({ workers: 1, timeLimitSeconds: 60 });
    try {
      const others = workerPids();
      expect((await one.run({ code: 'pass' })).status).toBe('ok');
      const end = () =>
        workerPids()
          .filter((pid) => !others.includes(pid))
          .forEach((pid) => process.kill(pid, 'SIGKILL'));
      const running = one.run({ code: 'import time\ntime.sleep(3)\nprint(1)' });
      setTimeout(end, 500);
      expect(await running).toMatchObject({ status: 'ok', stdout: '1\n' });
    } finally {
      await one.dispose();
    }
  },
);

/** Processes of this one's sandboxes. */
function workerPids(): number[] {
  const lines = spawnSync('ps', ['-eo', 'pid,ppid,args'], { encoding: 'utf8' }).stdout.trim().split('\n').slice(1);
  const processes = lines.map((line) => /^\s*(\d+)\s+(\d+)\s+(.*)$/.exec(line)!);
  const parents = new Map(processes.map(([, pid, parent]) => [Number(pid), Number(parent)]));
  const isOwn = (pid: number): boolean => pid === process.pid || (parents.has(pid) && isOwn(parents.get(pid)!));
  return processes
    .filter(([, pid, , args]) => args.includes('python-worker.js') && isOwn(Number(pid)))
    .map(([, pid]) => Number(pid));
}

exceptOnWindows('Windows stops no process')('CPU time decides, and not how long a program waits for it', async () => {
  const one = new PythonSandbox({ workers: 1, timeLimitSeconds: 1 });
  try {
    const others = workerPids();
    expect((await one.run({ code: 'pass' })).status).toBe('ok');
    const code = 'import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nprint(1)';
    const running = one.run({ code });
    const own = workerPids().filter((pid) => !others.includes(pid));
    expect(own.length).toBeGreaterThan(0);
    for (const pid of own) process.kill(pid, 'SIGSTOP');
    await new Promise((resolve) => setTimeout(resolve, 2500));
    for (const pid of own) process.kill(pid, 'SIGCONT');
    expect(await running).toMatchObject({ status: 'ok', stdout: '1\n' });
    expect(await one.run({ code: 'while True: pass' })).toMatchObject({
      status: 'timeout',
      error: 'more than 1 s of CPU time',
    });
  } finally {
    await one.dispose();
  }
});

test('options', () => {
  expect(() => new PythonSandbox({ workers: 0 })).toThrow('workers: expected an integer at least 1');
  expect(() => new PythonSandbox({ memory: 1 } as never)).toThrow('options: unknown key "memory"');
});

const onLinux = process.platform === 'linux';
(onLinux ? test : test.skip)(
  `no process outlives the one that started it${onLinux ? '' : ' (skipped: Linux promises it)'}`,
  async () => {
    const script = `
    const { rewards } = require(${JSON.stringify(path.join(__dirname, '..', 'dist'))});
    const sandbox = new rewards.PythonSandbox({ workers: 1, timeLimitSeconds: 600 });
    sandbox.run({ code: 'print(1)' }).then(() => {
      sandbox.run({ code: 'while True: pass' });
      setTimeout(() => { console.log(require('node:child_process').execSync('ps -eo pid,args | grep "[p]ython-worker.js" | cut -c1-8').toString()); process.kill(process.pid, 'SIGKILL'); }, 1500);
    });`;
    const { stdout } = spawnSync(process.execPath, ['-e', script], { encoding: 'utf8', timeout: 600_000 });
    const mine = stdout.trim().split(/\s+/).map(Number);
    expect(mine.length).toBeGreaterThan(0);
    const until = Date.now() + 300_000;
    const running = () => {
      const own = spawnSync('ps', ['-eo', 'pid,ppid,args'], { encoding: 'utf8' })
        .stdout.split('\n')
        .filter((line) => line.includes('python-worker.js'));
      return own.filter((line) => mine.includes(Number(line.trim().split(/\s+/)[0]))).length;
    };
    const others = spawnSync('pgrep', ['-f', 'workers: 1, timeLimitSeconds: 600'], { encoding: 'utf8' }).stdout.trim();
    expect(others).toBe('');
    // Those of this file's own pools stay.
    const before = sandbox.processes;
    while (running() > before * 4 && Date.now() < until) await new Promise((resolve) => setTimeout(resolve, 200));
    expect(running()).toBeLessThanOrEqual(before * 4);
  },
);

test(`${RUNS} programs leak neither processes nor memory`, async () => {
  const pool = new PythonSandbox({ workers: 2, timeLimitSeconds: 60, runsPerWorker: 60 });
  try {
    const run = async (from: number, to: number) => {
      for (let at = from; at < to; at += 20)
        await Promise.all(
          Array.from({ length: Math.min(20, to - at) }, async (_, i) => {
            const outcome = await pool.run({ code: `def f(x): return [x] * 1000`, call: { name: 'f', input: at + i } });
            expect([outcome.status, (outcome.value as number[] | null)?.[999]]).toEqual(['ok', at + i]);
          }),
        );
    };
    const half = Math.ceil(RUNS / 2);
    // The first processes bring what is kept for all later ones.
    await run(0, half);
    const before = heldMemory();
    await run(half, RUNS);
    expect((heldMemory() - before) / (RUNS - half)).toBeLessThan(50e3);
    expect(pool.processes).toBeLessThanOrEqual(2);
  } finally {
    await pool.dispose();
  }
  expect(pool.processes).toBe(0);
}, 3_600_000);

test('without the package the message names the command', () => {
  const script = `
    const Module = require('node:module'); const paths = require.resolve.paths;
    const { existsSync } = require('node:fs'); const fs = require('node:fs');
    fs.existsSync = (file) => !String(file).includes('pyodide') && existsSync(file);
    const { rewards } = require(${JSON.stringify(path.join(__dirname, '..', 'dist'))});
    new rewards.PythonSandbox().run({ code: '1' }).catch((error) => console.log(error.code, error.message));`;
  const { stdout } = spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' });
  expect(stdout).toMatch(/^PACKAGE_NOT_FOUND running Python needs the package pyodide: npm install pyodide@\d/);
  expect(existsSync(secret)).toBe(true);
});
