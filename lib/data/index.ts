/**
 * The tasks, by name.
 * @module
 */
import { checkChoice } from '../options';
import type { TaskDataset } from './dataset';
import { freeChoice } from './free-choice';
import { sudoku4 } from './sudoku';
import { wordProblems } from './word-problems';

export type { Example, TaskDataset } from './dataset';
export { type FreeChoiceName, freeChoice } from './free-choice';
export { type Split, splitOf } from './splits';
export { sudoku4 } from './sudoku';
export { type WordDiagnosis, type WordProblemDataset, type WordProblemName, wordProblems } from './word-problems';

/** Name of a task that the package brings along. */
export const TASK_NAMES = ['st1', 's1', 't12', 't12w', 'free8', 'freeb8', 'free12', 'sudoku4'] as const;

/** One of {@link TASK_NAMES}. */
export type TaskName = (typeof TASK_NAMES)[number];

/** A task by its name; "st1" is the one that the embedded model speaks. @throws RangeError for another name. */
export function byName(name: TaskName): TaskDataset {
  checkChoice('dataset', name, TASK_NAMES);
  switch (name) {
    case 'free8':
    case 'freeb8':
    case 'free12':
      return freeChoice(name);
    case 'sudoku4':
      return sudoku4();
    default:
      return wordProblems(name);
  }
}
