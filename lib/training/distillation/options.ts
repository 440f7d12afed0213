// Options of the two distillations: checks and defaults.

import { optionError, within } from '../../errors';
import type { MaskedDiffusionModel } from '../../generation/masked-diffusion-model';
import { attendedBlock } from '../../model/blocks';
import { checkChoice, checkInteger, checkNumber } from '../../options';
import { resolveSampler, type SamplerObject } from '../../sampling/samplers';
import { show } from '../../text';
import type { TrainingData } from '../data';
import type { TrainingMetrics } from '../loop';
import {
  checkLora,
  type ResolvedTraining,
  resolveTraining,
  type TrainableOptions,
  type TrainingOptions,
} from '../options';

/** Options that {@link trainCertainty} and {@link trainPseudoTrajectories} share. */
export interface DistillationOptions extends TrainingOptions, Pick<TrainableOptions, 'lora'> {
  /**
   * The model's own answers, as `dultra distill` writes them (dParallel's published data have the same fields), or any
   * prompts with answers.
   */
  dataset: TrainingData;
  /** Answers are padded to so many tokens with ends of sequence, which are learnt. Default: the data set's; else one. */
  maxTokens?: number | undefined;
  /**
   * Tokens of a row, prompt included, in place of `maxTokens`: an answer is padded with ends of sequence, or cut. Default:
   * none.
   */
  rowTokens?: number | undefined;
  /**
   * What the segments of a row divide: "row", everything behind the prompt; "text", the answer and its end of sequence,
   * the last segment reaching to the end of the row; "response": a single segment of everything behind the prompt.
   * Default "row"; d3llm: "text", and never "response".
   */
  segments?: 'row' | 'text' | 'response' | undefined;
  /** Weight of the entropies. Default 2. */
  entropyWeight?: number | undefined;
  /** Temperature at which entropies are measured and lowered. Default 0.5. */
  entropyTemperature?: number | undefined;
  /** Whether the complementary view has an entropy term, too. Default true; d3llm: false. */
  entropyOnComplement?: boolean | undefined;
  /** ε of the mask probability (1 − ε) p + ε. Default 1e-3. */
  maskEpsilon?: number | undefined;
  /** Evaluations also write answers with this sampler, and count those that are right. Default: none. */
  evalSampler?: SamplerObject | string | undefined;
  /** The metric of evaluations that decides which checkpoint is the best. Default "evalLoss". */
  bestBy?: 'evalLoss' | 'evalAccuracy' | 'evalNfe' | undefined;
  /** "reference": segments without tokens are drawn, too, and trajectories are read at the row's own positions. */
  compat?: 'reference' | undefined;
}

/** Options of {@link trainCertainty}. */
export interface CertaintyOptions extends DistillationOptions {
  /** Examples per batch, each a mean of its own. Default 64. */
  batchSize?: number | undefined;
  /** Tokens per segment. Default 32. */
  blockLength?: number | undefined;
  /** Probability with which a token of the segment is masked in the first view. Default 0.5. */
  maskProbability?: number | undefined;
}

/** Options of {@link trainPseudoTrajectories}. */
export interface PseudoTrajectoryOptions extends DistillationOptions {
  /** Examples per batch, over whose tokens together the means are taken. Default 4. */
  batchSize?: number | undefined;
  /**
   * Tokens per segment, epoch by epoch: linear from one entry to the next inside an epoch, truncated; the last one stays.
   * Default [16, 24, 32].
   */
  windows?: readonly number[] | undefined;
  /** Shares of a segment that are masked: drawn for each batch from a low end, which climbs from min to max, to max. */
  maskRatio?: { min: number; max: number } | undefined;
  /**
   * File, folder or hub id of trajectories by question: as `dultra distill` writes them, or d3LLM's published ones.
   * Default: those of the data set; an answer without one is masked at random.
   */
  trajectories?: string | undefined;
}

/** One step of either distillation. */
export interface DistillationMetrics extends TrainingMetrics {
  /** Mean cross-entropy of the masked tokens, both views. */
  crossEntropy: number;
  /** Mean entropy of those whose label is the most probable token, of the views that have the term. */
  entropy: number;
  /** Share of masked tokens whose label is the most probable token. */
  correct: number;
  /** Share of all tokens that were masked with a loss, both views. */
  masked: number;
  /** d3llm: tokens per segment, and the mean share of it that was to be masked. */
  window?: number;
  maskRatio?: number;
  /** d3llm: share of rows that had no trajectory. */
  withoutTrajectory?: number;
  /** On held-out examples, in the steps that evaluate. */
  evalLoss?: number;
  /** Share of right answers there, with `evalSampler`, and forward passes per answer. */
  evalAccuracy?: number;
  evalNfe?: number;
  [category: `evalAccuracy/${string}`]: number;
}

/** How a step corrupts its rows. */
export type Corruption =
  | { type: 'certainty'; blockLength: number; maskProbability: number }
  | { type: 'trajectory'; windows: readonly number[]; maskRatio: { min: number; max: number } };

/** {@link DistillationOptions} checked, with defaults. */
export interface ResolvedDistillation {
  corruption: Corruption;
  batchSize: number;
  segments: 'row' | 'text' | 'response';
  entropyWeight: number;
  entropyTemperature: number;
  entropyOnComplement: boolean;
  maskEpsilon: number;
  divisor: number;
  bestBy: 'evalLoss' | 'evalAccuracy' | 'evalNfe';
  compat: 'reference' | null;
}

