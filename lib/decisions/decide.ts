// Decisions: how probable each answer of each question is. Every question is a row of its own.
import { DUltraError, optionError } from '../errors';
import type { ModelConfig } from '../model/config';
import { encodePrompt, type Vocabulary } from '../model/prompt';
import { TextTooLong, type Tokenizer } from '../model/tokenizer';
import { checkChoice, checkInteger, checkKeys, checkNumber, checkSignal } from '../options';
import type { Engine } from '../sampling/engine';
import type { SubmitOptions } from '../sampling/job';
import { show } from '../text';
import type { ChatMessage } from '../types';
import { type Calibration, type DecisionSettings, isCalibration } from './file';
import { type ConfidenceForm, choiceConfidence, indexOfMost, scoreConfidence, softmax } from './probability';
import { checkQuestions, optionsOf, type Question, type QuestionType } from './questions';
import { checkLength, type SlotRows, scoreSlots, slotRows } from './rows';
import {
  checkTemplate,
  checkTemplates,
  type DecisionTemplate,
  type DecisionTemplates,
  type Rendered,
  render,
  SCORERS,
  type Scorer,
  templateHash,
} from './template';

/** What questions are about: a text, a value that is written as JSON, or messages of a chat. */
export type DecisionState = string | readonly ChatMessage[] | { readonly [key: string]: unknown } | readonly unknown[];

/** Options of `model.decide`. */
export interface DecideOptions {
  /**
   * Temperatures of the types of questions. Default: those of the checkpoint's decision.json, if they are of these
   * weights and templates. "none": 1.
   */
  calibration?: Calibration | 'none' | undefined;
  /** In place of the templates' own; options that it cannot score are then an error. */
  scorer?: Scorer | undefined;
  /** Templates in place of the checkpoint's, for some types of questions or all. */
  template?: Partial<Record<QuestionType, DecisionTemplate>> | undefined;
  /**
   * 2: where a template lists options, it is asked with the list from the front and from the back, and the scores are
   * averaged. Default 1.
   */
  orders?: 1 | 2 | undefined;
  /**
   * Each option's score without the state is subtracted: what the model says whatever it is asked about counts less.
   * Every question is then asked twice. Default false.
   */
  prior?: boolean | undefined;
  /** A question whose options together are less probable than this is answered with a refusal. Default 0: never. */
  minOptionMass?: number | undefined;
  /**
   * What the confidence of a choice or score is. "jev" (default): of a choice how far the largest probability lies
   * between chance and 1, of a score how near the others lie to the most probable level; "entropy": 1 − the entropy's
   * share of its maximum. They are different numbers: a bar for one means nothing for the other.
   */
  confidence?: ConfidenceForm | undefined;
  /** Stops the work; the call rejects with `signal.reason`. */
  signal?: AbortSignal | undefined;
}

/** What all answers say. */
export interface AnswerBasis {
  /**
   * How probable the options are together, among all texts as long as the most probable of them: near 1 where the model
   * knows this form of question, near 0 where it would say something else.
   */
  optionMass: number;
  /** What scores were divided by. */
  temperature: number;
  scorer: Scorer;
}

/** Answer of a {@link BooleanQuestion}. */
export interface BooleanAnswer extends AnswerBasis {
  type: 'boolean';
  /** That it is so. */
  probability: number;
}

/** Answer of a {@link ChoiceQuestion}. */
export interface ChoiceAnswer extends AnswerBasis {
  type: 'choice';
  /** The most probable option; the first among equals. */
  choice: string;
  /** Of each option; they add up to 1. */
  probabilities: Record<string, number>;
  /** 0 to 1; see `confidence` of {@link DecideOptions}. */
  confidence: number;
}

/** Answer of a {@link ScoreQuestion}. */
export interface ScoreAnswer extends AnswerBasis {
  type: 'score';
  /** The mean level, from 0. */
  score: number;
  /** Of each level; they add up to 1. */
  probabilities: number[];
  /** 0 to 1; see `confidence` of {@link DecideOptions}. */
  confidence: number;
  /** What each level stands for. */
  legend: string[];
}

