// From a configuration in JSON to a trainer that runs.

import { existsSync } from 'node:fs';
import path from 'node:path';
import { type Dataset, open } from '../data';
import { wholeGroup } from '../distributed/mpi';
import { isOptionError, optionError, optionWithin } from '../errors';
import { loadModel } from '../generation/load-model';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import type { CausalModel } from '../model/causal-model';
import { createModel } from '../model/create-model';
import { loadCausalModel } from '../model/load-causal-model';
import type { LoadModelOptions } from '../model/load-weights';
import { createPlanner } from '../model/planner-head';
import { resolveSource } from '../model/source';
import { trainTokenizer } from '../model/train-tokenizer';
import { checkChoice, checkKeys, expectedKeys } from '../options';
import type { RewardFunction } from '../rewards';
import { show } from '../text';
import { configKeys } from './config-keys';
import { openData, type TrainingRow } from './data';
import {
  type CertaintyOptions,
  type DistillationMetrics,
  type PseudoTrajectoryOptions,
  resolveCertainty,
  resolvePseudoTrajectories,
} from './distillation/options';
import { trainCertainty, trainPseudoTrajectories } from './distillation/train';
import { checkGrpo, type GrpoOptions } from './grpo/options';
import type { GrpoMetrics } from './grpo/stage';
import { TeacherRanks } from './grpo/teacher-ranks';
import { GrpoTrainer } from './grpo/trainer';
import { type PlannerMetrics, type PlannerOptions, resolvePlanner, trainPlanner } from './planner-init';
import { type NewModelConfig, STAGES, type Stage, type TeacherConfig, type TrainConfig } from './presets';
import { checkRewardConfigs, makeReward } from './reward-config';
import { checkRoles, endParts, partByRole, type Roles, roleOf, rolesOf, scorersOf } from './roles';
import type { TrainingCallbacks } from './samples';
import { type MaskedDiffusionMetrics, type MaskedDiffusionOptions, resolveSft, trainMaskedDiffusion } from './sft';

const NO_DATASET = 'expected a task, a data set, a file or a list of examples, got none';

/**
 * The data set that a configuration names. @throws RangeError for a name that is neither a task nor a file; as
 * `datasets.open`.
 */
export async function openDataset(
  config: Pick<TrainConfig, 'dataset' | 'datasetOptions' | 'validation' | 'evalEvery'>,
): Promise<Dataset> {
  const { dataset, datasetOptions = {}, validation, evalEvery = 0 } = config;
  if (dataset === undefined) throw optionError(TypeError, 'dataset', NO_DATASET);
  try {
    return await open(dataset, {
      ...datasetOptions,
      ...(validation !== undefined && { validation }),
      splits: evalEvery > 0 ? ['train', 'validation'] : ['train'],
    });
  } catch (error) {
    const isOfOptions =
      isOptionError(error) && (error.option === 'options' || Object.hasOwn(datasetOptions, error.option));
    throw isOfOptions ? optionWithin('datasetOptions', 'options', error) : error;
  }
}

/**
 * Checks everything of a configuration that can be told before a model and data are there. @throws TypeError, RangeError
 * naming the key
 */
export function checkConfig(stage: Stage, config: TrainConfig): void {
  checkChoice('stage', stage, STAGES);
  if (typeof config !== 'object' || config === null || Array.isArray(config))
    throw optionError(TypeError, 'config', `expected options by name, got ${show(config)}`);
  const known = [...configKeys(stage), 'resume'];
  for (const key of Object.keys(config)) {
    if (known.includes(key)) continue;
    if (key === 'roles') checkRoles(stage, config);
    const others = STAGES.filter((other) => configKeys(other).includes(key));
    const text =
      others.length > 0
        ? `expected only with the stage ${others.map((other) => `"${other}"`).join(' or ')}, got it with "${stage}"`
        : `unknown key; ${expectedKeys(key, configKeys(stage))}`;
    throw optionError(TypeError, key, text);
  }
  const { model, planner, dataset, datasetOptions, validation, rewards, referenceModel, teacher, roles, ...options } =
    config;
  newPlanner({ planner });
  if (typeof model === 'object' && model !== null) checkKeys('model', model, ['create']);
  else if (model !== undefined && (typeof model !== 'string' || model === ''))
    throw optionError(TypeError, 'model', `expected a folder, a hub id or { create: … }, got ${show(model)}`);
  if (dataset === undefined) throw optionError(TypeError, 'dataset', NO_DATASET);
  if (datasetOptions !== undefined && (typeof datasetOptions !== 'object' || datasetOptions === null))
    throw optionError(TypeError, 'datasetOptions', `expected options by name, got ${show(datasetOptions)}`);
  if (referenceModel !== undefined && (typeof referenceModel !== 'string' || referenceModel === ''))
    throw optionError(TypeError, 'referenceModel', `expected a folder or a hub id, got ${show(referenceModel)}`);
  const given = { ...options, dataset } as unknown;
  if (stage === 'sft') resolveSft(given as MaskedDiffusionOptions);
  else if (stage === 'planner') resolvePlanner(given as PlannerOptions);
  else if (stage === 'dparallel') resolveCertainty(given as CertaintyOptions);
  else if (stage === 'd3llm') resolvePseudoTrajectories(given as PseudoTrajectoryOptions);
  else {
    const names = Object.entries(checkRewardConfigs(rewards));
    const functions = Object.fromEntries(names.map(([name, { weight = 1 }]) => [name, { fn: ELSEWHERE, weight }]));
    checkGrpo({
      ...(given as GrpoOptions),
      ...((rewards !== undefined || teacher === undefined) && { rewards: functions }),
      ...(referenceModel && { referenceModel: REFERENCE }),
      ...(teacher !== undefined && { teacher: checkTeacher(teacher) }),
    });
    if (roles !== undefined) checkRoles(stage, config);
  }
}

