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
  checkParent(flag, file);
}

/** Refuses a file in a folder that there is not. */
export function checkParent(flag: string, file: string | undefined): void {
  if (file !== undefined && !isFolder(path.dirname(path.resolve(file))))
    throw new UsageError(`${flag}: ${path.dirname(file)} is no folder`);
}

/** The nearest of a path and the folders around it that is there. */
function nearest(target: string): string {
  let at = path.resolve(target);
  while (!existsSync(at) && path.dirname(at) !== at) at = path.dirname(at);
  return at;
}

/** Refuses a folder that is a file or looks like one, and one that cannot be made, since a file is in its way. */
export function checkFolder(flag: string, folder: string | undefined): void {
  if (folder === undefined) return;
  const around = nearest(folder);
  if (!isFolder(around) && around !== path.resolve(folder))
    throw new UsageError(`${flag}: expected a folder, got ${JSON.stringify(folder)}, in which ${around} is a file`);
  const isFile = existsSync(folder) && !isFolder(folder);
  if (isFile || (!existsSync(folder) && /\.(jsonl?|ya?ml|html?|csv|txt|md)$/i.test(folder)))
    throw new UsageError(`${flag}: expected a folder, got ${JSON.stringify(folder)}, a file`);
}
