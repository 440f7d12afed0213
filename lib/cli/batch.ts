// generate --batch: a file of prompts in, a file of completions out, resumable after it was ended at any moment.
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import {
  type ChatMessage,
  type GenerateOptions,
  type GenerateResult,
  isDUltraError,
  isOptionError,
  type MaskedDiffusionModel,
  type PlainPrompt,
} from '../index';
import { BatchOutput, type BatchRecord } from './batch-output';
import { Interruption, UsageError } from './errors';
import { type Line, readLines } from './lines';
import { printMessage } from './output';
import { ProgressBar, StatusLine } from './progress';
import { given } from './values';

/** Completions that are computed together by default. */
export const BATCH_SIZE = 8;

/** What a batch is asked for. */
export interface BatchRequest {
  /** File of prompts, or "-" for stdin. */
  input: string;
  /** File of completions, which is appended to; without it, they are printed. */
  out: string | undefined;
  /** Prompts of text are a user's message. */
  chat: boolean;
  /** Completions of each prompt, with seeds of their own. */
  seeds: number;
  batchSize: number;
  options: GenerateOptions;
  /** What of the command line the completions depend on beside `options`. */
  settings: object;
  quiet: boolean;
}

/** A completion that is wanted. */
interface Job {
  line: number;
  id: unknown;
  /** Of the line and of everything that its completions depend on: what is in the output already is recognised by it. */
  key: string;
  promptIds: Int32Array;
}

/** A line that is no prompt. */
class BadLine extends Error {}

/** A record of a line, or null for a text. @throws BadLine */
function parseLine(text: string, isJson: boolean): Record<string, unknown> | null {
  if (!isJson) return null;
  let record: unknown;
  try {
    record = JSON.parse(text);
  } catch (error) {
    throw new BadLine(`expected JSON: ${(error as Error).message}`);
  }
  if (typeof record !== 'object' || record === null || Array.isArray(record))
    throw new BadLine('expected an object such as {"prompt": "…"}');
  return record as Record<string, unknown>;
}

/** The prompt of a line. @throws BadLine saying what was expected */
function promptOf(text: string, record: Record<string, unknown> | null, chat: boolean): PlainPrompt {
  const asPrompt = (value: string): PlainPrompt => (chat ? [{ role: 'user', content: value }] : value);
  if (!record) return asPrompt(text);
  const { prompt, messages, promptIds } = record;
  // As in data sets, null is a field that is not there.
  const given = Object.entries({ prompt, messages, promptIds }).filter(
    ([, value]) => value !== undefined && value !== null,
  );
  if (given.length !== 1)
    throw new BadLine(
      `expected one of "prompt", "messages" and "promptIds", got ${given.map(([name]) => name).join(' and ') || 'none'}`,
    );
  const [[name, value]] = given;
  if (name === 'promptIds') {
    if (!Array.isArray(value) || value.length === 0) throw new BadLine('promptIds: expected a list of token ids');
    return { promptIds: value };
  }
  if (name === 'messages' && !Array.isArray(value)) throw new BadLine('messages: expected an array');
  const says =
    typeof value === 'string'
      ? value.trim() !== ''
      : Array.isArray(value) && value.some((message) => String((message as ChatMessage)?.content ?? '').trim() !== '');
  if (typeof value !== 'string' && !Array.isArray(value)) throw new BadLine('prompt: expected a text or messages');
  if (!says) throw new BadLine(`${name}: expected one that says something`);
  return typeof value === 'string' ? asPrompt(value) : (value as ChatMessage[]);
}

/** Whether an error is about one prompt, so that the others can go on. */
const isOfPrompt = (error: unknown): error is Error =>
  (isOptionError(error) && /^(prompt|messages)/.test(error.option)) ||
  isDUltraError(error, 'NO_TOKENIZER') ||
  isDUltraError(error, 'BAD_CHECKPOINT');

/** Lines of a file that say something. */
export async function countLines(file: string): Promise<number> {
  let count = 0;
  for await (const line of readLines(createReadStream(file), file))
    if ('error' in line || line.text.trim() !== '') count++;
  return count;
}

/** Lines done, on a terminal: with a bar where their number is known. */
export class BatchProgress {
  readonly #bar: ProgressBar;
  readonly #line = new StatusLine(process.stderr);
  readonly #total: number | null;
  #begin: { done: number; time: number } | null = null;
  #done = 0;

  /** @param what lines are */
  constructor(
    total: number | null,
    readonly what = 'prompts',
  ) {
    this.#total = total;
    this.#bar = new ProgressBar(`{bar} {value}/{total} ${what}{left}`);
  }