/** The options are less probable than `minOptionMass`. */
export interface RefusalAnswer extends AnswerBasis {
  type: 'refusal';
}

/** An answer of `model.decide`. */
export type DecisionAnswer = BooleanAnswer | ChoiceAnswer | ScoreAnswer | RefusalAnswer;

/** Output of `model.decide`. */
export interface Decisions {
  /** By the questions' names. */
  answers: Record<string, DecisionAnswer>;
  usage: {
    /** Of the questions' prompts, each with the state, and with `prior` also without. */
    inputTokens: number;
    /** That were computed. */
    rows: number;
    fullForwards: number;
  };
  /** All temperatures come from a calibration of these weights, templates and types of questions. */
  calibrated: boolean;
  /** Why a calibration that is there does not count. */
  warnings: string[];
}

/** What decisions need of a model. */
export interface DecidingModel extends Vocabulary {
  config: ModelConfig;
  readonly engine: Engine;
  readonly decisions: DecisionSettings;
  /** SHA-256 of the current weights. */
  weightsHash(): Promise<string>;
}

/** Scores of a question's options, before any temperature. */
export interface ScoredQuestion {
  name: string;
  question: Question;
  /** log p of each option, with `prior` less that without the state, brought to the mean length where lengths differ. */
  scores: number[];
  /** Σ log p of each option. */
  logProbs: number[];
  optionMass: number;
  scorer: Scorer;
  /** The template lists the options, so that their order may count. */
  lists: boolean;
  inputTokens: number;
  rows: number;
}

const MOST_DEPTH = 32;
const MOST_ROWS = 4096;

const isMessages = (state: unknown): state is ChatMessage[] =>
  Array.isArray(state) &&
  state.length > 0 &&
  state.every(
    (one) =>
      typeof one === 'object' &&
      one !== null &&
      typeof one.role === 'string' &&
      typeof one.content === 'string' &&
      Object.keys(one).length === 2,
  );

/** How deep a value of JSON is. @throws RangeError where it is too deep to ask, or contains itself */
function checkDepth(value: unknown, depth: number): void {
  if (typeof value !== 'object' || value === null) return;
  if (depth >= MOST_DEPTH)
    throw optionError(RangeError, 'state', `expected a value at most ${MOST_DEPTH} deep, got a deeper one`);
  for (const part of Object.values(value)) checkDepth(part, depth + 1);
}

/** A state as text and as the messages before the question. @throws TypeError, RangeError */
function readState(state: unknown): { text: string; messages: readonly ChatMessage[] } {
  if (typeof state === 'string') return { text: state, messages: [] };
  if (isMessages(state)) return { text: '', messages: state };
  if (typeof state !== 'object' || state === null)
    throw optionError(TypeError, 'state', `expected a text, messages, an object or an array, got ${show(state)}`);
  checkDepth(state, 0);
  return { text: JSON.stringify(state), messages: [] };
}

/** The ids of a question's prompt. What users write is no special token. */
function promptIds(model: DecidingModel, messages: readonly ChatMessage[], name: string, message: string): Int32Array {
  const isChat = messages.length > 0 || model.tokenizer?.hasChatTemplate === true;
  if (message === '' && messages.length === 0)
    throw optionError(RangeError, name, 'expected a state or instructions that say something, got neither');
  const asked = message === '' ? [] : [{ role: 'user', content: message }];
  const { maxSequenceLength: atMost } = model.config;
  try {
    return encodePrompt(isChat ? [...messages, ...asked] : message, model, { splitSpecialTokens: true, atMost });
  } catch (error) {
    if (!(error instanceof TextTooLong)) throw error;
    throw optionError(
      RangeError,
      'state',
      `it has at least ${error.tokens} tokens, more than the model's maximum of ${atMost}`,
    );
  }
}

/** Tokens before, in and behind a slot. */
interface SlotIds {
  before: readonly number[];
  after: readonly number[];
  options: readonly number[][];
}

