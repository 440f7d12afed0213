// The keys of a training configuration: one table, from which come the checks of keys, the JSON Schemas and the files
// that `dultra train init` writes.
import { NEW_FAMILIES } from '../model/families';
import { LORA_TARGETS } from '../model/trainer';
import { CACHE_TYPES } from '../sampling/caches';
import { SAMPLER_TYPES } from '../sampling/samplers';
import { OBJECTIVES } from './grpo/objectives';
import { REWARD_TYPES, STAGES, type Stage, type TrainConfig } from './presets';
import type { TrainingCallbacks } from './samples';

/** A piece of JSON Schema. */
export type JsonSchema = Readonly<Record<string, unknown>>;

/** A key of {@link TrainConfig}. */
export interface ConfigKey {
  /** The stages that know it. */
  stages: readonly Stage[];
  /** In a line. */
  description: string;
  schema: JsonSchema;
  /** In place of `schema` and `description` for a stage where the key means something else. */
  of?: Partial<Readonly<Record<Stage, { schema: JsonSchema; description: string }>>>;
  /** What holds without it, for every stage or by stage; left out where that is no value. */
  default?: unknown;
  defaults?: Partial<Readonly<Record<Stage, unknown>>>;
  /** A value, where the default is none that could be written. */
  example?: unknown;
  /** It does not decide what is computed: a resumed run may change it. */
  isFree?: true;
}

const count: JsonSchema = { type: 'integer', minimum: 1 };
const countOrZero: JsonSchema = { type: 'integer', minimum: 0 };
const positive: JsonSchema = { type: 'number', exclusiveMinimum: 0 };
const notNegative: JsonSchema = { type: 'number', minimum: 0 };
const share: JsonSchema = { type: 'number', minimum: 0, maximum: 1 };
const flag: JsonSchema = { type: 'boolean' };
const text: JsonSchema = { type: 'string', minLength: 1 };
const choice = (...values: readonly (string | number)[]): JsonSchema => ({ enum: values });
const orNull = (schema: JsonSchema): JsonSchema => ({ anyOf: [schema, { type: 'null' }] });
const list = (items: JsonSchema): JsonSchema => ({ type: 'array', items, minItems: 1 });
const object = (properties: Readonly<Record<string, JsonSchema>>, ...required: string[]): JsonSchema => ({
  type: 'object',
  properties,
  additionalProperties: false,
  ...(required.length > 0 && { required }),
});
/** A sampler or cache: its short form, or a type and options of its own, which `checkConfig` checks. */
const typed = (types: readonly string[]): JsonSchema => ({
  anyOf: [text, { type: 'object', properties: { type: { enum: types } }, required: ['type'] }],
});

const newModel = object({
  create: object({
    family: { enum: NEW_FAMILIES },
    blockLength: count,
    dModel: { type: 'integer', minimum: 2 },
    nHeads: count,
    nKvHeads: count,
    nLayers: count,
    mlpHiddenSize: count,
    maxSequenceLength: count,
    ropeTheta: positive,
    plannerLayers: countOrZero,
    attentionStart: choice('random', 'copying'),
    seed: countOrZero,
    tokenizer: {
      anyOf: [text, object({ vocabSize: { type: 'integer', minimum: 512 }, joinedWords: countOrZero })],
    },
  }),
});

const ALL = STAGES;

/** What a configuration file can hold. */
export type ConfigKeyName = Exclude<keyof TrainConfig, 'resume' | keyof TrainingCallbacks>;

