// Messages from one process of a job to another: what need not wait for all of them.
import { deserialize, serialize } from 'node:v8';
import { native } from '../native';

/** Milliseconds between two looks for messages: little beside what is scored between two of them. */
const POLL_MS = 1;

/** Milliseconds in which the last messages have left; a process that takes none any more has failed. */
const FLUSH_MS = 5000;

const pause = () => new Promise((resolve) => setTimeout(resolve, POLL_MS));

/**
 * Sends and takes messages beside all else that a process does; nothing waits for a message that nobody has asked for.
 * Values are those of structured clones, typed arrays included, bit for bit. One of them at a time in a process.
 */
export class Mailbox {
  readonly #onMessage: (from: number, message: unknown) => void;
  readonly #onFailure: (error: unknown) => void;
  #isPolling = false;
  #isOpen = true;
  #unsent = 0;
  /** Whether messages are to come. */
  #awaits: () => boolean;

  /**
   * @param awaits whether messages are to come; where none are, it looks for none
   * @param onMessage takes a message and its sender's rank among all processes of the job
   * @param onFailure is told that messages cannot come any more
   */
  constructor(
    awaits: () => boolean,
    onMessage: (from: number, message: unknown) => void,
    onFailure: (error: unknown) => void,
  ) {
    this.#awaits = awaits;
    this.#onMessage = onMessage;
    this.#onFailure = onFailure;
  }

  /** Sends a message. @param to rank among all processes of the job */
  send(to: number, message: unknown): void {
    native().post(to, serialize(message));
    this.#unsent++;
    void this.poll();
  }

  /** Looks for messages as long as any are to come or to leave. */
  async poll(): Promise<void> {
    if (this.#isPolling) return;
    this.#isPolling = true;
    try {
      while (this.#isOpen && (this.#unsent > 0 || this.#awaits())) {
        const { from, bytes, unsent } = native().poll();
        this.#unsent = unsent;
        if (from >= 0) this.#onMessage(from, deserialize(bytes));
        else await pause();
      }
    } catch (error) {
      this.#onFailure(error);
    } finally {
      this.#isPolling = false;
    }
  }

  /** Takes no more messages; resolves when those that were sent have left. */
  async close(): Promise<void> {
    const end = performance.now() + FLUSH_MS;
    while (this.#isPolling && this.#unsent > 0 && performance.now() < end) await pause();
    this.#isOpen = false;
  }
}
