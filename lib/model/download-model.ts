// Brings a model of the hub into the cache without loading it.
import { downloadModel as downloadFromHub } from '../hub';
import type { DownloadOptions } from '../hub/types';
import { checkKeys, checkSignal } from '../options';
import { parseCheckpoint } from './families';
import { loadTokenizer } from './load-tokenizer';
import { checkRunnable } from './load-weights';

/** Models of either kind, which are to be run but not loaded yet. */
export const EITHER_KIND = {
  parse: parseCheckpoint,
  readFiles: (folder: string, { maskTokenId, embeddingSize }: ReturnType<typeof parseCheckpoint>['config']) =>
    loadTokenizer(folder, maskTokenId, embeddingSize),
};

/**
 * Downloads a model into the cache of the hub and returns its folder, which `loadModel` and `loadCausalModel` take; they
 * find it by the same id, too. An interrupted download resumes. See {@link loadModel} for the environment.
 * @param source "org/name" or "org/name@revision"
 * @throws TypeError for an id that is none; DUltraError BAD_CHECKPOINT (before the weights are downloaded) for a model
 * that cannot be run, DOWNLOAD_FAILED naming repository, file and HTTP status; `signal.reason`.
 */
export async function downloadModel(source: string, options: DownloadOptions = {}): Promise<string> {
  checkKeys('options', options, ['revision', 'signal', 'onProgress']);
  checkSignal(options.signal);
  return downloadFromHub(source, options, { canRun: (folder, name) => checkRunnable(EITHER_KIND, folder, name) });
}
