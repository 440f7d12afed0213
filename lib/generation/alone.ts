// Rows that share their passes with no others.
import { denoiseRows } from '../sampling/denoise';
import type { RowInput, RowOutcome } from '../sampling/rows/row';
import type { Denoisable, DenoiseSettings } from '../sampling/settings';

/** Rows that go through their passes together: the reference's, and those of functions, which may take their time. */
export const isPrivate = ({ sampler, reference }: DenoiseSettings): boolean =>
  reference || typeof sampler === 'function';

/** Runs rows by themselves. */
export async function denoiseAlone(
  model: Denoisable,
  rows: RowInput[],
  settings: DenoiseSettings,
): Promise<RowOutcome[]> {
  const run = denoiseRows(model, rows, settings);
  for (;;) {
    const next = await run.next();
    if (next.done) return next.value;
  }
}
