// Throughput of the Python sandbox: programs per second by the number of processes, once warm, each program in an interpreter of its own.
// node bench/sandbox.cjs [--programs 100] [--workers 1,2]
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');

const { rewards } = require(path.join(__dirname, '..', 'dist'));

const { values } = parseArgs({
  options: { programs: { type: 'string', default: '100' }, workers: { type: 'string', default: `1,${os.availableParallelism()}` } },
});

async function main() {
  const count = Number(values.programs);
  for (const workers of new Set(values.workers.split(',').map(Number))) {
    const sandbox = new rewards.PythonSandbox({ workers });
    const run = (n) =>
      Promise.all(
        Array.from({ length: n }, (_, i) =>
          sandbox.run({ code: 'def f(x): return sorted(range(x))[-1]', call: { name: 'f', input: 1000 + i } }),
        ),
      );
    const cold = performance.now();
    await run(1);
    const first = (performance.now() - cold) / 1000;
    await run(2 * workers);
    const start = performance.now();
    const outcomes = await run(count);
    const seconds = (performance.now() - start) / 1000;
    const wrong = outcomes.filter(({ status, value }, i) => status !== 'ok' || value !== 999 + i).length;
    const { namespaces } = await sandbox.walls();
    const line = {
      workers,
      programs: count,
      seconds: +seconds.toFixed(2),
      perSecond: +(count / seconds).toFixed(2),
      firstSeconds: +first.toFixed(2),
      namespaces,
      wrong,
    };
    process.stdout.write(`${JSON.stringify(line)}\n`);
    await sandbox.dispose();
  }
}

main();
