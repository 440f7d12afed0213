// The cache folder that Hugging Face's own clients use: blobs named by checksum, snapshots of links to them, refs.
import { randomUUID } from 'node:crypto';
import { access, mkdir, readdir, readFile, rename, rm, stat, symlink } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { threadId } from 'node:worker_threads';
import type { ListFileEntry } from '@huggingface/hub';
import { writeFileAtomic } from '../files/atomic';
import { findSafetensors } from '../files/weight-files';
import { isRunning } from '../process';
import { COMMIT, failure, isFileSystemError, type Repository } from './repository';
import { fetchFile } from './transfer';

/** A partial file untouched for this long is abandoned: writers give up idle connections earlier. */
const ABANDONED_MS = 600_000;

/** The folder of a commit's files. */
export const snapshotOf = (folder: string, commit: string) => path.join(folder, 'snapshots', commit);

/** The cached commit of a revision; null: none. */
export async function cachedCommit(folder: string, revision: string): Promise<string | null> {
  if (COMMIT.test(revision)) return revision;
  try {
    const commit = (await readFile(path.join(folder, 'refs', ...revision.split('/')), 'utf8')).trim();
    return COMMIT.test(commit) ? commit : null;
  } catch {
    return null;
  }
}

/** Whether a snapshot has a config and all its weights. */
export async function isComplete(snapshot: string): Promise<boolean> {
  try {
    await access(path.join(snapshot, 'config.json'));
    for (const file of await findSafetensors(snapshot)) await access(file);
    return true;
  } catch {
    return false;
  }
}

/** Names of the files of a snapshot; empty if it does not exist. */
export async function namesIn(snapshot: string): Promise<string[]> {
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

/** Records the revision's commit in the cache. */
export async function writeRef(repository: Repository, commit: string): Promise<void> {
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

/** Downloads one file to `blobs/`, named by its checksum as the official clients do, and links it into the snapshot. */
export async function bringFile(
  repository: Repository,
  commit: string,
  entry: ListFileEntry,
  target: string,
): Promise<void> {
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
      if (await hasSize(blob, total)) return;
      const partial = await claimPartial(blob);
      await fetchFile(repository, commit, entry, total, partial);
      await rename(partial, blob);
    });
    await linkFile(blob, target);
  } catch (error) {
    repository.signal?.throwIfAborted();
    if (isFileSystemError(error)) throw failure(repository, entry.path, (error as Error).message, error);
    throw error;
  }
}

/** Downloads in progress in this thread, by blob. */
const underWay = new Map<string, Promise<unknown>>();

/** Runs `work` once no other call in this thread works on `key`. */
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
 * The name of this thread's partial file for a blob. Every writer has its own file, so that writers cannot overwrite
 * each other; the largest file whose writer is gone is renamed to it.
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
    // Another writer may have claimed it first: then this download starts from zero.
    await rename(best.file, own).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error;
    });
  return own;
}

async function hasSize(file: string, bytes: number): Promise<boolean> {
  return stat(file).then(
    (info) => info.isFile() && info.size === bytes,
    () => false,
  );
}

/** Links a blob into the snapshot, or moves it where links are not allowed (Windows without developer mode). */
async function linkFile(blob: string, target: string): Promise<void> {
  // Created under another name and renamed, so that the name in the snapshot never dangles.
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
