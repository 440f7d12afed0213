// Options of the scheduler.
import { checkInteger, checkKeys } from '../options';

/** What an engine may take. Results do not depend on any of it. */
export interface EngineOptions {
  /**
   * Bytes of keys and values, for all rows together: rows wait until there is room. null: each call allocates what its
   * rows need. Default null.
   */
  kvBytes?: number | null | undefined;
  /**
   * Positions that a pass computes, at least those of one row; "auto" adapts them to passes of 50 ms on a GPU and 200 ms
   * on a CPU. null: of all rows. Default null.
   */
  stepTokens?: number | 'auto' | null | undefined;
  /** Rows that are decoded at a time; more wait. null: all. Default null. */
  maxRows?: number | null | undefined;
  /** Rows that may wait; more are refused with OVERLOADED. null: any number. Default null. */
  maxQueue?: number | null | undefined;
}

/** @throws TypeError, RangeError naming the option */
export function checkEngineOptions(options: EngineOptions): void {
  checkKeys('engine', options, ['kvBytes', 'stepTokens', 'maxRows', 'maxQueue']);
  const { kvBytes, stepTokens, maxRows, maxQueue } = options;
  const check = (name: string, value: number | null | undefined, min: number) => {
    if (value !== undefined && value !== null) checkInteger(`engine.${name}`, value, { min, max: 2 ** 50 });
  };
  check('kvBytes', kvBytes, 1);
  if (stepTokens !== 'auto') check('stepTokens', stepTokens, 1);
  check('maxRows', maxRows, 1);
  check('maxQueue', maxQueue, 0);
}
