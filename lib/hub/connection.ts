// Requests to a hub: through the environment's proxies, with its token, and with limits on how long it may be silent.
import type { Dispatcher } from 'undici';
import { type Login, readLogin, readProxies, type Timeout, timeoutOf } from './environment';

/** Upper bound of Retry-After. */
const MAX_RETRY_AFTER_MS = 60_000;

/** An HTTP status other than success. */
export class HttpError extends Error {
  constructor(
    readonly status: number,
    /** Retry-After of the response; 0: none. */
    readonly retryAfterMs: number,
    /** What the hub calls the failure, such as "GatedRepo"; empty: it does not say. */
    readonly reason: string,
  ) {
    super(`HTTP ${status}`);
  }
}

/** Milliseconds of a Retry-After header; 0 if there is none, or if it is a date. */
function retryAfter(header: string | null): number {
  const seconds = header === null || !/^\d+$/.test(header) ? 0 : Number(header);
  return Math.min(MAX_RETRY_AFTER_MS, seconds * 1000);
}

/** How a hub is reached. */
export interface Connection {
  readonly login: Login;
  /** The proxies that are set, without passwords; empty: none. */
  readonly proxies: string;
  /**
   * `fetch` for questions about a repository: with the token where the hub's own origin is asked, and the whole answer
   * in memory. @throws HttpError for any status but success
   */
  readonly ask: typeof fetch;
  /** Opens a file. @throws HttpError for any status but success */
  open(url: string, headers: Record<string, string>): Promise<Download>;
  /** Closes all sockets. */
  close(): void;
}

/** A file that arrives. */
export interface Download {
  status: number;
  headers: Headers;
  /** Its bytes in order; leaving the loop ends the request. */
  chunks: AsyncIterable<Uint8Array>;
  /** Ends a request whose bytes are not wanted. */
  end(): void;
}

/** Ends a request whose server sends nothing for longer than a limit. */
class Silence {
  readonly #controller = new AbortController();
  /** Aborted by the caller, or by the limit. */
  readonly signal: AbortSignal;

  constructor(
    private readonly limit: Timeout,
    signal: AbortSignal | undefined,
  ) {
    this.signal = signal ? AbortSignal.any([signal, this.#controller.signal]) : this.#controller.signal;
  }

  /** Waits for what the server sends next. */
  async wait<T>(next: Promise<T>): Promise<T> {
    const { seconds, variable } = this.limit;
    const timer = setTimeout(() => {
      this.#controller.abort(new Error(`the server sent nothing for ${seconds} s (${variable} sets this limit)`));
    }, seconds * 1000);
    try {
      return await next;
    } catch (error) {
      // Bodies end with an error of their own.
      throw this.#controller.signal.aborted ? this.#controller.signal.reason : error;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Ends the request. */
  end(): void {
    this.#controller.abort();
  }
}

/**
 * Opens a connection to the hub at `hubUrl`. undici drops the token when a redirect leaves the origin.
 * @throws DUltraError DOWNLOAD_FAILED for an environment that is wrong
 */
export function connect(hubUrl: string, signal: AbortSignal | undefined): Connection {
  const { origin } = new URL(hubUrl);
  const login = readLogin();
  const { http, https, none, description } = readProxies();
  const limits = { ask: timeoutOf('HF_HUB_ETAG_TIMEOUT'), open: timeoutOf('HF_HUB_DOWNLOAD_TIMEOUT') };
  // Loaded here, since most runs need no network. Node's own fetch takes proxies from Node 24 on, and only if asked.
  const { EnvHttpProxyAgent, fetch: send } = require('undici') as typeof import('undici');
  const dispatcher: Dispatcher = new EnvHttpProxyAgent({
    httpProxy: http ?? '',
    httpsProxy: https ?? '',
    noProxy: none,
    // Proxies forward plain HTTP, and many tunnel to port 443 only.
    proxyTunnel: false,
    // Silence is measured here, since not all ways through a proxy keep to these limits.
    headersTimeout: 0,
    bodyTimeout: 0,
    connect: { timeout: 0 },
  });

  async function request(input: unknown, init: RequestInit, limit: Timeout) {
    const silence = new Silence(limit, signal);
    const url = String(input);
    const headers = new Headers(init.headers);
    if (login.token && new URL(url).origin === origin) headers.set('Authorization', `Bearer ${login.token}`);
    const sent = send(url, { ...(init as object), headers: [...headers], signal: silence.signal, dispatcher });
    const response = await silence.wait(sent);
    if (!response.ok) {
      const said = response.headers;
      silence.end();
      throw new HttpError(response.status, retryAfter(said.get('retry-after')), said.get('x-error-code') ?? '');
    }
    return { response, silence };
  }

  async function* chunksOf({ response, silence }: Awaited<ReturnType<typeof request>>) {
    const reader = response.body?.getReader();
    try {
      while (reader) {
        const { done, value } = await silence.wait(reader.read());
        if (done) return;
        yield value as Uint8Array;
      }
    } finally {
      silence.end();
    }
  }

  return {
    login,
    proxies: description,
    ask: async (input, init = {}) => {
      const asked = await request(input, init, limits.ask);
      const parts: Uint8Array[] = [];
      for await (const chunk of chunksOf(asked)) parts.push(chunk);
      const { status, headers } = asked.response;
      return new Response(Buffer.concat(parts), { status, headers: [...headers] });
    },
    open: async (url, headers) => {
      const opened = await request(url, { headers }, limits.open);
      const { status, headers: said } = opened.response;
      return { status, headers: said as Headers, chunks: chunksOf(opened), end: () => opened.silence.end() };
    },
    close: () => {
      // Nobody waits for sockets to end.
      dispatcher.destroy().catch(() => {});
    },
  };
}
