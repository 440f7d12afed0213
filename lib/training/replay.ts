// Rollouts as rows that can be scored again: every (rollout, step) pair is an independent forward pass over the row as it was before
// the step.
import type { MaskedDiffusionModel } from '../model/masked-diffusion-model';
import type { NativeScoreRequest } from '../native';
import type { GenerateOptions, GenerateResult } from '../types';
import { concatenate, offsetsOf, packRows } from './packing';

/** One step of one rollout. Candidate arrays are parallel, in ascending position. */
export interface ReplayRow {
  /** Index of the rollout. */
  rollout: number;
  /** The row's own steps, from 0. */
  step: number;
  /** Ids before the step. */
  ids: Int32Array;
  /** Candidates: in-row positions, tokens drawn for them, and 1 where unmasked. */
  positions: Int32Array;
  tokens: Int32Array;
  selected: Uint8Array;
  /** Nothing was selected and one position was let through. */
  forced: boolean;
  timestep: number;
  /** Parts of the step's log-likelihood under the policy that made it. */
  oldLogLikelihoods: Float32Array;
}

/** The policy's settings: they must be the same in rollout and replay. */
export interface PolicySettings {
  temperature: number;
  tokenLogProb: 'tempered' | 'untempered';
  plannerTemperature: number;
  probabilityScale: number;
  forcedStep: 'exact' | 'reference';
  compat: 'reference' | null;
}

/** Completions and every step that made them. */
export interface Rollouts {
  results: GenerateResult[];
  steps: ReplayRow[];
  /** Tokens that went through the model. */
  tokens: number;
}

/**
 * Completes prompts under the policy (each position unmasked with its own probability) and records every step.
 * @param prompts ids of each row's prompt
 * @param options.seed of the draws; row i draws as row i, however rows are batched
 */
export async function recordRollouts(
  model: MaskedDiffusionModel,
  prompts: readonly Int32Array[],
  options: Pick<GenerateOptions, 'genLength' | 'blockLength' | 'stopAtEos'> & { policy: PolicySettings; seed: bigint; tokenBudget: number },
): Promise<Rollouts> {
  const { policy, seed, tokenBudget, genLength, blockLength, stopAtEos } = options;
  const rollouts: Rollouts = { results: [], steps: [], tokens: 0 };
  for (const batch of packRows(prompts, (prompt) => prompt.length + genLength!, tokenBudget)) {
    const first = rollouts.results.length;
    const current: Int32Array[] = batch.map((prompt) => {
      const ids = new Int32Array(prompt.length + genLength!).fill(model.config.maskTokenId);
      ids.set(prompt);
      return ids;
    });
    const steps = new Int32Array(batch.length);
    const run = model.denoise(
      batch.map((promptIds) => ({ promptIds })),
      {
        sampler: {
          type: 'planner',
          select: 'bernoulli',
          plannerTemperature: policy.plannerTemperature,
          probabilityScale: policy.probabilityScale,
        },
        genLength,
        blockLength,
        ...(stopAtEos !== undefined && { stopAtEos }),
        temperature: policy.temperature,
        tokenLogProb: policy.tokenLogProb,
        forcedStep: policy.forcedStep,
        seed,
        firstRow: first,
        ...(policy.compat && { compat: policy.compat }),
      },
    );
    let next = await run.next();
    for (; !next.done; next = await run.next()) {
      for (const row of next.value.rows) {
        const { positions, tokens, selected, forced, timestep, logLikelihoods } = row;
        const ids = current[row.row];
        rollouts.steps.push({
          rollout: first + row.row,
          step: steps[row.row]++,
          ids,
          positions,
          tokens,
          selected,
          forced,
          timestep,
          oldLogLikelihoods: logLikelihoods,
        });
        rollouts.tokens += ids.length;
        current[row.row] = row.ids;
      }
    }
    rollouts.results.push(...next.value);
  }
  return rollouts;
}

/** The score request that computes the steps' log-likelihoods again, in the order of the rows. */
export function replayRequest(
  rows: readonly ReplayRow[],
  policy: PolicySettings,
  { maskTokenId, keep }: { maskTokenId: number; keep: boolean },
): NativeScoreRequest {
  const maskIndex = rows.map(({ ids, positions }) => {
    const flags = new Uint8Array(ids.length);
    for (const position of positions) flags[position] = 1;
    return flags;
  });
  return {
    ids: concatenate(
      rows.map(({ ids }) => ids),
      Int32Array,
    ),
    offsets: offsetsOf(rows.map(({ ids }) => ids.length)),
    hidden: null,
    candidateOffsets: offsetsOf(rows.map(({ positions }) => positions.length)),
    positions: concatenate(
      rows.map(({ positions }) => positions),
      Int32Array,
    ),
    tokens: concatenate(
      rows.map(({ tokens }) => tokens),
      Int32Array,
    ),
    temperature: policy.tokenLogProb === 'tempered' ? policy.temperature : 0,
    excludedToken: maskTokenId,
    confidences: false,
    logits: false,
    planner: { timestep: Float32Array.from(rows, ({ timestep }) => timestep), maskIndex: concatenate(maskIndex, Uint8Array) },
    policy: {
      selected: concatenate(
        rows.map(({ selected }) => selected),
        Uint8Array,
      ),
      forced: Uint8Array.from(rows, ({ forced }) => Number(forced)),
      plannerTemperature: policy.plannerTemperature,
      probabilityScale: policy.probabilityScale,
      referenceLikelihood: policy.forcedStep === 'reference',
    },
    keep,
  };
}

/** An array per candidate cut into one part per row. */
export function splitByRow(values: Float32Array, rows: readonly ReplayRow[]): Float32Array[] {
  let at = 0;
  return rows.map(({ positions }) => {
    at += positions.length;
    return values.subarray(at - positions.length, at);
  });
}
