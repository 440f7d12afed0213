// Texts as ids, long ones in a thread of their own: a megabyte takes seconds.
import { Worker } from 'node:worker_threads';
import { DUltraError, type ErrorCode, optionError } from '../errors';
import { encodePrompt } from '../model/prompt';
import { TextTooLong } from '../model/tokenizer';
import { packageFile } from '../package';
import { reasonOf } from '../text';
import type { PlainPrompt } from '../types';
import { type TemplateVocabulary, templateIds } from './template';

/** Characters that take some milliseconds; what is longer goes to the thread. */
const MOST_HERE = 8192;
/** Calls that may wait for the thread. */
const MOST_WAITING = 64;
/** After so long without work the thread ends, and its tokenizer with it. */
const IDLE_MS = 60_000;

/** A text that is to become ids. Special tokens in it are text, except in a template. */
export type Text = { prompt: PlainPrompt; isPart?: boolean | undefined } | { template: string };

/** What the thread is told at its start: where the tokenizer's files are, and the model's numbers. */
export interface ThreadSetup {
  source: string;
  config: TemplateVocabulary['config'];
}

/** A failure on its way between threads. */
type Failure =
  | { kind: 'long'; tokens: number }
  | { kind: 'option'; isType: boolean; option: string; text: string }
  | { kind: 'error'; code: ErrorCode; message: string };

/** What the thread answers. */
export type ThreadReply = { ids: Int32Array[] } | { failure: Failure };

const config = ({ config: { embeddingSize, maskTokenId, maxSequenceLength } }: TemplateVocabulary) => ({
  embeddingSize,
  maskTokenId,
  maxSequenceLength,
});

/** Ids of a text. @throws TextTooLong where it surely has more tokens than the model takes; as `encodePrompt` */
export function idsOfText(vocabulary: TemplateVocabulary, text: Text): Int32Array {
  const atMost = vocabulary.config.maxSequenceLength;
  if ('template' in text) return templateIds(vocabulary, text.template, atMost);
  return encodePrompt(text.prompt, vocabulary, { splitSpecialTokens: true, isPart: text.isPart, atMost });
}

/** What an error says, for another thread. */
export function failureOf(error: unknown): Failure {
  if (error instanceof TextTooLong) return { kind: 'long', tokens: error.tokens };
  const { code, option } = error as { code?: ErrorCode; option?: string };
  const message = reasonOf(error);
  if (option !== undefined && !(error instanceof DUltraError))
    return { kind: 'option', isType: error instanceof TypeError, option, text: message.slice(option.length + 2) };
  return { kind: 'error', code: error instanceof DUltraError ? code! : 'INTERNAL', message };
}

function errorOf(failure: Failure): Error {
  if (failure.kind === 'long') return new TextTooLong(failure.tokens);
  if (failure.kind === 'option')
    return optionError(failure.isType ? TypeError : RangeError, failure.option, failure.text);
  return new DUltraError(failure.code, failure.message);
}

/** Characters of a text. */
function lengthOf(text: Text): number {
  if ('template' in text) return text.template.length;
  const { prompt } = text;
  if (typeof prompt === 'string') return prompt.length;
  return Array.isArray(prompt) ? prompt.reduce((sum, { role, content }) => sum + role.length + content.length, 0) : 0;
}

interface Task {
  texts: readonly Text[];
  resolve: (ids: Int32Array[]) => void;
  reject: (error: unknown) => void;
}

/** Encodes a model's texts so that none holds up the event loop. */
export class Encoding {
  readonly #vocabulary: TemplateVocabulary;
  #worker: Worker | null = null;
  /** Those that wait, and the one that the thread has. */
  #waiting: Task[] = [];
  #current: Task | null = null;
  #idle: NodeJS.Timeout | undefined;

  constructor(vocabulary: TemplateVocabulary) {
    this.#vocabulary = vocabulary;
  }

  /**
   * Ids of each text. @throws as {@link idsOfText}; DUltraError OVERLOADED where too many long ones wait;
   * `signal.reason`
   */
  async encode(texts: readonly Text[], signal?: AbortSignal): Promise<Int32Array[]> {
    const isShort = texts.reduce((sum, text) => sum + lengthOf(text), 0) <= MOST_HERE;
    if (isShort || !this.#vocabulary.tokenizer) return texts.map((text) => idsOfText(this.#vocabulary, text));
    signal?.throwIfAborted();
    if (this.#waiting.length >= MOST_WAITING)
      throw new DUltraError('OVERLOADED', `${MOST_WAITING} long texts wait to become tokens`);
    return new Promise((resolve, reject) => {
      const leave = () => {
        this.#waiting = this.#waiting.filter((other) => other !== task);
        reject(signal!.reason);
      };
      signal?.addEventListener('abort', leave, { once: true });
      const settled = () => signal?.removeEventListener('abort', leave);
      const task: Task = {
        texts,
        resolve(ids) {
          settled();
          resolve(ids);
        },
        reject(error) {
          settled();
          reject(error);
        },
      };
      this.#waiting.push(task);
      this.#next();
    });
  }

  /** Ends the thread. Texts that wait are refused. */
  close(): void {
    this.#end(new DUltraError('DISPOSED', 'this model has been disposed'));
  }

  #next(): void {
    if (this.#current) return;
    clearTimeout(this.#idle);
    const task = this.#waiting.shift();
    if (!task) {
      this.#worker?.unref();
      this.#idle = setTimeout(() => this.#end(null), IDLE_MS).unref();
      return;
    }
    this.#current = task;
    this.#worker ??= this.#start();
    this.#worker.ref();
    this.#worker.postMessage(task.texts);
  }

  #start(): Worker {
    const { source } = this.#vocabulary;
    const setup: ThreadSetup = { source, config: config(this.#vocabulary) };
    // The compiled one also in tests, which run the sources.
    const worker = new Worker(packageFile('dist', 'generation', 'encoding-worker.js'), { workerData: setup });
    worker.on('message', (reply: ThreadReply) => {
      const task = this.#current;
      this.#current = null;
      if ('ids' in reply) task?.resolve(reply.ids);
      else task?.reject(errorOf(reply.failure));
      this.#next();
    });
    worker.on('error', (error) => {
      if (worker === this.#worker)
        this.#end(new DUltraError('INTERNAL', `the thread that encodes texts failed: ${reasonOf(error)}`));
    });
    return worker;
  }

  #end(error: Error | null): void {
    clearTimeout(this.#idle);
    void this.#worker?.terminate();
    this.#worker = null;
    const tasks = [...(this.#current ? [this.#current] : []), ...this.#waiting];
    this.#current = null;
    this.#waiting = [];
    for (const task of tasks) task.reject(error);
  }
}
