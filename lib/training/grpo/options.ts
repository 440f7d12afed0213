// Options of GRPO: checks and defaults.

import type { Dataset } from '../../data';
import { DUltraError, optionError, within } from '../../errors';
import type { MaskedDiffusionModel } from '../../generation/masked-diffusion-model';
import { checkCache } from '../../generation/prepare';
import { attendedBlock } from '../../model/blocks';
import type { ModelConfig } from '../../model/config';
import { checkRoom } from '../../model/prompt';
import { checkChoice, checkInteger, checkKeys, checkNumber } from '../../options';
import { causalLogProb, isStepReward, type RewardFunction } from '../../rewards';
import { type Cache, type ResolvedCache, resolveCache } from '../../sampling/caches';
import { resolveSampler, type SamplerObject, samplerObject } from '../../sampling/samplers';
import { show } from '../../text';
import { type CheckExample, type DataSource, openData, type TrainingData } from '../data';
import {
  checkLora,
  type ResolvedTraining,
  resolveTraining,
  type TrainableOptions,
  type TrainingDefaults,
  type TrainingOptions,
} from '../options';
import type { ScaleRewards } from './advantages';
import { type GroupFilter, type ResolvedGroupFilter, resolveGroupFilter } from './group-filter';
import { type ObjectiveOptions, PUBLISHED, type ResolvedObjective, resolveObjective } from './objective-options';
import type { PolicySettings } from './replay';

/** Options of {@link GrpoTrainer}. */
export interface GrpoOptions extends TrainingOptions, TrainableOptions, ObjectiveOptions {
  /** Prompts, with answers where a reward needs them. Files are read, and then checked, when `train` begins. */
  dataset: TrainingData;
  /**
   * Reward functions by name, each with weight 1 or `{ fn, weight }`. The objective "distillation" needs none, and learns
   * from its teacher alone: rewards are measured beside it, without any `rewards.causalLogProb` of the teacher.
   */
  rewards?: Readonly<Record<string, RewardFunction | { fn: RewardFunction; weight: number }>> | undefined;
  /** Whether each reward is centred and scaled within its group before the weighted sum. Default "none". */
  normalizeRewards?: 'none' | 'group' | undefined;
  /** Which groups count, and how often others are drawn in their place. Default: all count. */
  filterGroups?: GroupFilter | undefined;
  /** The metric of evaluations that decides which checkpoint is the best. Default "evalReward". */
  bestBy?: 'evalReward' | 'evalAccuracy' | 'evalNfe' | undefined;
  /** Rollouts per prompt: a group. Default 8. */
  numGenerations?: number | undefined;
  /** Prompts per batch. Default 8. */
  promptsPerStep?: number | undefined;
  /** Optimiser steps per batch of rollouts. Default 1. */
  numIterations?: number | undefined;
  /**
   * The ratio is clipped to 1 − low … 1 + high. Default { low: 0.2, high: 1 }; of "diffu-grpo" 0.5, of "trace" and
   * "distillation" 0.2.
   */
  clipEpsilon?: number | { low: number; high: number } | undefined;
  /** Upper bound of the unclipped ratio. Default null: none. */
  delta?: number | null | undefined;
  /** Weight of the KL divergence from the reference model. Default 0. */
  beta?: number | undefined;
  /**
   * A second loaded model, which is not trained. Needed for beta > 0, except with `lora` and `freezePlanner`: there the
   * reference is the model without its adapters.
   */
  referenceModel?: MaskedDiffusionModel | undefined;
  /** Divide advantages by the group's or the batch's standard deviation. Default "none"; of "trace" "group". */
  scaleRewards?: ScaleRewards | undefined;
  /**
   * Advantages below it count as 0; null keeps all. Default 0: only rollouts better than the mean of their group
   * contribute a gradient. Of objectives that score tokens null.
   */
  advantageMinClip?: number | null | undefined;
  /** Token temperature of rollouts. Default 0.5. */
  temperature?: number | undefined;
  /** Log-probabilities of tokens at temperature 1 ("untempered", default) or at the sampling temperature. */
  tokenLogProb?: 'tempered' | 'untempered' | undefined;
  /**
   * Log-likelihood of a step in which no position was drawn and the most probable one was unmasked: "exact" (that of
   * the other positions staying masked) or "reference" (adds log p of the unmasked position). Default "exact"; with
   * compat "reference": "reference".
   */
  forcedStep?: 'exact' | 'reference' | undefined;
  /** Multiplies unmasking probabilities, in rollout and replay. Default 1. */
  probabilityScale?: number | undefined;
  /** Divides the planner's logits, in rollout and replay. Default 1. */
  plannerTemperature?: number | undefined;
  /** Tokens per completion. Default: the data set's. */
  maxTokens?: number | undefined;
  /** Tokens per block. Default: the data set's, else maxTokens; of a model that attends by blocks, its own. */
  blockLength?: number | undefined;
  /** End a rollout when everything before its first end of sequence is decided. Default true. */
  stopAtEos?: boolean | undefined;
  /**
   * Cache of keys and values in rollouts. The replay repeats the same passes on its own cache, filled with the current
   * weights; keys and values of earlier passes are constants to the gradient. fp32 only, and not with compat. Default:
   * none; of a model that attends by blocks `{ type: "blocks", planner: "fresh" }`, which changes no number: the replay
   * then computes each step's row up to its block without a cache, and gradients flow through finished blocks, too.
   */
  cache?: Cache | undefined;
  /**
   * Show a few rollouts every so many steps: to `onSamples`, and in samples.jsonl of the run folder; 0: never.
   * Evaluations always show some. Default 20.
   */
  samplesEvery?: number | undefined;
  /** How evaluations decode. Default: `{ type: "planner" }`; of objectives that score tokens as rollouts do. */
  evalSampler?: SamplerObject | string | undefined;
  /**
   * "reference" computes what the reference implementation does: rows of a batch advance together, half-batches are
   * averaged separately (the gradient is doubled), forced steps add log p of the forced position, and a frozen planner
   * disables `stepPenalty` rewards.
   */
  compat?: 'reference' | undefined;
}

