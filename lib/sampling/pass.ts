// One native pass: what it is asked about rows, and what it says of each.
import { firstBlocks } from '../model/blocks';
import type { ModelConfig } from '../model/config';
import type { NativeCache, NativeStepRequest, NativeStepRule, StepRow } from '../native';
import { concatenate, numbersOf, packPositions, range } from '../packing';
import type { BlockProgress, Row, RowStep } from './rows/row';
import { ScoredRow } from './rows/scored-row';
import { definitionOf, ruleRequest } from './samplers';
import type { DenoiseSettings, RecordedUniforms } from './settings';
import type { DenoiseRow } from './types';

/** Most positions that a pass unmasks, where a row's rule does not count them. */
const UNCOUNTED = 0x7fffffff;

/** What all passes of some rows have in common: made once, since objects of many parts cost small models' steps. */
export interface Rules {
  settings: DenoiseSettings;
  /** Of passes that draw tokens, of those that take the best, and of one that decides every mask. */
  drawing: NativeStepRule;
  greedy: NativeStepRule;
  finishing: NativeStepRule;
  /** How many positions a pass unmasks, and how probable each is, for the rules that ask. */
  count: ((block: BlockProgress) => number | null) | null;
  chance: ((block: BlockProgress) => number | null) | null;
}

/** How tokens are drawn, and what confidences are of. */
const tokenDraw = ({ temperature, topK, topP, topPFirst, scores }: DenoiseSettings) => ({
  temperature,
  ...(topK !== null && { topK }),
  ...(topP < 1 && { topP, topPFirst }),
  ...(scores !== null && { scores }),
});

/** The rules of rows with these settings. */
export function rulesOf(config: ModelConfig, settings: DenoiseSettings): Rules {
  const { sampler, reference } = settings;
  const rule = ruleRequest(sampler, config.planner !== null, reference, config.shiftLogits === true);
  const greedy: NativeStepRule = {
    ...rule,
    temperedLogProb: settings.tempered,
    referenceLikelihood: settings.referenceLikelihood,
  };
  const drawing: NativeStepRule = { ...greedy, ...tokenDraw(settings) };
  const finishing: NativeStepRule = {
    rule: 'leftToRight',
    planner: rule.planner ?? false,
    temperedLogProb: settings.tempered,
    ...tokenDraw(settings),
  };
  const rules: Rules = { settings, drawing, greedy, finishing, count: null, chance: null };
  if (typeof sampler === 'function') return rules;
  const { count, isCounted, chance } = definitionOf(sampler);
  if (count && isCounted?.(sampler) !== false) rules.count = (block) => count(sampler, block);
  if (rule.rule === 'coin') rules.chance = (block) => chance!(sampler, block);
  return rules;
}

/** A row on its way through passes. */
export class RowTask {
  /** The next pass decides every mask that is left. */
  isLast = false;
  /** Of the next pass: the most positions that it unmasks, and how probable each is. */
  count = UNCOUNTED;
  chance = 0;
  /** Where its keys and values lie in the cache, and whether anything of them is there yet. */
  begin = 0;
  isFresh = true;

  constructor(
    readonly row: Row,
    readonly rules: Rules,
  ) {}

  /** The rule of the next pass. */
  get rule(): NativeStepRule {
    const { drawing, greedy, finishing } = this.rules;
    return this.isLast ? finishing : this.row.isGreedy ? greedy : drawing;
  }

  /** Asks the sampler for what depends on how far the row is. Once for each pass, after its candidates are set. */
  plan(): void {
    const { count, chance } = this.rules;
    if (this.isLast) this.count = this.row.candidates.length;
    else if (count) this.count = this.row.nextCount(count);
    else if (chance) this.chance = this.row.nextCount(chance);
  }

  /** Writes what a pass says of the row, after `keepFitting`. */
  write(step: RowStep, logLikelihoods: Float32Array): void {
    const { row } = this;
    if (this.isLast) row.applyLast(step);
    else row.apply(step);
    this.isFresh = false;
    row.endEarly();
    for (let i = 0; i < logLikelihoods.length; i++) row.logLikelihood += logLikelihoods[i];
  }
}

/** Recorded draws of all rows; null where a row has none. */
function recordedDraws(parts: readonly (Float64Array | undefined)[]): Float64Array | null {
  const given = parts.filter((part) => part !== undefined);
  return given.length === parts.length ? concatenate(given, Float64Array) : null;
}

/** What the candidates of rows may become; null: anything. */
function allowedOf(tasks: readonly RowTask[]): NativeStepRequest['allowed'] {
  if (tasks.every(({ row }) => row.constraint === null)) return null;
  const sets = new Map<{ readonly bits: Uint32Array }, number>();
  const index: number[] = [];
  for (const { row } of tasks) {
    const allowed = row.constraint?.allowed(row.ids, row.candidates) ?? new Array(row.candidates.length).fill(null);
    for (const set of allowed) {
      if (set && !sets.has(set)) sets.set(set, sets.size);
      index.push(set ? sets.get(set)! : -1);
    }
  }
  if (sets.size === 0) return null;
  return {
    index: Int32Array.from(index),
    sets: concatenate(
      Array.from(sets.keys(), ({ bits }) => bits),
      Uint32Array,
    ),
  };
}

/** How a pass is made beside what its rows say. */
export interface PassOptions {
  config: ModelConfig;
  cache: NativeCache | null;
  /** Results have what was selected alone. */
  selectedOnly: boolean;
  recorded?: RecordedUniforms | undefined;
  /** Number of the pass, for recorded draws. */
  step?: number;
}

