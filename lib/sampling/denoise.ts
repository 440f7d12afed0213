// The denoising loop: blocks, steps, progress of each row, stopping. One native call per step.
import { DUltraError } from '../errors';
import { fromNative, type NativeModel, type NativeSession, type NativeStepRequest, type NativeStepResult } from '../native';
import { checkChoice, checkInteger, checkKeys, checkNumber, checkSeed, checkSignal } from '../options';
import type { CustomSampler, DenoiseRow, DenoiseStep, FinishReason, GenerateOptions } from '../types';
import { fixedSchedule, geometricCount, type ResolvedSampler, resolveSampler, ruleRequest } from './samplers';

/** What the loop needs of a model. */
export interface Denoisable {
  native: NativeModel;
  maskTokenId: number;
  /** null: rows never end early. */
  eosTokenId: number | null;
  hasPlanner: boolean;
}

/** A row to denoise: its ids with masks where tokens are to be found. */
export interface RowInput {
  ids: Int32Array;
  /** First position of the completion; blocks are counted from here. 0 for a template. */
  begin: number;
}

/** A row when the loop is done with it. */
export interface RowOutcome {
  ids: Int32Array;
  begin: number;
  nfe: number;
  finishReason: FinishReason;
  /** (row length) Step, from 1, that decided each position; 0 where it was given or never decided. */
  unmaskedAt: Int32Array;
  logLikelihood: number;
}

/**
 * Recorded draws instead of generated ones, for replaying a recorded run. Called before each step for each row that takes part;
 * `positions` are its candidates.
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

/** Consecutive steps that may change nothing before a sampled run is given up. */
const MAX_IDLE_STEPS = 1000;

class Row {
  readonly ids: Int32Array;
  readonly unmaskedAt: Int32Array;
  readonly blocks: number;
  block = 0;
  steps = 0;
  nfe = 0;
  logLikelihood = 0;
  finished = false;
  /** Everything from `begin` to here is decided, and none of it is an end of sequence. */
  private decided: number;
  private sawEos = false;
  private idle = 0;
  private schedule: Int32Array | null = null;
  private scheduleStep = 0;

  constructor(
    readonly index: number,
    input: RowInput,
    private readonly target: Denoisable,
    private readonly blockLength: number,
    private readonly stopAtEos: boolean,
  ) {
    this.ids = Int32Array.from(input.ids);
    this.begin = input.begin;
    this.decided = input.begin;
    this.unmaskedAt = new Int32Array(this.ids.length);
    this.blocks = Math.max(1, Math.ceil((this.ids.length - this.begin) / blockLength));
  }

  readonly begin: number;

  /** Candidates are the masks before it. */
  windowEnd(block = this.block): number {
    return Math.min(this.ids.length, this.begin + (block + 1) * this.blockLength);
  }

  candidates(block = this.block): Int32Array {
    const positions: number[] = [];
    for (let i = 0, end = this.windowEnd(block); i < end; i++) if (this.ids[i] === this.target.maskTokenId) positions.push(i);
    return Int32Array.from(positions);
  }

  hasCandidates(block: number): boolean {
    const first = this.ids.indexOf(this.target.maskTokenId);
    return first >= 0 && first < this.windowEnd(block);
  }

  enterBlock(block: number): void {
    if (block !== this.block) this.schedule = null;
    this.block = block;
  }

  /** Tokens that the fixed schedule takes in this step. */
  scheduledCount(steps: number | null): number {
    if (this.schedule === null) {
      const masks = this.candidates().length;
      // The schedule's steps are those of the whole generation, shared evenly by its blocks, as in the reference.
      this.schedule = fixedSchedule(masks, steps === null ? Math.max(1, masks) : Math.floor(steps / this.blocks));
      this.scheduleStep = 0;
    }
    if (this.scheduleStep >= this.schedule.length)
      throw new DUltraError(
        'NO_PROGRESS',
        `row ${this.index}: masks are left after all steps of the block: the model keeps predicting the mask token`,
      );
    return this.schedule[this.scheduleStep++];
  }

  apply(positions: Int32Array, tokens: Int32Array, selected: Uint8Array, greedy: boolean): void {
    this.steps++;
    let unmasked = 0;
    for (let i = 0; i < positions.length; i++) {
      if (!selected[i]) continue;
      unmasked++;
      this.ids[positions[i]] = tokens[i];
      if (tokens[i] !== this.target.maskTokenId) this.unmaskedAt[positions[i]] = this.steps;
    }
    if (unmasked > 0) this.nfe++;
    const changed = positions.some((p) => this.ids[p] !== this.target.maskTokenId);
    this.idle = changed ? 0 : this.idle + 1;
    if (this.idle > (greedy ? 0 : MAX_IDLE_STEPS))
      throw new DUltraError(
        'NO_PROGRESS',
        `row ${this.index}: the step changed nothing: the model predicts the mask token itself, which compat: "reference" allows (the reference loops for ever here)`,
      );
    const eos = this.target.eosTokenId;
    while (!this.sawEos && this.decided < this.ids.length && this.ids[this.decided] !== this.target.maskTokenId) {
      if (this.ids[this.decided] === eos) this.sawEos = true;
      else this.decided++;
    }
    if (this.stopAtEos && this.sawEos) this.finished = true;
  }

  outcome(): RowOutcome {
    const { ids, begin, nfe, unmaskedAt, logLikelihood } = this;
    const eos = this.target.eosTokenId;
    return { ids, begin, nfe, unmaskedAt, logLikelihood, finishReason: eos !== null && ids.indexOf(eos, begin) >= 0 ? 'eos' : 'length' };
  }
}

