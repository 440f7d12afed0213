// Generation: prompts in, completions out, by the denoising loop.
import { denoiseRows } from '../sampling/denoise';
import type { RowStepEvent } from '../sampling/job';
import type { RowInput, RowOutcome } from '../sampling/rows/row';
import type { DenoiseSettings, RecordedUniforms } from '../sampling/settings';
import type { DenoiseRow, DenoiseStep } from '../sampling/types';
import type { Prompt } from '../types';
import { denoiseAlone, isPrivate } from './alone';
import { searchLengths } from './length-search';
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
  const drawn = withDrawnSeed(options);
  if (options?.hole !== undefined) return searchAll(model, prompts, drawn);
  const { rows, settings } = prepare(model, prompts, drawn);
  const written = { seed: settings.seed, logprobs: options?.logprobs };
  const watch = new Stopwatch();
  const outcomes = await watch.time(async () => {
    const { signal } = settings;
    if (isPrivate(settings)) return denoiseAlone(model, rows, settings);
    return model.engine.submit(rows, settings, { signal }).outcomes;
  });
  return resultsOf(model, rows, outcomes, written, watch.seconds);
}

/** Each prompt at its best length. Prompt i draws as row i of a batch does. */
function searchAll(
  model: GeneratingModel,
  prompts: readonly Prompt[],
  options: GenerateOptions,
): Promise<GenerateResult[]> {
  const { firstRow = 0 } = options.research ?? {};
  return Promise.all(
    prompts.map((prompt, i) =>
      searchLengths(model, prompt, { ...options, research: { ...options.research, firstRow: firstRow + i } }),
    ),
  );
}

/**
 * Completes prompts as `generateBatch`, and hands on all that every pass of a row computed and saw: the first passes of
 * all rows, then the second ones, whatever passes they shared.
 */
export async function generateRecorded(
  model: GeneratingModel,
  prompts: readonly Prompt[],
  options: GenerateOptions,
  onPass: (pass: DenoiseRow) => void,
): Promise<GenerateResult[]> {
  const { rows, settings } = prepare(model, prompts, options);
  const written = { seed: settings.seed, logprobs: options?.logprobs };
  const watch = new Stopwatch();
  const outcomes = await watch.time(async () => {
    if (isPrivate(settings)) {
      const run = denoiseRows(model, rows, settings);
      for (;;) {
        const next = await run.next();
        if (next.done) return next.value;
        for (const pass of next.value.rows) onPass(pass);
      }
    }
    const passes: DenoiseRow[][] = rows.map(() => []);
    const { signal } = settings;
    const submission = model.engine.submit(rows, settings, { signal, onPass: (pass) => passes[pass.row].push(pass) });
    const ended = await submission.outcomes;
    const most = passes.reduce((longest, { length }) => Math.max(longest, length), 0);
    for (let step = 0; step < most; step++) for (const row of passes) if (step < row.length) onPass(row[step]);
    return ended;
  });
  return resultsOf(model, rows, outcomes, written, watch.seconds);
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
  const written = { seed: settings.seed, logprobs: options?.logprobs };
  const stream = new RowStream(model, rows[0]);
  for await (const event of isPrivate(settings) ? privateSteps(model, rows, settings) : steps(model, rows, settings)) {
    const result = event.outcome && resultsOf(model, rows, [event.outcome], written, event.seconds)[0];
    yield stream.event(event, result);
  }
}

type Step = Pick<RowStepEvent, 'step' | 'positions' | 'tokens' | 'confidences' | 'ids' | 'settled' | 'outcome'> & {
  /** From the call to this step. */
  seconds: number;
};

/** The passes of one row in the engine. Leaving the loop stops them. */
async function* steps(
  model: GeneratingModel,
  rows: readonly RowInput[],
  settings: DenoiseSettings,
): AsyncGenerator<Step, void, void> {
  const { signal } = settings;
  const events: Step[] = [];
  const start = performance.now();
  let wake = () => {};
  const { outcomes, cancel } = model.engine.submit(rows, settings, {
    signal,
    onStep: (_row, event) => {
      events.push({ ...event, seconds: (performance.now() - start) / 1000 });
      wake();
    },
  });
  let ended: { outcome: RowOutcome } | { error: unknown } | null = null;
  outcomes.then(
    ([outcome]) => {
      ended = { outcome };
      wake();
    },
    (error) => {
      ended = { error };
      wake();
    },
  );
  try {
    for (;;) {
      signal?.throwIfAborted();
      const event = events.shift();
      if (event) {
        yield event;
        if (event.outcome) return;
      } else if (ended) {
        if ('error' in ended) throw (ended as { error: unknown }).error;
        return;
      } else
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
    }
  } finally {
    cancel(new Error('the reader has left'));
  }
}

/** The passes of one row by itself. */
async function* privateSteps(
  model: GeneratingModel,
  rows: RowInput[],
  settings: DenoiseSettings,
): AsyncGenerator<Step, void, void> {
  const run = denoiseRows(model, rows, settings);
  const watch = new Stopwatch();
  const advance = () => watch.time(() => run.next());
  try {
    for (let next = await advance(); !next.done; ) {
      const { step, rows: parts } = next.value;
      const { ids, settled, finished, positions, tokens, confidences, selected } = parts[0];
      if (finished) next = await advance();
      const keep = (_value: number, i: number) => selected[i] === 1;
      yield {
        step: step + 1,
        positions: positions.filter(keep),
        tokens: tokens.filter(keep),
        confidences: confidences.filter(keep),
        ids,
        settled,
        outcome: finished && next.done ? next.value[0] : null,
        seconds: watch.seconds,
      };
      if (!finished) next = await advance();
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
