// Data of self-distillation: a model's own answers, right ones alone where something can tell, with the order in which it
// decided their tokens.
import { existsSync } from 'node:fs';
import { type FileHandle, open as openFile, readFile, truncate } from 'node:fs/promises';
import { type DatasetInput, type OpenOptions, open } from '../../data';
import { currentGroup } from '../../distributed/mpi';
import { gatherJson, ownRange, type ProcessGroup } from '../../distributed/process-group';
import { DUltraError, optionError, within } from '../../errors';
import { writeFileAtomic } from '../../files/atomic';
import type { MaskedDiffusionModel } from '../../generation/masked-diffusion-model';
import type { GenerateResult } from '../../generation/types';
import { checkChoice, checkInteger, checkKeys, checkNumber, checkSeed } from '../../options';
import { packRows } from '../../packing';
import { deriveNumber, deriveSeed, Purpose } from '../../random';
import { resolveSampler, type SamplerObject, samplerObject } from '../../sampling/samplers';
import { show } from '../../text';
import type { TrainingRow } from '../data';

/** Options of {@link distillAnswers}. */
export interface DistillAnswersOptions {
  /** Prompts. */
  dataset: DatasetInput;
  /** Of a data set such as "gsm8k": prompts, difficulties and the like. */
  datasetOptions?: Omit<OpenOptions, 'source' | 'splits' | 'sandbox' | 'validation' | 'verify'> | undefined;
  /** File of JSON lines that records are appended to; one that is there is gone on with. */
  output: string;
  /** Prompts to answer, from the first on. Default: all of a finite set; an endless task needs it. */
  count?: number | undefined;
  /** How answers are decoded. Default: one token per pass, the most confident first, `{ type: "fixed" }`. */
  sampler?: SamplerObject | string | undefined;
  /** Tokens of an answer. Default: the data set's. */
  maxTokens?: number | undefined;
  /** Tokens per block. Default: the data set's, else 32 or `maxTokens`. */
  blockLength?: number | undefined;
  /** Token temperature of the first attempt. Default 0. */
  temperature?: number | undefined;
  /** Further attempts at a wrong answer, each hotter by 0.1. Default 0; d3LLM's data have 4. */
  retries?: number | undefined;
  /** Also write answers that are wrong after the last attempt. Default false. */
  keepWrong?: boolean | undefined;
  /** Seed of prompts and draws. Default 0. */
  seed?: number | bigint | undefined;
  /** Prompts of a batch, whose records are written together. Default 32. */
  batchSize?: number | undefined;
  /** Tokens of a forward pass. Default 8192. */
  tokenBudget?: number | undefined;
  /** Finishes the batch under way, and throws `signal.reason`. */
  signal?: AbortSignal | undefined;
}

/** A line of the file: dParallel's fields and d3LLM's, with the trajectory in a number per token. */
export interface DistillationRecord {
  /** Number of the prompt, from 0. */
  idx: number;
  /** A prompt of text, or of chat messages. */
  question?: string;
  prompt?: TrainingRow['prompt'];
  prompt_ids: number[];
  /** Text of the answer. */
  llm_response: string;
  /** The data set's answer; null: it has none. */
  gt_answer: string | null;
  /** null: nothing can tell. */
  is_correct: boolean | null;
  /** Of the attempt. */
  temperature: number;
  nfe: number;
  /** The step, from 0, after which each of `maxTokens` tokens stands; −1: it was never decided. */
  reveal_step: number[];
}

/** How far a {@link distillAnswers} is. */
export interface DistillAnswersProgress {
  /** Prompts that are done, and those of the whole. */
  done: number;
  count: number;
  /** Records of the file. */
  written: number;
}

const KEYS = [
  ...['dataset', 'datasetOptions', 'output', 'count', 'sampler', 'maxTokens', 'blockLength', 'temperature'],
  ...['retries', 'keepWrong', 'seed', 'batchSize', 'tokenBudget', 'signal'],
];

/** Step between the temperatures of attempts. */
const RETRY_STEP = 0.1;

function resolve(options: DistillAnswersOptions) {
  checkKeys('options', options, KEYS);
  const { output, count, maxTokens, blockLength, temperature = 0, retries = 0, keepWrong = false } = options;
  const { batchSize = 32, tokenBudget = 8192 } = options;
  if (typeof output !== 'string' || output === '')
    throw optionError(TypeError, 'output', `expected a file, got ${show(output)}`);
  const sampler = within('sampler', 'sampler', () => samplerObject(options.sampler ?? 'fixed'));
  within('sampler', 'sampler', () => resolveSampler(sampler, true));
  if (count !== undefined) checkInteger('count', count, { min: 1, max: 1e9 });
  if (maxTokens !== undefined) checkInteger('maxTokens', maxTokens, { min: 1, max: 1 << 30 });
  if (blockLength !== undefined) checkInteger('blockLength', blockLength, { min: 1, max: 1 << 30 });
  checkNumber('temperature', temperature, { min: 0, max: 1e6 });
  checkInteger('retries', retries, { min: 0, max: 100 });
  checkChoice('keepWrong', keepWrong, [true, false] as const);
  checkInteger('batchSize', batchSize, { min: 1, max: 1 << 20 });
  checkInteger('tokenBudget', tokenBudget, { min: 1, max: 1 << 30 });
  const seed = checkSeed('seed', options.seed ?? 0);
  return { sampler, temperature, retries, keepWrong, batchSize, tokenBudget, seed };
}

