// The denoising loop: blocks, steps, progress of each row, stopping. One native call per step.
import type {
  NativeCache,
  NativeCacheOptions,
  NativeModel,
  NativeSession,
  NativeStepRequest,
  NativeStepResult,
} from '../native';
import { checkChoice, checkInteger, checkKeys, checkNumber, checkSeed, checkSignal } from '../options';
import { concatenate, packPositions } from '../packing';
import type { CustomSampler, DenoiseRow, DenoiseStep, GenerateOptions } from '../types';
import { cacheStorage, type ResolvedCache, resolveCache } from './cache';
import { BlockRow, MultiBlockRow, type Row, type RowInput, type RowOutcome, type RowSettings } from './rows';
import { geometricCount, type ResolvedSampler, resolveSampler, ruleRequest } from './samplers';

/** What the loop needs of a model. */
export interface Denoisable {
  native: NativeModel;
  maskTokenId: number;
  /** null: rows never end early. */
  eosTokenId: number | null;
  hasPlanner: boolean;
  /** Allocates a cache for rows of these lengths; throws where memory does not allow it. */
  createCache(offsets: Int32Array, options: NativeCacheOptions): Promise<NativeCache>;
}

/**
 * Recorded draws instead of generated ones, for replaying a recorded run. Called before each step for each row that
 * takes part; `positions` are its candidates.
 */
export type RecordedUniforms = (at: { step: number; row: number; positions: Int32Array }) => {
  /** (candidates × vocabulary) uniforms of the Gumbel noise. */
  token?: Float64Array;
  /** (candidates) uniforms compared with the unmasking probabilities. */
  position?: Float64Array;
};

/** {@link GenerateOptions} checked, with defaults; lengths are settled by the caller. */
export interface DenoiseSettings {
  sampler: ResolvedSampler | CustomSampler;
  cache: ResolvedCache;
  blockLength: number | null;
  temperature: number;
  seed: bigint;
  firstRow: number;
  stopAtEos: boolean | null;
  tempered: boolean;
  referenceLikelihood: boolean;
  reference: boolean;
  signal: AbortSignal | undefined;
}

const GENERATE_KEYS = [
  'sampler',
  'cache',
  'genLength',
  'blockLength',
  'temperature',
  'seed',
  'firstRow',
  'stopAtEos',
  'tokenLogProb',
  'forcedStep',
  'compat',
  'signal',
] as const;

/**
 * Checks everything in {@link GenerateOptions} that does not depend on a prompt.
 * @throws TypeError, RangeError naming the option.
 */
export function resolveGenerateOptions(options: GenerateOptions, hasPlanner: boolean): DenoiseSettings {
  checkKeys('options', options, GENERATE_KEYS);
  const {
    genLength,
    blockLength,
    temperature = 0,
    seed = 0,
    firstRow = 0,
    stopAtEos,
    tokenLogProb = 'untempered',
    forcedStep,
    compat,
    signal,
  } = options;
  if (genLength !== undefined) checkInteger('genLength', genLength, { min: 1, max: 2 ** 30 });
  if (blockLength !== undefined) checkInteger('blockLength', blockLength, { min: 1, max: 2 ** 30 });
  checkNumber('temperature', temperature, { min: 0, max: 1e6 });
  checkInteger('firstRow', firstRow, { min: 0, max: 2 ** 32 - 1 });
  if (stopAtEos !== undefined) checkChoice('stopAtEos', stopAtEos, [true, false] as const);
  checkChoice('tokenLogProb', tokenLogProb, ['untempered', 'tempered'] as const);
  if (forcedStep !== undefined) checkChoice('forcedStep', forcedStep, ['exact', 'reference'] as const);
  if (compat !== undefined) checkChoice('compat', compat, ['reference'] as const);
  checkSignal(signal);
  return {
    sampler: resolveSampler(options.sampler, hasPlanner),
    cache: resolveCache(options.cache),
    blockLength: blockLength ?? null,
    temperature,
    seed: checkSeed('seed', seed),
    firstRow,
    stopAtEos: stopAtEos ?? null,
    tempered: tokenLogProb === 'tempered',
    referenceLikelihood: (forcedStep ?? (compat === 'reference' ? 'reference' : 'exact')) === 'reference',
    reference: compat === 'reference',
    signal,
  };
}