/** A reward function with its name and weight. */
export interface WeightedReward {
  name: string;
  fn: RewardFunction;
  weight: number;
}

/** GRPO's own options, checked, with defaults. */
export interface ResolvedGrpo {
  rewards: WeightedReward[];
  objective: ResolvedObjective;
  normalizeRewards: 'none' | 'group';
  filter: ResolvedGroupFilter | null;
  bestBy: 'evalReward' | 'evalAccuracy' | 'evalNfe';
  numGenerations: number;
  promptsPerStep: number;
  numIterations: number;
  clipEpsilonLow: number;
  clipEpsilonHigh: number;
  delta: number | null;
  beta: number;
  scaleRewards: ScaleRewards;
  advantageMinClip: number | null;
  policy: PolicySettings;
  maxTokens: number;
  blockLength: number;
  stopAtEos: boolean | undefined;
  evalSampler: SamplerObject;
  samplesEvery: number;
}

function resolveRewards(rewards: GrpoOptions['rewards'], zeroSteps: boolean): WeightedReward[] {
  if (typeof rewards !== 'object' || rewards === null)
    throw optionError(TypeError, 'rewards', `expected an object of reward functions, got ${show(rewards)}`);
  const resolved = Object.entries(rewards).map(([name, reward]) => {
    if (typeof reward === 'function') return { name, fn: reward, weight: 1 };
    if (typeof reward !== 'object' || reward === null || typeof reward.fn !== 'function')
      throw optionError(TypeError, `rewards.${name}`, `expected a function or { fn, weight }, got ${show(reward)}`);
    checkKeys(`rewards.${name}`, reward, ['fn', 'weight']);
    checkNumber(`rewards.${name}.weight`, reward.weight, {});
    return { name, fn: reward.fn, weight: reward.weight };
  });
  if (resolved.length === 0)
    throw optionError(RangeError, 'rewards', 'expected at least one reward function, got none');
  return resolved.map((reward) => (zeroSteps && isStepReward(reward.fn) ? { ...reward, weight: 0 } : reward));
}

function resolveClip(
  clip: GrpoOptions['clipEpsilon'],
  published: { low: number; high: number },
): { clipEpsilonLow: number; clipEpsilonHigh: number } {
  if (typeof clip === 'object' && clip !== null) checkKeys('clipEpsilon', clip, ['low', 'high']);
  const { low, high } = typeof clip === 'number' ? { low: clip, high: clip } : (clip ?? published);
  checkNumber('clipEpsilon.low', low, { min: 0, max: 1 });
  checkNumber('clipEpsilon.high', high, { min: 0, max: 1e6 });
  return { clipEpsilonLow: low, clipEpsilonHigh: high };
}

const DEFAULTS: TrainingDefaults = {
  learningRate: 5e-6,
  schedule: 'constant',
  warmupSteps: 0,
  learningRateFloor: 0,
  betas: [0.9, 0.99],
  weightDecay: 0.1,
};

/**
 * The cache of rollouts. A model that attends by blocks caches finished ones, by default so that the planner's states
 * are those of the pass, too: nothing of a step then depends on another one.
 */