/** Complete records of a file, without the line that a killed process has left unfinished, which is cut off. */
async function readRecordsOf(file: string): Promise<DistillationRecord[]> {
  if (!existsSync(file)) return [];
  const text = await readFile(file, 'utf8');
  const whole = text.slice(0, text.lastIndexOf('\n') + 1);
  if (whole.length < text.length) await truncate(file, Buffer.byteLength(whole));
  return whole
    .split('\n')
    .filter((line) => line !== '')
    .map((line, i) => {
      try {
        const record = JSON.parse(line) as DistillationRecord;
        if (!Number.isInteger(record.idx)) throw new Error('expected a field "idx"');
        return record;
      } catch (cause) {
        throw new DUltraError('BAD_DATASET', `${file}, line ${i + 1}: ${(cause as Error).message}`, { cause });
      }
    });
}

/** Checks that a file which is there was begun with the same options, or notes them. */
async function checkSameRun(output: string, options: Readonly<Record<string, unknown>>): Promise<void> {
  const file = `${output}.options.json`;
  const text = `${JSON.stringify(options, (_, value) => (typeof value === 'bigint' ? value.toString() : value), 2)}\n`;
  if (!existsSync(output)) {
    await writeFileAtomic(file, text);
    return;
  }
  const then = await readFile(file, 'utf8').catch(() => null);
  if (then === null)
    throw optionError(
      RangeError,
      'output',
      `${output} is there already, and no file of own answers: give another name`,
    );
  if (then !== text) {
    const old = JSON.parse(then) as Record<string, unknown>;
    const now = JSON.parse(text) as Record<string, unknown>;
    const key = Object.keys({ ...old, ...now }).find(
      (name) => JSON.stringify(old[name]) !== JSON.stringify(now[name]),
    )!;
    throw optionError(
      RangeError,
      key,
      `expected ${JSON.stringify(old[key])}, with which ${output} began, got ${JSON.stringify(now[key])}`,
    );
  }
}

/** Answers of some prompts: of each the first attempt that is right, else the last. */
class Answerer {
  readonly #model: MaskedDiffusionModel;
  readonly #options: ReturnType<typeof resolve> & { maxTokens: number; blockLength: number };
  readonly #verify: ((example: TrainingRow, completion: string) => boolean | Promise<boolean>) | null;

  constructor(
    model: MaskedDiffusionModel,
    options: ReturnType<typeof resolve> & { maxTokens: number; blockLength: number },
    verify: ((example: TrainingRow, completion: string) => boolean | Promise<boolean>) | null,
  ) {
    this.#model = model;
    this.#options = options;
    this.#verify = verify;
  }

  async #attempt(
    rows: readonly { index: number; promptIds: Int32Array }[],
    attempt: number,
  ): Promise<GenerateResult[]> {
    const { sampler, maxTokens, blockLength, temperature, seed, tokenBudget } = this.#options;
    const results: GenerateResult[] = [];
    // Every row draws by its own number, whichever rows are with it.
    const isDrawn = temperature > 0 || attempt > 0;
    const batches = isDrawn
      ? rows.map((row) => [row])
      : packRows(rows, ({ promptIds }) => promptIds.length + maxTokens, tokenBudget);
    for (const batch of batches)
      results.push(
        ...(await this.#model.generateBatch(
          batch.map(({ promptIds }) => ({ promptIds })),
          {
            sampler,
            maxTokens,
            blockLength,
            temperature: temperature + attempt * RETRY_STEP,
            stopAtEos: false,
            seed: deriveSeed(seed, Purpose.rollouts, attempt),
            research: { firstRow: batch[0].index },
          },
        )),
      );
    return results;
  }

  /** @param first number of the first example */
  async answer(examples: readonly TrainingRow[], first: number): Promise<DistillationRecord[]> {
    const { temperature, retries, keepWrong } = this.#options;
    const records: (DistillationRecord | null)[] = examples.map(() => null);
    let open = examples.map((example, i) => ({
      i,
      index: first + i,
      example,
      promptIds: this.#model.encodePrompt(example.prompt),
    }));
    for (let attempt = 0; attempt <= retries && open.length > 0; attempt++) {
      const results = await this.#attempt(
        open.map(({ index, promptIds }) => ({ index, promptIds })),
        attempt,
      );
      const wrong: typeof open = [];
      for (const [k, row] of open.entries()) {
        const { text, nfe, unmaskedAt } = results[k];
        const right = this.#verify && (await this.#verify(row.example, text));
        if (right === false) wrong.push(row);
        // An empty answer has nothing to teach.
        if ((right === false && !keepWrong) || text.trim() === '') continue;
        const { prompt, answer } = row.example;
        records[row.i] = {
          idx: row.index,
          ...(typeof prompt === 'string' ? { question: prompt } : { prompt }),
          prompt_ids: Array.from(row.promptIds),
          llm_response: text,
          gt_answer: answer,
          is_correct: right,
          temperature: temperature + attempt * RETRY_STEP,
          nfe,
          reveal_step: Array.from(unmaskedAt, (step) => step - 1),
        };
      }
      open = wrong;
    }
    return records.filter((record) => record !== null);
  }
}