/** Every key, in the order of a file. */
export const CONFIG_KEYS: Readonly<Record<ConfigKeyName, ConfigKey>> = {
  model: {
    stages: ALL,
    description: 'folder or hub id of the model to train, or { create: … } for a new one; default: the embedded model',
    example: 'runs/sft/final',
    schema: { anyOf: [text, newModel] },
  },
  planner: {
    stages: ALL,
    description: 'planner head for a model that has none: new, new:small, or a folder',
    example: 'new',
    schema: text,
  },
  dataset: {
    stages: ALL,
    description: 'a task (st1, world …), a data set (gsm8k, apps:train.jsonl …), a module, a file or folder, or a list',
    example: 'own.jsonl',
    schema: { anyOf: [text, { type: 'array', items: { type: 'object' }, minItems: 1 }] },
  },
  datasetOptions: {
    stages: ALL,
    description: 'options of the data set, such as { prompts: thinking }',
    example: { prompts: 'thinking' },
    schema: { type: 'object' },
  },
  validation: {
    stages: ALL,
    description: 'of own examples: a file or list of held-out ones, or a share such as 0.1 to hold out',
    example: 0.1,
    schema: {
      anyOf: [text, { type: 'number', exclusiveMinimum: 0, exclusiveMaximum: 1 }, { type: 'array', minItems: 1 }],
    },
  },
  outputDir: {
    stages: ALL,
    description: 'run folder; default: runs/STAGE, then runs/STAGE-2 and so on',
    example: 'runs/mine',
    schema: text,
    isFree: true,
  },
  seed: {
    stages: ALL,
    description: 'seed of every random choice',
    schema: countOrZero,
    default: 0,
  },
  maxSteps: { stages: ALL, description: 'updates by the optimiser', example: 1000, schema: count, isFree: true },
  epochs: {
    stages: ALL,
    description: 'passes over a file of examples, in place of maxSteps',
    example: 3,
    schema: positive,
    isFree: true,
  },
  batchSize: {
    stages: ['sft', 'dparallel', 'd3llm', 'planner'],
    description: 'examples per batch',
    schema: count,
    defaults: { sft: 64, dparallel: 64, d3llm: 4, planner: 64 },
  },
  promptsPerStep: { stages: ['grpo'], description: 'prompts per batch', schema: count, default: 8 },
  numGenerations: {
    stages: ['grpo'],
    description: 'rollouts per prompt: a group',
    schema: { type: 'integer', minimum: 2 },
    default: 8,
  },
  rewards: {
    stages: ['grpo'],
    description: 'reward functions by name: { NAME: { type: fastAnswer, weight: 1, options: { weight: 0.5 } } }',
    example: { right: { type: 'exactAnswer' } },
    schema: {
      type: 'object',
      minProperties: 1,
      additionalProperties: object(
        { type: { enum: REWARD_TYPES }, weight: { type: 'number' }, options: { type: 'object' } },
        'type',
      ),
    },
  },
  maxTokens: {
    stages: ALL,
    description: "tokens of an answer; default: the data set's, else (but for grpo) the answer's own",
    example: 32,
    schema: count,
  },
  rowTokens: {
    stages: ['dparallel', 'd3llm'],
    description: 'tokens of a row, prompt included, in place of maxTokens: answers are padded or cut',
    example: 384,
    schema: { type: 'integer', minimum: 2 },
  },
  blockLength: {
    stages: ['dparallel', 'grpo'],
    description: "tokens per block; default: the data set's, else maxTokens",
    example: 32,
    schema: count,
    of: { dparallel: { description: 'tokens per segment', schema: count } },
    defaults: { dparallel: 32 },
  },
  trajectories: {
    stages: ['d3llm'],
    description: "file, folder or hub id of the teacher's trajectories; default: those of the data set",
    example: 'trajectories.jsonl',
    schema: text,
  },
  learningRate: {
    stages: ALL,
    description: 'peak learning rate of the base model, adapters included',
    schema: notNegative,
    defaults: { sft: 1e-4, dparallel: 2e-5, d3llm: 2e-5, planner: 1e-5, grpo: 5e-6 },
  },
  plannerLearningRate: {
    stages: ALL,
    description: 'peak learning rate of the planner; default: learningRate',
    example: 3e-4,
    schema: notNegative,
  },
  schedule: {
    stages: ALL,
    description: 'shape of the learning rate after warm-up',
    schema: choice('constant', 'linear', 'cosine'),
    defaults: { sft: 'cosine', dparallel: 'constant', d3llm: 'constant', planner: 'cosine', grpo: 'constant' },
  },
  warmupSteps: {
    stages: ALL,
    description: 'steps in which the learning rate climbs',
    schema: countOrZero,
    defaults: { sft: 50, dparallel: 0, d3llm: 0, planner: 0, grpo: 0 },
  },
  learningRateFloor: {
    stages: ALL,
    description: 'share of the peak that is left at the end of linear and cosine',
    schema: share,
    defaults: { sft: 0.1, dparallel: 0, d3llm: 0, planner: 0.01, grpo: 0 },
  },
  evalEvery: {
    stages: ALL,
    description: 'evaluate on held-out examples every so many steps; 0: never',
    schema: countOrZero,
    default: 0,
  },
  evalExamples: { stages: ALL, description: 'held-out examples of an evaluation', schema: count, default: 256 },
  evalSampler: {
    stages: ['sft', 'dparallel', 'd3llm', 'grpo'],
    description:
      'how evaluations write answers, such as { type: confidence, threshold: 0.9 }; default but of grpo: not',
    example: 'confidence:0.9',
    schema: typed(SAMPLER_TYPES),
    defaults: { grpo: { type: 'planner' } },
  },
  bestBy: {
    stages: ['dparallel', 'd3llm', 'grpo'],
    description: 'metric of evaluations that decides which checkpoint is the best',
    schema: choice('evalLoss', 'evalAccuracy', 'evalNfe'),
    of: {
      grpo: {
        description: 'metric of evaluations that decides which checkpoint is the best',
        schema: choice('evalReward', 'evalAccuracy', 'evalNfe'),
      },
    },
    defaults: { dparallel: 'evalLoss', d3llm: 'evalLoss', grpo: 'evalReward' },
  },
  samplesEvery: {
    stages: ['grpo'],
    description: 'write a few rollouts to samples.jsonl every so many steps; 0: never',
    schema: countOrZero,
    default: 20,
    isFree: true,
  },
  patience: {
    stages: ALL,
    description: 'stop after so many evaluations without a new best',
    example: 5,
    schema: count,
    isFree: true,
  },
  saveEvery: {
    stages: ALL,
    description: 'save a checkpoint every so many steps; 0: at the end alone',
    schema: countOrZero,
    default: 100,
    isFree: true,
  },
  keepLast: {
    stages: ALL,
    description: 'checkpoints to keep, beside the best one',
    schema: count,
    default: 2,
    isFree: true,
  },
  tensorboard: {
    stages: ALL,
    description: 'write TensorBoard event files',
    schema: flag,
    default: true,
    isFree: true,
  },
  objective: {
    stages: ['sft', 'grpo'],
    description: 'sft: answers are masked; pretraining: whole rows',
    schema: choice('sft', 'pretraining'),
    of: {
      grpo: {
        description: "what the policy gradient scores: the planner's decisions (dultra), or tokens (the others)",
        schema: choice(...OBJECTIVES),
      },
    },
    defaults: { sft: 'sft', grpo: 'dultra' },
  },
  padding: {
    stages: ['sft'],
    description:
      'ends of sequence after answers, drawn: { share: 0.3, min: 24, max: 64, tail: 4 }; default: to maxTokens',
    example: { share: 0.3, min: 24, max: 64, tail: 4 },
    schema: object({ share, min: count, max: count, tail: count }, 'share', 'min', 'max'),
  },
  lossPer: {
    stages: ['sft', 'grpo'],
    description: 'all rows weigh alike, or all tokens; default of grpo: as its objective was published',
    example: 'token',
    schema: choice('row', 'token'),
    defaults: { sft: 'row' },
  },
  maskEpsilon: {
    stages: ['sft', 'dparallel', 'd3llm'],
    description: 'ε of the mask probability (1 − ε) t + ε',
    schema: { type: 'number', exclusiveMinimum: 0, maximum: 1 },
    default: 1e-3,
  },
  segments: {
    stages: ['dparallel', 'd3llm'],
    description: 'what segments divide: row (all behind the prompt), text (the answer), or response (one segment)',
    schema: choice('row', 'text', 'response'),
    of: {
      d3llm: {
        description: 'what segments divide: text (the answer) or row (all behind the prompt)',
        schema: choice('row', 'text'),
      },
    },
    defaults: { dparallel: 'row', d3llm: 'text' },
  },
  maskProbability: {
    stages: ['dparallel'],
    description: 'probability with which a token of the segment is masked in the first view',
    schema: share,
    default: 0.5,
  },
  windows: {
    stages: ['d3llm'],
    description: 'tokens per segment, epoch by epoch, linear in between',
    schema: list(count),
    default: [16, 24, 32],
  },
  maskRatio: {
    stages: ['d3llm'],
    description: 'shares of a segment that are masked; the low end climbs from min to max',
    schema: object({ min: share, max: share }, 'min', 'max'),
    default: { min: 0, max: 0.8 },
  },
  entropyWeight: {
    stages: ['dparallel', 'd3llm'],
    description: 'weight of the entropies of tokens that are predicted right',
    schema: notNegative,
    default: 2,
  },
  entropyTemperature: {
    stages: ['dparallel', 'd3llm'],
    description: 'temperature of these entropies',
    schema: { type: 'number', minimum: 1e-4 },
    default: 0.5,
  },
  entropyOnComplement: {
    stages: ['dparallel', 'd3llm'],
    description: 'whether the complementary view has the entropy term, too',
    schema: flag,
    defaults: { dparallel: true, d3llm: false },
  },
  timesteps: {
    stages: ['sft'],
    description: "how t is drawn: evenly over a step's rows, or each by itself",
    schema: choice('stratified', 'uniform'),
    default: 'stratified',
  },
  factor: {
    stages: ['planner'],
    description: 'factor of the rule that the planner imitates',
    schema: notNegative,
    default: 1,
  },
  minSpan: { stages: ['planner'], description: 'shortest masked span, in tokens', schema: count, default: 32 },
  rolloutSampler: {
    stages: ['grpo'],
    description: 'how rollouts decode, but with the objective dultra, whose planner does',
    schema: typed(SAMPLER_TYPES),
    default: { type: 'fixed' },
  },
  shrink: {
    stages: ['grpo'],
    description: 'objectives trace and distillation: successive decoding steps that a pass scores',
    schema: count,
    default: 1,
  },
  promptMask: {
    stages: ['grpo'],
    description: 'objectives diffu-grpo and wd1: probability with which a token of the prompt is masked',
    schema: share,
    default: 0.15,
  },
  teacher: {
    stages: ['grpo'],
    description: 'objective distillation: the autoregressive teacher, { model: FOLDER, dtype: bfloat16 }',
    example: { model: 'Qwen/Qwen2.5-Math-7B-Instruct', dtype: 'bfloat16' },
    schema: object({ model: text, dtype: choice('auto', 'float32', 'bfloat16', 'float16') }, 'model'),
  },
  temperature: { stages: ['grpo'], description: 'token temperature of rollouts', schema: notNegative, default: 0.5 },
  probabilityScale: {
    stages: ['grpo'],
    description: 'multiplies unmasking probabilities',
    schema: positive,
    default: 1,
  },
  plannerTemperature: { stages: ['grpo'], description: "divides the planner's logits", schema: positive, default: 1 },
  stopAtEos: {
    stages: ['grpo'],
    description: 'end a rollout when everything before its first end of sequence is decided',
    schema: flag,
    default: true,
  },
  cache: {
    stages: ['grpo'],
    description: 'cache of keys and values in rollouts, such as { type: refresh }',
    schema: typed(CACHE_TYPES),
    default: { type: 'none' },
  },
  numIterations: {
    stages: ['grpo'],
    description: 'optimiser steps per batch of rollouts',
    schema: count,
    default: 1,
  },
  clipEpsilon: {
    stages: ['grpo'],
    description: 'the ratio is clipped to 1 − low … 1 + high; default: { low: 0.2, high: 1 }, of others as published',
    schema: { anyOf: [share, object({ low: share, high: notNegative }, 'low', 'high')] },
    example: { low: 0.2, high: 1 },
  },
  delta: {
    stages: ['grpo'],
    description: 'upper bound of the unclipped ratio; null: none',
    schema: orNull(positive),
    default: null,
  },
  beta: {
    stages: ['grpo'],
    description: 'weight of the KL divergence from the reference model',
    schema: notNegative,
    default: 0,
  },
  klTo: {
    stages: ['grpo'],
    description: 'which policy the KL divergence is from; default: as the objective was published, of dultra reference',
    example: 'reference',
    schema: choice('reference', 'old'),
  },
  referenceModel: {
    stages: ['grpo'],
    description: 'folder or hub id of the frozen reference model, for beta above 0',
    example: 'runs/sft/final',
    schema: text,
  },
  roles: {
    stages: ['grpo'],
    description:
      'processes that train, and those that hold teacher, models of rewards and reference; default: all do both',
    example: 'train:6,teacher:2',
    schema: { type: 'string', pattern: '^(train|teacher):[0-9]+(,(train|teacher):[0-9]+)?$' },
    isFree: true,
  },
  scaleRewards: {
    stages: ['grpo'],
    description: 'divide advantages by the standard deviation of the group or the batch; default: none, of trace group',
    schema: choice('none', 'group', 'batch'),
    example: 'none',
  },
  normalizeRewards: {
    stages: ['grpo'],
    description: 'whether each reward is centred and scaled within its group before they are summed',
    schema: choice('none', 'group'),
    default: 'none',
  },
  filterGroups: {
    stages: ['grpo'],
    description:
      'which groups count, and how often others are drawn in their place: { zeroVariance: drop, resamples: 2 }',
    example: { zeroVariance: 'drop', resamples: 2 },
    schema: object({
      zeroVariance: choice('keep', 'drop'),
      tokensPerForwardRange: notNegative,
      accuracy: object({ min: share, max: share }, 'min', 'max'),
      resamples: countOrZero,
    }),
  },
  advantageMinClip: {
    stages: ['grpo'],
    description: 'advantages below it count as 0; null keeps all; default: 0, null but with the objective dultra',
    schema: orNull({ type: 'number' }),
    example: 0,
  },
  tokenLogProb: {
    stages: ['grpo'],
    description: 'log-probabilities of tokens at temperature 1 or at that of sampling',
    schema: choice('tempered', 'untempered'),
    default: 'untempered',
  },
  forcedStep: {
    stages: ['grpo'],
    description: 'log-likelihood of a step in which no position was drawn; default: exact, with compat reference',
    example: 'exact',
    schema: choice('exact', 'reference'),
  },
  freezeBase: { stages: ['grpo'], description: 'do not train the base model', schema: flag, default: false },
  freezePlanner: { stages: ['grpo'], description: 'do not train the planner', schema: flag, default: false },
  lora: {
    stages: ['sft', 'dparallel', 'd3llm', 'grpo'],
    description: 'train low-rank adapters in place of the base: { rank: 8, alpha: 16, targets: [q_proj, v_proj] }',
    example: { rank: 8, alpha: 16, targets: ['q_proj', 'v_proj'] },
    schema: orNull(object({ rank: count, alpha: positive, targets: list({ enum: LORA_TARGETS }) }, 'rank')),
    default: null,
  },
  compat: {
    stages: ['dparallel', 'd3llm', 'planner', 'grpo'],
    description: 'reference: what the reference implementation computes, quirks included',
    example: 'reference',
    schema: choice('reference'),
  },
  mixture: {
    stages: ALL,
    description: 'shares of the categories by stages: [{ steps: 1000, shares: { a: 1 } }, { shares: { a: 1, b: 2 } }]',
    example: [{ steps: 1000, shares: { sum: 1 } }, { shares: { sum: 1, dates: 2 } }],
    schema: list(object({ steps: count, shares: { type: 'object', additionalProperties: notNegative } })),
  },
  betas: {
    stages: ALL,
    description: "AdamW's decay rates of the first and second moment",
    schema: { type: 'array', items: { type: 'number', minimum: 0, exclusiveMaximum: 1 }, minItems: 2, maxItems: 2 },
    defaults: {
      sft: [0.9, 0.98],
      dparallel: [0.9, 0.999],
      d3llm: [0.9, 0.999],
      planner: [0.9, 0.99],
      grpo: [0.9, 0.99],
    },
  },
  eps: { stages: ALL, description: "AdamW's epsilon", schema: { ...positive, maximum: 1 }, default: 1e-8 },
  weightDecay: {
    stages: ALL,
    description: 'decoupled weight decay',
    schema: notNegative,
    defaults: { sft: 0.1, dparallel: 0.01, d3llm: 0.01, planner: 0.01, grpo: 0.1 },
  },
  maxGradNorm: {
    stages: ALL,
    description: 'gradients are scaled down to this global norm; 0: never',
    schema: notNegative,
    default: 1,
  },
  gradientAccumulation: { stages: ALL, description: 'batches per optimiser step', schema: count, default: 1 },
  momentDtype: {
    stages: ALL,
    description: "how AdamW's moments are stored",
    schema: choice('float32', 'bfloat16'),
    default: 'float32',
  },
  reduction: {
    stages: ALL,
    description: 'how gradients are added: sum, or exact, where any number of processes gives the bits of one',
    schema: choice('sum', 'exact'),
    default: 'sum',
  },
  zeroStage: {
    stages: ALL,
    description: "what of the optimiser's state processes split: 0 nothing, 1 masters and moments, 2 gradients, too",
    schema: choice(0, 1, 2),
    default: 0,
    isFree: true,
  },
  tokenBudget: {
    stages: ALL,
    description: 'tokens per forward and backward pass: bounds memory',
    schema: count,
    default: 8192,
  },
  activationCheckpointing: {
    stages: ALL,
    description: 'recompute activations instead of keeping them: less memory, more time',
    schema: flag,
    default: false,
    isFree: true,
  },
};