/** Slots of a tokenizer that are kept: questions are asked of many states. */
const MOST_SLOTS = 4096;
const keptSlots = new WeakMap<Tokenizer, Map<string, SlotIds>>();

/** Tokens before, in and behind the slot. */
function slotIds(model: DecidingModel, name: string, rendered: Rendered): SlotIds {
  const { tokenizer, source } = model;
  if (!tokenizer) throw new DUltraError('NO_TOKENIZER', `${source} has no tokenizer.json, which decisions need`);
  const kept = keptSlots.get(tokenizer) ?? new Map<string, SlotIds>();
  keptSlots.set(tokenizer, kept);
  const key = JSON.stringify([rendered.before, rendered.after, rendered.options]);
  let slot = kept.get(key);
  if (!slot) {
    slot = encodedSlot(model, tokenizer, name, rendered);
    if (kept.size >= MOST_SLOTS) kept.clear();
    kept.set(key, slot);
  }
  return slot;
}

function encodedSlot(
  { config }: DecidingModel,
  tokenizer: Tokenizer,
  name: string,
  { before, after, options }: Rendered,
): SlotIds {
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false, splitSpecialTokens: true });
  const [front, back] = [encode(before), encode(after)];
  const wholes = options.map((option) => encode(before + option + after));
  // Where a token reaches over a border of the slot, the slot is the whole answer.
  const fits = wholes.every(
    (ids) =>
      ids.length > front.length + back.length &&
      front.every((id, i) => ids[i] === id) &&
      back.every((id, i) => ids[ids.length - back.length + i] === id),
  );
  const slots = fits ? wholes.map((ids) => ids.slice(front.length, ids.length - back.length)) : wholes;
  const seen = new Map<string, number>();
  slots.forEach((ids, i) => {
    const key = ids.join();
    const other = seen.get(key);
    if (ids.length === 0 || ids.includes(config.maskTokenId))
      throw optionError(RangeError, `${name}.criteria`, `expected options that are texts, got ${show(options[i])}`);
    if (other !== undefined)
      throw optionError(
        RangeError,
        `${name}.criteria`,
        `expected options that differ, got ${show(options[other])} and ${show(options[i])}, which are the same to the model`,
      );
    seen.set(key, i);
  });
  return { before: fits ? front : [], after: fits ? back : [], options: slots };
}

/** A question with the rows of its orders. */
interface Asked {
  name: string;
  question: Question;
  scorer: Scorer;
  lists: boolean;
  lengths: number[];
  queries: SlotRows[];
  inputTokens: number;
}

function ask(
  model: DecidingModel,
  state: { text: string; messages: readonly ChatMessage[] },
  [key, question]: [string, Question],
  { templates, scorer: forced, orders }: { templates: DecisionTemplates; scorer: Scorer | undefined; orders: number },
): Asked {
  const name = `questions.${key}`;
  const template = templates[question.type];
  const one = (reversed: boolean) => {
    let used = template;
    let rendered = render(name, question, state.text, used, reversed);
    let slots = slotIds(model, name, rendered);
    const isSingle = () => slots.options.every((ids) => ids.length === 1);
    const needsSingle = used.scorer === 'token' || used.scorer === 'label';
    const hasLetters = used.scorer !== 'label' || optionsOf(question).length <= 52;
    if (needsSingle && !(isSingle() && hasLetters)) {
      if (forced !== undefined)
        throw optionError(
          RangeError,
          name,
          `expected options of one token each for the scorer ${show(forced)}${forced === 'label' ? ', at most 52' : ''}`,
        );
      // Options by themselves; their letters are no tokens.
      used = { ...template, scorer: 'chain' };
      rendered = render(name, question, state.text, used, reversed);
      slots = slotIds(model, name, rendered);
    }
    const ids = promptIds(model, state.messages, name, rendered.message);
    const rows = slotRows(model.config, { promptIds: ids, ...slots, joint: used.scorer === 'joint' });
    checkLength(rows, model.config, 'state', `it and question ${show(key)}`);
    return { rows, ids, slots, scorer: used.scorer, lists: rendered.lists };
  };
  const first = one(false);
  const all = orders === 2 && first.lists ? [first, one(true)] : [first];
  return {
    name: key,
    question,
    scorer: first.scorer,
    lists: first.lists,
    lengths: first.slots.options.map(({ length }) => length),
    queries: all.map(({ rows }) => rows),
    inputTokens: all.reduce((sum, { ids }) => sum + ids.length, 0),
  };
}

