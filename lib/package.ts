// Files of this package that are read at run time, apart from modules.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { bundledError } from './bundled';

/** This package's folder, seen from lib/ as from dist/. */
const ROOT = path.join(__dirname, '..');

let isChecked = false;

/** @throws DUltraError NATIVE_NOT_FOUND where the code runs out of another file than its own, and has no package around it */
export function checkInstalled(): void {
  if (isChecked) return;
  let name: unknown;
  try {
    // Read, since a bundler puts what is required into the bundle.
    name = JSON.parse(readFileSync(path.join(ROOT, 'package.json'), 'utf8')).name;
  } catch {}
  if (name !== 'dultra') throw bundledError();
  isChecked = true;
}

/** Path of a file or folder of this package. @throws as {@link checkInstalled} */
export function packageFile(...parts: string[]): string {
  checkInstalled();
  return path.join(ROOT, ...parts);
}

/** The style of an HTML page: what all pages have, and its own file, as {@link packageFile} takes it. */
export const pageStyle = (...own: string[]): string =>
  [['lib', 'page.css'], own].map((parts) => readFileSync(packageFile(...parts), 'utf8')).join('');

/** A model's folder, for messages: one that lies in this package is known by its name. */
export function shownSource(source: string): string {
  if (path.dirname(source) !== path.join(ROOT, 'models')) return source;
  return `the embedded model "${path.basename(source)}"`;
}
