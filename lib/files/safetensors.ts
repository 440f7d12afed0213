// Safetensors files. Their content is untrusted: every number of a header is checked before use.
import { type FileHandle, open, stat } from 'node:fs/promises';
import { DUltraError } from '../errors';
import { reasonOf, show } from '../text';
import { writeAtomically } from './atomic';
import { badFile, isIndex } from './json';
import { LFS_PREFIX_BYTES, lfsPointerReason } from './lfs';

/** Location of one tensor. */
export interface TensorEntry {
  /** As in the file: F32, BF16, F16, I64 … */
  dtype: string;
  shape: number[];
  /** Index of the file among those read. */
  file: number;
  path: string;
  /** Bytes of the file. */
  begin: number;
  end: number;
  /** As of `NativeTensorRef`. Default 0. */
  heads?: number;
  /** Of quantised tensors whose scales are another tensor: where those are. */
  scales?: { file: number; begin: number; end: number };
  /** Of tensors that GPTQ has quantised, whose codes are here: as of `NativeTensorRef`. */
  gptq?: import('../native').NativeGptq;
}

/** Elements of a tensor, little-endian as in the file; BF16, F16 and F8 as their bits, BOOL as 0 or 1. */
export type TensorData =
  | Float32Array
  | Float64Array
  | BigInt64Array
  | BigUint64Array
  | Int32Array
  | Uint32Array
  | Int16Array
  | Uint16Array
  | Int8Array
  | Uint8Array;

/** One tensor in memory, row-major. */
export interface TensorValue {
  /** F32, BF16, F16, F64, I64, I32, BOOL … */
  dtype: string;
  shape: readonly number[];
  data: TensorData;
}

/** Types that are read into memory, and the arrays that hold their elements. */
const ARRAY_TYPES = new Map<string, new (length: number) => TensorData>([
  ['BOOL', Uint8Array],
  ['U8', Uint8Array],
  ['I8', Int8Array],
  ['F8_E4M3', Uint8Array],
  ['F8_E5M2', Uint8Array],
  ['U16', Uint16Array],
  ['I16', Int16Array],
  ['F16', Uint16Array],
  ['BF16', Uint16Array],
  ['U32', Uint32Array],
  ['I32', Int32Array],
  ['F32', Float32Array],
  ['U64', BigUint64Array],
  ['I64', BigInt64Array],
  ['F64', Float64Array],
]);

/** Bits of an element of the format's other types. A tensor takes whole bytes, so that F4 needs an even count. */
const OTHER_TYPES = new Map<string, number>([
  ['F4', 4],
  ['F6_E2M3', 6],
  ['F6_E3M2', 6],
  ['F8_E8M0', 8],
  ['F8_E4M3FNUZ', 8],
  ['F8_E5M2FNUZ', 8],
  ['C64', 64],
]);

/** The only header key that is not a tensor. */
const METADATA = '__metadata__';
/**
 * A third of the format's own limit, and a quarter of a million tensors: parsed JSON can take twenty times the memory
 * of its text.
 */
const MAX_HEADER_BYTES = 32 * 2 ** 20;

function elementBytes(dtype: unknown): number | undefined {
  const type = typeof dtype === 'string' ? ARRAY_TYPES.get(dtype) : undefined;
  return (type as { BYTES_PER_ELEMENT?: number } | undefined)?.BYTES_PER_ELEMENT;
}

/** Bits of an element; undefined for a type that is not known here. */
function elementBits(dtype: string): number | undefined {
  const bytes = elementBytes(dtype);
  return bytes === undefined ? OTHER_TYPES.get(dtype) : 8 * bytes;
}

/**
 * Checks a header's JSON text against the size of its data section. A tensor of a type that is not known here may have
 * any range: whether anybody needs it is not known yet.
 * @returns name to dtype, shape and byte range of the data section @throws DUltraError BAD_CHECKPOINT
 */