  /** The first prompts are being computed. */
  begin(): void {
    if (this.#begin !== null) return;
    this.#begin = { done: this.#done, time: performance.now() };
    this.#show();
  }

  /** @param fresh computed now, and not by an earlier run: times are estimated from these */
  add(count: number, fresh: boolean): void {
    this.#done += count;
    if (fresh || this.#total === null) this.#show();
  }

  #show(): void {
    if (!process.stderr.isTTY) return;
    if (this.#total === null) this.#line.update(`${this.#done} ${this.what}`);
    else this.#bar.update(this.#done, this.#total, { left: this.#left(this.#total) });
  }

  /** Nothing is known before the first are done. */
  #left(total: number): string {
    const { done, time } = this.#begin ?? { done: 0, time: 0 };
    if (this.#done === done) return '';
    const seconds = (((performance.now() - time) / 1000) * (total - this.#done)) / (this.#done - done);
    return seconds < 120 ? `, ${Math.ceil(seconds)} s left` : `, ${Math.ceil(seconds / 60)} min left`;
  }

  stop(): void {
    this.#bar.stop();
    this.#line.clear();
  }
}

const failure = ({ line, id, key }: Omit<Job, 'promptIds'>, { message }: Error): BatchRecord => ({
  line,
  ...(id !== undefined && { id }),
  key,
  error: message,
});

/** Looks at the files of a batch before the model is loaded. @throws UsageError */
export async function checkBatch(input: string, out: string | undefined): Promise<void> {
  if (input === '-') return;
  const found = await stat(input).catch((error: NodeJS.ErrnoException) => {
    throw new UsageError(`--batch: expected a file of prompts, or - for stdin: ${error.message}`);
  });
  if (found.isDirectory()) throw new UsageError(`--batch: expected a file of prompts, got the folder ${input}`);
  const other = out === undefined ? null : await stat(out).catch(() => null);
  if (other && other.dev === found.dev && other.ino === found.ino)
    throw new UsageError('--out: expected another file than --batch');
}

/** Completes every prompt of a file. @throws UsageError */
export async function runBatch(model: MaskedDiffusionModel, request: BatchRequest): Promise<void> {
  const { input, out, chat, seeds, batchSize, options, settings, quiet } = request;
  const { signal: _, seed = 0n, ...rest } = options;
  const base = BigInt(seed);
  const output = new BatchOutput(out);
  const total = quiet || input === '-' || !process.stderr.isTTY ? null : await countLines(input);
  await output.open();
  const before = output.size - output.failed;
  const progress = new BatchProgress(total);
  const keyOf = (text: string) =>
    createHash('sha256')
      .update(JSON.stringify([text, model.source, settings, rest]))
      .digest('hex')
      .slice(0, 16);
  let jobs: Job[] = [];
  let isJson: boolean | null = null;
  let lines = 0;

  const recordOf = ({ line, id, key }: Job, result: GenerateResult): BatchRecord => ({
    line,
    ...(id !== undefined && { id }),
    key,
    seed: typeof result.seed === 'bigint' ? result.seed.toString() : result.seed,
    ...(model.tokenizer ? { text: result.text } : { ids: Array.from(result.ids.subarray(0, result.tokens)) }),
    finishReason: result.finishReason,
    usage: result.usage,
    nfe: result.nfe,
    seconds: result.seconds,
  });

  /** Completes neighbouring lines together; where a prompt fails, one by one. */
  const complete = async (together: readonly Job[], own: bigint): Promise<BatchRecord[]> => {
    try {
      // A line draws the same whatever lines are computed beside it.
      const results = await model.generateBatch(
        together.map(({ promptIds }) => ({ promptIds })),
        { ...options, seed: own, research: { ...options.research, firstRow: together[0].line - 1 } },
      );
      return results.map((result, i) => recordOf(together[i], result));
    } catch (error) {
      if (!isOfPrompt(error)) throw error;
      if (together.length === 1) return [failure(together[0], error)];
      const records: BatchRecord[] = [];
      for (const job of together) records.push(...(await complete([job], own)));
      return records;
    }
  };

  const flush = async () => {
    const together = jobs;
    jobs = [];
    if (together.length === 0) return;
    let isFresh = false;
    for (let i = 0; i < seeds; i++) {
      const own = base + BigInt(i);
      // What an earlier run has is left out, so that neighbours may be missing.
      const missing = together.filter(({ line, key }) => !output.has(line, own, key));
      for (let begin = 0; begin < missing.length; ) {
        let end = begin + 1;
        while (end < missing.length && missing[end].line === missing[end - 1].line + 1) end++;
        progress.begin();
        await output.write(await complete(missing.slice(begin, end), own));
        begin = end;
      }
      isFresh ||= missing.length > 0;
    }
    progress.add(together.length, isFresh);
  };

  const take = async (line: Line) => {
    if ('text' in line && line.text.trim() === '') return;
    lines++;
    const number = line.number;
    const key = keyOf('text' in line ? line.text : line.error);
    let id: unknown;
    let promptIds: Int32Array;
    try {
      if ('error' in line) throw new BadLine(line.error);
      isJson ??= line.text.trimStart().startsWith('{');
      const record = parseLine(line.text, isJson);
      id = record?.id;
      const { splitSpecialTokens } = options;
      promptIds = model.encodePrompt(promptOf(line.text, record, chat), given({ splitSpecialTokens }));
    } catch (error) {
      if (!(error instanceof BadLine || isOfPrompt(error))) throw error;
      await flush();
      if (!output.has(number, base, key)) await output.write([failure({ line: number, id, key }, error)]);
      progress.add(1, false);
      return;
    }
    const last = jobs.at(-1);
    if (jobs.length >= batchSize || (last && last.line + 1 !== number)) await flush();
    jobs.push({ line: number, id, key, promptIds });
  };

  try {
    const stream = input === '-' ? process.stdin : createReadStream(input);
    for await (const line of readLines(stream, input === '-' ? 'stdin' : input)) await take(line);
    await flush();
  } catch (error) {
    if (error instanceof Interruption && out !== undefined) {
      progress.stop();
      printMessage(`${output.size} completions are in ${out}; the same command goes on`);
    }
    throw error;
  } finally {
    progress.stop();
    await output.close();
  }
  if (lines === 0) throw new UsageError(`--batch: expected prompts in ${input === '-' ? 'stdin' : input}, got none`);
  const { failed } = output;
  if (!quiet) {
    const had = before > 0 ? `, ${before} of them from before` : '';
    const where = out === undefined ? '' : ` in ${out}`;
    printMessage(
      `${output.size - failed} completions${where}${had}${failed > 0 ? `; ${failed} line${failed === 1 ? '' : 's'} failed, and say${failed === 1 ? 's' : ''} why` : ''}`,
    );
  }
  if (failed > 0) process.exitCode = 1;
}
