// dultra train, as people run it.
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { datasets, loadModel, training } from '../lib';
import { exceptOnWindows, temporaryFolder } from './helpers';
import { metricsOf, newModelFolder } from './trained-models';

const main = path.join(__dirname, '..', 'dist', 'cli', 'main.js');

interface Outcome {
  code: number | null;
  stdout: string;
  stderr: string;
}

function dultra(
  args: string[],
  options: { cwd?: string; during?: (stderr: string, interrupt: () => void) => void } = {},
): Promise<Outcome> {
  const child = spawn(process.execPath, [main, 'train', ...args], { cwd: options.cwd ?? temporaryFolder() });
  const outcome: Outcome = { code: null, stdout: '', stderr: '' };
  child.stdout.on('data', (piece) => {
    outcome.stdout += piece;
  });
  child.stderr.on('data', (piece) => {
    outcome.stderr += piece;
    options.during?.(outcome.stderr, () => child.kill('SIGINT'));
  });
  return new Promise((resolve) => child.on('close', (code) => resolve({ ...outcome, code })));
}

const SMALL = [
  '--set',
  'model={create: {dModel: 16, nHeads: 2, nLayers: 1, maxSequenceLength: 64}}',
  '--set',
  'evalExamples=8',
];

test('the three stages of the preset, one after the other', async () => {
  const cwd = temporaryFolder();
  const run = (stage: string, steps: number, ...more: string[]) =>
    dultra([stage, '--preset', 'tiny', '--max-steps', String(steps), '--batch-size', '4', ...more].filter(Boolean), {
      cwd,
    });
  const sft = await run('sft', 3, ...SMALL);
  expect(sft).toMatchObject({ code: 0, stdout: `${path.join(cwd, 'runs', 'tiny-sft', 'final')}\n` });
  expect(sft.stderr).toMatch(/step 3\/3: loss \d+\.\d+, \d+ tokens\/s; held out: loss/);
  const planner = await run('planner', 2, '--json', '--set', 'evalExamples=8');
  expect(planner.code).toBe(0);
  const document = JSON.parse(planner.stdout) as { stage: string; steps: number; metrics: { agreement: number } };
  expect(document).toMatchObject({ stage: 'planner', steps: 2, output: path.join(cwd, 'runs', 'tiny-planner') });
  expect(document.metrics.agreement).toBeGreaterThan(0);
  const grpo = await dultra(
    ['grpo', '--preset', 'tiny', '--max-steps', '2', '--quiet', '--set', 'promptsPerStep=2', '--set', 'evalExamples=8'],
    { cwd },
  );
  expect(grpo).toEqual({ code: 0, stdout: `${path.join(cwd, 'runs', 'tiny-grpo', 'final')}\n`, stderr: '' });
  const model = await loadModel(grpo.stdout.trim());
  expect(model.hasPlanner).toBe(true);
  model.dispose();
  const config = JSON.parse(readFileSync(path.join(cwd, 'runs', 'tiny-grpo', 'config.json'), 'utf8'));
  expect(config.options).toMatchObject({ numGenerations: 12, promptsPerStep: 2, rewards: { fastAnswer: 1 } });
});

const interruptible = exceptOnWindows('Windows ends a process that is sent a signal');
interruptible('Ctrl-C finishes the step, saves and exits with 130; --resume goes on to the same end', async () => {
  const cwd = temporaryFolder();
  const launch = (output: string) => [
    'sft',
    '--preset',
    'tiny',
    '-o',
    output,
    '--max-steps',
    '120',
    '--batch-size',
    '4',
    '--eval-every',
    '2',
    ...SMALL,
  ];
  let interrupted = false;
  const first = await dultra(launch('broken'), {
    cwd,
    during: (stderr, interrupt) => {
      if (!interrupted && stderr.includes('step 4/120')) {
        interrupted = true;
        interrupt();
      }
    },
  });
  expect(first.code).toBe(130);
  expect(first.stdout).toBe('');
  const checkpoints = readdirSync(path.join(cwd, 'broken', 'checkpoints'));
  const steps = metricsOf(path.join(cwd, 'broken')).length;
  expect(checkpoints).toContain(`step-${String(steps).padStart(8, '0')}`);
  expect(steps).toBeLessThan(120);
  expect(await dultra(launch('broken'), { cwd })).toMatchObject({ code: 2 });
  expect(await dultra(['--resume', 'broken'], { cwd })).toMatchObject({ code: 0 });
  expect(await dultra(launch('whole'), { cwd })).toMatchObject({ code: 0 });
  const weights = (name: string) => readFileSync(path.join(cwd, name, 'final', 'model.safetensors'));
  expect(weights('broken').equals(weights('whole'))).toBe(true);
  expect(metricsOf(path.join(cwd, 'broken'))).toEqual(metricsOf(path.join(cwd, 'whole')));
});