export function parseSafetensorsHeader(
  text: string,
  dataBytes: number,
  file: string,
): Map<string, Pick<TensorEntry, 'dtype' | 'shape' | 'begin' | 'end'>> {
  const bad = (message: string) => badFile(file, message);
  let header: unknown;
  try {
    header = JSON.parse(text);
  } catch (cause) {
    throw bad(`the safetensors header is not JSON (${reasonOf(cause)})`);
  }
  if (typeof header !== 'object' || header === null || Array.isArray(header))
    throw bad('the safetensors header is not an object');
  const tensors = new Map<string, Pick<TensorEntry, 'dtype' | 'shape' | 'begin' | 'end'>>();
  for (const [name, value] of Object.entries(header)) {
    if (name === METADATA) continue;
    const at = `tensor ${show(name)}`;
    if (typeof value !== 'object' || value === null) throw bad(`${at}: expected an object, got ${show(value)}`);
    const {
      dtype,
      shape,
      data_offsets: offsets,
    } = value as { dtype?: unknown; shape?: unknown; data_offsets?: unknown };
    if (typeof dtype !== 'string' || dtype === '') throw bad(`${at}: expected a dtype, got ${show(dtype)}`);
    if (!Array.isArray(shape) || !shape.every(isIndex))
      throw bad(`${at}: expected a shape of non-negative integers, got ${show(shape)}`);
    if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isIndex) || offsets[0] > offsets[1])
      throw bad(`${at}: expected data_offsets [begin, end], got ${show(offsets)}`);
    const [begin, end] = offsets as [number, number];
    if (end > dataBytes)
      throw bad(`${at}: ends at byte ${end} of ${dataBytes}: the file is truncated or its header is wrong`);
    // Products beyond 2^53 are rounded, but still exceed any file.
    const size = elementBits(dtype);
    const bytes = shape.includes(0) ? 0 : shape.reduce((product: number, n: number) => product * n, (size ?? 0) / 8);
    if (size !== undefined && bytes !== end - begin)
      throw bad(`${at}: shape ${show(shape)} of ${dtype} needs ${bytes} bytes, its range has ${end - begin}`);
    tensors.set(name, { dtype, shape, begin, end });
  }
  const ranges = [...tensors].filter(([, t]) => t.end > t.begin).sort(([, a], [, b]) => a.begin - b.begin);
  // The format puts every byte in exactly one tensor: this detects a header that does not match its data.
  let covered = 0;
  let before = '';
  for (const [name, { begin, end }] of ranges) {
    if (begin < covered) throw bad(`tensors ${show(before)} and ${show(name)} overlap`);
    if (begin > covered) throw bad(`bytes ${covered} to ${begin} before tensor ${show(name)} belong to no tensor`);
    covered = end;
    before = name;
  }
  if (covered !== dataBytes) throw bad(`its tensors take ${covered} bytes, the file has ${dataBytes}`);
  return tensors;
}

