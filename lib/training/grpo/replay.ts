// Rollouts as rows that can be scored again: every (rollout, step) pair is an independent forward pass over the row as
// it was before the step. With a cache the steps of a rollout depend on each other: they are scored in their order, on
// a cache that they fill as the rollout did.
import { generateRecorded } from '../../generation/generate';
import type { MaskedDiffusionModel } from '../../generation/masked-diffusion-model';
import type { GenerateOptions, GenerateResult } from '../../generation/types';
import { firstBlocks, rowLength } from '../../model/blocks';
import type { ModelConfig } from '../../model/config';
import type { NativeScoreRequest } from '../../native';
import { omit } from '../../options';
import { concatenate, packed, packRows, range } from '../../packing';
import type { ResolvedCache } from '../../sampling/caches';
import { ownBatches, type Sharing } from '../shares';

/** One step of one rollout. Candidate arrays are parallel, in ascending position. */
export interface ReplayRow {
  /** Index of the rollout. */
  rollout: number;
  /** The row's own steps, from 0. */
  step: number;
  /** Where the completion begins. */
  begin: number;
  /** Ids before the step. */
  ids: Int32Array;
  /** In-row positions that the step computed, and those that the replay of it has to compute beside. */
  computed: Int32Array;
  /** Candidates: in-row positions, tokens drawn for them, and 1 where unmasked. */
  positions: Int32Array;
  tokens: Int32Array;
  selected: Uint8Array;
  /** No position was selected, and one was unmasked nevertheless. */
  forced: boolean;
  timestep: number;
  /** Parts of the step's log-likelihood under the policy that made it. */
  oldLogLikelihoods: Float32Array;
  /** Likewise under the reference model, where another process has scored it. */
  referenceLogLikelihoods?: Float32Array | undefined;
}

/** Settings of the policy, the same in rollout and replay. */
export interface PolicySettings {
  temperature: number;
  tokenLogProb: 'tempered' | 'untempered';
  plannerTemperature: number;
  probabilityScale: number;
  forcedStep: 'exact' | 'reference';
  compat: 'reference' | null;
  /** Default: none. */
  cache?: ResolvedCache;
}

/**
 * Whether each step can be scored by itself: without a cache, and on one of finished blocks that holds what the step
 * would compute, where the replay computes the row up to the step's block.
 */
const isIndependent = ({ cache }: PolicySettings): boolean =>
  !cache || cache.type === 'none' || (cache.type === 'blocks' && cache.planner === 'fresh');

/** Completions and all of their denoising steps. */
export interface Rollouts {
  results: GenerateResult[];
  steps: ReplayRow[];
  /** Tokens of all forward passes. */
  tokens: number;
  /** Fulfilled when the steps have what other processes score; left out where none does. */
  scored?: Promise<unknown> | undefined;
}

/**
 * Completes prompts under the policy (each position unmasked with its own probability) and records every step.
 * @param prompts ids of each row's prompt
 * @param options.seed of the draws; row i draws as row i, however rows are batched
 * @param options.firstRow number of the first prompt's row among those of all processes. Default 0
 * @param options.onBatch gets the completions of some prompts, with their steps, as soon as they are there
 */
export async function recordRollouts(
  model: MaskedDiffusionModel,
  prompts: readonly Int32Array[],
  options: Pick<GenerateOptions, 'maxTokens' | 'blockLength' | 'stopAtEos'> & {
    policy: PolicySettings;
    seed: bigint;
    tokenBudget: number;
    firstRow?: number;
    onBatch?: ((first: number, results: readonly GenerateResult[], steps: readonly ReplayRow[]) => void) | undefined;
  },
): Promise<Rollouts> {
  const { policy, seed, tokenBudget, maxTokens, blockLength, stopAtEos, firstRow = 0, onBatch } = options;
  const rollouts: Rollouts = { results: [], steps: [], tokens: 0 };
  const cache = omit({ emptyPass: null, ...(policy.cache ?? { type: 'none' as const }) }, ['emptyPass']);
  const whole = isIndependent(policy);
  const lengthOf = (prompt: Int32Array) => rowLength(prompt.length + maxTokens!, model.config);
  for (const batch of packRows(prompts, lengthOf, tokenBudget)) {
    const first = firstRow + rollouts.results.length;
    const current: Int32Array[] = batch.map((prompt) => {
      const ids = new Int32Array(lengthOf(prompt)).fill(model.config.maskTokenId);
      ids.set(prompt);
      return ids;
    });
    const steps = new Int32Array(batch.length);
    const before = rollouts.steps.length;
    const results = await generateRecorded(
      model.engineParts(),
      batch.map((promptIds) => ({ promptIds })),
      {
        sampler: {
          type: 'planner',
          select: 'bernoulli',
          plannerTemperature: policy.plannerTemperature,
          probabilityScale: policy.probabilityScale,
        },
        maxTokens,
        blockLength,
        ...(stopAtEos !== undefined && { stopAtEos }),
        temperature: policy.temperature,
        cache,
        seed,
        research: {
          tokenLogProb: policy.tokenLogProb,
          forcedStep: policy.forcedStep,
          firstRow: first,
          compat: policy.compat ?? undefined,
        },
      },
      ({ row, computed, positions, tokens, selected, forced, timestep, logLikelihoods, ids: after }) => {
        const ids = current[row];
        rollouts.steps.push({
          rollout: first + row,
          step: steps[row]++,
          begin: batch[row].length,
          ids,
          computed: whole ? range(0, computed[computed.length - 1] + 1) : computed,
          positions,
          tokens,
          selected,
          forced,
          timestep,
          oldLogLikelihoods: logLikelihoods,
        });
        rollouts.tokens += computed.length;
        current[row] = after;
      },
    );
    onBatch?.(rollouts.results.length, results, rollouts.steps.slice(before));
    rollouts.results.push(...results);
  }
  return rollouts;
}

