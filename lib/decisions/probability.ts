// From scores of options to probabilities, and what they say together.

/** softmax(scores / temperature). The first of equal scores counts as the largest everywhere. */
export function softmax(scores: readonly number[], temperature: number): number[] {
  const most = Math.max(...scores);
  const weights = scores.map((score) => Math.exp((score - most) / temperature));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

/** Index of the largest; the first among equals. */
export const indexOfMost = (values: readonly number[]): number => values.indexOf(Math.max(...values));

/** How a confidence is made of probabilities: see `confidence` of DecideOptions. */
export type ConfidenceForm = 'jev' | 'entropy';

const clip = (value: number) => Math.min(1, Math.max(0, value));

/** 1 − the entropy's share of its maximum. */
function byEntropy(probabilities: readonly number[]): number {
  const entropy = probabilities.reduce((sum, p) => (p > 0 ? sum - p * Math.log(p) : sum), 0);
  return clip(1 - entropy / Math.log(probabilities.length));
}

/** Of a choice. */
export function choiceConfidence(probabilities: readonly number[], form: ConfidenceForm): number {
  if (form === 'entropy') return byEntropy(probabilities);
  const chance = 1 / probabilities.length;
  return clip((Math.max(...probabilities) - chance) / (1 - chance));
}

/** Of a score: how near to the most probable level the others lie, compared with levels that are equally probable. */
export function scoreConfidence(probabilities: readonly number[], form: ConfidenceForm): number {
  if (form === 'entropy') return byEntropy(probabilities);
  const mode = indexOfMost(probabilities);
  const middle = (probabilities.length - 1) / 2;
  const distance = probabilities.reduce((sum, p, level) => sum + p * Math.abs(level - mode), 0);
  const spread = probabilities.reduce((sum, _p, level) => sum + Math.abs(level - middle), 0) / probabilities.length;
  return clip(1 - distance / spread);
}
