// Safetensors headers, read with suspicion: a checkpoint is a file from somewhere else.
import { type FileHandle, open, readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { DUltraError } from '../errors';

/** Where one tensor lies. */
export interface TensorEntry {
  /** As the file says: F32, BF16, F16, I64 … */
  dtype: string;
  shape: number[];
  /** Index of the file among those read. */
  file: number;
  path: string;
  /** Bytes of the file. */
  begin: number;
  end: number;
}

/** Bytes per element of the types that the format knows. */
const ELEMENT_BYTES = new Map([
  ['BOOL', 1],
  ['U8', 1],
  ['I8', 1],
  ['F8_E4M3', 1],
  ['F8_E5M2', 1],
  ['U16', 2],
  ['I16', 2],
  ['F16', 2],
  ['BF16', 2],
  ['U32', 4],
  ['I32', 4],
  ['F32', 4],
  ['U64', 8],
  ['I64', 8],
  ['F64', 8],
]);

/** The format's own limit on a header. */
const MAX_HEADER_BYTES = 100_000_000;

const isIndex = (value: unknown): value is number => typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;

/**
 * Checks a header's JSON text against the size of its data section.
 * @returns name to dtype, shape and byte range of the data section @throws DUltraError BAD_CHECKPOINT
 */
export function parseSafetensorsHeader(
  text: string,
  dataBytes: number,
  file: string,
): Map<string, Pick<TensorEntry, 'dtype' | 'shape' | 'begin' | 'end'>> {
  const bad = (message: string) => new DUltraError('BAD_CHECKPOINT', `${file}: ${message}`);
  let header: unknown;
  try {
    header = JSON.parse(text);
  } catch (cause) {
    throw bad(`the safetensors header is not JSON (${cause instanceof Error ? cause.message : String(cause)})`);
  }
  if (typeof header !== 'object' || header === null || Array.isArray(header)) throw bad('the safetensors header is not an object');
  const tensors = new Map<string, Pick<TensorEntry, 'dtype' | 'shape' | 'begin' | 'end'>>();
  for (const [name, value] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const at = `tensor ${JSON.stringify(name)}`;
    const entry = value as { dtype?: unknown; shape?: unknown; data_offsets?: unknown } | null;
    if (typeof entry !== 'object' || entry === null) throw bad(`${at}: expected an object`);
    const { dtype, shape, data_offsets: offsets } = entry;
    const size = typeof dtype === 'string' ? ELEMENT_BYTES.get(dtype) : undefined;
    if (typeof dtype !== 'string' || size === undefined) throw bad(`${at}: unknown dtype ${JSON.stringify(dtype)}`);
    if (!Array.isArray(shape) || !shape.every(isIndex))
      throw bad(`${at}: expected a shape of non-negative integers, got ${JSON.stringify(shape)}`);
    if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isIndex) || offsets[0] > offsets[1])
      throw bad(`${at}: expected data_offsets [begin, end], got ${JSON.stringify(offsets)}`);
    const [begin, end] = offsets as [number, number];
    if (end > dataBytes) throw bad(`${at}: ends at byte ${end} of ${dataBytes}: the file is truncated or its header is wrong`);
    // Products beyond 2^53 are rounded, but stay beyond anything that a file holds.
    const bytes = shape.reduce((product: number, n: number) => product * n, size);
    if (bytes !== end - begin)
      throw bad(`${at}: shape [${shape.join(', ')}] of ${dtype} needs ${bytes} bytes, its range has ${end - begin}`);
    tensors.set(name, { dtype, shape, begin, end });
  }
  const ranges = [...tensors].filter(([, t]) => t.end > t.begin).sort(([, a], [, b]) => a.begin - b.begin);
  for (let i = 1; i < ranges.length; i++)
    if (ranges[i][1].begin < ranges[i - 1][1].end)
      throw bad(`tensors ${JSON.stringify(ranges[i - 1][0])} and ${JSON.stringify(ranges[i][0])} overlap`);
  return tensors;
}

