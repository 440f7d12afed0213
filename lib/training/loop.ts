// The loop that all trainers share: optimiser steps, learning rates, evaluation, logs, checkpoints, stopping.
import { type ProcessGroup, SINGLE_PROCESS } from '../distributed/process-group';
import { DUltraError, isDUltraError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import type { LoraOptions, ModelTrainer, ModelTrainerOptions } from '../model/trainer';
import type { DataSource } from './data';
import type { ResolvedTraining } from './options';
import { type MetricsLine, RunFolder, type RunState } from './run-folder';
import { learningRateFactor } from './schedules';

/** Metrics of every trainer's step. */
export interface TrainingMetrics {
  /** Optimiser steps done, from 1. */
  step: number;
  /** Steps of the whole run. */
  maxSteps: number;
  /** What the step minimised, over its whole batch. */
  loss: number;
  /** Global norm of the gradient before clipping. */
  gradNorm: number;
  /** Of the base model and its adapters, in this step. */
  learningRate: number;
  /** Of the planner, in this step. */
  plannerLearningRate: number;
  /** Tokens that went through the model in this step, forward passes counted once each. */
  tokens: number;
  /** tokens / seconds. */
  tokensPerSecond: number;
  /** Time of this step, evaluation and checkpoints left out. */
  seconds: number;
}

/** What a trainer measured in one step. */
export type Measured = { loss: number; tokens: number } & Record<string, number>;

/** The part of the loop in which trainers differ. */
export interface Stage {
  /** Adds the gradients of step `step` (from 0) to the trainer. */
  accumulate(step: number): Promise<Measured>;
  /** Measures on held-out examples. */
  evaluate?(): Promise<Record<string, number>>;
  /** Steps that share one batch: checkpoints fall between batches. Default 1. */
  stepsPerBatch?: number;
}

/** What a stage works with. */
export interface StageContext {
  model: MaskedDiffusionModel;
  trainer: ModelTrainer;
  data: DataSource;
  training: ResolvedTraining;
  /** The processes whose rows make up a step. */
  group: ProcessGroup;
}

/** A whole run: what {@link runStage} takes. */
export interface StagePlan {
  kind: 'sft' | 'planner' | 'grpo';
  model: MaskedDiffusionModel;
  data: DataSource;
  training: ResolvedTraining;
  trainable: Omit<ModelTrainerOptions, 'lora'> & { lora: LoraOptions | null };
  /** Examples that one optimiser step takes from the data. */
  examplesPerStep: number;
  /** The trainer's own options, for config.json. */
  own: Readonly<Record<string, unknown>>;
  /** The evaluation metric that decides what is best. */
  objective: { metric: string; goal: 'min' | 'max' };
  /** Makes the stage. */
  start(context: StageContext): Stage | Promise<Stage>;
  signal: AbortSignal | undefined;
}

const { version } = require('../../package.json') as { version: string };

/** Number of optimiser steps. */
function stepsOf({ maxSteps, epochs }: ResolvedTraining, { size, name }: DataSource, examplesPerStep: number): number {
  if (maxSteps !== null) return maxSteps;
  if (size === null) throw new RangeError(`maxSteps: expected a number of steps, since "${name}" is endless`);
  return Math.max(1, Math.ceil((size * (epochs ?? 1)) / examplesPerStep));
}

function describe(
  plan: StagePlan,
  maxSteps: number,
): { kind: string; options: Record<string, unknown> } & Record<string, unknown> {
  const { kind, model, data, training, trainable, own } = plan;
  const { lora } = trainable;
  return {
    kind,
    version,
    node: process.version,
    startedAt: new Date().toISOString(),
    seed: training.seed.toString(),
    maxSteps,
    model: { source: model.source, config: model.config },
    device: model.info,
    dataset: { name: data.name, size: data.size },
    options: { ...training, seed: training.seed.toString(), lora, ...own },
  };
}

/** Runs a stage to its end: one yield per optimiser step, after its checkpoint is written where one is due. */
export async function* runStage<M extends TrainingMetrics>(plan: StagePlan): AsyncGenerator<M, void, void> {
  const { kind, model, data, training, trainable, examplesPerStep, objective, signal } = plan;
  signal?.throwIfAborted();
  const maxSteps = stepsOf(training, data, examplesPerStep);
  if (training.evalEvery > 0 && !data.validation)
    throw new RangeError('evalEvery: expected a dataset with validation examples, got one without');
  const { outputDir, resume, keepLast, tensorboard, betas, eps, weightDecay, maxGradNorm } = training;
  const run =
    outputDir === null ? null : await RunFolder.open(outputDir, describe(plan, maxSteps), { resume, keepLast });
  const { lora, ...rest } = trainable;
  let trainer: ModelTrainer;
  try {
    const { activationCheckpointing, momentDtype, seed } = training;
    trainer = await model.createTrainer({ ...rest, lora, activationCheckpointing, momentDtype, seed });
  } catch (error) {
    await run?.close();
    throw error;
  }
  let lastGood: string | null = null;
  let state: RunState = { kind, step: 0, best: null, evaluationsWithoutBest: 0 };
  try {
    const restored = (await run?.restore(trainer)) ?? null;
    if (restored) {
      state = restored;
      lastGood = run?.checkpointFolder(state.step) ?? null;
    }
    await run?.openLogs(state.step, { tensorboard });
    const stage = await plan.start({ model, trainer, data, training, group: SINGLE_PROCESS });
    const { stepsPerBatch = 1 } = stage;
    let saveDue = false;
    let savedStep = state.step;
    const save = async () => {
      if (!run || savedStep === state.step) return;
      await run.save(model, trainer, state);
      savedStep = state.step;
      lastGood = run.checkpointFolder(state.step);
    };
    const exhausted = () => training.patience !== null && state.evaluationsWithoutBest >= training.patience;
    while (state.step < maxSteps && !exhausted()) {
      const { step } = state;
      const begin = performance.now();
      const factor = learningRateFactor(step, { ...training, floor: training.learningRateFloor, totalSteps: maxSteps });
      const learningRate = training.learningRate * factor;
      const plannerLearningRate = training.plannerLearningRate * factor;
      let measured: Measured;
      let gradNorm: number;
      try {
        measured = await stage.accumulate(step);
        if (!Number.isFinite(measured.loss)) throw new DUltraError('NON_FINITE', `the loss is ${measured.loss}`);
        const [beta1, beta2] = betas;
        const update = {
          baseLr: learningRate,
          plannerLr: plannerLearningRate,
          beta1,
          beta2,
          eps,
          weightDecay,
          maxGradNorm,
        };
        ({ gradNorm } = await trainer.step(update));
      } catch (cause) {
        if (!isDUltraError(cause, 'NON_FINITE')) throw cause;
        const good = lastGood ? `; the last good checkpoint is ${lastGood}` : '';
        throw new DUltraError(
          'NON_FINITE',
          `step ${step + 1}: ${cause.message}; the weights are those of before this step${good}`,
          {
            cause,
          },
        );
      }
      const seconds = (performance.now() - begin) / 1000;
      state = { ...state, step: step + 1 };
      const { loss, tokens, ...others } = measured;
      const metrics: Record<string, number> = {
        step: state.step,
        maxSteps,
        loss,
        ...others,
        gradNorm,
        learningRate,
        plannerLearningRate,
        tokens,
        tokensPerSecond: tokens / Math.max(seconds, 1e-9),
        seconds,
      };
      const isLast = state.step === maxSteps;
      if (stage.evaluate && training.evalEvery > 0 && (state.step % training.evalEvery === 0 || isLast)) {
        const evaluation = await stage.evaluate();
        Object.assign(metrics, evaluation);
        const value = evaluation[objective.metric];
        const better =
          state.best === null || (objective.goal === 'min' ? value < state.best.value : value > state.best.value);
        state = better
          ? { ...state, best: { step: state.step, value }, evaluationsWithoutBest: 0 }
          : { ...state, evaluationsWithoutBest: state.evaluationsWithoutBest + 1 };
        saveDue ||= better;
      }
      saveDue ||= training.saveEvery > 0 && state.step % training.saveEvery === 0;
      await run?.log({ time: Date.now() / 1000, ...metrics } as MetricsLine);
      // In the middle of a batch's updates there is nothing that could be continued from.
      const between = state.step % stepsPerBatch === 0;
      const ending = isLast || exhausted();
      if (ending || (between && saveDue)) {
        await save();
        saveDue = false;
      }
      yield metrics as unknown as M;
      if (signal?.aborted && between && !ending) {
        await save();
        throw signal.reason;
      }
    }
  } finally {
    trainer.dispose();
    await run?.close();
  }
}