/** Rules of rows, each once for rows that follow each other. */
function runsOf(tasks: readonly RowTask[]): Pick<NativeStepRequest, 'rules' | 'ruleOffsets'> {
  const rules: NativeStepRule[] = [];
  const offsets: number[] = [];
  for (let r = 0; r < tasks.length; r++) {
    const { rule } = tasks[r];
    if (rule === rules[rules.length - 1]) continue;
    rules.push(rule);
    offsets.push(r);
  }
  return rules.length === 1 ? { rules } : { rules, ruleOffsets: Int32Array.from([...offsets, tasks.length]) };
}

/** The tokens that rows have scored, candidate by candidate; null where none has any. */
function scoresOf(tasks: readonly RowTask[]): NativeStepRequest['scores'] {
  if (!tasks.some(({ row }) => row instanceof ScoredRow)) return null;
  const lists = tasks.flatMap(({ row }) =>
    row instanceof ScoredRow ? row.tokens : new Array<Int32Array>(row.candidates.length).fill(NO_TOKENS),
  );
  const { offsets, positions: tokens } = packPositions(lists);
  return { offsets, tokens };
}

/** The native request of a pass over rows whose candidates and queries are set. With a cache they ascend in it. */
export function passRequest(tasks: readonly RowTask[], options: PassOptions): NativeStepRequest {
  const { config, cache, recorded, step = 0 } = options;
  const { offsets, positions: ids } = packPositions(tasks.map(({ row }) => row.ids));
  const isListed = cache !== null || tasks.some(({ row, isLast }) => isLast || !row.isWindow);
  const isCounted = tasks.some(({ isLast, rules }) => isLast || rules.count !== null);
  const draws = recorded && tasks.map(({ row }) => recorded({ step, row: row.index, positions: row.candidates }));
  const seeds = new BigUint64Array(tasks.length);
  for (let r = 0; r < tasks.length; r++) seeds[r] = tasks[r].rules.settings.seed;
  return {
    ids,
    offsets,
    ...runsOf(tasks),
    windowEnds: numbersOf(tasks, Int32Array, ({ row }) => row.windowEnd()),
    candidates: isListed ? packPositions(tasks.map(({ row }) => row.candidates)) : null,
    cached: cache && {
      cache,
      begins: numbersOf(tasks, Int32Array, ({ begin }) => begin),
      fresh: numbersOf(tasks, Uint8Array, ({ isFresh }) => Number(isFresh)),
      ...packPositions(tasks.map(({ row }) => row.queries!)),
    },
    firstBlocks: firstBlocks(
      config,
      tasks.map(({ row }) => row.begin),
    ),
    seeds,
    rowKeys: numbersOf(tasks, Uint32Array, ({ row, rules }) => rules.settings.firstRow + row.index),
    steps: numbersOf(tasks, Uint32Array, ({ row }) => row.steps),
    counts: isCounted ? numbersOf(tasks, Int32Array, ({ count }) => count) : null,
    chances: tasks.some(({ rules }) => rules.chance !== null)
      ? numbersOf(tasks, Float64Array, ({ chance }) => chance)
      : null,
    scores: scoresOf(tasks),
    allowed: allowedOf(tasks),
    shiftInside: tasks[0].rules.settings.reference,
    selectedOnly: options.selectedOnly,
    uniforms: draws && {
      token: recordedDraws(draws.map((draw) => draw.token)),
      position: recordedDraws(draws.map((draw) => draw.position)),
    },
  };
}

const NONE = new Float32Array(0);
const NO_TOKENS = new Int32Array(0);
const ALL = new Uint8Array(256).fill(1);

/** What a pass says of a row, as rows read it: of results that have what was selected alone, all is. */
export function selectsAll({
  positions,
  tokens,
  logProbs,
  confidences,
}: Omit<RowStep, 'selected' | 'entropies'>): RowStep {
  const { length } = positions;
  const selected = length <= ALL.length ? ALL.subarray(0, length) : new Uint8Array(length).fill(1);
  return { positions, tokens, logProbs, confidences, entropies: NONE, selected };
}

/** What a whole result selected. */
export function chosenOf(part: {
  positions: Int32Array;
  tokens: Int32Array;
  logProbs: Float32Array;
  confidences: Float32Array;
  probabilities: Float32Array;
  selected: Uint8Array;
}) {
  const { selected } = part;
  const keep = <T extends Int32Array | Float32Array>(values: T): T =>
    values.filter((_value: number, i: number) => selected[i] === 1) as T;
  return {
    positions: keep(part.positions),
    tokens: keep(part.tokens),
    logProbs: keep(part.logProbs),
    confidences: keep(part.confidences),
    probabilities: keep(part.probabilities),
  };
}

/** The position of the first selected candidate, where the step was forced; else -1. */
export const firstSelected = ({ positions, selected }: StepRow, isForced: boolean): number =>
  isForced ? positions[selected.indexOf(1)] : -1;

/** Lets a row select what it has to. @returns the position that was forced, by it or by the rule; -1: none was */
export function forcedBy({ row, isLast }: RowTask, step: StepRow): number {
  const extra = isLast ? null : row.force(step);
  if (extra !== null) return extra < 0 ? -1 : step.positions[extra];
  return firstSelected(step, step.forced);
}

/** Writes a pass into its row, and returns all that it computed and saw. @param forcedPosition of `forcedBy` */
export function finishPass(task: RowTask, step: StepRow, forcedPosition: number): DenoiseRow {
  const { row } = task;
  const block = row.block;
  const computed = row.queries ?? range(0, row.ids.length);
  task.write(step, step.logLikelihoods);
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
