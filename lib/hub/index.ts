// Downloads checkpoints and data sets from a hub into the cache folder that Hugging Face's own clients use: resumable,
// each file atomically.
//
// The official client resolves revisions and lists files. The bytes are fetched here: the client's own download
// restarts from zero after an interruption, reports no progress and takes no signal.
import path from 'node:path';
import { getRepoFolderName, type ListFileEntry } from '@huggingface/hub';
import { DUltraError, isDUltraError } from '../errors';
import { chooseWeightFiles, INDEX_FILE, readWeightIndex } from '../files/weight-files';
import {
  bringFile,
  cachedCommit,
  checkSpace,
  isComplete,
  missingBytes,
  namesIn,
  sizeOf,
  snapshotOf,
  type Wanted,
  writeRef,
} from './cache';
import { connect } from './connection';
import { cacheFolder, hubAddress, isOffline } from './environment';
import { failure, NAME, parseHubId, type Repository, readCommit } from './repository';
import type { DownloadOptions } from './types';

export { parseHubId } from './repository';
export type { DownloadOptions, DownloadProgress } from './types';

/** Options of those who call for a source that may be a path, too. */
export interface SourceOptions extends DownloadOptions {
  /** What the source is not, said where the hub has no such repository either: "no folder ./nothing". */
  otherwise?: string;
}

/** What is asked of a model before its weights are downloaded; an error stops the download. */
export interface ModelChecks {
  /** Whether it can be run. @param folder with its files other than weights, the index of the weights included */
  canRun?: (folder: string, name: string) => Promise<void>;
  /** Whether it fits. @param bytes of its weights */
  fits?: (bytes: number, name: string) => void;
}

/** Files of a checkpoint other than weights. */
const SMALL_FILES = [
  'config.json',
  'generation_config.json',
  'decision.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
  INDEX_FILE,
];

/** A repository and its state in the cache. */
interface Located {
  /** Created on use: an offline run must not fail on a wrong HF_ENDPOINT or HF_TOKEN. */
  open: () => Repository;
  name: string;
  /** Folder of this repository in the cache. */
  folder: string;
  /** The cached commit of the revision; null: none. */
  cached: string | null;
  /** Begins messages about a repository of which nothing is known; empty, or "no folder ./nothing, and the hub: ". */
  prefix: string;
}

async function locate(type: Repository['type'], source: string, options: SourceOptions): Promise<Located> {
  const { id, revision } = parseHubId(source, options.revision);
  const { signal, onProgress } = options;
  signal?.throwIfAborted();
  const folder = path.join(cacheFolder(), getRepoFolderName({ type, name: id }));
  const open = (): Repository => {
    const hubUrl = hubAddress();
    return { type, id, revision, hubUrl, folder, connection: connect(hubUrl, signal), signal, onProgress };
  };
  const cached = await cachedCommit(folder, revision);
  const prefix = cached !== null || options.otherwise === undefined ? '' : `${options.otherwise}, and the hub: `;
  return { open, name: `${id}@${revision}`, folder, cached, prefix };
}

/** {@link readCommit}, whose error also says what the source is not. */
async function commitOf(repository: Repository, { prefix }: Located) {
  try {
    return await readCommit(repository);
  } catch (error) {
    if (prefix === '' || !isDUltraError(error, 'DOWNLOAD_FAILED')) throw error;
    throw new DUltraError('DOWNLOAD_FAILED', prefix + error.message, { cause: error.cause });
  }
}

/** Downloads from a repository; the error says so where the cache has a complete copy. */
async function online<T>(
  { open }: Located,
  hasCopy: boolean,
  bring: (repository: Repository) => Promise<T>,
): Promise<T> {
  const opened = open();
  try {
    return await bring(opened);
  } catch (error) {
    if (opened.signal?.aborted) throw opened.signal.reason;
    if (isDUltraError(error, 'DOWNLOAD_FAILED') && hasCopy)
      throw new DUltraError(
        'DOWNLOAD_FAILED',
        `${error.message}; the cache has a complete copy, which HF_HUB_OFFLINE=1 uses`,
        { cause: error },
      );
    throw error;
  } finally {
    opened.connection.close();
  }
}

/** Brings files into the cache, in order. */
async function bringAll(repository: Repository, commit: string, files: readonly Wanted[]): Promise<void> {
  for (const file of files) await bringFile(repository, commit, file);
}

