// A conversation in the terminal or through a pipe: what lines mean, and what is said to them.
import { existsSync } from 'node:fs';
import { rename, writeFile } from 'node:fs/promises';
import type { ChatMessage, ChatSession, GenerateOptions, GenerateResult, MaskedDiffusionModel } from '../index';
import { interruptSignal, UsageError } from './errors';
import { readTextFile } from './input';
import { printLine, printMessage, printPiece } from './output';
import { drawsSeed, PassStatus, summary } from './result';

/** What a line that begins with a slash does, and how it is written in /help. */
const COMMANDS: readonly (readonly [form: string, text: string])[] = [
  ['/reset', 'forget all messages but the system message'],
  ['/system [TEXT]', 'show or set the system message, for the answers to come'],
  ['/save FILE', 'write the messages as JSON'],
  ['/load FILE', 'go on with messages that were saved'],
  ['/stats', 'tokens and speed'],
  ['/help', 'this list'],
  ['/exit', 'leave, as Ctrl-D does'],
];

/** The words that begin commands. */
export const COMMAND_WORDS: readonly string[] = COMMANDS.map(([form]) => form.split(' ')[0]);

/** Messages of a file: a chat that was saved, or a list alone. @throws UsageError where it holds none */
export async function readChat(file: string): Promise<ChatMessage[]> {
  let content: unknown;
  try {
    content = JSON.parse(await readTextFile(file));
  } catch (error) {
    interruptSignal.throwIfAborted();
    throw new UsageError(`expected a saved chat: ${(error as Error).message}`);
  }
  const messages = Array.isArray(content) ? content : (content as { messages?: unknown } | null)?.messages;
  if (!Array.isArray(messages)) throw new UsageError(`${file}: expected { "messages": [ … ] }, as /save writes it`);
  return messages;
}

/** A chat with a model, line by line. */
export class Conversation {
  readonly #model: MaskedDiffusionModel;
  #session: ChatSession;
  readonly #options: GenerateOptions;
  readonly #quiet: boolean;
  #stop: AbortController | null = null;
  #last: GenerateResult | null = null;
  #answers = 0;
  #tokens = 0;
  #seconds = 0;

  constructor(model: MaskedDiffusionModel, session: ChatSession, options: GenerateOptions, quiet: boolean) {
    this.#model = model;
    this.#session = session;
    this.#options = options;
    this.#quiet = quiet;
  }

  /** Whether a message is being answered. */
  get isAnswering(): boolean {
    return this.#stop !== null;
  }

  /** Stops the answer. @returns whether there was one that was not stopped yet */
  stop(): boolean {
    if (!this.#stop || this.#stop.signal.aborted) return false;
    this.#stop.abort();
    return true;
  }

  /** Does what a line says. @returns false where it ends the conversation @throws UsageError for a wrong command */
  async take(line: string): Promise<boolean> {
    if (line.trim() === '') return true;
    // Two slashes are a message that begins with one.
    if (line.startsWith('//')) await this.#answer(line.slice(1));
    else if (line.startsWith('/')) return this.#command(line);
    else await this.#answer(line);
    return true;
  }

  async #answer(text: string): Promise<void> {
    const stop = new AbortController();
    this.#stop = stop;
    const options = { ...this.#options, signal: AbortSignal.any([stop.signal, interruptSignal]) };
    const status = this.#quiet ? null : new PassStatus();
    let shown = '';
    try {
      for await (const event of this.#session.sendStream(text, options)) {
        if (event.delta !== '') status?.clear();
        // The line of the status is the text's from then on.
        else if (shown === '') status?.update(event);
        printPiece(event.delta);
        shown += event.delta;
        if (event.answer) this.#finish(event.answer.result, event.answer.dropped);
      }
    } catch (error) {
      status?.clear();
      if (shown !== '') printPiece('\n');
      if (!stop.signal.aborted || interruptSignal.aborted) throw error;
      printMessage('stopped: the chat is as it was before the message');
    } finally {
      status?.clear();
      this.#stop = null;
    }
  }

  #finish(result: GenerateResult, dropped: number): void {
    printPiece('\n');
    this.#last = result;
    this.#answers++;
    this.#tokens += result.tokens;
    this.#seconds += result.seconds;
    if (this.#quiet) return;
    if (result.finishReason === 'length') printMessage(`(cut at ${result.tokens} tokens; --max-tokens sets how many)`);
    if (dropped > 0) printMessage(`(the oldest ${dropped} messages do not fit any more; the model did not see them)`);
  }

  async #command(line: string): Promise<boolean> {
    const [, word, rest = ''] = /^(\/\S*)(?:\s+(.*))?$/s.exec(line.trim())!;
    if (word === '/exit' || word === '/quit') return false;
    if (word === '/help') {
      const width = Math.max(...COMMANDS.map(([form]) => form.length));
      for (const [form, text] of COMMANDS) printLine(`${form.padEnd(width)}  ${text}`);
      printLine('Two slashes begin a message with one. Ctrl-C stops an answer, twice leaves.');
    } else if (word === '/stats') this.#printStats();
    else if (!COMMAND_WORDS.includes(word))
      throw new UsageError(`unknown command ${word}; /help lists them, and // begins a message with a slash`);
    else await this.#sessionCommand(word, rest);
    return true;
  }

  async #sessionCommand(word: string, rest: string): Promise<void> {
    if (word === '/reset') this.#session.reset();
    else if (word === '/system') this.#setSystem(rest);
    else if (rest === '') throw new UsageError(`${word}: expected a file, as in ${word} chat.json`);
    else if (word === '/save') {
      // What is no chat was not written here.
      if (existsSync(rest)) await readChat(rest);
      const temporary = `${rest}.${process.pid}.tmp`;
      await writeFile(temporary, `${JSON.stringify(this.#session, null, 2)}\n`);
      await rename(temporary, rest);
      this.#say(`saved ${this.#session.messages.length} messages to ${rest}`);
    } else {
      this.#session = this.#model.chat({ messages: await readChat(rest) });
      this.#say(`going on with ${this.#session.messages.length} messages of ${rest}`);
    }
  }

  #setSystem(text: string): void {
    const { messages } = this.#session;
    const [first] = messages;
    const hasSystem = first?.role === 'system';
    if (text === '') printLine(hasSystem ? first.content : '(no system message)');
    else this.#session = this.#model.chat({ system: text, messages: hasSystem ? messages.slice(1) : messages });
  }

  #printStats(): void {
    const last = this.#last;
    if (!last) {
      printLine('no answers yet');
      return;
    }
    const { maxSequenceLength } = this.#model.config;
    printLine(`last answer: ${summary(last, drawsSeed(this.#options))}`);
    printLine(`context: ${last.usage.totalTokens} of ${maxSequenceLength} tokens`);
    const speed = this.#seconds > 0 ? ` (${(this.#tokens / this.#seconds).toFixed(1)} tokens/s)` : '';
    printLine(
      `in all: ${this.#answers} answer${this.#answers === 1 ? '' : 's'}, ${this.#tokens} tokens in ${this.#seconds.toFixed(2)} s${speed}`,
    );
  }

  #say(text: string): void {
    if (!this.#quiet) printMessage(text);
  }
}
