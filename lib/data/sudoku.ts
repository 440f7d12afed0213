// 4 × 4 sudoku: the hard example. Its answers are hard to compute in one pass, and few steps cost accuracy.
import type { Random } from '../random';
import type { Example, TaskDataset } from './dataset';
import { sampleSplit } from './splits';

const SIZE = 4;
const CELLS = SIZE * SIZE;
const BLANK = '_';
/** Fewest and most blanks of a prompt. */
const BLANKS = [4, 11] as const;

/** The cells of every row, column and 2 × 2 box. */
const UNITS: readonly number[][] = [0, 1, 2, 3].flatMap((i) => [
  [0, 1, 2, 3].map((j) => i * SIZE + j),
  [0, 1, 2, 3].map((j) => j * SIZE + i),
  [0, 1, 2, 3].map((j) => ((i >> 1) * 2 + (j >> 1)) * SIZE + (i & 1) * 2 + (j & 1)),
]);

function allGrids(): string[] {
  const grids: string[] = [];
  const cells: number[] = [];
  const fits = (cell: number, digit: number) =>
    UNITS.every((unit) => !unit.includes(cell) || unit.every((other) => cells[other] !== digit));
  const fill = (cell: number) => {
    if (cell === CELLS) {
      grids.push(cells.join(' '));
      return;
    }
    for (let digit = 1; digit <= SIZE; digit++) {
      if (!fits(cell, digit)) continue;
      cells.push(digit);
      fill(cell + 1);
      cells.pop();
    }
  };
  fill(0);
  return grids;
}

/**
 * 4 × 4 sudoku: 16 cells, row by row, 4 to 11 of them blank ("_"); the answer is the whole grid, and any valid
 * completion is right. Categories group the prompts by their blanks.
 */
export function sudoku4(): TaskDataset<string> {
  const grids = allGrids();
  const valid = new Set(grids);
  const draw = (random: Random): Example<string> => {
    const answer = grids[random.integer(grids.length)];
    const blanks = BLANKS[0] + random.integer(BLANKS[1] - BLANKS[0] + 1);
    const cells = answer.split(' ');
    for (const cell of random.permutation(CELLS).subarray(0, blanks)) cells[cell] = BLANK;
    return { prompt: cells.join(' '), answer, category: blanks < 8 ? '4-7 blanks' : '8-11 blanks', meta: cells };
  };
  return {
    name: 'sudoku4',
    genLength: CELLS,
    blockLength: CELLS,
    vocabulary: [BLANK, '1', '2', '3', '4'],
    sample: (split, count, seed) => sampleSplit(draw, split, count, seed),
    verify(example, completion) {
      const words = completion.trim().split(/\s+/);
      const given = example.meta as string[];
      return valid.has(words.join(' ')) && given.every((cell, i) => cell === BLANK || cell === words[i]);
    },
  };
}
