// Planner initialisation: the planner head learns to imitate Fast-dLLM's factor rule, with the base model frozen.
import { open } from '../data';
import { gatherNumbers } from '../distributed/process-group';
import { DUltraError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { attendedGrid, firstBlocks } from '../model/blocks';
import type { NativeScoreResult } from '../native';
import { checkChoice, checkInteger, checkNumber } from '../options';
import { concatenate, mapRows, packed } from '../packing';
import { deriveSeed, Purpose, Random } from '../random';
import { type CheckExample, openData, type TrainingData, type TrainingRow } from './data';
import { type Measured, runStage, type Stage, type StageContext, type TrainingMetrics } from './loop';
import { drawBlock, maskSpan, type PlannerRow } from './masking';
import { resolveTraining, type TrainingOptions } from './options';
import { binaryCrossEntropy, factorTargets, positiveWeight } from './planner-init-loss';
import { callbacksOf } from './samples';
import { BackwardPasses, numbered, ownBatches } from './shares';
import { encodeRow } from './token-rows';

/** Options of {@link trainPlanner}. */
export interface PlannerOptions extends TrainingOptions {
  /** Prompts with answers; the answers are what gets masked. */
  dataset: TrainingData;
  /** Examples per batch. Default 64. */
  batchSize?: number | undefined;
  /** Answers are padded to so many tokens. Default: the data set's; else one end of sequence. */
  maxTokens?: number | undefined;
  /**
   * The factor of the rule that is imitated: position j ≥ 2 by confidence passes while c_j ≥ 1 − factor / (j + 1).
   * Default 1.
   */
  factor?: number | undefined;
  /**
   * Shortest span of an answer, in tokens. Default 32; shorter answers are a span as a whole. Of a model that attends by
   * blocks the span is a block.
   */
  minSpan?: number | undefined;
  /** "reference": the rule's last-pair quirk, and the mask token as a legal prediction. */
  compat?: 'reference' | undefined;
}

/** One step of {@link trainPlanner}. */
export interface PlannerMetrics extends TrainingMetrics {
  /** Share of the candidates that the rule unmasks. */
  positives: number;
  /** Share of the candidates on which planner (p ≥ ½) and rule agree. */
  agreement: number;
  /** On held-out examples, in the steps that evaluate. */
  evalLoss?: number | undefined;
  evalAgreement?: number | undefined;
}

interface StageOptions {
  batchSize: number;
  maxTokens: number | null;
  factor: number;
  minSpan: number;
  reference: boolean;
}

interface Totals {
  loss: number;
  agreeing: number;
  positives: number;
  candidates: number;
  tokens: number;
}

/** A row, and where its answer begins. */
type AnswerRow = PlannerRow & { begin: number };

class PlannerStage implements Stage {
  readonly #context: StageContext;
  readonly #options: StageOptions;

  constructor(context: StageContext, options: StageOptions) {
    this.#context = context;
    this.#options = options;
  }

  #mask(examples: TrainingRow[], random: Random): AnswerRow[] {
    const { model } = this.#context;
    const { maxTokens, minSpan } = this.#options;
    const { maskTokenId } = model.config;
    const { uniform } = random;
    return examples.map((example) => {
      const { ids, begin } = encodeRow(model, example, maxTokens);
      const grid = attendedGrid(model.config, begin);
      if (grid === null) return { ...maskSpan(ids, { begin, minSpan, maskTokenId, uniform }), begin };
      const block = drawBlock(ids.length, { begin, grid, uniform: uniform() });
      const row = maskSpan(ids, { ...block, minSpan: grid.length, maskTokenId, uniform });
      // What stands behind the block, nothing in it sees.
      return { ...row, begin, ids: row.ids.subarray(0, block.end) };
    });
  }

  #score(rows: AnswerRow[], keep: boolean): Promise<NativeScoreResult> {
    const { model, trainer } = this.#context;
    const { maskTokenId } = model.config;
    const timestep = Float32Array.from(rows, (row) => row.timestep);
    const maskIndex = concatenate(
      rows.map(({ ids, positions }) => {
        const flags = new Uint8Array(ids.length);
        for (const position of positions) flags[position] = 1;
        return flags;
      }),
      Uint8Array,
    );
    return trainer.score({
      ...packed(rows),
      firstBlocks: firstBlocks(
        model.config,
        rows.map(({ begin }) => begin),
      ),
      excludedToken: this.#options.reference ? -1 : maskTokenId,
      confidences: true,
      planner: { timestep, maskIndex },
      keep,
    });
  }

  /** 1 for each candidate that the factor rule unmasks, else 0. */
  #targets(rows: AnswerRow[], confidences: Float32Array): Uint8Array {
    const { factor, reference: lastPair } = this.#options;
    return mapRows(confidences, rows, Uint8Array, (part) => factorTargets(part, factor, { lastPair }));
  }

  /**
   * Loss over all rows, whichever process computes them, classes balanced over all of them; adds the gradient of this
   * process's rows where `train`.
   */
  async #run(rows: AnswerRow[], train: boolean): Promise<Totals> {
    const { trainer, training, group } = this.#context;
    const micro = ownBatches([numbered(rows)], ({ item }) => item.ids.length, { ...training, group });
    const batches = micro.map((batch) => batch.map(({ item }) => item));
    const candidates = rows.reduce((sum, { positions }) => sum + positions.length, 0);
    const tokens = rows.reduce((sum, { ids }) => sum + ids.length, 0);
    const targets: Uint8Array[] = [];
    // The class weight needs every target before the first gradient. One batch is scored once; several are scored
    // twice, in place of keeping the activations of all.
    let kept: NativeScoreResult | null = null;
    for (const batch of batches) {
      kept = await this.#score(batch, train && batches.length === 1);
      targets.push(this.#targets(batch, kept.confidences!));
    }
    const own = targets.reduce((sum, part) => sum + part.reduce((count, target) => count + target, 0), 0);
    const positives = (await group.allGather(Float64Array.of(own))).reduce((sum, [count]) => sum + count, 0);
    const weight = positiveWeight(positives, candidates);
    // By the first row of each batch.
    const measured = new Map<number, [loss: number, agreeing: number]>();
    const passes = new BackwardPasses(trainer, { group, zeroStage: training.zeroStage });
    for (let i = 0; i < batches.length; i++) {
      const { plannerLogits } = batches.length === 1 && kept ? kept : await this.#score(batches[i], train);
      const { loss, dLogits } = binaryCrossEntropy(plannerLogits!, targets[i], weight, 1 / candidates);
      const agreeing = plannerLogits!.filter((z, k) => z >= 0 === (targets[i][k] === 1)).length;
      measured.set(micro[i][0].index, [loss, agreeing]);
      if (train) await passes.add({ dPlannerLogits: dLogits }, batches.length);
    }
    if (train) await passes.end();
    const all = await gatherNumbers(group, rows.length, 2, measured);
    const totals: Totals = { loss: 0, agreeing: 0, positives, candidates, tokens };
    for (let row = 0; row < rows.length; row++) {
      totals.loss += all[2 * row];
      totals.agreeing += all[2 * row + 1];
    }
    return totals;
  }

  async accumulate(step: number): Promise<Measured> {
    const { data, training } = this.#context;
    const { batchSize } = this.#options;
    const examples = data.train(step, batchSize * training.gradientAccumulation);
    const rows = this.#mask(examples, new Random(deriveSeed(training.seed, Purpose.masks, step)));
    const { loss, agreeing, positives, candidates, tokens } = await this.#run(rows, true);
    return { loss, tokens, positives: positives / candidates, agreement: agreeing / candidates };
  }

  async evaluate(): Promise<Record<string, number>> {
    const { data, training } = this.#context;
    const examples = data.validation!(training.evalExamples);
    const rows = this.#mask(examples, new Random(deriveSeed(training.seed, Purpose.evaluation)));
    const { loss, agreeing, candidates } = await this.#run(rows, false);
    return { evalLoss: loss, evalAgreement: agreeing / candidates };
  }
}

