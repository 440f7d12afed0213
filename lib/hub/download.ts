// Checkpoints and data sets from a hub: into the cache folder that Hugging Face's own clients use, resumable, each file
// atomically.
//
// The official client resolves revisions and lists files. The bytes are fetched here: its own cache download starts
// again from nothing after every interruption, reports no progress and takes no signal.
import { createHash, type Hash, randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { access, type FileHandle, mkdir, open, readdir, readFile, rename, rm, stat, symlink } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { threadId } from 'node:worker_threads';
import {
  datasetInfo,
  getHFHubCachePath,
  getRepoFolderName,
  HUB_URL,
  HubApiError,
  type ListFileEntry,
  listFiles,
  modelInfo,
} from '@huggingface/hub';
import { DUltraError, isDUltraError } from '../errors';
import { writeFileAtomic } from '../files/atomic';
import { findSafetensors, INDEX_FILE, readWeightIndex } from '../files/safetensors';

/** How far a file has come, in bytes. A file that is already in the cache is not reported. */
export interface DownloadProgress {
  /** Name in the repository. */
  file: string;
  /** Bytes on disk, those of an earlier, interrupted download included. */
  received: number;
  /** Size of the file. */
  total: number;
}

/** Options of {@link downloadModel}. */
export interface DownloadOptions {
  /** Branch, tag or commit. Default: what stands behind "@" in the id, else "main". */
  revision?: string;
  /** Stops the download; what has arrived stays, and the next call goes on from there. */
  signal?: AbortSignal;
  /**
   * Called when a file begins, about ten times a second while it arrives, and when it is complete. An error thrown here
   * stops the download.
   */
  onProgress?: (progress: DownloadProgress) => void;
}

/** Everything beside the weights that a checkpoint may bring. */
const SMALL_FILES = [
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  INDEX_FILE,
];

/** Pauses before tries 2, 3, … of a request that failed without progress. */
const RETRY_DELAYS_MS = [250, 500, 1000, 2000];
/** The longest pause that a hub may ask for. */
const MAX_RETRY_AFTER_MS = 60_000;
const PROGRESS_INTERVAL_MS = 100;
/** A partial file untouched for so long has no writer: an idle connection is given up earlier. */
const ABANDONED_MS = 600_000;
const COMMIT = /^[0-9a-f]{40}$/;
/** What the hub allows in the two parts of an id, and in names of weights. */
const NAME = /^[A-Za-z0-9_][\w.-]*$/;

/** An answer of the hub that is not what was asked for. */
class HttpError extends Error {
  constructor(
    readonly status: number,
    /** Pause that the answer asks for, 0 where it asks for none. */
    readonly retryAfterMs = 0,
  ) {
    super(`HTTP ${status}`);
  }
}

/** The file as it arrived is not the one that the hub lists. */
class CorruptFileError extends Error {}

/** What a download works on. */
interface Repository {
  type: 'model' | 'dataset';
  id: string;
  revision: string;
  hubUrl: string;
  /** Folder of this repository in the cache. */
  folder: string;
  /** `fetch` with the token for the hub itself, and for nobody that it redirects to. */
  fetch: typeof fetch;
  signal: AbortSignal | undefined;
  onProgress: ((progress: DownloadProgress) => void) | undefined;
}

/** An id and revision out of "org/name" or "org/name@revision". @throws TypeError for anything else. */
export function parseHubId(source: string, revision?: string): { id: string; revision: string } {
  const [id, suffix, ...rest] = source.split('@');
  const parts = id.split('/');
  if (rest.length > 0 || parts.length > 2 || !parts.every((part) => NAME.test(part) && !part.includes('..')))
    throw new TypeError(
      `source: expected a folder that exists or a hub id such as "org/name" or "org/name@revision", got ${JSON.stringify(source)}`,
    );
  if (suffix !== undefined && revision !== undefined && suffix !== revision)
    throw new TypeError(
      `revision: expected ${JSON.stringify(suffix)} as in the id ${JSON.stringify(source)}, got ${JSON.stringify(revision)}`,
    );
  const chosen = suffix ?? revision ?? 'main';
  // It becomes a file name in the cache.
  if (!chosen.split('/').every((part) => NAME.test(part) && !part.includes('..')))
    throw new TypeError(`revision: expected a branch, a tag or a commit, got ${JSON.stringify(chosen)}`);
  return { id, revision: chosen };
}

/** A repository, and what the cache has of it. */
interface Located {
  /** Made when it is needed: offline nothing is asked, so nothing can be wrong with how. */
  repository: () => Repository;
  name: string;
  /** Folder of this repository in the cache. */
  folder: string;
  /** The commit that the cache has for the revision. */
  cached: string | null;
  isOffline: boolean;
}

async function locate(type: Repository['type'], source: string, options: DownloadOptions): Promise<Located> {
  const { id, revision } = parseHubId(source, options.revision);
  const { signal, onProgress } = options;
  signal?.throwIfAborted();
  const folder = path.join(getHFHubCachePath(), getRepoFolderName({ type, name: id }));
  const repository = (): Repository => {
    const hubUrl = (process.env.HF_ENDPOINT || HUB_URL).replace(/\/+$/, '');
    if (!/^https?:\/\//.test(hubUrl) || !URL.canParse(hubUrl))
      throw new DUltraError(
        'DOWNLOAD_FAILED',
        `HF_ENDPOINT: expected an http or https URL, got ${JSON.stringify(hubUrl)}`,
      );
    return { type, id, revision, hubUrl, folder, fetch: authorisedFetch(hubUrl, signal), signal, onProgress };
  };
  const cached = await cachedCommit(folder, revision);
  const isOffline = /^(1|true|yes|on)$/i.test(process.env.HF_HUB_OFFLINE ?? '');
  return { repository, name: `${id}@${revision}`, folder, cached, isOffline };
}

const snapshotOf = (folder: string, commit: string) => path.join(folder, 'snapshots', commit);

/** Brings files of a repository, and says so where the cache would do without the hub. */
async function online<T>(
  { repository }: Located,
  hasCopy: boolean,
  bring: (repository: Repository) => Promise<T>,
): Promise<T> {
  const opened = repository();
  try {
    return await bring(opened);
  } catch (error) {
    if (opened.signal?.aborted) throw opened.signal.reason;
    if (isDUltraError(error, 'DOWNLOAD_FAILED') && hasCopy)
      throw new DUltraError(
        'DOWNLOAD_FAILED',
        `${error.message}; the cache has a complete copy, which HF_HUB_OFFLINE=1 uses`,
        {
          cause: error,
        },
      );
    throw error;
  }
}

/**
 * Brings a checkpoint into the cache and returns its folder. Only files that {@link loadModel} reads are fetched.
 * Interrupted downloads go on where they stopped, also in another process; sizes and checksums are checked; files land
 * in the cache atomically.
 *
 * Environment: HF_HUB_CACHE, HF_HOME (where the cache lies), HF_ENDPOINT (another hub), HF_TOKEN (private and gated
 * repositories), HF_HUB_OFFLINE=1 (the cache alone, no requests).
 * @param source "org/name" or "org/name@revision"
 * @throws TypeError for an id that is none; DUltraError DOWNLOAD_FAILED naming repository, file and HTTP status;
 * `signal.reason`.
 */
export async function downloadModel(source: string, options: DownloadOptions = {}): Promise<string> {
  const located = await locate('model', source, options);
  const { name, folder, cached, isOffline } = located;
  const complete = cached !== null && (await isComplete(snapshotOf(folder, cached)));
  // A commit never changes.
  if (complete && (isOffline || name.endsWith(`@${cached}`))) return snapshotOf(folder, cached);
  if (isOffline) {
    const state = cached === null ? 'not' : 'not completely';
    throw new DUltraError(
      'DOWNLOAD_FAILED',
      `${name}: HF_HUB_OFFLINE is set and the checkpoint is ${state} in the cache (${folder})`,
    );
  }
  return online(located, complete, async (repository) => {
    const { commit, entries } = await readCommit(repository);
    if (!entries.has('config.json'))
      throw failure(repository, 'config.json', 'the repository has no such file; is it a language model?');
    const snapshot = snapshotOf(folder, commit);
    const bring = async (file: string) => {
      const entry = entries.get(file);
      if (!entry) throw failure(repository, file, `the repository has no such file, which its ${INDEX_FILE} names`);
      await bringFile(repository, commit, entry, path.join(snapshot, file));
    };
    for (const file of SMALL_FILES) if (entries.has(file)) await bring(file);
    // Weights last: a snapshot with all of them is complete.
    for (const file of await weightFiles(repository, snapshot, entries)) await bring(file);
    await writeRef(repository, commit);
    return snapshot;
  });
}

/**
 * Brings those files of a repository into the cache that `choose` picks out of all names ("folder/name", "/" between),
 * and returns their paths, in its order. As {@link downloadModel}; offline, `choose` sees the names that the cache has.
 * @throws as {@link downloadModel}.
 */
export async function downloadFiles(
  type: 'model' | 'dataset',
  source: string,
  choose: (names: readonly string[]) => readonly string[],
  options: DownloadOptions = {},
): Promise<string[]> {
  const located = await locate(type, source, options);
  const { name, folder, cached, isOffline } = located;
  const held = cached === null ? [] : choose(await namesIn(snapshotOf(folder, cached)));
  const paths = (commit: string, files: readonly string[]) =>
    files.map((file) => path.join(snapshotOf(folder, commit), ...file.split('/')));
  if (isOffline) {
    if (cached === null)
      throw new DUltraError(
        'DOWNLOAD_FAILED',
        `${name}: HF_HUB_OFFLINE is set and the cache has nothing of it (${folder})`,
      );
    return paths(cached, held);
  }
  return online(located, held.length > 0, async (repository) => {
    const { commit, entries } = await readCommit(repository);
    // Names become paths.
    const safe = [...entries.keys()].filter((file) =>
      file.split('/').every((part) => NAME.test(part) && part !== '..'),
    );
    const files = choose(safe);
    for (const [i, target] of paths(commit, files).entries())
      await bringFile(repository, commit, entries.get(files[i]) as ListFileEntry, target);
    await writeRef(repository, commit);
    return paths(commit, files);
  });
}

/** Names of the files of a snapshot; none where it is not there. */
async function namesIn(snapshot: string): Promise<string[]> {
  const found = await readdir(snapshot, { recursive: true }).catch(() => []);
  const names: string[] = [];
  for (const file of found) {
    const isFile = await stat(path.join(snapshot, file)).then(
      (info) => info.isFile(),
      () => false,
    );
    if (isFile) names.push(file.split(path.sep).join('/'));
  }
  return names.sort();
}

/** The commit that a revision is, and its files. */
async function readCommit(repository: Repository): Promise<{ commit: string; entries: Map<string, ListFileEntry> }> {
  const { type, id, revision, hubUrl } = repository;
  const api = { hubUrl, fetch: repository.fetch };
  const asked = { ...api, name: id, revision, additionalFields: ['sha' as const] };
  const { sha } = await hubCall(
    repository,
    null,
    () => (type === 'model' ? modelInfo(asked) : datasetInfo(asked)) as Promise<{ sha: string }>,
  );
  if (typeof sha !== 'string' || !COMMIT.test(sha))
    throw failure(repository, null, `the hub named no commit (${JSON.stringify(sha)})`);
  const entries = await hubCall(repository, null, async () => {
    const found = new Map<string, ListFileEntry>();
    for await (const entry of listFiles({
      ...api,
      repo: { type, name: id },
      revision: sha,
      recursive: type === 'dataset',
    }))
      if (entry.type === 'file') found.set(entry.path, entry);
    return found;
  });
  return { commit: sha, entries };
}

/** Notes in the cache which commit the revision is. */
async function writeRef(repository: Repository, commit: string): Promise<void> {
  const { folder, revision } = repository;
  if (revision === commit) return;
  const file = path.join(folder, 'refs', ...revision.split('/'));
  try {
    await mkdir(path.dirname(file), { recursive: true });
    await writeFileAtomic(file, commit);
  } catch (error) {
    throw failure(repository, null, (error as Error).message, error);
  }
}

/** The files with weights, by the rule by which they are read: the index's, else model.safetensors, else all. */
async function weightFiles(
  repository: Repository,
  snapshot: string,
  entries: ReadonlyMap<string, ListFileEntry>,
): Promise<string[]> {
  if (entries.has(INDEX_FILE)) return readWeightIndex(path.join(snapshot, INDEX_FILE));
  if (entries.has('model.safetensors')) return ['model.safetensors'];
  const found = [...entries.keys()].filter((name) => name.endsWith('.safetensors') && NAME.test(name)).sort();
  if (found.length === 0)
    throw failure(repository, null, 'the repository has no *.safetensors file; other formats are not read');
  return found;
}

/** Brings one file into `blobs/`, named by its checksum as the official clients do, and links it into the snapshot. */
async function bringFile(repository: Repository, commit: string, entry: ListFileEntry, target: string): Promise<void> {
  const checksum = entry.lfs?.oid ?? entry.xetHash ?? entry.oid ?? '';
  const total = entry.lfs?.size ?? entry.size;
  if (!/^[0-9a-f]{40,64}$/.test(checksum) || !Number.isSafeInteger(total) || total < 0)
    throw failure(
      repository,
      entry.path,
      `the hub lists it without checksum or size (${JSON.stringify(checksum)}, ${total})`,
    );
  if (await hasSize(target, total)) return;
  const blob = path.join(repository.folder, 'blobs', checksum);
  try {
    await mkdir(path.dirname(blob), { recursive: true });
    await mkdir(path.dirname(target), { recursive: true });
    await exclusively(blob, repository.signal, async () => {
      if (!(await hasSize(blob, total))) await fetchBlob(repository, commit, entry, total, blob);
    });
    await linkFile(blob, target);
  } catch (error) {
    repository.signal?.throwIfAborted();
    if (isFileSystemError(error)) throw failure(repository, entry.path, (error as Error).message, error);
    throw error;
  }
}

/** Work under way in this thread, by what it works on. */
const underWay = new Map<string, Promise<unknown>>();

/** Runs `work` when nothing else in this thread works on `key`. */
async function exclusively(key: string, signal: AbortSignal | undefined, work: () => Promise<void>): Promise<void> {
  for (let other = underWay.get(key); other; other = underWay.get(key)) {
    signal?.throwIfAborted();
    await new Promise<void>((resolve, reject) => {
      const stop = () => reject(signal?.reason);
      signal?.addEventListener('abort', stop, { once: true });
      other.then(() => {
        signal?.removeEventListener('abort', stop);
        resolve();
      });
    });
  }
  const running = work();
  const settled = running.then(
    () => {},
    () => {},
  );
  underWay.set(key, settled);
  try {
    await running;
  } finally {
    underWay.delete(key);
  }
}

const safeHost = () => os.hostname().replace(/[^\w-]/g, '_');

/**
 * The name of this thread's partial file for a blob, with what an earlier download left: every writer has a file of its
 * own, so that none can disturb another, and takes over files whose writers are gone.
 */
async function claimPartial(blob: string): Promise<string> {
  const host = safeHost();
  const own = `${blob}.${host}.${process.pid}-${threadId}.incomplete`;
  const prefix = `${path.basename(blob)}.`;
  let best: { file: string; size: number } | null = null;
  for (const name of await readdir(path.dirname(blob))) {
    if (!name.startsWith(prefix) || !name.endsWith('.incomplete')) continue;
    const file = path.join(path.dirname(blob), name);
    const info = await stat(file).catch(() => null);
    if (!info) continue;
    const writer = name.slice(prefix.length).match(/^([\w-]+)\.(\d+)-\d+\./);
    const isAlive = writer === null || writer[1] !== host || isRunning(Number(writer[2]));
    if (file !== own && isAlive && Date.now() - info.mtimeMs < ABANDONED_MS) continue;
    if (best === null || info.size > best.size) best = { file, size: info.size };
  }
  if (best !== null && best.file !== own)
    // Another one may have been faster: then this one begins anew.
    await rename(best.file, own).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error;
    });
  return own;
}

