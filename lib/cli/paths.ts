// Files and folders that commands write: what looks like the one does not quietly become the other.
import { existsSync, statSync } from 'node:fs';
import path from 'node:path';
import { UsageError } from './errors';

const isFolder = (target: string): boolean => existsSync(target) && statSync(target).isDirectory();

/** Refuses a file that is a folder or looks like one, and a file in a folder that there is not. */
export function checkFile(flag: string, file: string | undefined, example: string): void {
  if (file === undefined) return;
  const looksLikeFolder = /[\\/]$/.test(file) || (path.extname(file) === '' && !existsSync(file));
  if (isFolder(file) || looksLikeFolder)
    throw new UsageError(`${flag}: expected a file such as ${example}, got ${JSON.stringify(file)}, a folder`);
  const folder = path.dirname(path.resolve(file));
  if (!isFolder(folder)) throw new UsageError(`${flag}: ${path.dirname(file)} is no folder`);
}

/** Refuses a folder that is a file or looks like one. */
export function checkFolder(flag: string, folder: string | undefined): void {
  if (folder === undefined) return;
  const isFile = existsSync(folder) && !isFolder(folder);
  if (isFile || (!existsSync(folder) && /\.(jsonl?|ya?ml|html?|csv|txt|md)$/i.test(folder)))
    throw new UsageError(`${flag}: expected a folder, got ${JSON.stringify(folder)}, a file`);
}