function resolvePolicyCache({ cache, compat }: GrpoOptions, config: ModelConfig): ResolvedCache {
  const isDefault = cache === undefined && compat === undefined && attendedBlock(config) !== null;
  const resolved = resolveCache(isDefault ? { type: 'blocks', planner: 'fresh' } : cache);
  checkCache(config, resolved);
  // A planner without blocks of its own has no keys that could be old.
  return resolved.type === 'blocks' && config.planner?.numLayers === 0 ? { ...resolved, planner: 'fresh' } : resolved;
}

/**
 * Checks {@link GrpoOptions} as far as they do not depend on models and on data, and fills in defaults. @throws
 * TypeError, RangeError naming the option.
 */
export function checkGrpo(options: GrpoOptions) {
  const training = resolveTraining('grpo', options, DEFAULTS, []);
  const { numGenerations = 8, promptsPerStep = 8, numIterations = 1, delta = null, beta = 0 } = options;
  const objective = resolveObjective(options);
  const isDultra = objective.objective === 'dultra';
  const published = PUBLISHED[objective.objective];
  const {
    scaleRewards = published.scaleRewards,
    stopAtEos,
    normalizeRewards = 'none',
    bestBy = 'evalReward',
  } = options;
  const { advantageMinClip = published.advantageMinClip } = options;
  const usualSampler = isDultra ? 'planner' : objective.rolloutSampler;
  const evalSampler = within('evalSampler', 'sampler', () => samplerObject(options.evalSampler ?? usualSampler));
  checkChoice('normalizeRewards', normalizeRewards, ['none', 'group'] as const);
  checkChoice('bestBy', bestBy, ['evalReward', 'evalAccuracy', 'evalNfe'] as const);
  const filter = resolveGroupFilter(options.filterGroups);
  checkInteger('numGenerations', numGenerations, { min: 2, max: 1 << 16 });
  checkInteger('promptsPerStep', promptsPerStep, { min: 1, max: 1 << 16 });
  checkInteger('numIterations', numIterations, { min: 1, max: 1 << 16 });
  if (delta !== null) checkNumber('delta', delta, { minExclusive: 0 });
  checkNumber('beta', beta, { min: 0 });
  checkChoice('scaleRewards', scaleRewards, ['none', 'group', 'batch'] as const);
  if (advantageMinClip !== null) checkNumber('advantageMinClip', advantageMinClip, {});
  const { samplesEvery = 20 } = options;
  checkInteger('samplesEvery', samplesEvery, { min: 0, max: 1e9 });
  const policy = resolvePolicy(options);
  if (stopAtEos !== undefined) checkChoice('stopAtEos', stopAtEos, [true, false] as const);
  const trainable = resolveTrainable(options, isDultra);
  if (
    beta > 0 &&
    objective.klTo === 'reference' &&
    !options.referenceModel &&
    !(trainable.lora && trainable.freezePlanner)
  )
    throw optionError(
      RangeError,
      'beta',
      'expected a referenceModel with beta > 0 (or lora with freezePlanner, whose base is the reference)',
    );
  within('evalSampler', 'sampler', () => resolveSampler(evalSampler, true));
  if (options.maxTokens !== undefined) checkInteger('maxTokens', options.maxTokens, { min: 1, max: 1 << 30 });
  if (options.blockLength !== undefined) checkInteger('blockLength', options.blockLength, { min: 1, max: 1 << 30 });
  const { teacher } = options;
  const rewards = resolveRewards(
    // A teacher is what there is to be rewarded by, where nothing else is given.
    options.rewards ?? (teacher && { teacher: causalLogProb({ model: teacher }) }),
    policy.compat === 'reference' && trainable.freezePlanner,
  );
  const batch = { numGenerations, promptsPerStep, numIterations };
  const loss = { ...resolveClip(options.clipEpsilon, published.clip), delta, beta, scaleRewards, advantageMinClip };
  return {
    training,
    trainable,
    own: {
      rewards,
      objective,
      normalizeRewards,
      filter,
      bestBy,
      ...batch,
      ...loss,
      policy,
      stopAtEos,
      evalSampler,
      samplesEvery,
    },
  };
}

function resolvePolicy(options: GrpoOptions): PolicySettings {
  const { temperature = 0.5, tokenLogProb = 'untempered', plannerTemperature = 1, probabilityScale = 1 } = options;
  const { compat = null, forcedStep = compat ?? 'exact' } = options;
  checkNumber('temperature', temperature, { min: 0, max: 1e6 });
  checkChoice('tokenLogProb', tokenLogProb, ['tempered', 'untempered'] as const);
  checkChoice('forcedStep', forcedStep, ['exact', 'reference'] as const);
  checkNumber('probabilityScale', probabilityScale, { minExclusive: 0, max: 1e6 });
  checkNumber('plannerTemperature', plannerTemperature, { minExclusive: 0, max: 1e6 });
  if (options.compat !== undefined) checkChoice('compat', compat as string, ['reference']);
  const cache = resolveCache(options.cache);
  if (cache.type !== 'none' && cache.dtype !== 'float32')
    throw optionError(RangeError, 'cache.dtype', 'expected "float32", which gradients need');
  if (cache.type !== 'none' && compat === 'reference')
    throw optionError(RangeError, 'cache', 'expected none with compat "reference"');
  return { temperature, tokenLogProb, plannerTemperature, probabilityScale, forcedStep, compat, cache };
}

