// The world of the embedded model: small talk, orders, tickets, appointments, reviews, sums, lists, small questions, and
// refusals of everything else. Seeded and endless; every prompt has a verifier.

import { optionError } from '../../errors';
import { checkChoice, checkKeys, checkNumber } from '../../options';
import type { Random } from '../../random';
import { normaliseSpace } from '../../text';
import type { ChatMessage } from '../../types';
import type { Example, ExamplePrompt, Shares, TaskDataset } from '../dataset';
import { drawExamples, splitOf } from '../splits';
import { ARITHMETIC_INTENTS } from './arithmetic';
import { CHAT_INTENTS } from './chat';
import { Draw, type Drawn, type Intent, type WorldSplit } from './draw';
import { EXTRACTION_INTENTS } from './extraction';
import { LIST_INTENTS } from './lists';
import { OUTSIDE_INTENTS, REFUSAL } from './outside';
import { QUESTIONS } from './outside-questions';
import { REVIEW_INTENTS } from './reviews';
import { UNSEEN } from './words';

export type { WorldSplit } from './draw';

/** What the prompts of the world ask for. */
export type WorldCategory =
  | 'record'
  | 'repeat'
  | 'order'
  | 'ticket'
  | 'visit'
  | 'form'
  | 'sentiment'
  | 'stars'
  | 'again'
  | 'triage'
  | 'sum'
  | 'money'
  | 'units'
  | 'problem'
  | 'dates'
  | 'sort'
  | 'list'
  | 'question'
  | 'chat'
  | 'name'
  | 'outside';

/** `meta` of an example of the world. */
export interface WorldMeta {
  /** Right answers; null where `record` says what is right. */
  answers: readonly string[] | null;
  /** What a right answer holds as JSON, whatever the order of its keys and the spaces between them. */
  record: Readonly<Record<string, string | number>> | null;
  /** Of a decision: the options it is between, as answers begin. */
  options: readonly string[] | null;
  /** Of "again", whose labels are drawn: the probability of the first option. */
  probability: number | null;
  /** Of a form: the texts before, between and after its slots. */
  template: readonly string[] | null;
}

/** The world as a data set. */
export interface WorldDataset extends TaskDataset {
  categories: readonly WorldCategory[];
  /**
   * Beside the usual splits: "names", with names and things that no training prompt has; "outside", ordinary questions
   * that training does not decline in this form (about 500). The prompts of all splits but "train" differ.
   */
  sample(split: WorldSplit, count: number, seed: number, shares?: Shares): Example[];
}

const INTENTS: Readonly<Record<WorldCategory, Intent>> = {
  ...EXTRACTION_INTENTS,
  ...REVIEW_INTENTS,
  ...ARITHMETIC_INTENTS,
  ...LIST_INTENTS,
  ...CHAT_INTENTS,
  ...OUTSIDE_INTENTS,
};
const CATEGORIES = Object.keys(INTENTS) as WorldCategory[];
const SPLITS: readonly WorldSplit[] = ['train', 'validation', 'test', 'names', 'outside'];

/**
 * How often each category is drawn where no shares are given. Forms have to be asked for as such, which an evaluation
 * does not.
 */
export const USUAL_SHARES: Readonly<Record<WorldCategory, number>> = {
  record: 1,
  repeat: 1,
  order: 3,
  ticket: 2,
  visit: 2,
  form: 0,
  sentiment: 1,
  stars: 1,
  again: 1,
  triage: 1,
  sum: 2,
  money: 2,
  units: 1,
  problem: 2,
  dates: 1,
  sort: 2,
  list: 2,
  question: 2,
  chat: 2,
  name: 1,
  outside: 4,
};

/** Categories with a name or a thing to copy. */
const WITH_NAMES: readonly WorldCategory[] = [
  ...(['record', 'repeat', 'order', 'ticket', 'visit', 'form', 'problem', 'question', 'name'] as const),
];
/** Short exchanges that may stand before a prompt. */
const BEFORE: readonly WorldCategory[] = ['chat', 'sum', 'units', 'name', 'outside'];

/** How many of them, each as likely. */
const EXCHANGES: readonly number[] = [1, 1, 1, 2, 2, 3];
/** The most that they hold, so that rows stay short. */
const EARLIER_CHARACTERS = 240;

/** Share of the prompts with exchanges before them, with a typing error, and without their last mark. */
const RATES = { before: 0.12, typo: 0.04, unmarked: 0.05 };

/** A mistyped letter in a word of at least four, none of which is a value. */
function mistype(draw: Draw, text: string): string {
  const words = text.split(' ');
  const usable = [...words.keys()].filter((i) => /^[a-z]{4,}$/.test(words[i]) && !draw.values.has(words[i]));
  if (usable.length === 0) return text;
  const i = draw.pick(usable);
  const word = words[i];
  const at = 1 + draw.random.integer(word.length - 2);
  words[i] = draw.pick([
    word.slice(0, at) + word.slice(at + 1),
    word.slice(0, at) + word[at + 1] + word[at] + word.slice(at + 2),
    word.slice(0, at) + word[at] + word.slice(at),
  ]);
  return words.join(' ');
}

/** The prompt as a hurried person types it. */
function hurried(draw: Draw, text: string): string {
  let typed = draw.lower ? text.toLowerCase() : text;
  if (draw.chance(RATES.unmarked)) typed = typed.replace(/[.?!]$/, '');
  return draw.chance(RATES.typo) ? mistype(draw, typed) : typed;
}

