// Several processes that train together: started by mpirun, connected by whichever MPI is installed. What compares weights
// makes few updates with few numbers of processes; all of 2, 3 and 4, every trainer and every stage of the split, for as
// many updates as it says (some minutes):
//   DULTRA_TEST_UPDATES=20 npx jest test/distributed.test.ts -t 'bits of one process'
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { training } from '../lib';
import { main } from './command-line';
import { exceptOnWindows, temporaryFolder } from './helpers';
import { LAUNCHERS, mpirun, noTwoHosts } from './processes';
import { newModelFolder } from './trained-models';

const { killedRuns } = require('./killed-ranks.cjs');

const child = path.join(__dirname, 'distributed-child.cjs');
const RUNS = [
  ...['sft', 'sft bf16', 'planner', 'grpo', 'grpo cache', 'grpo lora'],
  ...['grpo diffu-grpo', 'grpo wd1', 'grpo trace', 'dparallel', 'd3llm'],
];

const { DULTRA_TEST_UPDATES } = process.env;
const UPDATES = Number(DULTRA_TEST_UPDATES ?? 4);
if (DULTRA_TEST_UPDATES) jest.setTimeout(7_200_000);

/** Starts the child as `ranks` processes. */
const job = (launcher: string, ranks: number, task: Record<string, unknown>, cwd = temporaryFolder()) =>
  mpirun(launcher, ranks, [child, JSON.stringify(task)], { cwd });

/** What rank 0 of a job has found. */
async function found<T>(launcher: string, ranks: number, task: Record<string, unknown>): Promise<T> {
  const { code, stdout, stderr } = await job(launcher, ranks, task).outcome;
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return JSON.parse(stdout) as T;
}

type Trained = Record<string, { hash: string; losses: number[] }> & { alike: boolean };

let model: string;
beforeAll(async () => {
  model = await newModelFolder();
});

const withMpi = LAUNCHERS.length > 0 ? describe : describe.skip;
const launcherName = 'MPI (skipped: neither mpirun.openmpi nor mpirun.mpich is installed)';

exceptOnWindows('names libraries of Linux')(
  'a library that is no MPI, or is not there, is refused with its reason',
  () => {
    const reason = (library: string) => {
      const env = { ...process.env, DULTRA_MPI: library, DULTRA_CUDA_PLUGIN: '/nowhere/libdultra_cuda.so' };
      const { stdout } = spawnSync(process.execPath, [main, 'info', '--json'], { env, encoding: 'utf8' });
      const { mpi, mpiReason } = JSON.parse(stdout).system;
      expect(mpi).toBeNull();
      return mpiReason;
    };
    expect(reason('libnowhere.so.1')).toContain('libnowhere.so.1');
    expect(reason('libz.so.1')).toBe('libz.so.1 is no MPI 3 or newer');
  },
);

