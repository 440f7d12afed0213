// How good probabilities are: figures of answers with known labels, and the temperature that makes them best.
import { setImmediate as turn } from 'node:timers/promises';
import { indexOfMost, softmax } from '../decisions/probability';
import { Random } from '../random';
import { mean, sum } from '../statistics';

/** Bins of {@link DecisionFigures}'s calibration errors. */
const BINS = 15;
/** Least and largest temperature that is looked at. */
const TEMPERATURES = [0.05, 20] as const;
/** Half of the 95 % point of a χ² of one degree: likelihoods that are nearer do not tell a temperature from 1. */
const LEAST_GAIN = 1.92;
const RESAMPLES = 1000;
/** Draws of labels for {@link eceOfTruths}. */
const DRAWS = 200;

/** Probabilities of a question's options, and which of them it was. */
export interface Judged {
  probabilities: readonly number[];
  label: number;
}

/** A figure with its 95 % interval, from 1000 samples of the answers with replacement. */
export interface Figure {
  value: number;
  low: number;
  high: number;
}

/** Figures of answers. */
export interface DecisionFigures {
  /** Share of answers whose most probable option was right. */
  accuracy: Figure;
  /** Mean −log p of the right option, in nats. */
  nll: Figure;
  /** Mean over answers of Σ (p − 1 or 0)² over the options. */
  brier: Figure;
  /** Expected calibration error: mean distance of confidence and accuracy in 15 equal parts of 0..1, by their answers. */
  ece: Figure;
  /** The same, in 15 parts of equally many answers. */
  eceEqualMass: Figure;
  /** The equal parts that have answers: mean probability of the most probable option, share of right ones, answers. */
  reliability: { confidence: number; accuracy: number; answers: number }[];
  /** Accuracy of the most confident answers alone, by their share of all (0.1 to 1). */
  riskCoverage: { coverage: number; accuracy: number }[];
}

/** What figures need of an answer. */
interface Outcome {
  confidence: number;
  right: number;
  nll: number;
  brier: number;
}

function outcomeOf({ probabilities, label }: Judged): Outcome {
  const best = indexOfMost(probabilities);
  return {
    confidence: probabilities[best],
    right: Number(best === label),
    nll: -Math.log(Math.max(probabilities[label], Number.MIN_VALUE)),
    brier: probabilities.reduce((total, p, i) => total + (p - Number(i === label)) ** 2, 0),
  };
}

/** How often each outcome counts; null: once. */
type Counts = Int32Array | null;

const weighted = (outcomes: readonly Outcome[], counts: Counts, value: (outcome: Outcome) => number): number => {
  let total = 0;
  for (let i = 0; i < outcomes.length; i++) total += (counts ? counts[i] : 1) * value(outcomes[i]);
  return total / outcomes.length;
};

/** The equal parts of 0..1, with what lies in them. */
function binned(
  outcomes: readonly Outcome[],
  counts: Counts,
): { confidence: number; right: number; answers: number }[] {
  const bins = Array.from({ length: BINS }, () => ({ confidence: 0, right: 0, answers: 0 }));
  for (let i = 0; i < outcomes.length; i++) {
    const { confidence, right } = outcomes[i];
    const bin = bins[Math.min(BINS - 1, Math.floor(confidence * BINS))];
    const count = counts ? counts[i] : 1;
    bin.confidence += count * confidence;
    bin.right += count * right;
    bin.answers += count;
  }
  return bins;
}

const eceOf = (outcomes: readonly Outcome[], counts: Counts): number =>
  sum(binned(outcomes, counts).map(({ confidence, right }) => Math.abs(confidence - right))) / outcomes.length;

/** An answer of a boolean as often right as its known probability of true says. */
const expectedOutcome = (probability: number, truth: number): Outcome => ({
  confidence: Math.max(probability, 1 - probability),
  right: probability > 0.5 ? truth : 1 - truth,
  nll: 0,
  brier: 0,
});

/** The calibration error of probabilities of true against known ones: without the chance of labels. */
export const knownEce = (probabilities: readonly number[], truths: readonly number[]): number =>
  eceOf(
    probabilities.map((p, i) => expectedOutcome(p, truths[i])),
    null,
  );

/** The mean calibration error that known probabilities themselves have against labels that are drawn with them. */
export function eceOfTruths(truths: readonly number[], seed: bigint): number {
  const random = new Random(seed);
  const drawn = () => {
    const outcomes = truths.map((truth) => expectedOutcome(truth, Number(random.uniform() < truth)));
    return eceOf(outcomes, null);
  };
  return mean(Array.from({ length: DRAWS }, drawn));
}

/** @param outcomes by ascending confidence */
function equalMassEce(outcomes: readonly Outcome[], counts: Counts): number {
  const all = outcomes.length;
  const parts = Math.min(BINS, all);
  let total = 0;
  let difference = 0;
  let part = 0;
  let seen = 0;
  for (let i = 0; i < all; i++)
    for (let left = counts ? counts[i] : 1; left > 0; left--) {
      difference += outcomes[i].confidence - outcomes[i].right;
      seen++;
      if (seen < Math.floor(((part + 1) * all) / parts)) continue;
      total += Math.abs(difference);
      difference = 0;
      part++;
    }
  return total / all;
}

