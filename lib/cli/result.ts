// Completions: making them with their passes in sight, and what is printed of them.
import type { GenerateOptions, GenerateResult, MaskedDiffusionModel, Prompt } from '../index';
import { StatusLine } from './progress';

/** Output of a finished row: its text, or its ids without a tokenizer. */
export function completionText({ tokenizer }: MaskedDiffusionModel, { ids, text, tokens }: GenerateResult): string {
  return tokenizer ? text : ids.slice(0, tokens).join(',');
}

/** What a completion took. @param drew the seed was drawn, so that its number is news */
export function summary(result: GenerateResult, drew: boolean): string {
  const { tokens, nfe, fullForwards, tokensPerForward, seconds, finishReason } = result;
  // A cache leaves passes less to compute.
  const weighted = fullForwards < nfe ? ` worth ${fullForwards.toFixed(2)} full ones` : '';
  const passes = `${nfe} forward pass${nfe === 1 ? '' : 'es'}${weighted}`;
  const end = finishReason === 'stop' ? ', ended by itself' : '';
  return `${tokens} tokens in ${passes} (${tokensPerForward.toFixed(2)} per pass), ${seconds.toFixed(2)} s${end}${drew ? `, seed ${result.seed}` : ''}`;
}

/** Whether a call draws a seed of its own. */
export const drawsSeed = ({ seed, research, temperature = 0 }: GenerateOptions): boolean =>
  seed === undefined && research?.compat === undefined && temperature > 0;

/** Says which pass is being computed, and what is left to decide. */
export class PassStatus {
  readonly #line = new StatusLine(process.stderr);
  #total: number | null = null;

  constructor() {
    this.#line.update('pass 1');
  }

  /** A pass is done. @param unmasked without it, how many tokens there were to decide is not shown */
  update({ step, remaining, unmasked }: { step: number; remaining: number; unmasked?: { length: number } }): void {
    if (unmasked) this.#total ??= remaining + unmasked.length;
    const total = this.#total === null ? '' : ` of ${this.#total}`;
    this.#line.update(`pass ${step + 1}, ${remaining}${total} left`);
  }

  clear(): void {
    this.#line.clear();
  }
}

/** As `model.generate`, with its passes on stderr where that is a terminal. */
export async function generateWatched(
  model: MaskedDiffusionModel,
  prompt: Prompt,
  options: GenerateOptions,
): Promise<GenerateResult> {
  const status = new PassStatus();
  try {
    for await (const event of model.generateStream(prompt, options)) {
      if (event.result) return event.result;
      status.update(event);
    }
  } finally {
    status.clear();
  }
  throw new Error('the stream ended without a result');
}
