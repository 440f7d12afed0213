// Runs that survive: killed at any moment and resumed, they end with the same bytes as a run that was never
// interrupted.
import { spawn } from 'node:child_process';
import { cpSync, existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { random } from './checkpoints';
import { exceptOnWindows, readTensors, temporaryFolder } from './helpers';
import { metricsOf, newModelFolder } from './trained-models';

const child = path.join(__dirname, 'resume-child.cjs');
const STEPS = 24;
const last = (run: string) => path.join(run, 'checkpoints', `step-${String(STEPS).padStart(8, '0')}`);

interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** Starts the run; `kill` gets the process and the time of its first step. */
async function run(args: string[], kill?: (pid: number) => Promise<void>, shell?: string): Promise<Ended> {
  const command = [process.execPath, child, ...args];
  const started = shell
    ? spawn('bash', ['-c', `${shell}; exec "$@"`, 'bash', ...command])
    : spawn(command[0], command.slice(1));
  let stdout = '';
  let stderr = '';
  let first = () => {};
  const firstStep = new Promise<void>((resolve) => {
    first = resolve;
  });
  started.stdout.on('data', (piece) => {
    stdout += piece;
    first();
  });
  started.stderr.on('data', (piece) => {
    stderr += piece;
  });
  const ended = new Promise<Ended>((resolve) =>
    started.on('close', (code, signal) => resolve({ code, signal, stdout, stderr })),
  );
  if (kill) {
    await Promise.race([firstStep, ended]);
    await kill(started.pid!);
    started.kill('SIGKILL');
  }
  return ended;
}

let folder: string;
beforeAll(async () => {
  folder = await newModelFolder();
});

function expectEqualRuns(actual: string, expected: string): void {
  const files = readdirSync(last(expected), { recursive: true }).map(String).sort();
  expect(readdirSync(last(actual), { recursive: true }).map(String).sort()).toEqual(files);
  for (const file of files) {
    if (!/\.(safetensors|json)$/.test(file)) continue;
    expect([
      file,
      readFileSync(path.join(last(actual), file)).equals(readFileSync(path.join(last(expected), file))),
    ]).toEqual([file, true]);
  }
  expect(metricsOf(actual)).toEqual(metricsOf(expected));
  expect(metricsOf(actual).map(({ step }) => step)).toEqual(Array.from({ length: STEPS }, (_, i) => i + 1));
  const finished = (name: string) => readdirSync(path.join(name, 'checkpoints')).sort();
  expect(finished(actual)).toEqual(finished(expected));
}

test.each(['sft', 'examples', 'mixture', 'planner', 'grpo'])(
  '%s: SIGKILL at random moments changes nothing',
  async (stage) => {
    const base = temporaryFolder();
    const whole = path.join(base, 'whole');
    const began = performance.now();
    const reference = await run([stage, folder, whole]);
    expect(reference).toMatchObject({ code: 0, stderr: '' });
    const duration = performance.now() - began;
    const broken = path.join(base, 'broken');
    const next = random(stage.length);
    let kills = 0;
    let starts = 0;
    let share = 0.3;
    for (; starts < 40; starts++) {
      // From the first step on, with a chance to get some way: into steps, evaluations, and the writing of checkpoints.
      const { code, signal } = await run([stage, folder, broken], (_pid) => sleep(next() * (share * duration)));
      if (signal === 'SIGKILL') kills++;
      else {
        expect(code).toBe(0);
        if (kills > 0) break;
        // It was done before it could be killed, as happens when the machine's load changes: once more, and sooner.
        rmSync(broken, { recursive: true });
        share /= 4;
        continue;
      }
      // Whatever carries a checkpoint's name is complete.
      for (const name of readdirSync(path.join(broken, 'checkpoints')).filter((entry) => entry.startsWith('step-'))) {
        const complete = path.join(broken, 'checkpoints', name);
        readTensors(path.join(complete, 'model.safetensors'));
        expect(existsSync(path.join(complete, 'state.json'))).toBe(true);
      }
    }
    expect(kills).toBeGreaterThan(0);
    expectEqualRuns(broken, whole);
  },
);

test('a run killed before its first checkpoint begins again', async () => {
  const base = temporaryFolder();
  const broken = path.join(base, 'broken');
  await run(['sft', folder, broken, '1'], async () => {});
  const { code } = await run(['sft', folder, broken]);
  expect(code).toBe(0);
  expect(metricsOf(broken)).toHaveLength(STEPS);
});

exceptOnWindows('Windows stops no process')(
  'a folder that another process is writing is refused, and taken over when that is gone',
  async () => {
    const broken = path.join(temporaryFolder(), 'broken');
    let refused: Ended | undefined;
    await run(['sft', folder, broken, '2'], async (pid) => {
      process.kill(pid, 'SIGSTOP');
      const before = readdirSync(broken, { recursive: true }).map(String).sort();
      refused = await run(['sft', folder, broken]);
      expect(refused.stderr).toContain(`is being written by process ${pid} on `);
      expect(readdirSync(broken, { recursive: true }).map(String).sort()).toEqual(before);
    });
    expect(refused?.code).toBe(1);
    expect(existsSync(path.join(broken, '.lock'))).toBe(true);
    expect(await run(['sft', folder, broken])).toMatchObject({ code: 0, stderr: '' });
    expect(existsSync(path.join(broken, '.lock'))).toBe(false);
  },
);

exceptOnWindows('Windows has no limit on the size of a file')(
  'a full disk is an error, and the last checkpoint stays',
  async () => {
    const base = temporaryFolder();
    const broken = path.join(base, 'broken');
    // Waits at step 14, when of the checkpoints of steps 4, 6, 8 and 12 the last two are left.
    const step = (name: string) => existsSync(path.join(broken, 'checkpoints', `step-000000${name}`));
    const ready = () => step('12') && !step('04') && !step('06');
    await run(['sft', folder, broken, '14'], async () => {
      while (!ready()) await sleep(5);
    });
    const before = readdirSync(path.join(broken, 'checkpoints'))
      .filter((name) => name.startsWith('step-'))
      .sort();
    const copy = path.join(base, 'copy');
    cpSync(broken, copy, { recursive: true });
    // No file may grow beyond 8 kB: as a disk that is full, but without a disk of its own.
    const { code, stderr } = await run(['sft', folder, broken], undefined, `trap '' XFSZ; ulimit -f 8`);
    expect(code).toBe(1);
    expect(stderr).toMatch(/^WRITE_FAILED .*the disk is full, or a limit is reached/);
    expect(readdirSync(path.join(broken, 'checkpoints')).sort()).toEqual(before);
    for (const name of before)
      for (const file of readdirSync(path.join(broken, 'checkpoints', name)))
        expect(readFileSync(path.join(broken, 'checkpoints', name, file))).toEqual(
          readFileSync(path.join(copy, 'checkpoints', name, file)),
        );
    // With room again it goes on, to the same end.
    expect(await run(['sft', folder, broken])).toMatchObject({ code: 0 });
    const whole = path.join(base, 'whole');
    await run(['sft', folder, whole]);
    expectEqualRuns(broken, whole);
  },
);
