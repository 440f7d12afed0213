// Where a checkpoint lies: the embedded model, a folder, the final model of a run folder, or a download.
import { existsSync, readdirSync, statSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { DUltraError, optionError } from '../errors';
import { downloadFiles, downloadModel, type ModelChecks, type SourceOptions } from '../hub';
import { similarName } from '../options';
import { checkInstalled } from '../package';
import { EMBEDDED_MODELS, embeddedSource } from './embedded';
import { isGgufPath } from './gguf';
import type { LoadModelOptions } from './load-weights';

const looksLikePath = (source: string) => /^[./~\\]|^[A-Za-z]:[\\/]/.test(source);

/** What of a folder tells what it is. */
const ADAPTER_FILE = 'adapter_config.json';
const FINAL = 'final';
const CHECKPOINTS = 'checkpoints';

/** Names in a folder; null where it is not there, or may not be read. */
function namesIn(folder: string): string[] | null {
  try {
    return readdirSync(folder);
  } catch {
    return null;
  }
}

/** The newest checkpoint of a run among the names in its folder of checkpoints; undefined: it has none. */
const newestOf = (names: readonly string[] | null): string | undefined =>
  names
    ?.filter((name) => /^step-\d+$/.test(name))
    .sort()
    .at(-1);

/** What a folder that is no checkpoint has, for a message. */
function contentsOf(folder: string, names: readonly string[]): string {
  const inner = newestOf(names) ?? names.find((name) => existsSync(path.join(folder, name, 'config.json')));
  if (inner !== undefined) return `a folder with checkpoints in it, such as ${inner}`;
  if (names.length === 0) return 'an empty folder';
  return `a folder with ${names.slice(0, 3).join(', ')}${names.length > 3 ? ' …' : ''}`;
}

/**
 * The folder of a checkpoint: itself, or of a run folder that of the final model. @param source as it was given
 * @throws DUltraError BAD_CHECKPOINT for a run without one, naming its newest checkpoint, for an adapter, and for a
 * folder without config.json
 */
function checkpointIn(folder: string, source: string): string {
  const names = namesIn(folder);
  if (names === null) return folder;
  const bad = (message: string) => new DUltraError('BAD_CHECKPOINT', `${source}: ${message}`);
  const hasConfig = names.includes('config.json');
  if (names.some((name) => name.endsWith('.safetensors') && name !== 'adapter_model.safetensors')) {
    if (hasConfig) return folder;
    throw bad('expected config.json beside the weights, got none');
  }
  if (names.includes(FINAL)) return path.join(folder, FINAL);
  if (names.includes(CHECKPOINTS)) {
    const newest = newestOf(namesIn(path.join(folder, CHECKPOINTS)));
    const latest =
      newest === undefined
        ? 'it has no checkpoint yet'
        : `its newest checkpoint is ${path.join(source, CHECKPOINTS, newest)}`;
    throw bad(`a run without its final model, since it has not come to its end; ${latest}`);
  }
  if (names.includes(ADAPTER_FILE))
    throw bad('expected a model, got an adapter, which goes on its base model (model.loadAdapter, --adapter)');
  if (!hasConfig)
    throw bad(`expected a checkpoint, a folder with config.json and *.safetensors, got ${contentsOf(folder, names)}`);
  return folder;
}

/** What a source is not that the hub is asked for; with the embedded model that it nearly names. */
export function notFolder(source: string): string {
  const meant = similarName(source, EMBEDDED_MODELS);
  return `no folder ./${source}${meant === null ? '' : ` (did you mean the embedded model "${meant}"?)`}`;
}

/** A folder for a source: the embedded model, a folder, or a downloaded snapshot. */
export async function resolveSource(
  source: string | undefined,
  options: LoadModelOptions,
  checks: ModelChecks,
): Promise<string> {
  checkInstalled();
  if (source !== undefined && (typeof source !== 'string' || source === ''))
    throw optionError(TypeError, 'source', `expected a folder or a hub id, got ${JSON.stringify(source)}`);
  const embedded = embeddedSource(source);
  if (embedded !== null || source === undefined) return embedded!;
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
    otherwise: notFolder(source),
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
