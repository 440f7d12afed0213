// Generated Python: a batch of small programs, each in an interpreter of its own, with as many processes as threads.
// Beside it the Python of this machine, a process for each program and hardly a wall around it.
const { spawnSync } = require('node:child_process');
const { rewards } = require('../../dist/index.js');
const { alternate, speedup } = require('../lib/measure.cjs');

const PROGRAMS = 8;
const NATIVE = "this machine's Python";

const cases = ({ threads }) => threads.map((count) => ({ threads: count }));

async function run({ threads, quick }) {
  const runners = { 'sandbox (pyodide)': new rewards.PythonSandbox({ workers: threads }) };
  const hasNative = process.platform !== 'win32' && spawnSync('python3', ['-c', 'import resource']).status === 0;
  // Its warning is for those who run what they do not know.
  process.removeAllListeners('warning');
  if (hasNative) runners[NATIVE] = new rewards.NativePython({ workers: threads });
  const batch = (runner) => async () => {
    const programs = Array.from({ length: PROGRAMS }, (_, i) =>
      runner.run({ code: 'def f(x): return sorted(range(x))[-1]', call: { name: 'f', input: 1000 + i } }),
    );
    for (const [i, { status, value }] of (await Promise.all(programs)).entries())
      if (status !== 'ok' || value !== 999 + i)
        throw new Error(`program ${i}: expected ${999 + i}, got ${status} ${value}`);
  };
  const calls = Object.fromEntries(Object.entries(runners).map(([name, runner]) => [name, batch(runner)]));
  const timings = await alternate(calls, quick ? { seconds: 1, rounds: 1 } : { seconds: 20, rounds: 3 });
  const { namespaces } = await runners['sandbox (pyodide)'].walls();
  await runners['sandbox (pyodide)'].dispose();
  return Object.entries(timings).map(([contender, { turns, cpu, ...timing }]) => ({
    shape: `${PROGRAMS} programs`,
    threads,
    contender,
    unit: 'ms',
    ...timing,
    ...(hasNative && { reference: NATIVE }),
    ratio: hasNative && contender !== NATIVE ? speedup({ turns }, timings[NATIVE], 'wall') : undefined,
    note: `${((1000 * PROGRAMS) / timing.median).toFixed(1)} programs a second${namespaces ? ', in namespaces' : ''}`,
  }));
}

module.exports = { title: 'Python sandbox', cases, run };
