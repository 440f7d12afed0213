// From the body of a request to rows in the engine.
import { randomInt } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { defaultMaxTokens, type GeneratingModel, prepare } from '../generation/prepare';
import { resultsOf } from '../generation/result';
import { RowStream } from '../generation/stream';
import type { GenerateOptions, GenerateResult, StreamEvent } from '../generation/types';
import type { PlainPrompt } from '../types';
import type { CommonBody } from './body';
import { ApiError } from './errors';

const SEEDS = 1n << 64n;

/** A request, as the library takes it. */
export interface GenerationRequest {
  parts: GeneratingModel;
  /** One per choice, in the order of the answer. */
  prompts: Int32Array[];
  options: GenerateOptions;
  /** Of the answer and the log: what generates the same again. */
  settings: Record<string, unknown>;
  engine: { priority?: number; deadline?: number; onDeadline?: 'fail' | 'finish'; maxNfe?: number };
  frames: boolean;
}

/** A field that may stand at the top and in `dultra`. @throws ApiError where both say different things */
function either<K extends 'sampler' | 'cache' | 'block_length' | 'max_nfe' | 'seed'>(body: CommonBody, name: K) {
  const [top, own] = [body[name], body.dultra?.[name]];
  if (top !== undefined && own !== undefined && JSON.stringify(top) !== JSON.stringify(own))
    throw new ApiError(400, 'invalid_value', `${name} and dultra.${name} say different things`, name);
  return own ?? top;
}

/** Any whole number is a seed: modulo 2^64. */
function seedOf(given: number | string | undefined, draws: boolean): number | bigint {
  if (given === undefined) return draws ? randomInt(2 ** 32) : 0;
  const seed = ((BigInt(given) % SEEDS) + SEEDS) % SEEDS;
  return seed <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(seed) : seed;
}

/** @throws ApiError, TypeError, RangeError */
export function generationRequest(
  model: MaskedDiffusionModel,
  body: CommonBody,
  prompts: readonly PlainPrompt[],
  maxTokens: number | undefined,
  logprobs: boolean,
): GenerationRequest {
  const longest = model.config.maxSequenceLength;
  const ids = prompts.map((prompt) => model.encodePrompt(prompt, { splitSpecialTokens: true }));
  const most = Math.max(...ids.map(({ length }) => length));
  const tokens = maxTokens ?? Math.min(defaultMaxTokens(model), longest - most);
  if (tokens < 1 || most + tokens > longest)
    throw new ApiError(
      400,
      'context_length_exceeded',
      `the prompt has ${most} tokens${tokens < 1 ? '' : `, max_tokens is ${tokens}`}: together more than the model's maximum of ${longest}`,
      'messages' in body ? 'messages' : 'prompt',
    );
  const { temperature = 0, top_p: topP, top_k: topK, stop, n = 1 } = body;
  const dultra: NonNullable<CommonBody['dultra']> | undefined = body.dultra;
  const seed = seedOf(either(body, 'seed') as number | string | undefined, temperature > 0);
  const sampler = either(body, 'sampler') as GenerateOptions['sampler'];
  const cache = either(body, 'cache') as GenerateOptions['cache'];
  const blockLength = either(body, 'block_length') as number | undefined;
  const maxNfe = either(body, 'max_nfe') as number | undefined;
  const {
    deadline_ms: deadline,
    on_deadline: onDeadline,
    priority,
    stop_at_eos: stopAtEos,
  } = dultra ?? ({} as Partial<NonNullable<typeof dultra>>);
  const options: GenerateOptions = {
    ...(sampler !== undefined && { sampler }),
    ...(cache !== undefined && { cache }),
    ...(blockLength !== undefined && { blockLength }),
    ...(stopAtEos !== undefined && { stopAtEos }),
    ...(topP !== undefined && { topP }),
    ...(topK !== undefined && { topK }),
    ...(stop !== undefined && { stop }),
    maxTokens: tokens,
    temperature,
    seed,
    logprobs,
  };
  return {
    parts: model.engineParts(),
    prompts: ids.flatMap((prompt) => Array.from({ length: n }, () => prompt)),
    options,
    settings: { ...options, seed: typeof seed === 'bigint' ? seed.toString() : seed, ...(maxNfe && { maxNfe }) },
    engine: {
      ...(priority !== undefined && { priority }),
      ...(deadline !== undefined && { deadline: performance.now() + deadline }),
      ...(onDeadline !== undefined && { onDeadline }),
      ...(maxNfe !== undefined && { maxNfe }),
    },
    frames: body.stream_mode === 'denoise' || dultra?.frames === true,
  };
}

/** What a choice is told of. */
export interface ChoiceListener {
  onAdmit?: () => void;
  onEvent?: (choice: number, event: StreamEvent) => void;
}

/**
 * Runs all choices: choice i of a prompt is row i of `generateBatch` with as many copies of it.
 * @returns their results in order; the promise rejects with what one of them failed of, and the others are stopped.
 */
export async function runChoices(
  { parts, prompts, options, engine }: GenerationRequest,
  choicesPerPrompt: number,
  signal: AbortSignal,
  { onAdmit, onEvent }: ChoiceListener = {},
): Promise<GenerateResult[]> {
  const all = prompts.map((promptIds, choice) => {
    const research = { firstRow: choice % choicesPerPrompt };
    const { rows, settings } = prepare(parts, [{ promptIds }], { ...options, research });
    if (settings.reference || typeof settings.sampler === 'function')
      throw new ApiError(400, 'invalid_value', 'sampler: expected an object or its short form', 'sampler');
    return { rows, settings };
  });
  // One listener for each choice.
  setMaxListeners(0, signal);
  const submissions = all.map(({ rows, settings }, choice) => {
    const start = performance.now();
    const stream = onEvent && new RowStream(parts, rows[0]);
    const written = { seed: settings.seed, logprobs: options.logprobs };
    const submission = parts.engine.submit(rows, settings, {
      ...engine,
      signal,
      onAdmit,
      ...(stream && {
        onStep: (_row, step) => {
          const seconds = (performance.now() - start) / 1000;
          const result = step.outcome && resultsOf(parts, rows, [step.outcome], written, seconds)[0];
          onEvent(choice, stream.event(step, result));
        },
      }),
    });
    const result = submission.outcomes.then(
      (outcomes) => resultsOf(parts, rows, outcomes, written, (performance.now() - start) / 1000)[0],
    );
    return { result, cancel: submission.cancel };
  });
  try {
    return await Promise.all(submissions.map(({ result }) => result));
  } catch (error) {
    for (const { cancel, result } of submissions) {
      result.catch(() => {});
      cancel(error);
    }
    throw error;
  }
}

/** Tokens and passes of choices. */
export function usageOf(request: GenerationRequest, choicesPerPrompt: number, results: readonly GenerateResult[]) {
  const prompt = request.prompts.reduce((sum, { length }, i) => sum + (i % choicesPerPrompt === 0 ? length : 0), 0);
  const completion = results.reduce((sum, { usage }) => sum + usage.completionTokens, 0);
  const nfe = results.reduce((sum, result) => sum + result.nfe, 0);
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    nfe,
    full_forwards: results.reduce((sum, { fullForwards }) => sum + fullForwards, 0),
    tokens_per_forward: nfe > 0 ? completion / nfe : 0,
    prompt_tokens_details: { cached_tokens: 0 },
  };
}
