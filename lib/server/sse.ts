// A stream of server-sent events whose reader may be slow.

const KEEP_ALIVE_MS = 15_000;
const STALL_MS = 60_000;

/**
 * Events wait in it until the reader takes them, so that a slow one holds up nobody; one that takes nothing for a
 * minute is left.
 */
export class EventStream {
  readonly body: ReadableStream<Uint8Array>;
  #waiting: string[] = [];
  #isClosed = false;
  #wake: (() => void) | null = null;
  #stalled: NodeJS.Timeout | null = null;
  readonly #keepAlive: NodeJS.Timeout;
  readonly #leave: () => void;

  /** @param leave called where the reader has gone, or takes nothing */
  constructor(leave: () => void) {
    const encoder = new TextEncoder();
    this.#leave = leave;
    this.#keepAlive = setInterval(() => this.#push(': keep-alive\n\n'), KEEP_ALIVE_MS);
    this.#keepAlive.unref();
    this.body = new ReadableStream<Uint8Array>({
      pull: async (controller) => {
        this.#watch(false);
        while (this.#waiting.length === 0 && !this.#isClosed)
          await new Promise<void>((resolve) => {
            this.#wake = resolve;
          });
        if (this.#waiting.length === 0) return controller.close();
        const chunk = encoder.encode(this.#waiting.join(''));
        this.#waiting = [];
        controller.enqueue(chunk);
        this.#watch(true);
      },
      cancel: () => {
        this.close();
        leave();
      },
    });
  }

  /** Sends a JSON value, or the text that ends a stream. @param event its name */
  send(data: unknown, event?: string): void {
    this.#push(
      `${event === undefined ? '' : `event: ${event}\n`}data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`,
    );
  }

  /** Nothing follows. */
  close(): void {
    this.#isClosed = true;
    clearInterval(this.#keepAlive);
    this.#wake?.();
  }

  #push(text: string): void {
    if (this.#isClosed) return;
    this.#waiting.push(text);
    this.#wake?.();
  }

  #watch(isOn: boolean): void {
    if (this.#stalled) clearTimeout(this.#stalled);
    this.#stalled = isOn && !this.#isClosed ? setTimeout(this.#leave, STALL_MS) : null;
    this.#stalled?.unref();
  }
}
