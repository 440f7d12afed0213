// Decisions of the world with their answers, as the embedded model was trained on them.
import type { DecisionExample } from '../../decisions/example';
import type { Question } from '../../decisions/questions';
import type { Example } from '../dataset';
import { type WorldMeta, type WorldSplit, world } from '.';

/** Categories of the world that are decisions. */
const DECISIONS = { sentiment: 1, stars: 1, again: 1, triage: 1 } as const;

function questionOf(category: string, options: readonly string[]): Question {
  if (category === 'again') return { type: 'boolean' };
  if (category === 'stars') return { type: 'score', criteria: options };
  return { type: 'choice', criteria: Object.fromEntries(options.map((option) => [option, null])) };
}

function decisionOf({ prompt, answer, category, meta }: Example): DecisionExample {
  const { options, probability } = meta as WorldMeta;
  const name = category!;
  const said = answer.replace(/\.$/, '');
  return {
    state: prompt,
    questions: { [name]: questionOf(name, options!) },
    answers: { [name]: name === 'again' ? said === 'Yes' : name === 'stars' ? options!.indexOf(said) : said },
    ...(probability !== null && { truth: { [name]: probability } }),
  };
}

/**
 * Decisions about reviews and messages, each asked by the state itself, in many forms: sentiment (a choice), stars (a
 * score), which team (a choice), and whether a customer comes back (a boolean whose answers are drawn, with their known
 * probability). Seeded; splits as of `world`.
 * @param split "validation": texts that training has not; "test": also forms of the question that it has not
 * @throws TypeError, RangeError as `sample` of a data set
 */
export const worldDecisions = (split: WorldSplit, count: number, seed: number): DecisionExample[] =>
  world().sample(split, count, seed, DECISIONS).map(decisionOf);