async function readExactly(handle: FileHandle, length: number, position: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length);
  const { bytesRead } = await handle.read(buffer, 0, length, position);
  return buffer.subarray(0, bytesRead);
}

/** Reads the headers of the files; entries are byte ranges of the files. @throws DUltraError BAD_CHECKPOINT */
export async function readSafetensorsEntries(files: readonly string[]): Promise<Map<string, TensorEntry>> {
  const entries = new Map<string, TensorEntry>();
  for (let file = 0; file < files.length; file++) {
    const filePath = files[file];
    const bad = (message: string) => new DUltraError('BAD_CHECKPOINT', `${filePath}: ${message}`);
    let handle: FileHandle;
    try {
      handle = await open(filePath, 'r');
    } catch (cause) {
      throw new DUltraError('BAD_CHECKPOINT', `${filePath}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
    }
    try {
      const info = await handle.stat();
      if (!info.isFile()) throw bad('not a regular file');
      if (info.size < 8) throw bad(`expected a safetensors file, got ${info.size} bytes`);
      const length = (await readExactly(handle, 8, 0)).readBigUInt64LE(0);
      if (length > BigInt(Math.min(MAX_HEADER_BYTES, info.size - 8)))
        throw bad(`the header claims ${length} bytes, the file has ${info.size}: not a safetensors file, or truncated`);
      const headerBytes = Number(length);
      const text = await readExactly(handle, headerBytes, 8);
      if (text.length !== headerBytes) throw bad('the file became shorter while it was read');
      const dataStart = 8 + headerBytes;
      for (const [name, tensor] of parseSafetensorsHeader(text.toString('utf8'), info.size - dataStart, filePath)) {
        const other = entries.get(name);
        if (other) throw bad(`tensor ${JSON.stringify(name)} is also in ${other.path}`);
        entries.set(name, { ...tensor, file, path: filePath, begin: tensor.begin + dataStart, end: tensor.end + dataStart });
      }
    } finally {
      await handle.close();
    }
  }
  return entries;
}

/** The safetensors files of a checkpoint folder: those of the index, else model.safetensors, else all. @throws DUltraError BAD_CHECKPOINT */
export async function findSafetensors(folder: string): Promise<string[]> {
  let names: string[];
  try {
    names = await readdir(folder);
  } catch (cause) {
    throw new DUltraError('BAD_CHECKPOINT', `${folder}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
  const index = path.join(folder, 'model.safetensors.index.json');
  if (names.includes('model.safetensors.index.json')) {
    let map: unknown;
    try {
      map = (JSON.parse(await readFile(index, 'utf8')) as { weight_map?: unknown } | null)?.weight_map;
    } catch (cause) {
      throw new DUltraError('BAD_CHECKPOINT', `${index}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
    }
    const shards = typeof map === 'object' && map !== null ? [...new Set(Object.values(map))] : [];
    if (shards.length === 0 || !shards.every((shard): shard is string => typeof shard === 'string'))
      throw new DUltraError('BAD_CHECKPOINT', `${index}: expected a weight_map of file names`);
    for (const shard of shards) {
      // A name out of the folder would let a checkpoint read other files.
      if (path.basename(shard) !== shard)
        throw new DUltraError('BAD_CHECKPOINT', `${index}: expected a file name, got ${JSON.stringify(shard)}`);
      if (!names.includes(shard)) throw new DUltraError('BAD_CHECKPOINT', `${folder}: ${shard} is missing, which the index names`);
    }
    return shards.sort().map((shard) => path.join(folder, shard));
  }
  const found = names.includes('model.safetensors') ? ['model.safetensors'] : names.filter((name) => name.endsWith('.safetensors')).sort();
  if (found.length === 0) throw new DUltraError('BAD_CHECKPOINT', `${folder}: no *.safetensors file`);
  return found.map((name) => path.join(folder, name));
}