const ENTRIES = Object.entries(CONFIG_KEYS);

/** The keys of a stage's configuration. */
export const configKeys = (stage: Stage): string[] =>
  ENTRIES.flatMap(([key, { stages }]) => (stages.includes(stage) ? [key] : []));

/** Keys that become a model or a data set before a trainer gets its options. */
const OF_LOADING = ['model', 'planner', 'datasetOptions', 'validation', 'roles'];

/** The options that a stage's trainer takes, beside a signal. */
export const trainerKeys = (stage: Stage): string[] => [
  ...configKeys(stage).filter((key) => !OF_LOADING.includes(key)),
  'resume',
];

/** Options that a resumed run may change: none of them decides what is computed. */
export const FREE_KEYS: readonly string[] = ENTRIES.flatMap(([key, { isFree }]) => (isFree ? [key] : []));

/** What holds where a stage's configuration has not the key; undefined: that is no value. */
export function defaultOf(key: string, stage: Stage): unknown {
  const { default: common, defaults } = CONFIG_KEYS[key as keyof typeof CONFIG_KEYS];
  return defaults?.[stage] ?? common;
}

/** What a key is for a stage. */
export function keyOf(key: string, stage: Stage): ConfigKey {
  const entry: ConfigKey = CONFIG_KEYS[key as keyof typeof CONFIG_KEYS];
  return { ...entry, ...entry.of?.[stage] };
}