/** Fills `target` from `position` on. @returns bytes read, fewer if the file ends */
async function readFully(handle: FileHandle, target: Uint8Array, position: number): Promise<number> {
  let done = 0;
  while (done < target.length) {
    const { bytesRead } = await handle.read(target, done, target.length - done, position + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return done;
}

/**
 * Opens a file and hands it on with its header; entries are byte ranges of the file. @throws DUltraError BAD_CHECKPOINT
 */
async function withHeader<T>(
  filePath: string,
  use: (handle: FileHandle, entries: Map<string, Pick<TensorEntry, 'dtype' | 'shape' | 'begin' | 'end'>>) => Promise<T>,
): Promise<T> {
  const bad = (message: string, cause?: unknown) => badFile(filePath, message, cause);
  let handle: FileHandle;
  try {
    // Opening a pipe would block until it has a writer.
    if (!(await stat(filePath)).isFile()) throw new Error('expected a file');
    handle = await open(filePath, 'r');
  } catch (cause) {
    throw bad(reasonOf(cause), cause);
  }
  try {
    const info = await handle.stat();
    if (!info.isFile()) throw bad('expected a file');
    const start = Buffer.alloc(Math.min(LFS_PREFIX_BYTES, info.size));
    await readFully(handle, start, 0);
    const pointer = lfsPointerReason(start);
    if (pointer) throw bad(pointer);
    if (info.size < 8) throw bad(`expected a safetensors file, got ${info.size} bytes`);
    const prefix = Buffer.alloc(8);
    if ((await readFully(handle, prefix, 0)) !== 8) throw bad('the file became shorter while it was read');
    const length = prefix.readBigUInt64LE(0);
    if (length > BigInt(MAX_HEADER_BYTES) || length > BigInt(info.size - 8))
      throw bad(`its header claims ${length} bytes, the file has ${info.size}: not a safetensors file, or truncated`);
    const header = Buffer.alloc(Number(length));
    if ((await readFully(handle, header, 8)) !== header.length) throw bad('the file became shorter while it was read');
    let text: string;
    try {
      text = new TextDecoder('utf-8', { fatal: true }).decode(header);
    } catch (cause) {
      throw bad('the safetensors header is not UTF-8', cause);
    }
    const dataStart = 8 + header.length;
    const entries = parseSafetensorsHeader(text, info.size - dataStart, filePath);
    for (const entry of entries.values()) {
      entry.begin += dataStart;
      entry.end += dataStart;
    }
    return await use(handle, entries);
  } finally {
    await handle.close();
  }
}

/** Reads the headers of the files; entries are byte ranges of the files. @throws DUltraError BAD_CHECKPOINT */
export async function readSafetensorsEntries(files: readonly string[]): Promise<Map<string, TensorEntry>> {
  const entries = new Map<string, TensorEntry>();
  for (let file = 0; file < files.length; file++) {
    const filePath = files[file];
    await withHeader(filePath, async (_handle, found) => {
      for (const [name, tensor] of found) {
        const other = entries.get(name);
        if (other)
          throw new DUltraError('BAD_CHECKPOINT', `${filePath}: tensor ${show(name)} is also in ${other.path}`);
        entries.set(name, { ...tensor, file, path: filePath });
      }
    });
  }
  return entries;
}

/** Reads a whole file into memory. @throws DUltraError BAD_CHECKPOINT */
export async function readSafetensors(file: string): Promise<Map<string, TensorValue>> {
  return withHeader(file, async (handle, entries) => {
    const tensors = new Map<string, TensorValue>();
    for (const [name, { dtype, shape, begin, end }] of entries) {
      const ArrayType = ARRAY_TYPES.get(dtype);
      if (!ArrayType) throw badFile(file, `tensor ${show(name)}: expected a dtype such as F32, got ${show(dtype)}`);
      // The header was checked against the file's size, so this cannot allocate more than the file holds.
      const data = new ArrayType((end - begin) / elementBytes(dtype)!);
      if ((await readFully(handle, new Uint8Array(data.buffer), begin)) !== end - begin)
        throw new DUltraError('BAD_CHECKPOINT', `${file}: the file became shorter while it was read`);
      tensors.set(name, { dtype, shape, data });
    }
    return tensors;
  });
}

/** Name, dtype and shape of a tensor that is to be written. */
export interface TensorHeader {
  name: string;
  dtype: string;
  shape: readonly number[];
}

/**
 * Writes a file atomically: a crash leaves the old file or the new one.
 * @param metadata texts for the header, such as `{ format: "pt" }`
 * @throws TypeError, RangeError for a tensor whose dtype, shape and data do not fit together.
 */
export async function writeSafetensors(
  file: string,
  tensors: ReadonlyMap<string, TensorValue>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  for (const [name, { dtype, shape, data }] of tensors) {
    const size = elementBytes(dtype);
    const count = shape.reduce((product, n) => product * n, 1);
    if (size !== undefined && (!shape.every(isIndex) || data.BYTES_PER_ELEMENT !== size || data.length !== count))
      throw new RangeError(
        `${name}: expected ${count} elements of ${size} bytes for shape ${show(shape)} of ${dtype}, got ${data.length} of ${data.BYTES_PER_ELEMENT}`,
      );
  }
  const headers = [...tensors].map(([name, { dtype, shape }]) => ({ name, dtype, shape }));
  await writeSafetensorsFrom(file, headers, async (name) => tensors.get(name)!.data, metadata);
}

/**
 * As {@link writeSafetensors}, with one tensor in memory at a time: `produce` is asked for each in turn.
 * @param order "aligned" (default): widest elements first; "given": as they come
 */
export async function writeSafetensorsFrom(
  file: string,
  headers: readonly TensorHeader[],
  produce: (name: string) => Promise<TensorData>,
  metadata: Readonly<Record<string, string>> = {},
  order: 'aligned' | 'given' = 'aligned',
): Promise<void> {
  for (const { name, dtype } of headers) {
    if (elementBytes(dtype) === undefined) throw new TypeError(`${name}: unknown dtype ${show(dtype)}`);
    if (name === METADATA) throw new RangeError(`${METADATA} is not a name for a tensor`);
  }
  // Widest first, as the reference implementation writes, so that every tensor is aligned to its elements.
  const ordered =
    order === 'given' ? headers : [...headers].sort((a, b) => elementBytes(b.dtype)! - elementBytes(a.dtype)!);
  const bytesOf = ({ dtype, shape }: TensorHeader) => shape.reduce((product, n) => product * n, elementBytes(dtype)!);
  let at = 0;
  const header: [string, unknown][] = Object.keys(metadata).length > 0 ? [[METADATA, metadata]] : [];
  for (const tensor of ordered) {
    const { name, dtype, shape } = tensor;
    header.push([name, { dtype, shape, data_offsets: [at, at + bytesOf(tensor)] }]);
    at += bytesOf(tensor);
  }
  const json = Buffer.from(JSON.stringify(Object.fromEntries(header)));
  const start = Buffer.alloc(8 + Math.ceil(json.length / 8) * 8, ' ');
  start.writeBigUInt64LE(BigInt(start.length - 8));
  json.copy(start, 8);
  await writeAtomically(file, async (handle) => {
    await handle.writeFile(start);
    for (const tensor of ordered) {
      const data = await produce(tensor.name);
      if (data.byteLength !== bytesOf(tensor))
        throw new RangeError(`${tensor.name}: expected ${bytesOf(tensor)} bytes, got ${data.byteLength}`);
      await handle.writeFile(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    }
  });
}
