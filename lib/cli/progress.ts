// Progress bars on stderr.
import { SingleBar } from 'cli-progress';
import { oneLine } from './output';

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
