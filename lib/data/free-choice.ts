// Operations on lists of letters, some of which leave a free choice: several answers are right, and a sampler that
// decides positions independently mixes them.
import type { Random } from '../random';
import type { Example, TaskDataset } from './dataset';
import { sampleSplit } from './splits';

/** The free-choice tasks; see {@link freeChoice}. */
export type FreeChoiceName = 'free8' | 'freeb8' | 'free12';

/** By the digit that asks for it, from 1. */
const OPERATIONS = ['copy', 'sort', 'star', 'swap', 'case'] as const;
const STAR = '*';
const SPECS: Readonly<Record<FreeChoiceName, { letters: number; length: number; stars: number }>> = {
  free8: { letters: 16, length: 8, stars: 1 },
  freeb8: { letters: 16, length: 8, stars: 2 },
  free12: { letters: 26, length: 12, stars: 1 },
};

/** What the verifier needs. */
interface ListTask {
  operation: (typeof OPERATIONS)[number];
  letters: string[];
}

const isRight = ({ operation, letters }: ListTask, words: readonly string[], stars: number): boolean => {
  if (words.length !== letters.length) return false;
  switch (operation) {
    case 'copy':
      return words.every((word, i) => word === letters[i]);
    case 'sort': {
      const sorted = [...letters].sort();
      return words.every((word, i) => word === sorted[i]);
    }
    case 'star':
      return (
        words.filter((word) => word === STAR).length === stars &&
        words.every((word, i) => word === STAR || word === letters[i])
      );
    case 'swap':
      return words.every((word, i) => {
        const partner = i ^ 1;
        return word === letters[i]
          ? words[partner] === letters[partner]
          : word === letters[partner] && words[partner] === letters[i];
      });
    case 'case':
      return words.every((word, i) => word === letters[i] || word === letters[i].toUpperCase());
  }
};

/**
 * One digit and different letters, "4 c a k b f o d e"; the answer has as many words as there are letters: 1 copy; 2
 * sort; 3 put a star in place of any one (freeb8: any two); 4 swap any of the pairs (0,1) (2,3) …; 5 each letter in
 * either case. free8 and freeb8: 8 of 16 letters; free12: 12 of 26. Operations 3 to 5 have several right answers, 1 and
 * 2 one.
 */
export function freeChoice(task: FreeChoiceName): TaskDataset<string> {
  const { letters, length, stars } = SPECS[task];
  const alphabet = Array.from({ length: letters }, (_, i) => String.fromCharCode(97 + i));
  const draw = (random: Random): Example<string> => {
    const digit = random.integer(OPERATIONS.length);
    const operation = OPERATIONS[digit];
    const list = Array.from(random.permutation(letters).subarray(0, length), (i) => alphabet[i]);
    let answer = [...list];
    if (operation === 'sort') answer.sort();
    if (operation === 'star') for (const i of random.permutation(length).subarray(0, stars)) answer[i] = STAR;
    if (operation === 'swap')
      for (let i = 0; i + 1 < length; i += 2)
        if (random.integer(2)) [answer[i], answer[i + 1]] = [answer[i + 1], answer[i]];
    if (operation === 'case') answer = answer.map((letter) => (random.integer(2) ? letter.toUpperCase() : letter));
    const meta: ListTask = { operation, letters: list };
    return { prompt: [digit + 1, ...list].join(' '), answer: answer.join(' '), category: operation, meta };
  };
  return {
    name: task,
    genLength: length,
    blockLength: length,
    vocabulary: [
      ...OPERATIONS.map((_, i) => String(i + 1)),
      ...alphabet,
      ...alphabet.map((letter) => letter.toUpperCase()),
      STAR,
    ],
    sample: (split, count, seed) => sampleSplit(draw, split, count, seed),
    verify: (example, completion) => isRight(example.meta as ListTask, completion.trim().split(/\s+/), stars),
  };
}
