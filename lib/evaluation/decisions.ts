// How often two models decide otherwise: what quantising, or another arithmetic, changes.
import { optionError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import type { GenerateOptions } from '../generation/types';
import type { Prompt } from '../types';

/** Output of {@link compareDecisions}. */
export interface DecisionComparison {
  /** Tokens that the reference decided, and those of them that the other model would have decided otherwise. */
  tokens: number;
  differingTokens: number;
  /** Steps of rows in which the reference decided something, and those with a token that differs. */
  steps: number;
  differingSteps: number;
}

/** Index of the largest of `size` numbers from `from` on, but for one that counts as none. */
function largest(logits: Float32Array, from: number, size: number, excluded: number): number {
  let best = -1;
  for (let id = 0; id < size; id++)
    if (id !== excluded && (best < 0 || logits[from + id] > logits[from + best])) best = id;
  return best;
}

/**
 * Decodes prompts with the reference at temperature 0, and asks the other model at every step, with the same ids, which
 * token it has for each position that the reference decided.
 * @param prompts as of `generate` @param options of `generate`, without a cache and without a temperature
 * @throws RangeError for models of other vocabularies, and for a temperature or a cache
 */
export async function compareDecisions(
  reference: MaskedDiffusionModel,
  other: MaskedDiffusionModel,
  prompts: readonly Prompt[],
  options: GenerateOptions = {},
): Promise<DecisionComparison> {
  const { maskTokenId, embeddingSize, shiftLogits = false } = reference.config;
  if (other.config.embeddingSize !== embeddingSize || other.config.maskTokenId !== maskTokenId)
    throw optionError(RangeError, 'other', "expected a model of the reference's vocabulary");
  if (options.temperature !== undefined && options.temperature !== 0)
    throw optionError(RangeError, 'temperature', `expected 0, got ${options.temperature}`);
  const sums: DecisionComparison = { tokens: 0, differingTokens: 0, steps: 0, differingSteps: 0 };
  for await (const { rows } of reference.denoise(prompts, { ...options, temperature: 0 })) {
    const decided = rows.map(({ positions, selected }) => positions.filter((_, i) => selected[i] === 1));
    const ids: number[] = [];
    const rowOffsets = [0];
    rows.forEach((row, r) => {
      const before = Int32Array.from(row.ids);
      for (const position of decided[r]) before[position] = maskTokenId;
      ids.push(...before);
      rowOffsets.push(ids.length);
    });
    const { logits } = await other.forward({ ids, rowOffsets });
    rows.forEach((row, r) => {
      if (decided[r].length === 0) return;
      // The head of some families is a position ahead.
      const differing = decided[r].filter((position) => {
        const at = rowOffsets[r] + Math.max(0, position - (shiftLogits ? 1 : 0));
        return largest(logits!, at * embeddingSize, embeddingSize, maskTokenId) !== row.ids[position];
      }).length;
      sums.tokens += decided[r].length;
      sums.differingTokens += differing;
      sums.steps++;
      if (differing > 0) sums.differingSteps++;
    });
  }
  return sums;
}