/** Checks a teacher's configuration. @returns what stands for the teacher, which is not loaded yet */
function checkTeacher(teacher: unknown): CausalModel {
  if (typeof teacher !== 'object' || teacher === null)
    throw optionError(TypeError, 'teacher', `expected { model: FOLDER }, got ${show(teacher)}`);
  checkKeys('teacher', teacher, ['model', 'dtype']);
  const { model } = teacher as Partial<TeacherConfig>;
  if (typeof model !== 'string' || model === '')
    throw optionError(TypeError, 'teacher.model', `expected a folder or a hub id, got ${show(model)}`);
  return { logProbs: async () => [] } as unknown as CausalModel;
}

/** Stands for a reference model that is not loaded yet, or that another process holds. */
const REFERENCE = { hasPlanner: true } as MaskedDiffusionModel;

/** Stands for a reward that another process computes. */
const ELSEWHERE: RewardFunction = () => [];

/** Examples of an endless task that a tokenizer is learnt from. */
const TOKENIZER_EXAMPLES = 40_000;

/** Prompts and answers of a data set. */
const textsOf = (examples: readonly Pick<TrainingRow, 'prompt' | 'answer'>[]): string[] =>
  examples.flatMap(({ prompt, answer }) => [
    ...(typeof prompt === 'string' ? [prompt] : prompt.map(({ content }) => content)),
    ...(answer === null ? [] : [answer]),
  ]);

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
  try {
    return await createNewModel(model.create, config, data, newModelFolder);
  } catch (error) {
    throw isOptionError(error) ? optionWithin('model.create', 'options', error) : error;
  }
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
 * @param source of the base model, undefined for the embedded one @param load how it is loaded
 */
export async function preparePlanner(
  config: Pick<TrainConfig, 'planner' | 'seed'>,
  source: string | undefined,
  newFolder: string,
  { revision, maskTokenId, blockLength }: Pick<LoadModelOptions, 'revision' | 'maskTokenId' | 'blockLength'> = {},
): Promise<string | undefined> {
  const size = newPlanner(config);
  if (size === null) return config.planner;
  if (existsSync(path.join(newFolder, 'planner.json'))) return newFolder;
  const base = await resolveSource(source, { ...(revision !== undefined && { revision }) }, {});
  await createPlanner(base, newFolder, { size, seed: config.seed, maskTokenId, blockLength });
  return newFolder;
}

/** Makes a new model in a folder. @throws TypeError, RangeError naming an option of it */
async function createNewModel(
  create: NewModelConfig,
  config: TrainConfig,
  data: Dataset,
  folder: string,
): Promise<string> {
  // Whatever the mixture: a tokenizer knows all that the data set has.
  const source = openData(data, BigInt(config.seed ?? 0));
  const examples = (endless: number) => source.train(0, source.size ?? endless);
  // Messages need a chat template, which comes with a learnt tokenizer.
  const hasMessages = examples(1).some(({ prompt }) => typeof prompt !== 'string');
  const { tokenizer = hasMessages ? {} : undefined, ...shape } = create;
  if (tokenizer === undefined) {
    if (data.vocabulary.length === 0)
      throw optionError(
        RangeError,
        'options',
        'expected a task or own examples as dataset, whose words a new model learns, or a tokenizer; this one names no words',
      );
    await createModel(folder, { seed: config.seed, ...shape, vocabulary: data.vocabulary });
    return folder;
  }
  const learnt = path.join(folder, 'learnt-tokenizer');
  if (typeof tokenizer === 'object')
    try {
      await trainTokenizer(learnt, textsOf(examples(TOKENIZER_EXAMPLES)), tokenizer);
    } catch (error) {
      throw isOptionError(error) ? optionWithin('tokenizer', 'options', error) : error;
    }
  await createModel(folder, {
    seed: config.seed,
    ...shape,
    tokenizer: typeof tokenizer === 'object' ? learnt : tokenizer,
  });
  return folder;
}

