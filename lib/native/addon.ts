// Finds and opens the native addon.
import { existsSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { DUltraError } from '../errors';
import { packageFile } from '../package';
import { reasonOf } from '../text';
import { wrapAddon } from './errors';
import type { NativeAddon } from './types';

let loaded: NativeAddon | undefined;
/** The file that was loaded, in the package's folder. */
let loadedFile: string | null = null;
/** Files that were not, each with the reason. */
let skipped: readonly string[] = [];

/**
 * Files that may be the addon for this platform, best first: what node-gyp-build picks (a local build before a prebuilt
 * binary), then the rest.
 */
function candidates(root: string, attempts: string[]): string[] {
  const files: string[] = [];
  try {
    const { resolve } = require('node-gyp-build') as { resolve(folder: string): string };
    files.push(resolve(root));
  } catch (error) {
    // "No native build was found for platform=…", and the folder on a second line.
    attempts.push((error as Error).message.split('\n')[0]);
  }
  const own = path.join(root, 'prebuilds', `${process.platform}-${process.arch}`);
  for (const name of existsSync(own) ? readdirSync(own).sort() : [])
    if (name.endsWith('.node') && !files.includes(path.join(own, name))) files.push(path.join(own, name));
  return files;
}

/** Advice for a machine where no addon loads. */
function advice(root: string): string {
  const prebuilds = path.join(root, 'prebuilds');
  const platforms = existsSync(prebuilds) ? readdirSync(prebuilds).sort().join(', ') : '';
  const compiler = process.platform === 'win32' ? 'Visual Studio 2022 with its Clang tools' : 'a C++17 compiler';
  return (
    `This package brings prebuilt binaries for ${platforms || 'no platform'}. To build one here (needs CMake 3.24 and ${compiler}), run ` +
    '"npm run build:native" in a clone, "npm explore dultra -- npm run build:native" where dultra is installed.'
  );
}

/**
 * Opens the addon on first use: build/Release of this package, else prebuilds/<platform>. A file that does not load, or
 * belongs to another version of the package, is skipped.
 * @throws DUltraError NATIVE_NOT_FOUND with every attempt, and what to do.
 */
export function native(): NativeAddon {
  if (loaded) return loaded;
  const root = packageFile();
  const { version } = require('../../package.json') as { version: string };
  const attempts: string[] = [];
  let cause: unknown;
  for (const file of candidates(root, attempts)) {
    const name = path.relative(root, file);
    try {
      const addon = require(file) as NativeAddon;
      if (addon.version === version) {
        loaded = wrapAddon(addon);
        loadedFile = name;
        skipped = attempts;
        return loaded;
      }
      attempts.push(`${name}: is of version ${addon.version}, the package of ${version}`);
    } catch (error) {
      cause ??= error;
      attempts.push(`${name}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  throw new DUltraError(
    'NATIVE_NOT_FOUND',
    `dultra's native addon could not be loaded for ${process.platform}-${process.arch}, Node ${process.version}:\n` +
      `${attempts.map((attempt) => `  - ${attempt}\n`).join('')}${advice(root)}`,
    { cause },
  );
}

/** Which file is the addon here, which ones could not be, and why there is none. */
export function addonReport(): { file: string | null; skipped: readonly string[]; error: string | null } {
  let error: string | null = null;
  try {
    native();
  } catch (cause) {
    error = reasonOf(cause);
  }
  return { file: loadedFile, skipped, error };
}