withMpi(LAUNCHERS.length > 0 ? LAUNCHERS.join(' and ') : launcherName, () => {
  test.each(LAUNCHERS)('%s: three processes exchange', async (launcher) => {
    expect(await found(launcher, 3, { do: 'exchange' })).toEqual({
      ...{ size: 3, texts: ['', 'x', 'xx'], numbers: [2, 0.1], empty: 3, localSize: 3 },
      // UCX leaves malloc and mmap alone.
      memoryEvents: 'no',
    });
  });

  test('the exact reduction gives the bits of one process', async () => {
    const options = { reduction: 'exact', maxSteps: UPDATES, tokenBudget: 40 };
    const task = { do: 'train', model, runs: RUNS, options };
    const [first, second = first] = LAUNCHERS;
    const alone = await found<Trained>(first, 1, task);
    expect(alone.alike).toBe(true);
    for (const ranks of DULTRA_TEST_UPDATES ? [2, 3, 4] : [2, 3]) {
      const several = await found<Trained>(ranks === 2 ? second : first, ranks, task);
      expect(several.alike).toBe(true);
      for (const name of RUNS) {
        expect([ranks, name, several[name].hash]).toEqual([ranks, name, alone[name].hash]);
        several[name].losses.forEach((loss, i) => {
          expect(loss).toBeCloseTo(alone[name].losses[i], 12);
        });
      }
    }
  });

  test('split state gives the bits of one process, and checkpoints of whole tensors', async () => {
    const options = { reduction: 'exact', maxSteps: UPDATES, tokenBudget: 40 };
    const runs = DULTRA_TEST_UPDATES
      ? RUNS
      : ['sft', 'sft bf16', 'planner', 'grpo cache', 'grpo diffu-grpo', 'grpo lora', 'd3llm'];
    const task = (more: Record<string, unknown>) => ({ do: 'train', model, runs, options: { ...options, ...more } });
    const [first, second = first] = LAUNCHERS;
    const whole = await found<Trained>(first, 1, task({}));
    const all = [2, 3, 4].flatMap((ranks) => [1, 2].map((zeroStage) => [ranks, zeroStage]));
    const few = [
      [3, 1],
      [2, 2],
      [4, 2],
    ];
    for (const [ranks, zeroStage] of DULTRA_TEST_UPDATES ? all : few) {
      const split = await found<Trained>(ranks === 2 ? second : first, ranks, task({ zeroStage }));
      expect(split.alike).toBe(true);
      for (const name of runs) expect([name, split[name].hash]).toEqual([name, whole[name].hash]);
    }
    // A run that began with split state goes on without, and with.
    const outputDir = path.join(temporaryFolder(), 'run');
    const part = (ranks: number, maxSteps: number, zeroStage: number) =>
      found<Trained>(LAUNCHERS[0], ranks, {
        ...task({ outputDir, resume: true, maxSteps, zeroStage, evalEvery: 0, learningRateFloor: 1 }),
        runs: ['sft'],
      });
    await part(2, 1, 2);
    await part(1, 2, 0);
    await part(1, 3, 1);
    const resumed = await part(4, UPDATES, 2);
    expect(resumed.sft.hash).toBe(whole.sft.hash);
  });

  test('split state takes the memory of its plan', async () => {
    // Of 55 MB, beside which what a process takes for itself is little.
    const large = await newModelFolder({ dModel: 512, nHeads: 8, nLayers: 4 });
    const plan = (zeroStage: 0 | 1 | 2) =>
      training.planMemory('sft', { model: large, dataset: 'free8', zeroStage }, { device: 'cpu', ranks: 3 });
    for (const zeroStage of [1, 2] as const) {
      const { items } = await plan(zeroStage);
      const planned = items
        .filter(({ name }) => ['masters', 'gradients', 'moments'].includes(name))
        .reduce((sum, { bytes }) => sum + bytes, 0);
      const taken = await found<number[]>(LAUNCHERS[0], 3, { do: 'memory', model: large, zeroStage });
      expect(taken).toHaveLength(3);
      for (const bytes of taken) expect(Math.abs(bytes / planned - 1)).toBeLessThan(0.05);
    }
    const [whole, split, all] = await Promise.all([plan(0), plan(1), plan(2)]);
    const bytesOf = (of: training.MemoryPlan, item: string) => of.items.find(({ name }) => name === item)!.bytes;
    expect(bytesOf(whole, 'moments') / bytesOf(split, 'moments')).toBeCloseTo(3, 1);
    expect(bytesOf(whole, 'gradients') / bytesOf(all, 'gradients')).toBeGreaterThan(1.6);
    expect(all.bytesByZeroStage).toEqual([whole.bytes, split.bytes, all.bytes]);
  });

  test('the sum differs by rounding, and is the same from run to run', async () => {
    const task = (reduction: string, zeroStage: number) => ({
      ...{ do: 'train', model, runs: ['sft', 'grpo'], options: { maxSteps: 3, tokenBudget: 40, reduction, zeroStage } },
    });
    const [first, second = first] = LAUNCHERS;
    const exact = await found<Trained>(first, 1, task('exact', 0));
    for (const [launcher, zeroStage] of [
      [first, 0],
      [second, 2],
    ] as const) {
      const once = await found<Trained>(launcher, 2, task('sum', zeroStage));
      expect(await found<Trained>(launcher, 2, task('sum', zeroStage))).toEqual(once);
      expect(once.alike).toBe(true);
      for (const name of ['sft', 'grpo']) {
        expect(once[name].hash).not.toBe(exact[name].hash);
        once[name].losses.forEach((loss, i) => {
          expect(loss).toBeCloseTo(exact[name].losses[i], 5);
        });
      }
    }
  });

  test.each(LAUNCHERS)('%s: a process that throws ends the job', async (launcher) => {
    const { code, stderr, seconds } = await job(launcher, 2, {
      ...{ do: 'fail', model, name: 'grpo', options: { maxSteps: 500 } },
    }).outcome;
    expect(code).not.toBe(0);
    expect(stderr.match(/the reward model is gone/g)).toHaveLength(1);
    expect(stderr).toContain('rank 1: Error: the reward model is gone');
    expect(seconds).toBeLessThan(60);
  });

  test.each(LAUNCHERS)(
    '%s: a process that leaves others behind, or does something else, ends the job',
    async (launcher) => {
      for (const [task, problem] of [
        ['leave', 'rank 0 waits for all, rank 1 has ended'],
        ['differ', 'rank 0 waits for all, rank 1 exchanges results'],
        ['passes', /rank 0 reduces the gradients of a micro-batch of \d+ parameters, rank 1 adds up gradients of/],
      ] as const) {
        const { code, stderr, seconds } = await job(launcher, 3, { do: task, model }).outcome;
        expect([task, code]).not.toEqual([task, 0]);
        expect(stderr).toContain('rank 0: DUltraError: processes of one job must do the same: ');
        expect(stderr).toMatch(problem);
        expect(stderr.match(/must do the same/g)).toHaveLength(1);
        expect(seconds).toBeLessThan(60);
      }
    },
  );

  test.each(LAUNCHERS)('%s: wrong usage is told once, with its rank, and ends the job', async (launcher) => {
    const sft = ['train', 'sft', '--preset', 'tiny'];
    const unknown = [...sft, '--nonsense'];
    const none = ['train', 'sft', '--set', 'seed=1'];
    for (const [ofAll, ofLast, message] of [
      [unknown, unknown, "rank 0: unknown option '--nonsense'"],
      [none, none, 'rank 0: no data set'],
      // The others are waiting for it in MPI by then, or in an exchange.
      [sft, unknown, "rank 1: unknown option '--nonsense'"],
      [sft, none, 'rank 1: no data set'],
    ] as const) {
      const command = [path.join(__dirname, 'rank-command.cjs'), JSON.stringify([ofAll, ofLast])];
      const { code, stdout, stderr, seconds } = await mpirun(launcher, 2, command, { cwd: temporaryFolder() }).outcome;
      expect([message, code, stdout]).toEqual([message, 2, '']);
      expect(stderr).toContain(`dultra: ${message}`);
      expect(stderr.match(/dultra: /g)).toHaveLength(1);
      expect(stderr.match(/for its options/g)).toHaveLength(1);
      expect(seconds).toBeLessThan(60);
    }
  });

  test('ranks that are killed at random moments: the run goes on to the same weights', async () => {
    const { whole, hashes, ends } = await killedRuns({ model, launcher: LAUNCHERS[0], ranks: [2, 4], kills: 2 });
    expect(hashes.map((hash: string) => hash === whole)).toEqual(hashes.map(() => true));
    expect(ends).toHaveLength(2);
    for (const seconds of ends) expect(seconds).toBeLessThan(60);
  });

  test('a process that is killed ends the job', async () => {
    const started = job(LAUNCHERS[0], 2, { do: 'endless', model, name: 'sft', options: { maxSteps: 1e6 } });
    while (!/step 3\n/.test(started.stderr())) await new Promise((resolve) => setTimeout(resolve, 20));
    const pid = Number(/rank 1 is process (\d+)/.exec(started.stderr())![1]);
    const begin = performance.now();
    process.kill(pid, 'SIGKILL');
    const { code } = await started.outcome;
    expect(code).not.toBe(0);
    expect(performance.now() - begin).toBeLessThan(10_000);
  });

  test('a process with another version, configuration, data set or model is refused before the first step', async () => {
    const modelOfLast = await newModelFolder({ seed: 4 });
    for (const [more, difference] of [
      [{ ofLast: { seed: 5 } }, /option seed: expected "0", got "5"/],
      [{ modelOfLast }, /model: expected "\w+", got "\w+"/],
      [{ versionOfSecond: '0.0.1' }, /version of dultra: expected "[\d.]+", got "0.0.1"/],
      [{ ofLast: { dataName: 'freeb8' } }, /data set.name: expected "free8", got "freeb8"/],
      [{ ofLast: { otherExamples: true } }, /examples: expected "\w+", got "\w+"/],
    ] as const) {
      const task = { do: 'endless', model, name: 'sft', options: { maxSteps: 5 }, ...more };
      const { code, stderr } = await job(LAUNCHERS[0], 2, task).outcome;
      expect([difference, code]).not.toEqual([difference, 0]);
      expect(/rank 1 differs from rank 0 in its (.*)/.exec(stderr)?.[1]).toMatch(difference);
      expect(stderr).not.toContain('step 1');
    }
  });

  test('programs are judged in a sandbox of the process that wrote them', async () => {
    const options = { maxSteps: 1, tokenBudget: 40, evalEvery: 0, advantageMinClip: null };
    const judged = await found<[results: number[], right: number[]][]>(LAUNCHERS[0], 2, { do: 'code', model, options });
    expect(judged.map(([results]) => results.length)).toEqual([3, 6]);
    for (const [results, right] of judged) expect(results).toEqual(right);
    expect(new Set(judged.flatMap(([results]) => results))).toEqual(new Set([0, 1]));
  });

  test('a killed run goes on, also with another number of processes, to the same weights', async () => {
    const options = (outputDir: string, maxSteps: number) => ({
      ...{ reduction: 'exact', tokenBudget: 40, outputDir, maxSteps, saveEvery: 2, resume: true, evalEvery: 0 },
    });
    const whole = await found<Trained>(LAUNCHERS[0], 2, {
      ...{ do: 'train', model, runs: ['grpo'], options: options(path.join(temporaryFolder(), 'run'), 8) },
    });
    const folder = path.join(temporaryFolder(), 'run');
    const killed = job(LAUNCHERS[0], 2, { do: 'endless', model, name: 'grpo', options: options(folder, 8) });
    while (!/step 3\n/.test(killed.stderr())) await new Promise((resolve) => setTimeout(resolve, 10));
    process.kill(Number(/rank 0 is process (\d+)/.exec(killed.stderr())![1]), 'SIGKILL');
    await killed.outcome;
    const resumed = await found<Trained>(LAUNCHERS[0], 3, {
      ...{ do: 'train', model, runs: ['grpo'], options: options(folder, 8) },
    });
    expect(resumed.grpo.hash).toBe(whole.grpo.hash);
  });

  const twoHosts = `two hosts train as one process does, and end with a process that is killed`;
  (noTwoHosts ? test.skip : test).each(LAUNCHERS)(
    `%s: ${twoHosts}${noTwoHosts ? ` (skipped: ${noTwoHosts})` : ''}`,
    async (launcher) => {
      const started = (ranks: number, task: Record<string, unknown>) =>
        mpirun(launcher, ranks, [child, JSON.stringify(task)], { cwd: temporaryFolder(), hosts: 2 });
      const outcome = async (ranks: number, task: Record<string, unknown>) => {
        const { code, stdout, stderr } = await started(ranks, task).outcome;
        expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
        return JSON.parse(stdout);
      };
      expect(await outcome(4, { do: 'exchange' })).toMatchObject({
        size: 4,
        localSize: 2,
        texts: ['', 'x', 'xx', 'xxx'],
      });
      const options = { reduction: 'exact', maxSteps: 2, tokenBudget: 40, evalEvery: 0, zeroStage: 1 };
      const task = { do: 'train', model, runs: ['sft', 'grpo'], options };
      const alone = await found<Trained>(launcher, 1, task);
      const two = await outcome(2, task);
      expect([two.alike, two.sft.hash, two.grpo.hash]).toEqual([true, alone.sft.hash, alone.grpo.hash]);
      const endless = started(2, { do: 'endless', model, name: 'sft', options: { maxSteps: 1e6 } });
      while (!/step 3\n/.test(endless.stderr())) await new Promise((resolve) => setTimeout(resolve, 20));
      const begin = performance.now();
      process.kill(Number(/rank 1 is process (\d+)/.exec(endless.stderr())![1]), 'SIGKILL');
      const { code } = await endless.outcome;
      expect(code).not.toBe(0);
      expect(performance.now() - begin).toBeLessThan(10_000);
    },
  );

  test.each(LAUNCHERS)('%s: a process that Node.js has started, as npx does', async (launcher) => {
    const script =
      'process.exit(require("node:child_process").spawnSync(process.execPath, process.argv.slice(1), { stdio: "inherit" }).status)';
    const args = ['-e', script, '--', child, JSON.stringify({ do: 'exchange' })];
    const { code, stdout, stderr } = await mpirun(launcher, 2, args, { cwd: temporaryFolder() }).outcome;
    if (launcher === 'mpirun.openmpi') {
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      expect(JSON.parse(stdout)).toMatchObject({ size: 2, texts: ['', 'x'] });
    } else {
      expect(code).not.toBe(0);
      expect(stderr).toContain('mpirun -n 2 node_modules/.bin/dultra');
    }
  });

  test('dultra train as two processes: rank 0 speaks and writes', async () => {
    const cwd = temporaryFolder();
    const args = [
      ...['train', 'sft', '--preset', 'tiny', '--max-steps', '2', '--batch-size', '4', '--set', 'evalExamples=4'],
      ...['--set', 'model={create: {dModel: 16, nHeads: 2, nLayers: 1, maxSequenceLength: 64}}'],
    ];
    const { code, stdout, stderr } = await mpirun(LAUNCHERS[0], 2, [main, ...args], { cwd }).outcome;
    expect([code, stdout]).toEqual([0, `${path.join(cwd, 'runs', 'tiny-sft', 'final')}\n`]);
    expect(stderr.match(/step 2\/2/g)).toHaveLength(1);
    const resumed = [main, 'train', '--resume', 'runs/tiny-sft', '--max-steps', '3', '--log-ranks'];
    const shown = await mpirun(LAUNCHERS[0], 2, resumed, { cwd }).outcome;
    expect(shown.stderr).toMatch(/\[rank 0\] step 3\/3/);
    expect(shown.stderr).toMatch(/\[rank 1\] step 3\/3/);
  });

  test('dultra distill as two processes writes the answers of one', async () => {
    const cwd = temporaryFolder();
    const written = async (ranks: number, file: string) => {
      const args = [
        'distill',
        '-m',
        'word-problems',
        '-d',
        'st1',
        '--count',
        '10',
        '--retries',
        '1',
        '--quiet',
        '-o',
        file,
      ];
      const { code, stdout, stderr } = await mpirun(LAUNCHERS[0], ranks, [main, ...args], { cwd }).outcome;
      expect([code, stdout, stderr]).toEqual([0, `${file}\n`, '']);
      return readFileSync(path.join(cwd, file), 'utf8');
    };
    const alone = await written(1, 'alone.jsonl');
    expect(alone.split('\n').length).toBeGreaterThan(4);
    expect(await written(3, 'three.jsonl')).toBe(alone);
  });

  test('dultra eval as two processes gives the table, the samples and the report of one', async () => {
    const cwd = temporaryFolder();
    const evaluated = async (ranks: number, output: string, count: number) => {
      const args = ['eval', '--count', String(count), '--samplers', 'planner,fixed:3', '--batch-size', '7', '--json'];
      const { code, stdout, stderr } = await mpirun(
        LAUNCHERS[0],
        ranks,
        [main, ...args, '--quiet', '--output', output, '--report', 'report.html'],
        { cwd },
      ).outcome;
      expect([code, stderr]).toEqual([0, '']);
      // Times are those of the machine, and the order of keys that of JSON.
      return JSON.parse(stdout, (key, value) => (/^(seconds|tokensPerSecond|threads)$/.test(key) ? undefined : value));
    };
    const lines = (output: string) =>
      readFileSync(path.join(cwd, output, 'samples.jsonl'), 'utf8')
        .trim()
        .split('\n');
    const alone = await evaluated(1, 'alone', 18);
    expect(await evaluated(2, 'both', 18)).toEqual(alone);
    const withoutTime = (line: string) => ({ ...JSON.parse(line), seconds: 0 });
    expect(lines('both').map(withoutTime)).toEqual(lines('alone').map(withoutTime));
    // What an interruption has left, another number of processes completes.
    writeFileSync(path.join(cwd, 'both', 'samples.jsonl'), `${lines('both').slice(0, 9).join('\n')}\n`);
    expect(await evaluated(3, 'both', 18)).toEqual(alone);
    expect(lines('both')).toHaveLength(lines('alone').length);
  });

  test('a launcher whose MPI cannot be used is an error, not as many single runs', async () => {
    const { code, stderr } = await mpirun(LAUNCHERS[0], 2, [child, JSON.stringify({ do: 'exchange' })], {
      cwd: temporaryFolder(),
      env: { DULTRA_MPI: 'libnowhere.so.1' },
    }).outcome;
    expect(code).not.toBe(0);
    expect(stderr).toContain('DISTRIBUTED');
    expect(stderr).toContain('there is no MPI that it could use');
  });
});
