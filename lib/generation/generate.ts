// Generation: prompts in, completions out, by the denoising loop.
import { denoiseRows, type RecordedUniforms } from '../sampling/denoise';
import type { DenoiseStep } from '../sampling/types';
import type { Prompt } from '../types';
import { withDrawnSeed } from './options';
import { type GeneratingModel, prepare } from './prepare';
import { resultsOf, Stopwatch } from './result';
import { RowStream } from './stream';
import type { GenerateOptions, GenerateResult, StreamEvent } from './types';

/** See `model.generateBatch`. */
export async function generateBatch(
  model: GeneratingModel,
  prompts: readonly Prompt[],
  options: GenerateOptions,
): Promise<GenerateResult[]> {
  const run = denoise(model, prompts, withDrawnSeed(options));
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
  const run = denoiseRows(model, rows, settings, recorded);
  const written = { seed: settings.seed, logprobs: options?.logprobs };
  const watch = new Stopwatch();
  try {
    for (;;) {
      const next = await watch.time(() => run.next());
      if (next.done) return resultsOf(model, rows, next.value, written, watch.seconds);
      yield next.value;
    }
  } finally {
    await run.return([]);
  }
}

/** See `model.generateStream`. */
export async function* generateStream(
  model: GeneratingModel,
  prompt: Prompt,
  options: GenerateOptions,
): AsyncGenerator<StreamEvent, void, void> {
  const { rows, settings } = prepare(model, [prompt], withDrawnSeed(options));
  const run = denoiseRows(model, rows, settings);
  const written = { seed: settings.seed, logprobs: options?.logprobs };
  const stream = new RowStream(model, rows[0]);
  const watch = new Stopwatch();
  const advance = () => watch.time(() => run.next());
  try {
    for (let next = await advance(); !next.done; ) {
      const { step, rows: steps } = next.value;
      if (steps[0].finished) {
        next = await advance();
        const result = next.done ? resultsOf(model, rows, next.value, written, watch.seconds)[0] : null;
        yield stream.event(step + 1, steps[0], result);
      } else {
        yield stream.event(step + 1, steps[0], null);
        next = await advance();
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
