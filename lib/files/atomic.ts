// Atomic, durable writes: after a crash or power cut a file is complete or absent.
import { randomUUID } from 'node:crypto';
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { DUltraError } from '../errors';

/** A file or folder that could not be written, with the system's reason. */
export function writeError(target: string, cause: unknown): unknown {
  const { code } = cause as { code?: unknown };
  // Only errors of the file system are expected; any other keeps its stack.
  if (typeof code !== 'string' || !/^E[A-Z0-9]+$/.test(code)) return cause;
  const hint =
    code === 'ENOSPC' || code === 'EFBIG' || code === 'EDQUOT' ? ' (the disk is full, or a limit is reached)' : '';
  return new DUltraError('WRITE_FAILED', `${target}: ${(cause as Error).message}${hint}`, { cause });
}

/** Makes renames and new files in `folder` durable. */
export async function syncFolder(folder: string): Promise<void> {
  // Windows cannot open folders; its renames are journalled.
  if (process.platform === 'win32') return;
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Makes an already written file durable. */
export async function syncFile(file: string): Promise<void> {
  const handle = await open(file, 'r+');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Writes a file atomically and durably; `write` fills it. */
export async function writeAtomically(file: string, write: (handle: FileHandle) => Promise<void>): Promise<void> {
  const temporary = `${file}.${process.pid}.${randomUUID()}.tmp`;
  try {
    const handle = await open(temporary, 'wx');
    try {
      await write(handle);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, file);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

/** {@link writeAtomically} of a text. */
export const writeFileAtomic = (file: string, text: string): Promise<void> =>
  writeAtomically(file, (handle) => handle.writeFile(text));
