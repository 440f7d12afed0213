// Ready-made training configurations, as plain JSON. `dultra train STAGE --preset NAME` runs them; a --config FILE
// holds the same keys.
import type { DataRecord, ExampleData, OpenOptions, TrainingExample } from '../data';
import type { CreateModelOptions } from '../model/create-model';
import type { LoadModelOptions } from '../model/load-weights';
import type { TrainTokenizerOptions } from '../model/train-tokenizer';
import type { CertaintyOptions, PseudoTrajectoryOptions } from './distillation/options';
import type { Objective } from './grpo/objectives';
import type { GrpoOptions } from './grpo/options';
import type { PlannerOptions } from './planner-init';
import type { MaskedDiffusionOptions } from './sft';

/** The stages of training, in their order. */
export const STAGES = ['sft', 'dparallel', 'd3llm', 'planner', 'grpo'] as const;

/** One of {@link STAGES}. */
export type Stage = (typeof STAGES)[number];

/** Rewards that a configuration can name: functions of `rewards`. */
export const REWARD_TYPES = [
  'exactAnswer',
  'fastAnswer',
  'stepPenalty',
  'format',
  'mathCorrect',
  'codeTests',
  'boxedFormat',
  'thinkTags',
  'codeFence',
  'teacherLogProb',
  'causalLogProb',
] as const;

/** A reward as JSON: the name of one of `rewards`, its weight, and its own options. */
export interface RewardConfig {
  type: (typeof REWARD_TYPES)[number];
  /** Default 1. */
  weight?: number | undefined;
  /**
   * Of "fastAnswer" (`weight`: of speed), "stepPenalty" (`form`), "format" (`pattern`, `flags`, `reward`),
   * "mathCorrect" (`compat`), "codeTests" (`compat`), "teacherLogProb" (`model`, `passes`), "causalLogProb" (`model`,
   * `dtype`, `tokenBudget`).
   */
  options?: Readonly<Record<string, unknown>> | undefined;
}

/** An autoregressive teacher: folder or hub id, and how it is loaded. */
export interface TeacherConfig {
  model: string;
  /** Default: as it is stored. */
  dtype?: LoadModelOptions['dtype'];
}

/** A new model: its shape, and where its tokens are from. */
export interface NewModelConfig extends Omit<CreateModelOptions, 'vocabulary' | 'tokenizer'> {
  /**
   * Folder of a tokenizer, or options with which one is learnt from the data set. Default: the words of the task, each a
   * token; of chat messages a learnt one, `{}`, which has a chat template.
   */
  tokenizer?: string | TrainTokenizerOptions | undefined;
}

/** Keys of every stage's configuration, beside the options of its trainer. */
interface SharedConfig {
  /** Folder or hub id of the model to train, or the shape of a new one. */
  model?: string | { create: NewModelConfig };
  /**
   * Planner head for a model that has none: "new" (or "new:paper") makes one as the paper's, a transformer block,
   * "new:small" one of the norms around it alone; or the folder of one, as `model.savePlanner` writes it.
   */
  planner?: string | undefined;
  /**
   * Name of a task or data set ("st1", "gsm8k", "apps:train.jsonl"), a module that exports one ("./task.mjs"), or own
   * examples: a file, a folder with a file per split, or a list of records, in the shapes of `datasets.DataRecord`.
   */
  dataset?: string | readonly (TrainingExample | DataRecord)[];
  /** Of a data set such as "gsm8k": prompts, difficulties and the like; of own examples `splitSeed`. */
  datasetOptions?: Omit<OpenOptions, 'source' | 'splits' | 'sandbox' | 'validation' | 'verify'>;
  /** Held-out examples, where `dataset` is own examples: a file, a list, or a share such as 0.1 to take from them. */
  validation?: ExampleData['validation'];
}

/** Keys whose values differ between stages. */
type OfStages = 'objective' | 'bestBy' | 'teacher';

