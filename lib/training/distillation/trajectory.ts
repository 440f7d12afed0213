// The order in which a teacher decoded an answer.

/** A teacher's decoding of a row: when it showed each position. */
export interface Trajectory {
  /** Its states: one after each step. */
  states: number;
  /**
   * (prompt + answer) the first state, from 0, that shows the position; −1: it was given. `states` and more: none does.
   */
  shownFrom: Int32Array;
  /** Tokens of the prompt that it was decoded after. */
  promptTokens: number;
}

/**
 * The trajectory of a result of `generate`: of its `unmaskedAt`, which counts steps from 1 and has 0 for what no step
 * decided.
 */
export function trajectoryOf(promptTokens: number, unmaskedAt: ArrayLike<number>): Trajectory {
  const shownFrom = new Int32Array(promptTokens + unmaskedAt.length).fill(-1, 0, promptTokens);
  let states = 0;
  for (let i = 0; i < unmaskedAt.length; i++) states = Math.max(states, unmaskedAt[i]);
  for (let i = 0; i < unmaskedAt.length; i++)
    shownFrom[promptTokens + i] = unmaskedAt[i] > 0 ? unmaskedAt[i] - 1 : states;
  return { states, shownFrom, promptTokens };
}

/**
 * The trajectory of stored states, the whole row after each step, as d3LLM publishes them: some hundred times as large.
 * @param states rows of equally many ids
 */
export function trajectoryOfStates(
  states: readonly ArrayLike<number>[],
  maskTokenId: number,
  promptTokens: number,
): Trajectory {
  const width = states[0]?.length ?? 0;
  const shownFrom = new Int32Array(width);
  for (let column = 0; column < width; column++) {
    let first = 0;
    while (first < states.length && states[first][column] === maskTokenId) first++;
    shownFrom[column] = column < promptTokens ? -1 : first;
  }
  return { states: states.length, shownFrom, promptTokens };
}

/** The row after a step of a trajectory. @param final ids of the whole row when it is done */
export function stateOf(
  trajectory: Trajectory,
  final: ArrayLike<number>,
  state: number,
  maskTokenId: number,
): Int32Array {
  return Int32Array.from(final, (id, i) => (trajectory.shownFrom[i] > state ? maskTokenId : id));
}
