// GPUs of several processes that add up gradients by NCCL: on the emulator, with a library that stands in for NCCL
// (native/test/stand_in/nccl.cc). .ci/stages/node builds both, and names the plugin in DULTRA_EMULATED_CUDA.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { main } from './command-line';
import { temporaryFolder } from './helpers';
import { LAUNCHERS, mpirun } from './processes';
import { newModelFolder } from './trained-models';

const emulated = process.env.DULTRA_EMULATED_CUDA ?? '';
const standIn = path.join(path.dirname(emulated), 'libdultra_stand_in_nccl.so');
const isHere = emulated !== '' && existsSync(standIn) && LAUNCHERS.length > 0;
const child = path.join(__dirname, 'distributed-child.cjs');

interface Trained {
  alike: boolean;
  [run: string]: { hash: string; losses: number[]; exchange: unknown } | boolean;
}

let model: string;
beforeAll(async () => {
  if (isHere) model = await newModelFolder();
});

/** Starts a job on the emulator. @param env more of the environment; DULTRA_NCCL names the stand-in otherwise */
const job = (ranks: number, task: Record<string, unknown>, env: Record<string, string> = {}) =>
  mpirun(LAUNCHERS[0], ranks, [child, JSON.stringify({ ownDevices: true, model, ...task })], {
    cwd: temporaryFolder(),
    env: { DULTRA_CUDA_PLUGIN: emulated, DULTRA_NCCL: standIn, ...env },
  });

const OPTIONS = { reduction: 'exact', maxSteps: 2, tokenBudget: 40, evalEvery: 0 };

/** What the runs of a job have come to. */
async function trained(
  ranks: number,
  { runs = ['sft'], ...task }: { runs?: string[]; options?: Record<string, unknown>; [key: string]: unknown },
  env: Record<string, string> = {},
): Promise<Trained> {
  const options = { ...OPTIONS, ...task.options };
  const { code, stdout, stderr } = await job(ranks, { do: 'train', ...task, runs, options }, env).outcome;
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const found = JSON.parse(stdout) as Trained;
  expect(found.alike).toBe(true);
  return found;
}

