// The trainer of GRPO: on-policy reinforcement learning of the unmasking policy.
import { type Dataset, open } from '../../data';
import { openNow } from '../../data/own-data';
import { optionError } from '../../errors';
import type { MaskedDiffusionModel } from '../../generation/masked-diffusion-model';
import type { ModelTrainer } from '../../model/trainer';
import { checkKeys, omit } from '../../options';
import { runStage, type StagePlan } from '../loop';
import { callbacksOf } from '../samples';
import { DecisionGradient } from './decision-gradient';
import { type GrpoOptions, resolveGrpo } from './options';
import { type GrpoMetrics, GrpoStage } from './stage';
import type { TeacherRanks } from './teacher-ranks';
import { TokenGradient } from './token-gradient';

/**
 * Trains base and planner together by on-policy reinforcement learning: groups of completions are drawn from the
 * planner's own policy, rewarded, and every denoising step of the better ones is made more likely. Other objectives
 * ({@link GrpoOptions.objective}) score the tokens of any sampler's completions.
 *
 * ```ts
 * await using trainer = new GrpoTrainer(model, { dataset, maxSteps: 200, rewards: { fast: rewards.fastAnswer() } });
 * for await (const { step, reward, nfe } of trainer.train()) console.log(step, reward, nfe);
 * ```
 */
export class GrpoTrainer {
  readonly #model: MaskedDiffusionModel;
  readonly #options: GrpoOptions;
  /** null until files of examples are read. */
  #plan: Omit<StagePlan, 'signal'> | null;
  #reference: ModelTrainer | null = null;
  readonly #others: TeacherRanks | null;
  #run: AsyncGenerator<GrpoMetrics, void, void> | null = null;

  /** @throws TypeError, RangeError for options (where `dataset` is a file, `train` does); DUltraError NO_PLANNER. */
  constructor(model: MaskedDiffusionModel, options: GrpoOptions);
  /** @internal @param others processes that hold teacher and reference, for which `options` has what stands for them */
  constructor(model: MaskedDiffusionModel, options: GrpoOptions, others: TeacherRanks | null);
  constructor(model: MaskedDiffusionModel, options: GrpoOptions, others: TeacherRanks | null = null) {
    this.#model = model;
    this.#options = options;
    this.#others = others;
    const dataset = openNow(options?.dataset);
    this.#plan = dataset && this.#planOf(dataset);
  }

  #planOf(dataset: Dataset): Omit<StagePlan, 'signal'> {
    const model = this.#model;
    const { training, trainable, data, own } = resolveGrpo(model, this.#options, dataset);
    const { freezeBase, freezePlanner } = trainable;
    const { referenceModel, teacher = null } = this.#options;
    const others = this.#others;
    return {
      kind: 'grpo',
      model,
      data,
      training,
      trainable,
      examplesPerStep: (own.promptsPerStep * training.gradientAccumulation) / own.numIterations,
      own: {
        ...omit(own, ['rewards', 'objective']),
        ...own.objective,
        freezeBase,
        freezePlanner,
        rewards: Object.fromEntries(own.rewards.map(({ name, weight }) => [name, weight])),
      },
      objective: { metric: own.bestBy, goal: own.bestBy === 'evalNfe' ? 'min' : 'max' },
      callbacks: callbacksOf(this.#options),
      samplesEvery: own.samplesEvery,
      start: async (context) => {
        const isCompared = own.beta > 0 && own.objective.klTo === 'reference';
        if (isCompared && referenceModel && !others?.has('reference'))
          this.#reference = await referenceModel.createTrainer({ freezeBase: true, freezePlanner: true });
        const reference =
          this.#reference && referenceModel ? { model: referenceModel, trainer: this.#reference } : null;
        const gradient =
          own.objective.objective === 'dultra'
            ? new DecisionGradient(context, own, reference, others)
            : new TokenGradient(context, own, { reference, teacher }, others);
        return new GrpoStage(context, own, gradient, others);
      },
    };
  }

  /**
   * One yield per optimiser step, after its checkpoint where one is due. Once per trainer.
   * @param options `signal`: finishes the step under way, saves, and throws `signal.reason`
   * @throws DUltraError NON_FINITE naming the step, WRITE_FAILED, BAD_CHECKPOINT; whatever a reward throws.
   */
  train(options: { signal?: AbortSignal | undefined } = {}): AsyncGenerator<GrpoMetrics, void, void> {
    checkKeys('options', options, ['signal']);
    if (this.#run)
      throw optionError(RangeError, 'train', 'expected one call per GrpoTrainer; make another to train on');
    this.#run = this.#steps(options.signal);
    return this.#run;
  }

  async *#steps(signal: AbortSignal | undefined): AsyncGenerator<GrpoMetrics, void, void> {
    this.#plan ??= this.#planOf(await open(this.#options.dataset));
    yield* runStage<GrpoMetrics>({ ...this.#plan, signal });
  }

  /**
   * Ends the training and frees its memory; the model keeps its current weights. Unlike the `dispose` of a model it
   * waits: for the step under way, and for the files of the run to be closed.
   */
  async dispose(): Promise<void> {
    await this.#run?.return();
    this.#reference?.dispose();
    this.#reference = null;
  }

  /** At the end of a `using` block: `dispose()`, which ends after the block where a step is under way. */
  [Symbol.dispose](): void {
    void this.dispose();
  }

  /** `dispose()` at the end of an `await using` block, which waits for it. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
}
