// The routes of a server, what guards them, and what they leave behind: metrics and a line of log for each request.
import { createHash, randomUUID, timingSafeEqual } from 'node:crypto';
import { type Context, Hono } from 'hono';
import { bodyLimit } from 'hono/body-limit';
import { basePath } from 'hono/route';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { reasonOf } from '../text';
import { chatCall, completionCall } from './completions';
import { type DecisionCall, decisionsCall, systemOneCall } from './decisions';
import { ApiError, apiErrorOf, systemOneError, unloadable } from './errors';
import { readJson } from './json';
import { Metrics } from './metrics';
import { Models, type ServedModel } from './models';
import { PLAYGROUND, playgroundFile } from './playground';
import { responseCall } from './responses';
import { answer, type Call, type Served } from './routes';

/** What a server offers, and to whom. */
export interface ServerOptions {
  /** Models by name, loaded or loaded on their first request; the first is the default one. */
  models: Readonly<Record<string, ServedModel>>;
  /**
   * Bytes of the weights of models that are loaded on request: those that were asked for longest ago are put out, and
   * loaded again when they are asked for; never one with a request under way. Default: as much as there is.
   */
  maxModelBytes?: number | undefined;
  /** Whether GET / is a page to try models on. Default true. */
  playground?: boolean | undefined;
  /** Keys, one of which requests bring as "Authorization: Bearer KEY". Default: none is asked for. */
  apiKeys?: readonly string[] | undefined;
  /** Names of hosts that requests may be for; null: any. Default: localhost and its addresses. */
  hosts?: readonly string[] | null | undefined;
  /** Origins of web pages that may ask, or "*". Default: none but the server's own. */
  cors?: readonly string[] | undefined;
  /** Most bytes of a body. Default 1 MiB. */
  maxBodyBytes?: number | undefined;
  /** Called with what a line of the log says of a request. Default: nothing is logged. */
  log?: ((entry: LogEntry) => void) | undefined;
}

/** What is logged of a request: never a text. */
export interface LogEntry {
  id: string;
  route: string;
  /** 499: the client left. */
  status: number;
  ms: number;
  model?: string | undefined;
  /** Options of `generate` that give the same answer to the same prompt. */
  settings?: Record<string, unknown> | undefined;
  usage?: object | undefined;
  finish?: string[] | undefined;
  /** Forward passes of each choice: `maxNfe` of one that a deadline finished. */
  passes?: number[] | undefined;
  error?: string | undefined;
  /** What failed in the server itself, which the client is not told. */
  reason?: string | undefined;
}

const LOCAL = ['localhost', '127.0.0.1', '[::1]'];
const SYSTEM_ONE = ['/v1/systemone', '/api/systemone'];
const POSTS: Readonly<Record<string, (value: unknown) => Call | DecisionCall>> = {
  '/v1/chat/completions': chatCall,
  '/v1/completions': completionCall,
  '/v1/fim/completions': completionCall,
  '/v1/responses': responseCall,
  '/v1/decisions': decisionsCall,
  ...Object.fromEntries(SYSTEM_ONE.map((route) => [route, systemOneCall])),
};
const GETS = ['/health', '/metrics', '/v1/models', '/v1/models/:id'];

const PAGE_HEADERS = {
  'content-security-policy':
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:",
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
};

/** What a request carries through its handlers. */
interface Env {
  Variables: { id: string; path: string };
}

/** The path inside the server, whose routes may be those of another application under a path of its own. */
function pathOf(c: Context): string {
  const base = basePath(c);
  return base === '/' ? c.req.path : c.req.path.slice(base.length) || '/';
}

const hash = (text: string) => createHash('sha256').update(text).digest();

/** A server without a port: `fetch` answers requests, also inside another application. */
export class Server {
  readonly app = new Hono<Env>();
  readonly #options: ServerOptions;
  readonly #models: Models;
  readonly #metrics: Metrics;
  readonly #keys: Buffer[];
  #active = 0;
  #isDraining = false;
  readonly #closing = new AbortController();
  #whenIdle: (() => void) | null = null;