/** Metrics of any stage. */
export type StageMetrics = MaskedDiffusionMetrics | DistillationMetrics | PlannerMetrics | GrpoMetrics;

/** Runs a stage as its configuration says, on a model that is loaded; callbacks are the trainer's. @throws as it does. */
export async function* runConfig(
  stage: Stage,
  model: MaskedDiffusionModel,
  config: TrainConfig,
  { signal, ...callbacks }: TrainingCallbacks & { signal?: AbortSignal } = {},
): AsyncGenerator<StageMetrics, void, void> {
  const {
    model: _,
    planner: ______,
    dataset: __,
    datasetOptions: ____,
    validation: ___,
    rewards,
    referenceModel,
    teacher,
    roles: _______,
    ...rest
  } = config;
  checkConfig(stage, config);
  const dataset = await openDataset(config);
  const given = { ...rest, dataset, ...callbacks, ...(signal && { signal }) };
  if (stage !== 'grpo') {
    if (stage === 'sft') yield* trainMaskedDiffusion(model, given as MaskedDiffusionOptions);
    else if (stage === 'dparallel') yield* trainCertainty(model, given as CertaintyOptions);
    else if (stage === 'd3llm') yield* trainPseudoTrajectories(model, given as PseudoTrajectoryOptions);
    else yield* trainPlanner(model, given as PlannerOptions);
    return;
  }
  const { signal: _____, ...options } = given;
  const roles = rolesOf(config, wholeGroup().size);
  if (roles !== null) {
    yield* trainBesideTeachers(model, { config, roles, options: options as GrpoOptions, signal });
    return;
  }
  const others: { dispose(): void }[] = [];
  const device = deviceBeside(model);
  try {
    const functions: Record<string, { fn: RewardFunction; weight: number }> = {};
    for (const [name, reward] of Object.entries(rewards ?? {}))
      functions[name] = { fn: await makeReward(name, reward, { others, device }), weight: reward.weight ?? 1 };
    const grpo = { ...options, ...(rewards !== undefined && { rewards: functions }) } as GrpoOptions;
    if (teacher !== undefined) {
      const { dtype } = teacher;
      const loaded = await loadCausalModel(teacher.model, { ...device, ...(dtype && { dtype }) });
      others.push(loaded);
      grpo.teacher = loaded;
    }
    if (referenceModel !== undefined) {
      grpo.referenceModel = await loadModel(referenceModel, device);
      others.push(grpo.referenceModel);
    }
    await using trainer = new GrpoTrainer(model, grpo);
    yield* trainer.train({ signal });
  } finally {
    for (const other of others) other.dispose();
  }
}

/**
 * Where other models of a process compute: of a job of several where its model does, so that each process keeps to its
 * share of the machine.
 */
function deviceBeside({ info }: MaskedDiffusionModel): Pick<LoadModelOptions, 'device' | 'threads'> {
  if (wholeGroup().size === 1) return {};
  return info.device === 'cpu' ? { device: 'cpu', threads: info.threads } : { device: info.device };
}

/** A training whose teachers other processes hold. */
async function* trainBesideTeachers(
  model: MaskedDiffusionModel,
  run: { config: TrainConfig; roles: Roles; options: GrpoOptions; signal: AbortSignal | undefined },
): AsyncGenerator<GrpoMetrics, void, void> {
  const { config, roles, options, signal } = run;
  if (roleOf(config) !== 'train')
    throw optionError(
      RangeError,
      'roles',
      'expected the role "train" for this process: one of the role "teacher" calls serveTeachers',
    );
  const scorers = scorersOf(config);
  const others: { dispose(): void }[] = [];
  const device = deviceBeside(model);
  try {
    const { sides, loaded: grpo } = await partByRole(config, roles, async () => {
      const functions: Record<string, { fn: RewardFunction; weight: number }> = {};
      for (const [name, reward] of Object.entries(config.rewards ?? {})) {
        const isElsewhere = scorers.includes(`reward ${name}`);
        const fn = isElsewhere ? ELSEWHERE : await makeReward(name, reward, { others, device });
        functions[name] = { fn, weight: reward.weight ?? 1 };
      }
      return {
        ...options,
        ...(config.rewards !== undefined && { rewards: functions }),
        ...(config.teacher !== undefined && { teacher: checkTeacher(config.teacher) }),
        ...(scorers.includes('reference') && { referenceModel: REFERENCE }),
      };
    });
    const teachers = new TeacherRanks(sides.teacher, scorers, wholeGroup().rank);
    try {
      await using trainer = new GrpoTrainer(model, grpo, teachers);
      yield* trainer.train({ signal });
    } finally {
      await teachers.end();
      endParts();
    }
  } finally {
    for (const other of others) other.dispose();
  }
}
