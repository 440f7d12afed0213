// Word problems with free paraphrase: sums told in short sentences, each with many right answers.

import type { Random } from '../random';
import { normaliseSpace } from '../text';
import type { Example, TaskDataset } from './dataset';
import { sampleSplit } from './splits';

/** The word-problem tasks; see {@link wordProblems}. */
export type WordProblemName = 's1' | 'st1' | 't12' | 't12w';

/** Sentence family of an answer: an index of {@link FAMILIES}. */
type Form = 0 | 1 | 2 | 3 | 4 | 5;

/** Names of the sentence families, after the words that mark them. */
export const FAMILIES = ['sum first', 'starts with', 'because', 'we add', 'goes up', 'verb first'] as const;

/** Style words of the prompt, with the sentence families that each allows. */
const STYLES: Readonly<Record<string, readonly Form[]>> = { sum: [0, 2], story: [1, 5], words: [3, 4] };

const HE = ['tom', 'ben', 'sam'];
const SHE = ['anna', 'mia', 'lily'];
const NAMES = [...HE, ...SHE];
const OBJECTS = ['apples', 'books', 'coins', 'pens', 'cards', 'shells', 'eggs', 'hats'];
const PLUS_VERBS = ['buys', 'finds', 'gets', 'wins', 'picks'];
const MINUS_VERBS = ['loses', 'sells', 'drops', 'uses', 'breaks'];
const FUNCTION_WORDS =
  'he she has had with and . , ? how many now then for so in total left because we add take to from get ' +
  'goes up down by starts the answer is + - =';
/** 0 to 59; all sums are below 60. */
const NUMBERS = Array.from({ length: 60 }, (_, n) => String(n));

const VOCABULARY: readonly string[] = [
  ...NUMBERS,
  ...NAMES,
  ...OBJECTS,
  ...PLUS_VERBS,
  ...MINUS_VERBS,
  ...FUNCTION_WORDS.split(' '),
  ...Object.keys(STYLES),
];

/** One addition or subtraction of a story. */
interface Step {
  op: '+' | '-';
  /** Number of objects before the step. */
  before: number;
  /** Number that is added or subtracted. */
  change: number;
  /** Number of objects after the step. */
  after: number;
  verb: string;
}

/** Content of a word problem. */
interface Story {
  name: string;
  object: string;
  /** One or two. */
  steps: Step[];
  /** A key of {@link STYLES}; null: the prompt has no style word. */
  style: string | null;
}

/** Sentence family or kind of error of a completion. */
export interface WordDiagnosis {
  /** Sentence family of a right answer, else null. */
  family: string | null;
  /**
   * Kind of error: "slot": a sentence of the grammar with a wrong number, name, object or verb, or of a family that the
   * prompt does not allow; "mix": no sentence of the grammar, for example a mixture of two paraphrases. null: right.
   */
  error: 'slot' | 'mix' | null;
}

/** A word-problem task, which can also list the right answers and diagnose wrong ones. */
export interface WordProblemDataset extends TaskDataset<string> {
  /** All right answers, each once. */
  answers(example: Example<string>): string[];
  /** Family and kind of error of a completion. */
  diagnose(example: Example<string>, completion: string): WordDiagnosis;
}

const pick = <T>(random: Random, list: readonly T[]): T => list[random.integer(list.length)];

/** A random integer from `low` to `high`, both included. */
const between = (random: Random, low: number, high: number): number => low + random.integer(high - low + 1);

function drawStep(random: Random, before: number, second: boolean): Step {
  const plus = before < 3 || random.integer(2) === 0;
  const high = second ? 5 : 9;
  // A subtraction leaves at least one object.
  const change = plus ? between(random, 2, high) : between(random, 1, Math.min(high, before - 1));
  return {
    op: plus ? '+' : '-',
    before,
    change,
    after: plus ? before + change : before - change,
    verb: pick(random, plus ? PLUS_VERBS : MINUS_VERBS),
  };
}

