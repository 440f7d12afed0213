// From the body of a request to rows in the engine.
import { randomInt } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { isOptionError } from '../errors';
import type { Text } from '../generation/encoding';
import { searchLengths } from '../generation/length-search';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { defaultMaxTokens, type GeneratingModel, type PreparedRow, prepare } from '../generation/prepare';
import { resultsOf } from '../generation/result';
import { RowStream } from '../generation/stream';
import type { GenerateOptions, GenerateResult, StreamEvent } from '../generation/types';
import { TextTooLong } from '../model/tokenizer';
import type { RowStepEvent } from '../sampling/job';
import { type JsonSchema, shapeOf } from '../structured/json-schema';
import type { PlainPrompt, Prompt } from '../types';
import type { CommonBody } from './body';
import { ApiError } from './errors';

const SEEDS = 1n << 64n;

/** A request, as the library takes it. */
export interface GenerationRequest {
  parts: GeneratingModel;
  /** One per choice, in the order of the answer. */
  prompts: Prompt[];
  options: GenerateOptions;
  /** Of the answer and the log: what generates the same again. */
  settings: Record<string, unknown>;
  engine: { priority?: number; deadline?: number; onDeadline?: 'fail' | 'finish'; maxNfe?: number };
  frames: boolean;
  /** Masks of the prompt are filled, and the completion is the whole row. */
  isTemplate: boolean;
}

/** What a route asks to be generated. */
export interface Wanted {
  prompts: readonly PlainPrompt[];
  maxTokens: number | undefined;
  logprobs: boolean;
  /** What follows the answer, which is then infilled. */
  suffix?: string | undefined;
  /** What the answer is a value of, and where the request says so. */
  schema?: { value: JsonSchema | 'object'; path: string } | undefined;
}

/** Refuses what is not of the supported subset. @throws ApiError naming the keyword by its path */
function checkSchema({ value, path }: NonNullable<Wanted['schema']>): void {
  try {
    if (value !== 'object') shapeOf(value, path);
  } catch (error) {
    throw isOptionError(error) ? new ApiError(400, 'invalid_schema', error.message, error.option) : error;
  }
}

/** A field that may stand at the top and in `dultra`. @throws ApiError where both say different things */
function either<K extends 'sampler' | 'cache' | 'block_length' | 'steps' | 'max_nfe' | 'seed'>(
  body: CommonBody,
  name: K,
) {
  const [top, own] = [body[name], body.dultra?.[name]];
  if (top !== undefined && own !== undefined && JSON.stringify(top) !== JSON.stringify(own))
    throw new ApiError(400, 'invalid_value', `${name} and dultra.${name} say different things`, name);
  return own ?? top;
}

/** The length of the answer is looked for. @throws ApiError where it cannot be */
function holeOf(body: CommonBody, { suffix, schema }: Wanted): 'search' {
  const refuse = (message: string) => new ApiError(400, 'unsupported_value', `dultra.hole: ${message}`, 'dultra.hole');
  if (body.stream) throw refuse('not supported with stream: which length is kept is known when all are filled');
  if (suffix === undefined && schema === undefined) throw refuse('expected together with a suffix or a schema');
  if (either(body, 'max_nfe') !== undefined || body.dultra?.on_deadline === 'finish')
    throw refuse('not supported with max_nfe and on_deadline "finish", which would cut all lengths alike');
  return 'search';
}

/** How tokens are chosen: a sampler, or passes of the sampler "fixed". @throws ApiError */
function samplerOf(body: CommonBody): GenerateOptions['sampler'] {
  const sampler = either(body, 'sampler') as GenerateOptions['sampler'];
  const steps = (either(body, 'steps') ?? body.num_denoising_steps) as number | undefined;
  if (steps === undefined) return sampler;
  if (sampler !== undefined)
    throw new ApiError(
      400,
      'invalid_value',
      'steps: expected without a sampler, which says it itself: "fixed:8"',
      'steps',
    );
  return { type: 'fixed', steps };
}

/** Any whole number is a seed: modulo 2^64. */
function seedOf(given: number | string | undefined, draws: boolean): number | bigint {
  if (given === undefined) return draws ? randomInt(2 ** 32) : 0;
  const seed = ((BigInt(given) % SEEDS) + SEEDS) % SEEDS;
  return seed <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(seed) : seed;
}