/** The steps of each rollout, in their order. */
export function chainsOf<T>(items: readonly T[], rowOf: (item: T) => ReplayRow): T[][] {
  const rollouts = new Map<number, T[]>();
  for (const item of items) {
    const { rollout } = rowOf(item);
    const chain = rollouts.get(rollout);
    if (chain) chain.push(item);
    else rollouts.set(rollout, [item]);
  }
  return [...rollouts.values()];
}

/** Steps to score together, and the cache that they read and fill: null where they are independent. */
export interface ReplayBatch<T> {
  items: T[];
  cached: NativeScoreRequest['cached'];
  /** Of all batches of this process. */
  count: number;
}

/**
 * This process's share of the steps, cut into batches of at most `tokenBudget` tokens (of whole rows, with a cache). With a cache, a batch has to be
 * scored (and its gradients taken) before the next one is asked for; each rollout's steps must all be there, in their
 * order.
 * @param model the one that scores @param parts steps that may share a batch
 */
export async function* replayBatches<T>(
  model: MaskedDiffusionModel,
  parts: readonly (readonly T[])[],
  rowOf: (item: T) => ReplayRow,
  { policy, ...sharing }: { policy: PolicySettings } & Sharing,
): AsyncGenerator<ReplayBatch<T>, void, void> {
  const length = (item: T) => rowOf(item).ids.length;
  const computed = (item: T) => rowOf(item).computed.length;
  const { cache: kept = { type: 'none' as const } } = policy;
  if (kept.type === 'none' || isIndependent(policy)) {
    const batches = ownBatches(parts, computed, sharing);
    for (const batch of batches) yield { items: batch, cached: null, count: batches.length };
    return;
  }
  const chains = parts.map((items) => chainsOf(items, rowOf));
  const groups = ownBatches(chains, ([first]) => length(first), sharing);
  const longest = (group: T[][]) => Math.max(...group.map((steps) => steps.length));
  const count = groups.reduce((sum, group) => sum + longest(group), 0);
  for (const group of groups) {
    const cache = await model.createCache(
      group.map(([first]) => length(first)),
      {
        planner: kept.planner,
        firstBlocks: firstBlocks(
          model.config,
          group.map(([first]) => rowOf(first).begin),
        ),
      },
    );
    try {
      for (let step = 0; step < longest(group); step++) {
        const rows = group.flatMap((steps, row) => (step < steps.length ? [row] : []));
        const batch = rows.map((row) => group[row][step]);
        const positions = concatenate(
          batch.map((item) => rowOf(item).computed),
          Int32Array,
        );
        yield { items: batch, cached: { cache: cache.native, rows: Int32Array.from(rows), positions }, count };
      }
    } finally {
      cache.dispose();
    }
  }
}

/** The score request that computes the steps' log-likelihoods again, in the order of the rows. */
export function replayRequest(
  rows: readonly ReplayRow[],
  policy: PolicySettings,
  { config, keep, cached = null }: { config: ModelConfig; keep: boolean } & Pick<NativeScoreRequest, 'cached'>,
): NativeScoreRequest {
  const maskIndex = rows.map(({ computed, positions }) => {
    const candidates = new Set(positions);
    return Uint8Array.from(computed, (position) => Number(candidates.has(position)));
  });
  return {
    ...packed(
      rows.map(({ ids, computed, positions }) => ({ ids: computed.map((position) => ids[position]), positions })),
    ),
    cached,
    firstBlocks: cached
      ? undefined
      : firstBlocks(
          config,
          rows.map(({ begin }) => begin),
        ),
    tokens: concatenate(
      rows.map(({ tokens }) => tokens),
      Int32Array,
    ),
    temperature: policy.tokenLogProb === 'tempered' ? policy.temperature : 0,
    excludedToken: config.maskTokenId,
    planner: {
      timestep: Float32Array.from(rows, ({ timestep }) => timestep),
      maskIndex: concatenate(maskIndex, Uint8Array),
    },
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

/** An array per candidate cut into one part per row: views of the whole. */
export function splitByRow(values: Float32Array, rows: readonly ReplayRow[]): Float32Array[] {
  let at = 0;
  return rows.map(({ positions }) => {
    at += positions.length;
    return values.subarray(at - positions.length, at);
  });
}
