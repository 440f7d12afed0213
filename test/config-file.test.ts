// The table of a configuration's keys, and what is made of it: JSON Schemas, commented files.
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parse } from 'yaml';
import { z } from 'zod';
import { createModel, training } from '../lib';
import { resolveCertainty, resolvePseudoTrajectories } from '../lib/training/distillation/options';
import { checkGrpo } from '../lib/training/grpo/options';
import { resolvePlanner } from '../lib/training/planner-init';
import { resolveSft } from '../lib/training/sft';
import { inOneProcess } from './command-line';
import { temporaryFolder } from './helpers';

const { CONFIG_KEYS, configKeys, configSchema, configSchemaFile, configTemplate, defaultOf, STAGES } = training;
const validator = (stage: training.Stage) => z.fromJSONSchema(configSchema(stage) as never);

/** What options of an objective need beside them. */
const BESIDE: Readonly<Record<string, training.TrainConfig>> = {
  rolloutSampler: { objective: 'diffu-grpo' },
  promptMask: { objective: 'diffu-grpo' },
  lossPer: { objective: 'trace' },
  shrink: { objective: 'trace' },
  klTo: { objective: 'trace' },
  teacher: { objective: 'distillation' },
  roles: { beta: 0.1, referenceModel: 'runs/sft/final' },
};

/** What a stage's check fills in. */
function resolved(stage: training.Stage, given: object): Record<string, unknown> {
  if (stage === 'sft') return resolveSft(given as never);
  if (stage === 'planner') return resolvePlanner(given as never);
  if (stage === 'grpo') {
    const { own, ...rest } = checkGrpo({ ...given, rewards: { a: () => [] } } as never);
    return { ...own, ...own.objective, ...rest };
  }
  const { own, ...rest } =
    stage === 'dparallel' ? resolveCertainty(given as never) : resolvePseudoTrajectories(given as never);
  return { ...own, ...own.corruption, ...rest };
}

describe.each(STAGES)('%s', (stage) => {
  const template = configTemplate(stage, 'x.json', 'mine.yaml');
  const set = parse(template) as training.TrainConfig;

  test('the schema in the package is that of the table: node scripts/make-schemas.cjs', () => {
    expect(JSON.parse(readFileSync(configSchemaFile(stage), 'utf8'))).toEqual(configSchema(stage));
  });

  test('presets and new files fit the schema and are right', () => {
    for (const config of [set, ...Object.values(training.PRESETS[stage])]) {
      expect(validator(stage).safeParse(config).error).toBeUndefined();
      expect(() => training.checkConfig(stage, config)).not.toThrow();
    }
  });

  test('every line behind a "#" can be set', () => {
    const lines = [...template.matchAll(/^#(\w+: .*)$/gm)].map(([, line]) => line);
    const written = [...Object.keys(set), ...lines.map((line) => line.split(':')[0])];
    expect(written.sort()).toEqual(configKeys(stage).sort());
    for (const line of lines) {
      const { maxSteps, ...others } = set;
      const more = { ...parse(line), ...(stage === 'grpo' && BESIDE[line.split(':')[0]]) } as training.TrainConfig;
      const config = { ...others, ...(more.epochs === undefined && { maxSteps }), ...more };
      expect([line, validator(stage).safeParse(config).success]).toEqual([line, true]);
      expect(() => training.checkConfig(stage, config)).not.toThrow();
    }
  });

  test('what the schema says of numbers, the trainer does', () => {
    for (const key of configKeys(stage)) {
      const { schema } = CONFIG_KEYS[key as keyof typeof CONFIG_KEYS];
      const { minimum, exclusiveMinimum } = schema as Record<string, number | undefined>;
      const bad = minimum !== undefined ? minimum - 1 : exclusiveMinimum;
      if (bad === undefined) continue;
      const { maxSteps, ...others } = set;
      const beside = stage === 'grpo' ? BESIDE[key] : {};
      const config = { ...others, ...(key !== 'epochs' && { maxSteps }), ...beside, [key]: bad };
      expect([key, validator(stage).safeParse(config).success]).toEqual([key, false]);
      expect(() => training.checkConfig(stage, config as never)).toThrow(key);
    }
  });

  test('defaults are those of the trainer', () => {
    const given = { dataset: 'st1', maxSteps: 1 };
    const { training: shared, ...own } = resolved(stage, given);
    const { policy, trainable, ...plain } = own;
    const actual: Record<string, unknown> = {
      ...(shared as object),
      ...plain,
      ...(policy as object),
      ...(trainable as object),
    };
    const compared = configKeys(stage).filter((key) => {
      const value = defaultOf(key, stage);
      return value !== undefined && actual[key] !== undefined && !['seed', 'cache', 'stopAtEos'].includes(key);
    });
    expect(compared.length).toBeGreaterThan(18);
    for (const key of compared) expect([key, actual[key]]).toEqual([key, defaultOf(key, stage)]);
  });
});

test('shapes of new models are those of createModel', async () => {
  const { schema } = CONFIG_KEYS.model as unknown as { schema: { anyOf: Record<string, unknown>[] } };
  const { create } = (schema.anyOf[1] as { properties: { create: { properties: object } } }).properties;
  const refused = await createModel(temporaryFolder(), { zz: 1 } as never).catch((error: Error) => error.message);
  const known = String(refused)
    .split('one of ')[1]
    .split(', ')
    .filter((key) => key !== 'vocabulary');
  expect(Object.keys(create.properties).sort()).toEqual(known.sort());
});

test('dultra train init writes a file that runs, and leaves one that is there', () => {
  const cwd = temporaryFolder();
  writeFileSync(path.join(cwd, 'old.yaml'), 'mine');
  writeFileSync(path.join(cwd, 'run.json'), '{ "$schema": "x", "dataset": "st1", "maxSteps": 0 }');
  const outcomes = inOneProcess(
    [
      ['train', 'init', 'planner'],
      [
        'train',
        'planner',
        '-c',
        'planner.yaml',
        '--max-steps',
        '1',
        '--batch-size',
        '2',
        '--set',
        'evalExamples=2',
        '-q',
      ],
      ['train', 'init', 'sft', 'old.yaml'],
      ['train', 'init', 'stf'],
      ['train', 'init', 'sft', 'mine.txt'],
      ['train', 'sft', '-c', 'run.json'],
    ],
    cwd,
  );
  expect(outcomes.map(({ code }) => code)).toEqual([0, 0, 2, 2, 2, 2]);
  expect(outcomes[0].stdout).toBe('planner.yaml\n');
  expect(outcomes[2].stderr).toContain('old.yaml is there already and is left as it is');
  expect(readFileSync(path.join(cwd, 'old.yaml'), 'utf8')).toBe('mine');
  expect(outcomes[3].stderr).toContain('expected a stage (sft, dparallel, d3llm, planner, grpo), got "stf"');
  expect(outcomes[5].stderr).toContain('run.json, line 1: maxSteps: expected');
  const [schema] = /(?<=\$schema=).*/.exec(readFileSync(path.join(cwd, 'planner.yaml'), 'utf8'))!;
  expect(JSON.parse(readFileSync(path.resolve(cwd, schema), 'utf8')).title).toContain('planner');
});
