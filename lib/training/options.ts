// Options that all trainers share: checks and defaults.
import type { Shares } from '../data/dataset';
import { optionError } from '../errors';
import {
  type LoraOptions,
  MOMENT_DTYPES,
  type MomentDtype,
  REDUCTIONS,
  type Reduction,
  resolveLora,
  type ZeroStage,
} from '../model/trainer';
import { checkChoice, checkInteger, checkKeys, checkNumber, checkSeed } from '../options';
import { trainerKeys } from './config-keys';
import type { Stage } from './presets';
import { CALLBACKS, callbacksOf, type TrainingCallbacks } from './samples';
import type { Schedule } from './schedules';

/** A stage of {@link TrainingOptions.mixture}. */
export interface MixtureStage {
  /** Batches of the stage; the last stage names none and lasts to the end. */
  steps?: number | undefined;
  /** Shares of the categories, relative to each other; the others are left out. Default: the data set's own. */
  shares?: Shares | undefined;
}

/** Options of every trainer. */
export interface TrainingOptions extends TrainingCallbacks {
  /**
   * Run folder: config.json, metrics.jsonl, TensorBoard events, checkpoints. Default: nothing is written.
   */
  outputDir?: string | undefined;
  /**
   * Continue the run in `outputDir` if there is one; the result has the same bits as an uninterrupted run. Default
   * false: the folder must not hold a run.
   */
  resume?: boolean | undefined;
  /** Seed of every random choice. Default 0. */
  seed?: number | bigint | undefined;
  /**
   * How often each category of the data set is drawn, by stages of the training: a first lesson, then everything, for
   * one. Held-out examples follow the last stage. Default: as the data set gives them.
   */
  mixture?: readonly MixtureStage[] | undefined;
  /** Steps: updates by the optimiser. */
  maxSteps?: number | undefined;
  /** Passes over finite data, in place of `maxSteps`. */
  epochs?: number | undefined;
  /**
   * Peak learning rate of the base model, adapters included. Default 1e-4 (`trainMaskedDiffusion`), 1e-5
   * (`trainPlanner`), 5e-6 (`GrpoTrainer`).
   */
  learningRate?: number | undefined;
  /** Peak learning rate of the planner. Default: `learningRate`. */
  plannerLearningRate?: number | undefined;
  /** Shape of the learning rate after warm-up. Default "cosine"; `GrpoTrainer`: "constant". */
  schedule?: Schedule | undefined;
  /** Steps in which the learning rate climbs. Default 0; `trainMaskedDiffusion`: 50. */
  warmupSteps?: number | undefined;
  /**
   * Share of the peak that is left at the end of "linear" and "cosine". Default 0.1 (`trainMaskedDiffusion`), 0.01
   * (`trainPlanner`), 0 (`GrpoTrainer`).
   */
  learningRateFloor?: number | undefined;
  /** AdamW's decay rates of the first and second moment. Default [0.9, 0.99]; `trainMaskedDiffusion`: [0.9, 0.98]. */
  betas?: readonly [number, number] | undefined;
  /** AdamW's epsilon. Default 1e-8. */
  eps?: number | undefined;
  /**
   * How AdamW's moments are stored, see {@link ModelTrainerOptions.momentDtype}: "bfloat16" takes half their memory.
   * Default "float32".
   */
  momentDtype?: MomentDtype | undefined;
  /**
   * How gradients are added, see {@link ModelTrainerOptions.reduction}. With "exact" any number of processes gives the
   * bits of one: micro-batches of `tokenBudget` tokens are then cut from all rows and dealt out whole. Default "sum".
   */
  reduction?: Reduction | undefined;
  /**
   * What of the optimiser's state processes split among them, see {@link ModelTrainerOptions.zeroStage}: 1 splits masters
   * and moments, 2 gradients, too. Checkpoints stay whole, and load on any number of processes. Default 0.
   */
  zeroStage?: ZeroStage | undefined;
  /** Decoupled weight decay. Default 0.1; `trainPlanner`: 0.01. */
  weightDecay?: number | undefined;
  /** Gradients are scaled down to this global norm; 0: never. Default 1. */
  maxGradNorm?: number | undefined;
  /** Batches per optimiser step. Default 1. */
  gradientAccumulation?: number | undefined;
  /**
   * Tokens per forward and backward pass: bounds memory. Results depend on it only through rounding. Default 8192.
   */
  tokenBudget?: number | undefined;
  /** Recompute activations instead of keeping them. Default false. */
  activationCheckpointing?: boolean | undefined;
  /** Evaluate on held-out examples every so many steps; 0: never. Default 0. */
  evalEvery?: number | undefined;
  /** Held-out examples of an evaluation. Default 256. */
  evalExamples?: number | undefined;
  /** Stop after so many evaluations without a new best. Default: never. */
  patience?: number | undefined;
  /** Save a checkpoint every so many steps; 0: at the end alone. Default 100. */
  saveEvery?: number | undefined;
  /** Checkpoints to keep, beside the best one. Default 2. */
  keepLast?: number | undefined;
  /** Write TensorBoard event files. Default true. */
  tensorboard?: boolean | undefined;
}

