// What dultra train makes of the model that it is given: an adapter, and what a checkpoint does not say of itself.
import { cpSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { inOneProcess } from './command-line';
import { modelFolder, temporaryFolder } from './helpers';
import { characterTokenizer } from './tokenizers';
import { newModelFolder } from './trained-models';

const FEW = ['--batch-size', '2', '--set', 'schedule=constant', '--set', 'warmupSteps=0', '--quiet'];
const weights = (folder: string) => readFileSync(path.join(folder, 'model.safetensors'));

test('--adapter is merged before training, and again where a run goes on', async () => {
  const base = await newModelFolder();
  const folder = temporaryFolder();
  const [first, whole, still, broken, merged] = ['first', 'whole', 'still', 'broken', 'merged'].map((name) =>
    path.join(folder, name),
  );
  const adapter = path.join(first, 'checkpoints', 'step-00000002', 'adapter');
  const lora = ['sft', '-d', 'free8', '-m', base, ...FEW, '--set', 'lora={rank: 2, targets: [q_proj]}'];
  const adapted = ['train', ...lora, '--adapter', adapter];
  const outcomes = inOneProcess([
    ['train', ...lora, '--output', first, '--max-steps', '2', '--learning-rate', '0.05'],
    ['merge', base, adapter, merged],
    [...adapted, '--output', still, '--max-steps', '1', '--learning-rate', '0'],
    [...adapted, '--output', whole, '--max-steps', '2', '--learning-rate', '0.05'],
    [...adapted, '--output', broken, '--max-steps', '1', '--learning-rate', '0.05'],
    ['train', '--resume', broken, '--max-steps', '2', '--quiet'],
    ['train', '--resume', broken, '--adapter', adapter],
    [...adapted.slice(0, -1), path.join(folder, 'nowhere'), '--output', path.join(folder, 'none'), '--max-steps', '1'],
  ]);
  const [refused, missing] = outcomes.splice(6);
  expect(outcomes.map(({ code, stderr }) => [code, stderr])).toEqual(outcomes.map(() => [0, '']));
  // Without a learning rate, training leaves what the merge made.
  expect(weights(path.join(still, 'final')).equals(weights(merged))).toBe(true);
  expect(weights(merged).equals(weights(base))).toBe(false);
  expect(weights(path.join(whole, 'final')).equals(weights(merged))).toBe(false);
  expect(weights(path.join(broken, 'final')).equals(weights(path.join(whole, 'final')))).toBe(true);
  expect([refused.code, refused.stderr]).toEqual([2, expect.stringMatching(/^dultra: --adapter: not together with/)]);
  expect([missing.code, missing.stderr]).toEqual([1, expect.stringMatching(/nowhere.*adapter_config\.json/)]);
  expect(existsSync(path.join(folder, 'none'))).toBe(false);
});

test('--mask-token-id and --attended-block say what a checkpoint does not', () => {
  const folder = temporaryFolder();
  const source = path.join(folder, 'a2d');
  cpSync(modelFolder('a2d_qwen3'), source, { recursive: true });
  const vocab: Record<string, number> = { '<eos>': 90 };
  for (let i = 0; i < 90; i++) vocab[String.fromCharCode(32 + i)] = i;
  const tokenizer = characterTokenizer(vocab, ['<eos>']);
  writeFileSync(path.join(source, 'tokenizer.json'), JSON.stringify(tokenizer));
  mkdirSync(path.join(folder, 'data'));
  const data = path.join(folder, 'data', 'own.jsonl');
  writeFileSync(data, '{"prompt":"AB","answer":"CD"}\n{"prompt":"BA","answer":"DC"}\n');
  const output = path.join(folder, 'run');
  const train = ['train', 'planner', '-d', data, '-m', source, '--planner', 'new:small', '--output', output, ...FEW];
  const named = ['--mask-token-id', '95', '--attended-block', '4'];
  const outcomes = inOneProcess([
    [...train, '--max-steps', '1'],
    [...train, '--max-steps', '1', ...named, '--dry-run', '--json'],
    [...train, '--max-steps', '1', ...named],
    ['train', '--resume', output, '--max-steps', '2', '--quiet'],
    ['info', path.join(output, 'final'), '--json'],
    [...train.slice(0, -1), '--max-steps', '1', '--output', path.join(folder, 'wrong'), '--mask-token-id', '96'],
  ]);
  const [unnamed, plan, trained, resumed, info, wrong] = outcomes;
  expect([unnamed.code, unnamed.stderr]).toEqual([1, expect.stringMatching(/give it with --mask-token-id/)]);
  expect(JSON.parse(plan.stdout).plan.parameters).toBeGreaterThan(0);
  expect([trained.code, trained.stderr]).toEqual([0, '']);
  expect([resumed.code, resumed.stderr]).toEqual([0, '']);
  expect(JSON.parse(info.stdout).model.config.maskTokenId).toBe(95);
  const { load } = JSON.parse(readFileSync(path.join(output, 'train.json'), 'utf8'));
  expect(load).toEqual({ maskTokenId: 95, attendedBlock: 4 });
  expect([wrong.code, wrong.stderr]).toEqual([
    1,
    expect.stringMatching(/mask_token_id: expected an id below vocab_size .96., got 96/),
  ]);
});

test('a plan of a run folder is that of its final model', async () => {
  const base = await newModelFolder();
  const run = temporaryFolder();
  cpSync(base, path.join(run, 'final'), { recursive: true });
  const plan = (model: string) => [
    'train',
    'sft',
    '-d',
    'free8',
    '-m',
    model,
    '--max-steps',
    '1',
    '--dry-run',
    '--json',
  ];
  const [direct, ofRun] = inOneProcess([plan(path.join(run, 'final')), plan(run)]);
  expect(ofRun.stderr).toBe('');
  expect(JSON.parse(ofRun.stdout).plan.items).toEqual(
    JSON.parse(direct.stdout.replaceAll(path.join(run, 'final'), run)).plan.items,
  );
});
