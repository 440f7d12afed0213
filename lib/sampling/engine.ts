// The scheduler of a model: rows of any calls go through its passes together, and come and go between them.
import { DUltraError } from '../errors';
import {
  type NativeCacheOptions,
  type NativeCancelToken,
  type NativeModel,
  type NativeStepRule,
  native,
  SelectedResult,
  StepResult,
} from '../native';
import { cacheStorage } from './caches';
import type { EngineOptions } from './engine-options';
import { EngineRow, Job, type RowStepEvent, type Submission, type SubmitOptions } from './job';
import { KvArena, storageName } from './kv-arena';
import { Lane } from './lane';
import { chosenOf, finishPass, forcedBy, passRequest, RowTask, type Rules, rulesOf, selectsAll } from './pass';
import type { Row, RowInput, RowOutcome } from './rows/row';
import { type ScoredInput, ScoredRow } from './rows/scored-row';
import { type Denoisable, type DenoiseSettings, openRows } from './settings';

/** Passes that took less than it on average would let a pass be longer. */
const TARGET_SECONDS = { cpu: 0.2, gpu: 0.05 };
const LEAST_TOKENS = 64;
const MOST_TOKENS = 8192;
/** Most milliseconds that a timer takes. */
const MOST_DELAY = 2 ** 31 - 1;
/** Different rules that are remembered. */
const MOST_RULES = 1000;

/** The rule of rows that have tokens scored. */
const SCORING: NativeStepRule = { rule: 'none', scored: true };
/** What passes read of the settings of such rows. */
const SCORING_SETTINGS: DenoiseSettings = {
  sampler: { type: 'confidence', threshold: 1, steps: null },
  cache: { type: 'none' },
  blockLength: null,
  temperature: 0,
  topK: null,
  topP: 1,
  scores: null,
  topPFirst: false,
  finishesBlock: false,
  seed: 0n,
  firstRow: 0,
  stopAtEos: false,
  tempered: false,
  referenceLikelihood: false,
  reference: false,
  signal: undefined,
};
const SCORING_RULES: Rules = {
  settings: SCORING_SETTINGS,
  drawing: SCORING,
  greedy: SCORING,
  finishing: SCORING,
  count: null,
  chance: null,
};

/** A mean in which what is older weighs less. */
const ofLate = (mean: number, value: number): number => (mean === 0 ? value : 0.9 * mean + 0.1 * value);

/** What an engine does at the moment. */
export interface EngineState {
  /** Rows that go through passes, and that wait for room. */
  activeRows: number;
  queuedRows: number;
  /** Positions of the rows that wait, and seconds until all that are there now are about done. */
  queuedPositions: number;
  secondsLeft: number;
  kvBytes: { allocated: number; used: number };
  /** Of all passes so far. */
  passes: number;
  passSeconds: number;
  passRows: number;
  passPositions: number;
}

/** Runs the rows of all calls of a model. */
export class Engine {
  readonly #target: Denoisable;
  readonly #options: Required<EngineOptions>;
  readonly #arena: KvArena;
  readonly #lanes = new Map<string, Lane>();
  /** Rows that are not in a lane yet, in the order in which they came. */
  #waiting: EngineRow[] = [];
  readonly #rules = new Map<string, NativeStepRule>();
  readonly #jobs = new Set<Job>();
  #model: NativeModel | null = null;
  #token: NativeCancelToken | null = null;
  #inPass: EngineRow[] = [];
  #isRunning = false;
  #isGrowing = false;
  #deliveries: (() => void)[] = [];
  /** Positions per second, and positions of all passes of a row, of late. */
  #rate = 0;
  #work = 0;
  #targetSeconds: number | null = null;
  #isRetired = false;
  #passes = { passes: 0, passSeconds: 0, passRows: 0, passPositions: 0 };

  constructor(target: Denoisable, options: EngineOptions = {}) {
    this.#target = target;
    const { kvBytes = null, stepTokens = null, maxRows = null, maxQueue = null } = options;
    this.#options = { kvBytes, stepTokens, maxRows, maxQueue };
    this.#arena = new KvArena(target, kvBytes);
  }

