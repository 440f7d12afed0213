// The three trainers with small settings, for the tests of training.
import {
  type GrpoOptions,
  GrpoTrainer,
  type MaskedDiffusionModel,
  type MaskedDiffusionOptions,
  type PlannerOptions,
  type RewardFunction,
  trainMaskedDiffusion,
  trainPlanner,
} from '../lib';
import { collect, task } from './trained-models';

// AdamW's eps is large where runs are compared: with a small one an element whose gradient is rounding noise moves by a
// whole learning rate.
export const COMPARED = { learningRate: 1e-3, eps: 1e-3, schedule: 'constant', warmupSteps: 0 } as const;

/** Fine-tuning on the small task. */
export const sft = (model: MaskedDiffusionModel, options: Partial<MaskedDiffusionOptions> = {}) =>
  collect(trainMaskedDiffusion(model, { dataset: task, maxSteps: 3, batchSize: 8, ...options }));

/** Planner initialisation on the small task. */
export const planner = (model: MaskedDiffusionModel, options: Partial<PlannerOptions> = {}) =>
  collect(
    trainPlanner(model, { dataset: task, maxSteps: 3, batchSize: 8, minSpan: 4, learningRate: 1e-3, ...options }),
  );

/** A reward without a task: how many of the tokens are early ones of the vocabulary. */
export const earlyTokens: RewardFunction = ({ results }) =>
  results.map(({ ids }) => ids.filter((id) => id > 2 && id < 20).length / ids.length);

/** GRPO on the small task, with {@link earlyTokens} as reward. */
export const grpo = async (model: MaskedDiffusionModel, options: Partial<GrpoOptions> = {}) => {
  await using trainer = new GrpoTrainer(model, {
    dataset: task,
    maxSteps: 3,
    promptsPerStep: 4,
    numGenerations: 4,
    learningRate: 1e-3,
    rewards: { early: earlyTokens },
    ...options,
  });
  // Awaited here: the trainer is disposed of on the way out.
  return await collect(trainer.train());
};