const averaged = (lists: readonly number[][]): number[] =>
  lists.length === 1 ? lists[0] : lists[0].map((_x, i) => lists.reduce((sum, list) => sum + list[i], 0) / lists.length);

/** log p summed over the options as long as the best one. */
function massOf(logProbs: readonly number[], lengths: readonly number[]): number {
  const length = lengths[indexOfMost(logProbs)];
  return Math.min(
    1,
    logProbs.reduce((sum, value, i) => (lengths[i] === length ? sum + Math.exp(value) : sum), 0),
  );
}

/** How questions are asked. */
export interface Asking {
  templates: DecisionTemplates;
  scorer: Scorer | undefined;
  orders: 1 | 2;
  prior: boolean;
}

const NOTHING = { text: '', messages: [] };

/** Scores the options of questions: all rows of all questions go through passes together. */
export async function scoreQuestions(
  model: DecidingModel,
  state: unknown,
  questions: readonly [string, Question][],
  asking: Asking,
  options: SubmitOptions = {},
): Promise<ScoredQuestion[]> {
  const read = readState(state);
  const asked = questions.map((question) => ask(model, read, question, asking));
  const priors = asking.prior ? questions.map((question) => ask(model, NOTHING, question, asking)) : [];
  const all = [...asked, ...priors];
  const rowsOf = ({ queries }: Asked) => queries.reduce((sum, query) => sum + query.rows.length, 0);
  const rows = all.reduce((sum, one) => sum + rowsOf(one), 0);
  if (rows > MOST_ROWS)
    throw optionError(RangeError, 'questions', `expected at most ${MOST_ROWS} rows, got ${rows}: ask for less at once`);
  const sums = await scoreSlots(
    model,
    all.flatMap(({ queries }) => queries),
    options,
  );
  let at = 0;
  const found = all.map(({ queries }) => {
    at += queries.length;
    return sums.slice(at - queries.length, at);
  });
  return asked.map((one, i) => {
    const { name, question, scorer, lists, lengths } = one;
    const own = found[i];
    const prior: Asked | undefined = priors[i];
    const logProbs = averaged(own);
    const without = prior && averaged(found[asked.length + i]);
    const mean = lengths.reduce((sum, length) => sum + length, 0) / lengths.length;
    return {
      name,
      question,
      // Options of equal length are compared as they are.
      scores: logProbs.map((value, k) => {
        const score = without ? value - without[k] : value;
        return lengths[k] === mean ? score : (score * mean) / lengths[k];
      }),
      logProbs,
      optionMass: own.reduce((sum, values) => sum + massOf(values, lengths), 0) / own.length,
      scorer,
      lists,
      inputTokens: one.inputTokens + (prior?.inputTokens ?? 0),
      rows: rowsOf(one) + (prior ? rowsOf(prior) : 0),
    };
  });
}

const KEYS = [
  'calibration',
  'scorer',
  'template',
  'orders',
  'prior',
  'minOptionMass',
  'confidence',
  'signal',
] as const satisfies readonly (keyof DecideOptions)[];

