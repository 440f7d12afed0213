// Small models and tasks for the tests of training.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { createModel, datasets, loadModel, type MaskedDiffusionModel } from '../lib';
import { type FixtureTensor, readTensors, temporaryFolder } from './helpers';

export const task = datasets.byName('free8');

/** Folder of a new model that speaks the task's words. */
export async function newModelFolder(options: Partial<Parameters<typeof createModel>[1]> = {}): Promise<string> {
  const folder = path.join(temporaryFolder(), 'model');
  await createModel(folder, {
    vocabulary: task.vocabulary,
    dModel: 16,
    nHeads: 2,
    nLayers: 2,
    maxSequenceLength: 32,
    seed: 3,
    ...options,
  });
  return folder;
}

/** Loads a folder, runs `body`, frees the model. */
export async function withModel<T>(
  folder: string,
  body: (model: MaskedDiffusionModel) => Promise<T>,
  threads = 2,
): Promise<T> {
  const model = await loadModel(folder, { threads });
  try {
    return await body(model);
  } finally {
    model.dispose();
  }
}

/** A model's weights, by way of `save`. */
export async function weightsOf(model: MaskedDiffusionModel): Promise<Record<string, FixtureTensor>> {
  const folder = temporaryFolder();
  await model.save(folder);
  return readTensors(path.join(folder, 'model.safetensors'));
}

/** Largest |a − b| over all tensors. */
export function largestDifference(a: Record<string, FixtureTensor>, b: Record<string, FixtureTensor>): number {
  let largest = 0;
  for (const name of Object.keys(a))
    for (let i = 0; i < a[name].data.length; i++)
      largest = Math.max(largest, Math.abs(a[name].data[i] - b[name].data[i]));
  return largest;
}

/** Everything that an iterator yields. */
export async function collect<T>(iterator: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of iterator) all.push(item);
  return all;
}

/** Lines of a run's metrics.jsonl, without what depends on the clock. */
export function metricsOf(run: string): Record<string, unknown>[] {
  return readFileSync(path.join(run, 'metrics.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => {
      const { time: _, seconds: __, tokensPerSecond: ___, ...rest } = JSON.parse(line) as Record<string, unknown>;
      return rest;
    });
}
