// The denoising loop of rows that go through their passes together. One native call per step.

import { optionError } from '../errors';
import { allocateCache } from '../model/kv-cache';
import { cancellable, type NativeCache, native, StepResult, type StepRow } from '../native';
import { offsetsOf } from '../packing';
import { show } from '../text';
import { cacheStorage } from './caches';
import { finishPass, firstSelected, forcedBy, passRequest, RowTask, rulesOf } from './pass';
import { BlockRow } from './rows/block-row';
import type { Row, RowInput, RowOutcome } from './rows/row';
import { type Denoisable, type DenoiseSettings, openRows, type RecordedUniforms } from './settings';
import type { CustomSampler, DenoiseStep } from './types';

/** Rows that take part in the next step, with its candidates and queries set. */
function nextRows(rows: Row[], together: boolean): Row[] {
  const active = rows.filter((row) => !row.finished);
  const inBlocks = active.filter((row): row is BlockRow => row instanceof BlockRow);
  if (!together || inBlocks.length < active.length) return active.filter((row) => row.enter());
  // Reference: all rows stand in the same block; those that are done with it wait.
  let block = Math.max(0, ...inBlocks.map((row) => row.block));
  const last = Math.max(0, ...inBlocks.map((row) => row.blocks));
  for (; block < last; block++) {
    const busy = inBlocks.filter((row) => row.hasWork(block));
    for (const row of inBlocks) row.enterBlock(block);
    for (const row of busy) row.settle();
    if (busy.length > 0) return busy;
  }
  for (const row of active) row.finished = true;
  return [];
}

/** Marks in `result.selected` what a custom sampler chooses for one row. */
async function chooseCustom(sampler: CustomSampler, row: Row, part: StepRow): Promise<boolean> {
  const { positions, tokens, confidences, entropies, logProbs, plannerLogits, selected } = part;
  const ids = row.ids.slice();
  const chosen = await sampler({
    row: row.index,
    step: row.steps,
    positions,
    tokens,
    confidences,
    entropies,
    logProbs,
    plannerLogits,
    ids,
  });
  if (chosen === null || typeof chosen !== 'object' || typeof chosen.length !== 'number')
    throw optionError(
      TypeError,
      'sampler',
      `expected the function to return an array of positions, got ${show(chosen)}`,
    );
  for (let i = 0; i < chosen.length; i++) {
    const at = positions.indexOf(chosen[i]);
    if (at < 0)
      throw optionError(
        RangeError,
        'sampler',
        `expected positions out of candidates.positions, got ${chosen[i]} (row ${row.index})`,
      );
    selected[at] = 1;
  }
  if (chosen.length > 0) return false;
  let best = 0;
  for (let i = 1; i < positions.length; i++) if (confidences[i] > confidences[best]) best = i;
  selected[best] = 1;
  return true;
}

/**
 * Runs the loop over a batch: one yield per forward pass, the rows' outcomes as the return value. Leaving the loop
 * early stops the native work.
 */
export async function* denoiseRows(
  target: Denoisable,
  inputs: RowInput[],
  settings: DenoiseSettings,
  recorded?: RecordedUniforms,
): AsyncGenerator<DenoiseStep, RowOutcome[], void> {
  const { sampler, signal, reference } = settings;
  signal?.throwIfAborted();
  if (inputs.length === 0) return [];
  const rows = openRows(target, inputs, settings);
  const rules = rulesOf(target.config, settings);
  const tasks = rows.map((row) => new RowTask(row, rules));
  const storage = cacheStorage(settings.cache, rules.drawing.planner === true);
  // A handle of its own: a model that is disposed meanwhile lives until the loop ends.
  const model = target.native.share();
  const token = new (native().CancelToken)();
  const offsets = offsetsOf(rows.map((row) => row.ids.length));
  tasks.forEach((task, r) => {
    task.begin = offsets[r];
  });
  let cache: NativeCache | null = null;
  try {
    if (storage) cache = await allocateCache(model, target.config, offsets, storage);
    for (let step = 0; ; step++) {
      const active = nextRows(rows, reference);
      if (active.length === 0) break;
      const taking = active.map((row) => tasks[row.index]);
      for (const task of taking) task.plan();
      const request = passRequest(taking, { config: target.config, cache, selectedOnly: false, recorded, step });
      const buffer = await cancellable(
        signal,
        () => token.cancel(),
        () => model.step(request, token),
      );
      const result = new StepResult(buffer, active.length, rules.drawing.byMargin === true);
      const event: DenoiseStep = { step, rows: [] };
      for (let r = 0; r < active.length; r++) {
        const row = active[r];
        const failure = result.failure(r, settings.firstRow + row.index);
        if (failure) throw failure;
        const part = result.row(r);
        let forced = forcedBy(taking[r], part);
        if (typeof sampler === 'function' && part.positions.length > 0)
          forced = firstSelected(part, await chooseCustom(sampler, row, part));
        row.keepFitting(part);
        event.rows.push(finishPass(taking[r], part, forced));
      }
      yield event;
      signal?.throwIfAborted();
    }
    return rows.map((row) => row.outcome());
  } finally {
    token.cancel();
    model.dispose();
    cache?.dispose();
  }
}