const why = isHere ? '' : ' (skipped: without DULTRA_EMULATED_CUDA, the stand-in beside it, or MPI)';
(isHere ? describe : describe.skip)(`NCCL's stand-in on the emulator${why}`, () => {
  const found = (run: Trained, name = 'sft') => run[name] as { hash: string; losses: number[]; exchange: unknown };
  const byNccl = (processes: number) => ({ processes, nccl: '2.18.5', reason: null });

  test('two to four processes have the bits of one, whole and split', async () => {
    const runs = ['sft', 'sft bf16'];
    const alone = await trained(1, { runs });
    expect(found(alone).exchange).toBeNull();
    for (const [ranks, zeroStage] of [
      [2, 0],
      [3, 1],
      [4, 2],
    ]) {
      const log = path.join(temporaryFolder(), 'calls');
      const several = await trained(ranks, { runs, options: { zeroStage } }, { DULTRA_STAND_IN_LOG: log });
      for (const name of runs) {
        expect([ranks, name, found(several, name).hash]).toEqual([ranks, name, found(alone, name).hash]);
        expect(found(several, name).exchange).toEqual(byNccl(ranks));
      }
      const calls = readFileSync(log, 'utf8').trim().split('\n');
      const of = (rank: number) =>
        calls.filter((line) => line.startsWith(`${rank} `)).map((line) => line.slice(line.indexOf(' ') + 1));
      // One connection for both trainers, ended by all; sums of integers, and with split state weights.
      expect(of(0)[0]).toBe(`ncclCommInitRank ${ranks} bytes`);
      expect(of(0).at(-1)).toBe('ncclCommDestroy 0 bytes');
      for (let rank = 1; rank < ranks; rank++) expect(of(rank)).toEqual(of(0));
      const names = new Set(of(0).map((line) => line.replace(/ \d+ /, ' ')));
      expect([...names]).toEqual([
        'ncclCommInitRank bytes',
        ...(zeroStage > 0 ? ['ncclReduce int64', 'ncclBroadcast bytes'] : ['ncclAllReduce int64']),
        'ncclCommDestroy bytes',
      ]);
      // Bucket by bucket.
      const sums = of(0).filter((line) => /^nccl(All)?Reduce/.test(line));
      expect(sums.length).toBeGreaterThan(2 * runs.length * OPTIONS.maxSteps);
    }
  });

  test('sums in fp32 are those of MPI, of whole and of split gradients', async () => {
    const runs = ['sft', 'sft zero 1', 'sft zero 2'];
    const options = { reduction: 'sum' };
    const log = path.join(temporaryFolder(), 'calls');
    const fast = await trained(2, { runs, options }, { DULTRA_STAND_IN_LOG: log });
    const calls = readFileSync(log, 'utf8');
    expect(calls).toMatch(/^0 ncclAllReduce \d+ float$/m);
    expect(calls).toMatch(/^0 ncclReduce \d+ float$/m);
    const host = await trained(2, { runs, options }, { DULTRA_NCCL: 'off' });
    for (const name of runs) {
      expect(found(fast, name).exchange).toEqual(byNccl(2));
      expect(found(host, name).exchange).toEqual({
        ...{ processes: 2, nccl: null, reason: 'rank 0: switched off by DULTRA_NCCL' },
      });
      // Of two addends there is one sum, whoever adds.
      expect([name, found(fast, name).hash]).toEqual([name, found(host, name).hash]);
    }
  });

  test('processes that NCCL cannot connect exchange through the host, and say why', async () => {
    const reason = async (task: Record<string, unknown>, env: Record<string, string> = {}) =>
      (found(await trained(2, { ...task, options: { maxSteps: 1 } }, env)).exchange as { reason: string }).reason;
    expect(await reason({ ownDevices: false })).toBe('rank 0 and rank 1 work on one GPU, which NCCL does not allow');
    expect(await reason({ environmentOfLast: { DULTRA_STAND_IN_VERSION: '22100' } })).toBe(
      'rank 0 and rank 1 have different versions of NCCL, 2.18.5 and 2.21.0',
    );
    expect(await reason({ environmentOfLast: { DULTRA_NCCL: 'libz.so.1' } })).toBe(
      'rank 1: libz.so.1 has no ncclGetVersion',
    );
  });

  test('dultra info names the library, or what is wrong with it', () => {
    const info = (env: Record<string, string>) => {
      const { stdout } = spawnSync(process.execPath, [main, 'info', '--json'], {
        env: { ...process.env, DULTRA_CUDA_PLUGIN: emulated, DULTRA_NCCL: standIn, ...env },
        encoding: 'utf8',
      });
      const { nccl, ncclReason } = JSON.parse(stdout).system;
      return nccl ?? ncclReason;
    };
    expect(info({})).toEqual({ file: standIn, version: '2.18.5' });
    expect(info({ DULTRA_NCCL: 'off' })).toBe('switched off by DULTRA_NCCL');
    expect(info({ DULTRA_STAND_IN_VERSION: '2804' })).toBe(
      `${standIn}: expected NCCL 2.10.0 or a newer one of version 2, got 2.8.4`,
    );
    expect(info({ DULTRA_NCCL: 'libz.so.1' })).toBe('libz.so.1 has no ncclGetVersion');
    expect(info({ DULTRA_NCCL: '/nowhere/libnccl.so' })).toContain('/nowhere/libnccl.so: cannot open');
    expect(info({ DULTRA_CUDA_PLUGIN: '/nowhere/plugin.so' })).toBe('there is no GPU');
  });

  test.each([
    ['now', 'internal error'],
    ['later', 'remote process exited or there was a network error'],
  ])('a call that fails (%s) ends the job with rank, call and message', async (when, message) => {
    const options = { ...OPTIONS, maxSteps: 1000 };
    const fail = { DULTRA_STAND_IN_FAIL: `1 2 ${when}` };
    const { code, stderr, seconds } = await job(2, { do: 'train', runs: ['sft'], options }, fail).outcome;
    expect(code).not.toBe(0);
    expect(stderr).toContain(`NCCL, ncclAllReduce on rank 1: ${message}: what the stand-in says`);
    expect(seconds).toBeLessThan(60);
  });

  test('a process that is killed ends the job, whose others wait for it', async () => {
    const started = job(2, { do: 'endless', name: 'sft', options: { ...OPTIONS, maxSteps: 1e6 } });
    while (!/step 1\n/.test(started.stderr())) await new Promise((resolve) => setTimeout(resolve, 20));
    const pid = Number(/rank 1 is process (\d+)/.exec(started.stderr())![1]);
    process.kill(pid, 'SIGKILL');
    const begin = performance.now();
    const { code } = await started.outcome;
    expect(code).not.toBe(0);
    expect(performance.now() - begin).toBeLessThan(10_000);
  });
});
