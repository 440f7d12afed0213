// Results of generation: what a row's outcome says, and what was measured beside it.
import { decodeIds } from '../model/prompt';
import { indexOfEnd } from '../model/text-end';
import type { RowOutcome } from '../sampling/rows/row';
import type { GeneratingModel, PreparedRow } from './prepare';
import { structuredText } from './structured';
import type { GenerateResult as Result } from './types';

/** Times the steps of a loop, without what its reader does between them. */
export class Stopwatch {
  seconds = 0;
  async time<T>(step: () => Promise<T>): Promise<T> {
    const start = performance.now();
    try {
      return await step();
    } finally {
      this.seconds += (performance.now() - start) / 1000;
    }
  }
}

type Fields = Omit<Result, 'seconds' | 'tokensPerSecond'>;

/**
 * A result. Its time is on the prototype and not its own: comparisons, copies and JSON of equal completions are equal,
 * however long they took.
 */
class GenerateResult {
  readonly #seconds: number;

  constructor(fields: Fields, seconds: number) {
    Object.assign(this, fields);
    this.#seconds = seconds;
  }

  get seconds(): number {
    return this.#seconds;
  }

  get tokensPerSecond(): number {
    const { completionTokens } = (this as unknown as Fields).usage;
    return this.#seconds > 0 ? completionTokens / this.#seconds : 0;
  }

  /** For JSON.stringify: arrays of numbers as such, and a large seed as text. */
  toJSON(): object {
    const plain = (value: unknown) => {
      if (typeof value === 'bigint') return value.toString();
      return ArrayBuffer.isView(value) ? Array.from(value as Int32Array) : value;
    };
    return Object.fromEntries(Object.entries(this).map(([key, value]) => [key, plain(value)]));
  }
}

/** A result with the seconds that it took. */
export const withTime = (fields: Fields, seconds: number): Result =>
  new GenerateResult(fields, seconds) as GenerateResult & Fields;

/** The results of a batch. @param seconds that it took, which its rows share @param more what outcomes do not know */
export function resultsOf(
  model: GeneratingModel,
  rows: readonly PreparedRow[],
  outcomes: readonly RowOutcome[],
  { seed, logprobs }: { seed: bigint; logprobs?: boolean | undefined },
  seconds: number,
  more: Partial<Pick<Result, 'lengths' | 'fullForwards'>> = {},
): Result[] {
  return outcomes.map((outcome, i) => {
    const fields = { ...fieldsOf(model, rows[i], outcome), seed: writtenSeed(seed), ...more };
    const scored = logprobs ? { ...fields, logprobs: outcome.logProbs.slice(outcome.begin, rows[i].end) } : fields;
    return withTime(scored, seconds / outcomes.length);
  });
}

/** A seed as results write it: a number where that is exact. */
export const writtenSeed = (seed: bigint): number | bigint =>
  seed <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(seed) : seed;

/** What a row's outcome says. */
function fieldsOf(model: GeneratingModel, row: PreparedRow, outcome: RowOutcome) {
  const { maskTokenId, eosTokenIds } = model.config;
  const ids = outcome.ids.slice(row.begin, row.end);
  const eos = row.isTemplate ? -1 : indexOfEnd(ids, eosTokenIds);
  const cut = row.textEnd?.cut(ids) ?? null;
  const tokens = cut?.tokens ?? (eos < 0 ? ids.length : eos + 1);
  const shown = (eos < 0 ? ids : ids.subarray(0, eos)).filter((id) => id !== maskTokenId);
  const slots = row.ids.reduce((count, id) => count + Number(id === maskTokenId), 0);
  const promptTokens = row.isTemplate ? row.ids.length - slots : row.ids.length - (row.end - row.begin);
  const completionTokens = row.isTemplate ? slots : tokens;
  const read = row.structure && structuredText(row.structure, shown);
  return {
    text: read?.text ?? cut?.text ?? decodeIds(shown, model),
    ...(row.structure?.isJson && { object: read!.object }),
    ids,
    promptIds: row.promptIds,
    usage: { promptTokens, completionTokens, totalTokens: promptTokens + completionTokens },
    nfe: outcome.nfe,
    fullForwards: outcome.fullForwards,
    tokens,
    tokensPerForward: outcome.nfe > 0 ? tokens / outcome.nfe : 0,
    // An answer that fills its slots to the last is whole, too.
    finishReason: cut || (read && eos < 0) ? ('stop' as const) : outcome.finishReason,
    unmaskedAt: outcome.unmaskedAt.slice(row.begin, row.end),
    logLikelihood: outcome.logLikelihood,
  };
}
