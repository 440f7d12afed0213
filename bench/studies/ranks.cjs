// What several processes cost and save on this machine: updates of GRPO's tiny preset by one process of one thread, one of
// two threads, and two of one thread each, in turns, so that what else runs disturbs all alike.
//
//   node bench/studies/ranks.cjs --launcher mpirun.openmpi --rounds 3 --steps 12
const { spawnSync } = require('node:child_process');
const { mkdtempSync, readFileSync, rmSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');

const main = path.join(__dirname, '..', '..', 'dist', 'cli', 'main.js');
const OPEN_MPI = ['--allow-run-as-root', '--oversubscribe', '--bind-to', 'none'];

/** Runs of the comparison: processes, and threads of each. */
const RUNS = [
  { name: '1 process of 1 thread', ranks: 1, threads: 1 },
  { name: '1 process of 2 threads', ranks: 1, threads: 2 },
  { name: '2 processes of 1 thread', ranks: 2, threads: 1 },
];

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

function launch(launcher, ranks, args) {
  const options = launcher.includes('openmpi') ? OPEN_MPI : [];
  const { status, signal, stdout, stderr } = spawnSync(
    launcher,
    [...options, '-n', String(ranks), process.execPath, ...args],
    {
      encoding: 'utf8',
    },
  );
  if (status !== 0) throw new Error(`${launcher} ${ranks}: exit code ${status}, signal ${signal}: ${stderr}${stdout}`);
  return stdout;
}

/** Seconds of each update but the first, which also warms up. */
function updates({ launcher, steps }, { ranks, threads }) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'dultra-ranks-'));
  try {
    const output = path.join(folder, 'run');
    launch(launcher, ranks, [
      ...[main, 'train', 'grpo', '--preset', 'tiny', '--quiet', '--max-steps', String(steps), '--output', output],
      ...['--threads', String(threads), '--eval-every', '0', '--save-every', '0'],
    ]);
    const lines = readFileSync(path.join(output, 'metrics.jsonl'), 'utf8').trim().split('\n');
    return lines.slice(1).map((line) => JSON.parse(line).seconds);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A backward pass and an update, gradients exchanged beside the pass: as a share of the time with both in a row. */
async function exchangeBeside(group, model, trainer) {
  const ids = Int32Array.from({ length: 64 }, (_, i) => (i < 8 ? 5 + i : model.config.maskTokenId));
  const positions = Int32Array.from({ length: 56 }, (_, i) => 8 + i);
  const request = { ids, offsets: Int32Array.of(0, 64), positions, tokens: positions.map(() => 7), keep: true };
  const run = async (last) => {
    await trainer.score(request);
    await group.barrier();
    const begin = performance.now();
    await trainer.backward({ dLogProbs: new Float32Array(56).fill(-1 / 56), last });
    await trainer.step({ baseLr: 0, plannerLr: 0 });
    return performance.now() - begin;
  };
  const ratios = [];
  for (let i = 0; i < 41; i++) {
    const [one, other] = [await run(i % 2 === 0), await run(i % 2 === 1)];
    ratios.push(i % 2 === 0 ? one / other : other / one);
  }
  return median(ratios);
}

/** As a process of a job: seconds of an update by the optimiser, sums over processes included. */
async function step() {
  const { distributed, loadModel } = require('../..');
  const group = distributed.init();
  const model = await loadModel(undefined, { threads: 1 });
  const trainer = await model.createTrainer({});
  const seconds = [];
  for (let i = 0; i < 30; i++) {
    await group.barrier();
    const begin = performance.now();
    await trainer.step({ baseLr: 0, plannerLr: 0 });
    seconds.push((performance.now() - begin) / 1000);
  }
  const beside = await exchangeBeside(group, model, trainer);
  const parameters = trainer.parameters().reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  if (group.rank === 0) process.stdout.write(JSON.stringify({ parameters, seconds: median(seconds.slice(5)), beside }));
  trainer.dispose();
  model.dispose();
}

function compare() {
  const { values } = parseArgs({
    options: {
      launcher: { type: 'string', default: 'mpirun.openmpi' },
      rounds: { type: 'string', default: '3' },
      steps: { type: 'string', default: '12' },
    },
  });
  const options = { launcher: values.launcher, steps: Number(values.steps) };
  const print = (line) => process.stdout.write(`${line}\n`);
  print(`${os.cpus().length} cores, load ${os.loadavg()[0].toFixed(1)} before`);
  const seconds = RUNS.map(() => []);
  for (let round = 0; round < Number(values.rounds); round++)
    for (const [i, run] of RUNS.entries()) seconds[i].push(...updates(options, run));
  const [alone, threads, both] = seconds.map(median);
  for (const [i, { name }] of RUNS.entries()) print(`${name}: ${(1000 * median(seconds[i])).toFixed(1)} ms an update`);
  print(
    `2 processes: ${(alone / both).toFixed(2)} times one of 1 thread, ${(threads / both).toFixed(2)} times one of 2`,
  );
  const [one, two] = [1, 2].map((ranks) => JSON.parse(launch(options.launcher, ranks, [__filename, '--step'])));
  const exchange = two.seconds - one.seconds;
  print(`exchange: ${(1000 * exchange).toFixed(2)} ms an update, of ${one.parameters} parameters, between 2 processes`);
  print(`backward pass and update, with the exchange beside the pass: ${two.beside.toFixed(2)} of the time without`);
  print(`load ${os.loadavg()[0].toFixed(1)} after`);
}

if (process.argv.includes('--step')) step();
else compare();