/** Configuration of a stage: what a preset, a --config file and the --set flags are made of. */
export interface TrainConfig
  extends SharedConfig,
    Partial<Omit<MaskedDiffusionOptions, 'dataset' | OfStages>>,
    Partial<Omit<PlannerOptions, 'dataset'>>,
    Partial<Omit<CertaintyOptions, 'dataset' | OfStages>>,
    Partial<Omit<PseudoTrajectoryOptions, 'dataset' | OfStages>>,
    Partial<Omit<GrpoOptions, 'dataset' | 'rewards' | 'referenceModel' | OfStages>> {
  /** sft: what is masked; grpo: what the policy gradient scores. */
  objective?: MaskedDiffusionOptions['objective'] | Objective;
  /** The metric of evaluations that decides which checkpoint is the best. */
  bestBy?: CertaintyOptions['bestBy'] | GrpoOptions['bestBy'];
  /** grpo, objective "distillation": the autoregressive teacher. */
  teacher?: TeacherConfig;
  rewards?: Readonly<Record<string, RewardConfig>>;
  /** Folder or hub id of the frozen reference model. */
  referenceModel?: string;
  /**
   * grpo: processes by role, such as "train:6,teacher:2": the first ones train, the others hold teacher, models of rewards
   * and reference model, and score for them. Default: every process does everything.
   */
  roles?: string | undefined;
}

/** What the reference's GRPO runs have in common (grpo_exp.sh, train.yaml, diffu_grpo_train.py). */
const REFERENCE_RUN = {
  promptsPerStep: 1,
  numGenerations: 12,
  numIterations: 1,
  maxTokens: 256,
  stopAtEos: false,
  clipEpsilon: { low: 0.2, high: 1 },
  beta: 0,
  scaleRewards: 'none',
  learningRate: 5e-6,
  schedule: 'constant',
  betas: [0.9, 0.99],
  weightDecay: 0.1,
  maxGradNorm: 1,
  maxSteps: 4800,
  saveEvery: 400,
  keepLast: 5,
  seed: 42,
} as const satisfies TrainConfig;

const STEPS = { type: 'stepPenalty', weight: 0.1 } as const;
/** On-policy distillation: mean log-probability per token under an autoregressive model. */
const teacher = (model: string) =>
  ({ type: 'causalLogProb', weight: 1, options: { model, dtype: 'bfloat16' } }) as const;

/** grpo_exp.sh as it stands, on mathematics. */
const MATH_RUN: TrainConfig = {
  ...REFERENCE_RUN,
  model: 'sengi/dUltra-coding',
  datasetOptions: { prompts: 'thinking' },
  blockLength: 32,
  temperature: 0.1,
  advantageMinClip: 0.1,
  rewards: {
    correct: { type: 'mathCorrect', weight: 1, options: { compat: 'reference' } },
    format: { type: 'boxedFormat', weight: 1 },
    think: { type: 'thinkTags', weight: 0.5 },
    steps: STEPS,
    teacher: teacher('Qwen/Qwen2.5-Math-7B-Instruct'),
  },
};

/** Distillation of "tiny": the model's own answers, which `dultra distill` has written. */
const DISTILLED_TINY = {
  model: 'runs/tiny-sft/final',
  dataset: 'runs/tiny-answers.jsonl',
  validation: 0.05,
  maxSteps: 300,
  batchSize: 64,
  maxTokens: 32,
  learningRate: 3e-4,
  evalEvery: 50,
  evalSampler: { type: 'entropy', threshold: 0.45 },
  saveEvery: 100,
} as const;

/** What the published runs of dParallel and of d3LLM on LLaDA have in common. */
const DISTILLED_LLADA = {
  model: 'GSAI-ML/LLaDA-8B-Instruct',
  dataset: 'Zigeng/dParallel_LLaDA_Distill_Data',
  rowTokens: 384,
  epochs: 6,
  learningRate: 2e-5,
  schedule: 'constant',
  betas: [0.9, 0.999],
  weightDecay: 0.01,
  maxGradNorm: 1,
  activationCheckpointing: true,
  saveEvery: 500,
  seed: 42,
} as const satisfies TrainConfig;

