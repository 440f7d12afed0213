// Answers to held-out prompts while a model trains.
import { optionError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import type { GenerateOptions, GenerateResult } from '../generation/types';
import { attendedBlock } from '../model/blocks';
import { packRows } from '../packing';
import { correctRows } from '../rewards';
import { type SamplerObject, samplerObject } from '../sampling/samplers';
import { mean } from '../statistics';
import type { DataSource, TrainingRow } from './data';
import { samplesOf } from './samples';

/** How {@link writeAnswers} decodes. */
export type AnswerOptions = GenerateOptions & { maxTokens: number };

/** How evaluations write answers. @throws TypeError, RangeError where nothing says how long they may be */
export function answerOptions(
  options: { evalSampler?: SamplerObject | string | undefined; maxTokens?: number | undefined },
  data: DataSource,
  { config }: MaskedDiffusionModel,
): AnswerOptions | null {
  if (options.evalSampler === undefined) return null;
  const sampler = samplerObject(options.evalSampler);
  const maxTokens = options.maxTokens ?? data.maxTokens;
  if (maxTokens === null)
    throw optionError(TypeError, 'maxTokens', 'expected a number of tokens, which evalSampler needs, got none');
  // A model that attends by blocks decodes by its own.
  if (attendedBlock(config) !== null) return { sampler, maxTokens };
  const blockLength = options.maxTokens === undefined ? data.blockLength : null;
  return { sampler, maxTokens, blockLength: blockLength ?? maxTokens };
}

/** The model's answers to prompts. @param tokenBudget tokens of a batch, prompts included */
export async function writeAnswers(
  model: MaskedDiffusionModel,
  examples: readonly TrainingRow[],
  options: AnswerOptions,
  tokenBudget: number,
): Promise<GenerateResult[]> {
  const rows = examples.map((example) => ({ promptIds: model.encodePrompt(example.prompt) }));
  const results: GenerateResult[] = [];
  for (const batch of packRows(rows, ({ promptIds }) => promptIds.length + options.maxTokens, tokenBudget))
    results.push(...(await model.generateBatch(batch, options)));
  return results;
}

/** Shares of right answers, in all and by category, and forward passes, as metrics of an evaluation; and a few answers. */
export async function exactMatches(
  model: MaskedDiffusionModel,
  data: Pick<DataSource, 'verify'>,
  examples: TrainingRow[],
  options: AnswerOptions,
  tokenBudget: number,
): Promise<{ metrics: Record<string, number>; samples: ReturnType<typeof samplesOf> }> {
  const results = await writeAnswers(model, examples, options, tokenBudget);
  const correct = await correctRows({
    completions: results.map(({ text }) => text),
    examples,
    results,
    maxTokens: options.maxTokens,
    verify: data.verify,
    model,
  });
  const right = new Map<string, number[]>();
  const all: number[] = [];
  correct.forEach((value, i) => {
    if (value === null) return;
    all.push(Number(value));
    const { category } = examples[i];
    right.set(category, [...(right.get(category) ?? []), Number(value)]);
  });
  const metrics: Record<string, number> = { evalNfe: mean(results.map(({ nfe }) => nfe)) };
  if (all.length > 0) metrics.evalAccuracy = mean(all);
  if (right.size > 1)
    for (const category of [...right.keys()].sort()) metrics[`evalAccuracy/${category}`] = mean(right.get(category)!);
  return { metrics, samples: samplesOf(examples, results, 1, (row) => ({ right: correct[row] })) };
}
