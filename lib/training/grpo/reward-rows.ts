// Completions that a reward on another process judges: what rewards of teachers read of a batch.
import type { MaskedDiffusionModel } from '../../generation/masked-diffusion-model';
import type { GenerateResult } from '../../generation/types';
import type { RewardBatch, RewardFunction } from '../../rewards';
import type { TrainingRow } from '../data';

/** A completion and its prompt. */
export interface JudgedRow {
  prompt: TrainingRow['prompt'];
  result: GenerateResult;
}

/** What a teacher compares of the model that wrote them. */
interface AboutModel {
  source: string;
  hasTokenizer: boolean;
}

/** See {@link AboutModel}. */
export const aboutModel = ({ source, tokenizer }: MaskedDiffusionModel): AboutModel => ({
  source,
  hasTokenizer: tokenizer !== null,
});

/** The rewards of rows that another process has sent. */
export async function judgeRows(
  reward: RewardFunction,
  rows: readonly JudgedRow[],
  { source, hasTokenizer }: AboutModel,
): Promise<(number | null)[]> {
  const results = rows.map(({ result }) => result);
  const batch: Partial<RewardBatch> = {
    completions: results.map(({ text }) => text),
    examples: rows.map(({ prompt }) => ({ prompt, answer: null, category: '', meta: null })),
    results,
    verify: null,
    model: { source, tokenizer: hasTokenizer ? {} : null } as unknown as MaskedDiffusionModel,
  };
  return Array.from(await reward(batch as RewardBatch));
}