/** All processes stop before the same batch, or none. @throws `signal.reason`; DUltraError DISTRIBUTED */
async function checkStopped(group: ProcessGroup, signal: AbortSignal | undefined): Promise<void> {
  const isStopped = signal?.aborted ?? false;
  const flags = await group.allGather(Float64Array.of(Number(isStopped)));
  if (isStopped) throw signal!.reason;
  if (flags.some(([flag]) => flag === 1)) throw new DUltraError('DISTRIBUTED', 'another process was stopped');
}

/**
 * Writes a model's own answers to prompts, as JSON lines of {@link DistillationRecord}: what `trainCertainty` and
 * `trainPseudoTrajectories` learn from. Where the data set has a verifier, wrong answers are tried again and then left
 * out. A file that is there is gone on with; the result is that of an uninterrupted call. One yield per batch. Several
 * processes (`distributed.init`) share each batch; the first of them writes.
 * @throws TypeError, RangeError for options, and for a file that was begun with others; DUltraError BAD_DATASET,
 * NO_TOKENIZER; `signal.reason`, after the batch under way is written.
 */
export async function* distillAnswers(
  model: MaskedDiffusionModel,
  options: DistillAnswersOptions,
): AsyncGenerator<DistillAnswersProgress, void, void> {
  const resolved = resolve(options);
  const { output, datasetOptions = {}, signal } = options;
  const { seed, batchSize } = resolved;
  if (!model.tokenizer)
    throw new DUltraError('NO_TOKENIZER', `${model.source} has no tokenizer.json, which answers of text need`);
  const data = await open(options.dataset, { ...datasetOptions, splits: ['train'] });
  const all = data.finite?.train;
  if (data.finite && !all)
    throw optionError(RangeError, 'dataset', `expected one with a split "train", got ${data.name}`);
  const count = Math.min(options.count ?? Number.POSITIVE_INFINITY, all?.length ?? Number.POSITIVE_INFINITY);
  if (!Number.isFinite(count))
    throw optionError(RangeError, 'count', `expected a number of prompts, since "${data.name}" is endless`);
  const examples: readonly TrainingRow[] =
    all?.slice(0, count) ?? data.sample('train', count, deriveNumber(seed, Purpose.examples));
  const maxTokens = options.maxTokens ?? data.genLength;
  if (maxTokens === null)
    throw optionError(TypeError, 'maxTokens', 'expected a number of tokens, since the data set names none');
  const own = options.maxTokens === undefined ? data.blockLength : null;
  const blockLength = options.blockLength ?? own ?? Math.min(32, maxTokens);
  const settings = { ...resolved, maxTokens, blockLength };
  const group = currentGroup();
  const isWriter = group.rank === 0;
  if (isWriter)
    await checkSameRun(output, { ...settings, dataset: data.name, datasetOptions, count, model: model.source });
  const before = isWriter ? await readRecordsOf(output) : [];
  // What lies behind the last record was wrong, or not reached: it is the same once more.
  const begun = { written: before.length, done: before.length > 0 ? before[before.length - 1].idx + 1 : 0 };
  let [{ written, done }] = await gatherJson(group, begun);
  const verify = data.exactMatch ? null : (example: TrainingRow, text: string) => data.verify(example, text);
  const answerer = new Answerer(model, settings, verify);
  const file: FileHandle | null = isWriter ? await openFile(output, 'a') : null;
  try {
    while (done < count) {
      await checkStopped(group, signal);
      const batch = examples.slice(done, done + batchSize);
      const { begin, end } = ownRange(batch.length, group);
      const records = (await gatherJson(group, await answerer.answer(batch.slice(begin, end), done + begin))).flat();
      if (file && records.length > 0) {
        await file.appendFile(records.map((record) => `${JSON.stringify(record)}\n`).join(''));
        await file.datasync();
      }
      done += batch.length;
      written += records.length;
      yield { done, count, written };
    }
  } finally {
    await file?.close();
  }
}
