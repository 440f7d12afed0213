// Templates: how a question becomes a prompt and an answer with a slot. They are data, checked and hashed.
import { createHash } from 'node:crypto';
import { optionError } from '../errors';
import { checkChoice, checkKeys, checkList } from '../options';
import { show } from '../text';
import { type Option, optionsOf, QUESTION_TYPES, type Question, type QuestionType } from './questions';

/**
 * How options are scored.
 * - "token": every option is one token, and one row says how probable each of them is.
 * - "label": the same of letters, A to Z and a to z, under which the template lists the options.
 * - "chain": the probability that unmasking the slot from left to right, a token a pass, writes the option: a row for
 *   each token, with those before it given and those behind it masked. All rows are computed at once.
 * - "joint": all tokens of an option masked together, as if they did not depend on each other: a row for each length.
 */
export type Scorer = 'token' | 'label' | 'chain' | 'joint';

export const SCORERS = ['token', 'label', 'chain', 'joint'] as const satisfies readonly Scorer[];

/** How questions of a type are asked. */
export interface DecisionTemplate {
  /**
   * The message of the user. `{state}`, `{instructions}` and `{options}` are replaced; where one is empty, the space
   * behind it goes too. `{options}` is a line for each option, with its description.
   */
  message: string;
  /** The answer, with `{option}` where the option stands. */
  answer: string;
  /** Where an option is not what "token" or "label" needs, it is "chain". */
  scorer: Scorer;
  /** What stands for the options in the answer: of a boolean for no and yes, of a score for each level. */
  labels?: readonly string[] | undefined;
  /** Options begin with a capital. Default false. */
  capital?: boolean | undefined;
}

/** A template for each type of question. */
export type DecisionTemplates = Readonly<Record<QuestionType, DecisionTemplate>>;

/** What is asked, as texts. */
export interface Rendered {
  /** Of the user; "" where the state is messages that ask by themselves. */
  message: string;
  /** Around the slot. A space at the end of what stands before it belongs to the option. */
  before: string;
  after: string;
  /** Of each option, in the question's order, what stands in the slot. */
  options: string[];
  /** The message lists the options. */
  lists: boolean;
}

const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
const MARK = '{option}';
/** What "no" and "yes" are where a template does not say. */
const BOOLEAN_LABELS = ['No', 'Yes'];

/** For models that were trained on chats, though not on these. */
const CHAT_MESSAGE = '{state}\n\n{instructions}\n\n{options}';
export const CHAT_TEMPLATES: DecisionTemplates = {
  boolean: { message: '{state}\n\n{instructions}\n\nAnswer with Yes or No.', answer: MARK, scorer: 'token' },
  choice: { message: `${CHAT_MESSAGE}\n\nAnswer with the letter alone.`, answer: MARK, scorer: 'label' },
  score: { message: `${CHAT_MESSAGE}\n\nAnswer with the number alone.`, answer: MARK, scorer: 'token' },
};

/** For models that continue texts. */
const PLAIN: DecisionTemplate = {
  message: '{state}\n\nQuestion: {instructions}\nAnswer:',
  answer: ` ${MARK}`,
  scorer: 'chain',
};
export const PLAIN_TEMPLATES: DecisionTemplates = { boolean: PLAIN, choice: PLAIN, score: PLAIN };

/** Checks a template. @throws TypeError, RangeError naming what does not fit */
export function checkTemplate(name: string, type: QuestionType, value: unknown): DecisionTemplate {
  checkKeys(name, value, ['message', 'answer', 'scorer', 'labels', 'capital']);
  const { message, answer, scorer, labels, capital } = value as { [key: string]: unknown };
  for (const [key, text] of Object.entries({ message, answer }))
    if (typeof text !== 'string')
      throw optionError(TypeError, `${name}.${key}`, `expected a string, got ${show(text)}`);
  checkChoice(`${name}.scorer`, scorer, SCORERS);
  const places = [...(message as string).matchAll(/\{(\w+)\}/g)].map(([, place]) => place);
  for (const place of places) checkChoice(`${name}.message`, place, ['state', 'instructions', 'options'] as const);
  for (const place of ['state', 'instructions', ...(scorer === 'label' ? ['options'] : [])])
    if (places.filter((other) => other === place).length !== 1)
      throw optionError(RangeError, `${name}.message`, `expected {${place}} once, got ${show(message)}`);
  if ((answer as string).split(MARK).length !== 2)
    throw optionError(RangeError, `${name}.answer`, `expected ${MARK} once, got ${show(answer)}`);
  if (capital !== undefined) checkChoice(`${name}.capital`, capital, [true, false]);
  if (labels !== undefined) {
    const texts = checkList(`${name}.labels`, labels, (at, label) => {
      if (typeof label !== 'string' || label === '')
        throw optionError(TypeError, at, `expected a text, got ${show(label)}`);
      return label;
    });
    if (type === 'choice')
      throw optionError(RangeError, `${name}.labels`, 'expected none for choices, whose options have names');
    if (texts.length < 2 || (type === 'boolean' && texts.length > 2))
      throw optionError(
        RangeError,
        `${name}.labels`,
        `expected ${type === 'boolean' ? 'two, of no and yes' : 'one for each level'}, got ${texts.length}`,
      );
    if (new Set(texts).size < texts.length)
      throw optionError(RangeError, `${name}.labels`, `expected texts that differ, got ${show(texts)}`);
  }
  return value as DecisionTemplate;
}

