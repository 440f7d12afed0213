// Records of a data set's files: JSON lines, a JSON array, Parquet; from a local path, or from the hub into its cache.
import { existsSync, statSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import { DUltraError, isDUltraError, optionError } from '../errors';
import { LFS_PREFIX_BYTES, lfsPointerReason } from '../files/lfs';
import { downloadFiles } from '../hub';
import { reasonOf, show } from '../text';
import type { Split } from './splits';
import { readTextRecords, type SourcedRecord } from './text-records';

export type { SourcedRecord } from './text-records';

const READ_FORMATS = 'what is read are JSON lines (.jsonl), JSON (.json) and Parquet (.parquet)';
const FORMATS = /\.(jsonl|ndjson|json|parquet)(\.gz)?$/i;

/** Whole numbers of a Parquet file come as big integers. */
function plain(value: unknown): unknown {
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : value.toString();
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === 'object' && value !== null && Object.getPrototypeOf(value) === Object.prototype)
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item)]));
  return value;
}

async function* readParquet(file: string): AsyncGenerator<SourcedRecord, void, void> {
  // ES modules, and needed by few: Yarn's Plug'n'Play cannot `require` them.
  const { asyncBufferFromFile, parquetReadObjects } = await import('hyparquet');
  const { compressors } = await import('hyparquet-compressors');
  const bytes = await asyncBufferFromFile(file);
  const pointer = lfsPointerReason(new Uint8Array(await bytes.slice(0, Math.min(LFS_PREFIX_BYTES, bytes.byteLength))));
  if (pointer !== null) throw new Error(pointer);
  const rows = await parquetReadObjects({ file: bytes, compressors });
  for (const [i, row] of rows.entries())
    yield { value: plain({ ...row }), where: `${path.basename(file)}, row ${i + 1}` };
}

/**
 * All records of a file, one after the other: JSON lines, a JSON array, or Parquet; text also packed by gzip.
 * @throws DUltraError BAD_DATASET naming file and line
 */
export async function* readRecords(file: string): AsyncGenerator<SourcedRecord, void, void> {
  try {
    yield* /\.parquet$/i.test(file) ? readParquet(file) : readTextRecords(file);
  } catch (cause) {
    if (isDUltraError(cause)) throw cause;
    const reason = reasonOf(cause);
    const name = path.basename(file);
    const formats = FORMATS.test(file) || !/expected JSON/.test(reason) ? '' : `; ${READ_FORMATS}`;
    throw new DUltraError('BAD_DATASET', `${reason.startsWith(name) ? reason : `${file}: ${reason}`}${formats}`, {
      cause,
    });
  }
}

/**
 * Of a data set's files, those of a split: by the name of the file, or of its folder; of several configurations the one
 * in the folder `config`; one format only.
 */
export function filesOfSplit(files: readonly string[], split: Split, config: string | null): string[] {
  const own = files.filter((file) => {
    if (!FORMATS.test(file)) return false;
    const parts = file.split('/');
    return new RegExp(`^${split}([-._]|$)`).test(parts[parts.length - 1]) || parts.slice(0, -1).includes(split);
  });
  const configured = config === null ? [] : own.filter((file) => file.split('/').includes(config));
  const chosen = (configured.length > 0 ? configured : own).sort();
  const format = chosen[0]?.match(FORMATS)?.[0].toLowerCase();
  return chosen.filter((file) => format !== undefined && file.toLowerCase().endsWith(format));
}

/**
 * Location of a data set: a file (which stands for every split), a folder, or a hub id such as "openai/gsm8k" or
 * "openai/gsm8k@revision".
 */
export interface DataLocation {
  source: string;
  /** Folder of the configuration where a repository has several. */
  config: string | null;
}

/** Local paths of a split's files; those of the hub are brought into its cache. Empty where there is no such split. */
export async function locateSplit({ source, config }: DataLocation, split: Split): Promise<string[]> {
  if (existsSync(source)) {
    if (!statSync(source).isDirectory()) return [source];
    const names = (await readdir(source, { recursive: true })).map((name) => name.split(path.sep).join('/'));
    return filesOfSplit(names, split, config).map((name) => path.join(source, name));
  }
  if (!/^[\w.-]+\/[\w.-]+(@[\w./-]+)?$/.test(source))
    throw optionError(
      RangeError,
      'dataset',
      `expected a file, a folder or a hub id such as "openai/gsm8k", got ${show(source)}`,
    );
  const choose = (names: readonly string[]) => filesOfSplit(names, split, config);
  return downloadFiles('dataset', source, choose, { otherwise: `no file or folder ./${source}` });
}
