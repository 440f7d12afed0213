// Downloads one file: resumed after an interruption, checked by size and checksum.
import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import type { ListFileEntry } from '@huggingface/hub';
import { failure, type Repository, retryOrThrow } from './repository';

const PROGRESS_INTERVAL_MS = 100;

/** The received file differs from the one that the hub lists. */
class CorruptFileError extends Error {}

/** Reports progress of one file, about ten times a second. An error of the callback stops the download. */
class Reporter {
  #last = 0;
  hasThrown = false;

  constructor(
    private readonly repository: Repository,
    private readonly file: string,
    private readonly total: number,
  ) {}

  report(received: number, always: boolean): void {
    const { onProgress } = this.repository;
    if (!onProgress || (!always && Date.now() - this.#last < PROGRESS_INTERVAL_MS)) return;
    this.#last = Date.now();
    try {
      onProgress({ file: this.file, received, total: this.total });
    } catch (error) {
      this.hasThrown = true;
      throw error;
    }
  }
}

/** Downloads a file to `partial`, resuming what is there, and checks its size and checksum. */
export async function fetchFile(
  repository: Repository,
  commit: string,
  entry: ListFileEntry,
  total: number,
  partial: string,
): Promise<void> {
  const reporter = new Reporter(repository, entry.path, total);
  for (let attempt = 0, restarts = 0; ; attempt++) {
    const handle = await openForUpdate(partial);
    const part = { begin: (await handle.stat()).size, received: 0 };
    try {
      await receive(repository, commit, entry, total, { file: partial, handle }, part, reporter);
      return;
    } catch (error) {
      repository.signal?.throwIfAborted();
      if (reporter.hasThrown) throw error;
      if (error instanceof CorruptFileError) {
        await handle.truncate(0);
        // The part of an earlier run may be damaged: starts from zero once.
        if (part.begin > 0 && restarts++ === 0) continue;
        throw failure(repository, entry.path, error.message, error);
      }
      if (part.received > part.begin) attempt = 0;
      await retryOrThrow(repository, entry.path, attempt, error);
    } finally {
      await handle.close();
    }
  }
}

/** One attempt: fetches the missing bytes and checks the whole file. `part` gets the bytes before and after. */
async function receive(
  repository: Repository,
  commit: string,
  entry: ListFileEntry,
  total: number,
  { file, handle }: { file: string; handle: FileHandle },
  part: { begin: number; received: number },
  reporter: Reporter,
): Promise<void> {
  if (part.begin > total) {
    await handle.truncate(0);
    part.begin = 0;
  }
  part.received = part.begin;
  const hash = newHash(entry, total);
  if (hash && part.begin > 0)
    for await (const chunk of createReadStream(file, { end: part.begin - 1, signal: repository.signal }))
      hash.update(chunk as Buffer);
  reporter.report(part.received, true);
  if (part.begin < total)
    await fetchRange(repository, urlOf(repository, commit, entry.path), part.begin, total, async (chunk) => {
      await writeFully(handle, chunk, part.received);
      hash?.update(chunk);
      part.received += chunk.length;
      reporter.report(part.received, false);
    });
  if (part.received !== total) throw new Error(`${part.received} of ${total} bytes arrived`);
  if (hash && hash.digest('hex') !== (entry.lfs?.oid ?? entry.oid))
    throw new CorruptFileError('its checksum is not the one that the hub lists');
  await handle.sync();
  reporter.report(total, true);
}

function urlOf({ hubUrl, type, id }: Repository, commit: string, file: string): string {
  const name = file.split('/').map(encodeURIComponent).join('/');
  return `${hubUrl}/${type === 'dataset' ? 'datasets/' : ''}${id}/resolve/${commit}/${name}`;
}

/** Requests bytes `begin` to `total` of a file and passes them to `write` in order. */
async function fetchRange(
  repository: Repository,
  url: string,
  begin: number,
  total: number,
  write: (chunk: Uint8Array) => Promise<void>,
): Promise<void> {
  // Compressed responses have no byte ranges.
  const headers: Record<string, string> = { 'Accept-Encoding': 'identity' };
  if (begin > 0) headers.Range = `bytes=${begin}-`;
  const response = await repository.connection.open(url, headers);
  let skip = 0;
  if (begin > 0) {
    // A server without ranges sends the whole file.
    if (response.status === 200) skip = begin;
    else if (!response.headers.get('content-range')?.startsWith(`bytes ${begin}-`)) {
      response.end();
      throw new Error(`asked for bytes from ${begin}, the server sent ${response.headers.get('content-range')}`);
    }
  }
  let position = begin - skip;
  for await (const chunk of response.chunks) {
    const from = Math.min(Math.max(begin - position, 0), chunk.length);
    position += chunk.length;
    if (position > total) throw new CorruptFileError(`more than the ${total} bytes arrived that the hub lists`);
    if (from < chunk.length) await write(chunk.subarray(from));
  }
}

/** The hash that the hub lists: SHA-256 for LFS files, git's blob SHA-1 for others; null: neither is listed. */
function newHash(entry: ListFileEntry, total: number): Hash | null {
  if (entry.lfs) return createHash('sha256');
  if (entry.xetHash || entry.oid?.length !== 40) return null;
  return createHash('sha1').update(`blob ${total}\0`);
}

/** Opens for reading and writing at any position, without truncating. */
async function openForUpdate(file: string): Promise<FileHandle> {
  await (await open(file, 'a')).close();
  return open(file, 'r+');
}

async function writeFully(handle: FileHandle, chunk: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < chunk.length; )
    done += (await handle.write(chunk, done, chunk.length - done, position + done)).bytesWritten;
}
