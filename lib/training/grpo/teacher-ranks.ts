// Scores of models that other processes of a job hold: a process that trains asks for them as soon as it has rows, goes
// on, and waits where it needs them.
import { warnOnce } from '../../data/unusable';
import { Mailbox } from '../../distributed/messages';
import { dealOut } from '../../distributed/process-group';
import { DUltraError } from '../../errors';
import { range } from '../../packing';

/** Rows to score. */
interface Request {
  id: number;
  /** What scores them. */
  scorer: string;
  /** What all rows have in common. */
  about: unknown;
  rows: unknown[];
}

/** One answer per row of a request, or the last word of a process that trains. */
type ToTeacher = Request | 'end';
interface Answer {
  id: number;
  answers: unknown[];
  warnings: string[];
}

/** Computes one answer per row, each by itself. */
export type Scorer = (rows: never[], about: never) => Promise<unknown[]>;

/** The processes of the role "teacher", as one that trains sees them. */
export class TeacherRanks {
  readonly #ranks: readonly number[];
  readonly #scorers: ReadonlySet<string>;
  readonly #mailbox: Mailbox;
  /** What each of them was asked for so far, by cost. */
  readonly #loads: Float64Array;
  readonly #open = new Map<number, { resolve(answers: unknown[]): void; reject(error: unknown): void }>();
  #next = 0;

  /**
   * @param ranks of the role "teacher", among all processes @param scorers what they score
   * @param first place of the one that is asked first, so that not all begin with the same
   */
  constructor(ranks: readonly number[], scorers: readonly string[], first: number) {
    this.#ranks = ranks.map((_, i) => ranks[(first + i) % ranks.length]);
    this.#scorers = new Set(scorers);
    this.#loads = new Float64Array(ranks.length);
    this.#mailbox = new Mailbox(
      () => this.#open.size > 0,
      (_, message) => this.#take(message as Answer),
      (error) => {
        for (const { reject } of this.#open.values()) reject(error);
        this.#open.clear();
      },
    );
  }

  /** Whether they score this. */
  has(scorer: string): boolean {
    return this.#scorers.has(scorer);
  }

  /**
   * Asks for one answer per row; the rows are dealt out by cost. @param about what all of them have in common
   * @returns answers in the order of the rows
   */
  ask<Row, Value>(
    scorer: string,
    rows: readonly Row[],
    costOf: (row: Row) => number,
    about: unknown = null,
  ): Promise<Value[]> {
    const places = dealOut(rows.map(costOf), this.#ranks.length, this.#loads);
    const answers = new Array<Value>(rows.length);
    const parts = this.#ranks.map(async (rank, place) => {
      const own = range(0, rows.length).filter((row) => places[row] === place);
      if (own.length === 0) return;
      const found = await this.#send(rank, { scorer, about, rows: Array.from(own, (row) => rows[row]) });
      for (const [i, row] of own.entries()) answers[row] = found[i] as Value;
    });
    const all = Promise.all(parts).then(() => answers);
    // It fails where it is waited for.
    all.catch(() => {});
    return all;
  }

  #send(rank: number, request: Omit<Request, 'id'>): Promise<unknown[]> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#open.set(id, { resolve, reject });
      this.#mailbox.send(rank, { id, ...request } satisfies ToTeacher);
    });
  }

  #take({ id, answers, warnings }: Answer): void {
    for (const warning of warnings) warnOnce(warning);
    this.#open.get(id)?.resolve(answers);
    this.#open.delete(id);
  }

  /** Lets them go: this process asks no more. */
  async end(): Promise<void> {
    for (const { reject } of this.#open.values()) reject(new DUltraError('DISPOSED', 'the training has ended'));
    this.#open.clear();
    for (const rank of this.#ranks) this.#mailbox.send(rank, 'end' satisfies ToTeacher);
    await this.#mailbox.close();
  }
}

/**
 * Answers the processes that train, in the order in which they ask, until all of them have ended.
 * @param ranks of those that train, among all processes
 */
export async function answerRequests(
  ranks: readonly number[],
  scorers: Readonly<Record<string, Scorer>>,
): Promise<void> {
  const working = new Set(ranks);
  const queue: { from: number; request: Request }[] = [];
  let wake = () => {};
  let failure: unknown;
  const mailbox = new Mailbox(
    () => working.size > 0,
    (from, message) => {
      if (message === 'end') working.delete(from);
      else queue.push({ from, request: message as Request });
      wake();
    },
    (error) => {
      failure = error;
      wake();
    },
  );
  // Nobody reads what a process says that is not the first one.
  let warnings: string[] = [];
  const onWarning = ({ name, message }: Error) => {
    if (name === 'DultraWarning') warnings.push(message);
  };
  process.on('warning', onWarning);
  try {
    void mailbox.poll();
    while (working.size > 0) {
      const next = queue.shift();
      if (next === undefined) {
        if (failure !== undefined) throw failure;
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
        continue;
      }
      const { id, scorer, rows, about } = next.request;
      const answers = await scorers[scorer](rows as never[], about as never);
      mailbox.send(next.from, { id, answers, warnings } satisfies Answer);
      warnings = [];
    }
  } finally {
    process.off('warning', onWarning);
    await mailbox.close();
  }
}
