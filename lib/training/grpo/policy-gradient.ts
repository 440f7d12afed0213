// What a policy gradient does with a batch, whatever its objective: rollouts, what stays as it was over the updates of the
// batch, and the gradients of an update.

import type { MaskedDiffusionModel } from '../../generation/masked-diffusion-model';
import type { GenerateResult } from '../../generation/types';
import type { ModelTrainer } from '../../model/trainer';
import type { TrainingRow } from '../data';
import type { Measured, StageContext } from '../loop';
import type { Rollouts } from './replay';

/** The frozen reference model and the trainer that scores it. */
export interface ReferenceScorer {
  model: MaskedDiffusionModel;
  trainer: ModelTrainer;
}

/** Which batch of a run rollouts are of, and the example of each of them. */
export interface Batch {
  batch: number;
  examples: readonly TrainingRow[];
  /** What a teacher on other processes has said of the tokens of each of them; null: there is none. */
  teacher: Float32Array[] | null;
}

/** Gets completions as they are there, with the place of the first of them among the prompts. */
export type OnBatch = (first: number, results: readonly GenerateResult[]) => void;

/** One objective at work. */
export interface PolicyGradient {
  /** Completes prompts under the policy as it is. @param firstRow number of the first one among those of all processes */
  record(prompts: readonly Int32Array[], seed: bigint, firstRow: number, onBatch: OnBatch): Promise<Rollouts>;
  /**
   * Takes rollouts with an advantage each; the updates that follow are of them. @returns metrics of the batch
   */
  begin(rollouts: Rollouts, advantages: Float64Array, batch: Batch): Promise<Record<string, number>>;
  /** Adds the gradients of an update of the batch, from 0. */
  update(iteration: number): Promise<Measured>;
}

/** Some rollouts of a batch, in their order. @param kept indices, ascending */
export function selectRollouts({ results, steps, tokens }: Rollouts, kept: readonly number[]): Rollouts {
  const place = new Map(kept.map((rollout, i) => [rollout, i]));
  return {
    results: kept.map((rollout) => results[rollout]),
    steps: steps.flatMap((step) => {
      const rollout = place.get(step.rollout);
      return rollout === undefined ? [] : [{ ...step, rollout }];
    }),
    tokens,
  };
}

/** Batches of rollouts as one. */
export function joinRollouts(parts: readonly Rollouts[]): Rollouts {
  if (parts.length === 1) return parts[0];
  const joined: Rollouts = { results: [], steps: [], tokens: 0 };
  for (const { results, steps, tokens } of parts) {
    const before = joined.results.length;
    joined.results.push(...results);
    for (const step of steps) joined.steps.push({ ...step, rollout: before + step.rollout });
    joined.tokens += tokens;
  }
  return joined;
}

/** Runs `body` with the reference: a model of its own, or the model that trains without its adapters. */
export async function withReference<T>(
  { model, trainer }: Pick<StageContext, 'model' | 'trainer'>,
  reference: ReferenceScorer | null,
  body: (scorer: ReferenceScorer) => Promise<T>,
): Promise<T> {
  if (reference) return body(reference);
  await trainer.setAdapters('off');
  try {
    return await body({ model, trainer });
  } finally {
    await trainer.setAdapters('on');
  }
}