const DEFAULTS = {
  learningRate: 2e-5,
  schedule: 'constant',
  warmupSteps: 0,
  learningRateFloor: 0,
  betas: [0.9, 0.999],
  weightDecay: 0.01,
} as const;

function checkShared(options: DistillationOptions): void {
  const { maxTokens, rowTokens, evalSampler } = options;
  if (maxTokens !== undefined) checkInteger('maxTokens', maxTokens, { min: 1, max: 1 << 30 });
  if (rowTokens !== undefined) checkInteger('rowTokens', rowTokens, { min: 2, max: 1 << 30 });
  if (rowTokens !== undefined && maxTokens !== undefined && evalSampler === undefined)
    throw optionError(RangeError, 'rowTokens', 'expected maxTokens or rowTokens, got both');
  if (evalSampler !== undefined) within('evalSampler', 'sampler', () => resolveSampler(evalSampler, true));
}

function resolveShared(
  options: DistillationOptions,
  defaults: { segments: 'row' | 'text'; entropyOnComplement: boolean; batchSize: number },
  batchSize = defaults.batchSize,
): Omit<ResolvedDistillation, 'corruption' | 'divisor'> {
  checkShared(options);
  const { entropyWeight = 2, entropyTemperature = 0.5, maskEpsilon = 1e-3, compat, evalSampler } = options;
  const { segments = defaults.segments, entropyOnComplement = defaults.entropyOnComplement } = options;
  const { bestBy = 'evalLoss' } = options;
  checkInteger('batchSize', batchSize, { min: 1, max: 1 << 20 });
  checkNumber('entropyWeight', entropyWeight, { min: 0, max: 1e6 });
  checkNumber('entropyTemperature', entropyTemperature, { min: 1e-4, max: 1e6 });
  checkNumber('maskEpsilon', maskEpsilon, { minExclusive: 0, max: 1 });
  checkChoice('entropyOnComplement', entropyOnComplement, [true, false] as const);
  checkChoice('bestBy', bestBy, ['evalLoss', 'evalAccuracy', 'evalNfe'] as const);
  if (bestBy !== 'evalLoss' && evalSampler === undefined)
    throw optionError(RangeError, 'bestBy', `expected evalSampler with ${bestBy}, which its answers are measured for`);
  if (compat !== undefined) checkChoice('compat', compat as string, ['reference']);
  return {
    batchSize,
    segments,
    entropyWeight,
    entropyTemperature,
    entropyOnComplement,
    maskEpsilon,
    bestBy,
    compat: compat ?? null,
  };
}

/** What both checks give. */
export interface CheckedDistillation {
  training: ResolvedTraining;
  lora: ReturnType<typeof checkLora>;
  own: ResolvedDistillation;
}

/** Checks {@link CertaintyOptions} as far as they need no model and no data. @throws TypeError, RangeError */
export function resolveCertainty(options: CertaintyOptions): CheckedDistillation {
  const training = resolveTraining('dparallel', options, DEFAULTS, ['signal']);
  const { blockLength = 32, maskProbability = 0.5, batchSize } = options;
  checkInteger('blockLength', blockLength, { min: 1, max: 1 << 30 });
  checkNumber('maskProbability', maskProbability, { min: 0, max: 1 });
  const shared = resolveShared(options, { segments: 'row', entropyOnComplement: true, batchSize: 64 }, batchSize);
  checkChoice('segments', shared.segments, ['row', 'text', 'response'] as const);
  const corruption = { type: 'certainty', blockLength, maskProbability } as const;
  return { training, lora: checkLora(options.lora), own: { ...shared, corruption, divisor: 1 } };
}

/** Checks {@link PseudoTrajectoryOptions} as far as they need no model and no data. @throws TypeError, RangeError */
export function resolvePseudoTrajectories(options: PseudoTrajectoryOptions): CheckedDistillation {
  const training = resolveTraining('d3llm', options, DEFAULTS, ['signal']);
  const { windows = [16, 24, 32], maskRatio = { min: 0, max: 0.8 }, batchSize, trajectories } = options;
  if (!Array.isArray(windows) || windows.length === 0)
    throw optionError(TypeError, 'windows', `expected a list of tokens per segment, got ${show(windows)}`);
  for (const [i, window] of windows.entries()) checkInteger(`windows[${i}]`, window, { min: 1, max: 1 << 30 });
  if (typeof maskRatio !== 'object' || maskRatio === null)
    throw optionError(TypeError, 'maskRatio', `expected { min, max }, got ${show(maskRatio)}`);
  checkNumber('maskRatio.min', maskRatio.min, { min: 0, max: 1 });
  checkNumber('maskRatio.max', maskRatio.max, { min: maskRatio.min, max: 1 });
  if (trajectories !== undefined && (typeof trajectories !== 'string' || trajectories === ''))
    throw optionError(TypeError, 'trajectories', `expected a file, a folder or a hub id, got ${show(trajectories)}`);
  const shared = resolveShared(options, { segments: 'text', entropyOnComplement: false, batchSize: 4 }, batchSize);
  checkChoice('segments', shared.segments, ['row', 'text'] as const);
  const corruption = { type: 'trajectory', windows, maskRatio } as const;
  return { training, lora: checkLora(options.lora), own: { ...shared, corruption, divisor: 4 } };
}

/** @throws RangeError for a model whose rows are decoded otherwise than the segments suppose */
export function checkSegmentModel({ config, source }: MaskedDiffusionModel): void {
  if (attendedBlock(config) !== null)
    throw optionError(
      RangeError,
      'model',
      `expected a model that sees whole rows, whose answers are decoded in segments of any length; ${source} attends ` +
        'by blocks',
    );
}
