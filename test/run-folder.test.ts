// Run folders: files, locks, stopping and failing.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { loadModel, type RewardFunction, type training, trainMaskedDiffusion } from '../lib';
import { isRunning } from '../lib/process';
import { crc32c, tagOf } from '../lib/training/tensorboard';
import { exceptOnWindows, readTensors, temporaryFolder } from './helpers';
import { largestDifference, metricsOf, newModelFolder, task, weightsOf, withModel } from './trained-models';
import { grpo, planner, sft } from './trainers';

let folder: string;
beforeAll(async () => {
  folder = await newModelFolder();
});

describe('run folders', () => {
  exceptOnWindows('has no zombies')(
    'a process that has ended, but that nobody has taken note of, holds no lock',
    async () => {
      if (process.platform !== 'linux') return;
      // The first child ends; its parent becomes a program that does not wait for it.
      const parent = spawn('sh', ['-c', 'true & echo $!; exec sleep 20'], { stdio: ['ignore', 'pipe', 'ignore'] });
      try {
        const [text] = (await once(parent.stdout, 'data')) as [Buffer];
        const pid = Number(text.toString());
        const state = () => /\) (\S)/.exec(readFileSync(`/proc/${pid}/stat`, 'utf8'))![1];
        while (state() !== 'Z') await new Promise((resolve) => setTimeout(resolve, 10));
        expect(isRunning(pid)).toBe(false);
        expect(isRunning(parent.pid!)).toBe(true);
      } finally {
        parent.kill('SIGKILL');
      }
    },
  );

  test('what is in them', async () => {
    const run = path.join(temporaryFolder(), 'run');
    const metrics = await withModel(folder, (model) =>
      sft(model, { outputDir: run, maxSteps: 7, saveEvery: 2, keepLast: 2, evalEvery: 3 }),
    );
    const config = JSON.parse(readFileSync(path.join(run, 'config.json'), 'utf8'));
    expect(config).toMatchObject({
      kind: 'sft',
      seed: '0',
      dataset: { name: 'free8' },
      device: { device: 'cpu' },
      options: { batchSize: 8, weightDecay: 0.1 },
    });
    expect(config.version).toBe((require('../package.json') as { version: string }).version);
    expect(metricsOf(run).map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6, 7]);
    const [first] = metricsOf(run);
    expect(first.loss).toBe(metrics[0].loss);
    const kept = readdirSync(path.join(run, 'checkpoints')).sort();
    expect(kept.slice(-2)).toEqual(['step-00000006', 'step-00000007']);
    const state = JSON.parse(readFileSync(path.join(run, 'checkpoints', 'step-00000007', 'state.json'), 'utf8'));
    const best = Math.min(...metrics.flatMap(({ evalLoss }) => evalLoss ?? []));
    expect(state.best.value).toBe(best);
    expect(kept).toContain(`step-${String(state.best.step).padStart(8, '0')}`);
    const last = await loadModel(path.join(run, 'checkpoints', 'step-00000007'));
    last.dispose();
    const events = readdirSync(run).filter((name) => name.startsWith('events.out.tfevents.'));
    expect(events).toHaveLength(1);
    checkEvents(readFileSync(path.join(run, events[0])), 7);
  });

  /** Walks the records of an event file and checks lengths, checksums and steps. */
  function checkEvents(bytes: Buffer, steps: number): void {
    const masked = (part: Uint8Array) => {
      const crc = crc32c(part);
      return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
    };
    const seen: string[] = [];
    let at = 0;
    while (at < bytes.length) {
      const length = Number(bytes.readBigUInt64LE(at));
      expect(bytes.readUInt32LE(at + 8)).toBe(masked(bytes.subarray(at, at + 8)));
      const data = bytes.subarray(at + 12, at + 12 + length);
      expect(bytes.readUInt32LE(at + 12 + length)).toBe(masked(data));
      seen.push(data.toString('latin1'));
      at += length + 16;
    }
    expect(seen[0]).toContain('brain.Event:2');
    expect(seen).toHaveLength(steps + 1);
    for (const record of seen.slice(1)) {
      for (const tag of ['train/loss', 'train/grad_norm', 'train/learning_rate']) expect(record).toContain(tag);
      // No series: the planner does not train.
      for (const tag of ['maxSteps', 'max_steps', 'seconds\\x12', 'planner']) expect(record).not.toContain(tag);
    }
  }

  test('tags are in groups', () => {
    const tags = Object.fromEntries(
      [
        'loss',
        'gradNorm',
        'evalLoss',
        'evalAccuracy/sum',
        'reward',
        'rewardStd',
        'reward/fastAnswer',
        'nfe',
        'clippedLow',
      ].map((name) => [name, tagOf(name)]),
    );
    expect(tags).toEqual({
      loss: 'train/loss',
      gradNorm: 'train/grad_norm',
      evalLoss: 'eval/loss',
      'evalAccuracy/sum': 'eval/accuracy/sum',
      reward: 'train/reward',
      rewardStd: 'train/reward_std',
      'reward/fastAnswer': 'rewards/fastAnswer/mean',
      nfe: 'completions/forward_passes',
      clippedLow: 'clip_ratio/low',
    });
    for (const name of ['maxSteps', 'seconds']) expect(tagOf(name)).toBeNull();
  });

  test('samples of completions, and what is known before the first step', async () => {
    const run = path.join(temporaryFolder(), 'run');
    const starts: training.RunStart[] = [];
    const shown: training.CompletionSample[] = [];
    const options = { outputDir: run, evalEvery: 2, evalExamples: 3, samplesEvery: 2, saveEvery: 1 };
    const callbacks = {
      onStart: (start: training.RunStart) => starts.push(start),
      onSamples: (samples: readonly training.CompletionSample[]) => shown.push(...samples),
    };
    await withModel(folder, (model) => grpo(model, { ...options, maxSteps: 3, ...callbacks }));
    expect(starts).toMatchObject([{ step: 0, maxSteps: 3, dataset: { name: 'free8', size: null, heldOut: 3 } }]);
    expect(starts[0].trainable).toBe(starts[0].parameters);
    const key = ({ step, split }: training.CompletionSample) => `${step} ${split}`;
    expect([...new Set(shown.map(key))]).toEqual(['1 train', '2 validation', '3 train', '3 validation']);
    const [rollout] = shown;
    expect(Object.keys(rollout.rewards!)).not.toEqual([]);
    expect(rollout).toMatchObject({ prompt: expect.any(String), answer: expect.any(String), nfe: expect.any(Number) });
    const lines = () =>
      readFileSync(path.join(run, 'samples.jsonl'), 'utf8')
        .trimEnd()
        .split('\n')
        .map((line) => JSON.parse(line) as training.CompletionSample);
    expect(lines()).toEqual(JSON.parse(JSON.stringify(shown)));
    // A run that goes on has each of them once.
    rmSync(path.join(run, 'checkpoints', 'step-00000003'), { recursive: true });
    await withModel(folder, (model) => grpo(model, { ...options, maxSteps: 3, resume: true, ...callbacks }));
    expect(starts[1]).toMatchObject({ step: 2, maxSteps: 3 });
    expect(lines().map(key)).toEqual(JSON.parse(JSON.stringify(shown)).slice(0, lines().length).map(key));
    await withModel(folder, (model) =>
      expect(grpo(model, { maxSteps: 1, onSamples: 3 as never })).rejects.toThrow('onSamples: expected a function'),
    );
  });

  test('the checksum is CRC-32C', () => expect(crc32c(Buffer.from('123456789'))).toBe(0xe3069283));

  test('a folder is not written twice at once', async () => {
    const run = path.join(temporaryFolder(), 'run');
    await withModel(folder, async (model) => {
      const first = trainMaskedDiffusion(model, { dataset: task, outputDir: run, maxSteps: 9, batchSize: 8 });
      await first.next();
      await withModel(folder, async (other) => {
        const refused = new RegExp(`outputDir: .* is being written by process ${process.pid}`);
        await expect(sft(other, { outputDir: run, resume: true })).rejects.toThrow(refused);
        await first.return();
        expect(await sft(other, { outputDir: run, resume: true })).not.toEqual([]);
      });
    });
  });

  test('a second run in the same folder is refused; resuming one with other options too', async () => {
    const run = path.join(temporaryFolder(), 'run');
    await withModel(folder, async (model) => {
      await sft(model, { outputDir: run });
      await expect(sft(model, { outputDir: run })).rejects.toThrow('outputDir: ');
      await expect(sft(model, { outputDir: run, resume: true, batchSize: 9 })).rejects.toThrow(
        'batchSize: expected 8, with which the run began, got 9',
      );
      await expect(planner(model, { outputDir: run, resume: true })).rejects.toThrow('resume: ');
      expect(await sft(model, { outputDir: run, resume: true })).toEqual([]);
      expect(await sft(model, { outputDir: run, resume: true, maxSteps: 5 })).toHaveLength(2);
    });
  });

  test('early stop after evaluations without a new best', async () => {
    const metrics = await withModel(folder, (model) =>
      sft(model, {
        maxSteps: 50,
        learningRate: 0,
        evalEvery: 2,
        patience: 2,
        outputDir: path.join(temporaryFolder(), 'run'),
      }),
    );
    expect(metrics).toHaveLength(6);
  });

  test('an abort finishes the step, saves, and throws the reason', async () => {
    const run = path.join(temporaryFolder(), 'run');
    const controller = new AbortController();
    const reason = new Error('enough');
    await withModel(folder, async (model) => {
      const seen: number[] = [];
      const work = async () => {
        for await (const { step } of trainMaskedDiffusion(model, {
          dataset: task,
          maxSteps: 9,
          batchSize: 4,
          outputDir: run,
          signal: controller.signal,
        })) {
          seen.push(step);
          if (step === 3) controller.abort(reason);
        }
      };
      await expect(work()).rejects.toBe(reason);
      // The abort came after step 3 was handed out: step 4 was not begun, or is finished.
      expect(seen).toEqual([1, 2, 3]);
    });
    expect(existsSync(path.join(run, 'checkpoints', 'step-00000003', 'state.json'))).toBe(true);
  });

  test('NaN or infinity stops with the step, and leaves weights and checkpoint', async () => {
    const run = path.join(temporaryFolder(), 'run');
    await withModel(folder, async (model) => {
      let calls = 0;
      const explodes: RewardFunction = ({ results }) => results.map((_, row) => (++calls > 32 ? 1e300 : 1) * row);
      const work = grpo(model, { maxSteps: 9, saveEvery: 2, outputDir: run, rewards: { explodes } });
      await expect(work).rejects.toMatchObject({ name: 'DUltraError', code: 'NON_FINITE' });
      await expect(work).rejects.toThrow(/^step 3: .*step-00000002/);
      const good = readTensors(path.join(run, 'checkpoints', 'step-00000002', 'model.safetensors'));
      expect(largestDifference(await weightsOf(model), good)).toBe(0);
    });
    expect(metricsOf(run)).toHaveLength(2);
  });
});