/**
 * Checks {@link PlannerOptions} as far as they do not depend on a model and on data, and fills in defaults. @throws
 * TypeError, RangeError naming the option.
 */
export function resolvePlanner(options: PlannerOptions) {
  const defaults = {
    learningRate: 1e-5,
    schedule: 'cosine',
    warmupSteps: 0,
    learningRateFloor: 0.01,
    betas: [0.9, 0.99],
    weightDecay: 0.01,
  } as const;
  const training = resolveTraining('planner', options, defaults, ['signal']);
  const { batchSize = 64, factor = 1, minSpan = 32, compat } = options;
  checkInteger('batchSize', batchSize, { min: 1, max: 1 << 20 });
  checkNumber('factor', factor, { min: 0, max: 1e6 });
  checkInteger('minSpan', minSpan, { min: 1, max: 1 << 30 });
  if (compat !== undefined) checkChoice('compat', compat, ['reference'] as const);
  if (options.maxTokens !== undefined) checkInteger('maxTokens', options.maxTokens, { min: 1, max: 1 << 30 });
  return { training, batchSize, factor, minSpan, compat };
}

/**
 * Trains the planner head alone: it learns which masked positions Fast-dLLM's factor rule would unmask, so that GRPO
 * begins with a planner that decodes about as well as that rule. One yield per optimiser step; leaving the loop ends
 * the training.
 * @throws as {@link trainMaskedDiffusion}; DUltraError NO_PLANNER.
 */
export async function* trainPlanner(
  model: MaskedDiffusionModel,
  options: PlannerOptions & { signal?: AbortSignal | undefined },
): AsyncGenerator<PlannerMetrics, void, void> {
  const { training, batchSize, factor, minSpan, compat } = resolvePlanner(options);
  if (!model.hasPlanner) throw new DUltraError('NO_PLANNER', `${model.source} has no planner head to train`);
  const fits: CheckExample = (row, own) => void encodeRow(model, row, options.maxTokens ?? own);
  const data = openData(await open(options.dataset), training.seed, training.mixture, {
    train: fits,
    validation: fits,
  });
  const maxTokens = options.maxTokens ?? data.maxTokens;
  yield* runStage<PlannerMetrics>({
    kind: 'planner',
    model,
    data,
    training,
    trainable: { freezeBase: true, lora: null },
    examplesPerStep: batchSize * training.gradientAccumulation,
    own: { batchSize, maxTokens, factor, minSpan, compat: compat ?? null },
    objective: { metric: 'evalLoss', goal: 'min' },
    signal: options.signal,
    callbacks: callbacksOf(options),
    start: (context) =>
      new PlannerStage(context, { batchSize, maxTokens, factor, minSpan, reference: compat === 'reference' }),
  });
}
