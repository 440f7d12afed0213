// Mathematical equality of two answers. It is computed in this thread: a count of steps bounds it, about 0.1 s.

import { setImmediate } from 'node:timers/promises';
import { optionError } from '../errors';
import { compareAnswers } from './math/compare';

/**
 * Whether two answers in LaTeX or plain text are mathematically the same: numbers and expressions in any notation,
 * units, currency, lists, sets, tuples, intervals, inequalities, matrices, equations, texts. docs/tasks.md says what
 * counts as equal. "Equal" is said of expressions only if it is proved and 60 digits of their values agree, so that
 * rounded values differ: 0.33 is not 1/3. Never throws for an answer's content; texts that cannot be read equal
 * themselves alone, and so does what takes more than a fixed count of steps, however fast the machine is.
 * @throws TypeError for what is no string
 */
export async function mathEqual(answer: string, gold: string): Promise<boolean> {
  if (typeof answer !== 'string') throw optionError(TypeError, 'answer', `expected a string, got ${String(answer)}`);
  if (typeof gold !== 'string') throw optionError(TypeError, 'gold', `expected a string, got ${String(gold)}`);
  // The event loop has a turn between two comparisons.
  await setImmediate();
  return compareAnswers(answer, gold);
}