/** Rows that take part in the next step, each with its block entered. */
function nextRows(rows: Row[], together: boolean): Row[] {
  const active = rows.filter((row) => !row.finished);
  if (together) {
    // Reference: all rows stand in the same block; those that are done with it wait.
    let block = Math.max(0, ...active.map((row) => row.block));
    const last = Math.max(0, ...active.map((row) => row.blocks));
    for (; block < last; block++) {
      for (const row of active) row.enterBlock(block);
      const busy = active.filter((row) => row.hasCandidates(block));
      if (busy.length > 0) return busy;
    }
    for (const row of active) row.finished = true;
    return [];
  }
  return active.filter((row) => {
    let block = row.block;
    while (block < row.blocks && !row.hasCandidates(block)) block++;
    if (block === row.blocks) {
      row.finished = true;
      return false;
    }
    row.enterBlock(block);
    return true;
  });
}

/** Marks in `result.selected` what a custom sampler chooses for one row. */
async function chooseCustom(sampler: CustomSampler, row: Row, part: Omit<DenoiseRow, 'ids' | 'finished' | 'forced'>): Promise<boolean> {
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
    if (at < 0) throw new RangeError(`sampler: expected positions out of candidates.positions, got ${chosen[i]} (row ${row.index})`);
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
  if (sampler.type === 'fixed') return Int32Array.from(rows, (row) => row.scheduledCount(sampler.steps));
  if (sampler.type === 'geometric') return Int32Array.from(rows, (row) => geometricCount(row.candidates().length, sampler.phi));
  return null;
}

function concatenate(parts: (Float64Array | undefined)[]): Float64Array | null {
  if (parts.some((part) => part === undefined)) return null;
  const out = new Float64Array(parts.reduce((sum, part) => sum + part!.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part!, at);
    at += part!.length;
  }
  return out;
}

/**
 * Runs the loop over a batch: one yield per forward pass, the rows' outcomes as the return value. Leaving the loop early stops the
 * native work.
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
  const rows = inputs.map((input, index) => {
    const blockLength = settings.blockLength ?? Math.max(1, input.ids.length - input.begin);
    return new Row(index, input, target, blockLength, !reference && (settings.stopAtEos ?? true));
  });
  const offsets = new Int32Array(rows.length + 1);
  for (const row of rows) offsets[row.index + 1] = offsets[row.index] + row.ids.length;
  const packed = new Int32Array(offsets[rows.length]);
  for (const row of rows) packed.set(row.ids, offsets[row.index]);
  const session = await fromNative(() => target.native.createSession(packed, offsets));
  const cancel = () => session.cancel();
  signal?.addEventListener('abort', cancel, { once: true });
  try {
    const rule = ruleRequest(sampler, target.hasPlanner, reference);
    for (let step = 0; ; step++) {
      const active = nextRows(rows, reference);
      if (active.length === 0) break;
      const draws = recorded ? active.map((row) => recorded({ step, row: row.index, positions: row.candidates() })) : null;
      const request: NativeStepRequest = {
        ...rule,
        rows: Int32Array.from(active, (row) => row.index),
        windowEnds: Int32Array.from(active, (row) => row.windowEnd()),
        rowKeys: Uint32Array.from(active, (row) => settings.firstRow + row.index),
        steps: Uint32Array.from(active, (row) => row.steps),
        seed: settings.seed,
        temperature: settings.temperature,
        temperedLogProb: settings.tempered,
        counts: stepCounts(sampler, active),
        referenceLikelihood: settings.referenceLikelihood,
        uniforms: draws && { token: concatenate(draws.map((d) => d.token)), position: concatenate(draws.map((d) => d.position)) },
      };
      const result = await fromNative(session.step(request), signal);
      const event: DenoiseStep = { step, rows: [] };
      for (let r = 0; r < active.length; r++) event.rows.push(await finishRow(active[r], r, result, sampler, session, settings));
      yield event;
      signal?.throwIfAborted();
    }
    return rows.map((row) => row.outcome());
  } finally {
    signal?.removeEventListener('abort', cancel);
    session.cancel();
    session.dispose();
  }
}

/** Brings row `r` of a step's result into its Row and makes the event's entry. */
async function finishRow(
  row: Row,
  r: number,
  result: NativeStepResult,
  sampler: ResolvedSampler | CustomSampler,
  session: NativeSession,
  settings: DenoiseSettings,
): Promise<DenoiseRow> {
  const begin = result.offsets[r];
  const end = result.offsets[r + 1];
  const part = {
    row: row.index,
    block: row.block,
    timestep: result.timesteps[r],
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
  let forced = result.forced[r] !== 0;
  if (typeof sampler === 'function') {
    forced = await chooseCustom(sampler, row, part);
    const chosen = part.positions.filter((_, i) => part.selected[i]);
    await fromNative(() =>
      session.write(
        row.index,
        chosen,
        part.tokens.filter((_, i) => part.selected[i]),
      ),
    );
  }
  row.apply(part.positions, part.tokens, part.selected, settings.temperature < 1e-4);
  for (const value of part.logLikelihoods) row.logLikelihood += value;
  // A row is also finished when no mask is left anywhere.
  row.finished ||= !row.hasCandidates(row.blocks - 1);
  return { ...part, forced, ids: row.ids.slice(), finished: row.finished };
}
