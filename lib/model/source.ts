// Where a checkpoint lies: the embedded model, a folder, the final model of a run folder, or a download.
import { existsSync, readdirSync, statSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { DUltraError, optionError } from '../errors';
import { downloadFiles, downloadModel, type ModelChecks, type SourceOptions } from '../hub';
import { checkInstalled, packageFile } from '../package';
import { isGgufPath } from './gguf';
import type { LoadModelOptions } from './load-weights';

const looksLikePath = (source: string) => /^[./~\\]|^[A-Za-z]:[\\/]/.test(source);

/** What of a folder tells what it is. */
const ADAPTER_FILE = 'adapter_config.json';
const FINAL = 'final';
const CHECKPOINTS = 'checkpoints';

/** Names in a folder; none where it is not there, or may not be read. */
function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

/**
 * The folder of a checkpoint: itself, or of a run folder that of the final model. @param source as it was given
 * @throws DUltraError BAD_CHECKPOINT for a run without one, naming its newest checkpoint, and for an adapter
 */
function checkpointIn(folder: string, source: string): string {
  const names = namesIn(folder);
  if (names.some((name) => name.endsWith('.safetensors') && name !== 'adapter_model.safetensors')) return folder;
  if (names.includes(FINAL)) return path.join(folder, FINAL);
  const newest = namesIn(path.join(folder, CHECKPOINTS))
    .filter((name) => /^step-\d+$/.test(name))
    .sort()
    .at(-1);
  if (names.includes(CHECKPOINTS))
    throw new DUltraError(
      'BAD_CHECKPOINT',
      `${source}: a run without its final model, since it has not come to its end; ` +
        (newest === undefined
          ? 'it has no checkpoint yet'
          : `its newest checkpoint is ${path.join(source, CHECKPOINTS, newest)}`),
    );
  if (names.includes(ADAPTER_FILE))
    throw new DUltraError(
      'BAD_CHECKPOINT',
      `${source}: expected a model, got an adapter, which goes on its base model (model.loadAdapter, --adapter)`,
    );
  return folder;
}

/** A folder for a source: the embedded model, a folder, or a downloaded snapshot. */
export async function resolveSource(
  source: string | undefined,
  options: LoadModelOptions,
  checks: ModelChecks,
): Promise<string> {
  checkInstalled();
  if (source === undefined) {
    const embedded = packageFile('models', 'default');
    if (existsSync(embedded)) return embedded;
    throw new DUltraError(
      'BAD_CHECKPOINT',
      'this version brings no embedded model; pass a checkpoint folder or a hub id such as "GSAI-ML/LLaDA-8B-Instruct"',
    );
  }
  if (typeof source !== 'string' || source === '')
    throw optionError(TypeError, 'source', `expected a folder or a hub id, got ${JSON.stringify(source)}`);
  const folder = source.startsWith('~/') ? path.join(os.homedir(), source.slice(2)) : source;
  if (existsSync(folder)) {
    if (!statSync(folder).isDirectory()) {
      if (isGgufPath(folder)) return path.resolve(folder);
      throw new DUltraError(
        'BAD_CHECKPOINT',
        `${source}: expected a folder with config.json or a *.gguf file, got a file`,
      );
    }
    return checkpointIn(path.resolve(folder), source);
  }
  if (looksLikePath(source))
    throw new DUltraError('BAD_CHECKPOINT', `${source}: no such ${isGgufPath(source) ? 'file' : 'folder'}`);
  const { revision, signal, onProgress } = options;
  const downloading: SourceOptions = {
    otherwise: `no folder ./${source}`,
    revision,
    signal,
    onProgress:
      onProgress &&
      (({ file, received, total }) =>
        onProgress({ stage: 'download', file, loadedBytes: received, totalBytes: total })),
  };
  return isGgufPath(source) ? downloadGguf(source, downloading) : downloadModel(source, downloading, checks);
}

/** A GGUF file of a repository, "org/name/file.gguf" or in a folder of it, with the others of a split one. */
async function downloadGguf(source: string, options: SourceOptions): Promise<string> {
  const [owner, name, ...rest] = source.split('/');
  const file = rest.join('/');
  const start = file.replace(/-\d{5}-of-(\d{5})\.gguf$/i, '-of-$1');
  const isPart = (other: string) => isGgufPath(other) && other.replace(/-\d{5}-of-(\d{5})\.gguf$/i, '-of-$1') === start;
  const paths =
    rest.length === 0
      ? []
      : await downloadFiles(
          'model',
          `${owner}/${name}`,
          (names) => names.filter((other) => other === file || isPart(other)),
          options,
        );
  const found = paths.find((one) => one.endsWith(path.join(path.sep, ...rest)));
  if (found === undefined)
    throw new DUltraError('DOWNLOAD_FAILED', `${source}: expected a file of a repository, as in "org/name/file.gguf"`);
  return found;
}
