// Teachers and reference models on processes of their own: the bits of the plain layout.
import { cpSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { training } from '../lib';
import { dealOut } from '../lib/distributed/process-group';
import { parseRoles } from '../lib/training/roles';
import { main } from './command-line';
import { temporaryFolder } from './helpers';
import { LAUNCHERS, mpirun } from './processes';
import { newModelFolder } from './trained-models';

const child = path.join(__dirname, 'distributed-child.cjs');
const launcherName = 'MPI (skipped: neither mpirun.openmpi nor mpirun.mpich is installed)';

let model: string;
let configs: Record<string, training.TrainConfig>;
beforeAll(async () => {
  model = await newModelFolder();
  const referenceModel = await newModelFolder({ seed: 4 });
  // An autoregressive model that speaks the words of the task.
  const causal = temporaryFolder();
  cpSync(path.join(__dirname, 'fixtures', 'causal', 'qwen2'), causal, { recursive: true });
  for (const name of ['tokenizer.json', 'tokenizer_config.json'])
    cpSync(path.join(model, name), path.join(causal, name));
  const teacher = { model: causal };
  const shape = { promptsPerStep: 3, numGenerations: 3, tokenBudget: 60, reduction: 'exact' } as const;
  const right = { type: 'format', options: { pattern: '1' } } as const;
  configs = {
    distillation: { ...shape, objective: 'distillation', teacher, temperature: 1, evalEvery: 2 },
    'distillation with KL': {
      ...{ ...shape, objective: 'distillation', teacher, temperature: 1 },
      ...{ beta: 0.1, referenceModel, numIterations: 2, rewards: { right } },
    },
    'a teacher as reward': {
      ...{ ...shape, advantageMinClip: null, evalEvery: 2 },
      rewards: { right, teacher: { type: 'causalLogProb', weight: 0.5, options: { model: causal } } },
    },
    'KL and a diffusion teacher': {
      ...{
        ...shape,
        cache: 'refresh',
        beta: 0.1,
        referenceModel,
        filterGroups: { zeroVariance: 'drop', resamples: 1 },
      },
      rewards: { teacher: { type: 'teacherLogProb', options: { model: referenceModel } } },
    },
  };
});

type Found = Record<string, { hash: string; metrics: Record<string, number>[] }>;

const one = (name: string) => ({ [name]: configs[name] });

const job = (launcher: string, ranks: number, roles: string | undefined, some = configs, more = {}) => {
  const withRoles = Object.entries(some).map(([name, config]) => [name, { ...config, ...(roles && { roles }) }]);
  const task = { do: 'roles', model, configs: Object.fromEntries(withRoles), ...more };
  return mpirun(launcher, ranks, [child, JSON.stringify(task)], { cwd: temporaryFolder() });
};

async function found(launcher: string, ranks: number, roles?: string): Promise<Found> {
  const { code, stdout, stderr } = await job(launcher, ranks, roles).outcome;
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return JSON.parse(stdout) as Found;
}

test.each([
  ['train:2,teacher:1', { train: 2, teacher: 1 }],
  ['teacher:1, train:3', { train: 3, teacher: 1 }],
  ['train:4', { train: 4, teacher: 0 }],
])('the roles %s', (text, roles) => {
  expect(parseRoles(text)).toEqual(roles);
});

test.each([
  ['train:2,teacher', 'roles: expected processes by role, such as "train:6,teacher:2", got "train:2,teacher"'],
  ['train:2,judge:1', 'roles: expected the roles "train" and "teacher", got "judge"'],
  ['train:1,train:2', 'roles: expected each role once'],
  ['train:2,teacher:0', 'roles: expected at least 1 process of a role'],
  ['teacher:2', 'roles: expected processes that train, got "teacher:2"'],
  [7, 'roles: expected processes by role, such as "train:6,teacher:2", got 7'],
])('the roles %j are refused', (roles, message) => {
  expect(() => parseRoles(roles)).toThrow(message);
});

test('roles need a teacher, and as many processes as there are', async () => {
  const roles = 'train:1,teacher:1';
  const grpo = { dataset: 'free8', rewards: { right: { type: 'exactAnswer' } } } as const;
  expect(() => training.checkConfig('grpo', { ...grpo, roles })).toThrow(
    'roles: expected a teacher, a reward causalLogProb or teacherLogProb, or a referenceModel with a KL term',
  );
  // A reference that nothing is compared with.
  expect(() => training.checkConfig('grpo', { ...grpo, roles, referenceModel: model })).toThrow(
    'roles: expected a teacher',
  );
  expect(() => training.checkConfig('sft', { dataset: 'free8', roles })).toThrow(
    'roles: expected none with the stage "sft", which has no teacher',
  );
  training.checkConfig('grpo', { ...grpo, roles: 'train:2' });
  const compared = { ...grpo, roles, beta: 0.1, referenceModel: model };
  training.checkConfig('grpo', compared);
  // This process is alone.
  expect(() => training.roleOf(compared)).toThrow(
    'roles: expected the roles of 1 process, as many as there are, got "train:1,teacher:1", of 2',
  );
  await expect(training.serveTeachers({ ...grpo, roles: 'train:1' })).rejects.toThrow(
    'roles: expected the role "teacher" for this process',
  );
});

test('the memory of each role', async () => {
  const config = { model, dataset: 'free8', beta: 0.1, referenceModel: model, zeroStage: 1 } as const;
  const whole = await training.planMemory('grpo', config, { device: 'cpu', ranks: 2 });
  const plan = await training.planMemory('grpo', { ...config, roles: 'train:2,teacher:1' }, { device: 'cpu' });
  expect(plan).toMatchObject({ ranks: 2, teacher: { ranks: 1 } });
  expect(whole.teacher).toBeNull();
  const [reference] = plan.teacher!.items;
  expect(plan.teacher!.items.map(({ name }) => name)).toEqual(['reference model']);
  // What those that train hold is what all would, but for the reference.
  expect(plan.items).toEqual(whole.items.filter(({ name }) => name !== 'reference model'));
  expect(plan.bytes + reference.bytes).toBe(whole.bytes);
  await expect(
    training.planMemory('grpo', { ...config, roles: 'train:2,teacher:1' }, { device: 'cpu', ranks: 2 }),
  ).rejects.toThrow('roles: expected the roles of 2 processes');
});

test('each process that trains deals its rows out to all teachers, evenly also over many requests', () => {
  const loads = new Float64Array(3);
  for (let request = 0; request < 40; request++) dealOut([9 + (request % 5), 3, 1 + (request % 3)], 3, loads);
  expect(Math.max(...loads) - Math.min(...loads)).toBeLessThan(14);
});

const withMpi = LAUNCHERS.length > 0 ? describe : describe.skip;

withMpi(LAUNCHERS.length > 0 ? LAUNCHERS.join(' and ') : launcherName, () => {
  test('teachers score the same on their own processes, and on several, as beside one that trains', async () => {
    const [first, second = first] = LAUNCHERS;
    const alone = await found(first, 1);
    for (const [launcher, ranks, roles] of [
      [first, 2, undefined],
      [second, 3, undefined],
      [second, 2, 'train:1,teacher:1'],
      [first, 3, 'train:2,teacher:1'],
      [first, 3, 'train:1,teacher:2'],
    ] as const) {
      const several = await found(launcher, ranks, roles);
      for (const [name, { hash, metrics }] of Object.entries(alone)) {
        expect([name, ranks, roles, several[name].hash]).toEqual([name, ranks, roles, hash]);
        metrics.forEach((line, i) => {
          expect(Object.keys(several[name].metrics[i])).toEqual(Object.keys(line));
          for (const [key, value] of Object.entries(line)) expect(several[name].metrics[i][key]).toBeCloseTo(value, 9);
        });
      }
    }
  });

  test.each([
    // How a process of the role "teacher" ends, and what is said.
    ['is killed', { tellsProcess: true }, ''],
    ['ends without a word', { leaves: true }, 'rank 1: has ended before the others have done with it'],
  ])('a job whose teacher %s', async (_, task, message) => {
    const endless = { ...configs.distillation, maxSteps: 1e6, evalEvery: 0 };
    const started = job(LAUNCHERS[0], 2, 'train:1,teacher:1', { distillation: endless }, task);
    if (message === '') {
      while (!/step 2\n/.test(started.stderr())) await new Promise((resolve) => setTimeout(resolve, 20));
      process.kill(Number(/rank 1 is process (\d+)/.exec(started.stderr())![1]), 'SIGKILL');
    }
    const { code, stderr, seconds } = await started.outcome;
    expect(code).not.toBe(0);
    expect(stderr).toContain(message);
    expect(seconds).toBeLessThan(60);
  });

  test('a process that trains and fails takes its teachers along', async () => {
    const { code, stderr } = await job(LAUNCHERS[0], 3, 'train:1,teacher:2', one('distillation'), { fails: true })
      .outcome;
    expect(code).not.toBe(0);
    expect(stderr).toContain('rank 0: Error: the reward model is gone');
  });

  test('dultra train with roles: rank 0 speaks, and a run goes on with other roles', async () => {
    const cwd = temporaryFolder();
    const config = { ...configs['a teacher as reward'], model, dataset: 'free8', maxSteps: 1, evalEvery: 0 };
    writeFileSync(path.join(cwd, 'run.json'), JSON.stringify(config));
    const train = (ranks: number, ...args: string[]) =>
      mpirun(LAUNCHERS[0], ranks, [main, 'train', ...args], { cwd }).outcome;
    const start = ['grpo', '--config', 'run.json', '--output', 'run'];
    const refused = await train(2, ...start, '--roles', 'train:2,teacher:1');
    expect(refused.code).toBe(2);
    expect(refused.stderr).toContain(
      'dultra: rank 0: --roles: expected the roles of 2 processes, as many as there are',
    );
    const { code, stdout, stderr } = await train(3, ...start, '--roles', 'train:2,teacher:1');
    expect([code, stdout]).toEqual([0, `${path.join(cwd, 'run', 'final')}\n`]);
    expect(stderr.match(/step 1\/1/g)).toHaveLength(1);
    const resumed = await train(
      2,
      '--resume',
      'run',
      '--max-steps',
      '2',
      '--roles',
      'train:1,teacher:1',
      '--log-ranks',
    );
    expect(resumed.code).toBe(0);
    expect(resumed.stderr).toMatch(/\[rank 0\] step 2\/2/);
    expect(resumed.stderr).not.toMatch(/\[rank 1\] step/);
    // A teacher that is not there.
    const lost = { ...config, rewards: { teacher: { type: 'causalLogProb', options: { model: './nowhere' } } } };
    writeFileSync(path.join(cwd, 'run.json'), JSON.stringify(lost));
    const failed = await train(2, ...start.slice(0, -1), 'lost', '--roles', 'train:1,teacher:1');
    expect(failed.code).not.toBe(0);
    expect(failed.stderr).toContain('dultra: rank 1: ');
    expect(failed.stderr).toContain('nowhere');
    expect(failed.stderr).not.toContain('step 1');
  });
});