/** The projections of LLaDA that the published adapters are on: of those that their lists name, it has these. */
const PUBLISHED_TARGETS = ['q_proj', 'k_proj', 'v_proj', 'up_proj'] as const;

/** What the published runs of both on Dream have in common. */
const DISTILLED_DREAM = {
  ...DISTILLED_LLADA,
  model: 'Dream-org/Dream-v0-Instruct-7B',
  dataset: 'Zigeng/dParallel_Dream_Distill_Data',
  rowTokens: undefined,
  maxTokens: 256,
  epochs: 3,
  schedule: 'cosine',
  // A twentieth of three epochs of some 100,000 rows.
  warmupSteps: 240,
  entropyWeight: 1,
} as const satisfies TrainConfig;

const ALL_TARGETS = ['q_proj', 'k_proj', 'v_proj', 'attn_out', 'ff_proj', 'up_proj', 'ff_out'] as const;

/** What d1's runs have in common, which wd1's and SPG's follow. */
const D1_RUN = {
  model: 'GSAI-ML/LLaDA-8B-Instruct',
  numGenerations: 6,
  maxTokens: 256,
  blockLength: 32,
  rolloutSampler: { type: 'fixed', steps: 128 },
  learningRate: 3e-6,
  schedule: 'constant',
  betas: [0.9, 0.99],
  weightDecay: 0.1,
  maxGradNorm: 0.2,
  lora: { rank: 128, alpha: 64, targets: ALL_TARGETS },
  activationCheckpointing: true,
  seed: 42,
} as const satisfies TrainConfig;

/** What the model of the world learns after its first lesson: more of what is harder, and arithmetic last. */
const WORLD_SHARES = {
  ...{ record: 2, repeat: 3, order: 5, ticket: 3, visit: 4, form: 4, name: 3, question: 4, chat: 3, outside: 4 },
  ...{ sentiment: 0.5, stars: 0.5, again: 0.7, triage: 0.5, sort: 2.5, list: 3 },
  ...{ sum: 2, money: 1.5, units: 1, problem: 3, dates: 1.5 },
};
const WORLD_LAST_SHARES = {
  ...{ record: 1.5, repeat: 2, order: 5, ticket: 2, visit: 3, form: 4, name: 2, question: 4, chat: 2, outside: 2.5 },
  ...{ sentiment: 0.4, stars: 0.4, again: 0.5, triage: 0.4, sort: 3, list: 3 },
  ...{ sum: 4, money: 2, units: 0.8, problem: 5, dates: 3 },
};
/** Without forms, which are longer than what is generated, and without the first lesson. */
const WORLD_ANSWERS = { ...WORLD_LAST_SHARES, record: 0, repeat: 0, form: 0 };
/** What fine-tuning masters: where groups of rollouts are now right, now wrong, speed does not pay. */
const WORLD_MASTERED = {
  ...{
    order: 3,
    ticket: 2,
    visit: 2,
    sentiment: 1,
    stars: 1,
    triage: 1,
    sort: 2,
    list: 2,
    chat: 2,
    name: 1,
    outside: 3,
  },
  ...{ sum: 1.5, money: 1, units: 1, problem: 2, dates: 1 },
};

/**
 * "tiny": the word problems "st1" on a model of a quarter of a million parameters, in minutes on two cores. Each stage
 * begins where the one before ended.
 *
 * "world": the task `world` on a model of 1.7 million parameters, for about an hour and a half on two cores;
 * scripts/train-world.cjs runs and measures the three stages.
 *
 * "llada", "dream": the published runs of dParallel and d3LLM, on their published data. "diffu-grpo": d1's on GSM8K; "trace":
 * TraceRL's settings for LLaDA.
 *
 * "gsm8k", "math500": the reference's runs on mathematics (grpo_exp.sh with its defaults); "apps": on code (run.sh).
 * With the reference's string comparison as reward; a config file that gives `rewards` without `compat` has
 * mathematical equality. Loss and rollouts are the exact ones; with `compat: "reference"` beside (`--set
 * compat=reference`) they have the reference's defects, too.
 */
