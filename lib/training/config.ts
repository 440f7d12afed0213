// From a configuration in JSON to a trainer that runs.

import { existsSync } from 'node:fs';
import path from 'node:path';
import { type Dataset, open } from '../data';
import { optionError } from '../errors';
import { loadModel } from '../generation/load-model';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { createModel } from '../model/create-model';
import { loadCausalModel } from '../model/load-causal-model';
import type { LoadModelOptions } from '../model/load-weights';
import { createPlanner } from '../model/planner-head';
import { resolveSource } from '../model/source';
import { trainTokenizer } from '../model/train-tokenizer';
import { checkChoice, checkKeys } from '../options';
import {
  boxedFormat,
  causalLogProb,
  codeFence,
  codeTests,
  exactAnswer,
  fastAnswer,
  format,
  mathCorrect,
  type RewardFunction,
  stepPenalty,
  type TeacherOptions,
  teacherLogProb,
  thinkTags,
} from '../rewards';
import { show } from '../text';
import { openData } from './data';
import type { GrpoOptions } from './grpo/options';
import type { GrpoMetrics } from './grpo/stage';
import { GrpoTrainer } from './grpo/trainer';
import { type PlannerMetrics, type PlannerOptions, trainPlanner } from './planner-init';
import { REWARD_TYPES, type RewardConfig, type Stage, type TrainConfig } from './presets';
import { type MaskedDiffusionMetrics, type MaskedDiffusionOptions, trainMaskedDiffusion } from './sft';

/**
 * The data set that a configuration names. @throws RangeError for a name that is neither a task nor a file; as
 * `datasets.open`.
 */
export async function openDataset(
  config: Pick<TrainConfig, 'dataset' | 'datasetOptions' | 'validation' | 'evalEvery'>,
): Promise<Dataset> {
  const { dataset, datasetOptions = {}, validation, evalEvery = 0 } = config;
  if (dataset === undefined)
    throw optionError(TypeError, 'dataset', 'expected a task, a data set, a file or a list of examples, got none');
  return open(dataset, {
    ...datasetOptions,
    ...(validation !== undefined && { validation }),
    splits: evalEvery > 0 ? ['train', 'validation'] : ['train'],
  });
}

/** Examples of an endless task that a tokenizer is learnt from. */
const TOKENIZER_EXAMPLES = 40_000;

/** Prompts and answers of a data set. */
function textsOf({ seed = 0 }: TrainConfig, data: Dataset): string[] {
  // Whatever the mixture: a tokenizer knows all that the data set has.
  const source = openData(data, BigInt(seed));
  return source
    .train(0, source.size ?? TOKENIZER_EXAMPLES)
    .flatMap(({ prompt, answer }) => [
      ...(typeof prompt === 'string' ? [prompt] : prompt.map(({ content }) => content)),
      ...(answer === null ? [] : [answer]),
    ]);
}

/**
 * The folder of the model that a configuration names; makes a new model in `newModelFolder` where it asks for one and
 * there is none yet. undefined: the embedded model.
 */
export async function prepareModel(
  config: TrainConfig,
  data: Dataset,
  newModelFolder: string,
): Promise<string | undefined> {
  const { model } = config;
  if (typeof model !== 'object') return model;
  checkKeys('model', model, ['create']);
  if (existsSync(path.join(newModelFolder, 'tokenizer_config.json'))) return newModelFolder;
  const { tokenizer, ...shape } = model.create;
  if (tokenizer !== undefined) {
    const learnt = path.join(newModelFolder, 'learnt-tokenizer');
    if (typeof tokenizer === 'object') await trainTokenizer(learnt, textsOf(config, data), tokenizer);
    const folder = typeof tokenizer === 'object' ? learnt : tokenizer;
    await createModel(newModelFolder, { seed: config.seed, ...shape, tokenizer: folder });
    return newModelFolder;
  }
  if (data.vocabulary.length === 0)
    throw optionError(
      RangeError,
      'model.create',
      'expected a task or own examples as dataset, whose words a new model learns, or a tokenizer; this one names no words',
    );
  await createModel(newModelFolder, { seed: config.seed, ...shape, vocabulary: data.vocabulary });
  return newModelFolder;
}

/** Sizes of new planner heads, by what a configuration calls them. */
const NEW_PLANNERS: Readonly<Record<string, 'block' | 'small'>> = {
  new: 'block',
  'new:paper': 'block',
  'new:small': 'small',
};

/** The new planner head that a configuration asks for; null: it names a folder or none. @throws TypeError, RangeError */
export function newPlanner({ planner }: Pick<TrainConfig, 'planner'>): 'block' | 'small' | null {
  if (planner === undefined) return null;
  if (typeof planner !== 'string' || planner === '')
    throw optionError(TypeError, 'planner', `expected "new", "new:small" or a folder, got ${show(planner)}`);
  if (Object.hasOwn(NEW_PLANNERS, planner)) return NEW_PLANNERS[planner];
  if (/^new(:|$)/.test(planner))
    throw optionError(
      RangeError,
      'planner',
      `expected "new", "new:paper", "new:small" or a folder, got ${show(planner)}`,
    );
  return null;
}