function promptOf(draw: Draw, { prompt, verbatim }: Drawn): string | ChatMessage[] {
  if (typeof prompt !== 'string') {
    const last = prompt.length - 1;
    return prompt.map((message, i) => {
      if (message.role !== 'user') return message;
      const text = draw.lower ? message.content.toLowerCase() : message.content;
      return { ...message, content: i === last ? hurried(draw, text) : text };
    });
  }
  const text = verbatim ? prompt : hurried(draw, prompt);
  if (draw.split === 'outside' || !draw.chance(RATES.before)) return text;
  const earlier = earlierMessages(draw);
  return earlier.length === 0 ? text : [...earlier, { role: 'user', content: text }];
}

/** A few short exchanges; none where what was drawn is a conversation by itself. */
function earlierMessages(draw: Draw): ChatMessage[] {
  const count = draw.pick(EXCHANGES);
  const messages: ChatMessage[] = [];
  let length = 0;
  for (let i = 0; i < count; i++) {
    const { prompt, answers } = INTENTS[draw.pick(BEFORE)](draw);
    if (typeof prompt !== 'string') break;
    length += prompt.length + answers[0].length;
    if (length > EARLIER_CHARACTERS) break;
    messages.push({ role: 'user', content: prompt }, { role: 'assistant', content: answers[0] });
  }
  return messages;
}

function example(draw: Draw, category: WorldCategory): Example {
  const drawn = INTENTS[category](draw);
  const { answers, record = null, options = null, probability = null, template = null } = drawn;
  const meta: WorldMeta = { answers: record ? null : answers, record, options, probability, template };
  return { prompt: promptOf(draw, drawn), answer: drawn.answer ?? answers[0], category, meta };
}

const textOf = (prompt: ExamplePrompt): string =>
  typeof prompt === 'string' ? prompt : prompt.map(({ content }) => content).join('\n');

/** Words of the split "names", in lower case, and things without their plural. */
const UNSEEN_STEMS = Object.values(UNSEEN)
  .flat()
  .map((word) => word.toLowerCase().replace(/s$/, ''));

/** Categories with the sums of their shares. @throws TypeError, RangeError */
function cumulative(shares: Shares, allowed: readonly WorldCategory[]): [category: WorldCategory, until: number][] {
  checkKeys('shares', shares, CATEGORIES);
  let until = 0;
  const steps: [WorldCategory, number][] = [];
  for (const category of allowed) {
    const share = shares[category] ?? 0;
    checkNumber(`shares.${category}`, share, { min: 0, max: 1e9 });
    if (share === 0) continue;
    until += share;
    steps.push([category, until]);
  }
  if (steps.length === 0)
    throw optionError(RangeError, 'shares', `expected a share above 0 for one of ${allowed.join(', ')}, got none`);
  return steps;
}

function sample(split: WorldSplit, count: number, seed: number, shares: Shares = USUAL_SHARES): Example[] {
  checkChoice('split', split, SPLITS);
  const steps =
    split === 'outside'
      ? cumulative({ outside: 1 }, ['outside'])
      : cumulative(shares, split === 'names' ? WITH_NAMES : CATEGORIES);
  const total = steps[steps.length - 1][1];
  const draw = (random: Random): Example => {
    const at = random.uniform() * total;
    return example(new Draw(random, split), steps.find(([, until]) => at < until)![0]);
  };
  // Other splits have patterns, names or questions of their own.
  const isHashed = split === 'train' || split === 'validation';
  return drawExamples(SPLITS, split, count, seed, draw, ({ prompt }) => {
    const key = textOf(prompt);
    const lower = key.toLowerCase();
    if (isHashed && splitOf(lower) !== split) return null;
    // A record may have neither a name nor a thing.
    return split === 'names' && !UNSEEN_STEMS.some((stem) => lower.includes(stem)) ? null : key;
  });
}

function verify({ meta }: Example, completion: string): boolean {
  const { answers, record } = meta as WorldMeta;
  if (record === null) return answers!.includes(normaliseSpace(completion));
  let given: unknown;
  try {
    given = JSON.parse(completion);
  } catch {
    return false;
  }
  if (typeof given !== 'object' || given === null || Array.isArray(given)) return false;
  const keys = Object.keys(record);
  return (
    Object.keys(given).length === keys.length &&
    keys.every((key) => Object.hasOwn(given, key) && (given as Record<string, unknown>)[key] === record[key])
  );
}

/**
 * The world that the embedded model knows. Answers are short sentences, one word, a list, or JSON; what is not of the
 * world is declined in one sentence. A quarter of the names and things are invented words, so that a model learns to
 * copy what it never saw.
 */
export function world(): WorldDataset {
  return {
    name: 'world',
    genLength: 48,
    blockLength: 48,
    vocabulary: [],
    moreSplits: ['names', 'outside'],
    categories: CATEGORIES,
    sample,
    verify,
  };
}

/** What the world is about, in words. */
export const WORLD_TOPICS =
  'small talk, orders, tickets and appointments as JSON, reviews, small sums, prices, units, days and months, lists, and ' +
  'questions about two facts';

export { QUESTIONS as WORLD_QUESTIONS, REFUSAL as WORLD_REFUSAL };
