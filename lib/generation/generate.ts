// Generation: prompts in, completions out, by the denoising loop.
import { decodeIds } from '../model/prompt';
import { denoiseRows, type RecordedUniforms } from '../sampling/denoise';
import { indexOfEnd, type RowOutcome } from '../sampling/rows/row';
import type { DenoiseStep } from '../sampling/types';
import type { Prompt } from '../types';
import { type GeneratingModel, type PreparedRow, prepare } from './prepare';
import { RowStream } from './stream';
import type { GenerateOptions, GenerateResult, StreamEvent } from './types';

/** See `model.generateBatch`. */
export async function generateBatch(
  model: GeneratingModel,
  prompts: readonly Prompt[],
  options: GenerateOptions,
): Promise<GenerateResult[]> {
  const run = denoise(model, prompts, options);
  for (;;) {
    const next = await run.next();
    if (next.done) return next.value;
  }
}

/** See `model.denoise`. */
export async function* denoise(
  model: GeneratingModel,
  prompts: readonly Prompt[],
  options: GenerateOptions,
  recorded?: RecordedUniforms,
): AsyncGenerator<DenoiseStep, GenerateResult[], void> {
  const { rows, settings } = prepare(model, prompts, options);
  const outcomes = yield* denoiseRows(model, rows, settings, recorded);
  return outcomes.map((outcome, i) => resultOf(model, rows[i], outcome));
}

/** See `model.generateStream`. */
export async function* generateStream(
  model: GeneratingModel,
  prompt: Prompt,
  options: GenerateOptions,
): AsyncGenerator<StreamEvent, void, void> {
  const { rows, settings } = prepare(model, [prompt], options);
  const run = denoiseRows(model, rows, settings);
  const stream = new RowStream(model, rows[0]);
  try {
    for (let next = await run.next(); !next.done; ) {
      const { step, rows: steps } = next.value;
      if (steps[0].finished) {
        next = await run.next();
        yield stream.event(step + 1, steps[0], next.done ? resultOf(model, rows[0], next.value[0]) : null);
      } else {
        yield stream.event(step + 1, steps[0], null);
        next = await run.next();
      }
    }
  } finally {
    await run.return([]);
  }
}

/** See `model.textStream`. */
export async function* textStream(
  model: GeneratingModel,
  prompt: Prompt,
  options: GenerateOptions,
): AsyncGenerator<string, void, void> {
  for await (const { delta } of generateStream(model, prompt, options)) if (delta !== '') yield delta;
}

/** What JSON.stringify writes of a result. */
function jsonOfResult(this: GenerateResult): object {
  const plain = Object.entries(this).map(([key, value]) => [
    key,
    ArrayBuffer.isView(value) ? Array.from(value as Int32Array) : value,
  ]);
  return Object.fromEntries(plain);
}

function resultOf(model: GeneratingModel, row: PreparedRow, outcome: RowOutcome): GenerateResult {
  const { maskTokenId, eosTokenIds } = model.config;
  const ids = outcome.ids.slice(row.begin);
  const eos = row.isTemplate ? -1 : indexOfEnd(ids, eosTokenIds);
  const tokens = eos < 0 ? ids.length : eos + 1;
  const shown = (eos < 0 ? ids : ids.subarray(0, eos)).filter((id) => id !== maskTokenId);
  const result: GenerateResult = {
    text: decodeIds(shown, model),
    ids,
    promptIds: row.promptIds,
    nfe: outcome.nfe,
    fullForwards: outcome.fullForwards,
    tokens,
    tokensPerForward: outcome.nfe > 0 ? tokens / outcome.nfe : 0,
    finishReason: outcome.finishReason,
    unmaskedAt: outcome.unmaskedAt.slice(row.begin),
    logLikelihood: outcome.logLikelihood,
  };
  // Not enumerable: a copy or a comparison of the result's fields does not see it.
  return Object.defineProperty(result, 'toJSON', { value: jsonOfResult });
}