/**
 * Downloads a checkpoint into the cache and returns its folder. Fetches only files that {@link loadModel} reads, the
 * weights last, once `checks` have passed and the disk has room for them. Interrupted downloads resume, also in another
 * process; sizes and checksums are checked; files appear in the cache atomically. A cache that has everything may be
 * read-only.
 *
 * Environment: HF_HUB_CACHE, HF_HOME (where the cache lies), HF_ENDPOINT (another hub), HF_TOKEN, HF_TOKEN_PATH (private
 * and gated repositories), HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, HF_HUB_ETAG_TIMEOUT, HF_HUB_DOWNLOAD_TIMEOUT
 * (seconds that the hub may send nothing), HF_HUB_OFFLINE=1 (the cache alone, no requests).
 * @param source "org/name" or "org/name@revision"
 * @throws TypeError for an id that is none; DUltraError DOWNLOAD_FAILED naming repository, file and HTTP status;
 * `signal.reason`.
 */
export async function downloadModel(
  source: string,
  options: SourceOptions = {},
  checks: ModelChecks = {},
): Promise<string> {
  const located = await locate('model', source, options);
  const { name, folder, cached, prefix } = located;
  const complete = cached !== null && (await isComplete(snapshotOf(folder, cached)));
  // A commit never changes.
  if (complete && (isOffline() || name.endsWith(`@${cached}`))) return snapshotOf(folder, cached);
  if (isOffline()) {
    const state = cached === null ? 'not' : 'not completely';
    throw new DUltraError(
      'DOWNLOAD_FAILED',
      `${prefix}${name}: HF_HUB_OFFLINE is set and the checkpoint is ${state} in the cache (${folder})`,
    );
  }
  return online(located, complete, async (repository) => {
    const { commit, entries } = await commitOf(repository, located);
    if (!entries.has('config.json'))
      throw failure(repository, 'config.json', 'the repository has no such file; is it a language model?');
    const snapshot = snapshotOf(folder, commit);
    const wanted = (file: string): Wanted => {
      const entry = entries.get(file);
      if (!entry) throw failure(repository, file, `the repository has no such file, which its ${INDEX_FILE} names`);
      return { entry, target: path.join(snapshot, file) };
    };
    await bringAll(repository, commit, SMALL_FILES.filter((file) => entries.has(file)).map(wanted));
    const weights = (await weightFiles(repository, snapshot, entries)).map(wanted);
    const missing = await missingBytes(repository, weights);
    if (missing > 0) {
      await checks.canRun?.(snapshot, name);
      await checkSpace(repository, missing);
      checks.fits?.(sizeOf(weights), name);
    }
    // Weights last: a snapshot with all of them is complete.
    await bringAll(repository, commit, weights);
    await writeRef(repository, commit);
    return snapshot;
  });
}

/**
 * Downloads the files that `choose` picks from all names of a repository ("folder/name") and returns their paths, in
 * its order. As {@link downloadModel}; offline, `choose` sees the cached names.
 * @throws as {@link downloadModel}.
 */
export async function downloadFiles(
  type: 'model' | 'dataset',
  source: string,
  choose: (names: readonly string[]) => readonly string[],
  options: SourceOptions = {},
): Promise<string[]> {
  const located = await locate(type, source, options);
  const { name, folder, cached, prefix } = located;
  const held = cached === null ? [] : choose(await namesIn(snapshotOf(folder, cached)));
  const paths = (commit: string, files: readonly string[]) =>
    files.map((file) => path.join(snapshotOf(folder, commit), ...file.split('/')));
  if (isOffline()) {
    if (cached === null)
      throw new DUltraError(
        'DOWNLOAD_FAILED',
        `${prefix}${name}: HF_HUB_OFFLINE is set and the cache has nothing of it (${folder})`,
      );
    return paths(cached, held);
  }
  return online(located, held.length > 0, async (repository) => {
    const { commit, entries } = await commitOf(repository, located);
    // Names become paths: none may leave the folder.
    const safe = [...entries.keys()].filter((file) =>
      file.split('/').every((part) => NAME.test(part) && part !== '..'),
    );
    const files = choose(safe);
    const wanted = paths(commit, files).map((target, i) => ({ entry: entries.get(files[i]) as ListFileEntry, target }));
    await checkSpace(repository, await missingBytes(repository, wanted));
    await bringAll(repository, commit, wanted);
    await writeRef(repository, commit);
    return paths(commit, files);
  });
}

/** The files with weights, chosen as in a folder. */
async function weightFiles(
  repository: Repository,
  snapshot: string,
  entries: ReadonlyMap<string, ListFileEntry>,
): Promise<string[]> {
  const names = new Set([...entries.keys()].filter((name) => NAME.test(name)));
  const found = await chooseWeightFiles(names, () => readWeightIndex(path.join(snapshot, INDEX_FILE)));
  if (found.length === 0)
    throw failure(repository, null, 'the repository has no *.safetensors file; other formats are not read');
  return found;
}