test('a config file, and examples of one’s own', async () => {
  const cwd = temporaryFolder();
  const folder = await newModelFolder();
  const task = datasets.byName('free8');
  const lines = (split: 'train' | 'validation') =>
    task
      .sample(split, 12, 1)
      .map(({ prompt, answer }) => JSON.stringify({ prompt, answer }))
      .join('\n');
  writeFileSync(path.join(cwd, 'train.jsonl'), lines('train'));
  writeFileSync(path.join(cwd, 'held.json'), `[${lines('validation').replaceAll('\n', ',')}]`);
  writeFileSync(
    path.join(cwd, 'run.yaml'),
    `model: ${folder}\ndataset: train.jsonl\nvalidation: held.json\nbatchSize: 4\nepochs: 2\nlearningRate: 1e-3\nevalEvery: 3\nlora: { rank: 2, targets: [q_proj] }\n`,
  );
  const sft = await dultra(['sft', '-c', 'run.yaml', '--learning-rate', '2e-3', '--json', '--quiet'], { cwd });
  expect(sft.stderr).toBe('');
  expect(JSON.parse(sft.stdout)).toMatchObject({ steps: 6 });
  const { options } = JSON.parse(readFileSync(path.join(cwd, 'runs', 'sft', 'config.json'), 'utf8'));
  expect(options).toMatchObject({ learningRate: 2e-3, lora: { rank: 2, targets: ['q_proj'] }, maxTokens: null });
  writeFileSync(
    path.join(cwd, 'grpo.json'),
    JSON.stringify({
      model: folder,
      dataset: 'train.jsonl',
      maxTokens: 8,
      maxSteps: 2,
      promptsPerStep: 2,
      numGenerations: 2,
      beta: 0.1,
      referenceModel: folder,
      advantageMinClip: null,
      rewards: {
        exact: { type: 'exactAnswer' },
        steps: { type: 'stepPenalty', weight: 0.1, options: { form: 'sqrt' } },
        letters: { type: 'format', options: { pattern: '^[A-H]', flags: 'i', reward: 0.2 } },
        teacher: { type: 'teacherLogProb', weight: 0.01, options: { model: folder, passes: 2 } },
      },
    }),
  );
  const grpo = await dultra(['grpo', '-c', 'grpo.json', '--json'], { cwd });
  expect(grpo.code).toBe(0);
  const { metrics } = JSON.parse(grpo.stdout) as { metrics: Record<string, number> };
  for (const name of ['exact', 'steps', 'letters', 'teacher'])
    expect(metrics[`reward/${name}`]).toEqual(expect.any(Number));
  expect(metrics.kl).toBeGreaterThanOrEqual(0);
});