/** Whether a process of that id exists. */
function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/**
 * Downloads into a partial file, going on where an earlier download stopped, and renames when size and checksum are
 * right.
 */
async function fetchBlob(
  repository: Repository,
  commit: string,
  entry: ListFileEntry,
  total: number,
  blob: string,
): Promise<void> {
  const incomplete = await claimPartial(blob);
  const { hubUrl, type, id } = repository;
  const file = entry.path.split('/').map(encodeURIComponent).join('/');
  const url = `${hubUrl}/${type === 'dataset' ? 'datasets/' : ''}${id}/resolve/${commit}/${file}`;
  const { signal } = repository;
  let reported = 0;
  let callbackError: { error: unknown } | null = null;
  const report = (received: number, always: boolean) => {
    if (!repository.onProgress || (!always && Date.now() - reported < PROGRESS_INTERVAL_MS)) return;
    reported = Date.now();
    try {
      repository.onProgress({ file: entry.path, received, total });
    } catch (error) {
      callbackError = { error };
      throw error;
    }
  };
  for (let attempt = 0, restarts = 0; ; attempt++) {
    const handle = await openForUpdate(incomplete);
    let begin = (await handle.stat()).size;
    let received = begin;
    try {
      if (begin > total) {
        await handle.truncate(0);
        begin = received = 0;
      }
      const hash = newHash(entry, total);
      if (hash && begin > 0)
        for await (const chunk of createReadStream(incomplete, { end: begin - 1, signal }))
          hash.update(chunk as Buffer);
      report(received, true);
      if (begin < total)
        await fetchRange(repository, url, begin, total, async (chunk) => {
          await writeFully(handle, chunk, received);
          hash?.update(chunk);
          received += chunk.length;
          report(received, false);
        });
      if (received !== total) throw new Error(`${received} of ${total} bytes arrived`);
      if (hash && hash.digest('hex') !== (entry.lfs?.oid ?? entry.oid))
        throw new CorruptFileError('its checksum is not the one that the hub lists');
      await handle.sync();
      report(total, true);
    } catch (error) {
      signal?.throwIfAborted();
      if (callbackError) throw error;
      if (error instanceof CorruptFileError) {
        await handle.truncate(0);
        // Once from the beginning: the part from an earlier run may have been damaged.
        if (begin > 0 && restarts++ === 0) continue;
        throw failure(repository, entry.path, error.message, error);
      }
      if (received > begin) attempt = 0;
      await retryOrThrow(repository, entry.path, attempt, error);
      continue;
    } finally {
      await handle.close();
    }
    await rename(incomplete, blob);
    return;
  }
}