/** {@link TrainingOptions} checked, with defaults. */
export interface ResolvedTraining
  extends Required<
    Omit<
      TrainingOptions,
      keyof TrainingCallbacks | 'outputDir' | 'seed' | 'maxSteps' | 'epochs' | 'patience' | 'mixture'
    >
  > {
  outputDir: string | null;
  seed: bigint;
  maxSteps: number | null;
  epochs: number | null;
  patience: number | null;
  mixture: readonly MixtureStage[] | null;
}

/** What differs between the trainers. */
export type TrainingDefaults = Required<
  Pick<TrainingOptions, 'learningRate' | 'schedule' | 'warmupSteps' | 'learningRateFloor' | 'betas' | 'weightDecay'>
>;

const COUNT = { min: 1, max: 1e9 };

/** @throws TypeError, RangeError naming stage and category */
function checkMixture(mixture: TrainingOptions['mixture']): readonly MixtureStage[] {
  if (!Array.isArray(mixture) || mixture.length === 0)
    throw optionError(TypeError, 'mixture', `expected a list of stages, got ${JSON.stringify(mixture)}`);
  return mixture.map((stage: MixtureStage, i) => {
    const at = `mixture[${i}]`;
    checkKeys(at, stage, ['steps', 'shares']);
    const { steps, shares } = stage;
    const isLast = i === mixture.length - 1;
    if (!isLast) checkInteger(`${at}.steps`, steps as number, COUNT);
    else if (steps !== undefined)
      throw optionError(RangeError, `${at}.steps`, `expected none, since the last stage has no end, got ${steps}`);
    if (shares === undefined) return { ...(steps !== undefined && { steps }) };
    if (typeof shares !== 'object' || shares === null || Array.isArray(shares))
      throw optionError(TypeError, `${at}.shares`, `expected numbers by category, got ${JSON.stringify(shares)}`);
    for (const [category, share] of Object.entries(shares))
      checkNumber(`${at}.shares.${category}`, share, { min: 0, max: 1e9 });
    if (!Object.values(shares).some((share) => share > 0))
      throw optionError(RangeError, `${at}.shares`, 'expected one above 0, got none');
    return { ...(steps !== undefined && { steps }), shares: { ...shares } };
  });
}

/**
 * Checks the shared options; `more` are keys of a trainer that no configuration has. @throws TypeError, RangeError naming
 * the option.
 */
