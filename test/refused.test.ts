// A command that is refused leaves nothing behind, and says in the words of the command line what was wrong.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { evaluateCampaign, loadModel, trainMaskedDiffusion } from '../lib';
import { inOneProcess, main } from './command-line';
import { temporaryFolder } from './helpers';

const cwd = temporaryFolder();
mkdirSync(path.join(cwd, 'empty'));
mkdirSync(path.join(cwd, 'steps', 'step-00000003'), { recursive: true });
mkdirSync(path.join(cwd, 'weights'));
writeFileSync(path.join(cwd, 'weights', 'model.safetensors'), '');
writeFileSync(path.join(cwd, 'own.jsonl'), '{"prompt":"tom has 7 apples","answer":"7"}\n');
writeFileSync(path.join(cwd, 'own.csv'), 'prompt,answer\ntom,7\n');
writeFileSync(path.join(cwd, 'own.yaml'), 'dataste: st1\n');
const before = readdirSync(cwd, { recursive: true });

const out = ['--output', 'a/b'];
const st1 = ['train', 'sft', '-d', 'st1', '--max-steps', '1', ...out];
const CASES: [string[], string][] = [
  [[...st1, '--set', 'maxTokens=100000'], '--dataset: a row of 1000'],
  [[...st1, '--set', 'evalEvery=1', '--set', 'evalSampler=fixed:0'], '--set evalSampler.steps: expected'],
  [[...st1, '-m', 'empty'], 'empty: expected a checkpoint, a folder with config.json and *.safetensors, got an empty'],
  [[...st1, '--planner', 'empty'], '--planner: expected none'],
  [[...st1, '--adapter', 'empty'], 'adapter_config.json'],
  [[...st1, '--output', 'own.jsonl/run'], '--output: expected a folder, got "own.jsonl/run", in which '],
  [['train', 'sft', '-d', 'own.csv', ...out], '; what is read are JSON lines (.jsonl), JSON (.json) and Parquet'],
  [
    [
      'train',
      'grpo',
      '-d',
      'st1',
      '--max-steps',
      '1',
      ...out,
      '--set',
      'rewards={r: {type: exactAnswer, options: {x: 1}}}',
    ],
    '--set rewards.r.options: unknown key "x"; expected none\n',
  ],
  [['eval', ...out, '-m', 'steps'], 'got a folder with checkpoints in it, such as step-00000003'],
  [['eval', ...out, '-m', 'weights'], 'weights: expected config.json beside the weights, got none'],
  [['eval', ...out, '-m', 'own.jsonl'], 'own.jsonl: expected a folder with config.json or a *.gguf file, got a file'],
  [['eval', ...out, '--samplers', 'fixed', '-n', '4096'], 'more than the model'],
  [
    ['eval', ...out, '--samplers', 'fixed', '--block-length', '7'],
    '--max-tokens: expected a multiple of --block-length',
  ],
  [['generate', '--batch', 'own.jsonl', '--out', 'a/b.jsonl'], '--out: a is no folder'],
  [['info', '-m', 'world'], 'The model is an argument here: dultra info MODEL\n'],
  [['train', 'sft', '-c', 'own.yaml'], 'own.yaml, line 1: dataste: unknown key; did you mean "dataset"?'],
  [['train', 'sft', ...out], 'no data set: give one with --dataset, or a --preset or --config that names it'],
  [['generate', '-n', '-5', 'tom'], '--max-tokens: expected an integer at least 1, got -5\n'],
];

test('nothing is left, and the message names what was typed', () => {
  const outcomes = inOneProcess(
    CASES.map(([args]) => args),
    cwd,
  );
  expect(outcomes.map(({ stderr }, i) => [CASES[i][0], stderr])).toEqual(
    CASES.map(([args, message]) => [args, expect.stringContaining(message)]),
  );
  expect(outcomes.map(({ code, stdout }) => [code === 0, stdout])).toEqual(CASES.map(() => [false, '']));
  expect(readdirSync(cwd, { recursive: true })).toEqual(before);
});

test('programs, too: folders are made when there is something to write', async () => {
  await using model = await loadModel('word-problems', { threads: 1 });
  const outputDir = path.join(cwd, 'run');
  const training = trainMaskedDiffusion(model, { dataset: 'st1', maxSteps: 1, maxTokens: 5000, outputDir });
  await expect(training.next()).rejects.toThrow(/a row of \d+ tokens is longer than the model's maximum of 64/);
  const campaign = evaluateCampaign({
    dataset: 'st1',
    samplers: ['fixed'],
    models: { gone: () => loadModel(path.join(cwd, 'gone')) },
    outputDir,
  });
  await expect(campaign).rejects.toThrow(/no such folder|gone/);
  expect(existsSync(outputDir)).toBe(false);
});

test('a warning is a line of the command, without the number of the process', () => {
  const run = (...flags: string[]) =>
    spawnSync(process.execPath, [...flags, main, 'generate', '-m', 'word-problems', '-q', 'Why is the sky blue?'], {
      encoding: 'utf8',
    });
  expect(run().stderr).toMatch(
    /^warning: \d of 6 tokens of a prompt are "<unk>": the embedded model "word-problems" does not know/,
  );
  expect(run('--no-warnings').stderr).not.toContain('warning');
});
