// Questions of a decision, and their options as texts.
import { optionError } from '../errors';
import { checkChoice, checkKeys } from '../options';
import { show } from '../text';

/** Whether something is so. */
export interface BooleanQuestion {
  type: 'boolean';
  /** What is asked. Default: nothing, where the state itself asks. */
  instructions?: string | undefined;
  /** What "yes" and "no" stand for; for templates that list the options. */
  criteria?: { true?: string | undefined; false?: string | undefined } | undefined;
}

/** Which of 2 to 255 options it is. */
export interface ChoiceQuestion {
  type: 'choice';
  instructions?: string | undefined;
  /** Options by name, which is what the model reads, with a description, or null. */
  criteria: Readonly<Record<string, string | null>>;
}

/** Which of 2 to 10 levels it is. */
export interface ScoreQuestion {
  type: 'score';
  instructions?: string | undefined;
  /** What each level stands for, from the lowest. */
  criteria: readonly string[];
}

/** A question with one answer out of a few. */
export type Question = BooleanQuestion | ChoiceQuestion | ScoreQuestion;

/** What a {@link Question} asks for. */
export type QuestionType = Question['type'];

export const QUESTION_TYPES = ['boolean', 'choice', 'score'] as const satisfies readonly QuestionType[];

/** Most questions of a call, options of a choice, and levels of a score. */
export const LIMITS = { questions: 256, options: 255, levels: 10 } as const;

/** An option of a question: its name in the answer, and what stands for it where nothing else does. */
export interface Option {
  name: string;
  description: string | null;
}

function checkText(name: string, value: unknown, { empty = true } = {}): asserts value is string {
  if (typeof value !== 'string') throw optionError(TypeError, name, `expected a string, got ${show(value)}`);
  if (!empty && value.trim() === '') throw optionError(RangeError, name, `expected a text, got ${show(value)}`);
}

function checkCount(name: string, what: string, count: number, most: number): void {
  if (count < 2 || count > most) throw optionError(RangeError, name, `expected 2 to ${most} ${what}, got ${count}`);
}

/** @throws TypeError, RangeError naming what does not fit */
export function checkQuestion(name: string, value: unknown): Question {
  const keys = ['type', 'instructions', 'criteria'];
  checkKeys(name, value, keys);
  const { type, instructions, criteria } = value as { [key: string]: unknown };
  checkChoice(`${name}.type`, type, QUESTION_TYPES);
  if (instructions !== undefined) checkText(`${name}.instructions`, instructions);
  const at = `${name}.criteria`;
  if (type === 'boolean') {
    if (criteria === undefined) return value as BooleanQuestion;
    checkKeys(at, criteria, ['true', 'false']);
    for (const [key, text] of Object.entries(criteria as object))
      if (text !== undefined) checkText(`${at}.${key}`, text);
    return value as BooleanQuestion;
  }
  if (type === 'choice') {
    if (typeof criteria !== 'object' || criteria === null || Array.isArray(criteria))
      throw optionError(TypeError, at, `expected an object of options, got ${show(criteria)}`);
    const options = Object.entries(criteria);
    checkCount(at, 'options', options.length, LIMITS.options);
    for (const [option, text] of options) {
      checkText(at, option, { empty: false });
      if (text !== null) checkText(`${at}.${option}`, text);
    }
    return value as ChoiceQuestion;
  }
  if (!Array.isArray(criteria)) throw optionError(TypeError, at, `expected an array of levels, got ${show(criteria)}`);
  checkCount(at, 'levels', criteria.length, LIMITS.levels);
  criteria.forEach((text, i) => {
    checkText(`${at}[${i}]`, text);
  });
  return value as ScoreQuestion;
}

/** Checks questions by name. @throws TypeError, RangeError */
export function checkQuestions(name: string, value: unknown): [string, Question][] {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw optionError(TypeError, name, `expected an object of questions, got ${show(value)}`);
  const entries = Object.entries(value);
  if (entries.length < 1 || entries.length > LIMITS.questions)
    throw optionError(RangeError, name, `expected 1 to ${LIMITS.questions} questions, got ${entries.length}`);
  return entries.map(([key, question]) => [key, checkQuestion(`${name}.${key}`, question)]);
}

/** The options of a question, in its order; of a boolean first what is not so. */
export function optionsOf(question: Question): Option[] {
  if (question.type === 'choice')
    return Object.entries(question.criteria).map(([name, description]) => ({ name, description }));
  if (question.type === 'score') return question.criteria.map((description, i) => ({ name: String(i), description }));
  const { criteria = {} } = question;
  return [
    { name: 'false', description: criteria.false ?? null },
    { name: 'true', description: criteria.true ?? null },
  ];
}
