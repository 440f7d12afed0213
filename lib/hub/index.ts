// Downloads checkpoints and data sets from a hub into the cache folder that Hugging Face's own clients use: resumable,
// each file atomically.
//
// The official client resolves revisions and lists files. The bytes are fetched here: the client's own download
// restarts from zero after an interruption, reports no progress and takes no signal.
import path from 'node:path';
import { getHFHubCachePath, getRepoFolderName, HUB_URL, type ListFileEntry } from '@huggingface/hub';
import { DUltraError, isDUltraError } from '../errors';
import { chooseWeightFiles, INDEX_FILE, readWeightIndex } from '../files/weight-files';
import { bringFile, cachedCommit, isComplete, namesIn, snapshotOf, writeRef } from './cache';
import {
  authorisedFetch,
  type DownloadProgress,
  failure,
  NAME,
  parseHubId,
  type Repository,
  readCommit,
} from './repository';

export { type DownloadProgress, parseHubId } from './repository';

/** Options of {@link downloadModel}. */
export interface DownloadOptions {
  /** Branch, tag or commit. Default: the part of the id after "@", else "main". */
  revision?: string;
  /** Stops the download; the next call resumes it. */
  signal?: AbortSignal;
  /**
   * Called when a file begins, about ten times a second while it arrives, and when it is complete. An error thrown here
   * stops the download.
   */
  onProgress?: (progress: DownloadProgress) => void;
}

/** Files of a checkpoint other than weights. */
const SMALL_FILES = [
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  INDEX_FILE,
];

/** A repository and its state in the cache. */
interface Located {
  /** Created on use: an offline run must not fail on a wrong HF_ENDPOINT or HF_TOKEN. */
  repository: () => Repository;
  name: string;
  /** Folder of this repository in the cache. */
  folder: string;
  /** The cached commit of the revision; null: none. */
  cached: string | null;
  isOffline: boolean;
}

async function locate(type: Repository['type'], source: string, options: DownloadOptions): Promise<Located> {
  const { id, revision } = parseHubId(source, options.revision);
  const { signal, onProgress } = options;
  signal?.throwIfAborted();
  const folder = path.join(getHFHubCachePath(), getRepoFolderName({ type, name: id }));
  const repository = (): Repository => {
    const hubUrl = (process.env.HF_ENDPOINT || HUB_URL).replace(/\/+$/, '');
    if (!/^https?:\/\//.test(hubUrl) || !URL.canParse(hubUrl))
      throw new DUltraError(
        'DOWNLOAD_FAILED',
        `HF_ENDPOINT: expected an http or https URL, got ${JSON.stringify(hubUrl)}`,
      );
    return { type, id, revision, hubUrl, folder, fetch: authorisedFetch(hubUrl, signal), signal, onProgress };
  };
  const cached = await cachedCommit(folder, revision);
  const isOffline = /^(1|true|yes|on)$/i.test(process.env.HF_HUB_OFFLINE ?? '');
  return { repository, name: `${id}@${revision}`, folder, cached, isOffline };
}

/** Downloads from a repository; the error says so where the cache has a complete copy. */
async function online<T>(
  { repository }: Located,
  hasCopy: boolean,
  bring: (repository: Repository) => Promise<T>,
): Promise<T> {
  const opened = repository();
  try {
    return await bring(opened);
  } catch (error) {
    if (opened.signal?.aborted) throw opened.signal.reason;
    if (isDUltraError(error, 'DOWNLOAD_FAILED') && hasCopy)
      throw new DUltraError(
        'DOWNLOAD_FAILED',
        `${error.message}; the cache has a complete copy, which HF_HUB_OFFLINE=1 uses`,
        {
          cause: error,
        },
      );
    throw error;
  }
}

/**
 * Downloads a checkpoint into the cache and returns its folder. Fetches only files that {@link loadModel} reads.
 * Interrupted downloads resume, also in another process; sizes and checksums are checked; files appear in the cache
 * atomically.
 *
 * Environment: HF_HUB_CACHE, HF_HOME (where the cache lies), HF_ENDPOINT (another hub), HF_TOKEN (private and gated
 * repositories), HF_HUB_OFFLINE=1 (the cache alone, no requests).
 * @param source "org/name" or "org/name@revision"
 * @throws TypeError for an id that is none; DUltraError DOWNLOAD_FAILED naming repository, file and HTTP status;
 * `signal.reason`.
 */
export async function downloadModel(source: string, options: DownloadOptions = {}): Promise<string> {
  const located = await locate('model', source, options);
  const { name, folder, cached, isOffline } = located;
  const complete = cached !== null && (await isComplete(snapshotOf(folder, cached)));
  // A commit never changes.
  if (complete && (isOffline || name.endsWith(`@${cached}`))) return snapshotOf(folder, cached);
  if (isOffline) {
    const state = cached === null ? 'not' : 'not completely';
    throw new DUltraError(
      'DOWNLOAD_FAILED',
      `${name}: HF_HUB_OFFLINE is set and the checkpoint is ${state} in the cache (${folder})`,
    );
  }
  return online(located, complete, async (repository) => {
    const { commit, entries } = await readCommit(repository);
    if (!entries.has('config.json'))
      throw failure(repository, 'config.json', 'the repository has no such file; is it a language model?');
    const snapshot = snapshotOf(folder, commit);
    const bring = async (file: string) => {
      const entry = entries.get(file);
      if (!entry) throw failure(repository, file, `the repository has no such file, which its ${INDEX_FILE} names`);
      await bringFile(repository, commit, entry, path.join(snapshot, file));
    };
    for (const file of SMALL_FILES) if (entries.has(file)) await bring(file);
    // Weights last: a snapshot with all of them is complete.
    for (const file of await weightFiles(repository, snapshot, entries)) await bring(file);
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
  options: DownloadOptions = {},
): Promise<string[]> {
  const located = await locate(type, source, options);
  const { name, folder, cached, isOffline } = located;
  const held = cached === null ? [] : choose(await namesIn(snapshotOf(folder, cached)));
  const paths = (commit: string, files: readonly string[]) =>
    files.map((file) => path.join(snapshotOf(folder, commit), ...file.split('/')));
  if (isOffline) {
    if (cached === null)
      throw new DUltraError(
        'DOWNLOAD_FAILED',
        `${name}: HF_HUB_OFFLINE is set and the cache has nothing of it (${folder})`,
      );
    return paths(cached, held);
  }
  return online(located, held.length > 0, async (repository) => {
    const { commit, entries } = await readCommit(repository);
    // Names become paths: none may leave the folder.
    const safe = [...entries.keys()].filter((file) =>
      file.split('/').every((part) => NAME.test(part) && part !== '..'),
    );
    const files = choose(safe);
    for (const [i, target] of paths(commit, files).entries())
      await bringFile(repository, commit, entries.get(files[i]) as ListFileEntry, target);
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