/** Asks for bytes `begin` to `total` of a file and hands them out in order. */
async function fetchRange(
  repository: Repository,
  url: string,
  begin: number,
  total: number,
  write: (chunk: Uint8Array) => Promise<void>,
): Promise<void> {
  // Compressed answers have no byte ranges.
  const headers: Record<string, string> = { 'Accept-Encoding': 'identity' };
  if (begin > 0) headers.Range = `bytes=${begin}-`;
  const response = await repository.fetch(url, { headers });
  let skip = 0;
  if (!response.ok) {
    await response.body?.cancel();
    throw new HttpError(response.status, retryAfter(response.headers.get('retry-after')));
  }
  if (begin > 0) {
    // A server without ranges sends everything.
    if (response.status === 200) skip = begin;
    else if (!response.headers.get('content-range')?.startsWith(`bytes ${begin}-`)) {
      await response.body?.cancel();
      throw new Error(`asked for bytes from ${begin}, the server sent ${response.headers.get('content-range')}`);
    }
  }
  let position = begin - skip;
  if (!response.body) return;
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
    const from = Math.min(Math.max(begin - position, 0), chunk.length);
    position += chunk.length;
    if (position > total) throw new CorruptFileError(`more than the ${total} bytes arrived that the hub lists`);
    if (from < chunk.length) await write(chunk.subarray(from));
  }
}

