// Progress on stderr: bars, and a line that says how far it is.
import { SingleBar } from 'cli-progress';
import { colorsFor, oneLine, setStatus } from './output';

/** A bar that appears with its first update. */
export class ProgressBar {
  readonly #format: string;
  readonly #size: number;
  #bar: SingleBar | null = null;

  /** @param format as cli-progress takes it: {bar}, {value}, {total}, {eta_formatted}, and keys of the details */
  constructor(format: string, size = 24) {
    this.#format = format;
    this.#size = size;
  }

  /** @param begin where the work of this process began: the remaining time is estimated from there */
  update(value: number, total: number, details: Readonly<Record<string, string>>, begin = value): void {
    const shown = Object.fromEntries(Object.entries(details).map(([name, text]) => [name, oneLine(text)]));
    if (!this.#bar) {
      this.#bar = new SingleBar({
        stream: process.stderr,
        format: this.#format,
        barsize: this.#size,
        hideCursor: true,
        etaBuffer: 50,
        // Its own handler of SIGINT would replace that of the command line.
        gracefulExit: false,
      });
      this.#bar.start(total, begin, shown);
    }
    this.#bar.update(value, shown);
  }

  /** Ends the bar; the next update begins another. */
  stop(): void {
    this.#bar?.stop();
    this.#bar = null;
  }
}

const FIRST_MS = 300;
const INTERVAL_MS = 100;

/** A line of a terminal that is written over while something goes on, and is gone at the end; elsewhere nothing. */
export class StatusLine {
  readonly #stream: NodeJS.WriteStream | null;
  #text = '';
  #isShown = false;
  #timer: NodeJS.Timeout | null = null;

  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream.isTTY && process.env.TERM !== 'dumb' ? stream : null;
  }

  /** Shows a text, not at once: what is over in a moment does not flicker. */
  update(text: string): void {
    this.#text = text;
    if (this.#stream) this.#timer ??= setTimeout(() => this.#draw(), this.#isShown ? INTERVAL_MS : FIRST_MS).unref();
  }

  /** Removes the line; a later update shows it again. */
  clear(): void {
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#isShown) {
      this.#stream?.write('\r\x1b[K');
      setStatus(null);
    }
    this.#isShown = false;
  }

  #draw(): void {
    this.#timer = null;
    this.#isShown = true;
    setStatus(() => this.clear());
    const stream = this.#stream!;
    const text = oneLine(this.#text).slice(0, Math.max(1, (stream.columns || 80) - 1));
    stream.write(`\r\x1b[K${colorsFor(stream).dim(text)}`);
  }
}
