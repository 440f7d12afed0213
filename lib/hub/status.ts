// How the hub and its cache look from here: for a diagnosis, which must not fail where they do.
import { access, constants, stat, statfs } from 'node:fs/promises';
import path from 'node:path';
import { reasonOf } from '../text';
import { type Connection, connect, HttpError } from './connection';
import { listCachedModels } from './contents';
import { cacheFolder, hubAddress, isOffline } from './environment';

/** What {@link hubStatus} found. */
export interface HubStatus {
  /** Address of the hub, or what is wrong with the one that is set. */
  address: string;
  /** Requests are forbidden by HF_HUB_OFFLINE. */
  isOffline: boolean;
  /** null: the hub answers, or was not asked; else why it does not. */
  failure: string | null;
  /** Where the token comes from, or why there is none. */
  login: string;
  hasToken: boolean;
  /** The token's account; null where there is no token, or the hub does not take it. */
  account: string | null;
  /** The hub refuses the token. */
  isRefused: boolean;
}

/** The message of an error with its cause, since "fetch failed" alone names no reason. */
function withCause(error: unknown): string {
  const { cause } = error as { cause?: { message?: string; code?: string } };
  const reason = cause && (cause.message || cause.code);
  return reason ? `${reasonOf(error)} (${reason})` : reasonOf(error);
}

/** Asks the hub for one model, or, with a token, whose it is. */
async function ask(status: HubStatus, { ask: get, login, proxies }: Connection): Promise<void> {
  status.login = login.source;
  status.hasToken = login.token !== null;
  if (status.isOffline) return;
  try {
    const answer = await get(`${status.address}/api/${login.token ? 'whoami-v2' : 'models?limit=1'}`);
    if (!login.token) return;
    const { name } = (await answer.json()) as { name?: unknown };
    status.account = typeof name === 'string' ? name : null;
  } catch (error) {
    if (error instanceof HttpError && (error.status === 401 || error.status === 403)) status.isRefused = true;
    // Whatever it says, it is there.
    else if (!(error instanceof HttpError && error.status < 500))
      status.failure = `${withCause(error)}${proxies === '' ? '' : `; proxies: ${proxies}`}`;
  }
}

/** Whether the hub answers, and who is logged in. Never throws but `signal.reason`. */
export async function hubStatus(signal?: AbortSignal): Promise<HubStatus> {
  const status: HubStatus = {
    address: '',
    isOffline: isOffline(),
    failure: null,
    login: 'no login was found',
    hasToken: false,
    account: null,
    isRefused: false,
  };
  let connection: Connection | null = null;
  try {
    status.address = hubAddress();
    connection = connect(status.address, signal);
    await ask(status, connection);
  } catch (error) {
    status.failure = reasonOf(error);
  } finally {
    connection?.close();
  }
  signal?.throwIfAborted();
  return status;
}

/** What {@link cacheStatus} found. */
export interface CacheStatus {
  folder: string;
  models: number;
  /** Bytes of the models. */
  bytes: number;
  /** Bytes that the disk has free; null where the system does not tell. */
  freeBytes: number | null;
  /** null: the cache can be written; else why not. */
  readOnly: string | null;
}

/** The cache of the hub. Never throws. */
export async function cacheStatus(): Promise<CacheStatus> {
  const folder = cacheFolder();
  const models = await listCachedModels();
  let existing = folder;
  while (!(await stat(existing).catch(() => null)) && path.dirname(existing) !== existing)
    existing = path.dirname(existing);
  const disk = await statfs(existing).catch(() => null);
  const readOnly = await access(existing, constants.W_OK).then(() => null, reasonOf);
  return {
    folder,
    models: models.length,
    bytes: models.reduce((sum, { bytes }) => sum + bytes, 0),
    freeBytes: disk && disk.bavail * disk.bsize,
    readOnly,
  };
}