/** Checks templates, which may be for some types alone; the others are those of `base`. @throws TypeError, RangeError */
export function checkTemplates(name: string, value: unknown, base: DecisionTemplates): DecisionTemplates {
  checkKeys(name, value, QUESTION_TYPES);
  const given = value as Partial<Record<QuestionType, unknown>>;
  const one = (type: QuestionType) =>
    given[type] === undefined ? base[type] : checkTemplate(`${name}.${type}`, type, given[type]);
  return { boolean: one('boolean'), choice: one('choice'), score: one('score') };
}

const capitalised = (text: string) => text.slice(0, 1).toUpperCase() + text.slice(1);

/** What stands in the slot for each option. @throws RangeError where a template has fewer labels than a score levels */
function slotTexts(name: string, question: Question, options: readonly Option[], template: DecisionTemplate): string[] {
  const { labels, capital } = template;
  if (question.type === 'boolean') return [...(labels ?? BOOLEAN_LABELS)];
  if (question.type === 'choice') return options.map((option) => (capital ? capitalised(option.name) : option.name));
  if (labels && labels.length < options.length)
    throw optionError(
      RangeError,
      `${name}.criteria`,
      `expected at most ${labels.length} levels, as many as the template has labels for, got ${options.length}`,
    );
  return labels ? labels.slice(0, options.length) : options.map((_option, i) => String(i + 1));
}

/** Puts values into a template's places. */
function fill(template: string, values: Readonly<Record<string, string>>): string {
  const parts: string[] = [];
  // A place with the space behind it, or what stands between two places.
  for (const [text, , place, space] of template.matchAll(/(\{(\w+)\}(\s*))|[^{]+|\{/g))
    if (place === undefined) parts.push(text);
    else if (values[place] !== '') parts.push(values[place], space);
  // Space in front of what is empty at the end.
  while (parts.length > 0 && parts[parts.length - 1].trim() === '') parts.pop();
  return parts.join('');
}

/**
 * A question in a template. @param reversed the options are listed from the last
 * @throws RangeError naming the question where the template does not fit it
 */
export function render(
  name: string,
  question: Question,
  state: string,
  template: DecisionTemplate,
  reversed: boolean,
): Rendered {
  const options = optionsOf(question);
  const texts = slotTexts(name, question, options, template);
  const byLetter = template.scorer === 'label' && options.length <= LETTERS.length;
  const slots = texts.slice();
  const order = [...options.keys()];
  if (reversed) order.reverse();
  const lines = order.map((i, place) => {
    const { description } = options[i];
    // Levels are their descriptions; what has a name has it before them.
    const text = description === null || description === '' ? texts[i] : `${texts[i]}: ${description}`;
    if (!byLetter) return `- ${text}`;
    slots[i] = LETTERS[place];
    return `${LETTERS[place]}. ${question.type === 'score' && description ? description : text}`;
  });
  const message = fill(template.message, {
    state,
    instructions: question.instructions ?? '',
    options: lines.join('\n'),
  });
  const [start, after] = template.answer.split(MARK);
  const before = start.trimEnd();
  return {
    message,
    before,
    after,
    options: slots.map((text) => start.slice(before.length) + text),
    lists: template.message.includes('{options}'),
  };
}

/** SHA-256 of what probabilities depend on beside the weights and the question, in hex. */
export function templateHash({
  templates,
  orders,
  prior,
}: {
  templates: DecisionTemplates;
  orders: number;
  prior: boolean;
}): string {
  const canonical = QUESTION_TYPES.map((type) => {
    const { message, answer, scorer, labels, capital = false } = templates[type];
    return [type, message, answer, scorer, labels ?? null, capital];
  });
  return createHash('sha256')
    .update(JSON.stringify([1, orders, canonical, ...(prior ? ['prior'] : [])]))
    .digest('hex');
}