  constructor(options: ServerOptions) {
    if (Object.keys(options.models).length === 0) throw new RangeError('models: expected at least one, got none');
    this.#options = options;
    this.#models = new Models(options.models, options.maxModelBytes);
    this.#metrics = new Metrics(this.#models);
    this.#keys = (options.apiKeys ?? []).map(hash);
    this.#addRoutes();
  }

  /** Answers a request, as Fetch has it. */
  fetch = (request: Request): Response | Promise<Response> => this.app.fetch(request);

  /**
   * Refuses requests from now on, and waits for those under way; what is not done after `ms` is ended with an error.
   * @returns whether all were done in time
   */
  async drain(ms: number): Promise<boolean> {
    this.#isDraining = true;
    if (this.#active === 0) return true;
    const idle = new Promise<true>((resolve) => {
      this.#whenIdle = () => resolve(true);
    });
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<false>((resolve) => {
      timer = setTimeout(() => resolve(false), ms);
    });
    const inTime = await Promise.race([idle, late]);
    clearTimeout(timer);
    if (inTime) return true;
    this.#closing.abort(
      new ApiError(503, 'shutting_down', 'the server is shutting down', null, { 'retry-after': '5' }),
    );
    await idle;
    return false;
  }

  /** Loads a model now. @throws what loading it throws; ApiError for a name that there is not */
  async load(name: string): Promise<void> {
    (await this.#models.lease(this.#models.nameOf(name))).release();
  }

  /** Frees the models that were loaded on request. After `drain`. */
  dispose(): void {
    this.#models.dispose();
  }

  #addRoutes(): void {
    const { app } = this;
    const { maxBodyBytes = 2 ** 20 } = this.#options;
    app.use(async (c, next) => {
      // Set before there is a response: one that is made later has them without being copied.
      const id = randomUUID();
      c.set('id', id);
      c.set('path', pathOf(c));
      c.header('x-request-id', id);
      this.#cors(c);
      if (c.req.method === 'OPTIONS' && c.req.header('access-control-request-method')) return c.body(null, 204);
      return next();
    });
    app.use(async (c, next) => {
      this.#guard(c);
      await next();
    });
    app.get('/health', (c) => (this.#isDraining ? c.json({ status: 'shutting down' }, 503) : c.json({ status: 'ok' })));
    if (this.#options.playground !== false)
      for (const [path, file] of Object.entries(PLAYGROUND))
        app.get(path, (c) => c.body(playgroundFile(file.name), 200, { ...PAGE_HEADERS, 'content-type': file.type }));
    app.get('/metrics', async (c) => {
      const { text, contentType } = await this.#metrics.read();
      return c.text(text, 200, { 'content-type': contentType });
    });
    app.get('/v1/models', (c) => c.json({ object: 'list', data: this.#models.list }));
    app.get('/v1/models/:id', (c) => {
      const name = this.#models.nameOf(c.req.param('id'));
      return c.json(this.#models.list.find(({ id }) => id === name)!);
    });
    const limitStream = bodyLimit({
      maxSize: maxBodyBytes,
      onError: () => {
        throw new ApiError(413, 'request_too_large', `expected a body of at most ${maxBodyBytes} bytes`, null, {
          // What is left of the body is not read.
          connection: 'close',
        });
      },
    });
    // Where the length is told, which Node.js keeps to, no stream is made of the body.
    const limit: typeof limitStream = (c, next) => {
      const length = c.req.header('content-length');
      const isTold = length !== undefined && c.req.header('transfer-encoding') === undefined;
      return isTold && Number(length) <= maxBodyBytes ? next() : limitStream(c, next);
    };
    for (const [route, read] of Object.entries(POSTS)) app.post(route, limit, (c) => this.#generate(c, route, read));
    for (const route of Object.keys(POSTS)) app.all(route, () => this.#methodError('POST'));
    for (const route of GETS) app.all(route, () => this.#methodError('GET'));
    app.notFound((c) => this.#fail(c, new ApiError(404, 'unknown_url', `there is no ${c.req.method} ${c.var.path}`)));
    app.onError((error, c) => this.#fail(c, apiErrorOf(error)));
  }

  #methodError(allow: string): never {
    throw new ApiError(405, 'method_not_allowed', `expected ${allow}`, null, { allow });
  }

  #fail(c: Context<Env>, error: ApiError): Response {
    for (const [name, value] of Object.entries(error.headers)) c.header(name, value);
    const { status, body } = SYSTEM_ONE.includes(c.var.path) ? systemOneError(error) : error;
    return c.json(body, status);
  }

  #cors(c: Context): void {
    const { cors = [] } = this.#options;
    const origin = c.req.header('origin');
    if (origin === undefined || !(cors.includes('*') || cors.includes(origin))) return;
    c.header('access-control-allow-origin', origin);
    // OpenAI's client sends headers of its own.
    c.header(
      'access-control-allow-headers',
      c.req.header('access-control-request-headers') ?? 'authorization, content-type',
    );
    c.header('access-control-allow-methods', 'GET, POST');
    c.header('access-control-expose-headers', 'x-request-id, retry-after, x-should-retry');
    c.header('vary', 'origin');
  }

  /** Refuses hosts that only look local, web pages of others, and requests without a key. */
  #guard(c: Context<Env>): void {
    const { hosts = LOCAL, cors = [] } = this.#options;
    const url = new URL(c.req.url);
    if (hosts !== null && !hosts.includes(url.hostname))
      throw new ApiError(403, 'host_not_allowed', 'this server is not of that name');
    const origin = c.req.header('origin');
    const isOwn = origin === undefined || origin === url.origin;
    if (!isOwn && !cors.includes('*') && !cors.includes(origin))
      throw new ApiError(403, 'origin_not_allowed', 'web pages of this origin may not ask');
    if (this.#keys.length === 0 || c.var.path === '/health' || Object.hasOwn(PLAYGROUND, c.var.path)) return;
    const given = hash(/^Bearer (.+)$/i.exec(c.req.header('authorization') ?? '')?.[1] ?? '');
    // All are compared, so that the time says nothing.
    if (!this.#keys.reduce((found, key) => timingSafeEqual(key, given) || found, false))
      throw new ApiError(401, 'invalid_api_key', 'expected "Authorization: Bearer KEY" with a key of this server');
  }

  async #generate(c: Context<Env>, route: string, read: (value: unknown) => Call | DecisionCall): Promise<Response> {
    const start = performance.now();
    const served: Served = { model: '' };
    let isDone = false;
    let release = () => {};
    let model: MaskedDiffusionModel | null = null;
    const done = (status: number, error?: ApiError, reason?: string) => {
      if (isDone) return;
      isDone = true;
      release();
      const ms = performance.now() - start;
      this.#metrics.count(route, served, status, ms / 1000);
      const [{ id }, code] = [c.var, error?.code];
      const { decisions: _decisions, error: _error, ...told } = served;
      this.#options.log?.({ id, route, status, ms, ...told, error: code, reason });
      if (--this.#active === 0) this.#whenIdle?.();
    };
    this.#active++;
    try {
      if (this.#isDraining)
        throw new ApiError(503, 'shutting_down', 'the server is shutting down', null, { 'retry-after': '5' });
      if (!/^application\/json\s*(;|$)/i.test(c.req.header('content-type') ?? ''))
        throw new ApiError(415, 'unsupported_media_type', 'expected content-type: application/json');
      const call = read(readJson(await c.req.text()));
      served.model = this.#models.nameOf(call.body.model);
      const lease = await this.#models.lease(served.model).catch((error) => {
        const failure = unloadable(served.model, error);
        done(failure.status, failure, reasonOf(error));
        throw failure;
      });
      release = lease.release;
      model = lease.model;
      const signal = AbortSignal.any([c.req.raw.signal, this.#closing.signal]);
      if ('decide' in call) {
        const decided = await call.decide(served.model, model, signal, served);
        done(200);
        return c.json(decided);
      }
      const { body, headers } = await answer(call, served.model, model, signal, served, () =>
        done(c.req.raw.signal.aborted ? 499 : 200, served.error),
      );
      return c.body(body, 200, headers);
    } catch (error) {
      const failure = apiErrorOf(error);
      done(
        c.req.raw.signal.aborted ? 499 : failure.status,
        failure,
        failure.code === 'internal_error' ? reasonOf(error) : undefined,
      );
      throw failure.status === 429 && model ? failure.after(model.engineParts().engine.state.secondsLeft) : failure;
    }
  }
}