/**
 * The folder of the planner head that a configuration names, which `loadModel` takes; a new one is made in `newFolder`,
 * where there is none yet. undefined: the model's own.
 * @param source of the base model, undefined for the embedded one @param revision of a hub id
 */
export async function preparePlanner(
  config: Pick<TrainConfig, 'planner' | 'seed'>,
  source: string | undefined,
  newFolder: string,
  revision?: string,
): Promise<string | undefined> {
  const size = newPlanner(config);
  if (size === null) return config.planner;
  if (existsSync(path.join(newFolder, 'planner.json'))) return newFolder;
  const base = await resolveSource(source, { ...(revision !== undefined && { revision }) }, {});
  await createPlanner(base, newFolder, { size, seed: config.seed });
  return newFolder;
}

async function makeReward(
  name: string,
  config: RewardConfig,
  teachers: { dispose(): void }[],
): Promise<RewardFunction> {
  const at = `rewards.${name}`;
  checkKeys(at, config, ['type', 'weight', 'options']);
  const { type, options = {} } = config;
  checkChoice(`${at}.type`, type, REWARD_TYPES);
  switch (type) {
    case 'exactAnswer':
      checkKeys(`${at}.options`, options, []);
      return exactAnswer;
    case 'fastAnswer':
      return fastAnswer(options);
    case 'stepPenalty':
      return stepPenalty(options);
    case 'format': {
      checkKeys(`${at}.options`, options, ['pattern', 'flags', 'reward']);
      const { pattern, flags, ...rest } = options as { pattern: string; flags?: string; reward?: number };
      return format(new RegExp(pattern, flags), rest);
    }
    case 'mathCorrect':
      return mathCorrect(options);
    case 'codeTests':
      checkKeys(`${at}.options`, options, ['compat']);
      return codeTests(options);
    case 'boxedFormat':
    case 'thinkTags':
    case 'codeFence':
      checkKeys(`${at}.options`, options, []);
      return { boxedFormat, thinkTags, codeFence }[type]();
    case 'causalLogProb': {
      checkKeys(`${at}.options`, options, ['model', 'dtype', 'tokenBudget']);
      const { model, dtype, tokenBudget } = options as {
        model: string;
        dtype?: LoadModelOptions['dtype'];
        tokenBudget?: number;
      };
      const teacher = await loadCausalModel(model, { ...(dtype && { dtype }) });
      teachers.push(teacher);
      return causalLogProb({ model: teacher, ...(tokenBudget !== undefined && { tokenBudget }) });
    }
    case 'teacherLogProb': {
      const { model, ...rest } = options as Omit<TeacherOptions, 'model'> & { model?: string };
      const teacher = await loadModel(model);
      teachers.push(teacher);
      return teacherLogProb({ ...rest, model: teacher });
    }
  }
}

/** Metrics of any stage. */
export type StageMetrics = MaskedDiffusionMetrics | PlannerMetrics | GrpoMetrics;

/** Runs a stage as its configuration says, on a model that is loaded. @throws as the stage's trainer. */
export async function* runConfig(
  stage: Stage,
  model: MaskedDiffusionModel,
  config: TrainConfig,
  { signal }: { signal?: AbortSignal } = {},
): AsyncGenerator<StageMetrics, void, void> {
  const {
    model: _,
    planner: ______,
    dataset: __,
    datasetOptions: ____,
    validation: ___,
    rewards = {},
    referenceModel,
    ...rest
  } = config;
  const dataset = await openDataset(config);
  const given = { ...rest, dataset, ...(signal && { signal }) };
  if (stage !== 'grpo') {
    for (const name of ['rewards', 'referenceModel'] as const)
      if (config[name] !== undefined) throw optionError(TypeError, name, `expected only with the stage "grpo"`);
    if (stage === 'sft') yield* trainMaskedDiffusion(model, given as MaskedDiffusionOptions);
    else yield* trainPlanner(model, given as PlannerOptions);
    return;
  }
  const others: { dispose(): void }[] = [];
  try {
    const functions: Record<string, { fn: RewardFunction; weight: number }> = {};
    for (const [name, reward] of Object.entries(rewards))
      functions[name] = { fn: await makeReward(name, reward, others), weight: reward.weight ?? 1 };
    const { signal: _____, ...options } = given;
    const grpo = { ...options, rewards: functions } as GrpoOptions;
    if (referenceModel !== undefined) {
      grpo.referenceModel = await loadModel(referenceModel);
      others.push(grpo.referenceModel);
    }
    await using trainer = new GrpoTrainer(model, grpo);
    yield* trainer.train({ signal });
  } finally {
    for (const other of others) other.dispose();
  }
}
