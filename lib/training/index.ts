// Training's public names. The pure functions are exported too: they are what a researcher replaces.
export { computeAdvantages, type ScaleRewards, totalRewards } from './advantages';
export { type GrpoLossOptions, type GrpoStep, type GrpoStepLoss, grpoLoss } from './grpo-loss';
export { type ReferenceGrpoRow, referenceGrpoLoss } from './grpo-loss-reference';
export { type MaskedRow, maskedDiffusionLoss, maskRow } from './masked-diffusion-loss';
export { binaryCrossEntropy, factorTargets, maskSpan, type PlannerRow, positiveWeight } from './planner-init-loss';
export { learningRateFactor, type Schedule, type ScheduleOptions } from './schedules';
