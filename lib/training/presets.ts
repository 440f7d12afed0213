// Ready-made training configurations, as plain JSON. `dultra train STAGE --preset NAME` runs them; a --config FILE holds the same keys.
import type { CreateModelOptions } from '../model/create-model';
import type { GrpoOptions } from './grpo';
import type { PlannerOptions } from './planner-init';
import type { MaskedDiffusionOptions } from './sft';

/** The stages of training, in their order. */
export const STAGES = ['sft', 'planner', 'grpo'] as const;

/** One of {@link STAGES}. */
export type Stage = (typeof STAGES)[number];

/** A reward as JSON: the name of one of `rewards`, its weight, and its own options. */
export interface RewardConfig {
  type: 'exactAnswer' | 'fastAnswer' | 'stepPenalty' | 'format' | 'teacherLogProb';
  /** Default 1. */
  weight?: number;
  /** Of "fastAnswer" (`weight`: of speed), "stepPenalty" (`form`), "format" (`pattern`, `flags`, `reward`), "teacherLogProb" (`model`, `passes`). */
  options?: Readonly<Record<string, unknown>>;
}

/** What every stage's configuration holds beside the options of its trainer. */
interface SharedConfig {
  /** Folder or hub id of the model to train, or the shape of a new one with the data set's vocabulary. */
  model?: string | { create: Omit<CreateModelOptions, 'vocabulary'> };
  /** Name of a task, or a file of examples: JSON lines or a JSON array, each with `prompt` and `answer`. */
  dataset?: string;
  /** A file of held-out examples, where `dataset` is a file. */
  validation?: string;
}

/** Configuration of a stage: what a preset, a --config file and the --set flags are made of. */
export interface TrainConfig
  extends SharedConfig,
    Partial<Omit<MaskedDiffusionOptions, 'dataset'>>,
    Partial<Omit<PlannerOptions, 'dataset'>>,
    Partial<Omit<GrpoOptions, 'dataset' | 'rewards' | 'referenceModel' | 'compat'>> {
  rewards?: Readonly<Record<string, RewardConfig>>;
  /** Folder or hub id of the frozen reference model. */
  referenceModel?: string;
}

/**
 * "tiny": the word problems "st1" on a model of a quarter of a million parameters, in minutes on two cores. Each stage begins where the one
 * before ended.
 */
export const PRESETS: Readonly<Record<Stage, Readonly<Record<string, TrainConfig>>>> = {
  sft: {
    tiny: {
      model: { create: { dModel: 64, nHeads: 4, nLayers: 3, mlpHiddenSize: 192, maxSequenceLength: 64, ropeTheta: 100 } },
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
  },
};
