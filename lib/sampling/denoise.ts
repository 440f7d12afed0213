// The denoising loop. One native call per step.

import { optionError } from '../errors';
import { attendedBlock, attendedGrid, firstBlocks, gridOf } from '../model/blocks';
import type { ModelConfig } from '../model/config';
import { allocateCache } from '../model/kv-cache';
import {
  cancellable,
  type NativeCache,
  type NativeModel,
  type NativeScores,
  type NativeStepRequest,
  native,
  StepResult,
  type StepRow,
} from '../native';
import { concatenate, numbersOf, offsetsOf, packPositions, range } from '../packing';
import { show } from '../text';
import { cacheStorage, type ResolvedCache } from './caches';
import { BlockRow } from './rows/block-row';
import type { Row, RowInput, RowOutcome, RowSettings } from './rows/row';
import { definitionOf, type ResolvedSampler, ruleRequest } from './samplers';
import type { RuleRequest } from './samplers/definition';
import type { CustomSampler, DenoiseRow, DenoiseStep } from './types';

/** What the loop needs of a model. */
export interface Denoisable {
  native: NativeModel;
  config: ModelConfig;
}

/**
 * Recorded draws instead of generated ones, for replaying a recorded run. Called before each step for each row that
 * takes part; `positions` are its candidates.
 */
export type RecordedUniforms = (at: { step: number; row: number; positions: Int32Array }) => {
  /** (candidates × vocabulary) uniforms of the Gumbel noise. */
  token?: Float64Array | undefined;
  /** (candidates) uniforms compared with the unmasking probabilities. */
  position?: Float64Array | undefined;
};

/** How rows are denoised, with every default filled in. */
export interface DenoiseSettings {
  sampler: ResolvedSampler | CustomSampler;
  cache: ResolvedCache;
  /** null: each row is one block. */
  blockLength: number | null;
  temperature: number;
  /** null: all tokens. */
  topK: number | null;
  topP: number;
  /** null: as the sampler or the family has it. */
  scores: NativeScores | null;
  /** `topP` comes before `topK`. */
  topPFirst: boolean;
  /** A row stops when the block of its end of sequence is decided. */
  finishesBlock: boolean;
  seed: bigint;
  firstRow: number;
  /** null: the default. */
  stopAtEos: boolean | null;
  /** Log-probabilities at the sampling temperature. */
  tempered: boolean;
  /** `forcedStep: "reference"`. */
  referenceLikelihood: boolean;
  /** `compat: "reference"`. */
  reference: boolean;
  signal: AbortSignal | undefined;
}

/** Rows that take part in the next step, with its candidates and queries set. */
function nextRows(rows: Row[], together: boolean): Row[] {
  const active = rows.filter((row) => !row.finished);
  const inBlocks = active.filter((row): row is BlockRow => row instanceof BlockRow);
  if (!together || inBlocks.length < active.length) return active.filter((row) => row.enter());
  // Reference: all rows stand in the same block; those that are done with it wait.
  let block = Math.max(0, ...inBlocks.map((row) => row.block));
  const last = Math.max(0, ...inBlocks.map((row) => row.blocks));
  for (; block < last; block++) {
    const busy = inBlocks.filter((row) => row.hasWork(block));
    for (const row of inBlocks) row.enterBlock(block);
    for (const row of busy) row.settle();
    if (busy.length > 0) return busy;
  }
  for (const row of active) row.finished = true;
  return [];
}

/** Marks in `result.selected` what a custom sampler chooses for one row. */
async function chooseCustom(sampler: CustomSampler, row: Row, part: StepRow): Promise<boolean> {
  const { positions, tokens, confidences, entropies, logProbs, plannerLogits, selected } = part;
  const ids = row.ids.slice();
  const chosen = await sampler({
    row: row.index,
    step: row.steps,
    positions,
    tokens,
    confidences,
    entropies,
    logProbs,
    plannerLogits,
    ids,
  });
  if (chosen === null || typeof chosen !== 'object' || typeof chosen.length !== 'number')
    throw optionError(
      TypeError,
      'sampler',
      `expected the function to return an array of positions, got ${show(chosen)}`,
    );
  for (let i = 0; i < chosen.length; i++) {
    const at = positions.indexOf(chosen[i]);
    if (at < 0)
      throw optionError(
        RangeError,
        'sampler',
        `expected positions out of candidates.positions, got ${chosen[i]} (row ${row.index})`,
      );
    selected[at] = 1;
  }
  if (chosen.length > 0) return false;
  let best = 0;
  for (let i = 1; i < positions.length; i++) if (confidences[i] > confidences[best]) best = i;
  selected[best] = 1;
  return true;
}