function drawStory(random: Random, task: WordProblemName): Story {
  const twoSteps = (task === 't12' || task === 't12w') && random.integer(2) === 1;
  const steps = [drawStep(random, between(random, 2, task === 's1' || task === 'st1' ? 12 : 10), false)];
  if (twoSteps) steps.push(drawStep(random, steps[0].after, true));
  return {
    name: pick(random, NAMES),
    object: pick(random, OBJECTS),
    steps,
    style: task === 'st1' ? pick(random, Object.keys(STYLES)) : null,
  };
}

function promptOf({ name, object, steps, style }: Story, template: number): string {
  const pronoun = HE.includes(name) ? 'he' : 'she';
  const [first, second] = steps;
  const start = [
    `${name} has ${first.before} ${object} . ${pronoun} ${first.verb} ${first.change}`,
    `${name} had ${first.before} ${object} , then ${first.verb} ${first.change}`,
    `${name} with ${first.before} ${object} and ${pronoun} ${first.verb} ${first.change}`,
  ][template];
  const more = second ? ` , then ${second.verb} ${second.change}` : '';
  return `${start}${more} . how many now ?${style ? ` ${style}` : ''}`;
}

/** The equation of a step; `swap` exchanges the operands of a sum. */
const equation = ({ op, before, change, after }: Step, swap: boolean): string =>
  op === '+' && swap ? `${change} + ${before} = ${after}` : `${before} ${op} ${change} = ${after}`;

/** First sentence of an answer. `swaps`: per step, whether the operands of a sum are exchanged. */
function body(form: Form, { name, object, steps }: Story, swaps: readonly boolean[]): string {
  const pronoun = HE.includes(name) ? 'he' : 'she';
  const [first, second] = steps;
  const last = steps[steps.length - 1];
  const result = last.after;
  const e1 = equation(first, swaps[0]);
  const e2 = second ? equation(second, swaps[1]) : '';
  const moved = (step: Step, from: string) =>
    step.op === '+' ? `add ${step.change} to ${from}` : `take ${step.change} from ${from}`;
  const direction = (step: Step) => `${step.op === '+' ? 'up' : 'down'} by ${step.change} to ${step.after}`;
  switch (form) {
    case 0:
      return (
        `${e1} ,${second ? ` then ${e2} ,` : ''} so ${name} has ${result} ${object} ` +
        `${last.op === '+' ? 'in total' : 'left'}`
      );
    case 1: {
      const start = `${name} starts with ${first.before} ${object} , ${first.verb} ${first.change} , so ${e1}`;
      return second ? `${start} , then ${second.verb} ${second.change} , so ${e2}` : start;
    }
    case 2:
      return `now ${name} has ${result} ${object} because ${e1}${second ? ` and ${e2}` : ''}`;
    case 3: {
      const start = `we ${moved(first, String(first.before))} and get ${first.after}`;
      return `${start}${second ? ` , then ${moved(second, String(first.after))} and get ${result}` : ''} ${object}`;
    }
    case 4:
      return (
        `from ${first.before} ${object} ${name} goes ${direction(first)}` +
        `${second ? ` , then ${direction(second)}` : ''}`
      );
    case 5:
      return second
        ? `${first.before} ${first.op} ${first.change} ${second.op} ${second.change} = ${result} ${object} for ${name}`
        : `${name} ${first.verb} ${first.change} ${object} , so ${e1} and now ${pronoun} has ${result}`;
  }
}

function answerOf(form: Form, story: Story, swaps: readonly boolean[], long: boolean): string {
  const result = story.steps[story.steps.length - 1].after;
  return `${body(form, story, swaps)} . ${long ? `the answer is ${result} ${story.object}` : `answer ${result}`}`;
}

/** All right answers to a story: text to family. */
function allAnswers(story: Story, forms: readonly Form[]): Map<string, Form> {
  const all = new Map<string, Form>();
  for (const form of forms)
    for (let bits = 0; bits < 1 << story.steps.length; bits++)
      for (const long of [false, true])
        all.set(
          answerOf(
            form,
            story,
            story.steps.map((_, i) => ((bits >> i) & 1) === 1),
            long,
          ),
          form,
        );
  return all;
}

