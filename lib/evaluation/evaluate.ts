// Measures samplers on a task: accuracy, forward passes, tokens per forward.
import { createHash } from 'node:crypto';
import {
  type Dataset,
  type DatasetInput,
  type Example,
  type ExamplePrompt,
  open,
  type Split,
  type WordProblemDataset,
} from '../data';
import { partition, problemOf, warnUnusable } from '../data/unusable';
import { checkAlike } from '../distributed/alike';
import { currentGroup } from '../distributed/mpi';
import { gatherJson, ownRange, type ProcessGroup } from '../distributed/process-group';
import { optionError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { defaultBlockLength, defaultMaxTokens } from '../generation/prepare';
import { Stopwatch, withTime, writtenSeed } from '../generation/result';
import type { GenerateResult } from '../generation/types';
import { attendedBlock } from '../model/blocks';
import { CausalModel } from '../model/causal-model';
import type { CausalResult } from '../model/causal-options';
import { checkRoom } from '../model/prompt';
import { native } from '../native';
import { checkChoice, checkInteger, checkKeys, checkNumber } from '../options';
import { type Cache, cacheObject, type ResolvedCache, resolveCache } from '../sampling/caches';
import { type ResolvedSampler, resolveSampler, type Sampler, samplerObject } from '../sampling/samplers';
import { namedForms } from '../sampling/text-form';
import { mean, standardDeviation, sum } from '../statistics';
import { show } from '../text';

/** An example; `answer` is null where own examples have none. */
/** An example as it is evaluated: whatever its prompt is, with or without an answer. */
export type EvaluatedExample = Example<ExamplePrompt, string | null>;

/** Completions to score. Arrays are parallel, one entry per completion. */
export interface ScoreBatch {
  /** `answer` is null where own examples have none. */
  examples: readonly Example<ExamplePrompt, string | null>[];
  completions: readonly string[];
  results: readonly GenerateResult[];
}

/** Scores completions: 0 to 1 or a boolean for each; null: not counted in the accuracy. */
export type Score = (
  batch: ScoreBatch,
) =>
  | readonly (number | boolean | null)[]
  | ArrayLike<number>
  | Promise<readonly (number | boolean | null)[] | ArrayLike<number>>;

/** Argument of {@link EvaluateOptions.onProgress}. */
export interface EvaluateProgress {
  /** Name of the current setting: the sampler's, and with a cache "sampler + cache". */
  sampler: string;
  /** Prompts done, over all settings. */
  done: number;
  /** Prompts of the whole evaluation, over all settings. */
  total: number;
}

/** Stores samples, so that an interrupted evaluation can be continued. */
export interface SampleStore {
  /** The sample of a setting (by its name) and a prompt (by its index); undefined if there is none yet. */
  get(sampler: string, index: number): SampleRecord | undefined;
  /** Called after every batch, with the samples of the prompts from `first` on. */
  put(sampler: string, first: number, samples: readonly SampleRecord[]): void | Promise<void>;
}

/** A split of a task, see {@link EvaluateOptions.split}. */
export type EvaluationSplit = 'train' | 'validation' | 'test' | (string & {});

/** Options of {@link evaluate}. */
export interface EvaluateOptions {
  /**
   * A task or data set, by its name or as `datasets.open` returns it; or own examples: a list, a file, or
   * `{ examples, verify }`.
   */
  dataset: DatasetInput;
  /**
   * Split that the prompts are from: "train", "validation", "test", or one of the task's `moreSplits`. Default "test";
   * "validation" where own examples have that alone held out. Choose settings on "validation".
   */
  split?: EvaluationSplit | undefined;
  /**
   * Scores the completions. Default: the task's own verifier; of own examples without one, whether the completion is
   * the answer, white space aside.
   */
  score?: Score | undefined;
  /** Samplers by the names that tables show, or their short forms, as in `["planner", "confidence:0.9"]`. */
  samplers: Readonly<Record<string, Sampler>> | readonly string[];
  /** Caches by name, or their short forms: every sampler runs with each of them. Default: no cache. */
  caches?: Readonly<Record<string, Cache>> | readonly string[] | undefined;
  /** Number of prompts. Default 512; for a finite data set all prompts of the split. */
  count?: number | undefined;
  /** Seed of the prompts and of every random choice of the samplers. Default 0. */
  seed?: number | undefined;
  /** Prompts per batch; results do not depend on it. Default 256. */
  batchSize?: number | undefined;
  /**
   * Tokens to generate. Default: the task's; of own examples those of the longest answer with an end of sequence, or,
   * where `verify` or `score` judges, the model's default.
   */
  maxTokens?: number | undefined;
  /** Tokens per block. Default: the task's; if `maxTokens` is given, that. */
  blockLength?: number | undefined;
  /** Token temperature. Default 0. */
  temperature?: number | undefined;
  /** Finish a row when everything before its first end-of-sequence token is decided. Default true. */
  stopAtEos?: boolean | undefined;
  /** Number of prompts whose steps are recorded, for the report's step-by-step view. Default 0. */
  traces?: number | undefined;
  /** Supplies the samples of an earlier, interrupted evaluation, and stores the new ones. Default: none. */
  store?: SampleStore | undefined;
  /** Stops the work; the call rejects with `signal.reason`. */
  signal?: AbortSignal | undefined;
  /** Called after every batch. */
  onProgress?: ((progress: EvaluateProgress) => void) | undefined;
}

/** Everything that is needed to repeat an evaluation. */
export interface EvaluationConfig {
  version: string;
  model: { source: string; parameters: number; plannerParameters: number };
  device: string;
  isa: string;
  threads: number;
  dataset: string;
  /** Source of a finite data set, and how its prompts and answers are made; absent for endless tasks. */
  datasetSource?: Readonly<Record<string, unknown>> | undefined;
  split: EvaluationSplit;
  /**
   * "task" for the task's own verifier, "exact match" where the completion is compared with the answer, white space
   * aside, else "custom".
   */
  score: 'task' | 'exact match' | 'custom';
  count: number;
  seed: number;
  batchSize: number;
  maxTokens: number;
  blockLength: number;
  temperature: number;
  stopAtEos: boolean;
}

/** One prompt under one sampler. */
export interface SampleRecord {
  prompt: string;
  category: string;
  completion: string;
  /** 0 to 1; null: not counted in the accuracy. */
  score: number | null;
  /** Forward passes in which the row unmasked something. */
  nfe: number;
  /** Cost in full-forward equivalents: each pass counts as the share of the row that it computed. */
  fullForwards: number;
  /** Tokens up to and including the first end-of-sequence token. */
  tokens: number;
  /** Wall time of its batch, divided by the prompts of the batch. */
  seconds: number;
  /** A right answer, from the data set. */
  answer: string;
  /**
   * Why the model was not asked: the prompt does not fit it. Such a prompt counts as wrong, and in no mean of passes,
   * tokens or time.
   */
  problem?: string | undefined;
  /** Sentence family of a right answer (word problems). */
  family?: string | undefined;
  /** Kind of error (word problems): a wrong word in a slot of the sentence, or no sentence of the grammar. */
  error?: 'slot' | 'mix' | undefined;
  /** Text of each position, and the step (from 1) that decided it (0: never); for the first `traces` prompts. */
  trace?: { tokens: string[]; unmaskedAt: number[] } | undefined;
}

/** Accuracy and cost of the prompts of one category. */
export interface CategoryResult {
  count: number;
  accuracy: number;
  nfe: number;
}

/** Measurements of one setting: a sampler with a cache. */
export interface SamplerResult {
  /** The sampler's, and with a cache "sampler + cache". */
  name: string;
  /** The sampler with every default filled in; "custom" for a function. */
  sampler: ResolvedSampler | 'custom' | 'autoregressive';
  cache: ResolvedCache;
  /** Mean score of the prompts that have one. */
  accuracy: number;
  /** Standard error of that mean. */
  accuracyError: number;
  /** Number of prompts that have a score. */
  scored: number;
  /** Number of prompts that do not fit the model, where there are any; they count as wrong. */
  unanswered?: number | undefined;
  /** Forward passes per prompt. */
  nfe: { mean: number; sd: number };
  /** Full-forward equivalents per prompt: each pass counts as the share of the row that it computed. */
  fullForwards: { mean: number; sd: number };
  /**
   * Tokens of all prompts per forward pass of all prompts: `generated` counts maxTokens tokens per prompt, `untilEos`
   * those up to the first end-of-sequence token.
   */
  tokensPerForward: { generated: number; untilEos: number };
  /** Tokens up to the first end-of-sequence token per second of wall time. */
  tokensPerSecond: number;
  /** Wall time of all batches. */
  seconds: number;
  categories: Record<string, CategoryResult>;
  /** Number of right answers by sentence family; word problems only. */
  families?: Record<string, number> | undefined;
  /** Number of wrong answers by kind of error; word problems only. */
  errors?: { slot: number; mix: number } | undefined;
  samples: SampleRecord[];
}

/** Output of {@link evaluate}: plain JSON. */
export interface Evaluation {
  config: EvaluationConfig;
  results: SamplerResult[];
}

/** Options that `evaluate` and `evaluateCampaign` share. */
export const SHARED_KEYS = [
  'dataset',
  'split',
  'score',
  'samplers',
  'caches',
  'count',
  'batchSize',
  'maxTokens',
  'blockLength',
  'temperature',
  'stopAtEos',
  'traces',
  'signal',
  'onProgress',
] as const;
const KEYS = [...SHARED_KEYS, 'seed', 'store'] as const;

/** Mean and sample standard deviation (0 for one value, NaN and 0 for none). */
export const meanAndSd = (values: readonly number[]): { mean: number; sd: number } => ({
  mean: mean(values),
  sd: standardDeviation(values),
});

/** A prompt as one text: the last message of a chat. */
const promptText = (prompt: Example['prompt']): string =>
  typeof prompt === 'string' ? prompt : (prompt.at(-1)?.content ?? '');

const canDiagnose = (dataset: object): dataset is WordProblemDataset => 'diagnose' in dataset;

async function scoreAll(score: Score | undefined, dataset: Dataset, batch: ScoreBatch): Promise<(number | null)[]> {
  const { examples, completions } = batch;
  if (!score)
    return (await Promise.all(completions.map((completion, i) => dataset.verify(examples[i], completion)))).map(Number);
  const scores = await score(batch);
  if (scores === null || typeof scores !== 'object' || scores.length !== examples.length)
    throw optionError(
      TypeError,
      'score',
      `expected the function to return ${examples.length} scores, got ${(scores as { length?: number } | null)?.length}`,
    );
  return Array.from(scores as ArrayLike<number | boolean | null>, (value) => {
    if (value === null) return null;
    const number = Number(value);
    if (!(number >= 0 && number <= 1))
      throw optionError(RangeError, 'score', `expected 0 to 1, a boolean or null, got ${value}`);
    return number;
  });
}

/** The only setting of an autoregressive model, which has no samplers. */
const AUTOREGRESSIVE = {
  given: undefined,
  policy: undefined,
  setting: { name: 'autoregressive', sampler: 'autoregressive' as const, cache: { type: 'none' as const } },
};

/**
 * The result of an autoregressive model as a `GenerateResult`: one pass per token; the first computes the prompt, each
 * other one position.
 */
function asGenerated(
  { text, ids, promptIds, nfe, logProbs, finishReason }: CausalResult,
  seed: bigint,
  seconds: number,
): GenerateResult {
  const [promptTokens, completionTokens] = [promptIds.length, ids.length];
  const result = {
    text,
    ids,
    promptIds,
    seed: writtenSeed(seed),
    usage: { promptTokens, completionTokens, totalTokens: promptTokens + completionTokens },
    nfe,
    fullForwards: (promptIds.length - 1 + ids.length) / (promptIds.length + ids.length),
    tokens: ids.length,
    tokensPerForward: 1,
    finishReason,
    unmaskedAt: Int32Array.from(ids, (_, i) => i + 1),
    logLikelihood: logProbs.reduce((total, value) => total + value, 0),
  };
  return withTime(result, seconds);
}

/** A sampler with a cache. */
type Setting = Pick<SamplerResult, 'name' | 'sampler' | 'cache'>;

function summarise(
  { name, sampler, cache }: Setting,
  samples: SampleRecord[],
  maxTokens: number,
  diagnosed: boolean,
): SamplerResult {
  const answered = samples.filter(({ problem }) => problem === undefined);
  const seconds = sum(answered.map((sample) => sample.seconds));
  const scores = samples.flatMap(({ score }) => (score === null ? [] : [score]));
  const accuracy = meanAndSd(scores);
  const passes = answered.map(({ nfe }) => nfe);
  const tokens = sum(answered.map((sample) => sample.tokens));
  const categories: Record<string, CategoryResult> = {};
  for (const category of [...new Set(samples.map((sample) => sample.category))].sort()) {
    const part = samples.filter((sample) => sample.category === category && sample.score !== null);
    const { mean } = meanAndSd(part.map(({ score }) => score!));
    const asked = part.filter(({ problem }) => problem === undefined);
    categories[category] = { count: part.length, accuracy: mean, nfe: meanAndSd(asked.map(({ nfe }) => nfe)).mean };
  }
  const result: SamplerResult = {
    name,
    sampler,
    cache,
    accuracy: accuracy.mean,
    accuracyError: accuracy.sd / Math.sqrt(Math.max(1, scores.length)),
    scored: scores.length,
    ...(answered.length < samples.length && { unanswered: samples.length - answered.length }),
    nfe: meanAndSd(passes),
    fullForwards: meanAndSd(answered.map(({ fullForwards }) => fullForwards)),
    // An autoregressive model generates no positions after its end-of-sequence token.
    tokensPerForward: {
      generated: (sampler === 'autoregressive' ? tokens : maxTokens * answered.length) / sum(passes),
      untilEos: tokens / sum(passes),
    },
    tokensPerSecond: tokens / seconds,
    seconds,
    categories,
    samples,
  };
  if (diagnosed) {
    result.families = {};
    result.errors = { slot: 0, mix: 0 };
    for (const { family, error } of samples) {
      if (family) result.families[family] = (result.families[family] ?? 0) + 1;
      if (error) result.errors[error]++;
    }
  }
  return result;
}

/** A setting, with the sampler and cache policy that the caller gave. */
interface Variant {
  given: Sampler | undefined;
  policy: Cache | undefined;
  setting: Setting;
}

/** Every sampler with every cache. */
function resolveVariants(model: MaskedDiffusionModel | CausalModel, options: EvaluateOptions): Variant[] {
  const samplers = namedForms<Sampler>('samplers', options.samplers, samplerObject);
  const caches = namedForms<Cache>('caches', options.caches === undefined ? ['none'] : options.caches, cacheObject);
  if (model instanceof CausalModel) return [AUTOREGRESSIVE];
  return Object.entries(samplers).flatMap(([name, given]) => {
    const resolved = resolveSampler(given, model.hasPlanner);
    const sampler = typeof resolved === 'function' ? ('custom' as const) : resolved;
    return Object.entries(caches).map(([cacheName, policy]) => {
      const cache = resolveCache(policy, `caches.${cacheName}`);
      const label = cache.type === 'none' ? name : `${name} + ${cacheName}`;
      return { given, policy, setting: { name: label, sampler, cache } };
    });
  });
}

/** Split that an evaluation takes where none is named. */
const defaultSplit = ({ finite }: Dataset) => (finite && !finite.test && finite.validation ? 'validation' : 'test');

/** Tokens that the longest answer takes, with an end of sequence; of those that the model has room for, if there are. */
function longestAnswer(model: MaskedDiffusionModel | CausalModel, examples: readonly EvaluatedExample[]): number {
  const lengths = examples.map(
    ({ answer }) =>
      1 + (answer === null ? 0 : (model.tokenizer?.encode(answer, { addSpecialTokens: false }).length ?? 0)),
  );
  const fitting = lengths.filter(
    (length, i) => problemOf(examples[i], (example) => checkPrompt(model, example, length)) === null,
  );
  return (fitting.length > 0 ? fitting : lengths).reduce((longest, length) => Math.max(longest, length), 1);
}

/**
 * Tokens that `evaluate` generates where its options name no number: the data set's; of own examples that are compared
 * with their answers, those of the longest answer with an end of sequence; else the model's default.
 */
export function evaluationMaxTokens(
  model: MaskedDiffusionModel | CausalModel,
  dataset: Dataset,
  { split = defaultSplit(dataset), score }: Pick<EvaluateOptions, 'split' | 'score'> = {},
): number {
  if (dataset.genLength !== null) return dataset.genLength;
  const examples = dataset.finite?.[split as Split];
  return examples && dataset.exactMatch && !score ? longestAnswer(model, examples) : defaultMaxTokens(model);
}

/** How completions are judged, for results. */
export function scoreName({ exactMatch }: Dataset, score: Score | undefined): EvaluationConfig['score'] {
  if (score) return 'custom';
  return exactMatch ? 'exact match' : 'task';
}

/** Options of {@link evaluate}, checked, with defaults. */
type Resolved = Awaited<ReturnType<typeof resolveEvaluation>>;

async function resolveEvaluation(model: MaskedDiffusionModel | CausalModel, options: EvaluateOptions) {
  checkKeys('options', options, KEYS);
  const { score, seed = 0, batchSize = 256, temperature = 0, stopAtEos = true } = options;
  const { traces = 0, store, signal, onProgress } = options;
  const dataset = await open(options.dataset, { splits: [(options.split ?? 'test') as Split] });
  const { split = defaultSplit(dataset) } = options;
  checkChoice('split', split, ['train', 'validation', 'test', ...(dataset.moreSplits ?? [])]);
  const count = options.count ?? dataset.finite?.[split as Split]?.length ?? 512;
  if (score !== undefined && typeof score !== 'function')
    throw optionError(TypeError, 'score', `expected a function, got ${show(score)}`);
  checkInteger('count', count, { min: 1, max: 1e7 });
  checkInteger('seed', seed, { min: 0, max: Number.MAX_SAFE_INTEGER });
  checkInteger('batchSize', batchSize, { min: 1, max: 1e6 });
  checkNumber('temperature', temperature, { min: 0, max: 1e6 });
  checkChoice('stopAtEos', stopAtEos, [true, false] as const);
  checkInteger('traces', traces, { min: 0, max: 1e6 });
  if (onProgress !== undefined && typeof onProgress !== 'function')
    throw optionError(TypeError, 'onProgress', `expected a function, got ${show(onProgress)}`);
  const without = score ? -1 : (dataset.finite?.[split as Split]?.findIndex(({ answer }) => answer === null) ?? -1);
  if (dataset.exactMatch && without >= 0)
    throw optionError(
      TypeError,
      'dataset',
      `expected an answer of every example, or verify or score to judge completions; example ${without + 1} of ${dataset.name} has none`,
    );
  const maxTokens = options.maxTokens ?? evaluationMaxTokens(model, dataset, { split, score });
  checkInteger('maxTokens', maxTokens, { min: 1, max: 2 ** 30 });
  const isOwn = dataset.genLength === null && options.maxTokens === undefined;
  const fitting = isOwn ? defaultBlockLength(maxTokens) : maxTokens;
  const ofTask = options.maxTokens === undefined ? (dataset.blockLength ?? fitting) : maxTokens;
  // A model that attends by blocks decodes by its own, whose last one may end behind maxTokens.
  const attended = model instanceof CausalModel ? null : attendedBlock(model.config);
  const blockLength = options.blockLength ?? attended ?? ofTask;
  checkInteger('blockLength', blockLength, { min: 1, max: Math.max(maxTokens, attended ?? 0) });
  const generation = { seed, batchSize, maxTokens, blockLength, temperature, stopAtEos };
  return { dataset, split, score, count, ...generation, traces, store, signal, onProgress };
}

/** Generates completions of consecutive examples. @param firstRow index of the first example */
async function complete(
  model: MaskedDiffusionModel | CausalModel,
  examples: readonly EvaluatedExample[],
  firstRow: number,
  { given: sampler, policy: cache }: Variant,
  { temperature, seed, signal, maxTokens, blockLength, stopAtEos }: Resolved,
): Promise<GenerateResult[]> {
  const prompts = examples.map(({ prompt }) => prompt);
  const shared = { temperature, seed, maxTokens, signal };
  if (model instanceof CausalModel) {
    const watch = new Stopwatch();
    const results = await watch.time(() => model.generateBatch(prompts, { ...shared, firstRow }));
    return results.map((result) => asGenerated(result, BigInt(seed), watch.seconds / results.length));
  }
  return model.generateBatch(prompts, { ...shared, sampler, cache, blockLength, stopAtEos, research: { firstRow } });
}

/** The record of one example. */
function recordOf(
  example: EvaluatedExample,
  { text: completion, nfe, fullForwards, tokens }: GenerateResult,
  score: number | null,
  seconds: number,
  dataset: Dataset,
): SampleRecord {
  const { prompt, category, answer } = example;
  const measured = { completion, score, nfe, fullForwards, tokens, seconds };
  const record: SampleRecord = { prompt: promptText(prompt), category, ...measured, answer: answer ?? '' };
  if (canDiagnose(dataset)) {
    const { family, error } = dataset.diagnose(example as Example<string>, completion);
    if (family) record.family = family;
    if (error) record.error = error;
  }
  return record;
}

/** Throws what is wrong with a prompt for a model. */
function checkPrompt(model: MaskedDiffusionModel | CausalModel, { prompt }: EvaluatedExample, maxTokens: number): void {
  const { length } = model.encodePrompt(prompt);
  if (model instanceof CausalModel && length === 0)
    throw optionError(RangeError, 'prompt', 'expected at least one token, got none');
  checkRoom(length, maxTokens, model.config.maxSequenceLength);
}

/**
 * Why the model cannot be asked, by the index of the prompt. @throws what is wrong with the first, where it is all of
 * them: then an option is wrong
 */
function findProblems(
  model: MaskedDiffusionModel | CausalModel,
  examples: readonly EvaluatedExample[],
  maxTokens: number,
): Map<number, string> {
  const problems = new Map<number, string>();
  const { unusable } = partition(
    examples,
    (example) => checkPrompt(model, example, maxTokens),
    (index) => `prompt ${index}`,
  );
  warnUnusable(unusable, examples.length, 'do not fit the model and count as wrong');
  for (const { index, problem } of unusable) problems.set(index, problem.message);
  return problems;
}

/** The record of an example that the model is not asked. */
const unasked = ({ prompt, category, answer }: EvaluatedExample, problem: string): SampleRecord => ({
  prompt: promptText(prompt),
  category,
  completion: '',
  score: 0,
  nfe: 0,
  fullForwards: 0,
  tokens: 0,
  seconds: 0,
  answer: answer ?? '',
  problem,
});

/** Samples of consecutive examples: each process completes and judges a part of them, and all get all. */
async function sampleBatch(
  model: MaskedDiffusionModel | CausalModel,
  examples: readonly EvaluatedExample[],
  first: number,
  variant: Variant,
  { group, ...resolved }: Resolved & { group: ProcessGroup },
): Promise<SampleRecord[]> {
  const { dataset, score, traces } = resolved;
  const { begin, end } = ownRange(examples.length, group);
  const own = examples.slice(begin, end);
  const records: SampleRecord[] = [];
  const start = performance.now();
  if (own.length > 0) {
    const results = await complete(model, own, first + begin, variant, resolved);
    // Until all are done: judging is no part of the model's time.
    const seconds = (performance.now() - start) / 1000 / own.length;
    const completions = results.map(({ text }) => text);
    const scores = await scoreAll(score, dataset, { examples: own, completions, results });
    for (const [i, result] of results.entries()) {
      const record = recordOf(own[i], result, scores[i], seconds, dataset);
      if (first + begin + i < traces)
        record.trace = {
          tokens: Array.from(result.ids, (id) => model.tokenizer!.decode([id])),
          unmaskedAt: Array.from(result.unmaskedAt),
        };
      records.push(record);
    }
  }
  if (group.size === 1) return records;
  const parts = await gatherJson(group, records);
  // Processes work at the same time: what counts is the one that takes longest.
  const slowest = Math.max(...parts.map((part) => part.length * (part[0]?.seconds ?? 0)));
  return parts.flat().map((record) => ({ ...record, seconds: slowest / examples.length }));
}

/** Samples of one setting, one per example: loaded from rank 0's store, or generated, scored and stored. */
async function runVariant(
  model: MaskedDiffusionModel | CausalModel,
  examples: readonly EvaluatedExample[],
  variant: Variant,
  resolved: Resolved & { group: ProcessGroup },
  problems: ReadonlyMap<number, string>,
  onDone: (examples: number, isNew: boolean) => void,
): Promise<SampleRecord[]> {
  const { batchSize, group } = resolved;
  const store = group.rank === 0 ? resolved.store : undefined;
  const { name } = variant.setting;
  const known = examples.map((_, index) => store?.get(name, index) ?? null);
  const [stored] = await gatherJson(group, group.rank === 0 ? known : []);
  const samples: (SampleRecord | undefined)[] = stored.map((sample) => sample ?? undefined);
  onDone(samples.filter((sample) => sample !== undefined).length, false);
  for (let first = 0; first < examples.length; first++) {
    if (samples[first]) continue;
    const problem = problems.get(first);
    if (problem !== undefined) {
      samples[first] = unasked(examples[first], problem);
      await store?.put(name, first, [samples[first]!]);
      onDone(1, true);
      continue;
    }
    // A batch ends before the next sample that the store has, and before a prompt that cannot be asked.
    let end = first + 1;
    while (end < examples.length && end < first + batchSize && !samples[end] && !problems.has(end)) end++;
    const part = examples.slice(first, end);
    for (const [i, record] of (await sampleBatch(model, part, first, variant, resolved)).entries())
      samples[first + i] = record;
    await store?.put(name, first, samples.slice(first, end) as SampleRecord[]);
    onDone(part.length, true);
  }
  return samples as SampleRecord[];
}

/**
 * Runs every sampler, with every cache, on the same held-out prompts, in batches.
 * Prompt i uses row i of the random stream whatever `batchSize` is, so results depend on the options alone. In a job
 * (`distributed.init`) each process takes a part of every batch, and all return the same.
 * @throws TypeError, RangeError naming the option; what generating throws; `signal.reason`.
 */
export async function evaluate(
  model: MaskedDiffusionModel | CausalModel,
  options: EvaluateOptions,
): Promise<Evaluation> {
  const resolved = await resolveEvaluation(model, options);
  const variants = resolveVariants(model, options);
  const { dataset, split, score, count, seed, batchSize, maxTokens, blockLength, temperature, stopAtEos } = resolved;
  const examples = dataset.sample(split as Split, count, seed);
  const problems = findProblems(model, examples, maxTokens);
  const group = currentGroup();
  if (group.size > 1) {
    const settings = variants.map(({ setting }) => setting);
    const numbers = { seed, batchSize, maxTokens, blockLength, temperature, stopAtEos };
    const weights = model instanceof CausalModel ? model.source : await model.weightsHash();
    const prompts = createHash('sha256').update(JSON.stringify(examples)).digest('hex');
    await checkAlike(group, { version: native().version, prompts, settings, ...numbers, model: weights });
  }
  const total = variants.length * examples.length;
  const results: SamplerResult[] = [];
  let done = 0;
  for (const variant of variants) {
    const { setting } = variant;
    const samples = await runVariant(model, examples, variant, { ...resolved, group }, problems, (more, isNew) => {
      done += more;
      if (isNew) resolved.onProgress?.({ sampler: setting.name, done, total });
    });
    results.push(summarise(setting, samples, maxTokens, canDiagnose(dataset)));
  }
  const { device, isa, threads, parameters, plannerParameters } = model.info;
  return {
    config: {
      version: native().version,
      model: { source: model.source, parameters, plannerParameters },
      device,
      isa,
      threads,
      dataset: dataset.name,
      ...(dataset.source && { datasetSource: dataset.source }),
      split,
      score: scoreName(dataset, score),
      count,
      seed,
      batchSize,
      maxTokens,
      blockLength,
      temperature,
      stopAtEos,
    },
    results,
  };
}
