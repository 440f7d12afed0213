// Two processes that write one run folder would remove each other's checkpoints. A lock file names the process that
// writes; the lock of one that is gone, killed included, counts for nothing.

import { readFile, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { optionError } from '../errors';
import { isRunning, startTime } from '../process';

interface Holder {
  pid: number;
  host: string;
  /** See {@link startTime}. */
  started: string | null;
}

const LOCK_FILE = '.lock';
/** Pauses for a lock that has no name in it yet: 10 seconds in all, since its process may have to wait for a core. */
const WAIT_MS = 50;
const LAST_WAIT = 200;
/** Pauses for a holder that runs: 2 seconds in all, since one that has been killed may still be on its way out. */
const LAST_HELD = 40;
/** Locks held by this process, worker threads apart. */
const held = new Set<string>();

/**
 * Takes the lock of a folder that exists.
 * @returns what gives it back
 * @throws RangeError where another run is writing the folder.
 */
export async function lockRun(folder: string): Promise<() => Promise<void>> {
  const file = path.resolve(folder, LOCK_FILE);
  const own: Holder = { pid: process.pid, host: os.hostname(), started: startTime(process.pid) };
  for (let attempt = 0; attempt < LAST_WAIT + 5; attempt++) {
    try {
      await writeFile(file, JSON.stringify(own), { flag: 'wx' });
      held.add(file);
      return async () => {
        held.delete(file);
        await rm(file, { force: true });
      };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    let holder: Holder | null = null;
    try {
      holder = JSON.parse(await readFile(file, 'utf8')) as Holder;
    } catch {
      // Gone meanwhile; or its process has yet to write its name, or was killed before it did.
      if (attempt < LAST_WAIT) {
        await sleep(WAIT_MS);
        continue;
      }
    }
    const isOwn = holder?.pid === own.pid && holder.host === own.host && holder.started === own.started;
    const isTaken =
      holder !== null && (isOwn ? held.has(file) : holder.host !== own.host || isRunning(holder.pid, holder.started));
    if (isTaken && !isOwn && attempt < LAST_HELD) {
      await sleep(WAIT_MS);
      continue;
    }
    if (isTaken)
      throw optionError(
        RangeError,
        'outputDir',
        `${folder} is being written by process ${holder!.pid} on ${holder!.host}; ` +
          `end it first, or remove ${file} if it is gone`,
      );
    await rm(file, { force: true });
  }
  throw optionError(RangeError, 'outputDir', `${folder} is being written by other processes`);
}
