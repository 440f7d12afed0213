// dultra train, as people run it.
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { datasets, loadModel, training } from '../lib';
import { duration, fitLine } from '../lib/cli/train/progress';
import { inOneProcess, main, type Outcome } from './command-line';
import { exceptOnWindows, temporaryFolder } from './helpers';
import { metricsOf, newModelFolder } from './trained-models';

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
  // What it works with, and how it goes on.
  expect(first.stderr).toMatch(
    /^data +st1: examples without end, 8 held out\nmodel +\S+: [\d,]+ parameters, [\d,]+ train\n/,
  );
  const saved = metricsOf(path.join(cwd, 'broken')).length;
  expect(first.stderr).toContain(
    `dultra: interrupted: step ${saved} of 120 is saved in broken\nGo on with: dultra train --resume broken\n`,
  );
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

test('a new model of chat messages has a chat template', async () => {
  const cwd = temporaryFolder();
  const messages = (name: string) => [
    { role: 'user', content: `Greet ${name}` },
    { role: 'assistant', content: `Hello, ${name}!` },
  ];
  const records = ['Mia', 'Tom'].map((name) => JSON.stringify({ messages: messages(name) }));
  writeFileSync(path.join(cwd, 'chats.jsonl'), `${records.join('\n')}\n`);
  const create = '{create: {dModel: 16, nHeads: 2, nLayers: 1, tokenizer: {vocabSize: 512}}}';
  for (const model of ['{create: {dModel: 16, nHeads: 2, nLayers: 1}}', create]) {
    const output = path.join(cwd, String(model.length));
    const args = ['sft', '-d', 'chats.jsonl', '--max-steps', '1', '--set', `model=${model}`, '--output', output];
    expect(await dultra([...args, '--quiet'], { cwd })).toMatchObject({ code: 0, stderr: '' });
    const final = await loadModel(path.join(output, 'final'));
    expect(final.tokenizer!.hasChatTemplate).toBe(true);
    expect(final.tokenizer!.encode('Anything', { addSpecialTokens: false })).not.toContain(final.tokenizer!.unknownId);
    final.dispose();
  }
});