/** Milliseconds of a Retry-After header in seconds; 0 for none, and for one that is a date. */
function retryAfter(header: string | null): number {
  const seconds = header === null || !/^\d+$/.test(header) ? 0 : Number(header);
  return Math.min(MAX_RETRY_AFTER_MS, seconds * 1000);
}

/**
 * A hash over the checksum's definition: SHA-256 of LFS files, git's blob SHA-1 of others, null where the hub gives
 * neither.
 */
function newHash(entry: ListFileEntry, total: number): Hash | null {
  if (entry.lfs) return createHash('sha256');
  if (entry.xetHash || entry.oid?.length !== 40) return null;
  return createHash('sha1').update(`blob ${total}\0`);
}

/** A request through the client, repeated where that may help. */
async function hubCall<T>(repository: Repository, file: string | null, call: () => Promise<T>): Promise<T> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await call();
    } catch (error) {
      await retryOrThrow(repository, file, attempt, error);
    }
  }
}

async function retryOrThrow(
  repository: Repository,
  file: string | null,
  attempt: number,
  error: unknown,
): Promise<void> {
  const { signal } = repository;
  signal?.throwIfAborted();
  if (isDUltraError(error)) throw error;
  const status = error instanceof HttpError ? error.status : error instanceof HubApiError ? error.statusCode : null;
  const isPassing = status === null || status === 408 || status === 429 || status >= 500;
  if (!isPassing || attempt >= RETRY_DELAYS_MS.length || isFileSystemError(error))
    throw failure(repository, file, status === null ? reasonOf(error) : `HTTP ${status}${hintFor(status)}`, error);
  const pause = Math.max(RETRY_DELAYS_MS[attempt], error instanceof HttpError ? error.retryAfterMs : 0);
  await sleep(pause, undefined, { signal }).catch(() => signal?.throwIfAborted());
}

