// Models over seeds: AUP by hand, resuming, spreads; and the whole path on the command line: data, rollouts, rewards in
// the sandbox, updates, evaluation, report, on a tiny model and tiny files of the real schemas.
import { spawn } from 'node:child_process';
import { appendFileSync, existsSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import {
  accuracyUnderParallelism,
  type CampaignOptions,
  datasets,
  evaluateCampaign,
  loadModel,
  PUBLISHED,
  training,
} from '../lib';
import { temporaryFolder, withTokenizer } from './helpers';

const main = path.join(__dirname, '..', 'dist', 'cli', 'main.js');

function dultra(args: string[], cwd: string): Promise<{ code: number | null; stdout: string; stderr: string }> {
  // No hub: what a run needs is here.
  const child = spawn(process.execPath, [main, ...args], { cwd, env: { ...process.env, HF_HUB_OFFLINE: '1' } });
  const outcome = { code: null as number | null, stdout: '', stderr: '' };
  child.stdout.on('data', (piece) => {
    outcome.stdout += piece;
  });
  child.stderr.on('data', (piece) => {
    outcome.stderr += piece;
  });
  return new Promise((resolve) => child.on('close', (code) => resolve({ ...outcome, code })));
}

describe('AUP', () => {
  const at = (...points: [tokensPerForward: number, accuracy: number][]) =>
    points.map(([tokensPerForward, accuracy]) => ({ tokensPerForward, accuracy }));

  test('one point is its area', () => expect(accuracyUnderParallelism(at([2, 70]))).toBeCloseTo(140, 10));

  test("d3LLM's formula, by hand", () => {
    const weight = (y: number) => y * Math.exp(-3 * (1 - y / 80));
    const expected = 1 * 78 + 0.5 * (3 - 1) * (weight(76) + weight(78)) + 0.5 * (5 - 3) * (weight(74) + weight(76));
    expect(accuracyUnderParallelism(at([5, 74], [1, 78], [3, 76]), { bestAccuracy: 80 })).toBeCloseTo(expected, 10);
    expect(accuracyUnderParallelism(at([1, 78], [3, 82]), { bestAccuracy: 80 })).toBeCloseTo(78 + weight(78) + 82, 10);
  });

  test('points that lose more than five points count for nothing', () => {
    const kept = accuracyUnderParallelism(at([1, 78], [3, 76]), { bestAccuracy: 80 });
    expect(accuracyUnderParallelism(at([1, 78], [3, 76], [9, 72.9]), { bestAccuracy: 80 })).toBe(kept);
    expect(accuracyUnderParallelism(at([1, 78], [3, 76], [9, 73]), { bestAccuracy: 80 })).toBeGreaterThan(kept);
    // 100 · 0.57 is below 57.
    const shares = at([1, 62], [9, 100 * 0.57]);
    expect(accuracyUnderParallelism(shares)).toBeGreaterThan(accuracyUnderParallelism(shares.slice(0, 1)));
    expect(accuracyUnderParallelism([])).toBeNaN();
    expect(accuracyUnderParallelism(at([1, 0], [2, 0]))).toBe(0);
  });
});

describe('a campaign', () => {
  const source = withTokenizer(256);
  const dataset = { ...datasets.byName('st1'), genLength: 16, blockLength: 16 };
  const options = (outputDir?: string): CampaignOptions => ({
    dataset,
    samplers: { planner: { type: 'planner', select: 'bernoulli' }, 'fixed:4': { type: 'fixed', steps: 4 } },
    models: { one: () => loadModel(source), two: () => loadModel(source) },
    seeds: [3, 4],
    count: 6,
    batchSize: 2,
    temperature: 0.5,
    traces: 2,
    score: ({ completions }) => completions.map((text) => text.length % 2 === 0),
    ...(outputDir !== undefined && { outputDir }),
  });
  const withoutTime = (value: unknown) =>
    JSON.parse(
      JSON.stringify(value, (key, item) =>
        key === 'seconds' || key === 'tokensPerSecond' || key === 'fullForwardsPerSecond' ? undefined : item,
      ),
    );

  test('means and deviations over the seeds', async () => {
    const campaign = await evaluateCampaign(options());
    expect(campaign.rows.map(({ model, sampler }) => [model, sampler])).toEqual([
      ['one', 'planner'],
      ['one', 'fixed:4'],
      ['two', 'planner'],
      ['two', 'fixed:4'],
    ]);
    const own = campaign.evaluations
      .filter(({ model }) => model === 'one')
      .map(({ evaluation }) => evaluation.results[0]);
    expect(own).toHaveLength(2);
    const [a, b] = own.map(({ accuracy }) => accuracy);
    expect(campaign.rows[0].accuracy.mean).toBeCloseTo((a + b) / 2, 12);
    expect(campaign.rows[0].accuracy.sd).toBeCloseTo(Math.abs(a - b) / Math.SQRT2, 12);
    expect(campaign.rows[1].nfe).toEqual({ mean: 4, sd: 0 });
    expect(campaign.rows[1].tokensPerForward.generated.mean).toBe(4);
    // The same weights and seeds.
    expect(withoutTime(campaign.rows[2])).toEqual({ ...withoutTime(campaign.rows[0]), model: 'two' });
    expect(campaign.curves.map(({ model, group }) => `${model} ${group}`)).toEqual([
      'one planner',
      'one fixed',
      'two planner',
      'two fixed',
    ]);
    expect(campaign.config.seed).toBe(3);
  });

  test('goes on where it was interrupted, to the same end', async () => {
    const whole = await evaluateCampaign(options());
    const folder = path.join(temporaryFolder(), 'run');
    const controller = new AbortController();
    let progress = 0;
    const interrupted = evaluateCampaign({
      ...options(folder),
      signal: controller.signal,
      onProgress: () => {
        if (++progress === 4) controller.abort(new Error('enough'));
      },
    });
    await expect(interrupted).rejects.toThrow('enough');
    const file = path.join(folder, 'samples.jsonl');
    const before = readFileSync(file, 'utf8');
    expect(before.split('\n').length - 1).toBe(8);
    // A kill in the middle of a line.
    truncateSync(file, before.length - 20);
    const first: string[] = [];
    const campaign = await evaluateCampaign({
      ...options(folder),
      onProgress: ({ done, total }) => void first.push(`${done}/${total}`),
    });
    // Seven were whole; two more with the next native call.
    expect(first[0]).toBe('9/48');
    expect(withoutTime(campaign)).toEqual(withoutTime(whole));
    const lines = readFileSync(file, 'utf8').trim().split('\n');
    expect(lines).toHaveLength(48);
    const sample = JSON.parse(lines[0]) as Record<string, unknown>;
    expect(Object.keys(sample)).toEqual(
      expect.arrayContaining([
        'model',
        'seed',
        'sampler',
        'index',
        'prompt',
        'completion',
        'score',
        'nfe',
        'tokens',
        'seconds',
        'answer',
        'trace',
      ]),
    );
    const again = await evaluateCampaign(options(folder));
    expect(again).toEqual(campaign);
    expect(JSON.parse(readFileSync(path.join(folder, 'summary.json'), 'utf8'))).toEqual(
      JSON.parse(JSON.stringify({ ...campaign, evaluations: undefined })),
    );
    await expect(evaluateCampaign({ ...options(folder), count: 5 })).rejects.toThrow(
      'holds an evaluation of another configuration',
    );
    appendFileSync(file, 'no json\n');
    await expect(evaluateCampaign(options(folder))).rejects.toMatchObject({
      code: 'BAD_DATASET',
      message: expect.stringContaining('line 49'),
    });
  });

  test('options', async () => {
    await expect(evaluateCampaign({ ...options(), models: {} })).rejects.toThrow('models: expected at least one');
    await expect(evaluateCampaign({ ...options(), seeds: [] })).rejects.toThrow(
      'seeds: expected at least one, got none',
    );
    await expect(evaluateCampaign({ ...options(), seeds: [-1] })).rejects.toThrow(
      'seeds[0]: expected an integer at least 0',
    );
    await expect(evaluateCampaign({ ...options(), colour: 1 } as never)).rejects.toThrow(
      'options: unknown key "colour"',
    );
  });
});

test('published figures name their sources', () => {
  expect(PUBLISHED.length).toBeGreaterThan(40);
  for (const { source, accuracy, nfe, tokensPerForward } of PUBLISHED) {
    expect(source.length).toBeGreaterThan(10);
    expect(accuracy).toBeGreaterThan(20);
    expect((nfe === null) !== (tokensPerForward === null)).toBe(true);
  }
  expect(PUBLISHED).toContainEqual(
    expect.objectContaining({ method: 'dUltra-math-b128', dataset: 'gsm8k', accuracy: 77.65, nfe: 16.4 }),
  );
});

describe('presets', () => {
  test.each(['gsm8k', 'math500'] as const)('%s is grpo_exp.sh', (name) => {
    const preset = training.PRESETS.grpo[name];
    expect(preset).toMatchObject({
      dataset: name,
      numGenerations: 12,
      promptsPerStep: 1,
      maxTokens: 256,
      blockLength: 32,
      temperature: 0.1,
      advantageMinClip: 0.1,
      learningRate: 5e-6,
      betas: [0.9, 0.99],
      weightDecay: 0.1,
      maxGradNorm: 1,
      clipEpsilon: { low: 0.2, high: 1 },
      beta: 0,
      scaleRewards: 'none',
      maxSteps: 4800,
      saveEvery: 400,
      keepLast: 5,
      seed: 42,
      datasetOptions: { prompts: 'thinking' },
    });
    expect(Object.entries(preset.rewards!).map(([reward, { type, weight }]) => [reward, type, weight])).toEqual([
      ['correct', 'mathCorrect', 1],
      ['format', 'boxedFormat', 1],
      ['think', 'thinkTags', 0.5],
      ['steps', 'stepPenalty', 0.1],
      ['teacher', 'causalLogProb', 1],
    ]);
    expect(preset.rewards!.teacher.options).toMatchObject({ model: 'Qwen/Qwen2.5-Math-7B-Instruct' });
  });

  test('apps is run.sh', () => {
    const { rewards, ...preset } = training.PRESETS.grpo.apps;
    expect(preset).toMatchObject({
      blockLength: 128,
      temperature: 0.5,
      advantageMinClip: 0,
      model: 'sengi/lladou-coding',
    });
    expect(preset.datasetOptions).toEqual({
      prompts: 'non-thinking',
      difficulties: ['introductory'],
      functionsOnly: true,
    });
    expect(Object.values(rewards!).map(({ type, weight }) => [type, weight])).toEqual([
      ['codeTests', 3],
      ['codeFence', 1],
      ['stepPenalty', 0.1],
      ['causalLogProb', 1],
    ]);
  });
});

const GSM8K = ['1+1?', '2+3?', '4+4?', '5+2?'].map((question) => ({ question, answer: `so\n#### ${question.length}` }));
const APPS = [
  {
    problem_id: 1,
    question: 'Add.',
    input_output: '{"fn_name": "f", "inputs": [[1, 2]], "outputs": [[3]]}',
    difficulty: 'introductory',
    starter_code: '',
    solutions: '',
  },
];
const lines = (records: object[]) => records.map((record) => `${JSON.stringify(record)}\n`).join('');

describe('the whole path', () => {
  const cwd = temporaryFolder();
  const model = withTokenizer(1024);
  mkdirSync(path.join(cwd, 'gsm8k'));
  for (const split of ['train', 'test', 'validation'])
    writeFileSync(path.join(cwd, 'gsm8k', `${split}.jsonl`), lines(GSM8K));
  writeFileSync(path.join(cwd, 'apps.jsonl'), lines(APPS));
  const small = {
    maxSteps: 2,
    numGenerations: 2,
    maxTokens: 16,
    blockLength: 8,
    saveEvery: 0,
    tokenBudget: 4096,
  };

  test('GSM8K: rollouts, rewards, updates, evaluation, report', async () => {
    const { teacher: _, ...rewards } = training.PRESETS.grpo.gsm8k.rewards!;
    const config = {
      ...training.PRESETS.grpo.gsm8k,
      ...small,
      model,
      dataset: 'gsm8k:gsm8k',
      evalEvery: 2,
      evalExamples: 2,
      rewards,
      outputDir: 'runs/math',
    };
    // JSON is YAML, too.
    writeFileSync(path.join(cwd, 'math.yaml'), JSON.stringify(config));
    const trained = await dultra(['train', 'grpo', '--config', 'math.yaml', '--json'], cwd);
    expect(trained.stderr).not.toMatch(/dultra: /);
    expect(trained.code).toBe(0);
    const { metrics, model: final } = JSON.parse(trained.stdout) as { metrics: Record<string, number>; model: string };
    expect(metrics).toMatchObject({ step: 2, 'reward/format': 0.25, 'reward/think': 0 });
    expect(metrics['reward/steps']).toBeLessThan(0);
    expect(metrics.evalAccuracy).toBeGreaterThanOrEqual(0);
    const command = [
      'eval',
      '-d',
      'gsm8k:gsm8k',
      '--models',
      `${model},${final}`,
      '--samplers',
      'planner,confidence:0.9,fixed:8',
      '--seeds',
      '2',
    ];
    const flags = ['-n', '16', '-b', '8', '--output', 'runs/eval', '--report', 'report.html'];
    const evaluated = await dultra([...command, ...flags], cwd);
    expect(evaluated.code).toBe(0);
    expect(evaluated.stdout).toMatch(/Accuracy under parallelism \(AUP\)/);
    expect(evaluated.stdout).toMatch(/4 prompts of the test split of gsm8k, 2 models, seeds 0, 1/);
    const page = readFileSync(path.join(cwd, 'report.html'), 'utf8');
    expect(page).toMatch(
      /All models and seeds[\s\S]*Accuracy under parallelism[\s\S]*Published figures on gsm8k[\s\S]*dUltra-math-b128 \(published\)/,
    );
    expect(page).toMatch(/Step by step/);
    expect(
      readFileSync(path.join(cwd, 'runs', 'eval', 'samples.jsonl'), 'utf8')
        .trim()
        .split('\n'),
    ).toHaveLength(2 * 2 * 3 * 4);
    const again = await dultra([...command, ...flags, '--json'], cwd);
    expect(again.code).toBe(0);
    expect((JSON.parse(again.stdout) as { config: object }).config).toMatchObject({
      datasetSource: { data: 'gsm8k', prompts: 'evaluation' },
    });
    const other = await dultra([...command, ...flags, '--count', '2'], cwd);
    expect(other).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('holds an evaluation of another configuration'),
    });
  });

  test('APPS: rewards in the sandbox', async () => {
    const { teacher: _, ...rewards } = training.PRESETS.grpo.apps.rewards!;
    const config = {
      ...training.PRESETS.grpo.apps,
      ...small,
      model,
      dataset: 'apps:apps.jsonl',
      rewards,
      outputDir: 'runs/apps',
    };
    writeFileSync(path.join(cwd, 'apps.yaml'), JSON.stringify(config));
    const trained = await dultra(['train', 'grpo', '--config', 'apps.yaml', '--json'], cwd);
    expect(trained.stderr).not.toMatch(/dultra: /);
    expect(trained.code).toBe(0);
    const { metrics } = JSON.parse(trained.stdout) as { metrics: Record<string, number> };
    // Random characters are no program.
    expect([0, -0.05]).toContain(metrics['reward/tests']);
    expect(metrics.accuracy).toBe(0);
    const evaluated = await dultra(
      ['eval', '-m', model, '-d', 'apps:apps.jsonl', '-s', 'fixed:4', '-n', '16', '-b', '16', '--json'],
      cwd,
    );
    expect(evaluated.code).toBe(0);
    expect((JSON.parse(evaluated.stdout) as { results: { accuracy: number }[] }).results[0].accuracy).toBe(0);
  });

  test('a data set registered by a module', async () => {
    const text = `const { datasets } = require(${JSON.stringify(path.join(__dirname, '..', 'dist'))});
      datasets.register('mine', () => ({ ...datasets.byName('st1'), name: 'mine', genLength: 8, blockLength: 8, verify: async () => true }));`;
    writeFileSync(path.join(cwd, 'mine.cjs'), text);
    const args = ['eval', '-m', model, '--import', './mine.cjs', '-d', 'mine', '-s', 'fixed:2', '-c', '3', '--json'];
    const { code, stdout } = await dultra(args, cwd);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ config: { dataset: 'mine', maxTokens: 8 }, results: [{ accuracy: 1 }] });
    expect(await dultra(['eval', '-m', model, '-d', 'nothing'], cwd)).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('dataset: expected one of'),
    });
  });

  test('a dry run says what memory it would take, and takes none', async () => {
    const { code, stdout } = await dultra(
      ['train', 'grpo', '--preset', 'gsm8k', '--dry-run', '--model', model, '--json'],
      cwd,
    );
    expect(code).toBe(0);
    const { plan } = JSON.parse(stdout) as { plan: training.MemoryPlan };
    expect(plan.items.map(({ name }) => name)).toEqual([
      'weights',
      'masters',
      'gradients',
      'moments',
      'activations',
      'scratch',
      'caches',
      'teacher',
    ]);
    // Its teacher is on the hub, which nobody asks here.
    expect(plan.items[7]).toMatchObject({
      bytes: 0,
      detail: expect.stringMatching(/^not counted, .*Qwen\/Qwen2\.5-Math-7B-Instruct/),
    });
    const bytes = Object.fromEntries(plan.items.map(({ name, bytes }) => [name, bytes]));
    expect(bytes.weights).toBe(4 * plan.parameters);
    expect(bytes.masters).toBe(4 * plan.parameters);
    expect(bytes.moments).toBe(2 * bytes.gradients);
    expect(plan.bytes).toBe(plan.items.reduce((sum, item) => sum + item.bytes, 0));
    expect(plan.fits).toBe(true);
    expect(existsSync(path.join(cwd, 'runs', 'gsm8k'))).toBe(false);
    const text = await dultra(['train', 'grpo', '--preset', 'gsm8k', '--dry-run', '--model', model], cwd);
    expect(text.stdout).toMatch(/moments +\d.*AdamW's first and second[\s\S]*free/);
  });

  test('the plan for a GPU, without one', async () => {
    const [cpu, gpu] = await Promise.all(
      ['cpu', 'cuda'].map((device) =>
        training.planMemory('grpo', { model, dataset: 'st1' }, { device, compute: 'bfloat16' }),
      ),
    );
    const bytes = ({ items }: training.MemoryPlan) => Object.fromEntries(items.map((item) => [item.name, item.bytes]));
    expect(gpu).toMatchObject({
      device: 'cuda:0',
      parameters: cpu.parameters,
      trainable: cpu.trainable,
      available: null,
      fits: null,
    });
    // Of the weights' masters only the lower halves, and of what products read half as much.
    expect(bytes(gpu).masters).toBeLessThan(0.55 * bytes(cpu).masters);
    expect(bytes(gpu).activations).toBeLessThan(0.75 * bytes(cpu).activations);
    expect(bytes(gpu).weights).toBe(bytes(cpu).weights);
    const narrow = await training.planMemory(
      'grpo',
      { model, dataset: 'st1', momentDtype: 'bfloat16' },
      { device: 'cpu' },
    );
    expect(bytes(narrow).moments).toBe(bytes(cpu).moments / 2);
    const cache = { type: 'refresh', every: 2 } as const;
    expect(
      bytes(await training.planMemory('grpo', { model, dataset: 'st1', cache }, { device: 'cpu' })).caches,
    ).toBeGreaterThan(0);
    const teacher = { type: 'teacherLogProb', options: { model } } as const;
    const taught = await training.planMemory(
      'grpo',
      { model, dataset: 'st1', rewards: { teacher } },
      { device: 'cpu' },
    );
    expect(bytes(taught).teacher).toBe(bytes(taught).weights);
    await expect(training.planMemory('grpo', { model }, { device: 'tpu' })).rejects.toThrow(
      'device: expected "auto", "cpu", "cuda" or "cuda:N", got "tpu"',
    );
    const { code, stdout } = await dultra(
      ['train', 'grpo', '--preset', 'gsm8k', '--dry-run', '--model', model, '--device', 'cuda'],
      cwd,
    );
    expect(code).toBe(0);
    expect(stdout).toMatch(/free +not known: this machine has no cuda:0/);
  });

  test('the plan is what the trainer takes', async () => {
    const plan = await training.planMemory('grpo', { model, dataset: 'st1' });
    await using loaded = await loadModel(model);
    const trainer = await loaded.createTrainer();
    const count = trainer.parameters().reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
    trainer.dispose();
    expect(plan.parameters).toBe(loaded.info.parameters);
    expect(plan.trainable).toBe(count);
    const frozen = await training.planMemory('grpo', {
      model,
      dataset: 'st1',
      freezeBase: true,
      lora: null,
      activationCheckpointing: true,
    });
    expect(frozen.trainable).toBe(loaded.info.plannerParameters);
    expect(frozen.bytes).toBeLessThan(plan.bytes);
  });
});
