// Generation: prompts in, completions out, by the denoising loop.
import { decodeIds } from '../model/prompt';
import { denoiseRows, type RecordedUniforms } from '../sampling/denoise';
import { indexOfEnd, type RowOutcome } from '../sampling/rows/row';
import type { DenoiseRow, DenoiseStep } from '../sampling/types';
import type { Prompt } from '../types';
import { type GeneratingModel, type PreparedRow, prepare } from './prepare';
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
  try {
    for (let next = await run.next(); !next.done; ) {
      const [row] = next.value.rows;
      const event = eventOf(model, next.value.step, row, rows[0].begin);
      if (row.finished) {
        next = await run.next();
        if (next.done) event.result = resultOf(model, rows[0], next.value[0]);
        yield event;
      } else {
        yield event;
        next = await run.next();
      }
    }
  } finally {
    await run.return([]);
  }
}

/** What a step of a single row decided. @param origin first position of the completion */
function eventOf(model: GeneratingModel, step: number, row: DenoiseRow, origin: number): StreamEvent {
  const { maskTokenId } = model.config;
  const unmasked: StreamEvent['unmasked'] = [];
  for (const [i, position] of row.positions.entries()) {
    if (!row.selected[i]) continue;
    const token = row.tokens[i];
    unmasked.push({
      position: position - origin,
      token,
      text: decodeIds([token], model),
      probability: row.confidences[i],
    });
  }
  const remaining = row.ids.reduce((count, id) => count + Number(id === maskTokenId), 0);
  return { step, unmasked, ids: row.ids.slice(origin), remaining, result: null };
}

function resultOf(model: GeneratingModel, row: PreparedRow, outcome: RowOutcome): GenerateResult {
  const { maskTokenId, eosTokenIds } = model.config;
  const ids = outcome.ids.slice(row.begin);
  const eos = row.isTemplate ? -1 : indexOfEnd(ids, eosTokenIds);
  const tokens = eos < 0 ? ids.length : eos + 1;
  const shown = (eos < 0 ? ids : ids.subarray(0, eos)).filter((id) => id !== maskTokenId);
  return {
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
}
