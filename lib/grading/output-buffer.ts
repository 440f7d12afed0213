// What a program writes, up to a limit.

/** What a program wrote. */
export interface ProgramOutput {
  stdout: string;
  /** Whether some of `stdout` was dropped. */
  truncated: boolean;
  /** The last 2000 characters. */
  stderr: string;
}

const FIRST_SIZE = 4096;

/** Keeps the beginning of what is written, and drops the rest. */
export class OutputBuffer {
  readonly #limit: number;
  #bytes: Buffer = Buffer.alloc(0);
  #size = 0;
  #truncated = false;

  /** @param limit bytes that are kept */
  constructor(limit: number) {
    this.#limit = limit;
  }

  /** Whether something was dropped. */
  get truncated(): boolean {
    return this.#truncated;
  }

  /** Copies what there is room for. */
  add(bytes: Uint8Array): void {
    const kept = Math.min(bytes.length, this.#limit - this.#size);
    if (kept < bytes.length) this.#truncated = true;
    if (kept === 0) return;
    if (this.#size + kept > this.#bytes.length) {
      const larger = Buffer.alloc(
        Math.min(this.#limit, Math.max(FIRST_SIZE, 2 * this.#bytes.length, this.#size + kept)),
      );
      this.#bytes.copy(larger, 0, 0, this.#size);
      this.#bytes = larger;
    }
    this.#bytes.set(bytes.subarray(0, kept), this.#size);
    this.#size += kept;
  }

  /** As UTF-8. */
  text(): string {
    return this.#bytes.toString('utf8', 0, this.#size);
  }
}

const TAIL = 2000;

/** Keeps the end of what is written. */
export class OutputTail {
  #bytes: Buffer = Buffer.alloc(0);

  /** Copies the last bytes. */
  add(bytes: Uint8Array): void {
    this.#bytes = Buffer.concat([this.#bytes, bytes.subarray(-4 * TAIL)]).subarray(-4 * TAIL);
  }

  /** The last 2000 characters, as UTF-8. */
  text(): string {
    return this.#bytes.toString('utf8').slice(-TAIL);
  }
}