  get state(): EngineState {
    const activeRows = this.#activeRows();
    return {
      activeRows,
      queuedRows: this.#waiting.length,
      queuedPositions: this.#waiting.reduce((sum, { row }) => sum + row.ids.length, 0),
      secondsLeft: this.#rate === 0 ? 0 : ((this.#waiting.length + activeRows) * this.#work) / this.#rate,
      kvBytes: this.#arena.bytes,
      ...this.#passes,
    };
  }

  /**
   * Denoises rows. Their bits depend on them and on the settings alone. The outcomes come in the order of the rows, or
   * the promise rejects with DUltraError OVERLOADED, DEADLINE_EXCEEDED, OUT_OF_MEMORY, NON_FINITE or NO_PROGRESS, with
   * `signal.reason`, or with what a row's `isEnd` throws.
   */
  submit(inputs: readonly RowInput[], settings: DenoiseSettings, options: SubmitOptions = {}): Submission {
    let job: Job | null = null;
    const outcomes = new Promise<RowOutcome[]>((resolve, reject) => {
      options.signal?.throwIfAborted();
      if (inputs.length === 0) return resolve([]);
      const rules = this.#shared(rulesOf(this.#target.config, settings));
      const storage = cacheStorage(settings.cache, rules.drawing.planner === true);
      if (storage) for (const { ids } of inputs) this.#arena.check(ids.length, storage);
      job = this.#open(inputs.length, () => openRows(this.#target, inputs, settings), rules, storage, options);
      job.settle = { resolve, reject };
    });
    return {
      outcomes,
      cancel: (reason) => {
        if (job) this.#fail(job, reason);
      },
    };
  }

  /**
   * Log-probabilities of tokens at the masks of rows, which take part in one pass together with whatever rows there are:
   * their bits depend on each row alone. They come in the order of the rows, each row's position by position, or the
   * promise rejects as that of `submit`.
   */
  score(inputs: readonly ScoredInput[], options: SubmitOptions = {}): Promise<Float32Array[]> {
    const { maskTokenId } = this.#target.config;
    return new Promise((resolve, reject) => {
      options.signal?.throwIfAborted();
      if (inputs.length === 0) return resolve([]);
      const rows = inputs.map((input, index) => new ScoredRow(index, input, maskTokenId));
      const job = this.#open(rows.length, () => rows, SCORING_RULES, null, options);
      job.settle = { resolve: () => resolve(rows.map(({ scores }) => scores!)), reject };
    });
  }