/** @param signal of the client's connection @throws ApiError, TypeError, RangeError; `signal.reason` */
export async function generationRequest(
  model: MaskedDiffusionModel,
  body: CommonBody,
  wanted: Wanted,
  signal: AbortSignal,
): Promise<GenerationRequest> {
  const { logprobs, schema } = wanted;
  if (schema) checkSchema(schema);
  const parts = model.engineParts();
  const isTemplate = body.dultra?.template === true;
  const { prompts, tokens } = await (isTemplate
    ? templatesOf(parts, body, wanted, signal)
    : promptsOf(parts, body, wanted, signal));
  const { temperature = 0, top_p: topP, top_k: topK, stop, n = 1 } = body;
  const dultra: NonNullable<CommonBody['dultra']> | undefined = body.dultra;
  const seed = seedOf(either(body, 'seed') as number | string | undefined, temperature > 0);
  const sampler = samplerOf(body);
  const cache = either(body, 'cache') as GenerateOptions['cache'];
  const blockLength = either(body, 'block_length') as number | undefined;
  const maxNfe = either(body, 'max_nfe') as number | undefined;
  const {
    deadline_ms: deadline,
    on_deadline: onDeadline,
    priority,
    stop_at_eos: stopAtEos,
    hole,
  } = dultra ?? ({} as Partial<NonNullable<typeof dultra>>);
  const options: GenerateOptions = {
    ...(sampler !== undefined && { sampler }),
    ...(cache !== undefined && { cache }),
    ...(blockLength !== undefined && { blockLength }),
    ...(stopAtEos !== undefined && { stopAtEos }),
    ...(topP !== undefined && { topP }),
    ...(topK !== undefined && { topK }),
    ...(stop !== undefined && { stop }),
    ...(hole !== undefined && { hole: holeOf(body, wanted) }),
    ...(schema && { schema: schema.value }),
    // A schema says itself how long its values are.
    ...(tokens !== undefined && !(schema && wanted.maxTokens === undefined) && { maxTokens: tokens }),
    temperature,
    seed,
    logprobs,
  };
  return {
    parts,
    isTemplate,
    prompts: prompts.flatMap((prompt) => Array.from({ length: n }, () => prompt)),
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

/** Where a body has its texts. */
const fieldOf = (body: CommonBody): string => ('messages' in body ? 'messages' : 'input' in body ? 'input' : 'prompt');

const tooLong = (body: CommonBody, message: string) =>
  new ApiError(400, 'context_length_exceeded', message, fieldOf(body));

/** Ids of texts. @throws ApiError context_length_exceeded where one cannot fit */
async function encode({ encoding, config }: GeneratingModel, body: CommonBody, texts: Text[], signal: AbortSignal) {
  try {
    return await encoding.encode(texts, signal);
  } catch (error) {
    if (!(error instanceof TextTooLong)) throw error;
    const { maxSequenceLength } = config;
    throw tooLong(
      body,
      `a text has at least ${error.tokens} tokens, more than the model's maximum of ${maxSequenceLength}`,
    );
  }
}

/** Masks of prompts say what to fill. */
async function templatesOf(
  parts: GeneratingModel,
  body: CommonBody,
  { prompts, maxTokens, suffix }: Wanted,
  signal: AbortSignal,
): Promise<{ prompts: Prompt[]; tokens: undefined }> {
  if (maxTokens !== undefined || suffix !== undefined)
    throw new ApiError(
      400,
      'invalid_value',
      `${suffix === undefined ? 'max_tokens' : 'suffix'}: not allowed with a template, whose masks say what to fill`,
      suffix === undefined ? 'max_tokens' : 'suffix',
    );
  const texts = prompts.flatMap((prompt): Text[] => {
    if (typeof prompt === 'string') return [{ template: prompt }];
    if ('promptIds' in prompt) return [];
    throw new ApiError(400, 'unsupported_value', 'dultra.template: for /v1/completions alone', 'dultra.template');
  });
  const ids = await encode(parts, body, texts, signal);
  const templates = prompts.map((prompt) => ({
    template: typeof prompt === 'object' && 'promptIds' in prompt ? prompt.promptIds : ids.shift()!,
  }));
  return { prompts: templates, tokens: undefined };
}

/** Prompts as ids, and how many tokens follow. */
async function promptsOf(
  parts: GeneratingModel,
  body: CommonBody,
  { prompts, maxTokens, suffix }: Wanted,
  signal: AbortSignal,
): Promise<{ prompts: Prompt[]; tokens: number }> {
  const { config } = parts;
  const longest = config.maxSequenceLength;
  const texts = prompts.map((prompt): Text => ({ prompt }));
  if (suffix !== undefined) texts.push({ prompt: suffix, isPart: true });
  const ids = await encode(parts, body, texts, signal);
  const suffixIds = suffix === undefined ? null : ids.pop()!;
  const behind = suffixIds ? suffixIds.length + Number(config.eosTokenId !== null) : 0;
  const most = Math.max(...ids.map(({ length }) => length)) + behind;
  const tokens = maxTokens ?? Math.min(defaultMaxTokens(parts), longest - most);
  if (tokens < 1 || most + tokens > longest)
    throw tooLong(
      body,
      `the prompt has ${most} tokens${tokens < 1 ? '' : `, max_tokens is ${tokens}`}: together more than the model's maximum of ${longest}`,
    );
  const all = ids.map((promptIds) => (suffixIds ? { prompt: { promptIds }, suffix: { suffixIds } } : { promptIds }));
  return { prompts: all, tokens };
}

/** What a choice is told of. */
export interface ChoiceListener {
  /** @param rows of all choices, before their first pass */
  onAdmit?: (rows: readonly PreparedRow[]) => void;
  /** What a pass decided in a row: what `onEvent` gets, as the row has it. */
  onStep?: (choice: number, step: RowStepEvent) => void;
  onEvent?: (choice: number, event: StreamEvent) => void;
}

/**
 * Runs all choices: choice i of a prompt is row i of `generateBatch` with as many copies of it.
 * @returns their results in order; the promise rejects with what one of them failed of, and the others are stopped.
 */
export async function runChoices(
  { parts, prompts, options, engine, frames }: GenerationRequest,
  choicesPerPrompt: number,
  signal: AbortSignal,
  { onAdmit, onStep, onEvent }: ChoiceListener = {},
): Promise<GenerateResult[]> {
  if (options.hole !== undefined)
    return Promise.all(
      prompts.map((prompt, choice) => {
        const research = { firstRow: choice % choicesPerPrompt };
        return searchLengths(parts, prompt, { ...options, research, signal }, engine);
      }),
    );
  const all = prompts.map((prompt, choice) => {
    const research = { firstRow: choice % choicesPerPrompt };
    const { rows, settings } = prepare(parts, [prompt], { ...options, research });
    if (settings.reference || typeof settings.sampler === 'function')
      throw new ApiError(400, 'invalid_value', 'sampler: expected an object or its short form', 'sampler');
    return { rows, settings };
  });
  const opened = all.map(({ rows }) => rows[0]);
  // One listener for each choice.
  setMaxListeners(0, signal);
  const submissions = all.map(({ rows, settings }, choice) => {
    const start = performance.now();
    const stream = onEvent ? new RowStream(parts, rows[0]) : null;
    const written = { seed: settings.seed, logprobs: options.logprobs };
    const submission = parts.engine.submit(rows, settings, {
      ...engine,
      signal,
      ...(onAdmit && { onAdmit: () => onAdmit(opened) }),
      ...((stream || onStep) && {
        onStep: (_row: number, step: RowStepEvent) => {
          onStep?.(choice, step);
          if (!stream || !onEvent) return;
          const seconds = (performance.now() - start) / 1000;
          const result = step.outcome && resultsOf(parts, rows, [step.outcome], written, seconds)[0];
          onEvent(choice, stream.event(step, result, frames));
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
export function usageOf(choicesPerPrompt: number, results: readonly GenerateResult[]) {
  const prompt = results.reduce((sum, { usage }, i) => sum + (i % choicesPerPrompt === 0 ? usage.promptTokens : 0), 0);
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
