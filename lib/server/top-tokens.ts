// The most probable tokens of each position in the pass that decided it.
import { runForward } from '../model/forward';
import { decodeIds } from '../model/prompt';
import type { RowStepEvent } from '../sampling/job';
import { ApiError } from './errors';
import type { GenerationRequest } from './generation';

/** Most bytes of the logits of a row. */
const MOST_BYTES = 2 ** 28;

/** A token and its log-probability at temperature 1, as OpenAI writes it. */
export interface TokenLogprob {
  token: string;
  bytes: number[];
  logprob: number;
}

/**
 * Passes tell of the tokens that they chose alone, so those with other probabilities are computed a second time, from
 * the row as it stood. That is the same pass where nothing is taken from a cache.
 */
export class TopTokens {
  readonly #request: GenerationRequest;
  readonly #count: number;
  /** Of each choice: passes, and the row after the last of them. */
  readonly #passes: { choice: number; ids: Int32Array; positions: Int32Array }[] = [];
  readonly #rows = new Map<number, Int32Array>();
  readonly #found = new Map<string, TokenLogprob[]>();

  /** @throws ApiError for what cannot be computed a second time */
  constructor(request: GenerationRequest, count: number) {
    const { parts, options } = request;
    const { cache } = options;
    if (options.hole !== undefined)
      throw new ApiError(400, 'unsupported_value', 'top_logprobs: not supported with dultra.hole', 'top_logprobs');
    const { type } = typeof cache === 'string' ? { type: cache.split(':')[0] } : (cache ?? { type: 'none' });
    if (type !== 'none' && type !== 'blocks')
      throw new ApiError(400, 'unsupported_value', 'top_logprobs: not supported with this cache', 'cache');
    if (parts.config.mask === 'block-causal')
      throw new ApiError(400, 'unsupported_value', 'top_logprobs: not supported by this model', 'top_logprobs');
    this.#request = request;
    this.#count = count;
  }

  /** Notes a pass. */
  readonly see = (choice: number, { ids, positions }: RowStepEvent): void => {
    const before = ids.slice();
    const last = this.#rows.get(choice);
    // Samplers that edit write over tokens.
    for (const position of positions) before[position] = last ? last[position] : this.#request.parts.config.maskTokenId;
    this.#rows.set(choice, ids);
    this.#passes.push({ choice, ids: before, positions });
  };

  /** Computes the tokens of all passes that were seen. */
  async compute(signal: AbortSignal): Promise<void> {
    const { parts } = this.#request;
    const { embeddingSize, shiftLogits } = parts.config;
    for (const { choice, ids, positions } of this.#passes) {
      if (4 * ids.length * embeddingSize > MOST_BYTES)
        throw new ApiError(
          400,
          'unsupported_value',
          'top_logprobs: not supported for rows as long as this',
          'max_tokens',
        );
      const { logits } = await runForward(parts, { ids, signal });
      for (const position of positions) {
        const from = shiftLogits === true ? Math.max(0, position - 1) : position;
        const row = logits!.subarray(from * embeddingSize, (from + 1) * embeddingSize);
        this.#found.set(`${choice} ${position}`, this.#best(row));
      }
    }
  }

  /** The tokens of a position of a choice's row; none where no pass decided it. */
  at(choice: number, position: number): TokenLogprob[] {
    return this.#found.get(`${choice} ${position}`) ?? [];
  }

  #best(logits: Float32Array): TokenLogprob[] {
    const { parts } = this.#request;
    const { maskTokenId } = parts.config;
    const best: { id: number; logit: number }[] = [];
    let most = Number.NEGATIVE_INFINITY;
    for (let id = 0; id < logits.length; id++) {
      const logit = logits[id];
      // The mask token is no prediction.
      if (id === maskTokenId) continue;
      if (logit > most) most = logit;
      if (best.length === this.#count && logit <= best[best.length - 1].logit) continue;
      const at = best.findIndex((other) => logit > other.logit);
      best.splice(at < 0 ? best.length : at, 0, { id, logit });
      if (best.length > this.#count) best.pop();
    }
    let sum = 0;
    for (let id = 0; id < logits.length; id++) if (id !== maskTokenId) sum += Math.exp(logits[id] - most);
    return best.map(({ id, logit }) => {
      const token = decodeIds([id], parts);
      return { token, bytes: [...Buffer.from(token)], logprob: logit - most - Math.log(sum) };
    });
  }
}
