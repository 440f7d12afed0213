// The trainers of distillation: certainty-forcing (dParallel) and pseudo-trajectories (d3LLM).
import { open } from '../../data';
import type { MaskedDiffusionModel } from '../../generation/masked-diffusion-model';
import { checkRoom } from '../../model/prompt';
import { type CheckExample, openData } from '../data';
import { answerOptions } from '../exact-matches';
import { runStage } from '../loop';
import type { Stage } from '../presets';
import { callbacksOf } from '../samples';
import {
  type CertaintyOptions,
  type CheckedDistillation,
  checkSegmentModel,
  type DistillationMetrics,
  type DistillationOptions,
  type PseudoTrajectoryOptions,
  resolveCertainty,
  resolvePseudoTrajectories,
} from './options';
import { encodeAnswer, readTrajectories, type Trajectories, trajectoryOfExample } from './rows';
import { DistillationStage } from './stage';

async function* distil(
  kind: Stage,
  model: MaskedDiffusionModel,
  options: DistillationOptions & { signal?: AbortSignal | undefined },
  { training, lora, own }: CheckedDistillation,
  trajectories: Trajectories | null,
  more: Readonly<Record<string, unknown>>,
): AsyncGenerator<DistillationMetrics, void, void> {
  checkSegmentModel(model);
  const { rowTokens = null, evalSampler } = options;
  const paddingCounts = own.segments !== 'text';
  const lengthsOf = (maxTokens: number | null) => ({ maxTokens, rowTokens, paddingCounts });
  const fits: CheckExample = (row, ownTokens) => {
    encodeAnswer(model, row, lengthsOf(options.maxTokens ?? ownTokens), null);
    if (own.corruption.type === 'trajectory') trajectoryOfExample(row, trajectories, model.config.maskTokenId);
  };
  const data = openData(await open(options.dataset), training.seed, training.mixture, {
    train: fits,
    validation(row, ownTokens) {
      fits(row, ownTokens);
      const maxTokens = options.maxTokens ?? ownTokens;
      if (evalSampler !== undefined && maxTokens !== null)
        checkRoom(model.encodePrompt(row.prompt).length, maxTokens, model.config.maxSequenceLength);
    },
  });
  const answers = answerOptions(options, data, model);
  const lengths = lengthsOf(options.maxTokens ?? data.maxTokens);
  const { corruption, ...rest } = own;
  yield* runStage<DistillationMetrics>({
    kind,
    model,
    data,
    training,
    // A planner that gets no gradient would still shrink by weight decay.
    trainable: { freezePlanner: true, lora },
    examplesPerStep: own.batchSize * training.gradientAccumulation,
    own: { ...rest, ...corruption, ...lengths, evalSampler: answers?.sampler ?? null, ...more },
    objective: { metric: own.bestBy, goal: own.bestBy === 'evalAccuracy' ? 'max' : 'min' },
    signal: options.signal,
    callbacks: callbacksOf(options),
    start: (context) => new DistillationStage(context, { ...own, lengths, trajectories, answers }),
  });
}

/**
 * Certainty-forcing distillation (dParallel, arXiv 2509.26488): on its own answers the model learns to be certain of the
 * tokens of a segment that it predicts right, so that a decoder may take many at once. The planner head is left as it
 * is. One yield per optimiser step; leaving the loop ends the training.
 * @throws TypeError, RangeError for options and for a model that attends by blocks; DUltraError NON_FINITE naming the
 * step, WRITE_FAILED, NO_TOKENIZER; `signal.reason`, after the step under way is finished and saved.
 */
export async function* trainCertainty(
  model: MaskedDiffusionModel,
  options: CertaintyOptions & { signal?: AbortSignal | undefined },
): AsyncGenerator<DistillationMetrics, void, void> {
  yield* distil('dparallel', model, options, resolveCertainty(options), null, {});
}

/**
 * Pseudo-trajectory distillation (d3LLM, arXiv 2601.07568): as {@link trainCertainty}, with the masks of a segment as they
 * were when the teacher decoded the answer, and curricula over the segment's length and the share that is masked.
 * @throws as {@link trainCertainty}; DUltraError BAD_DATASET for trajectories
 */
export async function* trainPseudoTrajectories(
  model: MaskedDiffusionModel,
  options: PseudoTrajectoryOptions & { signal?: AbortSignal | undefined },
): AsyncGenerator<DistillationMetrics, void, void> {
  const checked = resolvePseudoTrajectories(options);
  const { trajectories: source } = options;
  const trajectories = source === undefined ? null : await readTrajectories(source, model.config.maskTokenId);
  yield* distil('d3llm', model, options, checked, trajectories, { trajectories: source ?? null });
}