/** Rows that take part in the next step, each with what the step is to do settled. */
function nextRows(rows: Row[], session: NativeSession, together: boolean): Row[] {
  const active = rows.filter((row) => !row.finished);
  const inBlocks = active.filter((row): row is BlockRow => row instanceof BlockRow);
  if (!together || inBlocks.length < active.length) return active.filter((row) => row.enter(session));
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
async function chooseCustom(
  sampler: CustomSampler,
  row: Row,
  part: Omit<DenoiseRow, 'ids' | 'finished' | 'forced' | 'forcedPosition'>,
): Promise<boolean> {
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
    throw new TypeError(`sampler: expected the function to return an array of positions, got ${String(chosen)}`);
  for (let i = 0; i < chosen.length; i++) {
    const at = positions.indexOf(chosen[i]);
    if (at < 0)
      throw new RangeError(
        `sampler: expected positions out of candidates.positions, got ${chosen[i]} (row ${row.index})`,
      );
    selected[at] = 1;
  }
  if (chosen.length > 0) return false;
  let best = 0;
  for (let i = 1; i < positions.length; i++) if (confidences[i] > confidences[best]) best = i;
  selected[best] = 1;
  return true;
}

/** Positions that each row unmasks now, for the samplers that fix their number; else null. */
function stepCounts(sampler: ResolvedSampler | CustomSampler, rows: Row[]): Int32Array | null {
  if (typeof sampler === 'function') return null;
  if (sampler.type === 'fixed') return Int32Array.from(rows, (row) => (row as BlockRow).scheduledCount(sampler.steps));
  if (sampler.type === 'geometric')
    return Int32Array.from(rows, (row) => geometricCount(row.candidates.length, sampler.phi));
  return null;
}

/** Recorded draws of all rows; null where a row has none. */
function recordedDraws(parts: readonly (Float64Array | undefined)[]): Float64Array | null {
  const given = parts.filter((part) => part !== undefined);
  return given.length === parts.length ? concatenate(given, Float64Array) : null;
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
  const multiBlock = typeof sampler !== 'function' && sampler.type === 'd3llm' ? sampler : null;
  const { maskTokenId, eosTokenId } = target;
  const rows = inputs.map((input, index): Row => {
    const rowSettings: RowSettings = {
      maskTokenId,
      eosTokenId,
      blockLength: settings.blockLength ?? Math.max(1, input.ids.length - input.begin),
      stopAtEos: reference ? multiBlock !== null && settings.stopAtEos === true : (settings.stopAtEos ?? true),
      reference,
      greedy: settings.temperature < 1e-4,
      cache: settings.cache,
      emptyPass: reference && (typeof sampler === 'function' || sampler.type !== 'factor'),
    };
    return multiBlock
      ? new MultiBlockRow(index, input, rowSettings, multiBlock)
      : new BlockRow(index, input, rowSettings);
  });
  const { offsets, positions: ids } = packPositions(rows.map((row) => row.ids));
  const rule = ruleRequest(sampler, target.hasPlanner, reference);
  const storage = cacheStorage(settings.cache, rule.planner === true);
  const cache = storage && (await target.createCache(offsets, storage));
  let session: NativeSession;
  try {
    session = target.native.createSession(ids, offsets, cache);
  } catch (error) {
    cache?.dispose();
    throw error;
  }
  const cancel = () => session.cancel();
  signal?.addEventListener('abort', cancel, { once: true });
  try {
    for (let step = 0; ; step++) {
      const active = nextRows(rows, session, reference);
      if (active.length === 0) break;
      const draws = recorded
        ? active.map((row) => recorded({ step, row: row.index, positions: row.candidates }))
        : null;
      const request: NativeStepRequest = {
        ...rule,
        rows: Int32Array.from(active, (row) => row.index),
        windowEnds: Int32Array.from(active, (row) => row.windowEnd()),
        candidates: cache || multiBlock ? packPositions(active.map((row) => row.candidates)) : null,
        queries: cache && packPositions(active.map((row) => row.queries!)),
        rowKeys: Uint32Array.from(active, (row) => settings.firstRow + row.index),
        steps: Uint32Array.from(active, (row) => row.steps),
        seed: settings.seed,
        temperature: settings.temperature,
        temperedLogProb: settings.tempered,
        counts: stepCounts(sampler, active),
        referenceLikelihood: settings.referenceLikelihood,
        uniforms: draws && {
          token: recordedDraws(draws.map((d) => d.token)),
          position: recordedDraws(draws.map((d) => d.position)),
        },
      };
      const result = await session.step(request).catch((error: unknown) => {
        throw signal?.aborted ? signal.reason : error;
      });
      const event: DenoiseStep = { step, rows: [] };
      for (let r = 0; r < active.length; r++) event.rows.push(await finishRow(active[r], r, result, sampler, session));
      yield event;
      signal?.throwIfAborted();
    }
    return rows.map((row) => row.outcome());
  } finally {
    signal?.removeEventListener('abort', cancel);
    session.cancel();
    session.dispose();
    cache?.dispose();
  }
}

/** Brings row `r` of a step's result into its Row and makes the event's entry. */
async function finishRow(
  row: Row,
  r: number,
  result: NativeStepResult,
  sampler: ResolvedSampler | CustomSampler,
  session: NativeSession,
): Promise<DenoiseRow> {
  const begin = result.offsets[r];
  const end = result.offsets[r + 1];
  const part = {
    row: row.index,
    block: row.block,
    timestep: result.timesteps[r],
    computed: row.queries ?? Int32Array.from(row.ids, (_, i) => i),
    positions: result.positions.slice(begin, end),
    tokens: result.tokens.slice(begin, end),
    logProbs: result.logProbs.slice(begin, end),
    confidences: result.confidences.slice(begin, end),
    entropies: result.entropies.slice(begin, end),
    plannerLogits: result.plannerLogits?.slice(begin, end) ?? null,
    probabilities: result.probabilities.slice(begin, end),
    logLikelihoods: result.logLikelihoods.slice(begin, end),
    selected: result.selected.slice(begin, end),
  };
  const forcedPositionOf = (is: boolean) => (is ? part.positions[part.selected.indexOf(1)] : -1);
  let forcedPosition = forcedPositionOf(result.forced[r] !== 0);
  if (row instanceof MultiBlockRow) {
    const extra = row.force(part);
    forcedPosition = extra < 0 ? -1 : part.positions[extra];
    if (extra >= 0)
      session.write(row.index, part.positions.subarray(extra, extra + 1), part.tokens.subarray(extra, extra + 1));
  }
  if (typeof sampler === 'function' && part.positions.length > 0) {
    forcedPosition = forcedPositionOf(await chooseCustom(sampler, row, part));
    const chosen = part.positions.filter((_, i) => part.selected[i]);
    session.write(
      row.index,
      chosen,
      part.tokens.filter((_, i) => part.selected[i]),
    );
  }
  row.apply(part);
  for (const value of part.logLikelihoods) row.logLikelihood += value;
  return { ...part, forced: forcedPosition >= 0, forcedPosition, ids: row.ids.slice(), finished: row.finished };
}