/** Number of positions that each row unmasks now, for counted rules; null for others. */
function stepCounts(sampler: ResolvedSampler | CustomSampler, rows: Row[]): Int32Array | null {
  if (typeof sampler === 'function') return null;
  const { count, isCounted } = definitionOf(sampler);
  if (!count || isCounted?.(sampler) === false) return null;
  return numbersOf(rows, Int32Array, (row) => row.nextCount((block) => count(sampler, block)));
}

/** Probability of each row's positions, for the rule "coin"; null for others. */
function stepChances(sampler: ResolvedSampler | CustomSampler, rule: RuleRequest, rows: Row[]): Float64Array | null {
  if (rule.rule !== 'coin' || typeof sampler === 'function') return null;
  const { chance } = definitionOf(sampler);
  return Float64Array.from(rows, (row) => row.nextCount((block) => chance!(sampler, block)));
}

/** The rows of a batch, before their first step. */
function openRows(target: Denoisable, inputs: readonly RowInput[], settings: DenoiseSettings): Row[] {
  const { maskTokenId, eosTokenIds, eosTokenId } = target.config;
  const { sampler, reference } = settings;
  const definition = typeof sampler === 'function' ? null : definitionOf(sampler);
  const settingsOf = (input: RowInput): RowSettings => {
    const blockLength = settings.blockLength ?? Math.max(1, input.ids.length - input.begin);
    return {
      maskTokenId,
      eosTokenIds,
      eosTokenId,
      blockLength,
      stopAtEos: reference
        ? (definition?.referenceStops === true || target.config.mask === 'block-causal') && settings.stopAtEos === true
        : (settings.stopAtEos ?? true),
      finishesBlock: settings.finishesBlock,
      reference,
      greedy: settings.temperature < 1e-4,
      cache: settings.cache,
      emptyPass: reference && (definition?.referenceEmptyPass ?? true),
      attended: attendedGrid(target.config, input.begin),
      grid: attendedBlock(target.config) === null ? null : gridOf(target.config, input.begin, blockLength),
      shiftLogits: target.config.shiftLogits === true,
    };
  };
  const all = inputs.map(settingsOf);
  const together = typeof sampler !== 'function' && definition?.batch?.(sampler, inputs, all);
  if (together) return together;
  return inputs.map((input, index) =>
    typeof sampler !== 'function' && definition?.row
      ? definition.row(sampler, index, input, all[index])
      : new BlockRow(index, input, all[index]),
  );
}

/** Recorded draws of all rows; null where a row has none. */
function recordedDraws(parts: readonly (Float64Array | undefined)[]): Float64Array | null {
  const given = parts.filter((part) => part !== undefined);
  return given.length === parts.length ? concatenate(given, Float64Array) : null;
}

type RequestParts = RuleRequest & Pick<NativeStepRequest, 'seed'> & Partial<NativeStepRequest>;

/** What all steps of a run have in common. */
interface Run {
  settings: DenoiseSettings;
  rule: RuleRequest;
  /** What the requests of all steps have in common: of those that draw tokens, and of those that take the best. */
  drawing: RequestParts;
  greedy: RequestParts;
  cache: NativeCache | null;
  recorded: RecordedUniforms | undefined;
  /** Of rows, where they are not whole. */
  firstBlocks: (rows: readonly Row[]) => Int32Array | undefined;
}

/** How tokens are drawn, and what confidences are of. */
const tokenDraw = ({ temperature, topK, topP, topPFirst, scores }: DenoiseSettings) => ({
  temperature,
  ...(topK !== null && { topK }),
  ...(topP < 1 && { topP, topPFirst }),
  ...(scores !== null && { scores }),
});

/** The parts of `drawing` and `greedy` of a run: made once, since objects of many parts cost small models' steps. */
function requestParts(settings: DenoiseSettings, rule: RuleRequest): Pick<Run, 'drawing' | 'greedy'> {
  const greedy = {
    ...rule,
    seed: settings.seed,
    temperedLogProb: settings.tempered,
    shiftInside: settings.reference,
    referenceLikelihood: settings.referenceLikelihood,
  };
  return { greedy, drawing: { ...greedy, ...tokenDraw(settings) } };
}

