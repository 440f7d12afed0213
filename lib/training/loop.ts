// The loop that all trainers share: optimiser steps, learning rates, evaluation, logs, checkpoints, stopping.
import { checkAlike } from '../distributed/alike';
import { currentGroup } from '../distributed/mpi';
import { numbersOfFirst, type ProcessGroup } from '../distributed/process-group';
import { DUltraError, isDUltraError, optionError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import type { LoraOptions, ModelTrainer, ModelTrainerOptions } from '../model/trainer';
import { exceeds } from '../statistics';
import type { DataSource } from './data';
import { hashOfData } from './data-hash';
import type { ResolvedTraining } from './options';
import type { Stage as StageName } from './presets';
import { type MetricsLine, RunFolder, type RunState } from './run-folder';
import type { CompletionSample, RunStart, TrainingCallbacks } from './samples';
import { learningRateFactor } from './schedules';

/** Metrics of every trainer, for one step: one update by the optimiser. */
export interface TrainingMetrics {
  /** Optimiser steps done, from 1. */
  step: number;
  /** Steps of the whole run. */
  maxSteps: number;
  /** Loss of this update, over its whole batch. */
  loss: number;
  /** Global norm of the gradient before clipping. */
  gradNorm: number;
  /** Learning rate of the base model and its adapters in this update. */
  learningRate: number;
  /** Learning rate of the planner in this update. */
  plannerLearningRate: number;
  /** Tokens that went through the model in this step, forward passes counted once each. */
  tokens: number;
  /** tokens / seconds. */
  tokensPerSecond: number;
  /** Time of this step, evaluation and checkpoints left out. */
  seconds: number;
  /**
   * Examples that do not fit the model, where there are any: of a finite set, those that are left out; of an endless
   * one, those of this step in whose place others were drawn.
   */
  skippedExamples?: number;
}

/** What a trainer measured in one step. */
export type Measured = { loss: number; tokens: number } & Record<string, number>;

/** The part of the loop in which trainers differ. */
export interface Stage {
  /** Adds the gradients of step `step` (from 0) to the trainer. */
  accumulate(step: number): Promise<Measured>;
  /** Measures on held-out examples; every process takes part. */
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
  /** Steps of the whole run. */
  maxSteps: number;
  /** The processes whose rows make up a step. */
  group: ProcessGroup;
  /** Takes completions to show: of a batch of rollouts, or of an evaluation. */
  show(split: CompletionSample['split'], samples: readonly Omit<CompletionSample, 'step' | 'split'>[]): void;
}

/** A whole run: what {@link runStage} takes. */
export interface StagePlan {
  kind: StageName;
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
  callbacks: TrainingCallbacks;
  /** Rollouts are shown every so many steps; 0: never. Default 0. */
  samplesEvery?: number;
}

const { version } = require('../../package.json') as { version: string };

/** Number of optimiser steps. */
function stepsOf({ maxSteps, epochs }: ResolvedTraining, { size, name }: DataSource, examplesPerStep: number): number {
  if (maxSteps !== null) return maxSteps;
  if (size === null)
    throw optionError(RangeError, 'maxSteps', `expected a number of steps, since "${name}" is endless`);
  return Math.max(1, Math.ceil((size * (epochs ?? 1)) / examplesPerStep));
}

/** Examples of a finite set that do not fit; of an endless one, others are drawn in their places. */
const leftOut = (data: DataSource): number => (data.size === null ? 0 : data.skipped());

/** What config.json of a run folder holds. */
function describe(plan: StagePlan, maxSteps: number) {
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
    dataset: { name: data.name, size: data.size, skipped: leftOut(data) },
    options: { ...training, seed: training.seed.toString(), lora, ...own },
  };
}

