// The cache folder that Hugging Face's own clients use: blobs named by checksum, snapshots of links to them, refs.
import { randomUUID } from 'node:crypto';
import { access, constants, mkdir, readdir, readFile, rename, rm, stat, statfs, symlink } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { threadId } from 'node:worker_threads';
import type { ListFileEntry } from '@huggingface/hub';
import type { DUltraError } from '../errors';
import { writeFileAtomic } from '../files/atomic';
import { findSafetensors } from '../files/weight-files';
import { isRunning } from '../process';
import { formatGiB } from '../text';
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

/** The folder, or the nearest one above it that exists. */
async function nearestFolder(folder: string): Promise<string> {
  let found = folder;
  while (!(await stat(found).catch(() => null)) && path.dirname(found) !== found) found = path.dirname(found);
  return found;
}

/** Why the cache may not be written (mounted read-only, another user's); null: `error` has another reason. */
async function readOnlyReason(folder: string, error: unknown): Promise<string | null> {
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === 'EROFS' || code === 'EACCES' || code === 'EPERM') return message;
  // Making several folders at once fails with ENOENT on a read-only file system.
  return access(await nearestFolder(folder), constants.W_OK).then(
    () => null,
    (reason: Error) => reason.message,
  );
}

/** A failure to write to the cache. */
async function writeFailure(repository: Repository, file: string, error: unknown): Promise<DUltraError> {
  const reason = await readOnlyReason(repository.folder, error);
  const text =
    reason === null
      ? (error as Error).message
      : `it is not in the cache, which cannot be written (${reason}); HF_HUB_CACHE or HF_HOME names another folder`;
  return failure(repository, file, text, error);
}

/** Records the revision's commit in the cache, where that can be written: the next call asks the hub again. */
export async function writeRef(repository: Repository, commit: string): Promise<void> {
  const { folder, revision } = repository;
  if (revision === commit || (await cachedCommit(folder, revision)) === commit) return;
  const file = path.join(folder, 'refs', ...revision.split('/'));
  try {
    await mkdir(path.dirname(file), { recursive: true });
    await writeFileAtomic(file, commit);
  } catch (error) {
    if ((await readOnlyReason(folder, error)) === null)
      throw failure(repository, null, (error as Error).message, error);
  }
}

/** A file's size, and its place in `blobs/`, where it is named by its checksum as the official clients do. */
function blobOf(repository: Repository, entry: ListFileEntry): { blob: string; total: number } {
  const checksum = entry.lfs?.oid ?? entry.xetHash ?? entry.oid ?? '';
  const total = entry.lfs?.size ?? entry.size;
  if (!/^[0-9a-f]{40,64}$/.test(checksum) || !Number.isSafeInteger(total) || total < 0)
    throw failure(
      repository,
      entry.path,
      `the hub lists it without checksum or size (${JSON.stringify(checksum)}, ${total})`,
    );
  return { blob: path.join(repository.folder, 'blobs', checksum), total };
}

/** A file of a repository, and its place in a snapshot. */
export interface Wanted {
  entry: ListFileEntry;
  target: string;
}

/** Bytes of files, as the hub lists them. */
export const sizeOf = (files: readonly Wanted[]): number =>
  files.reduce((sum, { entry }) => sum + (entry.lfs?.size ?? entry.size), 0);

/** Bytes of the files that the cache lacks. */
export async function missingBytes(repository: Repository, files: readonly Wanted[]): Promise<number> {
  const missing = new Map<string, number>();
  for (const { entry, target } of files) {
    const { blob, total } = blobOf(repository, entry);
    if ((await hasSize(target, total)) || (await hasSize(blob, total))) continue;
    const partial = (await partialFiles(blob)).reduce((most, { size }) => Math.max(most, size), 0);
    missing.set(blob, Math.max(0, total - partial));
  }
  return [...missing.values()].reduce((sum, bytes) => sum + bytes, 0);
}

/** @throws DUltraError DOWNLOAD_FAILED where the disk of the cache has no room for so many bytes */
export async function checkSpace(repository: Repository, bytes: number): Promise<void> {
  const disk = await statfs(await nearestFolder(repository.folder)).catch(() => null);
  // Some network file systems do not know their size.
  if (!disk || disk.blocks === 0 || disk.bavail * disk.bsize >= bytes) return;
  throw failure(
    repository,
    null,
    `the download needs ${formatGiB(bytes)} more on the disk of ${repository.folder}, ` +
      `${formatGiB(disk.bavail * disk.bsize)} are free; HF_HUB_CACHE or HF_HOME names another folder`,
  );
}

/** Downloads one file to `blobs/`, and links it into the snapshot. Writes nothing where it is there. */
export async function bringFile(repository: Repository, commit: string, { entry, target }: Wanted): Promise<void> {
  const { blob, total } = blobOf(repository, entry);
  if (await hasSize(target, total)) return;
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
    if (isFileSystemError(error)) throw await writeFailure(repository, entry.path, error);
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

/** Partial files of a blob, with their sizes; `isOwned`: a process that may still write it. */
async function partialFiles(blob: string): Promise<{ file: string; size: number; isOwned: boolean }[]> {
  const prefix = `${path.basename(blob)}.`;
  const found: { file: string; size: number; isOwned: boolean }[] = [];
  for (const name of await readdir(path.dirname(blob)).catch(() => [])) {
    if (!name.startsWith(prefix) || !name.endsWith('.incomplete')) continue;
    const file = path.join(path.dirname(blob), name);
    const info = await stat(file).catch(() => null);
    if (!info) continue;
    const writer = name.slice(prefix.length).match(/^([\w-]+)\.(\d+)-\d+\./);
    const isAlive = writer === null || writer[1] !== safeHost() || isRunning(Number(writer[2]));
    found.push({ file, size: info.size, isOwned: isAlive && Date.now() - info.mtimeMs < ABANDONED_MS });
  }
  return found;
}

/**
 * The name of this thread's partial file for a blob. Every writer has its own file, so that writers cannot overwrite
 * each other; the largest file whose writer is gone is renamed to it.
 */
async function claimPartial(blob: string): Promise<string> {
  const own = `${blob}.${safeHost()}.${process.pid}-${threadId}.incomplete`;
  const free = (await partialFiles(blob)).filter(({ file, isOwned }) => file === own || !isOwned);
  const best = free.sort((a, b) => b.size - a.size)[0];
  if (best !== undefined && best.file !== own)
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
