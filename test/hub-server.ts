// A local HTTP server standing in for the hub: the parts of its API that downloading a model or a data set uses, and
// every way of failing.
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import path from 'node:path';

/** Variables that change how the hub is reached, or where its cache lies. */
const ENVIRONMENT = [
  ...['HF_ENDPOINT', 'HF_HOME', 'HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE', 'XDG_CACHE_HOME', 'HOME'],
  ...['HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'HF_TOKEN_PATH', 'HF_HUB_DISABLE_IMPLICIT_TOKEN'],
  ...['HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'HF_HUB_ETAG_TIMEOUT', 'HF_HUB_DOWNLOAD_TIMEOUT'],
  ...['HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY', 'NO_PROXY'].flatMap((name) => [name, name.toLowerCase()]),
];

/** The files of a folder, as {@link HubServer} takes them. */
export const filesOf = (folder: string): Map<string, Buffer> =>
  new Map(readdirSync(folder).map((name) => [name, readFileSync(path.join(folder, name))]));

/** Lets every test of a file begin without these variables, and restores them. */
export function withoutHubVariables(): void {
  const saved = ENVIRONMENT.map((name) => [name, process.env[name]] as const);
  beforeEach(() => {
    for (const name of ENVIRONMENT) if (name !== 'HOME') delete process.env[name];
  });
  afterEach(() => {
    for (const [name, value] of saved) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  });
}

/** What the server was asked. */
export interface SeenRequest {
  method: string;
  path: string;
  range: string | null;
  authorization: string | null;
}

/** Answers a request itself by returning true. */
export type Interference = (
  request: SeenRequest,
  response: ServerResponse,
  content: Buffer | null,
) => boolean | Promise<boolean>;

/** A repository: file contents by name. Weights and Parquet files are LFS files, all others git blobs. */
export class HubServer {
  readonly id: string;
  readonly branch = 'main';
  commit = createHash('sha1').update('commit').digest('hex');
  readonly seen: SeenRequest[] = [];
  interfere: Interference | null = null;
  /** Host that files are redirected to, as the hub does with LFS files. */
  storage: HubServer | null = null;
  /** Milliseconds between pieces of a file. */
  pace = 0;
  /** Sizes that the list of files gives in place of the real ones. */
  readonly claimed = new Map<string, number>();
  #server: Server | null = null;

  /** `dataset`: id of a data set, in place of the model "org/model". */
  constructor(
    readonly files: Map<string, Buffer> = new Map(),
    private readonly dataset: string | null = null,
  ) {
    this.id = dataset ?? 'org/model';
  }

  async start(): Promise<this> {
    this.#server = createServer((request, response) => {
      this.#answer(request, response).catch(() => response.destroy());
    });
    await new Promise<void>((resolve) => this.#server!.listen(0, '127.0.0.1', resolve));
    return this;
  }

  async stop(): Promise<void> {
    this.#server?.closeAllConnections();
    await new Promise((resolve) => this.#server?.close(resolve));
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server!.address() as AddressInfo).port}`;
  }

  /** Requests for the content of a file. */
  fetched(name: string): SeenRequest[] {
    return this.seen.filter((request) => request.path.includes('/resolve/') && request.path.endsWith(`/${name}`));
  }

  static isLfs = (name: string) => /\.(safetensors|parquet)$/.test(name);
  /** The name of a file in the cache's blobs folder. */
  static blobName(name: string, content: Buffer): string {
    return HubServer.isLfs(name)
      ? createHash('sha256').update(content).digest('hex')
      : createHash('sha1').update(`blob ${content.length}\0`).update(content).digest('hex');
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const at = decodeURIComponent(new URL(request.url!, 'http://x').pathname);
    const entry: SeenRequest = {
      method: request.method!,
      path: at,
      range: request.headers.range ?? null,
      authorization: request.headers.authorization ?? null,
    };
    this.seen.push(entry);
    const name =
      new RegExp(`^/(?:${this.dataset ? 'datasets/' : ''}${this.id}/resolve/[^/]+|stored)/(.+)$`).exec(at)?.[1] ?? null;
    const content = name === null ? null : (this.files.get(name) ?? null);
    if (this.interfere && (await this.interfere(entry, response, content))) return;
    const json = (value: unknown) => {
      response.setHeader('content-type', 'application/json');
      response.end(JSON.stringify(value));
    };
    const asks = (what: string) => {
      const found = new RegExp(`^/api/${this.dataset ? 'datasets' : 'models'}/${this.id}/${what}/([^/]+)/?$`).exec(
        at,
      )?.[1];
      return found === this.branch || found === this.commit;
    };
    const sizeOf = (file: string, data: Buffer) => this.claimed.get(file) ?? data.length;
    const described = ([file, data]: [string, Buffer]) => ({
      type: 'file',
      path: file,
      size: sizeOf(file, data),
      oid: HubServer.isLfs(file) ? createHash('sha1').update(file).digest('hex') : HubServer.blobName(file, data),
      ...(HubServer.isLfs(file)
        ? { lfs: { oid: HubServer.blobName(file, data), size: sizeOf(file, data), pointerSize: 130 } }
        : {}),
    });
    if (asks('revision'))
      return json({
        _id: '0',
        id: this.id,
        sha: this.commit,
        private: false,
        gated: false,
        downloads: 0,
        likes: 0,
        lastModified: '2025-01-01T00:00:00.000Z',
      });
    if (asks('tree')) return json([...this.files].map(described));
    if (asks('paths-info')) {
      let body = '';
      for await (const piece of request) body += piece;
      const { paths } = JSON.parse(body) as { paths: string[] };
      const lastCommit = { id: this.commit, title: '', date: '2025-01-01T00:00:00.000Z' };
      return json(
        [...this.files].filter(([file]) => paths.includes(file)).map((file) => ({ ...described(file), lastCommit })),
      );
    }
    if (content === null) {
      response.statusCode = 404;
      return json({ error: 'Not found' });
    }
    if (this.storage && HubServer.isLfs(name!)) {
      response.writeHead(302, { location: `${this.storage.url}/stored/${name}` });
      response.end();
      return;
    }
    await this.send(entry, response, content);
  }

  /** Sends content, or the rest of it that the request asks for, in pieces. */
  async send(request: SeenRequest, response: ServerResponse, content: Buffer, until = content.length): Promise<void> {
    const begin = request.range === null ? 0 : Number(/^bytes=(\d+)-$/.exec(request.range)![1]);
    if (request.range !== null) {
      response.statusCode = 206;
      response.setHeader('content-range', `bytes ${begin}-${content.length - 1}/${content.length}`);
    }
    response.setHeader('content-length', content.length - begin);
    const piece = 64 * 1024;
    for (let at = begin; at < until; at += piece) {
      if (!response.write(content.subarray(at, Math.min(until, at + piece))))
        await new Promise((resolve) => response.once('drain', resolve));
      if (this.pace > 0) await new Promise((resolve) => setTimeout(resolve, this.pace));
    }
    if (until < content.length) response.destroy();
    else response.end();
  }
}
