/**
 * Training's public names. The pure functions are exported too: they are what a researcher replaces.
 * @module
 */

export type { ExampleData, TrainingExample } from '../data';
export { checkConfig, openDataset, prepareModel, preparePlanner, runConfig, type StageMetrics } from './config';
export { configSchema, configSchemaFile, configTemplate } from './config-file';
export {
  CONFIG_KEYS,
  type ConfigKey,
  type ConfigKeyName,
  configKeys,
  defaultOf,
  FREE_KEYS,
  type JsonSchema,
} from './config-keys';
export type { TrainingData } from './data';
export {
  type CertaintyLoss,
  type CertaintyLossOptions,
  certaintyLoss,
  type ScoredView,
  type ViewGradient,
} from './distillation/loss';
export type {
  CertaintyOptions,
  DistillationMetrics,
  DistillationOptions,
  PseudoTrajectoryOptions,
} from './distillation/options';
export {
  type AnswerRange,
  countSegments,
  curriculumNoise,
  curriculumWindow,
  randomMask,
  type Segment,
  type SegmentViews,
  segmentAt,
  segmentViews,
  trajectoryMask,
} from './distillation/segments';
export {
  type DistillAnswersOptions,
  type DistillAnswersProgress,
  type DistillationRecord,
  distillAnswers,
} from './distillation/self-distill';
export { trainCertainty, trainPseudoTrajectories } from './distillation/train';
export { stateOf, type Trajectory, trajectoryOf, trajectoryOfStates } from './distillation/trajectory';
export { computeAdvantages, type ScaleRewards, totalRewards } from './grpo/advantages';
export type { GroupFilter } from './grpo/group-filter';
export { clippedObjective, type GrpoLossOptions, type GrpoStep, type GrpoStepLoss, grpoLoss } from './grpo/loss';
export { type ReferenceGrpoRow, referenceGrpoLoss } from './grpo/loss-reference';
export {
  type BatchSize,
  diffuGrpoLoss,
  type LossPer,
  OBJECTIVES,
  type Objective,
  oneStepRow,
  type Rollout,
  type RunLossOptions,
  type ScoredTokens,
  type TokenLoss,
  type TokenLossOptions,
  type TokenRow,
  traceLoss,
  traceRows,
  wd1Loss,
  wd1Weights,
} from './grpo/objectives';
export type { GrpoOptions } from './grpo/options';
export {
  type PolicySettings,
  type ReplayRow,
  type Rollouts,
  recordRollouts,
  replayRequest,
  splitByRow,
} from './grpo/replay';
export type { GrpoMetrics } from './grpo/stage';
export { GrpoTrainer } from './grpo/trainer';
export type { TrainingMetrics } from './loop';
export { maskedDiffusionLoss } from './masked-diffusion-loss';
export { type MaskedRow, maskRow, maskSpan, type PlannerRow } from './masking';
export { type MemoryItem, type MemoryPlan, planMemory, type TeacherMemory } from './memory-plan';
export type { MixtureStage, TrainableOptions, TrainingOptions } from './options';
export { type PlannerMetrics, type PlannerOptions, trainPlanner } from './planner-init';
export { binaryCrossEntropy, factorTargets, positiveWeight } from './planner-init-loss';
export { presetBefore } from './preset-before';
export {
  type NewModelConfig,
  PRESETS,
  REWARD_TYPES,
  type RewardConfig,
  STAGES,
  type Stage,
  type TeacherConfig,
  type TrainConfig,
} from './presets';
export { type Role, roleOf } from './roles';
export type { CompletionSample, RunStart, TrainingCallbacks } from './samples';
export { learningRateFactor, type Schedule, type ScheduleOptions } from './schedules';
export { serveTeachers, type TeacherDevice } from './serve-teachers';
export { type MaskedDiffusionMetrics, type MaskedDiffusionOptions, trainMaskedDiffusion } from './sft';
export type { AnswerPadding } from './token-rows';
