// A repository of a hub: its id and revision, requests with retries, errors.
import { setTimeout as sleep } from 'node:timers/promises';
import { datasetInfo, type ListFileEntry, listFiles, modelInfo } from '@huggingface/hub';
import { DUltraError, isDUltraError, optionError } from '../errors';
import { type Connection, HttpError } from './connection';
import type { DownloadProgress } from './types';

/** Pauses before attempts 2, 3, … of a request that failed without progress. */
const RETRY_DELAYS_MS = [250, 500, 1000, 2000];

/** A commit's id. */
export const COMMIT = /^[0-9a-f]{40}$/;

/** What the hub allows in the two parts of an id, and in names of weights. */
export const NAME = /^[A-Za-z0-9_][\w.-]*$/;

/** A repository, and how to reach it. */
export interface Repository {
  type: 'model' | 'dataset';
  id: string;
  revision: string;
  hubUrl: string;
  /** Folder of this repository in the cache. */
  folder: string;
  connection: Connection;
  signal: AbortSignal | undefined;
  onProgress: ((progress: DownloadProgress) => void) | undefined;
}

/** An id and revision out of "org/name" or "org/name@revision". @throws TypeError for anything else. */
export function parseHubId(source: string, revision?: string): { id: string; revision: string } {
  if (typeof source !== 'string')
    throw optionError(TypeError, 'source', `expected a hub id such as "org/name", got ${String(source)}`);
  const [id, suffix, ...rest] = source.split('@');
  const parts = id.split('/');
  if (rest.length > 0 || parts.length > 2 || !parts.every((part) => NAME.test(part) && !part.includes('..')))
    throw optionError(
      TypeError,
      'source',
      `expected a folder that exists or a hub id such as "org/name" or "org/name@revision", got ${JSON.stringify(source)}`,
    );
  if (suffix !== undefined && revision !== undefined && suffix !== revision)
    throw optionError(
      TypeError,
      'revision',
      `expected ${JSON.stringify(suffix)} as in the id ${JSON.stringify(source)}, got ${JSON.stringify(revision)}`,
    );
  const chosen = suffix ?? revision ?? 'main';
  // It becomes a file name in the cache.
  if (!chosen.split('/').every((part) => NAME.test(part) && !part.includes('..')))
    throw optionError(TypeError, 'revision', `expected a branch, a tag or a commit, got ${JSON.stringify(chosen)}`);
  return { id, revision: chosen };
}

/** Resolves the revision to a commit and lists its files. */
export async function readCommit(
  repository: Repository,
): Promise<{ commit: string; entries: Map<string, ListFileEntry> }> {
  const { type, id, revision, hubUrl, connection } = repository;
  const api = { hubUrl, fetch: connection.ask };
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

/** A request through the client, with retries. */
async function hubCall<T>(repository: Repository, file: string | null, call: () => Promise<T>): Promise<T> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await call();
    } catch (error) {
      await retryOrThrow(repository, file, attempt, error);
    }
  }
}

export async function retryOrThrow(
  repository: Repository,
  file: string | null,
  attempt: number,
  error: unknown,
): Promise<void> {
  const { signal } = repository;
  signal?.throwIfAborted();
  if (isDUltraError(error)) throw error;
  const status = error instanceof HttpError ? error.status : null;
  const isPassing = status === null || status === 408 || status === 429 || status >= 500;
  if (!isPassing || attempt >= RETRY_DELAYS_MS.length || isFileSystemError(error))
    throw failure(
      repository,
      file,
      error instanceof HttpError ? hintFor(repository, error) : reasonOf(repository, error),
      error,
    );
  const pause = Math.max(RETRY_DELAYS_MS[attempt], error instanceof HttpError ? error.retryAfterMs : 0);
  await sleep(pause, undefined, { signal }).catch(() => signal?.throwIfAborted());
}

/** Disk full, no permission, …: retrying does not help. (Network errors come wrapped in a TypeError.) */
export function isFileSystemError(error: unknown): boolean {
  return (error as NodeJS.ErrnoException | null)?.syscall !== undefined;
}

/** The message with its cause, since "fetch failed" alone does not name the reason, and with the proxies. */
function reasonOf({ connection }: Repository, error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { cause } = error as { cause?: Error & { code?: string } };
  // Where every address of a name fails, the reasons have a code and no message.
  const reason = cause instanceof Error ? cause.message || cause.code : undefined;
  const proxies = isFileSystemError(error) || connection.proxies === '' ? '' : `; proxies: ${connection.proxies}`;
  return `${error.message}${reason ? ` (${reason})` : ''}${proxies}`;
}

/** An HTTP status, and what to do about it. */
function hintFor({ type, id, hubUrl, connection }: Repository, { status, reason }: HttpError): string {
  const { token, source } = connection.login;
  const page = `${hubUrl}/${type === 'dataset' ? 'datasets/' : ''}${id}`;
  const hint = () => {
    if (reason === 'GatedRepo' || (status === 403 && token))
      return token
        ? `accept the conditions on ${page}; the account of ${source} must be allowed to read it`
        : `accept the conditions on ${page}, then set HF_TOKEN, or log in with "hf auth login" (${source})`;
    if (status === 401 || status === 403)
      return token
        ? `${source} is not valid, or gives no access; ${hubUrl}/settings/tokens makes another`
        : `the name may be wrong; a private or gated repository needs HF_TOKEN set, or "hf auth login" (${source})`;
    if (status === 404) return 'no such repository, revision or file; check the name';
    return status === 407 ? `the proxy asks for a login; proxies: ${connection.proxies}` : '';
  };
  const text = hint();
  return `HTTP ${status}${text && `: ${text}`}`;
}

export function failure(repository: Repository, file: string | null, message: string, cause?: unknown): DUltraError {
  const name = `${repository.type === 'dataset' ? 'data set ' : ''}${repository.id}@${repository.revision}`;
  return new DUltraError(
    'DOWNLOAD_FAILED',
    `${name}: ${file === null ? '' : `${file}: `}${message} (${repository.hubUrl})`,
    { cause },
  );
}
