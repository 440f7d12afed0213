// Optional packages: large, and needed by some tasks only.
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { DUltraError } from '../errors';
import { packageFile } from '../package';

const { peerDependencies } = require('../../package.json') as { peerDependencies: Record<string, string> };

function notFound(name: string, what: string, cause?: unknown): DUltraError {
  const install = process.versions.pnp ? 'yarn add' : 'npm install';
  const command = `${install} ${name}@${peerDependencies[name]}`;
  return new DUltraError('PACKAGE_NOT_FOUND', `${what} needs the package ${name}: ${command}`, { cause });
}

/** The file that `require` loads for an optional package. @throws as {@link optionalPackage} */
function optionalModule(name: string, what: string): string {
  try {
    // As the package manager has it: Yarn's Plug'n'Play has no node_modules.
    return createRequire(__filename).resolve(name);
  } catch (cause) {
    throw notFound(name, what, cause);
  }
}

/** Copies of packages that lie in an archive, by the folder there. */
const copies = new Map<string, string>();

/** A folder that other processes can read, too: Plug'n'Play keeps packages in archives, which only its own see. */
function onDisk(folder: string): string {
  if (process.versions.pnp === undefined || !/\.zip[\\/]/.test(folder)) return folder;
  const known = copies.get(folder);
  if (known !== undefined) return known;
  const copy = mkdtempSync(path.join(os.tmpdir(), 'dultra-package-'));
  process.on('exit', () => rmSync(copy, { recursive: true, force: true }));
  cpSync(folder, copy, { recursive: true });
  copies.set(folder, copy);
  return copy;
}

/** Folder of an optional package. @throws DUltraError PACKAGE_NOT_FOUND naming the command that installs it */
export function optionalPackage(name: string, what: string): string {
  // By hand, since not every package lets its package.json be required.
  for (let folder = path.dirname(optionalModule(name, what)); ; folder = path.dirname(folder)) {
    const file = path.join(folder, 'package.json');
    if (existsSync(file) && JSON.parse(readFileSync(file, 'utf8')).name === name) return onDisk(folder);
    if (folder === path.dirname(folder)) throw notFound(name, what);
  }
}

/** A module of this folder that runs in a thread or process of its own, in its compiled form. */
export function compiledModule(name: string): string {
  // The compiled ones also in tests, which run the sources.
  return packageFile('dist', 'grading', `${name}.js`);
}