const CLASSES: readonly [RegExp, string][] = [
  [/^\d+$/, 'N'],
  [new RegExp(`^(${NAMES.join('|')})$`), 'NAME'],
  [new RegExp(`^(${OBJECTS.join('|')})$`), 'OBJECT'],
  [new RegExp(`^(${[...PLUS_VERBS, ...MINUS_VERBS].join('|')})$`), 'VERB'],
  [/^(he|she)$/, 'PRONOUN'],
];

/** Pattern of a sentence: the words of its slots are replaced by the names of their classes. */
const skeleton = (text: string): string =>
  text
    .split(' ')
    .map((word) => CLASSES.find(([pattern]) => pattern.test(word))?.[1] ?? word)
    .join(' ');

/** Patterns of all answers of a task, over both operations in each step. */
function allSkeletons(task: WordProblemName): Set<string> {
  const step = (op: '+' | '-', before: number): Step => ({
    op,
    before,
    change: 1,
    after: op === '+' ? before + 1 : before - 1,
    verb: 'buys',
  });
  const found = new Set<string>();
  for (const first of ['+', '-'] as const)
    for (const second of ['+', '-', null] as const) {
      if (second !== null && task !== 't12' && task !== 't12w') continue;
      const steps = second === null ? [step(first, 5)] : [step(first, 5), step(second, step(first, 5).after)];
      const story: Story = { name: 'tom', object: 'apples', steps, style: null };
      for (const text of allAnswers(story, formsOf(task, story)).keys()) found.add(skeleton(text));
    }
  return found;
}

function formsOf(task: WordProblemName, { steps, style }: Story): readonly Form[] {
  if (style !== null) return STYLES[style];
  // Of two-step answers only family 5 does not contain the result of the first step.
  return task === 't12w' && steps.length === 2 ? [0, 1, 2, 3, 4] : [0, 1, 2, 3, 4, 5];
}

/**
 * Word problems of the form "tom has 7 pens . he buys 2 . how many now ?". An answer is a sentence of one of six
 * families, with the operands of a sum in either order and one of two endings:
 * - "s1": every family is right (20 right answers to an addition, 12 to a subtraction);
 * - "st1": the last word of the prompt (sum, story, words) allows two of the families (5.4 right answers on average);
 * - "t12": one or two steps, half each; "t12w": the same, and two-step answers must contain the result of the first
 *   step.
 *
 * Held-out prompts are new combinations of words and numbers, not new sums: a model can learn a table of sums instead
 * of arithmetic.
 */
export function wordProblems(task: WordProblemName): WordProblemDataset {
  const twoSteps = task === 't12' || task === 't12w';
  const genLength = twoSteps ? 32 : 24;
  const skeletons = allSkeletons(task);
  const draw = (random: Random): Example<string> => {
    const story = drawStory(random, task);
    const prompt = promptOf(story, random.integer(3));
    const form = pick(random, formsOf(task, story));
    const swaps = story.steps.map(() => random.integer(2) === 1);
    const answer = answerOf(form, story, swaps, random.integer(2) === 1);
    const category =
      story.style ??
      (twoSteps ? (story.steps.length === 2 ? 'two steps' : 'one step') : story.steps[0].op === '+' ? 'plus' : 'minus');
    return { prompt, answer, category, meta: story };
  };
  const answersOf = (example: Example<string>): Map<string, Form> => {
    const story = example.meta as Story;
    return allAnswers(story, formsOf(task, story));
  };
  return {
    name: task,
    genLength,
    blockLength: genLength,
    vocabulary: VOCABULARY,
    sample: (split, count, seed) => sampleSplit(draw, split, count, seed),
    verify: (example, completion) => answersOf(example).has(normaliseSpace(completion)),
    answers: (example) => [...answersOf(example).keys()],
    diagnose(example, completion) {
      const text = normaliseSpace(completion);
      const form = answersOf(example).get(text);
      if (form !== undefined) return { family: FAMILIES[form], error: null };
      return { family: null, error: skeletons.has(skeleton(text)) ? 'slot' : 'mix' };
    },
  };
}