/** Disk full, no permission, …: not cured by asking again. (Errors of the network come wrapped in a TypeError.) */
function isFileSystemError(error: unknown): boolean {
  return (error as NodeJS.ErrnoException | null)?.syscall !== undefined;
}

/** "fetch failed" alone says nothing: its cause does. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { cause } = error;
  return cause instanceof Error && cause.message ? `${error.message} (${cause.message})` : error.message;
}

function hintFor(status: number): string {
  if (status === 401)
    return process.env.HF_TOKEN
      ? ': HF_TOKEN is not valid, or gives no access'
      : ': the name may be wrong; a private or gated repository needs HF_TOKEN set';
  if (status === 403)
    return ': accept the conditions on the page of the repository, and set HF_TOKEN to a token that may read it';
  if (status === 404)
    return ': no such repository, revision or file; check the name (no folder of that name exists either)';
  return '';
}

function failure(repository: Repository, file: string | null, message: string, cause?: unknown): DUltraError {
  const name = `${repository.type === 'dataset' ? 'data set ' : ''}${repository.id}@${repository.revision}`;
  return new DUltraError(
    'DOWNLOAD_FAILED',
    `${name}: ${file === null ? '' : `${file}: `}${message} (${repository.hubUrl})`,
    { cause },
  );
}

/** `fetch` that sends HF_TOKEN to the hub's own origin alone; undici takes it off when a redirect leads elsewhere. */
function authorisedFetch(hubUrl: string, signal: AbortSignal | undefined): typeof fetch {
  const { origin } = new URL(hubUrl);
  const token = process.env.HF_TOKEN?.trim();
  // Checked here, since the error of a header that cannot be sent would show the token.
  if (token && !/^[\x21-\x7e]+$/.test(token))
    throw new DUltraError('DOWNLOAD_FAILED', 'HF_TOKEN: expected a token of printable ASCII characters without spaces');
  return (input, init) => {
    const headers = new Headers(init?.headers);
    if (token && new URL(String(input)).origin === origin) headers.set('Authorization', `Bearer ${token}`);
    return fetch(input, { ...init, headers, signal });
  };
}