test('a task from a module, a tokenizer learnt from it, a mixture, and right answers counted on the way', async () => {
  const cwd = temporaryFolder();
  const dultraPackage = JSON.stringify(path.join(__dirname, '..'));
  writeFileSync(
    path.join(cwd, 'task.cjs'),
    `const { datasets } = require(${dultraPackage}); module.exports = { ...datasets.world(), maxTokens: 40, blockLength: 40 };`,
  );
  // The same as an ES module with named exports.
  writeFileSync(
    path.join(cwd, 'task.mjs'),
    "import task from './task.cjs';\nexport const { sample, verify, categories, maxTokens } = task;\n",
  );
  writeFileSync(
    path.join(cwd, 'run.yaml'),
    `model: { create: { dModel: 16, nHeads: 2, nLayers: 1, tokenizer: { vocabSize: 600 }, attentionOutput: copying } }
dataset: ./task.mjs
maxSteps: 4
batchSize: 4
mixture: [{ steps: 2, shares: { sum: 1 } }, { shares: { sum: 1, dates: 1 } }]
padding: { share: 0.5, min: 20, max: 30 }
lossPer: token
evalEvery: 4
evalExamples: 8
evalSampler: { type: fixed, steps: 1 }
`,
  );
  const sft = await dultra(['sft', '-c', 'run.yaml', '--json'], { cwd });
  expect(sft.code).toBe(0);
  expect(sft.stderr).toMatch(/held out: loss \d+\.\d+, accuracy \d\.\d+, NFE 1\.0000/);
  const final = await loadModel(path.join(cwd, 'runs', 'sft', 'final'));
  expect(final.config.vocabSize).toBe(600);
  expect(final.tokenizer!.encode('12 and 34', { addSpecialTokens: false }).length).toBeLessThan(9);
  final.dispose();
  const names = Object.keys(metricsOf(path.join(cwd, 'runs', 'sft'))[3]).filter((key) => key.includes('/'));
  expect(names.sort()).toEqual(['evalAccuracy/dates', 'evalAccuracy/sum']);
  // The planner's stage takes the module, too.
  const planner = ['planner', '-d', './task.mjs', '-m', 'runs/sft/final', '--max-steps', '1', '--batch-size', '2'];
  expect(await dultra([...planner, '--quiet'], { cwd })).toMatchObject({ code: 0, stderr: '' });
  writeFileSync(path.join(cwd, 'broken.mjs'), 'export const sample = 1;');
  writeFileSync(path.join(cwd, 'syntax.mjs'), 'export const = 1;');
  for (const [file, message] of [
    ['broken.mjs', 'dataset: expected broken.mjs to export a function sample, got number'],
    ['syntax.mjs', 'syntax.mjs: '],
  ]) {
    const { code, stderr } = await dultra(['sft', '-d', file, '-o', 'runs/no'], { cwd });
    expect([code === 0, stderr]).toEqual([false, expect.stringContaining(message)]);
  }
});

describe('wrong usage', () => {
  const cwd = temporaryFolder();
  test.each([
    [[], 'expected a stage (sft, planner, grpo)'],
    [['stf'], 'expected a stage'],
    [['sft'], 'no data set'],
    [['sft', '--preset', 'huge'], '--preset: expected one of tiny'],
    [['sft', '-d', 'nowhere.jsonl'], '--dataset: expected one of st1'],
    [['sft', '-c', 'missing.yaml'], '--config: missing.yaml'],
    [['sft', '-d', 'st1', '--set', 'broken'], '--set: expected key=value'],
    [['sft', '--preset', 'tiny', ...SMALL, '--set', 'numGenerations=3'], 'unknown key "numGenerations"'],
    [
      ['sft', '--preset', 'tiny', ...SMALL, '--set', 'learningRte=0.1'],
      'unknown key "learningRte"; did you mean "learningRate"? Expected one of outputDir, ',
    ],
    [['sft', '--preset', 'tiny', ...SMALL, '--max-steps', '0'], '--max-steps: expected an integer at least 1'],
    [['sft', '--preset', 'tiny', ...SMALL, '--set', 'rewards={}'], 'rewards: expected only with the stage "grpo"'],
    [['--resume', 'nowhere'], 'holds no run of dultra train'],
  ])('%j', async (args, message) => {
    const { code, stdout, stderr } = await dultra(args, { cwd });
    expect(stderr).toContain(message);
    expect(stderr).not.toContain('bug');
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(readdirSync(cwd)).toEqual([]);
  });

  test('a launch that was refused leaves what was there before it', async () => {
    const folder = temporaryFolder();
    writeFileSync(path.join(folder, 'notes.txt'), 'mine');
    const create = 'model={create: {dModel: 32, nLayers: 1}}';
    const args = ['sft', '-d', 'st1', '--set', create, '--set', 'nonsense=1', '-o'];
    expect(await dultra([...args, folder], { cwd })).toMatchObject({ code: 2 });
    expect(readdirSync(folder)).toEqual(['notes.txt']);
    expect(await dultra([...args, path.join(folder, 'a', 'b')], { cwd })).toMatchObject({ code: 2 });
    expect(readdirSync(folder)).toEqual(['notes.txt']);
  });

  test('a launch that failed does not stand in the way of the next one', async () => {
    const good = await dultra(['sft', '--preset', 'tiny', ...SMALL, '--max-steps', '1', '--batch-size', '2'], { cwd });
    expect(good).toMatchObject({ code: 0 });
    expect(existsSync(path.join(cwd, 'runs', 'tiny-sft', 'final', 'config.json'))).toBe(true);
  });
});

test('presets are plain JSON, and name options that their trainers know', () => {
  expect(JSON.parse(JSON.stringify(training.PRESETS))).toEqual(training.PRESETS);
  expect(Object.keys(training.PRESETS)).toEqual([...training.STAGES]);
});