export const PRESETS: Readonly<Record<Stage, Readonly<Record<string, TrainConfig>>>> = {
  sft: {
    tiny: {
      model: {
        create: { dModel: 64, nHeads: 4, nLayers: 3, mlpHiddenSize: 192, maxSequenceLength: 64, ropeTheta: 100 },
      },
      dataset: 'st1',
      outputDir: 'runs/tiny-sft',
      maxSteps: 3200,
      batchSize: 64,
      learningRate: 3e-3,
      betas: [0.9, 0.98],
      weightDecay: 0.1,
      warmupSteps: 100,
      schedule: 'cosine',
      learningRateFloor: 0.1,
      maskEpsilon: 0.02,
      evalEvery: 250,
      saveEvery: 250,
    },
    world: {
      model: {
        create: {
          dModel: 128,
          nHeads: 4,
          nLayers: 4,
          mlpHiddenSize: 384,
          maxSequenceLength: 160,
          ropeTheta: 1000,
          attentionStart: 'copying',
          tokenizer: { vocabSize: 2048 },
        },
      },
      dataset: 'world',
      mixture: [
        { steps: 4000, shares: { record: 1, repeat: 1 } },
        { steps: 15_000, shares: WORLD_SHARES },
        { shares: WORLD_LAST_SHARES },
      ],
      outputDir: 'runs/world-sft',
      maxSteps: 36_000,
      batchSize: 32,
      padding: { share: 0.3, min: 24, max: 64, tail: 4 },
      learningRate: 1e-3,
      betas: [0.9, 0.98],
      weightDecay: 0.1,
      warmupSteps: 100,
      schedule: 'cosine',
      learningRateFloor: 0.02,
      maskEpsilon: 0.02,
      evalEvery: 2000,
      evalExamples: 500,
      evalSampler: { type: 'confidence', threshold: 0.9 },
      saveEvery: 2000,
    },
  },
  dparallel: {
    tiny: {
      ...DISTILLED_TINY,
      outputDir: 'runs/tiny-dparallel',
      blockLength: 8,
    },
    llada: {
      ...DISTILLED_LLADA,
      outputDir: 'runs/dparallel-llada',
      batchSize: 64,
      blockLength: 32,
      lora: { rank: 128, alpha: 128, targets: PUBLISHED_TARGETS },
    },
    dream: {
      ...DISTILLED_DREAM,
      outputDir: 'runs/dparallel-dream',
      batchSize: 64,
      segments: 'response',
      lora: { rank: 32, alpha: 32, targets: ALL_TARGETS },
    },
  },
  d3llm: {
    tiny: {
      ...DISTILLED_TINY,
      outputDir: 'runs/tiny-d3llm',
      windows: [8, 12, 16],
    },
    llada: {
      ...DISTILLED_LLADA,
      trajectories: 'd3LLM/trajectory_data_llada_32',
      outputDir: 'runs/d3llm-llada',
      batchSize: 4,
      gradientAccumulation: 16,
      windows: [16, 16, 24, 24, 32, 32],
      maskRatio: { min: 0, max: 0.8 },
      lora: { rank: 256, alpha: 256, targets: PUBLISHED_TARGETS },
    },
    dream: {
      ...DISTILLED_DREAM,
      trajectories: 'd3LLM/trajectory_data_dream_32',
      outputDir: 'runs/d3llm-dream',
      batchSize: 4,
      gradientAccumulation: 16,
      windows: [16, 24, 32],
      maskRatio: { min: 0, max: 0.8 },
      segments: 'row',
      entropyOnComplement: true,
      lora: { rank: 256, alpha: 256, targets: ALL_TARGETS },
    },
  },
  planner: {
    tiny: {
      model: 'runs/tiny-sft/final',
      dataset: 'st1',
      outputDir: 'runs/tiny-planner',
      maxSteps: 300,
      batchSize: 64,
      learningRate: 1e-3,
      minSpan: 24,
      evalEvery: 50,
      saveEvery: 100,
    },
    world: {
      model: 'runs/world-sft/final',
      dataset: 'world',
      mixture: [{ shares: WORLD_ANSWERS }],
      outputDir: 'runs/world-planner',
      maxSteps: 1200,
      batchSize: 64,
      learningRate: 2e-3,
      minSpan: 48,
      evalEvery: 200,
      saveEvery: 200,
    },
  },
  grpo: {
    tiny: {
      model: 'runs/tiny-planner/final',
      dataset: 'st1',
      outputDir: 'runs/tiny-grpo',
      maxSteps: 300,
      promptsPerStep: 16,
      numGenerations: 12,
      temperature: 0.5,
      learningRate: 1e-4,
      plannerLearningRate: 3e-4,
      weightDecay: 0,
      warmupSteps: 5,
      rewards: { fastAnswer: { type: 'fastAnswer', options: { weight: 2 } } },
      evalEvery: 20,
      saveEvery: 50,
    },
    world: {
      model: 'runs/world-planner/final',
      dataset: 'world',
      mixture: [{ shares: WORLD_MASTERED }],
      outputDir: 'runs/world-grpo',
      maxSteps: 75,
      promptsPerStep: 16,
      numGenerations: 12,
      temperature: 0.1,
      cache: { type: 'dual' },
      learningRate: 5e-5,
      plannerLearningRate: 3e-4,
      weightDecay: 0,
      warmupSteps: 5,
      rewards: { fastAnswer: { type: 'fastAnswer', options: { weight: 4 } } },
      evalEvery: 25,
      evalExamples: 200,
      saveEvery: 50,
    },
    gsm8k: { ...MATH_RUN, dataset: 'gsm8k', outputDir: 'runs/gsm8k' },
    math500: { ...MATH_RUN, dataset: 'math500', outputDir: 'runs/math500' },
    'diffu-grpo': {
      ...D1_RUN,
      objective: 'diffu-grpo',
      dataset: 'gsm8k',
      outputDir: 'runs/diffu-grpo',
      promptsPerStep: 1,
      numIterations: 12,
      beta: 0.04,
      clipEpsilon: 0.5,
      rewards: { correct: { type: 'mathCorrect', weight: 1 }, format: { type: 'boxedFormat', weight: 1 } },
    },
    trace: {
      objective: 'trace',
      model: 'GSAI-ML/LLaDA-8B-Instruct',
      dataset: 'gsm8k',
      outputDir: 'runs/trace',
      promptsPerStep: 8,
      numGenerations: 16,
      maxTokens: 256,
      blockLength: 32,
      rolloutSampler: { type: 'confidence', threshold: 0.9 },
      shrink: 8,
      temperature: 1,
      beta: 0.01,
      filterGroups: { accuracy: { min: 0.2, max: 0.8 } },
      learningRate: 1e-6,
      schedule: 'constant',
      activationCheckpointing: true,
      rewards: { correct: { type: 'mathCorrect', weight: 1 } },
      seed: 42,
    },
    apps: {
      ...REFERENCE_RUN,
      model: 'sengi/lladou-coding',
      dataset: 'apps',
      datasetOptions: { prompts: 'non-thinking', difficulties: ['introductory'], functionsOnly: true },
      outputDir: 'runs/apps',
      blockLength: 128,
      temperature: 0.5,
      advantageMinClip: 0,
      rewards: {
        tests: { type: 'codeTests', weight: 3, options: { compat: 'reference' } },
        fence: { type: 'codeFence', weight: 1 },
        steps: STEPS,
        teacher: teacher('Qwen/Qwen2.5-Coder-7B-Instruct'),
      },
    },
  },
};