/** The state of a run between its steps. */
class Run<M extends TrainingMetrics> {
  readonly #plan: StagePlan;
  readonly #maxSteps: number;
  readonly #group: ProcessGroup;
  /** What rank 0 writes; null on other ranks, and where nothing is written. */
  readonly #folder: RunFolder | null;
  readonly #trainer: ModelTrainer;
  #state: RunState;
  /** Folder of the last checkpoint. */
  #lastGood: string | null = null;
  #savedStep = 0;
  #saveDue = false;
  /** Completions to show of the step under way. */
  #samples: CompletionSample[] = [];

  constructor(plan: StagePlan, maxSteps: number, group: ProcessGroup, folder: RunFolder | null, trainer: ModelTrainer) {
    this.#plan = plan;
    this.#maxSteps = maxSteps;
    this.#group = group;
    this.#folder = folder;
    this.#trainer = trainer;
    this.#state = { kind: plan.kind, step: 0, best: null, evaluationsWithoutBest: 0 };
  }

  /** All steps from the last checkpoint on. */
  async *train(): AsyncGenerator<M, void, void> {
    const { model, data, training, signal } = this.#plan;
    const group = this.#group;
    await this.#restore();
    const { samplesEvery = 0, callbacks } = this.#plan;
    let stepsPerBatch = 1;
    const context: StageContext = {
      ...{ model, trainer: this.#trainer, data, training, maxSteps: this.#maxSteps, group },
      show: (split, samples) => {
        const { step } = this.#state;
        // An evaluation follows its step; the rollouts of a batch begin one.
        const isDue = split === 'validation' || (samplesEvery > 0 && step % samplesEvery < stepsPerBatch);
        const done = split === 'validation' ? step : step + 1;
        if (isDue) this.#samples.push(...samples.map((sample) => ({ step: done, split, ...sample })));
      },
    };
    const stage = await this.#plan.start(context);
    stepsPerBatch = stage.stepsPerBatch ?? 1;
    const exchange = await this.#connect();
    callbacks.onStart?.(this.#describeStart(exchange));
    while (!this.#isOver) {
      const metrics = await this.#update(stage);
      const { step } = this.#state;
      const { evalEvery, saveEvery } = training;
      if (stage.evaluate && evalEvery > 0 && (step % evalEvery === 0 || step === this.#maxSteps))
        Object.assign(metrics, this.#judge(await numbersOfFirst(group, await stage.evaluate())));
      this.#saveDue ||= saveEvery > 0 && step % saveEvery === 0;
      await this.#folder?.log({ time: Date.now() / 1000, ...metrics } as MetricsLine);
      await this.#showSamples();
      // A run cannot continue from the middle of a batch's updates.
      const isBetween = step % stepsPerBatch === 0;
      const isOver = this.#isOver;
      if (isOver || (isBetween && this.#saveDue)) await this.#save();
      yield metrics as unknown as M;
      // All processes stop at the same step, or none.
      if (isBetween && !isOver && (await this.#isStopped())) {
        await this.#save();
        await group.barrier();
        throw signal?.aborted
          ? signal.reason
          : new DUltraError('DISTRIBUTED', `another process was stopped; step ${step} is the last one`);
      }
    }
  }

  /** Whether any process was told to stop. */
  async #isStopped(): Promise<boolean> {
    const flags = await this.#group.allGather(Float64Array.of(Number(this.#plan.signal?.aborted ?? false)));
    return flags.some(([flag]) => flag === 1);
  }

  /** Connects the GPUs of all processes, if they can be. */
  async #connect(): Promise<RunStart['exchange']> {
    const processes = this.#group.size;
    if (processes === 1) return null;
    const { version, reason } = await this.#trainer.connect();
    return { processes, nccl: version || null, reason: reason || null };
  }

  #describeStart(exchange: RunStart['exchange']): RunStart {
    const { model, data, training } = this.#plan;
    const { name, size } = data;
    const heldOut = training.evalEvery > 0 ? data.validation!(training.evalExamples).length : 0;
    const sizes = this.#trainer.parameters().map(({ shape }) => shape.reduce((product, length) => product * length, 1));
    return {
      step: this.#state.step,
      maxSteps: this.#maxSteps,
      dataset: { name, size, skipped: leftOut(data), heldOut },
      parameters: model.info.parameters,
      trainable: sizes.reduce((sum, count) => sum + count, 0),
      exchange,
      outputDir: training.outputDir,
    };
  }

  async #showSamples(): Promise<void> {
    const samples = this.#samples;
    if (samples.length === 0) return;
    this.#samples = [];
    await this.#folder?.logSamples(samples);
    this.#plan.callbacks.onSamples?.(samples);
  }

  get #isOver(): boolean {
    const { patience } = this.#plan.training;
    return this.#state.step >= this.#maxSteps || (patience !== null && this.#state.evaluationsWithoutBest >= patience);
  }

  async #restore(): Promise<void> {
    const { outputDir } = this.#plan.training;
    const stored = this.#folder ?? (outputDir === null ? null : RunFolder.reader(outputDir));
    const restored = await stored?.restore(this.#trainer);
    if (restored) {
      this.#state = restored;
      this.#lastGood = stored?.checkpointFolder(restored.step) ?? null;
    }
    await this.#checkAlike();
    if (restored) await this.#folder?.tidy(restored);
    this.#savedStep = this.#state.step;
    const { freezeBase = false, freezePlanner = false, lora } = this.#plan.trainable;
    await this.#folder?.openLogs(this.#state.step, {
      tensorboard: this.#plan.training.tensorboard,
      // Rates of what does not train are no series.
      unplotted: [
        ...(freezeBase && !lora ? ['learningRate'] : []),
        ...(freezePlanner || !this.#plan.model.hasPlanner ? ['plannerLearningRate'] : []),
      ],
    });
  }

  /** @throws DUltraError DISTRIBUTED where processes would not train the same thing */
  async #checkAlike(): Promise<void> {
    if (this.#group.size === 1) return;
    const { model, data, examplesPerStep } = this.#plan;
    const { kind, version, node, options, dataset, device } = describe(this.#plan, this.#maxSteps);
    const { isa } = device;
    const settings = Object.fromEntries(
      Object.entries(options).flatMap(([key, value]) => (key === 'outputDir' ? [] : [[`option ${key}`, value]])),
    );
    await checkAlike(this.#group, {
      ...{ 'version of dultra': version, 'version of Node.js': node, stage: kind, ...settings },
      ...{ 'number of steps': this.#maxSteps, 'data set': dataset, examples: hashOfData(data, examplesPerStep) },
      // Their updates would round otherwise, and the models drift apart.
      ...{ 'instruction set': isa, model: await model.weightsHash() },
      'last checkpoint': this.#state.step,
    });
  }

  async #save(): Promise<void> {
    this.#saveDue = false;
    const { step } = this.#state;
    const { outputDir, zeroStage } = this.#plan.training;
    if (outputDir === null || this.#savedStep === step) return;
    this.#savedStep = step;
    if (this.#folder) {
      await this.#folder.save(this.#plan.model, this.#trainer, this.#state);
      this.#lastGood = this.#folder.checkpointFolder(step);
    } else if (zeroStage > 0) {
      // Rank 0 gathers it for the checkpoint.
      await this.#trainer.state();
    }
  }

  /** One optimiser step and its metrics. */
  async #update(stage: Stage): Promise<Record<string, number>> {
    const { training } = this.#plan;
    const { step } = this.#state;
    const begin = performance.now();
    const totalSteps = this.#maxSteps;
    const factor = learningRateFactor(step, { ...training, floor: training.learningRateFloor, totalSteps });
    const learningRate = training.learningRate * factor;
    const plannerLearningRate = training.plannerLearningRate * factor;
    const { measured, gradNorm } = await this.#descend(stage, learningRate, plannerLearningRate);
    const seconds = (performance.now() - begin) / 1000;
    this.#state = { ...this.#state, step: step + 1 };
    const { loss, tokens, ...others } = measured;
    const skippedExamples = this.#plan.data.skipped();
    return {
      step: step + 1,
      maxSteps: this.#maxSteps,
      loss,
      ...others,
      gradNorm,
      learningRate,
      plannerLearningRate,
      tokens,
      tokensPerSecond: tokens / Math.max(seconds, 1e-9),
      seconds,
      ...(skippedExamples > 0 && { skippedExamples }),
    };
  }

  /** Accumulates the gradients of a step and moves the weights along them. */
  async #descend(stage: Stage, baseLr: number, plannerLr: number): Promise<{ measured: Measured; gradNorm: number }> {
    const { betas, eps, weightDecay, maxGradNorm } = this.#plan.training;
    const [beta1, beta2] = betas;
    const { step } = this.#state;
    try {
      const measured = await stage.accumulate(step);
      if (!Number.isFinite(measured.loss)) throw new DUltraError('NON_FINITE', `the loss is ${measured.loss}`);
      const update = { baseLr, plannerLr, beta1, beta2, eps, weightDecay, maxGradNorm };
      const { gradNorm } = await this.#trainer.step(update);
      return { measured, gradNorm };
    } catch (cause) {
      if (!isDUltraError(cause, 'NON_FINITE')) throw cause;
      const good = this.#lastGood ? `; the last good checkpoint is ${this.#lastGood}` : '';
      throw new DUltraError(
        'NON_FINITE',
        `step ${step + 1}: ${cause.message}; the weights are those of before this step${good}`,
        { cause },
      );
    }
  }

  /** Notes whether an evaluation is the best so far; returns it. */
  #judge(evaluation: Record<string, number>): Record<string, number> {
    const { metric, goal } = this.#plan.objective;
    const { step, best, evaluationsWithoutBest } = this.#state;
    const value = evaluation[metric];
    const isBetter =
      Number.isFinite(value) &&
      (best === null || (goal === 'min' ? exceeds(best.value, value) : exceeds(value, best.value)));
    this.#state = isBetter
      ? { ...this.#state, best: { step, value }, evaluationsWithoutBest: 0 }
      : { ...this.#state, evaluationsWithoutBest: evaluationsWithoutBest + 1 };
    this.#saveDue ||= isBetter;
    return evaluation;
  }
}

/** Runs a stage to its end: one yield per optimiser step, after its checkpoint is written if one is due. */
export async function* runStage<M extends TrainingMetrics>(plan: StagePlan): AsyncGenerator<M, void, void> {
  const { model, data, training, trainable, examplesPerStep, signal } = plan;
  signal?.throwIfAborted();
  const maxSteps = stepsOf(training, data, examplesPerStep);
  if (training.evalEvery > 0 && !data.validation)
    throw optionError(RangeError, 'evalEvery', 'expected a dataset with validation examples, got one without');
  const { outputDir, resume, keepLast } = training;
  const group = currentGroup();
  // Whatever can be refused is refused before a folder is made: the examples of the first step, and of evaluations.
  data.train(0, Math.max(1, Math.ceil(examplesPerStep)));
  if (training.evalEvery > 0) data.validation!(training.evalExamples);
  const isWritten = outputDir !== null && group.rank === 0;
  const described = () => describe(plan, maxSteps);
  if (isWritten) await RunFolder.check(outputDir, described(), { resume });
  const { activationCheckpointing, momentDtype, reduction, zeroStage, seed } = training;
  const options = { ...trainable, activationCheckpointing, momentDtype, reduction, zeroStage, seed };
  const trainer = await model.createTrainer(options);
  try {
    const folder = isWritten ? await RunFolder.open(outputDir, described(), { resume, keepLast }) : null;
    // Others read what the first one has opened.
    await group.barrier();
    try {
      yield* new Run<M>(plan, maxSteps, group, folder, trainer).train();
    } finally {
      await folder?.close();
    }
  } finally {
    trainer.dispose();
  }
}
