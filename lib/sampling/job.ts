// Rows in the scheduler: how they are submitted, and what is known of them.
import type { Lane, LaneRow } from './lane';
import type { RowTask } from './pass';
import type { Row, RowOutcome } from './rows/row';
import type { DenoiseRow } from './types';

/** Smaller rows may pass one that waits for memory so often, and so long. */
const PASSED_BY = 16;
const PASSED_MS = 2000;
/** What a pass decided of a row. */
export interface RowStepEvent {
  /** Passes of the row, this one included. */
  step: number;
  block: number;
  /** Selected positions, ascending, and what was written there. */
  positions: Int32Array;
  tokens: Int32Array;
  logProbs: Float32Array;
  confidences: Float32Array;
  /** Unmasking probabilities of the planner samplers, else 0. */
  probabilities: Float32Array;
  /** The row's ids after the pass. */
  ids: Int32Array;
  /** As `settled` of DenoiseRow. */
  settled: number;
  /** Set where the row ended with this pass. */
  outcome: RowOutcome | null;
}

/** How rows are submitted. */
export interface SubmitOptions {
  signal?: AbortSignal | undefined;
  /** 0 to 9: a row of priority p + 2 gets twice the share of one of priority p. Default 5. */
  priority?: number | undefined;
  /** Time, as performance.now() has it, after which the rows fail with DEADLINE_EXCEEDED or are finished. */
  deadline?: number | undefined;
  /** "finish": a pass after the deadline decides every mask that is left. Default "fail". */
  onDeadline?: 'fail' | 'finish' | undefined;
  /** Forward passes of a row that decide something, the last of which decides every mask that is left. Default: any. */
  maxNfe?: number | undefined;
  /** Called with every row that is admitted, and with every pass of one, after the next pass has begun. */
  onAdmit?: ((row: number) => void) | undefined;
  onStep?: ((row: number, event: RowStepEvent) => void) | undefined;
  /** Called likewise, with all that a pass computed and saw: its native results are larger. */
  onPass?: ((pass: DenoiseRow) => void) | undefined;
}

/** Rows under way. */
export interface Submission {
  outcomes: Promise<RowOutcome[]>;
  /** Stops them: `outcomes` rejects with the reason. */
  cancel(reason: unknown): void;
}

/** Rows that were submitted together. */
export class Job {
  left: number;
  isDone = false;
  hasFailed = false;
  isAdmitted = false;
  readonly outcomes: RowOutcome[] = [];
  /** Rows that came later and got memory before it. */
  passedBy = 0;
  readonly submitted = performance.now();
  settle!: { resolve: (outcomes: RowOutcome[]) => void; reject: (reason: unknown) => void };
  dispose: () => void = () => {};

  constructor(
    readonly rows: EngineRow[],
    readonly lane: Lane,
    readonly options: SubmitOptions,
  ) {
    this.left = rows.length;
  }

  /** Nobody may get memory before it any more. */
  get isPatient(): boolean {
    return this.passedBy < PASSED_BY && performance.now() - this.submitted < PASSED_MS;
  }
}

/** A row in the engine. */
export class EngineRow implements LaneRow {
  virtualTime = 0;
  readonly weight: number;
  job!: Job;
  slab: LaneRow['slab'] = null;
  isReady = false;
  isInPass = false;
  /** Positions of its passes so far. */
  work = 0;
  #outcome: RowOutcome | null = null;

  constructor(
    readonly task: RowTask,
    readonly index: number,
    priority: number,
  ) {
    this.weight = 2 ** ((priority - 5) / 2);
  }

  get row(): Row {
    return this.task.row;
  }

  /** Its passes have to tell of all candidates. */
  get readsAll(): boolean {
    return this.row.readsAll || this.job.options.onPass !== undefined;
  }

  /** What became of it. */
  outcome(): RowOutcome {
    this.#outcome ??= this.row.outcome();
    return this.#outcome;
  }

  /** Positions that its next pass computes. */
  get cost(): number {
    return this.row.queries?.length ?? this.row.ids.length;
  }
}
