// Input line by line: from a pipe or a file, and from a terminal.
import { createInterface, type Interface } from 'node:readline';
import { addAbortSignal, type Readable, Writable } from 'node:stream';
import { decodeText } from '../index';
import { interruptSignal } from './errors';

/** Bytes of a line: far more than the longest row of any model. */
const MAX_LINE_BYTES = 8 * 2 ** 20;

/** A line, from 1, without its end; or why it is none. */
export type Line = { number: number; text: string } | { number: number; error: string };

function decode(bytes: Buffer, name: string, number: number): Line {
  try {
    return { number, text: decodeText(bytes, name, number).replace(/\r$/, '') };
  } catch (error) {
    return { number, error: (error as Error).message };
  }
}

/**
 * The lines of a stream. One that is too long, or no text, is told of and left out: the others are read.
 * @param name for messages
 */
export async function* readLines(stream: Readable, name: string): AsyncGenerator<Line, void, void> {
  let parts: Buffer[] = [];
  let length = 0;
  let number = 1;
  const take = (part: Buffer) => {
    length += part.length;
    if (length <= MAX_LINE_BYTES) parts.push(part);
    else parts = [];
  };
  const end = (): Line => {
    const line: Line =
      length > MAX_LINE_BYTES
        ? { number, error: `${name}, line ${number}: expected at most ${MAX_LINE_BYTES >> 20} MiB, got more` }
        : decode(Buffer.concat(parts), name, number);
    parts = [];
    length = 0;
    number++;
    return line;
  };
  try {
    for await (const chunk of addAbortSignal(interruptSignal, stream) as AsyncIterable<Buffer>) {
      let begin = 0;
      for (let at = chunk.indexOf(10); at >= 0; at = chunk.indexOf(10, begin)) {
        take(chunk.subarray(begin, at));
        yield end();
        begin = at + 1;
      }
      take(chunk.subarray(begin));
    }
  } catch (error) {
    interruptSignal.throwIfAborted();
    throw error;
  }
  if (length > 0) yield end();
}

/** A terminal of which what is written can be held back, as the echo of keys while something else is shown. */
class Muffled extends Writable {
  readonly isTTY = true;
  muted = false;

  constructor(readonly terminal: NodeJS.WriteStream) {
    super({ decodeStrings: false });
    terminal.on('resize', () => this.emit('resize'));
  }

  get columns(): number {
    return this.terminal.columns;
  }

  get rows(): number {
    return this.terminal.rows;
  }

  override _write(chunk: string, _encoding: BufferEncoding, done: () => void): void {
    if (!this.muted) this.terminal.write(chunk);
    done();
  }
}

/** Lines that somebody types, with their history; what is typed meanwhile waits. */
export class TerminalLines {
  readonly #reader: Interface;
  readonly #output: Muffled;
  readonly #prompt: string;
  #waiting: string[] = [];
  #isClosed = false;
  #wake: (() => void) | null = null;

  /**
   * @param words that the tab key completes
   * @param onInterrupt Ctrl-C was pressed; `wasTyping`: it took back a line that had begun
   */
  constructor(
    input: NodeJS.ReadStream,
    output: NodeJS.WriteStream,
    {
      prompt,
      words,
      onInterrupt,
    }: { prompt: string; words: readonly string[]; onInterrupt: (wasTyping: boolean) => void },
  ) {
    this.#output = new Muffled(output);
    this.#prompt = prompt;
    this.#reader = createInterface({
      input,
      output: this.#output,
      terminal: true,
      prompt,
      completer: (line: string) => [line === '' ? [] : words.filter((word) => word.startsWith(line)), line],
    });
    this.#reader.on('line', (line) => {
      this.#waiting.push(line);
      this.#wake?.();
    });
    this.#reader.on('close', () => {
      this.#isClosed = true;
      this.#wake?.();
    });
    this.#reader.on('SIGINT', () => {
      const wasTyping = this.#reader.line !== '';
      // Ctrl-U: takes the line back.
      if (wasTyping) {
        this.#reader.write(null, { ctrl: true, name: 'e' });
        this.#reader.write(null, { ctrl: true, name: 'u' });
      }
      onInterrupt(wasTyping);
    });
  }

  /** The next line; null: there will be none. */
  async next(): Promise<string | null> {
    this.#output.muted = false;
    const typed = this.#waiting.shift();
    if (typed !== undefined) {
      // It was not shown when it was typed.
      this.#output.terminal.write(`${this.#prompt}${typed}\n`);
      this.#output.muted = true;
      return typed;
    }
    if (this.#isClosed) return null;
    this.#reader.prompt(true);
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    this.#wake = null;
    const line = this.#waiting.shift();
    if (line === undefined) this.#output.terminal.write('\n');
    this.#output.muted = true;
    return line ?? null;
  }

  /** Shows the prompt again, below a message. */
  redraw(): void {
    if (!this.#output.muted) this.#reader.prompt(true);
  }

  close(): void {
    this.#reader.close();
  }
}
