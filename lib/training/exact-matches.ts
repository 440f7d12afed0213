// Answers to held-out prompts while a model trains.
import { dealOut, gatherNumbers } from '../distributed/process-group';
import { optionError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import type { GenerateOptions, GenerateResult } from '../generation/types';
import { attendedBlock } from '../model/blocks';
import { packRows } from '../packing';
import { correctRows } from '../rewards';
import { type SamplerObject, samplerObject } from '../sampling/samplers';
import { mean } from '../statistics';
import type { DataSource, TrainingRow } from './data';
import type { StageContext } from './loop';
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

/** What {@link writeAnswers} gives: answers to some of the examples, and which ones. */
export interface OwnAnswers {
  examples: TrainingRow[];
  results: GenerateResult[];
  /** Numbers of the examples. */
  rows: number[];
}

/** The model's answers to the prompts of this process: batches of all prompts are dealt out whole. */
export async function writeAnswers(
  { model, training, group }: Pick<StageContext, 'model' | 'training' | 'group'>,
  examples: readonly TrainingRow[],
  options: AnswerOptions,
): Promise<OwnAnswers> {
  const all = examples.map((example, row) => ({ row, promptIds: model.encodePrompt(example.prompt) }));
  const tokens = ({ promptIds }: { promptIds: Int32Array }) => promptIds.length + options.maxTokens;
  const batches = packRows(all, tokens, training.tokenBudget);
  const ranks = dealOut(
    batches.map((batch) => batch.length),
    group.size,
  );
  const own: OwnAnswers = { examples: [], results: [], rows: [] };
  for (const batch of batches.filter((_, i) => ranks[i] === group.rank)) {
    const prompts = batch.map(({ promptIds }) => ({ promptIds }));
    own.results.push(...(await model.generateBatch(prompts, options)));
    own.rows.push(...batch.map(({ row }) => row));
  }
  own.examples = own.rows.map((row) => examples[row]);
  return own;
}

/** Shares of right answers, in all and by category, and forward passes, as metrics of an evaluation; and a few answers. */
export async function exactMatches(
  context: StageContext,
  examples: TrainingRow[],
  options: AnswerOptions,
): Promise<{ metrics: Record<string, number>; samples: ReturnType<typeof samplesOf> }> {
  const { model, data, group } = context;
  const own = await writeAnswers(context, examples, options);
  const { results } = own;
  const judged = await correctRows({
    completions: results.map(({ text }) => text),
    examples: own.examples,
    results,
    maxTokens: options.maxTokens,
    verify: data.verify,
    model,
  });
  const values = own.rows.map((row, i) => [row, [Number(judged[i] ?? Number.NaN), results[i].nfe]] as const);
  const numbers = await gatherNumbers(group, examples.length, 2, new Map(values));
  const right = new Map<string, number[]>();
  const all: number[] = [];
  examples.forEach(({ category }, i) => {
    const value = numbers[2 * i];
    if (Number.isNaN(value)) return;
    all.push(value);
    right.set(category, [...(right.get(category) ?? []), value]);
  });
  const metrics: Record<string, number> = { evalNfe: mean(examples.map((_, i) => numbers[2 * i + 1])) };
  if (all.length > 0) metrics.evalAccuracy = mean(all);
  if (right.size > 1)
    for (const category of [...right.keys()].sort()) metrics[`evalAccuracy/${category}`] = mean(right.get(category)!);
  return { metrics, samples: samplesOf(own.examples, results, 1, (row) => ({ right: judged[row] })) };
}