export function resolveTraining(
  stage: Stage,
  options: TrainingOptions,
  defaults: TrainingDefaults,
  more: readonly string[],
): ResolvedTraining {
  checkKeys('options', options, [...trainerKeys(stage), ...CALLBACKS, ...more]);
  callbacksOf(options);
  const { outputDir, maxSteps, epochs, patience } = options;
  if (outputDir !== undefined && (typeof outputDir !== 'string' || outputDir === ''))
    throw optionError(TypeError, 'outputDir', `expected a path, got ${JSON.stringify(outputDir)}`);
  if (maxSteps !== undefined) checkInteger('maxSteps', maxSteps, COUNT);
  if (epochs !== undefined) checkNumber('epochs', epochs, { minExclusive: 0, max: 1e9 });
  if (maxSteps !== undefined && epochs !== undefined)
    throw optionError(RangeError, 'epochs', 'expected maxSteps or epochs, got both');
  if (patience !== undefined) checkInteger('patience', patience, COUNT);
  const learningRate = options.learningRate ?? defaults.learningRate;
  const resolved: ResolvedTraining = {
    outputDir: outputDir ?? null,
    resume: options.resume ?? false,
    seed: checkSeed('seed', options.seed ?? 0),
    maxSteps: maxSteps ?? null,
    epochs: epochs ?? null,
    learningRate,
    plannerLearningRate: options.plannerLearningRate ?? learningRate,
    schedule: options.schedule ?? defaults.schedule,
    warmupSteps: options.warmupSteps ?? defaults.warmupSteps,
    learningRateFloor: options.learningRateFloor ?? defaults.learningRateFloor,
    betas: options.betas ?? defaults.betas,
    eps: options.eps ?? 1e-8,
    momentDtype: options.momentDtype ?? 'float32',
    reduction: options.reduction ?? 'sum',
    zeroStage: options.zeroStage ?? 0,
    weightDecay: options.weightDecay ?? defaults.weightDecay,
    maxGradNorm: options.maxGradNorm ?? 1,
    gradientAccumulation: options.gradientAccumulation ?? 1,
    tokenBudget: options.tokenBudget ?? 8192,
    activationCheckpointing: options.activationCheckpointing ?? false,
    evalEvery: options.evalEvery ?? 0,
    evalExamples: options.evalExamples ?? 256,
    patience: patience ?? null,
    mixture: options.mixture === undefined ? null : checkMixture(options.mixture),
    saveEvery: options.saveEvery ?? 100,
    keepLast: options.keepLast ?? 2,
    tensorboard: options.tensorboard ?? true,
  };
  for (const name of ['resume', 'activationCheckpointing', 'tensorboard'] as const)
    checkChoice(name, resolved[name], [true, false] as const);
  if (resolved.resume && resolved.outputDir === null)
    throw optionError(RangeError, 'resume', 'expected an outputDir, the run to go on with, got none');
  for (const name of ['learningRate', 'plannerLearningRate'] as const)
    checkNumber(name, resolved[name], { min: 0, max: 1e3 });
  checkChoice('schedule', resolved.schedule, ['constant', 'linear', 'cosine'] as const);
  checkInteger('warmupSteps', resolved.warmupSteps, { min: 0, max: 1e9 });
  checkNumber('learningRateFloor', resolved.learningRateFloor, { min: 0, max: 1 });
  if (!Array.isArray(resolved.betas) || resolved.betas.length !== 2)
    throw optionError(TypeError, 'betas', `expected two numbers, got ${JSON.stringify(resolved.betas)}`);
  for (const beta of resolved.betas) checkNumber('betas', beta, { min: 0, max: 0.999999 });
  checkChoice('momentDtype', resolved.momentDtype, MOMENT_DTYPES);
  checkChoice('reduction', resolved.reduction, REDUCTIONS);
  checkInteger('zeroStage', resolved.zeroStage, { min: 0, max: 2 });
  checkNumber('eps', resolved.eps, { minExclusive: 0, max: 1 });
  checkNumber('weightDecay', resolved.weightDecay, { min: 0, max: 1e3 });
  checkNumber('maxGradNorm', resolved.maxGradNorm, { min: 0 });
  for (const name of ['gradientAccumulation', 'tokenBudget', 'evalExamples', 'keepLast'] as const)
    checkInteger(name, resolved[name], COUNT);
  for (const name of ['evalEvery', 'saveEvery'] as const) checkInteger(name, resolved[name], { min: 0, max: 1e9 });
  if (resolved.patience !== null && resolved.evalEvery === 0)
    throw optionError(RangeError, 'patience', 'expected evalEvery above 0, whose evaluations it counts');
  return resolved;
}

/** Which parts of a model train. */
export interface TrainableOptions {
  /** Do not train the base model. Default false. */
  freezeBase?: boolean | undefined;
  /** Do not train the planner. Default false. */
  freezePlanner?: boolean | undefined;
  /** Train low-rank adapters in place of the base model's weights. Default null. */
  lora?: LoraOptions | null | undefined;
}

/** Checks a lora option. */
export function checkLora(lora: LoraOptions | null | undefined): Required<LoraOptions> | null {
  return lora === null || lora === undefined ? null : resolveLora(lora);
}