/** The commit that the cache has for a revision, null where it has none. */
async function cachedCommit(folder: string, revision: string): Promise<string | null> {
  if (COMMIT.test(revision)) return revision;
  try {
    const commit = (await readFile(path.join(folder, 'refs', ...revision.split('/')), 'utf8')).trim();
    return COMMIT.test(commit) ? commit : null;
  } catch {
    return null;
  }
}

/** Whether a snapshot has a config and all its weights. */
async function isComplete(snapshot: string): Promise<boolean> {
  try {
    await access(path.join(snapshot, 'config.json'));
    for (const file of await findSafetensors(snapshot)) await access(file);
    return true;
  } catch {
    return false;
  }
}

async function hasSize(file: string, bytes: number): Promise<boolean> {
  return stat(file).then(
    (info) => info.isFile() && info.size === bytes,
    () => false,
  );
}

/** Opens for reading and writing at any place, without emptying what is there. */
async function openForUpdate(file: string): Promise<FileHandle> {
  await (await open(file, 'a')).close();
  return open(file, 'r+');
}

async function writeFully(handle: FileHandle, chunk: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < chunk.length; )
    done += (await handle.write(chunk, done, chunk.length - done, position + done)).bytesWritten;
}

/** Links a blob into the snapshot; where links are not allowed (Windows without developer mode), moves it there. */
async function linkFile(blob: string, target: string): Promise<void> {
  // Under another name first, so that the name in the snapshot always leads somewhere.
  const temporary = `${target}.${randomUUID()}.tmp`;
  try {
    await symlink(path.relative(path.dirname(target), blob), temporary);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== 'EPERM' && code !== 'ENOSYS' && code !== 'EOPNOTSUPP') throw error;
    await rename(blob, target);
    return;
  }
  try {
    await rename(temporary, target);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}