/** The native request of the next step of the rows that take part. */
function stepRequest(run: Run, rows: Row[], step: number): NativeStepRequest {
  const { settings, rule, cache, recorded } = run;
  const { offsets, positions: ids } = packPositions(rows.map((row) => row.ids));
  const isListed = cache !== null || rows.some((row) => !row.isWindow);
  const draws = recorded && rows.map((row) => recorded({ step, row: row.index, positions: row.candidates }));
  return {
    ...(rows.every((row) => row.isGreedy) ? run.greedy : run.drawing),
    ids,
    offsets,
    windowEnds: numbersOf(rows, Int32Array, (row) => row.windowEnd()),
    candidates: isListed ? packPositions(rows.map((row) => row.candidates)) : null,
    cached: cache && {
      cache,
      rows: numbersOf(rows, Int32Array, (row) => row.index),
      ...packPositions(rows.map((row) => row.queries!)),
    },
    firstBlocks: cache ? undefined : run.firstBlocks(rows),
    rowKeys: numbersOf(rows, Uint32Array, (row) => settings.firstRow + row.index),
    steps: numbersOf(rows, Uint32Array, (row) => row.steps),
    counts: stepCounts(settings.sampler, rows),
    chances: stepChances(settings.sampler, rule, rows),
    uniforms: draws && {
      token: recordedDraws(draws.map((draw) => draw.token)),
      position: recordedDraws(draws.map((draw) => draw.position)),
    },
  };
}

/**
 * Runs the loop over a batch: one yield per forward pass, the rows' outcomes as the return value. Leaving the loop
 * early stops the native work.
 */
export async function* denoiseRows(
  target: Denoisable,
  inputs: RowInput[],
  settings: DenoiseSettings,
  recorded?: RecordedUniforms,
): AsyncGenerator<DenoiseStep, RowOutcome[], void> {
  const { sampler, signal, reference } = settings;
  signal?.throwIfAborted();
  if (inputs.length === 0) return [];
  const rows = openRows(target, inputs, settings);
  const rule = ruleRequest(sampler, target.config.planner !== null, reference, target.config.shiftLogits === true);
  const storage = cacheStorage(settings.cache, rule.planner === true);
  // A handle of its own: a model that is disposed meanwhile lives until the loop ends.
  const model = target.native.share();
  const token = new (native().CancelToken)();
  const blocks = (some: readonly Row[]) =>
    firstBlocks(
      target.config,
      some.map(({ begin }) => begin),
    );
  const run: Run = { settings, rule, cache: null, recorded, firstBlocks: blocks, ...requestParts(settings, rule) };
  try {
    if (storage)
      run.cache = await allocateCache(model, target.config, offsetsOf(rows.map((row) => row.ids.length)), {
        ...storage,
        firstBlocks: run.firstBlocks(rows),
      });
    for (let step = 0; ; step++) {
      const active = nextRows(rows, reference);
      if (active.length === 0) break;
      const request = stepRequest(run, active, step);
      const buffer = await cancellable(
        signal,
        () => token.cancel(),
        () => model.step(request, token),
      );
      const result = new StepResult(buffer, active.length, rule.byMargin === true);
      const event: DenoiseStep = { step, rows: [] };
      for (let r = 0; r < active.length; r++) {
        const row = active[r];
        const part = result.row(r);
        let forced = firstSelected(part, part.forced);
        const extra = row.force(part);
        if (extra !== null) forced = extra < 0 ? -1 : part.positions[extra];
        if (typeof sampler === 'function' && part.positions.length > 0)
          forced = firstSelected(part, await chooseCustom(sampler, row, part));
        event.rows.push(finishRow(row, part, forced));
      }
      yield event;
      signal?.throwIfAborted();
    }
    return rows.map((row) => row.outcome());
  } finally {
    token.cancel();
    model.dispose();
    run.cache?.dispose();
  }
}

/** The position of the first selected candidate, where the step was forced; else -1. */
const firstSelected = ({ positions, selected }: StepRow, isForced: boolean): number =>
  isForced ? positions[selected.indexOf(1)] : -1;

/** Writes what a step says of a row into the row, and returns the event's entry. */
function finishRow(row: Row, step: StepRow, forcedPosition: number): DenoiseRow {
  const block = row.block;
  const computed = row.queries ?? range(0, row.ids.length);
  row.apply(step);
  row.endEarly();
  for (const value of step.logLikelihoods) row.logLikelihood += value;
  return {
    row: row.index,
    block,
    timestep: step.timestep,
    computed,
    positions: step.positions,
    tokens: step.tokens,
    logProbs: step.logProbs,
    confidences: step.confidences,
    entropies: step.entropies,
    margins: step.margins,
    plannerLogits: step.plannerLogits,
    probabilities: step.probabilities,
    logLikelihoods: step.logLikelihoods,
    selected: step.selected,
    forced: forcedPosition >= 0,
    forcedPosition,
    ids: row.ids.slice(),
    settled: row.settledEnd(),
    finished: row.finished,
  };
}