const ascending = (outcomes: readonly Outcome[]) => [...outcomes].sort((a, b) => a.confidence - b.confidence);

/** Of as many outcomes as there are, some of them several times. */
const MEASURES = {
  accuracy: (outcomes: readonly Outcome[], counts: Counts) => weighted(outcomes, counts, ({ right }) => right),
  nll: (outcomes: readonly Outcome[], counts: Counts) => weighted(outcomes, counts, ({ nll }) => nll),
  brier: (outcomes: readonly Outcome[], counts: Counts) => weighted(outcomes, counts, ({ brier }) => brier),
  ece: eceOf,
  eceEqualMass: equalMassEce,
} as const;

/** Figures of at least one answer. @param seed of the resampling */
export async function figuresOf(judged: readonly Judged[], seed: bigint): Promise<DecisionFigures> {
  // Samples are drawn as indices, so that they are in order of confidence without being sorted.
  const outcomes = ascending(judged.map(outcomeOf));
  const random = new Random(seed);
  const names = Object.keys(MEASURES) as (keyof typeof MEASURES)[];
  const drawn = new Map(names.map((name) => [name, [] as number[]]));
  for (let i = 0; i < RESAMPLES; i++) {
    if (i % 20 === 0) await turn();
    const counts = new Int32Array(outcomes.length);
    for (let k = 0; k < outcomes.length; k++) counts[random.integer(outcomes.length)]++;
    for (const name of names) drawn.get(name)!.push(MEASURES[name](outcomes, counts));
  }
  const figure = (name: keyof typeof MEASURES): Figure => {
    const values = drawn.get(name)!.sort((a, b) => a - b);
    const at = (share: number) => values[Math.min(RESAMPLES - 1, Math.floor(share * RESAMPLES))];
    return { value: MEASURES[name](outcomes, null), low: at(0.025), high: at(0.975) };
  };
  const falling = [...outcomes].reverse();
  return {
    accuracy: figure('accuracy'),
    nll: figure('nll'),
    brier: figure('brier'),
    ece: figure('ece'),
    eceEqualMass: figure('eceEqualMass'),
    reliability: binned(outcomes, null)
      .filter(({ answers }) => answers > 0)
      .map(({ confidence, right, answers }) => ({
        confidence: confidence / answers,
        accuracy: right / answers,
        answers,
      })),
    riskCoverage: Array.from({ length: 10 }, (_, i) => {
      const coverage = (i + 1) / 10;
      const own = falling.slice(0, Math.max(1, Math.round(coverage * falling.length)));
      return { coverage, accuracy: mean(own.map(({ right }) => right)) };
    }),
  };
}

/** Scores of a question's options, and which of them it was. */
export interface Labelled {
  scores: readonly number[];
  label: number;
}

/** −log p of the labels, where a share `doubt` of each label is spread over the other options. */
function lossAt(answers: readonly Labelled[], temperature: number, doubt: number): number {
  return sum(
    answers.map(({ scores, label }) => {
      const most = Math.max(...scores);
      const total = sum(scores.map((score) => Math.exp((score - most) / temperature)));
      const others = (sum(scores) - scores[label]) / (scores.length - 1);
      const expected = (1 - doubt) * scores[label] + doubt * others;
      return Math.log(total) - (expected - most) / temperature;
    }),
  );
}

/**
 * The temperature of the least −log p: golden section over its logarithm, in which that is unimodal. It is 1 where the
 * answers do not tell it from 1 (likelihood ratio, 95 %).
 *
 * Labels count as certain but for one answer in n + 2, as in Platt's scaling: answers that are all right would else call
 * for a temperature of 0, and the next wrong one for an infinite loss.
 */
export function fitTemperature(answers: readonly Labelled[]): number {
  const doubt = 1 / (answers.length + 2);
  const loss = (log: number) => lossAt(answers, Math.exp(log), doubt);
  const ratio = (Math.sqrt(5) - 1) / 2;
  let [low, high] = TEMPERATURES.map(Math.log);
  let [a, b] = [high - ratio * (high - low), low + ratio * (high - low)];
  let [lossA, lossB] = [loss(a), loss(b)];
  while (high - low > 1e-6)
    if (lossA <= lossB) {
      [high, b, lossB] = [b, a, lossA];
      a = high - ratio * (high - low);
      lossA = loss(a);
    } else {
      [low, a, lossA] = [a, b, lossB];
      b = low + ratio * (high - low);
      lossB = loss(b);
    }
  const found = Math.exp((low + high) / 2);
  return lossAt(answers, 1, 0) - lossAt(answers, found, 0) > LEAST_GAIN ? found : 1;
}

/** Probabilities of answers at a temperature. */
export const judgedAt = (answers: readonly Labelled[], temperature: number): Judged[] =>
  answers.map(({ scores, label }) => ({ probabilities: softmax(scores, temperature), label }));
