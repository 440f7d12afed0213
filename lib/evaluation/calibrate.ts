// Calibration: what labelled answers say of a model's probabilities, and the temperatures that follow.
import { setMaxListeners } from 'node:events';
import { askingOf, scoreQuestions } from '../decisions/decide';
import type { DecisionExample } from '../decisions/example';
import type { Calibration } from '../decisions/file';
import { softmax } from '../decisions/probability';
import { checkQuestions, optionsOf, QUESTION_TYPES, type Question, type QuestionType } from '../decisions/questions';
import { type DecisionTemplate, type DecisionTemplates, type Scorer, templateHash } from '../decisions/template';
import { optionError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { checkKeys, checkSeed, checkSignal } from '../options';
import { deriveSeed, Purpose, Random } from '../random';
import { mean } from '../statistics';
import { show } from '../text';
import {
  type DecisionFigures,
  eceOfTruths,
  figuresOf,
  fitTemperature,
  type Judged,
  judgedAt,
  knownEce,
  type Labelled,
} from './calibration-metrics';

/** Options of `calibrate`. */
export interface CalibrateOptions {
  /** As in DecideOptions: temperatures hold for these alone. */
  scorer?: Scorer | undefined;
  template?: Partial<Record<QuestionType, DecisionTemplate>> | undefined;
  orders?: 1 | 2 | undefined;
  prior?: boolean | undefined;
  /** Seed of the two halves and of the intervals. Default 0. */
  seed?: number | bigint | undefined;
  signal?: AbortSignal | undefined;
  /** Called with the examples that are done. */
  onProgress?: ((done: number, total: number) => void) | undefined;
}

/** What was found about questions of a type. */
export interface TypeCalibration {
  answers: number;
  /** Share of the most frequent answer: what saying always the same would get right. */
  majority: number;
  /** Mean `optionMass`. */
  optionMass: number;
  /** At temperature 1. */
  before: DecisionFigures;
  /** Each half of the answers at the temperature of the other half; null under 100 answers. */
  after: DecisionFigures | null;
  /** Of all answers; null under 100. */
  temperature: number | null;
  /**
   * Where the template lists options: how often another one is the most probable if they are listed from the back, and
   * the mean difference of its probability.
   */
  orderBias: { changed: number; difference: number } | null;
  /** Mean distance from the probabilities that are known; null where none are. */
  distance: { before: number; after: number | null } | null;
  /**
   * Calibration error against the probabilities that are known, in which labels have no part, and the one that these
   * probabilities themselves have in the mean against as many drawn labels: what is left where a model is perfect. null
   * where none are known.
   */
  knownEce: { before: number; after: number | null; perfect: number } | null;
}

/** Output of `calibrate`. */
export interface CalibrationReport {
  types: Partial<Record<QuestionType, TypeCalibration>>;
  templates: DecisionTemplates;
  /** For DecideOptions, and for decision.json. */
  calibration: Calibration;
}

/** Fewer labelled answers say too little about a temperature. */
const LEAST_ANSWERS = 100;
/** Examples that are asked at a time. */
const TOGETHER = 32;

/** An answer as the index of an option. @throws TypeError, RangeError */
function labelOf(name: string, question: Question, answer: unknown): number {
  const options = optionsOf(question).map((option) => option.name);
  const wanted = question.type === 'boolean' ? 'boolean' : question.type === 'choice' ? 'string' : 'number';
  const label = options.indexOf(String(answer));
  if (typeof answer !== wanted || label < 0)
    throw optionError(
      typeof answer === wanted ? RangeError : TypeError,
      name,
      `expected ${question.type === 'boolean' ? 'true or false' : question.type === 'choice' ? 'one of the options' : 'a level from 0'}, got ${show(answer)}`,
    );
  return label;
}

/** A labelled answer with what else is known of it. */
interface Observed extends Labelled {
  type: QuestionType;
  labelName: string;
  optionMass: number;
  reversed: readonly number[] | null;
  truth: number | null;
}

function checkExample(name: string, example: DecisionExample): [string, Question, number, number | null][] {
  checkKeys(name, example, ['state', 'questions', 'answers', 'truth', 'id']);
  const questions = checkQuestions(`${name}.questions`, example.questions);
  const { answers, truth = {} } = example;
  const keys = questions.map(([key]) => key);
  checkKeys(`${name}.answers`, answers, keys);
  checkKeys(`${name}.truth`, truth, keys);
  return questions
    .filter(([key]) => answers[key] !== undefined)
    .map(([key, question]) => {
      const known = truth[key];
      if (
        known !== undefined &&
        !(question.type === 'boolean' && typeof known === 'number' && known >= 0 && known <= 1)
      )
        throw optionError(RangeError, `${name}.truth.${key}`, `expected the probability of true, got ${show(known)}`);
      return [key, question, labelOf(`${name}.answers.${key}`, question, answers[key]), known ?? null];
    });
}

async function report(observed: readonly Observed[], seed: bigint): Promise<TypeCalibration> {
  const counts = new Map<string, number>();
  for (const { labelName } of observed) counts.set(labelName, (counts.get(labelName) ?? 0) + 1);
  const known = observed.filter(({ truth }) => truth !== null);
  const distanceAt = (judged: readonly Judged[]) =>
    mean(
      judged.flatMap(({ probabilities }, i) => {
        const { truth } = observed[i];
        return truth === null ? [] : [Math.abs(probabilities[1] - truth)];
      }),
    );
  const truths = known.map(({ truth }) => truth!);
  const knownEceAt = (judged: readonly Judged[]) =>
    knownEce(
      judged.flatMap(({ probabilities }, i) => (observed[i].truth === null ? [] : [probabilities[1]])),
      truths,
    );
  const before = judgedAt(observed, 1);
  let after: Judged[] | null = null;
  let temperature: number | null = null;
  if (observed.length >= LEAST_ANSWERS) {
    const order = new Random(deriveSeed(seed, Purpose.calibration, 0)).permutation(observed.length);
    const isFirst = new Uint8Array(observed.length);
    for (let i = 0; i < order.length; i += 2) isFirst[order[i]] = 1;
    const ofHalf = (first: number) => fitTemperature(observed.filter((_one, i) => isFirst[i] === first));
    const temperatures = [ofHalf(1), ofHalf(0)];
    // Each answer at the temperature of the half that it is not in.
    after = observed.map((one, i) => judgedAt([one], temperatures[isFirst[i] === 1 ? 1 : 0])[0]);
    temperature = fitTemperature(observed);
  }
  const listed = observed.filter(({ reversed }) => reversed !== null);
  const biases = listed.map(({ scores, reversed }) => {
    const [front, back] = [softmax(scores, 1), softmax(reversed!, 1)];
    const [a, b] = [front, back].map((all) => all.indexOf(Math.max(...all)));
    return { changed: Number(a !== b), difference: Math.abs(front[a] - back[a]) };
  });
  return {
    answers: observed.length,
    majority: Math.max(...counts.values()) / observed.length,
    optionMass: mean(observed.map(({ optionMass }) => optionMass)),
    before: await figuresOf(before, deriveSeed(seed, Purpose.calibration, 1)),
    after: after && (await figuresOf(after, deriveSeed(seed, Purpose.calibration, 1))),
    temperature,
    orderBias:
      biases.length === 0
        ? null
        : {
            changed: mean(biases.map(({ changed }) => changed)),
            difference: mean(biases.map(({ difference }) => difference)),
          },
    distance: known.length === 0 ? null : { before: distanceAt(before), after: after && distanceAt(after) },
    knownEce:
      known.length === 0
        ? null
        : {
            before: knownEceAt(before),
            after: after && knownEceAt(after),
            perfect: eceOfTruths(truths, deriveSeed(seed, Purpose.calibration, 2)),
          },
  };
}

/**
 * Compares the probabilities of `model.decide` with labelled answers, and finds for each type of question the
 * temperature that makes them fit best. Figures are of answers that had no part in the temperature: two halves, each at
 * the temperature of the other.
 * @param examples states with questions and answers; a type with fewer than 100 answers gets no temperature
 * @throws TypeError, RangeError naming the example that does not fit; what `model.decide` throws; `signal.reason`
 */
export async function calibrate(
  model: MaskedDiffusionModel,
  examples: readonly DecisionExample[],
  options: CalibrateOptions = {},
): Promise<CalibrationReport> {
  checkKeys('options', options, ['scorer', 'template', 'orders', 'prior', 'seed', 'signal', 'onProgress']);
  const { signal, onProgress } = options;
  checkSignal(signal);
  // One listener for each example that is being asked.
  if (signal) setMaxListeners(0, signal);
  const seed = checkSeed('seed', options.seed ?? 0);
  if (!Array.isArray(examples) || examples.length === 0)
    throw optionError(TypeError, 'examples', `expected at least one, got ${show(examples)}`);
  const parts = model.engineParts();
  const asking = askingOf(parts, options);
  const checked = examples.map((example, i) => checkExample(`examples[${i}]`, example));
  const observed: Observed[] = [];
  const observe = async (index: number): Promise<Observed[]> => {
    const asked = checked[index];
    if (asked.length === 0) return [];
    const { state } = examples[index];
    const list = asked.map(([key, question]): [string, Question] => [key, question]);
    const submit = signal ? { signal } : {};
    const scored = await scoreQuestions(parts, state, list, asking, submit);
    const both =
      asking.orders === 1 && scored.some(({ lists }) => lists)
        ? await scoreQuestions(parts, state, list, { ...asking, orders: 2 }, submit)
        : null;
    return scored.map(({ question, scores, optionMass, lists }, i) => {
      const [, , label, truth] = asked[i];
      return {
        type: question.type,
        scores,
        label,
        labelName: optionsOf(question)[label].name,
        optionMass,
        // The mean of both orders is known, and the first.
        reversed: lists && both ? both[i].scores.map((value, k) => 2 * value - scores[k]) : null,
        truth,
      };
    });
  };
  for (let begin = 0; begin < examples.length; begin += TOGETHER) {
    signal?.throwIfAborted();
    const indices = Array.from({ length: Math.min(TOGETHER, examples.length - begin) }, (_, i) => begin + i);
    for (const some of await Promise.all(indices.map(observe))) observed.push(...some);
    onProgress?.(begin + indices.length, examples.length);
  }
  if (observed.length === 0) throw optionError(RangeError, 'examples', 'expected answers, got none');
  const types: CalibrationReport['types'] = {};
  const calibration: Calibration = {
    weights: await parts.weightsHash(),
    template: templateHash(asking),
    types: {},
  };
  for (const [i, type] of QUESTION_TYPES.entries()) {
    const own = observed.filter((one) => one.type === type);
    if (own.length === 0) continue;
    signal?.throwIfAborted();
    const found = await report(own, deriveSeed(seed, Purpose.calibration, 2, i));
    types[type] = found;
    if (found.temperature !== null)
      calibration.types[type] = { temperature: found.temperature, answers: found.answers };
  }
  return { types, templates: asking.templates, calibration };
}
