// Records of a data set's files: JSON lines, a JSON array, Parquet; from a local path, or from the hub into its cache.
import { existsSync, statSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { asyncBufferFromFile, parquetReadObjects } from 'hyparquet';
import { compressors } from 'hyparquet-compressors';
import { DUltraError, optionError } from '../errors';
import { downloadFiles } from '../hub';
import type { Split } from './splits';

/** A record and its place, for messages: "gsm8k.jsonl, line 3". */
export interface SourcedRecord {
  value: unknown;
  where: string;
}

const FORMATS = /\.(jsonl|ndjson|json|parquet)$/i;

/** Whole numbers of a Parquet file come as big integers. */
function plain(value: unknown): unknown {
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : value.toString();
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === 'object' && value !== null && Object.getPrototypeOf(value) === Object.prototype)
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item)]));
  return value;
}

function parseJson(text: string, where: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new DUltraError('BAD_DATASET', `${where}: expected JSON, got ${(cause as Error).message}`, { cause });
  }
}

/** All records of a file. @throws DUltraError BAD_DATASET naming file and line */
export async function readRecords(file: string): Promise<SourcedRecord[]> {
  const name = path.basename(file);
  try {
    if (/\.parquet$/i.test(file)) {
      const rows = await parquetReadObjects({ file: await asyncBufferFromFile(file), compressors });
      return rows.map((row, i) => ({ value: plain({ ...row }), where: `${name}, row ${i + 1}` }));
    }
    const text = await readFile(file, 'utf8');
    if (/\.json$/i.test(file) && text.trimStart().startsWith('[')) {
      const rows = parseJson(text, name) as unknown[];
      return rows.map((value, i) => ({ value, where: `${name}, entry ${i + 1}` }));
    }
    return text.split('\n').flatMap((line, i) => {
      const where = `${name}, line ${i + 1}`;
      return line.trim() === '' ? [] : [{ value: parseJson(line, where), where }];
    });
  } catch (cause) {
    if (cause instanceof DUltraError) throw cause;
    throw new DUltraError('BAD_DATASET', `${file}: ${(cause as Error).message}`, { cause });
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
  const format = chosen[0]?.match(FORMATS)?.[1].toLowerCase();
  return chosen.filter((file) => file.toLowerCase().endsWith(`.${format}`));
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
    if (statSync(source).isFile()) return [source];
    const names = (await readdir(source, { recursive: true })).map((name) => name.split(path.sep).join('/'));
    return filesOfSplit(names, split, config).map((name) => path.join(source, name));
  }
  if (!/^[\w.-]+\/[\w.-]+(@[\w./-]+)?$/.test(source))
    throw optionError(
      RangeError,
      'dataset',
      `expected a file, a folder or a hub id such as "openai/gsm8k", got ${JSON.stringify(source)}`,
    );
  return downloadFiles('dataset', source, (names) => filesOfSplit(names, split, config));
}