/** Checks how questions are to be asked. @throws TypeError, RangeError */
export function askingOf(model: DecidingModel, options: DecideOptions): Asking {
  const { scorer, template = {}, orders = 1, prior = false } = options;
  checkInteger('orders', orders, { min: 1, max: 2 });
  checkChoice('prior', prior, [true, false] as const);
  let templates = checkTemplates('template', template, model.decisions.templates);
  if (scorer !== undefined) {
    checkChoice('scorer', scorer, SCORERS);
    const forced = (type: QuestionType) =>
      templates[type].scorer === scorer
        ? templates[type]
        : checkTemplate(`scorer: template.${type}`, type, { ...templates[type], scorer });
    templates = { boolean: forced('boolean'), choice: forced('choice'), score: forced('score') };
  }
  return { templates, scorer, orders, prior };
}

/** The temperatures that count, and why others do not. */
async function temperaturesOf(
  model: DecidingModel,
  given: DecideOptions['calibration'],
  asking: Asking,
): Promise<{ types: Calibration['types']; warnings: string[] }> {
  if (given !== undefined && given !== 'none' && !isCalibration(given))
    throw optionError(TypeError, 'calibration', `expected "none" or what dultra calibrate writes, got ${show(given)}`);
  const calibration = given === 'none' ? null : (given ?? model.decisions.calibration);
  if (calibration === null) return { types: {}, warnings: [] };
  const warnings: string[] = [];
  const ends = 'it is not used: calibrate again';
  if (calibration.template !== templateHash(asking))
    warnings.push(`the calibration is of other templates, scorers, orders or priors; ${ends}`);
  else if (calibration.weights !== (await model.weightsHash()))
    warnings.push(`the calibration is of other weights; ${ends}`);
  return { types: warnings.length === 0 ? calibration.types : {}, warnings };
}

function answerOf(
  { question, scores, optionMass, scorer }: ScoredQuestion,
  temperature: number,
  { minOptionMass = 0, confidence = 'jev' }: DecideOptions,
): DecisionAnswer {
  const basis: AnswerBasis = { optionMass, temperature, scorer };
  if (optionMass < minOptionMass) return { type: 'refusal', ...basis };
  const probabilities = softmax(scores, temperature);
  if (question.type === 'boolean') return { type: 'boolean', probability: probabilities[1], ...basis };
  if (question.type === 'score')
    return {
      type: 'score',
      score: probabilities.reduce((sum, p, level) => sum + p * level, 0),
      probabilities,
      confidence: scoreConfidence(probabilities, confidence),
      legend: [...question.criteria],
      ...basis,
    };
  const names = Object.keys(question.criteria);
  return {
    type: 'choice',
    choice: names[indexOfMost(probabilities)],
    probabilities: Object.fromEntries(names.map((name, i) => [name, probabilities[i]])),
    confidence: choiceConfidence(probabilities, confidence),
    ...basis,
  };
}

/** See `model.decide`. @param submit how its rows are scheduled */
export async function decide(
  model: DecidingModel,
  state: DecisionState,
  questions: Readonly<Record<string, Question>>,
  options: DecideOptions = {},
  submit: SubmitOptions = {},
): Promise<Decisions> {
  checkKeys('options', options, KEYS);
  const { minOptionMass, confidence, signal, calibration } = options;
  if (minOptionMass !== undefined) checkNumber('minOptionMass', minOptionMass, { min: 0, max: 1 });
  if (confidence !== undefined) checkChoice('confidence', confidence, ['jev', 'entropy'] as const);
  checkSignal(signal);
  const asking = askingOf(model, options);
  const list = checkQuestions('questions', questions);
  const { types, warnings } = await temperaturesOf(model, calibration, asking);
  signal?.throwIfAborted();
  const scored = await scoreQuestions(model, state, list, asking, { ...submit, ...(signal && { signal }) });
  const rows = scored.reduce((sum, one) => sum + one.rows, 0);
  return {
    answers: Object.fromEntries(
      scored.map((one) => [one.name, answerOf(one, types[one.question.type]?.temperature ?? 1, options)]),
    ),
    usage: {
      inputTokens: scored.reduce((sum, one) => sum + one.inputTokens, 0),
      rows,
      fullForwards: rows,
    },
    calibrated: list.every(([, question]) => types[question.type] !== undefined),
    warnings,
  };
}
