// Tasks of a user's own that a JavaScript module exports.
import { existsSync } from 'node:fs';
import path from 'node:path';
import { DUltraError, optionError } from '../errors';
import { reasonOf } from '../text';
import type { TaskDataset } from './dataset';

/** Whether a text names a JavaScript module that is there. */
export const isModule = (text: string): boolean => /\.[cm]?js$/i.test(text) && existsSync(text);

/**
 * A task that a JavaScript module exports, by name or as its default.
 * @throws DUltraError BAD_DATASET where it does not load; TypeError where it is no task
 */
export function openModule(file: string): TaskDataset {
  let exported: Partial<TaskDataset> & { default?: Partial<TaskDataset> };
  try {
    exported = require(path.resolve(file)) as typeof exported;
  } catch (cause) {
    throw new DUltraError('BAD_DATASET', `${file}: ${reasonOf(cause)}`, { cause });
  }
  const hasDefault = exported.sample === undefined && typeof exported.default === 'object' && exported.default !== null;
  const task: Partial<TaskDataset> = hasDefault ? exported.default! : exported;
  for (const name of ['sample', 'verify'] as const)
    if (typeof task[name] !== 'function')
      throw optionError(
        TypeError,
        'dataset',
        `expected ${file} to export a function ${name}, got ${typeof task[name]}`,
      );
  const { genLength } = task;
  if (!Number.isInteger(genLength) || (genLength as number) < 1)
    throw optionError(
      TypeError,
      'dataset',
      `expected ${file} to export genLength, tokens of an answer, got ${genLength}`,
    );
  const defaults = { name: path.basename(file), blockLength: genLength as number, vocabulary: [] };
  return { ...defaults, ...(task as TaskDataset) };
}