test('a task from a module, a tokenizer learnt from it, a mixture, and right answers counted on the way', async () => {
  const cwd = temporaryFolder();
  const dultraPackage = JSON.stringify(path.join(__dirname, '..'));
  writeFileSync(
    path.join(cwd, 'task.cjs'),
    `const { datasets } = require(${dultraPackage}); module.exports = { ...datasets.world(), genLength: 40, blockLength: 40 };`,
  );
  // The same as an ES module with named exports.
  writeFileSync(
    path.join(cwd, 'task.mjs'),
    "import task from './task.cjs';\nexport const { sample, verify, categories, genLength } = task;\n",
  );
  writeFileSync(
    path.join(cwd, 'run.yaml'),
    `model: { create: { dModel: 16, nHeads: 2, nLayers: 1, tokenizer: { vocabSize: 600 }, attentionStart: copying } }
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
  const cases: [string[], string][] = [
    [[], 'expected a stage (sft, dparallel, d3llm, planner, grpo)'],
    [['stf'], 'expected a stage'],
    [['sft'], 'no data set'],
    [['sft', '--preset', 'huge'], '--preset: expected one of tiny'],
    [['sft', '-d', 'nowhere.jsonl'], '--dataset: expected one of st1'],
    [['sft', '-c', 'missing.yaml'], '--config: missing.yaml'],
    [['sft', '-d', 'st1', '--set', 'broken'], '--set: expected key=value'],
    [
      ['sft', '--preset', 'tiny', ...SMALL, '--set', 'numGenerations=3'],
      '--set numGenerations: expected only with the stage "grpo"',
    ],
    [['sft', '--preset', 'tiny', ...SMALL, '--max-steps', '0'], '--max-steps: expected an integer at least 1'],
    [['sft', '--preset', 'tiny', ...SMALL, '--set', 'rewards={}'], 'rewards: expected only with the stage "grpo"'],
    [['--resume', 'nowhere'], 'holds no run of dultra train'],
  ];
  let outcomes: Outcome[];
  beforeAll(() => {
    outcomes = inOneProcess(
      cases.map(([args]) => ['train', ...args]),
      cwd,
    );
  });

  test.each(cases.map(([args, message], i) => [args, message, i] as const))('%j', (_args, message, i) => {
    const { code, stdout, stderr } = outcomes[i];
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

describe('messages name what was typed', () => {
  const cwd = temporaryFolder();
  const yaml = (name: string, ...lines: string[]) => writeFileSync(path.join(cwd, name), `${lines.join('\n')}\n`);
  yaml('key.yaml', 'dataset: st1', 'maxSteps: 3', '', 'learningRte: 1');
  yaml('value.yaml', 'dataset: st1', 'maxSteps: 3', 'learningRate: -1');
  yaml(
    'nested.yaml',
    'dataset: st1',
    'maxSteps: 3',
    'rewards:',
    '  a:',
    '    type: fastAnswer',
    '    options:',
    '      weight: -1',
  );
  yaml('type.yaml', 'dataset: st1', 'maxSteps: 3', 'rewards:', '  a:', '    type: fastAnswr');
  yaml('both.yaml', 'dataset: st1', 'epochs: 1', 'maxSteps: 3');
  yaml('mixture.yaml', 'dataset: world', 'maxSteps: 3', 'mixture:', '  - steps: 2', '  - shares: { sum: -1 }');
  writeFileSync(path.join(cwd, 'run.json'), '{\n  "dataset": "st1",\n  "maxSteps": 3,\n  "batchSize": 0\n}\n');
  const before = readdirSync(cwd);

  const cases: [string[], string][] = [
    [['sft', '-c', 'key.yaml'], 'key.yaml, line 4: learningRte: unknown key; did you mean "learningRate"?'],
    [['sft', '-c', 'value.yaml'], 'value.yaml, line 3: learningRate: expected a finite number at least 0'],
    [['sft', '-c', 'run.json'], 'run.json, line 4: batchSize: expected an integer at least 1'],
    [['sft', '-c', 'type.yaml'], 'type.yaml, line 3: rewards: expected only with the stage "grpo"'],
    [['grpo', '-c', 'type.yaml'], 'type.yaml, line 5: rewards.a.type: expected "exactAnswer" or'],
    [['grpo', '-c', 'nested.yaml'], 'nested.yaml, line 7: rewards.a.options.weight: expected a finite number'],
    [['sft', '-c', 'both.yaml'], 'both.yaml, line 2: epochs: expected maxSteps or epochs, got both'],
    [['sft', '-c', 'mixture.yaml'], 'mixture.yaml, line 5: mixture[1].shares.sum: expected a finite number'],
    [['sft', '-d', 'st1', '--max-steps', '1', '--set', 'epochs=2'], '--set epochs: expected --max-steps or epochs'],
    [['sft', '-d', 'st1', '--set', 'batchSize=0'], '--set batchSize: expected an integer'],
    [['sft', '-d', 'st1', '--batch-size', '0'], '--batch-size: expected an integer'],
    [['sft', '-d', 'st1', '--set', 'signal=1'], '--set signal: unknown key; expected one of model, planner, dataset,'],
    [['sft', '-d', 'st1', '--set', 'resume=true'], '--set resume: a new run cannot'],
    [['sft', '-d', 'st1', '--set', 'evalSampler={type: confidence, threshold: 7}'], '--set evalSampler.threshold: '],
    [
      ['sft', '-d', 'st1', '--set', 'model={create: {dModl: 8}}'],
      '--set model.create: unknown key "dModl"; did you mean "dModel"?',
    ],
    [['sft', '-d', 'st1', '--max-steps', '1', '--set', 'model={create: {dModel: 7}}'], '--set model.create.dModel: '],
    [
      ['sft', '-d', 'st1', '--max-steps', '1', '--set', 'model={create: {tokenizer: {vocabSize: 1}}}'],
      '--set model.create.tokenizer.vocabSize: ',
    ],
    [
      ['grpo', '-d', 'st1', '--set', 'rewards={a: {type: format, options: {pattern: "("}}}'],
      '--set rewards.a.options.pattern: ',
    ],
    [['grpo', '-d', 'st1', '--set', 'rewards={a: {type: causalLogProb}}'], '--set rewards.a.options.model: '],
    [['grpo', '-d', 'st1', '--max-steps', '1'], '--set rewards: expected at least one'],
    [['sft', '-d', 'st1', '--set', 'temperature'], '--set: expected key=value'],
  ];
  let outcomes: Outcome[];
  beforeAll(() => {
    outcomes = inOneProcess(
      cases.map(([args]) => ['train', ...args]),
      cwd,
    );
  });

  test.each(cases.map(([args, message], i) => [args, message, i] as const))('%j', (_args, message, i) => {
    const { code, stdout, stderr } = outcomes[i];
    expect(stderr).toContain(message);
    expect(stderr).not.toMatch(/help dultra|--max-tokens, blockLength|signal, |bug/);
    expect({ code, stdout, left: readdirSync(cwd) }).toEqual({ code: 2, stdout: '', left: before });
  });

  test('a list of keys names no flag', () => {
    const [{ stderr }] = inOneProcess([['train', 'grpo', '--preset', 'tiny', '--set', 'temprature=1']], cwd);
    expect(stderr).toBe('dultra: --set temprature: unknown key; did you mean "temperature"?\n');
    const [other] = inOneProcess([['train', 'grpo', '--preset', 'tiny', '--set', 'xyzzy=1']], cwd);
    expect(other.stderr).toContain('unknown key; expected one of model, planner, dataset');
    expect(other.stderr).not.toMatch(/one of .*--/);
  });

  test('wrong options come before a folder that holds a run', async () => {
    const taken = path.join(temporaryFolder(), 'run');
    mkdirSync(path.join(taken, 'checkpoints', 'step-00000001'), { recursive: true });
    const args = ['sft', '-d', 'st1', '--max-steps', '1', '-o', taken];
    expect((await dultra([...args, '--learning-rate', '-1'], { cwd })).stderr).toContain('--learning-rate: expected');
    const { code, stderr } = await dultra(args, { cwd });
    expect(stderr).toContain(`--output: ${taken} holds a run already: go on with it by --resume ${taken}`);
    expect(code).toBe(2);
  });
});

test('a run that names no folder takes the next free one; a preset begins with the embedded model', async () => {
  const cwd = temporaryFolder();
  const args = ['grpo', '--preset', 'tiny', '--max-steps', '1', '--set', 'promptsPerStep=1', '--set', 'evalExamples=2'];
  const first = await dultra(args, { cwd });
  expect(first).toMatchObject({ code: 0, stdout: `${path.join(cwd, 'runs', 'tiny-grpo', 'final')}\n` });
  expect(first.stderr).toContain('runs/tiny-planner/final is not there: grpo begins with the embedded model');
  const second = await dultra(args, { cwd });
  expect(second).toMatchObject({ code: 0, stdout: `${path.join(cwd, 'runs', 'tiny-grpo-2', 'final')}\n` });
  expect(second.stderr).toContain('runs/tiny-grpo holds a run already (--resume runs/tiny-grpo goes on with it)');
  const dry = await dultra([...args, '--dry-run', '--json'], { cwd });
  expect(JSON.parse(dry.stdout).config.outputDir).toBe('runs/tiny-grpo-3');
  expect(readdirSync(path.join(cwd, 'runs')).sort()).toEqual(['tiny-grpo', 'tiny-grpo-2']);
});

test('--resume refuses what cannot count, by name', async () => {
  const cwd = temporaryFolder();
  const begun = [
    'sft',
    '--preset',
    'tiny',
    ...SMALL,
    '--batch-size',
    '2',
    '--max-steps',
    '2',
    '--dtype',
    'float32',
    '-o',
    'run',
  ];
  expect(await dultra(begun, { cwd })).toMatchObject({ code: 0 });
  const stored = readFileSync(path.join(cwd, 'run', 'train.json'), 'utf8');
  expect(JSON.parse(stored).load).toEqual({ dtype: 'float32' });
  const resume = ['--resume', 'run'];
  const refused = [
    ['--learning-rate', '0.5'],
    ['--planner-learning-rate', '0.5'],
    ['--batch-size', '3'],
    ['-n', '8'],
    ['--eval-every', '1'],
    ['--seed', '4'],
    ['--dtype', 'bfloat16'],
    ['--compute', 'float32'],
    ['--revision', 'main'],
    ['--config', 'x.yaml'],
    ['--preset', 'tiny'],
    ['--model', 'x'],
    ['--output', 'x'],
    ['--dataset', 'st1'],
    ['--validation', '0.1'],
    ['--set', 'temperature=1'],
    ['--set', 'outputDir=x'],
  ];
  const outcomes = inOneProcess(
    refused.map((flag) => ['train', ...resume, ...flag]),
    cwd,
  );
  for (const [i, [flag, value]] of refused.entries()) {
    const name = flag === '--set' ? `--set ${value.split('=')[0]}` : flag === '-n' ? '--max-tokens' : flag;
    expect(outcomes[i].stderr).toContain(`dultra: ${name}: not together with --resume`);
    expect(outcomes[i].code).toBe(2);
  }
  expect((await dultra([...resume, '--max-steps', '0'], { cwd })).stderr).toContain('--max-steps: expected an integer');
  const more = await dultra([...resume, '--max-steps', '4', '--save-every', '1', '--set', 'keepLast=1', '--json'], {
    cwd,
  });
  expect(JSON.parse(more.stdout)).toMatchObject({ steps: 4 });
  writeFileSync(path.join(cwd, 'run', 'train.json'), stored.slice(0, 40));
  const damaged = await dultra(resume, { cwd });
  expect(damaged.stderr).toContain(`--resume: ${path.join('run', 'train.json')}: `);
  expect(damaged.code).toBe(2);
});

test('times, and lines that lose whole parts where there is no room', () => {
  expect([0, 59.4, 60, 725, 3600, 12_000].map(duration)).toEqual(['0s', '59s', '1m00s', '12m05s', '1h00m', '3h20m']);
  const parts = ['12/300', '4m10s left', 'loss 0.0697', 'reward 0.512', 'NFE 3.20'];
  expect(fitLine(parts, 79)).toBe(parts.join(', '));
  expect(fitLine(parts, 39)).toBe('12/300, 4m10s left, loss 0.0697');
  expect(fitLine(parts, 3)).toBe('12/300');
});

test('files and folders that commands write are told apart, and messages of eval name its flags', () => {
  const cwd = temporaryFolder();
  mkdirSync(path.join(cwd, 'there'));
  writeFileSync(path.join(cwd, 'plain'), '');
  const outcomes = inOneProcess(
    [
      ['eval', '--out', 'runs/x'],
      ['eval', '--out', 'there'],
      ['eval', '--report', 'there/'],
      ['eval', '--out', 'nowhere/results.json'],
      ['eval', '-o', 'results.json'],
      ['eval', '-o', 'plain'],
      ['train', 'sft', '-d', 'st1', '--max-steps', '1', '-o', 'run.yaml'],
      ['train', 'sft', '-d', 'st1', '--max-steps', '1', '-o', 'plain'],
      ['eval', '--samplers', 'confidence:7', '--count', '1'],
    ],
    cwd,
  );
  const messages = outcomes.map(({ stderr }) => stderr.split('\n')[0]);
  expect(messages).toEqual([
    'dultra: --out: expected a file such as results.json, got "runs/x", a folder',
    'dultra: --out: expected a file such as results.json, got "there", a folder',
    'dultra: --report: expected a file such as report.html, got "there/", a folder',
    'dultra: --out: nowhere is no folder',
    'dultra: --output: expected a folder, got "results.json", a file',
    'dultra: --output: expected a folder, got "plain", a file',
    'dultra: --output: expected a folder, got "run.yaml", a file',
    'dultra: --output: expected a folder, got "plain", a file',
    expect.stringContaining('dultra: --samplers threshold: expected'),
  ]);
  expect(outcomes.every(({ code, stdout }) => code === 2 && stdout === '')).toBe(true);
  expect(readdirSync(cwd).sort()).toEqual(['plain', 'there']);
});

test('presets are plain JSON, and name options that their trainers know', () => {
  expect(JSON.parse(JSON.stringify(training.PRESETS))).toEqual(training.PRESETS);
  expect(Object.keys(training.PRESETS)).toEqual([...training.STAGES]);
});
