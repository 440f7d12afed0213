// Kills random ranks of a training job at random moments, and goes on with it until it is done: every job ends within
// seconds, and the weights are those of a job that nobody has killed. test/distributed.test.ts takes a few moments; by
// hand, with a folder that holds a model:
//   node test/killed-ranks.cjs --model FOLDER --kills 20 --ranks 2,3,4 --launcher mpirun.openmpi
const { spawn } = require('node:child_process');
const { mkdtempSync, rmSync } = require('node:fs');
const { tmpdir } = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');

const child = path.join(__dirname, 'distributed-child.cjs');
const OPEN_MPI = ['--allow-run-as-root', '--oversubscribe', '--bind-to', 'none'];

/** Random numbers from 0 to 1, the same from run to run. */
function randomFrom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Starts a job. @param kill (process ids by rank, milliseconds since the first one was known) => which to kill now, or null */
function start(launcher, ranks, task, kill) {
  return new Promise((resolve) => {
    const options = launcher.includes('openmpi') ? OPEN_MPI : [];
    const env = { ...process.env, DULTRA_CUDA_PLUGIN: '/nowhere/libdultra_cuda.so' };
    const job = spawn(launcher, [...options, '-n', String(ranks), process.execPath, child, JSON.stringify(task)], {
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let [stdout, stderr, killedAt] = ['', '', null];
    const timers = [];
    job.stdout.on('data', (piece) => {
      stdout += piece;
    });
    job.stderr.on('data', (piece) => {
      stderr += piece;
      const pids = [...stderr.matchAll(/rank (\d+) is process (\d+)\n/g)];
      if (!kill || pids.length < ranks || timers.length > 0) return;
      const { rank, after } = kill();
      const pid = Number(pids.find(([, of]) => Number(of) === rank)[2]);
      const end = () => {
        try {
          process.kill(pid, 'SIGKILL');
          killedAt = performance.now();
        } catch {
          // It had done its work.
        }
      };
      timers.push(setTimeout(end, after));
    });
    job.on('close', (code) => {
      for (const timer of timers) clearTimeout(timer);
      const endedIn = killedAt === null ? null : (performance.now() - killedAt) / 1000;
      resolve({ code, stdout, stderr, endedIn });
    });
  });
}

/**
 * @param ranks numbers of processes, which take turns
 * @returns seconds from each kill to the job's end, and the hashes of the weights with and without kills
 */
async function killedRuns({ model, launcher, ranks, kills, name = 'sft', steps = 20, seed = 1, say = () => {} }) {
  const folder = mkdtempSync(path.join(tmpdir(), 'dultra-killed-'));
  const random = randomFrom(seed);
  const task = (output) => ({
    ...{ do: 'train', model, runs: [name], tellsProcess: true },
    options: {
      ...{ reduction: 'exact', tokenBudget: 40, maxSteps: steps, saveEvery: 2, evalEvery: 0, resume: true },
      outputDir: path.join(folder, output),
    },
  });
  const hashOf = (job) => {
    if (job.code !== 0)
      throw new Error(`expected a job that ends by itself, got exit code ${job.code}:\n${job.stderr}`);
    return JSON.parse(job.stdout)[name].hash;
  };
  try {
    const begin = performance.now();
    const whole = hashOf(await start(launcher, ranks[0], task('whole')));
    const length = performance.now() - begin;
    const ends = [];
    const hashes = [];
    let run = 0;
    for (let turn = 0; ends.length < kills; turn++) {
      const count = ranks[turn % ranks.length];
      const chosen = { rank: Math.floor(random() * count), after: random() * length };
      const job = await start(launcher, count, task(`run-${run}`), () => chosen);
      if (job.endedIn !== null && job.code !== 0) {
        ends.push(job.endedIn);
        say(
          `${count} ranks: rank ${chosen.rank} killed after ${Math.round(chosen.after)} ms, over in ${job.endedIn.toFixed(1)} s`,
        );
        continue;
      }
      hashes.push(hashOf(job));
      run++;
    }
    hashes.push(hashOf(await start(launcher, ranks[ends.length % ranks.length], task(`run-${run}`))));
    return { whole, hashes, ends };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function main() {
  const { values } = parseArgs({
    options: {
      model: { type: 'string' },
      kills: { type: 'string', default: '20' },
      ranks: { type: 'string', default: '2' },
      launcher: { type: 'string', default: 'mpirun.openmpi' },
      name: { type: 'string', default: 'sft' },
      seed: { type: 'string', default: '1' },
    },
  });
  const { whole, hashes, ends } = await killedRuns({
    ...values,
    ranks: values.ranks.split(',').map(Number),
    kills: Number(values.kills),
    seed: Number(values.seed),
    say: (line) => process.stderr.write(`${line}\n`),
  });
  const isSame = hashes.every((hash) => hash === whole);
  process.stdout.write(
    `${ends.length} kills, the slowest end ${Math.max(...ends).toFixed(1)} s, ${hashes.length} runs completed: ` +
      `${isSame ? 'the weights of' : 'NOT the weights of'} a run that nobody has killed\n`,
  );
  process.exitCode = isSame ? 0 : 1;
}

module.exports = { killedRuns };
if (require.main === module) main();
