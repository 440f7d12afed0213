// A new planner for a model that has none, as `dultra train` makes, trains and resumes it.
import { cpSync, existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel, training } from '../lib';
import { NEW_FAMILIES } from '../lib/model/families';
import { inOneProcess } from './command-line';
import { readTensors, temporaryFolder, writeTensors } from './helpers';
import { collect, newModelFolder, withModel } from './trained-models';

/** A new model of a family without its planner head. */
async function base(family: string): Promise<string> {
  const from = await newModelFolder({ family, ...(family === 'fast-dllm-v2' && { blockLength: 4 }) });
  const folder = path.join(temporaryFolder(), family);
  cpSync(from, folder, { recursive: true });
  const tensors = readTensors(path.join(from, 'model.safetensors'));
  for (const name of Object.keys(tensors)) if (!/^(model\.|lm_head)/.test(name)) delete tensors[name];
  writeTensors(path.join(folder, 'model.safetensors'), tensors);
  return folder;
}

const SHORT = ['--dataset', 'free8', '--max-steps', '2', '--quiet'];
const GRPO = ['--set', 'rewards={fast: {type: fastAnswer}}', '--set', 'promptsPerStep=2', '--set', 'numGenerations=2'];

test.each(NEW_FAMILIES)(
  '%s: a new planner is initialised, trained by GRPO, and loads from its folder',
  async (family) => {
    const model = await base(family);
    const at = (name: string) => path.join(temporaryFolder(), name);
    const [first, second, alone] = [at('planner'), at('grpo'), at('alone')];
    const planner = [
      'planner',
      '--model',
      model,
      '--batch-size',
      '4',
      ...SHORT,
      '--output',
      first,
      '--save-every',
      '1',
    ];
    const [made, plan, again] = inOneProcess([
      ['train', ...planner, '--planner', 'new:small'],
      ['train', ...planner.slice(0, -4), '--output', at('plan'), '--planner', 'new', '--dry-run', '--json'],
      ['train', 'grpo', '--model', path.join(first, 'final'), ...SHORT, ...GRPO, '--output', second],
    ]);
    expect([made, plan, again]).toMatchObject([{ code: 0, stderr: '' }, { code: 0 }, { code: 0, stderr: '' }]);
    const launch = JSON.parse(readFileSync(path.join(first, 'train.json'), 'utf8')) as { config: { planner: string } };
    expect(launch.config.planner).toBe(path.join(first, 'initial', 'planner'));
    await withModel(path.join(second, 'final'), async (trained) => {
      expect(trained.config).toMatchObject({ family, planner: { numLayers: 0 } });
      await trained.savePlanner(alone);
    });
    // The head that was saved by itself, on the base again.
    await using whole = await loadModel(model, { threads: 1, planner: alone });
    const steps = await collect(
      training.runConfig('planner', whole, { planner: alone, dataset: 'free8', maxSteps: 1, batchSize: 2 }),
    );
    expect(steps).toHaveLength(1);
  },
);

test('a run with a new planner is resumed with the same bits', async () => {
  const model = await base('sdar');
  const [whole, parts] = [path.join(temporaryFolder(), 'whole'), path.join(temporaryFolder(), 'parts')];
  const train = [
    'train',
    'planner',
    '--model',
    model,
    '--planner',
    'new',
    '--dataset',
    'free8',
    '--batch-size',
    '4',
    '--quiet',
  ];
  const constant = ['--set', 'schedule=constant'];
  const outcomes = inOneProcess([
    [...train, ...constant, '--max-steps', '4', '--output', whole],
    [...train, ...constant, '--max-steps', '2', '--output', parts],
    ['train', '--resume', parts, '--max-steps', '4', '--quiet'],
  ]);
  expect(outcomes.map(({ code }) => code)).toEqual([0, 0, 0]);
  const weights = (run: string) => readTensors(path.join(run, 'final', 'model.safetensors'));
  expect(weights(parts)).toEqual(weights(whole));
});

test('what is refused leaves nothing behind', async () => {
  const [plain, own] = [await base('dream'), await newModelFolder()];
  const cwd = temporaryFolder();
  const run = (model: string, planner: string) => [
    ...['train', 'planner', '--model', model, '--planner', planner, ...SHORT, '--output', path.join(cwd, 'run')],
  ];
  const outcomes = inOneProcess([run(plain, 'new:large'), run(own, 'new'), run(plain, path.join(cwd, 'none'))]);
  expect(outcomes.map(({ code }) => code === 0)).toEqual([false, false, false]);
  expect(outcomes[0].stderr).toMatch(/planner: expected "new", "new:paper", "new:small" or a folder, got "new:large"/);
  expect(outcomes[1].stderr).toMatch(/which has a planner head of its own/);
  expect(outcomes[2].stderr).toMatch(/planner\.json/);
  expect(existsSync(path.join(cwd, 'run'))).toBe(false);
});