  #open(
    count: number,
    open: () => Row[],
    rules: Rules,
    storage: NativeCacheOptions | null,
    options: SubmitOptions,
  ): Job {
    const { signal, deadline, onDeadline = 'fail', priority = 5 } = options;
    this.checkRoom(count);
    const rows = open().map((row, index) => new EngineRow(new RowTask(row, rules), index, priority));
    const job = new Job(rows, this.#lane(storage, rules.drawing.planner === true), options);
    // A handle of its own: a model that is disposed meanwhile lives until its rows are finished.
    this.#model ??= this.#target.native.share();
    for (const row of rows) row.job = job;
    this.#jobs.add(job);
    const abort = () => this.#fail(job, signal!.reason);
    signal?.addEventListener('abort', abort, { once: true });
    const expire = () => {
      if (onDeadline === 'fail' || !job.isAdmitted)
        this.#fail(job, new DUltraError('DEADLINE_EXCEEDED', 'the deadline passed before all tokens were decided'));
    };
    const timer =
      deadline === undefined
        ? undefined
        : setTimeout(expire, Math.min(MOST_DELAY, Math.max(0, deadline - performance.now())));
    job.dispose = () => {
      signal?.removeEventListener('abort', abort);
      clearTimeout(timer);
    };
    for (const row of rows) this.#waiting.push(row);
    this.#wake();
    return job;
  }

  /** Refuses rows that `submit` would refuse, before anything is made of them. @throws DUltraError OVERLOADED */
  checkRoom(count: number): void {
    const { maxQueue } = this.#options;
    if (maxQueue !== null && this.#waiting.length + count > maxQueue + this.#room())
      throw new DUltraError('OVERLOADED', `the queue of ${maxQueue} rows is full`);
  }

  /** Frees memory that no row has, now or as soon as that is so. Rows under way are finished. */
  retire(): void {
    this.#isRetired = true;
    if (!this.#isRunning && this.#jobs.size === 0) this.#arena.trim();
  }

  /** Rules of equal parts as the same objects, by which rows of several calls share launches. */
  #shared(rules: Rules): Rules {
    if (this.#rules.size > MOST_RULES) this.#rules.clear();
    const one = (rule: NativeStepRule): NativeStepRule => {
      const name = JSON.stringify(rule);
      const known = this.#rules.get(name) ?? rule;
      this.#rules.set(name, known);
      return known;
    };
    return {
      ...rules,
      drawing: one(rules.drawing),
      greedy: one(rules.greedy),
      finishing: one(rules.finishing),
    };
  }

  /** Rows that could go through passes besides those that do. */
  #room(): number {
    const { maxRows } = this.#options;
    return maxRows === null ? Number.POSITIVE_INFINITY : Math.max(0, maxRows - this.#activeRows());
  }

  #activeRows(): number {
    let rows = 0;
    for (const lane of this.#lanes.values()) rows += lane.rows.size;
    return rows;
  }

  #lane(storage: NativeCacheOptions | null, planner: boolean): Lane {
    const name = `${storage ? storageName(storage) : 'none'} ${planner}`;
    let lane = this.#lanes.get(name);
    if (!lane) {
      lane = new Lane(name, storage);
      this.#lanes.set(name, lane);
    }
    return lane;
  }

  #wake(): void {
    if (this.#isRunning) return;
    this.#isRunning = true;
    // Calls of the same moment begin together.
    queueMicrotask(() => void this.#run());
  }

  async #run(): Promise<void> {
    for (;;) {
      this.#admit();
      const pass = this.#nextPass();
      if (!pass) break;
      const { rows, lane, readsAll } = pass;
      this.#inPass = rows;
      for (const row of rows) row.isInPass = true;
      this.#token ??= new (native().CancelToken)();
      const start = performance.now();
      try {
        const request = passRequest(
          rows.map(({ task }) => task),
          { config: this.#target.config, cache: rows[0].slab?.cache ?? null, selectedOnly: !readsAll },
        );
        const work = this.#model!.step(request, this.#token);
        this.#flush();
        const buffer = await work;
        this.#measure(rows, lane, (performance.now() - start) / 1000);
        this.#apply(rows, buffer, readsAll);
      } catch (error) {
        // What a pass as a whole throws is about the machine, or all of its rows have been stopped.
        for (const { job } of rows) this.#fail(job, error);
      }
      this.#inPass = [];
      for (const row of rows) {
        row.isInPass = false;
        if (row.job.isDone || row.row.finished) this.#release(row);
      }
    }
    this.#isRunning = false;
    this.#flush();
    if (this.#jobs.size > 0) return;
    this.#model?.dispose();
    this.#model = null;
    if (this.#isRetired) this.#arena.trim();
  }

  #measure(rows: readonly EngineRow[], lane: Lane, seconds: number): void {
    let positions = 0;
    for (const row of rows) {
      row.work += row.cost;
      positions += row.cost;
    }
    this.#rate = ofLate(this.#rate, positions / Math.max(seconds, 1e-6));
    lane.charge(rows);
    const sums = this.#passes;
    sums.passes++;
    sums.passSeconds += seconds;
    sums.passRows += rows.length;
    sums.passPositions += positions;
  }

  /** Positions that a pass may compute. */
  #budget(): number {
    const { stepTokens } = this.#options;
    if (stepTokens === null) return Number.POSITIVE_INFINITY;
    if (stepTokens !== 'auto') return stepTokens;
    if (this.#rate === 0) return MOST_TOKENS;
    // Not asked for at every pass: what is known of a model is counted anew each time.
    this.#targetSeconds ??= this.#target.native.info().device === 'cpu' ? TARGET_SECONDS.cpu : TARGET_SECONDS.gpu;
    return Math.min(MOST_TOKENS, Math.max(LEAST_TOKENS, this.#targetSeconds * this.#rate));
  }

  /** Lets rows into their lanes as far as there is room. */
  #admit(): void {
    let room = this.#room();
    /** Rows that need memory of one kind. */
    const needy: EngineRow[] = [];
    let isReserved = false;
    this.#waiting = this.#waiting.filter((row) => {
      const { job } = row;
      const { storage } = job.lane;
      if (job.isDone) return false;
      if (room <= 0 || (storage && isReserved)) return true;
      if (storage) {
        const taken = this.#arena.take(row.row.ids.length, storage);
        if (!taken) {
          if (needy.length === 0 || needy[0].job.lane.storage === storage) needy.push(row);
          isReserved ||= !job.isPatient;
          return true;
        }
        row.slab = taken.slab;
        row.task.begin = taken.begin;
        if (needy.length > 0) needy[0].job.passedBy++;
      }
      room--;
      this.#enter(row);
      return false;
    });
    if (needy.length > 0 && !this.#isGrowing) void this.#grow(needy);
  }

  #enter(row: EngineRow): void {
    const { job } = row;
    const { lane, options } = job;
    if (lane.rows.size === 0) {
      // A lane that was idle has no claim on what others got meanwhile.
      const times = [...this.#lanes.values()].filter(({ rows }) => rows.size > 0).map((other) => other.virtualTime);
      lane.virtualTime = Math.max(lane.virtualTime, times.length > 0 ? Math.min(...times) : 0);
    }
    lane.add(row);
    job.isAdmitted = true;
    const { onAdmit } = options;
    if (onAdmit) this.#deliveries.push(() => !job.hasFailed && onAdmit(row.index));
  }

  /** Allocates memory for rows that wait. */
  async #grow(rows: readonly EngineRow[]): Promise<void> {
    const [{ job }] = rows;
    const grow = (some: readonly EngineRow[]) => {
      const lengths = some.map(({ row }) => row.ids.length);
      return this.#arena.grow(this.#model!, lengths, job.lane.storage!);
    };
    this.#isGrowing = true;
    try {
      const own = rows.filter((row) => row.job === job);
      // What does not fit for all may do so for the call that came first.
      await grow(rows).catch((error) => {
        if (own.length === rows.length) throw error;
        return grow(own);
      });
    } catch (error) {
      this.#fail(job, error);
    } finally {
      this.#isGrowing = false;
      if (job.isDone && (this.#options.kvBytes === null || this.#isRetired)) this.#arena.trim();
      this.#wake();
    }
  }

  /** The rows of the next pass; null: there is nothing to do now. */
  #nextPass(): { rows: EngineRow[]; lane: Lane; readsAll: boolean } | null {
    for (;;) {
      let lane: Lane | null = null;
      for (const other of this.#lanes.values())
        if (other.rows.size > 0 && (!lane || other.virtualTime < lane.virtualTime)) lane = other;
      if (!lane) return null;
      for (const row of lane.rows) this.#prepare(row as EngineRow);
      const rows = lane.choose(this.#budget()) as EngineRow[];
      if (rows.length === 0) continue;
      for (const row of rows) row.isReady = false;
      return { rows, lane, readsAll: rows.some((row) => row.readsAll) };
    }
  }

  /** Sets what a row's next pass decides and computes; a row that needs none ends. */
  #prepare(row: EngineRow): void {
    const { task, job } = row;
    if (job.isDone) {
      this.#release(row);
      return;
    }
    const { maxNfe, deadline } = job.options;
    const isLast =
      (maxNfe !== undefined && task.row.nfe >= maxNfe - 1) ||
      (deadline !== undefined && performance.now() >= deadline && job.options.onDeadline === 'finish');
    if (row.isReady && task.isLast === isLast) return;
    try {
      if (!row.isReady && !task.row.enter()) {
        this.#finish(row);
        return;
      }
      if (isLast) {
        task.isLast = true;
        task.row.enterLast(job.lane.storage !== null);
      }
      task.plan();
      row.isReady = true;
    } catch (error) {
      this.#fail(job, error);
      this.#release(row);
    }
  }

  #apply(rows: readonly EngineRow[], buffer: ArrayBuffer, readsAll: boolean): void {
    const hasMargins = readsAll && rows.some(({ task }) => task.rule.byMargin);
    let scored = 0;
    for (const { row } of rows) if (row instanceof ScoredRow) scored += row.tokenCount;
    const whole = readsAll ? new StepResult(buffer, rows.length, hasMargins, scored) : null;
    const selected = readsAll ? null : new SelectedResult(buffer, rows.length, scored);
    const { scores } = (whole ?? selected)!;
    scored = 0;
    for (let r = 0; r < rows.length; r++) {
      const engineRow = rows[r];
      const { task, job, row } = engineRow;
      if (row instanceof ScoredRow) {
        row.scores = scores.slice(scored, scored + row.tokenCount);
        scored += row.tokenCount;
      }
      if (job.isDone) continue;
      try {
        const failure = (whole ?? selected)!.failure(r, task.rules.settings.firstRow + row.index);
        if (failure) throw failure;
        const { block } = row;
        if (whole) {
          const part = whole.row(r);
          const { onPass } = job.options;
          const forced = forcedBy(task, part);
          row.keepFitting(part);
          if (onPass) {
            const pass = finishPass(task, part, forced);
            this.#deliveries.push(() => !job.hasFailed && onPass(pass));
          } else task.write(part, part.logLikelihoods);
          if (job.options.onStep) this.#tell(engineRow, block, chosenOf(part));
        } else {
          const part = selected!.row(r);
          const all = selectsAll(part);
          // Passes share what says that all is selected.
          const step = row.constraint ? { ...all, selected: all.selected.slice() } : all;
          row.keepFitting(step);
          task.write(step, part.logLikelihoods);
          if (job.options.onStep) this.#tell(engineRow, block, row.constraint ? chosenOf({ ...part, ...step }) : part);
        }
        if (row.finished) this.#finish(engineRow);
      } catch (error) {
        this.#fail(job, error);
      }
    }
  }

  /** Queues the event of a row's pass. */
  #tell(
    engineRow: EngineRow,
    block: number,
    {
      positions,
      tokens,
      logProbs,
      confidences,
      probabilities,
    }: Omit<RowStepEvent, 'step' | 'block' | 'ids' | 'settled' | 'outcome'>,
  ): void {
    const { row, index, job } = engineRow;
    const { onStep } = job.options;
    const event: RowStepEvent = {
      step: row.steps,
      block,
      positions,
      tokens,
      logProbs,
      confidences,
      probabilities,
      ids: row.ids.slice(),
      settled: row.settledEnd(),
      outcome: row.finished ? engineRow.outcome() : null,
    };
    this.#deliveries.push(() => {
      if (!job.hasFailed) onStep!(index, event);
    });
  }

  /** A row that is finished. */
  #finish(row: EngineRow): void {
    const { job } = row;
    row.row.finished = true;
    if (!row.isInPass) this.#release(row);
    if (job.isDone) return;
    job.outcomes[row.index] = row.outcome();
    this.#work = ofLate(this.#work, row.work);
    if (--job.left > 0) return;
    this.#close(job);
    this.#deliveries.push(() => job.settle.resolve(job.outcomes));
  }

  #fail(job: Job, reason: unknown): void {
    if (job.isDone) return;
    this.#close(job);
    job.hasFailed = true;
    job.settle.reject(reason);
    for (const row of job.rows) if (!row.isInPass) this.#release(row);
    if (this.#inPass.length > 0 && this.#inPass.every((row) => row.job.isDone)) {
      this.#token?.cancel();
      this.#token = null;
    }
    // What waited for the row's memory.
    this.#wake();
  }

  #close(job: Job): void {
    job.isDone = true;
    job.dispose();
    this.#jobs.delete(job);
  }

  /** Gives back a row's place. */
  #release(row: EngineRow): void {
    row.job.lane.remove(row);
    if (!row.slab) return;
    this.#arena.give(row.slab, row.task.begin, row.row.ids.length);
    row.slab = null;
  }

  #flush(): void {
    const deliveries = this.#deliveries;
    this.#deliveries = [];
    for (const deliver of deliveries) deliver();
  }
}