/** @param isDultra else the planner gets no gradient, and would still shrink by weight decay */
function resolveTrainable(options: GrpoOptions, isDultra: boolean): Trainable {
  const { freezeBase = false, freezePlanner = !isDultra } = options;
  if (!isDultra && options.freezePlanner === false)
    throw optionError(
      RangeError,
      'freezePlanner',
      'expected true with an objective that scores tokens, not the planner',
    );
  checkChoice('freezeBase', freezeBase, [true, false] as const);
  checkChoice('freezePlanner', freezePlanner, [true, false] as const);
  const lora = checkLora(options.lora);
  if (freezeBase && lora)
    throw optionError(RangeError, 'freezeBase', 'expected false with lora, whose adapters are the base that trains');
  if (freezeBase && freezePlanner)
    throw optionError(RangeError, 'freezePlanner', 'expected false with freezeBase, or nothing would train');
  return { freezeBase, freezePlanner, lora };
}

function checkReference(model: MaskedDiffusionModel, { referenceModel, objective }: GrpoOptions): void {
  if (referenceModel === model)
    throw optionError(RangeError, 'referenceModel', 'expected a model loaded by itself, got the one that trains');
  if ((objective ?? 'dultra') === 'dultra' && referenceModel && !referenceModel.hasPlanner)
    throw new DUltraError('NO_PLANNER', 'referenceModel: the reference has no planner head');
}

function resolveLengths(
  options: GrpoOptions,
  data: DataSource,
  config: ModelConfig,
): { maxTokens: number; blockLength: number } {
  const maxTokens = options.maxTokens ?? data.maxTokens;
  if (maxTokens === null)
    throw optionError(TypeError, 'maxTokens', 'expected a number of tokens, since the dataset names none');
  checkInteger('maxTokens', maxTokens, { min: 1, max: 1 << 30 });
  const attended = attendedBlock(config);
  if (attended !== null) {
    // Its rows end with a block, whatever maxTokens is.
    if (options.blockLength !== undefined) checkInteger('blockLength', options.blockLength, { min: 1, max: 2 ** 30 });
    return { maxTokens, blockLength: options.blockLength ?? attended };
  }
  const blockLength = options.blockLength ?? data.blockLength ?? maxTokens;
  checkInteger('blockLength', blockLength, { min: 1, max: maxTokens });
  if (maxTokens % blockLength !== 0)
    throw optionError(RangeError, 'maxTokens', `expected a multiple of blockLength (${blockLength}), got ${maxTokens}`);
  return { maxTokens, blockLength };
}

/** Which parts of the model train. */
type Trainable = Required<Omit<TrainableOptions, 'lora'>> & { lora: ReturnType<typeof checkLora> };

/** Checks {@link GrpoOptions} and fills in defaults. @throws TypeError, RangeError; DUltraError NO_PLANNER. */
export function resolveGrpo(
  model: MaskedDiffusionModel,
  options: GrpoOptions,
  dataset: Dataset,
): { training: ResolvedTraining; trainable: Trainable; data: DataSource; own: ResolvedGrpo } {
  const { training, trainable, own } = checkGrpo(options);
  const usesPlanner =
    own.objective.objective === 'dultra' ||
    [own.objective.rolloutSampler, own.evalSampler].some(({ type }) => type === 'planner');
  if (!model.hasPlanner && usesPlanner)
    throw new DUltraError('NO_PLANNER', `${model.source} has no planner head, whose policy GRPO trains`);
  checkReference(model, options);
  const fits: CheckExample = ({ prompt }, own) => {
    const maxTokens = options.maxTokens ?? own;
    const { length } = model.encodePrompt(prompt);
    if (maxTokens !== null) checkRoom(length, maxTokens, model.config.maxSequenceLength);
  };
  const data = openData(dataset, training.seed, training.mixture, { train: fits, validation: fits });
  const lengths = resolveLengths(options, data, model.config);
  const policy = { ...own.policy, cache: resolvePolicyCache(options, model.config) };
  return { training, trainable, data, own: { ...own, policy, ...lengths } };
}
