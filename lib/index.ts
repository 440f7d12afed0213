/// <reference types="node" preserve="true" />
// The public names, and nothing else.
import './bundled';

export * as datasets from './data';
export type { Example, TaskDataset } from './data/dataset';
export type {
  AnswerBasis,
  BooleanAnswer,
  ChoiceAnswer,
  DecideOptions,
  DecisionAnswer,
  DecisionState,
  Decisions,
  RefusalAnswer,
  ScoreAnswer,
} from './decisions/decide';
export type { DecisionExample } from './decisions/example';
export { type Calibration, type DecisionFile, type DecisionSettings, parseDecisionFile } from './decisions/file';
export type { ConfidenceForm } from './decisions/probability';
export type { BooleanQuestion, ChoiceQuestion, Question, QuestionType, ScoreQuestion } from './decisions/questions';
export type { DecisionTemplate, DecisionTemplates, Scorer } from './decisions/template';
export { diagnose, type Finding } from './diagnose';
export * as distributed from './distributed';
export type { StoredDType } from './dtypes';
export { DUltraError, ERROR_CODES, type ErrorCode, isDUltraError, isOptionError, type OptionError } from './errors';
export { type AupOptions, accuracyUnderParallelism, type ParallelismPoint } from './evaluation/aup';
export { type CalibrateOptions, type CalibrationReport, calibrate, type TypeCalibration } from './evaluation/calibrate';
export type { DecisionFigures, Figure } from './evaluation/calibration-metrics';
export { calibrationPage } from './evaluation/calibration-page';
export {
  type Campaign,
  type CampaignCurve,
  type CampaignOptions,
  type CampaignRow,
  evaluateCampaign,
  type Spread,
} from './evaluation/campaign';
export { compareDecisions, type DecisionComparison } from './evaluation/decisions';
export {
  type CategoryResult,
  type EvaluatedExample,
  type EvaluateOptions,
  type EvaluateProgress,
  type Evaluation,
  type EvaluationConfig,
  type EvaluationSplit,
  evaluate,
  evaluationMaxTokens,
  meanAndSd,
  type SampleRecord,
  type SamplerResult,
  type SampleStore,
  type Score,
  type ScoreBatch,
} from './evaluation/evaluate';
export {
  type MaskedExample,
  type MaskedPerplexity,
  type MaskedPerplexityOptions,
  maskedPerplexity,
} from './evaluation/masked-perplexity';
export {
  type AveragedRow,
  averageOperatingPoints,
  BUDGETS,
  chooseOperatingPoints,
  frontier,
  type OperatingOptions,
  type OperatingPoint,
  type OperatingRow,
  type Point,
} from './evaluation/operating-points';
export { PUBLISHED, type PublishedFigure } from './evaluation/published';
export { type ReportInput, type ReportRun, renderReport, writeReport } from './evaluation/report';
export { type GridEntry, type GridOptions, samplerGrid } from './evaluation/sampler-grid';
export { type Verification, type VerifiedCompletion, type VerifyOptions, verifyModel } from './evaluation/verify';
export type { BlockType } from './files/blocks';
export { type ChatAnswer, type ChatEvent, type ChatOptions, ChatSession } from './generation/chat';
export type { Choice } from './generation/choose';
export type { GenerationDefaults } from './generation/generation-config';
export { loadModel } from './generation/load-model';
export { MaskedDiffusionModel } from './generation/masked-diffusion-model';
export type { AnswerScoreOptions } from './generation/score';
export type * from './generation/types';
export {
  type CachedModel,
  type CachedRevision,
  type DeleteOptions,
  deleteCachedModel,
  listCachedModels,
} from './hub/contents';
export type { DownloadOptions, DownloadProgress } from './hub/types';
export * as kernels from './kernels';
export type { Adapter } from './model/adapter';
export type { Answer, AnswerScore } from './model/answer-score';
export type { BlockGrid } from './model/blocks';
export { CausalModel } from './model/causal-model';
export type { CausalGenerateOptions, CausalPrompt, CausalResult } from './model/causal-options';
export type { CausalConfig, FamilyConfig, ModelConfig } from './model/config';
export { type CreateModelOptions, createModel } from './model/create-model';
export { downloadModel } from './model/download-model';
export { EMBEDDED_MODELS, type EmbeddedModel } from './model/embedded';
export type { ForwardOutput, ForwardRequest } from './model/forward';
export type { CacheStorage, KvCache, KvCacheOptions } from './model/kv-cache';
export { loadCausalModel } from './model/load-causal-model';
export type { LoadModelOptions, LoadProgress } from './model/load-weights';
export { type CreatePlannerOptions, createPlanner } from './model/planner-head';
export { type QuantizedModel, type QuantizeOptions, quantizeModel } from './model/quantize';
export type { SaveOptions } from './model/save';
export type { EncodeOptions, Tokenizer } from './model/tokenizer';
export { type TrainTokenizerOptions, trainTokenizer } from './model/train-tokenizer';
export type {
  LoraOptions,
  ModelTrainer,
  ModelTrainerOptions,
  MomentDtype,
  Reduction,
  ZeroStage,
} from './model/trainer';
export { type WeightMemory, weightMemory } from './model/weight-memory';
export type {
  NativeBackwardRequest as BackwardRequest,
  NativeExperts as Experts,
  NativeModelInfo as ModelInfo,
  NativeNamedTensor as NamedTensor,
  NativeOptimizerStep as OptimizerStep,
  NativeRopeScaling as RopeScaling,
  NativeScoreRequest as ScoreRequest,
  NativeScoreResult as ScoreResult,
} from './native';
export type { RewardBatch, RewardExample, RewardFunction, TeacherOptions } from './rewards';
export * as rewards from './rewards';
export {
  type BlocksCache,
  CACHE_HELP,
  CACHE_NAMES,
  type Cache,
  type CachePolicy,
  type DelayedCache,
  type DualCache,
  type NoCache,
  type PrefixCache,
  parseCache,
  type RefreshCache,
  type ResolvedCache,
} from './sampling/caches';
export type { EngineOptions } from './sampling/engine-options';
export {
  type ConfidenceSampler,
  type D3llmSampler,
  type DreamSampler,
  type DynamicSampler,
  type EditingSampler,
  type EntropySampler,
  type EntropySumSampler,
  type FactorSampler,
  type FixedSampler,
  type GeometricSampler,
  type PlannerSampler,
  parseSampler,
  type ResolvedSampler,
  SAMPLER_HELP,
  SAMPLER_NAMES,
  type Sampler,
  type SamplerObject,
  type SubBlocksSampler,
} from './sampling/samplers';
export type { RecordedUniforms } from './sampling/settings';
export type * from './sampling/types';
export type { JsonSchema } from './structured/json-schema';
export { type SystemInfo, systemInfo } from './system';
export { decodeText } from './text';
export * as training from './training';
export {
  type CertaintyOptions,
  type DistillAnswersOptions,
  type DistillAnswersProgress,
  type DistillationMetrics,
  distillAnswers,
  type ExampleData,
  type GrpoMetrics,
  type GrpoOptions,
  GrpoTrainer,
  type MaskedDiffusionMetrics,
  type MaskedDiffusionOptions,
  type PlannerMetrics,
  type PlannerOptions,
  type PseudoTrajectoryOptions,
  type TrainingData,
  type TrainingExample,
  type TrainingMetrics,
  trainCertainty,
  trainMaskedDiffusion,
  trainPlanner,
  trainPseudoTrajectories,
} from './training';
export type * from './types';
