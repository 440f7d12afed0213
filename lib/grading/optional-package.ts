// Optional packages: large, and needed by some tasks only.
import { existsSync } from 'node:fs';
import path from 'node:path';
import { DUltraError } from '../errors';

const { peerDependencies } = require('../../package.json') as { peerDependencies: Record<string, string> };

/** Folder of an optional package. @throws DUltraError PACKAGE_NOT_FOUND naming the command that installs it */
export function optionalPackage(name: string, what: string): string {
  // By hand, since not every package lets its package.json be required.
  for (const folder of require.resolve.paths(name) ?? [])
    if (existsSync(path.join(folder, name, 'package.json'))) return path.join(folder, name);
  throw new DUltraError(
    'PACKAGE_NOT_FOUND',
    `${what} needs the package ${name}: npm install ${name}@${peerDependencies[name]}`,
  );
}

/** A module of this folder that runs in a thread or process of its own, in its compiled form. */
export function compiledModule(name: string): string {
  const beside = path.join(__dirname, `${name}.js`);
  // The sources themselves run in tests.
  return existsSync(beside) ? beside : path.join(__dirname, '..', '..', 'dist', 'grading', `${name}.js`);
}
